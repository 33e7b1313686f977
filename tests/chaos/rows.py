"""One fault, how it was caused, and what came of it: a row of the table, and whether it is as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.report.contract import RunReport
from tests.chaos.runs import BlockKey, Ended, Reference, Trial, mask_files, results


@dataclass
class Row:
    """A row of the table."""

    fault: str
    how: str
    """How it was caused."""
    times: int = 0
    lost: int = 0
    """Blocks whose record was in the ledger before the fault, and which were predicted again without need."""
    recomputed: int = 0
    """How often blocks were predicted beyond the first time of each."""
    equal: str = "not compared"
    """Whether the final bytes and counts are those of an undisturbed run; where they cannot be, what else was checked."""
    said: str = ""
    """What the run said."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""
    """Why the fault cannot be caused here; empty: it was."""

    @property
    def good(self) -> bool:
        """Whether everything is as it must be."""
        return not self.problems and not self.lost and (self.equal.startswith("yes") or bool(self.skipped))

    def expect(self, holds: bool, problem: str) -> None:
        """Note `problem` unless `holds`."""
        if not holds:
            self.problems.append(problem)

    def ended(self, run: Ended, code: int, *words: str) -> None:
        """The run must have ended with this code, and have said these words."""
        self.expect(run.code == code, f"exit code {run.code} instead of {code}: {run.err[-1500:]}")
        missing = [word for word in words if word not in run.err]
        self.expect(not missing, f"not said: {missing} in {run.err[-1500:]!r}")
        self.said = run.said or self.said


@dataclass
class Watched:
    """What was known before a fault, to be held against what was done after it."""

    trial: Trial
    reference: Reference
    records: dict[BlockKey, str] = field(default_factory=dict)
    log_bytes: int = 0
    times: int = 0

    def fault(self, *, damaged: set[BlockKey] | None = None) -> dict[BlockKey, str]:
        """A fault has happened, and no run is under way: what is in the ledger now must stay, but for what it `damaged`."""
        self.records = {
            key: record for key, record in self.trial.records(self.reference).items() if key not in (damaged or set())
        }
        self.log_bytes = self.trial.log.stat().st_size
        self.times += 1
        return self.records

    def check(self, row: Row) -> None:
        """After the next run: which of the blocks that were done then were predicted again."""
        again = self.trial.begun(self.reference, self.log_bytes)
        row.lost += sum(again[key] > 0 for key in self.records)
        after = self.trial.records(self.reference)
        changed = sorted(key for key, record in self.records.items() if after.get(key) != record)
        row.expect(not changed, f"records of finished blocks changed: {changed}")


def finish(row: Row, trial: Trial, reference: Reference, report: RunReport, unlike: frozenset[str] = frozenset()) -> None:
    """Hold what a trial has left at its end against an undisturbed run; scenes in `unlike`, and those that the undisturbed run
    did not have, are for the caller to look at."""
    begun = trial.begun(reference)
    row.recomputed += sum(times - 1 for times in begun.values() if times > 1)
    row.equal = "NO" if row.equal == "NO" else "yes"
    known = {plan.image.id: name for name, plan in reference.plans.items()}
    ids = {image.id for image in report.images if known.get(image.id) in (None, *unlike)}
    expected = {name: content for name, content in reference.files.items() if Path(name).parts[0] not in ids}
    files = {name: content for name, content in mask_files(trial.output).items() if Path(name).parts[0] not in ids}
    wrong = sorted(name for name in expected.keys() | files.keys() if expected.get(name) != files.get(name))
    if wrong:
        row.equal = "NO"
        row.problems.append(f"other bytes than an undisturbed run: {wrong[:10]}")
    found, should = results(report), results(reference.report)
    other = sorted(name for name in should if name not in unlike and found.get(name) != should[name])
    if other:
        row.equal = "NO"
        row.problems.append(f"other results than an undisturbed run: {other}: {[found.get(name) for name in other][:2]}")
    unfinished = (".partial", ".draft", ".new", ".old", ".parts", ".npz")
    left = [p.name for p in (trial.output / "masks").rglob("*") if p.name.endswith(unfinished)]
    row.expect(not left, f"left behind: {left[:10]}")
