"""Small pictures of an image, its reference, its mask and the mask's errors: what a reader believes before any number."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.atomic import write_bytes
from pipeline.card import ClassInfo, background
from pipeline.codes import mask_codes

Rgb = NDArray[np.uint8]
"""(h, w, 3), red first."""

HATCH_PERIOD, HATCH_WIDTH = 8, 3
"""Diagonal stripes of `HATCH_WIDTH` px, every `HATCH_PERIOD` px."""
GREYS = 24
"""Levels of the grey image under the errors: few enough for a small file."""

WRONG, MISSED, FALSE_ALARM = "#d55e00", "#d55e00", "#0072b2"
"""Errors, told apart by colour-blind eyes too (Okabe & Ito 2008): the wrong class; where there is a background, a pixel
of another class called background, and the reverse."""
CONFUSED = "#e69f00"
"""One class called another, neither of them background."""

OUTLINE, OUTLINE_EDGE = "#00e5ff", "#003844"
"""The border of what is looked at, within and without."""
_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))

_FAILED = ("#ff00d4", "#00ffe1", "#ff2a00", "#b6ff00")
_NO_DATA = ("#b9c1d3", "#dde2ee", "#7f8aa3", "#4a5268", "#f4f4f2")
_UNLABELLED = ("#e6e8eb", "#c4c8cc", "#8f9398", "#ffffff", "#565a5e")


@dataclass(frozen=True, slots=True)
class SpecialColors:
    """Hex colours of what is no class, each far from every colour of a class."""

    failed: str
    """Stripes of this and black."""
    no_data: str
    """Flat."""
    unlabelled: str
    """Stripes of this and a darker one."""
    unlabelled_stripe: str
    """That darker one."""


def special_colors(classes: Sequence[ClassInfo]) -> SpecialColors:
    """Colours that `classes` leave free."""
    taken = [_channels(c.color) for c in classes]
    no_data = _furthest(_NO_DATA, taken)
    unlabelled = _furthest(_UNLABELLED, [*taken, _channels(no_data)])
    stripe = "#" + "".join(f"{int(v * 0.78):02x}" for v in _channels(unlabelled))
    return SpecialColors(_furthest(_FAILED, taken), no_data, unlabelled, stripe)


def percentile_stretch(data: NDArray[np.generic], valid: NDArray[np.bool_]) -> Rgb:
    """A picture of samples of any type: each band's 2nd to 98th percentile becomes black to full.

    `data` (bands, h, w): three bands or more give red, green and blue, fewer give grey; bytes are shown as they are.
    `valid` (h, w): True is real data. NaN and what is not valid become black. A flat band becomes middle grey.
    """
    bands = data[:3] if data.shape[0] >= 3 else data[:1]
    picture = np.zeros((*valid.shape, 3), np.uint8)
    for channel in range(3):
        band = bands[min(channel, len(bands) - 1)]
        if band.dtype == np.uint8:
            picture[..., channel] = np.where(valid, band, 0)
            continue
        samples = band.astype(np.float64)
        real = valid & np.isfinite(samples)
        if not real.any():
            continue
        low, high = np.percentile(samples[real], (2, 98))
        level = (samples[real] - low) / (high - low) if high > low else np.full(int(real.sum()), 0.5)
        picture[real, channel] = np.rint(np.clip(level, 0, 1) * 255)
    return picture


def quicklook_pngs(
    rgb: Rgb,
    valid: NDArray[np.bool_],
    mask: NDArray[np.unsignedinteger],
    reference: NDArray[np.unsignedinteger] | None,
    classes: tuple[ClassInfo, ...],
    looked_at: NDArray[np.bool_] | None = None,
) -> dict[str, Image.Image]:
    """The pictures `image`, `truth`, `mask` and `errors` of one window; without reference only `image` and `mask`.

    `rgb` (h, w, 3); `valid` (h, w): True is real data; `mask` (h, w): codes of `mask_codes(len(classes))`; `reference`
    (h, w): class codes, and `len(classes)` where not labelled. Where there is a class `background`, a miss, a false alarm
    and a confusion of two other classes have colours of their own. `looked_at` (h, w), of a slide's tissue or a drawn area, is
    outlined on the image.
    """
    codes, special = mask_codes(len(classes)), special_colors(classes)
    failed_px, no_data_px = mask == codes.failed, mask == codes.no_data
    if ((mask >= len(classes)) & ~failed_px & ~no_data_px).any():
        raise ValueError(f"mask holds codes that {len(classes)} classes do not have")

    image = np.where(valid[..., None], rgb, _channels(special.no_data)).astype(np.uint8)
    if looked_at is not None:
        _outline(image, looked_at)
    painted = _paint(mask, classes)
    _flat(painted, no_data_px, special.no_data)
    _hatch(painted, failed_px, special.failed, "#000000")
    pictures = {"image": Image.fromarray(image), "mask": _palette(painted)}
    if reference is None:
        return pictures

    if (reference > len(classes)).any():
        raise ValueError(f"reference holds codes above {len(classes)}, which is `not labelled`")
    unlabelled = reference == len(classes)
    truth = _paint(reference, classes)
    _hatch(truth, unlabelled, special.unlabelled, special.unlabelled_stripe)
    _flat(truth, unlabelled & ~valid, special.no_data)

    errors = _muted(rgb)
    wrong = (mask != reference) & ~failed_px
    ground = background(classes)
    _flat(errors, wrong, WRONG if ground is None else CONFUSED)
    if ground is not None:
        _flat(errors, wrong & (mask == ground), MISSED)
        _flat(errors, wrong & (reference == ground), FALSE_ALARM)
    _hatch(errors, failed_px, special.failed, "#000000")
    _hatch(errors, unlabelled & ~failed_px, special.unlabelled, special.unlabelled_stripe)
    _flat(errors, no_data_px, special.no_data)
    return {"image": pictures["image"], "truth": _palette(truth), "mask": pictures["mask"], "errors": _palette(errors)}


def save_quicklook(pictures: dict[str, Image.Image], run_folder: Path, image_id: str) -> dict[str, str]:
    """Write the pictures of one image into `run_folder`/quicklook; their paths, relative to the run folder, by name.

    The image becomes a JPEG, the others PNGs. The same pictures give the same bytes.
    """
    folder = run_folder / "quicklook"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, picture in pictures.items():
        kind: Literal["jpg", "png"] = "jpg" if name == "image" else "png"
        path = folder / f"{image_id}_{name}.{kind}"
        encoded = io.BytesIO()
        if kind == "jpg":
            picture.save(encoded, "JPEG", quality=80, optimize=True)
        else:
            picture.save(encoded, "PNG", optimize=True)
        write_bytes(path, encoded.getvalue())
        paths[name] = f"quicklook/{path.name}"
    return paths


def take_over(pictures: dict[str, str], earlier: Path, run_folder: Path) -> bool:
    """Put the pictures of one image of the run in `earlier` into `run_folder` too; False, and nothing put, where one is missing.

    Files are shared where the disk can: no picture is ever changed, and removing one run's folder leaves the other's.
    """
    if not all((earlier / name).is_file() for name in pictures.values()):
        return False
    for name in pictures.values():
        path = run_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(earlier / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(earlier / name, path)
    return True


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _furthest(candidates: Sequence[str], taken: Sequence[tuple[int, int, int]]) -> str:
    """The first candidate well away from all of `taken`, else the one that is furthest."""

    def nearest(color: str) -> float:
        return min((sum((a - b) ** 2 for a, b in zip(_channels(color), other, strict=True)) for other in taken), default=1e9)

    return next((c for c in candidates if nearest(c) > 48**2), max(candidates, key=nearest))


def _paint(codes: NDArray[np.unsignedinteger], classes: Sequence[ClassInfo]) -> Rgb:
    """Class codes in their colours; every other code black."""
    colors = np.zeros((np.iinfo(codes.dtype).max + 1, 3), np.uint8)
    colors[: len(classes)] = [_channels(c.color) for c in classes]
    painted: Rgb = colors[codes]
    return painted


def _muted(rgb: Rgb) -> Rgb:
    """The image in few, light greys, on which any strong colour stands out."""
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    level = np.rint(grey / 255 * (GREYS - 1)) / (GREYS - 1)
    light = np.rint(70 + level * 150).astype(np.uint8)
    return np.repeat(light[..., None], 3, axis=2)


def _flat(picture: Rgb, where: NDArray[np.bool_], color: str) -> None:
    picture[where] = _channels(color)


def _outline(picture: Rgb, inside: NDArray[np.bool_]) -> None:
    """Draw the border of `inside`: light within, dark without, so that it is seen on any ground."""
    near = np.pad(inside, 1, mode="edge")
    around = [near[1 + row : 1 + row + inside.shape[0], 1 + col : 1 + col + inside.shape[1]] for row, col in _NEIGHBOURS]
    _flat(picture, inside & ~np.logical_and.reduce(around), OUTLINE)
    _flat(picture, ~inside & np.logical_or.reduce(around), OUTLINE_EDGE)


def _hatch(picture: Rgb, where: NDArray[np.bool_], color: str, stripe: str) -> None:
    rows, cols = np.indices(where.shape)
    striped = (rows + cols) % HATCH_PERIOD < HATCH_WIDTH
    _flat(picture, where, color)
    _flat(picture, where & striped, stripe)


def _palette(picture: Rgb) -> Image.Image:
    """The same colours with a palette, where 256 are enough: a fraction of the file."""
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, index = np.unique(packed, return_inverse=True)
    if len(colors) > 256:
        return Image.fromarray(picture)
    small = Image.fromarray(index.reshape(packed.shape).astype(np.uint8))
    small.putpalette(np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8).tobytes())
    return small
