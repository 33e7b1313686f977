"""Numbers as a reader wants them: never rounded to a lie, with units, and `–` where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isnan

NONE = "–"
"""What stands where there is no number."""


def score(value: float | None) -> str:
    """A score from 0 to 1 with three decimals; 1.000 only where it is exactly 1.

    assert score(0.99996) == "0.999"
    """
    if value is None or isnan(value):
        return NONE
    text = f"{value:.3f}"
    return "0.999" if text == "1.000" and value < 1 else text


def signed(delta: float | None) -> str:
    """A difference of scores with its sign: +0.012, −0.003; +0.000 and −0.000 are not quite nothing, 0.000 is.

    assert signed(0.0) == "0.000"
    """
    if delta is None or isnan(delta):
        return NONE
    return f"{delta:+.3f}".replace("-", "−") if delta else "0.000"


def minus(text: str) -> str:
    """Text whose negative numbers have a minus sign, not a hyphen."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", text)


def interval(low: float | None, high: float | None, text: Callable[[float | None], str] = score) -> str:
    """Both ends: 0.581 to 0.643; `–` where there is no interval."""
    return NONE if low is None or high is None else f"{text(low)} to {text(high)}"


def chance(p: float | None) -> str:
    """A p value, never 0."""
    if p is None:
        return NONE
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def percent(share: float | None) -> str:
    """A share with one decimal; 0 % and 100 % only where it is exactly that.

    assert percent(0.00001) == "< 0.1 %"
    """
    if share is None or isnan(share):
        return NONE
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share * 100:.{0 if share in (0, 1) else 1}f} %"


def number(value: int) -> str:
    """A whole number, all of it."""
    return f"{value:,}"


def sample(value: float | None) -> str:
    """A raw sample: whole where it is large, three digits where it is small."""
    if value is None or isnan(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def short(value: int) -> str:
    """A whole number in three or four digits and a letter: 950, 12.3 k, 4.56 M, 7.89 G."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {letter}"
    return str(value)


def area(square_metres: float | None) -> str:
    """An area in km², ha or m², whichever reads best."""
    if square_metres is None or isnan(square_metres):
        return NONE
    size, unit = next(((s, u) for s, u in ((1e6, "km²"), (1e4, "ha")) if square_metres >= s), (1.0, "m²"))
    scaled = square_metres / size
    return f"{scaled:,.{0 if scaled >= 1000 or scaled == 0 else 1 if scaled >= 100 else 2}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours with two parts at most: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def of(count: int, thing: str, things: str | None = None) -> str:
    """A number and its noun: 1 image, 2 images."""
    return f"{number(count)} {thing if count == 1 else things or thing + 's'}"


def listed(items: list[str], most: int = 5) -> str:
    """Items in a sentence: `a, b and c`, and how many more where there are more than `most`."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {number(len(items) - most)} more"
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
