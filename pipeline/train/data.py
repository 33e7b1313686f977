"""Training crops from labelled rasters of any size: windows are read, never whole images; rare classes come as often as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.alignment import TruthSpec
from pipeline.card import Fingerprint, ModelCard
from pipeline.codes import label_type
from pipeline.config import TrainConfig
from pipeline.grid import Window, blocks
from pipeline.image import ImageSpec, WorkingGrid
from pipeline.plan import ReadSpec
from pipeline.sources import Pixels, Source, open_source
from pipeline.statistics.samples import BINS, bins_of, count_samples, farthest
from pipeline.truth import Truth, open_truth

CACHE_BYTES = 2 << 30
"""Images that fit in this together, at working resolution, are kept in memory once read."""
_PATCH = 1024
_SITE_STEP = 8
"""Every eighth labelled pixel along rows and columns is a possible centre of a crop."""


@dataclass(frozen=True)
class Labelled:
    """An image with its labels, both on one working grid."""

    image: ImageSpec
    read: ReadSpec
    truth: TruthSpec

    @property
    def grid(self) -> WorkingGrid:
        """The pixels to train on."""
        return self.read.grid


@dataclass(frozen=True)
class Crop:
    """One training example, before normalisation."""

    data: NDArray[np.generic]
    """(bands, side, side) raw samples."""
    valid: NDArray[np.bool_]
    """(side, side): True is real data."""
    codes: NDArray[np.unsignedinteger]
    """(side, side): class codes, K where not labelled or not valid."""


class Scene(AbstractContextManager["Scene"]):
    """A labelled image from which windows are read; windows may hang over its edge, where nothing is labelled."""

    def __init__(self, labelled: Labelled, classes: int, *, cached: bool) -> None:
        self.labelled, self.classes = labelled, classes
        self._source: Source = open_source(labelled.read)
        self._truth: Truth = open_truth(labelled.truth, classes, *labelled.grid.shape)
        self._patches: dict[tuple[int, int], Crop] | None = {} if cached else None

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._truth.close()

    def crop(self, window: Window) -> Crop:
        """The pixels and labels of `window`; outside the image pixels are reflected, and nothing is labelled."""
        height, width = self.labelled.grid.shape
        inside = window.clip(height, width)
        crop = self._inside(inside)
        pad_rows = inside.row - window.row, window.row_stop - inside.row_stop
        pad_cols = inside.col - window.col, window.col_stop - inside.col_stop
        if not any((*pad_rows, *pad_cols)):
            return crop
        return Crop(
            np.pad(crop.data, ((0, 0), pad_rows, pad_cols), mode="reflect"),
            np.pad(crop.valid, (pad_rows, pad_cols), mode="reflect"),
            np.pad(crop.codes, (pad_rows, pad_cols), constant_values=self.classes),
        )

    def sites(self) -> list[NDArray[np.int32]]:
        """For each class, positions (n, 2) of some of its pixels: all on a coarse grid, read strip by strip.

        The labels alone decide; to leave out those on filling would mean to read all pixels once.
        """
        height, width = self.labelled.grid.shape
        found: list[list[NDArray[np.int32]]] = [[] for _ in range(self.classes)]
        for row in range(0, height, _PATCH):
            window = Window(row, 0, min(_PATCH, height - row), width)
            codes = self._truth.read(window).codes[::_SITE_STEP, ::_SITE_STEP]
            for code in range(self.classes):
                places = np.argwhere(codes == code).astype(np.int32) * _SITE_STEP
                found[code].append(places + np.array([row, 0], np.int32))
        return [np.concatenate(places) for places in found]

    def _inside(self, window: Window) -> Crop:
        if self._patches is None:
            return self._read(window)
        height, width = self.labelled.grid.shape
        bands, samples = len(self.labelled.read.bands), self.labelled.read.source.dtype
        crop = Crop(
            np.empty((bands, *window.shape), samples),
            np.empty(window.shape, bool),
            np.empty(window.shape, label_type(self.classes)),
        )
        for row in range(window.row // _PATCH * _PATCH, window.row_stop, _PATCH):
            for col in range(window.col // _PATCH * _PATCH, window.col_stop, _PATCH):
                area = Window(row, col, min(_PATCH, height - row), min(_PATCH, width - col))
                patch = self._patches.get((row, col))
                if patch is None:
                    patch = self._patches[row, col] = self._read(area)
                top, bottom = max(row, window.row), min(area.row_stop, window.row_stop)
                left, right = max(col, window.col), min(area.col_stop, window.col_stop)
                to = slice(top - window.row, bottom - window.row), slice(left - window.col, right - window.col)
                at = slice(top - row, bottom - row), slice(left - col, right - col)
                crop.data[:, *to], crop.valid[to], crop.codes[to] = patch.data[:, *at], patch.valid[at], patch.codes[at]
        return crop

    def _read(self, window: Window) -> Crop:
        pixels = self._source.read(window)
        codes = self._truth.read(window).codes.copy()
        codes[~pixels.valid] = self.classes
        return Crop(pixels.data, pixels.valid, codes)


class Crops(AbstractContextManager["Crops"]):
    """Random crops of several scenes; batch `n` is the same in every run with the same seed."""

    def __init__(self, scenes: Sequence[Labelled], classes: int, config: TrainConfig, widest: float = 1.0) -> None:
        """`widest`: side of a crop at zoom 1, in tiles."""
        size = sum(
            s.grid.height * s.grid.width * (len(s.read.bands) * np.dtype(s.read.source.dtype).itemsize + 2) for s in scenes
        )
        self.cached = size <= CACHE_BYTES
        self.classes, self._config = classes, config
        self._scenes = [Scene(s, classes, cached=self.cached) for s in scenes]
        sites = [scene.sites() for scene in self._scenes]
        self._sites = sites
        self.class_sites = [sum(len(scene[code]) for scene in sites) for code in range(classes)]
        """Labelled positions of each class, on the coarse grid."""
        labelled = np.array([sum(map(len, scene)) for scene in sites], np.float64)
        self._share = np.sqrt(labelled) / np.sqrt(labelled).sum()
        self._widest = widest
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="crops")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(cancel_futures=True)
        for scene in self._scenes:
            scene.__exit__()

    def batches(self, first: int) -> Iterator[list[Crop]]:
        """Batches from number `first` on, without end; the next ones are read while one is used."""
        ahead: list[Future[list[Crop]]] = []
        number = first
        while True:
            while len(ahead) < 3:
                ahead.append(self._readers.submit(self._batch, number))
                number += 1
            yield ahead.pop(0).result()

    def _batch(self, number: int) -> list[Crop]:
        return [self._crop(np.random.default_rng((self._config.seed, number, item))) for item in range(self._config.batch)]

    def _crop(self, rng: np.random.Generator) -> Crop:
        """A window around a random labelled pixel that shows, after a random zoom, at least a tile.

        Scenes are drawn by the square root of their labelled area: variety between scenes is worth more than within one.
        """
        scene = int(rng.choice(len(self._scenes), p=self._share))
        present = [places for places in self._sites[scene] if len(places)]
        even = rng.random() < self._config.class_balance
        chance = np.array([1.0 if even else len(places) for places in present])
        places = present[rng.choice(len(present), p=chance / chance.sum())]
        row, col = map(int, places[rng.integers(len(places))])
        low, high = self._config.augment.scale
        side = round(self._config.tile * self._widest / float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        jitter = self._config.tile // 3
        row, col = (int(at + rng.integers(-jitter, jitter + 1)) - side // 2 for at in (row, col))
        height, width = self._scenes[scene].labelled.grid.shape
        row, col = _mostly_inside(row, side, height), _mostly_inside(col, side, width)
        return self._scenes[scene].crop(Window(row, col, side, side))


def _mostly_inside(start: int, side: int, length: int) -> int:
    """`start` moved so that at most a tenth of `side` hangs over an edge; centred where the image is smaller."""
    margin = side // 10
    if length + 2 * margin <= side:
        return (length - side) // 2
    return min(max(start, -margin), length + margin - side)


def band_statistics(scenes: Sequence[Labelled]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, standard deviation) (bands,) of the valid samples, from up to 16 windows spread over each image, in raw units."""
    count = 0
    total = squares = np.zeros(0)
    for labelled in scenes:
        for _, pixels in _spread(labelled):
            samples = pixels.data[:, pixels.valid].astype(np.float64)
            count += samples.shape[1]
            total = samples.sum(1) + (total if total.size else 0)
            squares = (samples**2).sum(1) + (squares if squares.size else 0)
    mean = total / max(count, 1)
    return mean, np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-12))


def fingerprint(scenes: Sequence[Labelled], card: ModelCard) -> Fingerprint:
    """What the model of `card` is trained on, of the same windows; the card's scaling must be known."""
    bins, classes = bins_of(card), len(card.classes)
    class_px, images = np.zeros(classes + 1, np.int64), []
    for labelled in scenes:
        found = np.zeros((len(bins), BINS), np.int64)
        with open_truth(labelled.truth, classes, *labelled.grid.shape) as truth:
            for window, pixels in _spread(labelled):
                found += count_samples(pixels.data, pixels.valid, (window.row, window.col), bins)
                codes = truth.read(window).codes[pixels.valid]
                class_px += np.bincount(codes, minlength=classes + 1)
        images.append(found)
    return Fingerprint(
        images=len(images),
        band_px=tuple(map(tuple, np.sum(images, axis=0).tolist())),
        apart=tuple(round(value, 4) for value in farthest(images)),
        class_px=tuple(class_px[:classes].tolist()),
    )


def _spread(labelled: Labelled) -> Iterator[tuple[Window, Pixels]]:
    """About 16 windows spread over an image, and what they hold."""
    every = [b.core for b in blocks(*labelled.grid.shape, 512, 512)]
    with open_source(labelled.read) as source:
        for window in every[:: max(1, len(every) // 16)]:
            yield window, source.read(window)
