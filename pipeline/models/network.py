"""A torch network as a predictor: fixed shapes, scaling on the device, symmetries, activation, checks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.batches import check_batch, check_finite, check_output, padded

SYMMETRIES: tuple[tuple[bool, tuple[int, ...]], ...] = (
    (False, ()),
    (False, (3,)),
    (False, (2,)),
    (False, (2, 3)),
    (True, ()),
    (True, (3,)),
    (True, (2,)),
    (True, (2, 3)),
)
"""The eight symmetries of the square: (swap rows and columns, then mirror along these axes of (n, c, rows, cols)).
The first 1, 2, 4 or 8 are the square's subgroups: nothing, left-right, all mirrors and the half turn, everything."""

_ONE_AT_A_TIME = Lock()
"""Two calls on the way would take twice the memory that the plan allows for; and torch's threads are the process's."""


@dataclass(frozen=True, slots=True)
class Inference:
    """How a network is run."""

    device: str
    """A torch device that exists."""
    batch: int
    """Tiles a forward pass."""
    precision: str
    """`float32`, or `bfloat16` for autocast."""
    flips: int
    """How many of SYMMETRIES are averaged: 1, 2, 4 or 8."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.precision not in ("float32", "bfloat16") or self.flips not in (1, 2, 4, 8):
            raise ModelError(f"{self}: batch must be 1 or more, precision float32 or bfloat16, flips 1, 2, 4 or 8")


class NetworkPredictor:
    """`Predictor` around a network that maps (batch, bands, t, t) float32 to (batch, classes or 1, t, t).

    Which routine computes a layer, and so how it rounds, depends on the shapes and the number of threads. Therefore neither
    changes. A GPU always gets `batch` tiles, the last ones empty where there are fewer. A CPU gets one tile a thread, on as
    many threads as torch has at the first call, up to `batch`; scores are the same bits for any number of them.
    """

    def __init__(
        self,
        card: ModelCard,
        network: nn.Module,
        how: Inference,
        *,
        any_layout: bool = False,
        fixed_batch: int | None = None,
    ) -> None:
        """`any_layout`: the network takes channels-last tensors too; `fixed_batch`: it takes this many tiles only."""
        self._card, self._how, self._fixed = card, how, fixed_batch is not None
        self._device = torch.device(how.device)
        self._batch = fixed_batch or (1 if self._device.type == "cpu" else how.batch)
        """Tiles a forward pass; halved for good where the device's memory does not hold as many."""
        self._pool: ThreadPoolExecutor | None = None
        self._layout = torch.channels_last if any_layout and self._device.type != "mps" else torch.contiguous_format
        self._network = network.to(self._device)
        if any_layout:
            self._network = self._network.eval().to(memory_format=self._layout)
        self._offset = torch.tensor(card.scaling.offset, dtype=torch.float32, device=self._device)[:, None, None]
        self._divisor = torch.tensor(card.scaling.divisor, dtype=torch.float32, device=self._device)[:, None, None]

    def __call__(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self._card, data, valid)
        scores = torch.empty((len(data), len(self._card.classes), *data.shape[2:]), dtype=torch.float32)
        with _ONE_AT_A_TIME:
            if self._device.type == "cpu":
                self._predict_side_by_side(data, valid, scores)
            else:
                self._predict_in_order(data, valid, scores)
        whole: NDArray[np.float32] = scores.numpy()
        check_finite(self._card, whole, data, valid)
        return whole

    def _predict_side_by_side(self, data: NDArray[Any], valid: NDArray[np.bool_], scores: Tensor) -> None:
        """Fills `scores`, each thread a tile of its own at a time."""
        threads = torch.get_num_threads()
        if self._pool is None:
            at_once = min(threads, max(1, self._how.batch // self._batch))
            self._pool = ThreadPoolExecutor(at_once, "tile", initializer=compute_alone)
        try:
            for _ in self._pool.map(lambda start: self._predict(data, valid, start, scores), range(0, len(data), self._batch)):
                pass
        finally:
            torch.set_num_threads(threads)  # compute_alone changed it for threads to come

    def _predict_in_order(self, data: NDArray[Any], valid: NDArray[np.bool_], scores: Tensor) -> None:
        """Fills `scores` batch by batch, with smaller batches from where the device's memory does not hold one."""
        start = 0
        while start < len(data):
            try:
                with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                    self._predict(data, valid, start, scores)
                start += self._batch
                continue
            except torch.OutOfMemoryError as e:
                if self._batch == 1 or self._fixed:
                    raise ModelError(
                        f"model {self._card.name!r} runs out of memory on {self._device} with {self._batch} tile(s) of "
                        f"{data.shape[-1]} px at a time, and cannot take fewer: lower tiling.tile, set model.precision: "
                        "bfloat16, or use another device"
                    ) from e
            self._batch //= 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _predict(self, data: NDArray[Any], valid: NDArray[np.bool_], start: int, scores: Tensor) -> None:
        """One forward pass, for the tiles from `start` on: fills their part of `scores` (n, classes, t, t)."""
        part = slice(start, min(start + self._batch, len(data)))
        samples, real = padded(data[part], self._batch), padded(valid[part], self._batch)
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self._device.type, torch.bfloat16, enabled=self._how.precision == "bfloat16"),
            ):
                batch = normalised(to_device(samples, self._device), torch.from_numpy(real), self._offset, self._divisor)
                scores[part].copy_(self._averaged(batch)[: part.stop - start])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as e:
            raise ModelError(
                f"model {self._card.name!r} fails on a batch of {samples.shape} {samples.dtype} on {self._device}: {e}"
            ) from e

    def _averaged(self, batch: Tensor) -> Tensor:
        """Mean of the scores (n, classes, t, t) over the symmetries, each turned back, summed in their order."""
        total: Tensor | None = None
        for swap, axes in SYMMETRIES[: self._how.flips]:
            turned = batch.transpose(2, 3) if swap else batch
            scores = self._scores(turned.flip(axes) if axes else turned)
            scores = scores.flip(axes) if axes else scores
            scores = scores.transpose(2, 3) if swap else scores
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return total.div_(self._how.flips).contiguous() if self._how.flips > 1 else total

    def _scores(self, batch: Tensor) -> Tensor:
        """One forward pass and the card's activation: contiguous float32 (n, classes, t, t)."""
        outputs = self._network(batch.contiguous(memory_format=self._layout))
        if not isinstance(outputs, Tensor):
            raise ModelError(
                f"model {self._card.name!r} answers {type(outputs).__name__}, not one tensor: wrap it so that it returns its "
                "class scores only"
            )
        check_output(self._card, tuple(outputs.shape), len(batch), batch.shape[-1])
        outputs = outputs.float().contiguous()
        if self._card.activation == "sigmoid":
            second = outputs.sigmoid()
            return torch.cat([1 - second, second], dim=1)
        return outputs.softmax(dim=1) if self._card.activation == "softmax" else outputs


def compute_alone() -> None:
    """Lets torch compute in the calling thread without helpers, whatever other threads are set to from then on."""
    torch.get_num_threads()  # the first question fetches the process's setting, and would later overwrite the next line
    torch.set_num_threads(1)


def to_device(data: NDArray[Any], device: torch.device) -> Tensor:
    """Samples on `device`, transferred in their own type; uint16, which few devices compute with, becomes int32 there."""
    if data.dtype == np.uint16:
        return torch.from_numpy(data.view(np.int16)).to(device).to(torch.int32).bitwise_and_(0xFFFF)
    return torch.from_numpy(data).to(device)


def normalised(samples: Tensor, valid: Tensor, offset: Tensor, divisor: Tensor) -> Tensor:
    """(samples - offset) / divisor as new float32 (n, bands, t, t), exactly 0 where not `valid` (n, t, t), NaN or not.

    `offset` and `divisor` are (bands, 1, 1). Training scales by this function too.
    """
    scaled = samples.to(torch.float32, copy=True).sub_(offset).div_(divisor)
    return scaled.masked_fill_(~valid.to(scaled.device)[:, None], 0)
