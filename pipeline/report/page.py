"""One self-contained page: a pure function of a report, its pictures and what earlier runs said, which asks nothing of the
network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import plots, words
from pipeline.report.contract import ImageResult, RunReport
from pipeline.report.findings import Findings, first_line, image_name, lost_px
from pipeline.report.gallery import data_uri, gallery, search_words
from pipeline.report.measured import Seam, borders, error_maps, reliability, seams
from pipeline.report.past import Drift, Night, Past, days, drift_words, drifts, nights
from pipeline.report.plots import Mark, Point
from pipeline.report.quicklook import CONFUSED, FALSE_ALARM, MISSED, WRONG, special_colors
from pipeline.report.signals import Band, Signal, confidence, of_training, signals, told
from pipeline.report.steps import HEADLINES, cite, next_steps
from pipeline.report.summary import MARKS
from pipeline.statistics.gates import WORDS

MATRIX_CLASSES = 40
"""Most classes whose confusion matrix is still readable as a table."""
SPARKS = 40
"""Most classes with a curve of their own."""
MAPS = 100
"""Most images whose errors are mapped on the page; MAPS_SHOWN of them at first sight."""
MAPS_SHOWN = 24
SHOTS_SHOWN = 10
"""Pictured images at first sight; the others unfold."""
FEW_LABELS = 0.05
"""Share of labelled pixels below which the page says so aloud."""
STATE_MARKS = {"complete": "✓", "partial": "◐", "failed": "✕", "empty": "○", "skipped": "–"}
GATE_MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}

_SHADES = 10


def page_html(findings: Findings, folder: Path, past: Past = Past()) -> str:  # noqa: B008 - frozen
    """The page. `folder` holds the pictures that the report names; one that is missing is left out."""
    report = findings.report
    css, script = _text("report.css") + _colors(findings), _text("report.js")
    pictures = gallery(findings, folder)
    context = {
        "report": report,
        "f": findings,
        "e": findings.evaluation,
        "s": findings.scores,
        "cover": findings.coverage,
        "policy": _policy(css, script, beside=pictures.beside > 0),
        "css": Markup(css),  # noqa: S704 - our own file and checked hex colours
        "script": Markup(script),  # noqa: S704 - our own file
        "gallery": pictures,
        "past": past,
        "shots_shown": SHOTS_SHOWN,
        "state_marks": STATE_MARKS,
        "gate_marks": GATE_MARKS,
        "metric_words": WORDS,
        "borders": borders(report),
        "reliability": (calibrated := reliability(report)),
        "seams": (found_seams := seams(report)),
        "cite": cite(findings),
        "config": _yaml(report.config),
        "training": _yaml(report.model.training),
        **_verdict(findings),
        **_run(findings),
        **_accuracy(findings),
        **_classes(findings),
        **_images(findings),
        **_maps(findings),
        **_history(nights(past, report)),
        **_unlabelled(findings, past),
    }
    context["reliability_plot"] = calibrated and plots.reliability(
        [(b.confidence, b.accuracy, b.pixels) for b in calibrated.found.bins if b.pixels], calibrated.sentence
    )
    context["seam_plots"] = [(seam, _seam_plot(seam)) for seam in found_seams]
    template = _environment.get_template("report.html.j2")
    return template.render(context)


def _text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8").strip()


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def _moment(text: str) -> str:
    """An ISO 8601 moment to the minute, in its own offset; as it is where it cannot be read."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    offset = moment.strftime("%:z")
    return f"{moment:%Y-%m-%d %H:%M} {'UTC' if offset in ('+00:00', '') else offset}"


def _ground(square_metres: float | None) -> str:
    """An area, also of what lies under a microscope."""
    if square_metres is None or isnan(square_metres) or square_metres == 0 or square_metres >= 0.01:
        return words.area(square_metres)
    return f"{square_metres * 1e6:,.3g} mm²"


def _policy(css: str, script: str, *, beside: bool) -> str:
    """Nothing may be loaded or run but our own style, script and pictures."""
    pictures = "data: 'self' file:" if beside else "data:"
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src {pictures}; "
        f"style-src '{_integrity(css)}'; script-src '{_integrity(script)}'"
    )


def _integrity(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _colors(findings: Findings) -> str:
    """Styles that depend on the classes, and the shades of the matrix."""
    special = special_colors(findings.report.classes)
    flat = {f"c{c.code}": c.color for c in findings.classes}
    flat |= {"q-nodata": special.no_data, "q-right": "#a3a3a3", "q-wrong": WRONG}
    flat |= {"q-missed": MISSED, "q-false": FALSE_ALARM, "q-confused": CONFUSED}
    lines = [f".{name} {{ background: {color}; fill: {color}; }}" for name, color in flat.items()]
    for name, color, stripe in (
        ("q-failed", special.failed, "#000000"),
        ("q-unlabelled", special.unlabelled, special.unlabelled_stripe),
    ):
        lines.append(f".{name} {{ background: repeating-linear-gradient(135deg, {stripe} 0 2px, {color} 2px 5px); }}")
    for kind in ("right", "wrong", "lost"):
        for shade in range(1, _SHADES + 1):
            lines.append(f".{kind}{shade} {{ background: rgb(var(--{kind}) / {shade * 0.8 / _SHADES:.2f}); }}")
    return "\n" + "\n".join(lines)


def _running(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same parts, each with the sum of the shares before it as `start`."""
    start = 0.0
    for part in parts:
        part["start"] = start
        start += part["share"]
    return parts


def _verdict(findings: Findings) -> dict[str, Any]:
    """The first thing on the page: what to think of the run, and what to do."""
    cover, verdict = findings.coverage, findings.verdict
    judged = {gate.why for gate in findings.evaluation.gates}
    parts = [
        ("s-scored", "segmented and scored", cover.scored),
        ("s-segmented", "segmented, not labelled", cover.segmented),
        ("s-failed", "failed", cover.failed),
        ("s-nodata", "no data", cover.no_data),
    ]
    order = {"fail": 0, "inconclusive": 1, "pass": 2}
    return {
        "mark": MARKS[verdict.level],
        "headline": HEADLINES[verdict.level],
        "steps": next_steps(findings),
        "reasons": [why for why in verdict.reasons if why not in judged and "more gate" not in why],
        "gates": sorted(findings.evaluation.gates, key=lambda gate: order[gate.outcome]),
        "stack": _running([{"css": css, "text": text, "share": cover.share(pixels)} for css, text, pixels in parts]),
    }


def _run(findings: Findings) -> dict[str, Any]:
    """What ran, and what it cost: of the images that this run worked on itself."""
    report = findings.report
    images = report.images
    states = [f"{words.number(n)} {state}" for state in STATE_MARKS if (n := findings.states[state])]  # type: ignore[index]
    reused = sum(image.reused for image in images)
    states += [f"{words.number(reused)} reused from earlier runs"] if reused else []
    mine = [image for image in images if not image.reused]
    worked = [image for image in mine if image.class_px]
    pixels = sum(sum(image.class_px) + image.failed_px for image in worked)
    busy = sum(image.seconds for image in worked)
    ground = sum((sum(image.class_px) + image.failed_px) * image.pixel_area_m2 for image in worked if image.pixel_area_m2)
    return {
        "states": ", ".join(states),
        "tiles": sum(image.tiles for image in mine),
        "blocks": sum(image.blocks for image in mine),
        "retries": sum(image.retries for image in mine),
        "deaths": sum(image.deaths for image in mine),
        "load_seconds": max((image.load_seconds for image in mine), default=0.0),
        "worker_seconds": sum(image.seconds for image in mine),
        "worked": len(worked),
        "speed": pixels / report.seconds / 1e6 if pixels and report.seconds > 0 else None,
        "worker_speed": pixels / busy / 1e6 if pixels and busy > 0 else None,
        "ground_speed": _ground_speed(ground, report),
        "gpu_busy": _gpu_busy(mine, report),
        "software": [f"{name} {version}" for name, version in report.software.items()],
        "causes": _causes(findings),
    }


def _gpu_busy(mine: list[ImageResult], report: RunReport) -> float | None:
    """Share of the run's time in which its GPUs computed; None without any."""
    computed = [image.device_seconds for image in mine if image.device_seconds is not None]
    there = report.seconds * (report.processes or 0)
    return min(1.0, sum(computed) / there) if computed and there > 0 else None


def _ground_speed(ground: float, report: RunReport) -> str | None:
    """km² an hour, or seconds a mm² under a microscope; None without georeference."""
    if not ground or report.seconds <= 0:
        return None
    if ground < 1:
        return f"{report.seconds / (ground * 1e6):.3g} s/mm²"
    speed = ground / 1e6 / (report.seconds / 3600)
    return f"{speed:,.0f} km²/h" if speed >= 100 else f"{speed:.3g} km²/h"


def _causes(findings: Findings) -> list[dict[str, Any]]:
    """Images with trouble, those together that have the same cause; those with most images first."""
    groups: dict[tuple[str, str], list[ImageResult]] = {}
    for image in findings.troubled:
        told = image.error or (None if image.truth_error else "No cause was recorded")
        for what, text in ((image.state, told), ("not scored", image.truth_error)):
            if text:
                cause = first_line(text).replace(image.uri, "…").replace(image_name(image), "…").replace(image.id, "…")
                groups.setdefault((what, cause), []).append(image)
    found: list[dict[str, Any]] = [{"what": what, "cause": cause, "images": images} for (what, cause), images in groups.items()]
    for group in found:
        first: ImageResult = group["images"][0]
        group["whole"] = (first.truth_error if group["what"] == "not scored" else first.error) or ""
    return sorted(found, key=lambda group: -len(group["images"]))


def _accuracy(findings: Findings) -> dict[str, Any]:
    cover, found = findings.coverage, findings.evaluation
    labelled = cover.scored / cover.with_data if cover.with_data else 0.0
    comparison = found.comparison
    moved = [c for c in findings.classes if c.deltas and c.deltas["iou"].delta is not None]
    ends = [abs(v) for c in moved if c.deltas for v in (c.deltas["iou"].low, c.deltas["iou"].high, c.deltas["iou"].delta) if v]
    return {
        "labelled": labelled,
        "few_labels": labelled < FEW_LABELS,
        "commonest": max(findings.classes, key=lambda c: c.scores.reference_px if c.scores else 0).name,
        "no_scores": _no_scores(findings),
        "moved": moved if comparison else [],
        "reach": max(ends, default=0.0) or 0.01,
    }


def _no_scores(findings: Findings) -> str:
    images = findings.report.images
    if not any(image.truth for image in images):
        return "No image has reference labels."
    if not any(image.class_px for image in images):
        return "No image has a mask."
    errors = sum(image.truth_error is not None for image in images)
    return (
        f"The reference labels of {words.of(errors, 'image')} could not be used: see Failures."
        if errors
        else "No pixel is both labelled and with data."
    )


def _classes(findings: Findings) -> dict[str, Any]:
    report = findings.report
    areas = findings.evaluation.areas
    known = [] if areas is None else [v for a in areas.classes for v in (a.mapped, a.estimated, a.high) if v is not None]
    return {
        "shares": _running([{"code": c.code, "share": c.mask_share} for c in findings.classes if c.mask_px]),
        "masked": sum(bool(sum(image.class_px)) for image in report.images),
        "georeferenced": sum(bool(image.class_px) and image.pixel_area_m2 is not None for image in report.images),
        "columns": [*(info.name for info in report.classes), "failed", "no data"],
        "matrix": _matrix(findings) if len(report.classes) <= MATRIX_CLASSES else None,
        "largest_area": max(known, default=0.0) or 1.0,
    }


def _matrix(findings: Findings) -> list[dict[str, Any]]:
    """Rows of the confusion matrix as a heat map; the last one is what is not labelled."""
    if findings.counts is None:
        return []
    names = [*(info.name for info in findings.report.classes), "not labelled"]
    classes = len(findings.report.classes)
    rows = []
    for code, name in enumerate(names):
        counts = [int(n) for n in findings.counts[code]]
        whole = sum(counts[: classes + 1]) if code < classes else sum(counts)
        cells = []
        for column, pixels in enumerate(counts):
            evaluated = code < classes and column <= classes
            share = pixels / whole if whole and (evaluated or code == classes) else None
            kind = "right" if column == code else "lost" if column == classes else "wrong"
            shade = max(1, round((share or 0) ** 0.5 * _SHADES)) if pixels else 0
            shown = "plain" if not evaluated else f"{kind}{shade}" if shade else "zero"
            cells.append(
                {
                    "count": pixels,
                    "note": "left out" if pixels and share is None else words.percent(share) if pixels and whole else "",
                    "css": f"{shown} gap".strip() if column == classes else shown,
                    "title": f"{name} in the reference, {([*names[:-1], 'failed', 'no data'])[column]} in the mask: "
                    f"{words.number(pixels)} px",
                }
            )
        rows.append({"name": name, "apart": code == classes, "cells": cells})
    return rows


def _images(findings: Findings) -> dict[str, Any]:
    report = findings.report
    each = [
        (image_name(image), found.miou)
        for image in report.images
        if (found := findings.image_scores[image.id]) is not None and not isnan(found.miou)
    ]
    spread = None
    if len(each) > 1:
        middle = median(value for _, value in each)
        label = f"Per-image mIoU of {words.of(len(each), 'image')}: median {words.score(middle)}"
        spread = plots.histogram(each, label, middle, "mIoU of an image")
    return {
        "images": [_image_row(findings, image) for image in findings.worst_first],
        "grouped": any(image.group for image in report.images),
        "states_found": [state for state in STATE_MARKS if findings.states[state]],  # type: ignore[index]
        "spread": spread,
        "labelled_pictures": any("truth" in image.quicklook for image in report.images),
    }


def _image_row(findings: Findings, image: ImageResult) -> dict[str, Any]:
    why = "no labels"
    if image.truth_error:
        why = "labels not usable"
    elif image.truth:
        why = "no mask" if image.counts is None else "nothing labelled"
    return {
        "image": image,
        "name": image_name(image),
        "scores": findings.image_scores[image.id],
        "why": why,
        "pixels": image.height * image.width,
        "lost": lost_px(image),
        "words": search_words(image),
    }


def _maps(findings: Findings) -> dict[str, Any]:
    found, full = error_maps(findings.report)
    return {
        "maps": [
            {"map": m, "name": image_name(m.image), "src": data_uri(m.png), "words": search_words(m.image)} for m in found[:MAPS]
        ],
        "maps_full": full,
        "maps_shown": MAPS_SHOWN,
    }


def _seam_plot(seam: Seam) -> Markup:
    found = seam.curve
    points = [
        (
            float(at),
            Point(
                None if isnan(rate) else float(rate),
                None if isnan(rate) else float(low),
                None if isnan(rate) else float(high),
                f"{at} px: {words.percent(float(rate))} of {words.number(int(pixels))} px",
            ),
        )
        for at, rate, low, high, pixels in zip(found.distance, found.rate, found.low, found.high, found.pixels, strict=True)
    ]
    marks = [Mark(seam.overlap / 2, "half of the overlap")]
    return plots.curve(
        points,
        seam.sentence,
        x_text="px to the border of the tile",
        y_text="wrong pixels" if seam.errors else "differing pixels",
        marks=marks,
        level=seam.advice.interior if seam.advice else None,
        kind="" if seam.errors else "other",
    )


def _unlabelled(findings: Findings, past: Past) -> dict[str, Any]:
    """What needs no labels: signals of this run beside earlier ones, and bands beside the training."""
    report, check = findings.report, findings.inputs
    found, every, known = drifts(report, past), signals(report), report.model.training_class_px
    if not found and not known and all(s.metric == "mask_share" for s in every):
        every = []  # the table of classes has them
    return {
        "drift_words": drift_words(found, check),
        "drifts": found,
        "most_runs": max((d.runs for d in found), default=0),
        "sure": confidence(report),
        "training_known": known is not None and any(known),
        "signal_rows": [SignalRow.of(s, report, found) for s in every if found or not s.metric.startswith("band")],
        "bands": [{"band": band, "plot": _band_plot(band)} for band in check.bands],
        "bands_known": any(band.training is not None for band in check.bands),
        "strange": check.strange,
    }


def _band_plot(band: Band) -> Markup:
    told = f"{band.name}: median {words.sample(band.now[2])}, from {words.sample(band.now[0])} to {words.sample(band.now[-1])}"
    if band.training is not None:
        told += f"; in the training {words.sample(band.training[2])}, {words.sample(band.training[0])} to "
        told += words.sample(band.training[-1])
    return plots.spans(band.now, band.training, told)


@dataclass(frozen=True)
class SignalRow:
    """A number that needs no labels, as a row of a table."""

    signal: Signal
    name: str
    training: float | None
    """The same of the training's labels or samples, where known."""
    drift: Drift | None

    @classmethod
    def of(cls, signal: Signal, report: RunReport, found: list[Drift]) -> SignalRow:
        """The row of a signal of `report`."""
        return cls(signal, told(signal), of_training(signal, report), next((d for d in found if d.signal == signal), None))

    @property
    def code(self) -> int | None:
        """Of the class that it is about."""
        return self.signal.code if self.signal.metric == "mask_share" else None

    @property
    def now(self) -> float:
        """The number."""
        return self.signal.value

    def text(self, value: float | None) -> str:
        """A value of its kind."""
        return words.sample(value) if self.signal.metric == "band_median" else words.percent(value)

    def place(self, value: float) -> float:
        """Where on a bar of 100 a value lies that reaches somewhat beyond all there are."""
        if self.drift is None:
            return 0.0
        least = min(0.0, self.drift.low, self.now)
        reach = (max(self.drift.high, self.now) - least) * 1.1
        return (value - least) / reach * 100 if reach else 0.0


def _history(runs: list[Night]) -> dict[str, Any]:
    """Curves over runs; nothing where there is no earlier one with scores."""
    if sum((row := run.scores.get("miou")) is not None and row.value is not None for run in runs) < 2:
        return {"trend": None, "sparks": [], "runs": runs, "changed_models": []}
    names = days([run.started for run in runs])
    points, marks, changed = [], [], []
    for n, (run, name) in enumerate(zip(runs, names, strict=True)):
        row = run.scores["miou"]
        said = f"{name}: mIoU {words.score(row.value)} of {words.of(run.scored_images, 'image')}, run {run.run_id}"
        said += f", gates: {run.outcome}" if run.outcome else ""
        points.append(Point(row.value, row.low, row.high, said, run.outcome or ""))
        if n and run.model_digest != runs[n - 1].model_digest:
            changed.append((name, run.model, run.model_digest[:12]))
            marks.append(Mark(n - 0.5, f"model {run.model} {run.model_digest[:6]}", "mark model"))
        elif n and run.config_digest != runs[n - 1].config_digest:
            marks.append(Mark(n - 0.5, "", "mark config"))
    label = f"mIoU over {words.of(len(runs), 'run')}, from {words.score(points[0].value)} to {words.score(points[-1].value)}"
    return {
        "trend": plots.trend(points, names, label, marks),
        "sparks": _sparks(runs),
        "runs": runs,
        "changed_models": changed,
        "changed_config": any(mark.kind == "mark config" for mark in marks),
    }


def _sparks(runs: list[Night]) -> list[dict[str, Any]]:
    """A line a class: its curve, what it was last time and is now, and the least and most it ever was."""
    found = []
    for name in list(runs[-1].iou)[:SPARKS]:
        values = [run.iou.get(name) for run in runs]
        known = [v for v in values if v is not None]
        if len(known) > 1:
            before = next((v for v in reversed(values[:-1]) if v is not None), None)
            found.append(
                {
                    "name": name,
                    "code": list(runs[-1].iou).index(name),
                    "plot": plots.spark(values, f"IoU of {name} over {words.of(len(known), 'run')}"),
                    "now": values[-1],
                    "before": before,
                    "change": None if before is None or values[-1] is None else values[-1] - before,
                    "low": min(known),
                    "high": max(known),
                }
            )
    return found


_environment = Environment(
    loader=PackageLoader("pipeline.report", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_environment.filters.update(
    {
        name: getattr(words, name)
        for name in (
            "score",
            "signed",
            "interval",
            "chance",
            "percent",
            "number",
            "short",
            "duration",
            "of",
            "listed",
            "sample",
            "minus",
        )
    }
)
_environment.filters.update(moment=_moment, image_name=image_name, area=_ground, first_line=first_line)
