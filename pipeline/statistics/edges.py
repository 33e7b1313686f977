"""How errors grow towards a tile's border, and from where on they do not: the overlap to take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.units import Floats

Z = 1.96


@dataclass(frozen=True, eq=False)
class EdgeCurve:
    """Share of wrong (or disagreeing) pixels by distance to the border of the tile that labelled them."""

    distance: NDArray[np.int64]
    """(b,): where each bin begins, in px; 0 is the outermost row."""
    rate: Floats
    """(b,): NaN where there are no pixels."""
    low: Floats
    high: Floats
    """(b,): Wilson's 95 % interval (Wilson 1927). Descriptive: it takes pixels for independent, which neighbours are not, so
    it shows how many pixels a bin has and must not be used to test anything."""
    pixels: NDArray[np.int64]


def edge_curve(counts: NDArray[np.int64], width: int = 1) -> EdgeCurve:
    """`counts` (b, 2): wrong and right pixels at distances from b * width on; they add up over tiles and images."""
    if counts.ndim != 2 or counts.shape[1] != 2 or (counts < 0).any() or width < 1:
        raise ValueError(f"counts {counts.shape}, bins of {width} px: expected (bins, 2) of 0 and more, and 1 px or more")
    wrong, pixels = counts[:, 0], counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = pixels.astype(np.float64)
        rate = wrong / n
        centre = (rate + Z * Z / (2 * n)) / (1 + Z * Z / n)
        reach = Z / (1 + Z * Z / n) * np.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n))
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach, 1)
    return EdgeCurve(np.arange(len(counts)) * width, rate, low, high, pixels)


@dataclass(frozen=True)
class OverlapAdvice:
    """What the curve says about overlap."""

    distance: int
    """Smallest distance in px from which on the rate stays within `tolerance` of the interior's."""
    overlap: int
    """Twice that: neighbours then share enough that every pixel has a tile whose border is so far away.

        |dddd|----------------|dddd|
                         |dddd|----------------|dddd|
    """
    interior: float
    """Rate of the interior: the half of the distances that is farthest from the border, whose own noise asks for nothing."""
    edge: float
    """Rate of the outermost bin that has pixels."""


def advise_overlap(counts: NDArray[np.int64], width: int = 1, tolerance: float = 0.005) -> OverlapAdvice | None:
    """The least overlap that keeps borders out of the mask; None where fewer than two bins hold pixels.

    `tolerance`: how much higher than the interior's rate still counts as the interior's, as a share of pixels. A rate below
    the interior's is never a reason for more overlap.
    """
    curve = edge_curve(counts, width)
    known = np.flatnonzero(curve.pixels)
    if len(known) < 2:
        return None
    inner = known[len(known) // 2 :]
    interior = float(counts[inner, 0].sum() / curve.pixels[inner].sum())
    above = known[curve.rate[known] > interior + tolerance]
    outside = above[above < inner[0]]
    first = int(known[known > outside[-1]][0]) if len(outside) else int(known[0])
    distance = int(curve.distance[first])
    return OverlapAdvice(distance, 2 * distance, interior, float(curve.rate[known[0]]))
