"""The store opens in every reader that it promises, with the source's CRS and transform; the pyramid is a mode."""

from __future__ import annotations

import json
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
from zarr.codecs import ZstdCodec

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
    mosaic.finish_pyramid(work, plan)
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


def test_the_layout_is_what_zarr_itself_would_write(scene: Path, tmp_path: Path) -> None:
    model = threshold_model(tmp_path / "model", (50, 100))
    plan = plan_of(scene, model, tmp_path, tiling={"block": 512, "store_confidence": True})
    mosaic.create(tmp_path / "ours.zarr", plan)
    root = zarr.create_group(tmp_path / "zarrs.zarr", zarr_format=3)
    for name, document in mosaic.documents(plan).items():
        ours = zarr.open(tmp_path / "ours.zarr", path=name, mode="r")
        if isinstance(ours, zarr.Group):
            made = root.require_group(name) if name else root
        else:
            made = root.create_array(
                name,
                shape=ours.shape,
                dtype=ours.dtype,
                chunks=ours.chunks,
                shards=ours.shards,
                fill_value=ours.fill_value,
                chunk_key_encoding={"name": "default", "separator": "/" if ours.shards else "."},
                compressors=ZstdCodec(level=3) if ours.shards else None,
                dimension_names=ours.metadata.dimension_names,
            )
        made.attrs.update(document["attributes"])
    written = {p.relative_to(tmp_path / "ours.zarr"): json.loads(p.read_bytes()) for p in tmp_path.glob("ours.zarr/**/zarr.json")}
    assert len(written) == 12
    for name in ("mask", "confidence"):
        array = zarr.open_array(tmp_path / "ours.zarr", path=f"0/{name}")
        assert (array.shape, array.shards, array.chunks) == (SIZE, plan.block_shape, plan.chunk_shape)
        assert array.attrs["grid_mapping"] == "spatial_ref"
    for path, document in written.items():
        assert document == json.loads((tmp_path / "zarrs.zarr" / path).read_bytes()), path


def test_coordinates_are_pixel_centres_on_every_level(store: Path) -> None:
    for level, size in ((0, 0.5), (1, 1.0)):
        x, y = (zarr.open_array(store, path=f"{level}/{name}")[:] for name in "xy")
        assert x[:2].tolist() == [500_000 + size / 2, 500_000 + size * 3 / 2]
        assert y[:2].tolist() == [4_600_000 - size / 2, 4_600_000 - size * 3 / 2]


@pytest.mark.parametrize("block", [256, 264, 768, 2048])  # halved twice; not even once into whole shards; once; one block
@pytest.mark.parametrize("size", [(2500, 1100), (130, 4101)])
def test_whoever_writes_a_level_it_is_the_one_below_halved(
    raster: Callable[..., Path], tmp_path: Path, block: int, size: tuple[int, int]
) -> None:
    image = raster(np.zeros(size, np.uint8))
    overlap = 8 if block != 264 else 26
    model = threshold_model(tmp_path / "model", (50, 100), tile=32 if block != 264 else 92, overlap=overlap)
    plan = plan_of(image, model, tmp_path, tiling={"block": block})
    labels = np.random.default_rng(block).choice(np.array([0, 1, 2, 254, 255], np.uint8), size)
    store = tmp_path / "mask.zarr"
    mosaic.create(store, plan)
    for part in plan.blocks:
        mosaic.write_block(store, plan, part.core, labels[part.core.slices])
    mosaic.finish_pyramid(store, plan)

    assert mosaic.levels(*size) == 3 + (max(size) > 4096)
    for level in range(mosaic.levels(*size)):
        assert (zarr.open_array(store, path=f"{level}/mask")[:] == labels).all(), level
        labels = mosaic.halve(labels, plan.classes)


def test_a_pyramid_is_built_over_what_was_left_of_another(raster: Callable[..., Path], tmp_path: Path) -> None:
    """A crash may leave torn shards on the levels whose files no block's record knows."""
    plan = plan_of(raster(np.zeros((300, 2100), np.uint8)), threshold_model(tmp_path / "model"), tmp_path, tiling={"block": 264})
    assert mosaic.own_levels(plan) == 2 < mosaic.levels(*plan.grid.shape)
    work = tmp_path / "work.zarr"
    mosaic.create(work, plan)
    for block in plan.blocks:
        mosaic.write_block(work, plan, block.core, np.ones(block.core.shape, np.uint8))
    mosaic.finish_pyramid(work, plan)
    (torn,) = (work / "2" / "mask" / "c").glob("*/*")
    whole = torn.read_bytes()
    for damaged in (whole[:-3], whole[:5] + b"x" + whole[6:], b""):
        torn.write_bytes(damaged)
        mosaic.finish_pyramid(work, plan)
        assert torn.read_bytes() == whole


def test_what_a_kill_in_the_midst_of_replacing_leaves_has_a_known_name(store: Path, plan: Plan) -> None:
    work = store.with_name("work.zarr")
    mosaic.create(work, plan)
    old = mosaic.replaced(store)
    store.rename(old)  # and here the process dies
    mosaic.publish(work, store)
    assert store.exists()
    assert not old.exists()


@settings(max_examples=30)
@given(height=st.integers(1, 24), width=st.integers(1, 24), rows=st.integers(1, 3), cols=st.integers(1, 3), empty=st.floats(0, 1))
def test_a_shard_is_what_zarr_writes(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, rows: int, cols: int, empty: float
) -> None:
    rng = np.random.default_rng(height * 100 + width)
    chunk = (8, 8)
    shard = (8 * rows, 8 * cols)
    values = rng.integers(0, 3, (min(height, shard[0]), min(width, shard[1])), np.uint8)
    for row, col in np.ndindex(rows, cols):
        if rng.random() < empty:
            values[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = 255
    folder = tmp_path_factory.mktemp("shard")
    array = zarr.create_array(
        folder, shape=values.shape, chunks=chunk, shards=shard, dtype="uint8", fill_value=255, compressors=ZstdCodec(level=3)
    )

    content = mosaic.shard_bytes(values, shard, chunk, 255)

    if content is None:
        assert (values == 255).all()
        return
    (folder / "c" / "0").mkdir(parents=True)
    (folder / "c" / "0" / "0").write_bytes(content)
    assert (array[:] == values).all()
    (folder / "c" / "0" / "0").unlink()
    array[:] = values
    assert len((folder / "c" / "0" / "0").read_bytes()) == len(content)


def test_a_block_writes_all_levels_that_are_its_own(plan: Plan, tmp_path: Path, labels: np.ndarray) -> None:
    mosaic.create(tmp_path / "mask.zarr", plan)
    for part in plan.blocks:
        mosaic.write_block(tmp_path / "mask.zarr", plan, part.core, labels[part.core.slices])

    assert mosaic.own_levels(plan) == mosaic.levels(*SIZE) == 2
    assert (zarr.open_array(tmp_path / "mask.zarr", path="1/mask")[:] == mosaic.halve(labels, 3)).all()


def test_the_pyramid_is_halved_level_by_level(store: Path, plan: Plan, labels: np.ndarray) -> None:
    assert (zarr.open_array(store, path="1/mask")[:] == mosaic.halve(labels, plan.classes)).all()
    assert mosaic.levels(*SIZE) == 2
    assert mosaic.levels(1024, 1024) == 1
    assert mosaic.levels(1025, 10) == 2
