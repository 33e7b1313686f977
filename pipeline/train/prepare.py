"""From a configuration to what a training needs: the model's card, images to learn from, images to validate on."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.archive import discover
from pipeline.card import ClassInfo, ModelCard, Scaling
from pipeline.config import Config, TrainConfig, TruthConfig
from pipeline.errors import ConfigError, PlanError
from pipeline.fit import choose_bands, choose_filling, choose_grid
from pipeline.grid import Window
from pipeline.image import ImageSpec, Resolution, SourceInfo
from pipeline.plan import ReadSpec
from pipeline.sources import describe_image
from pipeline.train.data import Labelled, band_statistics, fingerprint
from pipeline.truth import describe_truth, open_truth, plan_labels

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#7F3C8D", "#11A579", "#A5AA99")
"""Colours for classes that were given none: told apart by colour-blind readers (Okabe & Ito), then others."""


MICROSCOPIC = 1e-4
"""Pixels below this size, in metres, are a microscope's, and told in micrometres."""


@dataclass(frozen=True)
class Lesson:
    """What a training needs."""

    card: ModelCard
    training: list[Labelled]
    validation: list[Labelled]
    by_group: tuple[str, ...] = ()
    """URIs of the validation images that are held out for their group's sake only."""


def prepare(config: Config) -> Lesson:
    """Read the headers of all labelled images, check them against each other, and write the card.

    ConfigError where the images do not fit together: before anything is trained.
    """
    train = required(config)
    images = _labelled_images(config, train)
    sources = [describe_image(config.archive, image) for image in images]
    dtypes = {source.dtype: source.uri for source in sources}
    if len(dtypes) > 1:
        raise ConfigError(
            "train.images have different sample types, and one scaling cannot fit them: "
            + ", ".join(f"{uri} has {dtype}" for dtype, uri in dtypes.items())
        )
    truths = [describe_truth(image.truth) for image in images if image.truth]
    truth_config, classes = _classes(config, train, truths)
    draft = ModelCard(
        name=train.name or config.model.path.name,
        licence=train.licence,
        adapter="smp",
        architecture={"name": train.architecture, "encoder": train.encoder, "arguments": train.arguments},
        bands=_band_names(config, sources[0]),
        dtype=_dtype(sources[0]),
        scaling=Scaling(offset=(0.0,) * _band_count(config, sources[0]), divisor=(1.0,) * _band_count(config, sources[0])),
        resolution=train.resolution or _common_resolution(sources),
        classes=classes,
        tile=train.tile,
        overlap=train.tile // 4 if train.overlap is None else train.overlap,
        activation="softmax",
    )
    labelled = [
        _labelled(config, truth_config, draft, image, source, truth)
        for image, source, truth in zip(images, sources, truths, strict=True)
    ]
    held_out = split(train, images, config.root)
    training = [x for x in labelled if x.image.uri not in held_out.held_out]
    if not training:
        together = f", {len(held_out.by_group)} of them as they share a group with one that it names" if held_out.by_group else ""
        raise ConfigError(
            f"train.validation {train.validation} holds out all {len(images)} images{together}: nothing is left to train on"
        )
    mean, deviation = band_statistics(training)
    scaling = Scaling(offset=tuple(map(float, mean)), divisor=tuple(map(float, np.maximum(deviation, 1e-6))))
    validation = [x for x in labelled if x.image.uri in held_out.held_out]
    card = draft.model_copy(update={"scaling": scaling})
    card = card.model_copy(update={"fingerprint": fingerprint(training, card)})
    return Lesson(card, training, validation, held_out.by_group)


def required(config: Config) -> TrainConfig:
    """The train section; ConfigError where there is none."""
    if config.train is None:
        raise ConfigError("the configuration has no section train: give it at least train.images and truth.pattern")
    return config.train


def _labelled_images(config: Config, train: TrainConfig) -> list[ImageSpec]:
    archive = config.archive.model_copy(update={"images": train.images})
    truth = config.truth.model_copy(update={"pattern": train.labels or config.truth.pattern})
    images = discover(config.model_copy(update={"archive": archive, "truth": truth}))
    bare = [image.uri for image in images if image.truth is None]
    if bare:
        raise ConfigError(
            f"{len(bare)} of {len(images)} training images have no labels, such as {bare[0]}: "
            f"give their pattern under train.labels (now {truth.pattern}), or leave them out with archive.exclude"
        )
    return images


def _classes(config: Config, train: TrainConfig, truths: Sequence[SourceInfo]) -> tuple[TruthConfig, tuple[ClassInfo, ...]]:
    """(how labels are read, classes of the card): from the configuration, or every value that the labels hold."""
    given: dict[int, str | dict[str, str]] = dict(train.classes or config.truth.numbered or {})
    if not given:
        found: set[int] = set().union(*(_values(truth) for truth in truths))
        given = {value: f"class {value}" for value in sorted(found - config.truth.ignored)}
    classes: list[ClassInfo] = []
    for value, said in given.items():
        name, color = (said, None) if isinstance(said, str) else (said.get("name"), said.get("color"))
        if not name:
            raise ConfigError(
                f"train.classes.{value} has no name: write {value}: NAME, or {value}: {{name: NAME, color: '#RRGGBB'}}"
            )
        if name not in [c.name for c in classes]:
            classes.append(ClassInfo(name=name, color=color or PALETTE[len(classes) % len(PALETTE)], value=value))
    if len(classes) < 2:
        raise ConfigError(f"the labels know only {[c.name for c in classes]}: a model needs two classes or more to tell apart")
    names = {value: said if isinstance(said, str) else said["name"] for value, said in given.items()}
    return config.truth.model_copy(update={"classes": names}), tuple(classes)


def _values(truth: SourceInfo) -> set[int]:
    """Every value that a label raster holds."""
    step = max(1, (1 << 22) // truth.width)
    found: set[int] = set()
    with open_truth(TruthSpec(source=truth, codes={}, ignore=()), 1, truth.height, truth.width) as labels:
        for row in range(0, truth.height, step):
            found |= labels.read(Window(row, 0, min(step, truth.height - row), truth.width)).unknown.keys()
    return found


def _labelled(
    config: Config, truth_config: TruthConfig, card: ModelCard, image: ImageSpec, source: SourceInfo, truth: SourceInfo
) -> Labelled:
    bands = choose_bands(config.archive.bands, source, card)
    valid_from, nodata = choose_filling(config.archive.nodata, source, bands)
    grid = choose_grid("card", source, card)
    srgb = source.has_icc_profile and config.archive.icc == "srgb"
    read = ReadSpec(source=source, bands=bands, valid_from=valid_from, nodata=nodata, grid=grid, srgb=srgb)
    mask = MaskFacts(
        image=image.uri, model=card.name, classes=card.classes, grid=grid, native_shape=(source.height, source.width)
    )
    return Labelled(image, read, plan_labels(truth_config, truth.uri, mask))


@dataclass(frozen=True)
class Split:
    """Which images are held out."""

    held_out: frozenset[str]
    """URIs of the validation images: whole images, and whole groups where there are groups."""
    by_group: tuple[str, ...] = ()
    """Those of them that were not named, but share a group with one that was; sorted."""


def split(train: TrainConfig, images: Sequence[ImageSpec], root: Path) -> Split:
    """Which of `images` are held out; paths start from `root`. ConfigError where train.validation names none of them.

    The law: no group has images on both sides.
    """
    if not isinstance(train.validation, list):
        return Split(_drawn(train.validation, train.seed, images))
    named: set[str] = set()
    missing: list[str] = []
    for entry in train.validation:
        path = os.path.normpath(root / entry)
        found = {image.uri for image in images if os.path.normpath(image.uri) == path} or {
            image.uri for image in images if image.stem == entry
        }
        named |= found
        missing += [] if found else [entry]
    if missing:
        raise ConfigError(
            f"train.validation names {', '.join(missing)}, which is neither the stem nor the path of a training image; these are "
            f"{', '.join(sorted(image.uri for image in images))}"
        )
    groups = {image.group for image in images if image.uri in named and image.group is not None}
    companions = {image.uri for image in images if image.group in groups} - named
    return Split(frozenset(named | companions), tuple(sorted(companions)))


def _drawn(share: float, seed: int, images: Sequence[ImageSpec]) -> frozenset[str]:
    """URIs of about `share` of the images, in whole groups: those drawn at random that still fit, at least the smallest one."""
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.uri if image.group is None else f"group {image.group}", []).append(image.uri)
    if not share or len(groups) < 2:
        return frozenset()
    names = sorted(groups)
    random.Random(seed).shuffle(names)  # noqa: S311 - a split, not a secret
    most, chosen = max(1, round(share * len(images))), set[str]()
    for name in names:
        if len(chosen) + len(groups[name]) <= most:
            chosen.update(groups[name])
    return frozenset(chosen or groups[min(names, key=lambda name: len(groups[name]))])


def _band_count(config: Config, source: SourceInfo) -> int:
    return len(config.archive.bands or source.band_names)


def _band_names(config: Config, source: SourceInfo) -> tuple[str, ...]:
    if config.archive.bands is None:
        return source.band_names
    by_index = dict(zip(source.band_indexes, source.band_names, strict=True))
    return tuple(b.lower() if isinstance(b, str) else by_index.get(b, f"band{b}") for b in config.archive.bands)


def _dtype(source: SourceInfo) -> Any:
    if source.dtype not in ("uint8", "uint16", "int16", "float32"):
        raise PlanError(f"{source.uri} has {source.dtype} samples: models take uint8, uint16, int16 or float32. Convert it")
    return source.dtype


def _common_resolution(sources: Sequence[SourceInfo]) -> Resolution | None:
    """The middle pixel size of the images, where all have one."""
    sizes = [float(np.mean(source.pixel_size_m)) for source in sources if source.pixel_size_m is not None]
    if len(sizes) < len(sources):
        return None
    size = median(sizes)
    return Resolution(size=size * 1e6, unit="micrometre") if size < MICROSCOPIC else Resolution(size=size, unit="metre")
