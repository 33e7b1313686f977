"""Slides are read as what they are: by content, at a believed size, from their own levels, and never with a patient's name."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageCms

from pipeline import slidefile
from pipeline.errors import ChangedError, PlanError, SourceError
from pipeline.grid import Window
from pipeline.image import Resolution, SourceInfo, WorkingGrid, coarse_grid, working_grid
from pipeline.plan import Plan, ReadSpec
from pipeline.sources import Pixels, describe, open_source
from pipeline.work import predict_core
from tests import slides
from tests.conftest import REPO, write_raster
from tests.making import plan_of, threshold_model
from tests.test_work import predictor_of

PIXELS = slides.tissue(600, 700)
RGB = {"bands": ["red", "green", "blue"]}


@pytest.fixture(scope="module")
def aperio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of two levels, without loss: what is read can be compared."""
    return slides.write_aperio(tmp_path_factory.mktemp("slide") / "a.svs", PIXELS, compression="zlib")


def spec_of(info: SourceInfo, grid: WorkingGrid | None = None, **changes: Any) -> ReadSpec:
    grid = grid or working_grid(info, None)
    assert grid is not None
    facts = {"source": info, "bands": info.band_indexes, "valid_from": info.valid_from, "nodata": info.nodata, "grid": grid}
    return ReadSpec(**facts | changes)


def read(spec: ReadSpec, window: Window | None = None) -> Pixels:
    with open_source(spec) as source:
        return source.read(window or Window(0, 0, *spec.grid.shape))


def at(info: SourceInfo, mpp: float | list[float]) -> WorkingGrid:
    grid = working_grid(info, Resolution.model_validate({"mpp": mpp}))
    assert grid is not None
    return grid


def planes(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.transpose(2, 0, 1)


def test_the_reader_is_chosen_by_content_not_by_name(tmp_path: Path, aperio: Path) -> None:
    disguised = shutil.copy(aperio, tmp_path / "photo.png")
    assert describe(str(disguised)).driver == "aperio"
    named = write_raster(tmp_path / "raster.svs", np.zeros((3, 40, 40), np.uint8))
    assert (describe(str(named)).reader, describe(str(named)).driver) == ("raster", "GTiff")
    assert describe(str(aperio), reader="raster").reader == "raster"
    with pytest.raises(SourceError, match="no slide that OpenSlide"):
        describe(str(write_raster(tmp_path / "plain.png", np.zeros((3, 40, 40), np.uint8), driver="PNG")), reader="slide")


def test_a_tiff_of_no_vendor_is_a_slide_where_it_has_a_microscopes_size(tmp_path: Path) -> None:
    sized = slides.write_pyramid(tmp_path / "sized.tif", PIXELS, resolution=(20_000, 25_000))
    info = describe(str(sized))
    assert (info.reader, info.driver, len(info.levels)) == ("slide", "generic-tiff", 3)
    assert info.pixel_size_m == pytest.approx((0.4e-6, 0.5e-6))  # rows are taller than columns are wide: kept apart
    unsized = describe(str(slides.write_pyramid(tmp_path / "unsized.tif", PIXELS)))
    assert (unsized.reader, unsized.pixel_size_m, unsized.pixel_size_error) == ("raster", None, None)
    assert describe(str(tmp_path / "unsized.tif"), mpp=(0.5, 0.5)).reader == "slide"
    placed = write_raster(
        tmp_path / "placed.tif", planes(PIXELS), tiled=True, blockxsize=256, blockysize=256, crs="EPSG:32633",
        transform=(0.5, 0, 5e5, 0, -0.5, 5e6),
    )  # fmt: skip
    assert openslide.OpenSlide.detect_format(placed) == "generic-tiff"
    assert describe(str(placed)).reader == "raster"


@pytest.mark.parametrize(("per_cm", "mpp"), [(1, "1e+04"), (28.346, "352.8")])
def test_the_junk_of_a_printers_tag_is_no_size(tmp_path: Path, per_cm: float, mpp: str) -> None:
    """1 pixel/cm and 72 dpi: OpenSlide believes both."""
    path = slides.write_pyramid(tmp_path / "a.tif", PIXELS, resolution=(per_cm, per_cm))
    assert float(openslide.OpenSlide(path).properties["openslide.mpp-x"]) > 300
    info = describe(str(path))
    assert info.pixel_size_m is None
    assert info.pixel_size_error is not None
    assert f"{mpp} x {mpp} µm" in info.pixel_size_error
    model = threshold_model(tmp_path / "model", resolution={"mpp": 0.5}, **RGB)
    with pytest.raises(PlanError, match=r"archive\.mpp.*manifest column mpp"):
        plan_of(path, model, tmp_path)
    plan = plan_of(path, model, tmp_path, resolution="native")
    assert plan.grid.shape == PIXELS.shape[:2]


@pytest.mark.parametrize(
    ("properties", "stated", "from_power", "wanted", "where"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26", "aperio.MPP": "9"}, None, False, (0.26, 0.25), "openslide.mpp-x"),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, (0.5, 0.6), False, (0.5, 0.6), "stated"),
        ({"openslide.mpp-x": "10000", "openslide.mpp-y": "10000", "aperio.MPP": "0.5"}, None, False, (0.5, 0.5), "aperio.MPP"),
        ({"ventana.ScanRes": "0,25"}, None, False, (0.25, 0.25), "ventana.ScanRes"),
        (
            {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800", "tiff.YResolution": "25400"},
            *(None, False, (1.0, 0.5), "tiff.XResolution"),
        ),
        ({"tiff.ResolutionUnit": "none", "tiff.XResolution": "4", "tiff.YResolution": "4"}, None, False, None, None),
        ({"openslide.objective-power": "40"}, None, False, None, None),
        ({"openslide.objective-power": "40"}, None, True, (0.25, 0.25), "objective power"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5", "openslide.objective-power": "40"}, None, True, (0.5, 0.5),
         "openslide.mpp-x"),
        ({"openslide.mpp-x": "much", "openslide.mpp-y": "0.5"}, None, False, None, None),
    ],
)  # fmt: skip
def test_what_states_a_pixels_size_is_asked_in_order(
    properties: dict[str, str], stated: tuple[float, float] | None, from_power: bool, wanted: Any, where: str | None
) -> None:
    size, found_in, _ = slidefile.pixel_size(properties, stated, from_power=from_power)
    assert found_in == where
    assert size == (None if wanted is None else pytest.approx((wanted[0] * 1e-6, wanted[1] * 1e-6)))


def test_a_stated_size_that_no_microscope_has_is_refused(aperio: Path) -> None:
    with pytest.raises(SourceError, match="250 x 250 µm"):
        describe(str(aperio), mpp=(250, 250))


def test_the_level_is_the_coarsest_that_is_fine_enough(aperio: Path) -> None:
    """Levels of 0.5 and 2 µm: 0.52 and 1.97 are taken as they are stored, 1 is made from the first, 3 from the second."""
    info = describe(str(aperio))
    assert info.levels == ((600, 700), (150, 175))
    assert [(at(info, mpp).level, at(info, mpp).as_stored) for mpp in (0.52, 1, 1.97, 3)] == [
        (0, True), (0, False), (1, True), (1, False),
    ]  # fmt: skip
    assert at(info, 1.9).level == 0 if not at(info, 1.9).as_stored else at(info, 1.9).level == 1
    assert at(info, 3).shape == (100, 117)
    assert at(info, 2).pixel_size_m == pytest.approx((2e-6, 2e-6))
    assert at(info, [1, 2]).level == 1
    assert working_grid(info, Resolution.model_validate({"mpp": [1.0]})) is None


def test_a_slide_without_a_wanted_level_names_those_that_it_has(aperio: Path, tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", resolution={"mpp": [0.25, 1.0]}, **RGB)
    with pytest.raises(PlanError, match=r"levels of 0\.5 µm, 2 µm, and 0\.25 or 1 µm"):
        plan_of(aperio, model, tmp_path)


def test_level_0_is_what_was_written_and_other_levels_are_the_slides_own(aperio: Path) -> None:
    info = describe(str(aperio))
    assert (read(spec_of(info)).data == planes(PIXELS)).all()
    assert read(spec_of(info)).valid.all()
    assert (read(spec_of(info, at(info, 2))).data == planes(slides.shrink(PIXELS, 4))).all()


@settings(max_examples=25)
@given(data=st.data())
def test_any_window_is_the_crop_of_the_whole(data: st.DataObject, aperio: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At full resolution, at a level, resampled from one, and at a level whose downsample is no whole number."""
    mpp = data.draw(st.sampled_from([0.5, 2.0, 1.3, 3.1]))
    info = describe(str(aperio))
    spec = spec_of(info, at(info, mpp))
    assert_crops(data, spec)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 0.5 µm with a level of 300 x 233 px: downsamples of 4.007 and 4.004, as scanners leave them."""
    pixels = slides.tissue(1202, 933)
    path = tmp_path_factory.mktemp("uneven") / "a.svs"
    return slides.write_aperio(path, pixels, compression="zlib")


@settings(max_examples=25)
@given(data=st.data())
def test_a_level_of_an_uneven_downsample_has_one_content(data: st.DataObject, uneven: Path) -> None:
    info = describe(str(uneven))
    grid = at(info, 2)
    assert grid.as_stored
    assert grid.scale_row != 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slidefile, "PAGE", 64)
        assert_crops(data, spec_of(info, grid))


def test_an_uneven_level_is_the_stored_one_but_for_a_part_of_a_pixel(uneven: Path) -> None:
    info = describe(str(uneven))
    with tifffile.TiffFile(uneven) as file:
        stored = file.pages[2].asarray()
    seen = read(spec_of(info, at(info, 2))).data.transpose(1, 2, 0)
    assert seen.shape == stored.shape
    assert np.abs(seen.astype(int) - stored).mean() < 0.5


def assert_crops(data: st.DataObject, spec: ReadSpec) -> None:
    whole = read(spec)
    height, width = spec.grid.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    part = read(spec, window)
    assert (part.data == whole.data[:, *window.slices]).all()
    assert (part.valid == whole.valid[window.slices]).all()


def test_both_readers_see_the_same_pixels_of_a_deflated_pyramid(tmp_path: Path) -> None:
    path = str(slides.write_pyramid(tmp_path / "a.tif", PIXELS, resolution=(20_000, 20_000)))
    slide, raster = describe(path, reader="slide"), describe(path, reader="raster")
    assert (slide.reader, raster.reader) == ("slide", "raster")
    assert (read(spec_of(slide)).data == read(spec_of(raster)).data).all()


@pytest.mark.parametrize("reader", ["auto", "raster"])
def test_label_and_macro_never_show(tmp_path: Path, reader: Any) -> None:
    """The photographs are pure red and green: no reader, however small the picture that it is asked for, gives them."""
    pixels = np.full((600, 700, 3), 128, np.uint8)
    path = slides.write_aperio(tmp_path / "a.svs", pixels, compression="zlib", levels=(1,))
    info = describe(str(path), reader=reader)
    for shape in ((600, 700), (50, 60), (20, 30), (3, 4)):
        assert (read(spec_of(info, coarse_grid(info, *shape))).data == 128).all()


def test_nothing_in_the_house_asks_for_a_slides_photographs() -> None:
    for folder in ("pipeline", "flows"):
        for path in (REPO / folder).rglob("*.py"):
            assert "associated_images" not in path.read_text(), path


def test_what_was_not_scanned_is_no_data(tmp_path: Path) -> None:
    path = slides.write_aperio(tmp_path / "a.svs", PIXELS, compression="zlib", levels=(1,), missing={(0, 1)})
    pixels = read(spec_of(describe(str(path))))
    hole = Window(0, 256, 256, 256)
    assert not pixels.valid[hole.slices].any()
    assert pixels.valid.sum() == pixels.valid.size - 256 * 256
    assert (pixels.data[:, *hole.slices] == 255).all()


def test_half_transparent_pixels_are_laid_on_the_background(aperio: Path) -> None:
    info = describe(str(aperio)).model_copy(update={"background": (0, 200, 100)})
    file = slidefile.SlideFile(info, (1, 2, 3), 0, srgb=False)
    data, valid = file._laid(np.array([[[100, 100, 100, 255], [100, 100, 100, 51], [9, 9, 9, 0]]], np.uint8))
    assert data[:, 0].T.tolist() == [[100, 100, 100], [20, 180, 100], [0, 200, 100]]
    assert valid.tolist() == [[True, True, False]]


def test_a_colour_profile_is_applied_where_asked(data: Path) -> None:
    """The drawn boxes have one; the oracle is Pillow on the whole picture."""
    info = describe(str(data / "wsi" / "boxes.tiff"), reader="slide")
    assert info.has_icc_profile
    plain, changed = read(spec_of(info)), read(spec_of(info, srgb=True))
    with openslide.OpenSlide(info.uri) as slide:
        picture = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        assert slide.color_profile is not None
        wanted = ImageCms.profileToProfile(picture, slide.color_profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert (plain.data == planes(np.asarray(picture))).all()
    assert wanted is not None
    assert (changed.data == planes(np.asarray(wanted))).all()


def test_a_damaged_tile_costs_its_region_alone(tmp_path: Path) -> None:
    """OpenSlide's handle fails for ever after one bad tile: a fresh one reads all that is sound."""
    path = slides.write_aperio(tmp_path / "a.svs", PIXELS, compression="zlib", levels=(1,))
    slides.corrupt_tile(path, 0, 1)  # rows 0-255, columns 256-511
    plan = plan_of(path, threshold_model(tmp_path / "model", tile=64, overlap=0, **RGB), tmp_path)
    labels = labels_of(plan)
    bad = np.zeros(labels.shape, bool)
    bad[:256, 256:512] = True
    assert ((labels == 254) == bad).all()
    assert (labels[~bad] == np.digitize(PIXELS[..., 0], [100])[~bad]).all()


def test_a_slide_that_is_torn_is_refused_and_others_are_not(tmp_path: Path, aperio: Path) -> None:
    torn = tmp_path / "torn.svs"
    torn.write_bytes(aperio.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"torn\.svs"):
        describe(str(torn))


def test_a_slide_that_was_replaced_is_not_read_on(tmp_path: Path, aperio: Path) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(aperio, path)
    spec = spec_of(describe(str(path)))
    slides.write_aperio(path, PIXELS[::-1], compression="zlib")
    with pytest.raises(ChangedError):
        open_source(spec)
    path.unlink()
    with pytest.raises(ChangedError, match="vanished"):
        open_source(spec)


def test_16_bits_stay_16_and_a_pyramid_in_subifds_is_read_whole(tmp_path: Path) -> None:
    """OpenSlide would make 16 bits 8, and see one level of an OME-TIFF: GDAL reads these, with the size that OME states."""
    deep = np.random.default_rng(0).integers(0, 65536, (3, 300, 280), np.uint16)
    info = describe(str(slides.write_16bit(tmp_path / "deep.tif", deep)))
    assert (info.reader, info.dtype) == ("raster", "uint16")
    assert (read(spec_of(info)).data == deep).all()
    ome = describe(str(slides.write_ome(tmp_path / "a.ome.tif", PIXELS, mpp=(0.6, 0.5))))
    assert (ome.reader, ome.pixel_size_from) == ("raster", "OME PhysicalSizeX")
    assert ome.pixel_size_m == pytest.approx((0.6e-6, 0.5e-6))
    assert (read(spec_of(ome)).data == planes(PIXELS)).all()
    with pytest.raises(SourceError, match="4 planes"):
        describe(str(slides.write_ome(tmp_path / "four.ome.tif", np.zeros((4, 300, 280), np.uint8))))


def test_a_georeference_and_a_stated_size_contradict(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((3, 9, 9), np.uint8), crs="EPSG:32633", transform=(1, 0, 5e5, 0, -1, 5e6))
    with pytest.raises(SourceError, match=r"archive\.mpp"):
        describe(str(path), mpp=(0.5, 0.5))


def test_handles_are_few_and_share_a_cache(tmp_path: Path, aperio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slidefile, "HANDLES", 2)
    handles = slidefile._Handles()
    paths = [tmp_path / f"{i}.svs" for i in range(3)]
    for path in paths:
        shutil.copy(aperio, path)
    opened = [handles.get((0, str(path), 0, 0, ())) for path in paths]
    assert [key[1] for key in handles._open] == [str(path) for path in paths[1:]]
    assert handles.get((0, str(paths[2]), 0, 0, ())) is opened[2]
    assert np.asarray(opened[0].read_region((0, 0), 0, (5, 5))).shape == (5, 5, 4)  # its reader still has it
    handles.drop((0, str(paths[2]), 0, 0, ()))
    assert handles.get((0, str(paths[2]), 0, 0, ())) is not opened[2]


def test_dicom_is_read_at_its_stated_size(data: Path) -> None:
    info = describe(str(data / "wsi" / "bone_jpeg" / "bone_jpeg.dcm"))
    assert (info.reader, info.driver, info.height, info.width) == ("slide", "dicom", 715, 957)
    assert info.pixel_size_m == pytest.approx((16.783e-6, 16.783e-6))


def test_real_slides_read_as_openslide_shows_them(data: Path) -> None:
    for name, mpp in (("CMU-1-Small-Region.svs", 0.499), ("test3-DAPI-2-387.ndpi", 0.2282)):
        info = describe(str(data / "wsi" / name))
        assert info.pixel_size_m == pytest.approx((mpp * 1e-6, mpp * 1e-6), rel=1e-3)
        level = len(info.levels) // 2
        height, width = info.levels[level]
        seen = read(spec_of(info, coarse_grid(info, height, width)))
        with openslide.OpenSlide(info.uri) as slide:
            wanted = np.asarray(slide.read_region((0, 0), level, (width, height)))
        assert (seen.data == planes(wanted[..., :3])).all()
        assert (seen.valid == (wanted[..., 3] > 0)).all()


def labels_of(plan: Plan) -> NDArray[np.unsignedinteger]:
    """All labels of a plan, block by block."""
    labels = np.full(plan.grid.shape, 77, np.uint8)
    predictor = predictor_of(plan)
    for block in plan.blocks:
        labels[block.core.slices] = predict_core(plan, predictor, partial(open_source, plan.read), block.core).labels
    return labels
