"""What is known of an image before a pixel is read: where it lies, what its header says, and its working grid."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Affine6 = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * col + b * row + c, y = d * col + e * row + f, for pixel corners (affine.Affine order)."""


class Frozen(BaseModel):
    """A value that checks itself once, travels between processes and is kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")


class ImageSpec(Frozen):
    """One member of the archive, as listed: nothing of it has been opened yet."""

    uri: str
    """Absolute path of the image."""
    truth: str | None = None
    """Absolute path of its reference labels; None when it has none."""
    group: str | None = None
    """Patient, site or flight: the unit of statistics, where images are not independent."""
    strata: dict[str, str] = Field(default_factory=dict)
    """Other manifest columns, kept for breakdowns."""

    @property
    def stem(self) -> str:
        """File name without its last suffix."""
        return PurePath(self.uri).stem

    @property
    def id(self) -> str:
        """A readable, path-safe stem and a short hash of the URI, as stems collide in real archives."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", self.stem).strip("._")[:60] or "image"
        return f"{safe}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"


class SourceInfo(Frozen):
    """What the header of an image says, at native resolution."""

    uri: str
    """Absolute path."""
    reader: Literal["raster"] = "raster"
    """Which reader opens it."""
    driver: str
    """The format's short name in its reader, such as GTiff."""
    size_bytes: int
    """Size of the file: with `mtime_ns` its identity."""
    mtime_ns: int
    """Time of last change, in nanoseconds."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    band_names: tuple[str, ...]
    """One lower-case name a data band (alpha left out), from description, colour interpretation or position (`band1`)."""
    band_indexes: tuple[int, ...]
    """1-based index of each data band in the file."""
    dtype: str
    """NumPy name of the sample type that all data bands share."""
    nodata: tuple[float | None, ...]
    """Declared nodata of each data band; None where undeclared, NaN where it is NaN."""
    valid_from: Literal["all", "nodata", "alpha", "mask"]
    """What tells real pixels from filling: nothing, declared nodata, an alpha band, or a mask band."""
    block_shape: tuple[int, int]
    """(height, width) of the file's own blocks: strips are as wide as the image."""
    crs_wkt: str | None = None
    """Coordinate reference system as WKT2; None where there is none."""
    transform: Affine6 | None = None
    """Pixel corners to CRS units; None where the file has no georeference."""
    pixel_size_m: tuple[float, float] | None = None
    """Ground size (row, col) of a pixel in metres; at the image's centre where the CRS is geographic."""


class Resolution(Frozen):
    """Size of a working pixel."""

    size: float = Field(gt=0)
    """Side of a pixel in `unit`."""
    unit: Literal["metre", "source-pixel"] = "metre"
    """`source-pixel`: a multiple of the image's own pixel, for images without georeference."""
    tolerance: float = Field(default=0.05, ge=0, lt=1)
    """Relative difference up to which an image's own pixels are used as they are, without resampling."""

    def __str__(self) -> str:
        return f"{self.size:g} m" if self.unit == "metre" else f"{self.size:g} source pixels"


class WorkingGrid(Frozen):
    """The pixels that are segmented: the native grid, or one resampled from it once."""

    height: int
    """Rows at working resolution."""
    width: int
    """Columns at working resolution."""
    scale_row: float = 1.0
    """Native rows a working row; 1.0 exactly where nothing is resampled."""
    scale_col: float = 1.0
    """Native columns a working column."""
    crs_wkt: str | None = None
    """As the source's."""
    transform: Affine6 | None = None
    """Working pixel corners to CRS units; None without georeference."""

    @property
    def native(self) -> bool:
        """Whether working pixels are the image's own."""
        return self.scale_row == 1.0 and self.scale_col == 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def working_grid(info: SourceInfo, resolution: Resolution | None) -> WorkingGrid | None:
    """The grid on which `info` is worked at `resolution` (None: native); None when metres are asked of an image
    that has no georeference.

    Working pixel (i, j) covers native rows [i * scale_row, (i + 1) * scale_row): the corner stays, the last pixel may
    reach over the edge by less than half of itself.
    """
    scale_row = scale_col = 1.0
    if resolution is not None and resolution.unit == "source-pixel":
        scale_row = scale_col = resolution.size
    elif resolution is not None:
        if info.pixel_size_m is None:
            return None
        scale_row, scale_col = (resolution.size / metres for metres in info.pixel_size_m)
    tolerance = resolution.tolerance if resolution is not None else 0.0
    if max(abs(scale_row - 1), abs(scale_col - 1)) <= tolerance:
        scale_row = scale_col = 1.0
    transform = info.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a * scale_col, b * scale_row, c, d * scale_col, e * scale_row, f)
    return WorkingGrid(
        height=max(1, math.floor(info.height / scale_row + 0.5)),
        width=max(1, math.floor(info.width / scale_col + 0.5)),
        scale_row=scale_row,
        scale_col=scale_col,
        crs_wkt=info.crs_wkt,
        transform=transform,
    )
