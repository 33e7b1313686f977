"""How far pixels lie from the borders of the tiles that saw them, and where neighbouring tiles disagree."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.blend import Labels
from pipeline.codes import mask_codes
from pipeline.grid import Lattice, Window, tile_starts

MOST_BINS = 64
"""Bins of a curve over distance: fine enough to see where it falls, few enough to keep with every block."""
PAIRS = 16
"""Of so many pairs of neighbouring tiles one is compared."""
Winners = Callable[[], Labels]
"""Answers labels (h, w) that may still be on their way."""
Span = tuple[int, int]
"""(first, stop) of rows or columns."""
Histogram = NDArray[np.int64]
"""`histogram[distance, right]`, shape (bins, 2): wrong (or disagreeing) and right pixels. Histograms add up."""


def bin_px(tile: int) -> int:
    """Px to a bin of distances to the border of a tile: 0 is its outermost row."""
    return -(-((tile + 1) // 2) // MOST_BINS)


def bins(tile: int) -> int:
    """How many bins reach from a tile's border to its centre."""
    return (tile - 1) // 2 // bin_px(tile) + 1


def depth_bins(length: int, tile: int, overlap: int, first: int, stop: int) -> NDArray[np.intp]:
    """Bins (stop - first,) of the distance of pixels first...stop - 1 along an axis to the border of the tile that sees them
    deepest.

    The image's edge is no border: there is nothing that another tile could have seen. Where no border is near, the last bin.

        |tttttttttttttt|
                 |tttttttttttttt|
                  ^ the first tile sees it less deep than the second
    """
    depth = np.full(stop - first, -1)
    for start in tile_starts(length, tile, overlap):
        pixel = np.arange(max(start, first), min(start + tile, stop, length))
        if len(pixel):
            low = pixel - start if start > 0 else tile
            high = start + tile - 1 - pixel if start + tile < length else tile
            seen = depth[pixel[0] - first : pixel[-1] + 1 - first]
            np.maximum(seen, np.minimum(low, high), out=seen)
    found: NDArray[np.intp] = np.minimum(depth // bin_px(tile), bins(tile) - 1)
    return found


class Disagreement:
    """Compares the labels that neighbouring tiles of a core give their overlap, each by itself, in one pair of PAIRS.

    A pixel counts at its distance to the nearer of the two borders inside the overlap, in the core that it belongs to:

        |tttttttttttttt|
               |tttttttttttttt|
                0123210   distance
    """

    def __init__(
        self, lattice: Lattice, core: Window, classes: int, winners: Callable[[Any, Span, Span], Winners] | None = None
    ) -> None:
        """`winners` of outputs that lie elsewhere; by default `winners_of` these."""
        self._winners = winners or winners_of
        self._tile, self._size, self._core = lattice.tile, (lattice.height, lattice.width), core
        self._rows, self._cols, self._failed = lattice.rows, lattice.cols, mask_codes(classes).failed
        self._row_of = {row: i for i, row in enumerate(lattice.rows)}
        self._col_of = {col: i for i, col in enumerate(lattice.cols)}
        self._kept: dict[tuple[int, int, bool], Winners] = {}
        """Labels of the overlaps whose second tile is still to come, by that tile and whether it lies below the first."""
        self._waiting: deque[tuple[Winners, Winners, Window, tuple[int, int], bool, Labels]] = deque()
        """What is to be compared when the labels of the core are final there."""
        self._counts: Histogram = np.zeros((bins(lattice.tile), 2), np.int64)

    @property
    def counts(self) -> Histogram:
        """Pixels that differ and pixels that do not, of those that are real."""
        while self._waiting:
            self._compare(*self._waiting.popleft())
        return self._counts

    def add(self, place: tuple[int, int], outputs: Any, labels: Labels, final: int = 0) -> None:
        """Look at the tile at `place`, the next in row-major order, with its outputs (channels, tile, tile).

        `labels` (core height, core width): as `Blending.labels`; those from failed on are left out. So many rows of them are
        `final`: only there is it known what a tile that is still to come, or to be judged, makes failed.
        """
        row, col = self._row_of[place[0]], self._col_of[place[1]]
        if any(key[0] < row for key in self._kept):
            self._kept = {key: kept for key, kept in self._kept.items() if key[0] >= row}
        for below in (False, True):
            before = self._kept.pop((row, col, below), None)
            if before is not None:
                window = self._overlap(row, col, below)
                assert window is not None
                self._waiting.append((before, self._labels(outputs, place, window), window, (row, col), below, labels))
            after = row + below, col + (not below)
            if after[0] < len(self._rows) and after[1] < len(self._cols) and _chosen(*after, below):
                window = self._overlap(*after, below)
                if window is not None:
                    self._kept[(*after, below)] = self._labels(outputs, place, window)
        while self._waiting and self._waiting[0][2].row_stop - self._core.row <= final:
            self._compare(*self._waiting.popleft())

    def _overlap(self, row: int, col: int, below: bool) -> Window | None:
        """What the tile shares with the one before it, inside the core; None where nothing."""
        top, left = self._rows[row], self._cols[col]
        bottom = min((self._rows[row - 1] if below else top) + self._tile, self._size[0], self._core.row_stop)
        right = min((left if below else self._cols[col - 1]) + self._tile, self._size[1], self._core.col_stop)
        top, left = max(top, self._core.row), max(left, self._core.col)
        return Window(top, left, bottom - top, right - left) if top < bottom and left < right else None

    def _labels(self, outputs: Any, place: tuple[int, int], window: Window) -> Winners:
        """What the tile by itself would say of a window of the image."""
        rows, cols = window.row - place[0], window.col - place[1]
        return self._winners(outputs, (rows, rows + window.height), (cols, cols + window.width))

    def _compare(self, one: Winners, other: Winners, window: Window, index: tuple[int, int], below: bool, labels: Labels) -> None:
        row, col = window.row - self._core.row, window.col - self._core.col
        real = labels[row : row + window.height, col : col + window.width] < self._failed
        along = 1 if below else 0
        different = np.count_nonzero((one() != other()) & real, axis=along)
        starts, position = (self._rows, index[0]) if below else (self._cols, index[1])
        first, stop = (window.row, window.row_stop) if below else (window.col, window.col_stop)
        pixel = np.arange(first, stop)
        distance = np.minimum(pixel - starts[position], starts[position - 1] + self._tile - 1 - pixel)
        place = distance // bin_px(self._tile)
        np.add.at(self._counts[:, 0], place, different)
        np.add.at(self._counts[:, 1], place, np.count_nonzero(real, axis=along) - different)


def winners_of(outputs: NDArray[np.float32], rows: Span, cols: Span, *, sigmoid: bool = False) -> Winners:
    """The labels (h, w) of the part [rows) x [cols) of outputs (channels, t, t): the class of the highest, the lowest of equals.
    `sigmoid`: the one channel is the second of two classes, the first has output 0."""
    from pipeline import kernels

    winner: Labels = np.zeros((rows[1] - rows[0], cols[1] - cols[0]), np.uint8 if len(outputs) <= 256 else np.uint16)
    kernels.pick(outputs, rows, cols, sigmoid, winner, 0, 0, 1)
    return lambda: winner


def _chosen(row: int, col: int, below: bool) -> bool:
    """Whether the tile at this place of the lattice is compared with the one before it. The first of each direction are."""
    return (5 * row + 3 * col - (5 if below else 3)) % PAIRS == 0


def sums_by(flags: NDArray[np.bool_], rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.int64]:
    """Sums (row groups, column groups) of `flags` (h, w), where `rows` (h,) and `cols` (w,) name each one's group: 0, 1, ..."""
    ones = flags.view(np.uint8)
    height, width = int(rows.max()) + 1, int(cols.max()) + 1
    lines = np.zeros((height, flags.shape[1]), np.int32)
    for group in range(height):
        members = np.flatnonzero(rows == group)
        for start in range(0, len(members), 255):  # so many ones fit a byte
            lines[group] += np.add.reduce(ones[members[start : start + 255]], axis=0, dtype=np.uint8)
    order = np.argsort(cols, kind="stable")
    starts = np.searchsorted(cols[order], np.arange(width))
    return np.add.reduceat(lines[:, order], starts, axis=1, dtype=np.int64)
