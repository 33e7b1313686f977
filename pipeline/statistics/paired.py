"""Two runs over the same units: what changed, how sure that is, and where."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from pipeline.statistics.bootstrap import LEAST_UNITS, RESAMPLES, Resampled, bounds, caution, freedom, nothing, sheet
from pipeline.statistics.chance import NORMAL, student_below
from pipeline.statistics.measures import CLASS_MEASURES, MEASURES, column
from pipeline.statistics.units import Units


@dataclass(frozen=True)
class Difference:
    """One score before and after, over the same units."""

    before: float
    after: float
    delta: float
    """after - before."""
    low: float | None
    high: float | None
    """Ends of the delta's 95 % interval; None where there is none."""
    p: float | None
    """Two-sided: how readily chance alone would give such a delta; goes with the interval, below 0.05 where that is off 0."""
    p_holm: float | None
    """The same after Holm's correction over the classes of this metric; None for scores of all classes."""
    improved: float | None
    """Share of the units below that got better."""
    worsened: float | None
    """Share that got worse; the rest stayed as they were."""
    units: int
    """Where the score is defined before and after."""
    warning: str | None


@dataclass(frozen=True)
class Comparison:
    """Every metric of two runs, and which units they could be compared on."""

    units: int
    """In both runs, with something to evaluate in both."""
    only_before: tuple[str, ...]
    """Names of units left out: nothing to hold them against."""
    only_after: tuple[str, ...]
    relabelled: tuple[str, ...]
    """Compared, though their reference is not the same in both runs: their delta is not the model's alone."""
    overall: dict[str, Difference]
    classes: tuple[dict[str, Difference], ...]

    def of(self, metric: str, code: int | None = None) -> Difference:
        """One of them."""
        column(metric, code, len(self.classes))
        return self.overall[metric] if code is None else self.classes[code][metric]


def compare(
    before: Units, after: Units, background: int | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """`after` against `before`, paired: each resample draws the same units from both, so that what is hard in both cancels.

    Raises ValueError where the classes are not as many, or no unit is in both.
    """
    if before.classes != after.classes:
        raise ValueError(f"{before.classes} classes before, {after.classes} after: their scores cannot be held together")
    if resamples < RESAMPLES:
        raise ValueError(f"{resamples} resamples are too few for the ends of a 95 % interval: take {RESAMPLES} or more")
    before, after = before.evaluated, after.evaluated
    shared = set(before.names) & set(after.names)
    if not shared:
        raise ValueError(f"none of {len(before.names)} units before is among the {len(after.names)} after: nothing to compare")
    one, two = before.only(shared), after.only(shared)
    k = one.classes
    old, new = Resampled.of(one, background, resamples, seed), Resampled.of(two, background, resamples, seed)
    change = new - old
    low, high = bounds(change, bounded=False)
    support = change.support
    chance = [_p(change, j, int(support[j])) for j in range(len(change.value))]
    adjusted: list[float | None] = [None] * len(chance)
    for start in range(len(MEASURES), len(chance), k):
        adjusted[start : start + k] = holm(chance[start : start + k])
    defined = np.isfinite(change.alone).sum(0)
    better, worse = (change.alone > 0).sum(0), (change.alone < 0).sum(0)
    entries = [
        Difference(
            before=float(old.value[j]),
            after=float(new.value[j]),
            delta=float(change.value[j]),
            low=nothing(low[j]),
            high=nothing(high[j]),
            p=chance[j],
            p_holm=adjusted[j],
            improved=float(better[j] / defined[j]) if defined[j] else None,
            worsened=float(worse[j] / defined[j]) if defined[j] else None,
            units=int(support[j]),
            warning=caution(int(support[j]), float(change.value[j])),
        )
        for j in range(len(MEASURES) + len(CLASS_MEASURES) * k)
    ]
    other = (one.counts[:, :k].sum(2) != two.counts[:, :k].sum(2)).any(1)
    return Comparison(
        len(shared),
        tuple(name for name in before.names if name not in shared),
        tuple(name for name in after.names if name not in shared),
        tuple(name for name, differs in zip(one.names, other, strict=True) if differs),
        *sheet(entries, k),
    )


def _p(change: Resampled, j: int, units: int) -> float | None:
    """Two-sided p of a delta: the level at which the interval of `bounds` would just reach 0, the larger of its two kinds.

    The bootstrap's counts resamples beyond 0 on the other side, the data themselves among them (Davison & Hinkley 1997,
    Bootstrap Methods and their Application, chapter 4), on the scale of Student's t.
    """
    delta, drawn = change.value[j], change.drawn[:, j]
    drawn = drawn[np.isfinite(drawn)]
    if units < LEAST_UNITS or delta != delta or len(drawn) < 2:
        return None
    if delta == 0:
        return 1.0
    share = (1 + np.count_nonzero(drawn * np.sign(delta) <= 0)) / (len(drawn) + 1)
    reach = NORMAL.inv_cdf(1 - share) if share < 1 else 0.0
    error = change.error[j]
    kinds = (
        (reach * sqrt((units - 1) / units), freedom(units)),
        (abs(delta) / error if error else float("inf"), freedom(change.effective[j])),
    )
    return min(1.0, max(2 * student_below(-t, f) for t, f in kinds))


def holm(chances: list[float | None]) -> list[float | None]:
    """p values corrected for their number, so that one false alarm among all stays as rare as said; None stays None.

    Step-down: the smallest times m, the next times m - 1, ..., never falling (Holm 1979, Scandinavian Journal of Statistics 6).

        assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(chances) if p is not None)
    found: list[float | None] = [None] * len(chances)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        found[i] = largest
    return found
