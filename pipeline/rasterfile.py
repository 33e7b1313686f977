"""Local raster files: which may be opened, what their headers say, and their native pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio import Env
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import SourceError
from pipeline.gdal import GDAL_ERRORS, gdal, gdal_for_pixels, share_cache
from pipeline.grid import Window
from pipeline.identity import check_files, file_set
from pipeline.image import STATED, SourceInfo
from pipeline.plan import MIB, gdal_cache_bytes
from pipeline.projection import pixel_size_m, wkt2

ValidFrom = Literal["all", "nodata", "alpha", "mask"]
"""What tells real pixels from filling."""

DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG", "JPEGXL", "WEBP", "BMP", "GIF", "HFA", "ENVI", "EHdr", "NITF", "PNM")
"""GDAL's readers of real, local rasters (COG is GTiff). None follows a path or URL that stands inside the file to just any data,
as VRT, WMS, STACTA, ERS and others do: who may put a file into the archive must not thereby read any other. HFA alone names a
second file, and takes it only if that is an ERDAS .ige or .rrd itself."""
LARGEST_FILE_BLOCK = 512 * MIB
"""The most that decoding one block of a file may take: what the memory plan reckons with."""
OVERVIEWS = (".ovr",)
"""Suffixes of files that hold overviews alone, which are never read: to build them changes no mask."""
RAW, BESIDE_RAW = ("ENVI", "EHdr"), (".hdr", ".prj", ".clr", ".stx")
"""Drivers of samples without a header of their own, and the suffixes of the files that describe them."""
DECODED_WHOLE = ("WEBP", "JPEGXL")
"""Drivers that decode all of the image for the first of its blocks, whatever they tell of these."""
MOST_SAMPLES = 10**14
"""Width x height x bands above which a header is taken for damaged."""

OME_UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "µm": 1e-6, "&#181;m": 1e-6, "&#xB5;m": 1e-6, "nm": 1e-9}
"""Units of length in OME-XML -> metres."""

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_unchanged(source: SourceInfo) -> None:
    """ChangedError where a file of the image is gone or another one, or one that GDAL would read has appeared beside it."""
    check_files(source, _sidecars(Path(source.uri), source.driver))


def _files(path: Path, dataset: DatasetReader) -> set[str]:
    """The files that decide what is read from `dataset`, beside the one at `path`: those that GDAL names, without overviews,
    and those of `_sidecars`, as GDAL also reads files that it does not name (.aux) or only one of several (.tfw and .wld)."""
    named = {file for file in dataset.files if not file.lower().endswith(OVERVIEWS)}
    return named | set(_sidecars(path, dataset.driver))


def _sidecars(path: Path, driver: str) -> list[str]:
    """The files beside `path` from which GDAL takes masks, nodata, names of bands and georeferences, if they exist."""
    folder, name, stem, suffix = str(path.parent), path.name, path.stem, path.suffix
    ends = suffix[1:2] + suffix[-1:] + "w"
    world = (f".{ends}", f"{suffix}w", ".wld") if suffix else (".wld",)
    replacing = (*world, ".aux", *(BESIDE_RAW if driver in RAW else ()))
    appended = (".msk", ".msk.aux.xml", ".aux", *((".hdr",) if driver in RAW else ()))
    names = [stem + end for suffix in replacing for end in (suffix, suffix.upper())]
    names += [name + end for suffix in appended for end in (suffix, suffix.upper())]
    return [f"{folder}/{other}" for other in dict.fromkeys((*names, f"{name}.aux.xml")) if other != name]


class RasterFile:
    """The native pixels of some bands of one open file, and which of them are real. For one thread.

    Overviews are never read: their resampling was fixed by others, and in some slide files they hold photographs of the label.
    """

    def __init__(
        self, source: SourceInfo, bands: tuple[int, ...], valid_from: ValidFrom, nodata: tuple[float | None, ...]
    ) -> None:
        """Open `source` for `bands` (1-based); SourceError where it is damaged, ChangedError where it is not the planned file."""
        self.source = source
        self._bands = bands
        self._valid_from = valid_from
        self._nodata = _comparable(nodata, np.dtype(source.dtype))
        self._open = False
        check_unchanged(source)
        with gdal_for_pixels():
            self._dataset = _opened(local_path(source.uri))
        self._alpha = _alpha_index(self._dataset)
        self._open = True
        share_cache(+gdal_cache_bytes(source))

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(data (bands, h, w) in the file's type, valid (h, w): True is real) of a window inside the native grid.

        Filling is what the mask says is 0, or where alpha is 0, or where every band has its own nodata value (a band without
        one is always real): GDAL's rule. Half-transparent pixels are real, though their colours may be mixed with black.
        NaN and infinity are filling in any band and under any rule, and come back as 0.
        """
        native = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            with gdal():
                data, valid = self._samples(native)
        except RasterioError as e:
            where = f"native rows {window.row}-{window.row_stop - 1}, columns {window.col}-{window.col_stop - 1}"
            raise SourceError(
                f"{self.source.uri}: {where} cannot be read: {e.__cause__ or e}. Its pixels would be missing from the mask; "
                "fetch or make the file again"
            ) from e
        if self._valid_from == "nodata":
            valid = self._has_data(data)
        if data.dtype.kind == "f":
            finite = np.isfinite(data)
            if not finite.all():
                valid &= finite.all(axis=0)
                data[~finite] = 0
        return data, valid

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._open:
            self._open = False
            self._dataset.close()
            share_cache(-gdal_cache_bytes(self.source))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _samples(self, native: RasterioWindow) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Data as stored, and what mask or alpha say of it."""
        alpha = self._alpha if self._valid_from == "alpha" else None
        if alpha is not None and self._dataset.dtypes[alpha - 1] == self.source.dtype:
            samples = self._dataset.read([*self._bands, alpha], window=native)  # together: blocks may hold all bands
            return samples[:-1], samples[-1] > 0
        data = self._dataset.read(list(self._bands), window=native)
        if alpha is not None:
            return data, self._dataset.read(alpha, window=native) > 0
        if self._valid_from == "mask":
            return data, self._dataset.read_masks(1, window=native) > 0
        return data, np.ones(data.shape[1:], bool)

    def _has_data(self, data: NDArray[Any]) -> NDArray[np.bool_]:
        """Where any band differs from its nodata value."""
        valid = np.zeros(data.shape[1:], bool)
        for band, value in zip(data, self._nodata, strict=True):
            if value is None:
                valid[:] = True
            elif math.isnan(value):
                valid |= ~np.isnan(band)
            else:
                valid |= band != value
        return valid


def describe(uri: str, mpp: tuple[float, float] | None = None) -> SourceInfo:
    """What the header of the file at the absolute path `uri` says; reads no pixel. SourceError where it cannot be used.

    `mpp` (row, col) states the size of its pixels in micrometres, where it has no georeference.
    """
    path = local_path(uri)
    with gdal(), _opened(path) as dataset:
        try:
            return _sized(_facts(path, dataset), dataset, mpp)
        except GDAL_ERRORS as e:
            raise SourceError(f"{uri}: its header cannot be read: {e}. Check the file with `rio info`, or leave it out") from e


def local_path(uri: str) -> Path:
    """`uri` as the path of an existing local file; SourceError for all that GDAL would follow elsewhere."""
    path = Path(uri)
    if uri.startswith("/vsi") or not path.is_absolute():
        raise SourceError(
            f"{uri!r} is no absolute path of a local file: GDAL could take it for a network address, an archive or an inline "
            "dataset. Copy the image to a local or mounted folder and name it there"
        )
    try:
        found = path.is_file()
    except OSError as e:
        raise SourceError(f"{uri} cannot be reached: {e}. Mount the folder, or correct the path") from e
    if not found:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"{uri} {what}: there is no image to read. Correct the path, or leave it out with archive.exclude")
    return path


def _starts(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _opened(path: Path) -> DatasetReader:
    """The dataset at `path`, by one of DRIVERS."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
        for mask in (Path(f"{path}.msk"), Path(f"{path}.MSK")):
            if mask.is_file() and not _starts(mask).startswith(_TIFF_STARTS):
                raise SourceError(
                    f"{mask} is no TIFF, so it cannot be opened as the mask of {path.name}: filling would be taken for data. "
                    "Replace it, or move it away if the image needs no mask"
                )
    except OSError as e:
        raise SourceError(f"{path} cannot be read: {e}. Correct its permissions, or leave it out with archive.exclude") from e
    if b"<VRTDataset" in start:
        raise SourceError(
            f"{path} is a GDAL VRT, which points at other files or addresses: it is not opened, as it could read anything. "
            f"Write its pixels to a file: rio convert {path.name} {path.stem}_pixels.tif"
        )
    try:
        with gdal():
            return DatasetReader(str(path), driver=list(DRIVERS))
    except RasterioError as e:
        raise SourceError(
            f"{path} cannot be opened as a raster: {e} Read are {', '.join(DRIVERS)}. "
            "Convert it to GeoTIFF, fetch it again, or leave it out with archive.exclude"
        ) from e


def _facts(path: Path, dataset: DatasetReader) -> SourceInfo:
    alpha = [index for index, meaning in enumerate(dataset.colorinterp, 1) if meaning is ColorInterp.alpha]
    bands = tuple(index for index in dataset.indexes if index not in alpha)
    dtypes = {index: dataset.dtypes[index - 1] for index in bands}
    height, width = dataset.shape
    if not bands:
        raise SourceError(f"{path} has no band of data ({dataset.count} bands, {len(alpha)} of them alpha): nothing to segment")
    if len(set(dtypes.values())) > 1:
        raise SourceError(
            f"{path} has bands of different sample types ({', '.join(f'{i}: {d}' for i, d in dtypes.items())}): one scaling "
            "cannot fit them. Write them with one type, or to files of their own"
        )
    dtype = dtypes[bands[0]]
    if dtype.startswith("complex"):
        raise SourceError(f"{path} has {dtype} samples: models take real numbers. Write amplitude or intensity instead")
    if height * width * dataset.count > MOST_SAMPLES:
        raise SourceError(
            f"{path} claims {height} x {width} px in {dataset.count} bands, more than {MOST_SAMPLES:.0e} samples: it would be "
            "worked on for years. Check its header, or cut it into parts"
        )
    block_height, block_width = dataset.block_shapes[bands[0] - 1]
    if dataset.driver in DECODED_WHOLE:
        block_height, block_width = height, width
    block_bytes = block_height * block_width * len(bands) * np.dtype(dtype).itemsize
    if block_bytes > LARGEST_FILE_BLOCK:
        raise SourceError(
            f"{path} is stored in blocks of {block_height} x {block_width} px: decoding one takes {block_bytes / MIB:,.0f} MiB, "
            f"above {LARGEST_FILE_BLOCK // MIB} MiB a worker cannot plan its memory. Write it with tiles: "
            f"rio convert {path.name} tiled.tif --co TILED=YES --co BIGTIFF=IF_SAFER"
        )
    crs, transform = _crs(path, dataset), None
    if crs is not None or not dataset.transform.is_identity:
        transform = (*dataset.transform[:6],)
    return SourceInfo(
        **dict(file_set(path, _files(path, dataset))),
        driver=dataset.driver,
        height=height,
        width=width,
        band_names=_band_names(dataset, bands),
        band_indexes=bands,
        dtype=dtype,
        nodata=tuple(dataset.nodatavals[index - 1] for index in bands),
        valid_from=_valid_from(dataset, bands),
        block_shape=(block_height, block_width),
        crs_wkt=None if crs is None else wkt2(crs.to_wkt()),
        transform=transform,
        pixel_size_m=None if crs is None or transform is None else pixel_size_m(crs, transform, height, width),
    )


def _sized(info: SourceInfo, dataset: DatasetReader, mpp: tuple[float, float] | None) -> SourceInfo:
    """`info` with the size of its pixels as it is stated, or as the header of an OME-TIFF says."""
    tags = dataset.tags()
    ome = OmePixels.of(tags.get("TIFFTAG_IMAGEDESCRIPTION", ""))
    info = info.model_copy(update={"states_resolution": "TIFFTAG_XRESOLUTION" in tags})
    if ome is not None and ome.planes > len(info.band_indexes):
        raise SourceError(
            f"{info.uri} is an OME-TIFF of {ome.planes} planes (channels, depths, times), each a picture of its own, of which "
            f"{len(info.band_indexes)} would be seen. Write its channels as samples of one picture (axes YXS or YXC, interleaved)"
        )
    if mpp is not None and info.crs_wkt is not None:
        raise SourceError(
            f"{info.uri} has a georeference, and {mpp[0]:g} x {mpp[1]:g} µm a pixel are stated for it: one of them is wrong. "
            "Correct archive.mpp, or the manifest's column mpp"
        )
    if mpp is not None:
        return info.model_copy(update={"pixel_size_m": (mpp[0] * 1e-6, mpp[1] * 1e-6), "pixel_size_from": STATED})
    if ome is not None and ome.size_m is not None and info.crs_wkt is None:
        return info.model_copy(update={"pixel_size_m": ome.size_m, "pixel_size_from": "OME PhysicalSizeX"})
    return info


@dataclass(frozen=True, slots=True)
class OmePixels:
    """What the OME-XML in a TIFF's description says of its first picture."""

    planes: int
    """Channels x depths x times, less what interleaved samples hold."""
    size_m: tuple[float, float] | None
    """(row, col) of a pixel in metres; None where it is not stated."""

    @staticmethod
    def of(description: str) -> OmePixels | None:
        """From a description; None where it is no OME-XML."""
        tag = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description[:200_000]) if "<OME" in description[:2000] else None
        if tag is None:
            return None
        said = dict(re.findall(r'(\w+)="([^"]*)"', tag[0]))
        try:
            counts = [int(said.get(f"Size{axis}", "1")) for axis in "CZT"]
            units = [OME_UNITS[said.get(f"PhysicalSize{axis}Unit", "µm")] for axis in "YX"]
            sizes = [float(said[f"PhysicalSize{axis}"]) * unit for axis, unit in zip("YX", units, strict=True)]
        except (KeyError, ValueError):
            sizes = []
            counts = [1]
        believable = bool(sizes) and all(math.isfinite(size) and size > 0 for size in sizes)
        size = (sizes[0], sizes[1]) if believable else None
        return OmePixels(math.prod(counts), size)


def _band_names(dataset: DatasetReader, bands: tuple[int, ...]) -> tuple[str, ...]:
    """A name a band: its description, else its colour, else `band1`...; also where a name would come twice."""
    names: list[str] = []
    for index in bands:
        colour = dataset.colorinterp[index - 1]
        given = dataset.descriptions[index - 1] or ("" if colour is ColorInterp.undefined else colour.name)
        name = given.strip().lower()
        names.append(name if name and name not in names else f"band{index}")
    return tuple(names)


def _valid_from(dataset: DatasetReader, bands: tuple[int, ...]) -> ValidFrom:
    """mask, else alpha, else nodata, else all.

    The order of GDAL and of rasterio's `dataset_mask`, but for one thing: alpha goes before nodata even where GDAL lets a
    nodata value hide it. A mask, in the file or beside it (.msk), was made to say just this; alpha says it pixel by pixel; a
    nodata value says it by a number that real pixels may have too (0 is a colour).
    """
    flags = dataset.mask_flag_enums[bands[0] - 1]
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        return "mask"
    if _alpha_index(dataset) is not None:
        return "alpha"
    return "all" if all(dataset.nodatavals[index - 1] is None for index in bands) else "nodata"


def _alpha_index(dataset: DatasetReader) -> int | None:
    """1-based index of the first alpha band; None where there is none."""
    return next((index for index, meaning in enumerate(dataset.colorinterp, 1) if meaning is ColorInterp.alpha), None)


def _crs(path: Path, dataset: DatasetReader) -> CRS | None:
    try:
        crs: CRS | None = dataset.crs
    except GDAL_ERRORS as e:
        raise SourceError(f"{path}: its coordinate system cannot be understood: {e}. Assign it again: rio edit-info --crs") from e
    return crs or None


def _comparable(nodata: tuple[float | None, ...], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Nodata values as samples of `dtype`; None where no sample can have the value."""
    values: list[Any] = []
    for value in nodata:
        if value is None or dtype.kind == "f":
            values.append(None if value is None else np.float64(value).astype(dtype))
        elif float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            values.append(dtype.type(int(value)))
        else:
            values.append(None)
    return tuple(values)


def read_all(path: Path) -> NDArray[Any]:
    """All samples (bands, h, w) of a small raster."""
    with gdal(), _opened(path) as dataset:
        samples: NDArray[Any] = dataset.read()
    return samples


def drivers() -> tuple[list[str], list[str]]:
    """(formats of DRIVERS that this GDAL reads, those that it lacks)."""
    with gdal():
        known = Env().drivers()  # type: ignore[no-untyped-call]
    return [d for d in DRIVERS if d in known], [d for d in DRIVERS if d not in known]


def burn(shapes: Sequence[tuple[Any, int]], window: Window, codes: NDArray[np.unsignedinteger]) -> None:
    """Write the code of each of `shapes` (polygons in pixels of the whole grid, code) into `codes` (h, w) of a window, wherever
    a pixel's centre lies in it; the last one wins."""
    if shapes:
        with gdal():
            rasterize(shapes, out=codes, transform=Affine.translation(window.col, window.row), all_touched=False)
