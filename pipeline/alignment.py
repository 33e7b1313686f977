"""How reference labels are laid over a mask: on the same grid, by nearest neighbour where that is wanted, or not at all; and what
polygons mean in its classes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field
from pydantic.main import IncEx

from pipeline.card import ClassInfo, background, digest_of
from pipeline.config import TruthConfig
from pipeline.errors import TruthError
from pipeline.image import Affine6, Frozen, SourceInfo, WorkingGrid
from pipeline.plan import MaskFacts

Bounds = tuple[float, float, float, float]
"""(least x, least y, greatest x, greatest y)."""
PIXEL = "pixel"
"""truth.crs of coordinates that are the image's own pixels: (column, row), from the corner of the first one."""
NOT_LABELLED = "none"
"""truth.background where pixels that no polygon covers are not labelled."""
ANY = "*"
"""Stands for every value that is not named, in truth.classes and truth.ignore."""
AREAS = ("Polygon", "MultiPolygon")
SHAPES = (*AREAS, "Point", "MultiPoint", "LineString", "MultiLineString")


class LayerInfo(Frozen):
    """What one layer of a vector file holds."""

    uri: str
    """Absolute path."""
    driver: str
    """The format's short name in its reader, such as GPKG."""
    layer: str
    """Name of the layer; of GeoParquet, the column of geometries."""
    size_bytes: int
    """Of the file and of those that belong to it: with `mtime_ns` its identity."""
    mtime_ns: int
    """Latest change, in nanoseconds."""
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
    """Ground size (row, col) of a working pixel; None where the image does not tell, and then there is no buffer."""

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
    scale_row: float = 1.0
    scale_col: float = 1.0
    offset_row: float = 0.0
    offset_col: float = 0.0
    area: Polygons | None = None
    """Polygons outside of which nothing is labelled (code 1 inside, 0 outside); None: no such limit."""

    @property
    def digest(self) -> str:
        """Hash of all that determines the reference labels. Coordinate systems follow from the files, and have several texts."""
        texts: dict[str, IncEx | bool] = {"crs_wkt": True, "grid_crs_wkt": True, "pixel_size_m": True, "layer": {"crs": True}}
        return digest_of(self.model_dump(mode="json", exclude={"source": texts, "area": self.area is None or texts}))

    @property
    def row_px(self) -> float:
        """Label pixels that are read for a working row."""
        return self.source.width * self.scale_row if isinstance(self.source, SourceInfo) else 1.0

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know of labels that are polygons, or have an area."""
        told = [note for part in (self.source, self.area) if isinstance(part, Polygons) for note in _mended(part.layer)]
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

    TruthError that prints both grids where they differ and `truth.resample` is not set, or cannot be brought together.
    """
    for key in ("field", "constant", "background", "buffer_m", "layer", "crs"):
        if getattr(config, key) is not None:
            raise TruthError(
                f"truth.{key} is for polygons, and labels {truth.uri} are a raster. Take it out, or name a vector file"
            )
    codes = truth_codes(config, mask.classes)
    spec = TruthSpec(source=truth, codes=codes, ignore=tuple(sorted(config.ignored)))
    grid = mask.grid
    both = f"labels {truth.uri}: {_grid_text(truth)}\nmask of {mask.image}: {_grid_text(grid)}"
    if same_grid(truth, grid):
        return spec
    if config.resample is None:
        raise TruthError(f"labels and mask lie on different grids:\n{both}\nSet truth.resample: nearest to bring them together")
    if truth.transform is not None and grid.transform is not None:
        if not same_crs(truth.crs_wkt, grid.crs_wkt):
            raise TruthError(f"labels and mask have different coordinate systems:\n{both}\nReproject the labels first")
        a, b, c, d, e, f = _between(grid.transform, truth.transform)
        if max(abs(b), abs(d)) > 1e-6:
            raise TruthError(f"labels are rotated against the mask:\n{both}\nResample the labels to the image's grid first")
        return spec.model_copy(update={"scale_row": e, "offset_row": f, "scale_col": a, "offset_col": c})
    if (truth.height, truth.width) != mask.native_shape or truth.transform is not None:
        raise TruthError(
            f"labels cannot be laid over the mask without a georeference on both, unless they have the image's own shape "
            f"{mask.native_shape[0]} x {mask.native_shape[1]}:\n{both}"
        )
    return spec.model_copy(update={"scale_row": grid.scale_row, "scale_col": grid.scale_col})


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
        return {"": _constant(config, layer, classes)}
    if config.classes is None:
        meaning = {str(code if c.value is None else c.value): code for code, c in enumerate(classes)}
        meaning |= {c.name: code for code, c in enumerate(classes)}
    else:
        code_of = _code_of(config.classes.values(), "truth.classes", classes)
        meaning = {str(value): code_of[name] for value, name in config.classes.items()}
    meaning |= {str(value): len(classes) for value in config.ignore}
    codes = {value: meaning.get(value, meaning.get(ANY)) for value in layer.values}
    unknown = [f"{value!r} ({layer.values[value]:,})" for value, code in codes.items() if code is None]
    if unknown:
        more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise TruthError(
            f"labels {layer.uri}: field {layer.field!r} names what is no class (features): {', '.join(unknown[:12])}{more}. "
            f"Name them under truth.classes (the model knows {', '.join(c.name for c in classes)}) or truth.ignore; "
            f"{ANY!r} there stands for all others"
        )
    return {value: code for value, code in codes.items() if code is not None}


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


def _grid_text(grid: SourceInfo | WorkingGrid) -> str:
    crs = "no CRS" if grid.crs_wkt is None else grid.crs_wkt.split('"')[1] if '"' in grid.crs_wkt else grid.crs_wkt[:60]
    return f"{grid.height} x {grid.width} px, {crs}, transform {grid.transform}"
