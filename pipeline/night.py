"""The steps of a night in their order: survey, segment, score, draw, report."""

from __future__ import annotations

import datetime as dt
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline import __version__, mosaic
from pipeline.card import background, digest_of
from pipeline.changes import Seen, compare, earlier, keep_seen, look, same
from pipeline.cluster import Workers, open_workers, run_tasks, stopping_on_signals
from pipeline.config import Config
from pipeline.errors import GigamaskError, OutputError, PlanError, RunEndedError
from pipeline.image import Frozen, ImageSpec
from pipeline.ledger import Ledger
from pipeline.lock import check_free, holding
from pipeline.overview import draw_overview
from pipeline.process import failed_image, portions, process_images, refused_image
from pipeline.report import write_report
from pipeline.report.contract import ImageResult, RunReport
from pipeline.report.evaluation import NO_BASELINE, evaluate, refuse
from pipeline.report.history import Baseline, baseline_of, mend, note_run
from pipeline.report.quicklook import take_over
from pipeline.report.signals import model_facts
from pipeline.shop import Progress, Shop
from pipeline.survey import Division, Planned, Survey, space_problem, survey

LOCK = "run.lock"
START_LOCK = "start.lock"
"""Held while a part looks for parts of other divisions and takes its own lock."""
START_SECONDS = 30.0
"""How long a part waits for others that start."""
_PACKAGES = ("torch", "segmentation-models-pytorch", "rasterio", "zarr", "dask", "numpy", "prefect")


@dataclass(frozen=True)
class Night:
    """One run under way."""

    survey: Survey
    shop: Shop
    run_id: str
    started: dt.datetime
    command: str
    """How to run it again."""
    part: Division | None
    """The part of the archive that it is about; None: all of it."""
    retry: bool
    """Whether only what failed before is to be done: new images wait for the next run."""
    before: dict[str, Seen]
    """How earlier runs saw the archive, by image id."""
    now: dict[str, Seen]
    """How it was found."""
    home: Path
    """Folder of the ledger and the history: the output, or that of the part."""
    baseline: Baseline
    """The run that it is held against."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.survey.config

    @property
    def folder(self) -> Path:
        """Where the run's report goes."""
        return self.config.output / "runs" / self.run_id

    @property
    def portions(self) -> list[list[Planned]]:
        """The images that are to be worked on, in parts that are worked through together."""
        return portions([p for p in self.survey.planned if not self._waits(p.plan.image)])

    def process(self, portion: list[Planned]) -> list[ImageResult]:
        """Segment and score the images of one portion. Raises RunEndedError at once if another portion has ended the run."""
        stop = self.shop.workers.stop
        stop.check()
        try:
            return process_images(self.shop, portion)
        except RunEndedError as e:
            stop.end(e)
            raise

    def others(self) -> list[ImageResult]:
        """What becomes of the images that no portion holds."""
        waiting = [p.plan.image for p in self.survey.planned if self._waits(p.plan.image)]
        reason = "new or changed since the last run: `gigamask run` takes it"
        skipped = [failed_image(image, reason).model_copy(update={"state": "skipped"}) for image in waiting]
        return skipped + [refused_image(self.shop, refused) for refused in self.survey.refused]

    def _waits(self, image: ImageSpec) -> bool:
        """Whether a retry leaves the image to the next run."""
        return self.retry and not same(self.before.get(image.id), self.now[image.id])


class Drawn(Frozen):
    """What the ledger keeps of the pictures of an image: the last run that has them."""

    run_id: str
    pictures: dict[str, str]
    """Paths relative to the run's folder, by name."""


@dataclass(frozen=True)
class Morning:
    """What a night has left."""

    report: RunReport
    folder: Path
    files: dict[str, Path]
    exit_code: int
    """0 all well; 1 an image failed, has holes or could not be scored; else 3 a gate failed; else 4 a gate is inconclusive. The
    report names each."""


@contextmanager
def open_night(
    config: Config, progress: Progress, command: str, part: Division | None = None, *, retry: bool = False
) -> Iterator[Night]:
    """Survey the archive, take hold of the output, open the ledger, start the workers; all end with the context.

    PlanError where no image at all can be segmented, the disk cannot take the masks, or the baseline cannot be read, ConfigError
    where a gate is about no class of the model: nothing was started then. A run that breaks off is noted as such in the ledger.
    """
    started = dt.datetime.now(dt.UTC)
    run_id = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        found = survey(config, part, keep=True)
        if not found.planned and part is None:
            reasons = "\n".join(f"  {r.image.uri}: {r.error}" for r in found.refused[:10])
            raise PlanError(f"none of {len(found.refused)} images can be segmented:\n{reasons}")
        if problem := space_problem(found):
            raise PlanError(problem)
        refuse(config.gates, config.statistics, found.card.classes, found.images)
        home = stack.enter_context(_hold(config.output, part, started, command, progress))
        ledger = stack.enter_context(Ledger(home / "ledger.sqlite"))
        mend(home, config.output / "runs", str(part) if part else None, progress.say)
        baseline = baseline_of(config, home)
        before, now = earlier(ledger, config.name), look(found, run_id)
        workers = stack.enter_context(open_workers(config.cluster))
        stack.enter_context(stopping_on_signals(workers.stop))
        progress.say(f"{len(found.planned)} images, {found.pixels / 1e6:,.0f} Mpx, on {workers.description}")
        progress.expect(found.pixels)
        shop = Shop(config, workers, ledger, progress, again=retry)
        ledger.start_run(run_id, started.isoformat())
        try:
            yield Night(found, shop, run_id, started, command, part, retry, before, now, home, baseline)
        except GigamaskError as e:
            with suppress(OutputError):
                ledger.finish_run(run_id, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), e.exit_code)
            raise


@contextmanager
def _hold(output: Path, part: Division | None, started: dt.datetime, command: str, progress: Progress) -> Iterator[Path]:
    """Keep other runs out of `output`, and give the folder of this one's ledger.

    Runs about parts of an archive exclude each other only where it is the same part, or their number of parts differs. Of those
    that start at once one after the other looks for such and takes its own lock, so that none is looked for too early.
    """
    since = started.isoformat(timespec="seconds")
    with ExitStack() as stack:
        before = stack.enter_context(holding(output / LOCK, since, command, shared=part is not None))
        home = output
        if part is not None:
            home = output / "parts" / f"{part.part}-of-{part.parts}"
            with holding(output / "parts" / START_LOCK, since, command, patience_s=START_SECONDS):
                for other in sorted((output / "parts").glob(f"*/{LOCK}")):
                    if not other.parent.name.endswith(f"-of-{part.parts}"):
                        check_free(other)
                before = stack.enter_context(holding(home / LOCK, since, command))
        if before is not None:
            progress.say(f"an earlier run, {before}, did not end well; this one goes on from where it was")
        yield home


def finish_night(night: Night, results: list[ImageResult]) -> Morning:
    """Draw the worst images, judge the scores, write the report, note the run in history and ledger."""
    every = sorted([*results, *night.others()], key=lambda image: image.uri)
    report = _judged(night, _draw(night, _report(night, every)))
    with mosaic.writing(night.folder):
        files = write_report(report, night.folder)
        note_run(night.home, report)
    keep_seen(night.shop.ledger, night.config.name, night.before, night.now)
    night.shop.ledger.finish_run(night.run_id, report.finished, report.exit_code)
    return Morning(report, night.folder, files, report.exit_code)


def run_night(config: Config, progress: Progress, command: str, part: Division | None = None, *, retry: bool = False) -> Morning:
    """The whole night in this process, without Prefect."""
    with open_night(config, progress, command, part, retry=retry) as night:
        each = for_each(night.shop.workers, night.process, night.portions)
        return finish_night(night, [result for results in each for result in results])


def for_each[Item, Result](workers: Workers, process: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """`process` every item; as many at a time as keep all workers busy, so that images do not wait for each other.

    Raises the first error at once, whichever item it comes from, and starts no other item.
    """
    if workers.client is None:
        return [process(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with ThreadPoolExecutor(workers.count + 1) as pool:
        futures = [pool.submit(process, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


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
    facts = config.reported()
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
        processes=night.shop.workers.count,
        config=facts,
        config_digest=digest_of(facts)[:16],
        model=model_facts(card, config.model.path),
        classes=card.classes,
        background=background(card.classes),
        images=images,
        changes=compare(night.before, night.now),
        part=str(night.part) if night.part else None,
    )


def _judged(night: Night, report: RunReport) -> RunReport:
    """The report with its intervals, comparison and gates."""
    config, baseline = night.config, night.baseline
    found = evaluate(
        report, baseline.report, gates=config.gates, statistics=config.statistics, no_baseline=baseline.why_none or NO_BASELINE
    )
    return report.model_copy(update={"evaluation": found})


def _draw(night: Night, report: RunReport) -> RunReport:
    """The report with a picture of its worst images; those that an earlier run has drawn of the same masks are taken over."""

    def badness(image: ImageResult) -> float:
        scores = report.image_scores(image)
        return 2.0 if scores is None else scores.miou

    planned = {p.plan.image.id: p for p in night.survey.planned}
    published = [image for image in report.images if image.state in ("complete", "partial") and image.id in planned]
    worst = sorted(published, key=badness)[: night.config.report.max_quicklooks]
    ledger, side = night.shop.ledger, night.config.report.quicklook_px
    pictures: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    tasks = []
    for image in worst:
        plan, truth = planned[image.id].plan, planned[image.id].truth if image.counts is not None else None
        names[image.id] = f"picture-{side}-{__version__}" + ("" if truth is None else f"-{truth.digest[:16]}")
        drawn = ledger.image(image.id, plan.digest, names[image.id], Drawn)
        if drawn is not None and take_over(drawn.pictures, night.folder.with_name(drawn.run_id), night.folder):
            pictures[image.id] = drawn.pictures
        else:
            tasks.append((image.id, (plan, str(night.shop.mask(plan)), truth, str(night.folder), side)))
    for image_id, outcome in run_tasks(draw_overview, tasks, night.shop.workers):
        if outcome.result is None:
            night.shop.progress.say(f"no picture of {image_id}: {outcome.error}")
        else:
            pictures[image_id] = outcome.result
    with ledger.together():
        for image_id, files in pictures.items():
            drawn = Drawn(run_id=night.run_id, pictures=files)
            ledger.put_image(image_id, planned[image_id].plan.digest, names[image_id], drawn)
    images = [image.model_copy(update={"quicklook": pictures.get(image.id, {})}) for image in report.images]
    return report.model_copy(update={"images": images})
