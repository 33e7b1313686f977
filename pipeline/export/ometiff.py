"""A mosaic as a pyramidal OME-TIFF of labels, of which both tifffile and OpenSlide find every level."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import tifffile

from pipeline import __version__
from pipeline.export.levels import TILE, ExportedRaster, LabelLevels, Listener, Meaning, appearing

OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
MOST_CLASSIC_BYTES = 4_000_000_000
"""Uncompressed size above which the file is a BigTIFF: a classic TIFF ends at 4 GiB."""
_REDUCED = 1
"""NewSubfileType of a page that shows another one smaller."""


def write_ome_tiff(store: Path, out: Path, progress: Listener | None = None, *, overwrite: bool = False) -> ExportedRaster:
    """Write the mosaic at `store` to `out` as an OME-TIFF with all its levels; memory does not grow with the image.

    Pixels are grey values that are the labels themselves, not colours: a palette would show classes in colour, but programs that
    look up the colour (OpenSlide does) could then no longer tell two classes of one colour, or count any. Names and colours
    of the classes are map annotations (`gigamask/class-names`, `gigamask/class-colors`) by label.

    Levels are SubIFDs of the first page, as OME-TIFF has it, and once more pages after it, as OpenSlide looks for them:

        page 0: level 0 ── next ──► copy of 1 ── next ──► copy of 2
                   └─ SubIFDs ────►    1            2

    The copies are entries of some hundred bytes each that point at the same tiles. Pixel sizes are in the OME-XML (µm, x and y
    apart) and in the resolution tags, from which OpenSlide takes them. OpenSlide is for 8 bits: masks of more than 254 classes
    have 16, which it would show as something else.

    StoreError where `store` is no mosaic, or `out` exists and `overwrite` is not given; OutputError where the disk takes no more.
    """
    labels = LabelLevels.of(store, progress)
    with appearing(out, overwrite=overwrite) as folder:
        draft = folder / out.name
        with tifffile.TiffWriter(draft, bigtiff=_is_big(labels), byteorder="<", ome=False) as file:
            for level in range(len(labels.shapes)):
                _write_level(file, labels, level)
        _chain_levels(draft)
    return ExportedRaster(path=str(out), dtype=labels.dtype, levels=labels.shapes, size_bytes=out.stat().st_size)


def _is_big(labels: LabelLevels) -> bool:
    itemsize = np.dtype(labels.dtype).itemsize
    return sum((height + TILE) * (width + TILE) * itemsize for height, width in labels.shapes) > MOST_CLASSIC_BYTES


def _write_level(file: tifffile.TiffWriter, labels: LabelLevels, level: int) -> None:
    first: dict[str, Any] = {"description": _ome_xml(labels), "subifds": len(labels.shapes) - 1 or None}
    per_cm = None
    if labels.pixel_um is not None:
        row_um, col_um = labels.pixel_um
        per_cm = (1e4 / col_um / 2**level, 1e4 / row_um / 2**level)
    file.write(
        _tiles(labels, level),
        shape=labels.shapes[level],
        dtype=labels.dtype,
        tile=(TILE, TILE),
        compression="zlib",
        photometric="minisblack",
        resolution=per_cm,
        resolutionunit=None if per_cm is None else "CENTIMETER",
        software=f"gigamask {__version__}",
        metadata=None,
        **({"subfiletype": _REDUCED} if level else first),
    )


def _tiles(labels: LabelLevels, level: int) -> Iterator[bytes]:
    """The deflated tiles of a level, row by row; what lies over the edge is no data."""
    for _, piece in labels.pieces(level):
        for col in range(0, piece.shape[1], TILE):
            part = piece[:, col : col + TILE]
            tile = np.full((TILE, TILE), labels.no_data, np.dtype(labels.dtype).newbyteorder("<"))
            tile[: part.shape[0], : part.shape[1]] = part
            yield zlib.compress(tile.tobytes())


def _ome_xml(labels: LabelLevels) -> bytes:
    """The OME metadata, in ASCII as TIFF wants it."""
    height, width = labels.shapes[0]
    root = ET.Element("OME", {"xmlns": OME, "Creator": f"gigamask {__version__}"})
    image = ET.SubElement(root, "Image", ID="Image:0", Name=labels.image)
    size = {"SizeX": width, "SizeY": height, "SizeZ": 1, "SizeC": 1, "SizeT": 1}
    stored = {"ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": labels.dtype}
    counts = {name: str(value) for name, value in size.items()}
    pixels = ET.SubElement(image, "Pixels", stored | counts | _physical_size(labels))
    ET.SubElement(pixels, "Channel", ID="Channel:0:0", Name="class", SamplesPerPixel="1")
    ET.SubElement(pixels, "TiffData", IFD="0", PlaneCount="1")
    annotations = ET.SubElement(root, "StructuredAnnotations")
    legend = labels.legend
    for index, (name, values) in enumerate((("class-names", _names(legend)), ("class-colors", _colors(legend)))):
        key = f"Annotation:{index}"
        ET.SubElement(image, "AnnotationRef", ID=key)
        value = ET.SubElement(ET.SubElement(annotations, "MapAnnotation", ID=key, Namespace=f"gigamask/{name}"), "Value")
        for code, text in values.items():
            ET.SubElement(value, "M", K=str(code)).text = text
    document: bytes = ET.tostring(root, encoding="us-ascii")
    return document


def _physical_size(labels: LabelLevels) -> dict[str, str]:
    if labels.pixel_um is None:
        return {}
    row_um, col_um = labels.pixel_um
    micrometres = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    return {"PhysicalSizeX": repr(col_um), "PhysicalSizeY": repr(row_um), **micrometres}


def _names(legend: tuple[Meaning, ...]) -> dict[int, str]:
    return {meaning.code: meaning.name for meaning in legend}


def _colors(legend: tuple[Meaning, ...]) -> dict[int, str]:
    return {meaning.code: meaning.color for meaning in legend}


def _chain_levels(path: Path) -> None:
    """Append a copy of each SubIFD of the first page to the chain of pages.

    An IFD is a count, so many entries and the place of the next one; entries name places in the file, so a copy means the same
    wherever it stands.
    """
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        places = [first.offset, *(first.subifds or ())]
        count, entry, link = ("<Q", 20, "<Q") if file.is_bigtiff else ("<H", 12, "<I")
    with path.open("r+b") as target:
        before = 0
        for place in places:
            target.seek(place)
            entries = target.read(struct.calcsize(count))
            ifd = entries + target.read(entry * struct.unpack(count, entries)[0])
            if place != first.offset:
                place = target.seek(0, 2)
                place += place % 2
                target.seek(place)
                target.write(ifd + struct.pack(link, 0))
                target.seek(before)
                target.write(struct.pack(link, place))
            before = place + len(ifd)
