"""Where tissue is on a slide: found once in a small picture of it, and kept as a bitmap of a few KB laid over the whole image."""

from __future__ import annotations

import base64
import hashlib
import importlib
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.errors import PlanError
from pipeline.grid import Window
from pipeline.image import Frozen

Bits = NDArray[np.bool_]
"""(h, w): True is tissue, or whatever the name says."""
Rgb = NDArray[np.uint8]
"""(h, w, 3), red first."""
Planes = NDArray[np.uint8]
"""(3, h, w), the same in the order that is quick to work with."""
Samples = NDArray[np.float32]
"""(h, w), or (3, h, w) with red first."""

MAP_MPP = 8.0
"""Side of a map pixel in micrometres, where the slide is small enough: about a lymphocyte."""
MAP_SIDE = 2048
"""Most px on the longer side of a map; larger slides have coarser ones."""

GAP_UM, GAP_DARK_UM = 16.0, 48.0
"""Radius up to which gaps are closed: in bright field, and between the nuclei that are all that fluorescence may show."""
HOLE_UM2, SPECK_UM2 = 20_000.0, 600.0
"""Holes up to the one are filled, what is smaller than the other is dropped: a gland's lumen; a quarter of a squamous cell."""
SOFT_UM = 32.0
"""Width of the soft edge of a pen stroke, which is out of focus."""
GREY_UM2 = 5_000.0
"""Least area of sturdy parts (of 7 x 7 px and more) for a grey thing on a coloured slide to be tissue."""

BLACK = 16
"""Brightest that black surroundings are, of 255."""
DIM = 64
"""Below, a pixel that is not black is dim: bright field has hardly any."""
NOTHING = "nothing found: the picture is black"

FLAT = 2.0
"""Standard deviation over 5 x 5 px of what may be glass, in steps of 255, after smoothing."""
SAME_LIGHT, SAME_HUE = 0.025, 0.015
"""Densities, and differences of density between colours, up to which flat pixels are one and the same glass."""
DENSITY = 0.025, 0.035
"""Least and most that the threshold on density may be: 6 % and 8 % of the light."""
COLOUR = 0.02, 0.03
"""The same for differences of density between colours, which shadows and uneven light do not have."""
SIGNAL = 4.0
"""Least threshold on fluorescence, in steps of 255 above the background."""
SIGMAS = 6.0
"""Thresholds are at least so many standard deviations of the background."""
VOTE = 0.7
"""Share of the threshold that the surroundings must reach for a pixel to be tissue by their vote."""
ROUGH = 0.045
"""Relative change of density a pixel, in the direction of least change: above, it is the texture of tissue, not a stroke."""


def map_shape(height: int, width: int, mpp: float | None) -> tuple[int, int]:
    """(height, width) of the map of an image of `height` x `width` native pixels of `mpp` micrometres (None: unknown).

    Map pixels of MAP_MPP, of the longer side / MAP_SIDE where that is more; never more pixels than there are.
    """
    finest = 1.0 if mpp is None else max(1.0, MAP_MPP / mpp)
    factor = max(finest, max(height, width) / MAP_SIDE)
    return max(1, round(height / factor)), max(1, round(width / factor))


class TissueMap(Frozen):
    """Where tissue is, as a small bitmap over the whole image; a value of a plan, and so of its digest.

    Working pixel (i, j) of a grid of H x W looks at map pixel (floor((i + 0.5) * height / H), floor((j + 0.5) * width / W)),
    in whole numbers. So any window is the crop of the whole, on any grid:

        tissue.read(window, shape) == tissue.read(whole, shape)[window.slices]
    """

    height: int = Field(ge=1)
    """Rows of the map."""
    width: int = Field(ge=1)
    """Columns of the map."""
    bits: str
    """True is tissue: base64 of zlib of `np.packbits`, row by row, each row filled up to whole bytes."""
    method: str
    """How it was found, in words for the report."""
    pixel_um: tuple[float, float] | None = None
    """Size (row, col) of a map pixel in micrometres; None where the slide does not tell."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _unpack(self.bits, self.height, self.width)
        return self

    @classmethod
    def of(cls, found: Bits, method: str, pixel_um: tuple[float, float] | None = None) -> TissueMap:
        """The map of `found` (h, w): True is tissue. Equal arrays give equal text."""
        if found.ndim != 2 or found.size == 0:
            raise PlanError(f"a tissue map of shape {found.shape} has no pixels: it needs (rows, columns), at least 1 x 1")
        packed = np.packbits(found.astype(bool), axis=1).tobytes()
        text = base64.b64encode(zlib.compress(packed, 9)).decode()
        return cls(height=found.shape[0], width=found.shape[1], bits=text, method=method, pixel_um=pixel_um)

    @property
    def found(self) -> Bits:
        """(height, width), read-only: True is tissue."""
        return _unpack(self.bits, self.height, self.width)

    @property
    def digest(self) -> str:
        """Hash of the map's pixels: `bits` is another text where another zlib packs them."""
        return hashlib.sha256(np.packbits(self.found, axis=1).tobytes()).hexdigest()

    @property
    def share(self) -> float:
        """Share of the image that is tissue, 0...1."""
        return float(self.found.mean())

    @property
    def area_mm2(self) -> float | None:
        """Square millimetres of tissue; None where the size of pixels is not known."""
        if self.pixel_um is None:
            return None
        row_um, col_um = self.pixel_um
        return float(self.found.sum()) * row_um * col_um / 1e6

    def read(self, window: Window, shape: tuple[int, int]) -> Bits:
        """(window.height, window.width): True is tissue. `shape` (H, W) is that of the grid in which `window` lies; beyond the
        image there is no tissue."""
        rows, rows_inside = _looks_at(window.row, window.height, shape[0], self.height)
        cols, cols_inside = _looks_at(window.col, window.width, shape[1], self.width)
        return self.found[np.ix_(rows, cols)] & rows_inside[:, None] & cols_inside

    def touches(self, window: Window, shape: tuple[int, int]) -> bool:
        """Whether `read` would find any tissue, from no more than the map's own pixels."""
        rows, rows_inside = _looks_at(window.row, window.height, shape[0], self.height)
        cols, cols_inside = _looks_at(window.col, window.width, shape[1], self.width)
        return bool(self.found[np.ix_(np.unique(rows[rows_inside]), np.unique(cols[cols_inside]))].any())


def _looks_at(start: int, count: int, length: int, map_length: int) -> tuple[NDArray[np.int64], Bits]:
    """For working pixels [start, start + count) of an axis of `length`: (map pixel, whether they are inside the image)."""
    pixel = np.arange(start, start + count, dtype=np.int64)
    inside = (pixel >= 0) & (pixel < length)
    return (2 * np.where(inside, pixel, 0) + 1) * map_length // (2 * length), inside


@lru_cache(maxsize=8)
def _unpack(bits: str, height: int, width: int) -> Bits:
    """(height, width), read-only; at most 4 MB each, and a worker is at few images at a time."""
    row_bytes = -(-width // 8)
    try:
        packed = zlib.decompress(base64.b64decode(bits, validate=True))
    except (ValueError, zlib.error) as e:
        raise ValueError(f"the bitmap of a tissue map cannot be unpacked ({e}): make the plan again") from e
    if len(packed) != height * row_bytes:
        raise ValueError(
            f"a tissue map of {height} x {width} px has {height * row_bytes} bytes, this one {len(packed)}: make the plan again"
        )
    rows = np.frombuffer(packed, np.uint8).reshape(height, row_bytes)
    found = np.unpackbits(rows, axis=1, count=width).astype(bool)
    found.flags.writeable = False
    return found


def find_tissue(rgb: Rgb, valid: Bits, mpp: float | None) -> tuple[Bits, str]:
    """Tissue in a small picture of a slide: (found (h, w): True is tissue, how in words).

    `rgb` (h, w, 3) has pixels of `mpp` micrometres, about MAP_MPP (None: unknown; areas are then those of MAP_MPP). `valid`
    (h, w): True was scanned. What catches what:

    - Kind of slide: `_is_bright_field`. The two kinds share the cleaning only.
    - Outside: `valid`, and black that reaches the edge of the picture (`_surroundings`), with the two pixels beside them, which
      are mixtures.
    - White, grey, tinted glass and uneven light: density is counted from the glass (`_glass`), which is a smooth surface, as
      -log10 of the light that is left, a channel (optical density; Ruifrok & Johnston 2001).
    - Pale tissue: the threshold of Otsu (1979) on densities up to 0.3, held within DENSITY and COLOUR, so that dark tissue does
      not pull it up; colour counts from less than grey does; and a pixel whose surroundings come near (`_voted`).
    - Blank slides: the same limits from below, and SIGMAS of the glass.
    - Tissue nearly everywhere: where no glass is seen, white as bright as the picture's brightest percent.
    - Any stain: no colour is asked for; brown and blue absorb like pink and purple.
    - Pens: `_ink`. Dust, hairs, edges of the coverslip: `_without_grey_specks`, on slides that have colour.
    - Fluorescence: each channel against its own background (`_signal`).
    - Ragged edges: gaps are closed, small holes filled, specks dropped, and one pixel of margin added.
    """
    if rgb.shape != (*valid.shape, 3) or rgb.dtype != np.uint8 or valid.dtype != bool or valid.size == 0:
        raise PlanError(
            "tissue is found in uint8 (rows, columns, 3) with bool (rows, columns), "
            f"not in {rgb.dtype} {rgb.shape} with {valid.dtype} {valid.shape}"
        )
    size = MAP_MPP if mpp is None else mpp
    planes = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
    if not (planes.max(axis=0)[valid] > BLACK).any():
        return np.zeros_like(valid), NOTHING
    return _in_bright_field(planes, valid, size) if _is_bright_field(planes, valid) else _in_fluorescence(planes, valid, size)


def _is_bright_field(planes: Planes, valid: Bits) -> bool:
    """Whether light shines through: of what is not black, the less may be dim, the darker the lightest is in any channel.

    Half may where its 95th percentile in all channels is 128 or more, nothing where that is 32. For where light shines through,
    ink leaves glass beside it, and tissue is hardly ever dim; what glows has dim edges, and colour.
    """
    lit = planes[:, valid & (planes.max(axis=0) > BLACK)]
    dim = float((lit.max(axis=0) < DIM).mean())
    return dim < min(0.5, (float(np.percentile(lit.min(axis=0), 95)) - DIM / 2) / 192)


def _in_bright_field(planes: Planes, valid: Bits, size: float) -> tuple[Bits, str]:
    outside = _surroundings(planes, valid)
    scan = ~_grown(outside, 2)
    if not scan.any():
        return np.zeros_like(valid), NOTHING
    smooth = _smoothed(planes, scan)
    od, noise, against = _densities(planes, smooth, scan)
    density, colour = od.mean(axis=0), np.maximum(od.max(axis=0), 0) - np.maximum(od.min(axis=0), 0)
    least = _threshold(density[scan], DENSITY, noise[0]), _threshold(colour[scan], COLOUR, noise[1])
    strength = np.maximum(density / least[0], colour / least[1]) * scan
    ink, inks = _ink(od, density, strength > 1, size)
    found = _voted(strength * ~ink)
    found, grey = _without_grey_specks(found, planes, density, colour, size)
    found = _cleaned(found, GAP_UM, size) & ~ink
    found |= _grown(found, 2) & ~scan
    words = f"bright field: optical density against {against} above {least[0]:.3f}, or {least[1]:.3f} between colours"
    left_out = [
        *(f"{name} ink" for name in inks),
        *(["grey specks"] if grey else []),
        *(["black surroundings"] if (outside & valid).any() else []),
    ]
    return _grown(found, 1) & ~outside & ~ink, words + (f"; left out: {', '.join(left_out)}" if left_out else "")


def _surroundings(planes: Planes, valid: Bits) -> Bits:
    """What was not scanned, and black that touches it or the edge of the picture."""
    outside = ~valid | (planes.max(axis=0) <= BLACK)
    parts, count = _parts(outside)
    reaches = np.zeros(count + 1, bool)
    for touching in (parts[0], parts[-1], parts[:, 0], parts[:, -1], parts[~valid]):
        reaches[touching] = True
    reaches[0] = False
    found: Bits = reaches[parts]
    return found


def _smoothed(planes: Planes, scan: Bits) -> Samples:
    """Each channel with noise of single pixels taken off; what is not `scan` has the colour of the nearest that is."""
    if not scan.all():
        row, col = _ndimage().distance_transform_edt(~scan, return_distances=False, return_indices=True)
        planes = planes[:, row, col]
    return np.stack([_blurred(plane.astype(np.float32), 1.0) for plane in planes])


def _densities(planes: Planes, smooth: Samples, scan: Bits) -> tuple[Samples, tuple[float, float], str]:
    """Optical density (3, h, w) against the glass; the glass's standard deviation of density and of colour; against what."""
    light = np.log10(np.maximum(smooth, 1))
    glass = _glass(planes, smooth, light, scan)
    if glass is not None:
        return glass.over(scan.shape) - light, (glass.noise, glass.colour_noise), "the glass"
    white = np.log10(np.percentile(smooth.max(axis=0)[scan], 99)).astype(np.float32)
    return white - light, (0.0, 0.0), "white, as no glass is seen,"


@dataclass(frozen=True, slots=True)
class _Glass:
    """What the slide shows where nothing is on it: log10 of light, a smooth surface in each channel."""

    surface: NDArray[np.float64]
    """(6, 3): factors of 1, y, x, y², x², xy for each channel; y and x run from -1 to 1 over the picture."""
    darkest: NDArray[np.float64]
    """(3,): the surface is held between this and `lightest`, of where glass was seen."""
    lightest: NDArray[np.float64]
    noise: float
    """Standard deviation of density."""
    colour_noise: float
    """Standard deviation of the difference between channels."""
    share: float
    """Share of the flat pixels that belong to it."""

    def over(self, shape: tuple[int, int]) -> Samples:
        """(3, h, w)."""
        y, x = (np.linspace(-1 + 1 / n, 1 - 1 / n, n)[:, None] for n in shape)
        channels = []
        for (c, cy, cx, cyy, cxx, cyx), low, high in zip(self.surface.T, self.darkest, self.lightest, strict=True):
            rows, cols = c + y * (cy + y * cyy), x * (cx + x * cxx)
            channels.append(np.clip(rows + cols.T + (cyx * y) * x.T, low, high).astype(np.float32))
        return np.stack(channels)


def _glass(planes: Planes, smooth: Samples, light: Samples, scan: Bits) -> _Glass | None:
    """The glass, from what is flat, light and not of the colour of stains; None where there is too little of it.

    Pure white is filling where most of the rest is glass of its own, and all of one colour; else it is glass, exposed too long.
    """
    flat = _flat(smooth, light, scan)
    white = _grown(planes.min(axis=0) >= 254, 4)
    rest = flat & ~white
    if white.any() and rest.sum() > 0.3 * (scan & ~white).sum():
        glass = _glass_of(rest, smooth, light, scan)
        if glass is not None and glass.share > 0.8:
            return glass
    return _glass_of(flat, smooth, light, scan)


def _glass_of(flat: Bits, smooth: Samples, light: Samples, scan: Bits) -> _Glass | None:
    """The glass among the `flat`.

    It starts from the lightest colour that is seen often, or from a more frequent one of the same hue (the lightest may be a
    bubble), and takes in all flat pixels that continue it smoothly, however the light falls off.
    """
    index = np.flatnonzero(flat)
    seen = light.reshape(3, -1)[:, index].T.astype(np.float64)
    level = np.rint(smooth.reshape(3, -1)[:, index].mean(axis=0)).astype(np.int64)
    often = np.flatnonzero(_frequent(level) >= max(20, 0.002 * scan.sum()))
    if not often.size:
        return None
    hue = np.median(seen[abs(level - often[-1]) <= 3], axis=0)
    frequent = _frequent(level[np.ptp(seen - hue, axis=1) < SAME_HUE])
    start = often[-1]
    while frequent[start - 1] >= frequent[start]:
        start -= 1
    if frequent[start] < 0.25 * frequent.max():
        start = frequent.argmax()
    colour = np.median(seen[abs(level - start) <= 3], axis=0)
    every = max(1, len(index) // 30_000)
    return _fitted(index[::every], seen[::every], colour, scan.shape)


def _frequent(level: NDArray[np.int64]) -> NDArray[np.float64]:
    """(256,): how many of `level` are within 3 of each."""
    return np.convolve(np.bincount(level, minlength=256), np.ones(7), "same")


def _flat(smooth: Samples, light: Samples, scan: Bits) -> Bits:
    """What may be glass: without texture, not dark, and not where green is absorbed much more than red and blue, as by the stains
    of tissue."""
    grey = smooth.mean(axis=0) - 128
    mean = _mean_around(grey, 2)
    variance = _mean_around(grey * grey, 2) - mean * mean
    pink = (light[0] + light[2]) / 2 - light[1]
    flat: Bits = scan & (variance <= FLAT**2) & (grey >= 90 - 128) & (pink <= 0.06)
    return flat


def _fitted(
    index: NDArray[np.intp], seen: NDArray[np.float64], start: NDArray[np.float64], shape: tuple[int, int]
) -> _Glass | None:
    """The surface through `seen` (n, 3) at flat `index` that continues the colour `start`; level where nothing is seen;
    None where nothing does."""
    row, col = np.divmod(index, shape[1])
    y, x = (2 * row + 1) / shape[0] - 1, (2 * col + 1) / shape[1] - 1
    terms = np.stack([np.ones(len(index)), y, x, y * y, x * x, y * x], axis=1)
    surface = np.zeros((6, 3))
    surface[0] = start
    for _ in range(20):
        rest = seen - terms @ surface
        near = (abs(rest.mean(axis=1)) < SAME_LIGHT) & (np.ptp(rest, axis=1) < SAME_HUE)
        if near.sum() < 20:
            return None
        level = np.diag([0, 1, 1, 1, 1, 1]) * 1e-3 * near.sum()
        surface = np.linalg.solve(terms[near].T @ terms[near] + level, terms[near].T @ seen[near])
    rest = (seen - terms @ surface)[near]
    under = terms[near] @ surface
    noise, colour_noise = _deviation(rest.mean(axis=1)), _deviation(np.ptp(rest, axis=1))
    return _Glass(surface, under.min(axis=0), under.max(axis=0), noise, colour_noise, float(near.mean()))


def _deviation(rest: NDArray[np.float64]) -> float:
    """Standard deviation of most, whatever a few are: 1.4826 times the median of absolute values."""
    return 1.4826 * float(np.median(abs(rest)))


def _threshold(samples: Samples, limits: tuple[float, float], noise: float) -> float:
    """Otsu's threshold (1979) on samples up to 0.3, within `limits`, and never below SIGMAS of `noise`."""
    return max(min(max(otsu(np.clip(samples, 0, 0.3)), limits[0]), limits[1]), SIGMAS * noise)


def otsu(samples: Samples) -> float:
    """The threshold that leaves two classes with the least variance within them, from 256 bins (Otsu 1979, eq. 18)."""
    counts, edges = np.histogram(samples, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = samples.size - below
    moment = np.cumsum(counts * centres)
    between = (moment[-1] * below / samples.size - moment[:-1]) ** 2 / np.maximum(below * above, 1)
    return float(centres[between.argmax()])


def _voted(strength: Samples) -> Bits:
    """What is above its threshold (`strength` > 1), or among surroundings that come near it: pale and speckled tissue.

    A strong pixel votes no more than one that is just above, so that edges stay where they are.
    """
    return (strength > 1) | (_blurred(np.clip(strength, 0, 1), 2.5) > VOTE)


def _ink(od: Samples, density: Samples, absorbing: Bits, size: float) -> tuple[Bits, list[str]]:
    """Pen strokes, and the names of their colours.

    By colour alone, blue ink is toluidine blue, and black ink a fold. So a part of such a colour is ink only where both hold:
    it lies on glass more than on tissue, and it is drawn, not grown: it hardly changes in one direction, that of the stroke.
    The soft edge of a stroke has its colour, and goes with it.
    """
    red, green, blue = np.maximum(od, 0)
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    hues = {
        "green": ((green < 0.8 * red) & (green < 0.8 * blue), most > 0.1),
        "blue": ((red > 0.95 * green) & (blue < 0.4 * red), red > 0.3),
        "red": ((red < 0.25 * green) & (blue > 0.7 * green), green > 0.35),
        "black": (most - least < 0.25 * most, least > 0.5),
    }
    drawn, soft = _roughness(density) < ROUGH, _px(SOFT_UM, size)
    ink, names = np.zeros_like(absorbing), []
    for name, (hue, dense) in hues.items():
        parts = hue & dense & absorbing
        if not parts.any():
            continue
        strokes = _strokes(parts, drawn, absorbing, soft)
        strokes |= _strokes(parts & ~_amid(absorbing, parts, soft), drawn, absorbing, soft)
        if strokes.any():
            names.append(name)
            ink |= strokes | (hue & absorbing & _grown(strokes, soft))
    return (_grown(ink, 1) if names else ink), names


def _strokes(hued: Bits, drawn: Bits, absorbing: Bits, soft: int) -> Bits:
    """The parts of `hued` that are at least 3 px wide, mostly `drawn`, and have less tissue than glass beside them."""
    body = _opened(hued, 1)
    if not body.any():
        return body
    parts, count = _parts(body)
    tissue, all_else = (_sum_of(share, parts, count) for share in _beside(absorbing, body, soft, 4))
    area = _sum_of(body, parts, count)
    strokes = (_sum_of(drawn, parts, count) > 0.5 * area) & (tissue + 0.001 * area < 0.6 * all_else)
    found: Bits = strokes[parts] & body
    return found


def _amid(absorbing: Bits, hued: Bits, soft: int) -> Bits:
    """Where most of what is beside the `hued` is tissue: a stroke that crosses tissue is judged by the rest of it."""
    tissue, all_else = _beside(absorbing, hued, soft, 6)
    amid: Bits = tissue > 0.5 * all_else
    return amid


def _beside(absorbing: Bits, hued: Bits, soft: int, px: int) -> tuple[Samples, Samples]:
    """Of the square around each pixel, the shares that are tissue and that are anything, up to `px` from the soft edge of the
    `hued`, and without both.

        |hhhhhhhh~~~~aaaa|    h hued, ~ soft edge, a what is looked at
    """
    others = ~_grown(hued, soft)
    return _mean_around((absorbing & others).astype(np.float32), soft + px), _mean_around(others.astype(np.float32), soft + px)


def _sum_of(values: NDArray[Any], parts: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """(count + 1,): sum of `values` over each part; 0 for what is no part."""
    there = np.flatnonzero(parts)
    return np.bincount(parts.ravel()[there], values.ravel()[there], minlength=count + 1)


def _roughness(density: Samples) -> Samples:
    """Relative change of density a pixel in the direction of least change: the root of the smaller
    eigenvalue of the structure tensor (Bigün & Granlund 1987)."""
    framed = np.log(np.maximum(np.pad(density, 1, "edge"), 0.02))
    along_row, along_col = framed[2:, 1:-1] - framed[:-2, 1:-1], framed[1:-1, 2:] - framed[1:-1, :-2]
    a, b, c = (_blurred(p, 2.0) for p in (along_row * along_row, along_row * along_col, along_col * along_col))
    least = (a + c - np.hypot(a - c, 2 * b)) / 2
    root: Samples = np.sqrt(np.maximum(least, 0)) / 2
    return root


def _without_grey_specks(found: Bits, planes: Planes, density: Samples, colour: Samples, size: float) -> tuple[Bits, bool]:
    """`found` without things that are grey and thin or small: dust, hairs, edges of the coverslip; and whether there were any.

    Where all three channels are one, as in a picture taken without colour, grey tells nothing.
    """
    if not found.any() or (np.ptp(planes[:, found], axis=0) == 0).mean() > 0.99:
        return found, False
    parts, count = _parts(found)
    grey = _sum_of(colour, parts, count) < 0.35 * _sum_of(density, parts, count)
    sturdy = _sum_of(_opened(found, 3), parts, count) * size**2
    specks = grey & (sturdy < GREY_UM2)
    return found & ~specks[parts], bool(specks.any())


def _in_fluorescence(planes: Planes, valid: Bits, size: float) -> tuple[Bits, str]:
    scan = ~_grown(~valid, 2)
    if not scan.any():
        scan = valid
    smooth = _smoothed(planes, scan)
    strength = np.zeros(valid.shape, np.float32)
    words = []
    for name, channel in zip(("red", "green", "blue"), smooth, strict=True):
        background, least = _signal(channel[scan])
        strength = np.maximum(strength, (channel - background) / least)
        words.append(f"{name} {background + least:.0f}")
    found = _cleaned(_voted(strength * valid), GAP_DARK_UM, size)
    return _grown(found, 1) & valid, f"fluorescence: signal above {', '.join(words)} of 255"


def _signal(samples: Samples) -> tuple[float, float]:
    """(background, least signal above it) of one channel: the darkest level seen often; Otsu's threshold (1979) on logarithms,
    which sees the dim beside the bright, never below SIGNAL, nor below SIGMAS of what is darker than the background."""
    mass = np.convolve(np.bincount(np.rint(samples * 2).astype(np.int64), minlength=511), (1, 2, 3, 2, 1), "same")
    level = int(np.flatnonzero(mass >= min(mass.max(), max(40, 0.02 * samples.size)))[0])
    while level < 510 and mass[level + 1] >= mass[level]:
        level += 1
    background = level / 2
    darker = samples[samples <= background] - background
    noise = float(np.sqrt(np.mean(darker * darker))) if darker.size else 0.0
    above = float(np.expm1(otsu(np.log1p(np.maximum(samples - background, 0)))))
    return background, max(above, SIGNAL, SIGMAS * noise)


def _cleaned(found: Bits, gap_um: float, size: float) -> Bits:
    """`found` with gaps closed, small holes filled and specks dropped; holes at the picture's edge stay."""
    found = _closed(found, _px(gap_um, size))
    holes, count = _parts(~found, diagonal=False)
    fill = _sum_of(~found, holes, count) * size**2 <= HOLE_UM2
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        fill[edge] = False
    found = found | (fill[holes] & ~found)
    parts, count = _parts(found)
    area = _sum_of(found, parts, count)
    keep = (area * size**2 >= SPECK_UM2) & (area >= 4)
    kept: Bits = keep[parts]
    return kept


def _px(length_um: float, size: float) -> int:
    """A length in px of `size` micrometres, at least 1."""
    return max(1, round(length_um / size))


def _grown(flags: Bits, px: int) -> Bits:
    """`flags`, and what is within `px` of them in rows and columns."""
    for _ in ("rows", "columns"):
        reach = 0
        while reach < px:
            step = min(px - reach, 2 * reach + 1)
            wider = flags.copy("K")
            wider[step:] |= flags[:-step]
            wider[:-step] |= flags[step:]
            flags, reach = wider, reach + step
        flags = flags.T
    return flags


def _shrunk(flags: Bits, px: int) -> Bits:
    """`flags` but for what is within `px` of others; the picture's edge is no border."""
    return ~_grown(~flags, px)


def _opened(flags: Bits, px: int) -> Bits:
    """`flags` where a square of 2 * `px` + 1 fits in."""
    return _grown(_shrunk(flags, px), px)


def _closed(flags: Bits, px: int) -> Bits:
    """`flags`, and gaps between them that no square of 2 * `px` + 1 fits into."""
    return _shrunk(_grown(np.pad(flags, px), px), px)[px:-px, px:-px]


def _ndimage() -> Any:
    """SciPy's functions for images, loaded when first needed: workers read maps and find nothing."""
    return importlib.import_module("scipy.ndimage")


def _parts(flags: Bits, diagonal: bool = True) -> tuple[NDArray[np.int32], int]:
    """(labels (h, w): 1 and up for what hangs together, also across corners where `diagonal`; how many)."""
    labels, count = _ndimage().label(flags, np.ones((3, 3)) if diagonal else None)
    return labels, int(count)


def _mean_around(values: Samples, px: int) -> Samples:
    """Mean of `values` within `px` in rows and columns."""
    mean: Samples = _ndimage().uniform_filter(values, 2 * px + 1, mode="nearest")
    return mean


def _blurred(values: Samples, sigma: float) -> Samples:
    """`values` under a Gaussian of `sigma` px."""
    blurred: Samples = _ndimage().gaussian_filter(values, sigma, mode="nearest")
    return blurred
