"""Models: raw tiles in, scores that may be averaged out, whatever family a model belongs to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic import write_bytes
from pipeline.card import CARD_NAME, ModelCard, read_card
from pipeline.errors import ModelError, PlanError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.network import Inference, Network
    from pipeline.models.predictor import Predictor


def load_model(
    folder: Path,
    card: ModelCard,
    *,
    device: str,
    batch: int,
    precision: str,
    flips: int,
    trust_code: bool,
    compiled: bool = False,
) -> Predictor:
    """The model in `folder`, on `device` (as for `choose_device`), predicting at most `batch` tiles at a time.

    `precision` is float32 or bfloat16 (of the forward pass), `flips` how many of the square's symmetries are averaged
    (1, 2, 4, 8), `compiled` whether torch.compile makes it a program, `trust_code` whether the model may run code of its own.
    On the CPU it uses the threads that torch has, one a tile: `batch` should be no smaller than their number. Raises ModelError.
    """
    verify_weights(folder, card)
    check_trusted(card, trust_code)
    if card.adapter == "threshold":
        from pipeline.models.threshold import ThresholdPredictor

        return ThresholdPredictor(card)
    if card.adapter == "callable":
        from pipeline.models.callable import CallablePredictor

        return CallablePredictor(card, batch=batch, flips=flips)

    from pipeline.models.network import Inference, Network

    how = Inference(choose_device(device), batch=batch, precision=precision, flips=flips, compiled=compiled)
    if card.adapter == "smp":
        from pipeline.models import smp
        from pipeline.models.fuse import fuse

        side = min(card.tile, -(-128 // card.multiple_of) * card.multiple_of)
        network = Network(fuse(smp.load(folder, card), len(card.bands), side), any_layout=True)
    else:
        from pipeline.models import exported

        network = exported.load(folder, card, how.device)
    return network_predictor(card, network, how)


def network_predictor(card: ModelCard, network: Network, how: Inference) -> Predictor:
    """A network as a predictor, on the device that `how` names."""
    if how.device == "cpu":
        from pipeline.models.cpu import CpuPredictor

        return CpuPredictor(card, network, how)
    from pipeline.models.device import DevicePredictor

    return DevicePredictor(card, network, how)


def save_model(folder: Path, card: ModelCard, module: nn.Module) -> ModelCard:
    """Writes weights and card of an smp model, each whole or not at all, and returns the card as written.

    The card gets the weights' digest, whether the network is translation invariant and, where it has none, its memory. Weights
    come first: should the card not follow, the old card's digest refuses them.
    """
    if card.adapter != "smp" or card.weights is None or not card.weights.endswith(".safetensors"):
        raise ModelError(
            f"model {card.name!r} cannot be saved with adapter {card.adapter} and weights {card.weights!r}: what is saved is a "
            "network of segmentation-models-pytorch and its weights as .safetensors"
        )
    from safetensors.torch import save

    from pipeline.models.activations import activation_bytes_per_pixel
    from pipeline.models.locality import looks_across

    weights = save({name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()})
    facts: dict[str, Any] = {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)}
    facts["translation_invariant"] = not looks_across(module, len(card.bands), card.tile)
    if not card.activation_bytes_per_pixel:
        facts["activation_bytes_per_pixel"] = activation_bytes_per_pixel(module, len(card.bands), card.tile, len(card.classes))
    card = card.model_copy(update=facts)
    folder.mkdir(parents=True, exist_ok=True)
    assert card.weights is not None
    write_bytes(folder / card.weights, weights, durable=True)
    save_card(folder, card)
    return card


def save_card(folder: Path, card: ModelCard) -> None:
    """Writes the card of the model in `folder`, whole or not at all."""
    write_bytes(folder / CARD_NAME, card.model_dump_json(indent=2).encode() + b"\n", durable=True)


def usable_card(folder: Path, *, trust_code: bool) -> ModelCard:
    """The card of the model in `folder`, of a callable one with the digest of its code; PlanError where that model cannot be
    used, before anything is spent on it."""
    from pipeline.models.code import with_code

    try:
        card = read_card(folder)
        check_trusted(card, trust_code)
        verify_weights(folder, card)
        card = with_code(card)
    except ModelError as e:
        raise PlanError(str(e)) from e
    return card


def check_trusted(card: ModelCard, trust_code: bool) -> None:
    """ModelError where loading the model could run code of its own and `trust_code` does not allow that."""
    if card.adapter in ("callable", "exported") and not trust_code:
        what = "calls a Python function" if card.adapter == "callable" else "is a program, whose file can hold any code"
        raise ModelError(
            f"model {card.name!r} (adapter {card.adapter}) {what}: loading it lets its author do what you can do here. "
            "Where you trust its origin, set model.trust_code: true, or pass --trust-code"
        )


def verify_weights(folder: Path, card: ModelCard) -> None:
    """ModelError unless `folder` holds the very weights that `card` names, by SHA-256."""
    if card.weights is None:
        if card.adapter in ("smp", "exported"):
            raise ModelError(
                f"model {card.name!r} names no weights, adapter {card.adapter} needs them: name the file in {folder / CARD_NAME}"
            )
        return
    path = folder / card.weights
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ModelError(f"weights of model {card.name!r} cannot be read: {e}. Copy {card.weights} into {folder}") from e
    if card.weights_sha256 is None:
        raise ModelError(
            f"{folder / CARD_NAME} names no weights_sha256, so that masks of other weights would pass for this model's. If "
            f'{card.weights} is the right file, add "weights_sha256": "{found}"'
        )
    if found != card.weights_sha256:
        raise ModelError(
            f"{path} is not the file that its card was made for: its SHA-256 is {found}, the card says {card.weights_sha256}. "
            "Restore the weights, or save card and weights together"
        )


def choose_device(name: str) -> str:
    """The torch device that `name` means here: `auto` is cuda where there is one, else cpu.

    ModelError that names the devices there are, where it is none of them.
    """
    import torch

    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    wanted = "cuda" if name == "auto" and len(here) > 1 and here[1] != "mps" else "cpu" if name == "auto" else name
    if wanted not in here and not (wanted == "cuda" and "cuda:0" in here):
        raise ModelError(f"device {name!r} is not on this machine, which has {', '.join(here)}: set model.device to one of them")
    return wanted


def cuda_devices() -> list[str]:
    """Ids of the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part.strip() not in ("", "-1")]
    if not Path("/dev/nvidiactl").exists():
        return []  # spares torch's import where there is no driver
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def cuda_memory() -> int:
    """Bytes of the smallest CUDA device that this process may use, less a tenth for what others keep there."""
    import torch

    devices = range(torch.cuda.device_count())
    return int(0.9 * min(torch.cuda.get_device_properties(i).total_memory for i in devices))
