"""Who may work in a folder at the same time, whatever the order in which processes come to it."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.console import Quiet
from pipeline import audit, books, lock, night
from pipeline.cluster import open_workers
from pipeline.config import SerialCluster, config_of
from pipeline.errors import OutputError
from pipeline.lock import HeldError, holding
from pipeline.single import segment_one
from pipeline.survey import Division, division
from tests.conftest import write_raster
from tests.making import threshold_model

NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
SINCE = "2026-11-30T00:00:00+00:00"


def hold(output: Path, part: str | None) -> Any:
    """The locks of a run, or of a run about a part."""
    return night._hold(output, division(part) if part else None, NOW, f"gigamask run --part {part}", Quiet())


def test_a_lock_is_let_go_and_its_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.lock"
    with holding(path, SINCE, "first"), pytest.raises(HeldError, match="first"), holding(path, SINCE, "second"):
        pass
    with holding(path, SINCE, "second") as before:
        assert before is None
    assert path.read_bytes() == b""


def test_a_lock_that_is_not_kept_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with holding(path, SINCE, "first", remove=True):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("third", [True, False])
def test_a_lock_on_a_removed_file_excludes_nobody_and_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third: bool
) -> None:
    """The second process has opened the file when the first one removes it; a third one makes a new file of the same name."""
    path = tmp_path / "a.lock"
    with ExitStack() as first, ExitStack() as others:
        first.enter_context(holding(path, SINCE, "first"))
        take, calls = lock._take, []

        def late(*arguments: Any, **options: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                path.unlink()
                first.close()
                if third:
                    others.enter_context(holding(path, SINCE, "third"))
            take(*arguments, **options)

        monkeypatch.setattr(lock, "_take", late)
        if third:
            with pytest.raises(HeldError, match="third"), holding(path, SINCE, "second"):
                pass
        else:
            with holding(path, SINCE, "second"):
                monkeypatch.undo()
                with pytest.raises(HeldError, match="second"), holding(path, SINCE, "fourth"):
                    pass


def test_a_file_that_somebody_else_put_there_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with ExitStack() as other:
        with holding(path, SINCE, "first", remove=True):
            path.unlink()
            other.enter_context(holding(path, SINCE, "second"))
        with pytest.raises(HeldError, match="second"), holding(path, SINCE, "third"):
            pass


def test_patience_waits_for_a_lock_that_is_let_go_soon(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    held = threading.Event()

    def briefly() -> None:
        with holding(path, SINCE, "first"):
            held.set()
            time.sleep(0.2)

    other = threading.Thread(target=briefly)
    other.start()
    held.wait()
    with pytest.raises(HeldError), holding(path, SINCE, "second"):
        pass
    with holding(path, SINCE, "second", patience_s=20):
        pass
    other.join()


def test_whether_a_lock_is_free_is_asked_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock.check_free(path)
    assert not path.exists()
    note = '{"pid":1,"host":"elsewhere","since":"","command":"killed"}'
    path.write_text(note)
    lock.check_free(path)
    assert path.read_text() == note
    with holding(path, SINCE, "first"), pytest.raises(HeldError):
        lock.check_free(path)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (None, None, False),
        (None, "1/2", False),
        ("1/2", "1/2", False),
        ("1/2", "1/3", False),
        ("1/2", "2/3", False),
        ("1/2", "1/1", False),
        ("1/2", "2/2", True),
        ("2/12", "1/2", False),
    ],
)
def test_which_runs_exclude_each_other(tmp_path: Path, one: str | None, other: str | None, together: bool) -> None:
    for first, second in ((one, other), (other, one)):
        with hold(tmp_path, first):
            if together:
                with hold(tmp_path, second):
                    pass
            else:
                with pytest.raises(HeldError), hold(tmp_path, second):
                    pass
    with hold(tmp_path, one), suppress(HeldError), hold(tmp_path, other):
        pass


@pytest.mark.parametrize("part", [None, "1/2"])
def test_repair_and_rebuild_exclude_runs_and_parts(tmp_path: Path, part: str | None) -> None:
    (tmp_path / "masks").mkdir()
    with open_workers(SerialCluster(type="serial")) as workers:
        with hold(tmp_path, part):
            with pytest.raises(HeldError):
                audit.verify(tmp_path, workers, Quiet(), repair=True)
            with pytest.raises(HeldError):
                books.rebuild(tmp_path)
        audit.verify(tmp_path, workers, Quiet(), repair=True)
    books.rebuild(tmp_path)


def test_parts_of_two_divisions_that_start_at_once_do_not_both_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has seen that nobody is there when the second comes: before the first has taken its own lock."""
    first, second = Division(1, 2), Division(1, 3)
    holding_now: list[str] = []
    over = threading.Event()

    def run(part: Division) -> None:
        with suppress(OutputError), hold(tmp_path, str(part)):
            holding_now.append(str(part))
            over.wait(20)

    other = threading.Thread(target=run, args=(second,))

    def own_lock_late(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == tmp_path / "parts" / "1-of-2" / night.LOCK and not other.ident:
            other.start()
            other.join(0.5)
        return holding(path, *arguments, **options)

    monkeypatch.setattr(night, "holding", own_lock_late)
    with hold(tmp_path, str(first)):
        holding_now.append(str(first))
        other.join(0.5)
        assert holding_now == ["1/2"]
    over.set()
    other.join()


def contend(output: Path, part: str, start: Any, done: Any, rounds: int, held: Any) -> None:
    """What a process does that wants a part again and again, always in the moment when the other one wants its own."""
    for number in range(rounds):
        start.wait(60)
        with suppress(HeldError), hold(output / str(number), part):
            held.put((number, part))
            done.wait(60)
            continue
        done.wait(60)


def test_of_two_processes_with_other_divisions_exactly_one_runs(tmp_path: Path) -> None:
    context, rounds = multiprocessing.get_context("spawn"), 40
    start, done, held = context.Barrier(2), context.Barrier(2), context.Queue()
    processes = [context.Process(target=contend, args=(tmp_path, part, start, done, rounds, held)) for part in ("1/2", "1/3")]
    for process in processes:
        process.start()
    found = [held.get(timeout=60) for _ in range(rounds)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert held.empty()
    assert sorted(number for number, _ in found) == list(range(rounds))


def test_segment_removes_its_ledger_while_nobody_else_can_take_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write_raster(tmp_path / "a.tif", np.full((40, 40), 200, np.uint8))
    settings = {
        "output": str(tmp_path),
        "archive": {"images": str(image)},
        "model": {"path": str(threshold_model(tmp_path / "m"))},
    }
    found = config_of({"name": "one", "cluster": {"type": "serial"}, **settings}, tmp_path, "gigamask segment")
    out, unlink, seen = tmp_path / "mask.zarr", Path.unlink, []

    def watched(path: Path, **options: Any) -> None:
        if path.name.endswith(".ledger.sqlite"):
            with pytest.raises(HeldError), holding(tmp_path / ".mask.zarr.lock", SINCE, "another"):
                pass
            seen.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", watched)
    assert segment_one(found, image, out, Quiet()).result.state == "complete"
    assert seen == [".mask.zarr.ledger.sqlite"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "m", "mask.json", "mask.zarr"]
