"""What a batch of tiles must look like on its way into a model and out of it: shapes, types, whole numbers of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.blend import Activation
from pipeline.card import ModelCard
from pipeline.errors import ModelError


def check_batch(card: ModelCard, data: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """ModelError unless `data` is (n, bands, t, t) in the card's type and `valid` (n, t, t) bool."""
    if data.ndim != 4 or data.shape[1] != len(card.bands) or data.shape[2] != data.shape[3] or data.dtype != card.dtype:
        raise ModelError(
            f"model {card.name!r} takes (n, {len(card.bands)}, t, t) of {card.dtype}, bands {', '.join(card.bands)}; it was "
            f"given {data.shape} of {data.dtype}: read the image with the card's bands and sample type"
        )
    if valid.shape != (len(data), *data.shape[2:]) or valid.dtype != np.bool_:
        raise ModelError(
            f"valid must be {(len(data), *data.shape[2:])} of bool beside data of {data.shape}; "
            f"it is {valid.shape} of {valid.dtype}"
        )


def check_output(card: ModelCard, shape: tuple[int, ...], tiles: int, tile: int) -> None:
    """ModelError unless `shape` is what the card promises for so many tiles: (tiles, classes, tile, tile), or one channel
    where the activation is sigmoid."""
    channels = 1 if card.activation == "sigmoid" else len(card.classes)
    if shape != (tiles, channels, tile, tile):
        raise ModelError(
            f"model {card.name!r} answers {shape}, its card promises {(tiles, channels, tile, tile)}: {len(card.classes)} "
            f"classes, activation {card.activation}, at the input's resolution. Correct the card or choose the matching weights"
        )


def check_finite(card: ModelCard, outputs: NDArray[np.float32], data: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """ModelError where a tile got outputs that are no numbers: in a mask they would be some class at random."""
    if np.isfinite(outputs.min(initial=0)) and np.isfinite(outputs.max(initial=0)):
        return
    bad = [i for i, tile in enumerate(outputs) if not np.isfinite(tile).all()]
    samples = sum(int((~np.isfinite(data[i]) & valid[i]).sum()) for i in bad)
    where = f"tile {', '.join(map(str, bad))} of a group of {len(outputs)}"
    raise not_finite(card, f"{where}; {samples} of their valid samples are NaN or infinite themselves")


def not_finite(card: ModelCard, where: str) -> ModelError:
    """The error of outputs that are no finite numbers."""
    return ModelError(
        f"model {card.name!r} answers NaN or infinite outputs for {where}. Declare filling under archive.nodata, or check "
        "the weights"
    )


def activated(activation: Activation, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (n, classes, t, t) from outputs (n, channels, t, t)."""
    if activation == "none":
        return outputs
    if activation == "sigmoid":
        p = 0.5 * (1 + np.tanh(0.5 * outputs))
        return np.concatenate([1 - p, p], axis=1)
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def padded(array: NDArray[Any], tiles: int) -> NDArray[Any]:
    """`array` with `tiles` >= len(array) tiles, zeros after its own: contiguous, writable, itself where that is enough."""
    if len(array) == tiles:
        return np.require(array, requirements=["C", "W"])
    whole = np.zeros((tiles, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    return whole
