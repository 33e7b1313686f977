"""GDAL as it is called here: its settings, its errors, its version."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from pipeline.plan import MIB

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

OPTIONS = {
    "GDAL_NUM_THREADS": "1",  # threads belong to the driver of the workers
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # no listing of a folder of 100 000 files, yet .msk and .aux.xml are found
}
GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)


_here = threading.local()


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL's settings around calls, and its messages as exceptions instead of lines on stderr.

    Nothing more happens inside another one: each time they are set, the thread's PROJ forgets what it has read of its database,
    and to parse a coordinate system takes a third longer.
    """
    if getattr(_here, "inside", False):
        yield
        return
    with rasterio.Env(**OPTIONS):  # type: ignore[no-untyped-call]
        _here.inside = True
        try:
            yield
        finally:
            _here.inside = False


@contextmanager
def gdal_for_pixels() -> Iterator[None]:
    """As `gdal`; files that are opened within have no georeference, which to parse takes most of the time of opening them."""
    with gdal(), rasterio.Env(GDAL_GEOREF_SOURCES="NONE"):  # type: ignore[no-untyped-call]
        yield


def version() -> str:
    """Version of the GDAL that rasterio brings."""
    return str(rasterio.__gdal_version__)


_CACHE_LOCK = threading.Lock()
_cache_bytes = 0


def share_cache(change: int) -> None:
    """Set GDAL's block cache, of which a process has one, to the sum of what its open files need.

    rasterio takes bytes here, where GDAL_CACHEMAX in the environment is in MB.
    """
    global _cache_bytes
    with _CACHE_LOCK:
        _cache_bytes += change
        set_gdal_config("GDAL_CACHEMAX", max(_cache_bytes, 32 * MIB))
