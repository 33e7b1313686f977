"""How reference labels are laid over a mask: on the same grid, by nearest neighbour where that is wanted, or not at all."""

from __future__ import annotations

import re
from functools import cached_property

from pipeline.card import ClassInfo, digest_of
from pipeline.config import TruthConfig
from pipeline.errors import TruthError
from pipeline.image import Affine6, Frozen, SourceInfo, WorkingGrid
from pipeline.plan import MaskFacts


class TruthSpec(Frozen):
    """Reference labels on an image's working grid: pixel (i, j) is label pixel
    (floor((i + 0.5) * scale_row + offset_row), floor((j + 0.5) * scale_col + offset_col))."""

    source: SourceInfo
    """Header of the label raster."""
    codes: dict[int, int]
    """Label value -> class code."""
    ignore: tuple[int, ...]
    """Values that mean `not labelled`."""
    scale_row: float = 1.0
    scale_col: float = 1.0
    offset_row: float = 0.0
    offset_col: float = 0.0

    @cached_property
    def digest(self) -> str:
        """Hash of all that determines the reference labels."""
        return digest_of(self.model_dump(mode="json", exclude={"source": {"crs_wkt"}}))


def plan_truth(config: TruthConfig, truth: SourceInfo, mask: MaskFacts) -> TruthSpec:
    """How the label raster `truth` is read on the grid of `mask`.

    TruthError that prints both grids where they differ and `truth.resample` is not set, or cannot be brought together.
    """
    codes = truth_codes(config, mask.classes)
    spec = TruthSpec(source=truth, codes=codes, ignore=tuple(config.ignore))
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
    """Label value -> class code: the configuration's word, else the model card's."""
    code_of = {c.name: code for code, c in enumerate(classes)}
    if config.classes is None:
        return {code if c.value is None else c.value: code for code, c in enumerate(classes) if c.value not in config.ignore}
    unknown = sorted(set(config.classes.values()) - set(code_of))
    if unknown:
        raise TruthError(f"truth.classes names {', '.join(unknown)}; the model knows {', '.join(code_of)}: name those")
    return {value: code_of[name] for value, name in config.classes.items()}


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
