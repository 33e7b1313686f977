"""Images of one block in one call: laid out, predicted, finished and scored, where round trips would cost more."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import mosaic
from pipeline.alignment import TruthSpec
from pipeline.errors import RunEndedError, explain
from pipeline.image import Frozen
from pipeline.measures import Measures, edge_counts
from pipeline.plan import Plan, read_as
from pipeline.records import BlockRecord, ImageScore, ShardRecord, sum_scores
from pipeline.report.contract import DRAWN, ImageResult
from pipeline.work import Job, ScoreJob, commit_block, predict_block, score_block

SMALL_PX = 1 << 20
"""Images of at most so many px may be worked on two at a time: what the second one needs does not show in a worker's memory."""

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="image")
"""Kept: GDAL loads its coordinate systems anew in each thread."""


class WholeJob(Frozen):
    """An image that has no mask yet, finished or not."""

    job: Job
    """Its store is where the mask will be published: the call works in a folder of its own beside that."""
    truth: TruthSpec | None = None
    """Labels to score it with."""
    measures: Measures = Measures()
    """What is measured beside the counts."""
    max_failed_fraction: float = 1.0
    """Largest share of its pixels that may have failed."""


class Whole(Frozen):
    """Result of segmenting one small image in a single call, for the driver to publish. Fields are None for stages that must be
    retried block by block."""

    result: ImageResult | None = None
    """None if there is no mask."""
    store: str | None = None
    """Folder of the finished mosaic, which no other call writes to; None if there is none."""
    blocks: tuple[BlockRecord, ...] = ()
    coarse: tuple[ShardRecord, ...] = ()
    """Files of the levels that no block's writer wrote."""
    score: ImageScore | None = None
    """None where it was not scored."""
    error: str | None = None
    """Why something is missing."""
    seconds: float = 0.0
    """Time on the worker."""


def do_whole(images: tuple[WholeJob, ...]) -> tuple[Whole, ...]:
    """Take each image from nothing to its scored mask, which the driver then publishes; the failure of one is its own.

    Small ones two at a time: while one is predicted, the other is opened, read or written.
    """
    if len(images) == 1 or any(image.job.plan.grid.height * image.job.plan.grid.width > SMALL_PX for image in images):
        return tuple(_one(image) for image in images)
    running = [_THREADS.submit(_one, image) for image in images]
    try:
        return tuple(one.result() for one in running)
    finally:
        for one in running:
            one.cancel()
        wait(running)


def _one(image: WholeJob) -> Whole:
    started = time.perf_counter()
    try:
        done = _finished(image)
    except RunEndedError:
        raise
    except Exception as e:  # noqa: BLE001 - one bad image costs its image, which is then tried by itself
        done = Whole(error=explain(e))
    return done.model_copy(update={"seconds": time.perf_counter() - started})


def _finished(image: WholeJob) -> Whole:
    final, plan = Path(image.job.store), image.job.plan
    work = mosaic.draft_of(final)
    with mosaic.writing(work):
        work.parent.mkdir(parents=True, exist_ok=True)
    mosaic.create(work, plan)
    try:
        job = image.job.model_copy(update={"store": str(work)})
        records = tuple(commit_block(job, predict_block(job, block)) for block in plan.blocks)
        result = summarise(plan, records, image.max_failed_fraction)
        if result.state == "failed":
            mosaic.remove(work)
            return Whole(error=result.error)
        coarse = mosaic.finish_pyramid(work, plan)
        score, error = _score(image, job)
    except BaseException:
        mosaic.remove(work)
        raise
    return Whole(result=result, store=str(work), blocks=records, coarse=coarse, score=score, error=error)


def _score(image: WholeJob, job: Job) -> tuple[ImageScore | None, str | None]:
    """(the score of the mask that is about to be published, why there is none)."""
    if image.truth is None:
        return None, None
    scoring = ScoreJob(store=job.store, mask=job.plan.mask, truth=image.truth, measures=image.measures)
    try:
        return sum_scores(score_block(scoring, block) for block in job.plan.blocks), None
    except RunEndedError:
        raise
    except Exception as e:  # noqa: BLE001 - the mask is good, and its labels are looked at again by themselves
        return None, explain(e)


def summarise(plan: Plan, records: tuple[BlockRecord, ...], max_failed_fraction: float = 1.0) -> ImageResult:
    """What became of an image, from the records of all its blocks; failed where more of its valid pixels failed than allowed."""
    states = {record.state for record in records}
    failed_px, no_data_px = (sum(px) for px in zip(*((r.failed_px, r.no_data_px) for r in records), strict=True))
    error = next((record.error for record in records if record.error), None)
    share = failed_px / max(1, plan.grid.height * plan.grid.width - no_data_px)
    lost = "failed" in states and "done" not in states
    refused = not lost and share > max_failed_fraction
    if refused:
        error = (
            f"{share:.1%} of its pixels failed, more than faults.max_failed_fraction {max_failed_fraction:.1%} allows: {error}"
        )
    compared = [record.edge_disagreement for record in records if record.edge_disagreement is not None]
    samples = [record.band_px for record in records if record.band_px is not None]
    confident = [record.confidence_px for record in records if record.confidence_px is not None]
    computed = [record.device_seconds for record in records if record.device_seconds is not None]
    return ImageResult(
        id=plan.image.id,
        uri=plan.image.uri,
        **told_of(plan),
        state="failed" if lost or refused else "partial" if failed_px else "empty" if states == {"empty"} else "complete",
        error=error,
        digest=plan.digest,
        height=plan.grid.height,
        width=plan.grid.width,
        tiles=sum(record.tiles for record in records),
        blocks=len(records),
        failed_blocks=sum(record.state == "failed" for record in records),
        redundancy=plan.redundancy,
        seconds=sum(record.seconds for record in records),
        retries=sum(record.attempt - 1 for record in records),
        deaths=sum(record.deaths for record in records),
        device_seconds=sum(computed) if computed else None,
        load_seconds=max((record.load_seconds for record in records), default=0.0),
        class_px=np.sum([record.class_px for record in records], axis=0).tolist(),
        failed_px=failed_px,
        no_data_px=no_data_px,
        edge_disagreement=edge_counts(plan.tile, plan.overlap, np.sum(compared, axis=0)) if compared else None,
        band_px=np.sum(samples, axis=0, dtype=np.int64).tolist() if samples else None,
        confidence_px=np.sum(confident, axis=0, dtype=np.int64).tolist() if confident else None,
    )


def told_of(plan: Plan) -> dict[str, Any]:
    """What a result says of its image that the mask does not depend on, by the field of ImageResult: it may change from run to
    run, as manifests and configurations do, and the mask stays."""
    size = plan.grid.pixel_size_m
    drawn = None if plan.area is None else f"{DRAWN}{plan.image.area}"
    return {
        "group": plan.image.group,
        "strata": plan.image.strata,
        "truth": plan.image.truth,
        "pixel_area_m2": None if size is None else size[0] * size[1],
        "read_as": read_as(plan),
        "looked_at": drawn if plan.tissue is None else plan.tissue.method,
    }
