"""Polygons are the mask: the same objects, pixels and holes whatever blocks it lies in, with edges that neighbours share."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from scipy import ndimage

from flows.cli import main
from pipeline import mosaic, vectorfile
from pipeline.errors import ConfigError, StoreError
from pipeline.export import sweep as sweeping
from pipeline.export import tracing
from pipeline.export.frame import LONGEST_STEP, cut
from pipeline.export.polygons import Wanted, export_polygons
from pipeline.export.sweep import Arcs, Known, Rules, arcs_of, sweep
from pipeline.grid import Window
from tests import reference
from tests.conftest import write_raster
from tests.making import plan_of, threshold_model

NO_DATA = 255
TRANSFORM = Affine(2, 0, 500_000, 0, -2, 4_600_000)
CLASSES = [("background", "#000000"), ("low", "#E69F00"), ("middle", "#009E73"), ("high", "#0072B2")]


def polygons(labels: NDArray[Any], rules: Rules, band: int | None = None) -> tuple[list[Any], list[int], list[int]]:
    """(shapes in pixels, codes, areas) of all objects, in their order."""
    shapes: list[Any] = []
    codes: list[int] = []
    areas: list[int] = []
    for found in sweep(lambda window: labels[window.slices], (labels.shape[0], labels.shape[1]), rules, band=band):
        parts = found.objects
        points = parts.points[:, ::-1].astype(float)
        shapes += shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (parts.rings, parts.parts)).tolist()
        codes += parts.code.tolist()
        areas += parts.area.tolist()
    return shapes, codes, areas


def burnt(shapes: list[Any], codes: list[int], shape: tuple[int, ...], transform: Affine | None = None) -> NDArray[Any]:
    """The mask that polygons make: pixels whose centre lies in one."""
    out = np.full(shape, NO_DATA, np.uint8)
    if shapes:
        rasterize(list(zip(shapes, codes, strict=True)), out=out, transform=transform or Affine.identity())
    return out


@st.composite
def masks(draw: st.DrawFn, most: int = 14) -> NDArray[np.uint8]:
    """Small masks: noise, so that pixels touch in all ways; coarse noise, so that there are islands in holes; checkerboards."""
    height, width, classes = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.integers(0, classes + 1, (height, width)).astype(np.uint8)
    kind = draw(st.sampled_from(["noise", "coarse", "checkers", "rings"]))
    if kind == "coarse":
        labels = np.kron(labels, np.ones((3, 2), np.uint8))
    rows, cols = np.indices(labels.shape)
    if kind == "checkers":
        labels = ((rows + cols) % 2).astype(np.uint8)
    if kind == "rings":  # a border in a border in a border
        labels = (np.minimum.reduce([rows, cols, rows[::-1], cols[:, ::-1]]) % (classes + 1)).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.1] = classes
    labels[labels == classes] = NO_DATA
    return labels


ALL = np.ones(3, bool)


@settings(max_examples=80)
@given(labels=masks(), band=st.integers(1, 9))
def test_polygons_are_the_mask_whatever_the_height_of_a_band(labels: NDArray[np.uint8], band: int) -> None:
    shapes, codes, areas = polygons(labels, Rules(ALL))
    again, _, _ = polygons(labels, Rules(ALL), band)

    assert shapely.to_wkb(np.array(shapes)).tolist() == shapely.to_wkb(np.array(again)).tolist()
    assert shapely.is_valid(np.array(shapes)).all()
    assert [shape.area for shape in shapes] == areas
    assert all(shapely.is_ccw(shape.exterior) and not any(map(shapely.is_ccw, shape.interiors)) for shape in shapes)
    assert [codes.count(code) for code in range(3)] == [ndimage.label(labels == code)[1] for code in range(3)]
    np.testing.assert_array_equal(burnt(shapes, codes, labels.shape), labels)


@settings(max_examples=60)
@given(labels=masks(), band=st.integers(1, 9))
def test_the_loops_find_what_a_walk_around_each_object_finds(labels: NDArray[np.uint8], band: int) -> None:
    expected = reference.outlines(labels, NO_DATA)

    found = {}
    for batch in sweep(lambda window: labels[window.slices], (labels.shape[0], labels.shape[1]), Rules(ALL), band=band):
        objects = batch.objects
        for i, first in enumerate(objects.first.tolist()):
            rings = range(objects.parts[i], objects.parts[i + 1])
            points = [[tuple(p) for p in objects.points[objects.rings[r] : objects.rings[r + 1]].tolist()] for r in rings]
            found[divmod(first, labels.shape[1])] = int(objects.area[i]), points

    assert found == expected


@settings(max_examples=60)
@given(labels=masks(), tolerance=st.sampled_from([0.5, 0.8, 1.5, 4.0]))
def test_arcs_lose_the_points_that_a_try_of_all_says(labels: NDArray[np.uint8], tolerance: float) -> None:
    codes = np.pad(labels.astype(np.uint16), ((1, 1), (1, 1)), constant_values=tracing.OUTSIDE)
    codes[codes == NO_DATA] = tracing.OUTSIDE

    def arcs(rules: Rules) -> Arcs:
        return arcs_of(codes, np.zeros(codes.shape, np.int32), Known.none(), 0, rules)[2]

    def points(arcs: Arcs) -> list[list[tuple[int, ...]]]:
        return [[tuple(p) for p in part.tolist()] for part in np.split(arcs.points, arcs.stops[:-1])] if len(arcs.stops) else []

    before, after = points(arcs(Rules(ALL))), points(arcs(Rules(ALL, tolerance=tolerance)))
    for i, arc in enumerate(before):
        others = [p for k, other in enumerate(before) if k != i for p in other]
        assert after[i] == reference.simplified(arc, others, tolerance)  # type: ignore[comparison-overlap,arg-type]


@settings(max_examples=100)
@given(labels=masks(20), tolerance=st.sampled_from([0.5, 1.0, 2.0, 6.0]), band=st.integers(2, 9))
def test_simplified_neighbours_still_share_their_edges(labels: NDArray[np.uint8], tolerance: float, band: int) -> None:
    exact, _, areas = polygons(labels, Rules(ALL))
    for height in (band, None):
        shapes, _, kept_areas = polygons(labels, Rules(ALL, tolerance=tolerance), height)
        assert kept_areas == areas
        assert shapely.is_valid(np.array(shapes)).all()
        union = shapely.union_all(shapes)
        assert union.area == pytest.approx(sum(shape.area for shape in shapes))  # nothing overlaps
        if (labels != NO_DATA).all():
            assert isinstance(union, shapely.Polygon)
            assert not union.interiors  # and nothing gapes
        for one, other in zip(exact, shapes, strict=True):
            far = shapely.distance(shapely.points(shapely.get_coordinates(one)), other.boundary)
            assert far.max() <= tolerance + 1e-9


def test_two_halves_share_one_simplified_edge() -> None:
    rows, cols = np.indices((60, 60))
    labels = (cols > 30 + 8 * np.sin(rows / 6)).astype(np.uint8)

    (one, other), _, areas = polygons(labels, Rules(ALL, tolerance=2.0))

    assert sum(areas) == 3600 == one.area + other.area
    exact = shapely.get_num_coordinates(np.array(polygons(labels, Rules(ALL))[0]))
    assert (shapely.get_num_coordinates(np.array([one, other])) < exact / 4).all()
    shared = shapely.intersection(one.boundary, other.boundary)
    assert shared.length == pytest.approx((one.boundary.length + other.boundary.length - 240) / 2)


def test_an_object_that_touches_itself_has_a_hole_that_touches_its_outline() -> None:
    labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)  # the hole meets the outside corner to corner

    shapes, _, areas = polygons(labels, Rules(np.array([False, True])))

    assert areas == [7]
    assert len(shapes[0].interiors) == 1
    assert shapes[0].is_valid


def test_a_mask_of_many_classes_is_no_other() -> None:
    labels = np.array([[300, 300, 65535], [65534, 300, 1000]], np.uint16)
    chosen = np.ones(1001, bool)

    shapes, codes, areas = polygons(labels, Rules(chosen))

    assert list(zip(codes, areas, strict=True)) == [(300, 3), (1000, 1)]  # neither failed nor no data
    assert shapes[1].bounds == (2, 1, 3, 2)


def test_tolerance_is_a_length_where_pixels_are_not_square() -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[4, 5:8] = 1  # one row higher than the rest
    labels[5:10, 2:10] = 1
    rules = Rules(np.array([False, True]), tolerance=1.0)

    flat, tall = (polygons(labels, Rules(rules.chosen, 0, 1.0, size))[0][0] for size in ((0.5, 2.0), (4.0, 2.0)))

    assert len(flat.exterior.coords) < 9 == len(tall.exterior.coords)


@given(st.lists(st.tuples(st.integers(-400, 400), st.integers(-400, 400)), min_size=3, max_size=12, unique=True))
@example([(0, 0), (0, 300), (300, 0)])
def test_an_edge_is_cut_at_the_same_points_whichever_way_it_is_gone(corners: list[tuple[int, int]]) -> None:
    ring = np.array([*corners, corners[0]], np.int32)

    there, ends = cut(ring, np.array([0, len(ring)]))
    back, _ = cut(ring[::-1], np.array([0, len(ring)]))

    assert ends.tolist() == [0, len(there)]
    assert (there == back[::-1]).all()
    assert np.abs(np.diff(there, axis=0)).max() <= LONGEST_STEP
    assert {tuple(p) for p in ring.tolist()} <= {tuple(p) for p in there.tolist()}


Store = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Makes a mosaic of labels: store(labels, block=64, grid={...}, **profile of its image); `grid`: changes of its own grid."""
    made = iter(range(100))

    def make(labels: NDArray[Any], block: int = 64, grid: dict[str, Any] | None = None, **profile: Any) -> Path:
        folder = tmp_path / f"made{next(made)}"
        folder.mkdir()
        image = write_raster(folder / "image.tif", np.zeros(labels.shape, np.uint8), **profile)
        classes = [{"name": name, "color": color} for name, color in CLASSES]
        model = threshold_model(folder / "model", (1, 2, 3), classes=classes)
        plan = plan_of(image, model, folder, tiling={"block": block})
        path = folder / "mask.zarr"
        mosaic.create(path, plan)
        for part in plan.blocks:
            mosaic.write_block(path, plan, part.core, labels[part.core.slices])
        if grid:
            document = json.loads((path / "zarr.json").read_text())
            mask = document["attributes"]["gigamask"]["mask"]
            mask["native_shape"] = grid.pop("native_shape", mask["native_shape"])
            mask["grid"] |= grid
            (path / "zarr.json").write_text(json.dumps(document))
        return path

    return make


GEO = {"crs": "EPSG:32633", "transform": TRANSFORM}
SLIDE = {"scale_row": 4.0, "scale_col": 4.002, "pixel_size_m": [2e-6, 2.001e-6]}


def blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth shapes of four classes, a failed block and a border without data."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 3)
    labels = np.digitize(field, np.quantile(field, [0.4, 0.7, 0.9])).astype(np.uint8)
    labels[:3] = NO_DATA
    labels[20:30, 40:60] = 254
    return labels


def test_what_is_read_of_the_file_is_the_mask(store: Store, tmp_path: Path) -> None:
    labels = blobs(200, 150)
    out = tmp_path / "out.gpkg"

    done = export_polygons(store(labels, **GEO), out, "gpkg", Wanted(background=True))

    facts, _, shapes, values = pyogrio.raw.read(out)
    names = facts["fields"].tolist()
    assert names == ["id", "class", "code", "color", "area_px", "area_m2"]
    assert rasterio.crs.CRS.from_user_input(facts["crs"]).to_epsg() == 32633
    expected = np.where(labels == 254, NO_DATA, labels)
    shapes = shapely.from_wkb(shapes)
    np.testing.assert_array_equal(burnt(shapes.tolist(), values[2].tolist(), labels.shape, TRANSFORM), expected)
    assert shapely.area(shapes) == pytest.approx(values[5])
    assert (values[5] == 4 * values[4]).all()
    assert [c.features for c in done.classes] == [ndimage.label(labels == code)[1] for code in range(4)]
    assert [c.area_px for c in done.classes] == [(labels == code).sum() for code in range(4)]
    assert pyogrio.read_info(out)["capabilities"]["fast_spatial_filter"]


@pytest.mark.parametrize("to", ["geojson", "geoparquet"])
def test_blocks_of_a_store_leave_no_trace(store: Store, tmp_path: Path, to: Any) -> None:
    labels = blobs(300, 200)
    files = []
    for block in (64, 96, 512):
        out = tmp_path / f"{block}{'.geojson' if to == 'geojson' else '.parquet'}"
        path = store(labels, block)
        document = (path / "zarr.json").read_text().replace(mosaic.facts(path)[1], "0" * 64)  # the plan tells of blocks
        (path / "zarr.json").write_text(document)
        export_polygons(path, out, to, Wanted(tolerance="1.2px", min_area="9px"))
        files.append(out.read_bytes())
    assert len(files[0]) > 10_000
    assert files[0] == files[1] == files[2]


def test_geojson_for_qupath(store: Store, tmp_path: Path) -> None:
    """Against the published description: pixels of the full resolution, origin top left; the class has a name and a colour."""
    labels = blobs(200, 150)
    path = store(labels, grid=dict(SLIDE, native_shape=[800, 600]))
    out = tmp_path / "out.geojson"

    done = export_polygons(path, out, "geojson", Wanted())

    document = json.loads(out.read_text())
    assert set(document) == {"type", "features"}
    assert document["type"] == "FeatureCollection"
    features = document["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon"}
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(features) == sum(c.features for c in done.classes)
    for feature in features:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in feature["geometry"]["coordinates"])
        properties = feature["properties"]
        assert set(properties) == {"objectType", "classification", "measurements"}
        assert properties["objectType"] == "annotation"
    kinds = {(f["properties"]["classification"]["name"], tuple(f["properties"]["classification"]["color"])) for f in features}
    assert kinds == {("low", (230, 159, 0)), ("middle", (0, 158, 115)), ("high", (0, 114, 178))}
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert all(shape.is_valid and shapely.is_ccw(shape.exterior) for shape in shapes)
    assert any(shape.interiors for shape in shapes)
    assert shapely.total_bounds(shapes)[2] == 600.0  # 150 x 4.002 would lie beyond the slide
    names = [name for name, _ in CLASSES]
    codes = [names.index(f["properties"]["classification"]["name"]) for f in features]
    expected = np.where((labels == 254) | (labels == 0), NO_DATA, labels)
    np.testing.assert_array_equal(burnt(shapes, codes, labels.shape, Affine.scale(4.002, 4)), expected)
    for feature, shape in zip(features, shapes, strict=True):
        measured = feature["properties"]["measurements"]
        assert measured["Area µm^2"] == pytest.approx(measured["Area (mask px)"] * 2 * 2.001)
        if shape.bounds[2] < 600:
            assert measured["Area µm^2"] == pytest.approx(shape.area / 4, rel=1e-5)


def test_a_packed_file_is_the_same_text(store: Store, tmp_path: Path) -> None:
    path = store(blobs(80, 70))
    export_polygons(path, tmp_path / "a.geojson", "geojson", Wanted())
    export_polygons(path, tmp_path / "a.geojson.gz", "geojson", Wanted())
    export_polygons(path, tmp_path / "b.geojson.gz", "geojson", Wanted())

    packed = (tmp_path / "a.geojson.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.geojson").read_bytes()
    assert packed == (tmp_path / "b.geojson.gz").read_bytes()


def test_geojson_of_a_raster_is_longitude_and_latitude(store: Store, tmp_path: Path) -> None:
    labels = blobs(240, 200)
    labels[:, 0] = 0  # an edge far longer than a step
    out = tmp_path / "out.geojson"

    done = export_polygons(store(labels, **GEO), out, "geojson", Wanted(background=True, tolerance="3m"))

    features = json.loads(out.read_text())["features"]
    assert done.coordinates == "lonlat"
    assert done.mended == 0
    assert features[0]["properties"].keys() == {"class", "code", "color", "area_px", "area_m2"}
    shapes = np.array([shapely.geometry.shape(feature["geometry"]) for feature in features])
    assert shapely.is_valid(shapes).all()
    assert all(shapely.is_ccw(shape.exterior) for shape in shapes)
    corners = shapely.total_bounds(shapes)
    assert 14.9 < corners[0] < corners[2] < 15.1  # UTM 33's middle is 15 degrees east
    assert 41 < corners[1] < corners[3] < 42
    union = shapely.union_all(shapes)
    assert union.area == pytest.approx(shapely.area(shapes).sum(), rel=1e-12)
    exact = tmp_path / "exact.geojson"
    export_polygons(store(labels, **GEO), exact, "geojson", Wanted(background=True))
    features = json.loads(exact.read_text())["features"]
    back = [transform_geom("OGC:CRS84", "EPSG:32633", feature["geometry"]) for feature in features]
    codes = [feature["properties"]["code"] for feature in features]
    np.testing.assert_array_equal(burnt(back, codes, labels.shape, TRANSFORM), np.where(labels == 254, NO_DATA, labels))


def test_geoparquet_says_where_it_lies(store: Store, tmp_path: Path) -> None:
    labels = blobs(120, 100)
    out = tmp_path / "out.parquet"

    export_polygons(store(labels, **GEO), out, "geoparquet", Wanted(classes=("high",)))

    info = vectorfile.describe(str(out), class_field="class")
    assert info.kinds == {"Polygon": ndimage.label(labels == 3)[1]}
    assert info.values == {"high": info.kinds["Polygon"]}
    assert info.invalid == 0
    assert rasterio.crs.CRS.from_user_input(json.loads(info.crs or "")).to_epsg() == 32633
    shapes = vectorfile.features_near(info, (0, 0, 1e7, 1e7)).shapes
    assert shapely.area(shapes).sum() == pytest.approx(4 * (labels == 3).sum())


def test_whole_objects_are_large_or_small_not_their_parts(store: Store, tmp_path: Path) -> None:
    labels = np.zeros((300, 130), np.uint8)
    labels[250:262, [60, 62]] = 1  # two legs of 12 px in several blocks and two bands,
    labels[262, 60:63] = 1  # and what joins them
    labels[10:12, 10:12] = 1  # 4 px
    labels[100, 100:109] = 2  # 9 px
    assert sweeping.band_rows(130) == 256
    path = store(labels, **GEO)

    done = export_polygons(path, tmp_path / "a.gpkg", "gpkg", Wanted(min_area="40"))  # m2; a pixel has 4

    assert [(c.name, c.features, c.left_out, c.left_out_px) for c in done.classes] == [
        ("low", 1, 1, 4),
        ("middle", 0, 1, 9),
        ("high", 0, 0, 0),
    ]
    assert pyogrio.raw.read(tmp_path / "a.gpkg")[3][4].tolist() == [27]


@pytest.mark.parametrize("to", ["geojson", "gpkg", "geoparquet"])
def test_a_mask_without_objects_is_a_file_without_features(store: Store, tmp_path: Path, to: Any) -> None:
    out = tmp_path / f"out{ {'geojson': '.geojson', 'gpkg': '.gpkg', 'geoparquet': '.parquet'}[to] }"

    done = export_polygons(store(np.full((40, 50), NO_DATA, np.uint8)), out, to, Wanted())

    assert sum(c.features for c in done.classes) == 0
    assert vectorfile.describe(str(out)).kinds == {}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"classes": ("road",)}, "no such class.*background, low, middle, high"),
        ({"tolerance": "0.5um"}, "not known.*Give it in pixels, such as 0.5px"),
        ({"min_area": "5m2"}, "not known.*5px"),
        ({"min_area": "5m"}, "not understood. Write 50m2"),
        ({"tolerance": "2m2"}, "not understood. Write 2m"),
        ({"tolerance": "-1"}, "not understood"),
        ({"tolerance": "nan"}, "not understood"),
        ({"tolerance": "1e999px"}, "not understood"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    store: Store, tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        export_polygons(store(np.zeros((20, 20), np.uint8)), tmp_path / "out.geojson", "geojson", Wanted(**asked))
    assert not (tmp_path / "out.geojson").exists()


def test_the_antimeridian_is_no_place_for_geojson(store: Store, tmp_path: Path) -> None:
    path = store(np.ones((20, 20), np.uint8), crs="EPSG:3832", transform=Affine(1000, 0, 3_330_000, 0, -1000, 0))  # PDC Mercator
    with pytest.raises(ConfigError, match="180th meridian"):
        export_polygons(path, tmp_path / "out.geojson", "geojson", Wanted())
    export_polygons(path, tmp_path / "out.gpkg", "gpkg", Wanted())


@pytest.mark.parametrize("to", ["geojson", "gpkg", "geoparquet"])
def test_what_ends_in_the_middle_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Any) -> None:
    """A file that is there stays as it is, and is written over only when all went well."""
    suffix = {"geojson": ".geojson", "gpkg": ".gpkg", "geoparquet": ".parquet"}[to]
    folder = tmp_path / "results"
    folder.mkdir()
    out = folder / f"out{suffix}"
    path = store(blobs(400, 100), **GEO)
    export_polygons(path, out, to, Wanted())
    before = out.read_bytes()
    with pytest.raises(StoreError, match="--overwrite"):
        export_polygons(path, out, to, Wanted())
    read = mosaic.read

    def torn(store: Path, window: Window) -> Any:
        if window.row:
            raise StoreError("a shard is torn")
        return read(store, window)

    monkeypatch.setattr(mosaic, "read", torn)
    with pytest.raises(StoreError, match="a shard is torn"):
        export_polygons(path, out, to, Wanted(), overwrite=True)
    assert out.read_bytes() == before
    assert [file.name for file in folder.iterdir()] == [out.name]
    monkeypatch.setattr(mosaic, "read", read)
    export_polygons(path, out, to, Wanted(classes=("high",)), overwrite=True)
    assert len(out.read_bytes()) < len(before)


def test_memory_does_not_grow_with_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many bands of the same objects, of which some go on from band to band."""
    tile = blobs(256, 256)

    def peak(height: int) -> int:
        def read(window: Window) -> NDArray[np.uint8]:
            return np.tile(tile, (window.height // 256 + 1, 2))[: window.height]

        def work() -> Iterator[int]:
            for found in sweep(read, (height, 512), Rules(np.array([False, True, True, True]), tolerance=1.0)):
                yield len(found.objects.code)

        sum(work())
        tracemalloc.start()
        count = sum(work())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count > height / 8
        return most

    assert sweeping.band_rows(512) == 256
    assert peak(4096) < 1.2 * peak(1024)


def real(data: Path, name: str) -> NDArray[np.uint8]:
    with rasterio.open(data / name) as file:
        labels: NDArray[np.uint8] = file.read(1)
    return labels


def test_real_nuclei_and_ground_come_back_exactly(data: Path, store: Store, tmp_path: Path) -> None:
    nuclei = real(data, "dsb2018_nuclei/cytology_montage_a_mask.tif")
    ground = real(data, "dubai/dubai_scene1_crop_label.tif")[:1200, :1200]
    ground = np.where(ground == 0, NO_DATA, np.minimum(ground - 1, 3)).astype(np.uint8)
    for labels in (nuclei, ground):
        out = tmp_path / f"{labels.shape[0]}.parquet"
        export_polygons(store(labels, 512), out, "geoparquet", Wanted(background=True))
        table = vectorfile.features_near(vectorfile.describe(str(out), class_field="code"), (-1, -1, 1e6, 1e6))
        assert any(shape.interiors for shape in table.shapes)
        assert len(table.shapes) == sum(ndimage.label(labels == code)[1] for code in range(4))
        codes = [int(value) for value in table.values]
        np.testing.assert_array_equal(burnt(list(table.shapes), codes, labels.shape), labels)


def test_real_ground_simplified_neither_overlaps_nor_gapes(data: Path) -> None:
    labels = real(data, "dubai/dubai_scene1_crop_label.tif")[:700, :700]
    chosen = np.ones(labels.max() + 1, bool)

    shapes, _, _ = polygons(labels, Rules(chosen, tolerance=3.0))

    assert len(shapes) > 50
    assert shapely.is_valid(np.array(shapes)).all()
    union = shapely.union_all(shapes)
    assert union.area == pytest.approx(sum(shape.area for shape in shapes))
    assert isinstance(union, shapely.Polygon)
    assert not union.interiors
    points = shapely.get_num_coordinates(np.array(shapes)).sum()
    assert points < shapely.get_num_coordinates(np.array(polygons(labels, Rules(chosen))[0])).sum() / 4


def test_the_command(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(blobs(120, 100), **GEO)

    def gigamask(*words: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["gigamask", "export", str(path), *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.err
        return printed.err if code else printed.out

    facts = json.loads(gigamask("--to", "geojson", "--class", "high", "--class", "low", "--min-area", "20m2", "--json"))
    assert facts["out"] == str(path.with_name("mask.geojson"))
    assert [c["name"] for c in facts["classes"]] == ["low", "high"]
    assert facts["classes"][0]["features"] > 1
    assert facts["classes"][0]["left_out"] > 0
    assert "give --overwrite" in gigamask("--to", "geojson", code=1)
    shown = gigamask("--to", "geojson", "--overwrite", "--tolerance", "2m")
    assert "longitude and latitude" in shown
    assert "middle" in shown
    assert "geojson, gpkg, geoparquet, cog, ome-tiff" in gigamask("--to", "shapefile", code=2)
    assert "must end in .gpkg" in gigamask("--to", "gpkg", "--out", "a.shp", code=2)
    assert "are for polygons" in gigamask("--to", "cog", "--all", code=2)
    assert "no such class" in gigamask("--to", "gpkg", "--class", "road", code=2)


def test_the_command_writes_rasters_too(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = blobs(70, 60)
    path = store(labels, **GEO)
    out = tmp_path / "mask.tif"

    def gigamask(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["gigamask", "export", str(path), *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert gigamask("--to", "cog", "--out", out) == 0
    assert gigamask("--to", "cog", "--out", out) == 1
    out.write_bytes(b"another file")
    assert gigamask("--to", "cog", "--out", out, "--overwrite") == 0
    with rasterio.open(out) as file:
        np.testing.assert_array_equal(file.read(1), labels)
    assert gigamask("--to", "ome-tiff") == 0
    assert path.with_name("mask.ome.tif").is_file()
