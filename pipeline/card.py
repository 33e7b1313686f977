"""The model card: everything about a model that must be known before it is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import ModelError
from pipeline.image import Frozen, Resolution

CARD_NAME = "model.json"
MAX_CLASSES = 65534
"""Codes above are reserved, see pipeline.codes."""


USUAL_TILES = (512, 128)
"""(tile, overlap) in px of a card that says nothing else; their seams are what `tile: auto` may not exceed."""
NO_ANSWER = {
    *("name", "description", "licence", "training", "fingerprint"),
    *("weights_bytes", "activation_bytes_per_pixel", "translation_invariant", "probe"),
}
"""Fields of a card that do not change what the model answers for a tile."""


class ClassInfo(Frozen):
    """One class of the model, at the position of its code."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")
    """As reports print it; without control characters."""
    color: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")
    """Hex colour of the class on pictures and in stores."""
    value: int | None = Field(default=None, ge=0)
    """What stands for this class in label rasters; None: its position."""


class Scaling(Frozen):
    """Raw samples to what the network sees: (sample - offset) / divisor, band by band; filling becomes 0."""

    offset: tuple[float, ...]
    """Subtracted first: the training set's mean, or the range's minimum. One a band, in raw sample units."""
    divisor: tuple[float, ...]
    """Divided by after: the training set's standard deviation, or the range's width."""

    @field_validator("divisor")
    @classmethod
    def _not_zero(cls, divisor: tuple[float, ...]) -> tuple[float, ...]:
        if any(not d > 0 for d in divisor):
            raise ValueError(f"divisor {divisor} must be above 0 in every band")
        return divisor


class TileCost(Frozen):
    """What one tile of a size costs, measured in a process of its own."""

    tile: int = Field(ge=1)
    """Side in pixels."""
    seconds: float = Field(gt=0)
    """Least time of one tile through the model, with as many side by side as the probe had threads; on the CPU the processor's
    time where that is less than the clock's."""
    bytes: int = Field(ge=0)
    """Growth of the process's resident memory by the first such tile, weights left out."""


class SeamShare(Frozen):
    """How much an overlap leaves of the seams."""

    overlap: int = Field(ge=0)
    """Pixels that neighbouring tiles share."""
    share: float = Field(ge=0, le=1)
    """Share of pixels whose label is another than with all the context that there is."""


class Influence(Frozen):
    """How far what changes at one place is felt."""

    distance: int = Field(ge=1)
    """Pixels to the nearest change; 1: it is the next pixel."""
    labels: float = Field(ge=0, le=1)
    """Share of pixels at this distance, and up to the next one listed, that got another label."""
    score: float = Field(ge=0)
    """Mean over them of the largest change of a score."""


class Probe(Frozen):
    """What `gigamask model probe` measured; `tile: auto` rests on it."""

    date: str
    """Day, as 2026-11-30."""
    software: str
    """Releases that it was measured with."""
    device: str
    threads: int = Field(ge=1)
    """Tiles side by side while costs were measured."""
    content: str
    """What the model was shown: an image's file name, or `texture`."""
    invariant: bool
    """Whether the answer was found to depend on a pixel's surroundings only."""
    finding: str
    """Why, in a sentence with the numbers."""
    reach: int = Field(ge=0)
    """Largest distance in px at which any change of the input changed a score at all."""
    halo: int = Field(ge=0)
    """Distance in px from which on changes, and a tile's own border, hardly ever change a label: the least overlap."""
    gradient_radius: dict[str, int] = Field(default_factory=dict)
    """Share of the gradient's energy -> radius in px that holds it; empty where there is no gradient."""
    influence: tuple[Influence, ...] = ()
    """By distance, nearest first: the larger of a change of content and of a tile's own border."""
    seam_tile: int = Field(ge=1)
    """Side of the tiles that `seams` were measured with."""
    seams: tuple[SeamShare, ...] = Field(min_length=1)
    """By overlap, smallest first; all multiples of what the model takes, so that all tiles have one phase in its stride."""
    tiles: tuple[TileCost, ...] = ()
    """By tile, smallest first: what `tile: auto` chooses among."""

    def seam_share(self, tile: int, overlap: int) -> float:
        """Share of pixels with another label where tiles of `tile` px share `overlap` px, reckoned from `seams`.

        The law: a seam costs what its overlap leaves of it, and there are as many seams as strides. Between measured overlaps
        it is a straight line, beyond them the nearest one's.
        """
        known = [seam.overlap for seam in self.seams]
        left = [seam.share * (self.seam_tile - seam.overlap) for seam in self.seams]
        return float(np.interp(overlap, known, left)) / (tile - overlap)


class Fingerprint(Frozen):
    """What the images of a training held, so that later ones can be held against it without labels."""

    images: int = Field(ge=1)
    band_px: tuple[tuple[int, ...], ...]
    """By band: samples in the bins of `pipeline.statistics.samples`, of windows spread over each image."""
    apart: tuple[float, ...]
    """By band: how far the training image that is least like the others is from these, 0...1; 0 of a single image."""
    class_px: tuple[int, ...]
    """Labelled pixels by class code, of the same windows."""


class ModelCard(Frozen):
    """What a model expects, what it answers, and where it comes from; `model.json` in its folder."""

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=120)
    description: str = ""
    licence: str = "unknown"
    adapter: Literal["smp", "exported", "callable", "threshold"]
    """Which family of models it belongs to, hence how it is built and called."""
    architecture: dict[str, Any] = Field(default_factory=dict)
    """What the adapter needs to build the network, such as name, encoder and decoder arguments."""
    weights: str | None = "model.safetensors"
    """File name in the model's folder; None for a model without weights."""
    weights_sha256: str | None = None
    """Digest of that file: another file is refused."""
    weights_bytes: int = Field(default=0, ge=0)
    """Size of that file; for the plan's memory only."""
    version: str | None = Field(default=None, min_length=1, max_length=120)
    """Any text that its author changes with the code or files of the model that no digest covers. For `callable` it stands for
    the code's digest, which is not taken then."""
    code_sha256: str | None = None
    """Digest of the Python code of a `callable` model: other code is refused. Left out of model.json, each plan computes it."""
    bands: tuple[str, ...] = Field(min_length=1)
    """Names of the bands, in the order of the network's input."""
    dtype: Literal["uint8", "uint16", "int16", "float32"]
    """Sample type of the images that it was trained on."""
    scaling: Scaling
    resolution: Resolution | None = None
    """Pixel size that it was trained at; None: any."""
    classes: tuple[ClassInfo, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    """Position = code in the mask."""
    tile: int = Field(default=USUAL_TILES[0], ge=1)
    """Side of the square that it should see, in pixels."""
    overlap: int = Field(default=USUAL_TILES[1], ge=0)
    """Pixels that neighbouring tiles should share."""
    multiple_of: int = Field(default=32, ge=1)
    """Tile sides must be a multiple of this."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """From the network's output to scores that may be averaged. `sigmoid`: one output, the second of two classes."""
    translation_invariant: bool = False
    """Whether the answer at a pixel depends on its surroundings only, and not on where in the tile it lies: `tile: auto` is for
    such models alone."""
    activation_bytes_per_pixel: float = Field(default=0, ge=0)
    """Peak memory of a forward pass beside weights, per input pixel: reckoned when the model was saved, measured by a probe."""
    probe: Probe | None = None
    """What `gigamask model probe` measured; no part of the digest."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How it came about: data, time, validation score. For people; no part of the digest."""
    fingerprint: Fingerprint | None = None
    """What it was trained on, in numbers; None where nobody counted. No part of the digest."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelCard:
        for key in ("offset", "divisor"):
            if len(getattr(self.scaling, key)) != len(self.bands):
                raise ValueError(
                    f"scaling.{key} has {len(getattr(self.scaling, key))} values for {len(self.bands)} bands {self.bands}"
                )
        if self.fingerprint and (len(self.fingerprint.band_px), len(self.fingerprint.apart)) != (len(self.bands),) * 2:
            raise ValueError(f"fingerprint is of {len(self.fingerprint.band_px)} bands, the card names {len(self.bands)}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"class names {names} are not all different")
        if self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} must be below tile {self.tile}")
        if self.tile % self.multiple_of:
            raise ValueError(f"tile {self.tile} is no multiple of {self.multiple_of}")
        if self.activation == "sigmoid" and len(self.classes) != 2:
            raise ValueError(f"activation sigmoid answers 2 classes, the card names {len(self.classes)}")
        if self.weights is not None and Path(self.weights).name != self.weights:
            raise ValueError(f"weights {self.weights!r} must be a plain file name in the model's folder")
        return self

    @property
    def digest(self) -> str:
        """Hash of all that decides what the model answers: the card without its prose and its costs, and the weights' digest.

        What was found of the receptive field is left out too: it may choose tile and overlap, which a plan's digest has itself.
        Fields of code are left out where they say nothing, as in cards of earlier versions, whose digests stay valid so.
        """
        unset = {name for name in ("version", "code_sha256") if getattr(self, name) is None}
        return digest_of(self.model_dump(mode="json", exclude=NO_ANSWER | unset))

    def activation_bytes(self, tile: int) -> int:
        """Peak memory of a forward pass of one tile beside weights and input: as measured for this tile, else by its pixels."""
        measured = {cost.tile: cost.bytes for cost in self.probe.tiles} if self.probe else {}
        return measured.get(tile, int(tile * tile * self.activation_bytes_per_pixel))

    def advised_overlap(self, tile: int) -> int | None:
        """Smallest overlap that a probe measured, no smaller than the halo, with which tiles of `tile` px leave no more of
        their seams than the card's own tiles and overlap do, nor than 512 px and 128; None where none does.

        Larger tiles have fewer seams, so that they need less overlap.
        """
        probe = self.probe
        if probe is None:
            return None
        bearable = min(probe.seam_share(own, overlap) for own, overlap in ((self.tile, self.overlap), USUAL_TILES))
        fitting = (seam.overlap for seam in probe.seams if probe.halo <= seam.overlap <= tile // 2)
        return next((overlap for overlap in fitting if probe.seam_share(tile, overlap) <= bearable), None)


def background(classes: tuple[ClassInfo, ...]) -> int | None:
    """Code of the class named `background`; None where there is none."""
    return next((code for code, c in enumerate(classes) if c.name.lower() == "background"), None)


def digest_of(facts: Any) -> str:
    """SHA-256 of `facts` as canonical JSON: 64 hex digits."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """The card of the model in `folder`; ModelError names what is missing or wrong."""
    path = folder / CARD_NAME
    if not path.is_file():
        what = "has no model.json" if folder.is_dir() else "does not exist"
        raise ModelError(
            f"model folder {folder} {what}: a model is a folder with model.json (its card) and its weights. "
            "Train one with `gigamask train`, or name another folder under model.path"
        )
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except ValidationError as e:
        lines = "\n".join(f"  {'.'.join(map(str, x['loc'])) or 'card'}: {x['msg']}" for x in e.errors())
        raise ModelError(f"{path} is not a valid model card:\n{lines}") from e
    weights = folder / card.weights if card.weights else None
    if weights is not None and not weights.is_file():
        raise ModelError(f"{path} names weights {card.weights!r}, which {folder} does not hold: copy the file there")
    return card
