"""Plans: what is refused and why, what is redundant, what the digest stands for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment import same_crs
from pipeline.errors import PlanError
from pipeline.grid import Lattice, blocks
from pipeline.plan import MIB, choose_block_shape, chunk_side, tiles_over_blocks
from tests.making import plan_of, threshold_model


@settings(max_examples=60)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    tile=st.sampled_from([32, 64, 100]),
    share=st.floats(0, 0.7),
    block=st.integers(64, 900),
    blend=st.sampled_from(["hann", "crop"]),
)
def test_the_planned_number_of_tiles_is_what_blocks_need(
    height: int, width: int, tile: int, share: float, block: int, blend: str
) -> None:
    lattice = Lattice(height, width, tile, int(share * tile), blend)
    counted = 0
    for part in blocks(height, width, block, block):
        rows, cols = lattice.touching(part.core)
        counted += len(rows) * len(cols)
    assert tiles_over_blocks(lattice, (block, block)) == counted


@settings(max_examples=60)
@given(side=st.integers(1, 70_000), other=st.integers(1, 70_000), tile=st.sampled_from([128, 256, 512, 1024]))
def test_auto_blocks_keep_redundant_work_at_five_percent_and_are_whole_chunks(side: int, other: int, tile: int) -> None:
    lattice = Lattice(side, other, tile, tile // 4)
    chunk = chunk_side(lattice.stride)
    shape = choose_block_shape(lattice, chunk, "auto", lambda s: 2 * s[0] * s[1], 2 << 30)
    assert tiles_over_blocks(lattice, shape) / lattice.tiles - 1 <= 0.05
    assert shape[0] % chunk == 0
    assert shape[1] % chunk == 0


def test_an_image_of_16k_is_cut_into_four_blocks_at_under_five_percent() -> None:
    lattice = Lattice(16384, 16384, 512, 128)
    shape = choose_block_shape(lattice, chunk_side(384), "auto", lambda _: 0, 1)
    assert ceil(16384 / shape[0]) * ceil(16384 / shape[1]) == 4
    assert tiles_over_blocks(lattice, shape) / lattice.tiles - 1 == pytest.approx(44**2 / 43**2 - 1)


def test_memory_chooses_smaller_blocks_and_what_cannot_fit_is_refused_with_the_numbers() -> None:
    lattice = Lattice(16384, 16384, 512, 128)

    def memory(shape: tuple[int, int]) -> int:
        return 100 * MIB + shape[0] * shape[1]

    roomy = choose_block_shape(lattice, 384, "auto", memory, 400 * MIB)
    tight = choose_block_shape(lattice, 384, "auto", memory, 120 * MIB)
    assert memory(tight) <= 120 * MIB < memory(roomy)
    with pytest.raises(PlanError, match=r"needs 1\d\d MiB, a worker may take 100 MiB"):
        choose_block_shape(lattice, 384, "auto", memory, 100 * MIB)


@pytest.mark.parametrize("stride", [1, 24, 192, 255, 256, 384, 500, 768, 1024, 1500, 1536, 2048, 3001])
def test_a_chunk_is_near_512_and_fits_the_stride_where_it_can(stride: int) -> None:
    chunk = chunk_side(stride)
    assert 256 <= chunk <= 1024
    assert chunk % stride == 0 or stride % chunk == 0 or (stride > 1024 and chunk == 512)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return threshold_model(tmp_path / "model")


def test_memory_of_a_worker_does_not_grow_with_the_image(raster: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    small = raster(np.zeros((2048, 2048), np.uint8), name="small.tif", tiled=True, blockxsize=256, blockysize=256)
    large = raster(
        np.broadcast_to(np.uint8(0), (8192, 8192)), name="large.tif", tiled=True, blockxsize=256, blockysize=256, sparse_ok=True
    )
    tiling = {"block": 1056}
    one = plan_of(small, model, tmp_path, tiling=tiling).memory.total
    other = plan_of(large, model, tmp_path, tiling=tiling).memory.total
    assert other == pytest.approx(one, rel=0.02)


def test_a_plan_that_cannot_fit_is_refused(raster: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a worker may take 100 MiB: it would be killed"):
        plan_of(raster(np.zeros((500, 500), np.uint8)), model, tmp_path, memory=100 * MIB)


def rgb(raster: Callable[..., Path], **profile: Any) -> Path:
    return raster(np.zeros((3, 64, 64), np.uint8), photometric="RGB", **profile)


def test_a_four_band_model_on_a_three_band_image_is_refused_with_both_sides(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", bands=["red", "green", "blue", "nir"])
    with pytest.raises(PlanError) as caught:
        plan_of(rgb(raster), model, tmp_path)
    text = str(caught.value)
    assert "model 'threshold' expects 4 bands (red, green, blue, nir)" in text
    assert "a.tif has 3 (red, green, blue)" in text
    assert "archive.bands" in text


def test_bands_are_found_by_name_in_the_models_order(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", bands=["blue", "green", "red"])
    assert plan_of(rgb(raster), model, tmp_path).read.bands == (3, 2, 1)


def test_bands_with_other_names_are_refused_though_their_number_is_right(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", bands=["nir", "red", "green"])
    with pytest.raises(PlanError, match="wrong colours"):
        plan_of(rgb(raster), model, tmp_path)
    archive = {"images": "x", "bands": ["red", "green", 3]}
    assert plan_of(rgb(raster), model, tmp_path, archive=archive).read.bands == (1, 2, 3)
    with pytest.raises(PlanError, match=r"asks for swir; .* has 3"):
        plan_of(rgb(raster), model, tmp_path, archive=archive | {"bands": ["red", "green", "swir"]})


def test_another_sample_type_is_refused(raster: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"trained on uint8 samples, .* has uint16"):
        plan_of(raster(np.zeros((9, 9), np.uint16)), model, tmp_path)


def geo(raster: Callable[..., Path], metres: float) -> Path:
    return raster(np.zeros((100, 100), np.uint8), crs="EPSG:32633", transform=Affine(metres, 0, 5e5, 0, -metres, 4.6e6))


def test_an_image_is_worked_at_the_models_resolution(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", resolution={"size": 1.0, "unit": "metre", "tolerance": 0.05})
    assert plan_of(geo(raster, 1.02), model, tmp_path).grid.native
    coarser = plan_of(geo(raster, 0.5), model, tmp_path).grid
    assert coarser.shape == (50, 50)
    assert coarser.transform == pytest.approx((1.0, 0, 5e5, 0, -1.0, 4.6e6))


def test_a_scale_that_the_model_does_not_know_is_refused(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", resolution={"size": 1.0, "unit": "metre", "tolerance": 0.05})
    with pytest.raises(PlanError, match=r"trained at 1 m a pixel .* worked at 0.5 x 0.5 m"):
        plan_of(geo(raster, 0.5), model, tmp_path, resolution="native")
    with pytest.raises(PlanError, match="detail that is not there"):
        plan_of(geo(raster, 10), model, tmp_path)
    with pytest.raises(PlanError, match="no georeference"):
        plan_of(raster(np.zeros((9, 9), np.uint8), name="b.tif"), model, tmp_path)


def test_a_tile_that_the_model_cannot_take_is_refused(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", multiple_of=32, tile=64)
    with pytest.raises(PlanError, match=r"multiple of 32, tiling\.tile is 100: choose 96"):
        plan_of(raster(np.zeros((9, 9), np.uint8)), model, tmp_path, tiling={"tile": 100})


def test_the_digest_is_of_all_that_decides_the_mask_and_of_nothing_else(raster: Callable[..., Path], tmp_path: Path) -> None:
    image = raster(np.zeros((64, 64), np.uint8))
    model = threshold_model(tmp_path / "model")
    plan = plan_of(image, model, tmp_path)
    same = plan_of(image, model, tmp_path, cluster={"type": "local", "workers": 4}, output="elsewhere")
    assert same.digest == plan.digest
    changes: list[dict[str, Any]] = [
        {"tiling": {"overlap": 4}},
        {"tiling": {"blend": "crop"}},
        {"tiling": {"block": 300}},
        {"resolution": {"size": 2, "unit": "source-pixel"}},
        {"archive": {"images": "x", "nodata": 0}},
    ]
    digests = {plan_of(image, model, tmp_path, **change).digest for change in changes}
    digests.add(plan_of(image, threshold_model(tmp_path / "other", (101,)), tmp_path).digest)
    assert len(digests | {plan.digest}) == len(changes) + 2


def test_another_text_of_the_same_crs_is_the_same_plan(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(geo(raster, 1), threshold_model(tmp_path / "model"), tmp_path)
    text = str(plan.grid.crs_wkt)
    other_text = text.replace("WGS 84 / UTM zone 33N", "another name", 1)
    grid = plan.grid.model_copy(update={"crs_wkt": other_text})
    other = plan.model_copy(update={"read": plan.read.model_copy(update={"grid": grid})})
    assert "digest" not in vars(other)
    assert other.digest == plan.digest
    assert same_crs(text, other_text)
    assert not same_crs(text, text.replace("32633]]", "32634]]"))


def test_a_plan_survives_the_journey_to_a_worker(raster: Callable[..., Path], tmp_path: Path) -> None:
    image = raster(np.zeros((64, 64), np.float32), nodata=np.nan)
    plan = plan_of(image, threshold_model(tmp_path / "model", dtype="float32"), tmp_path)
    assert np.isnan(plan.read.nodata[0])
    again = pickle.loads(pickle.dumps(plan))
    assert again.digest == plan.digest
    assert type(plan).model_validate_json(plan.model_dump_json()).digest == plan.digest
    assert len(pickle.dumps(plan)) < 20_000
