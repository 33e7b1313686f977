"""What intervals cost and what they are worth: seconds of the bootstrap, and how often its intervals hold the truth.

    python -m tests.benchmarks.statistics                   2000 units x 20 classes x 2000 resamples, and the coverage
    python -m tests.benchmarks.statistics --repeats 2000    coverage to half a percentage point

The truth is that of a population of 200,000 units of four kinds, from tame to wild: how unlike in size the units are (standard
deviation of the logarithm), how few classes a unit has, how good the model is and how much that differs by unit. Coverage is
the share of samples whose nominal 95 % interval holds it: the mean over the metrics of all classes and over those of single
classes, and the least of either.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.bootstrap import Resampled, bounds, estimates
from pipeline.statistics.measures import MEASURES, measure
from pipeline.statistics.paired import compare
from pipeline.statistics.units import Units, units
from tests.benchmarks.measure import machine, medians, verdict

CLASSES = 5
LEAST = 0.88


@dataclass(frozen=True)
class Kind:
    """How unlike each other the units of a population are."""

    name: str
    size: float
    """Standard deviation of the logarithm of a unit's pixels."""
    mix: float
    """Concentration of classes: the lower, the fewer a unit has."""
    right: tuple[float, float]
    """Beta distribution of each class's recall by unit."""


KINDS = (
    Kind("tame", 0.0, 2.0, (20, 3)),
    Kind("mixed", 1.0, 0.4, (6, 2)),
    Kind("good", 0.7, 0.5, (20, 1)),
    Kind("wild", 1.5, 0.3, (4, 2)),
)


def population(rng: np.random.Generator, n: int, classes: int, kind: Kind) -> NDArray[np.int64]:
    """(n, K + 1, K + 2): units; class 0 is common, the last one rare."""
    size = np.exp(rng.normal(12, kind.size, n))
    share = rng.dirichlet(np.r_[4 * kind.mix, np.full(classes - 2, kind.mix), kind.mix / 4], n)
    right = rng.beta(*kind.right, (n, classes))
    wrong = rng.dirichlet(np.full(classes, 0.7), (n, classes)) * (1 - right)[:, :, None]
    wrong[:, range(classes), range(classes)] += right
    counts = np.zeros((n, classes + 1, classes + 2), np.int64)
    counts[:, :classes, :classes] = np.rint(share[:, :, None] * wrong * size[:, None, None])
    return counts


def named(counts: NDArray[np.int64]) -> Units:
    """Each matrix an image of its own."""
    return units({f"{i:06}": matrix for i, matrix in enumerate(counts)})


def coverage(kind: Kind, n: int, repeats: int) -> tuple[NDArray[np.float64], float]:
    """(share of intervals that hold the truth, by metric; share of plain percentile intervals of mIoU that do)."""
    rng = np.random.default_rng(1)
    truth = measure(named(population(rng, 200_000, CLASSES, kind)).sums.sum(0), CLASSES, 0)
    held, plain = np.zeros(len(truth)), 0
    for seed in range(repeats):
        found = Resampled.of(named(population(rng, n, CLASSES, kind)), 0, 2000, seed)
        low, high = bounds(found, bounded=True)
        held += (low <= truth) & (truth <= high)
        ends = np.nanquantile(found.drawn[:, 0], [0.025, 0.975])
        plain += bool(ends[0] <= truth[0] <= ends[1])
    return held / repeats, plain / repeats


def speed(n: int, classes: int, resamples: int) -> None:
    """Print seconds and memory of intervals and of a comparison."""
    rng = np.random.default_rng(0)
    before, after = (named(population(rng, n, classes, KINDS[1])) for _ in range(2))

    def seconds(way: object) -> float:
        started = time.perf_counter()
        way()  # type: ignore[operator]
        return time.perf_counter() - started

    ways = (
        lambda: estimates(before, 0, resamples=resamples),
        lambda: compare(before, after, 0, resamples=resamples),
    )
    one, two = medians(5, *(lambda way=way: seconds(way) for way in ways))
    tracemalloc.start()
    ways[0]()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{n} units x {classes} classes x {resamples} resamples: intervals {one:.2f} s, comparison {two:.2f} s, {peak:.0f} MiB")
    verdict(f"intervals {one:.2f} s <= 1 s", one <= 1)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    print(machine())
    speed(options.units, options.classes, options.resamples)
    print(f"\nshare of {options.repeats} nominal 95 % intervals that hold the truth")
    print(f"{'units':<8}{'n':>5}{'mIoU':>8}{'(plain percentiles)':>21}{'all classes':>13}{'least':>8}{'a class':>10}{'least':>8}")
    at_thirty = []
    for n in (10, 30, 100):
        for kind in KINDS:
            held, plain = coverage(kind, n, options.repeats)
            whole, single = held[: len(MEASURES)], held[len(MEASURES) :]
            print(
                f"{kind.name:<8}{n:>5}{held[0]:>8.3f}{plain:>21.3f}{whole.mean():>13.3f}{whole.min():>8.3f}"
                f"{single.mean():>10.3f}{single.min():>8.3f}",
                flush=True,
            )
            if n == 30:
                at_thirty.append(held)
    least = min(held.min() for held in at_thirty)
    verdict(f"every metric at 30 units of every kind: least coverage {least:.3f} >= {LEAST}", least >= LEAST)


if __name__ == "__main__":
    main()
