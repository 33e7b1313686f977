"""Which samples a model was shown: histograms by band that add up over blocks and images, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard

BINS = 64
"""Bins of a band: fine enough for its quantiles, few enough to keep with every block."""
EVERY = 4
"""Of every fourth row and column of an image the samples are counted."""
REACH = 4.0
"""Bins reach so many divisors of the model's scaling to either side of its offset."""
Histogram = NDArray[np.int64]
"""`histogram[band, bin]`, shape (bands, BINS): samples of valid pixels. Histograms of the same model add up."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins of one band's samples, in raw units: the first holds all below `low`, the last all from `high` on.

    | below |  62 bins of `width`  | above |
            low                    high
    """

    low: float
    width: float

    @property
    def high(self) -> float:
        """Where the last bin begins."""
        return self.low + self.width * (BINS - 2)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Borders (BINS + 1,) of the bins; the open ones have no width."""
        inner = self.low + self.width * np.arange(BINS - 1)
        return np.concatenate([inner[:1], inner, inner[-1:]])


def bins_of(card: ModelCard) -> tuple[Bins, ...]:
    """The bins of each band: they follow from the model's card alone, so that counts of any of its images add up."""
    scaling = zip(card.scaling.offset, card.scaling.divisor, strict=True)
    return tuple(_bins(offset, divisor, np.dtype(card.dtype)) for offset, divisor in scaling)


def _bins(offset: float, divisor: float, dtype: np.dtype[Any]) -> Bins:
    """Around what the scaling says that samples are, as far as their type goes; whole numbers where samples are."""
    low, high = offset - REACH * divisor, offset + REACH * divisor
    if dtype.kind == "f":
        return Bins(low, (high - low) / (BINS - 2))
    if dtype == np.uint8:
        low, high = 0, 256
    elif dtype.kind == "u" and offset == 0:  # a range from 0 to the divisor, not a mean and a deviation
        low, high = 0, divisor
    limits = np.iinfo(dtype)
    low, high = floor(max(low, limits.min)), ceil(min(high, limits.max + 1))
    return Bins(float(low), float(max(1, ceil((high - low) / (BINS - 2)))))


def count_samples(data: NDArray[Any], valid: NDArray[np.bool_], corner: tuple[int, int], bins: Sequence[Bins]) -> Histogram:
    """Samples (bands, h, w) of a window whose first pixel is at `corner` (row, col) of the image, where `valid` (h, w).

    The rows and columns that are looked at are those of the image, so that windows add up however it is cut:

        assert (count(a | b) == count(a) + count(b)).all()
    """
    every = tuple(slice(-at % EVERY, None, EVERY) for at in corner)
    real = valid[every]
    found = np.zeros((len(bins), BINS), np.int64)
    for band, at in enumerate(bins):
        samples = data[band][every][real]
        if samples.dtype == np.uint8:  # of so few values each is placed but once
            of_value = np.bincount(samples, minlength=256)
            np.add.at(found[band], _place(np.arange(256.0), at), of_value)
        else:
            values = samples.astype(np.float64)
            found[band] = np.bincount(_place(values[values == values], at), minlength=BINS)
    return found


def _place(values: NDArray[np.float64], bins: Bins) -> NDArray[np.intp]:
    """The bin of each of `values`."""
    place: NDArray[np.float64] = np.clip(np.floor((values - bins.low) / bins.width) + 1, 0, BINS - 1)
    return place.astype(np.intp)


def quantiles(counts: Sequence[int] | NDArray[np.int64], bins: Bins, shares: Sequence[float]) -> list[float]:
    """Values below which these shares of the samples of one band lie, by straight lines within bins; NaN of no samples.

    Those in the open bins are told as the nearest value that is known: `low` or `high`.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return [float("nan")] * len(shares)
    inside = np.asarray(counts, np.int64)[filled]
    upto = np.cumsum(inside)
    wanted = np.asarray(shares, np.float64) * upto[-1]
    at = np.minimum(np.searchsorted(upto, wanted), len(filled) - 1)
    share = (wanted - upto[at] + inside[at]) / inside[at]
    start, end = bins.edges[filled[at]], bins.edges[filled[at] + 1]
    return [float(value) for value in start + share * (end - start)]


def apart(one: Sequence[int] | NDArray[np.int64], other: Sequence[int] | NDArray[np.int64]) -> float:
    """How far the samples of two histograms of one band are apart: the largest difference of their shares below any bin's
    end (Kolmogorov and Smirnov's distance). 0: alike; 1: nothing in common; NaN where either has no samples."""
    shares = [np.cumsum(np.asarray(counts, np.float64)) for counts in (one, other)]
    if any(not share[-1] for share in shares):
        return float("nan")
    return float(np.abs(shares[0] / shares[0][-1] - shares[1] / shares[1][-1]).max())


def farthest(images: Sequence[Histogram]) -> list[float]:
    """By band, how far the image that is least like the others is from their sum; 0 of fewer than two images."""
    if not images:
        return []
    total = np.sum(images, axis=0)
    bands = range(len(total))
    if len(images) < 2:
        return [0.0 for _ in bands]
    found = [[apart(image[band], total[band] - image[band]) for image in images] for band in bands]
    return [max([d for d in distances if d == d], default=0.0) for distances in found]
