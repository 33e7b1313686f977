"""The model card: everything about a model that must be known before it is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import ModelError
from pipeline.image import Frozen, Resolution

CARD_NAME = "model.json"
MAX_CLASSES = 65534
"""Codes above are reserved, see pipeline.codes."""


class ClassInfo(Frozen):
    """One class of the model, at the position of its code."""

    name: str = Field(min_length=1, max_length=80)
    """As reports print it."""
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
    bands: tuple[str, ...] = Field(min_length=1)
    """Names of the bands, in the order of the network's input."""
    dtype: Literal["uint8", "uint16", "int16", "float32"]
    """Sample type of the images that it was trained on."""
    scaling: Scaling
    resolution: Resolution | None = None
    """Pixel size that it was trained at; None: any."""
    classes: tuple[ClassInfo, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    """Position = code in the mask."""
    tile: int = Field(default=512, ge=1)
    """Side of the square that it should see, in pixels."""
    overlap: int = Field(default=128, ge=0)
    """Pixels that neighbouring tiles should share."""
    multiple_of: int = Field(default=32, ge=1)
    """Tile sides must be a multiple of this."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """From the network's output to scores that may be averaged. `sigmoid`: one output, the second of two classes."""
    translation_invariant: bool = False
    """Whether the answer at a pixel depends on its surroundings only, and not on where in the tile it lies."""
    activation_bytes_per_pixel: float = Field(default=0, ge=0)
    """Peak memory of a forward pass beside weights, per input pixel: measured when the model was saved."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How it came about: data, time, validation score. For people; no part of the digest."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelCard:
        for key in ("offset", "divisor"):
            if len(getattr(self.scaling, key)) != len(self.bands):
                raise ValueError(
                    f"scaling.{key} has {len(getattr(self.scaling, key))} values for {len(self.bands)} bands {self.bands}"
                )
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
        """Hash of all that decides what the model answers: the card without its prose, and the weights' digest."""
        facts = self.model_dump(
            mode="json", exclude={"name", "description", "licence", "training", "weights_bytes", "activation_bytes_per_pixel"}
        )
        return digest_of(facts)


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
