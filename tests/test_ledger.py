"""The ledger: a record replaces an earlier one, and what was written is there after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.ledger import BlockRecord, Ledger


def record(block: int, **facts: object) -> BlockRecord:
    return BlockRecord(**{"block": block, "state": "done"} | facts)  # type: ignore[arg-type]


def test_a_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_block("d", "predict", 3, record(3, state="failed", error="once"))
        ledger.put_block("d", "predict", 3, record(3, class_px=(1, 2)))
        assert ledger.blocks("d", "predict", BlockRecord) == {3: record(3, class_px=(1, 2))}


def test_digests_and_tasks_do_not_mix(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_block("d", "predict", 1, record(1))
        assert ledger.blocks("other", "predict", BlockRecord) == {}
        assert ledger.blocks("d", "score-x", BlockRecord) == {}
        ledger.put_image("image", "d", "segment", record(1))
        assert ledger.image("image", "other", "segment", BlockRecord) is None
        assert ledger.image("image", "d", "segment", BlockRecord) == record(1)


def test_what_was_put_is_there_after_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from pipeline.ledger import BlockRecord, Ledger
ledger = Ledger(Path({str(tmp_path / "l.sqlite")!r}))
for block in range(5):
    ledger.put_block("d", "predict", block, BlockRecord(block=block, state="done"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert sorted(ledger.blocks("d", "predict", BlockRecord)) == [0, 1, 2, 3, 4]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Ledger(tmp_path / "l.sqlite")
