"""Images as working pixels: `open_source(spec).read(window)` is all that the rest of the house sees of a file."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.grid import Window
    from pipeline.image import SourceInfo
    from pipeline.plan import ReadSpec


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


def describe(uri: str) -> SourceInfo:
    """What the header of the image at the absolute path `uri` says, in milliseconds; SourceError where it cannot be used."""
    from pipeline import rasterfile

    return rasterfile.describe(uri)


def check_unchanged(info: SourceInfo) -> None:
    """ChangedError where the image is no longer the file that `info` describes."""
    from pipeline import rasterfile

    rasterfile.check_unchanged(info)


def open_source(spec: ReadSpec) -> Source:
    """The image of `spec`, open for reading by one thread; SourceError where it cannot be opened."""
    from pipeline.sources.raster import RasterSource

    return RasterSource(spec)
