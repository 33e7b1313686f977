"""Scenes: fields of different texture and like colour, with truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import rasterfile, rasterwrite
from pipeline.confusion import count, no_counts, scores

Floats = NDArray[np.float32]

CLASSES = ("soil", "crop", "forest", "water")
"""What the scenes show, by label value."""
BANDS = ("red", "green", "blue", "nir")
_PIXEL_M = 0.5
_BASE = np.array([[114, 112, 91, 132], [112, 113, 90, 134], [110, 111, 89, 135], [78, 88, 92, 76]], np.float32)
"""Mean colour by class and band: near to each other on land."""
_LEVELS = 16


@dataclass(frozen=True)
class Scene:
    """One scene to make."""

    name: str
    size: int
    """Side in px."""
    seed: int


SCENES = (Scene("train_a", 2048, 1), Scene("train_b", 512, 2), Scene("night_a", 4096, 3), Scene("night_b", 4096, 4))


def make_scenes(folder: Path, scenes: Sequence[Scene] = SCENES) -> list[Path]:
    """Write the scenes that `folder` lacks, `NAME.tif` with `labels/NAME.tif`; the paths of all."""
    paths = []
    for index, scene in enumerate(scenes):
        path, labels = folder / f"{scene.name}.tif", folder / "labels" / f"{scene.name}.tif"
        paths.append(path)
        if path.exists() and labels.exists():
            continue
        labels.parent.mkdir(parents=True, exist_ok=True)
        pixels, truth = paint(scene)
        transform = (_PIXEL_M, 0.0, 500_000.0 + 10_000 * index, 0.0, -_PIXEL_M, 4_600_000.0)
        rasterwrite.write(labels, truth[None], transform=transform, crs="EPSG:32633")
        rasterwrite.write(path, pixels, transform=transform, crs="EPSG:32633", band_names=BANDS)
    return paths


def paint(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(pixels (4, size, size), truth (size, size)).

    What tells the classes apart is texture: soil is grainy, crop is in rows, forest has crowns, water is smooth. Brightness
    drifts over the scene by more than the land classes differ in colour.
    """
    rng = np.random.default_rng(scene.seed)
    size = scene.size
    truth = np.argmax(np.stack([smooth(rng, size, 160) for _ in CLASSES]), axis=0).astype(np.uint8)
    texture = _textures(rng, size, truth)
    light = 1 + 0.12 * smooth(rng, size, 700)
    pixels = np.empty((len(BANDS), size, size), np.uint8)
    for band in range(len(BANDS)):
        value = _BASE[:, band][truth] + texture
        value *= light
        value += 5 * rng.standard_normal((size, size), np.float32)
        pixels[band] = np.clip(value, 1, 255)
    return pixels, truth


def colour_only_miou(training: Sequence[Path], night: Sequence[Path]) -> float:
    """mIoU on the `night` scenes of the best answer that colour alone allows: for each colour (16 levels a band) the class
    that it has most often in the training scenes. Every fourth pixel is looked at."""
    table = np.zeros((_LEVELS ** len(BANDS), len(CLASSES)), np.int64)
    for path in training:
        colours, truth = _colours_and_truth(path)
        np.add.at(table, (colours, truth), 1)
    answer = table.argmax(1).astype(np.uint8)
    counts = no_counts(len(CLASSES))
    for path in night:
        colours, truth = _colours_and_truth(path)
        counts += count(truth, answer[colours], len(CLASSES))
    found = scores(counts)
    assert found is not None
    return found.miou


def _colours_and_truth(path: Path) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    pixels = rasterfile.read_all(path)[:, ::2, ::2]
    colours = np.zeros(pixels.shape[1:], np.intp)
    for band in pixels:
        colours = colours * _LEVELS + band // (256 // _LEVELS)
    return colours, rasterfile.read_all(path.parent / "labels" / path.name)[0, ::2, ::2]


def smooth(rng: np.random.Generator, size: int, scale: int) -> Floats:
    """Random field (size, size) of mean 0 and deviation about 1 that changes over `scale` px."""
    nodes = size // scale + 3
    coarse = rng.normal(0, 1.6, (nodes, nodes)).astype(np.float32)
    at = np.arange(size, dtype=np.float32) / scale
    low = at.astype(np.intp)
    share = at - low.astype(np.float32)
    share = share * share * (3 - 2 * share)
    rows = coarse[low] * (1 - share)[:, None] + coarse[low + 1] * share[:, None]
    return np.asarray(rows[:, low] * (1 - share) + rows[:, low + 1] * share, np.float32)


def _textures(rng: np.random.Generator, size: int, truth: NDArray[np.uint8]) -> Floats:
    """What each class looks like beside its colour, (size, size), of about the same spread on land."""
    grain = rng.standard_normal((size, size), np.float32)
    crowns = _box(_box(grain, 7), 7)
    crowns /= crowns.std()
    one, other = (_rows(size, angle) for angle in (0.35, 1.9))
    rows = np.where(smooth(rng, size, 300) > 0, one, other)
    texture = np.choose(truth, [grain, rows, crowns, crowns * np.float32(0.2)])
    texture *= 16
    return texture


def _rows(size: int, angle: float) -> Floats:
    """Furrows 9 px apart, as sin(a + b) = sin a cos b + cos a sin b along rows and columns."""
    at = np.arange(size) * (2 * np.pi / 9)
    down, across = at * np.cos(angle), at * np.sin(angle)
    waves = np.outer(np.sin(down), np.cos(across)) + np.outer(np.cos(down), np.sin(across))
    return (1.4 * waves).astype(np.float32)


def _box(values: Floats, side: int) -> Floats:
    """Mean over a square of `side` px around each pixel, with wrapped edges."""
    for axis in (0, 1):
        padded = np.concatenate(
            [values.take(range(-(side // 2) - 1, 0), axis), values, values.take(range(side // 2), axis)], axis
        )
        total = padded.cumsum(axis)
        length = values.shape[axis]
        after = total.take(range(side, side + length), axis)
        values = (after - total.take(range(length), axis)) / np.float32(side)
    return values
