"""How reference labels are laid over a mask: on the same grid, by nearest neighbour where that is wanted, or not at all; and what
polygons mean in its classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field
from pydantic.main import IncEx

from pipeline.annotations import CLASSIFICATION
from pipeline.card import ClassInfo, background, digest_of
from pipeline.config import TruthConfig
from pipeline.errors import TruthError
from pipeline.image import METRES, Affine6, FileSet, Frozen, SourceInfo, WorkingGrid

Bounds = tuple[float, float, float, float]
"""(least x, least y, greatest x, greatest y)."""
PIXEL = "pixel"
"""truth.crs of coordinates that are the image's own pixels: (column, row), from the corner of the first one."""
NOT_LABELLED = "none"
"""truth.background where pixels that no polygon covers are not labelled."""
ANY = "*"
"""Stands for every value that is not named, in truth.classes and truth.ignore."""
GEOJSON, ASAP = "GeoJSON", "ASAP"
"""LayerInfo.driver of GeoJSON, and of ASAP's XML, whose coordinates are always the image's own pixels."""
LON_LAT = (None, "EPSG:4326", "OGC:CRS84")
"""What a GeoJSON file is in that names no coordinate system."""
SIZE_SLACK = 0.01
"""Share by which the size of label pixels may be rounded, or differ between rows and columns."""
MICRON = METRES["micrometre"]
AREAS = ("Polygon", "MultiPolygon")
SHAPES = (*AREAS, "Point", "MultiPoint", "LineString", "MultiLineString")


class MaskFacts(Frozen):
    """What must be known of a mask to score it."""

    image: str
    """URI of the image that it belongs to."""
    model: str
    """Name of the model that made it."""
    classes: tuple[ClassInfo, ...]
    """By code."""
    grid: WorkingGrid
    native_shape: tuple[int, int]
    """(height, width) of the image before resampling."""


class LayerInfo(FileSet):
    """What one layer of a vector file holds."""

    driver: str
    """The format's short name in its reader, such as GPKG."""
    layer: str
    """Name of the layer; of GeoParquet, the column of geometries."""
    crs: str | None = None
    """Coordinate reference system, in whatever text the file has."""
    field: str | None = None
    """The attribute that names classes; None where that was not asked for."""
    fields: tuple[str, ...] = ()
    """Names of the attributes, the first hundred."""
    values: dict[str, int] = Field(default_factory=dict)
    """Text of each value of `field` -> features with it."""
    kinds: dict[str, int] = Field(default_factory=dict)
    """Geometry kind, such as MultiPolygon -> features of it."""
    empty: int = 0
    """Features without a geometry."""
    invalid: int = 0
    """Features whose geometry crosses itself or is broken in another way that can be mended."""
    bounds: Bounds | None = None
    """Extent in the file's coordinates; None where nothing has one."""
    longest: float = 0.0
    """Length of the longest straight edge, in the file's units."""
    indexed: bool = False
    """Whether the file finds features near a place without being read whole."""
    groups: dict[str, str] = Field(default_factory=dict)
    """Text of a value of `field` -> the value that it is part of, where the file has groups of groups."""


class Polygons(Frozen):
    """Polygons on an image's working grid: a pixel takes the code of the last one in the file that its centre lies in."""

    layer: LayerInfo
    codes: dict[str, int]
    """Text of a value of the layer's field -> class code; without a field, empty text -> the code of every polygon."""
    rest: int
    """Code of pixels whose centre lies in no polygon."""
    transform: Affine6
    """Working pixel corners to the coordinates of `grid_crs_wkt`."""
    grid_crs_wkt: str | None = None
    """Coordinate system of the image; None where the file's coordinates are the image's own pixels."""
    crs_wkt: str | None = None
    """Coordinate system of the file's coordinates; None as above."""
    stated_crs: str | None = None
    """truth.crs, where that spoke instead of the file."""
    buffer_m: float = 0.0
    """What polygons grow by, in metres on the ground; below 0 they shrink."""
    pixel_size_m: tuple[float, float] | None = None
    """Size (row, col) of a working pixel in metres, on the ground or on the slide; None where the image does not tell, and then
    there is no buffer."""

    @property
    def uri(self) -> str:
        """Absolute path of the file."""
        return self.layer.uri

    def coarser(self, rows: float, cols: float) -> Polygons:
        """The same on a grid with pixels of `rows` x `cols` of this one's."""
        a, b, c, d, e, f = self.transform
        size = self.pixel_size_m and (self.pixel_size_m[0] * rows, self.pixel_size_m[1] * cols)
        return self.model_copy(update={"transform": (a * cols, b * rows, c, d * cols, e * rows, f), "pixel_size_m": size})


class TruthSpec(Frozen):
    """Reference labels on an image's working grid. Of a label raster, pixel (i, j) is label pixel
    (floor((i + 0.5) * scale_row + offset_row), floor((j + 0.5) * scale_col + offset_col))."""

    source: SourceInfo | Polygons
    """Header of the label raster, or the polygons that are burnt."""
    codes: dict[int, int] = Field(default_factory=dict)
    """Label value -> class code, of a label raster."""
    ignore: tuple[int, ...] = ()
    """Values of a label raster that mean `not labelled`."""
    others: int | None = None
    """Code of values of a label raster that `codes` does not name; None: not labelled, and counted as unknown."""
    scale_row: float = 1.0
    scale_col: float = 1.0
    offset_row: float = 0.0
    offset_col: float = 0.0
    area: Polygons | None = None
    """Polygons outside of which nothing is labelled (code 1 inside, 0 outside); None: no such limit."""

    @property
    def digest(self) -> str:
        """Hash of all that determines the reference labels. Coordinate systems follow from the files, and have several texts."""
        return digest_of(self.model_dump(mode="json", exclude={"source": _texts(self.source), "area": _texts(self.area)}))

    @property
    def row_px(self) -> float:
        """Label pixels that are read for a working row."""
        return self.source.width * self.scale_row if isinstance(self.source, SourceInfo) else 1.0

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know of labels that are polygons, or have an area."""
        told = [note for part in (self.source, self.area) if isinstance(part, Polygons) for note in _mended(part.layer)]
        told += [note for part in (self.source, self.area) if isinstance(part, Polygons) for note in _guessed(part)]
        if isinstance(self.source, Polygons) and self.area is None:
            told.append("no truth.area says where labels were drawn: the whole image counts as labelled")
        return told

    def coarser(self, rows: float, cols: float) -> TruthSpec:
        """The same labels on a grid with pixels of `rows` x `cols` of this one's."""
        area = self.area and self.area.coarser(rows, cols)
        if isinstance(self.source, Polygons):
            return self.model_copy(update={"source": self.source.coarser(rows, cols), "area": area})
        return self.model_copy(update={"scale_row": self.scale_row * rows, "scale_col": self.scale_col * cols, "area": area})


def plan_truth(config: TruthConfig, truth: SourceInfo, mask: MaskFacts) -> TruthSpec:
    """How the label raster `truth` is read on the grid of `mask`.

    Where they differ, `truth.resample` set: by georeference where both have one; else by size where `truth.mpp` states it;
    else by shape, where the labels have the image's own or a whole part of it. TruthError that prints both grids where they
    cannot be brought together so.
    """
    for key in ("field", "constant", "background", "buffer_m", "layer", "crs"):
        if getattr(config, key) is not None:
            raise TruthError(
                f"truth.{key} is for polygons, and labels {truth.uri} are a raster. Take it out, or name a vector file"
            )
    codes = truth_codes(config, mask.classes)
    spec = TruthSpec(source=truth, codes=codes, ignore=tuple(sorted(config.ignored)))
    grid, both = mask.grid, _both_grids(truth, mask)
    sized = None if config.label_mpp is None else _by_size(truth, mask, config.label_mpp)
    if same_grid(truth, grid):
        return spec
    if config.resample is None:
        size = "" if truth.transform or config.mpp else ", and truth.mpp, the µm of a label pixel, where shapes do not tell"
        raise TruthError(
            f"labels and mask lie on different grids:\n{both}\nSet truth.resample: nearest to bring them together{size}"
        )
    if truth.transform is not None and grid.transform is not None:
        return spec.model_copy(update=_by_georeference(truth, mask))
    if truth.transform is not None:
        raise TruthError(f"labels have a georeference and the mask has none, so they cannot be laid over it:\n{both}")
    if sized is None and not _whole_part(truth, mask.native_shape):
        raise TruthError(
            f"labels cannot be laid over the mask: they have neither the image's own shape, nor a half, a third or another whole "
            f"part of it, and no georeference:\n{both}\nState the size of a label pixel in µm under truth.mpp"
        )
    return spec.model_copy(update=sized or _by_shape(truth, mask))


def plan_area_raster(area: SourceInfo, mask: MaskFacts) -> TruthSpec:
    """How a raster whose values say what is inside (not 0) is read on the grid of `mask`: codes 0 outside, 1 inside, and 2 where
    the raster does not reach or has no data.

    By georeference where both have one; else it covers the whole image at whatever resolution. TruthError where neither holds.
    """
    spec = TruthSpec(source=area, codes={0: 0}, others=1)
    if same_grid(area, mask.grid):
        return spec
    if area.transform is not None and mask.grid.transform is not None:
        return spec.model_copy(update=_by_georeference(area, mask))
    height, width = mask.native_shape
    rows, cols = height * area.width / width, width * area.height / height
    alike = abs(rows - area.height) < max(1.0, SIZE_SLACK * rows) or abs(cols - area.width) < max(1.0, SIZE_SLACK * cols)
    if area.transform is not None or not alike:
        raise TruthError(
            f"{area.uri} cannot be laid over {mask.image}: there is no georeference on both, and its shape is not that of the "
            f"whole image, larger or smaller:\n{_both_grids(area, mask)}\nDraw it over the whole image, or as polygons"
        )
    return spec.model_copy(update=_by_shape(area, mask))


def _by_georeference(truth: SourceInfo, mask: MaskFacts) -> dict[str, float]:
    """Scales and offsets of labels that have a georeference, as the mask has."""
    assert truth.transform is not None
    assert mask.grid.transform is not None
    if not same_crs(truth.crs_wkt, mask.grid.crs_wkt):
        raise TruthError(
            f"labels and mask have different coordinate systems:\n{_both_grids(truth, mask)}\nReproject the labels first"
        )
    a, b, c, d, e, f = _between(mask.grid.transform, truth.transform)
    if max(abs(b), abs(d)) > 1e-6:
        raise TruthError(
            f"labels are rotated against the mask:\n{_both_grids(truth, mask)}\nResample the labels to the image's grid first"
        )
    return {"scale_row": e, "offset_row": f, "scale_col": a, "offset_col": c}


def _by_shape(truth: SourceInfo, mask: MaskFacts) -> dict[str, float]:
    """Scales of labels that cover the whole image."""
    height, width = mask.native_shape
    return {
        "scale_row": mask.grid.scale_row * truth.height / height,
        "scale_col": mask.grid.scale_col * truth.width / width,
    }


def _by_size(truth: SourceInfo, mask: MaskFacts, mpp: tuple[float, float]) -> dict[str, float]:
    """Scales of labels whose pixels are of `mpp` (row, col) micrometres, from the common upper left corner.

    Label pixels must cover the image to a label pixel and SIZE_SLACK. Beyond the pixel, which a level's rounded shape explains,
    the stated size is rounded itself, and would lead astray with every pixel: then the shapes tell.
    """
    grid = mask.grid
    if truth.transform is not None:
        raise TruthError(
            f"truth.mpp states the size of label pixels, and labels {truth.uri} have a georeference that does. Take it out"
        )
    if grid.pixel_size_m is None:
        raise TruthError(
            f"truth.mpp: {mask.image} does not say how large its pixels are, so labels with pixels of {mpp[0]:g} x {mpp[1]:g} µm "
            "cannot be laid over it by size. State its own under archive.mpp, or take truth.mpp out where shapes tell"
        )
    working = [size / MICRON for size in grid.pixel_size_m]
    native = [size / scale for size, scale in zip(working, (grid.scale_row, grid.scale_col), strict=True)]
    image = [pixels * size for pixels, size in zip(mask.native_shape, native, strict=True)]
    labels = [pixels * size for pixels, size in zip((truth.height, truth.width), mpp, strict=True)]
    off = [abs(theirs - own) for theirs, own in zip(labels, image, strict=True)]
    if any(o > size + SIZE_SLACK * own for o, size, own in zip(off, mpp, image, strict=True)):
        raise TruthError(
            f"truth.mpp: labels {truth.uri} cover {labels[0]:,.2f} x {labels[1]:,.2f} µm ({truth.height} x {truth.width} px of "
            f"{mpp[0]:g} x {mpp[1]:g} µm), and {mask.image} {image[0]:,.2f} x {image[1]:,.2f} µm ({mask.native_shape[0]} x "
            f"{mask.native_shape[1]} px of {native[0]:g} x {native[1]:g} µm): they would lie in the wrong place. Correct "
            "truth.mpp, or archive.mpp where the image's is wrong"
        )
    if any(o > size * (1 + 1e-6) for o, size in zip(off, mpp, strict=True)):
        return _by_shape(truth, mask)
    return {"scale_row": working[0] / mpp[0], "scale_col": working[1] / mpp[1]}


def _whole_part(truth: SourceInfo, native_shape: tuple[int, int]) -> bool:
    """Whether labels have the image's own shape, or that of one of its halves, thirds, quarters...: to a pixel, and both axes
    alike to SIZE_SLACK or rounded alike."""
    shape, (height, width) = (truth.height, truth.width), native_shape
    if shape == native_shape:
        return True
    rows, cols = height / shape[0], width / shape[1]
    for parts in {round(rows), round(cols)} - {0, 1}:
        exact = height / parts, width / parts
        alike = abs(rows / cols - 1) <= SIZE_SLACK or any(
            shape == tuple(int(rounded(side)) for side in exact) for rounded in (math.floor, math.ceil, round)
        )
        if alike and all(abs(side - whole) <= 1 for side, whole in zip(shape, exact, strict=True)):
            return True
    return False


def in_pixels(layer: LayerInfo, grid: WorkingGrid, stated: str | None) -> bool:
    """Whether a file's coordinates are the image's own pixels: truth.crs says so, the format knows nothing else, or neither the
    image nor the file has a georeference. GeoJSON that names no coordinate system is not taken for degrees then."""
    if stated is not None:
        return stated == PIXEL
    bare = grid.transform is None and grid.crs_wkt is None
    return layer.driver == ASAP or (bare and layer.crs in (LON_LAT if layer.driver == GEOJSON else (None,)))


def like_degrees(polygons: Polygons) -> bool:
    """Whether coordinates that were taken for pixels, though neither truth.crs nor QuPath says so, could be degrees."""
    layer = polygons.layer
    told = polygons.stated_crs is not None or CLASSIFICATION in layer.fields or "objectType" in layer.fields
    guessed = polygons.crs_wkt is None and layer.driver == GEOJSON and not told
    return guessed and layer.bounds is not None and _within(layer.bounds, (-180, -90, 180, 90))


def _within(inner: Bounds, outer: Bounds) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _guessed(polygons: Polygons) -> list[str]:
    if not like_degrees(polygons):
        return []
    return [f"{Path(polygons.uri).name}: coordinates up to 180 and 90 were taken for pixels, as the image has no georeference"]


def truth_codes(config: TruthConfig, classes: tuple[ClassInfo, ...]) -> dict[int, int]:
    """Value of a label raster -> class code: the configuration's word, else the model card's."""
    named = config.numbered
    if named is None:
        return {code if c.value is None else c.value: code for code, c in enumerate(classes) if c.value not in config.ignore}
    code_of = _code_of(named.values(), "truth.classes", classes)
    return {value: code_of[name] for value, name in named.items()}


def polygon_codes(config: TruthConfig, layer: LayerInfo, classes: tuple[ClassInfo, ...]) -> dict[str, int]:
    """Text of a value of the layer's field -> class code, or the number of classes where it is ignored.

    Without truth.field every polygon is of one class: truth.constant, else the one beside `background`. TruthError where values
    are neither classes nor ignored: all are known before anything runs, so none needs to be left out in silence.
    """
    if layer.field is None:
        return {"": _constant(config, layer, classes)} if layer.kinds or layer.empty or config.constant else {}
    if config.classes is None:
        meaning = {str(code if c.value is None else c.value): code for code, c in enumerate(classes)}
        meaning |= {c.name: code for code, c in enumerate(classes)}
    else:
        code_of = _code_of(config.classes.values(), "truth.classes", classes)
        meaning = {str(value): code_of[name] for value, name in config.classes.items()}
    meaning |= {str(value): len(classes) for value in config.ignore}
    codes = {value: meaning.get(_known(value, meaning, layer.groups), meaning.get(ANY)) for value in layer.values}
    unknown = [f"{value!r} ({layer.values[value]:,})" for value, code in codes.items() if code is None]
    if unknown:
        more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise TruthError(
            f"labels {layer.uri}: field {layer.field!r} names what is no class (features): {', '.join(unknown[:12])}{more}. "
            f"Name them under truth.classes (the model knows {', '.join(c.name for c in classes)}) or truth.ignore; "
            f"{ANY!r} there stands for all others"
        )
    return {value: code for value, code in codes.items() if code is not None}


def _known(value: str, meaning: dict[str, int], groups: dict[str, str]) -> str:
    """`value`, or the nearest group around it that has a meaning; itself where none has."""
    found, around = value, {value}
    while found not in meaning and groups.get(found, value) not in around:
        found = groups[found]
        around.add(found)
    return found if found in meaning else value


def rest_code(config: TruthConfig, classes: tuple[ClassInfo, ...]) -> int:
    """Code of labelled pixels in no polygon: truth.background, else the class `background`, else not labelled."""
    known = background(classes)
    if config.background is None:
        return len(classes) if known is None else known
    if config.background == NOT_LABELLED and NOT_LABELLED not in [c.name for c in classes]:
        return len(classes)
    return _code_of([config.background], "truth.background", classes)[config.background]


def check_kinds(layer: LayerInfo, buffer_m: float) -> None:
    """TruthError where a layer holds what has no area, or curves."""
    strange = {kind: count for kind, count in layer.kinds.items() if kind not in SHAPES}
    thin = {kind: count for kind, count in layer.kinds.items() if kind in SHAPES and kind not in AREAS}
    if strange:
        raise TruthError(
            f"labels {layer.uri} hold {_counted(strange)}: read are polygons with straight edges. "
            f"Convert: ogr2ogr -nlt CONVERT_TO_LINEAR -explodecollections labels.gpkg {Path(layer.uri).name}"
        )
    if thin and buffer_m <= 0:
        raise TruthError(
            f"labels {layer.uri} hold {_counted(thin)}: these have no area, so no pixel is inside. Give polygons; or, where a "
            "strip or disc around each is what is meant, its half width in metres under truth.buffer_m"
        )


def beside(pattern: str, image: Path) -> Path:
    """The path that a pattern with `{stem}` and `{dir}` names for an image."""
    values = {"stem": image.stem, "dir": str(image.parent)}
    return Path(re.sub(r"\{(stem|dir)\}", lambda match: values[match[1]], pattern))


def for_each_image(pattern: str | None) -> bool:
    """Whether labels are a file an image: none named, or a pattern that differs from image to image."""
    return pattern is None or "{" in pattern


def _constant(config: TruthConfig, layer: LayerInfo, classes: tuple[ClassInfo, ...]) -> int:
    """Code of every polygon."""
    if config.constant is not None:
        return _code_of([config.constant], "truth.constant", classes)[config.constant]
    others = [code for code in range(len(classes)) if code != background(classes)]
    if len(others) == 1:
        return others[0]
    raise TruthError(
        f"labels {layer.uri}: nothing says which class a polygon is. Name the field that tells it under truth.field (there are "
        f"{', '.join(layer.fields) or 'none'}), or one class for all under truth.constant (the model knows "
        f"{', '.join(c.name for c in classes)})"
    )


def _code_of(names: Iterable[str], key: str, classes: tuple[ClassInfo, ...]) -> dict[str, int]:
    """Class name -> code; TruthError where `names`, which stand at `key`, has others."""
    code_of = {c.name: code for code, c in enumerate(classes)}
    unknown = sorted(set(names) - set(code_of))
    if unknown:
        raise TruthError(f"{key} names {', '.join(unknown)}; the model knows {', '.join(code_of)}: name those")
    return code_of


def _counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(kinds.items()))


def _mended(layer: LayerInfo) -> list[str]:
    name, told = Path(layer.uri).name, []
    if layer.invalid:
        told.append(f"{name}: {layer.invalid:,} of {sum(layer.kinds.values()):,} shapes crossed themselves and were mended")
    if layer.empty:
        told.append(f"{name}: {layer.empty:,} features have no geometry")
    return told


def same_crs(one: str | None, other: str | None) -> bool:
    """Whether two WKT texts are the same, or end in the same registered code: one system has several texts."""
    if one is None or other is None or one == other:
        return one == other
    codes = [re.search(r'ID\["(\w+)",(\d+)\]\]$', text) for text in (one, other)]
    return all(codes) and len({code.groups() for code in codes if code}) == 1


def same_grid(truth: SourceInfo, grid: WorkingGrid) -> bool:
    """Whether a label raster's pixels are the mask's: shape, coordinate system, and corners within 1 % of a pixel."""
    if (truth.height, truth.width) != grid.shape:
        return False
    if truth.transform is None or grid.transform is None:
        return truth.transform is None and grid.transform is None
    if not same_crs(truth.crs_wkt, grid.crs_wkt):
        return False
    a, b, c, d, e, f = _between(grid.transform, truth.transform)
    corners = ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height))
    return all(abs(a * x + b * y + c - x) < 0.01 and abs(d * x + e * y + f - y) < 0.01 for x, y in corners)


def inverse(transform: Affine6) -> Affine6:
    """From coordinates back to pixel (col, row)."""
    a, b, c, d, e, f = transform
    det = a * e - b * d
    return e / det, -b / det, (b * f - e * c) / det, -d / det, a / det, (d * c - a * f) / det


def _between(start: Affine6, end: Affine6) -> Affine6:
    """The map from pixel (col, row) of `start` to pixel (col, row) of `end`: inverse(end) after start."""
    a, b, c, d, e, f = end
    det = a * e - b * d
    ia, ib, id_, ie = e / det, -b / det, -d / det, a / det
    sa, sb, sc, sd, se, sf = start
    x, y = sc - c, sf - f
    return (
        ia * sa + ib * sd,
        ia * sb + ib * se,
        ia * x + ib * y,
        id_ * sa + ie * sd,
        id_ * sb + ie * se,
        id_ * x + ie * y,
    )


def _texts(part: SourceInfo | Polygons | None) -> IncEx | bool:
    """What of labels or their area the digest leaves out: what follows from files that are in it, and the area that is not there.

    A slide's pixel size may be stated in the configuration instead, so it stays where a buffer is measured by it. The list of
    files beside a single file is empty and left out, which keeps the digests of scores made before there was such a list.
    """
    if part is None:
        return True
    files = part.layer if isinstance(part, Polygons) else part
    alone = {} if files.beside else {"beside": True}
    texts: dict[str, IncEx | bool] = {"crs_wkt": True, "grid_crs_wkt": True, "layer": {"crs": True, **alone}, **alone}
    decides = isinstance(part, Polygons) and part.grid_crs_wkt is None and part.buffer_m != 0
    return texts if decides else texts | {"pixel_size_m": True}


def _both_grids(truth: SourceInfo, mask: MaskFacts) -> str:
    height, width = mask.native_shape
    native = "" if mask.native_shape == mask.grid.shape else f", of an image of {height} x {width} px"
    return f"labels {truth.uri}: {_grid_text(truth)}\nmask of {mask.image}: {_grid_text(mask.grid)}{native}"


def _grid_text(grid: SourceInfo | WorkingGrid) -> str:
    size = "" if grid.transform or not grid.pixel_size_m else f", pixels of {_microns(grid.pixel_size_m)} µm"
    crs = "no CRS" if grid.crs_wkt is None else grid.crs_wkt.split('"')[1] if '"' in grid.crs_wkt else grid.crs_wkt[:60]
    return f"{grid.height} x {grid.width} px{size}, {crs}, transform {grid.transform}"


def _microns(size_m: tuple[float, float]) -> str:
    return f"{size_m[0] / MICRON:g} x {size_m[1] / MICRON:g}"
