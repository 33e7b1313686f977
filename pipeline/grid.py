"""Where tiles lie and which blocks own which pixels: pure geometry, rows before columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from pipeline.errors import PlanError


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open rectangle of pixels in the working level of one image."""

    row: int
    """First row; may be negative where a tile hangs over the image's top edge."""
    col: int
    """First column."""
    height: int
    """Rows covered, at least 1."""
    width: int
    """Columns covered, at least 1."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise PlanError(f"window of {self.height} x {self.width} pixels at ({self.row}, {self.col}) is empty")

    @property
    def row_stop(self) -> int:
        """One past the last row."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """One past the last column."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def pixels(self) -> int:
        """Area in pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this window in an array of the whole level."""
        return slice(self.row, self.row_stop), slice(self.col, self.col_stop)

    def inside(self, other: Window) -> tuple[slice, slice]:
        """Index of this window in an array of `other`, which covers it."""
        row, col = self.row - other.row, self.col - other.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def touches(self, other: Window) -> bool:
        """Whether the two share at least one pixel."""
        return self.row < other.row_stop and other.row < self.row_stop and self.col < other.col_stop and other.col < self.col_stop

    def clip(self, height: int, width: int) -> Window:
        """The part inside an image of `height` x `width`; PlanError when there is none."""
        row, col = max(self.row, 0), max(self.col, 0)
        return Window(row, col, min(self.row_stop, height) - row, min(self.col_stop, width) - col)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Start of every tile along one axis of `length` pixels.

    Constant stride `tile - overlap` from 0; the last tile is moved in so that it ends at the edge:

        |tttttttttttt|
                 |tttttttttttt|
                          |tttttttttttt|
        0                             length

    The law: tiles cover every pixel, neighbours share at least `overlap`, and no fewer tiles could do so.
    An axis shorter than a tile has the one start 0; the reader pads it.
    """
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


@dataclass(frozen=True)
class Lattice:
    """All tile positions of one image."""

    height: int
    """Rows of the image at its working resolution."""
    width: int
    """Columns of the image at its working resolution."""
    tile: int
    """Side of the square that the model sees, in pixels."""
    overlap: int
    """Pixels that neighbouring tiles share, at least; 0 <= overlap < tile."""
    blend: Literal["hann", "crop"] = "hann"
    """Which pixels a tile speaks for: all of its own (hann), or those nearest to its centre (crop)."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.tile) < 1:
            raise PlanError(f"image of {self.height} x {self.width} px with tiles of {self.tile} px has nothing to tile")
        if not 0 <= self.overlap < self.tile:
            raise PlanError(
                f"overlap {self.overlap} does not fit tiles of {self.tile} px: no tile would come after the first. "
                f"Choose 0 <= overlap < {self.tile}"
            )

    @property
    def stride(self) -> int:
        """Distance between neighbouring tiles in pixels."""
        return self.tile - self.overlap

    @cached_property
    def rows(self) -> list[int]:
        """First row of each row of tiles."""
        return tile_starts(self.height, self.tile, self.overlap)

    @cached_property
    def cols(self) -> list[int]:
        """First column of each column of tiles."""
        return tile_starts(self.width, self.tile, self.overlap)

    @property
    def tiles(self) -> int:
        """Number of tiles: the least that cover the image with this overlap."""
        return len(self.rows) * len(self.cols)

    @cached_property
    def row_spans(self) -> list[tuple[int, int]]:
        """Half-open span of image rows that each row of tiles speaks for."""
        return self._spans(self.rows, self.height)

    @cached_property
    def col_spans(self) -> list[tuple[int, int]]:
        """Half-open span of image columns that each column of tiles speaks for."""
        return self._spans(self.cols, self.width)

    def touching(self, core: Window) -> tuple[list[int], list[int]]:
        """(rows, cols) of the tiles that speak for pixels of `core`: what a block must predict to own its core."""
        rows = [
            row for row, span in zip(self.rows, self.row_spans, strict=True) if span[0] < core.row_stop and core.row < span[1]
        ]
        cols = [
            col for col, span in zip(self.cols, self.col_spans, strict=True) if span[0] < core.col_stop and core.col < span[1]
        ]
        return rows, cols

    def _spans(self, starts: list[int], length: int) -> list[tuple[int, int]]:
        if self.blend == "crop":
            return owned_spans(starts, self.tile, length)
        return [(start, min(start + self.tile, length)) for start in starts]


def owned_spans(starts: list[int], tile: int, length: int) -> list[tuple[int, int]]:
    """For each tile the half-open span of the pixels along the axis whose nearest tile centre is its own.

        |tttttttt:::::|
              |:::::tttttttt|       ':' belongs to the other tile
                  ^ cut: halfway between the two centres; a pixel halfway belongs to the later tile

    The law: spans follow each other without gap from 0 to `length`.
    """
    cuts = [0, *((one + other + tile) // 2 for one, other in pairwise(starts)), length]
    return list(pairwise(cuts))


@dataclass(frozen=True, slots=True)
class Block:
    """The unit of work, retry and accounting: one shard of the mosaic."""

    index: int
    """Position in row-major order over the image's blocks; names the block in ledger and messages."""
    core: Window
    """The pixels that the block owns; cores of an image are disjoint and cover it."""


def blocks(height: int, width: int, block_height: int, block_width: int) -> Iterator[Block]:
    """The blocks of an image, row by row; the last ones are cut off at the image's edge.

    The law: cores cover every pixel exactly once, and every core starts at a multiple of the block shape.
    """
    index = 0
    for row in range(0, height, block_height):
        for col in range(0, width, block_width):
            core = Window(row, col, min(block_height, height - row), min(block_width, width - col))
            yield Block(index, core)
            index += 1
