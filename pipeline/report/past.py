"""What earlier runs of the same configuration said, as far as a page shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from pipeline.errors import StoreError
from pipeline.report.contract import RunReport
from pipeline.report.history import HistoryRow, history, rows_of
from pipeline.report.signals import InputCheck, Signal, signals, told
from pipeline.report.words import listed, of
from pipeline.statistics.chance import student_below
from pipeline.statistics.gates import WORDS
from pipeline.statistics.paired import holm

MOST_RUNS = 60
"""Runs that a curve can show, this one included."""
ENOUGH_RUNS = 5
"""Earlier runs from which on a number beyond all of theirs is worth a word."""
OF_ANY_MODEL = ("mask_share", "band_median")
"""Signals that are held against runs of other models too: that another model finds other shares is worth a word."""
CHANCE = 0.05
"""That any of a run's signals is called unusual though nothing has changed."""


@dataclass(frozen=True)
class Past:
    """Earlier runs, the first one first."""

    rows: tuple[HistoryRow, ...] = ()
    problem: str | None = None
    """Why there is nothing of them, where something is wrong."""


def read_past(folder: Path, report: RunReport) -> Past:
    """Of the runs beside `folder`, which is one of OUTPUT/runs: those of the name and part of `report` that began before it."""
    if folder.resolve().parent.name != "runs":
        return Past()
    output = folder.resolve().parent.parent
    home = output / "parts" / report.part.replace("/", "-of-") if report.part else output
    try:
        rows = [row for row in history(home, report.name) if row.part == report.part and _before(row, report)]
    except StoreError as e:
        return Past(problem=str(e))
    kept = set(list(dict.fromkeys(row.run_id for row in rows))[-(MOST_RUNS - 1) :])
    return Past(tuple(row for row in rows if row.run_id in kept))


@dataclass(frozen=True)
class Night:
    """One run of the history."""

    run_id: str
    started: str
    model: str
    model_digest: str
    config_digest: str
    outcome: str | None
    failed_images: int
    scored_images: int
    scores: dict[str, HistoryRow]
    """Scores of all classes, by metric."""
    iou: dict[str, float | None]
    """By class name."""


def nights(past: Past, report: RunReport) -> list[Night]:
    """Earlier runs and this one, the last."""
    by_run: dict[str, list[HistoryRow]] = {}
    for row in [*past.rows, *rows_of(report)]:
        by_run.setdefault(row.run_id, []).append(row)
    return [
        Night(
            run_id=run_id,
            started=(first := rows[0]).started,
            model=first.model,
            model_digest=first.model_digest,
            config_digest=first.config_digest,
            outcome=first.outcome,
            failed_images=first.failed_images,
            scored_images=first.scored_images,
            scores={row.metric: row for row in rows if row.class_name is None and row.metric in WORDS},
            iou={row.class_name: row.value for row in rows if row.class_name is not None and row.metric == "iou"},
        )
        for run_id, rows in by_run.items()
    ]


@dataclass(frozen=True)
class Drift:
    """A number that needs no labels, and what it was in earlier runs."""

    signal: Signal
    mean: float
    low: float
    high: float
    """Of earlier runs."""
    runs: int
    p: float
    """How readily a run like the earlier ones would be as far from their mean, corrected for the number of signals (Holm)."""

    @property
    def unusual(self) -> bool:
        """Whether it is beyond all of enough earlier runs, by more than chance and by more than a trifle."""
        now = self.signal.value
        beyond = not self.low <= now <= self.high and abs(now - self.mean) >= self.signal.least
        return beyond and self.runs >= ENOUGH_RUNS and self.p < CHANCE


def drifts(report: RunReport, past: Past) -> list[Drift]:
    """Of every signal that earlier runs have too: of any model what masks and images are, of this one what is its own."""
    found: list[tuple[Signal, list[float]]] = []
    for signal in signals(report):
        key, any_model = (signal.metric, signal.name), signal.metric in OF_ANY_MODEL
        rows = [row for row in past.rows if any_model or row.model_digest == report.model.digest]
        before = [row.value for row in rows if (row.metric, row.class_name) == key and row.value is not None]
        if before:
            found.append((signal, before))
    chances = holm([_chance(signal.value, before) for signal, before in found])
    return [
        Drift(signal, fmean(before), min(before), max(before), len(before), 1.0 if p is None else p)
        for (signal, before), p in zip(found, chances, strict=True)
    ]


def odd_words(found: Sequence[Drift], inputs: InputCheck) -> list[str]:
    """What is unlike earlier runs or unlike the training, in sentences; nothing where nothing is."""
    unusual = [told(drift.signal) for drift in found if drift.unusual]
    said = []
    if unusual:
        why = "Another archive, season or sensor does that, and so does a model that has lost its way."
        said.append(f"Unlike earlier runs: {listed(unusual)}. {why}")
    return said + (inputs.words if inputs.strange or inputs.unlike else [])


def drift_words(found: Sequence[Drift], inputs: InputCheck) -> list[str]:
    """What a reader should take from signals and inputs, in sentences, also where all is as ever."""
    odd, runs = odd_words(found, inputs), max((drift.runs for drift in found), default=0)
    said = []
    if runs >= ENOUGH_RUNS and not any(drift.unusual for drift in found):
        said.append("As before: nothing is outside of what earlier runs had.")
    elif 0 < runs < ENOUGH_RUNS:
        there = "There is" if runs == 1 else "There are"
        said.append(f"{there} {of(runs, 'earlier run')}, too few to call anything unusual.")
    return [*said, *odd, *(inputs.words if not (inputs.strange or inputs.unlike) else [])]


def _chance(now: float, before: Sequence[float]) -> float | None:
    """Two-sided p of one more value of the same normal distribution (Student's t); None of too few."""
    n = len(before)
    if n < ENOUGH_RUNS:
        return None
    away, error = abs(now - fmean(before)), stdev(before) * sqrt(1 + 1 / n)
    if error == 0:
        return 1.0 if away == 0 else 0.0
    return 2 * student_below(-away / error, n - 1)


def _before(row: HistoryRow, report: RunReport) -> bool:
    return row.run_id != report.run_id and _moment(row.started) < _moment(report.started)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def days(moments: Sequence[str]) -> list[str]:
    """Short dates: 12 Nov; with the time where one day has several; the text itself where it is none."""
    found = []
    for text in moments:
        try:
            moment = datetime.fromisoformat(text)
            found.append((f"{moment.day} {moment:%b}", f"{moment:%H:%M}"))
        except ValueError:
            found.append((text[:10], ""))
    several = {day for day, many in Counter(day for day, _ in found).items() if many > 1}
    return [f"{day} {time}".strip() if day in several else day for day, time in found]
