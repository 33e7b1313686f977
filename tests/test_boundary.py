"""Borders between classes: the counts of any windows add up to those of SciPy on the whole image."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline import boundary
from pipeline.boundary import Tolerance, boundary_iou, count_boundaries, halo_of, surface_dice, tolerances_of
from pipeline.codes import mask_codes
from pipeline.grid import blocks

Array = NDArray[Any]


def scipy_counts(reference: Array, mask: Array, classes: int, tolerance: Tolerance) -> Array:
    """The definitions by morphology and distance transform, class by class, on the whole image."""
    known = (reference < classes) & (mask != mask_codes(classes).no_data)
    cross, square = ndimage.generate_binary_structure(2, 1), np.ones([2 * side + 1 for side in tolerance.band])
    counts = np.zeros((classes, 7), np.int64)
    for code in range(classes):
        bands, edges = [], []
        for labels in (reference, mask):
            own = known & (labels == code)
            bands.append(own & ~ndimage.binary_erosion(own | ~known, square, border_value=1))
            edges.append(own & ~ndimage.binary_erosion(own | ~known, cross, border_value=1))
        near = []
        for mine, theirs in (edges, edges[::-1]):
            scale = 1 / tolerance.row_px, 1 / tolerance.col_px
            far = ndimage.distance_transform_edt(~theirs, scale) if theirs.any() else np.full(mine.shape, np.inf)
            near.append(mine & (far <= 1 + 1e-9))
        what = (bands[0] & bands[1], *bands, edges[0], near[0], edges[1], near[1])
        counts[code] = [flags.sum() for flags in what]
    return counts


def framed(labels: Array, halo: int, outside: int) -> Array:
    return np.pad(labels, halo, constant_values=outside)


def counted(reference: Array, mask: Array, classes: int, tolerances: tuple[Tolerance, ...], block: tuple[int, int]) -> Array:
    """The sum over blocks, each of which sees its halo and nothing more."""
    halo = halo_of(tolerances)
    reference = framed(reference, halo, classes)
    mask = framed(mask, halo, mask_codes(classes).no_data)
    total = np.zeros((len(tolerances), classes, 7), np.int64)
    for part in blocks(reference.shape[0] - 2 * halo, reference.shape[1] - 2 * halo, *block):
        core = part.core
        seen = slice(core.row, core.row_stop + 2 * halo), slice(core.col, core.col_stop + 2 * halo)
        total += count_boundaries(reference[seen], mask[seen], classes, tolerances)
    return total


def scene(seed: int, shape: tuple[int, int], classes: int, grain: int, holes: float) -> tuple[Array, Array]:
    """Patches of classes, and a mask that is about right; some of both is missing or failed."""
    rng, codes = np.random.default_rng(seed), mask_codes(classes)
    patches = rng.integers(0, classes, (shape[0] // grain + 1, shape[1] // grain + 1))
    reference = np.kron(patches, np.ones((grain, grain), int))[: shape[0], : shape[1]]
    mask = np.roll(reference, (rng.integers(-1, 3), rng.integers(-1, 3)), (0, 1))
    mask = np.where(rng.random(shape) < 0.03, rng.integers(0, classes, shape), mask)
    for labels, code in ((reference, classes), (mask, codes.failed), (mask, codes.no_data)):
        labels[ndimage.binary_dilation(rng.random(shape) < holes, iterations=2)] = code
    return reference.astype(codes.dtype), mask.astype(codes.dtype)


PX = tolerances_of((1, 2, 4), (), None)
MIXED = tolerances_of((1, 3), (0.9, 2.0, 3.1), (0.5, 0.8))


def test_the_mixed_tolerances_are_not_all_nested() -> None:
    assert len(MIXED) == 5
    assert not all(one.offsets <= other.offsets for one, other in pairwise(MIXED))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    classes=st.sampled_from([1, 2, 5, 254, 300]),
    grain=st.integers(1, 20),
    holes=st.sampled_from([0.0, 0.01, 0.1]),
    tolerances=st.sampled_from([PX, MIXED]),
    block=st.tuples(st.integers(3, 70), st.integers(3, 70)),
)
def test_blocks_add_up_to_what_scipy_says_of_the_whole(
    seed: int,
    height: int,
    width: int,
    classes: int,
    grain: int,
    holes: float,
    tolerances: tuple[Tolerance, ...],
    block: tuple[int, int],
) -> None:
    reference, mask = scene(seed, (height, width), classes, grain, holes)
    few = min(classes, 5)
    if few < classes:
        for labels in (reference, mask):
            labels[labels < classes] %= few
    found = counted(reference, mask, classes, tolerances, block)
    for counts, tolerance in zip(found, tolerances, strict=True):
        assert not counts[few:].any()
        expected = scipy_counts(np.where(reference == classes, few, reference), _fewer(mask, classes, few), few, tolerance)
        assert (counts[:few] == expected).all()


def _fewer(mask: Array, classes: int, few: int) -> Array:
    """A mask of many classes as one of a few."""
    old, new = mask_codes(classes), mask_codes(few)
    found = mask.astype(new.dtype)
    found[mask == old.failed], found[mask == old.no_data] = new.failed, new.no_data
    return found


def test_a_large_image_is_looked_at_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, mask = scene(3, (300, 280), 4, 30, 0.0005)
    whole = counted(reference, mask, 4, PX, (300, 280))
    assert (whole[:, :, 3] > 0).all()
    monkeypatch.setattr(boundary, "WINDOW", 64)
    assert (counted(reference, mask, 4, PX, (300, 280)) == whole).all()


def test_boundary_iou_of_a_square_is_that_of_cheng() -> None:
    """Cheng's code erodes by 3 x 3 px, once a pixel of width; the object touches no edge of the image."""
    reference, mask = np.zeros((2, 40, 40), np.uint8)
    reference[10:30, 10:30] = 1
    mask[12:32, 11:31] = 1
    for width in (1, 2, 3, 5):
        square = np.ones((3, 3))
        band, other = (labels - ndimage.binary_erosion(labels, square, iterations=width) for labels in (reference, mask))
        expected = (band & other).sum() / (band | other).sum()
        counts = counted(reference, mask, 2, tolerances_of((width,), (), None), (40, 40))
        assert boundary_iou(counts[0])[1] == expected


def test_small_numbers_by_head() -> None:
    """A straight border that is one column off: 10 border pixels on both sides of each, all within 1 px of the other's."""
    reference, mask = np.zeros((2, 10, 10), np.uint8)
    reference[:, 5:], mask[:, 6:] = 1, 1
    one, two = counted(reference, mask, 2, tolerances_of((1, 2), (), None), (10, 10))
    assert one.tolist() == [[0, 10, 10, 10, 10, 10, 10]] * 2
    assert two.tolist() == [[10, 20, 20, 10, 10, 10, 10]] * 2
    assert surface_dice(one).tolist() == [1, 1]
    assert boundary_iou(one).tolist() == [0, 0]
    assert boundary_iou(two).tolist() == [1 / 3, 1 / 3]


def test_the_edge_of_the_image_and_of_what_is_known_is_no_border() -> None:
    reference, mask = np.full((2, 20, 20), 1, np.uint8)
    reference[:, :5], mask[15:] = 2, 255
    counts = counted(reference, mask, 2, PX, (20, 20))
    assert not counts.any()
    assert np.isnan(boundary_iou(counts[0])).all()
    assert np.isnan(surface_dice(counts[0])).all()


def test_failed_pixels_are_misses() -> None:
    """They are no class: the mask has a border where the reference has none, and none where the reference has one."""
    reference, mask = np.zeros((2, 20, 20), np.uint8)
    reference[:, 10:], mask[:, 10:] = 1, 1
    perfect = surface_dice(counted(reference, mask, 2, PX, (20, 20))[0])
    assert perfect.tolist() == [1, 1]
    mask[5:15] = 254
    assert (surface_dice(counted(reference, mask, 2, PX, (20, 20))[0]) < 1).all()
    mask[:] = 254
    counts = counted(reference, mask, 2, PX, (20, 20))
    assert surface_dice(counts[0]).tolist() == [0, 0]
    assert (counts[:, :, [1, 3]] > 0).all()
    assert not counts[:, :, [0, 2, 4, 5, 6]].any()


def test_tolerances_in_metres_follow_the_pixels() -> None:
    half, two = tolerances_of((), (0.5, 2.0), (0.5, 0.25))
    assert (half.row_px, half.col_px, half.band) == (1, 2, (1, 2))
    assert half.offsets == {(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (0, 2), (0, -2)}
    assert two.band == (4, 8)
    assert tolerances_of((2,), (1.0,), None) == tolerances_of((2,), (), None)
    assert tolerances_of((), (9.0,), (0.5, 0.5)) == ()
