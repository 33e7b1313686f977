"""Any Python function as a model: `package.module:function` called with raw tiles, for what no other adapter fits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.batches import check_batch, check_output, padded
from pipeline.models.code import function_name, load_function
from pipeline.models.predictor import Predictor


class CallablePredictor(Predictor):
    """Outputs of `function(data, valid, **arguments)`.

    The card's architecture is {"function": "package.module:function", "arguments": {...}}. The function gets raw samples
    (batch, bands, t, t) in the card's dtype and valid (batch, t, t), always a full batch with empty tiles at its end, and
    returns (batch, classes, t, t), or (batch, 1, t, t) for sigmoid, to which the card's activation is then applied.
    """

    def __init__(self, card: ModelCard, *, batch: int, flips: int) -> None:
        function_name(card)
        if flips != 1:
            raise ModelError(
                f"model {card.name!r} is a function of its own: model.test_time_flips {flips} does not reach it. Set 1"
            )
        super().__init__(card)
        self.group, self._function = batch, load_function(card)
        self._arguments: dict[str, Any] = card.architecture.get("arguments", {})

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self.card, data, valid)
        answers = []
        for start in range(0, len(data), self.group):
            part = slice(start, min(start + self.group, len(data)))
            answer = self._function(padded(data[part], self.group), padded(valid[part], self.group), **self._arguments)
            answer = np.asarray(answer)
            check_output(self.card, answer.shape, self.group, data.shape[-1])
            answers.append(answer[: part.stop - start].astype(np.float32, order="C", copy=False))
        return np.concatenate(answers) if len(answers) != 1 else answers[0]
