"""The export of a mosaic: which writer takes it, and what is said of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rich.table import Table

from flows.views import MIB, OUT, _json, _plain
from pipeline.errors import ConfigError
from pipeline.export.levels import ExportedRaster, Listener
from pipeline.export.polygons import Exported, Target, Wanted, default_output, export_polygons
from pipeline.export.vectors import SUFFIXES

RASTERS = {"cog": (".tif", ".tiff"), "ome-tiff": (".ome.tif", ".ome.tiff")}
"""Endings of raster outputs, the usual one first."""
PLACES = {
    "pixels": "pixels of the full-resolution image",
    "crs": "the image's coordinate system",
    "lonlat": "longitude and latitude (WGS 84)",
}
"""What the coordinates of polygons are."""


def export(
    store: Path, to: str, out: Path | None, wanted: dict[str, Any], progress: Listener, *, overwrite: bool
) -> Exported | ExportedRaster:
    """Export the mosaic at `store` to `out`; None: beside it."""
    if to not in (*SUFFIXES, *RASTERS):
        raise ConfigError(f"--to {to}: not a format that is written. Choose one of {', '.join((*SUFFIXES, *RASTERS))}")
    store = store.resolve()
    given = Wanted(**wanted)
    if to in SUFFIXES:
        path = (out or default_output(store, SUFFIXES[to][0])).resolve()
        return export_polygons(store, path, cast(Target, to), given, progress, overwrite=overwrite)
    if given != Wanted():
        raise ConfigError(f"--to {to} writes the mask as it is: --class, --all, --min-area and --tolerance are for polygons")
    return _raster(store, to, (out or default_output(store, RASTERS[to][0])).resolve(), progress, overwrite=overwrite)


def _raster(store: Path, to: str, out: Path, progress: Listener, *, overwrite: bool) -> ExportedRaster:
    from pipeline.export import cog, ometiff

    if not out.name.lower().endswith(RASTERS[to]):
        raise ConfigError(f"--out {out}: {to} files end in {' or '.join(RASTERS[to])}")
    writer = {"cog": cog.write_cog, "ome-tiff": ometiff.write_ome_tiff}[to]
    return writer(store, out, progress, overwrite=overwrite)


def show_exported(exported: Exported | ExportedRaster, *, as_json: bool) -> None:
    """What was written."""
    if as_json:
        _json(exported.model_dump(mode="json"))
    elif isinstance(exported, ExportedRaster):
        levels = ", ".join(f"{height}×{width}" for height, width in exported.levels)
        OUT.print(f"{exported.path}: {exported.dtype}, levels {levels}, {exported.size_bytes / MIB:,.1f} MiB", markup=False)
    else:
        _show_polygons(exported)


def _show_polygons(exported: Exported) -> None:
    unit = {"m2": "m²", "um2": "µm²"}[exported.unit] if exported.pixel_area is not None else "px"
    size = exported.pixel_area or 1
    table = Table(title=f"{_plain(exported.out)}, in {PLACES[exported.coordinates]}")
    for column in ("class", "polygons", f"area, {unit}", "too small", f"their area, {unit}"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for one in exported.classes:
        area, lost = (f"{px * size:,.6g}" for px in (one.area_px, one.left_out_px))
        table.add_row(_plain(one.name), f"{one.features:,}", area, f"{one.left_out:,}", lost)
    OUT.print(table)
    speed = exported.pixels / 1e6 / max(exported.seconds, 1e-3)
    OUT.print(
        f"{sum(one.features for one in exported.classes):,} polygons, {exported.points:,} points, "
        f"{exported.size_bytes / MIB:,.1f} MiB in {exported.seconds:.1f} s ({speed:.1f} Mpx/s)"
    )
    if exported.mended:
        OUT.print(
            f"{exported.mended:,} polygons were mended: in longitude and latitude their edges crossed by a small part of a pixel"
        )
