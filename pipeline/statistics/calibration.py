"""Does a confidence of 0.8 mean right in 80 %? From counts that add up, in memory that does not grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
"""Confidence k of a mask (uint8) stands for k / 255."""
Histogram = NDArray[np.int64]
"""`histogram[level, right]`, shape (256, 2): pixels that were wrong and right, by confidence. Histograms add up."""


def histogram(confidence: NDArray[np.uint8], right: NDArray[np.bool_]) -> Histogram:
    """Counts of one window; give it evaluated pixels only.

    assert (histogram(a, x) + histogram(b, y) == histogram(np.append(a, b), np.append(x, y))).all()
    """
    if confidence.shape != right.shape or confidence.dtype != np.uint8 or right.dtype != np.bool_:
        raise ValueError(f"confidence {confidence.dtype} {confidence.shape}, right {right.dtype} {right.shape}: not one window")
    joint = confidence.reshape(-1).astype(np.uint16) * 2 + right.reshape(-1)
    return np.bincount(joint, minlength=2 * LEVELS).reshape(LEVELS, 2)


@dataclass(frozen=True)
class Bin:
    """Pixels of about the same confidence: a line of the reliability table."""

    low: float
    """Confidences above this (the first bin: from 0 on) ..."""
    high: float
    """... and up to this."""
    pixels: int
    confidence: float
    """Their mean; NaN where there are none."""
    accuracy: float
    """Share of them that is right."""


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy are apart."""

    bins: tuple[Bin, ...]
    ece: float
    """Expected calibration error: mean of |accuracy - confidence| over bins, weighted by pixels; NaN without pixels."""
    mce: float
    """Maximum calibration error: the largest over bins that hold pixels."""


def calibration(counts: Histogram, bins: int = 15) -> Calibration:
    """Reliability table, ECE and MCE over bins of equal width (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599).

    Bin m of M holds confidences in ((m - 1) / M, m / M]. Exact for confidences of 256 levels: no bin's mean is rounded.
    """
    if counts.shape != (LEVELS, 2) or not 1 <= bins <= LEVELS:
        raise ValueError(f"histogram {counts.shape} and {bins} bins: expected ({LEVELS}, 2) and 1...{LEVELS}")
    level = np.arange(LEVELS)
    place = np.maximum(-(-level * bins // (LEVELS - 1)) - 1, 0)
    pixels, right, confident = np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    np.add.at(pixels, place, counts.sum(1))
    np.add.at(right, place, counts[:, 1])
    np.add.at(confident, place, counts.sum(1) * level)
    with np.errstate(invalid="ignore"):
        accuracy, confidence = right / pixels, confident / (LEVELS - 1) / pixels
    gap = np.abs(accuracy - confidence)
    known = pixels > 0
    return Calibration(
        bins=tuple(Bin(m / bins, (m + 1) / bins, int(pixels[m]), float(confidence[m]), float(accuracy[m])) for m in range(bins)),
        ece=float((gap[known] * pixels[known]).sum() / pixels.sum()) if known.any() else float("nan"),
        mce=float(gap[known].max()) if known.any() else float("nan"),
    )
