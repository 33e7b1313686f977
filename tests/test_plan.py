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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.alignment import same_crs
from pipeline.errors import PlanError
from pipeline.grid import Lattice, blocks
from pipeline.image import ImageSpec
from pipeline.plan import MIB, Budget, Plan, choose_block_shape, chunk_side, plan_image, tiles_over_blocks
from pipeline.sources import describe
from tests.making import card_of, config, plan_of, probed, threshold_model


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


def test_blocks_that_cost_nothing_are_still_large_enough_to_keep_threads_busy() -> None:
    lattice = Lattice(8192, 8192, 512, 0, "hann")
    height, width = choose_block_shape(lattice, 512, "auto", lambda _: 0, 1)
    assert (height // 512) * (width // 512) == 64
    assert choose_block_shape(Lattice(1024, 1024, 512, 0, "hann"), 512, "auto", lambda _: 0, 1) == (1024, 1024)
    tight = choose_block_shape(lattice, 512, "auto", lambda shape: shape[0] * shape[1], 2048 * 2048)
    assert (tight[0] // 512) * (tight[1] // 512) == 16, "as many as fit"


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
    assert plan_of(geo(raster, 1.02), model, tmp_path).grid.as_stored
    coarser = plan_of(geo(raster, 0.5), model, tmp_path).grid
    assert coarser.shape == (50, 50)
    assert coarser.transform == pytest.approx((1.0, 0, 5e5, 0, -1.0, 4.6e6))


def test_a_scale_that_the_model_does_not_know_is_refused(raster: Callable[..., Path], tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", resolution={"size": 1.0, "unit": "metre", "tolerance": 0.05})
    with pytest.raises(PlanError, match=r"trained at 1 m a pixel .* worked at 0\.5 m"):
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


def test_what_a_plan_has_computed_does_not_travel(raster: Callable[..., Path], tmp_path: Path) -> None:
    image = raster(np.zeros((1024, 1024), np.uint8))
    plan = plan_of(image, threshold_model(tmp_path / "model"), tmp_path, tiling={"block": 256})
    sent = pickle.dumps(plan)
    assert len(plan.blocks) == 16
    assert len(plan.digest) == 16
    assert pickle.dumps(plan) == sent
    again = pickle.loads(sent)
    assert (again, again.blocks, again.digest) == (plan, plan.blocks, plan.digest)


@pytest.fixture
def plan_for(raster: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    """Plans for images that only have a header: plan_for(card's changes, height, width, memory in MiB, tiling's keys)."""
    source = describe(str(raster(np.zeros((9, 9), np.uint8), tiled=True, blockxsize=256, blockysize=256)))

    def plan(changes: dict[str, Any], height: int, width: int, mib: int = 4096, **tiling: Any) -> Plan:
        model = threshold_model(tmp_path / "model", tile=512, overlap=128, multiple_of=32, **changes)
        settings = config(tmp_path, model={"path": "model", "batch": 3}, tiling={"tile": "auto"} | tiling)
        image = source.model_copy(update={"height": height, "width": width})
        return plan_image(settings, ImageSpec(uri=source.uri), image, card_of(model), Budget(mib * MIB))

    return plan


COSTS = {512: (1.0, 100), 768: (2.25, 225), 1024: (4.0, 400), 2048: (24.0, 1600)}
"""Seconds and MiB a tile: the same for each pixel, but for the largest, which is half as slow again."""


def test_the_overlap_is_the_least_that_leaves_no_more_seams_than_the_card_does(tmp_path: Path) -> None:
    card = card_of(threshold_model(tmp_path, tile=512, overlap=128, **probed(COSTS)))
    assert card.probe is not None
    assert card.probe.seam_share(512, 128) == pytest.approx(0.005)
    assert card.probe.seam_share(1024, 64) == pytest.approx(0.01 * 448 / 960)  # as many of the seams, in 960 px instead of 448
    assert card.probe.seam_share(512, 96) == pytest.approx((0.01 * 448 + 0.005 * 384) / 2 / 416)
    assert [card.advised_overlap(tile) for tile in (384, 512, 768, 1024)] == [192, 128, 128, 64]
    far = card_of(threshold_model(tmp_path, tile=512, overlap=128, **probed(COSTS, halo=100)))
    assert [far.advised_overlap(tile) for tile in (768, 1024)] == [128, 128]
    sloppy = card_of(threshold_model(tmp_path, tile=512, overlap=0, **probed(COSTS)))
    assert [sloppy.advised_overlap(tile) for tile in (512, 1024)] == [128, 64], "tiles of 512 px and 128 are the worst allowed"
    strict = card_of(threshold_model(tmp_path, tile=512, overlap=192, **probed(COSTS)))
    assert [strict.advised_overlap(tile) for tile in (512, 1024)] == [192, 128]
    assert card_of(threshold_model(tmp_path, **probed(COSTS, halo=500))).advised_overlap(1024) is None


def test_auto_takes_the_tile_that_needs_least_time_for_the_image(plan_for: Callable[..., Plan]) -> None:
    # 21 x 21 tiles of 512 px take 441 s, 13 x 13 of 768 px 380 s, 9 x 9 of 1024 px 324 s, 5 x 5 of 2048 px 600 s
    plan = plan_for(probed(COSTS), 8192, 8192)
    assert (plan.tile, plan.overlap) == (1024, 64)
    assert plan.lattice.tiles == 81
    slow = COSTS | {1024: (6.0, 400)}
    assert (plan_for(probed(slow), 8192, 8192).tile, plan_for(probed(slow), 8192, 8192).overlap) == (768, 128)


def test_auto_counts_what_blocks_add(plan_for: Callable[..., Plan]) -> None:
    # 441 tiles of 512 px become 28 x 28 = 784 in blocks of 1152 px; 81 of 1024 px become 13 x 13 = 169 in blocks of 1920 px
    costs = {512: (1.0, 100), 1024: (5.0, 400)}
    assert plan_for(probed(costs), 8192, 8192).tile == 1024
    plan = plan_for(probed(costs), 8192, 8192, block=1024)
    assert (plan.tile, plan.tiles_predicted) == (512, 784)


def test_auto_stays_within_memory(plan_for: Callable[..., Plan]) -> None:
    chosen = [plan_for(probed(COSTS), 8192, 8192, mib).tile for mib in (2180, 1380, 880)]
    assert chosen == [1024, 768, 512]
    with pytest.raises(PlanError, match="a worker may take 300 MiB"):
        plan_for(probed(COSTS), 8192, 8192, 300)


def test_a_measured_tile_takes_the_memory_that_was_measured(plan_for: Callable[..., Plan]) -> None:
    one, other = (plan_for(probed(COSTS | {1024: (4.0, mib)}), 8192, 8192, block=4096) for mib in (400, 500))
    assert (one.tile, other.tile) == (1024, 1024)
    assert other.memory.total - one.memory.total == 3 * 100 * MIB


@pytest.mark.parametrize(("side", "tile"), [(300, 512), (600, 768), (900, 1024), (1100, 512), (1300, 768)])
def test_a_small_image_gets_the_tiles_that_cover_it_with_least_work(plan_for: Callable[..., Plan], side: int, tile: int) -> None:
    # 600 px: 4 tiles of 512 or 1 of 768; 1100 px: 9 of 512 or 4 of 768, as long; 1300 px: 16 of 512, 4 of 768, 4 of 1024
    assert plan_for(probed(COSTS), side, side).tile == tile


def test_an_overlap_that_is_given_is_taken(plan_for: Callable[..., Plan]) -> None:
    plan = plan_for(probed(COSTS), 8192, 8192, overlap=256)
    assert (plan.tile, plan.overlap) == (1024, 256)


def test_where_no_measured_overlap_is_good_enough_the_cards_own_tiles_are_kept(plan_for: Callable[..., Plan]) -> None:
    plan = plan_for(probed(COSTS, halo=400), 8192, 8192)
    assert (plan.tile, plan.overlap) == (512, 128)


def test_auto_is_refused_for_a_model_that_is_not_translation_invariant_or_not_probed(plan_for: Callable[..., Plan]) -> None:
    with pytest.raises(PlanError, match=r"not translation invariant: it pools\. .* for the 512 px of its card"):
        plan_for(probed(COSTS, invariant=False, finding="it pools"), 999, 999)
    with pytest.raises(PlanError, match=r"not translation invariant"):
        plan_for(probed(COSTS) | {"translation_invariant": False}, 999, 999)
    for claim, words in ((True, "says that it is"), (False, "does not say that it is")):
        with pytest.raises(PlanError, match=rf"not been probed \(its card {words} .* `gigamask model probe DIR --write`"):
            plan_for({"translation_invariant": claim}, 999, 999)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 20_000),
    width=st.integers(1, 20_000),
    seconds=st.lists(st.floats(0.1, 40), min_size=4, max_size=4),
    mib=st.integers(250, 6000),
    block=st.sampled_from(["auto", 1024, 2048]),
)
def test_no_tile_that_fits_takes_less_time_than_the_chosen_one(
    plan_for: Callable[..., Plan], height: int, width: int, seconds: list[float], mib: int, block: Any
) -> None:
    costs = {tile: (time, memory) for (tile, (_, memory)), time in zip(COSTS.items(), seconds, strict=True)}
    overlaps = {512: 128, 768: 128, 1024: 64, 2048: 64}
    others: dict[int, float] = {}
    for tile, (time, _) in costs.items():
        try:
            other = plan_for(probed(costs), height, width, mib, tile=tile, overlap=overlaps[tile], block=block)
        except PlanError:
            continue
        others[tile] = other.tiles_predicted * time
    try:
        plan = plan_for(probed(costs), height, width, mib, block=block)
    except PlanError:
        enough = [tile for tile in costs if tile >= max(height, width)]
        assert not [tile for tile in others if not enough or tile <= min(enough)]
        return
    assert plan.memory.total <= mib * MIB
    assert plan.overlap == overlaps[plan.tile]
    assert plan.lattice.stride % 32 == 0
    covering = [tile for tile in costs if tile >= max(height, width)]
    assert not covering or plan.tile <= min(covering)
    comparable = [time for tile, time in others.items() if not covering or tile <= min(covering)]
    assert plan.tiles_predicted * costs[plan.tile][0] == pytest.approx(min(comparable))
