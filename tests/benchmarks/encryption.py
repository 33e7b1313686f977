"""What TLS costs two workers of this machine: start, empty calls, calls of a MiB, a small night; both ways in turns.

    python -m tests.benchmarks.encryption [--repeats 3]

Both are a distributed.LocalCluster with the same options, in plain TCP and with temporary certificates. Medians are for an idle
machine; beside them stands the best of the repeats, which others' load reaches least.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from flows.console import Quiet
from pipeline.cluster import open_workers, run_tasks
from pipeline.config import ClassCluster, load_config
from pipeline.night import run_night
from tests.benchmarks.archives import write_config, write_model, write_scenes
from tests.benchmarks.measure import machine, verdict
from tests.benchmarks.scaling import nothing

EMPTY, LARGE = 1500, 40
UNITS = {"start": "s", "empty call": "ms", "call of 1 MiB": "ms", "night of 30 images": "s"}


def size_of(load: bytes) -> int:
    """A task with something to carry."""
    return len(load)


def cluster(protocol: str) -> ClassCluster:
    """Two workers on loopback by `protocol`."""
    arguments = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "protocol": protocol}
    return ClassCluster.model_validate(
        {"type": "class", "class": "distributed.LocalCluster", "arguments": arguments, "workers": 2}
    )


def measured(protocol: str, config: Path) -> dict[str, float]:
    """Seconds, or milliseconds a call."""
    started = time.perf_counter()
    found = {}
    with open_workers(cluster(protocol)) as workers:
        assert workers.client is not None
        workers.client.wait_for_workers(2)
        found["start"] = time.perf_counter() - started
        list(run_tasks(nothing, [(f"warm-{i}", (i,)) for i in range(50)], workers))
        load = os.urandom(1 << 20)
        calls: dict[str, tuple[Any, list[tuple[str, tuple[Any, ...]]]]] = {
            "empty call": (nothing, [(f"empty-{i}", (i,)) for i in range(EMPTY)]),
            "call of 1 MiB": (size_of, [(f"large-{i}", (load,)) for i in range(LARGE)]),
        }
        for name, (function, tasks) in calls.items():
            started = time.perf_counter()
            assert sum(1 for _ in run_tasks(function, tasks, workers)) == len(tasks)
            found[name] = 1e3 * (time.perf_counter() - started) / len(tasks)
    with tempfile.TemporaryDirectory(prefix="gigamask-bench-") as output:
        changes = {"output": Path(output), "cluster": cluster(protocol)}
        started = time.perf_counter()
        assert run_night(load_config(config).model_copy(update=changes), Quiet(), "benchmark").exit_code == 0
        found["night of 30 images"] = time.perf_counter() - started
    return found


def main() -> None:
    """Run both in turns and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{machine()}\n")
    found: dict[str, list[dict[str, float]]] = {"tcp://": [], "tls://": []}
    with tempfile.TemporaryDirectory(prefix="gigamask-bench-") as folder:
        write_scenes(Path(folder), 30, 512, 512, truth=True)
        config = write_config(Path(folder), write_model(Path(folder) / "model", "threshold"), 2)
        for _ in range(repeats):
            for protocol, runs in found.items():
                runs.append(measured(protocol, config))
    for name, unit in UNITS.items():
        columns = {protocol: [run[name] for run in runs] for protocol, runs in found.items()}
        words = "   ".join(f"{p} {median(values):7.2f} (best {min(values):6.2f}) {unit}" for p, values in columns.items())
        print(f"{name:20}{words}")
    best = {p: {name: min(run[name] for run in runs) for name in UNITS} for p, runs in found.items()}
    more = best["tls://"]["start"] - best["tcp://"]["start"]
    slower = best["tls://"]["empty call"] / best["tcp://"]["empty call"] - 1
    verdict(f"TLS costs {more:+.2f} s at the start (0.3 meant)", more < 0.3)
    verdict(f"TLS makes an empty call {slower:+.0%} slower (15 % meant)", slower < 0.15)


if __name__ == "__main__":
    main()
