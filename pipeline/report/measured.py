"""What was measured beside the counts, summed over a run's images and in words: borders, confidence, seams, errors by place."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import ceil, isnan

import numpy as np
from PIL import Image

from pipeline.boundary import boundary_iou, surface_dice
from pipeline.measures import EdgeCounts, ErrorCells, sum_boundaries, sum_curves
from pipeline.report.contract import ImageResult, RunReport
from pipeline.report.words import percent
from pipeline.statistics.calibration import Calibration, calibration
from pipeline.statistics.edges import EdgeCurve, OverlapAdvice, advise_overlap, edge_curve

WRONG_RGB = (213, 94, 0)
"""Of the error map; its opacity says how much is wrong."""
SQUARE = 8
"""Side of a square of the error map, in px of the picture."""
LEAST_FULL = 0.05
"""Least share of wrong pixels at which a square of the error map is as strong as it gets."""
SLIGHT = 0.005
"""Differences of shares that are none to speak of."""
FAINT = 0.05
"""And differences of errors along seams that are, as a share of those elsewhere."""
RARE = 0.01
"""Distances with fewer pixels, as a share of the commonest one's, are chance: a few tiles that were moved in."""


@dataclass(frozen=True)
class Borders:
    """How well borders agree at one tolerance, by class code; NaN where a class has none."""

    tolerance: str
    iou: list[float]
    dice: list[float]
    images: int
    """How many it is measured of."""

    @property
    def mean_iou(self) -> float:
        """Over classes that have borders."""
        return _mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Over classes that have borders."""
        return _mean(self.dice)


def borders(report: RunReport) -> list[Borders]:
    """By tolerance; of the sums over images."""
    measured = [image.boundary for image in report.images if image.boundary]
    return [
        Borders(
            _tolerance(found.size, found.unit),
            boundary_iou(found.counts).tolist(),
            surface_dice(found.counts).tolist(),
            sum(any((s.unit, s.size) == (found.unit, found.size) for s in scores) for scores in measured),
        )
        for found in sum_boundaries(measured)
    ]


def _tolerance(size: float, unit: str) -> str:
    """In micrometres under a microscope: 2 µm, not 2e-06 m."""
    return f"{size * 1e6:g} µm" if unit == "m" and size < 1e-3 else f"{size:g} {unit}"


@dataclass(frozen=True)
class Reliability:
    """How far the model's confidence can be trusted."""

    found: Calibration
    confidence: float
    """Mean over the pixels."""
    accuracy: float
    images: int

    @property
    def sentence(self) -> str:
        """What a reader should take from it."""
        gap = self.confidence - self.accuracy
        means = f"Its mean confidence is {percent(self.confidence)}, and {percent(self.accuracy)} of the answers are right"
        if abs(gap) < 0.02:
            return f"On the whole the model knows how sure it may be. {means}."
        return f"The model is {'too sure of itself' if gap > 0 else 'less sure than it could be'}. {means}."


def reliability(report: RunReport) -> Reliability | None:
    """None where no image has a confidence beside its mask."""
    counts = [np.array(image.calibration, np.int64) for image in report.images if image.calibration]
    total = np.sum(counts, axis=0) if counts else np.zeros((0, 2), np.int64)
    if not total.sum():
        return None
    level = np.arange(len(total)) / (len(total) - 1)
    confidence = float((total.sum(1) * level).sum() / total.sum())
    return Reliability(calibration(total), confidence, float(total[:, 1].sum() / total.sum()), len(counts))


@dataclass(frozen=True)
class Seam:
    """A share by distance to the border of tiles of one size."""

    tile: int
    overlap: int
    bin_px: int
    curve: EdgeCurve
    advice: OverlapAdvice | None
    images: int
    errors: bool
    """Whether it is of errors; else of the disagreement of neighbouring tiles."""

    @property
    def sentence(self) -> str:
        """What it says about the overlap."""
        found = self.advice
        if found is None:
            return "There are too few distances to tell anything."
        if self.errors:
            told = f"{percent(found.edge)} wrong nearest to the seams, {percent(found.interior)} in the middle of tiles"
            enough = found.overlap <= self.overlap + 2 * self.bin_px
            if enough or found.edge - found.interior < max(SLIGHT, FAINT * found.interior):
                return f"No seams to be seen in the errors: {told}. The overlap of {self.overlap} px is enough."
            return (
                f"Errors are more frequent along seams: {told}. They are no more so from {found.distance} px on, so an overlap "
                f"of {found.overlap} px, now {self.overlap} px, would help."
            )
        told = f"{percent(found.edge)} at the very border, {percent(found.interior)} farther inside"
        if found.overlap == 0:
            return f"Neighbouring tiles disagree no more at their borders than elsewhere in their overlap: {told}."
        return f"Neighbouring tiles disagree most at their borders: {told}. It has settled {found.distance} px from the border."


def seams(report: RunReport) -> list[Seam]:
    """Errors and disagreement by distance, for each tiling; those without any pixels are left out."""
    kinds = (
        (True, [image.edge_errors for image in report.images if image.edge_errors]),
        (False, [image.edge_disagreement for image in report.images if image.edge_disagreement]),
    )
    found = []
    for errors, measured in kinds:
        for total in sum_curves(measured):
            counts = np.array(total.counts, np.int64).reshape(-1, 2)
            if counts.sum():
                images = sum((m.tile, m.overlap) == (total.tile, total.overlap) for m in measured)
                found.append(_seam(total, counts, images, errors=errors))
    return sorted(found, key=lambda seam: (seam.tile, seam.overlap, not seam.errors))


def _seam(total: EdgeCounts, counts: np.ndarray[tuple[int, int], np.dtype[np.int64]], images: int, *, errors: bool) -> Seam:
    width = total.bin_px
    if errors and counts[:-1].any():
        counts = np.concatenate([counts[:-1], np.zeros((1, 2), np.int64)])  # at the image's edges there is no border at all
    counts = np.where(counts.sum(1, keepdims=True) < RARE * counts.sum(1).max(), 0, counts)
    return Seam(total.tile, total.overlap, width, edge_curve(counts, width), advise_overlap(counts, width), images, errors)


@dataclass(frozen=True)
class ErrorMap:
    """Where an image is wrong."""

    image: ImageResult
    png: bytes
    """Squares: see-through where nothing is wrong, the stronger the more is; grey where nothing is labelled. Those at the edges
    are cut off where the image ends."""
    height: int
    width: int
    """Of the picture, in px."""
    share: float
    """Of its labelled pixels that is wrong."""
    cell_px: int
    worst: str
    """Its worst square, in words."""


def error_maps(report: RunReport) -> tuple[list[ErrorMap], float]:
    """Of all images where it was measured, those first that are wrong in the largest share; and the share of wrong pixels at
    which a square is as strong as it gets: what one square in a hundred exceeds."""
    measured = [(image, image.block_errors) for image in report.images if image.block_errors and image.block_errors.cells]
    if not measured:
        return [], LEAST_FULL
    shares = [wrong / labelled for _, cells in measured for _, _, labelled, wrong in cells.cells]
    full = min(1.0, max(LEAST_FULL, ceil(float(np.quantile(shares, 0.99)) * 20) / 20))
    found = [_error_map(image, cells, full) for image, cells in measured]
    return sorted(found, key=lambda m: (-m.share, m.image.uri)), full


def _error_map(image: ImageResult, cells: ErrorCells, full: float) -> ErrorMap:
    labelled, wrong = (sum(cell[n] for cell in cells.cells) for n in (2, 3))
    sides = image.height, image.width  # 0 where the image could not even be planned: only its labels are known then
    squares = [max(-(-side // cells.cell_px), 1 + max(c[n] for c in cells.cells)) for n, side in enumerate(sides)]
    height, width = (
        max(1, round(side / cells.cell_px * SQUARE)) if side > 0 else count * SQUARE
        for side, count in zip(sides, squares, strict=True)
    )
    enough = labelled / len(cells.cells) / 10
    row, col, of, bad = max(cells.cells, key=lambda cell: (cell[2] >= enough, cell[3] / cell[2]))
    worst = (
        f"{percent(bad / of)} wrong at row {row * cells.cell_px:,}, column {col * cells.cell_px:,}" if bad else "nothing wrong"
    )
    picture = _map_png(cells, squares, (height, width), full)
    return ErrorMap(image, picture, height, width, wrong / labelled, cells.cell_px, worst)


def _map_png(cells: ErrorCells, squares: list[int], shape: tuple[int, int], full: float) -> bytes:
    """`squares` (rows, columns) there are; `shape` (height, width) of the picture."""
    picture = np.full((*squares, 4), (128, 128, 128, 90), np.uint8)
    for row, col, labelled, wrong in cells.cells:
        picture[row, col] = (*WRONG_RGB, round(min(1.0, wrong / labelled / full) * 255))
    picture = picture.repeat(SQUARE, 0).repeat(SQUARE, 1)[: shape[0], : shape[1]]
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def _mean(values: list[float]) -> float:
    known = [v for v in values if not isnan(v)]
    return sum(known) / len(known) if known else float("nan")
