"""Reference labels of slides: masks of any level, QuPath's GeoJSON, ASAP's XML; and the same files as areas to look at."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyogrio import raw
from rasterio.features import rasterize, shapes

from pipeline import truth as truth_module
from pipeline import vectorfile
from pipeline.alignment import MaskFacts, TruthSpec
from pipeline.annotations import class_name
from pipeline.card import ClassInfo
from pipeline.config import TruthConfig
from pipeline.errors import TruthError
from pipeline.grid import Window
from pipeline.image import WorkingGrid
from pipeline.projection import crs_of
from pipeline.truth import Reference, open_truth, plan_area, plan_labels
from tests.conftest import write_raster

Raster = Callable[..., Path]
CLASSES = tuple(ClassInfo(name=name, color="#808080") for name in ("background", "Tumor", "Stroma"))
MICRON = 1e-6


def slide(
    native: tuple[int, int],
    shape: tuple[int, int] | None = None,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    classes: Sequence[ClassInfo] = CLASSES,
) -> MaskFacts:
    """A mask of `shape` px (default: native) over a slide of `native` px with native pixels of `mpp` (row, col) µm."""
    height, width = shape or native
    rows, cols = native[0] / height, native[1] / width
    size = None if mpp is None else (mpp[0] * rows * MICRON, mpp[1] * cols * MICRON)
    grid = WorkingGrid(height=height, width=width, scale_row=rows, scale_col=cols, pixel_size_m=size)
    return MaskFacts(image="/archive/a.svs", model="m", classes=tuple(classes), grid=grid, native_shape=native)


def read(spec: TruthSpec, mask: MaskFacts, window: Window | None = None, classes: int = 3) -> Reference:
    with open_truth(spec, classes, *mask.grid.shape) as labels:
        return labels.read(window or Window(0, 0, *mask.grid.shape))


def codes(config: TruthConfig, path: Path, mask: MaskFacts) -> Any:
    return read(plan_labels(config, str(path), mask), mask).codes


NEAREST = TruthConfig(resample="nearest", classes={0: "background", 1: "Tumor", 2: "Stroma"})


def sized(row_um: float, col_um: float | None = None) -> TruthConfig:
    return NEAREST.model_copy(update={"mpp": (row_um if col_um is None else col_um, row_um)})


# Masks of any level


def test_a_mask_of_stated_pixel_size_is_laid_by_size(raster: Raster) -> None:
    labels = raster(np.array([[0, 1], [2, 0]], np.uint8))
    expected = [[0, 0, 0, 1, 1, 1]] * 3 + [[2, 2, 2, 0, 0, 0]] * 3
    assert codes(sized(1.5), labels, slide((6, 6))).tolist() == expected
    assert codes(sized(1.5), labels, slide((6, 6), (2, 2))).tolist() == [[0, 1], [2, 0]]
    assert codes(sized(1.5, 1), labels, slide((6, 4), None, (0.5, 0.5))).tolist() == [r[1:5] for r in expected]


def test_a_slide_needs_not_be_whole_label_pixels(raster: Raster) -> None:
    labels = raster(np.array([[1, 2, 1]], np.uint8))
    assert codes(sized(2), labels, slide((3, 11))).tolist() == [[1] * 4 + [2] * 4 + [1] * 3] * 3
    short = codes(sized(2), labels, slide((4, 14)))
    assert short.tolist() == [[1] * 4 + [2] * 4 + [1] * 4 + [3] * 2] * 4, "beyond the mask nothing is labelled"


def test_a_rounded_size_does_not_shift_labels(raster: Raster) -> None:
    values = np.zeros((400, 4), np.uint8)
    values[390:] = 1
    labels = raster(values)
    mask = slide((1600, 16), None, (0.2521, 0.2521))
    got = codes(sized(1.0), labels, mask)
    assert np.flatnonzero(got[:, 0] == 1).tolist() == list(range(1560, 1600)), "by 0.2521 / 1 it would begin 13 px later"


def test_sizes_that_do_not_cover_the_slide_are_refused(raster: Raster) -> None:
    labels = raster(np.zeros((10, 20), np.uint8))
    with pytest.raises(
        TruthError, match=r"cover 20\.00 x 40\.00 µm \(10 x 20 px of 2 x 2 µm\).* 50\.00 x 100\.00 µm \(100 x 200 px"
    ):
        plan_labels(sized(2), str(labels), slide((100, 200)))
    with pytest.raises(TruthError, match=r"cover 20\.00 x 40\.00 µm"):
        plan_labels(sized(2), str(labels), slide((10, 20)))
    with pytest.raises(TruthError, match=r"does not say how large its pixels are.*archive\.mpp"):
        plan_labels(sized(2), str(labels), slide((10, 20), None, None))


def test_another_grid_is_an_error_that_names_both_keys(raster: Raster) -> None:
    labels = raster(np.zeros((10, 20), np.uint8))
    with pytest.raises(TruthError, match=r"(?s)10 x 20 px.*pixels of 0\.5 x 0\.5 µm.*truth\.resample: nearest.*truth\.mpp"):
        plan_labels(TruthConfig(), str(labels), slide((40, 80)))
    with pytest.raises(TruthError, match=r"truth\.resample: nearest"):
        plan_labels(TruthConfig(mpp=(2, 2)), str(labels), slide((40, 80)))
    with pytest.raises(TruthError, match=r"truth\.mpp states.*georeference that does"):
        plan_labels(
            sized(2), str(raster(np.zeros((4, 4), np.uint8), "g.tif", crs="EPSG:32637", transform=Affine.scale(2))), slide((4, 4))
        )


@pytest.mark.parametrize(
    ("native", "labels", "fits"),
    [
        ((40, 80), (10, 20), True),
        ((101, 203), (50, 101), True),
        ((101, 203), (51, 102), True),
        ((46_001, 32_914), (11_488, 8_220), False),
        ((46_001, 32_914), (11_500, 8_228), True),
        ((40, 80), (10, 40), False),
        ((40, 80), (9, 18), False),
        ((40, 80), (39, 80), False),
        ((100, 80), (10, 9), False),
        ((40, 80), (80, 160), False),
        ((40, 80), (27, 53), False),
    ],
)
def test_without_a_size_a_whole_part_of_the_image_fits(
    native: tuple[int, int], labels: tuple[int, int], fits: bool, tmp_path: Path
) -> None:
    path = write_raster(tmp_path / "l.tif", np.zeros(labels, np.uint8), compress="deflate")
    mask = slide(native)
    if fits:
        spec = plan_labels(NEAREST, str(path), mask)
        assert (spec.scale_row, spec.scale_col) == (labels[0] / native[0], labels[1] / native[1])
        return
    with pytest.raises(TruthError, match=rf"(?s){labels[0]} x {labels[1]} px.*{native[0]} x {native[1]} px.*truth\.mpp"):
        plan_labels(NEAREST, str(path), mask)


@settings(max_examples=40)
@given(
    level=st.integers(1, 4),
    shape=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    corner=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_any_window_of_any_level_is_the_label_under_each_centre(
    tmp_path_factory: pytest.TempPathFactory, level: int, shape: tuple[int, int], corner: tuple[int, int]
) -> None:
    native = 96, 72
    values = np.random.default_rng(level).integers(0, 3, (native[0] // level, native[1] // level), np.uint8)
    path = write_raster(tmp_path_factory.mktemp("w") / "l.tif", values)
    mask = slide(native, shape)
    window = Window(*corner, 30, 30).clip(*shape)
    rows = np.floor((np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0] + 1e-6).astype(int)
    cols = np.floor((np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1] + 1e-6).astype(int)
    expected = values[np.ix_(rows, cols)]
    for config in (NEAREST, sized(0.5 * level)):
        np.testing.assert_array_equal(read(plan_labels(config, str(path), mask), mask, window).codes, expected[window.slices])


# QuPath


def feature(shape: Any, name: Any = None, **members: Any) -> dict[str, Any]:
    """An object as QuPath writes it."""
    said = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]} if isinstance(name, str) else name}
    properties = {"objectType": "annotation", **said}
    return {"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": properties, **members}


def plain(shape: Any, **members: Any) -> dict[str, Any]:
    """A feature of who knows which program."""
    return feature(shape, **members) | {"properties": {"a": 1}}


def qupath(path: Path, features: Sequence[Any], *, bare: bool = False) -> Path:
    """An export of QuPath: a collection, or a bare list; compressed where the name says so."""
    content = json.dumps(list(features) if bare else {"type": "FeatureCollection", "features": list(features)}).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


RING = shapely.Polygon([(0, 0), (5, 0), (5, 5), (0, 5)], [[(1, 1), (4, 1), (4, 4), (1, 4)]])
PARTS = shapely.MultiPolygon([shapely.box(2, 2, 3, 3), shapely.box(5, 0, 6, 1)])
DRAWN = [
    feature(RING, "Tumor", id="a7"),
    feature(PARTS, {"name": "Stroma", "colorRGB": -3140401}, nucleusGeometry=shapely.geometry.mapping(shapely.box(0, 0, 9, 9))),
]
BURNT = [[1, 1, 1, 1, 1, 2], [1, 0, 0, 0, 1, 0], [1, 0, 2, 0, 1, 0], [1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.geojson.gz", "a.json.gz"])
def test_an_export_of_qupath_needs_no_word(tmp_path: Path, name: str, bare: bool) -> None:
    path = qupath(tmp_path / name, DRAWN, bare=bare)
    spec = plan_labels(TruthConfig(), str(path), slide((5, 6)))
    assert read(spec, slide((5, 6))).codes.tolist() == BURNT
    assert plan_labels(TruthConfig(), str(path), slide((5, 6))).digest == spec.digest, "also through a temporary file"
    assert codes(TruthConfig(field="classification", crs="pixel"), path, slide((5, 6))).tolist() == BURNT
    assert codes(TruthConfig(constant="Tumor"), path, slide((5, 6))).tolist() == [[min(c, 1) for c in row] for row in BURNT]


def test_coordinates_are_of_full_resolution_whatever_is_worked_at(tmp_path: Path) -> None:
    path = qupath(tmp_path / "a.geojson", [feature(shapely.box(4, 0, 8, 4), "Tumor")])
    assert codes(TruthConfig(), path, slide((8, 12), (2, 3))).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_the_last_one_wins_whatever_number_it_bears(tmp_path: Path) -> None:
    pixel = shapely.box(0, 0, 1, 1)
    path = qupath(tmp_path / "a.geojson", [feature(pixel, "Tumor", id=7), feature(pixel, "Stroma", id=3)])
    assert codes(TruthConfig(), path, slide((1, 1))).tolist() == [[2]]


def test_objects_without_a_class_are_null(tmp_path: Path) -> None:
    some = qupath(tmp_path / "a.geojson", [feature(shapely.box(0, 0, 1, 1), "Tumor"), feature(shapely.box(1, 0, 2, 1))])
    none = qupath(tmp_path / "b.geojson", [feature(shapely.box(0, 0, 1, 1)), feature(shapely.box(1, 0, 2, 1))])
    for path, count in ((some, 1), (none, 2)):
        with pytest.raises(TruthError, match=rf"field 'classification' names what is no class \(features\): 'null' \({count}\)"):
            plan_labels(TruthConfig(), str(path), slide((1, 3)))
    ignoring = TruthConfig(ignore=[None])
    assert codes(ignoring, some, slide((1, 3))).tolist() == [[1, 3, 0]]
    assert codes(ignoring, none, slide((1, 3))).tolist() == [[3, 3, 0]]


def test_a_slide_on_which_nothing_was_drawn_is_background(tmp_path: Path) -> None:
    empty = qupath(tmp_path / "a.geojson", [])
    for config in (TruthConfig(), TruthConfig(field="classification"), TruthConfig(constant="Tumor")):
        assert codes(config, empty, slide((1, 2))).tolist() == [[0, 0]]


def test_classes_of_qupath_have_names() -> None:
    assert class_name('{ "name": "Tumor", "color": [ 1, 2, 3 ] }') == "Tumor"
    assert class_name({"names": ["Tumor", "Positive"]}) == "Tumor: Positive"
    assert class_name('{"name": null, "colorRGB": -1}') == "null"
    assert class_name('{"kind": 3}') == '{"kind": 3}'
    assert class_name("{not json") == "{not json"
    assert class_name("Stroma") == "Stroma"


def test_version_0_2_said_what_an_object_is_in_its_id(tmp_path: Path) -> None:
    old = {**feature(shapely.box(0, 0, 1, 1)), "id": "PathAnnotationObject", "properties": {"isLocked": False}}
    path = qupath(tmp_path / "a.json", [old], bare=True)
    assert codes(TruthConfig(ignore=["null"]), path, slide((1, 2))).tolist() == [[3, 0]]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_an_export_that_was_converted_is_read_alike(tmp_path: Path, suffix: str) -> None:
    texts = np.array([shapely.to_wkb(shapely.box(0, 0, 1, 1)), shapely.to_wkb(shapely.box(1, 0, 2, 1))], object)
    columns = [np.array(["annotation"] * 2, object), np.array(['{ "name": "Tumor" }', None], object)]
    driver = {".gpkg": "GPKG", ".fgb": "FlatGeobuf"}[suffix]
    path = tmp_path / f"a{suffix}"
    raw.write(str(path), texts, columns, ["objectType", "classification"], driver=driver, geometry_type="Polygon", crs=None)
    assert codes(TruthConfig(ignore=["null"]), path, slide((1, 3))).tolist() == [[1, 3, 0]]


def test_other_geojson_keeps_its_one_class(tmp_path: Path) -> None:
    path = qupath(tmp_path / "a.geojson", [plain(shapely.box(0, 0, 1, 1), id=4)])
    assert codes(TruthConfig(), path, slide((1, 2), classes=CLASSES[:2])).tolist() == [[1, 0]]


def test_points_of_qupath_are_refused_as_others_are(tmp_path: Path) -> None:
    path = qupath(tmp_path / "a.geojson", [feature(shapely.MultiPoint([(3, 3), (9, 9)]), "Tumor")])
    with pytest.raises(TruthError, match="1 MultiPoint: these have no area"):
        plan_labels(TruthConfig(), str(path), slide((12, 12)))


def test_a_buffer_on_a_slide_is_in_its_own_metres(tmp_path: Path) -> None:
    path = qupath(tmp_path / "a.geojson", [feature(shapely.Point(10, 10), "Tumor")])
    disc = codes(TruthConfig(buffer_m=2e-6), path, slide((20, 20), None, (0.5, 1.0)))
    assert np.flatnonzero(disc.any(axis=1)).tolist() == list(range(6, 14)), "2 µm are 4 rows of 0.5"
    assert np.flatnonzero(disc.any(axis=0)).tolist() == list(range(8, 12)), "and 2 columns of 1"
    with pytest.raises(TruthError, match="does not say how large its pixels are"):
        plan_labels(TruthConfig(buffer_m=2e-6), str(path), slide((20, 20), None, None))
    one, other = (
        plan_labels(TruthConfig(buffer_m=2e-6), str(path), slide((20, 20), None, mpp)) for mpp in ((0.5, 0.5), (0.25, 0.25))
    )
    assert one.digest != other.digest


@pytest.mark.parametrize("lon", [36.8, -1.3])
def test_degrees_are_not_taken_for_pixels(tmp_path: Path, lon: float) -> None:
    house = shapely.box(lon, 27.7, lon + 0.001, 27.701)
    path = qupath(tmp_path / "a.geojson", [plain(house)])
    config, mask = TruthConfig(constant="Tumor"), slide((500, 500))
    with pytest.raises(TruthError, match="they are degrees"):
        plan_labels(config, str(path), mask)
    near = qupath(tmp_path / "b.geojson", [plain(shapely.box(10, 10, 170, 80))])
    spec = plan_labels(config, str(near), mask)
    assert any("b.geojson: coordinates up to 180 and 90 were taken for pixels" in note for note in spec.notes)
    for object_ in (plain(shapely.box(10, 10, 190, 80)), feature(shapely.box(10, 10, 170, 80), "Tumor")):
        sure = plan_labels(config, str(qupath(tmp_path / "c.geojson", [object_])), mask)
        assert not any("taken for pixels" in note for note in sure.notes)


def test_an_image_with_a_georeference_reads_degrees(tmp_path: Path) -> None:
    grid = WorkingGrid(height=2, width=2, crs_wkt=crs_of("EPSG:4326"), transform=(1.0, 0.0, 10.0, 0.0, -1.0, 50.0))
    mask = MaskFacts(image="/archive/a.tif", model="m", classes=CLASSES, grid=grid, native_shape=(2, 2))
    path = qupath(tmp_path / "a.geojson", [feature(shapely.box(11, 49, 12, 50), "Tumor")])
    assert codes(TruthConfig(), path, mask).tolist() == [[0, 1], [0, 0]]


def test_compressed_files_are_bounded_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = qupath(tmp_path / "a.geojson.gz", [feature(RING, "Tumor")] * 50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TruthError, match=r"a\.geojson\.gz cannot be read: .*end-of-stream"):
        plan_labels(TruthConfig(), str(path), slide((5, 6)))
    path.write_bytes(b"{}")
    with pytest.raises(TruthError, match="no GeoJSON file"):
        plan_labels(TruthConfig(), str(path), slide((5, 6)))
    path.write_bytes(gzip.compress(b"[" + b" " * (8 << 20) + b"]"))
    monkeypatch.setattr(vectorfile, "MOST_LOADED_BYTES", 1000)
    with pytest.raises(TruthError, match="have 1 MiB or more"):
        plan_labels(TruthConfig(), str(path), slide((5, 6)))
    path.write_bytes(content)
    with pytest.raises(TruthError, match=r"MiB or more and no spatial index.*ogr2ogr labels\.gpkg a\.geojson$"):
        plan_labels(TruthConfig(), str(path), slide((5, 6)))


def test_what_is_in_a_bare_list_stays_geojson(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read secret.gpkg"}]')
    with pytest.raises(TruthError, match=r"cannot be read|no polygon"):
        plan_labels(TruthConfig(constant="Tumor", pattern="one.json"), str(path), slide((5, 6)))


def test_polygons_have_no_pixel_size(tmp_path: Path) -> None:
    path = qupath(tmp_path / "a.geojson", DRAWN)
    with pytest.raises(TruthError, match=r"truth\.mpp is for label rasters"):
        plan_labels(TruthConfig(mpp=(2, 2)), str(path), slide((5, 6)))


@st.composite
def drawn(draw: st.DrawFn) -> list[tuple[Any, int]]:
    """(shape, class) on quarters of a pixel, with holes, overlaps and several parts."""
    found = []
    corner = st.tuples(st.integers(-20, 160), st.integers(-20, 160))
    for _ in range(draw(st.integers(1, 5))):
        ring = [(x / 4, y / 4) for x, y in draw(st.lists(corner, min_size=3, max_size=7, unique=True))]
        shape = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
        if not shape.is_empty:
            found.append((shape, draw(st.integers(0, 2))))
    return found


@settings(max_examples=40)
@given(
    found=drawn(),
    shape=st.sampled_from([(40, 40), (20, 20), (16, 23), (10, 10)]),
    corner=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bare=st.booleans(),
)
def test_any_window_is_the_crop_of_what_rasterio_burns(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[tuple[Any, int]],
    shape: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    bare: bool,
) -> None:
    reach = [s.intersects(shapely.box(0, 0, 40, 40)) for s, _ in found]
    if not any(reach):
        return
    path = tmp_path_factory.mktemp("w") / "a.geojson"
    qupath(path, [feature(s, CLASSES[code].name) for s, code in found], bare=bare)
    scale = Affine.scale(40 / shape[1], 40 / shape[0])
    pixels = [(shapely.transform(s, lambda points: points / (scale.a, scale.e)), code) for s, code in found]
    expected = rasterize(pixels, shape, dtype="uint8")
    window = Window(*corner, *size).clip(*shape)
    mask = slide((40, 40), shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth_module, "CELL", 8)
        patch.setattr(vectorfile, "MOST_LOADED_BYTES", 1 << 20)
        spec = plan_labels(TruthConfig(crs="pixel"), str(path), mask)
        np.testing.assert_array_equal(read(spec, mask, window).codes, expected[window.slices])


@pytest.mark.parametrize("scale", [1, 2])
def test_real_nuclei_come_back_as_they_were_drawn(data: Path, tmp_path: Path, scale: int) -> None:
    path = sorted((data / "dsb2018_nuclei" / "purple_stain" / "instances").glob("*.png"))[0]
    with rasterio.open(path) as file:
        instances = file.read(1).astype(np.int32)
    assert instances.max() > 5
    outlines: dict[int, list[Any]] = {}
    for outline, number in shapes(instances, mask=instances > 0):
        outlines.setdefault(int(number), []).append(shapely.geometry.shape(outline))
    cells = [(shapely.union_all(parts), ("Tumor", "Stroma")[number % 2]) for number, parts in outlines.items()]
    labels = qupath(tmp_path / "a.geojson.gz", [feature(shape, name) for shape, name in cells])

    native = instances.shape
    mask = slide(native, (native[0] // scale, native[1] // scale))
    expected = np.where(instances > 0, 1 + (instances % 2 == 1), 0)
    if scale == 2:
        value = {"Tumor": 1, "Stroma": 2}
        step = Affine.scale(mask.grid.scale_col, mask.grid.scale_row)
        expected = rasterize([(shape, value[name]) for shape, name in cells], mask.grid.shape, transform=step, dtype="uint8")
    np.testing.assert_array_equal(codes(TruthConfig(), labels, mask), expected)


# ASAP


def asap(path: Path, annotations: Sequence[tuple[str, str | None, Sequence[tuple[float, float]]]], groups: str = "") -> Path:
    """An ASAP file of (type, group, vertices), the vertices in wrong order."""
    rows = []
    for number, (kind, group, points) in enumerate(annotations):
        part = "" if group is None else f' PartOfGroup="{group}"'
        places = [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points)]
        inside = "".join(reversed(places[::2])) + "".join(places[1::2])
        rows.append(
            f'<Annotation Name="{number}" Type="{kind}"{part} Color="#F4FA58"><Coordinates>{inside}</Coordinates></Annotation>'
        )
    text = f"<Annotations>{''.join(rows)}</Annotations><AnnotationGroups>{groups}</AnnotationGroups>"
    path.write_text(f'<?xml version="1.0"?>\n<ASAP_Annotations>{text}</ASAP_Annotations>\n')
    return path


def corners(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_annotations_of_asap_burn_over_earlier_ones(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml",
        [
            ("Polygon", "Tumor", corners(0, 0, 5, 3)),
            ("Spline", "Exclusion", corners(1, 1, 3, 2)),
            ("Rectangle", "Stroma", corners(4, 0, 6, 1)),
        ],
    )
    config = TruthConfig(classes={"Tumor": "Tumor", "Stroma": "Stroma", "Exclusion": "background"})
    expected = [[1, 1, 1, 1, 2, 2], [1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0]]
    assert codes(config, path, slide((3, 6))).tolist() == expected
    assert codes(config.model_copy(update={"field": "PartOfGroup"}), path, slide((3, 6))).tolist() == expected
    by_name = TruthConfig(field="Name", classes={0: "Tumor", "*": "background"})
    assert codes(by_name, path, slide((3, 6))).tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0]]
    with pytest.raises(TruthError, match=r"field 'PartOfGroup' names what is no class \(features\): 'Exclusion' \(1\)"):
        plan_labels(TruthConfig(), str(path), slide((3, 6)))


def test_a_group_of_a_class_is_that_class(tmp_path: Path) -> None:
    groups = '<Group Name="_0" PartOfGroup="nests"><Attributes /></Group><Group Name="nests" PartOfGroup="Tumor"/>'
    groups += '<Group Name="Tumor" PartOfGroup="None"/><Group Name="x" PartOfGroup="y"/><Group Name="y" PartOfGroup="x"/>'
    path = asap(tmp_path / "a.xml", [("Polygon", "_0", corners(0, 0, 1, 1)), ("Polygon", "x", corners(1, 0, 2, 1))], groups)
    assert codes(TruthConfig(ignore=["x"]), path, slide((1, 3))).tolist() == [[1, 3, 0]]
    own = TruthConfig(classes={"_0": "Stroma", "Tumor": "Tumor", "*": "background"})
    assert codes(own, path, slide((1, 3))).tolist() == [[2, 0, 0]], "the nearest one speaks; groups in a ring end"


def test_annotations_of_asap_in_no_group(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", [("Polygon", "None", corners(0, 0, 1, 1)), ("Polygon", None, corners(1, 0, 2, 1))])
    with pytest.raises(TruthError, match=r"'None' \(1\), 'null' \(1\)"):
        plan_labels(TruthConfig(), str(path), slide((1, 3)))
    assert codes(TruthConfig(constant="Tumor"), path, slide((1, 3))).tolist() == [[1, 1, 0]]


def test_asap_is_in_pixels_even_where_the_image_has_a_georeference(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", [("Polygon", "Tumor", corners(1, 0, 2, 1))])
    grid = WorkingGrid(height=2, width=2, crs_wkt=crs_of("EPSG:32637"), transform=(1.0, 0.0, 5e5, 0.0, -1.0, 6e5))
    mask = MaskFacts(image="/archive/a.tif", model="m", classes=CLASSES, grid=grid, native_shape=(2, 2))
    assert codes(TruthConfig(), path, mask).tolist() == [[0, 1], [0, 0]]


def test_clicks_of_asap_collapse_and_dots_are_refused(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml",
        [
            ("Polygon", "Tumor", corners(0, 0, 1, 1)),
            ("Polygon", "Tumor", [(1, 0), (9, 9)]),
            ("Rectangle", "Tumor", [(2, 0)]),
            ("Spline", "Tumor", []),
        ],
    )
    spec = plan_labels(TruthConfig(), str(path), slide((1, 3)))
    assert read(spec, slide((1, 3))).codes.tolist() == [[1, 0, 0]]
    assert [note.split(": ")[1] for note in spec.notes[:2]] == [
        "2 of 4 shapes crossed themselves and were mended",
        "1 features have no geometry",
    ]
    dots = asap(tmp_path / "d.xml", [("Dot", "Tumor", [(4, 4)]), ("PointSet", "Tumor", [(1, 1), (9, 9)])])
    with pytest.raises(TruthError, match=r"1 MultiPoint, 1 Point: these have no area"):
        plan_labels(TruthConfig(), str(dots), slide((12, 12)))
    assert codes(TruthConfig(buffer_m=1e-6), dots, slide((12, 12)))[4].tolist() == [0, 0, 1, 1, 1, 1] + [0] * 6


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bb">]><ASAP_Annotations>&b;</ASAP_Annotations>', "have a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><ASAP_Annotations/>', "have a DOCTYPE"),
        ("<Annotations MicronsPerPixel='0.25'><Annotation/></Annotations>", "the root is <Annotations>"),
        ("<ASAP_Annotations><Annotations>", "cannot be read: no element found"),
        ("<ASAP_Annotations>&b;</ASAP_Annotations>", "undefined entity"),
        ("not xml", "are no ASAP file: it begins with"),
        (
            "<ASAP_Annotations><Annotations><Annotation Name='a' Type='Ellipse'/></Annotations></ASAP_Annotations>",
            "'a' has the type 'Ellipse'",
        ),
        (
            "<ASAP_Annotations><Annotations><Annotation Name='a' Type='Dot'><Coordinates><Coordinate X='1,5' Y='2'/>"
            "</Coordinates></Annotation></Annotations></ASAP_Annotations>",
            "numbers with decimal points",
        ),
        (
            "<ASAP_Annotations><Annotations><Annotation Name='a' Type='Polygon'><Coordinates><Coordinate X='nan' Y='2'/>"
            "</Coordinates></Annotation></Annotations></ASAP_Annotations>",
            "numbers with decimal points",
        ),
    ],
)
def test_xml_that_is_something_else_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(TruthError, match=why):
        plan_labels(TruthConfig(ignore=["null"]), str(path), slide((5, 6)))


def test_a_large_file_of_asap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = asap(tmp_path / "a.xml", [("Polygon", "Tumor", corners(0, 0, 1, 1))])
    monkeypatch.setattr(vectorfile, "MOST_LOADED_BYTES", 100)
    with pytest.raises(TruthError, match="each worker would have to hold them whole"):
        plan_labels(TruthConfig(), str(path), slide((5, 6)))


# Areas


def inside(path: Path, mask: MaskFacts, window: Window | None = None) -> list[list[bool]]:
    """As the docstring of plan_area says it."""
    result: list[list[bool]] = (read(plan_area(str(path), mask), mask, window, classes=2).codes == 1).tolist()
    return result


def test_the_area_is_inside_any_polygon(tmp_path: Path) -> None:
    mask = slide((5, 6))
    for path in (
        qupath(tmp_path / "a.geojson", DRAWN),
        qupath(tmp_path / "b.geojson", [feature(s) for s in (RING, PARTS)], bare=True),
    ):
        assert inside(path, mask) == [[code > 0 for code in row] for row in BURNT]
        assert inside(path, mask, Window(1, 2, 2, 3)) == [[False, False, True], [True, False, True]]
    path = asap(tmp_path / "a.xml", [("Polygon", "x", corners(1, 0, 2, 1)), ("Rectangle", None, corners(3, 0, 4, 1))])
    assert inside(path, slide((1, 5))) == [[False, True, False, True, False]]
    assert inside(path, slide((2, 10), (1, 5))) == [[False] * 5], "full resolution: centres at 1, 3, 5, 7, 9; row 1 is beside"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_the_area_is_where_a_raster_of_any_resolution_is_not_0(raster: Raster, dtype: str) -> None:
    values = raster(np.array([[0, 1, 100], [0, 7, 0]], dtype), "a.tif", nodata=7)
    whole = [[False, True, True], [False, False, False]]
    assert inside(values, slide((2, 3))) == whole
    assert inside(values, slide((4, 6))) == np.kron(whole, np.ones((2, 2), bool)).tolist()
    assert inside(values, slide((4, 6)), Window(1, 3, 2, 2)) == [[True, True], [False, False]]
    assert inside(values, slide((7, 10), (2, 3))) == whole, "2.5 or 3.3 native pixels to one: it is the whole image, so it fits"
    with pytest.raises(TruthError, match=r"(?s)the area of /archive/a.svs cannot be told: .*not that of the\s+whole image"):
        plan_area(str(values), slide((40, 40)))


def test_fractions_are_inside_too(raster: Raster) -> None:
    assert inside(raster(np.array([[0, 0.25, np.nan]], np.float32)), slide((1, 3))) == [[False, True, False]]


def test_the_area_follows_the_georeference(raster: Raster) -> None:
    where = {"crs": "EPSG:32637", "transform": Affine(2, 0, 5e5 + 2, 0, -2, 6e5)}
    values = raster(np.array([[1, 0]], np.uint8), **where)
    grid = WorkingGrid(height=2, width=8, crs_wkt=crs_of("EPSG:32637"), transform=(1.0, 0.0, 5e5, 0.0, -1.0, 6e5))
    mask = MaskFacts(image="/archive/a.tif", model="m", classes=CLASSES, grid=grid, native_shape=(2, 8))
    assert inside(values, mask) == [[False, False, True, True, False, False, False, False]] * 2


def test_areas_that_say_nothing_are_errors(tmp_path: Path, raster: Raster) -> None:
    far = qupath(tmp_path / "far.geojson", [feature(shapely.box(900, 900, 990, 990))])
    empty = qupath(tmp_path / "empty.geojson", [])
    dots = qupath(tmp_path / "dots.geojson", [feature(shapely.Point(1, 1))])
    for path in (far, empty, dots, tmp_path / "none.geojson", tmp_path / "none.tif", raster(np.zeros((3, 4, 5), np.uint8))):
        with pytest.raises(TruthError, match=r"the area of /archive/a.svs cannot be told"):
            plan_area(str(path), slide((5, 6)))


def test_plans_of_areas_travel_as_text(tmp_path: Path, raster: Raster) -> None:
    for path in (qupath(tmp_path / "a.geojson", DRAWN), raster(np.ones((5, 6), np.uint8))):
        spec = plan_area(str(path), slide((5, 6)))
        assert TruthSpec.model_validate_json(spec.model_dump_json()) == spec
        coarse = spec.coarser(5, 2)
        with open_truth(coarse, 2, 1, 3) as area:
            assert area.read(Window(0, 0, 1, 3)).codes.shape == (1, 3)
