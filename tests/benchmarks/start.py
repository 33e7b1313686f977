"""What a run costs before and beside its pixels: help, the plan, and a second run of an archive that is finished.

    python -m tests.benchmarks.start                     1000 labelled images of 256 x 256 px, null model without torch
    python -m tests.benchmarks.start --images 200 --side 512 --null pointwise

Each command is a process of its own, as a person starts it, without Prefect. The first run is timed too, and where the second
one's time goes. Bytecode is kept in the benchmark's own folder, where an installed program has it beside its modules.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.archives import write_config, write_model, write_scenes
from tests.benchmarks.measure import verdict

REPO = Path(__file__).resolve().parents[2]
STEPS = """
import sys, time
from pathlib import Path
began = time.perf_counter()
from flows.console import Quiet
from pipeline import night
from pipeline.config import load_config
steps = {"imports": time.perf_counter() - began}

def timed(name, function):
    def call(*arguments, **options):
        began = time.perf_counter()
        result = function(*arguments, **options)
        steps[name] = time.perf_counter() - began
        return result
    return call

night.survey = timed("survey", night.survey)
night.for_each = timed("images", night.for_each)
night._draw = timed("pictures", night._draw)
night.write_report = timed("report", night.write_report)
night.run_night(load_config(Path(sys.argv[1])), Quiet(), "benchmark")
print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()))
"""


def seconds_of(words: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """(wall time, what it printed) of a Python process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=REPO, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Time each command and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--null", choices=("threshold", "pointwise"), default="threshold", help="which null model")
    parser.add_argument("--workers", type=int, default=0, help="Dask workers; 0: one process")
    parser.add_argument("--rounds", type=int, default=3, help="of every command but the first run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gigamask-start-") as name:
        folder = Path(name)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        write_scenes(folder, options.images, options.side, options.side, truth=True)
        config = str(write_config(folder, write_model(folder / "model", options.null), options.workers))
        command = ["-m", "flows.cli"]
        run = [*command, "run", config, "--no-prefect", "--json"]
        targets = {
            "help": ([*command, "--help"], 0.5),
            "version": ([*command, "--version"], 0.5),
            "plan": ([*command, "plan", config, "--json"], 20.0),
            "first run": (run, None),
            "second run": (run, 20.0),
        }
        print(f"{options.images} images of {options.side} x {options.side} px with labels, {options.null} model")
        print(f"{'command':<14}{'seconds':>9}{'ms an image':>13}{'target s':>10}")
        for what, (words, target) in targets.items():
            if target is not None:
                seconds_of(words, environment)
            rounds = options.rounds if target is not None else 1
            taken = statistics.median(seconds_of(words, environment)[0] for _ in range(rounds))
            each = f"{taken / options.images * 1e3:.1f}" if target != 0.5 else ""
            print(f"{what:<14}{taken:>9.2f}{each:>13}{target or '':>10}", flush=True)
            if target is not None:
                verdict(f"{what}: {taken:.2f} s ({target} meant)", taken < target)
        print(f"of a second run: {seconds_of(['-c', STEPS, config], environment)[1].strip()}")


if __name__ == "__main__":
    main()
