"""Exported rasters hold the mosaic's levels to the pixel, in every reader that they are meant for; and are whole or not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.errors import RasterioIOError
from rio_cogeo import cog_validate

from pipeline import mosaic, rasterwrite
from pipeline.errors import OutputError, StoreError
from pipeline.export import ometiff
from pipeline.export.cog import write_cog
from pipeline.export.levels import PIECE_TILES, TILE, piece_windows
from pipeline.export.ometiff import write_ome_tiff
from pipeline.grid import Window
from tests.conftest import REPO
from tests.making import COLORS, plan_of, threshold_model

UTM = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)}
NAMES = ("background", "Bäume & <Büsche>", "water body")
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
Maker = Callable[..., Path]


class Counter:
    """A listener that counts."""

    expected = done = 0

    def expect(self, pixels: int) -> None:
        self.expected += pixels

    def advance(self, pixels: int) -> None:
        self.done += pixels


@pytest.fixture
def store(tmp_path: Path, raster: Maker) -> Maker:
    """Publishes labels as a mosaic: store(labels, names=..., pixel_m=(row, col), **georeference of the image)."""

    def make(labels: np.ndarray, *, names: tuple[str, ...] = NAMES, pixel_m: Any = None, **georeference: Any) -> Path:
        folder = tmp_path / f"{labels.shape[0]}x{labels.shape[1]}"
        folder.mkdir()
        classes = [{"name": name, "color": COLORS[i % 4]} for i, name in enumerate(names)]
        model = threshold_model(folder / "model", classes=classes)
        image = raster(np.zeros(labels.shape, np.uint8), name=f"{folder.name}.tif", **georeference)
        plan = plan_of(image, model, folder, tiling={"block": 512})
        if pixel_m is not None:
            read = plan.read.model_copy(update={"grid": plan.grid.model_copy(update={"pixel_size_m": pixel_m})})
            plan = plan.model_copy(update={"read": read})
        mosaic.create(folder / "mask.zarr", plan)
        for block in plan.blocks:
            mosaic.write_block(folder / "mask.zarr", plan, block.core, labels[block.core.slices])
        mosaic.finish_pyramid(folder / "mask.zarr", plan)
        return folder / "mask.zarr"

    return make


def noise(height: int, width: int) -> np.ndarray:
    """Three classes, failed and no data: nothing alike."""
    return np.random.default_rng(0).choice(np.array([0, 1, 2, 254, 255], np.uint8), (height, width))


def levels_of(path: Path) -> list[np.ndarray]:
    """The levels of a mosaic."""
    grid = mosaic.facts(path)[0].grid
    shapes = [mosaic.level_shape(grid, level) for level in range(mosaic.levels(*grid.shape))]
    return [mosaic.read(path, Window(0, 0, *shape), level) for level, shape in enumerate(shapes)]


def overviews(path: Path) -> list[np.ndarray]:
    """The overviews of a raster, as rasterio reads them."""
    with rasterio.open(path) as file:
        count = len(file.overviews(1))
    found = []
    for level in range(count):
        with rasterio.open(path, overview_level=level) as file:
            found.append(file.read(1))
    return found


# --- Cloud Optimized GeoTIFF


def test_a_cog_is_the_mosaic_level_by_level(store: Maker, tmp_path: Path) -> None:
    mask, progress = store(noise(2100, 700), **UTM), Counter()
    levels = levels_of(mask)
    assert [level.shape for level in levels] == [(2100, 700), (1050, 350), (525, 175)]

    written = write_cog(mask, tmp_path / "mask.tif", progress)

    assert cog_validate(tmp_path / "mask.tif", strict=True, quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.read(1) == levels[0]).all()
        assert (file.crs, file.transform) == (UTM["crs"], UTM["transform"])
        assert (file.nodata, file.dtypes, file.block_shapes) == (255, ("uint8",), [(512, 512)])
        assert file.tags()["plan_digest"] == mosaic.facts(mask)[1]
    *own, halved = overviews(tmp_path / "mask.tif")
    assert all((a == b).all() for a, b in zip(own, levels[1:], strict=True))
    assert (halved == mosaic.halve(levels[-1], 3)).all()  # 525 px are more than a tile
    assert written.levels == ((2100, 700), (1050, 350), (525, 175), (263, 88))
    assert written.size_bytes == (tmp_path / "mask.tif").stat().st_size
    assert progress.expected == progress.done == sum(level.size for level in levels)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "mask"))) == ["mask.tif"]


def test_a_cog_says_what_its_values_mean(store: Maker, tmp_path: Path) -> None:
    write_cog(store(noise(40, 50), **UTM), tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as file:
        colors = file.colormap(1)
        assert file.tags(1)["flag_values"] == "0, 1, 2, 254, 255"
        assert file.tags(1)["flag_meanings"] == "background Bäume_&_<Büsche> water_body failed no_data"
    hexes = ["#" + bytes(colors[code][:3]).hex() for code in (0, 1, 2, 254, 255)]
    assert hexes[:3] == [color.lower() for color in COLORS[:3]]
    assert len(set(hexes)) == 5
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        rows = ET.fromstring(file.pages.first.tags["GDAL_METADATA"].value).findall(".//Row")
    legend = [[cell.text for cell in row] for row in rows]
    assert [row[:2] for row in legend] == [
        ["0", "background"],
        ["1", "Bäume & <Büsche>"],
        ["2", "water body"],
        ["254", "failed"],
        ["255", "no data"],
    ]
    assert ["#" + bytes(int(channel or 0) for channel in row[2:]).hex() for row in legend] == hexes


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 30), (700, 600)])
def test_images_of_any_size_become_valid(store: Maker, tmp_path: Path, size: tuple[int, int]) -> None:
    labels = noise(*size)
    write_cog(store(labels, crs="EPSG:4326", transform=Affine(1e-5, 0, 14.5, 0, -1e-5, 50.1)), tmp_path / "mask.tif")
    assert cog_validate(tmp_path / "mask.tif", strict=True, quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.read(1) == labels).all()
        assert file.crs == "EPSG:4326"
        assert file.transform == Affine(1e-5, 0, 14.5, 0, -1e-5, 50.1)
    assert [overview.shape for overview in overviews(tmp_path / "mask.tif")] == (
        [(-(-size[0] // 2), -(-size[1] // 2))] if max(size) > 512 else []
    )


def test_a_coordinate_system_that_geotiff_cannot_say_is_kept_beside_it(store: Maker, tmp_path: Path) -> None:
    rotated = CRS.from_string("+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +R=6367470 +no_defs")
    write_cog(store(noise(40, 50), crs=rotated, transform=Affine(0.01, 0, 1, 0, -0.01, 2)), tmp_path / "mask.tif")
    assert (tmp_path / "mask.tif.aux.xml").exists()
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.crs == rotated
    (tmp_path / "mask.tif").unlink()
    with pytest.raises(StoreError, match=r"aux\.xml exists"):
        write_cog(tmp_path / "40x50" / "mask.zarr", tmp_path / "mask.tif")


def test_a_slides_cog_says_its_pixel_size(store: Maker, tmp_path: Path) -> None:
    write_cog(store(noise(600, 700), pixel_m=(5e-7, 2.5e-7)), tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.crs is None
        assert file.transform.is_identity
    with openslide.OpenSlide(tmp_path / "mask.tif") as slide:
        assert (slide.properties["openslide.mpp-x"], slide.properties["openslide.mpp-y"]) == ("0.25", "0.5")


def test_many_classes_have_16_bits_and_no_color_table(store: Maker, tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(300))
    labels = np.random.default_rng(0).choice(np.array([0, 7, 299, 65534, 65535], np.uint16), (600, 700))
    mask = store(labels, names=names, **UTM)
    write_cog(mask, tmp_path / "mask.tif")
    write_ome_tiff(mask, tmp_path / "mask.ome.tif")

    assert cog_validate(tmp_path / "mask.tif", strict=True, quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.nodata, file.dtypes) == (65535, ("uint16",))
        assert (file.read(1) == labels).all()
        with pytest.raises(ValueError, match="color table"):
            file.colormap(1)
        assert file.tags(1)["flag_values"].endswith("298, 299, 65534, 65535")
    assert (tifffile.imread(tmp_path / "mask.ome.tif") == labels).all()


# --- OME-TIFF


@pytest.mark.parametrize("most_classic_bytes", [0, ometiff.MOST_CLASSIC_BYTES])
def test_tifffile_and_openslide_see_every_level_of_an_ome_tiff(
    store: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_classic_bytes: int
) -> None:
    monkeypatch.setattr(ometiff, "MOST_CLASSIC_BYTES", most_classic_bytes)
    mask, progress = store(noise(2100, 700), pixel_m=(5e-7, 2.5e-7)), Counter()
    levels, out = levels_of(mask), tmp_path / "mask.ome.tif"
    assert len(levels) == 3

    written = write_ome_tiff(mask, out, progress)

    with tifffile.TiffFile(out) as file:
        assert file.is_bigtiff == (most_classic_bytes == 0)
        assert [(series.kind, series.axes) for series in file.series] == [("ome", "YX")]
        assert [level.shape for level in file.series[0].levels] == [level.shape for level in levels]
        assert all((a.asarray() == b).all() for a, b in zip(file.series[0].levels, levels, strict=True))
        assert len(file.pages) == 1 + len(file.pages.first.subifds or ()) == 3
    with openslide.OpenSlide(out) as slide:
        assert slide.level_count == len(levels)
        assert (slide.properties["openslide.mpp-x"], slide.properties["openslide.mpp-y"]) == ("0.25", "0.5")
        for number, level in enumerate(levels):
            shown = np.asarray(slide.read_region((0, 0), number, slide.level_dimensions[number]))
            assert (shown[..., :3] == level[..., None]).all()
            assert (shown[..., 3] == 255).all()
    with rasterio.open(out) as file:
        assert (file.read(1) == levels[0]).all()
    assert written.levels == tuple(level.shape for level in levels)
    assert progress.expected == progress.done == sum(level.size for level in levels)


def test_the_ome_xml_has_sizes_names_and_colors(store: Maker, tmp_path: Path) -> None:
    write_ome_tiff(store(noise(40, 50), pixel_m=(5e-7, 2.5e-7)), tmp_path / "mask.ome.tif")
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as file:
        root = ET.fromstring(file.ome_metadata or "")
    pixels = root.find(f"{OME}Image/{OME}Pixels")
    assert pixels is not None
    assert (pixels.get("SizeX"), pixels.get("SizeY"), pixels.get("Type")) == ("50", "40", "uint8")
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("0.25", "µm")
    assert (pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit")) == ("0.5", "µm")
    names, colors = (
        {entry.get("K"): entry.text for entry in annotation.iter(f"{OME}M")} for annotation in root.iter(f"{OME}MapAnnotation")
    )
    assert names == {"0": NAMES[0], "1": NAMES[1], "2": NAMES[2], "254": "failed", "255": "no data"}
    assert list(colors.values())[:3] == list(COLORS[:3])


def test_an_unknown_pixel_size_stays_unknown(store: Maker, tmp_path: Path) -> None:
    write_ome_tiff(store(noise(40, 50)), tmp_path / "mask.ome.tif")
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as file:
        assert "PhysicalSize" not in (file.ome_metadata or "")
    with openslide.OpenSlide(tmp_path / "mask.ome.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties


# --- both


WRITERS = pytest.mark.parametrize("write", [write_cog, write_ome_tiff])


@WRITERS
def test_equal_mosaics_give_equal_bytes(write: Callable[..., Any], store: Maker, tmp_path: Path) -> None:
    mask = store(noise(600, 700), **UTM)
    for name in "ab":
        (tmp_path / name).mkdir()
        write(mask, tmp_path / name / "mask.tif")
    assert (tmp_path / "a" / "mask.tif").read_bytes() == (tmp_path / "b" / "mask.tif").read_bytes()


@WRITERS
def test_nothing_is_written_over(write: Callable[..., Any], store: Maker, tmp_path: Path) -> None:
    mask, out = store(noise(40, 50)), tmp_path / "mask.tif"
    out.write_text("mine")
    with pytest.raises(StoreError, match="does not write over"):
        write(mask, out)
    assert out.read_text() == "mine"

    (tmp_path / "mask.tif.aux.xml").write_text("of another file")
    write(mask, out, overwrite=True)
    with rasterio.open(out) as file:
        assert file.shape == (40, 50)
    assert not (tmp_path / "mask.tif.aux.xml").exists()
    with pytest.raises(StoreError, match="no gigamask mosaic"):
        write(tmp_path, tmp_path / "other.tif")
    assert not list(tmp_path.glob("*other*"))


@WRITERS
@pytest.mark.parametrize("name", ["0.tif", "levels.vrt", "mask.tif.levels"])
def test_any_name_will_do(write: Callable[..., Any], name: str, store: Maker, tmp_path: Path) -> None:
    """Names that the export's own files beside it could have, too."""
    labels = noise(40, 50)
    write(store(labels), tmp_path / name)
    with rasterio.open(tmp_path / name) as file:
        assert (file.read(1) == labels).all()


@WRITERS
def test_what_goes_wrong_leaves_nothing(write: Callable[..., Any], store: Maker, tmp_path: Path) -> None:
    class Stops(Counter):
        def advance(self, pixels: int) -> None:
            raise KeyboardInterrupt

    mask, out = store(noise(600, 700)), tmp_path / "out" / "mask.tif"
    with pytest.raises(KeyboardInterrupt):
        write(mask, out, Stops())
    assert not list(out.parent.iterdir())


def test_what_gdal_cannot_write_is_told(store: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise RasterioIOError("No space left on device")

    monkeypatch.setattr(rasterwrite, "copy_raster", full)
    out = tmp_path / "out" / "mask.tif"
    with pytest.raises(OutputError, match="No space left"):
        write_cog(store(noise(40, 50)), out)
    assert not list(out.parent.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from pipeline.export.cog import write_cog
from pipeline.export.ometiff import write_ome_tiff

class Dies:
    def expect(self, pixels): pass
    def advance(self, pixels): os._exit(9)

{"cog": write_cog, "ome": write_ome_tiff}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), Dies())
"""


@pytest.mark.parametrize(("name", "write"), [("cog", write_cog), ("ome", write_ome_tiff)])
def test_a_killed_export_leaves_no_file_of_that_name(name: str, write: Callable[..., Any], store: Maker, tmp_path: Path) -> None:
    mask, out = store(noise(600, 700)), tmp_path / "out" / "mask.tif"
    killed = subprocess.run([sys.executable, "-c", KILLED, name, str(mask), str(out)], cwd=REPO, check=False)
    assert killed.returncode == 9
    (left,) = out.parent.iterdir()
    assert re.fullmatch(r"\.mask\.tif\.[0-9a-f]{16}\.partial\.tif", left.name)

    write(mask, out)
    assert {path.name for path in out.parent.iterdir()} == {"mask.tif", left.name}, "it may be that of an export at work"
    for path in (*left.rglob("*"), left):
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    write(mask, out, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == ["mask.tif"]


@WRITERS
def test_memory_does_not_grow_with_the_image(write: Callable[..., Any], store: Maker, tmp_path: Path) -> None:
    tall = np.tile(noise(64, 128).repeat(8, axis=0).repeat(8, axis=1), (8, 1))
    masks = [store(tall[:1024]), store(tall)]
    write(masks[0], tmp_path / "first.tif")  # imports, caches
    peaks = []
    for number, mask in enumerate(masks):
        tracemalloc.start()
        write(mask, tmp_path / f"{number}.tif")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.4 * peaks[0], "what the taller mask holds more is three times the shorter one"


@given(height=st.integers(1, 3 * TILE), width=st.integers(1, 3 * PIECE_TILES * TILE))
def test_pieces_are_the_tiles_row_by_row(height: int, width: int) -> None:
    pieces = list(piece_windows(height, width))
    assert sum(piece.pixels for piece in pieces) == height * width
    tiles = [(piece.row, col) for piece in pieces for col in range(piece.col, piece.col_stop, TILE)]
    assert tiles == [(row, col) for row in range(0, height, TILE) for col in range(0, width, TILE)]
    assert all(piece.row_stop == min(piece.row + TILE, height) for piece in pieces)
