"""Slides: pieces of tissue on glass, in which tumours have more and larger nuclei, with truth as an annotator would draw it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline import rasterfile, rasterwrite
from pipeline.atomic import replacing, write_bytes
from pipeline.demo.scenes import smooth
from pipeline.grid import Window

Rgb = NDArray[np.uint8]
"""(h, w, 3), red first."""
Points = NDArray[np.float64]
"""(n, 2): column and row of each vertex, in pixels of level 0."""

CLASSES = ("background", "tumor")
"""What the labels tell apart: their values are the positions."""
MPP = 0.5
"""Micrometres a pixel of level 0."""
LEVELS = (1, 4, 16)
"""Downsamples of the pyramid."""
_TILE = 256
_GLASS, _STROMA, _NUCLEUS = ((np.array(color, np.float32)) for color in ((243, 241, 244), (226, 172, 203), (104, 66, 138)))


@dataclass(frozen=True)
class Slide:
    """One slide to make."""

    name: str
    height: int
    """Rows of level 0."""
    width: int
    """Columns of level 0."""
    pieces: int
    """Of tissue."""
    seed: int


SLIDES = (Slide("train_a", 2048, 2048, 1, 1), Slide("train_b", 1024, 1024, 1, 2), Slide("night_a", 2560, 4096, 2, 3))


def make_slides(folder: Path, slides: Sequence[Slide] = SLIDES) -> list[Path]:
    """Write the slides that `folder` lacks: NAME.tif, a pyramid with its pixel size, and its labels: of a training slide
    `labels/NAME.tif`, of others `annotations/NAME.geojson` as QuPath writes it. The paths of all slides."""
    paths = []
    for slide in slides:
        path = folder / f"{slide.name}.tif"
        labels = folder / ("labels" if slide.name.startswith("train") else "annotations") / slide.name
        paths.append(path)
        if path.exists():
            continue
        labels.parent.mkdir(parents=True, exist_ok=True)
        pixels, tumors = paint(slide)
        if slide.name.startswith("train"):
            rasterwrite.write(labels.with_suffix(".tif"), _burnt(tumors, pixels.shape[:2])[None])
        else:
            write_bytes(labels.with_suffix(".geojson"), json.dumps(_annotations(tumors)).encode())
        write_pyramid(path, pixels)
    return paths


def paint(slide: Slide) -> tuple[Rgb, list[Points]]:
    """(pixels (height, width, 3), outlines of the tumours).

    Stroma and nuclei have the same colours everywhere; a tumour is where nuclei are many and large.
    """
    rng = np.random.default_rng(slide.seed)
    shape = slide.height, slide.width
    centres = [((i + 0.5) * slide.width / slide.pieces, slide.height / 2) for i in range(slide.pieces)]
    radius = 0.42 * min(slide.height, slide.width / slide.pieces)
    pieces = [_blob(rng, centre, radius) for centre in centres]
    tumors = [
        _blob(rng, (x + rng.uniform(-0.4, 0.4) * radius, y + rng.uniform(-0.4, 0.4) * radius), radius * rng.uniform(0.25, 0.4))
        for x, y in centres
    ]
    tissue = _burnt(pieces, shape) == 1
    inside = (_burnt(tumors, shape) == 1) & tissue
    light = 1 + 0.015 * smooth(rng, max(shape), 500)[: shape[0], : shape[1], None]
    fibres = 1 + 0.05 * smooth(rng, max(shape), 24)[: shape[0], : shape[1], None]
    pixels = np.where(tissue[..., None], _STROMA * fibres, _GLASS)
    _stamp(pixels, rng, tissue & ~inside, every=38, radius=(4, 6))
    _stamp(pixels, rng, inside, every=20, radius=(6, 9))
    pixels *= light
    pixels += 1.5 * rng.standard_normal(shape, np.float32)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8), tumors


def write_pyramid(path: Path, pixels: Rgb) -> None:
    """Write a tiled TIFF of all LEVELS that states its pixel size; it appears at `path` whole or not at all."""
    with replacing(path) as draft, tifffile.TiffWriter(draft) as file:
        for factor in LEVELS:
            per_cm = 10_000 / (MPP * factor)
            file.write(
                _mean_of_squares(pixels, factor),
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="rgb",
                subfiletype=int(factor > 1),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> Points:
    """The outline of a rounded piece around a centre (x, y)."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = sum(rng.normal(0, 0.12 / n) * np.cos(n * turn + rng.uniform(0, 7)) for n in range(2, 7))
    out = radius * (1 + waves)
    return np.stack([centre[0] + out * np.cos(turn), centre[1] + out * np.sin(turn)], axis=1)


def _burnt(outlines: list[Points], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w): 1 where a pixel's centre lies in an outline, else 0."""
    inside = np.zeros(shape, np.uint8)
    rasterfile.burn([(polygon, 1) for polygon in map(_polygon, outlines)], Window(0, 0, *shape), inside)
    return inside


def _polygon(outline: Points) -> dict[str, object]:
    """As GeoJSON has it, its ring closed."""
    return {"type": "Polygon", "coordinates": [np.round([*outline, outline[0]], 2).tolist()]}


def _annotations(outlines: list[Points]) -> dict[str, object]:
    """What QuPath would export of them."""
    properties = {"objectType": "annotation", "classification": {"name": CLASSES[1], "color": [200, 0, 0]}}
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "id": str(UUID(int=i + 1)), "geometry": _polygon(outline), "properties": properties}
            for i, outline in enumerate(outlines)
        ],
    }


def _stamp(
    pixels: NDArray[np.float32], rng: np.random.Generator, where: NDArray[np.bool_], every: int, radius: tuple[int, int]
) -> None:
    """Paint nuclei about `every` px, of a radius in px between two, centred where `where` (h, w) is True."""
    for row, col, size in _places(rng, where.shape, every, radius):
        if not where[row, col]:
            continue
        top, left = max(0, row - size), max(0, col - size)
        part = pixels[top : row + size + 1, left : col + size + 1]
        rows, cols = np.ogrid[top - row : top - row + part.shape[0], left - col : left - col + part.shape[1]]
        part[rows**2 + cols**2 <= size**2] = _NUCLEUS * rng.uniform(0.85, 1.1)


def _places(
    rng: np.random.Generator, shape: tuple[int, ...], every: int, radius: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    """(row, column, radius) of one nucleus a square."""
    for top in range(0, shape[0] - every, every):
        for left in range(0, shape[1] - every, every):
            down, right = rng.integers(0, every, 2)
            yield top + int(down), left + int(right), int(rng.integers(radius[0], radius[1] + 1))


def _mean_of_squares(pixels: Rgb, factor: int) -> Rgb:
    """The picture at 1 / factor of its resolution."""
    if factor == 1:
        return pixels
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    squares = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(squares.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
