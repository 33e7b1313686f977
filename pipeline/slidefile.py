"""Whole slides: which files they are, what these say of themselves, the pixels of a level. The one address of OpenSlide."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.grid import Window
from pipeline.identity import check_files, file_set
from pipeline.image import STATED, FileSet, FileState, SourceInfo
from pipeline.plan import SLIDE_CACHE_BYTES

if TYPE_CHECKING:
    from openslide import OpenSlide

GENERIC = "generic-tiff"
"""What OpenSlide calls a tiled TIFF of no vendor: it may as well be a raster."""
SANE_MPP = (0.05, 20.0)
"""Micrometres a pixel that a microscope's picture can have; what lies outside is the junk of a printer's tag."""
BANDS = ("red", "green", "blue")
HANDLES = 8
"""Open slides that a process keeps."""
PAGE = 1024
"""Side of the squares in which a level is read whose downsample is no whole number: see `SlideFile.read`."""
STRIP_PIXELS = 1 << 22
"""Pixels that OpenSlide is asked for at a time, with four bytes each."""
SERIES_TAG = b"\x20\x00\x0e\x00UI"
"""Series Instance UID (0020,000E) in explicit little endian, as slides have it; two bytes of length follow."""
SLIDEDAT = "Slidedat.ini"
"""What names the files of an MRXS slide, in the folder beside it."""
MOST_INDEX_BYTES = 1 << 22
"""How much of an index is searched for names of files."""
_MRXS_FILES = re.compile(rb"^[ \t]*(?:INDEXFILE|FILE_\d+)[ \t]*=[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE)
_VMS_FILES = re.compile(
    rb"^[ \t]*(?:ImageFile|MapFile|OptimisationFile|MacroImage)(?:\([\d,]*\))?[ \t]*=[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE
)

_VENDOR_MPP = (
    ("aperio.MPP", "aperio.MPP"),
    ("mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X", "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y"),
    ("ventana.ScanRes", "ventana.ScanRes"),
)
"""(x, y) properties of vendors that state micrometres a pixel."""
_UNITS = {"centimeter": 10_000.0, "inch": 25_400.0}
"""Micrometres in the unit of a TIFF's resolution tags."""


def vendor(path: Path) -> str | None:
    """The slide format that OpenSlide finds in a file, by its content; None where it is none."""
    from openslide import OpenSlide, OpenSlideError

    try:
        found: str | None = OpenSlide.detect_format(str(path))
    except OpenSlideError:
        return None
    return found


def describe(path: Path, driver: str, stated_mpp: tuple[float, float] | None, *, from_power: bool) -> SourceInfo:
    """What the slide at `path`, of the format `driver`, says of itself; reads no pixel.

    `stated_mpp` (row, col) goes before all that the file says; `from_power` allows 10 µm / objective power where it says
    nothing. SourceError where the slide is damaged.
    """
    files = files_of(path, driver)
    slide = _opened(path)
    try:
        shapes = tuple((height, width) for width, height in slide.level_dimensions)
        properties = slide.properties
        size, found_in, problem = pixel_size(properties, stated_mpp, from_power=from_power)
        tile = tuple(int(properties.get(f"openslide.level[0].tile-{side}", 256)) for side in ("height", "width"))
        return SourceInfo(
            **dict(files),
            reader="slide",
            driver=driver,
            height=shapes[0][0],
            width=shapes[0][1],
            band_names=BANDS,
            band_indexes=(1, 2, 3),
            dtype="uint8",
            nodata=(None, None, None),
            valid_from="alpha",
            block_shape=(tile[0], tile[1]),
            pixel_size_m=size,
            pixel_size_from=found_in,
            pixel_size_error=problem,
            levels=shapes,
            background=_background(properties),
            has_icc_profile=_profile(slide) is not None,
        )
    finally:
        slide.close()


def _profile(slide: OpenSlide) -> Any:
    """A slide's colour profile; None where it has none that can be read."""
    from PIL.ImageCms import PyCMSError

    try:
        return slide.color_profile
    except PyCMSError:
        return None


def files_of(path: Path, driver: str) -> FileSet:
    """A slide's file and those that belong to it: of DICOM those of its series in its folder, of MRXS and VMS those that their
    indexes name. What else lies in the folder is no part of it. SourceError where they cannot be listed."""
    try:
        return file_set(path, _beside(path, driver))
    except OSError as e:
        raise SourceError(f"{path} cannot be reached: {e}. Mount the folder, or correct the path") from e


def check_unchanged(source: SourceInfo) -> None:
    """ChangedError where a file of the slide is gone, or is another one; no file is opened."""
    check_files(source)


def _beside(path: Path, driver: str) -> list[Path]:
    """The other files of a slide."""
    if driver == "dicom":
        series = series_of(path)
        return [file for file in path.parent.iterdir() if file.is_file() and series_of(file) == series]
    if driver == "mirax":
        folder = path.with_suffix("")
        return [folder / SLIDEDAT, *(folder / name for name in _named(folder / SLIDEDAT, _MRXS_FILES))]
    if path.suffix.lower() in (".vms", ".vmu"):
        return [path.parent / name for name in _named(path, _VMS_FILES)]
    return []


def _named(index: Path, keys: re.Pattern[bytes]) -> list[str]:
    """Names of files in the folder of `index` that its lines give under some keys."""
    with index.open("rb") as file:
        text = file.read(MOST_INDEX_BYTES)
    names = [os.fsdecode(match[1]) for match in keys.finditer(text)]
    return [name for name in names if name == PurePath(name).name]


def series_of(path: Path) -> bytes:
    """Series Instance UID of a DICOM file; its name where none is found, so that it stands for itself."""
    try:
        status = path.stat()
        return _series_of(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return path.name.encode()


@lru_cache(1 << 14)
def _series_of(path: Path, _size_bytes: int, _mtime_ns: int) -> bytes:
    """`series_of` a file of this size and time of change: folders of many slides are listed for each of them."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    place = start.find(SERIES_TAG)
    if place < 0:
        return path.name.encode()
    text = place + len(SERIES_TAG) + 2
    return start[text : text + int.from_bytes(start[text - 2 : text], "little")].rstrip(b"\0 ")


def pixel_size(
    properties: Mapping[str, str], stated: tuple[float, float] | None, *, from_power: bool
) -> tuple[tuple[float, float] | None, str | None, str | None]:
    """(size (row, col) of a pixel in metres, where it was found, why what was found is not believed).

    What is stated, else OpenSlide's own, the vendor's and the TIFF's word, in this order, the first that is a microscope's;
    only where `from_power`, 10 µm / objective power. Rows and columns may differ.
    """
    if stated is not None:
        _check_stated(stated)
        return (stated[0] * 1e-6, stated[1] * 1e-6), STATED, None
    strange = []
    for name, row, col in _candidates(properties, from_power=from_power):
        if all(SANE_MPP[0] <= value <= SANE_MPP[1] for value in (row, col)):
            return (row * 1e-6, col * 1e-6), name, None
        strange.append(f"{name} says {row:.4g} x {col:.4g} µm (row, column)")
    if not strange:
        return None, None, None
    return None, None, f"{'; '.join(strange)}: no microscope's, which have {SANE_MPP[0]:g} to {SANE_MPP[1]:g} µm"


def _check_stated(mpp: tuple[float, float]) -> None:
    if not all(SANE_MPP[0] <= value <= SANE_MPP[1] for value in mpp):
        raise SourceError(
            f"stated are {mpp[0]:g} x {mpp[1]:g} µm a pixel (row, column), and microscopes have {SANE_MPP[0]:g} to "
            f"{SANE_MPP[1]:g}: objects would have a wrong size. Correct archive.mpp, or the manifest's column mpp"
        )


def _candidates(properties: Mapping[str, str], *, from_power: bool) -> Iterator[tuple[str, float, float]]:
    """(where it stands, row, col) of each size in micrometres that a slide states, the most trusted first."""
    for x_name, y_name in (("openslide.mpp-x", "openslide.mpp-y"), *_VENDOR_MPP):
        x, y = _number(properties.get(x_name)), _number(properties.get(y_name))
        if x is not None and y is not None:
            yield x_name, y, x
    unit = _UNITS.get(properties.get("tiff.ResolutionUnit", ""))
    x, y = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    if unit is not None and x and y:
        yield "tiff.XResolution", unit / y, unit / x
    power = _number(properties.get("openslide.objective-power"))
    if from_power and power:
        yield "objective power", 10 / power, 10 / power


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None


def _background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    """The colour of what was not scanned; white where the slide does not say."""
    text = properties.get("openslide.background-color", "")
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return 255, 255, 255
    return red, green, blue


class SlideFile:
    """The pixels of one level of an open slide, and which of them were scanned. For one thread."""

    def __init__(self, source: SourceInfo, bands: tuple[int, ...], level: int, *, srgb: bool) -> None:
        """Open `source` for `bands` (1-based, of red, green, blue); `srgb` applies its colour profile, where it has one.

        SourceError where it is damaged, ChangedError where it is not the planned file.
        """
        check_unchanged(source)
        self.source = source
        self._bands, self._level = [band - 1 for band in bands], level
        self._key = (threading.get_ident(), source.uri, source.size_bytes, source.mtime_ns, source.beside)
        self._slide = _HANDLES.get(self._key)
        if tuple((h, w) for w, h in self._slide.level_dimensions) != source.levels:
            raise SourceError(f"{source.uri} has other levels than were planned: another OpenSlide read it then. Run again")
        self._down = float(self._slide.level_downsamples[level])
        self._srgb = _to_srgb(self._slide) if srgb else None

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(data (bands, h, w) uint8, valid (h, w): True was scanned) of a window inside the level, in the level's own pixels.

        Half-transparent pixels are laid on the slide's background colour; what is transparent was not scanned.

        OpenSlide wants places in pixels of level 0, and interpolates where one is no whole pixel of the level. Where the level's
        downsample is a whole number none is. Elsewhere the level is read in squares of PAGE px, each from its own corner, so
        that a pixel is the same in every window; from square to square the pixels move by less than half a level-0 pixel.
        """
        data = np.empty((len(self._bands), *window.shape), np.uint8)
        valid = np.empty(window.shape, bool)
        for part in self._parts(window):
            inner = part.inside(window)
            data[:, *inner], valid[inner] = self._laid(self._rgba(part))
        return data, valid

    def close(self) -> None:
        """Nothing: the process keeps its last slides open. A handle that failed was let go already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _parts(self, window: Window) -> Iterator[Window]:
        """`window` in parts that are read at once."""
        if self._down.is_integer():
            step = max(1, STRIP_PIXELS // window.width)
            for row in range(window.row, window.row_stop, step):
                yield Window(row, window.col, min(step, window.row_stop - row), window.width)
            return
        for top in range(window.row // PAGE * PAGE, window.row_stop, PAGE):
            for left in range(window.col // PAGE * PAGE, window.col_stop, PAGE):
                row, col = max(top, window.row), max(left, window.col)
                stop, right = min(top + PAGE, window.row_stop), min(left + PAGE, window.col_stop)
                yield Window(row, col, stop - row, right - col)

    def _rgba(self, part: Window) -> NDArray[np.uint8]:
        """(h, w, 4) of a part, alpha last."""
        from openslide import OpenSlideError

        row, col = part.row, part.col
        if not self._down.is_integer():
            row, col = row // PAGE * PAGE, col // PAGE * PAGE
        place = round(col * self._down), round(row * self._down)
        try:
            image = self._slide.read_region(place, self._level, (part.col_stop - col, part.row_stop - row))
        except OpenSlideError as e:
            _HANDLES.drop(self._key)  # an OpenSlide handle that has failed once fails for ever
            raise SourceError(
                f"{self.source.uri}: level {self._level}, rows {part.row}-{part.row_stop - 1}, columns {part.col}-"
                f"{part.col_stop - 1} cannot be read: {e}. Its pixels would be missing from the mask; fetch the slide again"
            ) from e
        return np.asarray(image)[part.row - row :, part.col - col :]

    def _laid(self, rgba: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(data (bands, h, w), valid (h, w)) of RGBA pixels, on the background colour."""
        alpha = rgba[..., 3]
        valid = alpha > 0
        colours = rgba[..., :3]
        if (alpha != 255).any():
            share = alpha[..., None].astype(np.uint32)
            ground = np.array(self.source.background, np.uint32)
            colours = ((colours * share + ground * (255 - share) + 127) // 255).astype(np.uint8)
        if self._srgb is not None:
            colours = self._srgb(colours)
        return colours.transpose(2, 0, 1)[self._bands], valid


def _to_srgb(slide: OpenSlide) -> Any:
    """The function from (h, w, 3) of the slide's colours to sRGB; None where it has no profile."""
    profile = _profile(slide)
    if profile is None:
        return None
    from PIL import Image, ImageCms

    change = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")

    def apply(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(colours)), change))

    return apply


Key = tuple[int, str, int, int, tuple[FileState, ...]]
"""Thread, path, bytes, time of change and other files of an open slide."""


class _Handles:
    """The slides that a process has open: the last few, with one cache of decoded tiles for them all.

    Each thread has its own, though OpenSlide would let them share: a damaged tile ends a handle for all who use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, OpenSlide] = OrderedDict()
        self._cache: Any = None

    def get(self, key: Key) -> OpenSlide:
        """The handle of `key`, opened where there is none; one that is let go closes with its last reader."""
        from openslide import OpenSlideCache

        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        slide = _opened(Path(key[1]))
        with self._lock:
            self._cache = self._cache or OpenSlideCache(SLIDE_CACHE_BYTES)
            slide.set_cache(self._cache)
            self._open[key] = slide
            while len(self._open) > HANDLES:
                self._open.popitem(last=False)
        return slide

    def drop(self, key: Key) -> None:
        """Forget a handle that has failed."""
        with self._lock:
            self._open.pop(key, None)


_HANDLES = _Handles()


def _opened(path: Path) -> OpenSlide:
    from openslide import OpenSlide, OpenSlideError

    try:
        return OpenSlide(str(path))
    except (OpenSlideError, OSError) as e:
        raise SourceError(
            f"{path} cannot be opened as a slide: {e}. Fetch it again with all of its files, or leave it out with archive.exclude"
        ) from e


def version() -> str:
    """Version of the OpenSlide library."""
    import openslide

    return str(openslide.__library_version__)
