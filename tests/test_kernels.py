"""The compiled loops answer the same bits as the plain NumPy in tests/reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import kernels
from tests import reference

SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**16)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("last", [False, True])
def test_scaling_rounds_as_numpy_does(dtype: str, last: bool) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 200, (3, 17, 23)).astype(dtype)
    valid = rng.random((17, 23)) < 0.8
    offset, divisor = rng.random(3, np.float32) * 100, rng.random(3, np.float32) + 1
    out = np.full((17, 23, 3), np.nan, np.float32).transpose(2, 0, 1) if last else np.full((3, 17, 23), np.nan, np.float32)

    kernels.scale(samples, valid, offset, divisor, out)

    assert 0 < valid.sum() < valid.size
    np.testing.assert_array_equal(out, reference.scale(samples, valid, offset, divisor))


def test_the_exponential_is_right_to_the_last_digits() -> None:
    x = np.linspace(-87, 0, 1_000_001, dtype=np.float32)

    error = reference.exponential(x) / np.exp(x.astype(np.float64)) - 1

    assert np.abs(error).max() < 2e-7
    assert reference.exponential(np.zeros(1, np.float32))[0] == 1


@settings(max_examples=60)
@given(
    classes=st.integers(1, 9),
    height=SIDES,
    width=SIDES,
    extra=st.integers(0, 20),
    spread=st.sampled_from([0.1, 5, 200]),
    seed=SEEDS,
)
@example(classes=5, height=31, width=33, extra=7, spread=5, seed=1)
def test_weighted_probabilities_add_up_to_the_same_bits(
    classes: int, height: int, width: int, extra: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    side = max(height, width) + extra
    outputs = rng.normal(0, spread, (classes, side, side)).astype(np.float32)
    weight = rng.random(side, np.float32)
    row, col, ring = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1), int(rng.integers(0, 50))
    sums = rng.random((height + extra, classes, width + 3), np.float32)
    expected = sums.copy()
    rows = (ring + np.arange(height)) % len(sums)
    part = outputs[:, row : row + height, col : col + width]
    target = expected[rows, :, 2 : 2 + width].transpose(1, 0, 2)
    reference.add_probabilities(part, weight[row : row + height], weight[col : col + width], target)
    expected[rows, :, 2 : 2 + width] = target.transpose(1, 0, 2)

    finite = kernels.add_probabilities(outputs, (row, row + height), (col, col + width), weight, weight, sums, ring, 2)

    assert finite
    np.testing.assert_array_equal(sums, expected)


def test_one_channel_is_the_second_of_two_classes() -> None:
    outputs = np.array([[[-200, -1, 0, 1, 200]]], np.float32)
    ones = np.ones(5, np.float32)
    sums = np.zeros((1, 2, 5), np.float32)

    kernels.add_probabilities(outputs, (0, 1), (0, 5), ones, ones, sums, 0, 0)

    sigmoid = 1 / (1 + np.exp(-outputs[0, 0].astype(np.float64)))
    np.testing.assert_allclose(sums[0, 1], sigmoid, atol=1e-7)
    np.testing.assert_allclose(sums[0].sum(0), 1, atol=1e-7)


@pytest.mark.parametrize("add", [kernels.add_probabilities, kernels.add_scores])
@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_is_told(add: Any, stray: float) -> None:
    outputs = np.zeros((3, 4, 4), np.float32)
    ones = np.ones(4, np.float32)
    outputs[1, 3, 3] = stray

    assert add(outputs, (0, 3), (0, 4), ones, ones, np.zeros((4, 3, 4), np.float32), 0, 0)
    assert not add(outputs, (0, 4), (0, 4), ones, ones, np.zeros((4, 3, 4), np.float32), 0, 0)


@settings(max_examples=60)
@given(classes=st.integers(1, 9), height=SIDES, width=SIDES, seed=SEEDS)
@example(classes=3, height=2, width=1100, seed=1)
def test_scores_labels_and_confidence(classes: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    side = max(height, width)
    scores = (rng.integers(0, 4, (classes, side, side)) / 4).astype(np.float32)  # with many ties
    weight = rng.random(side, np.float32) + 0.5
    ring = int(rng.integers(0, 50))
    sums = np.zeros((height, classes, width), np.float32)
    kernels.add_scores(scores, (0, height), (0, width), weight, weight, sums, ring, 0)
    expected = np.zeros((classes, height, width), np.float32)
    reference.add_scores(scores[:, :height, :width], weight[:height], weight[:width], expected)
    labels = rng.choice(np.array([0, 254, 255], np.uint8), (height, width), p=[0.8, 0.1, 0.1])
    before, confidence = labels.copy(), np.zeros(labels.shape, np.uint8)

    kernels.confide(sums, ring, weight[:height], weight[:width], labels, 254, confidence)
    kernels.label(sums, ring, labels, 254)

    np.testing.assert_array_equal(labels, reference.label(expected, before, 254))
    todo = before < 254
    np.testing.assert_array_equal(confidence[todo], reference.confide(expected, weight[:height], weight[:width])[todo])
    assert not confidence[~todo].any()
    assert not sums.any()


@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 2])
def test_picking_tells_what_is_no_finite_number(stray: float, channel: int) -> None:
    outputs, labels = np.zeros((3, 4, 4), np.float32), np.zeros((4, 4), np.uint8)
    outputs[channel, 3, 3] = stray

    assert kernels.pick(outputs, (0, 3), (0, 4), False, labels, 0, 0, 254)
    assert not kernels.pick(outputs, (0, 4), (0, 4), False, labels, 0, 0, 254)


@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 4, 5), (1, 2, 3)])
def test_what_is_not_finite_is_found_in_its_window_only(stray: float, place: tuple[int, int, int]) -> None:
    outputs = np.full((3, 5, 6), np.finfo(np.float32).max, np.float32)
    assert kernels.is_finite(outputs, (0, 5), (0, 6))
    outputs[place] = stray
    _, row, col = place

    assert not kernels.is_finite(outputs, (0, 5), (0, 6))
    assert not kernels.is_finite(outputs, (row, row + 1), (col, col + 1))
    assert kernels.is_finite(outputs, (0, row), (0, 6))
    assert kernels.is_finite(outputs, (row, row + 1), (col + 1, 6))
    assert kernels.is_finite(outputs, (row + 1, 5), (0, 6))


@settings(max_examples=60)
@given(classes=st.integers(1, 9), height=SIDES, width=SIDES, extra=st.integers(0, 9), sigmoid=st.booleans(), seed=SEEDS)
def test_the_highest_output_wins_in_its_window(
    classes: int, height: int, width: int, extra: int, sigmoid: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    side = max(height, width) + extra
    outputs = (rng.integers(-4, 5, (1 if sigmoid else classes, side, side)) / 4).astype(np.float32)  # with many ties
    row, col = int(rng.integers(0, side - height + 1)), int(rng.integers(0, side - width + 1))
    top, left = (int(n) for n in rng.integers(0, 3, 2))
    labels = rng.choice(np.array([0, 254, 255], np.uint8), (height + 3, width + 3), p=[0.8, 0.1, 0.1])
    before, confidence = labels.copy(), np.zeros(labels.shape, np.uint8)
    window = (row, row + height), (col, col + width)
    target = labels, top, left, 254

    assert kernels.pick(outputs, *window, sigmoid, *target)
    kernels.assure(outputs, *window, True, sigmoid, *target, confidence)

    own = outputs[:, row : row + height, col : col + width]
    logits = np.concatenate([np.zeros_like(own), own]) if sigmoid else own
    inside = np.s_[top : top + height, left : left + width]
    expected, todo = before.copy(), before[inside] < 254
    expected[inside] = reference.label(logits, before[inside], 254)
    np.testing.assert_array_equal(labels, expected)
    sure = reference.assure(logits)
    np.testing.assert_array_equal(confidence[inside][todo], sure[todo])
    assert confidence.astype(np.int64).sum() == sure[todo].astype(np.int64).sum()


@settings(max_examples=60)
@given(height=SIDES, width=SIDES, wide=st.booleans(), seed=SEEDS)
def test_halving_is_a_vote_of_four(height: int, width: int, wide: bool, seed: int) -> None:
    codes = np.array([0, 1, 2, 300, 65534, 65535], np.uint16) if wide else np.array([0, 1, 2, 253, 254, 255], np.uint8)
    labels = np.random.default_rng(seed).choice(codes, (height, width))
    out = np.full((-(-height // 2), -(-width // 2)), 77, labels.dtype)

    kernels.halve(labels, int(codes[-2]), out)

    np.testing.assert_array_equal(out, reference.halve(labels, int(codes[-2])))


@settings(max_examples=30)
@given(size=st.integers(0, 300), classes=st.integers(1, 6), seed=SEEDS)
def test_counting_counts_every_pixel_once(size: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes + 1, size).astype(np.uint8)
    mask = rng.choice(np.array([*range(classes), 254, 255], np.uint8), size)
    place = np.full(256, -1, np.int32)
    place[[*range(classes), 254, 255]] = range(classes + 2)
    cells = np.zeros((classes + 1) * (classes + 2), np.int64)

    stray = kernels.count(truth, mask, place, classes + 2, cells)

    assert stray == -1
    np.testing.assert_array_equal(cells.reshape(classes + 1, classes + 2), reference.count(truth, mask, classes, 254, 255))
    if size:
        mask[-1] = 200
        assert kernels.count(truth, mask, place, classes + 2, cells) == 200


@given(size=st.integers(0, 200), wide=st.booleans(), seed=SEEDS)
def test_the_tally_is_a_histogram(size: int, wide: bool, seed: int) -> None:
    codes = 65536 if wide else 256
    labels = np.random.default_rng(seed).integers(0, codes, size).astype(np.uint16 if wide else np.uint8)
    out = np.ones(codes, np.int64)

    kernels.tally(labels, out)

    np.testing.assert_array_equal(out, 1 + np.bincount(labels, minlength=codes))
