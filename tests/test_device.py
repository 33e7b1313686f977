"""The way of a GPU, walked on the CPU: the same labels as the compiled loops give, whatever the batch and the block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.grid import Window, blocks
from pipeline.models import network_predictor
from pipeline.models.device import DevicePredictor
from pipeline.models.network import Inference, Network
from pipeline.models.predictor import Predictor
from pipeline.plan import Plan
from pipeline.sources import open_source
from pipeline.work import CoreLabels, predict_core
from tests.making import plan_of, threshold_model

MODEL: dict[str, Any] = {"bands": ["red", "green", "blue"], "tile": 64, "overlap": 16}


class Around(nn.Module):
    """Looks at 3 x 3 pixels, so that tiles disagree at their borders."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * self.layers(x)


def plan_with(raster: Callable[..., Path], folder: Path, blend: str, activation: str) -> Plan:
    rng = np.random.default_rng(0)
    samples = np.kron(rng.integers(0, 255, (3, 20, 30), np.uint8), np.ones((7, 7), np.uint8))
    thresholds = (100,) if activation == "sigmoid" else (50, 100, 150)
    scaling = {"offset": [127] * 3, "divisor": [60] * 3}
    model = threshold_model(folder / "model", thresholds, activation=activation, scaling=scaling, **MODEL)
    alpha = np.full((1, *samples.shape[1:]), 255, np.uint8)
    alpha[:, 30:60, 100:] = 0
    image = raster(np.concatenate([samples, alpha]), photometric="RGB", ALPHA="YES")
    return plan_of(image, model, folder, tiling={"blend": blend, "store_confidence": True, "block": 96})


def both(plan: Plan, batch: int, flips: int = 1) -> tuple[Predictor, Predictor]:
    """(what computes on the CPU by its own way, the same network by the way of a GPU)."""
    network = Network(Around(1 if plan.card.activation == "sigmoid" else len(plan.card.classes)).eval())
    how = Inference("cpu", batch, "float32", flips)
    return network_predictor(plan.card, network, how), DevicePredictor(plan.card, network, how)


def labelled(plan: Plan, predictor: Predictor, core: Window) -> CoreLabels:
    return predict_core(plan, predictor, partial(open_source, plan.read), core)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("blend", "batch", "flips"), [("hann", 1, 1), ("hann", 3, 1), ("crop", 2, 1), ("hann", 2, 4)])
def test_a_gpu_would_give_the_same_labels(
    raster: Callable[..., Path], tmp_path: Path, blend: str, batch: int, flips: int, activation: str
) -> None:
    plan = plan_with(raster, tmp_path, blend, activation)
    usual, device = both(plan, batch, flips)

    for block in plan.blocks:
        expected, found = labelled(plan, usual, block.core), labelled(plan, device, block.core)
        assert len(np.unique(expected.labels)) > 1
        assert found.tiles == expected.tiles
        assert (found.labels != expected.labels).mean() < 1e-3  # sums round otherwise there
        assert expected.confidence is not None
        assert found.confidence is not None
        assert np.abs(found.confidence.astype(int) - expected.confidence).max() <= 1
        assert expected.disagreement is not None
        assert found.disagreement is not None
        assert expected.disagreement[:, 0].sum() > 0
        assert np.abs(found.disagreement - expected.disagreement).sum() < 1e-3 * expected.disagreement.sum()
        assert expected.device_seconds is None
        assert found.device_seconds is not None
        assert found.device_seconds > 0


def test_any_block_gives_the_bytes_of_the_whole(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_with(raster, tmp_path, "hann", "softmax")
    _, device = both(plan, 3)
    whole = labelled(plan, device, Window(0, 0, *plan.grid.shape))
    assert (whole.labels == 255).any()

    for block in blocks(*plan.grid.shape, 50, 70):
        assert (labelled(plan, device, block.core).labels == whole.labels[block.core.slices]).all()


def test_outputs_that_are_not_finite_fail_their_pixels(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_with(raster, tmp_path, "hann", "softmax")
    _, device = both(plan, 2)
    device._divisor[:] = 0

    found = labelled(plan, device, plan.blocks[0].core)
    assert set(np.unique(found.labels)) == {254, 255}
    assert "NaN or infinite outputs for 15 of 15 tiles" in str(found.error)


@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="torch.compile needs a C++ compiler")
def test_torch_compile_gives_the_same_labels(raster: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_with(raster, tmp_path, "hann", "softmax")
    network = Network(Around(4).eval())
    plain = network_predictor(plan.card, network, Inference("cpu", 1, "float32", 1))
    made = network_predictor(plan.card, network, Inference("cpu", 1, "float32", 1, compiled=True))

    expected, found = (labelled(plan, p, plan.blocks[0].core).labels for p in (plain, made))
    assert (found != expected).mean() < 1e-3
