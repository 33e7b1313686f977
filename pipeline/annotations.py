"""What pathologists' annotation programs write: QuPath's classes within GeoJSON, and ASAP's XML."""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO
from xml.parsers import expat

import numpy as np

from pipeline.errors import TruthError

CLASSIFICATION = "classification"
"""Property of a QuPath object that holds its class; absent where it has none."""
QUPATH_MARKS = ("objectType", "object_type", "id")
"""Properties in which QuPath says what an object is; the last one up to version 0.2."""
QUPATH_OBJECTS = {
    *("annotation", "detection", "cell", "tile", "tmaCore", "tma_core", "root"),
    *("PathAnnotationObject", "PathDetectionObject", "PathCellObject", "PathTileObject", "TMACoreObject", "PathRootObject"),
}
"""What it says there."""
ASAP_GROUP = "PartOfGroup"
"""Attribute of an ASAP annotation, or of a group, that names the group that it belongs to."""
ASAP_AREAS = ("Polygon", "Spline", "Rectangle")
ASAP_KINDS = (*ASAP_AREAS, "Dot", "PointSet", "Measurement")
"""Types of ASAP annotations that are read. The vertices of a spline are joined by straight edges, as ASAP does for masks."""
_POINT, _LINE, _POLYGON, _MULTIPOINT = 1, 2, 3, 4
"""Geometry kinds of WKB."""


def is_qupath(properties: Mapping[str, object]) -> bool:
    """Whether the properties of a feature are those of a QuPath object."""
    return any(str(properties.get(mark)) in QUPATH_OBJECTS for mark in QUPATH_MARKS)


def class_name(value: Any) -> str:
    """The name in QuPath's description of a class, as an object or its JSON; any other text as it is.

    `{"name": "Tumor", "color": [200, 0, 0]}` is Tumor; a class derived from another, `{"names": ["Tumor", "Positive"]}`, is
    `Tumor: Positive`, as QuPath shows it; one without a name is null.
    """
    if isinstance(value, dict):
        return _named(value) or json.dumps(value)
    text = str(value)
    return _name_in(text) if text.startswith("{") else text


@lru_cache(maxsize=4096)
def _name_in(text: str) -> str:
    try:
        said = json.loads(text)
    except ValueError:
        return text
    return _named(said) or text


def _named(said: dict[str, Any]) -> str | None:
    if isinstance(said.get("names"), list):
        return ": ".join(map(str, said["names"])) or "null"
    return None if "name" not in said else str(said["name"] or "null")


@dataclass(frozen=True)
class AsapAnnotation:
    """One annotation of an ASAP file."""

    attributes: dict[str, str]
    """As the file has them: Name, Type, PartOfGroup, Color."""
    points: array[float] = field(default_factory=lambda: array("d"))
    """x, y of each vertex, in pixels of the image at full resolution, in the order of the file."""
    orders: array[int] = field(default_factory=lambda: array("q"))
    """Place of each vertex."""

    def wkb(self) -> bytes:
        """The geometry: an area, or what Dot, PointSet and Measurement are. Areas of one or two vertices collapse when mended."""
        points = np.frombuffer(self.points).reshape(-1, 2)[np.argsort(np.frombuffer(self.orders, np.int64), kind="stable")]
        kind = self.attributes.get("Type")
        if kind == "Measurement":
            return struct.pack("<BII", 1, _LINE, len(points)) + points.tobytes()
        if kind not in ASAP_AREAS:
            dots = [struct.pack("<BI", 1, _POINT) + point.tobytes() for point in points]
            return dots[0] if len(dots) == 1 else struct.pack("<BII", 1, _MULTIPOINT, len(dots)) + b"".join(dots)
        if not len(points):
            return struct.pack("<BII", 1, _POLYGON, 0)
        ring = np.concatenate([points, np.repeat(points[:1], max(1, 4 - len(points)), axis=0)])
        return struct.pack("<BIII", 1, _POLYGON, 1, len(ring)) + ring.tobytes()


@dataclass(frozen=True)
class AsapFile:
    """What an ASAP file holds."""

    annotations: list[AsapAnnotation] = field(default_factory=list)
    """In the order of the file."""
    groups: dict[str, str] = field(default_factory=dict)
    """Name of a group -> the group that it is part of, where it is part of one."""

    @property
    def fields(self) -> list[str]:
        """Names of the annotations' attributes; their group always, as any may be without one."""
        return list(dict.fromkeys([ASAP_GROUP, *(name for a in self.annotations for name in a.attributes)]))


def read_asap(uri: str, file: BinaryIO) -> AsapFile:
    """The ASAP annotations in `file`, which is at `uri`.

    A DOCTYPE is refused: it could name other files or make entities that grow without end. TruthError where the file is no
    XML of ASAP, or an annotation has a type or a coordinate that is not understood.
    """
    reader = _AsapReader(uri)
    try:
        reader.parser.ParseFile(file)
    except expat.ExpatError as e:
        raise TruthError(f"labels {uri} cannot be read: {e}. Fetch or make the file again") from e
    return reader.found


class _AsapReader:
    """Takes the elements of one file as they come."""

    def __init__(self, uri: str) -> None:
        self.found = AsapFile()
        self._uri, self._path = uri, list[str]()
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = lambda _: self._path.pop()

    def _refuse_doctype(self, *_: object) -> None:
        raise TruthError(
            f"labels {self._uri} have a DOCTYPE: it could name other files or grow without end, so it is not read. ASAP writes "
            "none: take that line out"
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != "ASAP_Annotations":
            raise TruthError(
                f"labels {self._uri} are no ASAP file: the root is <{name}>, not <ASAP_Annotations>. Write them with ASAP, or as "
                "GeoJSON from QuPath"
            )
        self._path.append(name)
        inside = self._path[1:]
        if inside == ["Annotations", "Annotation"]:
            self._annotation(attributes)
        elif inside[:2] == ["Annotations", "Annotation"] and name == "Coordinate":
            self._coordinate(self.found.annotations[-1], attributes)
        elif inside[:1] == ["AnnotationGroups"] and name == "Group":
            own, parent = attributes.get("Name", ""), attributes.get(ASAP_GROUP) or "None"
            if parent not in ("None", own):
                self.found.groups[own] = parent

    def _annotation(self, attributes: dict[str, str]) -> None:
        kind = attributes.get("Type")
        if kind not in ASAP_KINDS:
            raise TruthError(
                f"labels {self._uri}: annotation {attributes.get('Name')!r} has the type {kind!r}: what it covers is not known; "
                f"read are {', '.join(ASAP_KINDS)}. Take it out, or draw it as one of these"
            )
        self.found.annotations.append(AsapAnnotation(attributes))

    def _coordinate(self, annotation: AsapAnnotation, attributes: dict[str, str]) -> None:
        try:
            x, y = float(attributes["X"]), float(attributes["Y"])
            if not (math.isfinite(x) and math.isfinite(y)):
                raise ValueError("no place")
            annotation.orders.append(int(attributes.get("Order", len(annotation.orders))))
        except (KeyError, ValueError, OverflowError) as e:
            raise TruthError(
                f"labels {self._uri}: annotation {annotation.attributes.get('Name')!r} has the coordinate {attributes}, which is "
                "no X, Y and Order in numbers with decimal points. Correct it, or write the file again"
            ) from e
        annotation.points.extend((x, y))
