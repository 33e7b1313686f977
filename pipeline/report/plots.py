"""Small figures as inline SVG: no library, no colour of their own (the page's styles give it), and a sentence for those who
cannot see them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isnan, log10

from markupsafe import Markup, escape

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A value, how sure it is, and what is said when a reader points at it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""
    kind: str = ""
    """Style of its mark."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a place on the x axis."""

    at: float
    text: str
    kind: str = "mark"


@dataclass(frozen=True, slots=True)
class Frame:
    """Where data lies in a figure: `x` and `y` are the ranges shown, the margins are in the figure's own units."""

    width: float
    height: float
    x: Range
    y: Range
    left: float = 46
    right: float = 14
    top: float = 12
    bottom: float = 42

    def col(self, value: float) -> float:
        """Horizontal place of `value`."""
        span = (self.x[1] - self.x[0]) or 1.0
        return self.left + (value - self.x[0]) / span * (self.width - self.left - self.right)

    def row(self, value: float) -> float:
        """Vertical place of `value`; what is beyond the range lies at its end."""
        inside = min(max(value, self.y[0]), self.y[1])
        span = (self.y[1] - self.y[0]) or 1.0
        return self.height - self.bottom - (inside - self.y[0]) / span * (self.height - self.top - self.bottom)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them.

    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    """
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** floor(log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def around(values: Iterable[float | None], room: float = 0.12, least: float = 0.1, limits: Range = (0.0, 1.0)) -> Range:
    """A range that shows all of `values` with some room, no narrower than `least` and within `limits`."""
    known = [v for v in values if v is not None and not isnan(v)]
    if not known:
        return limits
    low, high = min(known), max(known)
    spread = max((high - low) * room, (least - (high - low)) / 2, 0.0)
    return max(limits[0], low - spread), min(limits[1], high + spread)


def share_text(value: float) -> str:
    """A share on an axis: 2.5 %."""
    return f"{value * 100:g} %"


def reliability(bins: Sequence[tuple[float, float, int]], label: str) -> Markup:
    """`bins`: (mean confidence, share that is right, pixels) of those that hold pixels. Below: where the pixels are."""
    frame = Frame(420, 330, (0, 1), (0, 1), bottom=96)
    low, high = frame.row(0), frame.row(1)
    out = [*_grid(frame, ticks(0, 1), ticks(0, 1), x_text="confidence of the model", y_text="share that is right")]
    out.append(f'<path class="ideal" d="M{frame.col(0):.1f} {low:.1f}L{frame.col(1):.1f} {high:.1f}"/>')
    whole = sum(pixels for _, _, pixels in bins) or 1
    base = frame.height - 8
    for confidence, right, pixels in bins:
        x, share = frame.col(confidence), pixels / whole
        gap = f"M{x:.1f} {frame.row(confidence):.1f}V{frame.row(right):.1f}"
        out.append(f'<path class="gapline" d="{gap}"/>')
        said = f"confidence {confidence:.2f}: {share_text(round(right, 3))} right, {share_text(round(share, 4))} of the pixels"
        out.append(f'<circle class="dot" cx="{x:.1f}" cy="{frame.row(right):.1f}" r="4">{_title(said)}</circle>')
        tall = max(1.0, 34 * share / max(p / whole for _, _, p in bins))
        out.append(
            f'<rect class="dim" x="{x - 6:.1f}" y="{base - tall:.1f}" width="12" height="{tall:.1f}">{_title(said)}</rect>'
        )
    out.append(_text(frame.left - 6, base, "pixels", "tick end"))
    curve = " L".join(f"{frame.col(c):.1f} {frame.row(r):.1f}" for c, r, _ in bins)
    out.append(f'<path class="line" d="M{curve}"/>' if curve else "")
    return _svg(frame, out, label)


def curve(
    points: Sequence[tuple[float, Point]],
    label: str,
    *,
    x_text: str,
    y_text: str,
    marks: Sequence[Mark] = (),
    level: float | None = None,
    kind: str = "",
) -> Markup:
    """A share by distance, with its band, vertical `marks`, and a horizontal `level`."""
    known = [(x, p) for x, p in points if p.value is not None]
    top = max((p.high or p.value or 0.0 for _, p in known), default=1.0)
    right = max([x for x, _ in known] + [m.at for m in marks], default=1.0)
    frame = Frame(460, 250, (0, right), (0, max(top * 1.08, 1e-3)), left=58)
    out = [*_grid(frame, ticks(0, right), ticks(*frame.y, 5), x_text=x_text, y_text=y_text, y_format=share_text)]
    out += [_vertical(frame, mark, index) for index, mark in enumerate(marks)]
    if level is not None:
        out.append(f'<path class="ideal" d="M{frame.left} {frame.row(level):.1f}H{frame.width - frame.right}"/>')
    out.append(_band([(frame.col(x), p) for x, p in known], frame, kind))
    line = " L".join(f"{frame.col(x):.1f} {frame.row(p.value or 0):.1f}" for x, p in known)
    out.append(f'<path class="line {kind}" d="M{line}"/>' if line else "")
    out += [f'<circle class="hit" cx="{frame.col(x):.1f}" cy="{frame.row(p.value or 0):.1f}" r="6">{_title(p.title)}</circle>'
            for x, p in known]  # fmt: skip
    return _svg(frame, out, label)


def trend(points: Sequence[Point], names: Sequence[str], label: str, marks: Sequence[Mark] = (), y_text: str = "mIoU") -> Markup:
    """A score over runs, the oldest first, with its intervals; `marks` are at positions of runs. Marks have the style of their
    point's kind, the last one is this run."""
    last = max(1, len(points) - 1)
    values = [v for p in points for v in (p.value, p.low, p.high)]
    frame = Frame(1080, 270, (-0.5, last + 0.5), around(values), top=34)
    step = max(1, ceil(len(points) / 10))
    shown = sorted({len(points) - 1 - n for n in range(0, len(points), step)})
    out = [*_grid(frame, [], ticks(*frame.y, 6), x_text="", y_text=y_text)]
    out += [_text(frame.col(n), frame.height - frame.bottom + 18, names[n], "tick middle") for n in shown]
    out += [_vertical(frame, mark, index, at_top=True) for index, mark in enumerate(marks)]
    for part in _runs_of(points):
        out.append(_band([(frame.col(n), points[n]) for n in part], frame, ""))
        line = " L".join(f"{frame.col(n):.1f} {frame.row(points[n].value or 0):.1f}" for n in part)
        out.append(f'<path class="line" d="M{line}"/>')
    for n, point in enumerate(points):
        if point.value is not None:
            x, y = frame.col(n), frame.row(point.value)
            size = 5.5 if n == len(points) - 1 else 3.5
            out.append(_symbol(x, y, size, point))
    return _svg(frame, out, label)


def spark(values: Sequence[float | None], label: str) -> Markup:
    """A line as high as a word; its last value is this run's."""
    width, height = 150.0, 26.0
    frame = Frame(width, height, (0, max(1, len(values) - 1)), around(values, least=0.05), 3, 6, 4, 4)
    out = []
    for part in _runs_of([Point(v) for v in values]):
        line = " L".join(f"{frame.col(n):.1f} {frame.row(values[n] or 0):.1f}" for n in part)
        out.append(f'<path class="line thin" d="M{line}"/>')
    if values and values[-1] is not None:
        out.append(f'<circle class="dot" cx="{frame.col(len(values) - 1):.1f}" cy="{frame.row(values[-1]):.1f}" r="3"/>')
    return _svg(frame, out, label, "spark")


def spans(now: Sequence[float], before: Sequence[float] | None, label: str) -> Markup:
    """Quantiles of one band, five of each: a thin line from the first to the last, a bar between the inner two, a tick at the
    median; those of `before` in grey beneath."""
    width, height = 220.0, 30.0
    known = [*now, *(before or ())]
    frame = Frame(width, height, around(known, 0.04, least=1e-9, limits=(min(known), max(known))), (0, 1), 4, 4, 0, 0)
    out = []
    for values, y, kind in ((now, 9.0, "now"), (before, 22.0, "before")):
        if values is not None:
            low, first, middle, third, high = (frame.col(v) for v in values)
            out.append(f'<path class="reach {kind}" d="M{low:.1f} {y}H{high:.1f}"/>')
            out.append(
                f'<rect class="{kind}" x="{first:.1f}" y="{y - 4}" width="{max(third - first, 1):.1f}" height="8" rx="1"/>'
            )
            out.append(f'<path class="middle" d="M{middle:.1f} {y - 5}V{y + 5}"/>')
    return _svg(frame, out, label, "spans")


def histogram(values: Sequence[tuple[str, float]], label: str, middle: float, x_text: str) -> Markup:
    """How `values` (name, 0...1) are spread: a cell for each, where there are many a bar for each twentieth."""
    places = 20
    held: list[list[tuple[str, float]]] = [[] for _ in range(places)]
    for name, value in sorted(values, key=lambda item: item[1]):
        held[min(places - 1, max(0, int(value * places)))].append((name, value))
    most = max(map(len, held), default=1) or 1
    cell = min(16.0, 150.0 / most)
    frame = Frame(720, 66 + max(60.0, cell * most), (0, 1), (0, most), left=14, top=20)
    wide = (frame.col(1) - frame.col(0)) / places
    base = frame.row(0)
    out = [f'<path class="axis" d="M{frame.left} {base:.1f}H{frame.width - frame.right}"/>']
    out += [_text(frame.col(x), base + 17, f"{x:g}", "tick middle") for x in ticks(0, 1)]
    out.append(_text((frame.left + frame.width - frame.right) / 2, frame.height - 6, x_text, "tick middle"))
    for place, inside in enumerate(held):
        x = frame.col(place / places)
        if cell < 5 and inside:
            tall = cell * len(inside)
            said = f"{len(inside)} images from {place / places:.2f} to {(place + 1) / places:.2f}"
            out.append(f'<rect class="cell" x="{x + 1:.1f}" y="{base - tall:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}">'
                       f"{_title(said)}</rect>")  # fmt: skip
            continue
        for n, (name, value) in enumerate(inside):
            out.append(
                f'<rect class="cell" x="{x + 1:.1f}" y="{base - cell * (n + 1):.1f}" width="{wide - 2:.1f}" '
                f'height="{cell - 1.5:.1f}" rx="2">{_title(f"{name}: {value:.3f}")}</rect>'
            )
    x = frame.col(middle)
    out.append(f'<path class="median" d="M{x:.1f} {frame.top - 4}V{base:.1f}"/>')
    anchor = "end" if middle > 0.8 else "start" if middle < 0.2 else "middle"
    out.append(_text(x, frame.top - 8, f"median {middle:.3f}", f"tick {anchor}"))
    return _svg(frame, out, label)


def _runs_of(points: Sequence[Point]) -> list[list[int]]:
    """Positions of neighbours that have a value: what one line may join."""
    found: list[list[int]] = []
    for n, point in enumerate(points):
        if point.value is None:
            continue
        if found and found[-1][-1] == n - 1:
            found[-1].append(n)
        else:
            found.append([n])
    return found


def _band(points: Sequence[tuple[float, Point]], frame: Frame, kind: str) -> str:
    """The area between the ends of the intervals, in pieces where some have none."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, p in points:
        if p.low is None or p.high is None:
            pieces.append([])
        else:
            pieces[-1].append((x, frame.row(p.low), frame.row(p.high)))
    return "".join(
        f'<path class="band {kind}" d="M{" L".join(f"{x:.1f} {low:.1f}" for x, low, _ in piece)} '
        f'L{" L".join(f"{x:.1f} {high:.1f}" for x, _, high in reversed(piece))}Z"/>'
        for piece in pieces
        if len(piece) > 1
    )


def _symbol(x: float, y: float, size: float, point: Point) -> str:
    """A filled circle; a cross where the kind is fail, a hollow circle where it is inconclusive: told apart without colour."""
    title = _title(point.title)
    if point.kind == "fail":
        arm = size + 0.5
        cross = f"M{x - arm:.1f} {y - arm:.1f}l{2 * arm:.1f} {2 * arm:.1f}m0 {-2 * arm:.1f}l{-2 * arm:.1f} {2 * arm:.1f}"
        return f'<g>{title}<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="8"/><path class="cross" d="{cross}"/></g>'
    kind = "hollow" if point.kind == "inconclusive" else "dot"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{title}</circle>'


def _vertical(frame: Frame, mark: Mark, index: int, *, at_top: bool = False) -> str:
    x = frame.col(mark.at)
    end = x > frame.width * 0.66
    y = frame.top - 8 - 14 * (index % 2) if at_top else frame.top + 11 + 15 * index
    text = _text(x + (-5 if end else 5), y, mark.text, f"tick {'end' if end else 'start'}") if mark.text else ""
    return f'<path class="{mark.kind}" d="M{x:.1f} {frame.top - (6 if at_top else 0)}V{frame.height - frame.bottom}"/>{text}'


def _grid(
    frame: Frame, across: Sequence[float], up: Sequence[float], *, x_text: str, y_text: str, y_format: object = None
) -> Iterable[str]:
    """Axes, and what they are about."""
    base, end = frame.height - frame.bottom, frame.width - frame.right
    for value in up:
        y = frame.row(value)
        yield f'<path class="axis" d="M{frame.left} {y:.1f}H{end}"/>'
        yield _text(frame.left - 6, y + 4, y_format(value) if callable(y_format) else f"{value:g}", "tick end")
    yield f'<path class="axis" d="M{frame.left} {base:.1f}H{end}"/>'
    for value in across:
        yield _text(frame.col(value), base + 17, f"{value:g}", "tick middle")
    yield _text((frame.left + end) / 2, base + 35, x_text, "tick middle") if x_text else ""
    middle = (frame.top + base) / 2
    yield (
        f'<text class="tick middle" transform="translate(12 {middle:.1f}) rotate(-90)">{escape(y_text)}</text>' if y_text else ""
    )


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _svg(frame: Frame, parts: Sequence[str], label: str, css: str = "plot") -> Markup:
    size = f"0 0 {frame.width:g} {frame.height:g}"
    return Markup(  # noqa: S704 - numbers, our own words, and text that is escaped above
        f'<svg class="{css}" viewBox="{size}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
