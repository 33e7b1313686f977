"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.card import ModelCard, Probe
    from pipeline.plan import Plan
    from pipeline.report.contract import Evaluation, RunReport
    from pipeline.single import Segmented
    from pipeline.survey import Survey
    from pipeline.train import Trained

MIB = 1024**2
OUT = Console(highlight=False)
if not OUT.is_terminal:
    OUT.width = 140


def show_survey(survey: Survey, *, as_json: bool) -> None:
    """What would run, what it costs, and what would fail."""
    from pipeline.survey import free_bytes, space_problem

    if as_json:
        _json(_survey_facts(survey))
        return
    table = Table(title=f"{survey.config.name}: model {survey.card.name}, {len(survey.card.classes)} classes")
    for column in ("image", "px", "tiles", "blocks of", "twice", "MiB", "disk ≤", "truth"):
        table.add_column(column, justify="left" if column in ("image", "truth") else "right", overflow="fold")
    for p in survey.planned:
        plan = p.plan
        scale = "" if plan.grid.as_stored else f" (1/{plan.grid.scale_row:.3g})"
        table.add_row(
            _plain(Path(plan.image.uri).name),
            f"{plan.grid.height}×{plan.grid.width}{scale}",
            f"{plan.tiles_predicted if plan.tissue is None else plan.tiles_with_tissue:,}",
            f"{len(plan.blocks)} × {plan.block_shape[0]}×{plan.block_shape[1]}",
            f"{plan.redundancy:.1%}",
            f"{plan.memory.total / MIB:,.0f}",
            f"{plan.disk_bytes / MIB:,.0f} MiB",
            "[red]unusable" if p.truth_error else "none" if p.truth is None else "yes",
        )
    OUT.print(table)
    for p in survey.planned:
        if (text := _slide_text(p.plan)) is not None:
            OUT.print(f"{Path(p.plan.image.uri).name}: {text}", markup=False)
    OUT.print("twice: share of tiles predicted more than once; MiB: memory of a worker; px (1/n): resampled from n times as many")
    disk = sum(p.plan.disk_bytes for p in survey.planned)
    most = max((p.plan.memory.total for p in survey.planned), default=0)
    OUT.print(
        f"{len(survey.planned)} images, {survey.pixels / 1e6:,.1f} Mpx; a worker{_at_once(survey)} needs {most / MIB:,.0f} MiB "
        f"of the {survey.budget.memory_bytes / MIB:,.0f} MiB it may take{_on_gpu(survey)}; "
        f"masks take {disk / MIB:,.0f} MiB at most, before compression"
    )
    expected, free = survey.missing_bytes, free_bytes(survey.config.output)
    OUT.print(f"masks still to be made: about {expected / MIB:,.0f} MiB, of {free / MIB:,.0f} MiB free")
    if problem := space_problem(survey):
        OUT.print(f"[red]cannot run[/red] {_plain(problem)}")
    for refused in survey.refused:
        OUT.print(f"[red]cannot run[/red] {refused.image.uri}\n  {_plain(refused.error)}")
    for p in survey.planned:
        if p.truth_error:
            OUT.print(f"[red]cannot be scored[/red] {p.plan.image.uri}\n  {_plain(p.truth_error)}")


def _at_once(survey: Survey) -> str:
    blocks = survey.budget.blocks_at_once
    return f" with {blocks} blocks at a time" if blocks > 1 else ""


def _on_gpu(survey: Survey) -> str:
    """What the most demanding image takes of a worker's GPU, where that is planned."""
    most = max((p.plan.memory.gpu for p in survey.planned), default=0)
    if survey.budget.gpu_bytes is None or not most:
        return ""
    return f", and {most / MIB:,.0f} of {survey.budget.gpu_bytes / MIB:,.0f} MiB of its GPU"


def _slide_text(plan: Plan) -> str | None:
    """What there is to know of a slide, or of an area that is drawn, beside what the table has; None where there is nothing."""
    from pipeline.plan import read_as

    source, told = plan.read.source, []
    if (text := read_as(plan)) is not None:
        told.append(text)
    if source.reader == "slide":
        told.append(f"levels of {', '.join(f'{height}×{width}' for height, width in source.levels)}")
    if plan.tissue is not None:
        area = "" if (mm2 := plan.tissue.area_mm2) is None else f" ({mm2:.3g} mm²)"
        with_tissue = sum(plan.holds_tissue(block.core) for block in plan.blocks)
        told.append(f"tissue {plan.tissue.share:.1%}{area}, in {with_tissue} of {len(plan.blocks)} blocks; {plan.tissue.method}")
    if plan.area is not None:
        told.append(f"only what {plan.area.source.uri} outlines")
    return "; ".join(told) or None


def _survey_facts(survey: Survey) -> dict[str, Any]:
    from pipeline.survey import free_bytes, space_problem

    images = [
        {
            "image": p.plan.image.uri,
            "height": p.plan.grid.height,
            "width": p.plan.grid.width,
            "native": [p.plan.read.source.height, p.plan.read.source.width],
            "bands": list(p.plan.read.bands),
            "dtype": p.plan.read.source.dtype,
            "reader": p.plan.read.source.reader,
            "format": p.plan.read.source.driver,
            "levels": [list(shape) for shape in p.plan.read.source.levels],
            "level": p.plan.grid.level,
            "pixel_size_m": p.plan.read.source.pixel_size_m,
            "pixel_size_from": p.plan.read.source.pixel_size_from,
            "tissue_share": None if p.plan.tissue is None else p.plan.tissue.share,
            "tissue_mm2": None if p.plan.tissue is None else p.plan.tissue.area_mm2,
            "tiles_with_tissue": p.plan.tiles_with_tissue,
            "tiles": p.plan.tiles_predicted,
            "tiles_least": p.plan.lattice.tiles,
            "redundancy": p.plan.redundancy,
            "blocks": len(p.plan.blocks),
            "block_shape": list(p.plan.block_shape),
            "memory_bytes": p.plan.memory.total,
            "gpu_bytes": p.plan.memory.gpu,
            "disk_bytes": p.plan.disk_bytes,
            "digest": p.plan.digest,
            "truth": None if p.truth is None else p.truth.source.uri,
            "truth_error": p.truth_error,
        }
        for p in survey.planned
    ]
    refused = [{"image": r.image.uri, "error": r.error} for r in survey.refused]
    disk = {"expected_bytes": survey.missing_bytes, "free_bytes": free_bytes(survey.config.output)}
    disk_error = space_problem(survey)
    facts = {"name": survey.config.name, "model": survey.card.name, "images": images, "refused": refused}
    return facts | {"disk": disk | {"error": disk_error}}


def show_run(folder: Path, exit_code: int, *, as_json: bool) -> None:
    """Headline of a finished run, and where its report lies."""
    from pipeline.report import read_report

    report = read_report(folder)
    evaluation = report.evaluation
    if as_json:
        facts = {"exit_code": exit_code, "folder": str(folder), "report": str(folder / "report.html"), **_score_facts(report)}
        _json(facts | {"evaluation": evaluation.model_dump(mode="json") if evaluation else None})
        return
    _print_scores(report)
    if evaluation is not None:
        print_judgement(evaluation)
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
        "load_seconds": result.load_seconds,
        "start_seconds": segmented.start_seconds,
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
        f"({facts['mpx_per_s']:.2f} Mpx/s), {result.load_seconds:.1f} s of them loading the model; before, "
        f"{segmented.start_seconds:.1f} s starting workers\n"
        f"peak memory, MiB: {peaks} (planned {facts['planned_memory_mib']:,} a worker)"
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


def show_probe(probe: Probe, card: ModelCard, *, as_json: bool) -> None:
    """What was measured of a model, and what follows for its tiles. `card` is the model's, with this probe."""
    advice = _tile_advice(probe, card)
    if as_json:
        _json({"model": card.name, **probe.model_dump(mode="json"), "advice": advice})
        return
    OUT.print(f"{card.name}: {'' if probe.invariant else 'not '}translation-invariant; measured on {probe.content}", markup=False)
    OUT.print(f"  {probe.finding}", markup=False)
    radii = ", ".join(f"{float(share):.1%} within {radius} px" for share, radius in probe.gradient_radius.items())
    OUT.print(f"effective receptive field: of the gradient's energy {radii or 'nothing is known (no gradient)'}")
    OUT.print(f"a change is felt up to {probe.reach} px away, and changes labels up to {probe.halo} px (halo: the least overlap)")
    felt = Table(title="A change so many px away, or a tile's border")
    for heading in ("px from", "other labels", "mean change of scores"):
        felt.add_column(heading, justify="right")
    for one in probe.influence:
        felt.add_row(str(one.distance), f"{one.labels:.3%}", f"{one.score:.1e}")
    OUT.print(felt)
    seams = Table(title=f"Seams of tiles of {probe.seam_tile} px")
    for heading in ("overlap", "other labels", "pixels through the model"):
        seams.add_column(heading, justify="right")
    for seam in probe.seams:
        times = (probe.seam_tile / (probe.seam_tile - seam.overlap)) ** 2
        seams.add_row(str(seam.overlap), f"{seam.share:.3%}", f"{times:.2f} x")
    OUT.print(seams)
    if not probe.invariant:
        OUT.print(f"advice: keep tiles of {card.tile} px, as in training; tile: auto is refused for this model")
        return
    tiles = Table(title=f"Tiles on {probe.device}, {probe.threads} side by side")
    for heading in ("tile", "overlap", "other labels", "s a tile", "µs a px", "µs a useful px", "MiB a tile"):
        tiles.add_column(heading, justify="right")
    for row in advice:
        overlap, share, useful = row["overlap"], row["seam_share"], row["us_per_useful_px"]
        tiles.add_row(
            str(row["tile"]),
            "–" if overlap is None else str(overlap),
            "–" if share is None else f"{share:.3%}",
            f"{row['seconds']:.3f}",
            f"{row['us_per_px']:.2f}",
            "–" if useful is None else f"{useful:.2f}",
            f"{row['bytes'] / MIB:,.0f}",
        )
    OUT.print(tiles)
    OUT.print(
        f"overlap: least that leaves no more of the seams than {card.tile}/{card.overlap} and 512/128 do (–: none does); "
        "other labels: reckoned from the seams above"
    )
    usable = [row for row in advice if row["overlap"] is not None]
    if usable:
        best = min(usable, key=lambda row: float(row["us_per_useful_px"]))
        OUT.print(f"advice: tile {best['tile']}, overlap {best['overlap']}, on large images, where memory allows")


def _tile_advice(probe: Probe, card: ModelCard) -> list[dict[str, Any]]:
    rows = []
    for cost in probe.tiles:
        overlap = card.advised_overlap(cost.tile) if probe.invariant else None
        rows.append(
            {
                **cost.model_dump(),
                "overlap": overlap,
                "seam_share": None if overlap is None else probe.seam_share(cost.tile, overlap),
                "us_per_px": 1e6 * cost.seconds / cost.tile**2,
                "us_per_useful_px": None if overlap is None else 1e6 * cost.seconds / (cost.tile - overlap) ** 2,
            }
        )
    return rows


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


def print_judgement(found: Evaluation) -> None:
    """How sure the headline is, how it has changed, and what became of the gates."""
    from pipeline.report.words import interval, of, signed

    miou = found.overall["miou"]
    if miou.value is not None:
        sure = f"95 % interval {interval(miou.low, miou.high)}" if miou.low is not None else "no interval"
        OUT.print(f"mIoU {miou.value:.4f}: {sure}, over {of(miou.units, found.unit)}")
    if found.comparison is not None:
        moved = found.comparison.overall["miou"]
        OUT.print(
            f"against run {found.comparison.baseline.run_id}, {of(found.comparison.images, 'image')}: {signed(moved.delta)}, "
            f"95 % interval {interval(moved.low, moved.high, signed)}"
        )
    colors = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
    for gate in found.gates:
        OUT.print(f"[{colors[gate.outcome]}]{gate.outcome}[/] gate {_plain(gate.name)}: {_plain(gate.why)}")


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
