"""Student's t and the normal distribution, as far as intervals and p values need them."""

from __future__ import annotations

from functools import cache
from math import atan, cos, pi, sin, sqrt
from statistics import NormalDist

NORMAL = NormalDist()


def student_below(t: float, freedom: int) -> float:
    """P(T <= t) with a whole number of degrees of freedom: the finite series of Abramowitz & Stegun (1964), 26.7.3-4."""
    angle = atan(t / sqrt(freedom))
    s, c = sin(angle), cos(angle)
    odd = freedom % 2
    term = c if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= c * c * k / (k + 1)
    inside = (angle + s * total) * 2 / pi if odd else s * total
    return min(1.0, max(0.0, (1 + inside) / 2))


@cache
def student_quantile(share: float, freedom: int) -> float:
    """The t with P(T <= t) = share, by halving."""
    low, high = -1e4, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2
