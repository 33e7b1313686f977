"""GDAL as it is called here: its settings, its errors, its version."""

from __future__ import annotations

import threading
import warnings
from contextlib import AbstractContextManager
from typing import Any

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


def gdal() -> AbstractContextManager[Any]:
    """GDAL's settings around a call, and its messages as exceptions instead of lines on stderr."""
    env: AbstractContextManager[Any] = rasterio.Env(**OPTIONS)  # type: ignore[no-untyped-call]
    return env


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
