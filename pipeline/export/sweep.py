"""From labels, band by band down the image, to whole objects: 4-connected, merged across bands, their edges shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.export import tracing
from pipeline.grid import Window

MOST_BAND_PX = 8 << 20
"""Pixels of a band, about: with its labels, edges and union-find it takes some 20 bytes each."""
MOST_BAND_ROWS, LEAST_BAND_ROWS = 256, 16
"""Rows of a band: the usual ones, and the fewest, of very wide images."""

Read = Callable[[Window], NDArray[np.unsignedinteger]]
"""Labels (h, w) of a window."""


@dataclass(frozen=True, slots=True)
class Objects:
    """Some finished objects, in their order: by last row, then by their first pixel, row by row."""

    code: NDArray[np.uint16]
    """Class of each."""
    area: NDArray[np.int64]
    """Pixels of each, exactly."""
    first: NDArray[np.int64]
    """First pixel of each, row by row, as row * width + col: no two objects share it."""
    points: NDArray[np.int32]
    """(n, 2): line and column of the corners of all rings, each closed, its first point the least; outer rings have a positive
    area in (x, y), holes a negative one."""
    rings: NDArray[np.int64]
    """(rings + 1,): where in `points` each ring starts, and the last one ends."""
    parts: NDArray[np.int64]
    """(objects + 1,): where in the rings each object starts: its outer ring, then its holes."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a band has brought."""

    objects: Objects
    """Those that ended in it, or on the last row of the band above."""
    pixels: int
    """Pixels read."""
    left_out: NDArray[np.int64]
    """(2, codes): finished objects that are too small, and their pixels."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is exported of the labels, and how exactly."""

    chosen: NDArray[np.bool_]
    """By code: whether its objects are exported. Codes beyond are not."""
    min_px: float = 0
    """Objects of fewer pixels are left out."""
    tolerance: float = 0
    """How far a point may lie from the simplified edge, in the unit of `pixel`; 0: every corner is kept."""
    pixel: tuple[float, float] = (1.0, 1.0)
    """Size (row, col) of a pixel."""


@dataclass(frozen=True, slots=True)
class Arcs:
    """Chains of edges, each between two objects, or an object and the outside."""

    points: NDArray[np.int32]
    """(n, 2): line and column of ends and corners, arc after arc."""
    stops: NDArray[np.int64]
    """(arcs,): one past the last point of each."""
    sides: NDArray[np.int32]
    """(arcs, 2): number of the object to the left and to the right; 0: none that still waits for the arc."""
    turns: NDArray[np.uint8]
    """(arcs, 2): direction of the first edge and of the last one, before anything was simplified."""
    knots: NDArray[np.uint8]
    """(arcs, 2): 1 where the start, and the end, is a node only because a band begins there."""

    @classmethod
    def none(cls) -> Arcs:
        """No arcs."""
        pairs = (np.empty((0, 2), kind) for kind in (np.int32, np.uint8, np.uint8))
        return cls(np.empty((0, 2), np.int32), np.empty(0, np.int64), *pairs)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(arcs,): the first point of each."""
        return np.concatenate([np.zeros(1, np.int64), self.stops[:-1]]) if len(self.stops) else self.stops

    def take(self, which: NDArray[np.bool_]) -> Arcs:
        """Some of them."""
        starts = self.starts[which]
        lengths = self.stops[which] - starts
        points = np.empty((int(lengths.sum()), 2), np.int32)
        tracing.take_arcs(self.points, starts, lengths, points)
        return Arcs(points, np.cumsum(lengths), self.sides[which], self.turns[which], self.knots[which])

    def renamed(self, names: NDArray[np.int32]) -> Arcs:
        """The same, of objects that are now called otherwise."""
        return Arcs(self.points, self.stops, names[self.sides], self.turns, self.knots)


def _joined(one: Arcs, other: Arcs) -> Arcs:
    return Arcs(
        np.concatenate([one.points, other.points]),
        np.concatenate([one.stops, other.stops + len(one.points)]),
        np.concatenate([one.sides, other.sides]),
        np.concatenate([one.turns, other.turns]),
        np.concatenate([one.knots, other.knots]),
    )


@dataclass(slots=True)
class Known:
    """Objects by their number, from 1: what is known of them so far."""

    kind: NDArray[np.uint16]
    """Code of each."""
    area: NDArray[np.int64]
    """Pixels."""
    first: NDArray[np.int64]
    """First pixel, row by row, as row * width + col."""
    last: NDArray[np.int64]
    """Last row."""

    @classmethod
    def none(cls) -> Known:
        """No objects."""
        return cls(np.zeros(1, np.uint16), *(np.zeros(1, np.int64) for _ in range(3)))

    def room(self, labels: int) -> Known:
        """The same with room for so many."""
        more = labels - len(self.kind) + 1
        return Known(*(np.concatenate([a, np.zeros(more, a.dtype)]) for a in (self.kind, self.area, self.first, self.last)))

    def take(self, which: NDArray[np.intp]) -> Known:
        """Some of them, and number 0."""
        return Known(self.kind[which], self.area[which], self.first[which], self.last[which])


def band_rows(width: int) -> int:
    """Rows of a band of an image of `width`: whatever its labels are stored in, so that arcs end at the same lines."""
    rows = MOST_BAND_ROWS
    while rows > LEAST_BAND_ROWS and rows * width > MOST_BAND_PX:
        rows //= 2
    return rows


def sweep(read: Read, shape: tuple[int, int], rules: Rules, *, band: int | None = None) -> Iterator[Found]:
    """The finished objects, band after band.

    The laws: objects are the 4-connected parts of one class over the whole image; their rings follow its pixels' sides, and
    neighbours go along each other point by point. With tolerance 0 the height of a `band` does not matter.

    An edge between two nodes is simplified once, for both neighbours. Nodes are where three or more objects or the outside
    meet, where pixels of one object touch corner to corner, and where an edge goes from one band into the next.

    Memory: labels and edges of one band, and the edges of objects that go on below it, simplified: an object as long as the
    image holds its edges until its last row was read.
    """
    height, width = shape
    rows = band or band_rows(width)
    codes = np.full((rows + 1, width + 2), tracing.OUTSIDE, np.uint16)
    labels = np.zeros((rows + 1, width + 2), np.int32)
    known, waiting, table = Known.none(), Arcs.none(), _table(rules.chosen)
    for top in range(0, height + 1, rows):
        lines = min(rows, height + 1 - top)
        inside = min(lines, height - top)  # the line below the image ends all objects
        codes, labels = codes[: lines + 1], labels[: lines + 1]
        codes[lines] = tracing.OUTSIDE
        if inside:
            codes[1 : inside + 1, 1:-1] = table[read(Window(top, 0, inside, width))]
        known, names, found = arcs_of(codes, labels, known, top, rules)
        arcs = _joined(waiting.renamed(names), found)
        going_on = np.zeros(len(known.kind), bool)
        last_row = names[labels[lines]]
        going_on[last_row] = True
        going_on[0] = False
        closed = ~going_on
        closed[0] = False
        left_out = closed & (known.area < rules.min_px)
        yield Found(_finished(arcs, known, closed & ~left_out, width), inside * width, _tally(known, left_out, len(rules.chosen)))
        numbers = np.where(going_on, np.cumsum(going_on), 0).astype(np.int32)
        waiting = arcs.renamed(numbers)
        waiting = waiting.take(waiting.sides.any(axis=1))
        codes[0], labels[0] = codes[lines], numbers[last_row]
        known = known.take(np.flatnonzero(going_on | (np.arange(len(going_on)) == 0)))


def _table(chosen: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Code of a pixel by its label."""
    table = np.full(1 << 16, tracing.OUTSIDE, np.uint16)
    table[np.flatnonzero(chosen)] = np.flatnonzero(chosen)
    return table


def arcs_of(
    codes: NDArray[np.uint16], labels: NDArray[np.int32], known: Known, top: int, rules: Rules
) -> tuple[Known, NDArray[np.int32], Arcs]:
    """(objects known now, the number of each label's object, arcs of the band) of a band whose labels are filled in."""
    lines, width = codes.shape[0] - 1, codes.shape[1] - 2
    carried = len(known.kind) - 1
    most = carried + tracing.new_labels(codes)
    known = known.room(most)
    parent, names = np.empty(most + 1, np.int32), np.zeros(most + 1, np.int32)
    facts = known.kind, known.area, known.first, known.last
    count = tracing.label_band(codes, labels, parent, *facts, carried, top)
    objects = tracing.settle(parent, *facts, count, names)
    known = known.take(np.arange(objects + 1))
    vertices = np.empty((lines, width + 1), np.uint8)
    arcs, points = tracing.find_edges(codes, vertices)
    made = np.empty((points, 2), np.int32), np.empty(arcs, np.int64), np.empty((arcs, 2), np.int32)
    turns, knots = np.empty((arcs, 2), np.uint8), np.empty((arcs, 2), np.uint8)
    count = tracing.trace(vertices, labels, names, top, *made, turns, knots)
    stops = made[1][:count].copy()
    found = made[0][: stops[-1] if count else 0]
    if rules.tolerance > 0 and count:
        kept = np.ones(len(found), np.uint8)
        tracing.simplify(found, stops, rules.tolerance, *rules.pixel, top, lines, width, kept)
        found, stops = found[kept.view(bool)], np.cumsum(kept, dtype=np.int64)[stops - 1]
    return known, names, Arcs(found, stops, made[2][:count], turns[:count], knots[:count])


def _finished(arcs: Arcs, known: Known, which: NDArray[np.bool_], width: int) -> Objects:
    """The objects `which` (by number), as rings."""
    numbers = np.flatnonzero(which)
    numbers = numbers[np.lexsort([known.first[numbers], known.last[numbers]])]
    place = np.full(len(which), -1, np.int64)
    place[numbers] = np.arange(len(numbers))
    sides = place[arcs.sides]
    arc, side = np.nonzero(sides >= 0)
    backward = side == 0  # an object has its ring on the right hand
    owner = sides[arc, side]
    begins = np.where(backward, arcs.stops[arc] - 1, arcs.starts[arc])
    froms = arcs.points[begins, 0].astype(np.int64) * (width + 1) + arcs.points[begins, 1]
    order = np.lexsort([froms, owner])
    arc, backward, owner, froms = arc[order], backward[order], owner[order], froms[order]
    spans = np.searchsorted(owner, np.arange(len(numbers) + 1))
    room = int((arcs.stops[arc] - arcs.starts[arc]).sum())
    points, soft = np.empty((room, 2), np.int32), np.empty(room, np.uint8)
    ends, of = np.empty(len(arc), np.int64), np.empty(len(arc), np.int64)
    tables = arcs.points, arcs.starts, arcs.stops, arcs.turns, arcs.knots
    count = tracing.join_rings(*tables, arc, backward.view(np.uint8), spans, froms, width + 1, points, soft, ends, of)
    corners, rings, owners = _in_order(points, ends[:count], of[:count])
    parts = np.searchsorted(owners, np.arange(len(numbers) + 1))
    return Objects(known.kind[numbers], known.area[numbers], known.first[numbers], corners, rings, parts)


def _in_order(
    points: NDArray[np.int32], ends: NDArray[np.int64], owner: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """(points, where rings start and the last ends, owners): an object's outer ring first, then its holes by first points."""
    areas = np.empty(len(ends), np.int64)
    tracing.ring_areas(points, ends, areas)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    order = np.lexsort([points[starts, 1], points[starts, 0], areas < 0, owner])
    lengths = (ends - starts)[order]
    sorted_points = np.empty((int(lengths.sum()), 2), np.int32)
    tracing.take_arcs(points, starts[order], lengths, sorted_points)
    return sorted_points, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), owner[order]


def _tally(known: Known, which: NDArray[np.bool_], codes: int) -> NDArray[np.int64]:
    """(2, codes): objects, and pixels of them, by code."""
    kind, area = known.kind[which], known.area[which]
    found = np.zeros((2, codes), np.int64)
    np.add.at(found[0], kind, 1)
    np.add.at(found[1], kind, area)
    return found
