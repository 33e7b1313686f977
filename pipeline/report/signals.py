"""What can be told without labels: class shares, confidence, seams, and what the model was shown against its training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard
from pipeline.report.contract import BandFacts, ImageResult, ModelFacts, RunReport
from pipeline.report.words import listed, number, of, percent
from pipeline.statistics.calibration import LEVELS
from pipeline.statistics.samples import Bins, apart, bins_of, quantiles

Metric = Literal["mask_share", "confidence", "seam_disagreement", "band_median", "band_apart"]
SHARES = (0.02, 0.25, 0.5, 0.75, 0.98)
"""Quantiles of a band that are shown."""
SURE = 0.5
"""Confidence below which a pixel is a guess."""
LEAST_APART, MARGIN, FEW_APART = 0.25, 0.1, 0.5
"""Samples may be LEAST_APART from the training's, and MARGIN more than the training image that is least like the others; with
fewer than ENOUGH_IMAGES of these, FEW_APART."""
ENOUGH_IMAGES = 3
MANY_STRANGE = 0.1
"""Share of images unlike the training from which on it concerns the run."""
SMALL_SHARE = 0.005
"""Changes of shares that are none to speak of."""


@dataclass(frozen=True)
class Signal:
    """One number of a run that needs no labels."""

    metric: Metric
    code: int | None
    """Of its class, or position of its band; None for what is of all."""
    name: str | None
    """Of its class or band."""
    value: float
    images: int
    """How many it is of."""
    least: float
    """A change smaller than this is none to speak of."""


def model_facts(card: ModelCard, path: Path) -> ModelFacts:
    """What a report keeps of a model's card; `path` is its folder."""
    known = card.fingerprint
    bands = [
        BandFacts(
            name=name,
            low=bins.low,
            width=bins.width,
            training_px=None if known is None else list(known.band_px[n]),
            apart=None if known is None else known.apart[n],
        )
        for n, (name, bins) in enumerate(zip(card.bands, bins_of(card), strict=True))
    ]
    return ModelFacts(
        name=card.name,
        digest=card.digest[:16],
        path=str(path),
        licence=card.licence,
        training=card.training,
        bands=bands,
        training_images=0 if known is None else known.images,
        training_class_px=None if known is None else list(known.class_px),
    )


def signals(report: RunReport) -> list[Signal]:
    """All that is known of this run; the same numbers that the history keeps of every run."""
    found = _shares(report)
    if (sure := confidence(report)) is not None:
        found.append(Signal("confidence", None, None, sure.mean, sure.images, SMALL_SHARE))
    if (seam := seam_disagreement(report)) is not None:
        found.append(Signal("seam_disagreement", None, None, seam[0], seam[1], SMALL_SHARE))
    for code, band in enumerate(bands(report)):
        found.append(Signal("band_median", code, band.name, band.now[2], band.images, band.bins.width))
        if band.apart is not None:
            found.append(Signal("band_apart", code, band.name, band.apart, band.images, MARGIN))
    return found


def _shares(report: RunReport) -> list[Signal]:
    masks = [image.class_px for image in report.images if image.class_px]
    pixels = np.sum(masks, axis=0) if masks else np.zeros(0, np.int64)
    whole = int(pixels.sum())
    return [
        Signal("mask_share", code, info.name, int(px) / whole, len(masks), SMALL_SHARE)
        for code, (info, px) in enumerate(zip(report.classes, pixels, strict=False))
        if whole
    ]


@dataclass(frozen=True)
class Confidence:
    """How sure the model was, right or wrong."""

    mean: float
    guesses: float
    """Share of the pixels below SURE."""
    images: int


def confidence(report: RunReport) -> Confidence | None:
    """None where no image has a confidence beside its mask."""
    measured = [image.confidence_px for image in report.images if image.confidence_px and any(image.confidence_px)]
    if not measured:
        return None
    pixels = np.sum(measured, axis=0, dtype=np.int64)
    levels = np.arange(LEVELS).reshape(len(pixels), -1) / (LEVELS - 1)
    middle = levels.mean(axis=1)
    return Confidence(
        float((pixels * middle).sum() / pixels.sum()), float(pixels[middle < SURE].sum() / pixels.sum()), len(measured)
    )


def seam_disagreement(report: RunReport) -> tuple[float, int] | None:
    """(share of the pixels in overlaps that were compared on which neighbouring tiles differ, images); None where none was."""
    measured = [image.edge_disagreement.counts for image in report.images if image.edge_disagreement]
    sums = np.array([np.sum(counts, axis=0) for counts in measured], np.int64).reshape(-1, 2)
    return (float(sums[:, 0].sum() / sums.sum()), len(measured)) if sums.sum() else None


@dataclass(frozen=True)
class Band:
    """What the model was shown in one band, and what it was trained on; values in raw units."""

    name: str
    bins: Bins
    now: tuple[float, ...]
    """Quantiles at SHARES."""
    images: int
    training: tuple[float, ...] | None
    """The same of the training; None where the model's card does not tell, as in the next two."""
    apart: float | None
    """How far the run's samples are from the training's: 0 alike, 1 nothing in common."""
    limit: float | None
    """From where on that is more than training images differ among each other."""
    counts: NDArray[np.int64]
    """Samples (bins,) of the run."""
    training_counts: NDArray[np.int64] | None

    @property
    def unlike(self) -> bool:
        """Whether the run as a whole is beyond the limit."""
        return self.apart is not None and self.limit is not None and self.apart > self.limit


@dataclass(frozen=True)
class Strange:
    """An image unlike those of the training."""

    image: ImageResult
    band: str
    """Where it is most so."""
    apart: float
    limit: float


class InputCheck:
    """What the model was shown against its training, by band and by image."""

    def __init__(self, report: RunReport) -> None:
        self._facts = report.model
        self._measured = [image for image in report.images if image.band_px and len(image.band_px) == len(report.model.bands)]

    @cached_property
    def bands(self) -> list[Band]:
        """In the model's order; none where nothing was counted."""
        if not self._measured:
            return []
        total = np.sum([image.band_px or [] for image in self._measured], axis=0, dtype=np.int64)
        return [self._band(facts, counts) for facts, counts in zip(self._facts.bands, total, strict=True) if counts.any()]

    @cached_property
    def strange(self) -> list[Strange]:
        """Images beyond the limit in some band, the most first."""
        found = []
        for image in self._measured:
            each = [
                (distance - limit, Strange(image, facts.name, distance, limit))
                for facts, counts in zip(self._facts.bands, image.band_px or [], strict=True)
                if facts.training_px is not None
                and (limit := self._limit(facts)) is not None
                and (distance := apart(counts, facts.training_px)) > limit
            ]
            if each:
                found.append(max(each, key=lambda pair: pair[0])[1])
        return sorted(found, key=lambda s: (s.limit - s.apart, s.image.uri))

    @property
    def images(self) -> int:
        """How many were counted."""
        return len(self._measured)

    @property
    def unlike(self) -> list[Band]:
        """Bands in which the run as a whole is unlike the training."""
        return [band for band in self.bands if band.unlike]

    @property
    def matters(self) -> bool:
        """Whether the run should be looked at for it."""
        return bool(self.unlike) or len(self.strange) > MANY_STRANGE * max(self.images, 1)

    @property
    def words(self) -> list[str]:
        """What a reader should take from it; nothing where nothing is known of the training."""
        known = [band for band in self.bands if band.apart is not None]
        if not known:
            return []
        said = []
        if self.unlike:
            names = listed([band.name for band in self.unlike])
            most = percent(max(band.apart or 0 for band in self.unlike))
            said.append(
                f"The images are unlike those of the training in {names}, {most} apart: the model may not know what it sees."
            )
        if self.strange:
            said.append(f"{number(len(self.strange))} of {of(self.images, 'image')} are unlike those of the training.")
        return said or ["No image is farther from the training than training images are from each other, in any band."]

    def _band(self, facts: BandFacts, counts: NDArray[np.int64]) -> Band:
        bins = Bins(facts.low, facts.width)
        training = None if facts.training_px is None else np.array(facts.training_px, np.int64)
        return Band(
            name=facts.name,
            bins=bins,
            now=tuple(quantiles(counts, bins, SHARES)),
            images=self.images,
            training=None if training is None else tuple(quantiles(training, bins, SHARES)),
            apart=None if training is None or isnan(distance := apart(counts, training)) else distance,
            limit=self._limit(facts),
            counts=counts,
            training_counts=training,
        )

    def _limit(self, facts: BandFacts) -> float | None:
        if facts.apart is None:
            return None
        return FEW_APART if self._facts.training_images < ENOUGH_IMAGES else max(LEAST_APART, facts.apart + MARGIN)


def told(signal: Signal) -> str:
    """What it is, in words."""
    return {
        "mask_share": f"Share of {signal.name}",
        "confidence": "Mean confidence",
        "seam_disagreement": "Disagreement of neighbouring tiles",
        "band_median": f"Median of {signal.name}",
        "band_apart": f"Distance of {signal.name} from the training",
    }[signal.metric]


def of_training(signal: Signal, report: RunReport) -> float | None:
    """The same number of the training's labels or samples; None where it is not known."""
    pixels = report.model.training_class_px
    if signal.metric == "mask_share" and pixels and sum(pixels) and signal.code is not None:
        return pixels[signal.code] / sum(pixels)
    if signal.metric == "band_median":
        return next((b.training[2] for b in bands(report) if b.name == signal.name and b.training is not None), None)
    return None


def bands(report: RunReport) -> list[Band]:
    """What the model was shown, by band."""
    return InputCheck(report).bands
