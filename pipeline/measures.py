"""What is measured of a mask beside its confusion counts: integers of every block that add up to those of the image."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import boundary, edges
from pipeline.alignment import MaskFacts
from pipeline.boundary import Tolerance, tolerances_of
from pipeline.card import digest_of
from pipeline.codes import mask_codes
from pipeline.config import ScoringConfig
from pipeline.grid import Window
from pipeline.image import Frozen
from pipeline.plan import Plan
from pipeline.statistics.calibration import LEVELS, histogram

Labels = NDArray[np.unsignedinteger]
VERSION = 2
"""Of the definitions: what was measured by others is measured again."""
MOST_CELLS, SMALLEST_CELL = 32, 128
"""Cells of the error map along the longer side of an image, and the least px to a cell."""


class Measures(Frozen):
    """What is to be measured. Equal measures of equal masks and labels give equal integers, in blocks of any size."""

    tolerances: tuple[Tolerance, ...] = ()
    """Of borders between classes."""
    tile: int | None = None
    overlap: int | None = None
    """Of the tiles that made the mask; None where that is not known, and errors have no distance to their borders."""
    confidence: bool = False
    """Whether the mask has a confidence beside it."""

    @cached_property
    def digest(self) -> str:
        """Hash of what is measured, and how."""
        return digest_of([VERSION, self.model_dump(mode="json")])


def measures_of(scoring: ScoringConfig, plan: Plan) -> Measures:
    """What is measured of the mask that `plan` makes."""
    tolerances = tolerances_of(scoring.boundary_px, scoring.boundary_m, plan.grid.pixel_size_m)
    return Measures(tolerances=tolerances, tile=plan.tile, overlap=plan.overlap, confidence=plan.store_confidence)


def measures_without_plan(scoring: ScoringConfig, mask: MaskFacts) -> Measures:
    """What can be measured of a mask of which nobody knows how it was made."""
    return Measures(tolerances=tolerances_of(scoring.boundary_px, scoring.boundary_m, mask.grid.pixel_size_m))


class BoundaryScore(Frozen):
    """How well the borders of each class agree at one tolerance."""

    size: float
    unit: Literal["px", "m"]
    """The tolerance."""
    bands: tuple[tuple[int, int, int], ...]
    """By class, for Boundary IoU: pixels in the bands of both, of the reference, of the mask."""
    edges: tuple[tuple[int, int, int, int], ...]
    """By class, for the surface Dice: border pixels of the reference, of these near the mask's; of the mask, of these near the
    reference's."""

    @property
    def counts(self) -> boundary.BoundaryCounts:
        """As `boundary.boundary_iou` and `boundary.surface_dice` take them."""
        return np.concatenate([np.array(self.bands, np.int64), np.array(self.edges, np.int64)], axis=1)


class EdgeCounts(Frozen):
    """Pixels by their distance to the border of a tile; only those of the same tiling add up."""

    tile: int
    overlap: int
    bin_px: int
    """Distances to a bin."""
    counts: tuple[tuple[int, int], ...]
    """By distance, 0 the tile's outermost row: (wrong, right) pixels, or (differing, equal) ones."""


class ErrorCells(Frozen):
    """Where in the image the errors are: squares of `cell_px` from its corner on, those at its edges cut off."""

    cell_px: int
    cells: tuple[tuple[int, int, int, int], ...]
    """(row, column, labelled px with data, wrong px, failed ones included) of each cell that has labels, rows and columns counted
    in cells, in row-major order."""


class Measured(Frozen):
    """What was measured in a block or an image."""

    boundary: tuple[BoundaryScore, ...] = ()
    """By tolerance."""
    calibration: tuple[tuple[int, int], ...] | None = None
    """By confidence 0...255: (wrong, right) pixels, of those labelled that the model answered. None without confidence."""
    edge_errors: EdgeCounts | None = None
    """(wrong, right) pixels by distance to the border of the tile that saw them deepest, of those labelled that the model
    answered. None where the tiles are not known."""
    error_cells: ErrorCells | None = None


class Tally:
    """Takes the parts of a block, and sums up what is measured in them."""

    def __init__(self, measures: Measures, classes: int, shape: tuple[int, int]) -> None:
        """`shape` (height, width) of the whole image."""
        self._measures, self._classes, self._shape = measures, classes, shape
        self.halo = boundary.halo_of(measures.tolerances)
        """Px around a part that must be known."""
        self._cell = max(SMALLEST_CELL, -(-max(shape) // MOST_CELLS))
        self._cells: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._boundary = np.zeros((len(measures.tolerances), classes, boundary.COLUMNS), np.int64)
        self._calibration = np.zeros((LEVELS, 2), np.int64)
        self._edges = np.zeros((1 if measures.tile is None else edges.bins(measures.tile), 2), np.int64)

    def add(self, part: Window, reference: Labels, mask: Labels, confidence: NDArray[np.uint8] | None) -> None:
        """Measure a part of the image. `reference` and `mask` reach `halo` px farther, but for where the image ends.

        `confidence` (part height, part width), where there is any.
        """
        reference, mask = self._framed(part, reference, self._classes), self._framed(part, mask, self._outside)
        self._boundary += boundary.count_boundaries(reference, mask, self._classes, self._measures.tolerances)
        inner = slice(self.halo, self.halo + part.height), slice(self.halo, self.halo + part.width)
        reference, mask = reference[inner], mask[inner]
        labelled, answered = reference < self._classes, mask < self._classes
        answered &= labelled
        right = answered & (reference == mask)
        self._locate(part, labelled & (mask != self._outside), answered, right)
        if confidence is not None:
            self._calibration += histogram(confidence[answered], right[answered])

    @property
    def measured(self) -> Measured:
        """The sums so far."""
        asked = self._measures
        return Measured(
            boundary=tuple(
                BoundaryScore(
                    size=tolerance.size,
                    unit=tolerance.unit,
                    bands=tuple(map(tuple, counts[:, :3].tolist())),
                    edges=tuple(map(tuple, counts[:, 3:].tolist())),
                )
                for tolerance, counts in zip(asked.tolerances, self._boundary, strict=True)
            ),
            calibration=pairs(self._calibration) if asked.confidence else None,
            edge_errors=None if asked.tile is None else edge_counts(asked.tile, asked.overlap or 0, self._edges),
            error_cells=_error_cells(self._cell, self._cells),
        )

    @property
    def _outside(self) -> int:
        return mask_codes(self._classes).no_data

    def _framed(self, part: Window, labels: Labels, outside: int) -> Labels:
        """`labels` with the whole halo around `part`."""
        halo, (height, width) = self.halo, self._shape
        rows = halo - min(halo, part.row), halo - min(halo, height - part.row_stop)
        cols = halo - min(halo, part.col), halo - min(halo, width - part.col_stop)
        return np.pad(labels, (rows, cols), constant_values=outside) if any((*rows, *cols)) else labels

    def _locate(self, part: Window, labelled: NDArray[np.bool_], answered: NDArray[np.bool_], right: NDArray[np.bool_]) -> None:
        """Count in the cells and the distances to tile borders. Both follow from row and column: sums of lines are enough."""
        (rows, row_cell, row_bin), (cols, col_cell, col_bin) = (
            self._groups(length, first, stop)
            for length, first, stop in zip(self._shape, (part.row, part.col), (part.row_stop, part.col_stop), strict=True)
        )
        sums = [edges.sums_by(flags, rows, cols) for flags in (labelled, right, answered)]
        found = np.zeros((int(row_cell[-1] - row_cell[0]) + 1, int(col_cell[-1] - col_cell[0]) + 1, 2), np.int64)
        place = np.ix_(row_cell - row_cell[0], col_cell - col_cell[0])
        np.add.at(found[..., 0], place, sums[0])
        np.add.at(found[..., 1], place, sums[0] - sums[1])
        for row, col in np.ndindex(*found.shape[:2]):
            cell = int(row_cell[0]) + row, int(col_cell[0]) + col
            self._cells[cell] = self._cells.get(cell, np.zeros(2, np.int64)) + found[row, col]
        distance = np.minimum.outer(row_bin, col_bin)
        np.add.at(self._edges[:, 0], distance, sums[2] - sums[1])
        np.add.at(self._edges[:, 1], distance, sums[1])

    def _groups(self, length: int, first: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """(group of each pixel along an axis, cell of each group, bin of distances of each group)."""
        measures, cell = self._measures, np.arange(first, stop) // self._cell
        place = np.zeros(stop - first, np.intp)
        if measures.tile is not None:
            place = edges.depth_bins(length, measures.tile, measures.overlap or 0, first, stop)
        found, group = np.unique(cell * len(self._edges) + place, return_inverse=True)
        return group, found // len(self._edges), found % len(self._edges)


def edge_counts(tile: int, overlap: int, counts: edges.Histogram) -> EdgeCounts:
    """`counts` (bins, 2) of a tiling."""
    return EdgeCounts(tile=tile, overlap=overlap, bin_px=edges.bin_px(tile), counts=pairs(counts))


def sum_measured(parts: Iterable[Measured]) -> Measured:
    """The sum over disjoint parts that were measured alike."""
    every = list(parts)
    if not every:
        return Measured()
    return Measured(
        boundary=tuple(_sum_boundary(scores) for scores in zip(*(part.boundary for part in every), strict=True)),
        calibration=_sum_pairs([part.calibration for part in every if part.calibration is not None]),
        edge_errors=sum_edges([part.edge_errors for part in every if part.edge_errors is not None]),
        error_cells=_sum_cells([part.error_cells for part in every if part.error_cells is not None]),
    )


def sum_edges(parts: list[EdgeCounts]) -> EdgeCounts | None:
    """The sum of counts of the same tiling; None of none."""
    if not parts:
        return None
    return parts[0].model_copy(update={"counts": _sum_pairs([part.counts for part in parts])})


def sum_boundaries(images: Iterable[Iterable[BoundaryScore]]) -> list[BoundaryScore]:
    """The sums over images, one for each tolerance that any of them has, in their order."""
    found: dict[tuple[str, float], list[BoundaryScore]] = {}
    for scores in images:
        for score in scores:
            found.setdefault((score.unit, score.size), []).append(score)
    return [_sum_boundary(tuple(found[key])) for key in sorted(found, key=lambda key: (key[0] != "px", key[1]))]


def sum_curves(images: Iterable[EdgeCounts]) -> list[EdgeCounts]:
    """The sums over images, one for each tiling that any of them has, in their order."""
    found: dict[tuple[int, int], list[EdgeCounts]] = {}
    for curve in images:
        found.setdefault((curve.tile, curve.overlap), []).append(curve)
    sums = [sum_edges(found[key]) for key in sorted(found)]
    return [curve for curve in sums if curve is not None]


def _sum_boundary(scores: tuple[BoundaryScore, ...]) -> BoundaryScore:
    bands, borders = (np.sum([getattr(score, name) for score in scores], axis=0).tolist() for name in ("bands", "edges"))
    return scores[0].model_copy(update={"bands": tuple(map(tuple, bands)), "edges": tuple(map(tuple, borders))})


def _sum_pairs(parts: list[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...] | None:
    return pairs(np.sum(parts, axis=0, dtype=np.int64)) if parts else None


def _sum_cells(parts: list[ErrorCells]) -> ErrorCells | None:
    if not parts:
        return None
    cells: dict[tuple[int, int], NDArray[np.int64]] = {}
    for part in parts:
        for row, col, labelled, wrong in part.cells:
            cells[row, col] = cells.get((row, col), np.zeros(2, np.int64)) + np.array([labelled, wrong])
    return _error_cells(parts[0].cell_px, cells)


def _error_cells(cell_px: int, cells: dict[tuple[int, int], NDArray[np.int64]]) -> ErrorCells:
    found = tuple((row, col, int(n[0]), int(n[1])) for (row, col), n in sorted(cells.items()) if n[0])
    return ErrorCells(cell_px=cell_px, cells=found)


def pairs(counts: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Counts (n, 2) as records keep them."""
    return tuple((wrong, right) for wrong, right in counts.tolist())
