"""The steps of a night in their order: survey, segment, score, draw, report."""

from __future__ import annotations

import datetime as dt
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline import __version__
from pipeline.card import background, digest_of
from pipeline.cluster import Workers, open_workers, run_tasks
from pipeline.config import Config
from pipeline.errors import PlanError
from pipeline.ledger import Ledger
from pipeline.overview import draw_overview
from pipeline.process import Progress, Shop, failed_image, mask_path, process_image
from pipeline.report import write_report
from pipeline.report.contract import ImageResult, ModelFacts, RunReport
from pipeline.survey import Planned, Survey, survey

_PACKAGES = ("torch", "segmentation-models-pytorch", "rasterio", "zarr", "dask", "numpy", "prefect")


@dataclass(frozen=True)
class Night:
    """One run under way."""

    survey: Survey
    shop: Shop
    run_id: str
    started: dt.datetime
    command: str

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.survey.config

    @property
    def folder(self) -> Path:
        """Where the run's report goes."""
        return self.config.output / "runs" / self.run_id

    def process(self, planned: Planned) -> ImageResult:
        """Segment and score one image."""
        return process_image(self.shop, self.config.output, planned, self.config.truth.max_unknown_share)


@dataclass(frozen=True)
class Morning:
    """What a night has left."""

    report: RunReport
    folder: Path
    files: dict[str, Path]
    exit_code: int
    """0 all well, 1 something failed; the report names it."""


@contextmanager
def open_night(config: Config, progress: Progress, command: str) -> Iterator[Night]:
    """Survey the archive, open the ledger, start the workers; all end with the context.

    PlanError where no image at all can be segmented: nothing was started then.
    """
    found = survey(config)
    if not found.planned:
        reasons = "\n".join(f"  {r.image.uri}: {r.error}" for r in found.refused[:10])
        raise PlanError(f"none of {len(found.refused)} images can be segmented:\n{reasons}")
    started = dt.datetime.now(dt.UTC)
    run_id = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    config.output.mkdir(parents=True, exist_ok=True)
    with Ledger(config.output / "ledger.sqlite") as ledger, open_workers(config.cluster) as workers:
        progress.say(f"{len(found.planned)} images, {found.pixels / 1e6:,.0f} Mpx, on {workers.description}")
        progress.expect(found.pixels)
        ledger.start_run(run_id, started.isoformat())
        yield Night(found, Shop(config.model, workers, ledger, progress), run_id, started, command)


def finish_night(night: Night, results: list[ImageResult]) -> Morning:
    """Draw the worst images, write the report, close the run in the ledger."""
    refused = [failed_image(r.image, r.error) for r in night.survey.refused]
    report = _draw(night, _report(night, sorted([*results, *refused], key=lambda image: image.uri)))
    files = write_report(report, night.folder)
    exit_code = int(any(image.state in ("failed", "partial") or image.truth_error for image in report.images))
    night.shop.ledger.finish_run(night.run_id, report.finished, exit_code)
    return Morning(report, night.folder, files, exit_code)


def run_night(config: Config, progress: Progress, command: str) -> Morning:
    """The whole night in this process, without Prefect."""
    with open_night(config, progress, command) as night:
        return finish_night(night, for_each(night.shop.workers, night.process, night.survey.planned))


def for_each(workers: Workers, process: Callable[[Planned], ImageResult], planned: list[Planned]) -> list[ImageResult]:
    """`process` every image; as many at a time as keep all workers busy, so that small images do not wait for each other."""
    if workers.client is None:
        return [process(image) for image in planned]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers.count + 1) as pool:
        return list(pool.map(process, planned))


def software() -> dict[str, str]:
    """Versions of gigamask and of what it stands on."""
    found = {"gigamask": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _report(night: Night, images: list[ImageResult]) -> RunReport:
    config, card = night.config, night.survey.card
    finished = dt.datetime.now(dt.UTC)
    facts = config.model_dump(mode="json")
    return RunReport(
        run_id=night.run_id,
        name=config.name,
        title=config.report.title or config.name,
        started=night.started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        seconds=(finished - night.started).total_seconds(),
        command=night.command,
        software=software(),
        workers=night.shop.workers.description,
        config=facts,
        config_digest=digest_of(facts)[:16],
        model=ModelFacts(
            name=card.name, digest=card.digest[:16], path=str(config.model.path), licence=card.licence, training=card.training
        ),
        classes=card.classes,
        background=background(card.classes),
        images=images,
    )


def _draw(night: Night, report: RunReport) -> RunReport:
    """The report with a picture of its worst images."""

    def badness(image: ImageResult) -> float:
        scores = report.image_scores(image)
        return 2.0 if scores is None else scores.miou

    planned = {p.plan.image.id: p for p in night.survey.planned}
    published = [image for image in report.images if image.state in ("complete", "partial") and image.id in planned]
    worst = sorted(published, key=badness)[: night.config.report.max_quicklooks]
    tasks = []
    for image in worst:
        plan, truth = planned[image.id].plan, planned[image.id].truth if image.counts is not None else None
        store = str(mask_path(night.config.output, plan))
        tasks.append((image.id, (plan, store, truth, str(night.folder), night.config.report.quicklook_px)))
    pictures: dict[str, dict[str, str]] = {}
    for image_id, outcome in run_tasks(draw_overview, tasks, night.shop.workers):
        if outcome.result is None:
            night.shop.progress.say(f"no picture of {image_id}: {outcome.error}")
        else:
            pictures[image_id] = outcome.result
    images = [image.model_copy(update={"quicklook": pictures.get(image.id, {})}) for image in report.images]
    return report.model_copy(update={"images": images})
