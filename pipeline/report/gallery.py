"""Pictures of images on the page: within it, smaller where there are many, as long as there is room; beside it else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from pipeline.confusion import Scores
from pipeline.report import words
from pipeline.report.contract import ImageResult
from pipeline.report.findings import Findings, image_name
from pipeline.report.steps import Again, again

EMBEDDED_BYTES = 1_300_000
"""Most bytes of pictures within the page, as base64; more stay in the folder beside it."""
GALLERY = 100
"""Most images pictured on the page."""
PICTURES = ("image", "truth", "mask", "errors")
SMALLEST = 260
"""Least px of the longer side of a picture within the page."""
GAIN = 0.6
"""About what is left of a file when it becomes WebP."""
TRIED = 5
"""Images that show how much really is."""


@dataclass(frozen=True)
class Picture:
    """One picture of an image."""

    kind: str
    src: Markup


@dataclass(frozen=True)
class Shot:
    """The pictures of one image, and what is said beside them."""

    image: ImageResult
    name: str
    scores: Scores | None
    worst: str
    """Its class with the lowest IoU."""
    pictures: tuple[Picture, ...]
    again: Again | None
    words: str
    """What a reader may look for to find it."""


@dataclass(frozen=True)
class Gallery:
    """The pictured images, worst first."""

    shots: list[Shot]
    beside: int
    """How many of them have their pictures in the folder beside the page."""
    pictured: int
    """Images with pictures, shown or not."""


def gallery(findings: Findings, folder: Path) -> Gallery:
    """`folder` holds the pictures that the report names; one that is missing is left out."""
    pictured = [image for image in findings.worst_first if image.quicklook]
    found = {image.id: _pictures(image, folder) for image in pictured[:GALLERY]}
    size = sum(path.stat().st_size for paths in found.values() for path in paths.values()) * 4 / 3
    scale = _fitting(found, min(1.0, 0.85 * (EMBEDDED_BYTES / max(1.0, size * GAIN)) ** 0.5), size)
    shots, left, beside = [], EMBEDDED_BYTES, 0
    for image in pictured[:GALLERY]:
        paths = found[image.id]
        sources = {kind: _within(path, scale) for kind, path in paths.items()} if left > 0 else {}
        left -= sum(map(len, sources.values()))
        if left < 0 or not sources:
            left, beside = min(left, 0), beside + bool(paths)
            sources = {kind: Markup.escape(quote(image.quicklook[kind])) for kind in paths}
        shots.append(_shot(findings, image, sources))
    return Gallery(shots, beside, len(pictured))


def _fitting(found: dict[str, dict[str, Path]], scale: float, size: float) -> float:
    """`scale`, or less where a few images show that the page would not hold them all; `size` of all files, as base64."""
    tried = [path for paths in list(found.values())[:TRIED] for path in paths.values()]
    part = sum(path.stat().st_size for path in tried) * 4 / 3
    expected = EMBEDDED_BYTES * part / max(1.0, size)
    taken = sum(len(_within(path, scale)) for path in tried)
    return scale * min(1.0, 0.93 * (expected / taken) ** 0.5) if taken > 0.97 * expected else scale


def data_uri(data: bytes, kind: str = "png") -> Markup:
    """A picture as an address that needs no network."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")  # noqa: S704 - base64 only


def _within(path: Path, scale: float) -> Markup:
    """The picture, smaller by `scale` but for what is small already; classes keep their exact colours."""
    with Image.open(path) as picture:
        scale = min(1.0, max(scale, SMALLEST / max(picture.size)))
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        photo = path.suffix == ".jpg"
        small = picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", lossless=not photo, quality=78 if photo else 60, method=4)
    return data_uri(encoded.getvalue(), "webp")


def search_words(image: ImageResult) -> str:
    """Name, state, group and strata: what an image can be found by."""
    parts = [image_name(image), image.state, image.group or "", *image.strata.values()]
    return " ".join(part for part in parts if part).lower()


def _shot(findings: Findings, image: ImageResult, sources: dict[str, Markup]) -> Shot:
    scores = findings.image_scores[image.id]
    known = [(c.iou, code) for code, c in enumerate(scores.classes) if c.iou == c.iou] if scores else []
    worst = min(known, default=None)
    return Shot(
        image=image,
        name=image_name(image),
        scores=scores,
        worst=f"{findings.report.classes[worst[1]].name} {words.score(worst[0])}" if worst else "",
        pictures=tuple(Picture(kind, src) for kind, src in sources.items()),
        again=again(findings.report, image),
        words=search_words(image),
    )


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
