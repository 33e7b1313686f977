"""What the commands about finished runs print: tables and Markdown for people, JSON for programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError
from rich.table import Table

from flows.views import OUT, _json, _plain
from pipeline.config import StatisticsConfig
from pipeline.errors import StoreError
from pipeline.report.contract import RunReport
from pipeline.report.evaluation import compare_runs
from pipeline.report.summary import comparison_md
from pipeline.statistics.conventions import conventions


def show_rendered(run: Path, files: dict[str, Path], *, as_json: bool) -> None:
    """Which files were made."""
    if as_json:
        _json({"run": str(run), "files": {name: str(path) for name, path in files.items()}})
        return
    OUT.print(f"made anew: {', '.join(files)}; report: {files['report.html']}")


def show_comparison(before: RunReport, after: RunReport, *, as_json: bool) -> None:
    """`after` against `before`: Markdown, or JSON."""
    try:
        statistics = StatisticsConfig.model_validate(after.config.get("statistics", {}))
    except ValidationError:  # of another version
        statistics = StatisticsConfig()
    try:
        found = compare_runs(before, after, statistics)
    except ValueError as e:
        raise StoreError(f"run {after.run_id} cannot be compared: {e}") from e
    if as_json:
        names = [info.name for info in after.classes]
        _json({"run_id": after.run_id, "class_names": names, **found.model_dump(mode="json")})
    else:
        print(comparison_md(found, after), end="")  # noqa: T201 - Markdown, not rich's markup


def show_conventions(report: RunReport, *, as_json: bool) -> None:
    """The same counts by other rules."""
    matrices = [matrix for image in report.images if (matrix := image.matrix) is not None]
    found = conventions(np.stack(matrices), report.background) if matrices else ()
    if not found:
        raise StoreError(f"run {report.run_id} has scored nothing: there are no counts to compare conventions on")
    if as_json:
        rows = [{"name": c.name, "rule": c.rule, "miou": c.miou, "mdice": c.mdice} for c in found]
        _json({"run_id": report.run_id, "images": len(matrices), "conventions": rows})
        return
    table = Table(title=f"{_plain(report.title)}: the same counts of {len(matrices)} images by other rules")
    table.add_column("convention")
    for column in ("mIoU", "against ours", "mDice"):
        table.add_column(column, justify="right")
    table.add_column("rule")
    ours = found[0].miou
    for c in found:
        table.add_row(
            _plain(c.name), f"{c.miou:.4f}", "" if c is found[0] else f"{c.miou - ours:+.4f}", f"{c.mdice:.4f}", _plain(c.rule)
        )
    OUT.print(table)
