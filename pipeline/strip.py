"""The input of a core, rolled down the image in a thread of its own, so that reading never keeps the model waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.areas import Area, open_area
from pipeline.errors import SourceError
from pipeline.grid import Window
from pipeline.models.predictor import Predictor, TileGroup
from pipeline.plan import Plan
from pipeline.sources import Pixels, Source

Expect = Callable[[Window, NDArray[np.bool_], NDArray[np.bool_] | None], None]
"""Who is told which pixels of a window are real, and which could not be read: see `pipeline.blend.Blending.expect`."""
Look = Callable[[Window, NDArray[np.generic], NDArray[np.bool_]], None]
"""Who is shown the samples (bands, h, w) of a window inside the core, and which of its pixels are real; each pixel once."""
AHEAD = 2
"""Groups of tiles that wait ready."""

_READERS = ThreadPoolExecutor(64, thread_name_prefix="read-ahead")
"""Kept threads: GDAL loads its coordinate systems anew in each, which takes longer than to read a small image."""


class ReadAhead:
    """The groups of tiles that speak for a core, row by row; read and cut in a thread that ends with the context."""

    def __init__(
        self,
        plan: Plan,
        predictor: Predictor,
        open_: Callable[[], Source],
        core: Window,
        expect: Expect,
        look: Look | None = None,
    ) -> None:
        self._plan, self._predictor, self._core, self._expect, self._look = plan, predictor, core, expect, look
        self._rows, self._cols = plan.lattice.touching(core)
        self._strip = Strip(plan, open_, self._cols)
        self._ready: SimpleQueue[TileGroup | BaseException | None] = SimpleQueue()
        self._free: SimpleQueue[TileGroup] = SimpleQueue()
        self._slots = threading.Semaphore(AHEAD)
        self._stopped = False
        self._running: Future[None] | None = None

    @property
    def error(self) -> str | None:
        """Why some pixels could not be read, the first of them; known at the end."""
        return self._strip.error

    def release(self, tiles: TileGroup) -> None:
        """The group's buffers may be filled again."""
        self._free.put(tiles)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TileGroup:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            raise StopIteration
        self._slots.release()
        return item

    def __enter__(self) -> Self:
        if len(self._rows) * len(self._cols) <= self._predictor.group:
            self._run()  # one group: nothing is predicted meanwhile
        else:
            self._running = _READERS.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped = True
        self._slots.release()
        if self._running is not None:
            self._running.result()

    def _run(self) -> None:
        try:
            self._cut()
            self._ready.put(None)
        except BaseException as e:  # noqa: BLE001 - it is raised where the tiles are awaited
            self._ready.put(e)
        finally:
            self._strip.close()

    def _cut(self) -> None:
        strip, core = self._strip, self._core
        group = self._group()
        for row in self._rows:
            fresh = strip.advance(row)
            seen = within(fresh, core)
            if seen is not None:
                self._expect(seen, strip.valid_at(seen), strip.failed_at(seen))
                if self._look is not None:
                    self._look(seen, strip.data_at(seen), strip.valid_at(seen))
            for col in self._cols:
                place = len(group.places)
                if strip.fill(col, core, group.data[place], group.valid[place]):
                    group.places.append((row, col))
                if len(group.places) == self._predictor.group:
                    if not self._hand_over(group):
                        return
                    group = self._group()
        if group.places:
            self._hand_over(group)

    def _hand_over(self, group: TileGroup) -> bool:
        """False where nobody waits any more."""
        self._slots.acquire()
        if self._stopped:
            return False
        self._ready.put(group)
        return True

    def _group(self) -> TileGroup:
        if not self._free.empty():
            group = self._free.get()
            group.places.clear()
            return group
        plan, tiles = self._plan, self._predictor.group
        data = self._predictor.empty((tiles, len(plan.read.bands), plan.tile, plan.tile), plan.read.source.dtype)
        return TileGroup(data, self._predictor.empty((tiles, plan.tile, plan.tile), np.bool_), [])


class Strip:
    """The input under one row of tiles, rolled down the image so that every pixel row is read once.

    |  kept from above   |
    |--------------------|  <- end of the last row of tiles
    |  read now          |

    Where only an area is looked at, what no tile around a part of it needs is not read.
    """

    def __init__(self, plan: Plan, open_: Callable[[], Source], cols: list[int]) -> None:
        grid, side = plan.grid, plan.tile
        self._open = open_
        self._source: Source | None = None
        self._height, self._image_width, self._side = grid.height, grid.width, side
        self._left, right = cols[0], min(cols[-1] + side, grid.width)
        self._width = right - self._left
        self._top = self._stop = 0
        shape = (min(side, grid.height), self._width)
        self._data = np.zeros((len(plan.read.bands), *shape), plan.read.source.dtype)
        self._valid = np.zeros(shape, bool)
        self._area = open_area(plan)
        self._wanted = self._valid if self._area is None else np.zeros(shape, bool)
        self._failed: NDArray[np.bool_] | None = None
        self.error: str | None = None

    def advance(self, row: int) -> Window:
        """Roll to the tiles that start at image row `row`; the window of rows that were read for it."""
        stop = min(row + self._side, self._height)
        kept = max(0, self._stop - row)
        if kept:
            offset = row - self._top
            wanted = None if self._area is None else self._wanted
            for array in (self._data, self._valid, self._failed, wanted):
                if array is not None:
                    array[..., :kept, :] = array[..., offset : offset + kept, :].copy()
        fresh = Window(row + kept, self._left, stop - row - kept, self._width)
        self._top, self._stop = row, stop
        if self._failed is not None:
            self._failed[self._inside(fresh)] = False
        if self._area is None:
            self._read(fresh)
        else:
            self._read_area(fresh, self._area)
        return fresh

    def data_at(self, window: Window) -> NDArray[np.generic]:
        """Samples (bands, h, w) of a window inside the strip."""
        return self._data[:, *self._inside(window)]

    def valid_at(self, window: Window) -> NDArray[np.bool_]:
        """(h, w) of a window inside the strip: True is real and looked at."""
        return self._wanted[self._inside(window)]

    def failed_at(self, window: Window) -> NDArray[np.bool_] | None:
        """Which pixels of a window inside the strip could not be read; None where all could."""
        return None if self._failed is None else self._failed[self._inside(window)]

    def fill(self, col: int, core: Window, data: NDArray[np.generic], valid: NDArray[np.bool_]) -> bool:
        """Copy the tile at image column `col` into `data` (bands, tile, tile) and `valid`; False, and nothing copied,
        where it has no valid pixel in the core. Images smaller than a tile are padded by reflection."""
        tile = Window(self._top, col, self._stop - self._top, min(self._side, self._left + self._width - col))
        in_core = within(tile, core)
        if in_core is None or not self.valid_at(in_core).any():
            return False
        rows, cols = self._inside(tile)
        padding = (0, self._side - tile.height), (0, self._side - tile.width)
        if padding == ((0, 0), (0, 0)):
            data[:], valid[:] = self._data[:, rows, cols], self._valid[rows, cols]
        else:
            data[:] = np.pad(self._data[:, rows, cols], ((0, 0), *padding), mode="reflect")
            valid[:] = np.pad(self._valid[rows, cols], padding, mode="reflect")
        return True

    def close(self) -> None:
        """Close the image and its area."""
        self._close_source()
        if self._area is not None:
            self._area.close()

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _inside(self, window: Window) -> tuple[slice, slice]:
        row, col = window.row - self._top, window.col - self._left
        return slice(row, row + window.height), slice(col, col + window.width)

    def _read(self, window: Window) -> None:
        """Read `window` into the strip. What fails is tried again on a fresh handle, then tile by tile; the pixels of
        the pieces that still fail are noted as failed and as not valid."""
        try:
            self._put(window, self._twice(window))
        except SourceError:
            for col in range(window.col, window.col_stop, self._side):
                piece = Window(window.row, col, window.height, min(self._side, window.col_stop - col))
                try:
                    self._put(piece, self._twice(piece))
                except SourceError as e:
                    self._lose(piece, e)

    def _read_area(self, window: Window, area: Area) -> None:
        """Read those parts of `window` that a tile with something to look at may need, and note what is looked at.

        Such a tile is less than its side away from what is looked at, in each direction. All of its pixels are read, also
        those outside of the area: the model sees tissue in its surroundings.
        """
        rows, cols = self._inside(window)
        self._data[:, rows, cols], self._valid[rows, cols] = 0, False
        around = self._wider(window)
        looked_at = area.read(around).any(axis=0)
        step = self._side
        starts = range(window.col // step * step, window.col_stop, step)
        reach = [(max(0, col - step - around.col), max(0, col + 2 * step - around.col)) for col in starts]
        near = [bool(looked_at[first:stop].any()) for first, stop in reach]
        for col, stop in runs(near, starts, step):
            left, right = max(col, window.col), min(stop, window.col_stop)
            self._read(Window(window.row, left, window.height, right - left))
        inside = area.read(window)
        self._wanted[rows, cols] = self._valid[rows, cols] & inside
        if self._failed is not None:
            self._failed[rows, cols] &= inside

    def _wider(self, window: Window) -> Window:
        """All that is less than a tile away from `window`."""
        side = self._side
        wide = Window(window.row - side, window.col - side, window.height + 2 * side, window.width + 2 * side)
        return wide.clip(self._height, self._image_width)

    def _twice(self, window: Window) -> Pixels:
        """The pixels of `window`; a damaged handle is replaced once."""
        try:
            return self._once(window)
        except SourceError:
            self._close_source()
            return self._once(window)

    def _once(self, window: Window) -> Pixels:
        if self._source is None:
            self._source = self._open()
        return self._source.read(window)

    def _put(self, window: Window, pixels: Pixels) -> None:
        rows, cols = self._inside(window)
        self._data[:, rows, cols] = pixels.data
        self._valid[rows, cols] = pixels.valid

    def _lose(self, window: Window, error: SourceError) -> None:
        if self._failed is None:
            self._failed = np.zeros(self._valid.shape, bool)
        rows, cols = self._inside(window)
        self._failed[rows, cols] = True
        self._valid[rows, cols] = False
        self._data[:, rows, cols] = 0
        if self.error is None:
            where = f"rows {window.row}-{window.row_stop - 1}, columns {window.col}-{window.col_stop - 1}"
            self.error = f"{where} could not be read: {error}"


def runs(flags: list[bool], starts: range, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of neighbouring pieces whose flag is set; piece i is [starts[i], starts[i] + step)."""
    first: int | None = None
    for start, flag in zip(starts, flags, strict=True):
        if flag and first is None:
            first = start
        if not flag and first is not None:
            yield first, start
            first = None
    if first is not None:
        yield first, starts[-1] + step


def within(window: Window, core: Window) -> Window | None:
    """The part of `window` inside `core`; None where they do not touch."""
    if not window.touches(core):
        return None
    row, col = max(window.row, core.row), max(window.col, core.col)
    return Window(row, col, min(window.row_stop, core.row_stop) - row, min(window.col_stop, core.col_stop) - col)
