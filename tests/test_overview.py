"""The small picture of a whole image shows the whole image, in few pixels, read strip by strip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import mosaic, overview
from pipeline.alignment import plan_truth
from pipeline.image import WorkingGrid
from pipeline.overview import draw_overview, shrink
from pipeline.truth import describe_truth
from pipeline.work import Job
from tests.making import config, plan_of, segment_block, threshold_model


@given(height=st.integers(1, 50_000), width=st.integers(1, 50_000), side=st.integers(64, 1000))
def test_shrinking_keeps_the_area_and_never_enlarges(height: int, width: int, side: int) -> None:
    small = shrink(WorkingGrid(height=height, width=width), side)
    assert max(small.shape) <= max(side, 1)
    assert small.height <= height
    assert small.width <= width
    assert small.height * small.scale_row == pytest.approx(height)
    assert small.width * small.scale_col == pytest.approx(width)


def test_the_pictures_show_what_is_where(raster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left half dark, right half bright; the labels call the lower half bright: a quarter is wrong."""
    monkeypatch.setattr(overview, "_STRIP_PX", 50_000)
    samples = np.full((1200, 1600), 50, np.uint8)
    samples[:, 800:] = 200
    truth = np.zeros((1200, 1600), np.uint8)
    truth[600:] = 1
    labels = raster(truth, name="labels.tif")
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model"), tmp_path)
    store = tmp_path / "mask.zarr"
    mosaic.create(store, plan)
    for block in plan.blocks:
        segment_block(Job(plan=plan, store=str(store)), block)
    mosaic.finish_pyramid(store, plan)
    spec = plan_truth(config(tmp_path).truth, describe_truth(str(labels)), plan.mask)

    names = draw_overview(plan, str(store), spec, str(tmp_path / "run"), 160)
    assert set(names) == {"image", "truth", "mask", "errors"}
    pictures = {name: np.asarray(Image.open(tmp_path / "run" / path).convert("RGB")) for name, path in names.items()}
    assert all(picture.shape == (120, 160, 3) for picture in pictures.values())
    assert pictures["image"][60, 20, 0] < pictures["image"][60, 140, 0]
    low, high = (0, 0, 0), (0xE6, 0x9F, 0x00)
    assert [tuple(pictures["mask"][60, col]) for col in (20, 140)] == [low, high]
    assert [tuple(pictures["truth"][row, 60]) for row in (20, 100)] == [low, high]
    right_one, wrong_one = pictures["errors"][20, 20], pictures["errors"][100, 20]
    assert (right_one != wrong_one).any()
    assert (pictures["errors"][100, 140] != wrong_one).any()
