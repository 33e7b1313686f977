"""Local raster files: which may be opened, what their headers say, and their native pixels. The one address of rasterio."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize
from rasterio.io import DatasetReader
from rasterio.shutil import copy as copy_raster
from rasterio.warp import transform as reproject_points
from rasterio.windows import Window as RasterioWindow

from pipeline.errors import OutputError, SourceError
from pipeline.grid import Window
from pipeline.image import STATED, Affine6, SourceInfo, check_identity
from pipeline.plan import MIB, gdal_cache_bytes

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

ValidFrom = Literal["all", "nodata", "alpha", "mask"]
"""What tells real pixels from filling."""

DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG", "JPEGXL", "WEBP", "BMP", "GIF", "HFA", "ENVI", "EHdr", "NITF", "PNM")
"""GDAL's readers of real, local rasters (COG is GTiff). None follows a path or URL that stands inside the file to just any data,
as VRT, WMS, STACTA, ERS and others do: who may put a file into the archive must not thereby read any other. HFA alone names a
second file, and takes it only if that is an ERDAS .ige or .rrd itself."""
LARGEST_FILE_BLOCK = 512 * MIB
"""The most that decoding one block of a file may take: what the memory plan reckons with."""
MOST_SAMPLES = 10**14
"""Width x height x bands above which a header is taken for damaged."""
EXPORT_CACHE_BYTES = 64 * MIB
"""GDAL's block cache while a raster is exported."""
MERCATOR_SLACK = 0.01
"""Projections whose scale at the image's centre is off by more than this are corrected to ground metres."""

OME_UNITS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "µm": 1e-6, "&#181;m": 1e-6, "&#xB5;m": 1e-6, "nm": 1e-9}
"""Units of length in OME-XML -> metres."""

_OPTIONS = {
    "GDAL_NUM_THREADS": "1",  # threads belong to the driver of the workers
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # no listing of a folder of 100 000 files, yet .msk and .aux.xml are found
}
_GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_unchanged(source: SourceInfo) -> None:
    """ChangedError where the file is gone, or its size or time of change are not those of `source`."""
    if not Path(source.uri).exists():
        check_identity(source, None)
    status = local_path(source.uri).stat()
    check_identity(source, (status.st_size, status.st_mtime_ns))


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
        self._dataset = _opened(local_path(source.uri))
        self._alpha = _alpha_index(self._dataset)
        self._open = True
        _share_cache(+gdal_cache_bytes(source))

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(data (bands, h, w) in the file's type, valid (h, w): True is real) of a window inside the native grid.

        Filling is what the mask says is 0, or where alpha is 0, or where every band has its own nodata value (a band without
        one is always real): GDAL's rule. Half-transparent pixels are real, though their colours may be mixed with black.
        NaN and infinity are filling in any band and under any rule, and come back as 0.
        """
        native = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            with _gdal():
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
            _share_cache(-gdal_cache_bytes(self.source))

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
    with _opened(path) as dataset, _gdal():
        try:
            return _sized(_facts(path, dataset), dataset, mpp)
        except _GDAL_ERRORS as e:
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


def _gdal() -> AbstractContextManager[Any]:
    """GDAL's settings around a call, and its messages as exceptions instead of lines on stderr."""
    env: AbstractContextManager[Any] = rasterio.Env(**_OPTIONS)  # type: ignore[no-untyped-call]
    return env


def _opened(path: Path) -> DatasetReader:
    """The dataset at `path`, by one of DRIVERS."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
        for mask in (Path(f"{path}.msk"), Path(f"{path}.MSK")):
            if mask.is_file() and not mask.read_bytes()[:4].startswith(_TIFF_STARTS):
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
        with _gdal():
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
    status = path.stat()
    return SourceInfo(
        uri=str(path),
        driver=dataset.driver,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
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
    ome = OmePixels.of(dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", ""))
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
        size = (sizes[0], sizes[1]) if sizes and min(sizes) > 0 else None
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
    except _GDAL_ERRORS as e:
        raise SourceError(f"{path}: its coordinate system cannot be understood: {e}. Assign it again: rio edit-info --crs") from e
    return crs or None


@lru_cache(maxsize=256)
def wkt2(wkt: str) -> str:
    """`wkt` as WKT2:2019, taken from the EPSG registry where the system is found there: equal systems print alike, whatever
    wrote the file."""
    crs = CRS.from_wkt(wkt)
    epsg = crs.to_epsg()
    text: str = (crs if epsg is None else CRS.from_epsg(epsg)).to_wkt(version="WKT2_2019")
    return text


def pixel_size_m(crs: CRS, transform: Affine6, height: int, width: int) -> tuple[float, float] | None:
    """Ground size (row, col) in metres of the pixel at the image's centre; None where the system has no known unit.

    Geographic systems: by the radii of curvature of WGS 84 at that latitude. Projected ones: by their unit, except where the
    projection itself is off by more than MERCATOR_SLACK there, as web Mercator is by 1 / cos(latitude): a pixel of 0.0746
    units of EPSG:3857 in Nepal (27.6 degrees north) shows 0.0662 m of ground, and that is what a model sees.
    """
    a, b, c, d, e, f = transform
    x, y = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
    steps = (b, e), (a, d)
    unit, factor = crs.units_factor
    if crs.is_geographic:
        degrees = math.degrees(factor)
        return _finite(tuple(_ground_m(dx * degrees, dy * degrees, y * degrees) for dx, dy in steps))
    if unit.lower() == "unknown":
        return None
    nominal = tuple(math.hypot(dx, dy) * factor for dx, dy in steps)
    if not crs.is_projected:
        return _finite(nominal)
    try:
        lons, lats = reproject_points(crs, CRS.from_epsg(4326), [x, *(x + s[0] for s in steps)], [y, *(y + s[1] for s in steps)])
    except _GDAL_ERRORS:  # a system without a way to the ellipsoid keeps its own metres
        return _finite(nominal)
    ground = tuple(
        _ground_m(math.remainder(lon - lons[0], 360), lat - lats[0], lats[0]) for lon, lat in zip(lons[1:], lats[1:], strict=True)
    )
    off = any(abs(g / n - 1) > MERCATOR_SLACK for g, n in zip(ground, nominal, strict=True) if math.isfinite(g) and n)
    return _finite(ground if off else nominal)


def _ground_m(lon_step: float, lat_step: float, lat: float) -> float:
    """Length in metres of a small step in degrees at latitude `lat` on WGS 84."""
    major, flattening = 6378137.0, 1 / 298.257223563
    squared = flattening * (2 - flattening)
    bend = 1 - squared * math.sin(math.radians(lat)) ** 2
    east = major / math.sqrt(bend) * math.cos(math.radians(lat))
    north = major * (1 - squared) / bend**1.5
    return math.hypot(math.radians(lon_step) * east, math.radians(lat_step) * north)


def _finite(sizes: tuple[float, ...]) -> tuple[float, float] | None:
    row, col = sizes
    return (row, col) if math.isfinite(row) and math.isfinite(col) and min(row, col) > 0 else None


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


_CACHE_LOCK = threading.Lock()
_cache_bytes = 0


def _share_cache(change: int) -> None:
    """Set GDAL's block cache, of which a process has one, to the sum of what its open files need.

    rasterio takes bytes here, where GDAL_CACHEMAX in the environment is in MB.
    """
    global _cache_bytes
    with _CACHE_LOCK:
        _cache_bytes += change
        set_gdal_config("GDAL_CACHEMAX", max(_cache_bytes, 32 * MIB))


def write(
    path: Path, samples: NDArray[Any], *, transform: Affine6 | None = None, crs: str | None = None, band_names: Sequence[str] = ()
) -> None:
    """Write `samples` (bands, h, w) as a tiled, deflated GeoTIFF; it appears at `path` whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    bands, height, width = samples.shape
    with (
        _gdal(),
        rasterio.open(
            draft,
            "w",
            driver="GTiff",
            count=bands,
            height=height,
            width=width,
            dtype=samples.dtype,
            crs=crs,
            transform=None if transform is None else Affine(*transform),
            tiled=True,
            blockxsize=512,
            blockysize=512,
            compress="deflate",
            zlevel=1,
            BIGTIFF="IF_SAFER",
        ) as file,
    ):
        file.write(samples)
        for index, name in enumerate(band_names, 1):
            file.set_band_description(index, name)
    draft.replace(path)


def write_tiled(
    path: Path, shape: tuple[int, int], dtype: str, tile: int, pieces: Iterable[tuple[Window, NDArray[np.unsignedinteger]]]
) -> None:
    """Write one band of `shape` (height, width) to a GeoTIFF without georeference, piece by piece; pieces consist of whole tiles.

    OutputError where GDAL cannot write.
    """
    with (
        _written(path),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=1,
            height=shape[0],
            width=shape[1],
            dtype=dtype,
            tiled=True,
            blockxsize=tile,
            blockysize=tile,
            compress="zstd",
            zstd_level=1,
            BIGTIFF="IF_SAFER",
        ) as file,
    ):
        for window, samples in pieces:
            file.write(samples, 1, window=RasterioWindow(window.col, window.row, window.width, window.height))


def copy_as_cog(source: Path, path: Path, tile: int) -> None:
    """Write the raster `source`, a VRT of our own, and the overviews that it has to `path` as a Cloud Optimized GeoTIFF.

    OutputError where GDAL cannot write.
    """
    with _written(path):
        copy_raster(
            source,
            path,
            driver="COG",
            compress="DEFLATE",
            blocksize=tile,
            overviews="FORCE_USE_EXISTING",
            bigtiff="IF_SAFER",
            num_threads="ALL_CPUS",
        )


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """A small block cache while `path` is written, and OutputError where it cannot be."""
    _share_cache(EXPORT_CACHE_BYTES)
    try:
        with _gdal():
            yield
    except _GDAL_ERRORS as e:
        raise OutputError(
            f"{path.name} could not be written: {e.__cause__ or e}. Make room in {path.parent}, then try again"
        ) from e
    finally:
        _share_cache(-EXPORT_CACHE_BYTES)


def read_all(path: Path) -> NDArray[Any]:
    """All samples (bands, h, w) of a small raster."""
    with _gdal(), _opened(path) as dataset:
        samples: NDArray[Any] = dataset.read()
    return samples


def gdal_version() -> str:
    """Version of the GDAL that rasterio brings."""
    return str(rasterio.__gdal_version__)


def drivers() -> tuple[list[str], list[str]]:
    """(formats of DRIVERS that this GDAL reads, those that it lacks)."""
    with _gdal() as env:
        known = env.drivers()
    return [d for d in DRIVERS if d in known], [d for d in DRIVERS if d not in known]


def crs_of(text: str) -> str:
    """A coordinate system in any common text (`EPSG:32637`, WKT, PROJJSON) as WKT2; SourceError where it means nothing."""
    try:
        return wkt2(CRS.from_user_input(text).to_wkt())
    except (*_GDAL_ERRORS, ValueError) as e:
        raise SourceError(f"coordinate system {text[:200]!r} is not understood: {e}. Name one such as EPSG:32637") from e


def projjson(crs_wkt: str) -> dict[str, Any]:
    """A coordinate system as PROJJSON."""
    document: dict[str, Any] = CRS.from_wkt(crs_wkt).to_dict(projjson=True)
    return document


def is_geographic(crs_wkt: str) -> bool:
    """Whether coordinates are longitude and latitude."""
    return bool(CRS.from_wkt(crs_wkt).is_geographic)


def ground_size(crs_wkt: str, transform: Affine6, height: int, width: int) -> tuple[float, float] | None:
    """`pixel_size_m` of a grid."""
    return pixel_size_m(CRS.from_wkt(crs_wkt), transform, height, width)


def project(
    start_wkt: str, end_wkt: str, xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in another coordinate system, x (east, longitude) before y in both; infinity where for some there is no way."""
    if not len(xs):
        return xs, ys
    try:
        with _gdal():
            moved = reproject_points(CRS.from_wkt(start_wkt), CRS.from_wkt(end_wkt), xs, ys)
    except _GDAL_ERRORS:
        return np.full(len(xs), np.inf), np.full(len(xs), np.inf)
    return np.array(moved[0], np.float64), np.array(moved[1], np.float64)


def burn(shapes: Sequence[tuple[Any, int]], window: Window, codes: NDArray[np.unsignedinteger]) -> None:
    """Write the code of each of `shapes` (polygons in pixels of the whole grid, code) into `codes` (h, w) of a window, wherever
    a pixel's centre lies in it; the last one wins."""
    if shapes:
        with _gdal():
            rasterize(shapes, out=codes, transform=Affine.translation(window.col, window.row), all_touched=False)
