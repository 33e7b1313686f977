"""Two writers of one file at the same moment, errors halfway, and what killed processes leave."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline import atomic
from pipeline.atomic import draft_beside, replacing, sweep_drafts, write_bytes


def test_two_writers_at_the_same_moment_each_finish_and_the_last_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    with replacing(path) as first:
        first.write_bytes(b"first, ")
        with replacing(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
        first.write_bytes(first.read_bytes() + b"to its end")
    assert path.read_bytes() == b"first, to its end"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_halfway_leaves_the_file_that_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_bytes(path, b"whole", durable=True)

    def interrupted() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(OSError, match="No such file"):
        write_bytes(tmp_path / "nowhere" / "a", b"")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_many_threads_write_one_file_and_readers_never_see_half_of_it(tmp_path: Path) -> None:
    path, errors, over = tmp_path / "a.bin", [], threading.Event()
    contents = [bytes([n]) * 200_000 for n in range(4)]
    write_bytes(path, contents[0])

    def write(content: bytes) -> None:
        try:
            for _ in range(30):
                write_bytes(path, content)
        except OSError as e:
            errors.append(e)

    def read() -> None:
        while not over.is_set():
            if path.read_bytes() not in contents:
                errors.append(OSError("half a file"))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    reader.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


def test_drafts_of_killed_processes_go_after_a_day_and_those_at_work_stay(tmp_path: Path) -> None:
    path = tmp_path / "mask [1].tif"
    fresh, stale, folder = (draft_beside(path) for _ in range(3))
    other = draft_beside(tmp_path / "mask 1.tif")
    assert len({fresh, stale, folder}) == 3
    assert fresh.suffix == ".tif"
    for file in (fresh, stale, other):
        file.touch()
    folder.mkdir()
    (folder / "inside").touch()
    for old in (stale, folder / "inside", folder, other):
        os.utime(old, (time.time() - atomic.STALE_SECONDS - 60,) * 2)
    sweep_drafts(path)
    assert {*tmp_path.iterdir()} == {fresh, other}


def test_a_folder_in_which_a_file_is_still_written_is_not_swept_however_old_the_folder_is(tmp_path: Path) -> None:
    out = tmp_path / "mask.tif"
    folder = draft_beside(out)
    folder.mkdir()
    with (folder / out.name).open("wb") as file:
        os.utime(folder, (time.time() - atomic.STALE_SECONDS - 60,) * 2)
        file.write(b"the second day")
    sweep_drafts(out)
    assert (folder / out.name).read_bytes() == b"the second day"


@pytest.mark.parametrize("name", ["a" * 251 + ".tif", "ü" * 125 + ".json", "a." + "b" * 253])
def test_a_file_may_have_the_longest_name_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
    left = draft_beside(path)
    left.touch()
    os.utime(left, (time.time() - atomic.STALE_SECONDS - 60,) * 2)
    sweep_drafts(path)
    assert list(tmp_path.iterdir()) == [path]
