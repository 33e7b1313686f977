"""What is kept of work that is done: of blocks, shards and scores. Records are small and replace earlier ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.image import Frozen
from pipeline.measures import Measured, Measures, sum_measured

PREDICT, SEGMENT = "predict", "segment"
"""What the ledger calls the prediction of a block, and the finished mask of an image."""


CONFIDENCE_STEPS = 64
"""Steps of the confidence, from 0 to 1, by which pixels are counted in a block."""


class ShardRecord(Frozen):
    """A file of a mosaic, as it was written."""

    path: str
    """Inside the mosaic, such as `0/mask/c/3/1`."""
    size: int
    """In bytes."""
    crc32c: int
    """CRC-32C of its bytes."""


def block_state(pixels: int, failed: int, no_data: int) -> Literal["done", "empty", "failed"]:
    """What became of a block of so many pixels: `empty` where nothing was to be segmented, `failed` where nothing could be."""
    return "empty" if no_data == pixels else "failed" if failed + no_data == pixels else "done"


class BlockRecord(Frozen):
    """What is kept of a predicted block."""

    block: int
    """Its index."""
    state: Literal["done", "empty", "failed"]
    """empty: no valid pixel in it; failed: none of it could be predicted."""
    tiles: int = 0
    """Tiles that went through the model."""
    class_px: tuple[int, ...] = ()
    """Pixels by class code."""
    failed_px: int = 0
    no_data_px: int = 0
    edge_disagreement: tuple[tuple[int, int], ...] | None = None
    """By distance to the border of a tile (`edges.Disagreement`): (differing, equal) pixels of overlaps that were compared.
    None where tiles were not compared."""
    band_px: tuple[tuple[int, ...], ...] | None = None
    """By band: samples in the bins of `statistics.samples`, of every fourth row and column. None where nothing was read."""
    confidence_px: tuple[int, ...] | None = None
    """Pixels that have a class by confidence, in CONFIDENCE_STEPS equal steps from 0 to 1. None where it is not stored."""
    shards: tuple[ShardRecord, ...] = ()
    """The files that were written; a shard that holds nothing but fill is no file."""
    seconds: float = 0.0
    """Time on the worker."""
    device_seconds: float | None = None
    """Of these, how long a GPU computed for it; None without one."""
    load_seconds: float = 0.0
    """Of these, until the model was loaded; about 0 for all but a worker's first block."""
    attempt: int = 1
    deaths: int = 0
    """Attempts that ended with the death of their worker."""
    error: str | None = None
    """Cause and traceback, of a block or of a part of it."""


class BlockScore(Frozen):
    """What is kept of a scored block."""

    block: int
    counts: tuple[tuple[int, ...], ...]
    """Confusion matrix (K + 1, K + 2)."""
    unknown: dict[int, int] = Field(default_factory=dict)
    """Label values that are no class and not ignored, and their pixels."""
    measures: Measures = Measures()
    """What was to be measured beside the counts."""
    measured: Measured = Measured()
    """What was."""
    seconds: float = 0.0


class ImageScore(Frozen):
    """What is kept of a scored image."""

    counts: list[list[int]]
    """Confusion matrix (K + 1, K + 2)."""
    unknown: dict[int, int] = Field(default_factory=dict)
    """Label values that are no class and not ignored, and their pixels."""
    measures: Measures = Measures()
    """What was to be measured beside the counts."""
    measured: Measured = Measured()
    """What was."""


def sum_scores(scores: Iterable[BlockScore]) -> ImageScore:
    """The score of an image: the sum of its blocks'."""
    every = list(scores)
    counts = np.zeros((), np.int64)
    unknown: dict[int, int] = {}
    for score in every:
        counts = counts + np.array(score.counts, np.int64)
        for value, pixels in score.unknown.items():
            unknown[value] = unknown.get(value, 0) + pixels
    return ImageScore(
        counts=counts.tolist(),
        unknown=dict(sorted(unknown.items())),
        measures=every[0].measures if every else Measures(),
        measured=sum_measured(score.measured for score in every),
    )


def score_task(truth_digest: str, measures: Measures) -> str:
    """What the ledger calls the scoring of a mask by the labels of that digest, as far as `measures` go."""
    return f"score-{truth_digest[:16]}-{measures.digest[:8]}"
