"""The simplest model there is: the class of a pixel is where one band's value lies among thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.batches import check_batch
from pipeline.models.predictor import Predictor


class ThresholdPredictor(Predictor):
    """One-hot scores from thresholds: with [100, 200], values below 100 are class 0, below 200 class 1, others class 2.

    The card's architecture is {"band": position in the card's bands, "thresholds": growing values in raw sample units}.
    """

    def __init__(self, card: ModelCard) -> None:
        band, thresholds = card.architecture.get("band", 0), card.architecture.get("thresholds")
        if not isinstance(thresholds, list) or not all(isinstance(t, int | float) for t in thresholds):
            raise ModelError(f"model {card.name!r}: architecture.thresholds is {thresholds!r}, it must be a list of numbers")
        if sorted(set(thresholds)) != thresholds:
            raise ModelError(f"model {card.name!r}: architecture.thresholds {thresholds} must grow")
        if len(thresholds) + 1 != len(card.classes):
            raise ModelError(
                f"model {card.name!r}: {len(thresholds)} thresholds {thresholds} part {len(thresholds) + 1} classes, the card "
                f"names {len(card.classes)} ({', '.join(c.name for c in card.classes)})"
            )
        if not isinstance(band, int) or not 0 <= band < len(card.bands):
            raise ModelError(f"model {card.name!r}: architecture.band is {band!r}, the card has bands 0 to {len(card.bands) - 1}")
        super().__init__(card)
        self.activation = "none"
        self._band, self._thresholds = band, np.array(thresholds, np.float64)

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self.card, data, valid)
        codes = np.digitize(np.where(valid, data[:, self._band], 0), self._thresholds)
        classes = np.arange(len(self.card.classes))[:, None, None]
        return np.ascontiguousarray(codes[:, None] == classes, np.float32)
