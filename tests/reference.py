"""What the loops of `pipeline.kernels` do, in plain NumPy: the same operations in the same order, hence the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
f32 = np.float32


def scale(samples: NDArray[Any], valid: NDArray[np.bool_], offset: Floats, divisor: Floats) -> Floats:
    """(samples - offset) / divisor (bands, t, t), 0 where not valid."""
    scaled = (samples.astype(f32) - offset[:, None, None]) / divisor[:, None, None]
    return np.where(valid, scaled, f32(0))


def exponential(x: Floats) -> Floats:
    """e ** x for x <= 0, within 2e-7 of the truth: 2**n * e**r, |r| <= ln 2 / 2."""
    x = np.maximum(x, f32(-87))
    n = (x * f32(1.44269504088896341) + f32(12583039)) - f32(12583039)
    r = x - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    square = r * r
    high = f32(8.312502542987675e-3) * r + f32(4.189033395803549e-2)
    low = f32(1.666711538553283e-1) * r + f32(4.999923029278285e-1)
    return ((high * square + low) * square + r + f32(1)) * np.ldexp(f32(1), n.astype(np.int32))


def add_probabilities(outputs: Floats, row_weight: Floats, col_weight: Floats, sums: Floats) -> None:
    """Add the weighted softmax of outputs (channels, h, w) to sums (classes, h, w); one channel of two classes is the second."""
    if len(outputs) < len(sums):
        outputs = np.concatenate([np.zeros_like(outputs), outputs])
    powers = exponential(outputs - outputs.max(axis=0))
    total = np.zeros(outputs.shape[1:], f32)
    for power in powers:
        total += power
    sums += powers * (row_weight[:, None] * col_weight / total)


def add_scores(scores: Floats, row_weight: Floats, col_weight: Floats, sums: Floats) -> None:
    """Add weighted scores (classes, h, w) to sums."""
    sums += scores * (row_weight[:, None] * col_weight)


def label(sums: Floats, labels: NDArray[Any], failed: int) -> NDArray[Any]:
    """Class of the highest sum, the lowest of equals; codes from `failed` on stay."""
    return np.where(labels < failed, sums.argmax(axis=0), labels).astype(labels.dtype)


def confide(sums: Floats, row_weight: Floats, col_weight: Floats) -> NDArray[np.uint8]:
    """Mean score of the winning class x 255."""
    return np.rint(np.clip(sums.max(axis=0) / (row_weight[:, None] * col_weight), 0, 1) * f32(255)).astype(np.uint8)


def halve(labels: NDArray[Any], failed: int) -> NDArray[Any]:
    """The commonest class of each 2 x 2 labels, pixel by pixel as one would count by hand."""
    height, width = labels.shape
    out = np.empty((-(-height // 2), -(-width // 2)), labels.dtype)
    for row, col in np.ndindex(out.shape):
        votes = labels[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(-1).tolist()
        classes = sorted(v for v in votes if v < failed)
        out[row, col] = max(classes, key=lambda c: (classes.count(c), -c)) if classes else min(votes)
    return out


def count(reference: NDArray[Any], mask: NDArray[Any], classes: int, failed: int, no_data: int) -> NDArray[np.int64]:
    """counts[reference, prediction] (K + 1, K + 2), one pixel after the other."""
    counts = np.zeros((classes + 1, classes + 2), np.int64)
    place = {**{c: c for c in range(classes)}, failed: classes, no_data: classes + 1}
    for truth, code in zip(reference.reshape(-1).tolist(), mask.reshape(-1).tolist(), strict=True):
        counts[truth, place[code]] += 1
    return counts
