"""Every run's scores in one small Parquet file beside the ledger: rows are added, none is changed; readers need no leave."""

# pyarrow carries no types, so that mypy knows none of its names.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.atomic import write_bytes
from pipeline.config import LAST_ACCEPTED, NO_BASELINE, Config
from pipeline.errors import PlanError, StoreError
from pipeline.image import Frozen
from pipeline.report import read_report
from pipeline.report.contract import RunReport
from pipeline.report.evaluation import evaluate
from pipeline.report.signals import signals

HISTORY = "history.parquet"


class HistoryRow(Frozen):
    """One score of one run."""

    run_id: str
    name: str
    """The config's name."""
    part: str | None
    """`2/5`, where the run was about a part of the archive."""
    started: str
    finished: str
    """ISO 8601 with offset."""
    seconds: float
    """Wall time."""
    model: str
    model_digest: str
    config_digest: str
    software: str
    """Version of gigamask."""
    exit_code: int
    accepted: bool
    """Whether later runs may take it as their baseline."""
    outcome: str | None
    """The worst of its gates: pass, fail, inconclusive; None without gates."""
    images: int
    """All of the run."""
    failed_images: int
    scored_images: int
    unit: str
    """image or group."""
    metric: str
    """As in Evaluation; or what needs no labels, as in pipeline.report.signals."""
    code: int | None
    """Class code, or position of a band; None for what is of all."""
    class_name: str | None
    """Name of the class or band."""
    value: float | None
    low: float | None
    high: float | None
    """Ends of the 95 % interval; None where there is none."""
    units: int
    """How many the score rests on."""


_KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_SCHEMA = pa.schema(
    [
        (name, next(kind for python, kind in _KINDS.items() if python in (field.annotation, *get_args(field.annotation))))
        for name, field in HistoryRow.model_fields.items()
    ]
)


@dataclass(frozen=True)
class Baseline:
    """The run that a night is held against."""

    report: RunReport | None
    why_none: str
    """Why there is none; empty where there is one."""


def rows_of(report: RunReport) -> list[HistoryRow]:
    """What is kept of a run: a row for each metric, for each metric of each class, and for what is told without labels."""
    found = report.evaluation or evaluate(report)
    facts: dict[str, Any] = {
        "run_id": report.run_id,
        "name": report.name,
        "part": report.part,
        "started": report.started,
        "finished": report.finished,
        "seconds": report.seconds,
        "model": report.model.name,
        "model_digest": report.model.digest,
        "config_digest": report.config_digest,
        "software": report.software.get("gigamask", "unknown"),
        "exit_code": report.exit_code,
        "accepted": found.accepted,
        "outcome": found.outcome,
        "images": len(report.images),
        "failed_images": sum(image.state == "failed" for image in report.images),
        "scored_images": found.images,
        "unit": found.unit,
    }
    scores = [
        HistoryRow(
            **facts,
            metric=metric,
            code=code,
            class_name=None if code is None else report.classes[code].name,
            value=e.value,
            low=e.low,
            high=e.high,
            units=e.units,
        )
        for code, entries in [(None, found.overall), *enumerate(found.classes)]
        for metric, e in entries.items()
    ]
    return scores + [
        HistoryRow(**facts, metric=s.metric, code=s.code, class_name=s.name, value=s.value, low=None, high=None, units=s.images)
        for s in signals(report)
    ]


def history(output: Path, name: str | None = None) -> list[HistoryRow]:
    """All rows, or those of the configuration `name`, the first run first; none where there is no history yet.

    Also while a run writes: what is read is whole, before its rows or with them. StoreError where the file is damaged.
    """
    path = output / HISTORY
    if not path.exists():
        return []
    try:
        rows = [HistoryRow.model_validate(row) for row in pq.read_table(path, columns=_SCHEMA.names).to_pylist()]
    except (OSError, pa.ArrowException, ValidationError) as e:
        what = str(e).partition("\n")[0]
        raise StoreError(f"the history {path} is damaged ({what}): the next run puts it aside and makes it anew") from e
    return [row for row in rows if name is None or row.name == name]


def note_run(home: Path, report: RunReport) -> None:
    """Add the rows of a run, unless they are there. The caller keeps other writers away from `home`."""
    known = history(home)
    if all(row.run_id != report.run_id for row in known):
        _write(home / HISTORY, [*known, *rows_of(report)])


def mend(home: Path, runs: Path, part: str | None, say: Callable[[str], None]) -> None:
    """Make a damaged or missing history anew from the reports in `runs`, of runs about the same part. What is damaged is kept
    beside it."""
    path = home / HISTORY
    try:
        if path.exists():
            history(home)
            return
    except StoreError as e:
        aside = _free(path)
        path.replace(aside)
        say(f"{e}; it is now {aside.name}")
    rows = [row for report in _reports(runs) if report.part == part for row in rows_of(report)]
    if rows:
        _write(path, rows)
        say(f"history of {len({row.run_id for row in rows})} earlier runs taken from their reports")


def baseline_of(config: Config, home: Path) -> Baseline:
    """What `report.baseline` names. PlanError where it names a run that has no readable report."""
    wanted, runs = config.report.baseline, config.output / "runs"
    if wanted == NO_BASELINE:
        return Baseline(None, "report.baseline is none")
    if wanted == LAST_ACCEPTED:
        accepted = dict.fromkeys(row.run_id for row in history(home, config.name) if row.accepted)
        for run_id in reversed(accepted):
            try:
                return Baseline(read_report(runs / run_id), "")
            except StoreError:  # tidied away: the one before it serves as well
                continue
        return Baseline(None, f"no earlier run of {config.name} was accepted")
    folder = Path(wanted) if "/" in wanted else runs / wanted
    try:
        return Baseline(read_report(folder), "")
    except StoreError as e:
        raise PlanError(f"report.baseline: {wanted}: {e}. Name a run in {runs}, or a path with a slash") from e


def _reports(runs: Path) -> Iterator[RunReport]:
    """All readable reports, the first run first: ids begin with the time."""
    for path in sorted(runs.glob("*/report.json")):
        try:
            yield read_report(path.parent)
        except StoreError:
            continue


def _free(path: Path) -> Path:
    """A name beside `path` that nothing has."""
    names = (path.with_name(f"{path.stem}.damaged{i or ''}{path.suffix}") for i in count())
    return next(name for name in names if not name.exists())


def _write(path: Path, rows: list[HistoryRow]) -> None:
    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=_SCHEMA)
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    write_bytes(path, content.getvalue(), durable=True)
