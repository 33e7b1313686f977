"""Reference labels on an image's working grid: each working pixel takes the label under its centre, or none."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import rasterfile
from pipeline.alignment import TruthSpec
from pipeline.codes import label_type
from pipeline.errors import PlanError, SourceError, TruthError
from pipeline.grid import Window
from pipeline.image import SourceInfo

STRIP_PIXELS = 1 << 22
"""Label pixels read at a time: memory that does not grow with the window."""
TIE = 1e-6
"""A centre within this of the border between two label pixels takes the later one: rounding must not make it waver."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is true in a window."""

    codes: NDArray[np.unsignedinteger]
    """(h, w) of `label_type(classes)`: class codes 0...classes - 1, and `classes` for not labelled."""
    unknown: dict[int, int]
    """Label value -> working px with it, for values that are no class, not ignored and not nodata; their code is `classes`."""


class Truth:
    """An open label raster, for one thread."""

    def __init__(self, spec: TruthSpec, classes: int, height: int, width: int) -> None:
        _check(spec.source)
        self._spec, self._classes, self._shape = spec, classes, (height, width)
        self._codes = {**spec.codes, **dict.fromkeys(spec.ignore, classes)}
        dtype = np.dtype(spec.source.dtype)
        self._table = _table(self._codes, dtype, classes) if dtype.kind in "iu" and dtype.itemsize <= 2 else None
        source = spec.source
        try:
            self._file = rasterfile.RasterFile(source, source.band_indexes, source.valid_from, source.nodata)
        except SourceError as e:
            raise TruthError(f"labels: {e}") from e

    def read(self, window: Window) -> Reference:
        """The labels of a window of the working grid; outside the label raster, and where it has none: not labelled.

        TruthError where they cannot be read, or are no whole numbers. The law: any window is the crop of the whole.
        """
        if window.clip(*self._shape) != window:
            raise PlanError(f"{window} reaches outside the working grid of {self._shape[0]} x {self._shape[1]} px")
        spec, source = self._spec, self._spec.source
        codes = np.full(window.shape, self._classes, label_type(self._classes))
        unknown: dict[int, int] = {}
        src_rows, rows = _nearest(window.row, window.row_stop, spec.scale_row, spec.offset_row, source.height)
        src_cols, cols = _nearest(window.col, window.col_stop, spec.scale_col, spec.offset_col, source.width)
        if not len(src_rows) or not len(src_cols):
            return Reference(codes, unknown)
        first_col, length = int(src_cols[0]), int(src_cols[-1]) + 1 - int(src_cols[0])
        step = max(1, int(STRIP_PIXELS / length / max(spec.scale_row, 1)))
        for start in range(0, len(src_rows), step):
            wanted = src_rows[start : start + step]
            first_row = int(wanted[0])
            labels, valid = self._native(Window(first_row, first_col, int(wanted[-1]) + 1 - first_row, length))
            if labels.shape != (len(wanted), len(src_cols)):
                pick = np.ix_(wanted - first_row, src_cols - first_col)
                labels, valid = labels[pick], valid[pick]
            part = slice(rows.start + start, rows.start + start + len(wanted))
            codes[part, cols] = self._encode(labels, valid, unknown)
        return Reference(codes, unknown)

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _native(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            data, valid = self._file.read(window)
        except SourceError as e:
            raise TruthError(f"labels: {e}") from e
        return data[0], valid

    def _encode(self, labels: NDArray[Any], valid: NDArray[np.bool_], unknown: dict[int, int]) -> NDArray[np.unsignedinteger]:
        """Class codes of label values; those without a code are added to `unknown`."""
        if self._table is not None:
            codes, known = self._table
            place = labels.view(f"u{labels.itemsize}")
            strange = valid & ~known.take(place)
            if strange.any():
                _add(unknown, *np.unique(labels[strange], return_counts=True))
            return np.where(valid, codes.take(place), codes.dtype.type(self._classes))
        values, place, counts = np.unique(labels[valid], return_inverse=True, return_counts=True)
        broken = values[values != np.rint(values)] if labels.dtype.kind == "f" else values[:0]
        if len(broken):
            raise TruthError(
                f"{self._spec.source.uri} holds {broken[0]!s} among its labels, which is no whole number: it would be taken for "
                "another class. Name a raster of class values"
            )
        has_code = np.array([int(value) in self._codes for value in values], bool)
        _add(unknown, values[~has_code], counts[~has_code])
        result = np.full(labels.shape, self._classes, label_type(self._classes))
        result[valid] = np.array([self._codes.get(int(value), self._classes) for value in values], result.dtype)[place]
        return result


def describe_truth(uri: str) -> SourceInfo:
    """What the header of the label raster at the absolute path `uri` says; TruthError where it cannot hold labels."""
    try:
        info = rasterfile.describe(uri)
    except SourceError as e:
        raise TruthError(f"labels: {e}") from e
    _check(info)
    return info


def open_truth(spec: TruthSpec, classes: int, height: int, width: int) -> Truth:
    """The labels of `spec` for a working grid of `height` x `width` px and codes 0...classes - 1."""
    return Truth(spec, classes, height, width)


def _check(info: SourceInfo) -> None:
    if len(info.band_indexes) != 1:
        raise TruthError(
            f"labels {info.uri} have {len(info.band_indexes)} bands ({', '.join(info.band_names)}), one of class values is "
            "needed: colours are no classes. Write a raster with one band, a number for each class"
        )


def _nearest(start: int, stop: int, scale: float, offset: float, length: int) -> tuple[NDArray[np.intp], slice]:
    """(label pixel of each working pixel that has one, those working pixels counted from `start`), along one axis."""
    pixel = np.arange(start, stop, dtype=np.float64)
    index = np.floor((pixel + 0.5) * scale + offset + TIE)
    inside = np.flatnonzero((index >= 0) & (index < length))
    part = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    return index[part].astype(np.intp), part


def _table(codes: dict[int, int], dtype: np.dtype[Any], classes: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]:
    """(code, whether it has one) of every value of a small integer type, placed by its bits read as unsigned."""
    limits = np.iinfo(dtype)
    fitting = {value: code for value, code in codes.items() if limits.min <= value <= limits.max}
    place = np.array(list(fitting), dtype).view(f"u{dtype.itemsize}")
    table = np.full(1 << 8 * dtype.itemsize, classes, label_type(classes))
    known = np.zeros(table.shape, bool)
    table[place], known[place] = list(fitting.values()), True
    return table, known


def _add(unknown: dict[int, int], values: NDArray[Any], counts: NDArray[np.intp]) -> None:
    for value, pixels in zip(values, counts, strict=True):
        unknown[int(value)] = unknown.get(int(value), 0) + int(pixels)
