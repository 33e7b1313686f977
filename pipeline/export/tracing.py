"""The loops of polygon export, compiled: the objects of a band of rows, the arcs between them, simpler arcs, closed rings.

Pixels lie between lines: pixel (row, col) has its corners on lines `row` and `row + 1`. A vertex is a corner (line, col), an edge
is a side of a pixel whose neighbour has another code, and an arc is a chain of edges between two nodes:

        line 0   +---+---+      node: three or four edges meet, or the arc goes on in the band above;
                 | A | B |      arc:  one object on its left, one on its right, all along;
        line 1   +---N---+      loop: an arc without nodes, from its first vertex, line by line, back to it
                 | C   C |

An object holds its ring on the right hand of an arc (rows run down), so that its outer ring has a positive area in (x, y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import compiled

Codes = NDArray[np.uint16]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bytes = NDArray[np.uint8]

OUTSIDE = np.uint16(65535)
"""Code of pixels that belong to no object: classes that were not chosen, failed pixels, no data, and all around the image."""
UP, RIGHT, DOWN, LEFT = 0, 1, 2, 3
"""Directions on the screen; bit `1 << direction` of a vertex says that an edge leaves it that way."""
NODE, KNOT = np.uint8(16), np.uint8(32)
"""Bits of a vertex that is an end of arcs; KNOT: only because the arc goes on in the band above."""
LONGEST_CHAIN = 1024
"""Vertices that one side of a simplified polygon stands for at most: keeps the cost of an arc in proportion to its length."""
CELL = 16
"""Side in px of the cells in which vertices are looked up."""


@compiled
def root(parent: Ints, label: Any) -> Any:
    """The label that stands for all that `label` was found to be one with."""
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@compiled
def new_labels(codes: Codes) -> int:
    """How many labels `label_band` can come to need beside those carried over."""
    count = 0
    for row in range(1, codes.shape[0]):
        for col in range(1, codes.shape[1] - 1):
            code = codes[row, col]
            count += (code != OUTSIDE) & (code != codes[row, col - 1]) & (code != codes[row - 1, col])
    return count


@compiled
def label_band(
    codes: Codes, labels: Ints, parent: Ints, kind: Codes, area: Longs, first: Longs, last: Longs, carried: int, top: int
) -> int:
    """Give every pixel of a band the label of its 4-connected object; how many labels there are, 0 not counted.

    `codes`, `labels` (rows + 1, width + 2): row 0 is the last row of the band above, whose `labels` are given (1...carried);
    the outer columns are OUTSIDE. By label: `parent` (union-find), `kind` (code), `area` in px, `first` (place of the first
    pixel, row * width + col), `last` (last row); those of carried labels are given, and are added to. `top`: image row of row 1.
    """
    width = codes.shape[1] - 2
    count = carried
    for label in range(carried + 1):
        parent[label] = label
    for row in range(1, codes.shape[0]):
        place = top + row - 1
        for col in range(1, width + 1):
            code = codes[row, col]
            if code == OUTSIDE:
                labels[row, col] = 0
                continue
            above = labels[row - 1, col] if codes[row - 1, col] == code else np.int32(0)
            if codes[row, col - 1] == code:
                mine = labels[row, col - 1]
                if above and above != mine:
                    one, other = root(parent, mine), root(parent, above)
                    mine = np.int32(min(one, other))
                    parent[max(one, other)] = mine
            elif above:
                mine = above
            else:
                count += 1
                mine = np.int32(count)
                parent[count], kind[count], area[count] = mine, code, 0
                first[count] = place * width + col - 1
            labels[row, col] = mine
            area[mine] += 1
            last[mine] = place
    return count


@compiled
def settle(parent: Ints, kind: Codes, area: Longs, first: Longs, last: Longs, count: int, final: Ints) -> int:
    """Number the objects 1... without gaps, `final` (labels,) by label, and bring their facts to these numbers; how many."""
    objects = 0
    for label in range(1, count + 1):
        head = root(parent, label)  # heads have the lowest label of their object, so that they come first
        if head == label:
            objects += 1
            final[label] = objects
            kind[objects], area[objects], first[objects], last[objects] = kind[label], area[label], first[label], last[label]
            continue
        mine = final[head]
        final[label] = mine
        area[mine] += area[label]
        first[mine] = min(first[mine], first[label])
        last[mine] = max(last[mine], last[label])
    return objects


@compiled
def find_edges(codes: Codes, vertices: Bytes) -> tuple[int, int]:
    """Edges and nodes of the lines of a band, `vertices` (lines, width + 1); the most (arcs, their points) that they can make.

    `codes` (lines + 1, width + 2). The line below the last belongs to the next band: edges that reach it end there.
    """
    lines, columns = vertices.shape
    ends, corners = 0, 0
    for line in range(lines):
        for col in range(columns):
            a, b, c, d = codes[line, col], codes[line, col + 1], codes[line + 1, col], codes[line + 1, col + 1]
            bits = np.uint8((a != b) | ((b != d) << RIGHT) | ((c != d) << DOWN) | ((a != c) << LEFT))
            if bits == 0:
                vertices[line, col] = 0
                continue
            degree = (a != b) + (b != d) + (c != d) + (a != c)
            if degree > 2:
                bits |= NODE
                ends += degree
            elif line == 0 and a != b:
                bits |= NODE | KNOT
                ends += degree
            elif (a != b) != (c != d):
                corners += 1
            if line == 0:
                bits &= ~np.uint8(1)
            if line == lines - 1 and c != d:
                ends += 1
            vertices[line, col] = bits
    arcs = ends + corners // 4 + 1
    return arcs, corners + 2 * arcs


@compiled
def trace(
    vertices: Bytes, labels: Ints, final: Ints, top: int, points: Ints, stops: Longs, sides: Ints, turns: Bytes, knots: Bytes
) -> int:
    """Take the arcs of a band off its `vertices`; how many.

    By arc: `stops` (one past its last point; points (line, col) of the image, ends and corners), `sides` (object on its left and
    right), `turns` (direction at its start and at its end), `knots` (whether start and end are nodes for the band's sake only).
    """
    lines, columns = vertices.shape
    count, at = 0, 0
    for phase in range(3):  # from the line below, from nodes, and what then is left: loops
        for start_line in range(lines):
            if phase == 0 and start_line < lines - 1:
                continue
            for start_col in range(columns):
                here = vertices[start_line, start_col]
                if phase == 1 and not here & NODE:
                    continue
                if here & np.uint8(15) == 0 or (phase == 0 and not here & np.uint8(1 << DOWN)):
                    continue
                for way in range(4):
                    line, col, direction = start_line, start_col, way
                    if phase == 0:
                        if way != UP:
                            continue
                        line += 1
                    elif not vertices[line, col] & np.uint8(1 << way):
                        continue
                    else:
                        vertices[line, col] &= ~np.uint8(1 << way)
                    above, below = line, min(line + 1, lines)
                    if direction == UP:
                        left, right = labels[above, col], labels[above, col + 1]
                    elif direction == RIGHT:
                        left, right = labels[above, col + 1], labels[below, col + 1]
                    elif direction == DOWN:
                        left, right = labels[below, col + 1], labels[below, col]
                    else:
                        left, right = labels[below, col], labels[above, col]
                    sides[count, 0], sides[count, 1], turns[count, 0] = final[left], final[right], np.uint8(direction)
                    knots[count, 0] = phase == 1 and vertices[line, col] & KNOT != 0
                    points[at, 0], points[at, 1] = top + line, col
                    at += 1
                    while True:
                        if direction == UP:
                            line -= 1
                        elif direction == DOWN:
                            line += 1
                        elif direction == RIGHT:
                            col += 1
                        else:
                            col -= 1
                        knots[count, 1] = 0
                        if line == lines:
                            break
                        vertices[line, col] &= ~np.uint8(1 << ((direction + 2) % 4))
                        bits = vertices[line, col]
                        if bits & NODE:
                            knots[count, 1] = bits & KNOT != 0
                            break
                        if bits == 0:
                            break
                        onward = RIGHT if bits & np.uint8(1 << RIGHT) else DOWN if bits & np.uint8(1 << DOWN) else LEFT
                        onward = UP if bits & np.uint8(1 << UP) else onward
                        vertices[line, col] = 0
                        if onward != direction:
                            points[at, 0], points[at, 1] = top + line, col
                            at += 1
                            direction = onward
                    points[at, 0], points[at, 1] = top + line, col
                    at += 1
                    turns[count, 1] = np.uint8(direction)
                    stops[count] = at
                    count += 1
    return count


@compiled
def _deviation(points: Ints, start: int, stop: int, row_size: float, col_size: float, most: float) -> float:
    """Largest squared distance of the points between two from the straight line that joins them; infinity where above `most`."""
    if stop - start > LONGEST_CHAIN:
        return np.inf
    y, x = points[start, 0] * row_size, points[start, 1] * col_size
    dy, dx = points[stop, 0] * row_size - y, points[stop, 1] * col_size - x
    length = dy * dy + dx * dx
    worst = 0.0
    for i in range(start + 1, stop):
        py, px = points[i, 0] * row_size - y, points[i, 1] * col_size - x
        share = (py * dy + px * dx) / length if length > 0 else 0.0
        share = min(max(share, 0.0), 1.0)
        ey, ex = py - share * dy, px - share * dx
        distance = ey * ey + ex * ex
        if distance > most:
            return np.inf
        worst = max(worst, distance)
    return worst


@compiled
def _side(points: Ints, a: int, b: int, p: int) -> Any:
    """Above 0 where p lies on one side of the line from a to b, below 0 on the other, 0 on it."""
    ay, ax = np.int64(points[a, 0]), np.int64(points[a, 1])
    return (points[b, 1] - ax) * (points[p, 0] - ay) - (points[b, 0] - ay) * (points[p, 1] - ax)


@compiled
def _clear(
    points: Ints, a: int, b: int, c: int, kept: Bytes, start: int, stop: int, cells: Longs, members: Ints, top: int, across: int
) -> bool:
    """Whether the triangle a, b, c, its sides included, holds no other point than these: neither one of another arc, nor one
    that is left of this one (start...stop)."""
    low_y, high_y = min(points[a, 0], points[b, 0], points[c, 0]), max(points[a, 0], points[b, 0], points[c, 0])
    low_x, high_x = min(points[a, 1], points[b, 1], points[c, 1]), max(points[a, 1], points[b, 1], points[c, 1])
    for row in range((low_y - top) // CELL, (high_y - top) // CELL + 1):
        for col in range(low_x // CELL, high_x // CELL + 1):
            cell = row * across + col
            for i in range(cells[cell], cells[cell + 1]):
                p = members[i]
                y, x = points[p, 0], points[p, 1]
                if y < low_y or y > high_y or x < low_x or x > high_x or (start <= p < stop and not kept[p]):
                    continue
                if (y == points[a, 0] and x == points[a, 1]) or (y == points[b, 0] and x == points[b, 1]):
                    continue
                if y == points[c, 0] and x == points[c, 1]:
                    continue
                one, two, three = _side(points, a, b, p), _side(points, b, c, p), _side(points, c, a, p)
                if not ((one < 0 or two < 0 or three < 0) and (one > 0 or two > 0 or three > 0)):
                    return False
    return True


@compiled
def _push(keys: NDArray[np.float64], items: Longs, size: int, key: float, item: int) -> int:
    """Put an item on the heap, least key first, then least item; its new size."""
    i = size
    while i > 0:
        up = (i - 1) // 2
        if keys[up] < key or (keys[up] == key and items[up] <= item):
            break
        keys[i], items[i] = keys[up], items[up]
        i = up
    keys[i], items[i] = key, item
    return size + 1


@compiled
def _pop(keys: NDArray[np.float64], items: Longs, size: int) -> int:
    """Take the first item off the heap, whose last then fills its place; its new size."""
    size -= 1
    key, item = keys[size], items[size]
    i = 0
    while True:
        low = 2 * i + 1
        if low >= size:
            break
        if low + 1 < size and (keys[low + 1] < keys[low] or (keys[low + 1] == keys[low] and items[low + 1] < items[low])):
            low += 1
        if key < keys[low] or (key == keys[low] and item <= items[low]):
            break
        keys[i], items[i] = keys[low], items[low]
        i = low
    keys[i], items[i] = key, item
    return size


@compiled
def simplify(
    points: Ints,
    stops: Longs,
    tolerance: float,
    row_size: float,
    col_size: float,
    top: int,
    lines: int,
    columns: int,
    kept: Bytes,
) -> None:
    """Clear `kept` (points,) of the points that arcs can do without.

    A point b between its neighbours a and c goes, the one that errs least first, while all points between a and c stay within
    `tolerance` of the straight line a - c (distances: rows x row_size, columns x col_size), and no point lies in the triangle
    a, b, c, where other arcs count with all points that they ever had. So no arc can come to cross itself or another,
    whichever is simplified first, and all keep their sides. Ends stay, and so much between them that no ring collapses: one
    point, two where both ends are one.
    """
    count = len(points)
    across = columns // CELL + 1
    cells = np.zeros((lines // CELL + 1) * across + 1, np.int64)
    for p in range(count):
        cells[(points[p, 0] - top) // CELL * across + points[p, 1] // CELL + 1] += 1
    for cell in range(1, len(cells)):
        cells[cell] += cells[cell - 1]
    members, fill = np.empty(count, np.int32), cells.copy()
    for p in range(count):
        cell = (points[p, 0] - top) // CELL * across + points[p, 1] // CELL
        members[fill[cell]] = p
        fill[cell] += 1
    longest, start = 0, 0
    for arc in range(len(stops)):
        longest = max(longest, stops[arc] - start)
        start = stops[arc]
    keys, items = np.empty(3 * longest, np.float64), np.empty(3 * longest, np.int64)
    before, after, current = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.float64)
    most = tolerance * tolerance
    start = 0
    for arc in range(len(stops)):
        stop = stops[arc]
        closed = points[start, 0] == points[stop - 1, 0] and points[start, 1] == points[stop - 1, 1]
        spare = stop - start - 2 - (2 if closed else 1)
        size = 0
        if spare > 0:
            for p in range(start + 1, stop - 1):
                before[p - start], after[p - start] = p - 1, p + 1
                key = _deviation(points, p - 1, p + 1, row_size, col_size, most)
                current[p - start] = key
                if key < np.inf:
                    size = _push(keys, items, size, key, p)
        while size > 0 and spare > 0:
            key, p = keys[0], items[0]
            size = _pop(keys, items, size)
            if not kept[p] or current[p - start] != key:
                continue
            a, c = before[p - start], after[p - start]
            if not _clear(points, a, p, c, kept, start, stop, cells, members, top, across):
                current[p - start] = np.inf
                continue
            kept[p] = 0
            spare -= 1
            if a > start:
                after[a - start] = c
            if c < stop - 1:
                before[c - start] = a
            for q in (a, c):
                if q == start or q == stop - 1:
                    continue
                new = _deviation(points, before[q - start], after[q - start], row_size, col_size, most)
                if new != current[q - start]:
                    current[q - start] = new
                if new < np.inf:
                    size = _push(keys, items, size, new, q)
        start = stop


@compiled
def take_arcs(points: Ints, starts: Longs, lengths: Longs, out: Ints) -> None:
    """Copy the points of some arcs one after another."""
    at = 0
    for arc in range(len(starts)):
        for i in range(starts[arc], starts[arc] + lengths[arc]):
            out[at, 0], out[at, 1] = points[i, 0], points[i, 1]
            at += 1


@compiled
def join_rings(
    points: Ints,
    starts: Longs,
    stops: Longs,
    turns: Bytes,
    knots: Bytes,
    arcs: Longs,
    backward: Bytes,
    spans: Longs,
    froms: Longs,
    columns: int,
    out: Ints,
    soft: Bytes,
    ends: Longs,
    owner: Longs,
) -> int:
    """Join arcs to closed rings, object by object; how many.

    Object k has the entries spans[k]...spans[k + 1]: `arcs`, whether each is taken `backward`, and `froms`, the node
    (line * columns + col) where it begins, in ascending order. Rings begin and end in their first point, line by line; they lie
    in `out`, up to `ends`, and `owner` is their object. Where an object touches itself at a node, rings part there: each is
    simple, and they share the point. `soft` (points,) is room to work in.
    """
    used = np.zeros(len(arcs), np.uint8)
    rings, at = 0, 0
    for k in range(len(spans) - 1):
        for begin in range(spans[k], spans[k + 1]):
            if used[begin]:
                continue
            first, entry, knot = at, begin, np.uint8(0)
            while True:
                used[entry] = 1
                arc, back = arcs[entry], backward[entry]
                low, high = starts[arc], stops[arc]
                soft[at] = knot | knots[arc, 1 if back else 0]
                for i in range(high - low - 1):
                    j = high - 1 - i if back else low + i
                    out[at, 0], out[at, 1] = points[j, 0], points[j, 1]
                    if i:
                        soft[at] = 0
                    at += 1
                knot = knots[arc, 0 if back else 1]
                last = low if back else high - 1
                heading = (turns[arc, 0] + 2) % 4 if back else turns[arc, 1]
                entry = _onward(points, last, heading, turns, arcs, backward, spans[k], spans[k + 1], froms, columns)
                if entry == begin:
                    break
            soft[first] |= knot
            at = _straighten(out, soft, first, at)
            lowest = first
            for i in range(first + 1, at):
                if out[i, 0] < out[lowest, 0] or (out[i, 0] == out[lowest, 0] and out[i, 1] < out[lowest, 1]):
                    lowest = i
            _rotate(out, first, lowest, at)
            out[at, 0], out[at, 1] = out[first, 0], out[first, 1]
            at += 1
            ends[rings], owner[rings] = at, k
            rings += 1
    return rings


@compiled
def _onward(
    points: Ints,
    last: int,
    heading: int,
    turns: Bytes,
    arcs: Longs,
    backward: Bytes,
    low: int,
    high: int,
    froms: Longs,
    columns: int,
) -> int:
    """The entry low...high that begins where another ends, in its point `last`; of two, the one that turns left."""
    node = np.int64(points[last, 0]) * columns + points[last, 1]
    end = high
    while low < high:
        middle = (low + high) // 2
        if froms[middle] < node:
            low = middle + 1
        else:
            high = middle
    if low + 1 < end and froms[low + 1] == node:
        leaving = (turns[arcs[low], 1] + 2) % 4 if backward[low] else turns[arcs[low], 0]
        return low if leaving == (heading + 3) % 4 else low + 1
    return low


@compiled
def _straighten(out: Ints, soft: Bytes, start: int, stop: int) -> int:
    """Drop the `soft` points of a ring start...stop on the straight line between their neighbours; its new end."""
    line, col = out[start, 0], out[start, 1]
    y, x = out[stop - 1, 0], out[stop - 1, 1]
    at = start
    for i in range(start, stop):
        here_y, here_x = out[i, 0], out[i, 1]
        next_y, next_x = (out[i + 1, 0], out[i + 1, 1]) if i + 1 < stop else (line, col)
        dy, dx = np.int64(here_y) - y, np.int64(here_x) - x
        ey, ex = np.int64(next_y) - here_y, np.int64(next_x) - here_x
        if not soft[i] or dy * ex != dx * ey:
            out[at, 0], out[at, 1] = here_y, here_x
            at += 1
        y, x = here_y, here_x
    return at


@compiled
def _reverse(out: Ints, start: int, stop: int) -> None:
    low, high = start, stop - 1
    while low < high:
        for axis in range(2):
            out[low, axis], out[high, axis] = out[high, axis], out[low, axis]
        low += 1
        high -= 1


@compiled
def _rotate(out: Ints, start: int, first: int, stop: int) -> None:
    """Make the points start...stop begin with `first`."""
    _reverse(out, start, first)
    _reverse(out, first, stop)
    _reverse(out, start, stop)


@compiled
def ring_areas(points: Ints, ends: Longs, areas: Longs) -> None:
    """Twice the area of each closed ring in (x, y): above 0 for outer rings, below 0 for holes."""
    start = 0
    for ring in range(len(ends)):
        total = np.int64(0)
        for i in range(start, ends[ring] - 1):
            y, x = np.int64(points[i, 0]), np.int64(points[i, 1])
            total += x * points[i + 1, 0] - y * points[i + 1, 1]
        areas[ring] = total
        start = ends[ring]
