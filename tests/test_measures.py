"""What is measured beside the counts: the same sums for any blocks, and what a slow look at the whole image finds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import edges, mosaic
from pipeline.boundary import boundary_iou, surface_dice
from pipeline.config import ScoringConfig, TruthConfig
from pipeline.errors import ConfigError
from pipeline.grid import Lattice, Window, blocks
from pipeline.measures import BoundaryScore, EdgeCounts, Measured, Measures, measures_of, sum_boundaries, sum_curves
from pipeline.plan import Plan
from pipeline.records import score_task, sum_scores
from pipeline.sources import open_source
from pipeline.truth import plan_labels
from pipeline.whole import summarise
from pipeline.work import Job, ScoreJob, predict_core, score_block
from tests.making import config, plan_of, segment_block, threshold_model
from tests.test_boundary import scene, scipy_counts
from tests.test_night import archive, night, result
from tests.test_work import Surroundings

__all__ = ["archive"]


def deepest(length: int, tile: int, overlap: int) -> list[float]:
    """For each pixel along an axis, how far its best tile's inner borders are."""
    starts = Lattice(length, length, tile, overlap).rows
    depth = []
    for pixel in range(length):
        seen = []
        for start in starts:
            low = pixel - start if start > 0 else np.inf
            high = start + tile - 1 - pixel if start + tile < length else np.inf
            if start <= pixel < start + tile:
                seen.append(min(low, high))
        depth.append(max(seen))
    return depth


@given(length=st.integers(1, 900), tile=st.integers(2, 300), share=st.floats(0, 0.7))
def test_depth_is_that_of_the_best_tile(length: int, tile: int, share: float) -> None:
    overlap = int(tile * share)
    depth = deepest(length, tile, overlap)
    expected = [min(int(d) // edges.bin_px(tile), edges.bins(tile) - 1) if d < np.inf else edges.bins(tile) - 1 for d in depth]
    assert edges.depth_bins(length, tile, overlap, 0, length).tolist() == expected
    assert edges.depth_bins(length, tile, overlap, length // 3, length).tolist() == expected[length // 3 :]
    assert edges.bins(tile) <= edges.MOST_BINS
    assert (tile - 1) // 2 // edges.bin_px(tile) == edges.bins(tile) - 1


def stored(plan: Plan, folder: Path, mask: NDArray[Any], confidence: NDArray[Any] | None = None) -> Path:
    store = folder / "mask.zarr"
    mosaic.create(store, plan)
    for block in plan.blocks:
        parts = (None if a is None else np.ascontiguousarray(a[block.core.slices]) for a in (mask, confidence))
        mosaic.write_block(store, plan, block.core, *parts)
    return store


@pytest.mark.parametrize("shape", [(150, 700), (300, 290), (20, 30)])
def test_sums_over_blocks_are_those_of_the_whole(raster: Callable[..., Path], tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    reference, mask = scene(1, shape, 3, 14, 0.002)
    confidence = rng.integers(0, 256, shape, np.uint8)
    values = reference.copy()
    values[(reference == 3) & (rng.random(shape) < 0.5)] = 77
    labels = raster(values, "labels.tif", nodata=3)
    image = raster(rng.integers(0, 256, shape, np.uint8))
    model = threshold_model(tmp_path / "model", (60, 180), tile=64, overlap=16)
    plan = plan_of(image, model, tmp_path, tiling={"store_confidence": True})
    measures = measures_of(ScoringConfig(boundary_px=(1, 3)), plan)
    truth = plan_labels(TruthConfig(), str(labels), plan.mask)
    store = stored(plan, tmp_path, mask, confidence)
    job = ScoreJob(store=str(store), mask=plan.mask, truth=truth, measures=measures)
    found = [
        sum_scores(score_block(job, part) for part in blocks(*shape, *block)) for block in ((1000, 1000), (64, 90), (3, 301))
    ]
    assert found[0] == found[1] == found[2]
    score = found[0]
    assert score.unknown == {77: (values == 77).sum()} or (values == 77).sum() == 0 == len(score.unknown)

    for at, tolerance in zip(score.measured.boundary, measures.tolerances, strict=True):
        assert (at.counts == scipy_counts(reference, mask, 3, tolerance)).all()
    answered = (reference < 3) & (mask < 3)
    right = reference == mask
    assert score.measured.calibration is not None
    assert list(map(list, score.measured.calibration)) == [
        [int((answered & (confidence == c) & ~right).sum()), int((answered & (confidence == c) & right).sum())]
        for c in range(256)
    ]
    assert score.measured.edge_errors is not None
    depth = np.minimum.outer(*(deepest(length, 64, 16) for length in shape))
    place = np.minimum(depth, 31).astype(int)
    assert score.measured.edge_errors.counts == tuple(
        (int((answered & ~right & (place == d)).sum()), int((answered & right & (place == d)).sum())) for d in range(32)
    )
    assert score.measured.error_cells is not None
    counts = np.array(score.counts)
    evaluated = (reference < 3) & (mask != 255)
    assert counts[:3, :4].sum() == evaluated.sum() == sum(cell[2] for cell in score.measured.error_cells.cells)
    for row, col, labelled, wrong in score.measured.error_cells.cells:
        cell = slice(row * 128, (row + 1) * 128), slice(col * 128, (col + 1) * 128)
        assert (labelled, wrong) == (evaluated[cell].sum(), (evaluated & ~right)[cell].sum())


def test_without_measures_there_are_only_counts(raster: Callable[..., Path], tmp_path: Path) -> None:
    reference, mask = scene(1, (80, 90), 3, 14, 0.002)
    labels = raster(reference, "labels.tif", nodata=3)
    plan = plan_of(raster(reference), threshold_model(tmp_path / "model", (60, 180)), tmp_path)
    job = ScoreJob(
        store=str(stored(plan, tmp_path, mask)), mask=plan.mask, truth=plan_labels(TruthConfig(), str(labels), plan.mask)
    )
    score = score_block(job, plan.blocks[0])
    assert score.measured == Measured(error_cells=score.measured.error_cells)


def by_hand(plan: Plan, samples: NDArray[Any]) -> NDArray[np.int64]:
    """What tiles of the lattice say of their overlaps, pair by pair; samples of 0 are no data."""
    lattice, size = plan.lattice, plan.tile
    model = Surroundings(plan.card)
    counts = np.zeros((edges.bins(size), 2), np.int64)
    places = {(i, j): (row, col) for i, row in enumerate(lattice.rows) for j, col in enumerate(lattice.cols)}

    def labels(row: int, col: int) -> NDArray[Any]:
        tile = samples[row : row + size, col : col + size]
        return model.outputs(tile[None, None], tile[None] > 0)[0].argmax(0)

    for (i, j), (row, col) in places.items():
        for below in (False, True):
            before = places.get((i - below, j - (not below)))
            if before is None or not edges._chosen(i, j, below):
                continue
            one, other = labels(*before), labels(row, col)
            for r in range(row, before[0] + size):
                for c in range(col, before[1] + size):
                    if samples[r, c]:
                        start, last = (row, before[0]) if below else (col, before[1])
                        pixel = r if below else c
                        distance = min(pixel - start, last + size - 1 - pixel)
                        same = one[r - before[0], c - before[1]] == other[r - row, c - col]
                        counts[distance, int(same)] += 1
    return counts


def test_tiles_that_disagree_are_counted_alike_in_any_blocks(raster: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    samples = rng.integers(1, 256, (150, 210), np.uint8)
    samples[rng.random(samples.shape) < 0.1] = 0
    samples[40:90, 30:100] = 0
    image, model = raster(samples, nodata=0), threshold_model(tmp_path / "model", (60, 180))
    plan = plan_of(image, model, tmp_path)
    source, found = partial(open_source, plan.read), []
    for side in (1000, 64, 37):
        cores = [part.core for part in blocks(*samples.shape, side, side)]
        parts = [predict_core(plan, Surroundings(plan.card), source, core).disagreement for core in cores]
        found.append(np.sum([part for part in parts if part is not None], axis=0))
    expected = by_hand(plan, samples)
    assert expected[:, 0].sum() > 0
    assert (found == expected).all()


def test_a_pixelwise_model_never_disagrees(raster: Callable[..., Path], tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (100, 120), np.uint8)
    plan = plan_of(raster(samples), threshold_model(tmp_path / "model", (60, 180)), tmp_path)
    store = tmp_path / "mask.zarr"
    mosaic.create(store, plan)
    records = tuple(segment_block(Job(plan=plan, store=str(store)), block) for block in plan.blocks)
    curve = summarise(plan, records).edge_disagreement
    assert curve is not None
    assert (curve.tile, curve.overlap, curve.bin_px, len(curve.counts)) == (32, 8, 1, 16)
    assert sum(wrong for wrong, _ in curve.counts) == 0
    assert sum(right for _, right in curve.counts) > 0


def test_one_class_has_nothing_to_disagree_about() -> None:
    outputs = np.array([[[-1.0, 2.0], [0.0, -3.0]]], np.float32)
    assert not edges.winners_of(outputs, (0, 2), (0, 2))().any()
    assert edges.winners_of(outputs, (0, 2), (0, 2), sigmoid=True)().tolist() == [[0, 1], [0, 0]]


def test_one_output_stands_for_two_classes() -> None:
    lattice = Lattice(16, 28, 16, 4)
    compared = edges.Disagreement(lattice, Window(0, 0, 16, 28), 2, partial(edges.winners_of, sigmoid=True))
    labels = np.zeros((16, 28), np.uint8)
    low, high = np.full((1, 16, 16), -1, np.float32), np.zeros((1, 16, 16), np.float32)
    high[0, :8] = 2  # exactly 0 is the first class
    compared.add((0, 0), low, labels)
    compared.add((0, 12), high, labels)
    assert compared.counts[:2].tolist() == [[16, 16], [16, 16]]


def test_a_night_reports_what_it_measured_and_measures_again_what_is_asked_anew(archive: Path) -> None:
    tiling = {"block": 64, "overlap": 8, "store_confidence": True}
    serial = night(archive, tiling=tiling, output="serial")
    workers = {"type": "local", "workers": 2, "threads": 1, "memory_gib": 2}
    parallel = night(archive, tiling=tiling | {"block": 1000}, output="parallel", cluster=workers)
    for stem in "abc":
        one, other = result(serial, stem), result(parallel, stem)
        assert [(b.size, b.unit) for b in one.boundary] == [(1, "px"), (2, "px"), (4, "px")]
        for name in ("counts", "boundary", "calibration", "edge_errors", "edge_disagreement", "block_errors"):
            assert getattr(one, name) is not None, name
            assert getattr(one, name) == getattr(other, name), name
        assert sum(map(sum, one.calibration)) == sum(map(sum, one.edge_errors.counts))
    again = night(archive, tiling=tiling, output="serial", scoring={"boundary_px": [2]})
    assert all(image.reused for image in again.report.images)
    for stem in "abc":
        assert result(again, stem).boundary == result(serial, stem).boundary[1:2]
        assert result(again, stem).edge_errors == result(serial, stem).edge_errors


def test_images_add_up_where_they_were_measured_alike() -> None:
    def border(size: float, unit: Literal["px", "m"], n: int) -> BoundaryScore:
        return BoundaryScore(size=size, unit=unit, bands=((n, n, n),), edges=((n, n, n, n),))

    images = [[border(2, "px", 1), border(0.5, "m", 5)], [border(1, "px", 7), border(2, "px", 10)]]
    assert sum_boundaries(images) == [border(1, "px", 7), border(2, "px", 11), border(0.5, "m", 5)]
    assert boundary_iou(border(1, "px", 7).counts).tolist() == surface_dice(border(1, "px", 7).counts).tolist() == [1]
    one, other = (EdgeCounts(tile=4, overlap=n, bin_px=1, counts=((1, 2), (3, 4))) for n in (1, 2))
    assert sum_curves([other, one, other]) == [one, other.model_copy(update={"counts": ((2, 4), (6, 8))})]
    assert sum_boundaries([]) == sum_curves([]) == []


def test_the_name_of_a_scoring_tells_what_was_measured() -> None:
    one, other = (Measures(tile=tile, overlap=8) for tile in (64, 96))
    assert score_task("a" * 64, one) == score_task("a" * 64, one.model_copy())
    assert len({score_task("a" * 64, one), score_task("a" * 64, other), score_task("b" * 64, one)}) == 3


@pytest.mark.parametrize("scoring", [{"boundary_px": [0]}, {"boundary_px": [17]}, {"boundary_m": [0]}, {"boundary": [1]}])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, scoring: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="scoring"):
        config(tmp_path, scoring=scoring)
