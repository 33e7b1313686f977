"""A mosaic's labels as raster files take them: level by level, in pieces of whole tiles, hidden until all is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol, Self

from pipeline import mosaic
from pipeline.alignment import MaskFacts
from pipeline.atomic import draft_beside, sweep_drafts
from pipeline.codes import mask_codes
from pipeline.errors import StoreError
from pipeline.grid import Window
from pipeline.image import Frozen
from pipeline.mosaic import FAILED_NAME, NO_DATA_NAME, Labels

TILE = 512
"""Side of the tiles of an exported raster in px."""
PIECE_TILES = 16
"""Most tiles side by side in a piece: what is in memory at a time, however wide the image is."""


class Listener(Protocol):
    """Who is told how far an export is."""

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be written."""

    def advance(self, pixels: int) -> None:
        """So many pixels are read, and written with the next ones."""


class ExportedRaster(Frozen):
    """What was written."""

    path: str
    """The file."""
    dtype: str
    """NumPy name of the sample type."""
    levels: tuple[tuple[int, int], ...]
    """(height, width) of each level, full resolution first."""
    size_bytes: int
    """Size of the file."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One value of a mask: a class, failed, or no data."""

    code: int
    name: str
    color: str
    """Hex colour: the class's own; of failed and no data as on a report's pictures, far from those of all classes."""


@dataclass(frozen=True, slots=True)
class LabelLevels:
    """The levels of one mosaic, as they are stored."""

    store: Path
    facts: MaskFacts
    plan_digest: str
    """Digest of the plan that made the mosaic."""
    listener: Listener | None = None

    @classmethod
    def of(cls, store: Path, listener: Listener | None) -> Self:
        """Of the mosaic at `store`, whose pixels `listener` is told to expect; StoreError where it is none."""
        levels = cls(store, *mosaic.facts(store), listener)
        if listener is not None:
            listener.expect(sum(height * width for height, width in levels.shapes))
        return levels

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each level, full resolution first."""
        grid = self.facts.grid
        return tuple(mosaic.level_shape(grid, level) for level in range(mosaic.levels(*grid.shape)))

    @property
    def dtype(self) -> str:
        """uint8, or uint16 above 254 classes."""
        return mask_codes(len(self.facts.classes)).dtype

    @property
    def no_data(self) -> int:
        """Code of pixels outside the valid area."""
        return mask_codes(len(self.facts.classes)).no_data

    @property
    def image(self) -> str:
        """Name of the image without folder and suffix."""
        return PurePath(self.facts.image).stem

    @property
    def pixel_um(self) -> tuple[float, float] | None:
        """Size (row, col) of a pixel of the full resolution in micrometres; None where it is not known."""
        size = self.facts.grid.pixel_size_m
        return None if size is None else (size[0] * 1e6, size[1] * 1e6)

    @property
    def legend(self) -> tuple[Meaning, ...]:
        """What each value means, lowest first."""
        from pipeline.report.quicklook import special_colors

        classes, codes = self.facts.classes, mask_codes(len(self.facts.classes))
        special = special_colors(classes)
        return (
            *(Meaning(code, c.name, c.color) for code, c in enumerate(classes)),
            Meaning(codes.failed, FAILED_NAME, special.failed),
            Meaning(codes.no_data, NO_DATA_NAME, special.no_data),
        )

    def pieces(self, level: int) -> Iterator[tuple[Window, Labels]]:
        """The labels of `level` in the order of its tiles."""
        for window in piece_windows(*self.shapes[level]):
            labels = mosaic.read(self.store, window, level)
            if self.listener is not None:
                self.listener.advance(window.pixels)
            yield window, labels


def piece_windows(height: int, width: int) -> Iterator[Window]:
    """The pieces of a level of `height` x `width` px, row by row.

    A piece is one tile high and up to PIECE_TILES wide; the last ones end at the edge:

        | tile | tile | tile | til|
        |  piece      | piece     |

    The law: pieces cover every pixel once, and cut into tiles one after the other they give the tiles row by row.
    """
    for row in range(0, height, TILE):
        for col in range(0, width, TILE * PIECE_TILES):
            yield Window(row, col, TILE, TILE * PIECE_TILES).clip(height, width)


@contextmanager
def appearing(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `out` in which a file of its name is made; it takes its place by one rename when all went well.

    So does the `.aux.xml` of the same name in which GDAL says what does not fit into the file, where there is one. What exports
    that were killed have left there is removed after a day. StoreError where `out` exists, or such a companion, which would be
    taken for its own; `overwrite` replaces them.
    """
    companion = out.with_name(f"{out.name}.aux.xml")
    for path in (out, companion):
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists: an export does not write over a file unasked. Remove it, or name another one")
    sweep_drafts(out)
    folder = draft_beside(out)
    with mosaic.writing(out):
        folder.mkdir(parents=True)
        try:
            yield folder
            companion.unlink(missing_ok=True)
            if (folder / companion.name).exists():
                (folder / companion.name).rename(companion)
            (folder / out.name).replace(out)
        finally:
            mosaic.remove(folder)
