"""Blending: the rolling strip gives what the obvious computation over the whole image gives, for any block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.blend import Activation, blending, hann, weight_sum
from pipeline.grid import Lattice, Window, blocks


def tile_scores(lattice: Lattice, classes: int, seed: int) -> dict[tuple[int, int], NDArray[np.float32]]:
    """Random scores for every tile: probabilities over the classes."""
    rng = np.random.default_rng(seed)
    shape = (classes, lattice.tile, lattice.tile)
    scores = {(row, col): rng.random(shape, np.float32) for row in lattice.rows for col in lattice.cols}
    return {place: s / s.sum(0) for place, s in scores.items()}


def rolled(
    lattice: Lattice, core: Window, classes: int, scores: dict[tuple[int, int], NDArray[np.float32]], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8] | None]:
    """What a block computes, tile row by tile row."""
    blend = blending(lattice, core, classes, confidence=True)
    rows, cols = lattice.touching(core)
    seen = core.row
    for row in rows:
        stop = min(row + lattice.tile, core.row_stop)
        if stop > seen:
            fresh = Window(seen, core.col, stop - seen, core.width)
            blend.expect(fresh, valid[fresh.slices], None)
            seen = stop
        for col in cols:
            blend.add(row, col, scores[row, col])
    blend.finish()
    return blend.labels, blend.confidence


def whole_mean(lattice: Lattice, classes: int, scores: dict[tuple[int, int], NDArray[np.float32]]) -> NDArray[np.float64]:
    """Hann-weighted mean over the whole image, in float64."""
    size = (max(lattice.height, lattice.tile), max(lattice.width, lattice.tile))
    total, weight = np.zeros((classes, *size)), np.zeros(size)
    window = np.outer(hann(lattice.tile), hann(lattice.tile)).astype(np.float64)
    for (row, col), s in scores.items():
        at = slice(row, row + lattice.tile), slice(col, col + lattice.tile)
        total[:, *at] += s * window
        weight[at] += window
    return (total / weight)[:, : lattice.height, : lattice.width]


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.sampled_from([8, 16, 31]),
    share=st.floats(0, 0.75),
    block=st.integers(8, 100),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**16),
)
def test_blocks_of_any_shape_give_the_whole_images_weighted_mean(
    height: int, width: int, tile: int, share: float, block: int, classes: int, seed: int
) -> None:
    lattice = Lattice(height, width, tile, int(share * tile), "hann")
    scores = tile_scores(lattice, classes, seed)
    valid = np.random.default_rng(seed).random((height, width)) < 0.9
    mean = whole_mean(lattice, classes, scores)
    ordered = np.sort(mean, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5

    for part in blocks(height, width, block, block + 3):
        labels, confidence = rolled(lattice, part.core, classes, scores, valid)
        at = part.core.slices
        assert (labels[~valid[at]] == 255).all()
        sure = clear[at] & valid[at]
        assert (labels[sure] == mean.argmax(0)[at][sure]).all()
        assert np.abs(confidence[valid[at]] / 255 - mean.max(0)[at][valid[at]]).max(initial=0) < 1 / 255


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    share=st.floats(0, 0.75),
    block=st.integers(8, 100),
    blend=st.sampled_from(["hann", "crop"]),
    seed=st.integers(0, 2**16),
)
def test_a_pixel_has_the_same_label_whichever_block_owns_it(
    height: int, width: int, share: float, block: int, blend: str, seed: int
) -> None:
    lattice = Lattice(height, width, 16, int(share * 16), blend)
    scores = tile_scores(lattice, 3, seed)
    valid = np.ones((height, width), bool)
    whole, whole_confidence = rolled(lattice, Window(0, 0, height, width), 3, scores, valid)

    for part in blocks(height, width, block, block):
        labels, confidence = rolled(lattice, part.core, 3, scores, valid)
        assert (labels == whole[part.core.slices]).all()
        assert (confidence == whole_confidence[part.core.slices]).all()


def test_crop_takes_each_pixel_from_the_nearest_tile() -> None:
    lattice = Lattice(6, 10, 6, 2, "crop")  # tiles at columns 0 and 4; centres 3 and 7; the cut is at 5
    first, second = np.zeros((2, 6, 6), np.float32), np.zeros((2, 6, 6), np.float32)
    first[0], second[1] = 1, 1
    labels, _ = rolled(lattice, Window(0, 0, 6, 10), 2, {(0, 0): first, (0, 4): second}, np.ones((6, 10), bool))

    assert (labels[:, :5] == 0).all()
    assert (labels[:, 5:] == 1).all()


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_where_one_tile_counts_its_own_scores_do(activation: Activation) -> None:
    lattice = Lattice(5, 7, 8, 0, "hann")
    outputs = np.random.default_rng(3).normal(0, 2, (1 if activation == "sigmoid" else 3, 8, 8)).astype(np.float32)
    logits = np.concatenate([np.zeros_like(outputs), outputs]) if activation == "sigmoid" else outputs
    scores = softmax(logits.astype(np.float64), axis=0) if activation != "none" else logits
    blend = blending(lattice, Window(0, 0, 5, 7), len(logits), activation=activation, confidence=True)
    blend.expect(Window(0, 0, 5, 7), np.ones((5, 7), bool), None)

    blend.add(0, 0, outputs)
    blend.finish()

    assert not blend.lost

    assert blend.confidence is not None
    assert (blend.labels == scores[:, :5, :7].argmax(0)).all()
    expected = np.clip(scores.max(0), 0, 1)[:5, :7] * 255
    assert np.abs(blend.confidence - expected).max() < 0.501


def test_hann_weights_are_above_zero_and_symmetric() -> None:
    weights = hann(512)
    assert weights.min() > 0
    assert np.outer(weights, weights).astype(np.float32).min() > 0
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-4)
    assert weights[255] == pytest.approx(1, abs=1e-4)


def test_weights_at_half_overlap_add_up_to_one() -> None:
    total = weight_sum([0, 64, 128, 192], 128, 64, 256)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_ties_go_to_the_lowest_class() -> None:
    lattice = Lattice(4, 4, 4, 0, "hann")
    scores = {(0, 0): np.full((4, 4, 4), 0.25, np.float32)}
    labels, confidence = rolled(lattice, Window(0, 0, 4, 4), 4, scores, np.ones((4, 4), bool))
    assert (labels == 0).all()
    assert (confidence == 64).all()


def test_what_could_not_be_read_is_failed_and_the_rest_is_no_data() -> None:
    lattice = Lattice(4, 4, 4, 0, "hann")
    core = Window(0, 0, 4, 4)
    valid, failed = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    valid[0], failed[1] = True, True
    blend = blending(lattice, core, 2)
    blend.expect(core, valid, failed)
    blend.add(0, 0, np.ones((2, 4, 4), np.float32))
    blend.finish()
    assert blend.labels[:3, 0].tolist() == [0, 254, 255]


def test_more_than_254_classes_take_two_bytes() -> None:
    lattice = Lattice(2, 2, 2, 0, "hann")
    blend = blending(lattice, Window(0, 0, 2, 2), 300)
    valid = np.array([[True, True], [False, False]])
    blend.expect(Window(0, 0, 2, 2), valid, None)
    scores = np.zeros((300, 2, 2), np.float32)
    scores[299] = 1
    blend.add(0, 0, scores)
    blend.finish()
    assert blend.labels.tolist() == [[299, 299], [65535, 65535]]
