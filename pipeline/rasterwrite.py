"""Raster files that are written: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window as RasterioWindow

from pipeline.atomic import replacing
from pipeline.errors import OutputError
from pipeline.gdal import GDAL_ERRORS, gdal, share_cache
from pipeline.grid import Window
from pipeline.image import Affine6
from pipeline.plan import MIB

EXPORT_CACHE_BYTES = 64 * MIB
"""GDAL's block cache while a raster is exported."""


def write(
    path: Path, samples: NDArray[Any], *, transform: Affine6 | None = None, crs: str | None = None, band_names: Sequence[str] = ()
) -> None:
    """Write `samples` (bands, h, w) as a tiled, deflated GeoTIFF; it appears at `path` whole or not at all."""
    bands, height, width = samples.shape
    with (
        replacing(path) as draft,
        gdal(),
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
    share_cache(EXPORT_CACHE_BYTES)
    try:
        with gdal():
            yield
    except GDAL_ERRORS as e:
        raise OutputError(
            f"{path.name} could not be written: {e.__cause__ or e}. Make room in {path.parent}, then try again"
        ) from e
    finally:
        share_cache(-EXPORT_CACHE_BYTES)
