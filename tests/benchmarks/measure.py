"""How the benchmarks measure and print: whole commands in processes of their own, medians, ratios of one run, verdicts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def machine() -> str:
    """The machine in a line, for the head of every table."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, load before: {load:.1f}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def segment(image: Path, model: Path, *options: Any, cores: str | None = None) -> dict[str, Any]:
    """What `gigamask segment` says of one run; `cores` such as "0" or "0,1" binds all its processes to these."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mask.zarr"
        command = [sys.executable, "-m", "flows.cli", "segment", image, "--model", model, "--out", out, "--trust-code", "--json"]
        bound = ["taskset", "-c", cores] if cores else []
        done = subprocess.run([*bound, *map(str, [*command, *options])], check=True, stdout=subprocess.PIPE, cwd=REPO)
    facts: dict[str, Any] = json.loads(done.stdout)
    facts["work_seconds"] = facts["seconds"] - facts["load_seconds"]
    facts["mpx"] = facts["height"] * facts["width"] / 1e6
    return facts


def medians[T](repeats: int, *ways: Callable[[], float]) -> list[float]:
    """Median seconds of each of `ways`, taken in turns, so that a busy minute hits all alike."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, seconds in zip(ways, found, strict=True):
            seconds.append(way())
    return [median(seconds) for seconds in found]


def verdict(text: str, good: bool) -> None:
    """A line that says whether a target holds in this run."""
    print(f"{'reached ' if good else 'MISSED  '}{text}", flush=True)


@contextmanager
def workshop() -> Iterator[Path]:
    """A folder for images and models that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gigamask-bench-") as folder:
        yield Path(folder)
