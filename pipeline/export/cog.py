"""A mosaic as a Cloud Optimized GeoTIFF: class colours and names, no data, and the mosaic's own levels as overviews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from pipeline import mosaic, rasterwrite
from pipeline.export.levels import TILE, ExportedRaster, LabelLevels, Listener, Meaning, appearing
from pipeline.grid import Window
from pipeline.mosaic import Labels

_VRT_TYPES = {"uint8": "Byte", "uint16": "UInt16"}
_RAT_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
"""Name, type (0 integer, 2 string) and usage of each column of the attribute table, in GDAL's numbers."""


def write_cog(store: Path, out: Path, progress: Listener | None = None, *, overwrite: bool = False) -> ExportedRaster:
    """Write the mosaic at `store` to `out` as a Cloud Optimized GeoTIFF; memory does not grow with the image.

    Overviews are the mosaic's levels, byte for byte, so each is a mode; where the coarsest is longer than a tile, one more is
    halved by the same rule. No data is the mask's own code. A legend (GDAL's raster attribute table: value, class, red, green,
    blue) lies inside the file, with CF's `flag_values` and `flag_meanings`; up to 254 classes there is a colour table too.
    Where the image has no georeference but a known pixel size, the TIFF's resolution tags say it.

    The levels are written to files of their own beside `out` first, about as large as the result: the format wants the
    coarsest level in front. StoreError where `store` is no mosaic, or `out` exists and `overwrite` is
    not given; OutputError where the disk takes no more.
    """
    labels = LabelLevels.of(store, progress)
    with appearing(out, overwrite=overwrite) as folder:
        parts = folder / f"{out.name}.levels"
        parts.mkdir()
        shapes: list[tuple[int, int]] = []
        for level, shape in enumerate(labels.shapes):
            rasterwrite.write_tiled(parts / f"{level}.tif", shape, labels.dtype, TILE, labels.pieces(level))
            shapes.append(shape)
        if max(shapes[-1]) > TILE:
            smallest = _halved(labels)
            shapes.append(smallest.shape)
            rasterwrite.write_tiled(parts / f"{len(shapes) - 1}.tif", smallest.shape, labels.dtype, TILE, _whole(smallest))
        source = parts / "levels.vrt"
        source.write_bytes(_vrt(labels, shapes))
        rasterwrite.copy_as_cog(source, folder / out.name, TILE)
    return ExportedRaster(path=str(out), dtype=labels.dtype, levels=tuple(shapes), size_bytes=out.stat().st_size)


def _halved(labels: LabelLevels) -> Labels:
    """The mosaic's coarsest level at half its resolution."""
    level = len(labels.shapes) - 1
    coarsest = mosaic.read(labels.store, Window(0, 0, *labels.shapes[level]), level)
    return mosaic.halve(coarsest, len(labels.facts.classes))


def _whole(labels: Labels) -> Iterator[tuple[Window, Labels]]:
    yield Window(0, 0, *labels.shape), labels


def _vrt(labels: LabelLevels, shapes: list[tuple[int, int]]) -> bytes:
    """The files of the levels as one raster with overviews: GDAL's own description of such, and all that it should say."""
    grid = labels.facts.grid
    height, width = shapes[0]
    root = ET.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    if grid.crs_wkt:
        _add(root, "SRS", grid.crs_wkt)
    if grid.transform is not None:
        a, b, c, d, e, f = grid.transform
        _add(root, "GeoTransform", ", ".join(repr(value) for value in (c, a, b, f, d, e)))
    _metadata(root, {"model": labels.facts.model, "plan_digest": labels.plan_digest, **_resolution(labels)})
    band = ET.SubElement(root, "VRTRasterBand", dataType=_VRT_TYPES[labels.dtype], band="1")
    legend = labels.legend
    _metadata(band, _flags(legend))
    _add(band, "Description", "class")
    _add(band, "NoDataValue", str(labels.no_data))
    if labels.dtype == "uint8":
        _color_table(band, legend)
    _attribute_table(band, legend)
    _file(ET.SubElement(band, "SimpleSource"), 0)
    for level in range(1, len(shapes)):
        _file(ET.SubElement(band, "Overview"), level)
    text: bytes = ET.tostring(root, encoding="utf-8")
    return text


def _resolution(labels: LabelLevels) -> dict[str, str]:
    """Pixels per cm, where no georeference says how large a pixel is."""
    if labels.pixel_um is None or labels.facts.grid.transform is not None:
        return {}
    row_um, col_um = labels.pixel_um
    per_cm = {"TIFFTAG_XRESOLUTION": repr(1e4 / col_um), "TIFFTAG_YRESOLUTION": repr(1e4 / row_um)}
    return per_cm | {"TIFFTAG_RESOLUTIONUNIT": "3 (pixels/cm)"}


def _flags(legend: tuple[Meaning, ...]) -> dict[str, str]:
    """CF's words for a legend, as the mosaic itself has them."""
    return {
        "flag_values": ", ".join(str(meaning.code) for meaning in legend),
        "flag_meanings": " ".join(meaning.name.replace(" ", "_") for meaning in legend),
    }


def _color_table(band: ET.Element, legend: tuple[Meaning, ...]) -> None:
    """256 colours; values that mean nothing are black."""
    colors = np.zeros((256, 3), int)
    for meaning in legend:
        colors[meaning.code] = _channels(meaning)
    _add(band, "ColorInterp", "Palette")
    table = ET.SubElement(band, "ColorTable")
    for red, green, blue in colors.tolist():
        ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")


def _attribute_table(band: ET.Element, legend: tuple[Meaning, ...]) -> None:
    """The legend as GIS programs show it."""
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_RAT_COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            _add(column, key, value)
    for index, meaning in enumerate(legend):
        row = ET.SubElement(table, "Row", index=str(index))
        for text in (str(meaning.code), meaning.name, *map(str, _channels(meaning))):
            _add(row, "F", text)


def _channels(meaning: Meaning) -> tuple[int, ...]:
    """(red, green, blue)."""
    return tuple(bytes.fromhex(meaning.color[1:]))


def _file(parent: ET.Element, level: int) -> None:
    """Name the file of a level."""
    ET.SubElement(parent, "SourceFilename", relativeToVRT="1").text = f"{level}.tif"
    _add(parent, "SourceBand", "1")


def _metadata(parent: ET.Element, items: dict[str, str]) -> None:
    found = ET.SubElement(parent, "Metadata")
    for key, value in items.items():
        ET.SubElement(found, "MDI", key=key).text = value


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = text
