"""The label mosaic of one image: a Zarr v3 group that xarray, rioxarray and the OME viewers open alike. See docs/store.md."""

from __future__ import annotations

import shutil
from math import ceil
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipeline import __version__
from pipeline.codes import mask_codes
from pipeline.errors import StoreError
from pipeline.grid import Window, blocks
from pipeline.image import WorkingGrid
from pipeline.plan import MaskFacts, Plan

Labels = NDArray[np.unsignedinteger]
SMALLEST_LEVEL_PX = 1024
"""The pyramid ends at the first level whose longer side is not above this."""
NO_DATA_NAME, FAILED_NAME = "no data", "failed"
_CONVENTIONS = {
    "proj:": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial:": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
}
"""Registered ids of the Zarr conventions that georeferenced mosaics follow."""


def create(path: Path, plan: Plan) -> None:
    """Lay out an empty mosaic for `plan` at `path`, which must not exist."""
    if path.exists():
        raise StoreError(f"{path} exists: a mosaic is never written over. Remove it, or choose another output")
    draft = path.with_name(f"{path.name}.new")
    remove(draft)
    _lay_out(draft, plan)
    draft.rename(path)


def _lay_out(path: Path, plan: Plan) -> None:
    root = zarr.create_group(path, zarr_format=3, attributes=_attributes(plan))
    grid, codes = plan.grid, mask_codes(plan.classes)
    labels = [c.name for c in plan.card.classes]
    for level in range(levels(grid.height, grid.width)):
        group = root.create_group(str(level))
        height, width = level_shape(grid, level)
        _array(group, "mask", plan, (height, width), codes.dtype, codes.no_data).attrs.update(
            {
                "grid_mapping": "spatial_ref",
                "coordinates": "spatial_ref",
                **({"_CRS": {"wkt": grid.crs_wkt}} if grid.crs_wkt else {}),
                "flag_values": [*range(len(labels)), codes.failed, codes.no_data],
                "flag_meanings": " ".join(name.replace(" ", "_") for name in [*labels, FAILED_NAME, NO_DATA_NAME]),
                "nodata": codes.no_data,
                "long_name": "class",
            }
        )
        if level == 0 and plan.store_confidence:
            _array(group, "confidence", plan, (height, width), "uint8", 0).attrs.update(
                {"grid_mapping": "spatial_ref", "long_name": "probability of the winning class x 255"}
            )
        _georeference(group, grid, level)


def write_block(path: Path, plan: Plan, core: Window, labels: Labels, confidence: NDArray[np.uint8] | None = None) -> None:
    """Write the labels of one block, whole; a shard torn by an earlier attempt is removed first."""
    for name, values in (("mask", labels), ("confidence", confidence)):
        if values is None:
            continue
        array = _open(path, f"0/{name}")
        shard = path / "0" / name / "c" / str(core.row // plan.block_shape[0]) / str(core.col // plan.block_shape[1])
        shard.unlink(missing_ok=True)
        array[core.slices] = values


def read(path: Path, window: Window, level: int = 0, name: str = "mask") -> Labels:
    """The labels in `window` of `level`."""
    return cast(Labels, _open(path, f"{level}/{name}")[window.slices])


def facts(path: Path) -> tuple[MaskFacts, str]:
    """What the mosaic at `path` says of itself, and its plan's digest; StoreError where it is none of ours."""
    try:
        own = cast(dict[str, Any], dict(zarr.open_group(path, mode="r").attrs)["gigamask"])
        return MaskFacts.model_validate(own["mask"]), str(own["plan_digest"])
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise StoreError(
            f"{path} is no gigamask mosaic ({type(e).__name__}: {e}): give a folder that `gigamask segment` made"
        ) from e


def build_pyramid(path: Path, plan: Plan) -> None:
    """Fill the levels above 0, each from the one below, shard by shard."""
    grid = plan.grid
    for level in range(1, levels(grid.height, grid.width)):
        below, above = _open(path, f"{level - 1}/mask"), _open(path, f"{level}/mask")
        height, width = level_shape(grid, level)
        shard = above.shards or above.chunks
        for block in blocks(height, width, *shard):
            core = block.core
            labels = np.empty(core.shape, above.dtype)
            for top in range(0, core.height, plan.chunk_shape[0]):
                rows = min(plan.chunk_shape[0], core.height - top)
                row, col = 2 * (core.row + top), 2 * core.col
                labels[top : top + rows] = halve(
                    cast(Labels, below[row : row + 2 * rows, col : col + 2 * core.width]), plan.classes
                )
            above[core.slices] = labels


def halve(labels: Labels, classes: int) -> Labels:
    """Labels (h, w) at half the resolution, (ceil(h / 2), ceil(w / 2)): the commonest class of each 2 x 2 pixels.

    Only classes vote, ties go to the lowest code; without any class the answer is failed before no data. An odd last row
    or column votes alone.
    """
    codes = mask_codes(classes)
    height, width = labels.shape
    if height % 2 or width % 2:
        labels = np.pad(labels, ((0, height % 2), (0, width % 2)), constant_values=codes.no_data)
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    low1, high1, low2, high2 = np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)
    first, last = np.minimum(low1, low2), np.maximum(high1, high2)
    mid1, mid2 = np.maximum(low1, low2), np.minimum(high1, high2)
    second, third = np.minimum(mid1, mid2), np.maximum(mid1, mid2)
    mode = first.copy()
    single = first != second
    np.copyto(mode, third, where=single & (third == last) & (third < codes.failed))
    np.copyto(mode, second, where=single & (second == third) & (second < codes.failed))
    return mode


def publish(work: Path, final: Path) -> None:
    """Make the finished mosaic at `work` appear at `final` by one rename; readers see all of it or nothing."""
    if final.exists():
        raise StoreError(f"{final} exists already: a published mosaic is never replaced. Remove it first")
    for torn in work.rglob("*.partial"):
        torn.unlink()
    final.parent.mkdir(parents=True, exist_ok=True)
    work.rename(final)


def remove(path: Path) -> None:
    """Delete a mosaic; nothing happens where there is none."""
    shutil.rmtree(path, ignore_errors=True)


def levels(height: int, width: int) -> int:
    """Number of pyramid levels, the full resolution included."""
    count = 1
    while ceil(max(height, width) / 2 ** (count - 1)) > SMALLEST_LEVEL_PX:
        count += 1
    return count


def level_shape(grid: WorkingGrid, level: int) -> tuple[int, int]:
    """(height, width) of a level: halved and rounded up, level by level."""
    return ceil(grid.height / 2**level), ceil(grid.width / 2**level)


def _open(path: Path, name: str) -> zarr.Array[Any]:
    try:
        return zarr.open_array(path, path=name, mode="r+")
    except (OSError, KeyError, ValueError) as e:
        raise StoreError(f"{path} has no readable array {name!r} ({type(e).__name__}: {e})") from e


def _array(group: zarr.Group, name: str, plan: Plan, shape: tuple[int, int], dtype: str, fill: int) -> zarr.Array[Any]:
    chunk = plan.chunk_shape
    whole = tuple(ceil(side / c) * c for side, c in zip(shape, chunk, strict=True))
    shard = tuple(min(block, side) for block, side in zip(plan.block_shape, whole, strict=True))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=shard,
        fill_value=fill,
        compressors=ZstdCodec(level=3),
        dimension_names=("y", "x"),
        config={"write_empty_chunks": False},
    )


def _georeference(group: zarr.Group, grid: WorkingGrid, level: int) -> None:
    """`spatial_ref`, and coordinates of pixel centres where rows and columns follow the axes of the CRS."""
    attributes: dict[str, Any] = {}
    if grid.crs_wkt:
        attributes |= {"crs_wkt": grid.crs_wkt, "spatial_ref": grid.crs_wkt}
    if grid.transform is not None:
        a, b, c, d, e, f = _level_transform(grid.transform, level)
        attributes["GeoTransform"] = f"{c!r} {a!r} {b!r} {f!r} {d!r} {e!r}"
    group.create_array("spatial_ref", shape=(), dtype="int64", fill_value=0, dimension_names=()).attrs.update(attributes)
    if grid.transform is None or b or d:
        return
    height, width = level_shape(grid, level)
    for name, first, step, count in (("y", f, e, height), ("x", c, a, width)):
        centres = first + step * (np.arange(count) + 0.5)
        axis = group.create_array(name, shape=(count,), dtype="float64", chunks=(count,), dimension_names=(name,))
        axis[:] = centres
        axis.attrs.update({"axis": name.upper(), "standard_name": f"projection_{name}_coordinate"})


def _level_transform(
    transform: tuple[float, float, float, float, float, float], level: int
) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = transform
    return a * 2**level, b * 2**level, c, d * 2**level, e * 2**level, f


def _attributes(plan: Plan) -> dict[str, Any]:
    grid, card = plan.grid, plan.card
    count = levels(grid.height, grid.width)
    return {
        "ome": _ome(plan, count),
        **_geo_conventions(grid, count),
        "gigamask": {
            "version": __version__,
            "plan_digest": plan.digest,
            "model": {"name": card.name, "digest": card.digest},
            "mask": plan.mask.model_dump(mode="json"),
            "resolution": str(card.resolution) if card.resolution else "native",
            "codes": {"failed": mask_codes(plan.classes).failed, "no_data": mask_codes(plan.classes).no_data},
            "levels": count,
        },
    }


def _ome(plan: Plan, count: int) -> dict[str, Any]:
    """OME-NGFF 0.5 multiscales and image-label; scale is positive, pixel centres shift by (2^n - 1) / 2 pixels."""
    grid = plan.grid
    unit = None
    pixel = (1.0, 1.0)
    if grid.transform is not None and plan.read.source.pixel_size_m is not None:
        unit = "meter"
        rows_m, cols_m = plan.read.source.pixel_size_m
        pixel = (rows_m * grid.scale_row, cols_m * grid.scale_col)
    datasets = [
        {
            "path": f"{level}/mask",
            "coordinateTransformations": [
                {"type": "scale", "scale": [p * 2**level for p in pixel]},
                {"type": "translation", "translation": [p * (2**level - 1) / 2 for p in pixel]},
            ],
        }
        for level in range(count)
    ]
    axes = [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in ("y", "x")]
    return {
        "version": "0.5",
        "multiscales": [{"name": plan.image.stem, "type": "mode", "axes": axes, "datasets": datasets}],
        "image-label": {
            "colors": [
                {"label-value": code, "rgba": [*bytes.fromhex(c.color[1:]), 255]} for code, c in enumerate(plan.card.classes)
            ],
            "properties": [{"label-value": code, "class": c.name} for code, c in enumerate(plan.card.classes)],
        },
    }


def _geo_conventions(grid: WorkingGrid, count: int) -> dict[str, Any]:
    """The zarr conventions `proj`, `spatial` and `multiscales`, where there is a georeference."""
    if grid.transform is None:
        return {}
    layout = [
        {
            "asset": str(level),
            **({"derived_from": str(level - 1)} if level else {}),
            "transform": {"scale": [2.0**level] * 2, "translation": [(2.0**level - 1) / 2] * 2},
            "spatial:shape": list(level_shape(grid, level)),
            "spatial:transform": list(_level_transform(grid.transform, level)),
        }
        for level in range(count)
    ]
    return {
        "zarr_conventions": [{"name": name, "uuid": uuid} for name, uuid in _CONVENTIONS.items()],
        **({"proj:wkt2": grid.crs_wkt} if grid.crs_wkt else {}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.transform),
        "spatial:shape": list(grid.shape),
        "multiscales": {"layout": layout, "resampling_method": "mode"},
    }
