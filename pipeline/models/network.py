"""One forward pass of a torch network: layout, arithmetic, symmetries, and what its errors mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.blend import Activation
from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.models.batches import check_output

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


@dataclass(frozen=True, slots=True)
class Inference:
    """How a network is run."""

    device: str
    """A torch device that exists."""
    batch: int
    """Tiles in work at a time: on a GPU those of a forward pass, on the CPU one a thread."""
    precision: str
    """`float32`, or `bfloat16` for autocast."""
    flips: int
    """How many of SYMMETRIES are averaged: 1, 2, 4 or 8."""
    compiled: bool = False
    """Whether torch.compile makes the network into a program for the tile's shape."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.precision not in ("float32", "bfloat16") or self.flips not in (1, 2, 4, 8):
            raise ModelError(f"{self}: batch must be 1 or more, precision float32 or bfloat16, flips 1, 2, 4 or 8")


@dataclass(frozen=True, slots=True)
class Network:
    """A network, and what must be known to call it."""

    module: nn.Module
    """Maps (batch, bands, t, t) float32 to (batch, classes or 1, t, t)."""
    any_layout: bool = False
    """Whether it takes channels-last tensors too."""
    batch: int | None = None
    """The only number of tiles that it takes; None: any."""


class ForwardPass:
    """Scaled tiles in, outputs out, on one device; from several threads if need be."""

    def __init__(self, card: ModelCard, network: Network, how: Inference) -> None:
        self._card, self._how = card, how
        self.device = torch.device(how.device)
        self.layout = torch.channels_last if network.any_layout and self.device.type != "mps" else torch.contiguous_format
        module = network.module.to(self.device)
        if network.any_layout:
            module = module.eval().to(memory_format=self.layout)
        self._module = torch.compile(module, dynamic=False) if how.compiled else module
        self.activation: Activation = card.activation if how.flips == 1 else "none"
        """What is left to do to the outputs: a mean over symmetries is one of scores, so that they are activated before."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Outputs (n, channels, t, t), contiguous float32 on the device, of `batch` (n, bands, t, t) float32 there.

        ModelError where the network fails; torch.OutOfMemoryError where the device's memory does not suffice.
        """
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self._how.precision == "bfloat16"),
            ):
                return self._outputs(batch) if self._how.flips == 1 else self._averaged(batch)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as e:
            raise ModelError(
                f"model {self._card.name!r} fails on a batch of {tuple(batch.shape)} {batch.dtype} on {self.device}: {e}"
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
        return total.div_(self._how.flips).contiguous()

    def _scores(self, batch: Tensor) -> Tensor:
        outputs = self._outputs(batch)
        if self._card.activation == "sigmoid":
            second = outputs.sigmoid()
            return torch.cat([1 - second, second], dim=1)
        return outputs.softmax(dim=1) if self._card.activation == "softmax" else outputs

    def _outputs(self, batch: Tensor) -> Tensor:
        outputs = self._module(batch.contiguous(memory_format=self.layout))
        if not isinstance(outputs, Tensor):
            raise ModelError(
                f"model {self._card.name!r} answers {type(outputs).__name__}, not one tensor: wrap it so that it returns its "
                "class scores only"
            )
        check_output(self._card, tuple(outputs.shape), len(batch), batch.shape[-1])
        return outputs.float().contiguous()


def to_device(data: NDArray[Any], device: torch.device, *, wait: bool = True) -> Tensor:
    """Samples on `device`, transferred in their own type; uint16, which few devices compute with, becomes int32 there.

    `wait` False: the transfer may still be under way, where `data` lies in pinned memory.
    """
    if data.dtype == np.uint16:
        return torch.from_numpy(data.view(np.int16)).to(device, non_blocking=not wait).to(torch.int32).bitwise_and_(0xFFFF)
    return torch.from_numpy(data).to(device, non_blocking=not wait)


def normalised(samples: Tensor, valid: Tensor, offset: Tensor, divisor: Tensor) -> Tensor:
    """(samples - offset) / divisor as new float32 (n, bands, t, t), exactly 0 where not `valid` (n, t, t), NaN or not.

    `offset` and `divisor` are (bands, 1, 1). Training scales by this function too.
    """
    scaled = samples.to(torch.float32, copy=True).sub_(offset).div_(divisor)
    return scaled.masked_fill_(~valid.to(scaled.device)[:, None], 0)
