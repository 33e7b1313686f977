"""Where pixel corners lie for others: in pixels of the full resolution, in the CRS, or in longitude and latitude."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.alignment import MaskFacts
from pipeline.errors import ConfigError
from pipeline.image import Affine6, Frozen
from pipeline.projection import crs_of, is_geographic, project

PER_PIXEL = 10_000
"""Coordinates that are written as text are exact to so many parts of a pixel, or finer."""
LONGEST_STEP = 64
"""Edges are cut into steps of at most so many working px before they are turned to longitude and latitude, where what was
straight is bent: by 1e-4 px where a pixel has 0.5 m, by 2e-3 px where it has 10 m."""


class Frame(Frozen):
    """From (line, col) of a mosaic's pixel corners to the (x, y) that are written."""

    kind: Literal["pixels", "crs", "lonlat"]
    """pixels: of the image at full resolution, x right and y down; lonlat: WGS 84, as RFC 7946 wants it."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Full-resolution pixels a working pixel (row, col)."""
    limits: tuple[int, int] = (1, 1)
    """(height, width) at full resolution: the last working pixel may reach over it."""
    transform: Affine6 | None = None
    """Working pixel corners to CRS units; not asked of pixels."""
    crs_wkt: str | None = None
    """Of the coordinates that `transform` gives."""
    decimals: int = 4
    """Decimals that text needs."""
    bend: float = 0.0
    """How far in working px, about, a step of LONGEST_STEP px leaves the straight line, and rounding moves a point."""

    @property
    def bent(self) -> bool:
        """Whether straight edges of pixels are not straight in this frame."""
        return self.kind == "lonlat" and self.crs_wkt is not None and not is_geographic(self.crs_wkt)

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2): x, y of corners (line, col)."""
        line, col = points[:, 0], points[:, 1]
        if self.kind == "pixels":
            return np.column_stack(
                [
                    np.minimum(col * self.scale[1], self.limits[1]),
                    np.minimum(line * self.scale[0], self.limits[0]),
                ]
            )
        assert self.transform is not None
        a, b, c, d, e, f = self.transform
        x, y = a * col + b * line + c, d * col + e * line + f
        if self.kind == "lonlat":
            assert self.crs_wkt is not None
            x, y = project(self.crs_wkt, crs_of("EPSG:4326"), x, y)
        return np.column_stack([x, y])


def frame_of(facts: MaskFacts, *, geojson: bool) -> Frame:
    """The frame in which a mosaic's polygons are written; ConfigError where GeoJSON cannot hold it."""
    grid = facts.grid
    georeferenced = grid.transform is not None and grid.crs_wkt is not None
    if grid.transform is None or (geojson and not georeferenced):
        scale = (grid.scale_row, grid.scale_col)
        return Frame(kind="pixels", scale=scale, limits=facts.native_shape, decimals=_decimals(min(scale)))
    if not geojson:
        return Frame(kind="crs", transform=grid.transform, crs_wkt=grid.crs_wkt)
    frame = Frame(kind="lonlat", transform=grid.transform, crs_wkt=grid.crs_wkt)
    rim = _rim(grid.height, grid.width)
    lon, lat = frame.place(rim).T
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise ConfigError(
            f"{facts.image}: its coordinate system has no way to longitude and latitude, which GeoJSON must hold (RFC 7946). "
            "Use --to gpkg or geoparquet, which keep the coordinate system"
        )
    if np.ptp(lon) > 180:
        raise ConfigError(
            f"{facts.image} lies across the 180th meridian (longitudes {lon.min():.3f} to {lon.max():.3f}): as GeoJSON its "
            "polygons would go around the Earth. Use --to gpkg or geoparquet, which keep the coordinate system"
        )
    step = np.abs(np.diff(frame.place(np.array([[0.0, 0.0], [1.0, 1.0]])), axis=0)[0])
    return frame.model_copy(update={"decimals": _decimals(float(step.max())), "bend": _bend(frame, rim, step) + 1 / PER_PIXEL})


def _bend(frame: Frame, places: NDArray[np.float64], step: NDArray[np.float64]) -> float:
    """The most that the middle of a step along rows or columns, at `places`, leaves the straight line, in pixels of `step`."""
    worst = 0.0
    for way in ([LONGEST_STEP, 0], [0, LONGEST_STEP]):
        start, middle, end = (frame.place(places + share * np.array(way)) for share in (0, 0.5, 1))
        worst = max(worst, float(np.abs((middle - (start + end) / 2) / step).max()))
    return worst


def _rim(height: int, width: int) -> NDArray[np.float64]:
    """Points (line, col) all around an image, its upper left corner first."""
    share = np.linspace(0, 1, 33)
    zero, one = np.zeros(33), np.ones(33)
    sides = [(zero, share), (one, share), (share, zero), (share, one)]
    return np.concatenate([np.column_stack([line * height, col * width]) for line, col in sides])


def longest_slope(points: NDArray[np.int32], rings: NDArray[np.int64]) -> float:
    """Length in px of the longest edge of closed rings that follows neither rows nor columns; 0 where all do.

    No corner is nearer to such an edge than 1 / length: what bends less keeps every ring as it is.
    """
    edges = np.diff(points, axis=0)
    edges[rings[1:-1] - 1] = 0
    slanted = edges[(edges != 0).all(axis=1)].astype(np.float64)
    return float(np.hypot(slanted[:, 0], slanted[:, 1]).max(initial=0))


def _decimals(pixel: float) -> int:
    return min(max(math.ceil(math.log10(PER_PIXEL / pixel)), 0), 15) if pixel > 0 else 15


def cut(points: NDArray[np.int32], rings: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(points, where rings start) of closed rings whose edges are cut into steps of at most LONGEST_STEP px.

    The law: an edge is cut at the same points, to the bit, whichever way it is gone: neighbours still share all of them.
    """
    start = np.ones(len(points), bool)
    start[rings[1:] - 1] = False  # the last point of a ring starts no edge
    edge = np.flatnonzero(start)
    one, other = points[edge], points[edge + 1]
    swapped = (one[:, 0] > other[:, 0]) | ((one[:, 0] == other[:, 0]) & (one[:, 1] > other[:, 1]))
    steps = np.ones(len(points), np.int64)
    steps[edge] = np.maximum(-(-np.abs(other - one).max(axis=1, initial=1) // LONGEST_STEP), 1)
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])
    result = np.repeat(points.astype(np.float64), steps, axis=0)
    long = np.flatnonzero(steps[edge] > 1)
    count = steps[edge][long]
    owner = np.repeat(long, count)
    k = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    n = np.repeat(count, count)
    low = np.where(swapped[owner, None], other[owner], one[owner])
    high = np.where(swapped[owner, None], one[owner], other[owner])
    share = np.where(swapped[owner], n - k, k)
    between = low + (high - low) * share[:, None] / n[:, None]
    inner = k > 0
    result[(firsts[edge[owner]] + k)[inner]] = between[inner]
    return result, firsts[rings]
