"""A mosaic's labels as polygons: objects merged over the whole image, then filtered and simplified with their edges shared."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import mosaic
from pipeline.alignment import MaskFacts
from pipeline.card import background
from pipeline.errors import ConfigError, StoreError
from pipeline.export.frame import frame_of
from pipeline.export.levels import Listener
from pipeline.export.sweep import Rules, sweep
from pipeline.export.vectors import SUFFIXES, Batch, Layer, batches, write, written
from pipeline.image import METRES, Frozen

Target = Literal["geojson", "gpkg", "geoparquet"]
_UNITS = {"m": "metre", "um": "micrometre", "µm": "micrometre", "μm": "micrometre", "px": "pixel"}
"""Endings of lengths; those of areas have a 2 or ² behind them, but for px. Micro comes as two different letters."""
_ROUNDING = 1e-9
"""Share of an area below which a difference is one of arithmetic."""


class Wanted(Frozen):
    """What a person asks for, in words."""

    classes: tuple[str, ...] = ()
    """Names of the classes to export; none: all but background."""
    background: bool = False
    """Whether, where no class is named, background is exported too."""
    min_area: str = "0"
    """Smallest object: 50m2, 50um2, 50px. Without a unit: m² of georeferenced images, µm² of others, px where size is unknown."""
    tolerance: str = "0"
    """How far a point of the mask's edge may lie from the simplified one: 2m, 0.5um, 1.5px; without a unit as above."""


class ClassExported(Frozen):
    """What became of one class."""

    name: str
    features: int
    """Polygons written, one an object."""
    area_px: int
    """Working pixels of these."""
    left_out: int
    """Objects that were too small."""
    left_out_px: int


class Exported(Frozen):
    """What an export has made."""

    out: str
    """Path of the file."""
    to: Target
    size_bytes: int
    seconds: float
    pixels: int
    """Of the mask."""
    coordinates: Literal["pixels", "crs", "lonlat"]
    """Full-resolution pixels, the mask's CRS, or WGS 84."""
    points: int
    """Vertices of all rings, closing ones included, before any that longitude and latitude need."""
    mended: int
    """Polygons that had to be mended after they were turned to longitude and latitude."""
    pixel_area: float | None
    """Area of a working pixel in `unit`; None where it is not known."""
    unit: Literal["m2", "um2"]
    classes: tuple[ClassExported, ...]
    """Those that were chosen, by code."""


def export_polygons(
    store: Path, out: Path, to: Target, wanted: Wanted, progress: Listener | None = None, *, overwrite: bool = False
) -> Exported:
    """Write the objects of the mosaic at `store` to `out`: it appears whole or not at all.

    Objects are the 4-connected parts of a class over the whole image; failed pixels and those without data are never
    exported. What is smaller than `wanted.min_area` is left out, and nothing takes its place. ConfigError where `wanted` does
    not fit the mosaic, StoreError where `store` is none or `out` exists.

    Memory is that of `sweep`, for one band and the objects that go on below it, and of the features of one band.
    """
    facts, digest = mosaic.facts(store)
    _check_output(out, to, overwrite=overwrite)
    rules = rules_for(facts, wanted)
    georeferenced = facts.grid.crs_wkt is not None
    layer = Layer(facts.classes, frame_of(facts, geojson=to == "geojson"), digest, *_pixel_area(facts))
    account = _Account(len(facts.classes))
    started = time.monotonic()
    if progress is not None:
        progress.expect(facts.grid.height * facts.grid.width)

    def found() -> Iterator[Batch]:
        for band in sweep(partial(mosaic.read, store), facts.grid.shape, rules):
            account.left_out += band.left_out
            account.points += len(band.objects.points)
            for batch, mended in batches(band.objects, layer):
                account.mended += mended
                np.add.at(account.exported[0], batch.code, 1)
                np.add.at(account.exported[1], batch.code, batch.area_px)
                yield batch
            if progress is not None:
                progress.advance(band.pixels)

    with mosaic.writing(out), written(out) as draft:
        write(draft, to, found(), layer)
    return Exported(
        out=str(out),
        to=to,
        size_bytes=out.stat().st_size,
        seconds=time.monotonic() - started,
        pixels=facts.grid.height * facts.grid.width,
        coordinates=layer.frame.kind,
        points=account.points,
        mended=account.mended,
        pixel_area=layer.pixel_area,
        unit="m2" if georeferenced else "um2",
        classes=account.classes(facts, rules.chosen),
    )


class _Account:
    """Sums over all bands."""

    def __init__(self, codes: int) -> None:
        self.exported, self.left_out = np.zeros((2, codes), np.int64), np.zeros((2, codes), np.int64)
        self.points = self.mended = 0

    def classes(self, facts: MaskFacts, chosen: NDArray[np.bool_]) -> tuple[ClassExported, ...]:
        """By class."""
        return tuple(
            ClassExported(
                name=info.name,
                features=int(self.exported[0, code]),
                area_px=int(self.exported[1, code]),
                left_out=int(self.left_out[0, code]),
                left_out_px=int(self.left_out[1, code]),
            )
            for code, info in enumerate(facts.classes)
            if chosen[code]
        )


def default_output(store: Path, suffix: str) -> Path:
    """Beside the mosaic, by its name."""
    return store.with_name(f"{store.name.removesuffix('.zarr')}{suffix}")


def _check_output(out: Path, to: Target, *, overwrite: bool) -> None:
    if not out.name.lower().endswith(SUFFIXES[to]):
        raise ConfigError(f"--out {out}: a {to} file must end in {' or '.join(SUFFIXES[to])}, or no program would open it")
    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists: it is not written over. Name another file with --out, or give --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}. Make it first")


def rules_for(facts: MaskFacts, wanted: Wanted) -> Rules:
    """What `wanted` means for a mosaic; ConfigError where it means nothing."""
    size = facts.grid.pixel_size_m
    tolerance, unit = _measure(wanted.tolerance, 1, facts, "--tolerance")
    smallest, area_unit = _measure(wanted.min_area, 2, facts, "--min-area")
    if area_unit is not None and size is not None:
        smallest *= area_unit**2 / (size[0] * size[1])
    pixel = (1.0, 1.0) if unit is None or size is None else (size[0] / unit, size[1] / unit)
    return Rules(_chosen(facts, wanted), smallest * (1 - _ROUNDING), tolerance, pixel)


def _chosen(facts: MaskFacts, wanted: Wanted) -> NDArray[np.bool_]:
    names = [info.name for info in facts.classes]
    unknown = [name for name in wanted.classes if name not in names]
    if unknown:
        raise ConfigError(
            f"--class {unknown[0]}: this mask has no such class, so that nothing would be exported. It has: {', '.join(names)}"
        )
    if wanted.classes:
        return np.array([name in wanted.classes for name in names])
    chosen = np.ones(len(names), bool)
    code = background(facts.classes)
    if code is not None and not wanted.background:
        chosen[code] = False
    if not chosen.any():
        raise ConfigError(f"this mask has no class but {names[0]}: nothing would be exported. Give --all to export it")
    return chosen


def _measure(text: str, power: int, facts: MaskFacts, option: str) -> tuple[float, float | None]:
    """(number, its unit in metres) of a length (`power` 1) or an area (2); no unit: working pixels."""
    shown = "50m2, 50um2 or 50px" if power == 2 else "2m, 0.5um or 1.5px"
    match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([mµμu]*m|px)?(2|²)?\s*", text)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    ending = match[2] if match else None
    squared = match is not None and match[3] is not None
    known = ending is None or ending in _UNITS
    fits = squared == (power == 2 and ending not in (None, "px"))
    if match is None or not (math.isfinite(number) and number >= 0 and known and fits):
        raise ConfigError(f"{option} {text}: not understood. Write {shown}, or a plain number of 0 or more")
    size = facts.grid.pixel_size_m
    if ending is None:
        if size is None:
            return number, None
        return number, METRES["metre" if facts.grid.crs_wkt is not None else "micrometre"]
    if ending == "px":
        return number, None
    if size is None:
        raise ConfigError(
            f"{option} {text}: the size of a pixel of {facts.image} is not known, so that nothing can be said in {ending}. "
            f"Give it in pixels, such as {number:g}px"
        )
    return number, METRES[_UNITS[ending]]


def _pixel_area(facts: MaskFacts) -> tuple[float | None, str]:
    """(area of a working pixel, its unit)."""
    georeferenced, size = facts.grid.crs_wkt is not None, facts.grid.pixel_size_m
    unit = METRES["metre" if georeferenced else "micrometre"]
    return None if size is None else size[0] / unit * (size[1] / unit), "m2" if georeferenced else "um2"
