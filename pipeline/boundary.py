"""Where classes end: boundary pixels of reference and mask that agree within a tolerance, in integers that add up.

Two measures, each from counts of a class's own pixels: Boundary IoU (Cheng et al. 2021, arXiv:2103.16562), of the bands of
some width along the inside of its border, and the normalised surface Dice (Nikolov et al. 2018, arXiv:1809.04430) in its form
for pixels, of the border pixels that have one of the other's within a distance. docs/metrics.md says what counts as a border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import floor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import mask_codes
from pipeline.config import LARGEST_TOLERANCE_PX
from pipeline.image import Frozen

Labels = NDArray[np.unsignedinteger]
Flags = NDArray[np.bool_]
BoundaryCounts = NDArray[np.int64]
"""`counts[class, what]`, shape (K, 7): pixels of the class in the bands of both, of the reference, of the mask; border pixels of
the reference, of these near one of the mask's; border pixels of the mask, of these near one of the reference's."""
COLUMNS = 7
WINDOW = 512
"""Side in px of the windows that are looked at one by one: they stay in the processor's cache, and those of one class cost
nothing."""
CLOSE = 5
"""Squared distance in px up to which trying a step for all pixels at once costs less than for those that are left over."""


class Tolerance(Frozen):
    """How far apart two borders may lie, and how wide a band along a border is."""

    size: float
    """In `unit`."""
    unit: Literal["px", "m"]
    row_px: float
    """The same in rows of the working grid."""
    col_px: float
    """The same in columns."""

    @property
    def band(self) -> tuple[int, int]:
        """Width of the band in whole (rows, columns), at least 1: the steps of Cheng's erosion by 3 x 3 px."""
        return max(1, floor(self.row_px + 0.5)), max(1, floor(self.col_px + 0.5))

    @property
    def offsets(self) -> frozenset[tuple[int, int]]:
        """(row, col) steps to all pixels whose centres are within the tolerance."""
        rows, cols = range(-floor(self.row_px), floor(self.row_px) + 1), range(-floor(self.col_px), floor(self.col_px) + 1)
        within = 1 + 1e-9
        return frozenset(
            (r, c)
            for r in rows
            for c in cols
            if (r / self.row_px if r else 0) ** 2 + (c / self.col_px if c else 0) ** 2 <= within
        )


def tolerances_of(
    pixels: tuple[int, ...], metres: tuple[float, ...], pixel_size_m: tuple[float, float] | None
) -> tuple[Tolerance, ...]:
    """The tolerances that can be measured where pixels have the size `pixel_size_m` (row, col), smallest first, px before m.

    Those in metres are left out where that size is unknown, and where they are more than LARGEST_TOLERANCE_PX pixels.
    """
    found = [Tolerance(size=px, unit="px", row_px=px, col_px=px) for px in sorted(set(pixels))]
    if pixel_size_m is not None:
        rows, cols = pixel_size_m
        found += [Tolerance(size=m, unit="m", row_px=m / rows, col_px=m / cols) for m in sorted(set(metres))]
    return tuple(t for t in found if max(t.row_px, t.col_px) <= LARGEST_TOLERANCE_PX)


def halo_of(tolerances: tuple[Tolerance, ...]) -> int:
    """Px around a window that must be known to count in it: the largest tolerance, and the neighbours of what is there."""
    return max((max(floor(t.row_px), floor(t.col_px), *t.band) + 1 for t in tolerances), default=0)


def count_boundaries(reference: Labels, mask: Labels, classes: int, tolerances: tuple[Tolerance, ...]) -> BoundaryCounts:
    """Counts (tolerances, K, 7) of the inside of two windows, which reach `halo_of(tolerances)` px farther on every side.

    `reference` (h, w): 0...classes - 1, or `classes` where not labelled. `mask` (h, w): codes of `mask_codes(classes)`; both as
    without label and data where that is outside the image. The law: the sum over disjoint windows is the count of their union.
    """
    halo, codes = halo_of(tolerances), mask_codes(classes)
    counts = np.zeros((len(tolerances), classes, COLUMNS), np.int64)
    height, width = reference.shape[0] - 2 * halo, reference.shape[1] - 2 * halo
    for row in range(0, height if tolerances else 0, WINDOW):
        for col in range(0, width, WINDOW):
            part = slice(row, min(row + WINDOW, height) + 2 * halo), slice(col, min(col + WINDOW, width) + 2 * halo)
            outside = (reference[part] >= classes) | (mask[part] == codes.no_data)
            known = _or_nothing(reference[part].astype(codes.dtype), outside)
            given = _or_nothing(mask[part], outside)
            if _one_class(known) and _one_class(given):
                continue
            _count_bands(known, given, halo, tolerances, counts)
            _count_edges(known, given, halo, tolerances, counts)
    return counts


def boundary_iou(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(K,): pixels in both bands / pixels in either; NaN where a class has no border in reference and mask."""
    both, reference, mask = (counts[:, i].astype(np.float64) for i in range(3))
    with np.errstate(invalid="ignore"):
        return both / (reference + mask - both)


def surface_dice(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(K,): border pixels of reference and mask with one of the other's within the tolerance / all border pixels."""
    reference, reference_near, mask, mask_near = (counts[:, i].astype(np.float64) for i in range(3, 7))
    with np.errstate(invalid="ignore"):
        return (reference_near + mask_near) / (reference + mask)


def _or_nothing(labels: Labels, outside: Flags) -> Labels:
    """`labels` with the highest code, which is no class and not failed, where `outside`."""
    every = (outside.view(np.uint8) * np.uint8(255)).astype(labels.dtype)
    if labels.dtype != np.uint8:
        every *= 257
    return labels | every


def _one_class(labels: Labels) -> bool:
    lowest, highest = labels.min(), (labels + labels.dtype.type(1)).max()
    return bool(highest == 0 or highest - 1 == lowest)


def _count_bands(known: Labels, given: Labels, halo: int, tolerances: tuple[Tolerance, ...], counts: BoundaryCounts) -> None:
    """Add the first three columns: a pixel is in a band where the box around it holds another class."""
    inner = slice(halo, known.shape[0] - halo), slice(halo, known.shape[1] - halo)
    own, answer = np.ascontiguousarray(known[inner]), np.ascontiguousarray(given[inner])
    hit = own == answer
    for first, chain in _chains(tolerances, lambda t: t.band):
        missed = np.zeros(own.shape, np.uint8), np.zeros(own.shape, np.uint8)
        for reference, mask in zip(_bands(known, halo, chain), _bands(given, halo, chain), strict=True):
            for array, band in zip(missed, (reference, mask), strict=True):
                array += ~band
        both = _or_nothing(np.maximum(*missed), ~hit)
        for column, labels, levels in ((0, own, both), (1, own, missed[0]), (2, answer, missed[1])):
            counts[first : first + len(chain), :, column] += _tallies(labels, levels, len(chain), counts.shape[1])


def _chains(
    tolerances: tuple[Tolerance, ...], reach: Callable[[Tolerance], tuple[float, float]]
) -> Iterator[tuple[int, tuple[Tolerance, ...]]]:
    """`tolerances` in parts, with the place of each part's first, within which none reaches less than the one before."""
    first = 0
    for i in range(1, len(tolerances) + 1):
        if i < len(tolerances):
            (rows, cols), (more_rows, more_cols) = reach(tolerances[i - 1]), reach(tolerances[i])
            if rows <= more_rows and cols <= more_cols:
                continue
        yield first, tolerances[first:i]
        first = i


def _tallies(labels: Labels, missed: NDArray[np.uint8], steps: int, classes: int) -> NDArray[np.int64]:
    """(steps, classes): pixels of each class that no more than so many steps have `missed`."""
    from pipeline import kernels

    place = np.full(int(np.iinfo(labels.dtype).max) + 1, classes, np.int32)
    place[:classes] = np.arange(classes)
    cells = np.zeros((steps + 1) * (classes + 1), np.int64)
    kernels.count(np.minimum(missed, steps).reshape(-1), labels.reshape(-1), place, classes + 1, cells)
    return cells.reshape(steps + 1, classes + 1)[:steps, :classes].cumsum(axis=0)


def _bands(labels: Labels, halo: int, tolerances: tuple[Tolerance, ...]) -> Iterator[Flags]:
    """For each of growing tolerances, where inside the halo the box around a pixel holds more than one class.

    The lowest class of a box and the highest are found apart. What is no class is the highest code, and, as 1 is added to the
    codes, the lowest of those sums: it is neither.
    """
    one = labels.dtype.type(1)
    lowest, highest, done = labels, labels + one, (0, 0)
    for tolerance in tolerances:
        rows, cols = tolerance.band
        lowest = _spread(_spread(lowest, 0, done[0], rows, np.minimum), 1, done[1], cols, np.minimum)
        highest = _spread(_spread(highest, 0, done[0], rows, np.maximum), 1, done[1], cols, np.maximum)
        done = rows, cols
        inside = slice(halo - rows, lowest.shape[0] - halo + rows), slice(halo - cols, lowest.shape[1] - halo + cols)
        yield lowest[inside] + one != highest[inside]


def _spread(values: Labels, axis: int, done: int, reach: int, extreme: Any) -> Labels:
    """The extreme over `reach` px to both sides along an axis, from that over `done` px; `reach - done` px shorter on each."""
    while done < reach:
        step = min(max(1, done), reach - done)
        length = values.shape[axis] - 2 * step
        low, middle, high = (_along(values, axis, first, length) for first in (0, step, 2 * step))
        values = extreme(low, high)
        if done == 0:
            extreme(values, middle, out=values)
        done += step
    return values


def _along(values: Labels, axis: int, first: int, length: int) -> Labels:
    part = slice(first, first + length)
    return values[part] if axis == 0 else values[:, part]


def _count_edges(known: Labels, given: Labels, halo: int, tolerances: tuple[Tolerance, ...], counts: BoundaryCounts) -> None:
    """Add the last four columns: border pixels, and those near the other's of the same class."""
    one, other = _edges(known), _edges(given)
    inner = slice(halo, known.shape[0] - halo), slice(halo, known.shape[1] - halo)
    for first, chain in _chains(tolerances, lambda t: (t.row_px, t.col_px)):
        for column, missed, edges in zip((3, 5), _missed(one, other, halo, chain), (one, other), strict=True):
            mine = np.ascontiguousarray(edges[inner])
            near = _tallies(mine, missed, len(chain) + 1, counts.shape[1])
            counts[first : first + len(chain), :, column] += near[-1]
            counts[first : first + len(chain), :, column + 1] += near[:-1]


def _edges(labels: Labels) -> Labels:
    """`labels` where one of the four neighbours is of another class, and nothing (the highest code) elsewhere."""
    nothing = labels.dtype.type(np.iinfo(labels.dtype).max)
    there = labels != nothing
    edge = np.zeros(labels.shape, bool)
    rows = (labels[1:] != labels[:-1]) & there[1:] & there[:-1]
    edge[1:] = rows
    edge[:-1] |= rows
    cols = (labels[:, 1:] != labels[:, :-1]) & there[:, 1:] & there[:, :-1]
    edge[:, 1:] |= cols
    edge[:, :-1] |= cols
    return _or_nothing(labels, ~edge)


def _missed(
    one: Labels, other: Labels, halo: int, tolerances: tuple[Tolerance, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of each one's border pixels inside the halo, how many of the growing tolerances have none of the other's of the class.

    The nearest steps are tried for all pixels at once and for both sides together, farther ones only for those left over.
    """
    missed = np.zeros(one.shape, np.uint8), np.zeros(one.shape, np.uint8)
    found = np.zeros(one.shape, bool), np.zeros(one.shape, bool)
    left: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
    tried = frozenset[tuple[int, int]]()
    for tolerance in tolerances:
        for row, col in sorted(tolerance.offsets - tried, key=lambda step: (step[0] ** 2 + step[1] ** 2, step)):
            if left is None and row * row + col * col <= CLOSE:
                here, there = zip(_overlap(row, one.shape[0]), _overlap(col, one.shape[1]), strict=True)
                same = one[here] == other[there]
                found[0][here] |= same
                found[1][there] |= same
                continue
            if left is None:
                left = _left_over(one, found[0], halo), _left_over(other, found[1], halo)
            step = row * one.shape[1] + col
            left = _still_missing(one, other, left[0], step), _still_missing(other, one, left[1], -step)
        tried = tolerance.offsets
        for i in range(2):
            if left is None:
                missed[i][...] += ~found[i]
            else:
                missed[i].reshape(-1)[left[i]] += 1
    inner = slice(halo, one.shape[0] - halo), slice(halo, one.shape[1] - halo)
    return np.ascontiguousarray(missed[0][inner]), np.ascontiguousarray(missed[1][inner])


def _overlap(step: int, length: int) -> tuple[slice, slice]:
    """(pixels that have one `step` farther, those ones) along an axis."""
    return slice(max(0, -step), length - max(0, step)), slice(max(0, step), length - max(0, -step))


def _left_over(edges: Labels, found: Flags, halo: int) -> NDArray[np.intp]:
    """Flat places of the border pixels inside the halo that are not `found`."""
    flags = np.zeros(edges.shape, bool)
    inner = slice(halo, edges.shape[0] - halo), slice(halo, edges.shape[1] - halo)
    np.logical_and(edges[inner] != np.iinfo(edges.dtype).max, ~found[inner], out=flags[inner])
    return np.flatnonzero(flags)


def _still_missing(mine: Labels, theirs: Labels, places: NDArray[np.intp], step: int) -> NDArray[np.intp]:
    """Those of `places` whose class is not the other's a flat `step` farther."""
    if not len(places):
        return places
    found: NDArray[np.intp] = places[mine.reshape(-1).take(places) != theirs.reshape(-1).take(places + step)]
    return found
