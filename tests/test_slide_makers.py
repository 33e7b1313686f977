"""The made-up slides are what OpenSlide, rasterio and tifffile take them for."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
import tifffile

from tests import slides

PIXELS = slides.tissue(600, 700)


def read(path: Path, level: int = 0) -> np.ndarray:
    """A level (h, w, 4) as OpenSlide shows it."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))


def overviews(path: Path) -> list[np.ndarray]:
    """Each overview (bands, h, w) that rasterio offers."""
    with rasterio.open(path) as file:
        count = len(file.overviews(1))
    found = []
    for level in range(count):
        with rasterio.open(path, overview_level=level) as file:
            found.append(file.read())
    return found


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
def test_an_aperio_slide_is_one_to_openslide(tmp_path: Path, compression: slides.Compression) -> None:
    path = slides.write_aperio(tmp_path / "a.svs", PIXELS, mpp=0.25, levels=(1, 4), tile=240, compression=compression)
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((700, 600), (175, 150))
        assert slide.properties["openslide.mpp-x"] == slide.properties["aperio.MPP"] == "0.25"
        assert slide.properties["openslide.objective-power"] == "20"
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert (np.asarray(slide.associated_images["label"])[..., :3] == slides.LABEL).all()
        assert (np.asarray(slide.associated_images["macro"])[..., :3] == slides.MACRO).all()
    for level, wanted in enumerate((PIXELS, slides.shrink(PIXELS, 4))):
        off = np.abs(read(path, level)[..., :3].astype(int) - wanted)
        assert off.mean() < (1.5 if compression == "jpeg" else 1e-9)


def test_rasterio_takes_label_and_macro_of_an_aperio_slide_for_its_overviews(tmp_path: Path) -> None:
    path = slides.write_aperio(tmp_path / "a.svs", PIXELS)
    label, macro = overviews(path)
    assert (label.transpose(1, 2, 0) == slides.LABEL).all()
    assert (macro.transpose(1, 2, 0) == slides.MACRO).all()


def test_a_slide_may_have_no_size_and_no_photographs(tmp_path: Path) -> None:
    path = slides.write_aperio(tmp_path / "a.svs", PIXELS, mpp=None, label=None, macro=None)
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert set(slide.associated_images) == {"thumbnail"}


@pytest.mark.parametrize("bits", [8, 16])
def test_a_plain_pyramid_has_all_its_levels_for_both(tmp_path: Path, bits: int) -> None:
    path = slides.write_pyramid(tmp_path / "a.tif", PIXELS, resolution=(20_000, 10_000), bits=bits)
    assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((700, 600), (350, 300), (175, 150))
        assert (slide.properties["openslide.mpp-x"], slide.properties["openslide.mpp-y"]) == ("0.5", "1")
    for level, factor in enumerate((1, 2, 4)):
        assert (read(path, level)[..., :3] == slides.shrink(PIXELS, factor)).all()
    finer, coarser = overviews(path)
    assert (finer // (257 if bits == 16 else 1)).shape == (3, 300, 350)
    assert coarser.shape == (3, 150, 175)


def test_jpeg_tiles_of_a_plain_pyramid_look_the_same_to_both(tmp_path: Path) -> None:
    path = slides.write_pyramid(tmp_path / "a.tif", PIXELS, compression="jpeg")
    with rasterio.open(path) as file:
        assert (file.read().transpose(1, 2, 0) == read(path)[..., :3]).all()
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_openslide_sees_one_level_of_an_ome_tiff_with_subifds(tmp_path: Path) -> None:
    path = slides.write_ome(tmp_path / "a.ome.tif", PIXELS, mpp=(0.5, 0.25))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((700, 600),)
    assert [overview.shape for overview in overviews(path)] == [(3, 300, 350), (3, 150, 175)]
    with tifffile.TiffFile(path) as file:
        assert [level.shape for level in file.series[0].levels] == [(600, 700, 3), (300, 350, 3), (150, 175, 3)]
        assert 'PhysicalSizeX="0.25"' in (file.ome_metadata or "")
        assert 'PhysicalSizeY="0.5"' in (file.ome_metadata or "")

    pages = slides.write_ome(tmp_path / "b.ome.tif", PIXELS, subifds=False)
    with openslide.OpenSlide(pages) as slide:
        assert slide.level_count == 3


def test_channels_of_an_ome_tiff_are_planes(tmp_path: Path) -> None:
    channels = np.stack([np.full((300, 400), value, np.uint16) for value in (100, 2000, 30_000)])
    path = slides.write_ome(tmp_path / "a.ome.tif", channels, levels=(1, 2))
    with tifffile.TiffFile(path) as file:
        assert [level.shape for level in file.series[0].levels] == [(3, 300, 400), (3, 150, 200)]
        assert (file.series[0].asarray() == channels).all()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sixteen_bits_become_eight_in_openslide_only(tmp_path: Path, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65_536, (channels, 300, 400), np.uint16)
    path = slides.write_16bit(tmp_path / "a.tif", samples, resolution=(20_000, 20_000))
    with rasterio.open(path) as file:
        assert (file.read() == samples).all()
        assert file.overviews(1) == [2]
    with openslide.OpenSlide(path) as slide:
        assert slide.level_count == 2
        assert slide.properties["openslide.mpp-x"] == "0.5"
    whole_tile = read(path)[:256, :256, 0].astype(int)
    assert np.abs(whole_tile - samples[0, :256, :256] // 257).max() <= 1


def test_missing_tiles_are_transparent(tmp_path: Path) -> None:
    hole = np.s_[256:512, 256:512]
    aperio = slides.write_aperio(tmp_path / "a.svs", PIXELS, missing={(1, 1)})
    alpha = read(aperio)[..., 3]
    assert not alpha[hole].any()
    assert (alpha == 0).sum() == 256 * 256
    coarse = read(aperio, 1)[..., 3]
    assert not coarse[64:128, 64:128].any()
    assert (coarse == 0).sum() == 64 * 64

    plain = slides.write_pyramid(tmp_path / "a.tif", PIXELS, missing={(1, 1)})
    alpha = read(plain)[..., 3]
    assert not alpha[hole].any()
    assert (alpha == 0).sum() == 256 * 256
    assert read(plain, 1)[..., 3].all()


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
@pytest.mark.parametrize("maker", [slides.write_aperio, slides.write_pyramid])
def test_a_corrupt_tile_poisons_the_handle(tmp_path: Path, maker: type, compression: str) -> None:
    path = maker(tmp_path / "a.tif", PIXELS, compression=compression)
    before = path.stat().st_size
    slides.corrupt_tile(path, page=0, tile_index=4)  # the tiles are 3 in a row: the second of the second row
    assert path.stat().st_size == before
    with openslide.OpenSlide(path) as slide:
        slide.read_region((0, 0), 0, (256, 256))
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region((300, 300), 0, (10, 10))
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region((0, 0), 0, (256, 256))
    with openslide.OpenSlide(path) as again:
        again.read_region((0, 0), 0, (256, 256))


def test_a_big_slide_is_a_block_repeated(tmp_path: Path) -> None:
    block = slides.tissue(192, 320)
    path = slides.write_big(tmp_path / "a.svs", block, 3, 2, levels=(1, 4), tile=128, compression="zlib")
    whole = np.tile(block, (3, 2, 1))
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    assert (read(path)[..., :3] == whole).all()
    assert (read(path, 1)[..., :3] == slides.shrink(whole, 4)).all()
    with pytest.raises(ValueError, match="does not divide"):
        slides.write_big(tmp_path / "b.svs", block, 1, 1, levels=(1, 128))


def test_the_memory_of_a_big_slide_is_that_of_its_block(tmp_path: Path) -> None:
    block = slides.tissue(256, 256)
    tracemalloc.start()
    path = slides.write_big(tmp_path / "a.svs", block, 40, 40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (10_240, 10_240)  # 300 MB
        seen = np.asarray(slide.read_region((5120, 5120), 0, (256, 256)))[..., :3]
        assert np.abs(seen.astype(int) - block).mean() < 1.5
    assert peak < 10e6
