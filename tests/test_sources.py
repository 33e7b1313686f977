"""Raster files as working pixels: what headers say, what is real, and what is never opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.env import get_gdal_config
from rasterio.transform import from_origin
from rasterio.warp import transform as reproject_points
from rasterio.windows import Window as RasterioWindow

from pipeline import projection, rasterfile
from pipeline.errors import ChangedError, PlanError, SourceError
from pipeline.grid import Window
from pipeline.image import Resolution, SourceInfo, working_grid
from pipeline.plan import MIB, ReadSpec, gdal_cache_bytes
from pipeline.sources import Pixels, describe, open_source
from tests.conftest import write_raster

Raster = Callable[..., Path]
UTM = {"crs": "EPSG:32637", "transform": from_origin(500_000, 100_000, 0.5, 0.5)}


def spec_of(path: Path, scale: float | None = None, **changes: Any) -> ReadSpec:
    """All bands of `path`, natively or `scale` native pixels to a working pixel."""
    source = describe(str(path))
    grid = working_grid(source, None if scale is None else Resolution(size=scale, unit="source-pixel"))
    assert grid is not None
    spec = ReadSpec(source=source, bands=source.band_indexes, valid_from=source.valid_from, nodata=source.nodata, grid=grid)
    return spec.model_copy(update=changes)


def read(spec: ReadSpec, window: Window | None = None) -> Pixels:
    with open_source(spec) as source:
        return source.read(window or Window(0, 0, *spec.grid.shape))


def noise(*shape: int, dtype: str = "uint8") -> Any:
    return np.random.default_rng(0).uniform(1, 200, shape).astype(dtype)


# --- headers


@pytest.mark.parametrize(
    ("name", "bands", "dtype", "valid_from", "block"),
    [
        ("dubai/dubai_scene2.tif", ("red", "green", "blue"), "uint8", "all", (512, 512)),
        ("oam_buildings/oam_banepa_b.tif", ("red", "green", "blue"), "uint8", "alpha", (512, 512)),
        ("oam_buildings/oam_kampala_a.tif", ("red", "green", "blue"), "uint8", "mask", (512, 512)),
        ("naip_sparse/naip_eureka_2020_sparse.tif", ("red", "green", "blue", "nir"), "uint8", "nodata", (256, 256)),
        ("naip_4band/m_4709963_se_14_1_20200831.tif", ("gray", "band2", "band3", "band4"), "uint8", "nodata", (512, 512)),
        ("edge_cases/cog_int16.tif", ("gray",), "int16", "nodata", (512, 512)),
        ("edge_cases/image_2000px.tif", ("red", "green", "blue"), "uint8", "all", (16, 1500)),
    ],
)
def test_the_header_says_what_an_image_is(
    data: Path, name: str, bands: tuple[str, ...], dtype: str, valid_from: str, block: tuple[int, int]
) -> None:
    info = describe(str(data / name))
    with rasterio.open(data / name) as file:
        assert (info.height, info.width) == file.shape
        assert info.band_indexes == tuple(range(1, len(bands) + 1))
        assert info.transform is None if file.crs is None else info.transform == file.transform[:6]
        assert (info.crs_wkt is None) == (file.crs is None)
        if info.crs_wkt is not None:
            assert CRS.from_wkt(info.crs_wkt) == file.crs
    assert (info.band_names, info.dtype, info.valid_from, info.block_shape) == (bands, dtype, valid_from, block)
    assert info.size_bytes == (data / name).stat().st_size


def test_an_image_without_georeference_has_none(raster: Raster) -> None:
    info = describe(str(raster(noise(5, 6))))
    assert (info.crs_wkt, info.transform, info.pixel_size_m) == (None, None, None)


def test_bands_are_named_by_description_then_colour_then_position(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(5, 4, 4), photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.set_band_description(4, "NIR")
        file.set_band_description(5, "NIR")
    assert describe(str(path)).band_names == ("red", "green", "blue", "nir", "band5")


def test_equal_systems_print_alike_whatever_wrote_them(tmp_path: Path) -> None:
    esri = CRS.from_epsg(32637).to_wkt(version="WKT1_ESRI")
    assert esri != CRS.from_epsg(32637).to_wkt(version="WKT2_2019")
    assert projection.wkt2(esri) == projection.wkt2(CRS.from_epsg(32637).to_wkt())
    assert projection.wkt2(esri) != projection.wkt2(CRS.from_epsg(32636).to_wkt())


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (32637, (0.6, 0, 5e5, 0, -0.6, 1e6), (0.6, 0.6)),
        (32637, (0.3, 0.4, 5e5, -0.8, 0.6, 1e6), (0.7211, 0.8544)),  # rotated: hypot(0.4, 0.6), hypot(0.3, 0.8)
        (2225, (2.0, 0, 6e6, 0, -2.0, 2.2e6), (0.6096, 0.6096)),  # US survey feet
        (4326, (1e-5, 0, 0, 0, -1e-5, 0), (1.10574, 1.11319)),  # at the equator a degree is 110.574 and 111.319 km
        (4326, (1e-5, 0, 0, 0, -1e-5, 60), (1.11412, 0.55800)),  # at 60 degrees north 111.412 and 55.800 km
    ],
)
def test_pixels_have_a_size_on_the_ground(raster: Raster, crs: int, transform: Any, metres: tuple[float, float]) -> None:
    path = raster(noise(8, 8), crs=f"EPSG:{crs}", transform=rasterio.Affine(*transform))
    assert describe(str(path)).pixel_size_m == pytest.approx(metres, rel=1e-4)


def test_web_mercator_is_corrected_to_the_ground(data: Path) -> None:
    info = describe(str(data / "oam_buildings" / "oam_banepa_b.tif"))
    a, _, c, _, e, f = info.transform or ()
    xs, ys = [c + a * 500, c + a * 1500, c + a * 500], [f + e * 500, f + e * 500, f + e * 1500]
    easts, norths = reproject_points("EPSG:3857", "EPSG:32645", xs, ys)  # a system made for measuring there
    row = np.hypot(easts[2] - easts[0], norths[2] - norths[0]) / 1000
    col = np.hypot(easts[1] - easts[0], norths[1] - norths[0]) / 1000

    assert info.pixel_size_m == pytest.approx((row, col), rel=2e-3)
    assert info.pixel_size_m[1] == pytest.approx(0.0746 * np.cos(np.radians(27.6)), rel=5e-3)


def test_a_system_without_a_known_unit_has_no_metres() -> None:
    site = CRS.from_wkt('LOCAL_CS["site",UNIT["unknown",1]]')
    assert projection.pixel_size_m(site, (2, 0, 0, 0, -2, 0), 4, 4) is None


def test_a_file_in_one_huge_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tile.tif"
    profile = {"driver": "GTiff", "width": 30_000, "height": 30_000, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, tiled=True, blockxsize=30_000, blockysize=30_000, sparse_ok=True):
        pass
    with pytest.raises(SourceError, match=r"30000 x 30000 px.*858 MiB"):
        describe(str(path))


def test_bands_of_different_types_are_refused(raster: Raster, tmp_path: Path) -> None:
    raster(noise(2, 2), "a.tif"), raster(noise(2, 2, dtype="uint16"), "b.tif")
    file = '<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename></SimpleSource>'
    band = f'<VRTRasterBand dataType="{{}}" band="{{}}">{file}</VRTRasterBand>'
    bands = band.format("Byte", 1, "a.tif") + band.format("UInt16", 2, "b.tif")
    (tmp_path / "ab.vrt").write_text(f'<VRTDataset rasterXSize="2" rasterYSize="2">{bands}</VRTDataset>')
    with rasterio.open(tmp_path / "ab.vrt") as mixed, pytest.raises(SourceError, match="1: uint8, 2: uint16"):
        rasterfile._facts(tmp_path / "a.tif", mixed)


# --- what is never opened


def test_a_text_file_is_no_raster_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("not an image")
    with pytest.raises(SourceError, match="cannot be opened as a raster"):
        describe(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("start", ["", "\n" * 300])
def test_a_vrt_named_tif_does_not_read_what_it_points_at(raster: Raster, tmp_path: Path, start: str) -> None:
    secret = raster(noise(4, 4), "secret.tif")
    vrt = (
        f'{start}<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "harmless.tif").write_text(vrt)
    with rasterio.open(tmp_path / "harmless.tif") as file:
        assert file.driver == "VRT"
        assert file.read().any()
    with pytest.raises(SourceError, match="VRT" if not start else "cannot be opened"):
        describe(str(tmp_path / "harmless.tif"))


@pytest.mark.parametrize(
    "uri",
    [
        "/vsicurl/https://example.org/a.tif",
        "/vsizip/a.zip/a.tif",
        "https://example.org/a.tif",
        "s3://bucket/a.tif",
        "MEM:::DATAPOINTER=1,PIXELS=1,LINES=1",
        "GTIFF_DIR:2:a.tif",
        "<VRTDataset/>",
        "relative.tif",
    ],
)
def test_only_local_paths_are_followed(uri: str) -> None:
    with pytest.raises(SourceError, match="no absolute path of a local file"):
        describe(uri)


def test_a_mask_file_is_not_read_to_see_what_it_is(raster: Raster) -> None:
    path = raster(noise(4, 4))
    with Path(f"{path}.msk").open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(SourceError, match=r"msk is no TIFF"):
        describe(str(path))


def test_what_is_decoded_whole_is_planned_whole(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "a.webp", "w", driver="WEBP", width=300, height=200, count=3, dtype="uint8") as file:
        file.write(noise(3, 200, 300))
    assert describe(str(tmp_path / "a.webp")).block_shape == (200, 300)


@pytest.mark.parametrize("size", ["inf", "nan", "0", "-1"])
def test_a_size_in_ome_that_is_none_is_not_believed(size: str) -> None:
    text = f'<OME><Image><Pixels SizeC="1" SizeZ="1" SizeT="1" PhysicalSizeX="{size}" PhysicalSizeY="0.5"/></Image></OME>'
    found = rasterfile.OmePixels.of(text)
    assert found is not None
    assert found.size_m is None


def test_a_mask_file_that_is_no_tiff_is_refused(raster: Raster) -> None:
    path = raster(noise(4, 4))
    Path(f"{path}.msk").write_text('<VRTDataset rasterXSize="4" rasterYSize="4"/>')
    with pytest.raises(SourceError, match=r"msk is no TIFF"):
        describe(str(path))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        describe(str(tmp_path / "none.tif"))
    with pytest.raises(SourceError, match="is a folder"):
        describe(str(tmp_path))


def test_a_file_that_changed_since_it_was_planned_is_refused(raster: Raster) -> None:
    path = raster(noise(4, 4))
    spec = spec_of(path)
    write_raster(path, noise(4, 40))
    with pytest.raises(ChangedError, match="not the file that was planned"):
        open_source(spec)


def test_a_torn_file_fails_where_it_is_torn(raster: Raster) -> None:
    path = raster(noise(256, 256), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with open_source(spec_of(path)) as source:
        assert source.read(Window(0, 0, 64, 64)).data.any()
        with pytest.raises(SourceError, match="native rows 192-255, columns 0-63 cannot be read"):
            source.read(Window(192, 0, 64, 64))


# --- native pixels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "layout", [{}, {"blockysize": 16}, {"tiled": True, "blockxsize": 32, "blockysize": 48}, {"interleave": "band"}]
)
def test_pixels_are_those_of_rasterio(raster: Raster, dtype: str, layout: dict[str, Any]) -> None:
    path = raster(noise(3, 70, 90, dtype=dtype), compress="deflate", **layout, **UTM)
    pixels = read(spec_of(path, bands=(3, 1), nodata=(None, None)), Window(13, 7, 40, 61))
    with rasterio.open(path) as file:
        expected = file.read([3, 1], window=RasterioWindow(7, 13, 61, 40))
    assert pixels.data.dtype == dtype
    np.testing.assert_array_equal(pixels.data, expected)
    assert pixels.valid.all()


@pytest.mark.parametrize("driver", ["PNG", "BMP", "ENVI", "HFA", "JP2OpenJPEG", "NITF", "WEBP", "JPEG"])
def test_other_formats_are_read_too(tmp_path: Path, driver: str) -> None:
    path = write_raster(tmp_path / "a.img", noise(3, 64, 64), driver=driver)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(read(spec_of(path)).data, file.read())
    assert describe(str(path)).driver == driver


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("oam_buildings/oam_kampala_a.tif", Window(0, 0, 2048, 3072)),  # an internal mask
        ("oam_buildings/oam_banepa_b.tif", Window(0, 0, 2048, 2048)),  # band 4 is alpha
        ("edge_cases/cog_int16.tif", Window(100, 3, 1500, 2000)),  # nodata -32768
        ("naip_sparse/naip_eureka_2020_sparse.tif", Window(1000, 500, 1500, 3000)),  # nodata 0, blocks that are not stored
        ("dsb2018_nuclei/purple_stain/image/c0152b1a260e71f9.png", Window(0, 0, 256, 320)),
    ],
)
def test_real_pixels_are_where_rasterio_says(data: Path, name: str, window: Window) -> None:
    with rasterio.open(data / name) as file:
        native = RasterioWindow(window.col, window.row, window.width, window.height)
        mask, expected = file.dataset_mask(window=native) > 0, file.read(window=native)
    if "png" not in name and "banepa" not in name:
        assert 0.001 < mask.mean() < 0.999

    pixels = read(spec_of(data / name), window)

    np.testing.assert_array_equal(pixels.valid, mask)
    np.testing.assert_array_equal(pixels.data, expected[: len(pixels.data)])


def test_where_nothing_was_stored_nothing_is_real(data: Path) -> None:
    pixels = read(spec_of(data / "naip_sparse" / "naip_eureka_2020_sparse.tif"), Window(0, 0, 100, 200))
    assert not pixels.valid.any()
    assert not pixels.data.any()


def test_nodata_is_filling_only_where_every_band_has_it(raster: Raster) -> None:
    path = raster(np.array([[[0, 0, 5]], [[0, 7, 0]]], np.uint8), nodata=0)
    assert read(spec_of(path)).valid.tolist() == [[False, True, True]]
    assert read(spec_of(path, bands=(2,), nodata=(0.0,))).valid.tolist() == [[False, True, False]]


def test_each_band_may_have_its_own_nodata(raster: Raster) -> None:
    path = raster(np.array([[[1, 1, 2]], [[2, 1, 2]]], np.uint8))
    own = {"valid_from": "nodata", "nodata": (1.0, 2.0)}
    assert read(spec_of(path, **own)).valid.tolist() == [[False, True, True]]
    one = {"valid_from": "nodata", "nodata": (1.0, None)}
    assert read(spec_of(path, **one)).valid.all()  # the other band is always real


@pytest.mark.parametrize("value", [-9999.0, 256.0, 0.5])
def test_nodata_that_no_sample_can_have_is_ignored(raster: Raster, value: float) -> None:
    spec = spec_of(raster(np.zeros((2, 2), np.uint8)), valid_from="nodata", nodata=(value,))
    assert read(spec).valid.all()


def test_nan_and_infinity_are_filling_under_any_rule_and_never_reach_a_model(raster: Raster) -> None:
    samples = np.array([[[np.nan, 1, np.inf, -9999]], [[1, 2, 3, -9999]]], np.float32)
    undeclared = read(spec_of(raster(samples)))
    assert undeclared.valid.tolist() == [[False, True, False, True]]
    assert undeclared.data[0].tolist() == [[0, 1, 0, -9999]]
    assert read(spec_of(raster(samples, nodata=-9999))).valid.tolist() == [[False, True, False, False]]
    as_nan = spec_of(raster(samples, nodata=np.nan))
    assert as_nan.valid_from == "nodata"
    assert read(as_nan).valid.tolist() == [[False, True, False, True]]


def test_the_smallest_float_as_nodata(raster: Raster) -> None:
    lowest = float(np.finfo(np.float32).min)
    assert read(spec_of(raster(np.array([[lowest, 1]], np.float32), nodata=lowest))).valid.tolist() == [[False, True]]


def test_a_mask_beside_the_file_counts(raster: Raster) -> None:
    path, shown = raster(noise(4, 4)), np.eye(4, dtype=np.uint8) * 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(shown)
    assert Path(f"{path}.msk").exists()
    np.testing.assert_array_equal(read(spec_of(path)).valid, shown > 0)


def test_a_mask_goes_before_alpha_and_alpha_before_nodata(raster: Raster) -> None:
    samples = np.stack([np.zeros((2, 2)), [[0, 1], [128, 255]]]).astype(np.uint8)
    path = raster(samples, photometric="MINISBLACK", alpha="YES", nodata=0)
    assert read(spec_of(path)).valid.tolist() == [[False, True], [True, True]]
    with rasterio.open(path, "r+") as file:
        file.write_mask(np.array([[255, 255], [255, 0]], np.uint8))
    assert spec_of(path).valid_from == "mask"
    assert read(spec_of(path)).valid.tolist() == [[True, True], [True, False]]


def test_the_configuration_may_overrule_the_header(raster: Raster) -> None:
    assert read(spec_of(raster(np.zeros((2, 2), np.uint8), nodata=0), valid_from="all")).valid.all()


def test_a_window_outside_the_image_is_an_error(raster: Raster) -> None:
    for window in (Window(-1, 0, 2, 2), Window(3, 3, 2, 1), Window(10, 10, 2, 2)):
        with pytest.raises(PlanError):
            read(spec_of(raster(noise(4, 4))), window)


def test_the_cache_of_gdal_is_what_open_files_need_together(raster: Raster) -> None:
    spec = spec_of(raster(noise(3, 64, 64)))
    assert gdal_cache_bytes(spec.source) == 32 * MIB
    with open_source(spec) as one, open_source(spec):
        assert get_gdal_config("GDAL_CACHEMAX") == 64 * MIB
        one.close()
        one.close()
        assert get_gdal_config("GDAL_CACHEMAX") == 32 * MIB
    assert get_gdal_config("GDAL_CACHEMAX") == 32 * MIB


# --- working pixels


def test_half_resolution_is_pillows_reduction_of_the_file(data: Path) -> None:
    path = data / "dubai" / "dubai_scene2.tif"
    with rasterio.open(path) as file:
        picture = Image.fromarray(file.read().transpose(1, 2, 0))
    pixels = read(spec_of(path, scale=2))
    np.testing.assert_array_equal(pixels.data.transpose(1, 2, 0), np.asarray(picture.reduce(2)))


def test_the_photograph_of_a_slides_label_is_not_taken_for_an_overview(data: Path) -> None:
    path = data / "wsi" / "CMU-1-Small-Region.svs"
    with rasterio.open(path) as file:
        picture = Image.fromarray(file.read().transpose(1, 2, 0))
        wrong = file.read(out_shape=(3, 742, 555)).transpose(1, 2, 0)
    right = np.asarray(picture.reduce(4)).astype(int)[:741]

    ours = read(spec_of(path, scale=4)).data.transpose(1, 2, 0)[:741]

    assert np.abs(wrong[:741] - right).mean() > 30
    np.testing.assert_array_equal(ours, right)


def test_invalid_pixels_do_not_bleed_into_coarser_ones(data: Path) -> None:
    path = data / "edge_cases" / "cog_int16.tif"
    native, pixels = read(spec_of(path)), read(spec_of(path, scale=2.5))
    assert 0.1 < pixels.valid.mean() < 0.9
    low, high = native.data[:, native.valid].min(), native.data[:, native.valid].max()
    assert low > -32768
    assert pixels.data[:, pixels.valid].min() >= low
    assert pixels.data[:, pixels.valid].max() <= high


def test_memory_does_not_grow_with_the_scale(raster: Raster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.stored.STRIP_PIXELS", 4000)
    windows: list[Window] = []
    read_native = rasterfile.RasterFile.read
    monkeypatch.setattr(rasterfile.RasterFile, "read", lambda file, window: windows.append(window) or read_native(file, window))

    read(spec_of(raster(noise(200, 200)), scale=10))

    assert [window.shape for window in windows] == [(20, 200)] * 10


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> SourceInfo:
    samples = noise(2, 150, 170)
    samples[:, 40:90, 60:100] = 0
    return describe(str(write_raster(tmp_path_factory.mktemp("holed") / "a.tif", samples, nodata=0, blockysize=16)))


@settings(deadline=None, max_examples=40)
@given(
    scale=st.one_of(st.floats(0.5, 6), st.sampled_from([1.0, 2.0, 3.0])),
    corner=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    strip=st.sampled_from([1, 3000, 1 << 22]),
)
def test_any_window_is_the_crop_of_the_whole(
    holed: SourceInfo, scale: float, corner: tuple[float, float], size: tuple[int, int], strip: int
) -> None:
    spec = spec_of(Path(holed.uri), scale)
    height, width = spec.grid.shape
    window = Window(int(corner[0] * height), int(corner[1] * width), *size).clip(height, width)
    whole = read(spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sources.stored.STRIP_PIXELS", strip)
        part = read(spec, window)

    assert part.data.tobytes() == whole.data[:, *window.slices].tobytes()
    assert part.valid.tobytes() == whole.valid[window.slices].tobytes()
