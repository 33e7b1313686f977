"""Local vector files: which may be opened, what a layer holds, and its features near a place. The one address of pyogrio and
shapely."""

from __future__ import annotations

import gzip
import json
import os
import re
import sqlite3
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyarrow import parquet
from pyarrow.lib import RecordBatch, RecordBatchReader
from pyogrio import raw
from pyogrio.util import vsi_path
from shapely.lib import ShapelyError

from pipeline.alignment import ASAP, GEOJSON, Bounds, LayerInfo
from pipeline.annotations import ASAP_GROUP, CLASSIFICATION, QUPATH_MARKS, class_name, is_qupath, read_asap
from pipeline.errors import ChangedError, SourceError, TruthError
from pipeline.identity import check_files, file_set
from pipeline.image import FileSet

DRIVERS = {
    ".geojson": GEOJSON,
    ".json": GEOJSON,
    ".geojson.gz": GEOJSON,
    ".json.gz": GEOJSON,
    ".xml": ASAP,
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".shp": "ESRI Shapefile",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
}
"""Suffix -> reader. All are GDAL's but Parquet, which pyarrow reads, and ASAP's XML."""
UNREAD = (".kml", ".kmz", ".gml", ".gdb", ".dxf", ".csv", ".topojson", ".geojsonl", ".geojsons", ".gpx", ".tab", ".mif", ".zip")
"""Suffixes of vector files that are not read."""
STARTS = {
    GEOJSON: (b"{", b"["),
    ASAP: (b"<",),
    "GPKG": (b"SQLite format 3\0",),
    "FlatGeobuf": (b"fgb",),
    "ESRI Shapefile": (b"\0\0\x27\x0a",),
    "Parquet": (b"PAR1",),
}
"""First bytes of each format. GDAL chooses its driver by content: without this, and the prefix that holds GeoJSON to its
driver, a file of any name could be a GDAL pipeline or a VRT, which read any other file or address. Text may have a byte order
mark and space before them."""
OF_GDAL = ("GPKG", "FlatGeobuf", "ESRI Shapefile")
"""Readers that are given the path of the file as it is."""
GZIP = b"\x1f\x8b"
COPIED_BYTES = 1 << 20
"""Decompressed at a time."""
BESIDE = {"ESRI Shapefile": (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn"), "GPKG": (".gpkg-wal",)}
"""Suffixes of the files that belong to one of a format."""
MOST_LOADED_BYTES = 64 << 20
"""Largest layer without a spatial index that a worker holds in memory: up to some hundred MiB, 0.7 KiB a small polygon."""
MOST_SHAPES_BYTES = 4 * MOST_LOADED_BYTES
"""The most that its shapes may have as WKB: files may hold them packed."""
MOST_VALUES = 1000
"""Different values above which a field names no classes."""
BATCH = 4096
"""Features read at a time."""
KINDS = (
    *("Geometry", "Point", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon", "GeometryCollection"),
    *("CircularString", "CompoundCurve", "CurvePolygon", "MultiCurve", "MultiSurface", "Curve", "Surface"),
    *("PolyhedralSurface", "TIN", "Triangle"),
)
"""Names of the geometry kinds of WKB, by number."""
pyogrio.set_gdal_config_options({"OGR_FLATGEOBUF_STREAM_BASE_IMPL": True})  # its own stream breaks at features without geometry
_ERRORS = (
    sqlite3.Error,
    RuntimeError,
    ValueError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    zlib.error,
    ShapelyError,
)

Shapes = NDArray[np.object_]
"""Geometries of shapely."""


@dataclass(frozen=True)
class Features:
    """Some features of a layer, in the order of the file."""

    shapes: Shapes
    """Valid, two-dimensional, not empty; in the file's coordinates."""
    values: NDArray[np.object_]
    """Text of the class field of each; empty text without a field."""


def is_vector(uri: str) -> bool:
    """Whether a file's name says that it holds shapes rather than pixels."""
    return _suffix(Path(uri)) in (*DRIVERS, *UNREAD)


def own_field(uri: str, layer: str | None = None) -> str | None:
    """The field that names classes by the custom of the program that wrote the file at the absolute path `uri`.

    `classification` of QuPath's objects, also where none of them has one; `PartOfGroup` of ASAP's annotations; else None.
    TruthError as from `describe`.
    """
    path, driver = _checked(uri)
    return _header(file_set(path, _beside(path, driver)), driver, layer).own_field


def describe(uri: str, layer: str | None = None, class_field: str | None = None) -> LayerInfo:
    """What a layer of the file at the absolute path `uri` holds, after a look at every feature, some at a time.

    `class_field` names the attribute whose values are counted. TruthError where the file cannot be opened or read to its end,
    the layer is not named though there are several, or there is no such field.
    """
    path, driver = _checked(uri)
    return _describe(file_set(path, _beside(path, driver)), driver, layer, class_field)


def check_unchanged(info: LayerInfo) -> None:
    """TruthError where a file of the labels is gone, is another one or has appeared since they were described."""
    path, driver = _checked(info.uri)
    try:
        check_files(info, _beside(path, driver))
    except (ChangedError, SourceError) as e:
        raise TruthError(f"labels: {e}") from e


def features_near(info: LayerInfo, bounds: Bounds) -> Features:
    """The features whose bounds touch `bounds` (file coordinates), and maybe others, in the order of the file."""
    if info.indexed:
        return _read(info, bounds)
    loaded = _loaded(info)
    near = np.sort(loaded.tree.query(shapely.box(*bounds)))
    return Features(loaded.features.shapes[near], loaded.features.values[near])


def moved(shapes: Shapes, move: Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[Any, Any]]) -> Shapes:
    """`shapes` with every vertex at move(x, y)."""
    points = shapely.get_coordinates(shapes)
    result: Shapes = shapely.set_coordinates(shapes.copy(), np.column_stack(move(points[:, 0], points[:, 1])))
    return result


def grown(shapes: Shapes, distance: float) -> Shapes:
    """All that is within `distance` of each shape (below 0: what is at least so far inside); some may be empty."""
    result: Shapes = shapely.buffer(shapes, distance, quad_segs=16)
    return result


def boxes(shapes: Shapes) -> NDArray[np.float64]:
    """(n, 4): left, top, right, bottom of each shape, in numbers: the least x, the least y, the greatest of both."""
    result: NDArray[np.float64] = shapely.bounds(shapes)
    return result


def finite(shapes: Shapes) -> NDArray[np.bool_]:
    """Whether all coordinates of each shape are numbers."""
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    result = np.ones(len(shapes), bool)
    result[owner[~np.isfinite(points).all(axis=1)]] = False
    return result


def clipped(shapes: Shapes, bounds: Bounds) -> Shapes:
    """The polygons of `shapes` inside `bounds`; some may be empty."""
    inside = shapely.intersection(shapes, shapely.box(*bounds))
    mixed = np.flatnonzero(shapely.get_type_id(inside) == KINDS.index("GeometryCollection"))
    for i in mixed:
        parts = shapely.get_parts(inside[i])
        inside[i] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    result: Shapes = inside
    return result


def vertices(shapes: Shapes) -> NDArray[np.intp]:
    """Number of vertices of each shape."""
    result: NDArray[np.intp] = shapely.get_num_coordinates(shapes)
    return result


def _suffix(path: Path) -> str:
    """The suffix that tells a file's format, in lower case; of compressed GeoJSON both."""
    both = "".join(path.suffixes[-2:]).lower()
    return both if both in DRIVERS else path.suffix.lower()


def _checked(uri: str) -> tuple[Path, str]:
    """(path, driver) of a file that may be opened."""
    path = Path(uri)
    driver = DRIVERS.get(_suffix(path))
    if driver is None:
        raise TruthError(
            f"labels {uri}: {path.suffix} files are not read. Convert to GeoPackage: ogr2ogr {path.stem}.gpkg {path.name}; "
            f"read are {', '.join(sorted(DRIVERS))}"
        )
    if uri.startswith("/vsi") or not path.is_absolute() or not os.path.isfile(uri):  # noqa: PTH113 - pathlib breaks at a name that is too long
        raise TruthError(f"labels {uri!r} are no file at an absolute local path. Correct the path, or copy the file to a folder")
    if driver in OF_GDAL and vsi_path(uri) != uri:
        raise TruthError(
            f"labels {uri!r}: GDAL would take such a name, with `!` or `;`, for another file or address. Rename file and folder"
        )
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as e:
        raise TruthError(f"labels {uri} cannot be read: {e}. Correct the file's permissions") from e
    content = _text_start(start) if driver in (GEOJSON, ASAP) else start
    fits = start.startswith(GZIP) if _suffix(path).endswith(".gz") else content.startswith(STARTS[driver])
    if driver == "GPKG":
        fits = fits and start[68:72] in (b"GPKG", b"GP10", b"GP11")
    if not fits:
        raise TruthError(f"labels {uri} are no {driver} file: it begins with {start[:16]!r}. Correct its name, or fetch it again")
    if driver == "ESRI Shapefile" and 2 * int.from_bytes(start[24:28], "big") > path.stat().st_size:
        raise TruthError(f"labels {uri} end before the length that they say of themselves. Fetch or make the file again")
    return path, driver


def _beside(path: Path, driver: str) -> list[Path]:
    """The files that belong to one of a format, where they exist."""
    return [path.with_suffix(case) for suffix in BESIDE.get(driver, ()) for case in (suffix, suffix.upper())]


@dataclass
class _Census:
    """What is found while a layer is read."""

    features: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    invalid: int = 0
    longest: float = 0.0
    low: NDArray[np.float64] = field(default_factory=lambda: np.full(2, np.inf))
    high: NDArray[np.float64] = field(default_factory=lambda: np.full(2, -np.inf))

    def add(self, uri: str, texts: Sequence[bytes | None], values: Sequence[str]) -> None:
        """Count some features."""
        self.features += len(texts)
        kinds = [_kind(text) for text in texts]
        self.kinds.update(kind for kind in kinds if kind)
        shapes = _shapes(uri, [text if kind in KINDS[:8] else None for text, kind in zip(texts, kinds, strict=True)])
        there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        self.empty += sum(kind is None or (kind in KINDS[:8] and not t) for kind, t in zip(kinds, there, strict=True))
        self.values.update(value for value, t, kind in zip(values, there, kinds, strict=True) if t or kind in KINDS[8:])
        if len(self.values) > MOST_VALUES:
            raise TruthError(
                f"labels {uri}: truth.field has more than {MOST_VALUES} different values, such as {values[0]!r} and "
                f"{values[-1]!r}: they name no classes. Choose another field, or give every polygon one class with truth.constant"
            )
        shapes = shapes[there]
        if not len(shapes):
            return
        if not finite(shapes).all():
            raise TruthError(f"labels {uri}: a coordinate is no number: nothing can be said of its place. Make the file again")
        self.invalid += int((~shapely.is_valid(shapes)).sum())
        corners = shapely.total_bounds(shapes)
        self.low, self.high = np.minimum(self.low, corners[:2]), np.maximum(self.high, corners[2:])
        points, owner = shapely.get_coordinates(shapes, return_index=True)
        steps = np.hypot(*np.diff(points, axis=0).T)[np.diff(owner) == 0]
        self.longest = max(self.longest, float(steps.max(initial=0)))


@lru_cache(maxsize=256)
def _describe(files: FileSet, driver: str, layer: str | None, class_field: str | None) -> LayerInfo:
    uri, header = files.uri, _header(files, driver, layer)
    shapeless = driver == GEOJSON and header.features == 0  # its fields are those of its features
    if class_field is not None and class_field not in header.fields and class_field != header.own_field and not shapeless:
        raise TruthError(
            f"labels {uri}: layer {header.layer!r} has no field {class_field!r}; it has {', '.join(header.fields) or 'none'}. "
            "Name one of them under truth.field, or give every polygon one class with truth.constant"
        )
    indexed = header.indexed
    if not indexed and header.bytes > MOST_LOADED_BYTES:
        raise _too_large(uri, header.bytes)
    census = _Census()
    held = 0
    for _, texts, values in _batches(uri, driver, header.layer, class_field, None):
        held += sum(len(text) for text in texts if text)
        if not indexed and held > MOST_SHAPES_BYTES:
            raise _too_large(uri, held)
        census.add(uri, texts, values)
    if header.features >= 0 and census.features != header.features:
        raise TruthError(f"labels {uri} end after {census.features} of {header.features} features. Fetch or make the file again")
    return LayerInfo(
        **dict(files),
        driver=driver,
        layer=header.layer,
        crs=header.crs,
        field=class_field,
        fields=tuple(header.fields[:100]),
        values=dict(sorted(census.values.items())) if class_field else {},
        kinds=dict(census.kinds),
        empty=census.empty,
        invalid=census.invalid,
        bounds=(*census.low.tolist(), *census.high.tolist()) if np.isfinite(census.low).all() else None,
        longest=census.longest,
        indexed=indexed,
        groups=header.groups if class_field == ASAP_GROUP else {},
    )


@dataclass(frozen=True)
class _Header:
    layer: str
    crs: str | None
    fields: list[str]
    features: int
    """-1: not known."""
    indexed: bool
    bytes: int
    """What the layer takes when it is loaded, about."""
    own_field: str | None = None
    """As `own_field` says."""
    groups: dict[str, str] = field(default_factory=dict)
    """As LayerInfo has them."""


@lru_cache(maxsize=256)
def _header(files: FileSet, driver: str, layer: str | None) -> _Header:
    read = {"Parquet": _parquet_header, ASAP: _asap_header}.get(driver)
    return _gdal_header(files.uri, driver, layer) if read is None else read(files.uri)


def _gdal_header(uri: str, driver: str, layer: str | None) -> _Header:
    try:
        with _opened(uri, driver) as (name, path):
            if driver == GEOJSON:
                _check_crs_here(uri, path)
            layers = [str(found) for found, kind in pyogrio.list_layers(name) if kind is not None]
            if layer not in layers and (layer is not None or len(layers) != 1):
                what = "has no layer of shapes" if not layers else f"has the layers {', '.join(layers)}"
                raise TruthError(f"labels {uri}: the file {what}, truth.layer says {layer or 'nothing'}. Name one of them there")
            if driver == "GPKG":
                _check_table(uri, layer or layers[0])
            facts = pyogrio.read_info(name, layer=layer or layers[0], force_feature_count=True)
            own = CLASSIFICATION if _of_qupath(name, layer or layers[0], facts) else None
            length = path.stat().st_size
    except _ERRORS as e:
        raise _unreadable(uri, e) from e
    if facts["driver"] != driver:
        raise TruthError(f"labels {uri} are {facts['driver']}, not {driver}. Correct the file's name")
    return _Header(
        layer=layer or layers[0],
        crs=facts["crs"],
        fields=[str(name) for name in facts["fields"]],
        features=int(facts["features"]),
        indexed=bool(facts["capabilities"]["fast_spatial_filter"]),
        bytes=length,
        own_field=own,
    )


_ESCAPED = re.compile(rb"\\u00([0-7][0-9a-fA-F])")
_CRS_ELSEWHERE = re.compile(rb'"(?:link|url)"\s*[,}]', re.IGNORECASE)


def _check_crs_here(uri: str, path: Path) -> None:
    """TruthError where a GeoJSON file at `path` lets its coordinate system be fetched from elsewhere: GDAL would do so."""
    if path.stat().st_size > MOST_LOADED_BYTES:
        raise _too_large(uri, path.stat().st_size)
    text = _ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), path.read_bytes())
    if b'"crs"' in text and _CRS_ELSEWHERE.search(text):
        raise TruthError(
            f"labels {uri}: the coordinate system is a link, and nothing is fetched. Name it in the file, or as truth.crs after "
            "taking `crs` out of it"
        )


def _check_table(uri: str, layer: str) -> None:
    """TruthError where a layer of a GeoPackage is no table but a query, which could run for ever."""
    with closing(sqlite3.connect(f"{Path(uri).as_uri()}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT type FROM sqlite_master WHERE name = ? COLLATE NOCASE", (layer,)).fetchone()
    if found is None or found[0] != "table":
        raise TruthError(f"labels {uri}: layer {layer!r} is no table but a query. Write it out: ogr2ogr labels.gpkg FILE {layer}")


def _of_qupath(name: str, layer: str, facts: dict[str, Any]) -> bool:
    """Whether a layer's features are QuPath's: they have classes that are objects, or the first one says what it is."""
    fields = [str(found) for found in facts["fields"]]
    nested = [name for name, kind in zip(fields, facts.get("ogr_subtypes", ()), strict=False) if kind == "OFSTJSON"]
    if CLASSIFICATION in nested:
        return True
    marks = [mark for mark in QUPATH_MARKS if mark in fields]
    if not marks:
        return False
    found, _, _, columns = raw.read(name, layer=layer, columns=marks, max_features=1, read_geometry=False)
    return is_qupath({str(mark): column[0] for mark, column in zip(found["fields"], columns, strict=True) if len(column)})


@contextmanager
def _opened(uri: str, driver: str) -> Iterator[tuple[str, Path]]:
    """(what GDAL is asked to open, the file that this is): the prefix keeps a JSON file from any driver but this one.

    Compressed GeoJSON, and a bare list of features as QuPath also writes, are a temporary file meanwhile.
    """
    path = Path(uri)
    if driver != GEOJSON:
        yield uri, path
        return
    packed = _suffix(path).endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as file:
        start = _text_start(file.read(COPIED_BYTES))
        if not packed and start.startswith(b"{"):
            yield f"GeoJSON:{uri}", path
            return
        with tempfile.TemporaryDirectory(prefix="gigamask-") as folder:
            plain = Path(folder) / f"{Path(path.stem).stem if packed else path.stem}.geojson"
            listed = start.startswith(b"[")
            with plain.open("wb") as copy:
                copy.write(b'{"type": "FeatureCollection", "features": ' if listed else b"")
                while start:
                    copy.write(start)
                    if copy.tell() > MOST_LOADED_BYTES:
                        raise _too_large(uri, copy.tell())
                    start = file.read(COPIED_BYTES)
                copy.write(b"}" if listed else b"")
            yield f"GeoJSON:{plain}", plain


def _text_start(start: bytes) -> bytes:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()


def _too_large(uri: str, length: int) -> TruthError:
    name = Path(uri).name
    return TruthError(
        f"labels {uri} have {length / 2**20:,.0f} MiB or more and no spatial index: each worker would have to hold them whole, "
        f"and {MOST_LOADED_BYTES / 2**20:.0f} MiB is the most. Convert: ogr2ogr labels.gpkg {name.removesuffix('.gz')}"
    )


def _unreadable(uri: str, error: BaseException) -> TruthError:
    return TruthError(f"labels {uri} cannot be read: {error}. Fetch or make the file again")


def _parquet_header(uri: str) -> _Header:
    try:
        facts = parquet.read_metadata(uri)  # type: ignore[no-untyped-call]
        geo = json.loads((facts.metadata or {}).get(b"geo", b"{}"))
        column = geo.get("primary_column")
        if column is None:
            raise TruthError(
                f"labels {uri}: a Parquet file without the metadata of GeoParquet. Write it as such, or as GeoPackage"
            )
        said = geo["columns"][column]
        if said.get("encoding") != "WKB" or said.get("edges", "planar") != "planar":
            raise TruthError(
                f"labels {uri}: column {column!r} is encoded as {said.get('encoding')} with {said.get('edges', 'planar')} edges; "
                "read is WKB with planar edges. Write it so, or as GeoPackage"
            )
        crs = said.get("crs", "OGC:CRS84")
        position = facts.schema.names.index(column)
        stored = sum(facts.row_group(i).column(position).total_uncompressed_size for i in range(facts.num_row_groups))
        names = parquet.read_schema(uri).names  # type: ignore[no-untyped-call]
    except _ERRORS as e:
        raise _unreadable(uri, e) from e
    text = json.dumps(crs) if isinstance(crs, dict) else crs
    return _Header(column, text, [str(name) for name in names if name != column], facts.num_rows, indexed=False, bytes=stored)


def _asap_header(uri: str) -> _Header:
    length = Path(uri).stat().st_size
    if length > MOST_LOADED_BYTES:
        raise TruthError(
            f"labels {uri} have {length / 2**20:,.0f} MiB: each worker would have to hold them whole, and "
            f"{MOST_LOADED_BYTES / 2**20:.0f} MiB is the most. Write the annotations as GeoPackage"
        )
    with Path(uri).open("rb") as file:
        found = read_asap(uri, file)
    name, features = Path(uri).stem, len(found.annotations)
    return _Header(name, None, found.fields, features, indexed=False, bytes=length, own_field=ASAP_GROUP, groups=found.groups)


Batch = tuple[NDArray[np.int64], list[bytes | None], list[str]]
"""(position in the file, WKB, text of the class field) of some features."""


def _batches(uri: str, driver: str, layer: str, class_field: str | None, bounds: Bounds | None) -> Iterator[Batch]:
    """A layer's features, some at a time."""
    read = {"Parquet": _parquet_batches, ASAP: _asap_batches}.get(driver, _gdal_batches)
    try:
        yield from read(uri, driver, layer, class_field, bounds)
    except _ERRORS as e:
        raise _unreadable(uri, e) from e


def _gdal_batches(uri: str, driver: str, layer: str, class_field: str | None, bounds: Bounds | None) -> Iterator[Batch]:
    columns = [] if class_field is None else [class_field]
    with _opened(uri, driver) as (name, _):
        opened = raw.open_arrow(
            name, layer=layer, columns=columns, bbox=bounds, return_fids=True, batch_size=BATCH, use_pyarrow=False
        )
        first = 0
        with opened as (facts, stream):
            shape = facts["geometry_name"] or "wkb_geometry"
            for batch in RecordBatchReader.from_stream(stream):
                names = [name for name in batch.schema.names if name != shape and name != class_field]
                places = batch.column(names[0]).to_numpy()
                if driver == GEOJSON:  # its features may number themselves
                    places = np.arange(first, first + len(batch))
                    first += len(batch)
                yield places, batch.column(shape).to_pylist(), _texts(batch, class_field)


def _parquet_batches(uri: str, driver: str, layer: str, class_field: str | None, bounds: Bounds | None) -> Iterator[Batch]:
    with parquet.ParquetFile(uri) as file:  # type: ignore[no-untyped-call]
        first = 0
        for batch in file.iter_batches(BATCH, columns=[layer] if class_field is None else [layer, class_field]):
            yield np.arange(first, first + len(batch)), batch.column(layer).to_pylist(), _texts(batch, class_field)
            first += len(batch)


def _asap_batches(uri: str, driver: str, layer: str, class_field: str | None, bounds: Bounds | None) -> Iterator[Batch]:
    with Path(uri).open("rb") as file:
        found = read_asap(uri, file).annotations
    for first in range(0, len(found), BATCH):
        some = found[first : first + BATCH]
        names = [""] * len(some) if class_field is None else [a.attributes.get(class_field) or "null" for a in some]
        yield np.arange(first, first + len(some)), [a.wkb() for a in some], names


def _texts(batch: RecordBatch, class_field: str | None) -> list[str]:
    if class_field is None:
        return [""] * len(batch)
    if class_field not in batch.schema.names:
        return ["null"] * len(batch)
    return [_text(value) for value in batch.column(class_field).to_pylist()]


def _text(value: Any) -> str:
    """A field's value as the configuration writes it: 1.0 is 1, nothing is null, a class of QuPath its name."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else class_name(value)


def _kind(text: bytes | None) -> str | None:
    """Name of the geometry kind of some WKB, whatever dimensions it has."""
    if text is None or len(text) < 5:
        return None
    number = (int.from_bytes(text[1:5], "little" if text[0] else "big") & 0x1FFFFFFF) % 1000
    return KINDS[number] if number < len(KINDS) else "Geometry"


def _shapes(uri: str, texts: Sequence[bytes | None]) -> Shapes:
    """Geometries of WKB, rings closed where they were open."""
    try:
        shapes: Shapes = shapely.from_wkb(np.array([*texts, None], object)[:-1], on_invalid="fix")
    except _ERRORS as e:
        raise _unreadable(uri, e) from e
    return shapes


def _read(info: LayerInfo, bounds: Bounds | None) -> Features:
    """Features of a layer, mended; an index returns them in its own order."""
    places, shapes, values = [np.zeros(0, np.int64)], [np.zeros(0, object)], [np.zeros(0, object)]
    for place, texts, names in _batches(info.uri, info.driver, info.layer, info.field, bounds):
        places.append(place)
        shapes.append(_shapes(info.uri, texts))
        values.append(np.array([*names, None], object)[:-1])
    order = np.argsort(np.concatenate(places), kind="stable")
    found, value = np.concatenate(shapes)[order], np.concatenate(values)[order]
    found = shapely.force_2d(found)
    wrong = shapely.get_dimensions(found) == 2
    wrong[wrong] = ~shapely.is_valid(found[wrong])
    found[wrong] = shapely.make_valid(found[wrong], method="structure", keep_collapsed=False)
    there = ~(shapely.is_missing(found) | shapely.is_empty(found))
    return Features(found[there], value[there])


@dataclass(frozen=True)
class _Layer:
    """A layer that has no index of its own, in memory."""

    features: Features
    tree: shapely.STRtree


_LOADING = threading.Lock()


def _loaded(info: LayerInfo) -> _Layer:
    """The whole layer; a process holds the last few."""
    with _LOADING:
        files = FileSet(uri=info.uri, size_bytes=info.size_bytes, mtime_ns=info.mtime_ns, beside=info.beside)
        return _load(files, info.layer, info.field, info.driver)


@lru_cache(maxsize=2)
def _load(files: FileSet, layer: str, class_field: str | None, driver: str) -> _Layer:
    info = LayerInfo(**dict(files), driver=driver, layer=layer, field=class_field)
    features = _read(info, None)
    return _Layer(features, shapely.STRtree(features.shapes))
