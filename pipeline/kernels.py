"""The loops that every pixel passes, compiled: scaling, blending, labelling, halving, counting. The one address of numba.

All run without the interpreter's lock. Sums keep their order and products are not fused, so that each answers the same
bits on every processor; `tests/reference.py` says in plain NumPy what each does, and the tests hold them to it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.unsignedinteger]

if TYPE_CHECKING:

    def compiled[F: Callable[..., Any]](function: F) -> F:
        """What numba makes of `function`: to the type checker, itself."""
        return function
else:
    compiled = njit(nogil=True, cache=True, error_model="numpy")

_PER_OCTAVE = np.float32(1.44269504088896341)
_OCTAVE_HIGH, _OCTAVE_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0 + 127)
"""1.5 * 2**23 + 127: a small float32 plus this is rounded to a whole number n, and its last bits are n + 127, as 2**n has them
for an exponent."""
_LOWEST = np.float32(-87.0)
"""e to this is about the smallest normal float32."""
_P3, _P2 = np.float32(8.312502542987675e-3), np.float32(4.189033395803549e-2)
_P1, _P0 = np.float32(1.666711538553283e-1), np.float32(4.999923029278285e-1)
"""(e**r - 1 - r) / r**2 within half an octave of 0, the relative error of e**r being least where it is worst: 1.05e-7."""
_MAGNITUDE, _INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
"""The bits of a float32 but its sign, and those of infinity: no finite number has as much."""
_PART = 1024
"""Columns at a time where rows are as wide as a block: what is kept between two loops stays in the first cache."""
_ZERO, _ONE, _FULL = np.float32(0), np.float32(1), np.float32(255)


@compiled
def scale(samples: NDArray[Any], valid: NDArray[np.bool_], offset: Floats, divisor: Floats, out: Floats) -> None:
    """(samples - offset) / divisor of one tile (bands, t, t) into `out`, exactly 0 where not `valid` (t, t)."""
    bands, height, width = samples.shape
    line = np.empty(width, np.float32)
    for band in range(bands):
        low, step = offset[band], divisor[band]
        for row in range(height):
            for i in range(width):
                value = (np.float32(samples[band, row, i]) - low) / step
                line[i] = value if valid[row, i] else _ZERO
            for i in range(width):  # by itself, as channels may be last in `out`
                out[band, row, i] = line[i]


@compiled
def _octaves(x: np.float32) -> tuple[np.int32, np.float32]:
    """(bits of 2**n as a float32, r) with e**x = 2**n * e**r for x <= 0, r within half an octave."""
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _PER_OCTAVE + _ROUND
    n = shifted - _ROUND
    r = x - n * _OCTAVE_HIGH
    return np.int32(np.float32(shifted).view(np.int32) << np.int32(23)), r - n * _OCTAVE_LOW


@compiled
def _power(x: np.float32) -> np.float32:
    """e**x for x <= 0."""
    bits, r = _octaves(x)
    square = r * r
    p = (_P3 * r + _P2) * square + (_P1 * r + _P0)
    return (p * square + r + _ONE) * np.int32(bits).view(np.float32)


@compiled
def add_probabilities(
    outputs: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    row_weight: Floats,
    col_weight: Floats,
    sums: Floats,
    ring: int,
    col: int,
) -> bool:
    """Add the weighted softmax of one tile to the strip; False where an output is no finite number.

    `outputs` (channels, t, t), of which [rows) x [cols) count; one channel stands for two classes, the first with output 0
    (sigmoid). `row_weight`, `col_weight` (t,): their product is a pixel's weight. `sums` (height, classes, width), a ring
    of rows: the first goes to `ring` modulo height, and to column `col`.
    """
    channels, height, classes, width = outputs.shape[0], sums.shape[0], sums.shape[1], cols[1] - cols[0]
    without = classes - channels
    left, start = np.uintp(cols[0]), np.uintp(col)  # unsigned: an index that cannot be negative leaves the loops simple
    highest, powers = np.empty((2, width), np.float32), np.empty((classes, width), np.float32)
    share, bits = np.empty(width, np.float32), np.empty(width, np.int32)
    octaves = bits.view(np.float32)
    peak = np.int32(0)
    for row in range(rows[0], rows[1]):
        for i in range(width):
            highest[0, i] = _ZERO if without else outputs[0, row, left + np.uintp(i)]
        turn = 0
        for channel in range(channels):
            for i in range(width):
                value, old = outputs[channel, row, left + np.uintp(i)], highest[turn, i]
                highest[1 - turn, i] = value if value > old else old  # in place: a masked store, slow on many processors
                size = np.int32(np.float32(value).view(np.int32) & _MAGNITUDE)
                peak = size if size > peak else peak
            turn = 1 - turn
        for i in range(width):
            share[i] = _ZERO
        for code in range(classes):
            if code < without:
                for i in range(width):
                    bits[i], powers[code, i] = _octaves(-highest[turn, i])
            else:
                for i in range(width):
                    bits[i], powers[code, i] = _octaves(outputs[code - without, row, left + np.uintp(i)] - highest[turn, i])
            for i in range(width):  # by itself: two short chains of operations overlap better than a long one
                r = powers[code, i]
                square = r * r
                p = (_P3 * r + _P2) * square + (_P1 * r + _P0)
                power = (p * square + r + _ONE) * octaves[i]
                powers[code, i] = power
                share[i] += power
        high = row_weight[row]
        for i in range(width):
            share[i] = high * col_weight[left + np.uintp(i)] / share[i]
        line = (ring + row - rows[0]) % height
        for code in range(classes):
            for i in range(width):
                sums[line, code, start + np.uintp(i)] += powers[code, i] * share[i]
    return bool(peak < _INFINITE)


@compiled
def add_scores(
    scores: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    row_weight: Floats,
    col_weight: Floats,
    sums: Floats,
    ring: int,
    col: int,
) -> bool:
    """As `add_probabilities`, for scores (classes, t, t) that may be averaged as they are."""
    classes, height, width = scores.shape[0], sums.shape[0], cols[1] - cols[0]
    left, start = np.uintp(cols[0]), np.uintp(col)
    peak = np.int32(0)
    for row in range(rows[0], rows[1]):
        high, line = row_weight[row], (ring + row - rows[0]) % height
        for code in range(classes):
            for i in range(width):
                value = scores[code, row, left + np.uintp(i)]
                sums[line, code, start + np.uintp(i)] += value * (high * col_weight[left + np.uintp(i)])
                size = np.int32(np.float32(value).view(np.int32) & _MAGNITUDE)
                peak = size if size > peak else peak
    return bool(peak < _INFINITE)


@compiled
def is_finite(outputs: Floats, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
    """Return whether all outputs (channels, t, t) in [rows) x [cols) are finite."""
    left, width = np.uintp(cols[0]), cols[1] - cols[0]
    peak = np.int32(0)
    for channel in range(outputs.shape[0]):
        for row in range(rows[0], rows[1]):
            for i in range(width):
                size = np.int32(np.float32(outputs[channel, row, left + np.uintp(i)]).view(np.int32) & _MAGNITUDE)
                peak = size if size > peak else peak
    return bool(peak < _INFINITE)


@compiled
def label(sums: Floats, ring: int, labels: Labels, failed: int) -> None:
    """Give `labels` (h, width) their classes from the strip's rows from `ring` on, and set those rows to 0.

    The class of the highest sum, the lowest of equals. Pixels with codes from `failed` on keep them.
    """
    height, classes, width = sums.shape
    best, winner = np.empty((2, _PART), np.float32), np.empty((2, _PART), np.int32)
    limit = np.int32(failed)
    for row in range(labels.shape[0]):
        line = (ring + row) % height
        for part in range(0, width, _PART):
            first, wide, turn = np.uintp(part), min(_PART, width - part), 0
            for i in range(wide):
                best[0, i] = sums[line, 0, first + np.uintp(i)]
                winner[0, i] = 0
            for code in range(1, classes):
                for i in range(wide):
                    score, old = sums[line, code, first + np.uintp(i)], best[turn, i]
                    higher = score > old
                    best[1 - turn, i] = score if higher else old  # not in place: see `add_probabilities`
                    winner[1 - turn, i] = np.int32(code) if higher else winner[turn, i]
                turn = 1 - turn
            for i in range(wide):
                named, given = winner[turn, i], np.int32(labels[row, first + np.uintp(i)])
                labels[row, first + np.uintp(i)] = named if given < limit else given
            for code in range(classes):
                for i in range(wide):
                    sums[line, code, first + np.uintp(i)] = _ZERO


@compiled
def pick(
    outputs: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    sigmoid: bool,
    labels: Labels,
    top: int,
    left: int,
    failed: int,
) -> bool:
    """Give `labels` the classes of one tile's highest outputs, the lowest of equals; False where an output is no finite number.

    `outputs` (channels, t, t), of which [rows) x [cols) count; `sigmoid`: there is one channel for two classes, the first with
    output 0. `labels` (height, width): from row `top` and column `left` on; pixels with codes from `failed` on keep them.
    """
    channels, width = outputs.shape[0], cols[1] - cols[0]
    start, place, limit = np.uintp(cols[0]), np.uintp(left), np.int32(failed)
    best, winner = np.empty((2, width), np.float32), np.empty((2, width), np.int32)
    peak = np.int32(0)
    for row in range(rows[0], rows[1]):
        for i in range(width):
            value = outputs[0, row, start + np.uintp(i)]
            size = np.int32(np.float32(value).view(np.int32) & _MAGNITUDE)
            peak = size if size > peak else peak
            best[0, i] = value
            winner[0, i] = np.int32(sigmoid & (value > _ZERO))
        turn = 0
        for code in range(1, channels):
            for i in range(width):
                value, old = outputs[code, row, start + np.uintp(i)], best[turn, i]
                higher = value > old
                size = np.int32(np.float32(value).view(np.int32) & _MAGNITUDE)
                peak = size if size > peak else peak
                best[1 - turn, i] = value if higher else old  # not in place: see `add_probabilities`
                winner[1 - turn, i] = np.int32(code) if higher else winner[turn, i]
            turn = 1 - turn
        line = top + row - rows[0]
        for i in range(width):
            named, given = winner[turn, i], np.int32(labels[line, place + np.uintp(i)])
            labels[line, place + np.uintp(i)] = named if given < limit else given
    return bool(peak < _INFINITE)


@compiled
def assure(
    outputs: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    soft: bool,
    sigmoid: bool,
    labels: Labels,
    top: int,
    left: int,
    failed: int,
    confidence: NDArray[np.uint8],
) -> None:
    """Score of the class that `pick` gave each pixel, x 255, into `confidence` (height, width); arguments as there.

    `soft`: outputs become scores by softmax or sigmoid; otherwise they are scores.
    """
    channels, width = outputs.shape[0], cols[1] - cols[0]
    start, place = np.uintp(cols[0]), np.uintp(left)
    for row in range(rows[0], rows[1]):
        line = top + row - rows[0]
        for i in range(width):
            highest = _ZERO if sigmoid else outputs[0, row, start + np.uintp(i)]
            for channel in range(channels):
                highest = max(highest, outputs[channel, row, start + np.uintp(i)])
            sure = highest
            if soft:
                share = _power(-highest) if sigmoid else _ZERO
                for channel in range(channels):
                    share += _power(outputs[channel, row, start + np.uintp(i)] - highest)
                sure = _ONE / share
            if labels[line, place + np.uintp(i)] < failed:
                confidence[line, place + np.uintp(i)] = np.uint8(np.rint(min(max(sure, _ZERO), _ONE) * _FULL))


@compiled
def confide(
    sums: Floats, ring: int, row_weight: Floats, col_weight: Floats, labels: Labels, failed: int, confidence: NDArray[np.uint8]
) -> None:
    """Mean score of the winning class x 255 of the strip's rows from `ring` on, before `label` takes them.

    `row_weight` (h,) and `col_weight` (width,): the sums of the weights of all tiles at a pixel, as factors.
    """
    height, classes, width = sums.shape
    best = np.empty((2, width), np.float32)
    for row in range(labels.shape[0]):
        line, turn = (ring + row) % height, 0
        for i in range(width):
            best[0, i] = sums[line, 0, i]
        for code in range(1, classes):
            for i in range(width):
                score, old = sums[line, code, i], best[turn, i]
                best[1 - turn, i] = score if score > old else old
            turn = 1 - turn
        for i in range(width):
            share = min(max(best[turn, i] / (row_weight[row] * col_weight[i]), _ZERO), _ONE)
            sure = np.uint8(np.rint(share * _FULL))
            confidence[row, i] = sure if labels[row, i] < failed else confidence[row, i]


@compiled
def halve(labels: Labels, failed: int, out: Labels) -> None:
    """The commonest class of each 2 x 2 labels (h, w) into `out` (ceil(h / 2), ceil(w / 2)).

    Only classes (codes below `failed`) vote; ties go to the lowest; without any, the lowest code. An odd last row or
    column votes alone.
    """
    height, width = labels.shape
    for row in range(out.shape[0]):
        upper, lower = labels[2 * row], labels[min(2 * row + 1, height - 1)]
        alone = 2 * row + 1 == height
        line = out[row]
        for i in range(width // 2):
            a, b = upper[2 * i], upper[2 * i + 1]
            c, d = lower[2 * i], lower[2 * i + 1]
            low, high, low2, high2 = min(a, b), max(a, b), min(c, d), max(c, d)
            first, last = min(low, low2), max(high, high2)
            second, third = min(max(low, low2), min(high, high2)), max(max(low, low2), min(high, high2))
            mode = third if (third == last) & (third < failed) else first
            mode = second if (second == third) & (second < failed) & (first != second) else mode
            line[i] = first if (first == second) | alone else mode
        if width % 2:
            line[width // 2] = min(upper[width - 1], lower[width - 1])


@compiled
def count(reference: Labels, mask: Labels, place: NDArray[np.int32], columns: int, out: NDArray[np.int64]) -> int:
    """Add every pixel to `out` (cells,): at reference * columns + place[mask]; the first mask code without a place, or -1.

    `place` (codes,): column of each mask code, -1 for codes that must not be. Reference values must be below cells / columns.
    """
    cells = out.size
    parts = np.zeros((4, cells), np.int64)  # neighbours are mostly equal: four tallies do not wait for each other
    whole = mask.size - mask.size % 4
    for start in range(0, whole, 4):
        for lane in range(4):
            column = place[mask[start + lane]]
            if column < 0:
                return int(mask[start + lane])
            parts[lane, np.int64(reference[start + lane]) * columns + column] += 1
    for i in range(whole, mask.size):
        column = place[mask[i]]
        if column < 0:
            return int(mask[i])
        parts[0, np.int64(reference[i]) * columns + column] += 1
    for lane in range(4):
        out += parts[lane]
    return -1


@compiled
def tally(labels: Labels, out: NDArray[np.int64]) -> None:
    """Add the pixels of each code in `labels` (n,) to `out` (codes,)."""
    parts = np.zeros((4, out.size), np.int64)
    whole = labels.size - labels.size % 4
    for start in range(0, whole, 4):
        for lane in range(4):
            parts[lane, labels[start + lane]] += 1
    for i in range(whole, labels.size):
        parts[0, labels[i]] += 1
    for lane in range(4):
        out += parts[lane]
