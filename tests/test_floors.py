"""The house: imports go down the floors only, each outside library has one address, and `--help` pays for nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO

GROUND = {
    *("errors", "codes", "grid", "image", "card", "config", "plan", "fit", "alignment"),
    *("blend", "confusion", "resample", "kernels", "machine", "records", "statistics"),
    *("boundary", "edges", "measures"),
    *("annotations", "tissue"),
}
FLOORS: list[set[str]] = [
    GROUND,
    {"gdal", "identity", "atomic"},
    {"projection"},
    {"rasterfile", "rasterwrite", "slidefile", "vectorfile", "stop", "watch"},
    {"sources", "truth", "models", "mosaic", "ledger", "report", "archive", "lock"},
    {"export"},
    {"areas"},
    {"strip"},
    {"work", "overview", "probe", "finished"},
    {"whole", "parts"},
    {"dispatch", "nannies", "train", "connections"},
    {"clusterclass"},
    {"cluster"},
    {"survey"},
    {"shop", "changes"},
    {"scoring"},
    {"bulk"},
    {"process"},
    {"night"},
    {"single", "demo", "merge", "books", "inspection"},
    {"audit"},
]
"""From the ground up. Modules of one floor do not import each other, but for those within a package and the ground's own."""
ADDRESS = {
    "rasterio": {"gdal", "projection", "rasterfile", "rasterwrite"},
    "openslide": {"slidefile"},
    "skimage": set(),
    "tifffile": {"export", "demo"},
    "pyogrio": {"vectorfile", "export"},
    "shapely": {"vectorfile", "export"},
    "dask": {"cluster", "clusterclass"},
    "distributed": {"cluster", "clusterclass", "connections", "dispatch", "nannies"},
    "numba": {"kernels"},
    "psutil": {"machine"},
    "zarr": {"mosaic"},
    "numcodecs": {"mosaic"},
    "google_crc32c": {"mosaic"},
    "sqlite3": {"ledger", "vectorfile"},
    "torch": {"models", "train", "work"},
    "segmentation_models_pytorch": {"models"},
    "PIL": {"report", "slidefile"},
    "jinja2": {"report"},
    "yaml": {"config", "report"},
    "prefect": set(),
}
"""The only modules of the library that may import each of these."""
MODULES = sorted((REPO / "pipeline").rglob("*.py"))


def floor_of(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if node.module == "pipeline" else [node.module]


def house_of(path: Path) -> str:
    """The module or package of the library that a file belongs to."""
    return path.relative_to(REPO / "pipeline").parts[0].removesuffix(".py")


def test_every_module_has_a_floor() -> None:
    houses = {house_of(path) for path in MODULES} - {"__init__"}
    assert houses == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(REPO)))
def test_imports_go_down_only(path: Path) -> None:
    here = house_of(path)
    if here == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] != "flows", f"{path} imports {name}: the library knows no flows"
        if parts[0] != "pipeline" or len(parts) == 1 or parts[1] in (here, "__version__"):
            continue
        there = parts[1]
        below = floor_of(there) < floor_of(here) or (here in GROUND and there in GROUND)
        assert below, f"{path} imports {name}: that is not below"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(REPO)))
def test_outside_libraries_have_one_address(path: Path) -> None:
    for name in imported(path):
        allowed = ADDRESS.get(name.split(".")[0])
        assert allowed is None or house_of(path) in allowed, f"{path} imports {name}"


def test_help_imports_neither_torch_nor_dask_nor_prefect() -> None:
    heavy = ("torch", "dask", "distributed", "prefect", "zarr", "rasterio", "numpy", "pydantic")
    code = f"import sys, flows.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
