"""Coordinate systems: their texts, the ground size of a pixel, points from one to another."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as reproject_points

from pipeline.errors import SourceError
from pipeline.gdal import GDAL_ERRORS, gdal
from pipeline.image import Affine6

MERCATOR_SLACK = 0.01
"""Projections whose scale at the image's centre is off by more than this are corrected to ground metres."""


_CRS_TEXT = re.compile(r"\s*(?:\{|[A-Za-z_0-9]+\s*\[|\+\w+=|[A-Za-z]+:[\w.:+-]+\s*$|WGS ?84$)")
"""PROJJSON, WKT, a PROJ string, EPSG:32637 or urn:ogc:def:crs:..., WGS84."""


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
    except GDAL_ERRORS:  # a system without a way to the ellipsoid keeps its own metres
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


def crs_of(text: str) -> str:
    """A coordinate system in any common text (`EPSG:32637`, WKT, PROJJSON) as WKT2; SourceError where it means nothing."""
    if not _CRS_TEXT.match(text):  # GDAL would take it for the name of a file, or an address
        raise SourceError(f"coordinate system {text[:200]!r} is not understood. Name one such as EPSG:32637")
    try:
        return wkt2(CRS.from_user_input(text).to_wkt())
    except (*GDAL_ERRORS, ValueError) as e:
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
        with gdal():
            moved = reproject_points(CRS.from_wkt(start_wkt), CRS.from_wkt(end_wkt), xs, ys)
    except GDAL_ERRORS:
        return np.full(len(xs), np.inf), np.full(len(xs), np.inf)
    return np.array(moved[0], np.float64), np.array(moved[1], np.float64)
