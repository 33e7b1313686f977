"""Made-up slides, small or huge, written tile by tile with tifffile: as OpenSlide, GDAL and tifffile each take them.

Who sees what, as `tests/test_slide_makers.py` finds:

    maker            OpenSlide                            rasterio
    write_aperio     aperio: all levels, label, macro     level 0; label and macro as its overviews, the levels never
    write_pyramid    generic-tiff: all levels             all levels
    write_ome        generic-tiff: level 0 only           all levels (SubIFDs); of several channels, the first
    write_16bit      generic-tiff: cut down to 8 bit      all levels and channels in 16 bit

Nothing here needs imagecodecs: Pillow encodes JPEG tiles. tifffile cannot decode those without it; OpenSlide and GDAL do.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Samples = NDArray[Any]
Compression = Literal["jpeg", "zlib"]

LABEL = np.full((40, 60, 3), (200, 30, 30), np.uint8)
"""The photograph of a slide's label, which has a patient's name in real life: red, so that it is known wherever it turns up."""
MACRO = np.full((50, 120, 3), (30, 200, 30), np.uint8)
"""The photograph of a whole slide: green."""
_REDUCED = 1
"""NewSubfileType of a page that shows another one smaller."""


def tissue(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) of pink discs with purple dots on a nearly white ground: smooth enough for JPEG."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), (244, 242, 245), np.uint8)
    side = min(height, width)
    for colour, count, radius in (((225, 150, 190), 3, side / 4), ((110, 60, 140), 40, max(2, side / 60))):
        for row, col in rng.uniform((0, 0), (height, width), (count, 2)):
            pixels[(rows - row) ** 2 + (cols - col) ** 2 < radius**2] = colour
    return pixels


def shrink(pixels: Samples, factor: int) -> Samples:
    """(h, w, ...) at 1 / factor of the resolution, (h // factor, w // factor, ...): the rounded mean of squares."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    squares = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, *pixels.shape[2:])
    return np.rint(squares.mean(axis=(1, 3))).astype(pixels.dtype)


def write_aperio(
    path: Path,
    pixels: Samples,
    *,
    mpp: float | None = 0.5,
    levels: Sequence[int] = (1, 4),
    label: Samples | None = LABEL,
    macro: Samples | None = MACRO,
    tile: int = 256,
    compression: Compression = "jpeg",
    missing: Collection[tuple[int, int]] = (),
) -> Path:
    """A slide as an Aperio scanner writes it: level 0, thumbnail, coarser levels, label, macro.

    `pixels` (h, w, 3) uint8; `levels` are whole downsamples, 1 first; `mpp` None leaves the pixel size out. Pages are level 0,
    the thumbnail, then the other levels. The tiles of level 0 at `missing` (row, col in tiles) have no bytes: OpenSlide shows
    them transparent, at every level.
    """
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for level, factor in enumerate(levels):
            shown = pixels if factor == 1 else shrink(pixels, factor)
            tiles = _tiles(shown, tile, compression, missing if level == 0 else ())
            _write_level(file, tiles, shown.shape, tile, compression, description=_aperio(pixels.shape, shown.shape, tile, mpp))
            if level == 0:
                _write_photographs(file, {"thumbnail": shrink(pixels, max(1, min(pixels.shape[:2]) // 64))})
        photographs = {"label": label, "macro": macro}
        _write_photographs(file, {name: photo for name, photo in photographs.items() if photo is not None})
    if compression == "jpeg":
        _as_jpeg(path)
    return path


def write_pyramid(
    path: Path,
    pixels: Samples,
    *,
    levels: Sequence[int] = (1, 2, 4),
    resolution: tuple[float, float] | None = None,
    compression: Compression = "zlib",
    bits: int = 8,
    tile: int = 256,
    missing: Collection[tuple[int, int]] = (),
) -> Path:
    """A tiled TIFF without a vendor, its levels one page after the other: OpenSlide's `generic-tiff`.

    `pixels` (h, w, 3); `resolution` pixels per cm (x, y), from which readers take the pixel size; `bits` 16 writes uint8 pixels
    times 257. The tiles of level 0 at `missing` (row, col in tiles) have no bytes: OpenSlide shows them transparent there, and
    not at other levels.
    """
    if bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for level, factor in enumerate(levels):
            shown = pixels if factor == 1 else shrink(pixels, factor)
            tiles = _tiles(shown, tile, compression, missing if level == 0 else ())
            per_cm = None if resolution is None else (resolution[0] / factor, resolution[1] / factor)
            _write_level(file, tiles, shown.shape, tile, compression, shown.dtype, reduced=level > 0, per_cm=per_cm)
    if compression == "jpeg":
        _as_jpeg(path)
    return path


def write_ome(
    path: Path,
    pixels: Samples,
    *,
    levels: Sequence[int] = (1, 2, 4),
    mpp: float | tuple[float, float] | None = 0.5,
    subifds: bool = True,
    tile: int = 256,
) -> Path:
    """An OME-TIFF of `pixels` (h, w, 3), or of channels (c, h, w) where the last axis is longer than 4.

    `mpp` micrometres a pixel, or (row, col). Coarser levels are SubIFDs, as the format has it; with `subifds` False they are
    pages after the others.
    """
    planar = pixels.shape[-1] > 4
    row_um, col_um = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    units = {"PhysicalSizeX": col_um, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": row_um, "PhysicalSizeYUnit": "µm"}
    how: dict[str, Any] = {"tile": (tile, tile), "compression": "zlib", "photometric": "minisblack" if planar else "rgb"}
    with tifffile.TiffWriter(path, bigtiff=False, ome=True) as file:
        metadata = {"axes": "CYX" if planar else "YXS", **({} if mpp is None else units)}
        file.write(pixels, subifds=len(levels) - 1 if subifds else None, metadata=metadata, **how)
        for factor in levels[1:]:
            shown = np.stack([shrink(band, factor) for band in pixels]) if planar else shrink(pixels, factor)
            file.write(shown, subfiletype=_REDUCED, metadata=None, **how)
    return path


def write_16bit(
    path: Path,
    samples: NDArray[np.uint16],
    *,
    levels: Sequence[int] = (1, 2),
    resolution: tuple[float, float] | None = None,
    tile: int = 256,
) -> Path:
    """Fluorescence: `samples` (h, w) or (channels, h, w) uint16 as one tiled pyramidal TIFF, channels side by side in a pixel.

    `resolution` pixels per cm (x, y). OpenSlide cuts whole tiles down to 8 bit, and shows noise in those that reach over
    the right edge: libtiff skips half of what lies over it.
    """
    pixels = samples if samples.ndim == 2 else np.ascontiguousarray(samples.transpose(1, 2, 0))
    with tifffile.TiffWriter(path, bigtiff=False) as file:
        for level, factor in enumerate(levels):
            shown = pixels if factor == 1 else shrink(pixels, factor)
            per_cm = None if resolution is None else (resolution[0] / factor, resolution[1] / factor)
            tiles = _tiles(shown, tile, "zlib")
            _write_level(
                file, tiles, shown.shape, tile, "zlib", shown.dtype, reduced=level > 0, per_cm=per_cm, photometric="minisblack"
            )
    return path


def write_big(
    path: Path,
    block: NDArray[np.uint8],
    rows: int,
    cols: int,
    *,
    levels: Sequence[int] = (1, 4, 16),
    mpp: float | None = 0.5,
    tile: int = 256,
    compression: Compression = "jpeg",
) -> Path:
    """An Aperio slide of `rows` x `cols` repetitions of `block` (h, w, 3): gigapixels from the memory of one block.

    Every level must divide the block's sides. A tile is encoded once for each place that it can have in the block.
    """
    shape = (block.shape[0] * rows, block.shape[1] * cols, 3)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, factor in enumerate(levels):
            if block.shape[0] % factor or block.shape[1] % factor:
                raise ValueError(f"level 1/{factor} does not divide a block of {block.shape[0]} x {block.shape[1]} px")
            shown = (shape[0] // factor, shape[1] // factor, 3)
            tiles = _repeated(shrink(block, factor), shown, tile, compression)
            _write_level(file, tiles, shown, tile, compression, description=_aperio(shape, shown, tile, mpp))
            if level == 0:
                _write_photographs(file, {"thumbnail": shrink(block, max(1, min(block.shape[:2]) // 64))})
        _write_photographs(file, {"label": LABEL, "macro": MACRO})
    if compression == "jpeg":
        _as_jpeg(path)
    return path


def corrupt_tile(path: Path, page: int, tile_index: int) -> None:
    """Overwrite the first half of the bytes of one tile (row by row in its `page`): no reader can decode it.

    OpenSlide fails on the region, and with that handle on every later one.
    """
    with tifffile.TiffFile(path) as file:
        found = file.pages[page]
        offset, size = found.dataoffsets[tile_index], found.databytecounts[tile_index]
    with path.open("r+b") as target:
        target.seek(offset)
        target.write(b"\xa5" * (size // 2))


def encoded(pixels: Samples, compression: Compression) -> bytes:
    """The bytes of one tile: a whole JPEG stream of YCbCr without subsampling, or deflated samples."""
    if compression == "zlib":
        return zlib.compress(np.ascontiguousarray(pixels).tobytes(), 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def _tiles(pixels: Samples, tile: int, compression: Compression, missing: Collection[tuple[int, int]] = ()) -> Iterator[bytes]:
    """The tiles of a level, row by row; what lies over the edge repeats the last pixels, as scanners do."""
    for row, col in np.ndindex(ceil(pixels.shape[0] / tile), ceil(pixels.shape[1] / tile)):
        if (row, col) in missing:
            yield b""
            continue
        part = pixels[row * tile : (row + 1) * tile, col * tile : (col + 1) * tile]
        over = ((0, tile - part.shape[0]), (0, tile - part.shape[1]), *[(0, 0)] * (pixels.ndim - 2))
        yield encoded(np.pad(part, over, mode="edge"), compression)


def _repeated(block: Samples, shape: tuple[int, int, int], tile: int, compression: Compression) -> Iterator[bytes]:
    """The tiles of a level of `shape` that `block` fills again and again."""
    known: dict[tuple[int, int], bytes] = {}
    height, width = block.shape[:2]
    span = np.arange(tile)
    for row, col in np.ndindex(ceil(shape[0] / tile), ceil(shape[1] / tile)):
        place = (row * tile % height, col * tile % width)
        if place not in known:
            known[place] = encoded(block[np.ix_((place[0] + span) % height, (place[1] + span) % width)], compression)
        yield known[place]


def _write_level(
    file: tifffile.TiffWriter,
    tiles: Iterator[bytes],
    shape: tuple[int, ...],
    tile: int,
    compression: Compression,
    dtype: Any = np.uint8,
    *,
    description: str | None = None,
    reduced: bool = False,
    per_cm: tuple[float, float] | None = None,
    photometric: str = "rgb",
) -> None:
    """One level from tiles that are encoded already."""
    file.write(
        tiles,
        shape=shape,
        dtype=dtype,
        tile=(tile, tile),
        compression="zlib",
        subfiletype=_REDUCED if reduced else 0,
        resolution=per_cm,
        resolutionunit=None if per_cm is None else "CENTIMETER",
        description=description,
        metadata=None,
        photometric="ycbcr" if compression == "jpeg" else photometric,
        planarconfig="contig" if len(shape) == 3 else None,
    )


def _as_jpeg(path: Path) -> None:
    """Call the tiles of a file what they are: tifffile writes encoded ones, but the word JPEG only beside its own encoder."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            if isinstance(page, tifffile.TiffPage) and page.is_tiled:
                page.tags["Compression"].overwrite(tifffile.COMPRESSION.JPEG)


def _write_photographs(file: tifffile.TiffWriter, photographs: dict[str, Samples]) -> None:
    """Small untiled pages; label and macro have the page types that Aperio gives them."""
    kinds = {"thumbnail": 0, "label": _REDUCED, "macro": 9}
    for name, photo in photographs.items():
        height, width = photo.shape[:2]
        text = f"Aperio Image Library v12.0.15\r\n{name} {width}x{height}"
        file.write(
            photo,
            compression="zlib",
            photometric="rgb",
            subfiletype=kinds[name],
            description=text,
            metadata=None,
            rowsperstrip=height,
        )


def _aperio(full: tuple[int, ...], shown: tuple[int, ...], tile: int, mpp: float | None) -> str:
    """The description of a level, as Aperio writes it."""
    size = f"{full[1]}x{full[0]}"
    what = f"[0,0 {size}] ({tile}x{tile}) JPEG/RGB Q=90" if full == shown else f"-> {shown[1]}x{shown[0]} - "
    pixel = "" if mpp is None else f"|MPP = {mpp:g}"
    return f"Aperio Image Library v12.0.15\r\n{size} {what}|AppMag = 20{pixel}"
