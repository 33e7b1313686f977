"""Reference labels on the working grid: nearest by direct indexing, and nothing counted that is not labelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment import TruthSpec
from pipeline.errors import PlanError, TruthError
from pipeline.grid import Window
from pipeline.truth import Reference, describe_truth, open_truth
from tests.conftest import write_raster

Raster = Callable[..., Path]


def spec_of(path: Path, codes: dict[int, int], ignore: tuple[int, ...] = (), **mapping: float) -> TruthSpec:
    return TruthSpec(source=describe_truth(str(path)), codes=codes, ignore=ignore, **mapping)


def read(spec: TruthSpec, classes: int, shape: tuple[int, int], window: Window | None = None) -> Reference:
    with open_truth(spec, classes, *shape) as truth:
        return truth.read(window or Window(0, 0, *shape))


def test_values_become_codes_and_the_rest_is_told_apart(raster: Raster) -> None:
    labels = raster(np.array([[1, 5, 0], [9, 9, 5]], np.uint8))

    reference = read(spec_of(labels, {1: 0, 5: 1}, ignore=(0,)), 2, (2, 3))

    assert reference.codes.tolist() == [[0, 1, 2], [2, 2, 1]]
    assert reference.codes.dtype == np.uint8
    assert reference.unknown == {9: 2}


def test_an_ignored_class_is_not_labelled(raster: Raster) -> None:
    assert read(spec_of(raster(np.ones((2, 2), np.uint8)), {1: 0}, ignore=(1,)), 1, (2, 2)).codes.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_every_type_of_labels_reads_alike(raster: Raster, dtype: str) -> None:
    labels = raster(np.array([[0, 1, 2], [7, 100, 101]], dtype))

    reference = read(spec_of(labels, {0: 0, 1: 1, 2: 2, 100: 3, 1000: 4, -9999: 5}, ignore=(7,)), 6, (2, 3))

    assert reference.codes.tolist() == [[0, 1, 2], [6, 3, 6]]
    assert reference.unknown == {101: 1}


def test_negative_values_are_values(raster: Raster) -> None:
    assert read(spec_of(raster(np.array([[-1, 3]], np.int16)), {-1: 0, 3: 1}), 2, (1, 2)).codes.tolist() == [[0, 1]]


def test_more_classes_than_a_byte_holds(raster: Raster) -> None:
    labels = raster(np.array([[0, 299, 300]], np.uint16))
    reference = read(spec_of(labels, {value: value for value in range(300)}), 300, (1, 3))
    assert reference.codes.dtype == np.uint16
    assert reference.codes.tolist() == [[0, 299, 300]]
    assert reference.unknown == {300: 1}


def test_nodata_mask_and_alpha_mean_not_labelled(raster: Raster, tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 9]], np.uint8)
    assert read(spec_of(raster(values, "n.tif", nodata=9), {0: 0, 1: 1}), 2, (2, 2)) == same([[0, 1], [1, 2]])
    assert read(spec_of(raster(values, "z.tif", nodata=0), {0: 0, 1: 1}), 2, (2, 2)) == same([[2, 1], [1, 2]], {9: 1})

    shown = np.array([[0, 255], [255, 255]], np.uint8)
    alpha = raster(np.stack([values, shown]), "a.tif", photometric="MINISBLACK", alpha="YES")
    assert read(spec_of(alpha, {0: 0, 1: 1}), 2, (2, 2)) == same([[2, 1], [1, 2]], {9: 1})

    masked = raster(values, "m.tif")
    with rasterio.open(masked, "r+") as file:
        file.write_mask(shown)
    assert read(spec_of(masked, {0: 0, 1: 1}), 2, (2, 2)) == same([[2, 1], [1, 2]], {9: 1})


class same:  # noqa: N801 (reads as a word in the assertions)
    """Equal to a reference with these codes and unknown values."""

    def __init__(self, codes: list[list[int]], unknown: dict[int, int] | None = None) -> None:
        self.expected = codes, unknown or {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and (other.codes.tolist(), other.unknown) == self.expected

    def __repr__(self) -> str:
        return repr(self.expected)


def test_nan_is_not_labelled_and_a_fraction_is_refused(raster: Raster) -> None:
    assert read(spec_of(raster(np.array([[np.nan, 1.0]], np.float32)), {1: 0}), 1, (1, 2)) == same([[1, 0]])
    with pytest.raises(TruthError, match=r"0\.25.*no whole number"):
        read(spec_of(raster(np.array([[0.25, 1.0]], np.float32), "f.tif"), {1: 0}), 1, (1, 2))


def test_outside_of_the_labels_nothing_is_labelled(raster: Raster) -> None:
    labels = raster(np.array([[1, 1], [1, 1]], np.uint8))
    reference = read(spec_of(labels, {1: 0}, offset_row=-1, offset_col=-2), 1, (4, 5))
    assert reference.codes.tolist() == [[1] * 5, [1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [1] * 5]
    far = read(spec_of(labels, {1: 0}, offset_row=100), 1, (4, 5))
    assert (far.codes == 1).all()


def test_labels_at_half_resolution_are_every_second_pixel(data: Path) -> None:
    path = data / "dubai" / "dubai_scene2_label.tif"
    with rasterio.open(path) as file:
        labels = file.read(1)
    assert len(np.unique(labels)) > 3
    codes = {int(value): int(value) for value in np.unique(labels)}

    reference = read(spec_of(path, codes, scale_row=2, scale_col=2), 6, (labels.shape[0] // 2, labels.shape[1] // 2))

    np.testing.assert_array_equal(reference.codes, labels[1::2, 1::2])
    assert not reference.unknown


def test_a_centre_on_a_border_does_not_waver_with_rounding(raster: Raster) -> None:
    columns = np.arange(200, dtype=np.uint8)[None]
    spec = spec_of(raster(columns), {v: v for v in range(200)}, scale_col=2 * (1 - 1e-12), offset_col=-1e-9)
    assert read(spec, 200, (1, 100)).codes[0].tolist() == list(range(1, 200, 2))


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    labels = np.random.default_rng(0).integers(0, 7, (90, 70), np.uint8)
    return write_raster(tmp_path_factory.mktemp("truth") / "l.tif", labels), labels


@settings(deadline=None, max_examples=60)
@given(
    scale=st.floats(0.3, 4),
    offset=st.tuples(st.floats(-30, 60), st.floats(-30, 60)),
    corner=st.tuples(st.integers(0, 59), st.integers(0, 49)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 50)),
)
def test_any_window_is_the_label_under_each_centre(
    random_labels: tuple[Path, Any], scale: float, offset: tuple[float, float], corner: tuple[int, int], size: tuple[int, int]
) -> None:
    path, labels = random_labels
    window = Window(*corner, *size).clip(60, 50)
    mapping = {"scale_row": scale, "scale_col": scale * 1.3, "offset_row": offset[0], "offset_col": offset[1]}

    reference = read(spec_of(path, {v: v for v in range(5)}, ignore=(5,), **mapping), 5, (60, 50), window)

    unknown = 0
    for i in range(window.height):
        for j in range(window.width):
            row = int(np.floor((window.row + i + 0.5) * scale + offset[0] + 1e-6))
            col = int(np.floor((window.col + j + 0.5) * scale * 1.3 + offset[1] + 1e-6))
            value = labels[row, col] if 0 <= row < 90 and 0 <= col < 70 else 5
            unknown += value == 6
            assert reference.codes[i, j] == min(value, 5)
    assert sum(reference.unknown.values()) == unknown


def test_strips_of_a_large_window_fit_together(random_labels: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, labels = random_labels
    monkeypatch.setattr("pipeline.truth.STRIP_PIXELS", 70 * 8)
    reference = read(spec_of(path, {v: v for v in range(7)}), 7, (90, 70))
    np.testing.assert_array_equal(reference.codes, labels)


def test_colours_are_refused_as_labels(data: Path) -> None:
    with pytest.raises(TruthError, match=r"have 3 bands \(red, green, blue\)"):
        describe_truth(str(data / "dubai" / "dubai_scene2.tif"))


def test_a_palette_gives_its_indexes(data: Path) -> None:
    info = describe_truth(str(data / "dubai" / "dubai_scene2_label.tif"))
    assert info.band_names == ("palette",)


def test_missing_and_exchanged_labels_are_truth_errors(raster: Raster, tmp_path: Path) -> None:
    with pytest.raises(TruthError, match="does not exist"):
        describe_truth(str(tmp_path / "none.tif"))
    path = raster(np.zeros((3, 3), np.uint8))
    spec = spec_of(path, {0: 0})
    write_raster(path, np.zeros((4, 40), np.uint8))
    with pytest.raises(TruthError, match="not the file that was planned"):
        open_truth(spec, 1, 3, 3)


def test_a_window_outside_the_grid_is_an_error(raster: Raster) -> None:
    with pytest.raises(PlanError, match="outside the working grid"):
        read(spec_of(raster(np.zeros((3, 3), np.uint8)), {0: 0}), 1, (3, 3), Window(1, 0, 3, 3))
