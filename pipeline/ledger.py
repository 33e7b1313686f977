"""What is done: one SQLite file with one writer, the driver. A record replaces an earlier one, so nothing counts twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field

from pipeline.errors import StoreError
from pipeline.image import Frozen

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    digest TEXT NOT NULL, task TEXT NOT NULL, block INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (digest, task, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    image TEXT NOT NULL, digest TEXT NOT NULL, task TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (image, digest, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, started TEXT NOT NULL, finished TEXT, exit_code INTEGER);
"""


class BlockRecord(Frozen):
    """What is kept of a predicted block."""

    block: int
    """Its index."""
    state: Literal["done", "empty", "failed"]
    """empty: no valid pixel in it; failed: none of it could be predicted."""
    tiles: int = 0
    """Tiles that went through the model."""
    class_px: tuple[int, ...] = ()
    """Pixels by class code."""
    failed_px: int = 0
    no_data_px: int = 0
    seconds: float = 0.0
    """Time on the worker."""
    attempt: int = 1
    error: str | None = None
    """Cause and traceback, of a block or of a part of it."""


class BlockScore(Frozen):
    """What is kept of a scored block."""

    block: int
    counts: tuple[tuple[int, ...], ...]
    """Confusion matrix (K + 1, K + 2)."""
    unknown: dict[int, int] = Field(default_factory=dict)
    """Label values that are no class and not ignored, and their pixels."""
    seconds: float = 0.0


Record = TypeVar("Record", bound=Frozen)


class Ledger:
    """The ledger in one file. Threads of the driver may share it; no other process writes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as e:
            raise StoreError(
                f"ledger {path} cannot be opened ({e}): without it nothing that is done would be known. "
                "Make its folder writable, or move a damaged file away and run again"
            ) from e
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put_block(self, digest: str, task: str, block: int, record: Frozen) -> None:
        """Keep the record of a block, in place of an earlier one."""
        with self._writing() as db:
            db.execute("REPLACE INTO blocks VALUES (?, ?, ?, ?)", (digest, task, block, record.model_dump_json()))

    def blocks(self, digest: str, task: str, kind: type[Record]) -> dict[int, Record]:
        """Block index -> record."""
        query = "SELECT block, record FROM blocks WHERE digest = ? AND task = ?"
        with self._lock:
            rows = self._db.execute(query, (digest, task)).fetchall()
        return {block: kind.model_validate_json(text) for block, text in rows}

    def put_image(self, image: str, digest: str, task: str, record: Frozen) -> None:
        """Keep the record of an image, in place of an earlier one."""
        with self._writing() as db:
            db.execute("REPLACE INTO images VALUES (?, ?, ?, ?)", (image, digest, task, record.model_dump_json()))

    def image(self, image: str, digest: str, task: str, kind: type[Record]) -> Record | None:
        """The record of an image; None where there is none."""
        query = "SELECT record FROM images WHERE image = ? AND digest = ? AND task = ?"
        with self._lock:
            row = self._db.execute(query, (image, digest, task)).fetchone()
        return kind.model_validate_json(row[0]) if row else None

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
                raise StoreError(f"ledger cannot be written ({e}): free the disk or its lock, then run again to resume") from e
