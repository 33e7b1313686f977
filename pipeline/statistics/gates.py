"""Is a run good enough to pass on? pass, fail, or inconclusive, and a sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.statistics.bootstrap import Estimate, Estimates
from pipeline.statistics.measures import CLASS_MEASURES, MEASURES
from pipeline.statistics.paired import Comparison

Outcome = Literal["pass", "fail", "inconclusive"]
_WORST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
WORDS = {
    "miou": "mIoU",
    "mdice": "mDice",
    "miou_without_background": "mIoU without background",
    "mean_image_miou": "mean of per-image mIoU",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "pixel_accuracy": "pixel accuracy",
    "matthews": "Matthews correlation",
    "iou": "IoU",
    "dice": "Dice",
    "precision": "precision",
    "recall": "recall",
}
"""What people call each metric."""


@dataclass(frozen=True)
class Gate:
    """What is asked of one score."""

    metric: str
    """A name in MEASURES, or with `code` one in CLASS_MEASURES."""
    code: int | None = None
    """Class code."""
    min: float | None = None
    """Absolute floor."""
    max_drop: float | None = None
    """Margin: how far the score may fall against the earlier run, 0 or more."""

    def __post_init__(self) -> None:
        known = MEASURES if self.code is None else CLASS_MEASURES
        if self.metric not in known:
            raise ValueError(f"gate on {self.metric!r}: {'with' if self.code is not None else 'without'} a class, one of {known}")
        if self.min is None and self.max_drop is None:
            raise ValueError(f"gate on {self.metric} asks nothing: give min, max_drop or both")
        if self.max_drop is not None and not 0 <= self.max_drop <= 2:
            raise ValueError(f"gate on {self.metric}: max_drop {self.max_drop} must be 0 or more, in the score's own scale")
        if self.min is not None and not -1 <= self.min <= 1:
            raise ValueError(f"gate on {self.metric}: min {self.min} must be a score, at most 1 (0.8, not 80)")


@dataclass(frozen=True)
class Verdict:
    """What became of a gate."""

    gate: Gate
    outcome: Outcome
    why: str
    """A sentence with the numbers."""


def judge(
    gate: Gate,
    now: Estimates,
    change: Comparison | None = None,
    names: Sequence[str] | None = None,
    unheld: str = "there is no earlier run",
) -> Verdict:
    """The verdict on a run: the worst of what its floor and its margin say.

    Floor: *fail* where the score itself is below it, for that is what the report says of these images; *pass* where the
    whole interval is at or above it; *inconclusive* between, and where no interval can be had.

    Margin, on the delta against the earlier run (`change`, None where there is none), as a test of non-inferiority:

        ---[--delta--]---(-max_drop)-----------------0---   fail: entirely below
        -------------[---(-max_drop)--delta--]-------0---   inconclusive
        -----------------(-max_drop)--[--delta--]----0---   pass: entirely at or above

    `names`: class names by code. `unheld`: why there is no `change`, where there is none.
    """
    of = "" if gate.code is None else f" of {names[gate.code] if names else f'class {gate.code}'}"
    said: list[tuple[Outcome, str]] = []
    if gate.min is not None:
        said.append(_floor(gate.min, f"{WORDS[gate.metric]}{of}", now.of(gate.metric, gate.code)))
    if gate.max_drop is not None:
        what = f"{WORDS[gate.metric]}{of}"
        if change is None:
            said.append(("inconclusive", f"{what} cannot be compared: {unheld}"))
        else:
            said.append(_drop(gate, gate.max_drop, what, change))
    outcome = next(o for o in _WORST if any(o == found for found, _ in said))
    return Verdict(gate, outcome, "; ".join(why for _, why in said))


def _floor(floor: float, what: str, found: Estimate) -> tuple[Outcome, str]:
    if found.value != found.value:
        return "inconclusive", f"{what} is not defined on these images, so the floor {floor:g} cannot be held against it"
    if found.value < floor:
        reach = "" if found.high is None or found.high < floor else f" (its interval reaches up to {found.high:.3f})"
        return "fail", f"{what} {found.value:.3f} is below the floor {floor:g}{reach}"
    if found.low is None:
        return "inconclusive", f"{what} {found.value:.3f} is not below the floor {floor:g}, but has {found.warning}"
    if found.low < floor:
        return (
            "inconclusive",
            f"{what} {found.value:.3f} is not below the floor {floor:g}, but its interval begins at {found.low:.3f}",
        )
    return "pass", f"{what} {found.value:.3f} and its interval from {found.low:.3f} are not below the floor {floor:g}"


def _drop(gate: Gate, margin: float, what: str, change: Comparison) -> tuple[Outcome, str]:
    found = change.of(gate.metric, gate.code)
    if found.delta != found.delta:
        return "inconclusive", f"{what} is not defined in both runs, so no drop can be told"
    moved = f"{what} went from {found.before:.3f} to {found.after:.3f}"
    if found.low is None or found.high is None:
        return "inconclusive", f"{moved}, but the difference has {found.warning}"
    span = f"{found.delta:+.3f}, interval {found.low:+.3f} to {found.high:+.3f}"
    if found.high < -margin:
        return "fail", f"{moved} ({span}): all of it below the margin {-margin:+g}"
    if found.low < -margin:
        return "inconclusive", f"{moved} ({span}): a drop of more than {margin:g} is neither shown nor ruled out"
    return "pass", f"{moved} ({span}): a drop of more than {margin:g} is ruled out"
