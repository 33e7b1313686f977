"""A tile whose outputs are not finite costs the pixels that it contributes to, alike in any blocks, on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pipeline import mosaic, parts
from pipeline.blend import around
from pipeline.config import FaultsConfig
from pipeline.errors import SourceError
from pipeline.grid import Window, blocks
from pipeline.models import network_predictor
from pipeline.models.device import DevicePredictor
from pipeline.models.network import Inference, Network
from pipeline.models.predictor import Predictor
from pipeline.plan import Plan
from pipeline.records import BlockRecord
from pipeline.sources import Pixels, open_source
from pipeline.whole import summarise
from pipeline.work import CoreLabels, Job, predict_core
from tests.conftest import write_raster
from tests.making import plan_of, segment_block, threshold_model
from tests.test_night import bytes_of, mask, night, result, trusting
from tests.test_work import Surroundings

POISON = 7
"""The sample at which the models of these tests answer NaN, and nowhere else."""


class Poisoned(Surroundings):
    """A model whose outputs are not finite where the image has POISON."""

    def outputs(self, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        scores = super().outputs(data, valid)
        scores[:, 1][(data[:, 0] == POISON) & valid] = np.nan
        return scores


def predicted(plan: Plan, predictor: Predictor, core: Window) -> CoreLabels:
    return predict_core(plan, predictor, partial(open_source, plan.read), core)


def lost_pixels(plan: Plan, samples: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixel by pixel: those to which a tile contributes that has POISON where it contributes."""
    lost, lattice = np.zeros(samples.shape, bool), plan.lattice
    for rows in lattice.row_spans:
        for cols in lattice.col_spans:
            own = slice(*rows), slice(*cols)
            lost[own] |= (samples[own] == POISON).any()
    return lost


def noise(shape: tuple[int, int], poisoned: int, seed: int) -> NDArray[np.uint8]:
    """Noise with some nodata (0), and POISON in so many pixels."""
    rng = np.random.default_rng(seed)
    samples = rng.integers(10, 256, shape, np.uint8)
    samples[rng.random(shape) < 0.1] = 0
    samples[: shape[0] // 3, shape[1] // 2 :] = 0
    samples.flat[rng.choice(samples.size, poisoned, replace=False)] = POISON
    return samples


@settings(max_examples=25)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    overlap=st.integers(0, 24),
    block=st.sampled_from([(37, 51), (64, 64), (100, 30), (1, 200)]),
    blend=st.sampled_from(["hann", "crop"]),
    poisoned=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_lost_tile_costs_what_it_contributes_to_in_any_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    overlap: int,
    block: tuple[int, int],
    blend: str,
    poisoned: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    samples = noise((height, width), min(poisoned, height * width), seed)
    image = write_raster(folder / "a.tif", samples, nodata=0)
    tiling = {"overlap": overlap, "blend": blend, "block": 1000, "store_confidence": True}
    plan = plan_of(image, threshold_model(folder / "model", (60, 180)), folder, tiling=tiling)
    sound = predicted(plan, Surroundings(plan.card), Window(0, 0, height, width))
    failed = lost_pixels(plan, samples) & (samples > 0)
    assert failed.any()

    whole = predicted(plan, Poisoned(plan.card), Window(0, 0, height, width))
    assert (whole.labels == np.where(failed, 254, sound.labels)).all()
    assert whole.confidence is not None
    assert sound.confidence is not None
    assert (whole.confidence == np.where(failed, 0, sound.confidence)).all()
    assert whole.lost > 0
    assert whole.error is not None

    for part in blocks(height, width, *block):
        found, at = predicted(plan, Poisoned(plan.card), part.core), part.core.slices
        assert (found.labels == whole.labels[at]).all()
        assert (found.confidence == whole.confidence[at]).all()
        assert (found.lost > 0) == failed[at].any()
        assert (found.error is None) == (found.lost == 0)


def test_neighbours_of_lost_tiles_are_compared_alike_in_any_blocks(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = noise((150, 210), 2, seed=3)
    plan = plan_of(raster(samples, nodata=0), threshold_model(tmp_path / "model", (60, 180)), tmp_path, tiling={"overlap": 20})
    counts = []
    for side in (1000, 64, 37):
        cores = [part.core for part in blocks(*samples.shape, side, side)]
        counts.append(np.sum([predicted(plan, Poisoned(plan.card), core).disagreement for core in cores], axis=0))
    sound = predicted(plan, Surroundings(plan.card), Window(0, 0, *samples.shape)).disagreement
    assert (counts[0] == counts[1]).all()
    assert (counts[0] == counts[2]).all()
    assert sound is not None
    assert 0 < counts[0].sum() < sound.sum()


def test_the_error_says_how_many_tiles_and_where(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = np.full((100, 200), 200, np.uint8)
    samples[40, 50] = POISON
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model", (60, 180)), tmp_path)
    assert (plan.tile, plan.overlap) == (32, 8)  # columns 24-55 and 48-79 see it

    found = predicted(plan, Poisoned(plan.card), Window(0, 0, 100, 200))

    assert found.lost == 2
    assert found.error == (
        "model 'threshold' answers NaN or infinite outputs for 2 of 32 tiles, the first at rows 24-55, columns 24-55: all pixels "
        "that such a tile contributes to are failed. Declare filling under archive.nodata, or check the weights"
    )


def test_what_cannot_be_read_and_what_is_lost_are_both_told(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = np.full((100, 100), 200, np.uint8)
    samples[10, 10] = POISON
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model", (60, 180)), tmp_path)

    class Damaged:
        def __init__(self) -> None:
            self._source = open_source(plan.read)

        def read(self, window: Window) -> Pixels:
            if window.touches(Window(90, 90, 1, 1)):
                raise SourceError("corrupt tile")
            return self._source.read(window)

        def close(self) -> None:
            self._source.close()

    found = predict_core(plan, Poisoned(plan.card), Damaged, Window(0, 0, 100, 100))
    assert "corrupt tile" in str(found.error)
    assert "1 of 16 tiles" in str(found.error)


class Spoiled(nn.Module):
    """Looks at 3 x 3 pixels, and answers infinity where the first band is POISON."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (5 * self.layers(x)).masked_fill(x[:, :1] == (POISON - 127) / 60, torch.inf)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("blend", ["hann", "crop"])
def test_a_gpu_loses_the_same_tiles(raster: Callable[..., Path], tmp_path: Path, blend: str, activation: str) -> None:
    rng = np.random.default_rng(0)
    samples = np.kron(rng.integers(10, 255, (3, 20, 30), np.uint8), np.ones((7, 7), np.uint8))
    for row, col in ((60, 100), (61, 150), (139, 209)):
        samples[0, row, col] = POISON
    thresholds = (100,) if activation == "sigmoid" else (50, 100, 150)
    scaling, bands = {"offset": [127] * 3, "divisor": [60] * 3}, ["red", "green", "blue"]
    facts = {"activation": activation, "scaling": scaling, "bands": bands, "tile": 64, "overlap": 16}
    model = threshold_model(tmp_path / "model", thresholds, **facts)
    tiling = {"blend": blend, "store_confidence": True, "block": 1000}
    plan = plan_of(raster(samples, photometric="RGB"), model, tmp_path, tiling=tiling)
    network = Network(Spoiled(1 if activation == "sigmoid" else len(plan.card.classes)).eval())
    how = Inference("cpu", 2, "float32", 1)
    usual, device = network_predictor(plan.card, network, how), DevicePredictor(plan.card, network, how)
    expected = lost_pixels(plan, samples[0])
    assert 0 < expected.mean() < 0.9

    core = Window(0, 0, *expected.shape)
    one, other = predicted(plan, usual, core), predicted(plan, device, core)
    for found in (one, other):
        assert ((found.labels == 254) == expected).all()
        assert found.confidence is not None
        assert not found.confidence[expected].any()
    assert other.lost == one.lost > 0
    assert other.error == one.error
    for part in blocks(*expected.shape, 50, 70):
        assert (predicted(plan, device, part.core).labels == other.labels[part.core.slices]).all()
    compared = [predicted(plan, device, part.core).disagreement for part in blocks(*expected.shape, 50, 70)]
    assert blend == "crop" or (np.sum(compared, axis=0) == other.disagreement).all()


def record_of(plan: Plan, folder: Path, name: str, blocks_of: Callable[[Job], BlockRecord]) -> tuple[BlockRecord, Any]:
    job = Job(plan=plan, store=str(folder / name), trust_code=True)
    mosaic.create(Path(job.store), plan)
    record = blocks_of(job)
    return record, mosaic.read(Path(job.store), plan.blocks[0].core)


CODE = """
import numpy as np
def predict(data, valid):
    scores = np.stack([data[:, 0] < 100, (data[:, 0] >= 100) & (data[:, 0] < 200), data[:, 0] >= 200], axis=1)
    scores = scores.astype(np.float32)
    scores[:, 1][(data[:, 0] == 7) & valid] = np.inf
    return scores
"""


def test_a_block_in_quarters_is_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusting(tmp_path, monkeypatch, CODE)
    samples = noise((150, 130), 2, seed=1)
    image = write_raster(tmp_path / "a.tif", samples, nodata=0)
    plan = plan_of(image, tmp_path / "model", tmp_path, tiling={"block": 1000})
    (block,) = plan.blocks

    def quarters(job: Job) -> BlockRecord:
        return parts.join_parts(job, block, tuple(parts.predict_part(job, part) for part in parts.split(block)))

    whole, labels = record_of(plan, tmp_path, "whole.zarr", lambda job: segment_block(job, block))
    joined, same = record_of(plan, tmp_path, "quarters.zarr", quarters)
    assert (labels == same).all()
    assert whole.shards == joined.shards
    assert (whole.state, whole.failed_px) == ("done", (labels == 254).sum())
    assert 0 < whole.failed_px == joined.failed_px
    for record in (whole, joined):
        assert "NaN or infinite outputs for" in str(record.error)
    allowed, strict = summarise(plan, (whole,)), summarise(plan, (whole,), 0.001)
    assert (allowed.state, strict.state) == ("partial", "failed")
    assert "more than faults.max_failed_fraction" in str(strict.error)
    assert "NaN or infinite outputs" in str(strict.error)
    assert FaultsConfig().max_failed_fraction > 0.001


def test_a_night_loses_the_same_tiles_with_any_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of many blocks, of one block, and of one tile; of the last every tile is lost."""
    for name, shape, poisoned in (("a", (300, 260), 3), ("b", (60, 90), 1), ("c", (20, 30), 1), ("d", (28, 25), 0)):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        write_raster(tmp_path / "scenes" / f"{name}.tif", noise(shape, poisoned, seed=4), nodata=0)
    sections = trusting(tmp_path, monkeypatch, CODE) | {"truth": {}}
    tiling = {"block": 64, "store_confidence": True}
    serial = night(tmp_path, **sections, tiling=tiling, output="serial")
    workers = {"type": "local", "workers": 2, "threads": 1, "memory_gib": 2}
    parallel = night(tmp_path, **sections, tiling=tiling, output="parallel", cluster=workers)
    assert serial.exit_code == parallel.exit_code == 1
    assert bytes_of(tmp_path / "serial") == bytes_of(tmp_path / "parallel") != {}
    for morning in (serial, parallel):
        assert [result(morning, stem).state for stem in "abcd"] == ["partial", "partial", "failed", "complete"]
        assert result(morning, "c").error.startswith("model 'threshold' answers NaN or infinite outputs for 1 of 1 tile,")
        for stem in "ab":
            failed = mask(morning, stem) == 254
            assert failed.sum() == result(morning, stem).failed_px
            assert 0 < failed.mean() < 0.5
            assert "check the weights" in result(morning, stem).error


def test_where_every_tile_is_lost_the_image_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes").mkdir()
    write_raster(tmp_path / "scenes" / "a.tif", noise((150, 150), 0, seed=4), nodata=0)
    code = (
        "import numpy as np\ndef predict(data, valid):\n    return np.full((len(data), 3, *data.shape[2:]), np.nan, np.float32)\n"
    )
    sections = trusting(tmp_path, monkeypatch, code) | {"truth": {}}
    morning = night(tmp_path, **sections, tiling={"block": 64})
    (image,) = morning.report.images
    assert (morning.exit_code, image.state) == (1, "failed")
    assert not list((tmp_path / "out" / "masks").glob("*/*.zarr"))
    assert "model 'threshold' answers NaN or infinite outputs" in str(image.error)
    assert "check the weights" in str(image.error)


@given(
    span=st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 20), st.integers(1, 20)),
    cuts=st.lists(st.integers(0, 19), min_size=4, max_size=4),
)
def test_a_part_and_what_is_around_it_are_the_span(span: tuple[int, int, int, int], cuts: list[int]) -> None:
    whole = Window(*span)
    (top, bottom), (left, right) = sorted(c % whole.height for c in cuts[:2]), sorted(c % whole.width for c in cuts[2:])
    part = Window(whole.row + top, whole.col + left, bottom - top + 1, right - left + 1)
    seen = np.zeros(whole.shape, int)
    for piece in [part, *around(part, whole)]:
        seen[piece.inside(whole)] += 1
    assert (seen == 1).all()
