"""Polygons as reference labels: burnt as rasterio burns the whole image, whatever window is asked for, and never guessed at."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pyogrio import raw
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from flows.console import Quiet
from pipeline import truth as truth_module
from pipeline import vectorfile
from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.card import ClassInfo
from pipeline.config import SerialCluster, TruthConfig, config_of, load_config
from pipeline.errors import ConfigError, SourceError, TruthError
from pipeline.grid import Window
from pipeline.image import WorkingGrid, working_grid
from pipeline.night import run_night
from pipeline.projection import crs_of
from pipeline.single import evaluate_one, segment_one
from pipeline.sources import describe
from pipeline.survey import survey
from pipeline.truth import Reference, open_truth, plan_labels
from tests.conftest import write_raster
from tests.making import config_file, threshold_model

UTM, WGS84, MERCATOR = "EPSG:32637", "EPSG:4326", "EPSG:3857"
DRIVERS = {".geojson": "GeoJSON", ".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile"}
CLASSES = tuple(ClassInfo(name=name, color="#808080") for name in ("background", "building", "road"))
HALF_METRE = Affine(0.5, 0, 500_000, 0, -0.5, 600_050)


def facts(
    shape: tuple[int, int], transform: Affine | None = HALF_METRE, crs: str | None = UTM, classes: Sequence[ClassInfo] = CLASSES
) -> MaskFacts:
    """A mask of `shape` px; by default of half a metre, in Ethiopia."""
    where = None if transform is None else tuple(transform)[:6]
    grid = WorkingGrid(height=shape[0], width=shape[1], crs_wkt=crs and crs_of(crs), transform=where)
    return MaskFacts(image="/archive/scene.tif", model="m", classes=tuple(classes), grid=grid, native_shape=shape)


def write_layer(
    path: Path, shapes: Sequence[Any], kinds: Sequence[Any] | None = None, crs: str | None = UTM, **options: Any
) -> Path:
    """Shapes with a field `kind`, in the format that the suffix names."""
    texts = np.array([*(None if s is None else shapely.to_wkb(s) for s in shapes), None], object)[:-1]
    names = np.array([*(kinds if kinds is not None else ["building"] * len(shapes)), None], object)[:-1]
    if kinds is not None and all(isinstance(kind, int) for kind in kinds):
        names = names.astype(np.int64)
    if path.suffix == ".parquet":
        column = {
            "encoding": "WKB",
            "geometry_types": [],
            "crs": crs and rasterio.CRS.from_user_input(crs).to_dict(projjson=True),
        }
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        table = pa.table({"kind": names.tolist(), "geometry": pa.array(texts.tolist(), pa.binary())})
        parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
        return path
    kind = options.pop("geometry_type", "Unknown" if path.suffix != ".shp" else "Polygon")
    options = {"driver": DRIVERS[path.suffix], "geometry_type": kind, "crs": crs, **options}
    raw.write(str(path), texts, [names], ["kind"], **options)
    return path


def on_grid(pixels: Any, transform: Affine = HALF_METRE, crs: str = UTM, to: str = UTM) -> Any:
    """A shape in (column, row) as one in the coordinates of the image, or of another system."""
    place = shapely.transform(pixels, lambda points: np.array([transform @ tuple(point) for point in points]))
    return place if to == crs else shapely.geometry.shape(transform_geom(crs, to, place.__geo_interface__))


def rings(columns: Sequence[tuple[float, float]], *holes: Sequence[tuple[float, float]]) -> Any:
    return shapely.Polygon(columns, holes)


def read(spec: TruthSpec, mask: MaskFacts, window: Window | None = None) -> Reference:
    with open_truth(spec, len(mask.classes), *mask.grid.shape) as labels:
        return labels.read(window or Window(0, 0, *mask.grid.shape))


def codes(config: TruthConfig, path: Path, mask: MaskFacts) -> Any:
    return read(plan_labels(config, str(path), mask), mask).codes


BUILDING = TruthConfig(constant="building")
BY_KIND = TruthConfig(field="kind")


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".shp", ".parquet"])
def test_every_format_burns_its_pixels(tmp_path: Path, suffix: str) -> None:
    mask = facts((6, 8))
    square, dot = on_grid(shapely.box(1, 1, 4, 3)), on_grid(shapely.box(6, 4, 7, 5))
    crs = UTM
    if suffix == ".geojson":
        crs, square, dot = WGS84, on_grid(shapely.box(1, 1, 4, 3), to=WGS84), on_grid(shapely.box(6, 4, 7, 5), to=WGS84)

    path = write_layer(tmp_path / f"l{suffix}", [square, dot], ["building", "road"], crs)

    assert codes(BY_KIND, path, mask).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 2, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_pixel_belongs_where_its_centre_lies(tmp_path: Path) -> None:
    between = shapely.box(0.55, 0, 1.45, 4)
    over = shapely.box(2.45, 0, 2.55, 4)
    path = write_layer(tmp_path / "l.gpkg", [on_grid(between), on_grid(over)])
    assert codes(BUILDING, path, facts((4, 4))).tolist() == [[0, 0, 1, 0]] * 4


def test_holes_parts_and_what_comes_last(tmp_path: Path) -> None:
    ring = rings([(0, 0), (5, 0), (5, 5), (0, 5)], [(1, 1), (4, 1), (4, 4), (1, 4)])
    parts = shapely.MultiPolygon([shapely.box(2, 2, 3, 3), shapely.box(5, 0, 6, 1)])
    later = shapely.box(0, 4, 6, 5)
    path = write_layer(tmp_path / "l.gpkg", [on_grid(s) for s in (ring, parts, later)], ["building", "road", "road"])
    assert codes(BY_KIND, path, facts((5, 6))).tolist() == [
        [1, 1, 1, 1, 1, 2],
        [1, 0, 0, 0, 1, 0],
        [1, 0, 2, 0, 1, 0],
        [1, 0, 0, 0, 1, 0],
        [2, 2, 2, 2, 2, 2],
    ]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".shp", ".parquet"])
def test_the_last_in_the_file_wins_whatever_an_index_returns_first(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_module, "CELL", 40)
    mask = facts((120, 120))
    corners = np.random.default_rng(3).integers(-20, 110, (600, 2))
    shapes = [on_grid(shapely.box(x, y, x + 30, y + 30)) for x, y in corners.tolist()]
    kinds = [("building", "road", "background")[i % 3] for i in range(600)]
    path = write_layer(tmp_path / f"l{suffix}", shapes, kinds)
    if suffix == ".fgb":  # writing the index has put the features into an order of its own, which is the file's then
        _, _, texts, (names,) = raw.read(path)
        shapes, kinds = list(shapely.from_wkb(texts)), names.tolist()
    value = {"background": 0, "building": 1, "road": 2}
    burnt = [(s, value[k]) for s, k in zip(shapes, kinds, strict=True)]
    expected = rasterize(burnt, (120, 120), transform=HALF_METRE, dtype="uint8")
    assert set(np.unique(expected)) == {0, 1, 2}
    spec = plan_labels(BY_KIND, str(path), mask)
    for row, col in np.ndindex(3, 3):
        window = Window(row * 40, col * 40, 40, 40)
        np.testing.assert_array_equal(read(spec, mask, window).codes, expected[window.slices])


@st.composite
def polygons(draw: st.DrawFn) -> list[tuple[Any, int]]:
    """Shapes on quarters of a pixel, so that centres and borders are hit exactly, with holes, overlaps and crossings."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        corner = st.tuples(st.integers(-20, 200), st.integers(-20, 200))
        ring = [(x / 4, y / 4) for x, y in draw(st.lists(corner, min_size=3, max_size=7, unique=True))]
        shape = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
        if not shape.is_empty:
            found.append((shape, draw(st.integers(0, 2))))
    return found


@settings(max_examples=60)
@given(
    shapes=polygons(),
    corner=st.tuples(st.integers(0, 44), st.integers(0, 44)),
    size=st.tuples(st.integers(1, 45), st.integers(1, 45)),
)
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_any_window_is_the_crop_of_the_whole_that_rasterio_burns(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    shapes: list[tuple[Any, int]],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    if not shapes:
        return
    mask = facts((45, 45))
    names = [c.name for c in CLASSES]
    path = tmp_path_factory.mktemp("w") / f"l{suffix}"
    write_layer(path, [on_grid(shape) for shape, _ in shapes], [names[code] for _, code in shapes])
    expected = rasterize([(on_grid(s), c) for s, c in shapes], (45, 45), transform=HALF_METRE, dtype="uint8")
    window = Window(*corner, *size).clip(45, 45)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth_module, "CELL", 8)
        spec = (
            plan_labels(BY_KIND.model_copy(update={"pattern": None, "area": None}), str(path), mask) if reaches(shapes) else None
        )
        if spec is not None:
            np.testing.assert_array_equal(read(spec, mask, window).codes, expected[window.slices])


def reaches(shapes: list[tuple[Any, int]]) -> bool:
    """Whether the extent of shapes, in pixels, touches 45 x 45 of them."""
    left, top, right, bottom = shapely.total_bounds([shape for shape, _ in shapes])
    return bool(left <= 45 and top <= 45 and right >= 0 and bottom >= 0)


@settings(max_examples=20)
@given(start=st.tuples(st.floats(-40, 190), st.floats(-40, 190)), lean=st.floats(-1, 1), cell=st.integers(9, 70))
def test_no_window_tells_another_story_in_another_system(
    tmp_path_factory: pytest.TempPathFactory, start: tuple[float, float], lean: float, cell: int
) -> None:
    mask = facts((150, 150), Affine(3, 0.2, 500_000, -0.1, -3, 600_050))
    here = Affine(*mask.grid.transform or ())
    shape = shapely.Polygon([start, (start[0] + 90, start[1] + lean * 30), (75, 75 + 60 * lean), (start[0] - 7, start[1] + 60)])
    if not shape.is_valid or not shape.intersects(shapely.box(1, 1, 149, 149)):
        return
    path = write_layer(tmp_path_factory.mktemp("w") / "l.gpkg", [on_grid(shape, here, to=WGS84)], crs=WGS84)
    spec = plan_labels(BUILDING, str(path), mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth_module, "CELL", cell)
        with open_truth(spec, 3, 150, 150) as labels:
            whole = labels.read(Window(0, 0, 150, 150)).codes
            crops = [
                np.hstack(
                    [labels.read(Window(row, col, min(37, 150 - row), min(61, 150 - col))).codes for col in range(0, 150, 61)]
                )
                for row in range(0, 150, 37)
            ]
    np.testing.assert_array_equal(np.vstack(crops), whole)
    [shape_there] = shapely.from_wkb(raw.read(path)[2])
    back = transform_geom(WGS84, UTM, shape_there.__geo_interface__)
    rows, cols = np.nonzero(whole != rasterize([(back, 1)], (150, 150), transform=here, dtype="uint8"))
    off = shapely.distance(shape.exterior, shapely.points(cols + 0.5, rows + 0.5))
    assert (off < 1e-6).all(), "but for centres on a border to a millionth of a pixel, where rounding decides"


@pytest.mark.parametrize("scene", ["banepa_b", "kampala_a", "nairobi_a", "philippines_a", "zanzibar_b"])
def test_real_buildings_in_degrees_burn_as_rasterio_burns_them(data: Path, scene: str) -> None:
    image = data / "oam_buildings" / f"oam_{scene}.tif"
    labels = image.with_name(f"oam_{scene}_buildings.geojson")
    info = describe(str(image))
    shape = info.height, info.width
    grid = working_grid(info, None)
    assert grid is not None
    mask = MaskFacts(image=str(image), model="m", classes=CLASSES[:2], grid=grid, native_shape=shape)
    burnt = codes(TruthConfig(), labels, mask)

    shapes = [shapely.geometry.shape(f["geometry"]) for f in json.loads(labels.read_text())["features"]]
    shapes = [s if s.is_valid else shapely.make_valid(s, method="structure") for s in shapes]
    there = [transform_geom(WGS84, MERCATOR, s.__geo_interface__) for s in shapes]
    expected = rasterize([(s, 1) for s in there], shape, transform=Affine(*info.transform or ()), dtype="uint8")
    assert expected.sum() > 100_000
    np.testing.assert_array_equal(burnt, expected)


def test_the_bent_edge_of_a_large_shape_is_not_missed_by_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Affine(250, 0, 200_000, 0, -250, 6_000_000 + 250 * 24)
    mask = facts((48, 800), here)
    south = rasterio.warp.transform(UTM, WGS84, [300_000], [6_000_000])[1][0]
    strip = shapely.box(34.4, south - 0.5, 37.4, south)
    path = write_layer(tmp_path / "l.gpkg", [strip], crs=WGS84)
    back = transform_geom(WGS84, UTM, strip.__geo_interface__)
    expected = rasterize([(back, 1)], (48, 800), transform=here, dtype="uint8")
    assert 0 < expected.sum() < expected.size
    monkeypatch.setattr(truth_module, "CELL", 4)
    with open_truth(plan_labels(BUILDING, str(path), mask), 3, 48, 800) as labels:
        for row, col in np.ndindex(12, 50):
            window = Window(row * 4, 16 * col, 4, 4)
            np.testing.assert_array_equal(labels.read(window).codes, expected[window.slices])


def test_shapes_of_very_many_vertices_are_cut_to_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = facts((64, 64))
    blob = shapely.Point(30.3, 31.1).buffer(25.7, quad_segs=300).difference(shapely.Point(25.2, 30).buffer(6.1, quad_segs=300))
    path = write_layer(tmp_path / "l.fgb", [on_grid(blob)])
    expected = rasterize([(on_grid(blob), 1)], (64, 64), transform=HALF_METRE, dtype="uint8")
    monkeypatch.setattr(truth_module, "CELL", 16)
    monkeypatch.setattr(truth_module, "MANY_VERTICES", 50)
    np.testing.assert_array_equal(codes(BUILDING, path, mask), expected)


def test_the_working_resolution_is_burnt_not_resampled(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(2, 2, 6, 6))])
    spec = plan_labels(BUILDING, str(path), facts((8, 8)))
    with open_truth(spec.coarser(2, 2), 3, 4, 4) as labels:
        assert labels.read(Window(0, 0, 4, 4)).codes.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A house and a street, by their numbers in another country's catalogue, in 4 x 4 px."""
    shapes = [on_grid(shapely.box(0, 0, 2, 1)), on_grid(shapely.box(0, 2, 4, 3)), on_grid(shapely.box(3, 3, 4, 4))]
    return write_layer(tmp_path / "two.gpkg", shapes, [11, 12, 99])


def test_values_are_merged_renamed_and_ignored(two: Path) -> None:
    config = TruthConfig(field="kind", classes={11: "road", 12: "road"}, ignore=[99])
    assert codes(config, two, facts((4, 4))).tolist() == [[2, 2, 0, 0], [0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 3]]
    rest = TruthConfig(field="kind", classes={"11": "building", "*": "background"}, background="none")
    assert codes(rest, two, facts((4, 4))).tolist() == [[1, 1, 3, 3], [3, 3, 3, 3], [0, 0, 0, 0], [3, 3, 3, 0]]


def test_values_that_are_no_class_are_listed_with_their_counts(two: Path) -> None:
    with pytest.raises(TruthError, match=r"'12' \(1\), '99' \(1\).*the model knows background, building, road"):
        plan_labels(TruthConfig(field="kind", classes={11: "road"}), str(two), facts((4, 4)))
    with pytest.raises(TruthError, match=r"truth.classes names street; the model knows background, building, road"):
        plan_labels(TruthConfig(field="kind", classes={11: "street"}, ignore=["*"]), str(two), facts((4, 4)))


def test_a_field_that_is_not_there_is_answered_with_those_that_are(two: Path) -> None:
    with pytest.raises(TruthError, match="no field 'type'; it has kind"):
        plan_labels(TruthConfig(field="type"), str(two), facts((4, 4)))
    with pytest.raises(TruthError, match=r"nothing says which class.*there are kind.*background, building, road"):
        plan_labels(TruthConfig(), str(two), facts((4, 4)))


def test_features_without_a_value_have_a_name(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 2, 2)), on_grid(shapely.box(2, 0, 4, 2))], ["road", None])
    with pytest.raises(TruthError, match=r"'null' \(1\)"):
        plan_labels(BY_KIND, str(path), facts((2, 4)))
    assert codes(TruthConfig(field="kind", ignore=[None]), path, facts((2, 4))).tolist() == [[2, 2, 3, 3]] * 2


def test_truth_values_of_yaml_are_not_taken_for_numbers() -> None:
    truth = {"pattern": "x.gpkg", "classes": {True: "building"}}
    with pytest.raises(ConfigError, match="in quotes, such as 'yes'"):
        config_of(
            {"name": "n", "output": "o", "archive": {"images": "i"}, "model": {"path": "m"}, "truth": truth}, Path(), "c.yaml"
        )
    kept = TruthConfig(classes={"yes": "building", "01": "road", "1": "road", 2: "road"}, ignore=["0"])
    assert kept.classes == {"yes": "building", "01": "road", 1: "road", 2: "road"}
    assert TruthConfig.model_validate_json(kept.model_dump_json()) == kept


def test_pixels_in_no_polygon(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 1, 1))])
    bare = [CLASSES[1], CLASSES[2]]
    config = TruthConfig(constant="road")
    assert codes(config, path, facts((1, 2), classes=bare)).tolist() == [[1, 2]]
    assert codes(config.model_copy(update={"background": "building"}), path, facts((1, 2), classes=bare)).tolist() == [[1, 0]]
    with pytest.raises(TruthError, match=r"truth.background names forest"):
        codes(config.model_copy(update={"background": "forest"}), path, facts((1, 2)))


def test_outside_of_the_area_nothing_is_labelled(tmp_path: Path) -> None:
    labels = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 2, 2))])
    area = shapely.MultiPolygon([shapely.box(0, 0, 1, 4), shapely.box(3, 3, 4, 4)])
    write_layer(tmp_path / "scene_area.geojson", [on_grid(area, to=WGS84)], crs=WGS84)
    config = TruthConfig(constant="building", area=f"{tmp_path}/{{stem}}_area.geojson")
    spec = plan_labels(config, str(labels), facts((4, 4)))
    assert read(spec, facts((4, 4))).codes.tolist() == [[1, 3, 3, 3], [1, 3, 3, 3], [0, 3, 3, 3], [0, 3, 3, 0]]
    assert spec.digest != spec.model_copy(update={"area": None}).digest
    assert not spec.notes
    assert "the whole image counts as labelled" in plan_labels(BUILDING, str(labels), facts((4, 4))).notes[-1]


def test_the_area_limits_label_rasters_too(tmp_path: Path, raster: Any) -> None:
    where = {"transform": HALF_METRE, "crs": UTM}
    labels = raster(np.array([[0, 1, 9], [0, 1, 9]], np.uint8), "l.tif", **where)
    write_layer(tmp_path / "a.gpkg", [on_grid(shapely.box(1, 0, 3, 1))])
    spec = plan_labels(TruthConfig(area=str(tmp_path / "a.gpkg")), str(labels), facts((2, 3)))
    reference = read(spec, facts((2, 3)))
    assert reference.codes.tolist() == [[3, 1, 3], [3, 3, 3]]
    assert reference.unknown == {9: 1}
    with pytest.raises(TruthError, match=r"truth.field is for polygons"):
        plan_labels(BY_KIND, str(labels), facts((2, 3)))


@pytest.mark.parametrize("name", ["x!/vsicurl/http:/localhost/a.gpkg", "x!/tmp/a.gpkg", "x.zip!/a.gpkg", "a;b.gpkg", "a!b.shp"])
def test_a_name_that_gdal_would_take_for_another_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_layer(tmp_path / f"plain{path.suffix}", [on_grid(shapely.box(0, 0, 2, 2))]).rename(path)
    with pytest.raises(TruthError, match="would take such a name"):
        vectorfile.describe(str(path))


@pytest.mark.parametrize("kind", ["link", "LINK", "url", "\\u006cink"])
@pytest.mark.parametrize("key", ["crs", "\\u0063rs"])
def test_no_coordinate_system_is_fetched(tmp_path: Path, kind: str, key: str) -> None:
    where = '{"href": "http://127.0.0.1:9/crs", "url": "http://127.0.0.1:9/crs"}'
    shape = '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}'
    feature = f'{{"type": "Feature", "properties": {{"url": "kept"}}, "geometry": {shape}}}'
    path = tmp_path / "l.geojson"
    path.write_text(
        f'{{"type": "FeatureCollection", "features": [{feature}], "{key}": {{"type": "{kind}", "properties": {where}}}}}'
    )
    with pytest.raises(TruthError, match="coordinate system is a link, and nothing is fetched"):
        vectorfile.describe(str(path))
    path.write_text(f'{{"type": "FeatureCollection", "features": [{feature}]}}')
    assert vectorfile.describe(str(path)).kinds == {"Polygon": 1}


@pytest.mark.parametrize("text", ["http://127.0.0.1:9/crs", "/etc/passwd", "/vsicurl/http://127.0.0.1:9/a", "a.prj", "file:///a"])
def test_a_coordinate_system_is_no_address_and_no_file(text: str) -> None:
    with pytest.raises(SourceError, match="is not understood"):
        crs_of(text)


def test_a_layer_that_is_a_query_is_not_run(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 2, 2))], layer="real")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT n.i AS fid, geom, kind FROM real, n"
    with sqlite3.connect(path) as db:
        db.execute(f"CREATE VIEW query AS {endless}")
        for table in ("gpkg_contents", "gpkg_geometry_columns"):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            values = ", ".join("'query'" if c in ("table_name", "identifier") else c for c in columns)
            db.execute(f"INSERT INTO {table} SELECT {values} FROM {table} WHERE table_name = 'real'")
    db.close()
    with pytest.raises(TruthError, match="layer 'query' is no table but a query"):
        vectorfile.describe(str(path), "query")
    assert vectorfile.describe(str(path), "real").kinds == {"Polygon": 1}


def test_shapes_that_a_file_holds_packed_are_too_many_when_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorfile, "MOST_SHAPES_BYTES", 10_000)
    path = write_layer(tmp_path / "l.parquet", [on_grid(shapely.box(0, 0, 2, 2))] * 200)
    with pytest.raises(TruthError, match="no spatial index"):
        vectorfile.describe(str(path))


def test_an_area_that_is_missing_or_elsewhere_is_an_error(tmp_path: Path) -> None:
    labels = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 2, 2))])
    with pytest.raises(TruthError, match=r"truth.area: .*none.gpkg does not exist"):
        plan_labels(TruthConfig(constant="road", area=str(tmp_path / "none.gpkg")), str(labels), facts((4, 4)))
    write_layer(tmp_path / "far.gpkg", [on_grid(shapely.box(900, 900, 901, 901))])
    with pytest.raises(TruthError, match=r"no labels reach /archive/scene.tif"):
        plan_labels(TruthConfig(constant="road", area=str(tmp_path / "far.gpkg")), str(labels), facts((4, 4)))


def test_a_file_that_does_not_reach_the_image_says_nothing_of_it(tmp_path: Path) -> None:
    far = write_layer(tmp_path / "far.gpkg", [on_grid(shapely.box(900, 900, 901, 901))])
    with pytest.raises(TruthError, match=r"no labels reach .* whether nothing is there or nobody looked cannot be told"):
        plan_labels(BUILDING, str(far), facts((4, 4)))
    swapped = shapely.transform(on_grid(shapely.box(0, 0, 4, 4), to=WGS84), lambda points: points[:, ::-1])
    with pytest.raises(TruthError, match="look swapped: longitude comes before latitude"):
        plan_labels(BUILDING, str(write_layer(tmp_path / "s.gpkg", [swapped], crs=WGS84)), facts((4, 4)))
    near = write_layer(tmp_path / "n.gpkg", [on_grid(shapely.box(-9, -9, -8, -8)), on_grid(shapely.box(9, 9, 10, 10))])
    assert not codes(BUILDING, near, facts((4, 4))).any()


def test_an_empty_file_speaks_for_its_own_image_only(tmp_path: Path) -> None:
    empty = write_layer(tmp_path / "scene.gpkg", [], [])
    own = TruthConfig(constant="building", pattern=f"{tmp_path}/{{stem}}.gpkg")
    assert not codes(own, empty, facts((4, 4))).any()
    with pytest.raises(TruthError, match="hold no polygon"):
        plan_labels(own.model_copy(update={"pattern": str(empty)}), str(empty), facts((4, 4)))
    with pytest.raises(TruthError, match="nothing can be scored"):
        plan_labels(own.model_copy(update={"background": "none"}), str(empty), facts((4, 4)))


@pytest.mark.parametrize(
    "shape", [shapely.Point(1, 1), shapely.LineString([(0, 0), (3, 3)]), shapely.MultiPoint([(1, 1), (2, 2)])]
)
def test_what_has_no_area_is_refused(tmp_path: Path, shape: Any) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 1, 1)), on_grid(shape)])
    with pytest.raises(TruthError, match=rf"1 {shape.geom_type}: these have no area.*truth.buffer_m"):
        plan_labels(BUILDING, str(path), facts((4, 4)))


def test_real_tree_points_are_refused(data: Path) -> None:
    [points] = (data / "naip_sparse").glob("*_tree_points.geojson")
    info = describe(str(next((data / "naip_sparse").glob("*.tif"))))
    grid = working_grid(info, None)
    assert grid is not None
    mask = MaskFacts(image=info.uri, model="m", classes=CLASSES[:2], grid=grid, native_shape=grid.shape)
    with pytest.raises(TruthError, match=r"2,134 Points: these have no area"):
        plan_labels(TruthConfig(), str(points), mask)
    spec = plan_labels(TruthConfig(buffer_m=2), str(points), mask)
    with rasterio.open(info.uri) as file:
        discs = [shapely.geometry.shape(f["geometry"]).buffer(2, 16) for f in json.loads(points.read_text())["features"]]
        expected = rasterize([(disc, 1) for disc in discs], file.shape, transform=file.transform, dtype="uint8")
    different = np.count_nonzero(read(spec, mask).codes != expected)
    assert expected.sum() > 50_000
    assert different / expected.sum() < 0.001


def test_a_buffer_is_in_metres_on_the_ground(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(4, 4, 6, 6))])
    assert codes(TruthConfig(constant="road", buffer_m=0.7), path, facts((10, 10))).sum() == 2 * 4 * 4
    assert codes(TruthConfig(constant="road", buffer_m=-0.5), path, facts((10, 10))).sum() == 0
    kathmandu = Affine(1, 0, 9_500_000, 0, -1, 3_200_000)
    dot = write_layer(tmp_path / "d.gpkg", [on_grid(shapely.Point(100, 100), kathmandu)], crs=MERCATOR)
    disc = codes(TruthConfig(constant="building", buffer_m=50), dot, facts((200, 200), kathmandu, MERCATOR))
    stretch = np.cosh(3_199_900 / 6378137)
    assert disc.sum() == pytest.approx(np.pi * (50 * stretch) ** 2, rel=0.01)
    with pytest.raises(TruthError, match="does not say how large its pixels are"):
        plan_labels(TruthConfig(constant="road", buffer_m=1, crs="pixel"), str(path), facts((10, 10), None, None))


def test_buffers_reach_over_the_border_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(2, 2, 3, 3))])
    monkeypatch.setattr(truth_module, "CELL", 8)
    config, mask = TruthConfig(constant="building", buffer_m=4), facts((16, 24))
    assert codes(config, path, mask)[2].tolist() == [1] * 11 + [0] * 13
    assert read(plan_labels(config, str(path), mask), mask, Window(2, 8, 1, 16)).codes.tolist() == [[1] * 3 + [0] * 13]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet"])
def test_broken_shapes_are_mended_and_counted(tmp_path: Path, suffix: str) -> None:
    bow = rings([(0, 0), (8, 8), (8, 0), (0, 8)])
    twice = shapely.MultiPolygon([shapely.box(0, 8, 6, 10), shapely.box(2, 8, 8, 10)])
    shapes = [on_grid(bow), on_grid(twice), None, shapely.Polygon()]
    path = write_layer(tmp_path / f"l{suffix}", shapes, **({} if suffix == ".parquet" else {"SPATIAL_INDEX": "NO"}))
    spec = plan_labels(BUILDING, str(path), facts((10, 8)))
    got = read(spec, facts((10, 8))).codes
    assert got[8:].all()
    assert got[3, 0] == got[3, 7] == 1
    assert got[0, 3] == got[7, 4] == 0
    assert any("2 of" in note and "mended" in note for note in spec.notes)
    assert any("2 features have no geometry" in note for note in spec.notes)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_an_index_does_not_lose_broken_shapes(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bow = rings([(0, 0), (80, 80), (80, 0), (0, 80)])
    path = write_layer(tmp_path / f"l{suffix}", [on_grid(bow)])
    monkeypatch.setattr(truth_module, "CELL", 8)
    mask = facts((80, 80))
    spec = plan_labels(BUILDING, str(path), mask)
    assert isinstance(spec.source, truth_module.Polygons)
    assert spec.source.layer.indexed
    assert (read(spec, mask, Window(40, 0, 4, 8)).codes == 1).all()
    assert not read(spec, mask, Window(0, 40, 8, 4)).codes.any()


def test_heights_are_let_fall(tmp_path: Path) -> None:
    high = shapely.force_3d(on_grid(shapely.box(0, 0, 1, 1)), 1700.0)
    assert codes(BUILDING, write_layer(tmp_path / "l.gpkg", [high], geometry_type="Polygon Z"), facts((1, 2))).tolist() == [
        [1, 0]
    ]


def test_curves_and_collections_are_refused(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "curve.gpkg", [on_grid(shapely.box(0, 0, 4, 4))], SPATIAL_INDEX="NO")
    arc = struct.pack(
        "<BII10d", 1, 8, 5, *(500_000, 600_050, 500_001, 600_049, 500_002, 600_050, 500_001, 600_051, 500_000, 600_050)
    )
    with sqlite3.connect(path) as file:
        blob = b"GP" + struct.pack("<BBi", 0, 1, 32637) + struct.pack("<BII", 1, 10, 1) + arc
        file.execute("insert into curve (geom, kind) values (?, 'road')", (blob,))
    with pytest.raises(TruthError, match=r"1 CurvePolygon: read are polygons with straight edges"):
        plan_labels(BUILDING, str(path), facts((4, 4)))
    mixed = shapely.GeometryCollection([on_grid(shapely.box(0, 0, 1, 1)), on_grid(shapely.Point(0, 0))])
    with pytest.raises(TruthError, match="1 GeometryCollection"):
        plan_labels(BUILDING, str(write_layer(tmp_path / "c.gpkg", [mixed])), facts((4, 4)))


def test_a_file_that_does_not_say_where_it_lies(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.shp", [on_grid(shapely.box(0, 0, 1, 1))], crs=None)
    with pytest.raises(TruthError, match="do not say their coordinate system"):
        plan_labels(BUILDING, str(path), facts((1, 2)))
    assert codes(TruthConfig(constant="building", crs=UTM), path, facts((1, 2))).tolist() == [[1, 0]]
    with pytest.raises(TruthError, match="'EPSG:nonsense' is not understood"):
        plan_labels(TruthConfig(constant="building", crs="EPSG:nonsense"), str(path), facts((1, 2)))


def test_polygons_in_pixels_need_no_georeference(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.geojson", [shapely.box(2, 0, 4, 2)], crs=None)
    grid = WorkingGrid(height=2, width=3, scale_row=2, scale_col=2)
    mask = MaskFacts(image="/archive/slide.tif", model="m", classes=CLASSES, grid=grid, native_shape=(4, 6))
    assert codes(TruthConfig(constant="road", crs="pixel"), path, mask).tolist() == [[0, 2, 0], [0, 0, 0]]
    elsewhere = write_layer(tmp_path / "l.gpkg", [shapely.box(2, 0, 4, 2)], crs=UTM)
    with pytest.raises(TruthError, match=r"no georeference.*truth.crs: pixel"):
        plan_labels(BUILDING, str(elsewhere), mask)


def test_images_over_the_180th_meridian_are_refused(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [shapely.box(179, 0, 180, 1)], crs=WGS84)
    with pytest.raises(TruthError, match="over the 180th meridian"):
        plan_labels(BUILDING, str(path), facts((10, 20), Affine(0.1, 0, 179, 0, -0.1, 1), WGS84))


@pytest.mark.parametrize(("crs", "easting"), [(MERCATOR, 4_000_000), (UTM, 500_000)])
def test_a_shape_beyond_what_can_be_projected_keeps_what_lies_in_the_image(tmp_path: Path, crs: str, easting: int) -> None:
    world = shapely.box(-180, -90, 180, 90)
    hole = on_grid(shapely.box(1, 1, 2, 3), Affine(1, 0, easting, 0, -1, 500_000), crs, WGS84)
    path = write_layer(tmp_path / "w.gpkg", [world.difference(hole)], crs=WGS84)
    mask = facts((4, 3), Affine(1, 0, easting, 0, -1, 500_000), crs)
    assert codes(BUILDING, path, mask).tolist() == [[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]]


def test_layers_are_named_where_there_are_several(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 1, 1))], layer="houses")
    write_layer(path, [on_grid(shapely.box(0, 0, 2, 1))], layer="streets", append=True)
    with pytest.raises(TruthError, match="has the layers houses, streets"):
        plan_labels(BUILDING, str(path), facts((1, 3)))
    assert codes(TruthConfig(constant="road", layer="streets"), path, facts((1, 3))).tolist() == [[2, 2, 0]]


def harmful(folder: Path) -> Iterator[tuple[str, bytes | str, str]]:
    """(name, content, why it is refused): what GDAL would open by its content, whatever the name says."""
    secret = write_layer(folder / "secret.gpkg", [on_grid(shapely.box(0, 0, 4, 4))])
    pipeline = {"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {secret} ! edit"}
    vrt = f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    yield "pipeline.geojson", json.dumps(pipeline), "Failed to read GeoJSON data"
    yield "vrt.geojson", vrt, "are no GeoJSON file"
    yield "vrt.gpkg", vrt, "are no GPKG file"
    yield "vrt.fgb", vrt, "are no FlatGeobuf file"
    yield "zip.gpkg", b"PK\x03\x04" + bytes(100), "are no GPKG file"
    yield "database.gpkg", b"SQLite format 3\0" + bytes(100), "are no GPKG file"
    yield "text.geojson", "{}", "cannot be read"
    yield (
        "cut.geojson",
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Poly',
        "cannot be read",
    )
    yield "plain.parquet", b"PAR1" + bytes(50), "cannot be read"
    yield "labels.kml", "<kml/>", r"\.kml files are not read.*ogr2ogr labels.gpkg labels.kml"


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    for name, content, why in harmful(tmp_path):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(TruthError, match=why):
            plan_labels(BUILDING, str(path), facts((4, 4)))
    for uri in ("/vsizip/a.zip/a.gpkg", "a.gpkg", "https://example.org/a.geojson", f"{tmp_path}/none.fgb"):
        with pytest.raises(TruthError, match="no file at an absolute local path"):
            plan_labels(BUILDING, uri, facts((4, 4)))


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".shp", ".parquet", ".geojson"])
def test_half_a_file_is_no_file(tmp_path: Path, suffix: str) -> None:
    shapes = [on_grid(shapely.box(x, 0, x + 0.9, 1), to=WGS84) for x in range(3000)]
    path = write_layer(tmp_path / f"l{suffix}", shapes, crs=WGS84)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(TruthError, match=f"l{suffix}"):
        plan_labels(BUILDING, str(path), facts((4, 4)))


def test_features_that_do_not_come_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 1, 1))] * 3)
    whole = vectorfile._gdal_batches
    monkeypatch.setattr(vectorfile, "_gdal_batches", lambda *a: ((p[1:], t[1:], v[1:]) for p, t, v in whole(*a)))
    with pytest.raises(TruthError, match="end after 2 of 3 features"):
        plan_labels(BUILDING, str(path), facts((4, 4)))


def test_labels_that_change_after_the_plan_are_not_read(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.shp", [on_grid(shapely.box(0, 0, 1, 1))])
    spec = plan_labels(BUILDING, str(path), facts((1, 2)))
    with path.with_suffix(".dbf").open("ab") as file:
        file.write(b" ")
    with pytest.raises(TruthError, match="not the file that was planned"):
        read(spec, facts((1, 2)))


def test_a_large_file_without_an_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_layer(tmp_path / "l.geojson", [on_grid(shapely.box(0, 0, 1, 1), to=WGS84)], crs=WGS84)
    monkeypatch.setattr(vectorfile, "MOST_LOADED_BYTES", 100)
    with pytest.raises(TruthError, match=r"no spatial index.*ogr2ogr labels.gpkg l.geojson"):
        plan_labels(BUILDING, str(path), facts((4, 4)))


def test_a_field_of_names_is_no_field_of_classes(tmp_path: Path) -> None:
    boxes = [on_grid(shapely.box(x, 0, x + 1, 1)) for x in range(1100)]
    path = write_layer(tmp_path / "l.gpkg", boxes, [f"house {x}" for x in range(1100)])
    with pytest.raises(TruthError, match="more than 1000 different values"):
        plan_labels(BY_KIND, str(path), facts((4, 4)))


def test_the_digest_holds_what_decides_and_nothing_else(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "l.gpkg", [on_grid(shapely.box(0, 0, 1, 1))])
    mask = facts((4, 4))
    spec = plan_labels(BUILDING, str(path), mask)
    assert plan_labels(BUILDING, str(path), mask).digest == spec.digest
    assert TruthSpec.model_validate_json(spec.model_dump_json()) == spec
    others = [
        plan_labels(TruthConfig(constant="road"), str(path), mask),
        plan_labels(TruthConfig(field="kind"), str(path), mask),
        plan_labels(TruthConfig(constant="building", background="none"), str(path), mask),
        plan_labels(TruthConfig(constant="building", buffer_m=1), str(path), mask),
        plan_labels(TruthConfig(constant="building", crs=UTM), str(path), mask),
        plan_labels(BUILDING, str(path), facts((4, 4), HALF_METRE @ Affine.translation(1, 0))),
    ]
    assert len({spec.digest, *(other.digest for other in others)}) == 7


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """Three scenes in a row with one file of roofs and of what was looked at; the third lies beyond, the second is broken."""
    (tmp_path / "scenes").mkdir()
    threshold_model(tmp_path / "model", (100,))
    roofs, looked = [], []
    for i, name in enumerate("abc"):
        here = HALF_METRE @ Affine.translation(700 * i, 0)
        samples = np.full((300, 600), 50, np.uint8 if name != "b" else np.uint16)
        samples[40:90, 250:300] = 200
        write_raster(tmp_path / "scenes" / f"{name}.tif", samples, transform=here, crs=UTM)
        if name != "c":
            roofs += [
                on_grid(shapely.box(250, 40, 300, 90), here, to=WGS84),
                on_grid(shapely.box(10, 10, 20, 20), here, to=WGS84),
            ]
            looked += [on_grid(shapely.box(0, 0, 600, 150), here, to=WGS84)]
    write_layer(tmp_path / "city.gpkg", roofs, ["roof", "hut"] * 2, crs=WGS84, layer="roofs")
    write_layer(tmp_path / "city.gpkg", looked, crs=WGS84, layer="looked", append=True)
    return tmp_path


def test_a_night_scores_with_one_file_for_all_images(city: Path) -> None:
    truth = {"pattern": "city.gpkg", "layer": "roofs", "field": "kind", "classes": {"roof": "low"}, "ignore": ["hut"]}
    truth |= {"area": "city.gpkg", "area_layer": "looked"}
    morning = run_night(load_config(config_file(city, truth=truth, tiling={"block": 256})), Quiet(), "gigamask run")
    a, b, c = sorted(morning.report.images, key=lambda image: image.uri)

    assert a.counts is not None
    assert np.array(a.counts)[:2, :2].tolist() == [[600 * 150 - 2500 - 100, 0], [0, 2500]]
    assert sum(a.counts[2]) == 600 * 150 + 100
    assert b.state == "failed"
    assert b.counts is not None
    assert np.array(b.counts)[:, 2].tolist() == [600 * 150 - 2500 - 100, 2500, 600 * 150 + 100], "each labelled pixel is missed"
    assert c.counts is None
    assert "no labels reach" in (c.truth_error or "")
    assert morning.exit_code == 1


def test_evaluate_takes_polygons(city: Path) -> None:
    found = survey(load_config(config_file(city, archive={"images": "scenes/a.tif"}, truth={})))
    [planned] = found.planned
    store = city / "a.zarr"
    segment_one(found.config, Path(planned.plan.image.uri), store, Quiet())
    config = TruthConfig(constant="low", layer="roofs")

    report = evaluate_one(store, city / "city.gpkg", config, SerialCluster(type="serial"), None)

    assert report.counts is not None
    assert np.array(report.counts)[:, :2].tolist() == [[600 * 300 - 2600, 0], [100, 2500], [0, 0]]


def test_the_picture_of_the_labels_is_drawn_from_polygons(city: Path) -> None:
    truth = {"pattern": "city.gpkg", "layer": "roofs", "constant": "low"}
    config = load_config(config_file(city, archive={"images": "scenes/a.tif"}, truth=truth, report={"quicklook_px": 100}))
    morning = run_night(config, Quiet(), "gigamask run")
    [image] = morning.report.images
    assert image.truth_error is None
    with rasterio.open(morning.folder / image.quicklook["truth"]) as file:
        assert file.shape == (50, 100)
        assert len(np.unique(file.read(1))) == 2
