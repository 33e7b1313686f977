"""One image through all its blocks: predicted, published, scored; what the ledger knows as done is not done again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline import mosaic
from pipeline.alignment import TruthSpec
from pipeline.cluster import Workers, run_tasks
from pipeline.config import ModelConfig
from pipeline.errors import GigamaskError, StoreError, TruthError
from pipeline.grid import Block
from pipeline.image import Frozen, ImageSpec
from pipeline.ledger import BlockRecord, BlockScore, Ledger
from pipeline.plan import MaskFacts, Plan
from pipeline.report.contract import ImageResult
from pipeline.survey import Planned
from pipeline.work import Job, ScoreJob, cause, fail_block, finish_mosaic, predict_block, score_block


class Progress(Protocol):
    """Who is told how far the work is."""

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""

    def say(self, text: str) -> None:
        """Something worth a line has happened."""


@dataclass(frozen=True)
class Shop:
    """What the images of one run share."""

    model: ModelConfig
    workers: Workers
    ledger: Ledger
    progress: Progress


class Finished(Frozen):
    """The JSON beside a published mask: enough to rebuild the ledger."""

    plan: Plan
    result: ImageResult
    blocks: tuple[BlockRecord, ...]


class ScoreRecord(Frozen):
    """What is kept of a scored image."""

    counts: list[list[int]]
    """Confusion matrix (K + 1, K + 2)."""
    unknown: dict[int, int]
    """Label values that are no class and not ignored, and their pixels."""


def mask_path(output: Path, plan: Plan) -> Path:
    """Where the mask of a plan is published; the digest names what made it."""
    return output / "masks" / plan.image.id / f"{plan.digest}.zarr"


def process_image(shop: Shop, output: Path, planned: Planned, max_unknown_share: float) -> ImageResult:
    """Segment and score one image, as far as that is not done. A failure becomes its result, never an exception."""
    plan = planned.plan
    try:
        final = mask_path(output, plan)
        result = segment_image(shop, plan, final).model_copy(update={"mask": str(final.relative_to(output))})
        if planned.truth_error is not None:
            return result.model_copy(update={"truth_error": planned.truth_error})
        if planned.truth is None:
            return result
        return _scored(shop, plan, result, final, planned.truth, max_unknown_share)
    except Exception as e:  # noqa: BLE001 - one bad image costs its image: its cause reaches report and exit code
        shop.progress.say(f"failed: {plan.image.uri}: {e}")
        return failed_image(plan.image, str(e) if isinstance(e, GigamaskError) else cause(e))


def failed_image(image: ImageSpec, error: str) -> ImageResult:
    """The result of an image of which nothing could be made."""
    return ImageResult(
        id=image.id, uri=image.uri, group=image.group, strata=image.strata, state="failed", error=error, truth=image.truth
    )


def segment_image(shop: Shop, plan: Plan, final: Path) -> ImageResult:
    """Predict the blocks that the ledger does not know as done, finish the mosaic, publish it at `final`.

    An image of which every block failed is not published; the next run tries it again.
    """
    ledger, grid = shop.ledger, plan.grid
    if final.exists():
        shop.progress.advance(grid.height * grid.width)
        return _published(ledger, plan, final)
    work = final.with_name(f".{final.name}.{plan.digest}.partial")
    records = ledger.blocks(plan.digest, "predict", BlockRecord) if work.exists() else {}
    done = {index for index, record in records.items() if record.state != "failed"}
    if not work.exists():
        work.parent.mkdir(parents=True, exist_ok=True)
        mosaic.create(work, plan)
    shop.progress.advance(sum(plan.blocks[index].core.pixels for index in done))
    job = Job(
        plan=plan, store=str(work), device=shop.model.device, threads=shop.workers.threads, trust_code=shop.model.trust_code
    )
    for record in _predict(job, [block for block in plan.blocks if block.index not in done], shop.workers):
        ledger.put_block(plan.digest, "predict", record.block, record)
        records[record.block] = record
        shop.progress.advance(plan.blocks[record.block].core.pixels)
    every = tuple(records[block.index] for block in plan.blocks)
    result = summarise(plan, every)
    if result.state == "failed":
        return result
    for _, outcome in run_tasks(finish_mosaic, [(f"{plan.digest}-pyramid", (job,))], shop.workers):
        if outcome.error is not None:
            raise outcome.error
    _write(final.with_suffix(".json"), Finished(plan=plan, result=result, blocks=every))
    mosaic.publish(work, final)
    ledger.put_image(plan.image.id, plan.digest, "segment", result)
    return result


def _published(ledger: Ledger, plan: Plan, final: Path) -> ImageResult:
    """The result of a mask that is there already, from the ledger or else from the JSON beside it."""
    known = ledger.image(plan.image.id, plan.digest, "segment", ImageResult)
    if known is None:
        path = final.with_suffix(".json")
        try:
            finished = Finished.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as e:
            raise StoreError(
                f"{final} exists, and neither the ledger nor {path.name} knows what it is ({e}): "
                "it may be another program's. Move it away, or choose another output"
            ) from e
        if finished.plan.digest != plan.digest:
            raise StoreError(
                f"{final} was made by another plan ({finished.plan.digest}, this one is {plan.digest}): image, model, tiling or "
                "resolution differ. Move it away, or choose another output"
            )
        known = finished.result
        ledger.put_image(plan.image.id, plan.digest, "segment", known)
    return known.model_copy(update={"reused": True})


def _predict(job: Job, todo: list[Block], workers: Workers) -> Iterable[BlockRecord]:
    """The records of `todo` as they finish; a block that cannot be predicted is marked failed in the mosaic."""
    blocks = {f"{job.plan.digest}-{block.index}": block for block in todo}
    tasks = [(key, (job, block)) for key, block in blocks.items()]
    for key, outcome in run_tasks(predict_block, tasks, workers):
        record = outcome.result
        if record is None:
            assert outcome.error is not None
            record = fail_block(job, blocks[key], cause(outcome.error))
        yield record.model_copy(update={"attempt": outcome.attempts})


def score_mask(
    store: Path | None, mask: MaskFacts, blocks: Iterable[Block], truth: TruthSpec, workers: Workers, name: str
) -> tuple[list[BlockScore], BaseException | None]:
    """(scores of the blocks, the first error). `store` None: everything failed. `name` makes the tasks' keys unique."""
    job = ScoreJob(store=None if store is None else str(store), mask=mask, truth=truth)
    scores: list[BlockScore] = []
    error: BaseException | None = None
    for _, outcome in run_tasks(score_block, [(f"{name}-{b.index}", (job, b)) for b in blocks], workers):
        if outcome.result is not None:
            scores.append(outcome.result)
        error = error or outcome.error
    return scores, error


def sum_scores(scores: Iterable[BlockScore]) -> ScoreRecord:
    """The counts of an image: the sum of its blocks'."""
    counts = np.zeros((), np.int64)
    unknown: dict[int, int] = {}
    for score in scores:
        counts = counts + np.array(score.counts, np.int64)
        for value, pixels in score.unknown.items():
            unknown[value] = unknown.get(value, 0) + pixels
    return ScoreRecord(counts=counts.tolist(), unknown=dict(sorted(unknown.items())))


def unknown_problem(record: ScoreRecord, max_unknown_share: float) -> str | None:
    """What is wrong where more of the labels than allowed are no class; None where all is well."""
    labelled = int(np.array(record.counts)[:-1].sum())
    unknown = sum(record.unknown.values())
    if not unknown or unknown <= max_unknown_share * (labelled + unknown):
        return None
    values = ", ".join(f"{value} ({pixels:,} px)" for value, pixels in record.unknown.items())
    return (
        f"{unknown / (labelled + unknown):.1%} of the labelled pixels hold values that are no class: {values}. "
        f"More than {max_unknown_share:.1%} are not scored: name the values under truth.classes or truth.ignore, "
        "or raise truth.max_unknown_share"
    )


def _scored(shop: Shop, plan: Plan, result: ImageResult, store: Path, truth: TruthSpec, max_unknown_share: float) -> ImageResult:
    """`result` with its counts, from the ledger or from the mask. Of a failed image, which the next run tries again, every
    labelled pixel is a miss, and the ledger keeps nothing."""
    task = f"score-{truth.digest[:16]}"
    if result.state == "failed":
        scores, error = score_mask(None, plan.mask, plan.blocks, truth, shop.workers, f"{plan.digest}-{truth.digest[:8]}-failed")
        if error is not None:
            return result.model_copy(update={"truth_error": str(error)})
        return result.model_copy(update={"counts": sum_scores(scores).counts})
    record = shop.ledger.image(plan.image.id, plan.digest, task, ScoreRecord)
    if record is None:
        known = shop.ledger.blocks(plan.digest, task, BlockScore)
        todo = [block for block in plan.blocks if block.index not in known]
        scores, error = score_mask(store, plan.mask, todo, truth, shop.workers, f"{plan.digest}-{truth.digest[:8]}")
        for score in scores:
            shop.ledger.put_block(plan.digest, task, score.block, score)
        if error is not None:
            return result.model_copy(update={"truth_error": str(error) if isinstance(error, TruthError) else cause(error)})
        record = sum_scores([*known.values(), *scores])
        shop.ledger.put_image(plan.image.id, plan.digest, task, record)
    problem = unknown_problem(record, max_unknown_share)
    counts = None if problem else record.counts
    return result.model_copy(update={"counts": counts, "unknown_labels": record.unknown, "truth_error": problem})


def summarise(plan: Plan, records: tuple[BlockRecord, ...]) -> ImageResult:
    """What became of an image, from the records of all its blocks."""
    states = {record.state for record in records}
    failed_px = sum(record.failed_px for record in records)
    area = None
    if (size := plan.read.source.pixel_size_m) is not None:
        area = size[0] * plan.grid.scale_row * size[1] * plan.grid.scale_col
    return ImageResult(
        id=plan.image.id,
        uri=plan.image.uri,
        group=plan.image.group,
        strata=plan.image.strata,
        state="failed" if states == {"failed"} else "partial" if failed_px else "empty" if states == {"empty"} else "complete",
        error=next((record.error for record in records if record.error), None),
        digest=plan.digest,
        height=plan.grid.height,
        width=plan.grid.width,
        pixel_area_m2=area,
        tiles=sum(record.tiles for record in records),
        blocks=len(records),
        failed_blocks=sum(record.state == "failed" for record in records),
        redundancy=plan.redundancy,
        seconds=sum(record.seconds for record in records),
        class_px=np.sum([record.class_px for record in records], axis=0).tolist(),
        failed_px=failed_px,
        no_data_px=sum(record.no_data_px for record in records),
        truth=plan.image.truth,
    )


def _write(path: Path, record: Frozen) -> None:
    """Write `record` as JSON in one step: readers see the old file or the new one."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    os.replace(draft, path)  # noqa: PTH105 - the atomic call by its name
