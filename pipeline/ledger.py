"""What is done: one SQLite file with one writer, the driver. A record replaces an earlier one, so nothing counts twice."""

from __future__ import annotations

import os
import shlex
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from pipeline.errors import OutputError, StoreError
from pipeline.image import Frozen
from pipeline.records import PREDICT

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    digest TEXT NOT NULL, task TEXT NOT NULL, block INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (digest, task, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    image TEXT NOT NULL, digest TEXT NOT NULL, task TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (image, digest, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, started TEXT NOT NULL, finished TEXT, exit_code INTEGER);
"""
LEDGER = "ledger.sqlite"
"""The ledger's name in an output folder, and in the folder of a part."""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_COLUMNS = {"runs": 4, "images": 4, "blocks": 4}


Record = TypeVar("Record", bound=Frozen)


@dataclass(frozen=True)
class Run:
    """A run, as the ledger knows it."""

    run: str
    """Its id."""
    started: str
    """ISO 8601 with offset."""
    finished: str | None
    """None where it is under way, or was broken off."""
    exit_code: int | None


class Ledger:
    """The ledger in one file. Threads of the driver may share it; no other process writes.

    `read_only`: it must be there, may be another process's, and is left as it is.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            self._db = _connect(path, read_only=read_only)
        except sqlite3.Error as e:
            way_out = f"It is damaged: {_way_out(path)}" if _is_damage(e) else "Make its folder writable"
            raise StoreError(
                f"ledger {path} cannot be opened ({e}): without it nothing that is done would be known. {way_out}"
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is put within is there after a kill, or nothing of it: one wait for the disk instead of one for each."""
        with self._writing() as db:
            if db.in_transaction:
                yield
                return
            db.execute("BEGIN")
            try:
                yield
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def put_block(self, digest: str, task: str, block: int, record: Frozen) -> None:
        """Keep the record of a block, in place of an earlier one."""
        with self._writing() as db:
            db.execute("REPLACE INTO blocks VALUES (?, ?, ?, ?)", (digest, task, block, record.model_dump_json()))

    def blocks(self, digest: str, task: str, kind: type[Record]) -> dict[int, Record]:
        """Block index -> record."""
        query = "SELECT block, record FROM blocks WHERE digest = ? AND task = ?"
        with self._reading() as db:
            return {block: kind.model_validate_json(text) for block, text in db.execute(query, (digest, task))}

    def troubled_blocks(self, kind: type[Record]) -> list[tuple[str, Record]]:
        """(digest, record) of every predicted block that was tried more than once, killed a worker, or holds failed pixels."""
        query = """SELECT digest, record FROM blocks WHERE task = ? AND (json_extract(record, '$.attempt') > 1
            OR json_extract(record, '$.deaths') > 0 OR json_extract(record, '$.failed_px') > 0) ORDER BY digest, block"""
        with self._reading() as db:
            return [(digest, kind.model_validate_json(text)) for digest, text in db.execute(query, (PREDICT,))]

    def count_blocks(self, digest: str, task: str) -> int:
        """How many blocks have a record."""
        with self._reading() as db:
            row = db.execute("SELECT COUNT(*) FROM blocks WHERE digest = ? AND task = ?", (digest, task)).fetchone()
            return int(row[0])

    def put_image(self, image: str, digest: str, task: str, record: Frozen) -> None:
        """Keep the record of an image, in place of an earlier one."""
        with self._writing() as db:
            db.execute("REPLACE INTO images VALUES (?, ?, ?, ?)", (image, digest, task, record.model_dump_json()))

    def image(self, image: str, digest: str, task: str, kind: type[Record]) -> Record | None:
        """The record of an image; None where there is none."""
        query = "SELECT record FROM images WHERE image = ? AND digest = ? AND task = ?"
        with self._reading() as db:
            row = db.execute(query, (image, digest, task)).fetchone()
            return kind.model_validate_json(row[0]) if row else None

    def images(self, digest: str, task: str, kind: type[Record]) -> dict[str, Record]:
        """Image -> its record, of all images."""
        query = "SELECT image, record FROM images WHERE digest = ? AND task = ?"
        with self._reading() as db:
            return {image: kind.model_validate_json(text) for image, text in db.execute(query, (digest, task))}

    def every_image(self, task: str, kind: type[Record]) -> list[tuple[str, str, Record]]:
        """(image, digest, record) of all images under any digest, in order."""
        query = "SELECT image, digest, record FROM images WHERE task = ? ORDER BY image, digest"
        with self._reading() as db:
            return [(image, digest, kind.model_validate_json(text)) for image, digest, text in db.execute(query, (task,))]

    def tasks(self, image: str, digest: str) -> set[str]:
        """What is known of an image: the tasks that it has a record of."""
        with self._reading() as db:
            rows = db.execute("SELECT task FROM images WHERE image = ? AND digest = ?", (image, digest)).fetchall()
            return {task for (task,) in rows}

    def runs(self) -> list[Run]:
        """All runs, the first one first."""
        with self._reading() as db:
            return [Run(*row) for row in db.execute("SELECT run, started, finished, exit_code FROM runs ORDER BY started, run")]

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing where it is sound."""
        with self._reading() as db:
            found = [str(row[0]) for row in db.execute("PRAGMA quick_check")]
            return [] if found == ["ok"] else found

    def put_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Put a row of another ledger (`readable_rows`) as it is, unless there is one of its key."""
        with self._writing() as db:
            db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * _COLUMNS[table])})", row)  # noqa: S608

    def forget(self, image: str, digest: str) -> None:
        """Let go of what was known of a mask that has just been made anew: its scores and pictures, but not its blocks."""
        with self.together(), self._writing() as db:
            db.execute("DELETE FROM images WHERE image = ? AND digest = ?", (image, digest))
            db.execute("DELETE FROM blocks WHERE digest = ? AND task != ?", (digest, PREDICT))

    def start_run(self, run: str, started: str) -> None:
        """Note that a run has begun."""
        with self._writing() as db:
            db.execute("REPLACE INTO runs VALUES (?, ?, NULL, NULL)", (run, started))

    def finish_run(self, run: str, finished: str, exit_code: int) -> None:
        """Note how a run has ended."""
        with self._writing() as db:
            db.execute("UPDATE runs SET finished = ?, exit_code = ? WHERE run = ?", (finished, exit_code, run))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as e:
                raise self._trouble("written", e) from e

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as e:
                raise self._trouble("read", e) from e
            except ValidationError as e:
                what = f"{e.title}: {e.errors()[0]['msg']}"
                raise StoreError(f"ledger {self._path} holds a record that means nothing ({what}): {_way_out(self._path)}") from e

    def _trouble(self, done: str, error: sqlite3.Error) -> OutputError:
        """What ends the run: without a ledger nobody would know what is done."""
        if _is_damage(error):
            return OutputError(f"the ledger {self._path} cannot be {done}: it is damaged ({error}). {_way_out(self._path)}")
        return OutputError(
            f"the ledger cannot be {done} ({error}): what it knows is kept. Make room, or the folder writable, then run the "
            "same command again to go on"
        )


def readable_rows(path: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(table, row) of all that can still be read of a ledger, however damaged it is."""
    for table in _COLUMNS:
        try:
            with closing(_file(path, read_only=True)) as db:
                db.execute("PRAGMA writable_schema=ON")  # has SQLite read what there is of a torn file
                for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - names of ours
                    if len(row) == _COLUMNS[table]:
                        yield table, row
        except (sqlite3.Error, UnicodeDecodeError):
            continue


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """The ledger, ready for use; sqlite3.Error where that shows it to be none, or damaged."""
    db = _file(path, read_only=read_only)
    try:
        if not read_only:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db


def _file(path: Path, *, read_only: bool) -> sqlite3.Connection:
    name = str(path)
    if read_only:
        alone = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
        name = f"{path.absolute().as_uri()}?mode=ro" + "&immutable=1" * alone
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(name, uri=read_only, check_same_thread=False, isolation_level=None, timeout=30)


def _is_damage(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


def _way_out(path: Path) -> str:
    """What to do about a damaged ledger."""
    if path.name != LEDGER:
        return "Move it away and run again"
    output = path.parents[2] if path.parent.parent.name == "parts" and len(path.parents) > 2 else path.parent
    return f"`gigamask ledger rebuild {shlex.quote(str(output))}` makes it anew from the records beside the masks"
