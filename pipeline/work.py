"""What a worker does to one block: where reading, predicting, blending and writing meet."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.alignment import TruthSpec
from pipeline.blend import blender
from pipeline.codes import mask_codes
from pipeline.confusion import count, no_counts
from pipeline.errors import SourceError
from pipeline.grid import Block, Window
from pipeline.image import Frozen
from pipeline.ledger import BlockRecord, BlockScore
from pipeline.models import Predictor, load_model
from pipeline.plan import MaskFacts, Plan
from pipeline.sources import Pixels, Source, open_source
from pipeline.truth import open_truth


class Job(Frozen):
    """What travels to a worker: facts, never handles or pixels."""

    plan: Plan
    store: str
    """Folder of the unfinished mosaic."""
    device: str = "auto"
    threads: int | None = None
    """Threads of the model's arithmetic; None leaves them."""
    trust_code: bool = False


class ScoreJob(Frozen):
    """What travels to a worker to score a mask."""

    store: str | None
    """Folder of the mosaic; None where the whole image failed: every labelled pixel is a miss then."""
    mask: MaskFacts
    truth: TruthSpec


@dataclass(frozen=True)
class CoreLabels:
    """The labels of one core, before they are written."""

    labels: NDArray[np.unsignedinteger]
    """(core height, core width) mask codes."""
    confidence: NDArray[np.uint8] | None
    """(core height, core width), where asked for."""
    tiles: int
    """Tiles that went through the model."""
    error: str | None
    """Why some pixels are failed."""


def predict_block(job: Job, block: Block) -> BlockRecord:
    """Predict every tile that speaks for the block's core, blend them, write the block's shard whole."""
    started = time.perf_counter()
    plan = job.plan
    result = predict_core(plan, _predictor(job), partial(open_source, plan.read), block.core)
    mosaic.write_block(Path(job.store), plan, block.core, result.labels, result.confidence)
    return _record(job, block, result.labels, started, tiles=result.tiles, error=result.error)


def fail_block(job: Job, block: Block, error: str) -> BlockRecord:
    """Mark a block that could not be predicted: its pixels are failed, never background."""
    started = time.perf_counter()
    codes = mask_codes(job.plan.classes)
    labels = np.full(block.core.shape, codes.failed, codes.dtype)
    confidence = np.zeros(block.core.shape, np.uint8) if job.plan.store_confidence else None
    mosaic.write_block(Path(job.store), job.plan, block.core, labels, confidence)
    return _record(job, block, labels, started, tiles=0, error=error)


def score_block(job: ScoreJob, block: Block) -> BlockScore:
    """Counts of the block's mask against the reference labels: every pixel of the core once."""
    started = time.perf_counter()
    core, classes = block.core, len(job.mask.classes)
    counts = no_counts(classes)
    unknown: dict[int, int] = {}
    step = max(1, (1 << 22) // core.width)
    with open_truth(job.truth, classes, *job.mask.grid.shape) as truth:
        for row in range(core.row, core.row_stop, step):
            window = Window(row, core.col, min(step, core.row_stop - row), core.width)
            reference = truth.read(window)
            counts += count(reference.codes, _mask(job, window), classes)
            for value, pixels in reference.unknown.items():
                unknown[value] = unknown.get(value, 0) + pixels
    rows = tuple(tuple(int(n) for n in row) for row in counts)
    return BlockScore(block=block.index, counts=rows, unknown=unknown, seconds=time.perf_counter() - started)


def _mask(job: ScoreJob, window: Window) -> NDArray[np.unsignedinteger]:
    if job.store is not None:
        return mosaic.read(Path(job.store), window)
    codes = mask_codes(len(job.mask.classes))
    return np.full(window.shape, codes.failed, codes.dtype)


def finish_mosaic(job: Job) -> float:
    """Build the pyramid of a mosaic whose blocks are all written; seconds taken."""
    started = time.perf_counter()
    mosaic.build_pyramid(Path(job.store), job.plan)
    return time.perf_counter() - started


def predict_core(plan: Plan, predictor: Predictor, open_: Callable[[], Source], core: Window) -> CoreLabels:
    """Labels of `core`, from the tiles of the plan's lattice in row-major order.

    Memory is one strip of tile rows, whatever the core's height. Tiles without a valid pixel in the core are not
    predicted; pixels that cannot be read are failed, and the rest goes on.
    """
    lattice = plan.lattice
    rows, cols = lattice.touching(core)
    blend = blender(lattice, core, plan.classes, confidence=plan.store_confidence)
    strip = _Strip(plan, open_, cols)
    side = plan.tile
    data = np.zeros((plan.batch, len(plan.read.bands), side, side), plan.read.source.dtype)
    valid = np.zeros((plan.batch, side, side), bool)
    waiting: list[tuple[int, int]] = []
    tiles = 0

    def flush() -> None:
        nonlocal tiles
        if waiting:
            scores = predictor(data[: len(waiting)], valid[: len(waiting)])
            for (row, col), tile_scores in zip(waiting, scores, strict=True):
                blend.add(row, col, tile_scores)
            tiles += len(waiting)
            waiting.clear()

    try:
        for row in rows:
            fresh = strip.advance(row)
            seen = _within(fresh, core)
            if seen is not None:
                blend.expect(seen, strip.valid_at(seen), strip.failed_at(seen))
            for col in cols:
                if strip.fill(col, core, data[len(waiting)], valid[len(waiting)]):
                    waiting.append((row, col))
                if len(waiting) == plan.batch:
                    flush()
        flush()
        blend.finish()
    finally:
        strip.close()
    return CoreLabels(blend.labels, blend.confidence, tiles, strip.error)


class _Strip:
    """The input under one row of tiles, rolled down the image so that every pixel row is read once.

    |  kept from above   |
    |--------------------|  <- end of the last row of tiles
    |  read now          |
    """

    def __init__(self, plan: Plan, open_: Callable[[], Source], cols: list[int]) -> None:
        grid, side = plan.grid, plan.tile
        self._open = open_
        self._source: Source | None = None
        self._height, self._side = grid.height, side
        self._left, right = cols[0], min(cols[-1] + side, grid.width)
        self._width = right - self._left
        self._top = self._stop = 0
        shape = (min(side, grid.height), self._width)
        self._data = np.zeros((len(plan.read.bands), *shape), plan.read.source.dtype)
        self._valid = np.zeros(shape, bool)
        self._failed: NDArray[np.bool_] | None = None
        self.error: str | None = None

    def advance(self, row: int) -> Window:
        """Roll to the tiles that start at image row `row`; the window of rows that were read for it."""
        stop = min(row + self._side, self._height)
        kept = max(0, self._stop - row)
        if kept:
            offset = row - self._top
            for array in (self._data, self._valid, self._failed):
                if array is not None:
                    array[..., :kept, :] = array[..., offset : offset + kept, :].copy()
        fresh = Window(row + kept, self._left, stop - row - kept, self._width)
        self._top, self._stop = row, stop
        self._read(fresh)
        return fresh

    def valid_at(self, window: Window) -> NDArray[np.bool_]:
        """Validity (h, w) of a window inside the strip."""
        return self._valid[self._inside(window)]

    def failed_at(self, window: Window) -> NDArray[np.bool_] | None:
        """Which pixels of a window inside the strip could not be read; None where all could."""
        return None if self._failed is None else self._failed[self._inside(window)]

    def fill(self, col: int, core: Window, data: NDArray[np.generic], valid: NDArray[np.bool_]) -> bool:
        """Copy the tile at image column `col` into `data` (bands, tile, tile) and `valid`; False, and nothing copied,
        where it has no valid pixel in the core. Images smaller than a tile are padded by reflection."""
        tile = Window(self._top, col, self._stop - self._top, min(self._side, self._left + self._width - col))
        in_core = _within(tile, core)
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
        """Close the image."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def _inside(self, window: Window) -> tuple[slice, slice]:
        row, col = window.row - self._top, window.col - self._left
        return slice(row, row + window.height), slice(col, col + window.width)

    def _read(self, window: Window) -> None:
        """Read `window` into the strip. What fails is tried again on a fresh handle, then tile by tile; the pixels of
        the pieces that still fail are noted as failed and as not valid."""
        if self._failed is not None:
            self._failed[self._inside(window)] = False
        try:
            self._put(window, self._twice(window))
        except SourceError:
            for col in range(window.col, window.col_stop, self._side):
                piece = Window(window.row, col, window.height, min(self._side, window.col_stop - col))
                try:
                    self._put(piece, self._twice(piece))
                except SourceError as e:
                    self._lose(piece, e)

    def _twice(self, window: Window) -> Pixels:
        """The pixels of `window`; a damaged handle is replaced once."""
        try:
            return self._once(window)
        except SourceError:
            self.close()
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


_MODELS: dict[tuple[str, ...], Predictor] = {}
_LOADING = threading.Lock()


def _predictor(job: Job) -> Predictor:
    """The job's model, loaded once a worker."""
    plan = job.plan
    key = (plan.model_path, plan.card.digest, job.device, str(plan.batch), plan.precision, str(plan.flips), str(job.threads))
    with _LOADING:
        if key not in _MODELS:
            _MODELS.clear()
            _MODELS[key] = load_model(
                Path(plan.model_path),
                plan.card,
                device=job.device,
                batch=plan.batch,
                precision=plan.precision,
                flips=plan.flips,
                trust_code=job.trust_code,
            )
            if job.threads is not None and plan.card.adapter != "threshold":
                import torch

                torch.set_num_threads(job.threads)
        return _MODELS[key]


def _record(
    job: Job, block: Block, labels: NDArray[np.unsignedinteger], started: float, *, tiles: int, error: str | None
) -> BlockRecord:
    codes, classes = mask_codes(job.plan.classes), job.plan.classes
    pixels = np.bincount(labels.reshape(-1), minlength=codes.no_data + 1)
    failed, no_data = int(pixels[codes.failed]), int(pixels[codes.no_data])
    state = "failed" if failed == labels.size else "empty" if no_data == labels.size else "done"
    return BlockRecord(
        block=block.index,
        state=state,
        tiles=tiles,
        class_px=tuple(int(n) for n in pixels[:classes]),
        failed_px=failed,
        no_data_px=no_data,
        seconds=time.perf_counter() - started,
        error=error,
    )


def _within(window: Window, core: Window) -> Window | None:
    """The part of `window` inside `core`; None where they do not touch."""
    if not window.touches(core):
        return None
    row, col = max(window.row, core.row), max(window.col, core.col)
    return Window(row, col, min(window.row_stop, core.row_stop) - row, min(window.col_stop, core.col_stop) - col)


def cause(error: BaseException) -> str:
    """An error as the ledger keeps it: what it says, and the last frames of where."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-4:])
    return f"{type(error).__name__}: {error}\n{frames}".strip()
