"""Images through all their blocks: predicted, published, scored; what the ledger knows as done is not done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline import mosaic, parts
from pipeline.bulk import process_untouched
from pipeline.cluster import Outcome, run_tasks
from pipeline.errors import ChangedError, RunEndedError, StoreError, cause, explain
from pipeline.finished import Finished, keep, publish, read_record
from pipeline.grid import Block
from pipeline.image import ImageSpec
from pipeline.plan import Plan
from pipeline.records import PREDICT, SEGMENT, BlockRecord, ShardRecord
from pipeline.report.contract import ImageResult
from pipeline.scoring import missed, score_image
from pipeline.shop import Shop
from pipeline.survey import Planned, Refused, work_path
from pipeline.whole import summarise, told_of
from pipeline.work import BlockDraft, Job, build_pyramid, commit_block, empty_block, fail_block, predict_block

PORTION = 250
"""Most images of one block that are worked through together."""


def portions(planned: list[Planned]) -> list[list[Planned]]:
    """`planned` in their order, in parts that are worked through together: images of one block share, others stand alone."""
    shares: list[list[Planned]] = []
    open_share: list[Planned] = []
    for image in planned:
        if len(image.plan.blocks) > 1:
            shares.append([image])
            continue
        if not open_share or len(open_share) == PORTION:
            open_share = []
            shares.append(open_share)
        open_share.append(image)
    return shares


def process_images(shop: Shop, planned: list[Planned]) -> list[ImageResult]:
    """Segment and score images, as far as that is not done. A failure becomes its image's result, never an exception; only
    what concerns the whole run ends it (RunEndedError).

    Those of one block of which there is nothing yet are done whole, several in a call. What such a call leaves undone goes
    the way of all others, image by image.
    """
    results = process_untouched(shop, planned)
    return [noted(p, results.get(p.plan.digest) or process_image(shop, p)) for p in planned]


def noted(planned: Planned, result: ImageResult) -> ImageResult:
    """`result` with what a reader should know of its labels."""
    return result if planned.truth is None else result.model_copy(update={"label_notes": planned.truth.notes})


def process_image(shop: Shop, planned: Planned) -> ImageResult:
    """Segment and score one image, as far as that is not done. A failure becomes its result, never an exception."""
    plan, truth = planned.plan, planned.truth
    try:
        final = shop.mask(plan)
        result = segment_image(shop, plan, final).model_copy(update={"mask": str(final.relative_to(shop.config.output))})
        if planned.truth_error is not None or truth is None:
            return result.model_copy(update={"truth_error": planned.truth_error})
        return score_image(shop, plan, result, final, truth)
    except RunEndedError:
        raise  # every image would fail: the run ends, and what is done is kept
    except Exception as e:  # noqa: BLE001 - one bad image costs its image: its cause reaches report and exit code
        shop.progress.say(f"failed: {plan.image.uri}: {e}")
        result = failed_image(plan.image, explain(e)).model_copy(update={"truth_error": planned.truth_error})
        return result if truth is None else missed(shop, result, plan.mask, truth, plan)


def refused_image(shop: Shop, refused: Refused) -> ImageResult:
    """The result of an image that could not even be planned: every labelled pixel is a miss."""
    result = failed_image(refused.image, refused.error)
    return result if refused.mask is None or refused.truth is None else missed(shop, result, refused.mask, refused.truth)


def failed_image(image: ImageSpec, error: str) -> ImageResult:
    """The result of an image of which nothing could be made."""
    return ImageResult(
        id=image.id, uri=image.uri, group=image.group, strata=image.strata, state="failed", error=error, truth=image.truth
    )


def segment_image(shop: Shop, plan: Plan, final: Path) -> ImageResult:
    """Predict the blocks that are not known as done, finish the mosaic, publish it at `final`.

    Done is a block whose record is in the ledger and whose files are as the record says; the ledger forgets a mask before
    another takes its place, so that after a kill just then the record beside it is asked. A published mask is looked over by
    the sizes of its files, and what is damaged is made good; with `shop.again` what failed is tried again as well. An image
    of which too much failed is not published; the next run tries it again.
    """
    ledger, work = shop.ledger, work_path(final, plan)
    mosaic.sweep(final)
    published = final.exists()
    if published:
        mosaic.remove(mosaic.replaced(final))
        result, records = _published(shop, plan, final)
        kept = {
            i: r for i, r in records.items() if mosaic.intact(final, r.shards, deep=False) and not (shop.again and r.failed_px)
        }
        if len(kept) == len(plan.blocks):
            shop.progress.advance(plan.grid.height * plan.grid.width)
            return result.model_copy(update={"reused": True, **told_of(plan)})
        shop.progress.say(f"{plan.image.uri}: {len(plan.blocks) - len(kept)} of {len(plan.blocks)} blocks are made again")
        kept = _reopened(plan, final, work, kept)
    else:
        kept = _unfinished(shop, plan, work)
    shop.progress.advance(sum(plan.blocks[index].core.pixels for index in kept))
    job = shop.job(plan, work)
    for record in _predict(shop, job, [block for block in plan.blocks if block.index not in kept]):
        if not published:  # else the ledger tells of the mask that is there, until this one takes its place
            ledger.put_block(plan.digest, PREDICT, record.block, record)
        kept[record.block] = record
        shop.progress.advance(plan.blocks[record.block].core.pixels)
    every = tuple(kept[block.index] for block in plan.blocks)
    result = summarise(plan, every, shop.config.faults.max_failed_fraction)
    if result.state == "failed":
        return result
    coarse = _finish_pyramid(shop, job)
    parts.sweep(work)
    finished = Finished(plan=plan, result=result, blocks=every, coarse=coarse)
    ledger.forget(plan.image.id, plan.digest)
    publish(work, final, finished, replace=published)
    with ledger.together():
        for record in every if published else ():
            ledger.put_block(plan.digest, PREDICT, record.block, record)
        ledger.put_image(plan.image.id, plan.digest, SEGMENT, result)
    return result


def _unfinished(shop: Shop, plan: Plan, work: Path) -> dict[int, BlockRecord]:
    """Block index -> record of what is done of an unfinished mosaic; lays out a new one if there is none to resume."""
    if work.exists() and not mosaic.laid_out(work, plan):
        shop.progress.say(f"{plan.image.uri}: {work.name} is not a sound unfinished mosaic; it is started again")
        mosaic.remove(work)
    if not work.exists():
        with mosaic.writing(work):
            work.parent.mkdir(parents=True, exist_ok=True)
        mosaic.create(work, plan)
        return {}
    records = shop.ledger.blocks(plan.digest, PREDICT, BlockRecord)
    return {i: r for i, r in records.items() if not r.failed_px and mosaic.intact(work, r.shards)}


def _finish_pyramid(shop: Shop, job: Job) -> tuple[ShardRecord, ...]:
    """Build the coarser levels that blocks did not write, on a worker; their files."""
    if mosaic.own_levels(job.plan) == mosaic.levels(*job.plan.grid.shape):
        return ()
    for _, outcome in run_tasks(build_pyramid, [(f"{job.plan.digest}-pyramid", (job,))], shop.workers, deadline="none"):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        shards, draft = outcome.result
        mosaic.commit_pyramid(Path(job.store), job.plan, Path(draft))
    return shards


def _published(shop: Shop, plan: Plan, final: Path) -> tuple[ImageResult, dict[int, BlockRecord]]:
    """(result, records) of a mask that is there already, from the ledger or else from the JSON beside it."""
    result = shop.ledger.image(plan.image.id, plan.digest, SEGMENT, ImageResult)
    records = shop.ledger.blocks(plan.digest, PREDICT, BlockRecord)
    if result is None or len(records) < len(plan.blocks):
        finished = read_record(final)
        if finished.plan.digest != plan.digest:
            raise StoreError(
                f"{final} was made by another plan ({finished.plan.digest}, this one is {plan.digest}): image, model, tiling or "
                "resolution differ. Move it away, or choose another output"
            )
        keep(shop.ledger, finished)
        result, records = finished.result, {record.block: record for record in finished.blocks}
    return result, records


def _reopened(plan: Plan, final: Path, work: Path, records: dict[int, BlockRecord]) -> dict[int, BlockRecord]:
    """Lay out a new mosaic at `work` that takes the blocks of `records` over from the published one: those that are sound."""
    mosaic.remove(work)
    mosaic.create(work, plan)
    sound = {index: record for index, record in records.items() if mosaic.intact(final, record.shards)}
    mosaic.take_over(final, work, [shard for record in sound.values() for shard in record.shards])
    return sound


def _predict(shop: Shop, job: Job, todo: list[Block]) -> Iterator[BlockRecord]:
    """The records of `todo` as they finish. A block that workers died on is tried in parts; one that cannot be predicted is
    marked failed in the mosaic. ChangedError where the image is not the one that was planned."""
    faults = shop.config.faults
    yield from (empty_block(job.plan, block) for block in todo if not job.plan.holds_tissue(block.core))
    blocks = {f"{job.plan.digest}-{block.index}": block for block in todo if job.plan.holds_tissue(block.core)}
    tasks = [(key, (job, block)) for key, block in blocks.items()]
    deadly: list[tuple[Block, Outcome[BlockDraft]]] = []
    for key, outcome in run_tasks(predict_block, tasks, shop.workers, faults.attempts, faults.deadline_s):
        draft, error = outcome.result, outcome.error
        if isinstance(error, ChangedError):
            mosaic.remove(Path(job.store))
            raise error
        if draft is None and outcome.deaths:
            deadly.append((blocks[key], outcome))
            continue
        if draft is None:
            assert error is not None
            record = fail_block(job, blocks[key], cause(error))
        else:
            record = commit_block(job, draft)
        yield record.model_copy(update={"attempt": outcome.attempts, "deaths": outcome.deaths})
    for block, outcome in deadly:
        shop.progress.say(f"{job.plan.image.uri}: block {block.index} is tried in parts: {outcome.error}")
        record = _in_parts(shop, job, block)
        yield record.model_copy(update={"attempt": outcome.attempts + 1, "deaths": outcome.deaths + record.deaths})


def _in_parts(shop: Shop, job: Job, block: Block) -> BlockRecord:
    """The record of a block whose quarters were predicted one by one; pixels of those that fail are failed, with the evidence."""
    faults, deaths = shop.config.faults, 0
    pieces = {f"{job.plan.digest}-{block.index}-{n}": part for n, part in enumerate(parts.split(block))}
    tasks = [(key, (job, part)) for key, part in pieces.items()]
    for key, outcome in run_tasks(parts.predict_part, tasks, shop.workers, 1, faults.deadline_s):
        deaths += outcome.deaths
        if outcome.result is not None:
            pieces[key] = outcome.result
        else:
            assert outcome.error is not None
            pieces[key] = pieces[key].model_copy(update={"error": cause(outcome.error)})
    record = parts.join_parts(job, block, tuple(pieces.values()))
    return record.model_copy(update={"deaths": deaths})
