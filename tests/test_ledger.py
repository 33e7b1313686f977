"""The ledger: a record replaces an earlier one, and what was written is there after a kill."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import OutputError, StoreError
from pipeline.ledger import Ledger, Run, readable_rows
from pipeline.records import BlockRecord


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
from pipeline.ledger import Ledger
from pipeline.records import BlockRecord
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


def test_what_is_put_together_is_there_together_or_not_at_all(tmp_path: Path) -> None:
    def halfway(ledger: Ledger) -> None:
        with ledger.together():
            ledger.put_block("d", "predict", 1, record(1))
            raise RuntimeError("halfway")

    with Ledger(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(RuntimeError, match="halfway"):
            halfway(ledger)
        assert ledger.blocks("d", "predict", BlockRecord) == {}
        with ledger.together():
            ledger.put_block("d", "predict", 1, record(1))
            ledger.put_image("image", "d", "segment", record(1))
        assert ledger.blocks("d", "predict", BlockRecord) == {1: record(1)}
        assert ledger.image("image", "d", "segment", BlockRecord) == record(1)


def big(path: Path) -> Path:
    """A closed ledger of many pages."""
    with Ledger(path) as ledger, ledger.together():
        for block in range(2000):
            ledger.put_block("d", "predict", block, record(block, error="x" * 100))
    return path


def test_damage_that_opening_does_not_meet_names_the_way_out_when_it_is_met(tmp_path: Path) -> None:
    path = big(tmp_path / "out" / "ledger.sqlite")
    content = path.read_bytes()
    path.write_bytes(content[: 4 * 4096] + b"\xa5" * (len(content) - 4 * 4096))
    way_out = re.escape(f"`gigamask ledger rebuild {tmp_path / 'out'}`")
    with Ledger(path) as ledger:
        with pytest.raises(OutputError, match=rf"(?s)cannot be read: it is damaged.*{way_out}"):
            ledger.blocks("d", "predict", BlockRecord)
        with pytest.raises(OutputError, match=rf"(?s)cannot be written: it is damaged.*{way_out}"):
            ledger.put_block("d", "predict", 1000, record(1000))
        assert ledger.damage()


def test_a_torn_ledger_names_the_way_out_and_tells_what_can_still_be_read(tmp_path: Path) -> None:
    path = big(tmp_path / "ledger.sqlite")
    with Ledger(path) as ledger:
        ledger.start_run("r", "2026-01-01")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    def read() -> None:
        with Ledger(path) as ledger:
            ledger.blocks("d", "predict", BlockRecord)

    with pytest.raises((StoreError, OutputError), match="gigamask ledger rebuild"):
        read()
    assert ("runs", ("r", "2026-01-01", None, None)) in list(readable_rows(path))


def test_the_ledger_of_a_part_names_the_output_and_any_other_file_itself(tmp_path: Path) -> None:
    for name, said in (
        ("out/parts/1-of-2/ledger.sqlite", f"rebuild {tmp_path / 'out'}`"),
        (".a.zarr.ledger.sqlite", "Move it away"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something else entirely" * 100)
        with pytest.raises(StoreError, match=re.escape(said)):
            Ledger(path)


def test_a_record_that_means_nothing_is_told_as_such(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put_row("blocks", ("d", "predict", 0, '{"block": "many"}'))
        with pytest.raises(StoreError, match=r"holds a record that means nothing \(BlockRecord.*gigamask ledger rebuild"):
            ledger.blocks("d", "predict", BlockRecord)


def test_a_ledger_is_read_while_another_writes_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(StoreError, match="cannot be opened"):
        Ledger(path, read_only=True)
    with Ledger(path) as writer, Ledger(path, read_only=True) as reader:
        writer.start_run("r", "2026-01-01")
        writer.put_block("d", "predict", 1, record(1))
        writer.put_block("d", "predict", 2, record(2, attempt=2))
        assert reader.runs() == [Run("r", "2026-01-01", None, None)]
        assert reader.troubled_blocks(BlockRecord) == [("d", record(2, attempt=2))]
        assert reader.count_blocks("d", "predict") == 2
        with pytest.raises(OutputError, match="readonly"):
            reader.start_run("s", "2026-01-02")
        writer.finish_run("r", "2026-01-01", 1)
        assert reader.runs() == [Run("r", "2026-01-01", "2026-01-01", 1)]
