"""What the loops of `pipeline.kernels` do, in plain NumPy: the same operations in the same order, hence the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
f32 = np.float32


def scale(samples: NDArray[Any], valid: NDArray[np.bool_], offset: Floats, divisor: Floats) -> Floats:
    """(samples - offset) / divisor (bands, t, t), 0 where not valid."""
    scaled = (samples.astype(f32) - offset[:, None, None]) / divisor[:, None, None]
    return np.where(valid, scaled, f32(0))


def exponential(x: Floats) -> Floats:
    """e ** x for x <= 0, within 2e-7 of the truth: 2**n * e**r, |r| <= ln 2 / 2."""
    x = np.maximum(x, f32(-87))
    n = (x * f32(1.44269504088896341) + f32(12583039)) - f32(12583039)
    r = x - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    square = r * r
    high = f32(8.312502542987675e-3) * r + f32(4.189033395803549e-2)
    low = f32(1.666711538553283e-1) * r + f32(4.999923029278285e-1)
    return ((high * square + low) * square + r + f32(1)) * np.ldexp(f32(1), n.astype(np.int32))


def add_probabilities(outputs: Floats, row_weight: Floats, col_weight: Floats, sums: Floats) -> None:
    """Add the weighted softmax of outputs (channels, h, w) to sums (classes, h, w); one channel of two classes is the second."""
    if len(outputs) < len(sums):
        outputs = np.concatenate([np.zeros_like(outputs), outputs])
    powers = exponential(outputs - outputs.max(axis=0))
    total = np.zeros(outputs.shape[1:], f32)
    for power in powers:
        total += power
    sums += powers * (row_weight[:, None] * col_weight / total)


def add_scores(scores: Floats, row_weight: Floats, col_weight: Floats, sums: Floats) -> None:
    """Add weighted scores (classes, h, w) to sums."""
    sums += scores * (row_weight[:, None] * col_weight)


def label(sums: Floats, labels: NDArray[Any], failed: int) -> NDArray[Any]:
    """Class of the highest sum, the lowest of equals; codes from `failed` on stay."""
    return np.where(labels < failed, sums.argmax(axis=0), labels).astype(labels.dtype)


def confide(sums: Floats, row_weight: Floats, col_weight: Floats) -> NDArray[np.uint8]:
    """Mean score of the winning class x 255."""
    return np.rint(np.clip(sums.max(axis=0) / (row_weight[:, None] * col_weight), 0, 1) * f32(255)).astype(np.uint8)


def assure(outputs: Floats) -> NDArray[np.uint8]:
    """Softmax of the highest of outputs (classes, h, w) x 255."""
    share = np.zeros(outputs.shape[1:], f32)
    for power in exponential(outputs - outputs.max(axis=0)):
        share += power
    return np.rint(f32(1) / share * f32(255)).astype(np.uint8)


def halve(labels: NDArray[Any], failed: int) -> NDArray[Any]:
    """The commonest class of each 2 x 2 labels, pixel by pixel as one would count by hand."""
    height, width = labels.shape
    out = np.empty((-(-height // 2), -(-width // 2)), labels.dtype)
    for row, col in np.ndindex(out.shape):
        votes = labels[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(-1).tolist()
        classes = sorted(v for v in votes if v < failed)
        out[row, col] = max(classes, key=lambda c: (classes.count(c), -c)) if classes else min(votes)
    return out


def count(reference: NDArray[Any], mask: NDArray[Any], classes: int, failed: int, no_data: int) -> NDArray[np.int64]:
    """counts[reference, prediction] (K + 1, K + 2), one pixel after the other."""
    counts = np.zeros((classes + 1, classes + 2), np.int64)
    place = {**{c: c for c in range(classes)}, failed: classes, no_data: classes + 1}
    for truth, code in zip(reference.reshape(-1).tolist(), mask.reshape(-1).tolist(), strict=True):
        counts[truth, place[code]] += 1
    return counts


def outlines(codes: NDArray[Any], outside: int) -> dict[tuple[int, int], tuple[int, list[list[tuple[int, int]]]]]:
    """By its first pixel each 4-connected object of one code: its pixels, and its rings of (line, col), corner by corner.

    A ring keeps its object on the right hand; where the object touches itself it turns left, so that rings part. It keeps
    corners and nodes, where three or more edges meet, and starts and ends with its least point; the outer ring comes first.
    """
    height, width = codes.shape
    padded = np.pad(codes.astype(int), 1, constant_values=outside)
    degree = np.zeros((height + 1, width + 1), int)
    for line, col in np.ndindex(*degree.shape):
        a, b, c, d = padded[line : line + 2, col : col + 2].reshape(-1)
        degree[line, col] = int(a != b) + int(b != d) + int(d != c) + int(c != a)
    steps = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
    turn_left = dict(zip(steps, ["up", "right", "down", "left"], strict=True))
    found: dict[tuple[int, int], tuple[int, list[list[tuple[int, int]]]]] = {}
    seen = codes == outside
    for first in np.ndindex(height, width):
        if seen[first]:
            continue
        pixels, todo = {first}, [first]
        while todo:
            row, col = todo.pop()
            for dy, dx in steps.values():
                near = row + dy, col + dx
                if near not in pixels and padded[near[0] + 1, near[1] + 1] == codes[first]:
                    pixels.add(near)
                    todo.append(near)
        leaving: dict[tuple[int, int], dict[str, tuple[int, int]]] = {}
        for row, col in pixels:
            seen[row, col] = True
            for near, start, way in (
                ((row - 1, col), (row, col), "right"),
                ((row, col + 1), (row, col + 1), "down"),
                ((row + 1, col), (row + 1, col + 1), "left"),
                ((row, col - 1), (row + 1, col), "up"),
            ):
                if near not in pixels:
                    leaving.setdefault(start, {})[way] = start[0] + steps[way][0], start[1] + steps[way][1]
        rings = []
        while leaving:
            start = min(leaving)
            at, way, ring = start, min(leaving[start], key=lambda w: w != "right"), []
            while at in leaving and way in leaving[at]:
                following = leaving[at].pop(way)
                if not leaving[at]:
                    del leaving[at]
                ring.append((at, way))
                at = following
                ways = leaving.get(at, {})
                way = turn_left[way] if turn_left[way] in ways else next(iter(ways), way)
            kept = [p for i, (p, way) in enumerate(ring) if ring[i - 1][1] != way or degree[p] > 2]
            rings.append([*kept, kept[0]])
        found[first] = len(pixels), rings
    return found


def simplified(arc: list[tuple[int, int]], others: list[tuple[int, int]], tolerance: float) -> list[tuple[int, int]]:
    """The points of `arc` that are left, among the points of other arcs: the one that errs least goes first, try by try."""
    kept = list(range(len(arc)))
    spare = len(arc) - (4 if arc[0] == arc[-1] else 3)
    tried: set[tuple[int, int, int]] = set()

    def side(a: tuple[int, int], b: tuple[int, int], p: tuple[int, int]) -> int:
        return (b[1] - a[1]) * (p[0] - a[0]) - (b[0] - a[0]) * (p[1] - a[1])

    def error(low: int, high: int) -> float:
        (y, x), (end_y, end_x) = arc[low], arc[high]
        dy, dx = end_y - y, end_x - x
        worst = 0.0
        for py, px in arc[low + 1 : high]:
            share = ((py - y) * dy + (px - x) * dx) / (dy * dy + dx * dx) if dy or dx else 0.0
            share = min(max(share, 0.0), 1.0)
            worst = max(worst, (py - y - share * dy) ** 2 + (px - x - share * dx) ** 2)
        return worst

    while spare > 0:
        triples = [t for t in zip(kept, kept[1:], kept[2:], strict=False) if t not in tried]
        options = [(error(a, c), b, a, c) for a, b, c in triples if error(a, c) <= tolerance**2]
        if not options:
            break
        _, b, a, c = min(options)
        tried.add((a, b, c))
        corners = {arc[a], arc[b], arc[c]}
        for p in [*others, *(arc[i] for i in kept)]:
            signs = side(arc[a], arc[b], p), side(arc[b], arc[c], p), side(arc[c], arc[a], p)
            boxed = all(min(q[k] for q in corners) <= p[k] <= max(q[k] for q in corners) for k in (0, 1))
            if p not in corners and boxed and not (min(signs) < 0 < max(signs)):
                break
        else:
            kept.remove(b)
            spare -= 1
    return [arc[i] for i in kept]
