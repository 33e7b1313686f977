"""One image without an archive: segment it into a mosaic, or score a mosaic, with the same steps as a night."""

from __future__ import annotations

import datetime as dt
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import mosaic
from pipeline.alignment import plan_truth
from pipeline.card import background, digest_of, read_card
from pipeline.cluster import Workers, memory_per_worker, open_workers
from pipeline.config import ClusterConfig, Config, TruthConfig
from pipeline.errors import TruthError
from pipeline.grid import blocks
from pipeline.image import ImageSpec
from pipeline.ledger import Ledger
from pipeline.models import verify_weights
from pipeline.night import software
from pipeline.plan import Plan, plan_image
from pipeline.process import Progress, Shop, score_mask, segment_image, sum_scores, unknown_problem
from pipeline.report import write_report
from pipeline.report.contract import ImageResult, ModelFacts, RunReport
from pipeline.sources import describe
from pipeline.truth import describe_truth

_BLOCK = 4096
"""Side of the windows in which a mosaic is scored."""


@dataclass(frozen=True)
class Segmented:
    """What `segment` has left."""

    plan: Plan
    result: ImageResult
    store: Path
    seconds: float
    """Wall time from the first block's start to the published mosaic; starting workers and planning left out."""
    peak_memory: dict[str, int]
    """Peak resident bytes of this process and of each worker."""


def segment_one(config: Config, image: Path, out: Path, progress: Progress) -> Segmented:
    """Segment `image` into a mosaic at `out`. Nothing of `config.archive` but bands and nodata counts.

    Killed, the same call goes on where it was: what is done is kept in a hidden ledger beside `out` until it is whole.
    """
    card = read_card(config.model.path)
    verify_weights(config.model.path, card)
    spec = ImageSpec(uri=str(image.resolve()))
    plan = plan_image(config, spec, describe(spec.uri), card, memory_per_worker(config.cluster))
    progress.expect(plan.grid.height * plan.grid.width)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.ledger.sqlite")
    with open_workers(config.cluster) as workers:
        started = time.perf_counter()
        with Ledger(path) as ledger:
            result = segment_image(Shop(config.model, workers, ledger, progress), plan, out)
        seconds = time.perf_counter() - started
        peak = workers_peak(workers)
    if result.state != "failed":
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return Segmented(plan, result.model_copy(update={"mask": str(out)}), out, seconds, peak)


def evaluate_one(store: Path, truth_path: Path, config: TruthConfig, cluster: ClusterConfig, folder: Path | None) -> RunReport:
    """Score the mosaic at `store` against the label raster at `truth_path`; with `folder`, write a report there.

    TruthError where the labels do not fit the mask, or hold more values that are no class than the configuration allows.
    """
    mask, digest = mosaic.facts(store)
    truth = plan_truth(config, describe_truth(str(truth_path.resolve())), mask)
    started = dt.datetime.now(dt.UTC)
    with open_workers(cluster) as workers:
        parts = blocks(*mask.grid.shape, _BLOCK, _BLOCK)
        scores, error = score_mask(store, mask, parts, truth, workers, f"evaluate-{digest}")
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
        counts=record.counts,
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
        command=f"gigamask evaluate {store} {truth_path}",
        software=software(),
        workers=workers.description,
        config=facts,
        config_digest=digest_of(facts)[:16],
        model=ModelFacts(name=mask.model, digest=digest, path=""),
        classes=mask.classes,
        background=background(mask.classes),
        images=[result],
    )
    if folder is not None:
        write_report(report, folder)
    return report


def workers_peak(workers: Workers) -> dict[str, int]:
    """Peak resident bytes, by process: this one, and each worker."""
    peak = {"driver": own_peak()}
    if workers.client is not None:
        peak |= {f"worker {i}": n for i, n in enumerate(workers.client.run(own_peak).values())}
    return peak


def own_peak() -> int:
    """Peak resident bytes of the process that asks."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
