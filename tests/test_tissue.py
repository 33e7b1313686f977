"""Tissue on slides: maps that any window reads alike, and made-up slides for each thing that is not tissue, beside real ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from fractions import Fraction
from functools import cache
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import ValidationError
from scipy import ndimage

from pipeline.errors import PlanError
from pipeline.grid import Window
from pipeline.tissue import HOLE_UM2, MAP_MPP, MAP_SIDE, TissueMap, find_tissue, map_shape, otsu
from tests.conftest import REPO

Array = NDArray[Any]

SHAPE = 180, 240
"""Of most pictures here: 1.4 x 1.9 mm."""
WHITE, TINTED = (242, 242, 242), (235, 226, 205)
HE, BROWN, BLUE = (0.30, 0.55, 0.30), (0.20, 0.36, 0.50), (0.30, 0.32, 0.15)
"""Optical densities (red, green, blue) of tissue as it is stained: H&E, DAB, haematoxylin alone."""
TOLUIDINE = (0.70, 0.45, 0.10)
"""A stain of the colour of blue ink."""
INKS = {"green": (40, 150, 80), "blue": (35, 60, 170), "red": (200, 35, 45), "black": (35, 35, 40)}
"""Colours (red, green, blue) of strokes on white."""


@cache
def texture(seed: int, scale: float, shape: tuple[int, int] = SHAPE) -> Array:
    """A random field of mean 0 and deviation 1 whose grains are about `scale` px."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), scale, mode="wrap")
    return (field - field.mean()) / field.std()


def disc(row: float, col: float, radius: float, shape: tuple[int, int] = SHAPE) -> Array:
    rows, cols = np.indices(shape)
    return np.hypot(rows - row, cols - col) < radius


TISSUE = disc(85, 100, 45) | disc(100, 140, 30)
"""Where there is tissue in most pictures here."""


def stained(where: Array, stain: tuple[float, float, float], grain: float = 0.45, seed: int = 1) -> Array:
    """Densities (h, w, 3) of tissue: soft at its edges, and varied by `grain`, as cells vary it."""
    amount = np.maximum(1 + grain * (texture(seed, 1.2, where.shape) + 0.5 * texture(seed + 1, 8, where.shape)), 0.15)
    return (ndimage.gaussian_filter(where.astype(float), 0.7) * amount)[..., None] * np.array(stain)


def drawn(name: str, points: list[tuple[float, float]], width: int) -> tuple[Array, Array]:
    """(densities, where): a stroke of ink through `points` (x, y), out of focus and not quite even."""
    canvas = Image.new("L", SHAPE[::-1])
    ImageDraw.Draw(canvas).line(points, fill=255, width=width, joint="curve")
    soft = ndimage.gaussian_filter(np.asarray(canvas) / 255, 1.5) * (1 + 0.08 * texture(9, 10))
    return soft[..., None] * -np.log10(np.array(INKS[name]) / 242), soft > 0.3


def ring(radius: float, row: float = 90, col: float = 120) -> list[tuple[float, float]]:
    """Points (x, y) of a closed circle."""
    angle = np.linspace(0, 2 * np.pi, 60)
    return list(zip(col + radius * np.cos(angle), row + radius * np.sin(angle), strict=True))


def photographed(od: Array, glass: tuple[int, int, int] = WHITE, falls: float = 0.0, noise: float = 1.0, seed: int = 5) -> Array:
    """The slide under a lamp whose light falls by the share `falls` towards the corners, as bytes."""
    shape = od.shape[:2]
    rows, cols = np.indices(shape)
    away = (rows / shape[0] - 0.45) ** 2 + (cols / shape[1] - 0.6) ** 2
    light = np.array(glass) * (1 - falls * away / away.max())[..., None] * 10**-od
    return np.clip(np.rint(light + np.random.default_rng(seed).normal(0, noise, light.shape)), 0, 255).astype(np.uint8)


def nothing(shape: tuple[int, int] = SHAPE) -> Array:
    return np.zeros((*shape, 3))


def find(rgb: Array, valid: Array | None = None, mpp: float | None = MAP_MPP) -> Array:
    return find_tissue(rgb, np.ones(rgb.shape[:2], bool) if valid is None else valid, mpp)[0]


def grown(where: Array, px: int) -> Array:
    return ndimage.binary_dilation(where, np.ones((3, 3)), iterations=px)


def assert_found(found: Array, true: Array, least: float = 0.98) -> None:
    """Nearly all of `true`, and nothing that is more than 4 px away."""
    assert found[true].mean() >= least
    assert not found[~grown(true, 4)].any()


# Maps


def test_four_pixels_look_at_two() -> None:
    tissue = TissueMap.of(np.array([[True, False]]), "by hand")
    assert tissue.read(Window(0, 0, 2, 4), (2, 4)).tolist() == [[True, True, False, False]] * 2
    assert tissue.read(Window(1, 1, 1, 2), (2, 4)).tolist() == [[True, False]]


def test_a_finer_map_is_looked_at_in_the_middle_of_pixels() -> None:
    """Three map pixels to one of the grid: the middle one counts."""
    tissue = TissueMap.of(np.array([[True, False, True, False, True, False]]), "by hand")
    assert tissue.read(Window(0, 0, 1, 2), (1, 2)).tolist() == [[False, True]]


@settings(max_examples=80)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    window=st.builds(Window, st.integers(-9, 75), st.integers(-9, 75), st.integers(1, 80), st.integers(1, 80)),
    share=st.sampled_from([0.02, 0.5]),
)
def test_any_window_is_the_crop_of_the_whole(
    seed: int, size: tuple[int, int], shape: tuple[int, int], window: Window, share: float
) -> None:
    found = np.random.default_rng(seed).random(size) < share
    tissue = TissueMap.of(found, "drawn")
    whole = np.array(
        [
            [
                found[tuple(floor((Fraction(2 * at + 1, 2)) * m / n) for at, m, n in zip(ij, size, shape, strict=True))]
                for ij in row
            ]
            for row in ([(i, j) for j in range(shape[1])] for i in range(shape[0]))
        ]
    )
    framed = np.pad(whole, 160)
    expected = framed[window.row + 160 : window.row_stop + 160, window.col + 160 : window.col_stop + 160]
    assert (tissue.read(window, shape) == expected).all()
    assert tissue.touches(window, shape) == expected.any()


def test_a_window_of_a_million_pixels_square_is_asked_without_making_it() -> None:
    found = np.zeros((2000, 2000), bool)
    found[1500, 300] = True
    tissue, shape = TissueMap.of(found, "one pixel"), (1_000_000, 1_000_000)
    assert tissue.touches(Window(0, 0, *shape), shape)
    assert not tissue.touches(Window(0, 0, 750_000, 1_000_000), shape)
    assert tissue.touches(Window(750_499, 150_499, 1, 1), shape)
    assert not tissue.touches(Window(750_500, 150_499, 1, 1), shape)


@given(seed=st.integers(0, 1000), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_a_map_comes_back_from_its_text(seed: int, size: tuple[int, int]) -> None:
    found = np.random.default_rng(seed).random(size) < 0.4
    tissue = TissueMap.of(found, "drawn", (8.0, 8.5))
    for again in (TissueMap.model_validate_json(tissue.model_dump_json()), pickle.loads(pickle.dumps(tissue))):
        assert again == tissue
        assert (again.found == found).all()
    assert TissueMap.of(found.copy(order="F"), "drawn", (8.0, 8.5)).bits == tissue.bits


def test_share_and_area_by_head() -> None:
    """3 of 8 pixels, of 10 x 20 µm each."""
    tissue = TissueMap.of(np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool), "by hand", (10.0, 20.0))
    assert tissue.share == 3 / 8
    assert tissue.area_mm2 == pytest.approx(0.0006)
    assert TissueMap.of(tissue.found, "by hand").area_mm2 is None
    with pytest.raises(ValueError, match="read-only"):
        tissue.found[0, 0] = False


def test_the_map_of_a_large_slide_is_a_few_kilobytes() -> None:
    """Dozens of pieces with ragged edges and holes, on 16 x 16 mm."""
    field = texture(3, 16, (256, 256)) + 0.2 * texture(4, 3, (256, 256))
    ragged = ndimage.zoom(field, 8, order=1) > 0.8
    assert ragged.shape == (MAP_SIDE, MAP_SIDE)
    assert 0.1 < ragged.mean() < 0.4
    assert len(TissueMap.of(ragged, "drawn").bits) < 20_000


def test_damaged_maps_are_refused() -> None:
    good = TissueMap.of(np.eye(20, dtype=bool), "by hand").model_dump()
    for wrong, said in (
        ({"bits": "!!"}, "cannot be unpacked"),
        ({"bits": good["bits"][8:]}, "cannot be unpacked"),
        ({"height": 21}, "21"),
    ):
        with pytest.raises(ValidationError, match=said):
            TissueMap.model_validate({**good, **wrong})
    with pytest.raises(PlanError, match="no pixels"):
        TissueMap.of(np.zeros((0, 5), bool), "nothing")


@given(height=st.integers(1, 300_000), width=st.integers(1, 300_000), mpp=st.none() | st.floats(0.05, 20))
def test_maps_are_never_finer_than_they_should_be(height: int, width: int, mpp: float | None) -> None:
    rows, cols = map_shape(height, width, mpp)
    assert 1 <= rows <= min(height, MAP_SIDE)
    assert 1 <= cols <= min(width, MAP_SIDE)
    if mpp is not None and mpp < MAP_MPP:
        assert rows <= max(1, height * mpp / MAP_MPP + 0.5)


def test_map_shapes_by_head() -> None:
    assert map_shape(32_000, 16_000, 0.25) == (1000, 500)
    assert map_shape(100_000, 50_000, 0.5) == (2048, 1024)
    assert map_shape(4096, 1000, None) == (2048, 500)
    assert map_shape(400, 300, 10.0) == (400, 300)


def test_whoever_only_reads_maps_pays_for_no_image_library() -> None:
    code = "import sys, pipeline.tissue; print(*[m for m in ('scipy', 'skimage', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == ""


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95), gap=st.floats(0, 6))
def test_the_threshold_is_that_of_scikit_image(seed: int, share: float, gap: float) -> None:
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(seed)
    samples = (rng.normal(0, 1, 500) + gap * (rng.random(500) < share)).astype(np.float32)
    assert otsu(samples) == pytest.approx(filters.threshold_otsu(samples), rel=1e-6)


# Bright field


@pytest.mark.parametrize(
    ("stain", "glass"),
    [
        *((HE, glass) for glass in (WHITE, (255, 255, 255), (205, 205, 205), TINTED, (240, 228, 236))),
        *((stain, TINTED) for stain in (BROWN, BLUE, TOLUIDINE)),
    ],
    ids=str,
)
def test_tissue_of_any_stain_is_found_on_any_glass(stain: tuple[float, float, float], glass: tuple[int, int, int]) -> None:
    assert_found(find(photographed(stained(TISSUE, stain), glass)), TISSUE, 0.995)


@pytest.mark.parametrize(
    "density", [(0.015, 0.05, 0.025), (0.02, 0.04, 0.06), (0.045, 0.045, 0.045)], ids=["pink", "brown", "grey"]
)
def test_pale_tissue_is_found(density: tuple[float, float, float]) -> None:
    """As pale as to take some 10 % of the light in one colour. A threshold halfway to dark tissue beside it would lose it."""
    dark = disc(140, 40, 22)
    od = stained(TISSUE, density, grain=0.1) + stained(dark, HE)
    assert_found(find(photographed(od)), TISSUE | dark)


def test_tissue_of_which_half_is_too_pale_is_found_by_its_other_half() -> None:
    assert_found(find(photographed(stained(TISSUE, (0.01, 0.03, 0.016), grain=0.1))), TISSUE, 0.95)


@pytest.mark.parametrize(("density", "falls"), [((0.012, 0.04, 0.02), 0.1), ((0.05, 0.05, 0.05), 0.0)], ids=["pink", "grey"])
def test_pale_tissue_that_covers_most_of_the_slide_is_not_taken_for_glass(
    density: tuple[float, float, float], falls: float
) -> None:
    most = np.indices(SHAPE)[1] > 75
    assert most.mean() > 0.65
    assert_found(find(photographed(stained(most, density, grain=0.08), falls=falls)), most)


def test_light_is_not_guessed_darker_or_lighter_than_glass_was_seen() -> None:
    """The only glass is a hole of 0.3 mm where light falls by 8 %; going on like that, the other corner would be dark."""
    hole, cols = disc(60, 60, 16), np.indices(SHAPE)[1]
    rgb = photographed(stained(~hole, (0.03, 0.09, 0.05), grain=0.1)).astype(float)
    tilted = rgb * (1 - 0.08 * (cols - 60) / 32)[..., None]
    rgb = np.where(disc(60, 60, 20)[..., None], np.minimum(tilted, 255), rgb).astype(np.uint8)
    assert find(rgb)[~grown(hole, 5)].all()


def test_a_bubble_that_is_lighter_than_the_glass_does_not_make_the_glass_tissue() -> None:
    rgb, bubble = photographed(stained(TISSUE, HE), (222, 222, 222)), disc(140, 200, 22)
    rgb[bubble] += 26
    assert_found(find(rgb), TISSUE)


def test_light_that_falls_off_by_a_third_is_not_tissue_and_hides_none() -> None:
    assert not find(photographed(nothing(), falls=0.33)).any()
    assert_found(find(photographed(stained(TISSUE, (0.02, 0.06, 0.03), grain=0.1), falls=0.33)), TISSUE)


@pytest.mark.parametrize(
    ("glass", "noise"),
    [(WHITE, 0.0), (WHITE, 5.0), ((200, 200, 200), 1.0), (TINTED, 20.0), ((240, 222, 234), 1.0), ((225, 232, 240), 1.0)],
    ids=str,
)
def test_nothing_is_found_on_a_blank_slide(glass: tuple[int, int, int], noise: float) -> None:
    assert not find(photographed(nothing(), glass, falls=0.1, noise=noise)).any()


@pytest.mark.parametrize(
    ("stain", "grain"),
    [(HE, 0.3), ((0.40, 0.70, 0.33), 0.3), ((0.05, 0.15, 0.09), 0.03), ((0.35, 0.35, 0.35), 0.2)],
    ids=["usual", "dark", "smooth", "grey"],
)
def test_a_slide_that_is_all_tissue_is_found_whole(stain: tuple[float, float, float], grain: float) -> None:
    rgb = photographed(stained(np.ones(SHAPE, bool), stain, grain))
    assert np.percentile(rgb.min(axis=2), 99) < 190, "no glass is to be seen"
    assert find(rgb).mean() > 0.99


def test_a_dark_frame_around_a_slide_that_is_all_tissue_is_not_its_glass() -> None:
    rgb = np.pad(photographed(stained(np.ones(SHAPE, bool), HE, 0.3)), ((60, 0), (0, 50), (0, 0)), constant_values=45)
    assert find(rgb)[64:, :-54].mean() > 0.99


def test_the_few_holes_in_a_slide_that_is_tissue_nearly_everywhere_are_its_glass() -> None:
    holes = disc(60, 60, 14) | disc(120, 190, 12)
    found = find(photographed(stained(~holes, HE)))
    assert found[~holes].mean() > 0.99
    assert not found[disc(60, 60, 10)].any()


# Pens


@pytest.mark.parametrize(("name", "width"), [*((name, 24) for name in INKS), ("green", 6), ("black", 6)])
def test_a_ring_drawn_around_tissue_is_not_tissue(name: str, width: int) -> None:
    ink, where = drawn(name, ring(80), width)
    found = find(photographed(stained(TISSUE, HE) + ink))
    assert where.sum() > 2000
    assert found[TISSUE].mean() > 0.99
    assert not found[grown(where, 3) & ~grown(TISSUE, 4)].any()


@pytest.mark.parametrize("name", INKS)
def test_a_stroke_across_tissue_takes_no_more_than_what_it_covers(name: str) -> None:
    ink, where = drawn(name, [(5, 60), (235, 105)], 8)
    assert (where & TISSUE).sum() > 500
    found = find(photographed(stained(TISSUE, HE) + ink))
    assert found[TISSUE & ~grown(where, 5)].mean() > 0.99
    assert found[where & ~grown(TISSUE, 4)].mean() < 0.02


@pytest.mark.parametrize("name", INKS)
def test_a_stroke_that_is_mostly_on_tissue_is_still_ink_where_it_leaves_it(name: str) -> None:
    large = disc(90, 120, 85)
    ink, where = drawn(name, [(2, 80), (238, 100)], 8)
    assert (where & large).sum() > 0.7 * where.sum()
    found = find(photographed(stained(large, HE) + ink))
    assert not found[where & ~grown(large, 4)].any()
    assert found[large & ~grown(where, 5)].mean() > 0.99


@pytest.mark.parametrize("name", INKS)
def test_a_slide_with_nothing_but_ink_is_blank(name: str) -> None:
    ink, where = drawn(name, ring(60), 12)
    assert where.mean() > 0.05
    assert not find(photographed(ink, TINTED)).any()


def test_what_has_the_colour_of_ink_but_the_texture_of_tissue_is_tissue() -> None:
    for stain in (TOLUIDINE, (0.10, 0.60, 0.52), (0.60, 0.15, 0.40), (0.55, 0.55, 0.55)):
        assert_found(find(photographed(stained(TISSUE, stain))), TISSUE)


def test_red_fibres_among_blue_ones_are_tissue() -> None:
    blue = texture(11, 1.2) > 0
    rgb = photographed(stained(TISSUE & blue, (0.8, 0.5, 0.15), 0.3) + stained(TISSUE & ~blue, (0.2, 0.6, 0.5), 0.3, 3))
    assert find(rgb)[TISSUE].all()


def test_a_smooth_black_deposit_amid_tissue_is_tissue() -> None:
    deposit = disc(85, 95, 14)
    od = stained(TISSUE, HE) + ndimage.gaussian_filter(deposit * 1.0, 1)[..., None] * 1.5
    assert find(photographed(od))[TISSUE].mean() > 0.99


# Dust, surroundings


def dust(count: int, seed: int = 2) -> Array:
    """Densities (h, w, 3) of grey specks, up to 60 µm wide."""
    rng, amount = np.random.default_rng(seed), np.zeros(SHAPE)
    for row, col in zip(rng.integers(5, SHAPE[0] - 5, count), rng.integers(5, SHAPE[1] - 5, count), strict=True):
        amount[row, col] = rng.uniform(2, 8)
    return ndimage.gaussian_filter(amount, 0.9)[..., None] * np.ones(3)


def test_dust_hairs_and_the_edge_of_the_coverslip_are_not_tissue() -> None:
    lines = np.zeros(SHAPE)
    lines[:, 20:22] = 0.3
    lines[np.arange(20, 150), 225 - np.arange(20, 150) // 12] = 0.5
    grey = dust(25) + ndimage.gaussian_filter(lines, 0.6)[..., None]
    assert not find(photographed(grey)).any()
    found = find(photographed(stained(TISSUE, HE) + grey))
    assert found[TISSUE].mean() > 0.99
    assert not found[~grown(TISSUE, 8)].any()


def test_coloured_specks_of_that_size_are_tissue_and_grey_ones_too_where_all_is_grey() -> None:
    cells = disc(40, 40, 3.5) | disc(120, 60, 3.5) | disc(70, 180, 3.5)
    assert_found(find(photographed(stained(cells, HE, grain=0.1))), cells, 0.95)
    grey = photographed(stained(cells, (0.2, 0.2, 0.2), grain=0.1))[..., :1].repeat(3, axis=2)
    assert_found(find(grey), cells, 0.95)


def test_grey_tissue_of_some_size_is_tissue_on_a_slide_with_colour() -> None:
    assert_found(find(photographed(stained(TISSUE, (0.2, 0.2, 0.2)))), TISSUE)


@pytest.mark.parametrize("tissue", [TISSUE, disc(90, 120, 150)], ids=["some", "all"])
def test_black_around_a_bright_scan_is_not_tissue(tissue: Array) -> None:
    """90 % of the picture is black, and between black and white there is a pixel of both."""
    od = stained(tissue, HE)
    scan = np.pad(photographed(od, TINTED), ((150, 200), (300, 150), (0, 0)))
    scan = ndimage.uniform_filter(scan, (2, 2, 1))
    true = np.pad(tissue, ((150, 200), (300, 150)))
    found = find(scan)
    assert true.mean() < 0.13
    assert found[true].mean() > 0.97
    assert not found[~grown(true, 4)].any()
    assert not found[:149].any()


def test_the_seam_between_black_and_glass_is_not_tissue_in_a_picture_without_colour() -> None:
    scan = np.pad(photographed(nothing())[..., :1].repeat(3, axis=2), ((50, 60), (70, 50), (0, 0)))
    assert not find(ndimage.uniform_filter(scan, (2, 2, 1))).any()


@pytest.mark.parametrize("filling", [(0, 0, 0), (255, 255, 255), (255, 150, 200)], ids=str)
def test_what_was_not_scanned_is_not_tissue_whatever_its_colour(filling: tuple[int, int, int]) -> None:
    valid = np.zeros(SHAPE, bool)
    valid[30:170, 20:110] = True
    rgb = photographed(stained(TISSUE, HE), TINTED)
    rgb[~valid] = filling
    found = find(rgb, valid)
    assert found[TISSUE & valid].mean() > 0.99, "right up to the edge of the scan"
    assert not found[~valid].any()
    assert not found[~grown(TISSUE, 4)].any()


def test_white_filling_does_not_make_tinted_glass_tissue() -> None:
    rgb = np.pad(photographed(stained(TISSUE, HE), TINTED), ((0, 120), (150, 0), (0, 0)), constant_values=255)
    assert_found(find(rgb), np.pad(TISSUE, ((0, 120), (150, 0))))


def test_glass_that_was_exposed_too_long_is_glass_and_cells_on_it_are_not() -> None:
    cells = {0.05: disc(50, 50, 30), 0.09: disc(120, 60, 35), 0.16: disc(90, 160, 45)}
    od = sum(stained(cell, (density,) * 3, grain=0) for density, cell in cells.items())
    rgb = photographed(np.asarray(od), (262, 262, 262))[..., :1].repeat(3, axis=2)
    assert_found(find(rgb), np.any(list(cells.values()), axis=0))


# Fluorescence


def glowing(amounts: tuple[float, float, float], where: Array = TISSUE, background: float = 8, noise: float = 1.5) -> Array:
    """Tissue on dark ground that gives out `amounts` of light (red, green, blue)."""
    signal = ndimage.gaussian_filter(where * 1.0, 0.8) * np.maximum(1 + 0.4 * texture(4, 1.5), 0.2)
    light = background + signal[..., None] * np.array(amounts)
    return np.clip(np.rint(light + np.random.default_rng(6).normal(0, noise, light.shape)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amounts", [(0, 0, 150), (0, 20, 0), (90, 0, 12), (60, 60, 60), (200, 255, 220)], ids=str)
def test_light_in_any_channel_is_tissue_on_dark_ground(amounts: tuple[float, float, float]) -> None:
    assert_found(find(glowing(amounts)), TISSUE, 0.97)


@pytest.mark.parametrize(("background", "noise"), [(0, 1.5), (20, 0.0), (20, 6.0), (50, 2.0)])
def test_nothing_is_found_where_nothing_glows(background: float, noise: float) -> None:
    assert not find(glowing((0, 0, 0), background=background, noise=noise)).any()


def test_two_steps_of_255_are_no_signal() -> None:
    faint = np.full((*SHAPE, 3), 20, np.uint8)
    faint[..., 1] += np.uint8(2) * (texture(3, 6) > 1)
    assert not find(faint).any()


def test_what_glows_out_of_focus_around_bright_tissue_is_not_tissue() -> None:
    rgb = glowing((0, 0, 150))
    rgb[..., 2] += np.rint(14 * ndimage.gaussian_filter(TISSUE * 1.0, 12)).astype(np.uint8)
    found = find(rgb)
    assert found[TISSUE].mean() > 0.98
    assert not found[~grown(TISSUE, 6)].any()


def test_dim_tissue_is_found_beside_bright() -> None:
    bright, dim = disc(60, 60, 40), disc(110, 170, 40)
    assert_found(find(np.maximum(glowing((0, 0, 240), bright), glowing((0, 0, 20), dim))), bright | dim)


def test_nuclei_alone_outline_the_tissue_that_they_are_in() -> None:
    rng, nuclei = np.random.default_rng(0), np.zeros(SHAPE, bool)
    rows, cols = np.nonzero(TISSUE)
    chosen = rng.choice(len(rows), 200, replace=False)
    nuclei[rows[chosen], cols[chosen]] = True
    found = find(glowing((0, 0, 250), nuclei))
    assert nuclei[TISSUE].mean() < 0.03
    assert found[TISSUE].mean() > 0.85
    assert not found[~grown(TISSUE, 4)].any()


def test_white_where_a_dark_slide_was_not_scanned_does_not_glow_into_it() -> None:
    valid = np.zeros(SHAPE, bool)
    valid[30:170, 20:230] = True
    rgb = glowing((0, 0, 150))
    rgb[~valid] = 255
    assert_found(find(rgb, valid), TISSUE & valid)


# Cleaning


def test_holes_are_filled_up_to_an_area_on_the_slide() -> None:
    """15 x 15 px: 0.014 mm² at 8 µm, four times that at 16 µm; and the same as at 8 µm where the size is not known."""
    hole = np.zeros(SHAPE, bool)
    hole[78:93, 90:105] = True
    rgb = photographed(stained(TISSUE & ~hole, HE))
    assert 225 * MAP_MPP**2 < HOLE_UM2 < 225 * 16**2
    middle = disc(85, 97, 4)
    assert find(rgb)[middle].all()
    assert find(rgb, mpp=None)[middle].all()
    assert not find(rgb, mpp=16.0)[middle].any()


def test_specks_of_a_few_pixels_are_dropped() -> None:
    speck = np.zeros(SHAPE, bool)
    speck[40, 40] = True
    assert not find(photographed(stained(speck, HE, grain=0))).any()


def test_tissue_has_a_margin_of_about_a_pixel() -> None:
    square = np.zeros(SHAPE, bool)
    square[60:120, 80:160] = True
    found = find(photographed(stained(square, HE)))
    assert found[grown(square, 1)].all()
    assert not found[~grown(square, 3)].any()


def test_the_words_say_what_was_done() -> None:
    ink, _ = drawn("green", ring(80), 8)
    rgb = photographed(stained(TISSUE, HE) + ink + dust(25))
    whole = np.ones(SHAPE, bool)
    assert find_tissue(rgb, whole, 8.0)[1] == (
        "bright field: optical density against the glass above 0.035, or 0.030 between colours; left out: green ink, grey specks"
    )
    assert find_tissue(glowing((0, 0, 150)), whole, 8.0)[1].startswith("fluorescence: signal above red ")
    assert find_tissue(rgb * 0, whole, 8.0)[1] == "nothing found: the picture is black"


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    levels=st.sampled_from([1, 2, 256]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    mpp=st.sampled_from([None, 0.5, 8.0, 60.0]),
)
def test_any_picture_has_an_answer_within_what_was_scanned(
    seed: int, shape: tuple[int, int], levels: int, share: float, mpp: float | None
) -> None:
    rng = np.random.default_rng(seed)
    rgb = (rng.integers(0, levels, (*shape, 3)) * 255 // max(1, levels - 1)).astype(np.uint8)
    valid = rng.random(shape) < share
    found, words = find_tissue(rgb, valid, mpp)
    assert found.shape == shape
    assert found.dtype == bool
    assert not (found & ~valid).any()
    assert words
    assert (find_tissue(rgb.copy(), valid.copy(), mpp)[0] == found).all()


def test_a_blank_strip_one_pixel_high_is_blank() -> None:
    assert not find(np.full((1, 100, 3), 240, np.uint8)).any()


def test_other_arrays_are_refused() -> None:
    with pytest.raises(PlanError, match="float64"):
        find_tissue(np.zeros((4, 4, 3)), np.ones((4, 4), bool), None)
    with pytest.raises(PlanError, match=r"\(4, 5\)"):
        find_tissue(np.zeros((4, 4, 3), np.uint8), np.ones((4, 5), bool), None)


# Real slides


def thumbnail(path: Path, mpp: float, native: float) -> Array:
    """The slide at `mpp` micrometres, whose own pixels have `native`."""
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as slide:
        side = tuple(max(1, round(n * native / mpp)) for n in slide.dimensions)
        return np.asarray(slide.get_thumbnail(side).convert("RGB"))


def test_a_skin_biopsy_is_found_whole(data: Path) -> None:
    """All that has any colour, but for single specks, and none of the glass around it."""
    rgb = thumbnail(data / "wsi" / "CMU-1-Small-Region.svs", MAP_MPP, 0.499)
    coloured = ndimage.binary_opening(np.ptp(rgb, axis=2) > 30, np.ones((2, 2)))
    assert 0.25 < coloured.mean() < 0.45
    found = find(rgb)
    assert found[coloured].mean() > 0.995
    assert 0.35 < found.mean() < 0.5
    assert not found[:60, :45].any()
    assert not found[80:, :30].any()


def test_a_biopsy_in_fluorescence_is_found_whole(data: Path) -> None:
    rgb = thumbnail(data / "wsi" / "test3-DAPI-2-387.ndpi", MAP_MPP, 0.228)
    found = find(rgb)
    bright = rgb.max(axis=2) > 40
    assert 0.1 < bright.mean() < 0.4
    assert found[bright].mean() > 0.995
    assert found[30:100, 30:110].all(), "between its nuclei too"
    assert not found[-4:].any()
    assert not found[:30, :5].any()


def test_bone_marrow_in_toluidine_blue_with_black_mineral_is_all_tissue(data: Path) -> None:
    rgb = thumbnail(data / "wsi" / "bone_jpeg" / "bone_jpeg.dcm", 8.0, 1.0)
    assert (rgb.max(axis=2) < 40).any()
    assert find(rgb).mean() > 0.95


@pytest.mark.parametrize(("native", "mpp"), [(0.25, 8.0), (0.5, 8.0), (0.5, 2.0)])
def test_separate_cells_are_found_with_their_nuclei(data: Path, native: float, mpp: float) -> None:
    """Grey cells, some as pale as 8 % of the light; whose pixels may have either size, as the source does not tell."""
    folder = data / "dsb2018_nuclei"
    found = find(thumbnail(folder / "cytology_montage_a.tif", mpp, native))
    with Image.open(folder / "cytology_montage_a_mask.tif") as file:
        nuclei = np.asarray(file) > 0
    inside = TissueMap.of(found, "cells").read(Window(0, 0, *nuclei.shape), nuclei.shape)[nuclei].mean()
    assert nuclei.shape == (2048, 4096)
    assert inside > 0.95
    assert found.mean() < 0.8
