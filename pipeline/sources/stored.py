"""Files on their working grid: pixels as they are stored, or resampled once, strip by strip."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PlanError
from pipeline.grid import Window
from pipeline.image import level_shapes
from pipeline.plan import ReadSpec
from pipeline.resample import resample, taps
from pipeline.sources import Pixels

STRIP_PIXELS = 1 << 22
"""Stored pixels read at a time where the grid is resampled: memory that does not grow with the scale."""


class StoredFile(Protocol):
    """One level of an open file, for one thread."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(data (bands, h, w), valid (h, w): True is real) of a window inside the level, the same for every window around it."""
        ...

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        ...


class StoredSource:
    """A file as working pixels: what `open_source` gives."""

    def __init__(self, spec: ReadSpec, file: StoredFile) -> None:
        self._spec, self._file = spec, file
        self._level = level_shapes(spec.source)[spec.grid.level]

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
        spec, grid, (height, width) = self._spec, self._spec.grid, self._level
        pixels = Pixels(np.empty((len(spec.bands), *window.shape), spec.source.dtype), np.empty(window.shape, bool))
        cols = taps(window.col, window.col_stop, grid.step_col, width)
        step = max(1, int(STRIP_PIXELS / cols.native_length / max(grid.step_row, 1)))
        for row in range(window.row, window.row_stop, step):
            rows = taps(row, min(row + step, window.row_stop), grid.step_row, height)
            stored = Window(rows.native_start, cols.native_start, rows.native_length, cols.native_length)
            part = slice(row - window.row, row - window.row + step)
            pixels.data[:, part], pixels.valid[part] = resample(*self._file.read(stored), rows, cols)
        return pixels
