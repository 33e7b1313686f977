"""Outputs of overlapping tiles become labels: a rolling weighted sum of probabilities, or the tile whose centre is nearest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import mask_codes
from pipeline.grid import Lattice, Window

Floats = NDArray[np.float32]
Labels = NDArray[np.unsignedinteger]
Activation = Literal["softmax", "sigmoid", "none"]
"""What makes a network's outputs scores that may be averaged. `sigmoid`: one output, the second of two classes."""


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


class Seams:
    """How much each tile of a lattice counts at the pixels of a core: the arithmetic that every blender shares.

    `hann`: all tiles at a pixel count, by Hann weights. `crop`: the one whose centre is nearest (`grid.owned_spans`).
    """

    def __init__(self, lattice: Lattice, core: Window) -> None:
        self._core = core
        self._row_spans = dict(zip(lattice.rows, lattice.row_spans, strict=True))
        self._col_spans = dict(zip(lattice.cols, lattice.col_spans, strict=True))
        soft = lattice.blend == "hann"
        self.weight = hann(lattice.tile) if soft else np.ones(lattice.tile, np.float32)
        """(tile,): a pixel's weight in a tile is the product of those of its row and its column."""
        self.row_sum = weight_sum(lattice.rows, lattice.tile, core.row, core.row_stop) if soft else _ones(core.height)
        """(core height,): with `col_sum`, the weights of all tiles at a pixel, as factors."""
        self.col_sum = weight_sum(lattice.cols, lattice.tile, core.col, core.col_stop) if soft else _ones(core.width)
        """(core width,)."""

    def span(self, row: int, col: int) -> Window:
        """Return where in the image the tile at (row, col) counts, inside and outside of the core."""
        (top, bottom), (left, right) = self._row_spans[row], self._col_spans[col]
        return Window(top, left, bottom - top, right - left)

    @property
    def height(self) -> int:
        """Rows of the core that one row of tiles counts at, at most."""
        return max(min(b, self._core.row_stop) - max(a, self._core.row) for a, b in self._row_spans.values())

    def part(self, row: int, col: int) -> Window | None:
        """Where in the image the tile at (row, col) counts within the core; None where nowhere."""
        (top, bottom), (left, right) = self._row_spans[row], self._col_spans[col]
        top, bottom = max(top, self._core.row), min(bottom, self._core.row_stop)
        left, right = max(left, self._core.col), min(right, self._core.col_stop)
        return Window(top, left, bottom - top, right - left) if top < bottom and left < right else None


def _ones(length: int) -> Floats:
    return np.ones(length, np.float32)


class Blending(ABC):
    """Takes the tiles that touch a core in row-major order and fills the core's labels.

    Sums live in a strip as high as a tile and as wide as the core, so that memory does not grow with the block's height. The
    strip is a ring of rows:

        |  tile row k    | finished above the first row of tile row k + 1: labelled, set to 0, used again below
        |--------|-------|
        |        tile row k + 1     |

    Dividing by the sum of weights does not change which class wins, so only confidence pays for it. Each pixel sums its
    tiles in row-major order: any two blocks that see it would give it the same label.

    A tile with an output that is not finite is lost: all pixels that it contributes to are failed. Its outputs are judged
    wherever they count in the image, also outside of the core, so that all blocks judge a tile alike.
    """

    def __init__(self, lattice: Lattice, core: Window, classes: int, *, confidence: bool = False) -> None:
        self._core, self._seams, self._codes = core, Seams(lattice, core), mask_codes(classes)
        self.labels: Labels = np.full(core.shape, self._codes.no_data, self._codes.dtype)
        """(core height, core width): no data at first, then 0 where `expect` announced pixels, at last their classes."""
        self.confidence = np.zeros(core.shape, np.uint8) if confidence else None
        """(core height, core width): mean score of the winning class x 255; None unless asked for."""
        self._strip_shape = self._seams.height, classes, core.width
        self._top = core.row
        """First image row of the strip: all rows above are labelled."""
        self.lost: list[tuple[int, int]] = []
        """(row, col) of the tiles that were lost and cost pixels, in the order of `add`; complete after `finish`."""

    def expect(self, rows: Window, valid: NDArray[np.bool_], failed: NDArray[np.bool_] | None) -> None:
        """Tell which pixels of `rows`, a window inside the core, are to be labelled, and which could not be read.

        To be told before the first tile that counts there is added; from another thread if need be.
        """
        top, left = rows.row - self._core.row, rows.col - self._core.col
        view = self.labels[top : top + rows.height, left : left + rows.width]
        np.copyto(view, view.dtype.type(0), where=valid)
        if failed is not None:
            np.copyto(view, view.dtype.type(self._codes.failed), where=failed)

    def add(self, row: int, col: int, outputs: Any) -> None:
        """Add the outputs (channels, tile, tile) of the lattice's tile at (row, col)."""
        part = self._seams.part(row, col)
        if part is None:
            return
        self._advance(part.row)
        if not (self._add(outputs, (row, col), part) and self._finite_around(outputs, (row, col), part)):
            self._lose((row, col), part)

    def finish(self) -> None:
        """Label what is left, after the last tile."""
        self._advance(self._core.row_stop)

    @property
    def final(self) -> int:
        """Rows of the core, from its top, whose labels no further tile changes."""
        return self._top - self._core.row

    def _lose(self, place: tuple[int, int], part: Window) -> None:
        """Mark the pixels of `part` as failed, those without data excepted."""
        inside = part.inside(self._core)
        view, failed = self.labels[inside], self.labels.dtype.type(self._codes.failed)
        np.copyto(view, failed, where=view < failed)
        if self.confidence is not None:
            self.confidence[inside] = 0
        if (view == failed).any():
            self.lost.append(place)

    def _finite_around(self, outputs: Any, place: tuple[int, int], part: Window) -> bool:
        """Return whether the outputs that count outside of `part`, in the cores of other blocks, are finite."""
        from pipeline import kernels

        span, (row, col) = self._seams.span(*place), place
        return all(
            kernels.is_finite(outputs, (piece.row - row, piece.row_stop - row), (piece.col - col, piece.col_stop - col))
            for piece in around(part, span)
        )

    def _advance(self, row: int) -> None:
        """Label the strip's rows above image row `row`; what follows them is the strip then."""
        ready = min(row - self._top, self._strip_shape[0])
        if ready > 0:
            first = self._top - self._core.row
            self._label(slice(first, first + ready))
            self._top = row

    @abstractmethod
    def _add(self, outputs: Any, place: tuple[int, int], part: Window) -> bool:
        """Add what the tile at `place` says of `part`, a window of the image inside tile and core; False where that is not
        finite."""

    @abstractmethod
    def _label(self, rows: slice) -> None:
        """Label `rows` of the core, and set their sums to 0."""


def around(part: Window, span: Window) -> Iterator[Window]:
    """Yield the pieces of `span` that are left without `part`, which lies inside it."""
    sides = (
        (span.row, span.col, part.row - span.row, span.width),
        (part.row_stop, span.col, span.row_stop - part.row_stop, span.width),
        (part.row, span.col, part.height, part.col - span.col),
        (part.row, part.col_stop, part.height, span.col_stop - part.col_stop),
    )
    yield from (Window(*side) for side in sides if side[2] and side[3])


def blending(
    lattice: Lattice, core: Window, classes: int, *, activation: Activation = "none", confidence: bool = False
) -> Blending:
    """What labels `core` in the processor's memory, by compiled loops: sums only where tiles share pixels."""
    alone = lattice.blend == "crop" or lattice.tiles == 1
    return (Picker if alone else Blender)(lattice, core, classes, activation=activation, confidence=confidence)


class Blender(Blending):
    """Labels from the sums of all tiles at a pixel."""

    def __init__(
        self, lattice: Lattice, core: Window, classes: int, *, activation: Activation = "none", confidence: bool = False
    ) -> None:
        super().__init__(lattice, core, classes, confidence=confidence)
        from pipeline import kernels

        self._kernels = kernels
        self._add_outputs = kernels.add_scores if activation == "none" else kernels.add_probabilities
        self._sums = np.zeros(self._strip_shape, np.float32)

    def _add(self, outputs: Floats, place: tuple[int, int], part: Window) -> bool:
        (row, col), core, weight = place, self._core, self._seams.weight
        rows, cols = (part.row - row, part.row_stop - row), (part.col - col, part.col_stop - col)
        at = part.row - core.row, part.col - core.col
        return self._add_outputs(outputs, rows, cols, weight, weight, self._sums, *at)

    def _label(self, rows: slice) -> None:
        labels, failed = self.labels[rows], self._codes.failed
        if self.confidence is not None:
            sums = self._seams.row_sum[rows], self._seams.col_sum
            self._kernels.confide(self._sums, rows.start, *sums, labels, failed, self.confidence[rows])
        self._kernels.label(self._sums, rows.start, labels, failed)


class Picker(Blending):
    """Labels from the one tile that counts at a pixel: with `crop`, or where there is but one. The highest output wins, as
    softmax does not change which that is."""

    def __init__(
        self, lattice: Lattice, core: Window, classes: int, *, activation: Activation = "none", confidence: bool = False
    ) -> None:
        super().__init__(lattice, core, classes, confidence=confidence)
        from pipeline import kernels

        self._kernels, self._soft, self._sigmoid = kernels, activation != "none", activation == "sigmoid"

    def _add(self, outputs: Floats, place: tuple[int, int], part: Window) -> bool:
        (row, col), core, failed = place, self._core, self._codes.failed
        rows, cols = (part.row - row, part.row_stop - row), (part.col - col, part.col_stop - col)
        target = self.labels, part.row - core.row, part.col - core.col, failed
        finite = self._kernels.pick(outputs, rows, cols, self._sigmoid, *target)
        if finite and self.confidence is not None:
            self._kernels.assure(outputs, rows, cols, self._soft, self._sigmoid, *target, self.confidence)
        return finite

    def _label(self, rows: slice) -> None:
        """They have their labels."""
