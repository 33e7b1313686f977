"""The ledgers of an output: what they say to a person, and how one is made anew from the records beside the masks."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, GigamaskError, OutputError, StoreError
from pipeline.finished import keep, masks, read_record
from pipeline.ledger import LEDGER, Ledger, Run, readable_rows
from pipeline.lock import HeldError, holding
from pipeline.night import LOCK
from pipeline.records import PREDICT, SEGMENT, BlockRecord
from pipeline.report import read_report
from pipeline.report.contract import ImageResult

ASIDE = "before-rebuild"
"""What a ledger's name ends in that another has taken the place of."""
_FILES = ("-wal", "-shm", "")
"""What SQLite's files end in: those that belong to a ledger are moved before it, as they would be taken for the next one's."""


@dataclass(frozen=True)
class Trouble:
    """A block that did not go through at once."""

    image: str
    """Image id; empty where nobody knows it any more."""
    digest: str
    record: BlockRecord


@dataclass
class Account:
    """What one ledger says."""

    name: str
    """Its path inside the output."""
    runs: list[Run] = field(default_factory=list)
    under_way: str | None = None
    """Who holds the folder; None where nobody does, so that a run without an end was broken off."""
    images: list[ImageResult] = field(default_factory=list)
    """With a mask; under their newest digest and under earlier ones."""
    failed: list[ImageResult] = field(default_factory=list)
    """Without a mask, as the report of the last finished run has them."""
    unfinished: dict[str, int] = field(default_factory=dict)
    """Image id -> blocks that are done, of masks that were begun."""
    troubles: list[Trouble] = field(default_factory=list)
    problem: str | None = None
    """Why the rest is not known."""


@dataclass
class Rebuilt:
    """What a rebuilt ledger was made of."""

    path: Path
    masks: int = 0
    blocks: int = 0
    taken_over: dict[str, int] = field(default_factory=dict)
    """Rows that no record beside a mask holds, by table: they come from the ledger that was there."""
    aside: list[Path] = field(default_factory=list)
    """Where ledgers are kept that are no longer used."""
    damaged: list[str] = field(default_factory=list)
    """Records that could not be read, and why."""
    without_mask: list[str] = field(default_factory=list)
    """Records whose mask is gone: not done."""


def ledger_paths(output: Path) -> list[Path]:
    """The ledger of an output, then those of its parts, as far as they are there."""
    return [path for path in (output / LEDGER, *sorted((output / "parts").glob(f"*/{LEDGER}"))) if path.is_file()]


def open_ledgers(output: Path) -> Iterator[tuple[str, Ledger | StoreError]]:
    """(path inside the output, ledger to read from) of each; the error instead, where one cannot be opened."""
    for path in ledger_paths(output):
        name = str(path.relative_to(output))
        try:
            yield name, Ledger(path, read_only=True)
        except StoreError as e:
            yield name, e


def accounts(output: Path) -> list[Account]:
    """What the ledgers of an output say, also while a run writes them. ConfigError where there is none."""
    found = []
    for name, ledger in open_ledgers(output):
        account = Account(name, under_way=under_way((output / name).with_name(LOCK)))
        found.append(account)
        if not isinstance(ledger, Ledger):
            account.problem = str(ledger)
            continue
        with ledger:
            try:
                _read(account, ledger, output)
            except (StoreError, OutputError) as e:
                account.problem = str(e)
    if not found:
        raise ConfigError(f"{output} has no ledger: it is no output of gigamask, or its ledger was removed; {_rebuild(output)}")
    return found


def under_way(lock: Path) -> str | None:
    """Who holds the lock of a ledger's folder; a note in it is there only while a run is, and after it was killed."""
    if not lock.is_file() or not lock.stat().st_size:
        return None
    try:
        with holding(lock, "", "", shared=True):
            return None
    except HeldError as e:
        return str(e).partition(": two runs")[0]
    except OutputError:
        return None


def _read(account: Account, ledger: Ledger, output: Path) -> None:
    account.runs = ledger.runs()
    every = ledger.every_image(SEGMENT, ImageResult)
    account.images = [result for _, _, result in every]
    image_of = {digest: image for image, digest, _ in every}
    for work in _unfinished(output):
        image_of.setdefault(_digest_of(work), work.parent.name)
        done = ledger.count_blocks(_digest_of(work), PREDICT)
        if done:
            account.unfinished[work.parent.name] = done
    account.troubles = [Trouble(image_of.get(digest, ""), digest, r) for digest, r in ledger.troubled_blocks(BlockRecord)]
    last = next((run for run in reversed(account.runs) if run.finished is not None), None)
    if last is not None:
        with suppress(GigamaskError, OSError):
            report = read_report(output / "runs" / last.run)
            account.failed = [image for image in report.images if image.state == "failed"]


def rebuild(output: Path) -> Rebuilt:
    """Make the ledger of `output` anew from the records beside its masks, and put it in the place of the old one, which is kept.

    Only runs, what the last of them saw, its pictures, and blocks of unfinished masks are in no such record: they are taken over
    from the old ledger, as far as it can still be read. HeldError where a run is at work; ConfigError where there is nothing.
    """
    if not (output / "masks").is_dir() and not ledger_paths(output):
        raise ConfigError(f"{output} is no output of gigamask: it has neither masks nor a ledger")
    with holding(output / LOCK, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "gigamask ledger rebuild"):
        path = output / LEDGER
        draft = path.with_name(f".{LEDGER}.new")
        if not path.is_file() and draft.is_file() and _sound(draft):
            draft.replace(path)  # an earlier rebuild was killed when the old ledger was aside already
        for end in _FILES:
            draft.with_name(draft.name + end).unlink(missing_ok=True)
        rebuilt = Rebuilt(path)
        with Ledger(draft) as ledger, ledger.together():
            _fill(ledger, output, rebuilt)
        for old in ledger_paths(output):
            if old == path or not _sound(old):
                rebuilt.aside.append(_set_aside(old))
        draft.replace(path)
    return rebuilt


def _fill(ledger: Ledger, output: Path, rebuilt: Rebuilt) -> None:
    """Put into the empty `ledger` what the records say, then what only the old one knows."""
    for mask in masks(output):
        name = str(mask.with_suffix(".json").relative_to(output))
        try:
            finished = read_record(mask)
        except StoreError as e:
            rebuilt.damaged.append(f"{name}: {str(e.__cause__).partition(chr(10))[0]}")
            continue
        if (finished.plan.image.id, finished.plan.digest) != (mask.parent.name, mask.stem):
            rebuilt.damaged.append(f"{name}: its plan is that of {finished.plan.image.id}/{finished.plan.digest}")
            continue
        if not mask.is_dir():
            rebuilt.without_mask.append(name)
            continue
        keep(ledger, finished)
        rebuilt.masks += 1
        rebuilt.blocks += len(finished.blocks)
    unfinished = {_digest_of(work) for work in _unfinished(output)}
    if not (output / LEDGER).is_file():
        return
    for table, row in readable_rows(output / LEDGER):
        if _only_there(table, row, unfinished):
            ledger.put_row(table, row)
            rebuilt.taken_over[table] = rebuilt.taken_over.get(table, 0) + 1


def _only_there(table: str, row: tuple[Any, ...], unfinished: set[str]) -> bool:
    """Whether no record beside a mask holds what a row says."""
    if table == "runs":
        return all(isinstance(text, str) for text in row[:2])
    try:
        json.loads(row[3])
    except (TypeError, ValueError):
        return False
    if table == "blocks":
        return row[0] in unfinished and row[1] == PREDICT
    return row[2] != SEGMENT and not str(row[2]).startswith("score-")


def _sound(path: Path) -> bool:
    try:
        with Ledger(path, read_only=True) as ledger:
            return not ledger.damage()
    except (StoreError, OutputError):
        return False


def _set_aside(path: Path) -> Path:
    """Rename a ledger, its journal first; where to."""
    number, aside = 1, path.with_name(f"{path.name}.{ASIDE}")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{ASIDE}-{number}")
    for end in _FILES:
        file = path.with_name(path.name + end)
        if file.exists():
            file.rename(aside.with_name(aside.name + end))
    return aside


def _unfinished(output: Path) -> list[Path]:
    """The mosaics that were begun, and are not published."""
    return sorted(path for path in (output / "masks").glob("*/.*.partial") if path.is_dir())


def _digest_of(work: Path) -> str:
    return work.name.removesuffix(".partial").rpartition(".")[2]


def _rebuild(output: Path) -> str:
    return f"`gigamask ledger rebuild {shlex.quote(str(output))}` makes one from the records beside the masks"
