"""Images as working pixels: `open_source(spec).read(window)` is all that the rest of the house sees of a file."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError

if TYPE_CHECKING:
    from pipeline.config import ArchiveConfig
    from pipeline.grid import Window
    from pipeline.image import ImageSpec, SourceInfo
    from pipeline.plan import ReadSpec


Reader = Literal["auto", "raster", "slide"]
"""Which library opens an image."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """The samples of a window, and which of them are real."""

    data: NDArray[Any]
    """(bands, h, w) in the source's own type and the model's band order; always finite."""
    valid: NDArray[np.bool_]
    """(h, w): True is real data; what `data` holds elsewhere means nothing."""


class Source(Protocol):
    """An open image, for one thread."""

    def read(self, window: Window) -> Pixels:
        """The working pixels of a window inside the working grid. SourceError where they cannot be read.

        The law: any window is the crop of the whole, byte for byte.
        """
        ...

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def describe(
    uri: str, *, reader: Reader = "auto", mpp: tuple[float, float] | None = None, from_power: bool = False
) -> SourceInfo:
    """What the header of the image at the absolute path `uri` says, in milliseconds; SourceError where it cannot be used.

    Which reader opens it is told by its content, not its name: OpenSlide the slides of vendors and DICOM, GDAL all others. A
    tiled TIFF of no vendor is a slide where it has a believable pixel size in micrometres, 8-bit colours and no georeference;
    OpenSlide would make 16 bits 8, and see one level of an OME-TIFF. `reader` says which it is to be, whatever it looks like.

    `mpp` (row, col) states the size of its pixels in micrometres; `from_power` lets a slide that says nothing be 10 µm /
    objective power.
    """
    from pipeline import rasterfile, slidefile

    path = rasterfile.local_path(uri)
    driver = slidefile.vendor(path) if reader != "raster" else None
    if reader == "slide" and driver is None:
        raise SourceError(f"{uri} is no slide that OpenSlide {slidefile.version()} reads: archive.reader says slide. Say auto")
    if driver is None:
        return rasterfile.describe(uri, mpp)
    if driver != slidefile.GENERIC or reader == "slide":
        return slidefile.describe(path, driver, mpp, from_power=from_power)
    raster = rasterfile.describe(uri, mpp)
    plain = raster.transform is None and raster.dtype == "uint8" and len(raster.band_indexes) == len(slidefile.BANDS)
    sized = mpp is not None or (raster.states_resolution and raster.pixel_size_from is None)
    if not plain or not sized or raster.valid_from == "nodata":
        return raster
    try:
        slide = slidefile.describe(path, driver, mpp, from_power=from_power)
    except SourceError:
        return raster
    return raster.model_copy(update={"pixel_size_error": slide.pixel_size_error}) if slide.pixel_size_m is None else slide


def describe_image(archive: ArchiveConfig, image: ImageSpec) -> SourceInfo:
    """What the header of an image says, read as the configuration has it."""
    return describe(image.uri, reader=archive.reader, mpp=image.mpp, from_power=archive.mpp_from_power)


def check_unchanged(info: SourceInfo) -> None:
    """ChangedError where the image is no longer the file that `info` describes."""
    from pipeline import rasterfile, slidefile

    (slidefile if info.reader == "slide" else rasterfile).check_unchanged(info)


def open_source(spec: ReadSpec) -> Source:
    """The image of `spec`, open for reading by one thread; SourceError where it cannot be opened."""
    from pipeline.rasterfile import RasterFile
    from pipeline.slidefile import SlideFile
    from pipeline.sources.stored import StoredSource

    if spec.source.reader == "slide":
        return StoredSource(spec, SlideFile(spec.source, spec.bands, spec.grid.level, srgb=spec.srgb))
    return StoredSource(spec, RasterFile(spec.source, spec.bands, spec.valid_from, spec.nodata))
