"""One self-contained page: a pure function of a report and its pictures, which asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import words
from pipeline.report.contract import ImageResult
from pipeline.report.findings import Findings, image_name, lost_px
from pipeline.report.quicklook import CONFUSED, FALSE_ALARM, MISSED, WRONG, special_colors
from pipeline.report.summary import MARKS

EMBEDDED_BYTES = 2 * 1024**2
"""Most bytes of pictures within the page; more stay in the folder beside it."""
GALLERY = 100
"""Most images pictured on the page."""
MATRIX_CLASSES = 40
"""Most classes whose confusion matrix is still readable as a table."""
PICTURES = ("image", "truth", "mask", "errors")
STATE_MARKS = {"complete": "✓", "partial": "◐", "failed": "✕", "empty": "○", "skipped": "–"}

_SHADES = 10


def page_html(findings: Findings, folder: Path) -> str:
    """The page. `folder` holds the pictures that the report names; one that is missing is left out."""
    report, scores = findings.report, findings.scores
    css = _text("report.css") + _colors(findings)
    script = _text("report.js")
    shots, embedded = _gallery(findings, folder)
    cover = findings.coverage
    commonest = max(findings.classes, key=lambda c: c.scores.reference_px if c.scores else 0).name
    images = [_image_row(findings, image) for image in findings.worst_first]
    reused = sum(image.reused for image in report.images)
    states = [f"{words.number(n)} {state}" for state in STATE_MARKS if (n := findings.states[state])]  # type: ignore[index]
    return _environment.get_template("report.html.j2").render(
        report=report,
        f=findings,
        s=scores,
        cover=cover,
        mark=MARKS[findings.verdict.level],
        state_marks=STATE_MARKS,
        policy=_policy(css, script, embedded=embedded),
        css=Markup(css),  # noqa: S704 - our own file and checked hex colours
        script=Markup(script),  # noqa: S704 - our own file
        stack=_stack(findings),
        shares=_running([{"code": c.code, "share": c.mask_share} for c in findings.classes if c.mask_px]),
        masked=sum(bool(sum(image.class_px)) for image in report.images),
        georeferenced=sum(bool(image.class_px) and image.pixel_area_m2 is not None for image in report.images),
        commonest=commonest,
        no_scores=_no_scores(findings),
        columns=[*(info.name for info in report.classes), "failed", "no data"],
        matrix=_matrix(findings) if len(report.classes) <= MATRIX_CLASSES else None,
        images=images,
        grouped=any(image.group for image in report.images),
        gallery=shots,
        pictured=sum(bool(image.quicklook) for image in report.images),
        labelled=any("truth" in image.quicklook for image in report.images),
        states=", ".join([*states, *([f"{words.number(reused)} reused from earlier runs"] if reused else [])]),
        tiles=sum(image.tiles for image in report.images),
        blocks=sum(image.blocks for image in report.images),
        worker_seconds=sum(image.seconds for image in report.images),
        software=[f"{name} {version}" for name, version in report.software.items()],
        config=_yaml(report.config),
        training=_yaml(report.model.training),
    )


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


def _policy(css: str, script: str, *, embedded: bool) -> str:
    """Nothing may be loaded or run but our own style, script and pictures."""
    pictures = "data:" if embedded else "'self' file:"
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


def _stack(findings: Findings) -> list[dict[str, Any]]:
    cover = findings.coverage
    parts = [
        ("s-scored", "segmented and scored", cover.scored),
        ("s-segmented", "segmented, not labelled", cover.segmented),
        ("s-failed", "failed", cover.failed),
        ("s-nodata", "no data", cover.no_data),
    ]
    return _running([{"css": css, "text": text, "share": cover.share(pixels)} for css, text, pixels in parts])


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
    }


def _gallery(findings: Findings, folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """The pictured images, worst first, and whether their pictures are within the page."""
    pictured = [image for image in findings.worst_first if image.quicklook][:GALLERY]
    found = {image.id: _pictures(image, folder) for image in pictured}
    embedded = sum(path.stat().st_size for paths in found.values() for path in paths.values()) * 4 / 3 <= EMBEDDED_BYTES
    shots = []
    for image in pictured:
        scores = findings.image_scores[image.id]
        worst = min(
            ((c.iou, code) for code, c in enumerate(scores.classes) if c.iou == c.iou) if scores else (),
            default=None,
        )
        sources = {kind: _data_uri(p) if embedded else quote(image.quicklook[kind]) for kind, p in found[image.id].items()}
        shots.append(
            {
                "image": image,
                "name": image_name(image),
                "scores": scores,
                "worst": f"{findings.report.classes[worst[1]].name} {words.score(worst[0])}" if worst else "",
                "pictures": [{"kind": kind, "src": src} for kind, src in sources.items()],
            }
        )
    return shots, embedded


def _pictures(image: ImageResult, folder: Path) -> dict[str, Path]:
    """Paths of the pictures that exist; none outside of the run folder."""
    paths = {}
    for kind in PICTURES:
        name = PurePosixPath(image.quicklook.get(kind, ""))
        if name.is_absolute() or ".." in name.parts or name.suffix not in (".jpg", ".png"):
            continue
        if (folder / name).is_file():
            paths[kind] = folder / name
    return paths


def _data_uri(path: Path) -> Markup:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")  # noqa: S704 - base64 only


_environment = Environment(
    loader=PackageLoader("pipeline.report", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_environment.filters.update(
    {name: getattr(words, name) for name in ("score", "percent", "number", "short", "area", "duration", "of", "listed")}
)
_environment.filters.update(moment=_moment, image_name=image_name)
