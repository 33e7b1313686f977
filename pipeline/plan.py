"""Image facts, model card and configuration become a frozen `Plan`: what is done, what it costs, or why it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, gcd
from typing import Any, Literal, Self

import numpy as np

from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.card import ModelCard, digest_of
from pipeline.codes import mask_codes
from pipeline.config import Config, TilingConfig
from pipeline.errors import PlanError
from pipeline.fit import choose_bands, choose_filling, choose_grid, pixel_text
from pipeline.grid import Block, Lattice, Window, blocks
from pipeline.image import Frozen, ImageSpec, SourceInfo, WorkingGrid
from pipeline.tissue import TissueMap

ENGINE = "0"
"""Version of the arithmetic: part of every plan's digest, whatever the version of the package.

Raise it with each change after which an equal plan gives other bytes in any mask: of reading, resampling, tiling, blending,
rounding, codes or levels. Masks of earlier versions are then computed again, instead of being kept beside those of this one.
A change of speed, of the store's compression or of reports is none. tests/test_golden.py notices.
"""
MIB = 1024**2
REDUNDANCY_TARGET = 0.05
"""Largest share of tiles predicted more than once that `block: auto` accepts."""
LEAST_TILES = 64
"""Tiles that a block of `block: auto` has at least, where the image has them. Without overlap no block costs redundant work;
and yet one of few tiles leaves threads idle at its end."""
PROCESS_BYTES, TORCH_BYTES = 330 * MIB, 660 * MIB
"""Resident memory of a worker with dask, rasterio, zarr and the compiled kernels, and what torch adds (measured)."""
LABELS_SHARE, CONFIDENCE_SHARE = 0.2, 0.8
"""What labels and confidence take on disk, as a share of their bytes in memory."""
SLIDE_CACHE_BYTES = 64 * MIB
"""What OpenSlide may keep of decoded tiles, in each process, for all of its slides."""
SLIDE_STRIP_BYTES = 150 * MIB
"""The library, and what is on its way from it: 4 Mpx of four bytes as it has them, as Pillow does, and laid on the background
(measured)."""
CUDA_BYTES = 600 * MIB
"""What the driver, cuDNN and cuBLAS take of a GPU's memory (an allowance: not measured here)."""
GROUPS = 6
"""Groups of tiles, of at most `batch` each, that are cut ahead of the model or wait to be blended."""


class ReadSpec(Frozen):
    """What a source must know to give working pixels: small, and the same in every process."""

    source: SourceInfo
    bands: tuple[int, ...]
    """1-based indexes in the file, in the model's order."""
    valid_from: Literal["all", "nodata", "alpha", "mask"]
    """What tells real pixels from filling, after the configuration's word."""
    nodata: tuple[float | None, ...]
    """Filling value of each of `bands`; used where `valid_from` is nodata."""
    grid: WorkingGrid
    srgb: bool = False
    """Whether a slide's colours are brought to sRGB by its own profile, where it has one."""


class Plan(Frozen):
    """All that decides the mask of one image; equal plans give equal bytes."""

    image: ImageSpec
    read: ReadSpec
    model_path: str
    """Folder of the model."""
    card: ModelCard
    tile: int
    overlap: int
    blend: Literal["hann", "crop"]
    block_shape: tuple[int, int]
    """(height, width) of a block, which is a shard of the mosaic."""
    chunk_shape: tuple[int, int]
    """(height, width) of the chunks inside a shard."""
    batch: int
    precision: Literal["float32", "bfloat16"]
    flips: int
    store_confidence: bool
    compiled: bool = False
    """Whether torch.compile makes the network into a program for the tile's shape."""
    blocks_at_once: int = 1
    """Blocks that a worker has at work at a time; for its memory only."""
    on_gpu: bool = False
    """Whether the model runs on a GPU whose memory is planned; for memory only."""
    tissue: TissueMap | None = None
    """Where tissue was found: all else is no data; None where it was not looked for."""
    area: TruthSpec | None = None
    """Polygons or a mask raster (`truth.plan_area`) outside of which all is no data; None without."""

    def __getstate__(self) -> dict[Any, Any]:
        """What travels: the fields, without what was computed from them."""
        state = super().__getstate__()
        fields = {name: value for name, value in state["__dict__"].items() if name in type(self).model_fields}
        return state | {"__dict__": fields}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other fields; what was computed from the old ones, such as the digest, is not taken along."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @property
    def grid(self) -> WorkingGrid:
        """The pixels that are segmented."""
        return self.read.grid

    @property
    def classes(self) -> int:
        """Number of classes K: codes 0...K-1."""
        return len(self.card.classes)

    @property
    def mask(self) -> MaskFacts:
        """What the mask will say of itself."""
        source = self.read.source
        shape = (source.height, source.width)
        return MaskFacts(image=source.uri, model=self.card.name, classes=self.card.classes, grid=self.grid, native_shape=shape)

    @cached_property
    def lattice(self) -> Lattice:
        """All tile positions."""
        return Lattice(self.grid.height, self.grid.width, self.tile, self.overlap, self.blend)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, row by row."""
        return tuple(blocks(self.grid.height, self.grid.width, *self.block_shape))

    @cached_property
    def digest(self) -> str:
        """Hash of everything that determines the mask: image identity, model, classes, tiling, resolution, engine.

        The CRS is left out: it follows from the image, and one system has several texts.
        """
        source = self.read.source
        facts = {
            "image": [source.uri, *source.identity],
            "read": self.read.model_dump(mode="json", exclude={"source": True, "grid": {"crs_wkt", "pixel_size_m"}}),
            "model": self.card.digest,
            "classes": [[c.name, c.color] for c in self.card.classes],
            "tiling": [self.tile, self.overlap, self.blend, self.block_shape, self.chunk_shape],
            "arithmetic": [self.batch, self.precision, self.flips, self.compiled],
            "confidence": self.store_confidence,
            "major": ENGINE,
        }
        if self.tissue is not None or self.area is not None:
            tissue = self.tissue and [self.tissue.height, self.tissue.width, self.tissue.digest]
            facts["looked at"] = [tissue, self.area and self.area.digest]
        return digest_of(facts)[:16]

    @cached_property
    def tiles_predicted(self) -> int:
        """Tiles over all blocks; those on block borders count in each block that needs them."""
        return tiles_over_blocks(self.lattice, self.block_shape)

    def holds_tissue(self, window: Window) -> bool:
        """Whether a window is looked at, as far as the tissue map tells."""
        return self.tissue is None or self.tissue.touches(window, self.grid.shape)

    @cached_property
    def tiles_with_tissue(self) -> int:
        """Tiles of the lattice that the tissue map touches: about those that go through the model, for a drawn area at most."""
        if self.tissue is None:
            return self.lattice.tiles
        inside = [(start, stop) for start, stop in self.lattice.row_spans]
        return sum(
            self.holds_tissue(Window(top, left, bottom - top, right - left))
            for top, bottom in inside
            for left, right in self.lattice.col_spans
        )

    @property
    def redundancy(self) -> float:
        """Share of tiles predicted more often than once."""
        return self.tiles_predicted / self.lattice.tiles - 1

    @cached_property
    def memory(self) -> Memory:
        """Peak memory of one worker on this image."""
        return peak_memory(self, self.block_shape)

    @property
    def disk_bytes(self) -> int:
        """Size of mask and pyramid before compression: an upper bound."""
        return self._disk(labels=1.0, confidence=1.0)

    @property
    def expected_bytes(self) -> int:
        """About what mask and pyramid take on disk, on the high side: hand-made labels shrink to 2 to 3 %, noisier masks less."""
        return self._disk(labels=LABELS_SHARE, confidence=CONFIDENCE_SHARE)

    def _disk(self, labels: float, confidence: float) -> int:
        size = np.dtype(mask_codes(self.classes).dtype).itemsize
        return int(self.grid.height * self.grid.width * (4 / 3 * size * labels + self.store_confidence * confidence))


@dataclass(frozen=True)
class Budget:
    """What a worker may take: plans are made for it, and workers keep to it."""

    memory_bytes: int
    """Memory of its process."""
    blocks_at_once: int = 1
    """Blocks that it has at work at a time, whatever threads Dask gives it."""
    gpu_bytes: int | None = None
    """Memory of its GPU; None if it has none, or if that is not known."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of a worker in bytes, by cause, for all the blocks that it has at work."""

    process: int
    """Interpreter and libraries."""
    model: int
    """Weights, twice while they are loaded, and the activations of one batch."""
    reading: int
    """The strip of input rows, before and after resampling, GDAL's block cache, and the tiles that are cut ahead."""
    blending: int
    """Score sums of one strip of tiles, and the outputs that wait for them."""
    labels: int
    """The blocks' labels, their coarser levels, and their copies while they are compressed."""
    gpu: int = 0
    """On the GPU, beside all this: weights, one forward pass, and of each block its strip of sums and tiles on their way."""

    @property
    def total(self) -> int:
        """Memory of the process: the sum of the parts, without the GPU's."""
        return self.process + self.model + self.reading + self.blending + self.labels


def reader_bytes(source: SourceInfo) -> int:
    """What the library that reads `source` keeps and needs in a worker."""
    return SLIDE_CACHE_BYTES + SLIDE_STRIP_BYTES if source.reader == "slide" else gdal_cache_bytes(source)


def gdal_cache_bytes(source: SourceInfo) -> int:
    """Size of GDAL's block cache that lets a strip be read without decoding a file block twice: two rows of file blocks
    of all bands, within 32 and 512 MiB."""
    row = source.block_shape[0] * source.width * len(source.band_indexes) * np.dtype(source.dtype).itemsize
    return min(max(2 * row, 32 * MIB), 512 * MIB)


def peak_memory(plan: Plan, block_shape: tuple[int, int]) -> Memory:
    """Peak memory of one worker that predicts `plan` in blocks of `block_shape`: a function of the block, not of the image.

    Blocks at work together share the process, the weights and the forward passes; all else each has of its own.
    """
    read, card, grid, tile, batch = plan.read, plan.card, plan.grid, plan.tile, plan.batch
    bands, itemsize = len(read.bands), np.dtype(read.source.dtype).itemsize
    height, width = min(block_shape[0], grid.height), min(block_shape[1], grid.width)
    span = min(width + 2 * tile, max(grid.width, tile))
    strip = tile * span * (bands * itemsize + 1)
    native_strip = 0 if grid.as_stored else int(tile * grid.step_row * span * grid.step_col * (bands * (itemsize + 8) + 5))
    scores, label = len(card.classes) * 4, np.dtype(mask_codes(plan.classes).dtype).itemsize
    turned = 0 if plan.flips == 1 else 4 * bands + 2 * scores
    passes = batch * (card.activation_bytes(tile) + tile * tile * (4 * bands + turned))
    blending = min(tile, height) * width * scores + (batch + 2) * tile * tile * scores
    cut = GROUPS * batch * tile * tile * (bands * itemsize + 1)
    at_once = plan.blocks_at_once
    return Memory(
        process=PROCESS_BYTES + (0 if card.adapter == "threshold" else TORCH_BYTES),
        model=2 * card.weights_bytes + (0 if plan.on_gpu else passes),
        reading=at_once * (2 * strip + native_strip + reader_bytes(read.source) + cut),
        blending=0 if plan.on_gpu else at_once * blending,
        labels=at_once * int(height * width * (label * (2 + 1 / 3) + 2 * plan.store_confidence)),
        gpu=CUDA_BYTES + card.weights_bytes + passes + at_once * _on_gpu(plan, min(tile, height) * width) if plan.on_gpu else 0,
    )


def _on_gpu(plan: Plan, strip_px: int) -> int:
    """Bytes on the GPU of one block alone: the sums of its strip, what their labels are found with, and three groups of tiles
    with their outputs."""
    scores = len(plan.card.classes) * 4
    samples = len(plan.read.bands) * np.dtype(plan.read.source.dtype).itemsize + 1
    labelling = 9 + 16 * plan.store_confidence  # int64 winners and their codes; confidence and weights in float32
    return strip_px * (scores + labelling) + (3 * plan.batch * (samples + scores) + 3 * scores) * plan.tile * plan.tile


def tiles_over_blocks(lattice: Lattice, block_shape: tuple[int, int]) -> int:
    """Tiles to predict over all blocks; those that speak for several blocks count in each."""
    return _over_blocks(lattice.row_spans, block_shape[0]) * _over_blocks(lattice.col_spans, block_shape[1])


def _over_blocks(spans: list[tuple[int, int]], block: int) -> int:
    return sum((stop - 1) // block - first // block + 1 for first, stop in spans)


def chunk_side(stride: int) -> int:
    """Side of a chunk: a multiple or a fraction of the stride near 512 px, so that blocks can end where tiles begin."""
    if stride < 256:
        return stride * ceil(256 / stride)
    parts = 1
    while stride / parts > 1024:
        parts += 1
    return stride // parts if stride % parts == 0 else 512


def choose_block_shape(
    lattice: Lattice,
    chunk: int,
    requested: int | Literal["auto"],
    memory: Callable[[tuple[int, int]], int],
    budget: int,
    fits: Callable[[tuple[int, int]], bool] = lambda _: True,
) -> tuple[int, int]:
    """Block shape (height, width) in px, whole chunks: the most blocks of LEAST_TILES whose redundant work stays within the
    target.

    Many blocks share an image among workers and lose little when one fails; each border costs the tiles across it. With
    blocks that end where tiles begin, that is one row or column of tiles a border.

    Where memory (`memory(shape)` above `budget` bytes, or not `fits(shape)`) forces smaller blocks than the target allows, the
    least redundant that fit. PlanError with the numbers where nothing fits.
    """
    if requested != "auto":
        side = ceil(requested / chunk) * chunk
        options = [(side, side)]
    else:
        unit = chunk * lattice.stride // gcd(chunk, lattice.stride)
        unit = unit if unit <= 4096 else chunk
        options = [(h, w) for h in _block_sides(lattice.height, unit) for w in _block_sides(lattice.width, unit)]
    need = {shape: memory(shape) for shape in options}
    fitting = [shape for shape in options if need[shape] <= budget and fits(shape)]
    if not fitting:
        least = min(options, key=lambda shape: need[shape])
        raise PlanError(
            f"a block of {least[0]} x {least[1]} px needs {need[least] / MIB:,.0f} MiB, a worker may take "
            f"{budget / MIB:,.0f} MiB: it would be killed. Lower model.batch or tiling.tile, or raise cluster.memory_gib"
        )
    cost = {shape: _redundancy(lattice, shape) for shape in fitting}
    within = [shape for shape in fitting if cost[shape] <= REDUNDANCY_TARGET]
    if not within:
        return min(fitting, key=lambda shape: (cost[shape], -shape[1]))
    busy = [shape for shape in within if _tiles(lattice, shape) >= min(LEAST_TILES, lattice.tiles)]
    if not busy:
        return max(within, key=lambda shape: (_tiles(lattice, shape), shape[1]))
    return max(busy, key=lambda shape: (_count(lattice, shape), -cost[shape], shape[1]))


def _block_sides(length: int, unit: int) -> list[int]:
    """Sides, in whole units, that cut an axis into 1, 2, 3, ... blocks, largest first."""
    sides = {ceil(length / parts / unit) * unit for parts in range(1, min(64, ceil(length / unit)) + 1)}
    return sorted(sides, reverse=True)


def _tiles(lattice: Lattice, shape: tuple[int, int]) -> int:
    """Tiles of a block, those across its border left out."""
    height, width = min(shape[0], lattice.height), min(shape[1], lattice.width)
    return ceil(height / lattice.stride) * ceil(width / lattice.stride)


def _count(lattice: Lattice, shape: tuple[int, int]) -> int:
    return ceil(lattice.height / shape[0]) * ceil(lattice.width / shape[1])


def _redundancy(lattice: Lattice, shape: tuple[int, int]) -> float:
    return tiles_over_blocks(lattice, shape) / lattice.tiles - 1


def read_as(plan: Plan) -> str | None:
    """How a slide is read, or an image whose pixel size no georeference tells; None for all others."""
    source, grid = plan.read.source, plan.grid
    if source.reader != "slide" and source.pixel_size_from is None and source.pixel_size_error is None:
        return None
    told = [f"{source.driver} slide" if source.reader == "slide" else source.driver]
    if source.pixel_size_m is not None:
        told.append(f"pixels of {pixel_text(source.pixel_size_m)} ({source.pixel_size_from})")
    else:
        told.append(f"pixels of unknown size ({source.pixel_size_error or 'nothing states it'})")
    if grid.as_stored and source.reader == "slide":
        told.append(f"worked at level {grid.level}" + (f", {pixel_text(grid.pixel_size_m)}" if grid.level else ""))
    elif not grid.as_stored:
        told.append(f"worked at {pixel_text(grid.pixel_size_m)}, resampled from level {grid.level}")
    if plan.read.srgb:
        told.append("colours brought to sRGB by its ICC profile")
    return "; ".join(told)


def plan_image(config: Config, image: ImageSpec, source: SourceInfo, card: ModelCard, budget: Budget) -> Plan:
    """The plan for one image on workers of this budget; PlanError with both sides where something does not fit."""
    if source.dtype != card.dtype:
        raise PlanError(
            f"model {card.name!r} was trained on {card.dtype} samples, {source.uri} has {source.dtype}: its scaling would be "
            "wrong. Convert the image, or choose a model trained on such images"
        )
    bands = choose_bands(config.archive.bands, source, card)
    valid_from, nodata = choose_filling(config.archive.nodata, source, bands)
    grid = choose_grid(config.resolution, source, card)
    srgb = source.has_icc_profile and config.archive.icc == "srgb"
    read = ReadSpec(source=source, bands=bands, valid_from=valid_from, nodata=nodata, grid=grid, srgb=srgb)
    drafts = [
        (_draft(config, image, read, card, tile, overlap, budget), seconds)
        for tile, overlap, seconds in tile_options(config.tiling, card, grid)
    ]
    return _cheapest(drafts, config.tiling.block, budget)


def _draft(config: Config, image: ImageSpec, read: ReadSpec, card: ModelCard, tile: int, overlap: int, budget: Budget) -> Plan:
    """The plan with tiles of `tile` px in the smallest blocks."""
    chunk = chunk_side(Lattice(read.grid.height, read.grid.width, tile, overlap).stride)
    return Plan(
        image=image,
        read=read,
        model_path=str(config.model.path),
        card=card,
        tile=tile,
        overlap=overlap,
        blend=config.tiling.blend,
        block_shape=(chunk, chunk),
        chunk_shape=(chunk, chunk),
        batch=config.model.batch,
        precision=config.model.precision,
        flips=config.model.test_time_flips,
        store_confidence=config.tiling.store_confidence,
        compiled=config.model.compile,
        blocks_at_once=budget.blocks_at_once,
        on_gpu=budget.gpu_bytes is not None and card.adapter in ("smp", "exported"),
    )


def _cheapest(drafts: list[tuple[Plan, float]], block: int | Literal["auto"], budget: Budget) -> Plan:
    """Of plans with the seconds that a tile takes, the one that needs least time for the image within `budget`, in its
    blocks. The least hungry's PlanError where none fits."""
    best: tuple[float, Plan] | None = None
    refused: PlanError | None = None
    for draft, seconds in sorted(drafts, key=lambda option: (option[0].lattice.tiles * option[1], option[0].tile)):
        if best is not None and draft.lattice.tiles * seconds >= best[0]:
            break  # blocks only add to it
        try:
            plan = _with_blocks(draft, block, budget)
        except PlanError as e:
            refused = e if refused is None or draft.tile == min(d.tile for d, _ in drafts) else refused
            continue
        if best is None or plan.tiles_predicted * seconds < best[0]:
            best = (plan.tiles_predicted * seconds, plan)
    if best is None:
        assert refused is not None
        raise refused
    return best[1]


def _with_blocks(draft: Plan, requested: int | Literal["auto"], budget: Budget) -> Plan:
    """`draft` in the blocks that it should have."""
    chunk, gpu_bytes = draft.chunk_shape[0], budget.gpu_bytes
    least = peak_memory(draft, (chunk, chunk) if requested == "auto" else (requested, requested))
    if gpu_bytes is not None and least.gpu > gpu_bytes:
        raise PlanError(
            f"tiles of {draft.tile} px in passes of {draft.batch} need {least.gpu / MIB:,.0f} MiB of a GPU that has "
            f"{gpu_bytes / MIB:,.0f} MiB for them: it would run out of memory in the middle. Lower model.batch, tiling.tile or "
            "tiling.block, or set model.precision: bfloat16"
        )

    def fits(block: tuple[int, int]) -> bool:
        return gpu_bytes is None or peak_memory(draft, block).gpu <= gpu_bytes

    def memory(block: tuple[int, int]) -> int:
        return peak_memory(draft, block).total

    shape = choose_block_shape(draft.lattice, chunk, requested, memory, budget.memory_bytes, fits)
    return draft.model_copy(update={"block_shape": shape})


def tile_options(tiling: TilingConfig, card: ModelCard, grid: WorkingGrid) -> list[tuple[int, int, float]]:
    """(tile, overlap, seconds a tile) of every tiling that the configuration allows: one, or what the card's probe measured.

    Only where there is a choice do seconds mean anything. PlanError where the model does not take such tiles, or `auto` is
    asked for a model that is not known to answer alike in all of them.
    """
    if tiling.tile == "auto":
        return _measured_options(tiling.overlap, card, grid)
    tile = tiling.tile or card.tile
    overlap = tiling.overlap if tiling.overlap is not None else card.overlap if tiling.tile is None else tile // 4
    if tile % card.multiple_of:
        raise PlanError(
            f"model {card.name!r} takes tiles whose side is a multiple of {card.multiple_of}, tiling.tile is {tile}: "
            f"choose {max(1, round(tile / card.multiple_of)) * card.multiple_of}"
        )
    return [(tile, overlap, 1.0)]


def _measured_options(overlap: int | None, card: ModelCard, grid: WorkingGrid) -> list[tuple[int, int, float]]:
    probe = card.probe
    if probe is not None and not (probe.invariant and card.translation_invariant):
        raise PlanError(
            f"tiling.tile is auto, and model {card.name!r} is not translation invariant: {probe.finding}. Larger tiles would "
            f"give other labels. Leave tiling.tile out for the {card.tile} px of its card, or choose another model"
        )
    if probe is None:
        said = "says that it is" if card.translation_invariant else "does not say that it is"
        raise PlanError(
            f"tiling.tile is auto, and model {card.name!r} has not been probed (its card {said} translation invariant): neither "
            "its receptive field nor the cost of its tiles is known. Run `gigamask model probe DIR --write` on its folder, or "
            f"leave tiling.tile out for the {card.tile} px of its card"
        )
    wanted = {cost.tile: card.advised_overlap(cost.tile) if overlap is None else overlap for cost in probe.tiles}
    options = [(c.tile, o, c.seconds) for c in probe.tiles if (o := wanted[c.tile]) is not None and o < c.tile]
    if not options:  # no measured tile is as good as the card's own
        options = [(card.tile, card.overlap if overlap is None else overlap, 1.0)]
    covering = [tile for tile, _, _ in options if tile >= max(grid.height, grid.width)]
    return [option for option in options if not covering or option[0] <= min(covering)]
