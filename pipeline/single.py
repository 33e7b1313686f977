"""One image without an archive: segment it into a mosaic, or score a mosaic, with the same steps as a night."""

from __future__ import annotations

import datetime as dt
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import machine, mosaic
from pipeline.archive import completed
from pipeline.areas import with_area
from pipeline.card import background, digest_of
from pipeline.cluster import Workers, open_workers, stopping_on_signals, worker_budget
from pipeline.config import ClusterConfig, Config, ScoringConfig, TruthConfig
from pipeline.errors import StoreError, TruthError
from pipeline.finished import Finished, read_record
from pipeline.grid import blocks
from pipeline.image import ImageSpec
from pipeline.ledger import Ledger
from pipeline.lock import holding
from pipeline.measures import measures_of, measures_without_plan
from pipeline.models import usable_card
from pipeline.night import software
from pipeline.plan import Plan, plan_image
from pipeline.process import segment_image
from pipeline.records import sum_scores
from pipeline.report import write_report
from pipeline.report.contract import ImageResult, ModelFacts, RunReport
from pipeline.report.evaluation import evaluate
from pipeline.scoring import SCORE_BLOCK, score_fields, score_mask, unknown_problem
from pipeline.shop import Progress, Shop
from pipeline.sources import describe_image
from pipeline.truth import plan_labels
from pipeline.work import ScoreJob


@dataclass(frozen=True)
class Segmented:
    """What `segment` has left."""

    plan: Plan
    result: ImageResult
    store: Path
    seconds: float
    """Wall time from the first block's start to the published mosaic; starting workers and planning left out."""
    start_seconds: float
    """Wall time until the workers were there, with all that they import but the model."""
    peak_memory: dict[str, int]
    """Peak resident bytes of this process and of each worker."""


def segment_one(config: Config, image: Path, out: Path, progress: Progress) -> Segmented:
    """Segment `image` into a mosaic at `out`, read as `config.archive` says, whatever images that names.

    Killed, the same call goes on where it was: what is done is kept in a hidden ledger beside `out` until it is whole.
    """
    card = usable_card(config.model.path, trust_code=config.model.trust_code)
    spec = completed(ImageSpec(uri=str(image.resolve())), config)
    budget = worker_budget(config.cluster, config.model.device)
    plan = plan_image(config, spec, describe_image(config.archive, spec), card, budget)
    plan = with_area(plan, config.archive.tissue, out.parent, keep=False)
    progress.expect(plan.grid.height * plan.grid.width)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.ledger.sqlite")
    opened = time.perf_counter()
    since = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    lock = holding(out.with_name(f".{out.name}.lock"), since, shlex.join(["gigamask", "segment", str(image)]), remove=True)
    with lock, open_workers(config.cluster) as workers, stopping_on_signals(workers.stop):
        if workers.client is not None:
            workers.client.run(get_ready)
        started = time.perf_counter()
        with Ledger(path) as ledger:
            result = segment_image(Shop(config, workers, ledger, progress), plan, out)
        seconds = time.perf_counter() - started
        peak = workers_peak(workers)
        if result.state != "failed":
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
    return Segmented(plan, result.model_copy(update={"mask": str(out)}), out, seconds, started - opened, peak)


def evaluate_one(
    store: Path,
    truth_path: Path,
    config: TruthConfig,
    cluster: ClusterConfig,
    folder: Path | None,
    scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
) -> RunReport:
    """Score the mosaic at `store` against the labels at `truth_path`, a raster or polygons; with `folder`, write a report there.

    TruthError where the labels do not fit the mask, or hold more values that are no class than the configuration allows.
    """
    mask, digest = mosaic.facts(store)
    truth = plan_labels(config, str(truth_path.resolve()), mask)
    known = _finished(store, digest)
    measures = measures_without_plan(scoring, mask) if known is None else measures_of(scoring, known.plan)
    started = dt.datetime.now(dt.UTC)
    with open_workers(cluster) as workers:
        parts = blocks(*mask.grid.shape, SCORE_BLOCK, SCORE_BLOCK)
        job = ScoreJob(store=str(store), mask=mask, truth=truth, measures=measures)
        scores, error = score_mask(job, parts, workers, f"evaluate-{digest}")
    if error is not None:
        raise error
    record = sum_scores(scores)
    if problem := unknown_problem(record, config.max_unknown_share):
        raise TruthError(problem)
    spec = ImageSpec(uri=mask.image, truth=str(truth_path.resolve()))
    result = ImageResult(
        id=spec.id,
        uri=spec.uri,
        state="complete",
        digest=digest,
        mask=str(store),
        height=mask.grid.height,
        width=mask.grid.width,
        truth=spec.truth,
        edge_disagreement=None if known is None else known.result.edge_disagreement,
        **score_fields(record),
        unknown_labels=record.unknown,
        class_px=[sum(row[c] for row in record.counts) for c in range(len(mask.classes))],
        failed_px=sum(row[-2] for row in record.counts),
        no_data_px=sum(row[-1] for row in record.counts),
    )
    finished = dt.datetime.now(dt.UTC)
    facts = config.model_dump(mode="json")
    report = RunReport(
        run_id=f"{started:%Y%m%dT%H%M%SZ}-evaluate",
        name=store.stem,
        title=f"{store.name} against {truth_path.name}",
        started=started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        seconds=(finished - started).total_seconds(),
        command=shlex.join(["gigamask", "evaluate", str(store), str(truth_path)]),
        software=software(),
        workers=workers.description,
        config=facts,
        config_digest=digest_of(facts)[:16],
        model=ModelFacts(name=mask.model, digest=digest, path=""),
        classes=mask.classes,
        background=background(mask.classes),
        images=[result],
    )
    report = report.model_copy(update={"evaluation": evaluate(report)})
    if folder is not None:
        write_report(report, folder)
    return report


def _finished(store: Path, digest: str) -> Finished | None:
    """The record beside a mosaic; None where there is none that is about it."""
    try:
        finished = read_record(store)
    except StoreError:
        return None
    return finished if finished.plan.digest == digest else None


def get_ready() -> None:
    """Called on a worker, it has imported what blocks need: finding this function has done that."""


def workers_peak(workers: Workers) -> dict[str, int]:
    """Peak resident bytes, by process: this one, and each worker."""
    peak = {"driver": machine.peak_bytes()}
    if workers.client is not None:
        peak |= {f"worker {i}": n for i, n in enumerate(workers.client.run(machine.peak_bytes).values())}
    return peak
