"""What a worker does to one block: where reading, predicting, blending and writing meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.areas import open_area
from pipeline.codes import mask_codes
from pipeline.confusion import count, no_counts
from pipeline.edges import Disagreement, Histogram
from pipeline.errors import GigamaskError
from pipeline.grid import Block, Lattice, Window
from pipeline.image import Frozen
from pipeline.measures import Measures, Tally, pairs
from pipeline.models import load_model
from pipeline.models.batches import not_finite
from pipeline.models.predictor import TileGroup
from pipeline.plan import Plan
from pipeline.records import CONFIDENCE_STEPS, BlockRecord, BlockScore, ShardRecord, block_state
from pipeline.sources import Source, check_unchanged, open_source
from pipeline.statistics import samples
from pipeline.statistics.calibration import LEVELS
from pipeline.strip import ReadAhead
from pipeline.truth import open_truth

if TYPE_CHECKING:
    from pipeline.models.predictor import Predictor


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
    measures: Measures = Measures()
    """What is measured beside the counts."""


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
    disagreement: Histogram | None = None
    """What `edges.Disagreement` counts; None where tiles were not compared."""
    samples: samples.Histogram | None = None
    """What the model was shown of the core, by band (`statistics.samples`); None where nothing was read."""
    device_seconds: float | None = None
    """How long a GPU computed; None without one."""
    lost: int = 0
    """Tiles whose outputs were not finite, so that all pixels that they contribute to are failed."""


class BlockDraft(Frozen):
    """A predicted block whose files are drafts: they count once the driver has committed them."""

    record: BlockRecord
    token: str
    """In the names of the drafts."""


def predict_block(job: Job, block: Block) -> BlockDraft:
    """Predict every tile that contributes to the block's core, blend them, write the block's shards whole, as drafts."""
    started = time.perf_counter()
    plan = job.plan
    predictor = predictor_of(job)
    load_seconds = time.perf_counter() - started
    result = predict_core(plan, predictor, partial(open_source, plan.read), block.core)
    check_unchanged(plan.read.source)
    shards, token = mosaic.draft_block(Path(job.store), plan, block.core, result.labels, result.confidence)
    record = record_of(job, block, result, shards, started)
    return BlockDraft(record=record.model_copy(update={"load_seconds": load_seconds}), token=token)


def commit_block(job: Job, draft: BlockDraft) -> BlockRecord:
    """Make a predicted block part of the mosaic, and return its record. StoreError if its files are not in this mosaic.

    Only the driver does this, with the attempt that it accepts: a worker that was given up may go on writing drafts, and
    changes nothing."""
    core = job.plan.blocks[draft.record.block].core
    mosaic.commit_block(Path(job.store), job.plan, core, draft.record.shards, draft.token)
    return draft.record


def empty_block(plan: Plan, block: Block) -> BlockRecord:
    """The record of a block of which nothing is looked at: no model and no worker is needed, and its shard is no file."""
    return BlockRecord(block=block.index, state="empty", class_px=(0,) * plan.classes, no_data_px=block.core.pixels)


def fail_block(job: Job, block: Block, error: str) -> BlockRecord:
    """Mark a block that could not be predicted: its pixels are failed, never background."""
    return write_core(job, block, no_labels(job.plan, block.core, error), time.perf_counter())


def no_labels(plan: Plan, core: Window, error: str) -> CoreLabels:
    """What a core holds that could not be predicted: failed is what was to be, all else no data."""
    codes = mask_codes(plan.classes)
    confidence = np.zeros(core.shape, np.uint8) if plan.store_confidence else None
    labels = np.full(core.shape, codes.failed, codes.dtype)
    with suppress(GigamaskError), open_area(plan) or nullcontext() as area:
        if area is not None:
            labels[~area.read(core)] = codes.no_data
    return CoreLabels(labels, confidence, 0, error)


def score_block(job: ScoreJob, block: Block) -> BlockScore:
    """Counts of the block's mask against the reference labels, and what else is measured: every pixel of the core once.

    Mask and labels are read a few pixels beyond the core, where borders between classes are measured:

        |hhhh|cccccccccccc|hhhh|
    """
    started = time.perf_counter()
    core, classes, shape = block.core, len(job.mask.classes), job.mask.grid.shape
    counts, tally = no_counts(classes), Tally(job.measures, classes, shape)
    unknown: dict[int, int] = {}
    step = max(1, (1 << 22) // core.width)
    around = _around(core, tally.halo, shape)
    mask, confidence = _mask(job, around), _confidence(job, core)
    with open_truth(job.truth, classes, *shape) as truth:
        for top in range(core.row, core.row_stop, step):
            part = Window(top, core.col, min(step, core.row_stop - top), core.width)
            wide = _around(part, tally.halo, shape)
            reference = truth.read(wide)
            given = mask[wide.row - around.row : wide.row_stop - around.row]
            inner = part.inside(wide)
            counts += count(reference.codes[inner], given[inner], classes)
            tally.add(part, reference.codes, given, None if confidence is None else confidence[part.inside(core)])
            strange = truth.read(part).unknown if reference.unknown and wide != part else reference.unknown
            for value, pixels in strange.items():
                unknown[value] = unknown.get(value, 0) + pixels
    return BlockScore(
        block=block.index,
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        unknown=unknown,
        measures=job.measures,
        measured=tally.measured,
        seconds=time.perf_counter() - started,
    )


def _around(window: Window, halo: int, shape: tuple[int, int]) -> Window:
    """`window` and `halo` px on every side, as far as the image goes."""
    return Window(window.row - halo, window.col - halo, window.height + 2 * halo, window.width + 2 * halo).clip(*shape)


def _confidence(job: ScoreJob, window: Window) -> NDArray[np.uint8] | None:
    if job.store is None or not job.measures.confidence:
        return None
    return mosaic.read(Path(job.store), window, name="confidence").astype(np.uint8, copy=False)


def _mask(job: ScoreJob, window: Window) -> NDArray[np.unsignedinteger]:
    if job.store is not None:
        return mosaic.read(Path(job.store), window)
    codes = mask_codes(len(job.mask.classes))
    return np.full(window.shape, codes.failed, codes.dtype)


def build_pyramid(job: Job) -> tuple[tuple[ShardRecord, ...], str] | None:
    """Compute the coarser levels of a mosaic whose blocks are all committed, as a draft: (its files, its folder) for
    `mosaic.commit_pyramid`; None if there are none that blocks did not write."""
    built = mosaic.build_pyramid(Path(job.store), job.plan)
    return None if built is None else (built[0], str(built[1]))


def predict_core(plan: Plan, predictor: Predictor, open_: Callable[[], Source], core: Window) -> CoreLabels:
    """Labels of `core`, from the tiles of the plan's lattice in row-major order.

    Memory is one strip of tile rows, whatever the core's height. Tiles without a valid pixel in the core are not
    predicted; pixels that cannot be read are failed, as are those of a tile with outputs that are not finite, and the rest
    goes on. While tiles are predicted, the next are read
    in a thread of their own, and the last are blended in this one. Some neighbouring tiles are compared.
    """
    blend = predictor.blender(plan.lattice, core, confidence=plan.store_confidence)
    disagreement = Disagreement(plan.lattice, core, plan.classes, predictor.winners)
    bins = samples.bins_of(plan.card)
    shown = np.zeros((len(bins), samples.BINS), np.int64)

    def look(seen: Window, data: NDArray[np.generic], valid: NDArray[np.bool_]) -> None:
        np.add(shown, samples.count_samples(data, valid, (seen.row, seen.col), bins), out=shown)

    predictor.device_seconds()  # what it computed for others does not count
    tiles = 0
    with ReadAhead(plan, predictor, open_, core, blend.expect, look) as ahead:
        for group, outputs in predictor.stream(ahead):
            for place, own in zip(group.places, outputs, strict=False):
                blend.add(*place, own)
                disagreement.add(place, own, blend.labels, blend.final)
            tiles += len(group.places)
            ahead.release(group)
    blend.finish()
    why = [ahead.error, _lost_tiles(plan, blend.lost, tiles) if blend.lost else None]
    return CoreLabels(
        labels=blend.labels,
        confidence=blend.confidence,
        tiles=tiles,
        error="; ".join(reason for reason in why if reason is not None) or None,
        lost=len(blend.lost),
        disagreement=disagreement.counts,
        samples=shown,
        device_seconds=predictor.device_seconds(),
    )


def _lost_tiles(plan: Plan, lost: list[tuple[int, int]], tiles: int) -> str:
    """Say which of so many tiles were lost, and why."""
    first = Window(*lost[0], plan.tile, plan.tile).clip(*plan.grid.shape)
    where = f"rows {first.row}-{first.row_stop - 1}, columns {first.col}-{first.col_stop - 1}"
    count = f"{len(lost)} of {tiles} tile{'s' * (tiles != 1)}"
    return str(not_finite(plan.card, f"{count}, the first at {where}: all pixels that such a tile contributes to are failed"))


_MODELS: dict[tuple[str, ...], Predictor] = {}
_LOADING = threading.Lock()


def predictor_of(job: Job) -> Predictor:
    """The job's model, loaded once a worker."""
    plan = job.plan
    key = (
        plan.model_path,
        plan.card.digest,
        job.device,
        str(plan.batch),
        plan.precision,
        str(plan.flips),
        str(plan.compiled),
        str(job.threads),
    )
    with _LOADING:
        if key not in _MODELS:
            _MODELS.clear()
            predictor = load_model(
                Path(plan.model_path),
                plan.card,
                device=job.device,
                batch=plan.batch,
                precision=plan.precision,
                flips=plan.flips,
                compiled=plan.compiled,
                trust_code=job.trust_code,
            )
            if job.threads is not None and plan.card.adapter != "threshold":
                import torch

                torch.set_num_threads(job.threads)
            _warm_up(plan, predictor)
            _MODELS[key] = predictor
        return _MODELS[key]


def _warm_up(plan: Plan, predictor: Predictor) -> None:
    """Send an empty tile the whole way: what is fetched or compiled at the first use is then part of loading the model."""
    side = plan.tile
    data = np.zeros((predictor.group, len(plan.read.bands), side, side), plan.read.source.dtype)
    group = TileGroup(data, np.zeros((predictor.group, side, side), bool), [(0, 0)])
    wide = side * min(2, plan.lattice.tiles)  # one tile and several are blended by different loops
    cut = Window(0, 0, side, max(1, side - 1))  # as blocks cut tiles at their borders
    blend = predictor.blender(Lattice(side, wide, side, 0, plan.blend), cut, confidence=plan.store_confidence)
    for tiles, outputs in predictor.stream([group]):
        blend.add(*tiles.places[0], outputs[0])
        predictor.winners(outputs[0], (0, 1), (0, 1))()
    blend.finish()


def write_core(job: Job, block: Block, core: CoreLabels, started: float) -> BlockRecord:
    """Write the labels of a block into the mosaic, in the driver itself, and return the block's record."""
    shards = mosaic.write_block(Path(job.store), job.plan, block.core, core.labels, core.confidence)
    return record_of(job, block, core, shards, started)


def record_of(job: Job, block: Block, core: CoreLabels, shards: tuple[ShardRecord, ...], started: float) -> BlockRecord:
    """The record of a block with these labels in these files."""
    from pipeline import kernels

    labels, codes, classes = core.labels, mask_codes(job.plan.classes), job.plan.classes
    pixels = np.zeros(codes.no_data + 1, np.int64)
    kernels.tally(labels.reshape(-1), pixels)
    failed, no_data = int(pixels[codes.failed]), int(pixels[codes.no_data])
    return BlockRecord(
        block=block.index,
        state=block_state(labels.size, failed, no_data),
        tiles=core.tiles,
        class_px=tuple(int(n) for n in pixels[:classes]),
        failed_px=failed,
        no_data_px=no_data,
        edge_disagreement=None if core.disagreement is None else pairs(core.disagreement),
        band_px=None if core.samples is None else tuple(map(tuple, core.samples.tolist())),
        confidence_px=None if core.confidence is None else _confidence_px(core.confidence, labels < codes.failed),
        device_seconds=core.device_seconds,
        shards=shards,
        seconds=time.perf_counter() - started,
        error=core.error,
    )


def _confidence_px(confidence: NDArray[np.uint8], answered: NDArray[np.bool_]) -> tuple[int, ...]:
    """Pixels that have a class by their confidence, in 64 steps."""
    from pipeline import kernels

    levels = np.zeros(LEVELS, np.int64)
    kernels.tally((confidence if answered.all() else confidence[answered]).reshape(-1), levels)
    return tuple(levels.reshape(CONFIDENCE_STEPS, -1).sum(1).tolist())
