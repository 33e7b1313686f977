"""Two workers beside one, each with a core of its own, on all that is not the model; and what a block costs the driver.

    python -m tests.benchmarks.scaling [--size 8192] [--block 2304] [--repeats 3]

A worker reads ahead and blends in threads of its own, so one worker that may use both cores is already quicker than one core:
the run with one worker is therefore bound to one core. Both have the same blocks.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from pipeline.cluster import open_workers, run_tasks
from pipeline.config import LocalCluster
from tests.benchmarks.measure import machine, segment, verdict, workshop
from tests.benchmarks.scenes import endless, null_model

EMPTY = 500


def nothing(number: int) -> int:
    """A task without work."""
    return number


def overhead() -> float:
    """Seconds that the driver, the scheduler and a worker spend on a task without work."""
    with open_workers(LocalCluster(workers=2, threads=1)) as workers:
        list(run_tasks(nothing, [(f"warm-{i}", (i,)) for i in range(20)], workers))
        started = time.perf_counter()
        done = sum(1 for _ in run_tasks(nothing, [(f"empty-{i}", (i,)) for i in range(EMPTY)], workers))
        assert done == EMPTY
        return (time.perf_counter() - started) / EMPTY


def main() -> None:
    """Run both in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--block", type=int, default=2304)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}\n{options.size} x {options.size} px, blocks of {options.block} px, a 1 x 1 convolution\n")
    with workshop() as folder:
        image, model = endless(folder / "image.tif", options.size, options.size), null_model(folder / "model")
        found: dict[int, list[float]] = {1: [], 2: []}
        blocks = 0
        for _ in range(options.repeats):
            for workers, cores in ((1, "0"), (2, "0,1")):
                settings = ["--workers", workers, "--threads", 1, "--block", options.block]
                facts = segment(image, model, *settings, cores=cores)
                found[workers].append(facts["work_seconds"])
                blocks = facts["blocks"]
        one, two = median(found[1]), median(found[2])
        for workers, seconds in found.items():
            each = " ".join(f"{s:.2f}" for s in seconds)
            print(f"{workers} worker{'s' * (workers > 1)}: {facts['mpx'] / median(seconds):6.1f} Mpx/s   seconds {each}")
        task = overhead()
        auto = segment(image, model, "--workers", 2, "--threads", 1)["blocks"]
        here = f"{task / (one / blocks):.2%} of a block of this run ({one / blocks:.2f} s of a core)"
        print(f"a task without work: {task * 1e3:.2f} ms, {here}\n")
        verdict(f"two workers are {one / two:.2f} times one (1.85 meant)", one / two >= 1.85)
        share = task / (one / auto)
        verdict(f"scheduling takes {share:.2%} of the work of one of the {auto} blocks of block: auto (1 % meant)", share < 0.01)


if __name__ == "__main__":
    main()
