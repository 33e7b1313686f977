"""What a batch of tiles must look like on its way into a model and out of it: shapes, types, whole numbers of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def check_finite(card: ModelCard, scores: NDArray[np.float32], data: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    """ModelError where a tile got scores that are no numbers: in a mask they would be some class at random."""
    if np.isfinite(scores.min(initial=0)) and np.isfinite(scores.max(initial=0)):
        return
    bad = [i for i, tile in enumerate(scores) if not np.isfinite(tile).all()]
    samples = sum(int((~np.isfinite(data[i]) & valid[i]).sum()) for i in bad)
    raise ModelError(
        f"model {card.name!r} answers NaN or infinite scores for tile {', '.join(map(str, bad))} of a batch of {len(scores)}; "
        f"{samples} of their valid samples are NaN or infinite themselves. Declare filling under archive.nodata, or check "
        "the weights"
    )


def padded(array: NDArray[Any], tiles: int) -> NDArray[Any]:
    """`array` with `tiles` >= len(array) tiles, zeros after its own: contiguous, writable, itself where that is enough."""
    if len(array) == tiles:
        return np.require(array, requirements=["C", "W"])
    whole = np.zeros((tiles, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    return whole
