"""`gigamask doctor`: which versions, devices and formats are here, what is missing, and how to get it."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.table import Table

from flows import views

PACKAGES = (
    "gigamask", "numpy", "torch", "segmentation-models-pytorch", "rasterio", "zarr", "dask", "distributed", "prefect", "fastapi",
    "pydantic", "pyarrow",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    fix: str | None = None
    """What to do about it; None where all is well."""


def examine() -> list[Finding]:
    """Look at packages, devices, formats and the machine."""
    return [_python(), *_packages(), _prefect(), *_devices(), _formats(), _slides(), *_machine()]


def show(findings: list[Finding], *, as_json: bool) -> int:
    """Print the findings; how many of them need something done."""
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=2))  # noqa: T201
    else:
        table = Table("", "what", "found", "what to do", title="gigamask doctor")
        for f in findings:
            table.add_row("[red]✗[/red]" if f.fix else "[green]✓[/green]", f.what, f.found, f.fix or "")
        views.OUT.print(table)
    return sum(f.fix is not None for f in findings)


def _python() -> Finding:
    found = platform.python_version()
    new = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 12)
    return Finding("python", found, None if new else "gigamask needs 3.12 or newer")


def _packages() -> list[Finding]:
    found = []
    for package in PACKAGES:
        try:
            found.append(Finding(package, version(package)))
        except PackageNotFoundError:
            found.append(Finding(package, "missing", f"pip install {package}"))
    return found


def _prefect() -> Finding:
    """The server inside Prefect 3.8 does not import beside newer FastAPI releases."""
    try:
        import prefect.server.api.server  # noqa: F401
    except Exception as e:  # noqa: BLE001 - whatever it is, it is what the doctor reports
        return Finding("prefect server", f"does not import: {e}", "pip install 'fastapi>=0.139,<0.151', or use --no-prefect")
    return Finding("prefect server", "imports")


def _devices() -> list[Finding]:
    try:
        import torch
    except ImportError as e:
        return [Finding("devices", f"torch does not import: {e}", "pip install torch")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    name = ", ".join(gpus) if gpus else "none: models run on the CPU"
    return [Finding("CUDA devices", name), Finding("torch threads", str(torch.get_num_threads()))]


def _formats() -> Finding:
    from pipeline import gdal, rasterfile

    here, missing = rasterfile.drivers()
    return Finding(f"GDAL {gdal.version()} formats", ", ".join(here) + (f"; not here: {', '.join(missing)}" if missing else ""))


def _slides() -> Finding:
    """The library that reads slides."""
    try:
        from pipeline import slidefile

        return Finding("OpenSlide", slidefile.version())
    except (ImportError, OSError) as e:
        return Finding("OpenSlide", f"does not load: {e}", "pip install openslide-python 'openslide-bin>=4.0.1'")


def _machine() -> list[Finding]:
    from pipeline import machine

    memory = machine.total_bytes() / 1024**3
    free = shutil.disk_usage(".").free / 1024**3
    return [
        Finding("cores", str(machine.cores())),
        Finding(
            "memory", f"{memory:.1f} GiB", None if memory >= 4 else "a worker needs 1 to 4 GiB: lower model.batch and tiling.tile"
        ),
        Finding("free disk here", f"{free:.1f} GiB", None if free >= 2 else "free some: masks and pyramids are written here"),
    ]
