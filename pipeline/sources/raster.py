"""Raster files on their working grid: native pixels as they are, or resampled once, strip by strip."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np

from pipeline.errors import PlanError
from pipeline.grid import Window
from pipeline.plan import ReadSpec
from pipeline.rasterfile import RasterFile
from pipeline.resample import resample, taps
from pipeline.sources import Pixels

STRIP_PIXELS = 1 << 22
"""Native pixels read at a time where the grid is resampled: memory that does not grow with the scale."""


class RasterSource:
    """A raster file as working pixels: what `open_source` gives."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec
        self._file = RasterFile(spec.source, spec.bands, spec.valid_from, spec.nodata)

    def read(self, window: Window) -> Pixels:
        """The working pixels of `window`; PlanError where it reaches outside the working grid."""
        grid = self._spec.grid
        if window.clip(*grid.shape) != window:
            raise PlanError(
                f"{window} reaches outside the {grid.height} x {grid.width} px of {self._spec.source.uri}: what lies there is "
                "for the caller to pad"
            )
        return Pixels(*self._file.read(window)) if grid.as_stored else self._resampled(window)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _resampled(self, window: Window) -> Pixels:
        spec, grid, source = self._spec, self._spec.grid, self._spec.source
        pixels = Pixels(np.empty((len(spec.bands), *window.shape), source.dtype), np.empty(window.shape, bool))
        cols = taps(window.col, window.col_stop, grid.scale_col, source.width)
        step = max(1, int(STRIP_PIXELS / cols.native_length / max(grid.scale_row, 1)))
        for row in range(window.row, window.row_stop, step):
            rows = taps(row, min(row + step, window.row_stop), grid.scale_row, source.height)
            native = Window(rows.native_start, cols.native_start, rows.native_length, cols.native_length)
            part = slice(row - window.row, row - window.row + step)
            pixels.data[:, part], pixels.valid[part] = resample(*self._file.read(native), rows, cols)
        return pixels
