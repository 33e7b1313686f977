"""Pixel geometry: tiles cover, cores partition, spans follow each other."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PlanError
from pipeline.grid import Lattice, Window, blocks, owned_spans, tile_starts


@given(length=st.integers(1, 5000), tile=st.integers(1, 700), share=st.floats(0, 0.9))
def test_tiles_cover_overlap_and_are_fewest(length: int, tile: int, share: float) -> None:
    overlap = int(share * tile)
    starts = tile_starts(length, tile, overlap)

    covered = np.zeros(length, bool)
    for start in starts:
        covered[start : start + tile] = True
    assert covered.all()
    assert all(a + tile - b >= overlap for a, b in pairwise(starts))
    assert len(starts) == max(1, 1 + ceil((length - tile) / (tile - overlap)))


def test_a_pixel_more_than_a_tile_needs_a_second_tile() -> None:
    assert tile_starts(512, tile=512, overlap=128) == [0]
    assert tile_starts(513, tile=512, overlap=128) == [0, 1]


def test_without_overlap_tiles_lie_side_by_side() -> None:
    assert tile_starts(1000, tile=250, overlap=0) == [0, 250, 500, 750]


@given(height=st.integers(1, 300), width=st.integers(1, 300), rows=st.integers(1, 120), cols=st.integers(1, 120))
def test_cores_cover_every_pixel_exactly_once(height: int, width: int, rows: int, cols: int) -> None:
    seen = np.zeros((height, width), int)
    for index, block in enumerate(blocks(height, width, rows, cols)):
        assert block.index == index
        assert block.core.row % rows == 0
        assert block.core.col % cols == 0
        seen[block.core.slices] += 1
    assert (seen == 1).all()


@given(length=st.integers(1, 3000), tile=st.integers(1, 400), share=st.floats(0, 0.9))
def test_owned_spans_follow_each_other_and_are_nearest_to_their_centre(length: int, tile: int, share: float) -> None:
    starts = tile_starts(length, tile, int(share * tile))
    spans = owned_spans(starts, tile, length)

    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    centres = np.array(starts) + tile / 2
    for (first, stop), centre in zip(spans, centres, strict=True):
        pixels = np.arange(first, stop) + 0.5
        assert (np.abs(pixels - centre) <= np.abs(pixels[:, None] - centres).min(1) + 1e-9).all()


@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    tile=st.integers(8, 200),
    share=st.floats(0, 0.8),
    blend=st.sampled_from(["hann", "crop"]),
    data=st.data(),
)
def test_touching_tiles_are_all_that_speak_for_a_core(
    height: int, width: int, tile: int, share: float, blend: str, data: st.DataObject
) -> None:
    lattice = Lattice(height, width, tile, int(share * tile), blend)
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    core = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    rows, cols = lattice.touching(core)

    covered = np.zeros(core.shape, bool)
    for start, span in zip(lattice.rows, lattice.row_spans, strict=True):
        touches = span[0] < core.row_stop and core.row < span[1]
        assert touches == (start in rows)
    for top, (first, stop) in zip(lattice.rows, lattice.row_spans, strict=True):
        for left, (begin, end) in zip(lattice.cols, lattice.col_spans, strict=True):
            if top in rows and left in cols:
                rows_in, cols_in = (first - core.row, stop - core.row), (begin - core.col, end - core.col)
                covered[slice(*np.maximum(rows_in, 0)), slice(*np.maximum(cols_in, 0))] = True
    assert covered.all()


def test_a_window_clips_to_the_image() -> None:
    assert Window(-3, 5, 10, 10).clip(20, 8) == Window(0, 5, 7, 3)


def test_an_empty_window_says_what_it_is() -> None:
    with pytest.raises(PlanError, match=r"0 x 5 pixels at \(1, 2\) is empty"):
        Window(1, 2, 0, 5)


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(PlanError, match="overlap 64 does not fit tiles of 64 px"):
        Lattice(100, 100, 64, 64)
