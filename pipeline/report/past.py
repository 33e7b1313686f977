"""What earlier runs of the same configuration said, as far as a page shows it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from pipeline.errors import StoreError
from pipeline.report.contract import RunReport
from pipeline.report.findings import Findings
from pipeline.report.history import HistoryRow, history, rows_of

MOST_RUNS = 60
"""Runs that a curve can show, this one included."""
ENOUGH_RUNS = 5
"""Earlier runs from which on a share beyond all of theirs is worth a word."""


@dataclass(frozen=True)
class Past:
    """Earlier runs, the first one first."""

    rows: tuple[HistoryRow, ...] = ()
    shares: tuple[dict[str, float], ...] = ()
    """Share of each class, by name, in the masks of each earlier run that still has its tables."""
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
    kept = list(dict.fromkeys(row.run_id for row in rows))[-(MOST_RUNS - 1) :]
    shares = [share for run_id in kept if (share := _shares(output / "runs" / run_id / "per_class.csv"))]
    return Past(tuple(row for row in rows if row.run_id in set(kept)), tuple(shares))


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
            scores={row.metric: row for row in rows if row.class_name is None},
            iou={row.class_name: row.value for row in rows if row.class_name is not None and row.metric == "iou"},
        )
        for run_id, rows in by_run.items()
    ]


@dataclass(frozen=True)
class Drift:
    """The share of one class in the masks, and what it was before."""

    code: int
    name: str
    now: float
    mean: float
    low: float
    high: float
    """Of earlier runs."""
    runs: int

    @property
    def unusual(self) -> bool:
        """Whether none of enough earlier runs had so little, or so much, of it."""
        return self.runs >= ENOUGH_RUNS and not self.low <= self.now <= self.high


def drifts(findings: Findings, past: Past) -> list[Drift]:
    """By class; nothing where nothing is known of earlier masks."""
    found = []
    for c in findings.classes:
        before = [share[c.name] for share in past.shares if c.name in share]
        if before and c.mask_share == c.mask_share:
            found.append(Drift(c.code, c.name, c.mask_share, fmean(before), min(before), max(before), len(before)))
    return found


def _before(row: HistoryRow, report: RunReport) -> bool:
    return row.run_id != report.run_id and _moment(row.started) < _moment(report.started)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _shares(path: Path) -> dict[str, float]:
    """Shares of the classes from the table of an earlier run; nothing where it is not there or of another kind."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            pixels = {_plain(row["class"]): int(row["mask_px"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, TypeError):
        return {}
    total = sum(pixels.values())
    return {name: px / total for name, px in pixels.items()} if total else {}


def _plain(name: str) -> str:
    """Without the apostrophe that keeps a spreadsheet from running it."""
    return name[1:] if name[:1] == "'" and name[1:].lstrip()[:1] in ("=", "+", "-", "@") else name


def days(moments: Sequence[str]) -> list[str]:
    """Short dates: 12 Nov; the text itself where it is none."""
    found = []
    for text in moments:
        try:
            moment = datetime.fromisoformat(text)
            found.append(f"{moment.day} {moment:%b}")
        except ValueError:
            found.append(text[:10])
    return found
