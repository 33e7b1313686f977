"""What of an image is looked at: tissue found on it, polygons or a mask drawn over it. All else is no data and costs nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline import atomic
from pipeline.card import digest_of
from pipeline.config import AUTO
from pipeline.errors import PlanError
from pipeline.grid import Window
from pipeline.image import coarse_grid, level_shapes
from pipeline.plan import Plan
from pipeline.sources import open_source
from pipeline.tissue import TissueMap, find_tissue, map_shape
from pipeline.truth import Truth, plan_area

INSIDE = 1
"""Code of what lies inside a drawn area; see `truth.plan_area`."""
FINDER = 1
"""Version of how tissue is found: maps of others are not taken from the cache."""
STRIP_PIXELS = 1 << 22
"""Stored pixels read at a time while tissue is looked for."""


class Area:
    """The area of a plan, open for one thread."""

    def __init__(self, plan: Plan) -> None:
        self._tissue, self._shape = plan.tissue, plan.grid.shape
        self._drawn = None if plan.area is None else Truth(plan.area, 2, *plan.grid.shape)

    def read(self, window: Window) -> NDArray[np.bool_]:
        """(h, w) of a window inside the working grid: True is looked at. The law: any window is the crop of the whole."""
        inside = np.ones(window.shape, bool) if self._tissue is None else self._tissue.read(window, self._shape)
        if self._drawn is not None and inside.any():
            inside &= self._drawn.read(window).codes == INSIDE
        return inside

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        if self._drawn is not None:
            self._drawn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_area(plan: Plan) -> Area | None:
    """The area of a plan; None where all of the image is looked at."""
    return None if plan.tissue is None and plan.area is None else Area(plan)


def with_area(plan: Plan, tissue: str, cache: Path, *, keep: bool) -> Plan:
    """`plan` with the area that archive.tissue (`tissue`) or the manifest gives its image.

    Tissue is found once: what is found is taken from the folder `cache`, and put there with `keep`. PlanError where nothing of
    the image would be looked at, TruthError where what was drawn cannot be read.
    """
    if plan.image.area is not None:
        return plan.model_copy(update={"area": plan_area(plan.image.area, plan.mask)})
    if tissue != AUTO:
        return plan
    found = tissue_of(plan, cache, keep=keep)
    if found.share == 0:
        raise PlanError(
            f"{plan.image.uri}: no tissue was found ({found.method}): nothing of it would be segmented. Look at it; if it shows "
            "any, draw it (archive.tissue: a pattern, or the manifest's column tissue), or set archive.tissue: none"
        )
    return plan.model_copy(update={"tissue": found})


def tissue_of(plan: Plan, cache: Path, *, keep: bool) -> TissueMap:
    """Where the image of `plan` shows tissue, from the cache if it was looked for before."""
    source = plan.read.source
    facts = [FINDER, source.uri, *source.identity, source.pixel_size_m, plan.read.srgb]
    path = cache / f"{plan.image.id}-{digest_of(facts)[:16]}.json"
    try:
        return TissueMap.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = look_for_tissue(plan)
    if keep:
        with suppress(OSError):  # the next run looks again
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(path, found.model_dump_json().encode())
    return found


def look_for_tissue(plan: Plan) -> TissueMap:
    """Where the image of `plan` shows tissue: found on a picture of it, made from its coarsest level that is fine enough."""
    source = plan.read.source
    if source.transform is not None:
        raise PlanError(
            f"{source.uri} has a georeference, and archive.tissue is auto: tissue is found on slides. Set it to none, or draw "
            "what is to be looked at and name it there"
        )
    size_m = source.pixel_size_m
    mpp = None if size_m is None else 1e6 * (size_m[0] * size_m[1]) ** 0.5
    shape = map_shape(source.height, source.width, mpp)
    grid = coarse_grid(source, *shape)
    bands = (source.band_indexes * 3)[:3] if len(source.band_indexes) < 3 else source.band_indexes[:3]
    nodata = tuple(source.nodata[source.band_indexes.index(band)] for band in bands)
    spec = plan.read.model_copy(update={"grid": grid, "bands": bands, "nodata": nodata, "valid_from": source.valid_from})
    picture = np.zeros((3, *shape), source.dtype)
    valid = np.zeros(shape, bool)
    rows = max(1, int(STRIP_PIXELS / level_shapes(source)[grid.level][1] / grid.step_row))
    with open_source(spec) as image:
        for top in range(0, shape[0], rows):
            strip = Window(top, 0, min(rows, shape[0] - top), shape[1])
            pixels = image.read(strip)
            picture[:, *strip.slices], valid[strip.slices] = pixels.data, pixels.valid
    pixel_um = None if size_m is None else (size_m[0] * 1e6 * grid.scale_row, size_m[1] * 1e6 * grid.scale_col)
    picture_mpp = None if pixel_um is None else (pixel_um[0] * pixel_um[1]) ** 0.5
    found, method = find_tissue(_eight_bits(picture, valid).transpose(1, 2, 0), valid, picture_mpp)
    return TissueMap.of(found, method, pixel_um)


def _eight_bits(picture: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (3, h, w) as bytes: as it is, or from its darkest to nearly its brightest sample."""
    if picture.dtype == np.uint8:
        return picture
    if not valid.any():
        return np.zeros(picture.shape, np.uint8)
    low, high = np.percentile(picture[:, valid], (0, 99.9))
    share = (picture.astype(np.float64) - low) / max(high - low, 1e-9)
    stretched: NDArray[np.uint8] = (np.clip(share, 0, 1) * 255).astype(np.uint8)
    return stretched
