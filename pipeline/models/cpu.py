"""A network on the CPU: one tile a thread, several side by side, the same bits for any number of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import kernels
from pipeline.card import ModelCard
from pipeline.models.batches import check_batch, padded
from pipeline.models.network import ForwardPass, Inference, Network
from pipeline.models.predictor import Predictor, TileGroup


class CpuPredictor(Predictor):
    """`Predictor` around a network on the CPU.

    Which routine computes a layer, and so how it rounds, depends on the shapes and the number of threads. Therefore neither
    changes: a forward pass has one tile (or as many as the network insists on) and one thread. There are as many passes at a
    time as torch has threads at the first, up to `how.batch`; each starts when a thread is free, none waits for its neighbour.
    """

    def __init__(self, card: ModelCard, network: Network, how: Inference) -> None:
        super().__init__(card)
        self._forward, self._most = ForwardPass(card, network, how), how.batch
        self.group, self.activation = network.batch or 1, self._forward.activation
        self._offset = np.array(card.scaling.offset, np.float32)
        self._divisor = np.array(card.scaling.divisor, np.float32)
        self._own = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        self._passes = 1
        self._starting = threading.Lock()

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        check_batch(self.card, data, valid)
        starts = range(0, len(data), self.group)
        parts = [(data[start : start + self.group], valid[start : start + self.group]) for start in starts]
        answers = list(self._threads().map(self._outputs, *zip(*parts, strict=True))) if parts else []
        channels = 1 if self.activation == "sigmoid" else len(self.card.classes)
        return np.concatenate(answers) if answers else np.zeros((0, channels, *data.shape[2:]), np.float32)

    def stream(self, groups: Iterable[TileGroup]) -> Iterator[tuple[TileGroup, Any]]:
        """As for every predictor; one pass more than there are threads is handed out, so that none runs dry."""
        pool = self._threads()
        ahead: deque[tuple[TileGroup, Future[NDArray[np.float32]]]] = deque()
        try:
            for tiles in groups:
                check_batch(self.card, *tiles.filled)
                ahead.append((tiles, pool.submit(self._outputs, *tiles.filled)))
                if len(ahead) > self._passes:
                    first, answer = ahead.popleft()
                    yield first, answer.result()
            while ahead:
                first, answer = ahead.popleft()
                yield first, answer.result()
        finally:
            for _, answer in ahead:
                answer.cancel()
            for _, answer in ahead:
                if not answer.cancelled():
                    answer.exception()  # the buffers are not ours once this returns

    def _outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """One forward pass in the calling thread."""
        batch = self._scaled(padded(data, self.group), padded(valid, self.group))
        outputs = self._forward(batch)
        if outputs.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr():
            outputs = outputs.clone()  # a network may answer its input, and that memory is used again
        answer: NDArray[np.float32] = outputs[: len(data)].numpy()
        return answer

    def _scaled(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> torch.Tensor:
        """What the network sees, in memory that the thread uses for every pass: fresh memory costs more than the scaling."""
        tiles, bands, height, width = data.shape
        buffer: torch.Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or buffer.shape != data.shape:
            last = self._forward.layout == torch.channels_last
            buffer = torch.empty((tiles, height, width, bands)).permute(0, 3, 1, 2) if last else torch.empty(data.shape)
            self._own.buffer = buffer
        target = buffer.numpy()
        for i in range(tiles):
            kernels.scale(data[i], valid[i], self._offset, self._divisor, target[i])
        return buffer

    def _threads(self) -> ThreadPoolExecutor:
        """The threads in which passes run, each of them alone with its torch."""
        with self._starting:
            if self._pool is None:
                threads = torch.get_num_threads()
                self._passes = min(threads, max(1, self._most // self.group))
                self._pool = ThreadPoolExecutor(self._passes, "tile", initializer=compute_alone)
                together = threading.Barrier(self._passes)
                for started in [self._pool.submit(together.wait) for _ in range(self._passes)]:
                    started.result()
                torch.set_num_threads(threads)  # compute_alone changed it for threads to come
            return self._pool


def compute_alone() -> None:
    """Lets torch compute in the calling thread without helpers, whatever other threads are set to from then on."""
    torch.get_num_threads()  # the first question fetches the process's setting, and would later overwrite the next line
    torch.set_num_threads(1)
