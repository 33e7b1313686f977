"""Any Python function as a model: `package.module:function` called with raw tiles, for what no other adapter fits."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.batches import check_batch, check_finite, check_output, padded


class CallablePredictor:
    """Scores from `function(data, valid, **arguments)`.

    The card's architecture is {"function": "package.module:function", "arguments": {...}}. The function gets raw samples
    (batch, bands, t, t) in the card's dtype and valid (batch, t, t), always a full batch with empty tiles at its end, and
    returns (batch, classes, t, t), or (batch, 1, t, t) for sigmoid, to which the card's activation is then applied.
    """

    def __init__(self, card: ModelCard, *, batch: int, flips: int) -> None:
        name = card.architecture.get("function")
        if not isinstance(name, str) or name.count(":") != 1:
            raise ModelError(f"model {card.name!r}: architecture.function is {name!r}, it must be 'package.module:function'")
        if flips != 1:
            raise ModelError(
                f"model {card.name!r} is a function of its own: model.test_time_flips {flips} does not reach it. Set 1"
            )
        module, attribute = name.split(":")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as e:
            raise ModelError(
                f"model {card.name!r} calls {name}, which cannot be imported: {e}. Install its package on every worker"
            ) from e
        self._card, self._function, self._batch = card, function, batch
        self._arguments: dict[str, Any] = card.architecture.get("arguments", {})

    def __call__(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self._card, data, valid)
        count, tile = len(data), data.shape[-1]
        scores = np.empty((count, len(self._card.classes), tile, tile), np.float32)
        for start in range(0, count, self._batch):
            part = slice(start, min(start + self._batch, count))
            answer = self._function(padded(data[part], self._batch), padded(valid[part], self._batch), **self._arguments)
            answer = np.asarray(answer)
            check_output(self._card, answer.shape, self._batch, tile)
            scores[part] = activated(self._card, answer[: part.stop - start].astype(np.float32, copy=False))
        check_finite(self._card, scores, data, valid)
        return scores


def activated(card: ModelCard, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (n, classes, t, t) from outputs (n, classes or 1, t, t) by the card's activation."""
    if card.activation == "none":
        return outputs
    if card.activation == "sigmoid":
        p = 0.5 * (1 + np.tanh(0.5 * outputs))
        return np.concatenate([1 - p, p], axis=1)
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
