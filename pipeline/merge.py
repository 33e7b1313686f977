"""One report of an archive whose parts were run by independent drivers: nothing is computed but what the report needs."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.finished import keep, read_record
from pipeline.night import Morning, Night, finish_night, open_night
from pipeline.process import failed_image, noted
from pipeline.records import SEGMENT
from pipeline.report import read_report
from pipeline.report.contract import ImageResult
from pipeline.scoring import missed, score_image
from pipeline.shop import Progress
from pipeline.survey import Planned
from pipeline.whole import told_of


def merge_parts(config: Config, progress: Progress, command: str) -> Morning:
    """Join the finished masks of all parts, put them into the ledger of the whole, and write one report, equal to that of an
    undivided run. An image that no part has finished is failed, in the words of the part that tried it."""
    with open_night(config, progress, command) as night:
        tried = _tried(config.output / "runs")
        return finish_night(night, [noted(p, _joined(night, p, tried)) for p in night.survey.planned])


def _tried(runs: Path) -> dict[str, ImageResult]:
    """Image id -> its result in the last report of a part that was about it."""
    found: dict[str, ImageResult] = {}
    for path in sorted(runs.glob("*/report.json")):
        try:
            report = read_report(path.parent)
        except StoreError:
            continue
        if report.part is not None:
            found |= {image.id: image for image in report.images}
    return found


def _joined(night: Night, planned: Planned, tried: dict[str, ImageResult]) -> ImageResult:
    shop, plan, truth = night.shop, planned.plan, planned.truth
    final = shop.mask(plan)
    shop.progress.advance(plan.grid.height * plan.grid.width)
    if not final.exists():
        earlier = tried.get(plan.image.id)
        error = "no part has finished it: run `gigamask run CONFIG --part i/N` for every part, then merge again"
        if earlier is not None and earlier.state == "failed" and earlier.error:
            error = earlier.error
        result = failed_image(plan.image, error).model_copy(update={"truth_error": planned.truth_error})
        return result if truth is None else missed(shop, result, plan.mask, truth, plan)
    finished = read_record(final)
    with shop.ledger.together():
        if shop.ledger.image(plan.image.id, plan.digest, SEGMENT, ImageResult) != finished.result:
            shop.ledger.forget(plan.image.id, plan.digest)  # it was made again since the last merge
        keep(shop.ledger, finished)
    known = tried.get(plan.image.id)
    reused = known is not None and known.digest == plan.digest and known.reused
    result = finished.result.model_copy(
        update={"mask": str(final.relative_to(night.config.output)), "reused": reused, **told_of(plan)}
    )
    if planned.truth_error is not None or truth is None:
        return result.model_copy(update={"truth_error": planned.truth_error})
    return score_image(shop, plan, result, final, truth)
