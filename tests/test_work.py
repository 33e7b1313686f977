"""One block: read, predict, blend, write; what cannot be read is failed, and memory is a strip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import mosaic, parts
from pipeline.errors import SourceError
from pipeline.grid import Window
from pipeline.models import load_model
from pipeline.models.predictor import Predictor
from pipeline.plan import Plan
from pipeline.sources import Pixels, open_source
from pipeline.work import Job, fail_block, predict_core
from tests.making import plan_of, segment_block, threshold_model


class Surroundings(Predictor):
    """A model that looks around: the class is which of three shifted means is largest, so tiles disagree at their borders."""

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        values = np.where(valid[:, None], data, 0).astype(np.float32)
        means = [sum(np.roll(values[:, 0], shift, axis) for shift in range(-4, 5)) for axis in (1, 2)]
        scores = np.stack([values[:, 0] * 9, *means], axis=1)
        return np.ascontiguousarray(scores / scores.sum(1, keepdims=True).clip(1))


def predictor_of(plan: Plan) -> Predictor:
    return load_model(
        Path(plan.model_path), plan.card, device="cpu", batch=plan.batch, precision="float32", flips=1, trust_code=False
    )


def labels_of(plan: Plan, predictor: Predictor, core: Window) -> NDArray[np.unsignedinteger]:
    return predict_core(plan, predictor, partial(open_source, plan.read), core).labels


@pytest.mark.parametrize("shape", [(20, 25), (32, 40), (33, 100), (31, 33), (1, 1), (100, 90)])
@pytest.mark.parametrize("overlap", [0, 8])
@pytest.mark.parametrize("blend", ["hann", "crop"])
def test_a_pixelwise_model_gives_its_answer_at_every_pixel(
    raster: Callable[..., Path], tmp_path: Path, shape: tuple[int, int], overlap: int, blend: str
) -> None:
    """Smaller than a tile, exactly a tile, a pixel more: the mosaic is the model's answer, without seams."""
    samples = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    tiling = {"overlap": overlap, "blend": blend, "block": 64}
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model", (60, 180)), tmp_path, tiling=tiling)
    for block in plan.blocks:
        assert (labels_of(plan, predictor_of(plan), block.core) == np.digitize(samples, [60, 180])[block.core.slices]).all()


@settings(max_examples=25)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    overlap=st.integers(0, 24),
    block=st.sampled_from([64, 100, 150]),
    blend=st.sampled_from(["hann", "crop"]),
    seed=st.integers(0, 99),
)
def test_blocks_give_the_bytes_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, overlap: int, block: int, blend: str, seed: int
) -> None:
    from tests.conftest import write_raster

    folder = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(seed)
    samples = rng.integers(1, 256, (height, width), np.uint8)
    samples[rng.random(samples.shape) < 0.2] = 0
    image = write_raster(folder / "a.tif", samples, nodata=0)
    model = threshold_model(folder / "model", (60, 180))
    tiling = {"overlap": overlap, "blend": blend}
    whole = plan_of(image, model, folder, tiling=tiling | {"block": 1000})
    parts = plan_of(image, model, folder, tiling=tiling | {"block": block})

    expected = labels_of(whole, Surroundings(whole.card), Window(0, 0, height, width))
    assert ((expected == 255) == (samples == 0)).all()
    for part in parts.blocks:
        assert (labels_of(parts, Surroundings(parts.card), part.core) == expected[part.core.slices]).all()


def test_only_tiles_with_valid_pixels_go_through_the_model(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = np.zeros((200, 200), np.uint8)
    samples[150:160, 150:160] = 200
    plan = plan_of(raster(samples, nodata=0), threshold_model(tmp_path / "model"), tmp_path, tiling={"block": 1000})
    result = predict_core(plan, predictor_of(plan), partial(open_source, plan.read), Window(0, 0, 200, 200))
    assert 1 <= result.tiles <= 4
    assert plan.lattice.tiles == 64
    assert (result.labels[samples == 0] == 255).all()
    assert (result.labels[samples > 0] == 1).all()


def test_each_row_is_read_once(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(raster(np.zeros((300, 100), np.uint8)), threshold_model(tmp_path / "model"), tmp_path)
    read: list[tuple[int, int]] = []

    class Watched:
        def __init__(self) -> None:
            self._source = open_source(plan.read)

        def read(self, window: Window) -> Pixels:
            read.append((window.row, window.row_stop))
            return self._source.read(window)

        def close(self) -> None:
            self._source.close()

    predict_core(plan, predictor_of(plan), Watched, Window(0, 0, 300, 100))
    assert [row for first, stop in read for row in range(first, stop)] == list(range(300))


class Damaged:
    """A source that cannot read the pixel at (70, 70), and is of no use after it failed."""

    handles = 0

    def __init__(self, plan: Plan) -> None:
        self._source, self._poisoned = open_source(plan.read), False
        Damaged.handles += 1

    def read(self, window: Window) -> Pixels:
        self._poisoned = self._poisoned or window.touches(Window(70, 70, 1, 1))
        if self._poisoned:
            raise SourceError("corrupt tile")
        return self._source.read(window)

    def close(self) -> None:
        self._source.close()


def test_a_corrupt_part_is_failed_and_the_rest_goes_on(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(raster(np.full((200, 200), 200, np.uint8)), threshold_model(tmp_path / "model"), tmp_path)
    Damaged.handles = 0
    result = predict_core(plan, predictor_of(plan), lambda: Damaged(plan), Window(0, 0, 200, 200))

    failed = result.labels == 254
    assert failed[70, 70]
    assert failed.sum() <= 32 * 32
    assert (result.labels[~failed] == 1).all()
    assert "corrupt tile" in str(result.error)
    assert Damaged.handles > 1


def test_a_block_that_cannot_be_predicted_is_failed_not_background(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(raster(np.zeros((80, 80), np.uint8)), threshold_model(tmp_path / "model"), tmp_path, tiling={"block": 64})
    store = tmp_path / "mask.zarr"
    mosaic.create(store, plan)
    record = fail_block(Job(plan=plan, store=str(store)), plan.blocks[0], "no power")
    assert (record.state, record.failed_px, record.error) == ("failed", plan.blocks[0].core.pixels, "no power")
    assert (mosaic.read(store, plan.blocks[0].core) == 254).all()


def test_a_record_accounts_for_every_pixel(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (100, 90), np.uint8)
    plan = plan_of(raster(samples, nodata=0), threshold_model(tmp_path / "model"), tmp_path)
    mosaic.create(tmp_path / "mask.zarr", plan)
    record = segment_block(Job(plan=plan, store=str(tmp_path / "mask.zarr")), plan.blocks[0])
    assert sum(record.class_px) + record.failed_px + record.no_data_px == 9000
    assert record.class_px[1] == (samples >= 100).sum()


def test_confidence_is_stored_where_asked_for(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of(
        raster(np.full((50, 50), 200, np.uint8)), threshold_model(tmp_path / "model"), tmp_path, tiling={"store_confidence": True}
    )
    mosaic.create(tmp_path / "mask.zarr", plan)
    segment_block(Job(plan=plan, store=str(tmp_path / "mask.zarr")), plan.blocks[0])
    assert (mosaic.read(tmp_path / "mask.zarr", Window(0, 0, 50, 50), name="confidence") == 255).all()


def test_a_part_whose_worker_died_while_it_wrote_is_failed_and_the_others_stay(
    raster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(2).integers(0, 256, (60, 50), np.uint8)
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model", (60, 180)), tmp_path)
    job = Job(plan=plan, store=str(tmp_path / "work.zarr"))
    mosaic.create(Path(job.store), plan)
    (block,) = plan.blocks
    first, *others = parts.split(block)

    def dies(file: Any, **_: Any) -> None:
        file.write(b"half") if hasattr(file, "write") else Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.np, "savez", dies)
        with pytest.raises(KeyboardInterrupt):
            parts.predict_part(job, first)
    done = [parts.predict_part(job, part) for part in others]
    record = parts.join_parts(job, block, (first.model_copy(update={"error": "its worker died"}), *done))
    labels = mosaic.read(Path(job.store), block.core)
    expected = np.digitize(samples, [60, 180])
    expected[first.window.slices] = 254
    assert (labels == expected).all()
    assert (record.state, record.failed_px, record.error) == ("done", first.window.pixels, "its worker died")
