"""Small images by the handful: the driver's side of `whole`, several of them in a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline import mosaic
from pipeline.cluster import Workers, run_tasks
from pipeline.errors import RunEndedError, explain
from pipeline.finished import Finished, publish
from pipeline.measures import measures_of
from pipeline.records import PREDICT, SEGMENT, score_task
from pipeline.report.contract import ImageResult
from pipeline.scoring import with_scores
from pipeline.shop import Shop
from pipeline.survey import Planned, work_path
from pipeline.whole import Whole, WholeJob, do_whole

BATCH_SECONDS, LEAST_SECONDS = 0.5, 0.1
"""How long a call with several images should take, and towards the end at least: far above what a call costs, far below what a
worker may lose."""


def process_untouched(shop: Shop, planned: list[Planned]) -> dict[str, ImageResult]:
    """Plan digest -> result of each image of one block that could be done whole; those that have a mask, or the beginning of
    one, are left out. The ledger hears of an image after it is published."""
    planned = [image for image in planned if _untouched(shop, image)]
    pace = Pace(sum(p.plan.grid.height * p.plan.grid.width for p in planned), shop.workers)
    sent: dict[str, list[Planned]] = {}

    def tasks() -> Iterator[tuple[str, tuple[tuple[WholeJob, ...]]]]:
        for batch in pace.batches(planned):
            key = f"{batch[0].plan.digest}-{len(batch)}"
            sent[key] = batch
            yield key, (tuple(_job(shop, p) for p in batch),)

    results: dict[str, ImageResult] = {}
    for key, outcome in run_tasks(do_whole, tasks(), shop.workers, 1, shop.config.faults.deadline_s):
        batch = sent.pop(key)
        if outcome.result is None:
            shop.progress.say(f"{len(batch)} images are tried one by one: {outcome.error}")
            continue
        with shop.ledger.together():
            for image, whole in zip(batch, outcome.result, strict=True):
                result = _kept(shop, image, whole)
                if result is not None:
                    results[image.plan.digest] = result
        pace.learn(batch, sum(whole.seconds for whole in outcome.result))
    return results


def _untouched(shop: Shop, planned: Planned) -> bool:
    final = shop.mask(planned.plan)
    mosaic.sweep(final)
    return len(planned.plan.blocks) == 1 and not final.exists() and not work_path(final, planned.plan).exists()


def _job(shop: Shop, planned: Planned) -> WholeJob:
    return WholeJob(
        job=shop.job(planned.plan, shop.mask(planned.plan)),
        truth=planned.truth,
        measures=measures_of(shop.config.scoring, planned.plan),
        max_failed_fraction=shop.config.faults.max_failed_fraction,
    )


def _kept(shop: Shop, planned: Planned, whole: Whole) -> ImageResult | None:
    """Publish an image that was done whole and put it into the ledger; its result. None if something is left to do."""
    plan, truth, ledger = planned.plan, planned.truth, shop.ledger
    task = None if truth is None else score_task(truth.digest, measures_of(shop.config.scoring, plan))
    result, error = _published(shop, planned, whole, task)
    if error is not None:
        shop.progress.say(f"tried again: {plan.image.uri}: {error.partition(chr(10))[0]}")
    if result is None:
        return None
    ledger.forget(plan.image.id, plan.digest)
    for record in whole.blocks:
        ledger.put_block(plan.digest, PREDICT, record.block, record)
    ledger.put_image(plan.image.id, plan.digest, SEGMENT, result)
    if truth is not None and whole.score is None:
        return None
    shop.progress.advance(plan.grid.height * plan.grid.width)
    result = result.model_copy(update={"mask": shop.mask_name(plan)})
    if task is None or whole.score is None:
        return result.model_copy(update={"truth_error": planned.truth_error})
    ledger.put_image(plan.image.id, plan.digest, task, whole.score)
    return with_scores(result, whole.score, shop.config.truth.max_unknown_share)


def _published(shop: Shop, planned: Planned, whole: Whole, task: str | None) -> tuple[ImageResult | None, str | None]:
    """(the result of an image whose mask is published now, why something is missing)."""
    if whole.result is None or whole.store is None:
        return None, whole.error
    scores = {} if task is None or whole.score is None else {task: whole.score}
    finished = Finished(plan=planned.plan, result=whole.result, blocks=whole.blocks, coarse=whole.coarse, scores=scores)
    try:
        publish(Path(whole.store), shop.mask(planned.plan), finished, private=True)
    except RunEndedError:
        raise
    except Exception as e:  # noqa: BLE001 - one image costs its image, which is then tried by itself
        mosaic.remove(Path(whole.store))
        return None, explain(e)
    return whole.result, whole.error


class Pace:
    """How many images go into one call: as many as took about BATCH_SECONDS last, and fewer towards the end."""

    def __init__(self, pixels: int, workers: Workers) -> None:
        self._left = pixels
        self._shares = 1 if workers.count == 1 else 4 * workers.count
        self._batch_px = 0.0

    def batches(self, planned: list[Planned]) -> Iterator[list[Planned]]:
        """`planned` in their order; the first ones alone, as nothing is known yet."""
        batch: list[Planned] = []
        pixels = 0
        for image in planned:
            size = image.plan.grid.height * image.plan.grid.width
            share = max(self._left / self._shares, self._batch_px * LEAST_SECONDS / BATCH_SECONDS)
            if batch and pixels + size > min(self._batch_px, share):
                self._left -= pixels
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += size
        if batch:
            yield batch

    def learn(self, batch: list[Planned], seconds: float) -> None:
        """`batch` took so long on its worker."""
        pixels = sum(image.plan.grid.height * image.plan.grid.width for image in batch)
        self._batch_px = pixels * BATCH_SECONDS / max(seconds, 1e-3)
