"""Reference labels on an image's working grid, from a raster or polygons: each working pixel takes the label under its centre, or
none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import projection, rasterfile, vectorfile
from pipeline.alignment import (
    PIXEL,
    Bounds,
    LayerInfo,
    MaskFacts,
    Polygons,
    TruthSpec,
    beside,
    check_kinds,
    for_each_image,
    in_pixels,
    inverse,
    like_degrees,
    plan_area_raster,
    plan_truth,
    polygon_codes,
    rest_code,
    same_crs,
)
from pipeline.codes import label_type
from pipeline.config import TruthConfig
from pipeline.errors import ChangedError, PlanError, SourceError, TruthError
from pipeline.grid import Window
from pipeline.image import SourceInfo

MOST_CLASSES = 1024
"""Largest number of classes that are scored: 8 MiB of counts a block."""
STRIP_PIXELS = 1 << 22
"""Label pixels read at a time: memory that does not grow with the window."""
TIE = 1e-6
"""A centre within this of the border between two label pixels takes the later one: rounding must not make it waver."""

CELL = 512
"""Side in working pixels of the squares in which polygons are burnt."""
FAR = 10
"""Shapes in another coordinate system that reach so many times the image's size away from it are first cut near the image."""
MANY_VERTICES = 5000
"""Shapes with more are cut to each cell before they are burnt there."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is true in a window."""

    codes: NDArray[np.unsignedinteger]
    """(h, w) of `label_type(classes)`: class codes 0...classes - 1, and `classes` for not labelled."""
    unknown: dict[int, int]
    """Label value -> working px with it, for values that are no class, not ignored and not nodata; their code is `classes`."""


class Truth:
    """Open labels, for one thread."""

    def __init__(self, spec: TruthSpec, classes: int, height: int, width: int) -> None:
        self._classes, self._shape = classes, (height, width)
        self._area = None if spec.area is None else PolygonLabels(spec.area, self._shape, np.dtype(np.uint8))
        self._labels = (
            PolygonLabels(spec.source, self._shape, label_type(classes))
            if isinstance(spec.source, Polygons)
            else RasterLabels(spec, spec.source, classes)
        )

    def read(self, window: Window) -> Reference:
        """The labels of a window of the working grid; outside the labels or their area, and where there is none: not labelled.

        TruthError where they cannot be read, or are no whole numbers. The law: any window is the crop of the whole.
        """
        if window.clip(*self._shape) != window:
            raise PlanError(f"{window} reaches outside the working grid of {self._shape[0]} x {self._shape[1]} px")
        where = None if self._area is None else self._area.read(window) == 1
        if where is not None and not where.any():
            return Reference(np.full(window.shape, self._classes, label_type(self._classes)), {})
        if isinstance(self._labels, RasterLabels):
            return self._labels.read(window, where)
        codes = self._labels.read(window)
        return Reference(codes if where is None else np.where(where, codes, codes.dtype.type(self._classes)), {})

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        if isinstance(self._labels, RasterLabels):
            self._labels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class RasterLabels:
    """The values of a label raster as class codes."""

    def __init__(self, spec: TruthSpec, source: SourceInfo, classes: int) -> None:
        _check(source)
        self._spec, self._source, self._classes = spec, source, classes
        self._codes = {**spec.codes, **dict.fromkeys(spec.ignore, classes)}
        dtype = np.dtype(source.dtype)
        small = dtype.kind in "iu" and dtype.itemsize <= 2
        self._table = _table(self._codes, spec.others, dtype, classes) if small else None
        try:
            self._file = rasterfile.RasterFile(source, source.band_indexes, source.valid_from, source.nodata)
        except (SourceError, ChangedError) as e:
            raise TruthError(f"labels: {e}") from e

    def read(self, window: Window, where: NDArray[np.bool_] | None) -> Reference:
        """The labels of a window; those outside of `where` (h, w) are not looked at."""
        spec, source = self._spec, self._source
        codes = np.full(window.shape, self._classes, label_type(self._classes))
        unknown: dict[int, int] = {}
        src_rows, rows = _nearest(window.row, window.row_stop, spec.scale_row, spec.offset_row, source.height)
        src_cols, cols = _nearest(window.col, window.col_stop, spec.scale_col, spec.offset_col, source.width)
        if not len(src_rows) or not len(src_cols):
            return Reference(codes, unknown)
        first_col, length = int(src_cols[0]), int(src_cols[-1]) + 1 - int(src_cols[0])
        step = max(1, int(STRIP_PIXELS / length / max(spec.scale_row, 1)))
        for start in range(0, len(src_rows), step):
            wanted = src_rows[start : start + step]
            first_row = int(wanted[0])
            labels, valid = self._native(Window(first_row, first_col, int(wanted[-1]) + 1 - first_row, length))
            if labels.shape != (len(wanted), len(src_cols)):
                pick = np.ix_(wanted - first_row, src_cols - first_col)
                labels, valid = labels[pick], valid[pick]
            part = slice(rows.start + start, rows.start + start + len(wanted))
            codes[part, cols] = self._encode(labels, valid if where is None else valid & where[part, cols], unknown)
        return Reference(codes, unknown)

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        self._file.close()

    def _native(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            data, valid = self._file.read(window)
        except SourceError as e:
            raise TruthError(f"labels: {e}") from e
        return data[0], valid

    def _encode(self, labels: NDArray[Any], valid: NDArray[np.bool_], unknown: dict[int, int]) -> NDArray[np.unsignedinteger]:
        """Class codes of label values; those without a code are added to `unknown`."""
        if self._table is not None:
            codes, known = self._table
            place = labels.view(f"u{labels.itemsize}")
            strange = valid & ~known.take(place)
            if strange.any():
                _add(unknown, *np.unique(labels[strange], return_counts=True))
            return np.where(valid, codes.take(place), codes.dtype.type(self._classes))
        values, place, counts = np.unique(labels[valid], return_inverse=True, return_counts=True)
        broken = values[values != np.rint(values)] if labels.dtype.kind == "f" else values[:0]
        others = self._spec.others
        if len(broken) and others is None:
            raise TruthError(
                f"{self._source.uri} holds {broken[0]!s} among its labels, which is no whole number: it would be taken for "
                "another class. Name a raster of class values"
            )
        found = [self._codes.get(value, others) for value in values.tolist()]
        has_code = np.array([code is not None for code in found], bool)
        _add(unknown, values[~has_code], counts[~has_code])
        result = np.full(labels.shape, self._classes, label_type(self._classes))
        result[valid] = np.array([self._classes if code is None else code for code in found], result.dtype)[place]
        return result


class PolygonLabels:
    """Polygons burnt on a working grid, cell by cell.

    The grid is burnt in cells that are the same whatever window is asked for, from shapes in pixels of the whole grid, so
    that rounding cannot tell two windows apart.
    """

    def __init__(self, polygons: Polygons, shape: tuple[int, int], dtype: np.dtype[np.unsignedinteger]) -> None:
        vectorfile.check_unchanged(polygons.layer)
        self._polygons, self._shape, self._dtype = polygons, shape, dtype
        self._inverse = inverse(polygons.transform)
        self._box = None if _aligned(polygons) else _file_bounds(polygons, Window(0, 0, *shape), 0.0)
        self._bulge = 0.0 if self._box is None else _bulge(polygons, self._box)

    def read(self, window: Window) -> NDArray[np.unsignedinteger]:
        """(h, w) codes of the last polygon that each pixel's centre lies in."""
        around = _whole_cells(window, self._shape)
        result = np.full(around.shape, self._polygons.rest, self._dtype)
        shapes, codes = self._near(around)
        left, top, right, bottom = vectorfile.boxes(shapes).T
        many = vectorfile.vertices(shapes) > MANY_VERTICES
        for cell in _cells(around):
            inside = np.flatnonzero((left < cell.col_stop) & (right > cell.col) & (top < cell.row_stop) & (bottom > cell.row))
            if not len(inside):
                continue
            near, large = shapes[inside], many[inside]
            if large.any():
                near[large] = vectorfile.clipped(near[large], (cell.col - 1, cell.row - 1, cell.col_stop + 1, cell.row_stop + 1))
            burnt = np.full(cell.shape, self._polygons.rest, self._dtype)
            rasterfile.burn([(s, int(code)) for s, code in zip(near, codes[inside], strict=True) if not s.is_empty], cell, burnt)
            result[_within(cell, around)] = burnt
        return result[_within(window, around)]

    def _near(self, window: Window) -> tuple[vectorfile.Shapes, NDArray[np.intp]]:
        """(shapes in pixels of the whole grid, their codes) of the features that may touch a window, in the order of the file."""
        polygons = self._polygons
        bounds = _file_bounds(polygons, window, self._bulge) or polygons.layer.bounds
        if bounds is None or polygons.layer.bounds is None:
            return np.zeros(0, object), np.zeros(0, np.intp)
        found = vectorfile.features_near(polygons.layer, bounds)
        return self._in_pixels(found.shapes), np.array([polygons.codes[value] for value in found.values], np.intp)

    def _in_pixels(self, shapes: vectorfile.Shapes) -> vectorfile.Shapes:
        moved = vectorfile.moved(self._cut(shapes), self._to_pixels)
        if not vectorfile.finite(moved).all():
            raise TruthError(f"labels {self._polygons.uri}: a shape has no place in the image's coordinate system")
        if self._polygons.buffer_m and len(moved):
            row_m, col_m = self._polygons.pixel_size_m or (1.0, 1.0)
            ground = vectorfile.moved(moved, lambda cols, rows: (cols * col_m, rows * row_m))
            grown = vectorfile.grown(ground, self._polygons.buffer_m)
            moved = vectorfile.moved(grown, lambda xs, ys: (xs / col_m, ys / row_m))
        return moved

    def _to_pixels(self, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(columns, rows) of points of the file."""
        xs, ys = _projected(self._polygons, xs, ys)
        a, b, c, d, e, f = self._inverse
        return a * xs + b * ys + c, d * xs + e * ys + f

    def _cut(self, shapes: vectorfile.Shapes) -> vectorfile.Shapes:
        """`shapes`, those that reach far from the image cut to its surroundings: far away, projections know no sense."""
        if self._box is None or not len(shapes):
            return shapes
        left, bottom, right, top = _around(self._box, FAR)
        bounds = vectorfile.boxes(shapes)
        far = (bounds[:, 0] < left) | (bounds[:, 1] < bottom) | (bounds[:, 2] > right) | (bounds[:, 3] > top)
        result = shapes.copy()
        result[far] = vectorfile.clipped(shapes[far], _around(self._box, 1))
        return result


def describe_truth(uri: str) -> SourceInfo:
    """What the header of the label raster at the absolute path `uri` says; TruthError where it cannot hold labels."""
    if vectorfile.is_vector(uri):
        raise TruthError(f"labels {uri} are a vector file: a label raster is needed here. Burn it: gdal_rasterize")
    try:
        info = rasterfile.describe(uri)
    except SourceError as e:
        raise TruthError(f"labels: {e}") from e
    _check(info)
    return info


def plan_labels(config: TruthConfig, uri: str, mask: MaskFacts) -> TruthSpec:
    """How the labels at the absolute path `uri`, a raster or polygons, are read on the grid of `mask`.

    TruthError where they cannot be read, say nothing of this image, or what they say is not understood.
    """
    if len(mask.classes) > MOST_CLASSES:
        raise TruthError(
            f"the model has {len(mask.classes)} classes, and every block would count {len(mask.classes) ** 2:,} pairs of them: "
            f"scored are models of at most {MOST_CLASSES}. Leave truth out"
        )
    area = None if config.area is None else _labelled_area(config, config.area, mask)
    if not vectorfile.is_vector(uri):
        return plan_truth(config, describe_truth(uri), mask).model_copy(update={"area": area})
    if config.mpp is not None:
        raise TruthError(f"truth.mpp is for label rasters, and labels {uri} are polygons. Take it out, or name a raster")
    own = vectorfile.own_field(uri, config.layer) if config.field is None and config.constant is None else None
    layer = vectorfile.describe(uri, config.layer, config.field or own)
    buffer_m = config.buffer_m or 0.0
    check_kinds(layer, buffer_m)
    codes, rest = polygon_codes(config, layer, mask.classes), rest_code(config, mask.classes)
    polygons = _lay(layer, codes, rest, mask, config.crs, buffer_m)
    if area is None and (layer.bounds is not None or not for_each_image(config.pattern)):
        _check_reach(polygons, mask)
    if area is None and layer.bounds is None and rest == len(mask.classes):
        raise TruthError(f"labels {uri} hold no polygon, and pixels outside of polygons are not labelled: nothing can be scored")
    return TruthSpec(source=polygons, area=area)


def plan_area(uri: str, mask: MaskFacts) -> TruthSpec:
    """How the area at the absolute path `uri` lies on the grid of `mask`: inside any polygon of a vector file, or where the one
    band of a raster, at any resolution, is not 0.

        with open_truth(plan_area(uri, mask), 2, *mask.grid.shape) as area:
            inside = area.read(window).codes == 1  # (h, w): True is inside

    Always with 2 classes: code 0 is outside, 1 inside, and 2 where a raster does not reach or has no data. TruthError where it
    cannot be read or laid over the image, or no polygon reaches it.
    """
    try:
        if not vectorfile.is_vector(uri):
            return plan_area_raster(describe_truth(uri), mask)
        layer = vectorfile.describe(uri)
        check_kinds(layer, 0.0)
        area = _lay(layer, {"": 1}, 0, mask, None, 0.0)
        _check_reach(area, mask)
    except TruthError as e:
        raise TruthError(f"the area of {mask.image} cannot be told: {e}") from e
    return TruthSpec(source=area)


def _labelled_area(config: TruthConfig, pattern: str, mask: MaskFacts) -> Polygons:
    """The polygons in which labels were drawn."""
    path = beside(pattern, Path(mask.image)).absolute()
    if not path.is_file():
        raise TruthError(f"truth.area: {path} does not exist, so nothing says where labels of {mask.image} were drawn. Add it")
    layer = vectorfile.describe(str(path), config.area_layer)
    check_kinds(layer, 0.0)
    area = _lay(layer, {"": 1}, 0, mask, PIXEL if config.crs == PIXEL else None, 0.0)
    _check_reach(area, mask)
    return area


def _lay(
    layer: LayerInfo, codes: dict[str, int], rest: int, mask: MaskFacts, stated_crs: str | None, buffer_m: float
) -> Polygons:
    """Polygons on the grid of a mask; TruthError where their place or their buffer cannot be told."""
    grid = mask.grid
    polygons = Polygons(
        layer=layer,
        codes=codes,
        rest=rest,
        transform=(grid.scale_col, 0.0, 0.0, 0.0, grid.scale_row, 0.0),
        stated_crs=stated_crs,
        buffer_m=buffer_m,
    )
    if not in_pixels(layer, grid, stated_crs):
        text = stated_crs or layer.crs
        if text is None:
            raise TruthError(
                f"labels {layer.uri} do not say their coordinate system: they could lie anywhere. Name it under truth.crs, such "
                "as EPSG:32637"
            )
        if grid.transform is None or grid.crs_wkt is None:
            raise TruthError(
                f"{mask.image} has no georeference, so labels {layer.uri} in {_short(text)} have no place on it. Where their "
                f"coordinates are its columns and rows, say truth.crs: {PIXEL}"
            )
        try:
            crs_wkt = projection.crs_of(text)
        except SourceError as e:
            raise TruthError(f"labels {layer.uri}: {e}") from e
        where = {"transform": grid.transform, "grid_crs_wkt": grid.crs_wkt, "crs_wkt": crs_wkt}
        polygons = polygons.model_copy(update=where)
        _check_meridian(polygons, mask)
    if grid.crs_wkt is not None and grid.transform is not None:
        size = projection.ground_size(grid.crs_wkt, grid.transform, *grid.shape)
        polygons = polygons.model_copy(update={"pixel_size_m": size})
    else:
        polygons = polygons.model_copy(update={"pixel_size_m": grid.pixel_size_m})
    _check_degrees(polygons, mask)
    if buffer_m and polygons.pixel_size_m is None:
        raise TruthError(
            f"truth.buffer_m: {mask.image} does not say how large its pixels are, so {buffer_m:g} m are no length in it"
        )
    return polygons


def _check_degrees(polygons: Polygons, mask: MaskFacts) -> None:
    """TruthError where coordinates that nobody called pixels span less than one: they are degrees."""
    extent = polygons.layer.bounds
    if extent is not None and like_degrees(polygons) and 0 < max(extent[2] - extent[0], extent[3] - extent[1]) < 1:
        raise TruthError(
            f"labels {polygons.uri} lie within {_bounds_text(extent)}: in pixels of {mask.image}, which has no georeference, "
            f"that is less than one, so they are degrees and have no place on it. Give the image its georeference, or say "
            f"truth.crs: {PIXEL}"
        )


def _check_meridian(polygons: Polygons, mask: MaskFacts) -> None:
    if polygons.grid_crs_wkt is None or not projection.is_geographic(polygons.grid_crs_wkt):
        return
    a, b, c, *_ = polygons.transform
    ends = [c + a * col + b * row for col in (0, mask.grid.width) for row in (0, mask.grid.height)]
    if min(ends) < -180 - 1e-6 or max(ends) > 180 + 1e-6:
        raise TruthError(
            f"{mask.image} spans longitudes {min(ends):g} to {max(ends):g}, over the 180th meridian: polygons beyond it would be "
            "missed. Reproject the image to a projected system, such as UTM"
        )


def _check_reach(polygons: Polygons, mask: MaskFacts) -> None:
    """TruthError where no polygon can touch the image: that it shows nothing cannot be told from that nobody looked."""
    extent = polygons.layer.bounds
    box = _file_bounds(polygons, Window(0, 0, *mask.grid.shape), 0.0)
    if extent is not None and box is not None and _overlap(extent, box):
        return
    held = "hold no polygon" if extent is None else f"lie within {_bounds_text(extent)}"
    there = "has no place in their coordinate system" if box is None else f"lies within {_bounds_text(box)} of their coordinates"
    swapped = extent is not None and box is not None and _overlap((extent[1], extent[0], extent[3], extent[2]), box)
    raise TruthError(
        f"no labels reach {mask.image}: {polygons.uri} {held}, the image {there}. It is not scored: whether nothing is there or "
        "nobody looked cannot be told. "
        + ("Their coordinates look swapped: longitude comes before latitude" if swapped else "Correct the labels, or truth.crs")
    )


def _file_bounds(polygons: Polygons, window: Window, margin: float) -> Bounds | None:
    """Bounds of a window, and of the pixels and buffer around it, in the file's coordinates; None where it has no place there."""
    pad = 2 + abs(polygons.buffer_m) / min(polygons.pixel_size_m or (1.0, 1.0))
    along = np.linspace(0, 1, 21)
    none, all_ = np.zeros(21), np.ones(21)
    cols = window.col - pad + (window.width + 2 * pad) * np.concatenate([along, along, none, all_])
    rows = window.row - pad + (window.height + 2 * pad) * np.concatenate([none, all_, along, along])
    a, b, c, d, e, f = polygons.transform
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    if not _aligned(polygons):
        xs, ys = projection.project(polygons.grid_crs_wkt or "", polygons.crs_wkt or "", xs, ys)
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        return None
    return float(xs.min()) - margin, float(ys.min()) - margin, float(xs.max()) + margin, float(ys.max()) + margin


def _bulge(polygons: Polygons, box: Bounds) -> float:
    """How far an edge that is straight on the image may leave its bounds in the file, in the file's units, as `box` is, the
    image's bounds.

    Vertices are projected, edges between them are straight in the image's system: those of the file's longest edge bend most,
    by the square of their length. Measured on edges as long as the image, in four directions.
    """
    left, bottom, right, top = box
    length = float(np.hypot(right - left, top - bottom))
    longest = min(polygons.layer.longest, 2 * (FAR + 1) * length)
    turns = np.linspace(0, np.pi, 4, endpoint=False)
    along = np.array([-0.5, 0.0, 0.5])[:, None] * length
    xs, ys = (left + right) / 2 + along * np.cos(turns), (bottom + top) / 2 + along * np.sin(turns)
    gx, gy = (part.reshape(3, -1) for part in _projected(polygons, xs.ravel(), ys.ravel()))
    bent = np.hypot(gx[1] - (gx[0] + gx[2]) / 2, gy[1] - (gy[0] + gy[2]) / 2)
    share = bent / np.hypot(gx[2] - gx[0], gy[2] - gy[0])
    return 2 * float(share.max()) * longest**2 / length if np.isfinite(share).all() else longest


def _projected(
    polygons: Polygons, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the file in the image's coordinate system."""
    if _aligned(polygons):
        return xs, ys
    return projection.project(polygons.crs_wkt or "", polygons.grid_crs_wkt or "", xs, ys)


def _around(box: Bounds, times: float) -> Bounds:
    """A box and so many times its size around it."""
    left, bottom, right, top = box
    wide, high = (right - left) * times, (top - bottom) * times
    return left - wide, bottom - high, right + wide, top + high


def _aligned(polygons: Polygons) -> bool:
    """Whether the file's coordinates are the image's own."""
    return polygons.crs_wkt is None or polygons.grid_crs_wkt is None or same_crs(polygons.crs_wkt, polygons.grid_crs_wkt)


def _overlap(one: Bounds, other: Bounds) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _bounds_text(bounds: Bounds) -> str:
    left, bottom, right, top = bounds
    return f"x {left:.8g}...{right:.8g}, y {bottom:.8g}...{top:.8g}"


def _short(crs: str) -> str:
    return crs if len(crs) < 40 else "their coordinate system"


def _whole_cells(window: Window, shape: tuple[int, int]) -> Window:
    """The cells of the grid that a window touches, together."""
    row, col = window.row // CELL * CELL, window.col // CELL * CELL
    rows, cols = (-(-stop // CELL) * CELL for stop in (window.row_stop, window.col_stop))
    return Window(row, col, rows - row, cols - col).clip(*shape)


def _cells(whole: Window) -> Iterator[Window]:
    """The cells of whole ones, row by row."""
    for row in range(whole.row, whole.row_stop, CELL):
        for col in range(whole.col, whole.col_stop, CELL):
            yield Window(row, col, min(CELL, whole.row_stop - row), min(CELL, whole.col_stop - col))


def _within(part: Window, whole: Window) -> tuple[slice, slice]:
    """Index of `part` in an array of `whole`."""
    row, col = part.row - whole.row, part.col - whole.col
    return slice(row, row + part.height), slice(col, col + part.width)


def open_truth(spec: TruthSpec, classes: int, height: int, width: int) -> Truth:
    """The labels of `spec` for a working grid of `height` x `width` px and codes 0...classes - 1."""
    return Truth(spec, classes, height, width)


def _check(info: SourceInfo) -> None:
    if len(info.band_indexes) != 1:
        raise TruthError(
            f"labels {info.uri} have {len(info.band_indexes)} bands ({', '.join(info.band_names)}), one of class values is "
            "needed: colours are no classes. Write a raster with one band, a number for each class"
        )


def _nearest(start: int, stop: int, scale: float, offset: float, length: int) -> tuple[NDArray[np.intp], slice]:
    """(label pixel of each working pixel that has one, those working pixels counted from `start`), along one axis."""
    pixel = np.arange(start, stop, dtype=np.float64)
    index = np.floor((pixel + 0.5) * scale + offset + TIE)
    inside = np.flatnonzero((index >= 0) & (index < length))
    part = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return index[part].astype(np.intp), part


def _table(
    codes: dict[int, int], others: int | None, dtype: np.dtype[Any], classes: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]:
    """(code, whether it has one) of every value of a small integer type, placed by its bits read as unsigned."""
    limits = np.iinfo(dtype)
    fitting = {value: code for value, code in codes.items() if limits.min <= value <= limits.max}
    place = np.array(list(fitting), dtype).view(f"u{dtype.itemsize}")
    table = np.full(1 << 8 * dtype.itemsize, classes if others is None else others, label_type(classes))
    known = np.full(table.shape, others is not None)
    table[place], known[place] = list(fitting.values()), True
    return table, known


def _add(unknown: dict[int, int], values: NDArray[Any], counts: NDArray[np.intp]) -> None:
    for value, pixels in zip(values, counts, strict=True):
        unknown[int(value)] = unknown.get(int(value), 0) + int(pixels)
