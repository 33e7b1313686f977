"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.report.contract import RunReport
    from pipeline.single import Segmented
    from pipeline.survey import Survey
    from pipeline.train import Trained

MIB = 1024**2
OUT = Console(highlight=False)
if not OUT.is_terminal:
    OUT.width = 140


def show_survey(survey: Survey, *, as_json: bool) -> None:
    """What would run, what it costs, and what would fail."""
    if as_json:
        _json(_survey_facts(survey))
        return
    table = Table(title=f"{survey.config.name}: model {survey.card.name}, {len(survey.card.classes)} classes")
    for column in ("image", "px", "tiles", "blocks of", "twice", "MiB", "disk ≤", "truth"):
        table.add_column(column, justify="left" if column in ("image", "truth") else "right", overflow="fold")
    for p in survey.planned:
        plan = p.plan
        scale = "" if plan.grid.native else f" (1/{plan.grid.scale_row:.3g})"
        table.add_row(
            _plain(Path(plan.image.uri).name),
            f"{plan.grid.height}×{plan.grid.width}{scale}",
            f"{plan.tiles_predicted:,}",
            f"{len(plan.blocks)} × {plan.block_shape[0]}×{plan.block_shape[1]}",
            f"{plan.redundancy:.1%}",
            f"{plan.memory.total / MIB:,.0f}",
            f"{plan.disk_bytes / MIB:,.0f} MiB",
            "[red]unusable" if p.truth_error else "none" if p.truth is None else "yes",
        )
    OUT.print(table)
    OUT.print("twice: share of tiles predicted more than once; MiB: memory of a worker; px (1/n): resampled from n times as many")
    disk = sum(p.plan.disk_bytes for p in survey.planned)
    most = max((p.plan.memory.total for p in survey.planned), default=0)
    OUT.print(
        f"{len(survey.planned)} images, {survey.pixels / 1e6:,.1f} Mpx; a worker needs {most / MIB:,.0f} MiB of the "
        f"{survey.memory_bytes / MIB:,.0f} MiB it may take; masks take {disk / MIB:,.0f} MiB at most, before compression"
    )
    for refused in survey.refused:
        OUT.print(f"[red]cannot run[/red] {refused.image.uri}\n  {_plain(refused.error)}")
    for p in survey.planned:
        if p.truth_error:
            OUT.print(f"[red]cannot be scored[/red] {p.plan.image.uri}\n  {_plain(p.truth_error)}")


def _survey_facts(survey: Survey) -> dict[str, Any]:
    images = [
        {
            "image": p.plan.image.uri,
            "height": p.plan.grid.height,
            "width": p.plan.grid.width,
            "native": [p.plan.read.source.height, p.plan.read.source.width],
            "bands": list(p.plan.read.bands),
            "dtype": p.plan.read.source.dtype,
            "tiles": p.plan.tiles_predicted,
            "tiles_least": p.plan.lattice.tiles,
            "redundancy": p.plan.redundancy,
            "blocks": len(p.plan.blocks),
            "block_shape": list(p.plan.block_shape),
            "memory_bytes": p.plan.memory.total,
            "disk_bytes": p.plan.disk_bytes,
            "digest": p.plan.digest,
            "truth": None if p.truth is None else p.truth.source.uri,
            "truth_error": p.truth_error,
        }
        for p in survey.planned
    ]
    refused = [{"image": r.image.uri, "error": r.error} for r in survey.refused]
    return {"name": survey.config.name, "model": survey.card.name, "images": images, "refused": refused}


def show_run(folder: Path, exit_code: int, *, as_json: bool) -> None:
    """Headline of a finished run, and where its report lies."""
    from pipeline.report import read_report

    report = read_report(folder)
    if as_json:
        _json({"exit_code": exit_code, "folder": str(folder), "report": str(folder / "report.html"), **_score_facts(report)})
        return
    _print_scores(report)
    for image in report.images:
        trouble = image.error if image.state in ("failed", "partial") else image.truth_error
        if trouble:
            OUT.print(f"[red]{image.state if image.error else 'not scored'}[/red] {image.uri}\n  {_plain(trouble)}")
    reused = sum(image.reused for image in report.images)
    OUT.print(f"{len(report.images)} images ({reused} done before) in {report.seconds:,.1f} s; report: {folder / 'report.html'}")


def show_segmented(segmented: Segmented, *, as_json: bool) -> None:
    """What was made of one image, at which speed and memory."""
    plan, result = segmented.plan, segmented.result
    pixels = plan.grid.height * plan.grid.width
    facts: dict[str, Any] = {
        "store": str(segmented.store),
        "state": result.state,
        "reused": result.reused,
        "height": plan.grid.height,
        "width": plan.grid.width,
        "tiles": result.tiles,
        "blocks": result.blocks,
        "redundancy": plan.redundancy,
        "seconds": segmented.seconds,
        "mpx_per_s": pixels / 1e6 / segmented.seconds,
        "peak_memory_mib": {name: round(n / MIB) for name, n in segmented.peak_memory.items()},
        "planned_memory_mib": round(plan.memory.total / MIB),
        "class_px": dict(zip((c.name for c in plan.card.classes), result.class_px, strict=True)),
        "failed_px": result.failed_px,
        "no_data_px": result.no_data_px,
        "error": result.error,
    }
    if as_json:
        _json(facts)
        return
    peaks = ", ".join(f"{name} {n:,}" for name, n in facts["peak_memory_mib"].items())
    OUT.print(
        f"{segmented.store}: {result.state}{' (was there already)' * result.reused}; {plan.grid.height} x {plan.grid.width} px, "
        f"{result.tiles:,} tiles in {result.blocks} blocks, {plan.redundancy:.1%} redundant, {segmented.seconds:.1f} s "
        f"({facts['mpx_per_s']:.2f} Mpx/s)\npeak memory, MiB: {peaks} (planned {facts['planned_memory_mib']:,} a worker)"
    )
    for code, c in enumerate(plan.card.classes):
        OUT.print(f"  {c.name}: {result.class_px[code] / pixels:.2%}", markup=False)
    if result.error:
        OUT.print(f"[red]{_plain(result.error)}")


def show_scores(report: RunReport, folder: Path | None, *, as_json: bool) -> None:
    """Scores of one mask."""
    if as_json:
        _json(_score_facts(report))
        return
    _print_scores(report)
    if folder is not None:
        OUT.print(f"report: {folder / 'report.html'}")


def show_trained(trained: Trained, *, as_json: bool) -> None:
    """What a training has left."""
    scores = trained.validation
    facts: dict[str, Any] = {"model": str(trained.folder), **trained.card.training}
    if as_json:
        _json(facts)
        return
    OUT.print(f"model: {trained.folder} ({trained.card.training['steps']:,} steps in {trained.card.training['minutes']} min)")
    if scores is not None:
        each = ", ".join(f"{c.name} {_number(s.iou)}" for c, s in zip(trained.card.classes, scores.classes, strict=True))
        OUT.print(f"validation mIoU {scores.miou:.4f} ({each}); learning curve: {trained.folder / 'training.png'}", markup=False)


def _score_facts(report: RunReport) -> dict[str, Any]:
    scores = report.scores
    if scores is None:
        return {"miou": None, "images": len(report.images)}
    by_class = {
        c.name: {"iou": s.iou, "dice": s.dice, "precision": s.precision, "recall": s.recall, "reference_px": s.reference_px}
        for c, s in zip(report.classes, scores.classes, strict=True)
    }
    return {
        "miou": scores.miou,
        "mdice": scores.mdice,
        "classes_counted": scores.classes_counted,
        "miou_without_background": scores.miou_without_background,
        "mean_image_miou": report.mean_image_miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "majority_accuracy": scores.majority_accuracy,
        "evaluated_px": scores.evaluated_px,
        "classes": by_class,
        "images": len(report.images),
    }


def _print_scores(report: RunReport) -> None:
    scores = report.scores
    if scores is None:
        OUT.print("nothing was scored: no image has both a mask and labels")
        return
    table = Table(title=f"mIoU {scores.miou:.4f} over {scores.classes_counted} classes, mDice {scores.mdice:.4f}")
    for column in ("class", "IoU", "Dice", "precision", "recall", "reference px"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for c, s in zip(report.classes, scores.classes, strict=True):
        row = [_plain(c.name), *map(_number, (s.iou, s.dice, s.precision, s.recall)), f"{s.reference_px:,}"]
        table.add_row(*row)
    OUT.print(table)
    OUT.print(
        f"pixel accuracy {scores.pixel_accuracy:.4f}; always answering the commonest class: {scores.majority_accuracy:.4f}; "
        f"{scores.evaluated_px:,} px evaluated, {scores.failed_px:,} of them failed"
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _plain(text: str) -> str:
    """Text as it is, not as rich's markup."""
    return text.replace("[", r"\[")


def _json(facts: dict[str, Any]) -> None:
    def clean(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        return [clean(v) for v in value] if isinstance(value, list) else value

    print(json.dumps(clean(facts), indent=2))  # noqa: T201 - the result goes to stdout
