"""What is known of an image before a pixel is read: where it lies, what its header says, and its working grid."""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Affine6 = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): x = a * col + b * row + c, y = d * col + e * row + f, for pixel corners (affine.Affine order)."""


METRES = {"metre": 1.0, "micrometre": 1e-6}
"""Units of length -> metres."""
STATED = "stated"
"""Where a pixel size was found that the user gave."""
LEVEL_SLACK = 0.01
"""Share by which a level's pixels may be larger than those asked for and still be taken: its downsample is never quite whole."""


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
    mpp: tuple[float, float] | None = None
    """Size (row, col) of a native pixel in micrometres, as manifest or archive.mpp state it: the file is not asked then."""
    area: str | None = None
    """Absolute path of the polygons or mask raster outside of which the image is no data; None where none was named."""

    @property
    def stem(self) -> str:
        """File name without its last suffix."""
        return PurePath(self.uri).stem

    @property
    def id(self) -> str:
        """A readable, path-safe stem and a short hash of the URI, as stems collide in real archives."""
        return _id_of(self.uri)


@lru_cache(1 << 14)
def _id_of(uri: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePath(uri).stem).strip("._")[:60] or "image"
    return f"{safe}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"


class FileState(Frozen):
    """A file as it was found."""

    name: str
    """Path relative to the folder of the image or labels that it belongs to."""
    size_bytes: int
    mtime_ns: int
    """Time of its last change, in nanoseconds."""


class FileSet(Frozen):
    """A file, and those beside it that decide what is read from it: sidecars, the parts of a slide or of a shapefile."""

    uri: str
    """Absolute path."""
    size_bytes: int
    """Size of the file at `uri`."""
    mtime_ns: int
    """Time of its last change, in nanoseconds."""
    beside: tuple[FileState, ...] = ()
    """The other files, by name."""

    @property
    def identity(self) -> list[Any]:
        """What tells this file, or set of files, from another one at the same path; of a single file its size and time."""
        others = [[file.name, file.size_bytes, file.mtime_ns] for file in self.beside]
        return [self.size_bytes, self.mtime_ns, *([others] if others else [])]


class SourceInfo(FileSet):
    """What the header of an image says, at native resolution."""

    reader: Literal["raster", "slide"] = "raster"
    """Which reader opens it: GDAL's rasters, or OpenSlide's slides."""
    driver: str
    """The format's short name in its reader, such as GTiff or aperio."""
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
    """Size (row, col) of a pixel in metres, on the ground or on the slide; at the image's centre where the CRS is geographic."""
    pixel_size_from: str | None = None
    """Where the size was found: `stated`, the name of a property or tag, `objective power`; None: the georeference."""
    pixel_size_error: str | None = None
    """Why a size that the file states is not believed."""
    states_resolution: bool = False
    """Whether tags of a raster state a resolution, believable or not."""
    levels: tuple[tuple[int, int], ...] = ()
    """(height, width) of each level of a slide's pyramid, full resolution first; empty where only that is read."""
    background: tuple[int, int, int] | None = None
    """Colour (red, green, blue) that a slide shows where it was not scanned; None for rasters."""
    has_icc_profile: bool = False
    """Whether a slide says how its colours are to be understood."""


def _with_mpp(schema: dict[str, Any]) -> None:
    """Adds what `Resolution` also takes to its JSON schema: `mpp`, instead of size and unit."""
    size = {"type": "number", "exclusiveMinimum": 0}
    sizes = {"type": "array", "items": size, "minItems": 1}
    text = "Micrometres of a pixel; or several, of which a level of the slide must have one."
    schema["properties"]["mpp"] = {"anyOf": [size, sizes], "description": text}
    schema.pop("required", None)
    schema["oneOf"] = [{"required": ["size"]}, {"required": ["mpp"]}]


class Resolution(Frozen):
    """Size of a working pixel. `{mpp: 0.5}` is short for 0.5 micrometres; `{mpp: [0.25, 0.5]}` takes a level that a slide has."""

    model_config = ConfigDict(json_schema_extra=_with_mpp, use_attribute_docstrings=True)

    size: float = Field(gt=0)
    """Side of a pixel in `unit`."""
    unit: Literal["metre", "micrometre", "source-pixel"] = "metre"
    """`source-pixel`: a multiple of the image's own pixel, for images of unknown pixel size."""
    tolerance: float = Field(default=0.05, ge=0, lt=1)
    """Relative difference up to which an image's own pixels, or those of a level, are used as they are, without resampling."""
    accepted: tuple[float, ...] = ()
    """Where given, in `unit`: pixels are those of the first level that has one of these sizes, and nothing is resampled."""

    @model_validator(mode="before")
    @classmethod
    def _from_mpp(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "mpp" not in data:
            return data
        given = {"size", "unit", "accepted"} & data.keys()
        if given:
            raise ValueError(f"give either mpp or {', '.join(sorted(given))}: both say how large a pixel is")
        mpp, rest = data["mpp"], {key: value for key, value in data.items() if key != "mpp"}
        if not isinstance(mpp, list | tuple):
            return {**rest, "size": mpp, "unit": "micrometre"}
        if not mpp:
            raise ValueError("mpp names no size: give micrometres, such as 0.5 or [0.25, 0.5]")
        return {**rest, "size": mpp[0], "unit": "micrometre", "accepted": tuple(mpp)}

    @property
    def size_m(self) -> float | None:
        """Side in metres; None where it is a multiple of the image's own pixel."""
        return None if self.unit == "source-pixel" else self.size * METRES[self.unit]

    def __str__(self) -> str:
        name = {"metre": "m", "micrometre": "µm", "source-pixel": "source pixels"}[self.unit]
        return " or ".join(f"{size:g}" for size in self.accepted or (self.size,)) + f" {name}"


class WorkingGrid(Frozen):
    """The pixels that are segmented: those of a level as they are stored, or resampled from one once."""

    height: int
    """Rows at working resolution."""
    width: int
    """Columns at working resolution."""
    scale_row: float = 1.0
    """Native rows a working row, of the image at full resolution."""
    scale_col: float = 1.0
    """Native columns a working column."""
    level: int = 0
    """Level of the source's pyramid that pixels are made from; 0 is full resolution."""
    down_row: float = 1.0
    """Native rows a row of that level."""
    down_col: float = 1.0
    """Native columns a column of that level."""
    crs_wkt: str | None = None
    """As the source's."""
    transform: Affine6 | None = None
    """Working pixel corners to CRS units; None without georeference."""
    pixel_size_m: tuple[float, float] | None = None
    """Size (row, col) of a working pixel in metres; None where the image does not tell."""

    @property
    def step_row(self) -> float:
        """Level rows a working row; 1.0 exactly where nothing is resampled."""
        return self.scale_row / self.down_row

    @property
    def step_col(self) -> float:
        """Level columns a working column."""
        return self.scale_col / self.down_col

    @property
    def as_stored(self) -> bool:
        """Whether working pixels are those of the level, without resampling."""
        return self.step_row == 1.0 and self.step_col == 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def working_grid(info: SourceInfo, resolution: Resolution | None) -> WorkingGrid | None:
    """The grid on which `info` is worked at `resolution` (None: native); None where a length is asked of an image whose pixels
    have no known size, or one of several levels of an image that has none of them.

    Pixels come from the coarsest level that is at least as fine as asked for, within LEVEL_SLACK: as they are where they have
    about that size, else resampled once. Working pixel (i, j) covers native rows [i * scale_row, (i + 1) * scale_row): the
    corner stays, the last pixel may reach over the edge by less than half of itself.
    """
    if resolution is None:
        return _grid(info, 1.0, 1.0, 0.0)
    if resolution.size_m is None:
        return _grid(info, resolution.size, resolution.size, resolution.tolerance)
    if info.pixel_size_m is None:
        return None
    for size in resolution.accepted or (resolution.size,):
        rows, cols = (size * METRES[resolution.unit] / metres for metres in info.pixel_size_m)
        grid = _grid(info, rows, cols, resolution.tolerance)
        if grid.as_stored or not resolution.accepted:
            return grid
    return None


def from_level(info: SourceInfo, grid: WorkingGrid) -> WorkingGrid:
    """`grid` with its pixels made from the coarsest level of `info` that is at least as fine, within LEVEL_SLACK."""
    downs, most = _downs(info), 1 + LEVEL_SLACK
    fine = [i for i, (row, col) in enumerate(downs) if row <= grid.scale_row * most and col <= grid.scale_col * most]
    level = max(fine, default=0)
    return grid.model_copy(update={"level": level, "down_row": downs[level][0], "down_col": downs[level][1]})


def coarse_grid(info: SourceInfo, height: int, width: int) -> WorkingGrid:
    """All of `info` in `height` x `width` pixels, without georeference: for a look at the whole."""
    grid = WorkingGrid(height=height, width=width, scale_row=info.height / height, scale_col=info.width / width)
    return from_level(info, grid)


def level_shapes(info: SourceInfo) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level that may be read, full resolution first."""
    return info.levels or ((info.height, info.width),)


def _downs(info: SourceInfo) -> list[tuple[float, float]]:
    """Native (rows, columns) a pixel of each level."""
    return [(1.0, 1.0), *((info.height / height, info.width / width) for height, width in level_shapes(info)[1:])]


def _grid(info: SourceInfo, scale_row: float, scale_col: float, tolerance: float) -> WorkingGrid:
    """The grid of `scale_row` x `scale_col` native pixels a working pixel, or of a level of about that size."""
    downs = _downs(info)
    off = [max(abs(scale_row / row - 1), abs(scale_col / col - 1)) for row, col in downs]
    stored = off.index(min(off)) if min(off) <= tolerance else None
    if stored is None:
        height, width = (max(1, math.floor(n / scale + 0.5)) for n, scale in ((info.height, scale_row), (info.width, scale_col)))
    else:
        (height, width), (scale_row, scale_col) = level_shapes(info)[stored], downs[stored]
    transform, size = info.transform, info.pixel_size_m
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a * scale_col, b * scale_row, c, d * scale_col, e * scale_row, f)
    grid = WorkingGrid(
        height=height,
        width=width,
        scale_row=scale_row,
        scale_col=scale_col,
        crs_wkt=info.crs_wkt,
        transform=transform,
        pixel_size_m=None if size is None else (size[0] * scale_row, size[1] * scale_col),
    )
    if stored is None:
        return from_level(info, grid)
    return grid.model_copy(update={"level": stored, "down_row": scale_row, "down_col": scale_col})
