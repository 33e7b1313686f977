"""How far a model sees and what its tiles cost, measured on the model itself: changes and gradients in, distances out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import machine
from pipeline.blend import hann
from pipeline.card import ModelCard, TileCost
from pipeline.errors import ModelError
from pipeline.grid import tile_starts
from pipeline.models import load_model

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]
Answer = Callable[[NDArray[Any]], Floats]
"""Raw samples (bands, t, t) of one tile, all of them valid, to scores (classes, t, t)."""
FELT = 1e-5
"""Change of a score, as a share of the largest score, below which it counts as rounding."""
TIMED_SECONDS, TIMED_PASSES = 4.0, 5
"""A tile size is timed until so many seconds or passes are through, after a first pass that finds its memory."""

FIRST_TILE = 64
"""Side of the small tile with which a process warms up, px."""


@dataclass
class Profile:
    """What changes do to scores and labels, by Chebyshev distance to the nearest change."""

    farthest: int
    """Distances 1...farthest are kept."""
    pixels: NDArray[np.int64] = field(init=False)
    relabelled: NDArray[np.int64] = field(init=False)
    """Pixels whose label changed; index = distance."""
    change: NDArray[np.float64] = field(init=False)
    """Sum over pixels of the largest change of a score."""
    most: NDArray[np.float64] = field(init=False)
    """Largest change of a score, as a share of the largest score."""

    def __post_init__(self) -> None:
        self.pixels, self.relabelled = np.zeros((2, self.farthest + 1), np.int64)
        self.change, self.most = np.zeros((2, self.farthest + 1), np.float64)

    def add(self, before: Floats, after: Floats, distance: NDArray[np.int64]) -> None:
        """Count scores (classes, h, w) before and after a change at `distance` (h, w); 0 and beyond `farthest` is left out."""
        kept = (distance > 0) & (distance <= self.farthest)
        at = distance[kept]
        change = np.abs(after - before).max(axis=0)[kept]
        length = self.farthest + 1
        self.pixels += np.bincount(at, minlength=length)
        self.relabelled += np.bincount(at[(after.argmax(axis=0) != before.argmax(axis=0))[kept]], minlength=length)
        self.change += np.bincount(at, change, minlength=length)
        np.maximum.at(self.most, at, change / max(float(np.abs(before).max()), 1e-12))

    @property
    def reach(self) -> int:
        """Largest distance at which a change was felt at all; 0 where at none."""
        felt = np.nonzero(self.most > FELT)[0]
        return int(felt[-1]) if len(felt) else 0

    def labels(self, first: int, stop: int) -> float:
        """Share of pixels at distances first...stop - 1 whose label changed."""
        return float(self.relabelled[first:stop].sum() / max(int(self.pixels[first:stop].sum()), 1))

    def score(self, first: int, stop: int) -> float:
        """Mean over pixels at distances first...stop - 1 of the largest change of a score."""
        return float(self.change[first:stop].sum() / max(int(self.pixels[first:stop].sum()), 1))

    def halo(self, tolerance: float, span: int = 8) -> int:
        """Smallest distance beyond which `span` neighbouring distances have at most the share `tolerance` of changed labels."""
        starts = range(max(1, self.farthest - span + 1), 0, -1)
        return next((first for first in starts if self.labels(first, first + span) > tolerance), 0)


def other_content(samples: NDArray[Any]) -> NDArray[Any]:
    """As natural as `samples` (bands, s, s), and another thing at every place: rows moved by half the side."""
    return np.roll(samples, samples.shape[1] // 2, axis=1)


def glare(samples: NDArray[Any], card: ModelCard) -> NDArray[Any]:
    """`samples` (bands, s, s) with a bright value everywhere: what an average over the tile cannot overlook."""
    high = np.array(card.scaling.offset) + 2 * np.array(card.scaling.divisor)
    return np.asarray(np.broadcast_to(as_samples(high[:, None, None], card), samples.shape))


def as_samples(values: NDArray[np.floating[Any]], card: ModelCard) -> NDArray[Any]:
    """Numbers in raw sample units in the card's sample type, cut off at its limits."""
    if card.dtype == "float32":
        return values.astype(np.float32)
    limits = np.iinfo(card.dtype)
    return np.asarray(np.rint(np.clip(values, limits.min, limits.max)), card.dtype)


def felt_across(answer: Answer, samples: NDArray[Any], before: Floats, changed: NDArray[Any]) -> Profile:
    """What the right, then the lower half of `samples` (bands, s, s), replaced by `changed`, does to the other half.

        |..............|##########|    '#' changed; the column left of it is at distance 1
        0             cut         s

    `before` (classes, s, s) is the answer to `samples`. One forward pass shows all distances at once.
    """
    side = samples.shape[-1]
    cut = side // 2 + 5  # in the middle of no network's stride
    profile = Profile(cut)
    columns = np.broadcast_to(np.maximum(cut - np.arange(side), 0), (side, side))
    for distance in (columns, columns.T):
        profile.add(before, answer(np.where(distance > 0, samples, changed)), distance)
    return profile


def felt_at_borders(
    answer: Answer, samples: NDArray[Any], before: Floats, tile: int, places: Sequence[tuple[int, int]]
) -> Profile:
    """What a tile's own border does: tiles at `places` (row, col) of `samples`, beside `before`, where they had surroundings.

    The tile's outermost pixels are at distance 1 of what was cut off.
    """
    profile = Profile(tile // 2)
    along = np.minimum(np.arange(1, tile + 1), np.arange(tile, 0, -1))
    distance = np.minimum(along[:, None], along)
    for row, col in places:
        part = (..., slice(row, row + tile), slice(col, col + tile))
        profile.add(before[part], answer(samples[part]), distance)
    return profile


def shifted(answer: Answer, samples: NDArray[Any], tile: int, shift: int, margin: int) -> float:
    """Share of pixels, at least `margin` px away from the borders of both, that get another label from two tiles of `samples`
    of which one is moved by `shift` px in rows and columns."""
    one = answer(samples[:, :tile, :tile])[:, shift + margin : tile - margin, shift + margin : tile - margin]
    moved = answer(samples[:, shift : shift + tile, shift : shift + tile])
    other = moved[:, margin : tile - margin - shift, margin : tile - margin - shift]
    return float((one.argmax(axis=0) != other.argmax(axis=0)).mean())


def tiled(answer: Answer, samples: NDArray[Any], tile: int, overlap: int) -> NDArray[np.intp]:
    """Labels (s, s) of `samples` (bands, s, s), from tiles that are averaged with Hann weights as `segment` does."""
    starts = tile_starts(samples.shape[-1], tile, overlap)
    weights = np.outer(hann(tile), hann(tile))
    sums: Floats | None = None
    for row in starts:
        for col in starts:
            part = (slice(None), slice(row, row + tile), slice(col, col + tile))
            scores = answer(samples[part])
            if sums is None:
                sums = np.zeros((len(scores), *samples.shape[1:]), np.float32)
            sums[part] += scores * weights
    assert sums is not None
    return np.asarray(sums.argmax(axis=0))


def gradient_energy(network: nn.Module, batch: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float64] | None:
    """Energy of the gradient of one output's winning class with regard to the input, by Chebyshev distance of the input's pixel.

    `batch` (n, bands, s, s) is scaled input; of each the output at the centre is asked, moved by 7 px each time so that all
    places in the stride are. The effective receptive field of Luo et al. 2016 (arXiv:1701.04128). None without a gradient.
    """
    import torch

    side = batch.shape[-1]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    index = np.arange(side)
    energy = np.zeros(side, np.float64)
    for number, tile in enumerate(batch):
        centre = side // 2 + 7 * number % 32
        inputs = torch.from_numpy(tile[None]).to(device).requires_grad_()
        try:
            outputs = network(inputs)[0, :, centre, centre]
            outputs.max().backward()
        except RuntimeError:
            return None
        if inputs.grad is None:
            return None
        squares = inputs.grad[0].double().square().sum(0).cpu().numpy()
        away = np.abs(index - centre)
        energy += np.bincount(np.maximum(away[:, None], away).reshape(-1), squares.reshape(-1), minlength=side)[:side]
    return energy


def radius_of(energy: NDArray[np.float64], share: float) -> int:
    """Smallest radius whose square holds `share` of the energy."""
    within = np.cumsum(energy)
    return int(np.searchsorted(within, share * within[-1]))


@dataclass(frozen=True, slots=True)
class Loading:
    """How a model is loaded, in whichever process."""

    folder: Path
    card: ModelCard
    device: str
    threads: int
    trust_code: bool

    def predictor(self) -> Any:
        """The model, with this many tiles side by side."""
        if self.card.adapter not in ("threshold", "callable"):
            import torch

            torch.set_num_threads(self.threads)
        return load_model(
            self.folder,
            self.card,
            device=self.device,
            batch=self.threads,
            precision="float32",
            flips=1,
            trust_code=self.trust_code,
        )

    def network(self) -> nn.Module | None:
        """The torch network behind the model, for its gradient; None where there is none. The model has been loaded before, so
        that its weights and their right to run code have been checked."""
        if self.card.adapter == "smp":
            from pipeline.models import smp

            return smp.load(self.folder, self.card).to(self.device)
        if self.card.adapter == "exported":
            from pipeline.models import exported

            return exported.load(self.folder, self.card, self.device).module
        return None

    def across(self) -> list[str]:
        """Operations that look across the whole tile, of a network that can be asked: see `locality`."""
        if self.card.adapter != "smp":
            return []
        from pipeline.models import smp
        from pipeline.models.locality import looks_across

        return looks_across(smp.build(self.card), len(self.card.bands), self.card.tile)


def tile_cost(loading: Loading, tile: int) -> TileCost | None:
    """Time and memory of a tile of side `tile`, in a fresh process: what an earlier one left behind would hide its memory.

    None where the process does not survive it. ModelError where the model does not take such tiles.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        try:
            return fresh.submit(measure_tile, loading, tile).result()
        except BrokenProcessPool:
            return None


def measure_tile(loading: Loading, tile: int) -> TileCost:
    """What `tile_cost` measures, in this process.

    A small tile goes first: what libraries load at their first use is no part of a tile's memory. What then fits into memory
    that is free already does not show: scaled input and outputs, which must be there, are the least that is answered.
    """
    predictor = loading.predictor()
    card, count = loading.card, loading.threads
    rng = np.random.default_rng(0)
    centre, width = (np.array(v)[:, None, None] for v in (card.scaling.offset, card.scaling.divisor))
    one = as_samples(centre + width * rng.random((len(card.bands), tile, tile)), card)
    data = np.ascontiguousarray(np.broadcast_to(one, (count, *one.shape)))
    valid = np.ones((count, tile, tile), bool)
    little = ceil(FIRST_TILE / card.multiple_of) * card.multiple_of
    if little < tile:
        takes(lambda samples: predictor(samples[None], valid[:1, :little, :little])[0], one[:, :little, :little].copy())

    machine.forget_peak()
    before = machine.resident_bytes()
    predictor(data, valid)
    grown = max(0, machine.peak_bytes() - before)
    if card.adapter not in ("threshold", "callable"):
        import torch

        if loading.device.startswith("cuda"):
            grown = max(grown, torch.cuda.max_memory_reserved())
    seconds: list[float] = []
    while len(seconds) < TIMED_PASSES and sum(seconds) < TIMED_SECONDS:
        started, worked = time.perf_counter(), time.process_time()
        predictor(data, valid)
        wall, work = time.perf_counter() - started, time.process_time() - worked
        # where others keep the processor busy, the work done tells more than the clock
        seconds.append(min(wall, work / count) if loading.device == "cpu" and work > 0 else wall)
    least = 4 * tile * tile * (len(card.bands) + len(card.classes))
    return TileCost(tile=tile, seconds=max(min(seconds), 1e-9) / count, bytes=max(grown // count, least))


def takes(answer: Answer, samples: NDArray[Any]) -> bool:
    """Whether a model takes tiles of this size: programs may be made for one only."""
    try:
        answer(samples)
    except ModelError:
        return False
    return True
