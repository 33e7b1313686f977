"""A picture of a whole image beside its mask: read strip by strip, so that it costs no memory either."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.alignment import TruthSpec
from pipeline.areas import open_area
from pipeline.grid import Window
from pipeline.image import WorkingGrid, from_level, level_shapes
from pipeline.plan import Plan
from pipeline.report.quicklook import percentile_stretch, quicklook_pngs, save_quicklook
from pipeline.sources import open_source
from pipeline.truth import open_truth

_STRIP_PX = 1 << 22
"""Native pixels read at a time."""


def draw_overview(plan: Plan, store: str, truth: TruthSpec | None, run_folder: str, longer_side: int) -> dict[str, str]:
    """Draw image, truth, mask and errors, `longer_side` px at most; name of picture -> path relative to `run_folder`."""
    grid = shrink(plan.grid, longer_side)
    data, valid = _pixels(plan, grid)
    mask = _mask(Path(store), plan, grid)
    reference = None if truth is None else _reference(truth, plan, grid)
    looked_at = _looked_at(plan, grid)
    pictures = quicklook_pngs(percentile_stretch(data, valid), valid, mask, reference, plan.card.classes, looked_at)
    return save_quicklook(pictures, Path(run_folder), plan.image.id)


def shrink(grid: WorkingGrid, longer_side: int) -> WorkingGrid:
    """The same area in at most `longer_side` pixels a side; never more pixels than there are."""
    factor = max(1.0, max(grid.shape) / longer_side)
    height, width = (max(1, round(side / factor)) for side in grid.shape)
    return grid.model_copy(
        update={
            "height": height,
            "width": width,
            "scale_row": grid.scale_row * grid.height / height,
            "scale_col": grid.scale_col * grid.width / width,
            "transform": None,
        }
    )


def _pixels(plan: Plan, grid: WorkingGrid) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    source = plan.read.source
    data = np.zeros((len(plan.read.bands), *grid.shape), source.dtype)
    valid = np.zeros(grid.shape, bool)
    grid = from_level(source, grid)
    with open_source(plan.read.model_copy(update={"grid": grid})) as image:
        for strip in _strips(grid, level_shapes(source)[grid.level][1] * grid.step_row):
            rows, cols = strip.slices
            pixels = image.read(strip)
            data[:, rows, cols], valid[rows, cols] = pixels.data, pixels.valid
    return data, valid


def _mask(store: Path, plan: Plan, grid: WorkingGrid) -> NDArray[np.unsignedinteger]:
    """The mask at the centres of `grid`, from the coarsest level that is at least as fine."""
    count = mosaic.levels(*plan.grid.shape)
    level = max(n for n in range(count) if n == 0 or min(mosaic.level_shape(plan.grid, n)) >= min(grid.shape))
    height, width = mosaic.level_shape(plan.grid, level)
    rows, cols = _centres(grid.height, height), _centres(grid.width, width)
    labels = mosaic.read(store, Window(0, 0, height, width), level)
    return labels[np.ix_(rows, cols)]


def _looked_at(plan: Plan, grid: WorkingGrid) -> NDArray[np.bool_] | None:
    """(h, w) on `grid`: True is looked at; None where all of the image is."""
    area = plan.area and plan.area.coarser(plan.grid.height / grid.height, plan.grid.width / grid.width)
    small = plan.model_copy(update={"read": plan.read.model_copy(update={"grid": grid}), "area": area})
    with ExitStack() as stack:
        opened = open_area(small)
        return None if opened is None else stack.enter_context(opened).read(Window(0, 0, *grid.shape))


def _reference(truth: TruthSpec, plan: Plan, grid: WorkingGrid) -> NDArray[np.unsignedinteger]:
    """Reference codes at the centres of `grid`."""
    step_row, step_col = plan.grid.height / grid.height, plan.grid.width / grid.width
    coarse = truth.coarser(step_row, step_col)
    with open_truth(coarse, plan.classes, *grid.shape) as labels:
        strips = [labels.read(strip).codes for strip in _strips(grid, max(coarse.row_px, grid.width))]
    return np.concatenate(strips)


def _strips(grid: WorkingGrid, native_row_px: float) -> list[Window]:
    """Windows over the whole grid, few enough rows each that at most some megapixels are read at a time."""
    step = max(1, int(_STRIP_PX / native_row_px))
    return [Window(row, 0, min(step, grid.height - row), grid.width) for row in range(0, grid.height, step)]


def _centres(count: int, length: int) -> NDArray[np.int64]:
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)
