"""Masks against their reference labels, block by block: every pixel counted once, each failed one as a miss."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.cluster import Workers, run_tasks
from pipeline.errors import explain
from pipeline.finished import read_record, write_record
from pipeline.grid import Block, blocks
from pipeline.measures import measures_of, measures_without_plan
from pipeline.plan import Plan
from pipeline.records import BlockScore, ImageScore, score_task, sum_scores
from pipeline.report.contract import ImageResult
from pipeline.shop import Shop
from pipeline.work import ScoreJob, score_block

SCORE_BLOCK = 4096
"""Side in px of the windows in which masks are scored that have no blocks of their own."""


def score_mask(
    job: ScoreJob, parts: Iterable[Block], workers: Workers, name: str
) -> tuple[list[BlockScore], BaseException | None]:
    """(scores of the blocks, the first error). `name` makes the tasks' keys unique."""
    scores: list[BlockScore] = []
    error: BaseException | None = None
    for _, outcome in run_tasks(score_block, [(f"{name}-{b.index}", (job, b)) for b in parts], workers):
        if outcome.result is not None:
            scores.append(outcome.result)
        error = error or outcome.error
    return scores, error


def score_image(shop: Shop, plan: Plan, result: ImageResult, store: Path, truth: TruthSpec) -> ImageResult:
    """`result` with its counts, from the ledger or from the mask; the ledger and the mask's record keep them."""
    if result.state == "failed":
        return missed(shop, result, plan.mask, truth, plan)
    measures = measures_of(shop.config.scoring, plan)
    task = score_task(truth.digest, measures)
    record = shop.ledger.image(plan.image.id, plan.digest, task, ImageScore)
    if record is None:
        known = shop.ledger.blocks(plan.digest, task, BlockScore)
        todo = [block for block in plan.blocks if block.index not in known]
        job = ScoreJob(store=str(store), mask=plan.mask, truth=truth, measures=measures)
        scores, error = score_mask(job, todo, shop.workers, f"{plan.digest}-{task}")
        for score in scores:
            shop.ledger.put_block(plan.digest, task, score.block, score)
        if error is not None:
            return result.model_copy(update={"truth_error": explain(error)})
        found = known | {score.block: score for score in scores}
        record = sum_scores(found[index] for index in sorted(found))
        finished = read_record(store)
        write_record(store, finished.model_copy(update={"scores": finished.scores | {task: record}}))
        shop.ledger.put_image(plan.image.id, plan.digest, task, record)
    return with_scores(result, record, shop.config.truth.max_unknown_share)


def missed(shop: Shop, result: ImageResult, mask: MaskFacts, truth: TruthSpec, plan: Plan | None = None) -> ImageResult:
    """`result`, of a failed image, with every labelled pixel a miss. The next run tries it again: the ledger keeps nothing."""
    scoring = shop.config.scoring
    measures = measures_without_plan(scoring, mask) if plan is None else measures_of(scoring, plan)
    job = ScoreJob(store=None, mask=mask, truth=truth, measures=measures)
    parts = blocks(*mask.grid.shape, SCORE_BLOCK, SCORE_BLOCK)
    scores, error = score_mask(job, parts, shop.workers, f"{result.id}-{truth.digest[:8]}-failed")
    if error is not None:
        return result.model_copy(update={"truth_error": explain(error)})
    return with_scores(result, sum_scores(scores), shop.config.truth.max_unknown_share)


def with_scores(result: ImageResult, record: ImageScore, max_unknown_share: float) -> ImageResult:
    """`result` with its score, unless too many of its labels are no class."""
    problem = unknown_problem(record, max_unknown_share)
    told = score_fields(record) if problem is None else dict.fromkeys(score_fields(record))
    return result.model_copy(update=told | {"unknown_labels": record.unknown, "truth_error": problem})


def score_fields(record: ImageScore) -> dict[str, Any]:
    """What a score says, as the fields of an image's result."""
    measured = record.measured
    return {
        "counts": record.counts,
        "boundary": list(measured.boundary) or None,
        "calibration": None if measured.calibration is None else [list(pair) for pair in measured.calibration],
        "edge_errors": measured.edge_errors,
        "block_errors": measured.error_cells,
    }


def unknown_problem(record: ImageScore, max_unknown_share: float) -> str | None:
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
