"""Working pixels from native ones: small means by head, outside oracles, and the law that windows agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from scipy.ndimage import map_coordinates

from pipeline.resample import resample, taps

TYPES = [np.uint8, np.uint16, np.int16, np.float32]


def whole(
    data: NDArray, valid: NDArray | None, scale: float, shape: tuple[int, int], first: tuple[int, int] = (0, 0)
) -> tuple[NDArray, NDArray]:
    """`shape` working pixels from `first` on of an image at `scale`, given the native pixels of all of it."""
    valid = np.ones(data.shape[1:], bool) if valid is None else valid
    rows = taps(first[0], first[0] + shape[0], scale, data.shape[1])
    cols = taps(first[1], first[1] + shape[1], scale, data.shape[2])
    needed = np.s_[
        rows.native_start : rows.native_start + rows.native_length, cols.native_start : cols.native_start + cols.native_length
    ]
    return resample(data[:, *needed], valid[needed], rows, cols)


def one_row(values: list, scale: float, valid: list[bool] | None = None, dtype: type = np.uint8) -> tuple[list, list]:
    length = int(len(values) / scale + 0.5)
    samples = np.repeat(np.array([[values]], dtype), 4, axis=1)
    mask = None if valid is None else np.repeat(np.array([valid]), 4, axis=0)
    data, real = whole(samples, mask, scale, (1, length))
    return data[0, 0].tolist(), real[0].tolist()


def test_two_pixels_become_their_mean() -> None:
    assert one_row([10, 20, 30, 50], scale=2.0) == ([15, 40], [True, True])


def test_a_pixel_on_a_border_is_shared_out_by_area() -> None:
    # working pixel 0 covers 1 and 0.5 native pixels: (10 + 0.5 * 40) / 1.5 = 20
    assert one_row([10, 40, 70], scale=1.5)[0] == [20, 60]


def test_halves_are_rounded_up_below_zero_too() -> None:
    assert one_row([1, 2, 4, 5], scale=2.0)[0] == [2, 5]
    assert one_row([-1, -2, -4, -5], scale=2.0, dtype=np.int16)[0] == [-1, -4]


def test_the_extremes_of_a_type_stay_what_they_are() -> None:
    for dtype in (np.uint8, np.uint16, np.int16, np.uint32):
        limits = np.iinfo(dtype)
        assert one_row([limits.max] * 5 + [limits.min] * 5, scale=2.5, dtype=dtype)[0] == [limits.max] * 2 + [limits.min] * 2


def test_invalid_pixels_are_left_out_of_the_mean() -> None:
    values, real = one_row([10, 99, 20, 30], scale=2.0, valid=[True, False, True, True])
    assert (values, real) == ([10, 25], [True, True])


def test_half_of_the_weight_is_enough_and_less_is_not() -> None:
    assert one_row([10, 20, 30, 90, 90, 90], 3.0, [True, True, False, True, False, False]) == ([15, 0], [True, False])
    assert one_row([10, 20, 30, 40], 4.0, [True, False, False, True]) == ([25], [True])


def test_the_last_pixel_reaches_over_the_edge_and_ignores_what_is_not_there() -> None:
    # 5 native pixels at scale 2 are 3 working ones; the last covers one native pixel
    assert one_row([10, 20, 30, 40, 77], scale=2.0) == ([15, 35, 77], [True, True, True])


def test_going_finer_is_bilinear_at_pixel_centres() -> None:
    # centres at -0.25, 0.25, 0.75, 1.25 of native pixels 0 and 1
    assert one_row([0, 100], scale=0.5)[0] == [0, 25, 75, 100]


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_whole_factors_equal_gdals_average_and_pillows_reduce(raster: Callable[..., Path], factor: int) -> None:
    picture = np.random.default_rng(factor).integers(0, 256, (60, 120), np.uint8)
    with rasterio.open(raster(picture)) as file:
        average = file.read(1, out_shape=(60 // factor, 120 // factor), resampling=Resampling.average)

    ours, valid = whole(picture[None], None, float(factor), average.shape)

    assert valid.all()
    assert len(np.unique(average)) > 50
    np.testing.assert_array_equal(ours[0], average)
    if factor in (2, 4):  # Pillow's own arithmetic is exact for powers of two only
        np.testing.assert_array_equal(ours[0], np.asarray(Image.fromarray(picture).reduce(factor)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.06, 1.7, 2.5, 7.3])
def test_area_means_equal_differences_of_the_integral(dtype: type, scale: float) -> None:
    rng = np.random.default_rng(7)
    samples = rng.uniform(0, 200, (2, 61, 83)).astype(dtype)
    shape = int(61 / scale), int(83 / scale)
    integral = np.zeros((2, 62, 84))
    integral[:, 1:, 1:] = samples.astype(float).cumsum(1).cumsum(2)
    corners = np.meshgrid(*(np.arange(n + 1) * scale for n in shape), indexing="ij")
    sums = [np.diff(np.diff(map_coordinates(band, corners, order=1), axis=0), axis=1) for band in integral]

    ours, valid = whole(samples, None, scale, shape)

    assert valid.all()
    assert np.abs(ours - np.array(sums) / scale**2).max() <= (1e-4 if dtype is np.float32 else 0.5001)


@pytest.mark.parametrize("scale", [0.5, 0.73, 0.97])
def test_finer_pixels_equal_scipys_linear_interpolation(scale: float) -> None:
    samples = np.random.default_rng(3).uniform(-5, 5, (1, 20, 31)).astype(np.float32)
    shape = int(20 / scale + 0.5), int(31 / scale + 0.5)
    centres = np.meshgrid(*((np.arange(n) + 0.5) * scale - 0.5 for n in shape), indexing="ij")

    ours, valid = whole(samples, None, scale, shape)

    assert valid.all()
    np.testing.assert_allclose(ours[0], map_coordinates(samples[0], centres, order=1, mode="nearest"), atol=1e-5)


@given(st.integers(1, 40), st.floats(1, 12))
def test_coarser_pixels_share_out_every_native_pixel_once(length: int, scale: float) -> None:
    axis = taps(0, int(np.ceil(length / scale)), scale, length)
    shares = np.zeros(length)
    np.add.at(shares, axis.index, axis.weight)
    np.testing.assert_allclose(shares, 1, atol=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_window_is_the_crop_of_the_whole(draw: st.DataObject) -> None:
    dtype = draw.draw(st.sampled_from(TYPES))
    scale = draw.draw(st.one_of(st.floats(0.5, 9), st.sampled_from([1.0, 2.0, 3.0, 4.0042])))
    seed, holes = draw.draw(st.integers(0, 99)), draw.draw(st.sampled_from([0, 0.001, 0.3, 0.9]))
    rng = np.random.default_rng(seed)
    native = rng.integers(20, 160, 2)
    data = rng.uniform(0, 250, (2, *native)).astype(dtype)
    valid = rng.uniform(size=native) >= holes
    shape = tuple(max(1, int(n / scale + 0.5)) for n in native)
    row, col = draw.draw(st.integers(0, shape[0] - 1)), draw.draw(st.integers(0, shape[1] - 1))
    height, width = draw.draw(st.integers(1, shape[0] - row)), draw.draw(st.integers(1, shape[1] - col))

    all_data, all_valid = whole(data, valid, scale, shape)
    part_data, part_valid = whole(data, valid, scale, (height, width), first=(row, col))

    crop = np.s_[row : row + height, col : col + width]
    assert part_data.tobytes() == all_data[:, *crop].tobytes()
    assert part_valid.tobytes() == all_valid[crop].tobytes()


@settings(deadline=None)
@given(st.floats(0.5, 9), st.integers(0, 99), st.sampled_from(TYPES))
def test_an_even_surface_stays_even_whatever_is_missing(scale: float, seed: int, dtype: type) -> None:
    valid = np.random.default_rng(seed).uniform(size=(40, 50)) > 0.4
    surface = np.full((1, 40, 50), 0, dtype)
    surface[0][valid] = 137

    data, real = whole(surface, valid, scale, (max(1, int(40 / scale)), max(1, int(50 / scale))))

    np.testing.assert_allclose(data[0][real], 137, rtol=1e-6)
    assert not data[0][~real].any()
