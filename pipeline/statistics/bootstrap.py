"""How sure a score is: a cluster bootstrap over units, from nothing but their counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.chance import NORMAL, student_quantile
from pipeline.statistics.measures import CLASS_MEASURES, MEASURES, column, measure
from pipeline.statistics.units import Floats, Units

RESAMPLES = 2000
LEAST_UNITS, ENOUGH_UNITS = 5, 30
"""Below the first there is no interval, below the second a warning."""
SURE = 0.95
"""Share of intervals that are meant to hold the true value."""
_CHUNK = 1 << 21
"""Weights in memory at a time: 16 MiB."""


def draws(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Rows of weights (b, n), `resamples` in all: how often each of n units is drawn, n times with replacement.

    The same for the same n, resamples and seed: this is what pairs two runs.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, step := max(1, _CHUNK // n)):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(0, rows * n, n)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Every metric (columns of `measure`) of the units as they are, resampled, and with each unit left out."""

    value: Floats
    """(m,): of the sums themselves."""
    drawn: Floats
    """(resamples, m): NaN where a resample does not define it, such as a class that none of its units has."""
    without: Floats
    """(n, m): without each unit."""
    alone: Floats
    """(n, m): of each unit by itself."""
    support: NDArray[np.int64]
    """(m,): units that a metric rests on: those where it is defined alone.

    Matthews correlation rests on all: a unit of one class has none alone and yet counts.
    """
    effective: Floats
    """(m,): to how many units of one size these amount, see `effective_units`."""

    @classmethod
    def of(cls, units: Units, background: int | None, resamples: int, seed: int) -> Resampled:
        """`W @ sums` for all weights W; of units that have something to evaluate."""
        sums, k = units.sums, units.classes
        total = sums.sum(0)
        drawn = [measure(weights @ sums, k, background) for weights in draws(len(sums), resamples, seed)]
        alone = measure(sums, k, background)
        return cls(
            value=measure(total, k, background),
            drawn=np.concatenate(drawn),
            without=measure(total - sums, k, background),
            alone=alone,
            support=_support(alone),
            effective=_effective(sums, k),
        )

    def __sub__(self, other: Resampled) -> Resampled:
        """The differences, resample by resample: of two runs over the same units."""
        alone = self.alone - other.alone
        value, drawn = self.value - other.value, self.drawn - other.drawn
        effective = np.minimum(self.effective, other.effective)
        return Resampled(value, drawn, self.without - other.without, alone, _support(alone), effective)

    @property
    def error(self) -> Floats:
        """(m,): standard error, the larger of the bootstrap's and the jackknife's.

        The bootstrap's is times sqrt(n / (n - 1)), as its resamples vary around the data and not around the truth; the
        jackknife's errs to the high side (Efron & Stein 1981, doi:10.1214/aos/1176345462).
        """
        n = np.maximum(self.support, 2)
        with np.errstate(invalid="ignore"):
            spread = self.without - _nanmean(self.without)
            jackknife = np.sqrt((len(self.without) - 1) / len(self.without) * np.nansum(spread**2, axis=0))
            spread = self.drawn - _nanmean(self.drawn)
            defined = np.maximum(np.isfinite(self.drawn).sum(0) - 1, 1)
            bootstrap = np.sqrt(np.nansum(spread**2, axis=0) / defined * n / (n - 1))
        found: Floats = np.fmax(jackknife, bootstrap)
        return found


def _support(alone: Floats) -> NDArray[np.int64]:
    found = np.isfinite(alone).sum(0)
    found[MEASURES.index("matthews")] = len(alone)
    return found


def effective_units(size: Floats) -> Floats:
    """(m,): (sum s)² / sum s² of sizes (n, m): n where all are alike, 1 where one is all (Kish 1965, Survey Sampling).

    A few large units decide an error, and so how well it is itself known.
    """
    with np.errstate(invalid="ignore"):
        found: Floats = size.sum(0) ** 2 / (size**2).sum(0)
    return found


def _effective(sums: Floats, classes: int) -> Floats:
    """(m,): by evaluated pixels, by images for their mean, by the class's own pixels for scores of a class."""
    hits, reference, predicted = (sums[:, i * classes : (i + 1) * classes] for i in range(3))
    sizes = np.repeat(reference.sum(1)[:, None], len(MEASURES), axis=1)
    sizes[:, MEASURES.index("mean_image_miou")] = sums[:, 3 * classes]
    union = reference + predicted - hits
    return effective_units(np.hstack([sizes, *[union] * len(CLASS_MEASURES)]))


def _nanmean(rows: Floats) -> Floats:
    found: Floats = np.nansum(rows, axis=0) / np.isfinite(rows).sum(0)
    return found


def freedom(units: float) -> int:
    """Degrees of freedom of so many units, at least those of the fewest that get an interval."""
    return max(int(units), LEAST_UNITS) - 1


def student_reach(units: float) -> float:
    """How many errors an interval reaches to either side."""
    return -student_quantile((1 - SURE) / 2, freedom(units))


def bounds(found: Resampled, *, bounded: bool) -> tuple[Floats, Floats]:
    """(m,), (m,): lower and upper ends of 95 % intervals; NaN where a metric rests on fewer than 5 units.

    The wider end of two, as either alone is too narrow somewhere (benchmark: tests.benchmarks.statistics):

    - percentiles of the resamples that define the metric, set out to where Student's t with n - 1 degrees of freedom lies
      (the expanded percentile interval of Hesterberg 2015, doi:10.1080/00031305.2015.1089789), which follow its skew;
    - value -+ t error, for scores (`bounded`) on the logit scale within their range, which holds where few units carry a class;
      t has one degree of freedom less than the effective number of units.

    n is the number of units that the metric rests on. With at least 5 of them, fewer than 1 % of the resamples leave it
    undefined (at most e**-5), so that leaving these out hardly matters.
    """
    support, error, value = found.support, found.error, found.value
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    ordered = np.sort(found.drawn, axis=0)  # NaN last
    defined = np.isfinite(ordered).sum(0)
    for j in np.flatnonzero((support >= LEAST_UNITS) & np.isfinite(value) & (defined > 1)):
        n = int(support[j])
        t = student_reach(n)
        tail = NORMAL.cdf(-t * sqrt(n / (n - 1)))
        ends = np.quantile(ordered[: defined[j], j], [tail, 1 - tail])
        lowest = -1.0 if j == MEASURES.index("matthews") else 0.0
        reach = student_reach(found.effective[j]) * error[j]
        spread = _logit_ends(value[j], reach, lowest) if bounded else (value[j] - reach, value[j] + reach)
        low[j], high[j] = min(ends[0], spread[0]), max(ends[1], spread[1])
    return low, high


def _logit_ends(value: float, reach: float, lowest: float) -> tuple[float, float]:
    """value -+ reach on the logit scale of lowest...1, by the delta method; at either end of it there is no such scale."""
    share = (value - lowest) / (1 - lowest)
    if not 0 < share < 1:
        return value, value
    odds, reach = share / (1 - share), min(reach / (1 - lowest) / (share * (1 - share)), 700.0)
    up, down = odds * np.exp(reach), odds * np.exp(-reach)
    return lowest + (1 - lowest) * down / (1 + down), lowest + (1 - lowest) * min(up / (1 + up), 1.0)


@dataclass(frozen=True)
class Estimate:
    """A score and how sure it is."""

    value: float
    """Of all units together; NaN where it is not defined."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None where there is none."""
    error: float | None
    """Standard error, None where there is no interval."""
    units: int
    """How many it rests on: where the class occurs, for a score of a class."""
    effective: float
    """To how many units of one size these amount: far fewer where a few hold most of the pixels."""
    warning: str | None
    """Why there is no interval, or why it should be trusted less."""


@dataclass(frozen=True)
class Estimates:
    """Every metric with its interval."""

    units: int
    """Units with something to evaluate."""
    resamples: int
    seed: int
    overall: dict[str, Estimate]
    """By name, see MEASURES."""
    classes: tuple[dict[str, Estimate], ...]
    """By class code, then by name, see CLASS_MEASURES."""

    def of(self, metric: str, code: int | None = None) -> Estimate:
        """One of them."""
        column(metric, code, len(self.classes))
        return self.overall[metric] if code is None else self.classes[code][metric]


def caution(units: int, value: float) -> str | None:
    """What a reader of an interval from so many units must know."""
    if value != value:
        return "not defined on these units: the class is absent, or there is nothing to divide by"
    if units < LEAST_UNITS:
        return f"no interval: it rests on {_units(units)}, at least {LEAST_UNITS} are needed"
    if units < ENOUGH_UNITS:
        return f"rests on {_units(units)}: with fewer than {ENOUGH_UNITS} the interval may be too narrow"
    return None


def _units(n: int) -> str:
    return f"{n} unit" if n == 1 else f"{n} units"


def nothing(value: float) -> float | None:
    """A number, or None for NaN."""
    return None if value != value else float(value)


def sheet[T](entries: list[T], classes: int) -> tuple[dict[str, T], tuple[dict[str, T], ...]]:
    """Entries in the order of `measure`'s columns, by name: (of all classes, of each class)."""
    overall = dict(zip(MEASURES, entries, strict=False))
    return overall, tuple({metric: entries[column(metric, c, classes)] for metric in CLASS_MEASURES} for c in range(classes))


def estimates(units: Units, background: int | None = None, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimates:
    """Every headline metric, and IoU, Dice, precision and recall of every class, with 95 % intervals.

    Cluster bootstrap: units are drawn with replacement, all their pixels together, so that neighbouring pixels are never
    taken for independent (Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). Same seed, same answer, whatever the
    order of the images. Raises ValueError below 2000 resamples.
    """
    if resamples < RESAMPLES:
        raise ValueError(f"{resamples} resamples are too few for the ends of a 95 % interval: take {RESAMPLES} or more")
    units = units.evaluated
    k = units.classes
    if not units.names:
        undefined = float("nan")
        empty = Estimate(undefined, None, None, None, 0, 0.0, caution(0, undefined))
        return Estimates(0, resamples, seed, *sheet([empty] * (len(MEASURES) + len(CLASS_MEASURES) * k), k))
    found = Resampled.of(units, background, resamples, seed)
    low, high = bounds(found, bounded=True)
    error, support = np.where(np.isfinite(low), found.error, np.nan), found.support
    entries = [
        Estimate(float(v), nothing(a), nothing(b), nothing(e), int(n), float(np.nan_to_num(m)), caution(int(n), float(v)))
        for v, a, b, e, n, m in zip(found.value, low, high, error, support, found.effective, strict=True)
    ]
    return Estimates(len(units.names), resamples, seed, *sheet(entries, k))


def linearised_iou_error(units: Units) -> Floats:
    """(K,): standard error of each class's IoU in closed form, to hold the bootstrap's against.

    IoU is a ratio of two sums over units, R = sum h / sum u (hits by union); to first order its variance is
    n / (n - 1) sum (h - R u)² / (sum u)² (Cochran 1977, Sampling Techniques, chapter 6; no finite population correction).
    """
    units = units.evaluated
    sums, k, n = units.sums, units.classes, len(units.names)
    hits = sums[:, :k]
    union = sums[:, k : 2 * k] + sums[:, 2 * k : 3 * k] - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = hits - hits.sum(0) / union.sum(0) * union
        found: Floats = np.sqrt(n / np.float64(n - 1) * (residual**2).sum(0)) / union.sum(0)
    return found
