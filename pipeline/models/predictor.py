"""What every loaded model can do, whatever its family: tiles in, outputs that may be blended out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.blend import Activation, Blending, blending
from pipeline.card import ModelCard
from pipeline.edges import Span, Winners, winners_of
from pipeline.grid import Lattice, Window
from pipeline.models.batches import activated, check_finite


@dataclass
class TileGroup:
    """Tiles on their way through a model, in buffers that are filled again and again."""

    data: NDArray[Any]
    """(group, bands, t, t) raw samples."""
    valid: NDArray[np.bool_]
    """(group, t, t): True is real data."""
    places: list[tuple[int, int]]
    """(row, col) of each tile in the image; no more than the group holds."""

    @property
    def filled(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Data and validity of the tiles that are there."""
        return self.data[: len(self.places)], self.valid[: len(self.places)]


class Predictor(ABC):
    """A loaded model. The outputs for a tile depend on that tile only, not on its place or its neighbours in the group."""

    group = 1
    """Tiles that it likes to get at a time."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.activation: Activation = card.activation
        """What makes the outputs scores that may be averaged."""

    @abstractmethod
    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Outputs (n, channels, t, t), C-contiguous, of raw samples `data` (n, bands, t, t) in the card's dtype.

        `valid` (n, t, t): True is real data; networks see 0 elsewhere. n may be any number. Raises ModelError where samples
        or outputs do not fit the card. May be called from several threads.
        """

    def __call__(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Scores (n, classes, t, t), as `outputs` with the activation applied: softmax gives probabilities, sigmoid (1 - p, p).

        Raises ModelError also where scores are not finite.
        """
        outputs = self.outputs(data, valid)
        check_finite(self.card, outputs, data, valid)
        return activated(self.activation, outputs)

    def stream(self, groups: Iterable[TileGroup]) -> Iterator[tuple[TileGroup, Any]]:
        """Each group with its outputs, in order: what `blender` takes, tile by tile. Groups may be ahead of what is yielded by
        a few; their buffers are free again when they have been yielded and the next is asked for."""
        for tiles in groups:
            yield tiles, self.outputs(*tiles.filled)

    def blender(self, lattice: Lattice, core: Window, *, confidence: bool) -> Blending:
        """What turns the outputs that `stream` yields into labels of `core`."""
        return blending(lattice, core, len(self.card.classes), activation=self.activation, confidence=confidence)

    def winners(self, outputs: Any, rows: Span, cols: Span) -> Winners:
        """The labels (h, w) that the part [rows) x [cols) of what `stream` yields for a tile would have by itself, to be asked
        for later."""
        return winners_of(outputs, rows, cols, sigmoid=self.activation == "sigmoid")

    def device_seconds(self) -> float | None:
        """How long a device of its own computed for the calling thread since it last asked; None where there is none."""
        return None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Memory for a group's tiles."""
        return np.empty(shape, dtype)
