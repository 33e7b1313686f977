"""A network on a GPU: raw samples go up, labels come down, and copies, passes and blending overlap."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.blend import Blending
from pipeline.card import ModelCard
from pipeline.edges import Span, Winners
from pipeline.errors import ModelError
from pipeline.grid import Lattice, Window
from pipeline.models.batches import check_batch, padded
from pipeline.models.network import ForwardPass, Inference, Network, normalised, to_device
from pipeline.models.predictor import Predictor, TileGroup

IN_FLIGHT = 2
"""Groups whose passes may be queued on the device: while one is computed, the next is copied up."""


class DevicePredictor(Predictor):
    """`Predictor` around a network on a GPU; its outputs stay there until they are labels.

    A pass always has `how.batch` tiles, the last ones empty where there are fewer, so that no layer changes its routine and
    its rounding. Samples are copied from pinned memory in their own type, on a stream of their own. Calls return before the
    device is done: the driver's thread reads and cuts meanwhile.
    """

    def __init__(self, card: ModelCard, network: Network, how: Inference) -> None:
        super().__init__(card)
        self._forward = ForwardPass(card, network, how)
        self._fixed = network.batch is not None
        self.group, self.activation = network.batch or how.batch, self._forward.activation
        self._batch = self.group
        """Tiles a pass; halved for good where the device's memory does not hold as many."""
        self._device = self._forward.device
        self._cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._offset = torch.tensor(card.scaling.offset, dtype=torch.float32, device=self._device)[:, None, None]
        self._divisor = torch.tensor(card.scaling.divisor, dtype=torch.float32, device=self._device)[:, None, None]
        self._one_at_a_time = threading.Lock()
        """Passes of two threads at once would take twice the device's memory."""
        self._own = threading.local()
        """Of each thread: `passes`, how long each of its passes took."""

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self.card, data, valid)
        answer: NDArray[np.float32] = self._passes(*self._up(data, valid))[: len(data)].cpu().numpy()
        return answer

    def stream(self, groups: Iterable[TileGroup]) -> Iterator[tuple[TileGroup, Any]]:
        """As for every predictor; outputs are tensors on the device, and may still be under way."""
        ahead: deque[tuple[TileGroup, Tensor]] = deque()
        for tiles in groups:
            check_batch(self.card, *tiles.filled)
            data, valid = self._up(*tiles.filled)
            ahead.append((tiles, self._passes(data, valid)))
            if len(ahead) == IN_FLIGHT:
                yield ahead.popleft()
        yield from ahead

    def blender(self, lattice: Lattice, core: Window, *, confidence: bool) -> Blending:
        return DeviceBlender(self, lattice, core, confidence=confidence)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Pinned memory, which the device copies from by itself."""
        if not self._cuda:
            return np.empty(shape, dtype)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pinned: NDArray[Any] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
        return pinned

    def winners(self, outputs: Tensor, rows: Span, cols: Span) -> Winners:
        """As for every predictor; asked of the device at once, and waited for only when they are wanted."""
        with torch.inference_mode():
            outputs = outputs[:, slice(*rows), slice(*cols)]
            winner = (outputs[0] > 0).to(torch.uint8) if self.activation == "sigmoid" else outputs.argmax(dim=0)
            winner = winner.to(torch.uint8 if len(self.card.classes) <= 256 else torch.int32)
            if not self._cuda:
                here = winner.cpu().numpy()
                return lambda: here
            coming = torch.empty(winner.shape, dtype=winner.dtype, pin_memory=True).copy_(winner, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self._device))

        def labels() -> NDArray[Any]:
            arrived.synchronize()
            found: NDArray[Any] = coming.numpy()
            return found

        return labels

    def device_seconds(self) -> float | None:
        """As for every predictor; waits for the passes that are still under way. None of devices that have no clock for it."""
        seconds = sum(took.seconds for took in self._timed)
        self._timed.clear()
        return seconds if self._device.type in ("cuda", "cpu") else None

    @property
    def _timed(self) -> list[_Stopwatch]:
        """Of the calling thread's passes."""
        if not hasattr(self._own, "passes"):
            self._own.passes = []
        passes: list[_Stopwatch] = self._own.passes
        return passes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def _up(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """(samples, validity) on the device, whole passes of them; `data` may be changed when this returns."""
        tiles = -(-len(data) // self._batch) * self._batch
        if self._copies is None:
            real = torch.from_numpy(padded(valid, tiles)).to(self._device)
            return to_device(padded(data, tiles), self._device).clone(), real.clone()
        with torch.cuda.stream(self._copies):
            samples = to_device(padded(data, tiles), self._device, wait=False)
            real = to_device(padded(valid, tiles), self._device, wait=False)
        self._copies.synchronize()  # of copies only: passes go on meanwhile
        here = torch.cuda.current_stream(self._device)
        samples.record_stream(here)
        real.record_stream(here)
        return samples, real

    def _passes(self, samples: Tensor, valid: Tensor) -> Tensor:
        """Outputs of all tiles, pass by pass, with smaller passes from where the device's memory does not hold one."""
        answers: list[Tensor] = []
        start = 0
        with self._one_at_a_time:
            while start < len(samples):
                part = slice(start, start + self._batch)
                took = _Stopwatch(self._device)
                try:
                    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                        answers.append(self._forward(normalised(samples[part], valid[part], self._offset, self._divisor)))
                except torch.OutOfMemoryError as e:
                    self._shrink(e, samples.shape[-1])
                    continue
                start += self._batch
                took.stop()
                self._timed.append(took)
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def within_memory[Made](self, make: Callable[[], Made], tile: int) -> Made:
        """The result of `make`, which allocates on the device beside the forward passes: they become smaller until its memory
        suffices. ModelError if they cannot."""
        while True:
            try:
                return make()
            except torch.OutOfMemoryError as e:
                with self._one_at_a_time:
                    self._shrink(e, tile)

    def _shrink(self, error: torch.OutOfMemoryError, tile: int) -> None:
        """Halve the tiles of a pass for good, and give back what is cached of the device's memory."""
        if self._batch == 1 or self._fixed:
            raise ModelError(
                f"model {self.card.name!r} runs out of memory on {self._device} with {self._batch} tile(s) of {tile} px at a "
                "time, and cannot take fewer: lower tiling.tile, tiling.block or cluster.blocks_at_once, set model.precision: "
                "bfloat16, or use another device"
            ) from error
        self._batch //= 2
        if self._cuda:
            torch.cuda.empty_cache()


class _Stopwatch:
    """How long the device is at what is asked of it between start and stop.

    By its own clock where it has one, as calls return before it has begun. Passes of several threads wait for each other on the
    device's one stream, so that no time counts twice.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._began: Any = self._now()
        self._ended: Any = None

    def stop(self) -> None:
        """What is asked from now on is not counted."""
        self._ended = self._now()

    @property
    def seconds(self) -> float:
        """Waits until the device is done."""
        if not self._cuda:
            return float(self._ended - self._began)
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1000

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass
class _Coming:
    """Labels on their way down."""

    rows: slice
    """Rows of the core."""
    winner: Tensor
    confidence: Tensor | None
    arrived: Any
    """Event of the stream that brings them; None where they are here."""


class DeviceBlender(Blending):
    """Blending on the device: only labels come down, strip by strip, while the next tiles are computed."""

    def __init__(self, predictor: DevicePredictor, lattice: Lattice, core: Window, *, confidence: bool) -> None:
        super().__init__(lattice, core, len(predictor.card.classes), confidence=confidence)
        self._device, self._activation = predictor.device, predictor.activation
        self._predictor, self._tile = predictor, lattice.tile
        self._sums = self._within_memory(lambda: torch.zeros(self._strip_shape, device=self._device))
        weight = torch.from_numpy(self._seams.weight).to(self._device)
        self._weight = weight[:, None] * weight
        rows, cols = lattice.touching(core)
        self._strange = torch.zeros(len(rows) * len(cols), dtype=torch.bool, device=self._device)
        """Of each tile in `_places`: whether an output was not finite. The device is asked once, at the end."""
        self._places: list[tuple[tuple[int, int], Window]] = []
        self._coming: deque[_Coming] = deque()
        self._taken = 0

    def finish(self) -> None:
        """As for every blending; waits for the device, and only now knows which tiles are lost."""
        super().finish()
        while self._coming:
            self._take(self._coming.popleft())
        strange = self._strange[: len(self._places)].tolist()
        for lost, (place, part) in zip(strange, self._places, strict=True):
            if lost:
                self._lose(place, part)

    @property
    def final(self) -> int:
        """As for every blending: the labels that have come down."""
        return self._taken

    def _add(self, outputs: Tensor, place: tuple[int, int], part: Window) -> bool:
        (row, col), core = place, self._core
        inside = slice(part.row - row, part.row_stop - row), slice(part.col - col, part.col_stop - col)
        cols = slice(part.col - core.col, part.col_stop - core.col)
        span = self._seams.span(row, col)
        with torch.inference_mode():
            counting = outputs[:, span.row - row : span.row_stop - row, span.col - col : span.col_stop - col]
            strange = ~torch.isfinite(counting).all()
            self._strange[len(self._places)] = strange
            self._places.append((place, part))
            weight = self._weight[inside] + torch.where(strange, torch.nan, 0.0)  # a lost tile makes all its sums NaN
            own = outputs[:, *inside]
            weighted = self._within_memory(lambda: self._weighted(own, weight))
            done = 0
            for rows in self._ring(slice(part.row - core.row, part.row_stop - core.row)):
                height = rows.stop - rows.start
                self._sums[rows, :, cols] += weighted[done : done + height]
                done += height
        return True

    def _weighted(self, own: Tensor, weight: Tensor) -> Tensor:
        """Weighted scores (h, classes, w) of a part of a tile's outputs."""
        if self._activation == "sigmoid":
            own = torch.cat([torch.zeros_like(own), own])
        scores = own if self._activation == "none" else own.softmax(dim=0)
        return (scores * weight).permute(1, 0, 2)

    def _within_memory[Made](self, make: Callable[[], Made]) -> Made:
        return self._predictor.within_memory(make, self._tile)

    def _finite_around(self, outputs: Tensor, place: tuple[int, int], part: Window) -> bool:
        """`_add` has looked at all that counts; what it found is on the device."""
        return True

    def _label(self, rows: slice) -> None:
        while len(self._coming) > IN_FLIGHT:
            self._take(self._coming.popleft())
        done = rows.start
        with torch.inference_mode():
            for piece in self._ring(rows):
                part = slice(done, done + piece.stop - piece.start)
                self._coming.append(self._within_memory(partial(self._winners, self._sums[piece], part)))
                self._sums[piece] = 0
                done = part.stop

    def _ring(self, rows: slice) -> Iterator[slice]:
        """Where the strip keeps `rows` of the core: one piece, or two where the ring closes."""
        size, row = self._sums.shape[0], rows.start
        while row < rows.stop:
            start = row % size
            count = min(rows.stop - row, size - start)
            yield slice(start, start + count)
            row += count

    def _winners(self, sums: Tensor, rows: slice) -> _Coming:
        lost = sums[:, 0].isnan()
        winner = sums.argmax(dim=1).to(torch.uint8 if self.labels.dtype == np.uint8 else torch.int32)
        winner.masked_fill_(lost, self._codes.failed)
        confidence = None
        if self.confidence is not None:
            weights = torch.from_numpy(np.outer(self._seams.row_sum[rows], self._seams.col_sum)).to(self._device)
            confidence = self._down(
                (sums.amax(dim=1) / weights).masked_fill(lost, 0).clamp(0, 1).mul(255).round().to(torch.uint8)
            )
        labels, arrived = self._down(winner), None
        if self._device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(self._device))
        return _Coming(rows, labels, confidence, arrived)

    def _down(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values.cpu()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

    def _take(self, coming: _Coming) -> None:
        """Labels that have come down, to where they are expected."""
        if coming.arrived is not None:
            coming.arrived.synchronize()
        labels = self.labels[coming.rows]
        todo = labels < self._codes.failed
        np.copyto(labels, coming.winner.numpy().astype(labels.dtype, copy=False), where=todo)
        if self.confidence is not None and coming.confidence is not None:
            np.copyto(self.confidence[coming.rows], coming.confidence.numpy(), where=todo)
        self._taken = coming.rows.stop
