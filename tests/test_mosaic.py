"""The store opens in every reader that it promises, with the source's CRS and transform; the pyramid is a mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - gives xarray its .rio
import xarray
import zarr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import mosaic
from pipeline.errors import StoreError
from pipeline.plan import Plan
from tests.making import plan_of, threshold_model

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 4_600_000)
SIZE = (1100, 1500)


@pytest.fixture
def scene(raster: Callable[..., Path]) -> Path:
    samples = np.zeros(SIZE, np.uint8)
    return raster(samples, crs="EPSG:32633", transform=TRANSFORM)


@pytest.fixture
def plan(scene: Path, tmp_path: Path) -> Plan:
    return plan_of(scene, threshold_model(tmp_path / "model", (50, 100)), tmp_path, tiling={"block": 512})


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.random.default_rng(0).integers(0, 3, SIZE, np.uint8)
    labels[:100] = 255
    labels[200:300, 200:300] = 254
    return labels


@pytest.fixture
def store(plan: Plan, labels: np.ndarray, tmp_path: Path) -> Path:
    """A published mosaic of `labels`."""
    work, final = tmp_path / "work.zarr", tmp_path / "masks" / "mask.zarr"
    mosaic.create(work, plan)
    for block in plan.blocks:
        mosaic.write_block(work, plan, block.core, labels[block.core.slices])
    mosaic.build_pyramid(work, plan)
    mosaic.publish(work, final)
    return final


def test_what_is_written_block_by_block_is_read_whole(store: Path, plan: Plan, labels: np.ndarray) -> None:
    assert len(plan.blocks) > 3
    stored = zarr.open_array(store, path="0/mask")
    assert (stored[:] == labels).all()
    assert stored.shards == plan.block_shape
    assert stored.fill_value == 255


def test_the_mosaic_says_what_made_it(store: Path, plan: Plan) -> None:
    found, digest = mosaic.facts(store)
    assert digest == plan.digest
    assert found == plan.mask


def test_xarray_and_rioxarray_find_crs_and_transform(store: Path, scene: Path, labels: np.ndarray) -> None:
    dataset = xarray.open_zarr(store, group="0", consolidated=False)
    assert dataset["mask"].dtype == np.uint8
    assert (dataset["mask"].to_numpy() == labels).all()
    with rasterio.open(scene) as source:
        assert dataset.rio.crs == source.crs
        assert dataset["mask"].rio.transform() == source.transform
        assert dataset["mask"].rio.bounds() == tuple(source.bounds)


def test_a_datatree_holds_every_level_on_the_same_ground(store: Path) -> None:
    tree = xarray.open_datatree(store, engine="zarr", consolidated=False)
    assert set(tree.children) == {"0", "1"}
    assert tree["1"]["mask"].shape == (550, 750)
    assert tree["1"]["mask"].rio.bounds() == tree["0"]["mask"].rio.bounds()
    assert tree["1"].ds.rio.crs.to_epsg() == 32633


def test_ome_zarr_reads_the_labels(store: Path, labels: np.ndarray) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = list(Reader(parse_url(str(store)))())
    levels = nodes[0].data
    assert [level.shape for level in levels] == [(1100, 1500), (550, 750)]
    assert (np.asarray(levels[0]) == labels).all()


def test_ngff_zarr_validates_and_reads_it(store: Path, labels: np.ndarray) -> None:
    import ngff_zarr

    image = ngff_zarr.from_ngff_zarr(str(store), validate=True)
    assert (np.asarray(image.images[0].data) == labels).all()
    assert image.images[0].scale == {"y": 0.5, "x": 0.5}
    assert image.images[1].scale == {"y": 1.0, "x": 1.0}
    assert image.images[1].translation == {"y": 0.25, "x": 0.25}


def test_the_ome_metadata_follow_the_published_models(store: Path) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel

    ImageLabel.from_zarr(zarr.open_group(store, mode="r"))


def test_an_image_without_georeference_has_no_crs_and_no_coordinates(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(raster(np.zeros((40, 50), np.uint8)), threshold_model(tmp_path / "model"), tmp_path)
    mosaic.create(tmp_path / "bare.zarr", plan)
    dataset = xarray.open_zarr(tmp_path / "bare.zarr", group="0", consolidated=False)
    assert dataset["mask"].shape == (40, 50)
    assert dataset.rio.crs is None
    assert not {"x", "y"} & set(dataset.coords)


def test_an_existing_mosaic_is_never_written_over(plan: Plan, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="never written over"):
        mosaic.create(store, plan)
    mosaic.create(tmp_path / "other.zarr", plan)
    with pytest.raises(StoreError, match="never replaced"):
        mosaic.publish(tmp_path / "other.zarr", store)


def test_a_torn_shard_is_replaced(plan: Plan, labels: np.ndarray, tmp_path: Path) -> None:
    work = tmp_path / "work.zarr"
    mosaic.create(work, plan)
    core = plan.blocks[0].core
    mosaic.write_block(work, plan, core, labels[core.slices])
    shard = work / "0" / "mask" / "c" / "0" / "0"
    assert shard.is_file()
    shard.write_bytes(shard.read_bytes()[:1000])
    mosaic.write_block(work, plan, core, labels[core.slices])
    assert (mosaic.read(work, core) == labels[core.slices]).all()


def test_a_folder_that_is_no_mosaic_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no gigamask mosaic"):
        mosaic.facts(tmp_path)


def vote(square: list[int]) -> int:
    """The label of a 2 x 2 square, the slow way."""
    classes = Counter(v for v in square if v < 254)
    if not classes:
        return 254 if 254 in square else 255
    most = max(classes.values())
    return min(v for v, n in classes.items() if n == most)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0, 1, 2, 253, 254, 255]), min_size=4, max_size=4))
def test_halving_is_the_mode_of_the_classes(square: list[int]) -> None:
    assert mosaic.halve(np.array(square, np.uint8).reshape(2, 2), 254).item() == vote(square)


def test_an_odd_edge_votes_alone() -> None:
    labels = np.array([[1, 1, 2], [1, 0, 2], [3, 254, 255]], np.uint8)
    assert mosaic.halve(labels, 4).tolist() == [[1, 2], [3, 255]]


def test_the_pyramid_is_halved_level_by_level(store: Path, plan: Plan, labels: np.ndarray) -> None:
    assert (zarr.open_array(store, path="1/mask")[:] == mosaic.halve(labels, plan.classes)).all()
    assert mosaic.levels(*SIZE) == 2
    assert mosaic.levels(1024, 1024) == 1
    assert mosaic.levels(1025, 10) == 2
