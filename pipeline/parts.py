"""A block that workers died on, in four parts: what kills a worker costs a quarter, and a quarter takes less memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex

import numpy as np
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.errors import StoreError
from pipeline.grid import Block, Window
from pipeline.image import Frozen
from pipeline.measures import pairs
from pipeline.records import BlockRecord
from pipeline.sources import check_unchanged, open_source
from pipeline.work import CoreLabels, Job, no_labels, predict_core, predictor_of, write_core


class Part(Frozen):
    """One part of a block, and what became of it."""

    row: int
    col: int
    height: int
    width: int
    """Its window of the image."""
    tiles: int = 0
    edge_disagreement: tuple[tuple[int, int], ...] | None = None
    """As in the record of a block, as are the next two."""
    band_px: tuple[tuple[int, ...], ...] | None = None
    device_seconds: float | None = None
    aside: str | None = None
    """File with its labels, beside the mosaic; None where it was not predicted."""
    error: str | None = None
    """Why some of it, or without `aside` all of it, is failed."""

    @property
    def window(self) -> Window:
        """Its window of the image."""
        return Window(self.row, self.col, self.height, self.width)


def split(block: Block) -> list[Part]:
    """The quarters of a block's core; fewer where a side is a single pixel."""
    core = block.core
    rows, cols = ({start, start + length // 2} for start, length in ((core.row, core.height), (core.col, core.width)))
    return [
        Part(row=row, col=col, height=bottom - row, width=right - col)
        for row, bottom in _spans(rows, core.row_stop)
        for col, right in _spans(cols, core.col_stop)
    ]


def _spans(starts: set[int], stop: int) -> list[tuple[int, int]]:
    ordered = sorted(starts)
    return list(zip(ordered, [*ordered[1:], stop], strict=True))


def predict_part(job: Job, part: Part) -> Part:
    """Predict the tiles that contribute to a part, and keep its labels in a file of their own until `join_parts` takes them.

    By the law of blocks, a part's labels are those that the whole block would have there.
    """
    plan = job.plan
    result = predict_core(plan, predictor_of(job), partial(open_source, plan.read), part.window)
    check_unchanged(plan.read.source)
    aside = _folder(Path(job.store)) / f"{part.row}-{part.col}-{part.height}-{part.width}.{token_hex(8)}.npz"
    with mosaic.writing(aside):
        aside.parent.mkdir(exist_ok=True)
        confidence = np.zeros(0, np.uint8) if result.confidence is None else result.confidence
        with aside.open("wb") as file:
            np.savez(file, labels=result.labels, confidence=confidence)
    return part.model_copy(
        update={
            "aside": aside.name,
            "tiles": result.tiles,
            "error": result.error,
            "edge_disagreement": None if result.disagreement is None else pairs(result.disagreement),
            "band_px": None if result.samples is None else tuple(map(tuple, result.samples.tolist())),
            "device_seconds": result.device_seconds,
        }
    )


def join_parts(job: Job, block: Block, parts: tuple[Part, ...]) -> BlockRecord:
    """Write the block's shard from its parts; those that were not predicted are failed, as their `error` says."""
    started = time.perf_counter()
    whole = no_labels(job.plan, block.core, "")
    for part in parts:
        if part.aside is None:
            continue
        inside = Window(part.row - block.core.row, part.col - block.core.col, part.height, part.width).slices
        labels, confidence = _kept(job, part.aside)
        whole.labels[inside] = labels
        if whole.confidence is not None:
            whole.confidence[inside] = confidence
    error = next((part.error for part in parts if part.error), None)
    result = CoreLabels(
        whole.labels,
        whole.confidence,
        sum(part.tiles for part in parts),
        error,
        _sum([part.edge_disagreement for part in parts if part.edge_disagreement is not None]),
        _sum([part.band_px for part in parts if part.band_px is not None]),
        sum(known) if (known := [part.device_seconds for part in parts if part.device_seconds is not None]) else None,
    )
    record = write_core(job, block, result, started)
    sweep(Path(job.store))
    return record


def _kept(job: Job, aside: str) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    """(labels, confidence) that a part has kept."""
    path = _folder(Path(job.store)) / aside
    try:
        with np.load(path) as kept:
            return kept["labels"], kept["confidence"]
    except OSError as e:
        raise StoreError(
            f"{path} was written by a worker and cannot be read ({e}): publishing would leave a hole. {mosaic.SHARED_DISK}"
        ) from e


def sweep(store: Path) -> None:
    """Throw away what parts have left beside the mosaic at `store`."""
    shutil.rmtree(_folder(store), ignore_errors=True)


def _sum(counts: Sequence[tuple[tuple[int, ...], ...]]) -> NDArray[np.int64] | None:
    return np.sum(counts, axis=0, dtype=np.int64) if counts else None


def _folder(store: Path) -> Path:
    return store.with_name(f"{store.name}.parts")
