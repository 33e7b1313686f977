"""Measures what tiles a model needs: how far it sees, what overlap its seams need, what tiles of several sizes cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import __version__, machine
from pipeline.card import Influence, ModelCard, Probe, SeamShare, TileCost, read_card
from pipeline.errors import PlanError
from pipeline.fit import choose_bands, choose_filling, choose_grid
from pipeline.grid import Window
from pipeline.image import SourceInfo
from pipeline.models import choose_device, save_card
from pipeline.models.probing import (
    Answer,
    Floats,
    Loading,
    Profile,
    as_samples,
    felt_across,
    felt_at_borders,
    glare,
    gradient_energy,
    other_content,
    radius_of,
    shifted,
    takes,
    tile_cost,
    tiled,
)
from pipeline.plan import MIB, ReadSpec
from pipeline.sources import describe, open_source

SEAM_TILE = 512
"""Seams are measured with tiles of at least this side."""
OVERLAPS = (0, 32, 64, 96, 128, 192)
"""Overlaps whose seams are measured, px, before they are rounded up to the model's multiple."""
TILES = (512, 768, 1024, 1536, 2048)
"""Sides whose cost is measured besides the card's own, where they are larger."""
LONGEST_SECONDS = 20.0
"""No tile that would take longer is tried."""
HALO_LABELS = 0.02
"""Share of changed labels above which a distance belongs to the halo."""
FAR_CHANGE = 1e-3
"""Change of a score, as a share of the largest, that must not be felt from the far side of a tile."""
MOVED_LABELS = 1e-3
"""Share of labels that may change where a tile is moved by the network's stride."""
SHARES = (0.95, 0.99, 0.999)
"""Shares of the gradient's energy whose radius is told."""
GRADIENTS = 3
"""Outputs whose gradient is followed."""
LADDER = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Distances in px at which the influence is told."""


@dataclass(frozen=True, slots=True)
class Looking:
    """How a model is probed."""

    image: Path | None = None
    """What it is shown; None: texture."""
    threads: int = 1
    """Tiles side by side while costs are measured."""
    device: str = "auto"
    trust_code: bool = False
    """Whether the model may run code of its own."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sides in px of what a probe works on, multiples of what the model takes."""

    tile: int
    """Tiles whose borders and seams are looked at."""
    side: int
    """The whole sample: two such tiles and a little more."""


def sizes_of(card: ModelCard, *, any_tile: bool = True) -> Sizes:
    """Sides for a model that takes any tile, or (`any_tile` False) its card's alone."""
    tile = max(card.tile, _up(SEAM_TILE, card)) if any_tile else card.tile
    return Sizes(tile, 2 * tile + _up(64, card))


def overlaps_of(card: ModelCard, tile: int) -> list[int]:
    """Overlaps to measure: multiples of what the model takes, so that all tiles have the same phase in its stride; the card's
    own is among them."""
    wanted = {_up(overlap, card) for overlap in (*OVERLAPS, card.overlap)}
    return sorted(overlap for overlap in wanted if overlap <= tile // 2)


def probe_model(folder: Path, how: Looking, say: Callable[[str], None]) -> Probe:
    """Measure the model in `folder`; `say` is told what is going on.

    ModelError where the model cannot be used, PlanError where the image does not fit it.
    """
    card = read_card(folder)
    loading = Loading(folder, card, choose_device(how.device), how.threads, how.trust_code)
    predictor = loading.predictor()

    def answer(one: NDArray[Any]) -> Floats:
        scores: Floats = predictor(np.ascontiguousarray(one)[None], np.ones((1, *one.shape[1:]), bool))[0]
        return scores

    sizes = sizes_of(card)
    samples = sample(card, how.image, sizes.side)
    content = how.image.name if how.image else "texture"
    say(f"showing it {sizes.side} x {sizes.side} px of {content}")
    any_tile = takes(answer, samples)
    if not any_tile:
        sizes = sizes_of(card, any_tile=False)
        samples = sample(card, how.image, sizes.side)
    seen = look(answer, card, samples, sizes, any_tile=any_tile)
    invariant, finding = judge(seen, loading.across() if any_tile else [])
    say("following gradients")
    radii = _radii(loading, samples[:, : sizes.tile, : sizes.tile])
    seams = []
    for overlap in overlaps_of(card, sizes.tile):
        say(f"seams between tiles of {sizes.tile} px that share {overlap} px")
        share = float((tiled(answer, samples, sizes.tile, overlap) != seen.labels).mean())
        seams.append(SeamShare(overlap=overlap, share=share))
    return Probe(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        software=f"gigamask {__version__}",
        device=loading.device,
        threads=how.threads,
        content=content,
        invariant=invariant,
        finding=finding,
        reach=max(seen.content.reach, seen.glare.reach),
        halo=seen.halo,
        gradient_radius=radii,
        influence=tuple(_told(seen)),
        seam_tile=sizes.tile,
        seams=tuple(seams),
        tiles=tuple(_costs(loading, [card.tile, *TILES] if any_tile else [card.tile], say)),
    )


def keep_probe(folder: Path, probe: Probe) -> ModelCard:
    """Write what was found into the card of the model in `folder`, in one step; the card as written."""
    card = with_probe(folder, probe)
    save_card(folder, card)
    return card


def with_probe(folder: Path, probe: Probe) -> ModelCard:
    """The card of the model in `folder` with what was found; its digest is the same."""
    card = read_card(folder)
    large = [cost for cost in probe.tiles if cost.tile >= SEAM_TILE] or probe.tiles[-1:]
    most = max((cost.bytes / cost.tile**2 for cost in large), default=card.activation_bytes_per_pixel)
    facts = {"probe": probe, "translation_invariant": probe.invariant, "activation_bytes_per_pixel": most}
    return card.model_copy(update=facts)


@dataclass(frozen=True)
class Seen:
    """What changes did to a model's answer."""

    labels: NDArray[np.intp]
    """(s, s): the sample's, with all the context that there is."""
    content: Profile
    """Another half of the image."""
    glare: Profile
    """A half without anything in it, and bright."""
    borders: Profile
    """A tile's own border."""
    moved: float
    """Share of labels that change where a tile is moved by the network's multiple."""
    multiple: int
    """By how many px."""

    @property
    def halo(self) -> int:
        """Distance from which on changes and borders hardly ever change a label."""
        return max(self.content.halo(HALO_LABELS), self.borders.halo(HALO_LABELS))


def look(answer: Answer, card: ModelCard, samples: NDArray[Any], sizes: Sizes, *, any_tile: bool) -> Seen:
    """Change what the model sees, at all distances from what it is asked."""
    tile, side = sizes.tile, sizes.side
    shift = card.multiple_of
    if any_tile:
        whole = answer(samples)
        labels = np.asarray(whole.argmax(axis=0))
        inside = _up(1, card)
        far = side - tile - inside
        borders = felt_at_borders(answer, samples, whole, tile, [(inside, inside), (inside, far), (far, inside)])
        moved = shifted(answer, samples, side - shift, shift, side // 2 - shift - side // 16)
    else:
        labels = tiled(answer, samples, tile, _up(tile * 3 // 4, card) - shift)
        moved = shifted(answer, samples, tile, shift, tile // 2 - shift) if tile >= 4 * shift else 0.0
        samples = samples[:, :tile, :tile]
        whole = answer(samples)
        borders = Profile(1)  # it can never be seen without them
    return Seen(
        labels=labels,
        content=felt_across(answer, samples, whole, other_content(samples)),
        glare=felt_across(answer, samples, whole, glare(samples, card)),
        borders=borders,
        moved=moved,
        multiple=shift,
    )


def judge(seen: Seen, across: Sequence[str]) -> tuple[bool, str]:
    """(whether the answer depends on a pixel's surroundings only, why).

    `across` are operations that look across the whole tile, as far as the network can be asked.
    """
    from_far = seen.glare.farthest * 3 // 4
    change = float(seen.glare.most[from_far:].max())
    far = f"what changes {from_far} px away or more changes scores by {change:.2g} of the largest"
    moved = f"a tile moved by {seen.multiple} px has {seen.moved:.2%} other labels in its middle"
    if across:
        return False, f"the network mixes the whole tile ({', '.join(across)}): no overlap makes its answer the same in all tiles"
    if change > FAR_CHANGE:
        return False, f"{far}: it looks at the whole tile, and no overlap makes its answer the same in all tiles"
    if seen.moved > MOVED_LABELS:
        return False, f"{moved}: the answer depends on where in the tile a pixel lies"
    return True, f"{far}; {moved}"


def sample(card: ModelCard, image: Path | None, side: int) -> NDArray[Any]:
    """Raw samples (bands, side, side) in the card's type: the fullest of some windows of `image`, or texture."""
    return texture(card, side) if image is None else _window(card, image.resolve(), side)


def texture(card: ModelCard, side: int) -> NDArray[Any]:
    """Noise (bands, side, side) with the spectrum of natural images (amplitude 1/frequency, Field 1987), the same each time.

    The bands share most of it, and spread as the card's scaling says that training data did.
    """
    rng = np.random.default_rng(20)
    rows, cols = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    frequency = np.maximum(np.hypot(rows, cols), 1 / side)

    def field() -> NDArray[np.float64]:
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency, s=(side, side))
        return np.asarray((noise - noise.mean()) / noise.std())

    shared = field()
    values = np.stack([0.9 * shared + 0.44 * field() for _ in card.bands])
    offset, divisor = (np.array(v)[:, None, None] for v in (card.scaling.offset, card.scaling.divisor))
    if card.dtype.startswith("uint") and (offset < divisor).all():  # scaled by the range, not by mean and deviation
        offset, divisor = offset + divisor / 2, divisor / 5
    return as_samples(offset + divisor * values, card)


def _window(card: ModelCard, image: Path, side: int) -> NDArray[Any]:
    """The window of `image`, at the model's resolution, with the most real data; mirrored where the image is smaller."""
    source: SourceInfo = describe(str(image))
    if source.dtype != card.dtype:
        raise PlanError(
            f"model {card.name!r} was trained on {card.dtype} samples, {image} has {source.dtype}: its scaling would be wrong. "
            "Give an image of the kind that it was trained on"
        )
    bands = choose_bands(None, source, card)
    valid_from, nodata = choose_filling("header", source, bands)
    grid = choose_grid("card", source, card)
    read = ReadSpec(source=source, bands=bands, valid_from=valid_from, nodata=nodata, grid=grid)
    height, width = min(side, grid.height), min(side, grid.width)
    best, share = None, -1.0
    with open_source(read) as opened:
        for row, col in _places(grid.height - height, grid.width - width):
            pixels = opened.read(Window(row, col, height, width))
            if pixels.valid.mean() > share:
                best, share = pixels.data, float(pixels.valid.mean())
            if share > 0.99:
                break
    if best is None or share < 0.5:
        raise PlanError(f"{image} is mostly filling ({share:.0%} real in the fullest window): give an image with more in it")
    return np.asarray(np.pad(best, ((0, 0), (0, side - height), (0, side - width)), mode="symmetric"))


def _places(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Where windows may start, the image's middle first."""
    for down in (2, 1, 3, 0, 4):
        for right in (2, 1, 3, 0, 4):
            yield rows * down // 4, cols * right // 4


def _up(length: int, card: ModelCard) -> int:
    """`length` rounded up to what the model takes."""
    return ceil(length / card.multiple_of) * card.multiple_of


def _radii(loading: Loading, samples: NDArray[Any]) -> dict[str, int]:
    """Radii that hold SHARES of the gradient's energy; empty for a model without gradient."""
    network = loading.network()
    if network is None:
        return {}
    offset, divisor = (
        np.array(v, np.float32)[:, None, None] for v in (loading.card.scaling.offset, loading.card.scaling.divisor)
    )
    scaled = (samples.astype(np.float32) - offset) / divisor
    energy = gradient_energy(network, np.stack([np.rot90(scaled, k, (1, 2)) for k in range(GRADIENTS)]), loading.device)
    return {} if energy is None or not energy.sum() else {f"{share:g}": radius_of(energy, share) for share in SHARES}


def _told(seen: Seen) -> Iterator[Influence]:
    """Influence by distance: the larger of content's and the border's."""
    for first, stop in pairwise(LADDER):
        kinds = [profile for profile in (seen.content, seen.borders) if profile.farthest >= stop]
        if kinds:
            labels, score = max(p.labels(first, stop) for p in kinds), max(p.score(first, stop) for p in kinds)
            yield Influence(distance=first, labels=labels, score=score)


def _costs(loading: Loading, sides: Sequence[int], say: Callable[[str], None]) -> Iterator[TileCost]:
    """Cost of tiles from the card's own upwards, as far as memory and patience go."""
    last: TileCost | None = None
    for side in sorted({_up(side, loading.card) for side in sides if side >= loading.card.tile}):
        if last is not None:
            grows = (side / last.tile) ** 2
            if grows * last.seconds * loading.threads > LONGEST_SECONDS:
                return
            if grows * last.bytes * loading.threads > 0.6 * machine.available_bytes():
                say(f"tiles of {side} px would need {grows * last.bytes * loading.threads / MIB:,.0f} MiB: left out")
                return
        say(f"cost of tiles of {side} px")
        last = tile_cost(loading, side)
        if last is None:
            say(f"tiles of {side} px were too much for this machine")
            return
        yield last
