"""Networks of segmentation-models-pytorch: any of its architectures with any of its encoders, built without a network."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.card import ModelCard
from pipeline.errors import ModelError

ARCHITECTURES: dict[str, Any] = {c.__name__: c for c in smp.MODEL_ARCHITECTURES_MAPPING.values()}
"""The library's architectures by name: Unet, FPN, DeepLabV3Plus, Segformer, ..."""
BY_CARD = frozenset({"encoder_name", "in_channels", "classes", "activation", "aux_params"})
"""Arguments that follow from the card's other fields, or would change what the network returns."""
FROM_ELSEWHERE = frozenset(
    {"encoder_weights", "weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)
"""Arguments that fetch weights from elsewhere: off the net, or out of files that may run code."""


def build(card: ModelCard) -> nn.Module:
    """The network that `card.architecture` describes, with random weights; training and prediction start from it.

    The architecture is {"name": "Unet", "encoder": "resnet18", "arguments": {...}}, in the library's own words. The network
    maps (n, bands, t, t) to (n, classes, t, t), or (n, 1, t, t) for sigmoid. ModelError where there is no such network.
    """
    name, encoder = str(card.architecture.get("name")), str(card.architecture.get("encoder"))
    arguments: dict[str, Any] = card.architecture.get("arguments", {})
    unknown = set(card.architecture) - {"name", "encoder", "arguments"}
    if unknown or not isinstance(arguments, dict):
        raise ModelError(
            f"model {card.name!r}: architecture is {card.architecture}; it must be name, encoder, arguments (a mapping)"
        )
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ModelError(
            f"model {card.name!r}: no architecture {name!r}: {hint}There are {', '.join(ARCHITECTURES)}; names are case-sensitive"
        )
    if refused := sorted(set(arguments) & (BY_CARD | FROM_ELSEWHERE)):
        raise ModelError(
            f"model {card.name!r}: architecture.arguments sets {', '.join(refused)}: bands, classes and activation are the "
            "card's own fields, and weights come from the model's folder only. Leave these out"
        )
    if ":" in encoder or "/" in encoder:
        raise ModelError(
            f"model {card.name!r}: encoder {encoder!r} names a place: nothing is fetched. Name an encoder of the library"
        )
    outputs = 1 if card.activation == "sigmoid" else len(card.classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network = ARCHITECTURES[name](
                encoder_name=encoder, encoder_weights=None, in_channels=len(card.bands), classes=outputs, **arguments
            )
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as e:
        raise ModelError(
            f"model {card.name!r}: segmentation-models-pytorch {smp.__version__} cannot build {name} with encoder {encoder!r} "
            f"and arguments {arguments}: {type(e).__name__}: {e}"
        ) from e
    assert isinstance(network, nn.Module)
    return network


def load(folder: Path, card: ModelCard) -> nn.Module:
    """The network of `card` with the weights in `folder`, every one of them and no other, ready to predict."""
    assert card.weights is not None
    path = folder / card.weights
    if path.suffix != ".safetensors":
        raise ModelError(f"weights {path} must be .safetensors: other formats can run code when they are read. Save them anew")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ModelError(f"weights {path} cannot be read: {e}. Copy them again, or save the model anew") from e
    network = build(card)
    if problems := _differences(network.state_dict(), weights):
        raise ModelError(f"weights {path} are not those of {card.architecture}: {problems}. Correct model.json or the weights")
    network.load_state_dict(weights)
    return network.eval()


def _differences(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """What keeps `given` from being `wanted`, in words; empty where they agree in names and shapes."""
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, should be {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    found = {"missing": missing, "not in the network": surplus, "of another shape": shapes}
    return "; ".join(f"{len(names)} {what} ({', '.join(names[:3])}, ...)" for what, names in found.items() if names)
