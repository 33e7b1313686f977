"""Scores of overlapping tiles become labels: a rolling weighted sum, or the tile whose centre is nearest."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import mask_codes
from pipeline.grid import Lattice, Window

Floats = NDArray[np.float32]
Labels = NDArray[np.unsignedinteger]

_ROWS = 32
"""Rows that are turned into labels at a time: few enough to stay in the processor's cache."""


class Blender(Protocol):
    """Takes the tiles that touch a core in row-major order and fills the core's labels."""

    labels: Labels
    """(core height, core width): no data at first, then 0 where `expect` announced pixels, at last their classes."""
    confidence: NDArray[np.uint8] | None
    """(core height, core width): mean score of the winning class x 255; None unless asked for."""

    def expect(self, rows: Window, valid: NDArray[np.bool_], failed: NDArray[np.bool_] | None) -> None:
        """Tell which pixels of `rows`, a window inside the core, are to be labelled, and which could not be read."""

    def add(self, row: int, col: int, scores: Floats) -> None:
        """Add the scores (classes, tile, tile) of the lattice's tile at (row, col)."""

    def finish(self) -> None:
        """Label what is left, after the last tile."""


def blender(lattice: Lattice, core: Window, classes: int, *, confidence: bool = False) -> Blender:
    """The lattice's kind of blender for one core."""
    kind = HannBlender if lattice.blend == "hann" else CropBlender
    return kind(lattice, core, classes, confidence=confidence)


def hann(tile: int) -> Floats:
    """Weights (tile,) of a Hann window sampled at pixel centres, sin^2(pi (i + 1/2) / tile): above 0 everywhere."""
    return (np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2).astype(np.float32)


def weight_sum(starts: list[int], tile: int, first: int, stop: int) -> Floats:
    """Sum (stop - first,) of the Hann weights of all tiles at `starts`, along one axis, over pixels first...stop - 1."""
    total = np.zeros(stop - first, np.float32)
    weights = hann(tile)
    for start in starts:
        low, high = max(start, first), min(start + tile, stop)
        if low < high:
            total[low - first : high - first] += weights[low - start : high - start]
    return total


class _Core:
    """What both blenders share: the core, its labels, and who is to be labelled."""

    def __init__(self, lattice: Lattice, core: Window, classes: int, *, confidence: bool = False) -> None:
        self.lattice, self.core, self.classes = lattice, core, classes
        self.codes = mask_codes(classes)
        self.labels: Labels = np.full(core.shape, self.codes.no_data, self.codes.dtype)
        self.confidence = np.zeros(core.shape, np.uint8) if confidence else None

    def expect(self, rows: Window, valid: NDArray[np.bool_], failed: NDArray[np.bool_] | None) -> None:
        top, left = rows.row - self.core.row, rows.col - self.core.col
        view = self.labels[top : top + rows.height, left : left + rows.width]
        view[valid] = 0
        if failed is not None:
            view[failed] = self.codes.failed

    def _label(self, scores: Floats, row: int, col: int, weights: Floats | None) -> None:
        """Label core pixels from (row, col) on, in core coordinates, with the class of the highest score.

        `scores` (classes, h, w); `weights` (h, w) their sum of weights, needed for confidence only. Ties go to the lowest
        class. Pixels that nobody expects keep their code.
        """
        height, width = scores.shape[1:]
        for top in range(0, height, _ROWS):
            piece = scores[:, top : top + _ROWS]
            view = self.labels[row + top : row + top + piece.shape[1], col : col + width]
            best = piece[0].copy()
            winner = np.zeros(best.shape, view.dtype)
            for code in range(1, self.classes):
                higher = piece[code] > best
                np.copyto(best, piece[code], where=higher)
                winner[higher] = code
            todo = view < self.codes.failed
            np.copyto(view, winner, where=todo)
            if self.confidence is not None:
                share = best if weights is None else best / weights[top : top + piece.shape[1]]
                target = self.confidence[row + top : row + top + piece.shape[1], col : col + width]
                np.copyto(target, np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8), where=todo)


class HannBlender(_Core):
    """Weighted mean of all tiles at a pixel, with Hann weights.

    Sums live in a strip as high as a tile and as wide as the core, so that memory does not grow with the block's height:

        |  tile row k    | finished above the first row of tile row k + 1: labelled and dropped
        |--------|-------|
        |        tile row k + 1     |

    Dividing by the sum of weights does not change which class wins, so only confidence pays for it. Each pixel sums its
    tiles in row-major order: any two blocks that see it would give it the same label.
    """

    def __init__(self, lattice: Lattice, core: Window, classes: int, *, confidence: bool = False) -> None:
        super().__init__(lattice, core, classes, confidence=confidence)
        self._weights = np.outer(hann(lattice.tile), hann(lattice.tile))
        self._sums = np.zeros((classes, min(lattice.tile, core.height), core.width), np.float32)
        self._product = np.empty((lattice.tile, lattice.tile), np.float32)
        self._top = core.row
        """First image row of the strip: all rows above are labelled."""

    def add(self, row: int, col: int, scores: Floats) -> None:
        self._advance(max(row, self.core.row))
        core, tile = self.core, self.lattice.tile
        top, bottom = max(row, core.row), min(row + tile, core.row_stop)
        left, right = max(col, core.col), min(col + tile, core.col_stop)
        inside = slice(top - row, bottom - row), slice(left - col, right - col)
        weights = self._weights[inside]
        product = self._product[: bottom - top, : right - left]
        sums = self._sums[:, top - self._top : bottom - self._top, left - core.col : right - core.col]
        for code in range(self.classes):
            np.multiply(scores[code][inside], weights, out=product)
            sums[code] += product

    def finish(self) -> None:
        self._advance(self.core.row_stop)

    def _advance(self, row: int) -> None:
        """Label the strip's rows above image row `row` and roll it there."""
        done = row - self._top
        if done <= 0:
            return
        height = self._sums.shape[1]
        ready = min(done, height)
        core, lattice = self.core, self.lattice
        weights = None
        if self.confidence is not None:
            along_rows = weight_sum(lattice.rows, lattice.tile, self._top, self._top + ready)
            weights = np.outer(along_rows, weight_sum(lattice.cols, lattice.tile, core.col, core.col_stop))
        self._label(self._sums[:, :ready], self._top - core.row, 0, weights)
        if ready < height:
            self._sums[:, : height - ready] = self._sums[:, ready:].copy()
        self._sums[:, height - ready :] = 0
        self._top = row


class CropBlender(_Core):
    """Each pixel from the one tile whose centre is nearest: see `pipeline.grid.owned_spans`."""

    def __init__(self, lattice: Lattice, core: Window, classes: int, *, confidence: bool = False) -> None:
        super().__init__(lattice, core, classes, confidence=confidence)
        self._row_spans = dict(zip(lattice.rows, lattice.row_spans, strict=True))
        self._col_spans = dict(zip(lattice.cols, lattice.col_spans, strict=True))

    def add(self, row: int, col: int, scores: Floats) -> None:
        core = self.core
        top, bottom = self._row_spans[row]
        left, right = self._col_spans[col]
        top, bottom = max(top, core.row), min(bottom, core.row_stop)
        left, right = max(left, core.col), min(right, core.col_stop)
        if top < bottom and left < right:
            own = scores[:, top - row : bottom - row, left - col : right - col]
            self._label(own, top - core.row, left - core.col, None)

    def finish(self) -> None:
        """Nothing is left: every tile labels its pixels at once."""
