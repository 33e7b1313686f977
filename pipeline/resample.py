"""From native to working pixels: area-weighted means or bilinear, the same bytes for any window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIP_ROWS = 32
"""Working rows made at a time, so that what is between stays in the processor's cache."""
HALF = 0.5 + 1e-6
"""Share of a working pixel's weight that may be invalid; half counts as enough, whatever the rounding of weights."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis, the native pixels that make each working pixel, and how much of each."""

    index: NDArray[np.intp]
    """(working pixels, taps): native pixel, inside the image."""
    weight: NDArray[np.float64]
    """(working pixels, taps): native pixels' worth, 0 or more."""

    @property
    def native_start(self) -> int:
        """First native pixel that is needed."""
        return int(self.index.min())

    @property
    def native_length(self) -> int:
        """Native pixels from the first to the last that is needed."""
        return int(self.index.max()) + 1 - self.native_start


def taps(start: int, stop: int, scale: float, native: int) -> Taps:
    """How working pixels [start, stop) are made from an axis of `native` pixels, `scale` of them to a working pixel.

    Coarser (scale >= 1): by the share of [i * scale, (i + 1) * scale) that each native pixel covers, inside the image.

        native   |....|....|....|....|....|....|
        working  |.......0.......|.......1.......|      scale 1.6: 1, 0.6 and 0.4, 1, 0.2

    Finer (scale < 1): between the two native pixels whose centres are nearest; outside the outermost centres, the edge's.

    The law: a working pixel's taps depend on its index in the image only, never on `start` or `stop`.
    """
    pixel = np.arange(start, stop, dtype=np.float64)[:, None]
    if scale >= 1:
        left, right = pixel * scale, np.minimum((pixel + 1) * scale, native)
        index = np.floor(left) + np.arange(math.ceil(scale) + (not scale.is_integer()))
        weight = np.maximum(np.minimum(right, index + 1) - np.maximum(left, index), 0)
    else:
        centre = (pixel + 0.5) * scale - 0.5
        index = np.floor(centre) + np.arange(2)
        weight = 1 - np.abs(centre - index)
    return Taps(np.clip(index, 0, native - 1).astype(np.intp), weight)


def resample(data: NDArray[Any], valid: NDArray[np.bool_], rows: Taps, cols: Taps) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(data (bands, rows, cols) in its own type, valid (rows, cols)) from the native pixels that `rows` and `cols` need.

    `data` (bands, h, w), finite, and `valid` (h, w) start at (rows.native_start, cols.native_start). Invalid pixels are left
    out of the mean; a working pixel is valid when at least half of its weight inside the image is. Integers are rounded half
    up, as GDAL's average does; invalid working pixels are 0.

    The law: the result for any window is the crop of the result for the whole. So all sums run over taps in one order, in
    float32 for 8-bit samples (exact to 1e-4 of a step) and float64 for others, and nothing depends on a pixel's neighbours.
    """
    kind = np.dtype(np.float32 if data.dtype.itemsize == 1 else np.float64)
    row_index, col_index = rows.index - rows.native_start, cols.index - cols.native_start
    row_weight, col_weight = rows.weight.astype(kind), cols.weight.astype(kind)
    full = _total(row_weight)[:, None] * _total(col_weight)
    shape = row_index.shape[0], col_index.shape[0]
    out = np.zeros((len(data), *shape), data.dtype)
    out_valid = np.ones(shape, bool)

    def weighted(native: NDArray[Any], part: slice) -> NDArray[Any]:
        """Weighted sums over the taps of working rows `part`; `native` starts at the first native row of that part."""
        index = row_index[part] - row_index[part].min()
        down = _sum([native[i] * w[:, None] for i, w in zip(index.T, row_weight[part].T, strict=True)])
        return _sum([down.take(i, axis=1) * w for i, w in zip(col_index.T, col_weight.T, strict=True)])

    for start in range(0, shape[0], STRIP_ROWS):
        part = slice(start, start + STRIP_ROWS)
        native_part = slice(row_index[part].min(), row_index[part].max() + 1)
        real = valid[native_part]
        weight = full[part]
        all_real = bool(real.all())
        if not all_real:
            missing = weighted((~real).astype(kind), part)
            out_valid[part] = missing <= full[part] * HALF
            weight = np.where(out_valid[part], full[part] - missing, 1)
        for band, native in zip(out, data[:, native_part], strict=True):
            samples = native.astype(kind)
            mean = weighted(samples if all_real else samples * real, part)
            mean /= weight
            band[part] = _as_type(mean if all_real else mean * out_valid[part], data.dtype)
    return out, out_valid


def _total(weight: NDArray[Any]) -> NDArray[Any]:
    return _sum(list(weight.T))


def _sum(terms: list[NDArray[Any]]) -> NDArray[Any]:
    """The terms added one after the other: NumPy's own sum may choose another order for another shape."""
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


def _as_type(mean: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rounded half up and clipped for integers, as they are for floats."""
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        mean = np.clip(np.floor(mean + mean.dtype.type(0.5)), limits.min, limits.max)
    return mean.astype(dtype)
