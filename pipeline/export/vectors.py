"""Vector files, written as their features come: GeoJSON (plain or gzip), GeoPackage, GeoParquet."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyarrow import lib as pa
from pyarrow import parquet

from pipeline.atomic import draft_beside, sweep_drafts
from pipeline.card import ClassInfo
from pipeline.export.frame import Frame, cut, longest_slope
from pipeline.export.sweep import Objects
from pipeline.projection import projjson

SUFFIXES = {
    "geojson": (".geojson", ".json", ".geojson.gz", ".json.gz"),
    "gpkg": (".gpkg",),
    "geoparquet": (".parquet", ".geoparquet"),
}
"""Endings that an output's name may have, the usual one first."""
LAYER = "objects"
"""Name of the layer in a GeoPackage."""
MOST_FEATURES = 4096
"""Features of a batch."""
ROW_GROUP = 16384
"""Features of a row group of GeoParquet, at least, but for the last one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some features, in order."""

    shapes: NDArray[np.object_]
    """Polygons: outer rings counter-clockwise, holes clockwise, in numbers (x, y)."""
    ids: list[str]
    """UUIDs that say which object of which mask each is: the same in every export of it."""
    code: NDArray[np.uint16]
    """Class of each."""
    area_px: NDArray[np.int64]
    """Working pixels, of the mask itself: simplifying does not change it."""
    area: NDArray[np.float64] | None
    """The same in m² (georeferenced) or µm²; None where the pixel's size is not known."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What all features of a file share."""

    classes: tuple[ClassInfo, ...]
    """By code."""
    frame: Frame
    """What their coordinates are."""
    digest: str
    """Of the mask's plan: with an object's first pixel it makes its id."""
    pixel_area: float | None
    """Area of a working pixel in `unit`; None where it is not known."""
    unit: str
    """m2 or um2."""


def batches(objects: Objects, layer: Layer) -> Iterator[tuple[Batch, int]]:
    """(features, how many of them had to be mended) of finished objects.

    Mended are polygons that bending to longitude and latitude has made cross themselves, by a small part of a pixel.
    """
    for low in range(0, len(objects.code), MOST_FEATURES):
        high = min(low + MOST_FEATURES, len(objects.code))
        parts = objects.parts[low : high + 1]
        rings = objects.rings[parts[0] : parts[-1] + 1]
        corners = objects.points[rings[0] : rings[-1]]
        shapes = _polygons(corners, rings - rings[0], parts - parts[0], layer.frame)
        mended = 0
        if layer.frame.bent and 2 * layer.frame.bend * max(longest_slope(corners, rings - rings[0]), 1) > 1:
            wrong = ~shapely.is_valid(shapes)
            mended = int(wrong.sum())
            shapes[wrong] = shapely.make_valid(shapes[wrong], method="structure", keep_collapsed=False)
        area = objects.area[low:high]
        ids = [_id(layer.digest, first) for first in objects.first[low:high].tolist()]
        yield (
            Batch(
                shapely.orient_polygons(shapes, exterior_cw=False),
                ids,
                objects.code[low:high],
                area,
                None if layer.pixel_area is None else area * np.float64(layer.pixel_area),
            ),
            mended,
        )


def _polygons(points: NDArray[np.int32], rings: NDArray[np.int64], parts: NDArray[np.int64], frame: Frame) -> NDArray[np.object_]:
    corners, starts = cut(points, rings) if frame.bent else (points.astype(np.float64), rings)
    places = frame.place(corners)
    if frame.kind != "crs":
        places = np.round(places, frame.decimals) + 0.0  # no -0.0
    shapes: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, places, (starts, parts))
    return shapes


def _id(digest: str, first: int) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(f"{digest}/{first}".encode()).digest()[:16], version=5))


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """A name beside `out` to write to: it takes the place of `out` when all went well, else it is gone.

    GDAL wants a file's ending to be its own, hence the ending behind `.partial`.
    """
    sweep_drafts(out)
    draft = draft_beside(out)
    try:
        yield draft
        draft.replace(out)
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    for name in (draft.name, f"{draft.name}-journal", f"{draft.name}-wal", f"{draft.name}-shm"):
        draft.with_name(name).unlink(missing_ok=True)


def write(path: Path, to: str, found: Iterator[Batch], layer: Layer) -> None:
    """Write the features to `path` as they come."""
    {"geojson": write_geojson, "gpkg": write_gpkg, "geoparquet": write_geoparquet}[to](path, found, layer)


def write_geojson(path: Path, found: Iterator[Batch], layer: Layer) -> None:
    """A FeatureCollection, one feature a line.

    In pixels, features are QuPath's annotations: `objectType`, `classification` with name and colour, `measurements`. In
    longitude and latitude they have plain properties, as GIS show them.
    """
    with _text(path) as file:
        file.write('{"type":"FeatureCollection","features":[')
        between = "\n"
        for batch in found:
            shapes = shapely.to_geojson(batch.shapes)
            for i, shape in enumerate(shapes.tolist()):
                properties = _annotation(batch, i, layer) if layer.frame.kind == "pixels" else _plain(batch, i, layer)
                short = shape.replace(".0,", ",").replace(".0]", "]")
                text = json.dumps(properties, ensure_ascii=False, separators=(",", ":"))
                file.write(f'{between}{{"type":"Feature","id":"{batch.ids[i]}","geometry":{short},"properties":{text}}}')
                between = ",\n"
        file.write("\n]}\n")


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    """A text file, packed where its name says so: equal content gives equal bytes."""
    if path.suffix.lower() != ".gz":
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed,
        TextIOWrapper(packed, encoding="utf-8") as file,
    ):
        yield file


def _annotation(batch: Batch, i: int, layer: Layer) -> dict[str, Any]:
    """A feature's properties as QuPath (0.4 and later) reads and writes them."""
    info = layer.classes[batch.code[i]]
    measured: dict[str, float] = {"Area (mask px)": int(batch.area_px[i])}
    if batch.area is not None:
        measured["Area µm^2" if layer.unit == "um2" else "Area m^2"] = float(f"{batch.area[i]:.9g}")
    return {
        "objectType": "annotation",
        "classification": {"name": info.name, "color": [*bytes.fromhex(info.color[1:])]},
        "measurements": measured,
    }


def _plain(batch: Batch, i: int, layer: Layer) -> dict[str, Any]:
    info = layer.classes[batch.code[i]]
    facts = {"class": info.name, "code": int(batch.code[i]), "color": info.color, "area_px": int(batch.area_px[i])}
    return facts if batch.area is None else facts | {f"area_{layer.unit}": float(f"{batch.area[i]:.9g}")}


def write_gpkg(path: Path, found: Iterator[Batch], layer: Layer) -> None:
    """A GeoPackage of one layer, with a spatial index."""
    trouble: list[BaseException] = []

    def rows() -> Iterator[pa.RecordBatch]:
        try:
            for batch in found:
                yield _arrow(batch, layer)
        except BaseException as e:
            trouble.append(e)
            raise

    stream = pa.RecordBatchReader.from_batches(_schema(layer), rows())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        try:
            pyogrio.write_arrow(
                stream,
                path,
                layer=LAYER,
                driver="GPKG",
                geometry_name="geometry",
                geometry_type="Polygon",
                crs=layer.frame.crs_wkt,
            )
        except Exception:
            if trouble:
                raise trouble[0] from None
            raise


def write_geoparquet(path: Path, found: Iterator[Batch], layer: Layer) -> None:
    """GeoParquet 1.0: WKB, planar edges, the CRS as PROJJSON."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    waiting: list[pa.RecordBatch] = []
    with parquet.ParquetWriter(path, _schema(layer), compression="zstd") as file:  # type: ignore[no-untyped-call]

        def flush() -> None:
            if waiting:
                file.write_table(pa.Table.from_batches(waiting))
                waiting.clear()

        for batch in found:
            corners = shapely.total_bounds(batch.shapes)
            low, high = np.minimum(low, corners[:2]), np.maximum(high, corners[2:])
            waiting.append(_arrow(batch, layer))
            if sum(map(len, waiting)) >= ROW_GROUP:
                flush()
        flush()
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None if layer.frame.crs_wkt is None else projjson(layer.frame.crs_wkt),
            "orientation": "counterclockwise",
            "edges": "planar",
            **({"bbox": [*low.tolist(), *high.tolist()]} if np.isfinite(low).all() else {}),
        }
        geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
        file.add_key_value_metadata({"geo": json.dumps(geo)})


def _schema(layer: Layer) -> pa.Schema:
    fields = [("id", pa.string()), ("class", pa.string()), ("code", pa.int32()), ("color", pa.string()), ("area_px", pa.int64())]
    measured = [] if layer.pixel_area is None else [(f"area_{layer.unit}", pa.float64())]
    return pa.schema([*fields, *measured, ("geometry", pa.binary())])


def _arrow(batch: Batch, layer: Layer) -> pa.RecordBatch:
    infos = [layer.classes[code] for code in batch.code.tolist()]
    columns: list[Any] = [
        batch.ids,
        [info.name for info in infos],
        pa.array(batch.code.astype(np.int32)),
        [info.color for info in infos],
        pa.array(batch.area_px),
        *([] if batch.area is None else [pa.array(batch.area)]),
        list(shapely.to_wkb(batch.shapes)),
    ]
    schema = _schema(layer)
    return pa.record_batch([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)
