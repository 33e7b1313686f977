"""Networks that come as programs: torch.export archives (.pt2) and TorchScript, told apart by their content."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.network import Network


def load(folder: Path, card: ModelCard, device: str) -> Network:
    """The network in the card's weights file. Reading either kind of file can run code in it: call only where the model is
    trusted. ModelError where it is neither, or takes other bands than the card's.

    A program with a fixed batch says so itself in .pt2; for TorchScript the card does, as architecture {"batch": n}.
    """
    assert card.weights is not None
    path = folder / card.weights
    kind = file_kind(path)
    try:
        if kind == "export":
            return _exported(path, card, device)
        network = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, KeyError, AssertionError) as e:
        raise ModelError(f"{path} cannot be loaded by torch {torch.__version__}: {e}. Export the model anew") from e
    batch = card.architecture.get("batch")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ModelError(f"model {card.name!r}: architecture.batch is {batch!r}, it must be a number of tiles, or left out")
    return Network(network.eval(), batch=batch)


def file_kind(path: Path) -> Literal["export", "script"]:
    """What `path` holds by its content; ModelError for anything but a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as e:
        raise ModelError(f"{path} is no torch program: {e}. Save one by torch.export.save or torch.jit.save") from e
    if any("/aotinductor/" in name for name in names):
        raise ModelError(
            f"{path} holds code compiled for one kind of machine (AOTInductor): save it by torch.export.save instead"
        )
    if any(name == "serialized_exported_program.json" or name.endswith("archive_format") for name in names):
        return "export"
    if any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names):
        return "script"
    raise ModelError(
        f"{path} is no torch program but an archive of {', '.join(names[:3])}, ...: a pickled checkpoint is not loaded. Save the "
        "model by torch.export.save, or its weights as .safetensors for adapter smp"
    )


def _exported(path: Path, card: ModelCard, device: str) -> Network:
    with path.open("rb") as file:
        program = torch.export.load(file)
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shape: tuple[Any, ...] = tuple(inputs[0].meta["val"].shape) if len(inputs) == 1 else ()
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != len(card.bands)):
        raise ModelError(
            f"{path} takes {len(inputs)} input(s) of {tuple(map(str, shape))}; the card has {len(card.bands)} bands "
            f"({', '.join(card.bands)}), so it must take one of (batch, {len(card.bands)}, rows, columns)"
        )
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Network(program.module(), batch=shape[0] if isinstance(shape[0], int) else None)
