"""How an image is fed to a model: which bands, what is filling, on which grid; or why it does not fit."""

from __future__ import annotations

import re
from typing import Literal

from pipeline.card import ModelCard
from pipeline.errors import PlanError
from pipeline.image import METRES, Resolution, SourceInfo, WorkingGrid, level_shapes, working_grid

COARSEST_UPSAMPLING = 0.5
"""An image whose pixels are more than twice as large as the model's is refused: its detail cannot be invented."""
GENERIC_BAND = re.compile(r"band\d+|gray|palette")
"""Band names that say nothing about what a band shows."""


def choose_bands(wanted: list[str | int] | None, source: SourceInfo, card: ModelCard) -> tuple[int, ...]:
    """1-based file indexes of the bands to feed the model, in its order.

    By the configuration's names or indexes; else by the card's names where the image has them all; else by position,
    where the number is right and no name contradicts. PlanError with both sides otherwise.
    """
    has = f"{source.uri} has {len(source.band_names)} ({', '.join(source.band_names)})"
    expects = f"model {card.name!r} expects {len(card.bands)} bands ({', '.join(card.bands)})"
    by_name = dict(zip(source.band_names, source.band_indexes, strict=True))
    if wanted is not None:
        if len(wanted) != len(card.bands):
            raise PlanError(
                f"{expects}, archive.bands names {len(wanted)} ({', '.join(map(str, wanted))}): name {len(card.bands)}"
            )
        missing = [b for b in wanted if (b.lower() not in by_name if isinstance(b, str) else b not in source.band_indexes)]
        if missing:
            raise PlanError(f"archive.bands asks for {', '.join(map(str, missing))}; {has}. Name bands that every image has")
        return tuple(by_name[b.lower()] if isinstance(b, str) else b for b in wanted)
    names = [name.lower() for name in card.bands]
    if all(name in by_name for name in names):
        return tuple(by_name[name] for name in names)
    contradicts = any(
        given != name and not GENERIC_BAND.fullmatch(given) and not GENERIC_BAND.fullmatch(name)
        for given, name in zip(source.band_names, names, strict=False)
    )
    if len(source.band_names) != len(names) or contradicts:
        raise PlanError(
            f"{expects}, {has}: it would see the wrong colours. Name the bands to feed it under archive.bands, or choose "
            "another model"
        )
    return source.band_indexes


def choose_filling(
    nodata: float | list[float] | Literal["header", "none"], source: SourceInfo, bands: tuple[int, ...]
) -> tuple[Literal["all", "nodata", "alpha", "mask"], tuple[float | None, ...]]:
    """(what tells real pixels from filling, filling value of each band), after the configuration's word."""
    declared = dict(zip(source.band_indexes, source.nodata, strict=True))
    if nodata == "header":
        return source.valid_from, tuple(declared[b] for b in bands)
    if nodata == "none":
        return "all", (None,) * len(bands)
    values = nodata if isinstance(nodata, list) else [nodata] * len(bands)
    if len(values) != len(bands):
        raise PlanError(f"archive.nodata has {len(values)} values for {len(bands)} bands: give one, or one a band")
    return "nodata", tuple(float(v) for v in values)


def choose_grid(wanted: Resolution | Literal["card", "native"], source: SourceInfo, card: ModelCard) -> WorkingGrid:
    """The working grid of an image; PlanError where the model would see a scale that it was not trained on."""
    resolution = card.resolution if wanted == "card" else None if wanted == "native" else wanted
    grid = working_grid(source, resolution)
    if grid is None:
        assert resolution is not None
        raise PlanError(_unsized(source, resolution, card))
    if min(grid.scale_row, grid.scale_col) < COARSEST_UPSAMPLING:
        raise PlanError(
            f"{source.uri} has pixels of {pixel_text(source.pixel_size_m)} (row, column), asked for was {resolution}: enlarging "
            f"more than {1 / COARSEST_UPSAMPLING:g}-fold would show the model detail that is not there. Choose a model for "
            "coarser imagery"
        )
    trained = card.resolution
    if wanted != "card" and trained is not None and trained.size_m is not None and grid.pixel_size_m is not None:
        sizes = [size * METRES[trained.unit] for size in trained.accepted or (trained.size,)]
        off = min(max(abs(worked / size - 1) for worked in grid.pixel_size_m) for size in sizes)
        if off > max(trained.tolerance, 0.01):
            raise PlanError(
                f"model {card.name!r} was trained at {trained} a pixel (within {trained.tolerance:.0%}); {source.uri} would be "
                f"worked at {pixel_text(grid.pixel_size_m)}: objects would have the wrong size. Set resolution: card"
            )
    return grid


def _unsized(source: SourceInfo, resolution: Resolution, card: ModelCard) -> str:
    """Why `source` cannot be worked at `resolution`, and what to do."""
    asked = f"{resolution} a pixel was asked for (model {card.name!r})"
    if source.pixel_size_m is not None:
        rows, cols = source.pixel_size_m
        sizes = ", ".join(
            pixel_text((rows * source.height / height, cols * source.width / width)) for height, width in level_shapes(source)
        )
        return f"{source.uri} has levels of {sizes}, and {asked}: none of them is it. Give one size, to be resampled to"
    if source.reader == "slide" or source.pixel_size_error or resolution.unit == "micrometre":
        why = source.pixel_size_error or "neither a property nor a tag of it states one"
        return (
            f"{source.uri} has no known pixel size ({why}), and {asked}: objects would have a wrong size. State it in "
            'micrometres, by pattern (archive.mpp: {"*.svs": 0.25}) or in a manifest column mpp; let archive.mpp_from_power '
            "take it from the objective's power; or give resolution: native if its pixels fit"
        )
    return (
        f"{source.uri} has no georeference, so that its pixels have no size in metres, and {asked}. Give resolution: {{size: N, "
        "unit: source-pixel}, or resolution: native if its pixels fit"
    )


def pixel_text(size_m: tuple[float, float] | None) -> str:
    """Size (row, col) of a pixel in metres or micrometres, as a person reads it."""
    if size_m is None:
        return "unknown size"
    unit, factor = ("µm", 1e6) if max(size_m) < 1e-3 else ("m", 1.0)
    rows, cols = (f"{size * factor:.4g}" for size in size_m)
    return f"{rows} {unit}" if rows == cols else f"{rows} x {cols} {unit}"
