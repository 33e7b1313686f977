"""Area of each class, corrected for what the mask confuses, beside the area that the mask shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.confusion import Counts
from pipeline.statistics.bootstrap import RESAMPLES, Resampled, bounds, draws, effective_units
from pipeline.statistics.units import Floats, Units

Z = 1.96


@dataclass(frozen=True, eq=False)
class Areas:
    """Stratified estimates of Olofsson et al. (2014); all in the unit of the mapped areas that were given."""

    mapped: Floats
    """(K,): what the mask shows."""
    estimated: Floats
    """(K,): what the reference says, in the shares that the map has; NaN for all where no class has samples."""
    margin: Floats
    """(K,): half the 95 % interval, 1.96 standard errors; NaN where a stratum has a single sample."""
    accuracy: float
    """Overall, weighted by mapped area."""
    accuracy_margin: float
    notes: tuple[str, ...]
    """What these numbers are not about."""


def estimate_areas(samples: NDArray[np.integer], mapped: Floats) -> Areas:
    """A_j = A sum_i p_ij with p_ij = W_i n_ij / n_i., and S(p.j) = sqrt(sum_i (W_i p_ij - p_ij²) / (n_i. - 1)).

    `samples` (K, K): error matrix n_ij, rows the **map**, columns the reference. `mapped` (K,): area that the map gives to
    each class; W_i are its shares. Olofsson et al. (2014), doi:10.1016/j.rse.2014.02.015, equations 1-11.

    A class without samples is a stratum about which nothing is known: it is left out of A and of the estimates, and noted.
    The formula takes samples for independent and random within each stratum. Pixels of labelled windows are neither, and for
    them the margin is far too small: it is then a lower bound, and `area_bounds` tells more.
    """
    mapped = np.asarray(mapped, np.float64)
    classes = len(mapped)
    if samples.shape != (classes, classes) or (mapped < 0).any():
        raise ValueError(f"samples {samples.shape} and {classes} mapped areas (0 or more) do not belong together")
    row = samples.sum(1).astype(np.float64)
    known = row > 0
    notes = tuple(f"class {i} is mapped and has no samples: its area is left out" for i in np.flatnonzero(~known & (mapped > 0)))
    area = float(mapped[known].sum())
    if area == 0:
        unknown = np.full(classes, np.nan)
        return Areas(mapped, unknown, unknown, float("nan"), float("nan"), (*notes, "no class has both area and samples"))
    weight = mapped[known] / area
    share = samples[known] / row[known, None]
    p = weight[:, None] * share
    with np.errstate(invalid="ignore", divide="ignore"):
        # a stratum without area adds nothing to the variance, however few its samples
        spread = np.where(weight[:, None] > 0, (weight[:, None] * p - p**2) / (row[known, None] - 1), 0)
        right = share[np.arange(len(share)), np.flatnonzero(known)]
        doubt = np.where(weight > 0, weight**2 * right * (1 - right) / (row[known] - 1), 0)
    return Areas(
        mapped=mapped,
        estimated=area * p.sum(0),
        margin=Z * area * np.sqrt(spread.sum(0)),
        accuracy=float((weight * right).sum()),
        accuracy_margin=float(Z * np.sqrt(doubt.sum())),
        notes=notes,
    )


def areas_of(counts: Counts, mapped: Floats) -> Areas:
    """The same from a confusion matrix (K + 1, K + 2) of the labelled part of a mask, and its classes' areas on all of it.

    Failed and no-data pixels are on no class's map: they are in neither the samples nor A, and noted.
    """
    classes = counts.shape[0] - 1
    found = estimate_areas(counts[:classes, :classes].T, mapped)
    failed, no_data = (int(counts[:classes, classes + i].sum()) for i in range(2))
    notes = [
        f"{px} labelled pixels {why}: no part of the map" for px, why in ((failed, "failed"), (no_data, "have no data")) if px
    ]
    notes.append("labelled pixels lie in clusters and are no random sample: the margin is a lower bound")
    return Areas(found.mapped, found.estimated, found.margin, found.accuracy, found.accuracy_margin, (*found.notes, *notes))


def area_bounds(units: Units, mapped: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Floats, Floats]:
    """(K,), (K,): ends of 95 % intervals of the estimated areas, from a cluster bootstrap over the labelled units.

    The same estimates, and labelled pixels of a unit drawn all together: what is unsure is which units were labelled. NaN for
    classes that fewer than 5 units hold. A class that a resample never shows on the map keeps the shares that all units give.
    """
    units = units.evaluated
    k, n = units.classes, len(units.names)
    if not n:
        return np.full(k, np.nan), np.full(k, np.nan)
    cells = units.counts[:, :k, :k].reshape(n, k * k).astype(np.float64)
    mapped = np.asarray(mapped, np.float64)
    known = cells.sum(0).reshape(k, k).sum(0) > 0
    weight = np.where(known, mapped, 0)

    def shares(sums: Floats) -> Floats:
        """(b, K reference, K map): how the reference is made up where the map shows a class."""
        samples = sums.reshape(-1, k, k)
        with np.errstate(invalid="ignore", divide="ignore"):
            return samples / samples.sum(1, keepdims=True)

    whole = np.nan_to_num(shares(cells.sum(0)))

    def areas(sums: Floats) -> Floats:
        found = shares(sums)
        filled: Floats = np.where(np.isfinite(found), found, whole) @ weight
        return filled

    held = units.counts[:, :k, :k]
    size = (held.sum(1) + held.sum(2)).astype(np.float64)
    found = Resampled(
        value=areas(cells.sum(0))[0],
        drawn=np.concatenate([areas(weights @ cells) for weights in draws(n, resamples, seed)]),
        without=areas(cells.sum(0) - cells),
        alone=areas(cells),
        support=(size > 0).sum(0),
        effective=effective_units(size),
    )
    low, high = bounds(found, bounded=False)
    return np.maximum(low, 0), np.minimum(high, weight.sum())
