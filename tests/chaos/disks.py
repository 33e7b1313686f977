"""Disks that fill up or take no more, for real: a small tmpfs, which takes a Linux and its administrator."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.ground import Ground
from tests.chaos.rows import Row, Watched, finish
from tests.chaos.runs import Reference, Trial


def mounted(*words: str) -> str:
    """Run mount with these words; why it did not work, or nothing."""
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no mount"
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[str]:
    """A tmpfs of so many MiB at `folder`; gives why there is none, where it cannot be had."""
    folder.mkdir()
    problem = mounted("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder))
    try:
        yield problem
    finally:
        if not problem:
            subprocess.run(["umount", "-R", "-l", str(folder)], check=False)


def fill(folder: Path) -> Path:
    """Fill the disk of `folder` up to its last byte with a file of no use."""
    ballast = folder / f"ballast-{len(list(folder.glob('ballast-*')))}"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return ballast


def full(ground: Ground, reference: Reference) -> list[Row]:
    """A disk that fills up in the midst of runs, and grows after each; and one that is full from the beginning."""
    row = Row("full disk", "a tmpfs filled to its last byte in the midst of runs, in one process and with 2 workers; enlarged")
    before = Row("full from the beginning", "the same tmpfs, before a run")
    for workers, moments in ((0, (2, 3, 9)), (2, (4,))):
        with small_disk(ground.folder / f"disk{workers}", 16) as problem:
            if problem:
                row.skipped = before.skipped = f"no tmpfs can be mounted here: {problem}"
                return [row, before]
            disk, size = ground.folder / f"disk{workers}", 16
            trial = Trial(ground, f"full{workers}", workers, output=disk / "out")
            watched = Watched(trial, reference)
            for more in moments:
                there = trial.count_records()
                running = trial.start(seconds=0.02)
                running.until(lambda: trial.count_records() >= there + more)  # noqa: B023 - called in this turn
                fill(disk)
                ended = running.wait()
                watched.check(row)
                row.times += 1
                row.ended(ended, 1, "run the same command again to go on")
                if row.times == 1:
                    _refused(before, trial)
                watched.fault()
                size += 16
                row.expect(not mounted("-o", f"remount,size={size}m", str(disk)), "the disk cannot be enlarged")
            said = row.said
            ended = trial.run()
            watched.check(row)
            row.ended(ended, 0)
            row.said = said
            if ended.code == 0:
                finish(row, trial, reference, ended.report)
    before.equal, before.recomputed = row.equal, 0
    return [row, before]


def _refused(row: Row, trial: Trial) -> None:
    """A run on a full disk must refuse with numbers, and predict nothing."""
    row.times += 1
    tiles = trial.log.stat().st_size
    ended = trial.run()
    row.ended(ended, 2, "B left", "Make room")
    row.expect(trial.log.stat().st_size == tiles, "something was predicted")


def read_only(ground: Ground, reference: Reference) -> list[Row]:
    """Masks that turn read-only in the midst of runs; an output that is so from the beginning."""
    row = Row("masks/ turns read-only", "a read-only mount over it in the midst of runs, in one process and with 2 workers")
    before = Row("read-only output", "the whole tmpfs remounted read-only, before a run", times=1)
    for workers in (0, 2):
        with small_disk(ground.folder / f"locked{workers}", 64) as problem:
            if problem:
                row.skipped = before.skipped = f"no tmpfs can be mounted here: {problem}"
                return [row, before]
            disk = ground.folder / f"locked{workers}"
            trial = Trial(ground, f"read-only{workers}", workers, output=disk / "out")
            watched = Watched(trial, reference)
            masks = str(trial.output / "masks")
            running = trial.start(seconds=0.02)
            running.until(lambda: trial.count_records() >= 3)  # noqa: B023 - called in this turn
            row.expect(not mounted("--bind", masks, masks), "no bind mount")
            row.expect(not mounted("-o", "remount,bind,ro", masks), "not read-only")
            ended = running.wait()
            row.times += 1
            row.ended(ended, 1, "run the same command again to go on")
            said = row.said
            subprocess.run(["umount", masks], check=True)
            watched.fault()
            if not workers:
                row.expect(not mounted("-o", "remount,ro", str(disk)), "the disk cannot be made read-only")
                tiles = trial.log.stat().st_size
                refused = trial.run()
                before.ended(refused, 1, "nothing was started")
                before.expect(trial.log.stat().st_size == tiles, "something was predicted")
                row.expect(not mounted("-o", "remount,rw", str(disk)), "the disk cannot be made writable")
            ended = trial.run()
            watched.check(row)
            row.ended(ended, 0)
            row.said = said
            if ended.code == 0:
                finish(row, trial, reference, ended.report)
    before.equal = row.equal
    return [row, before]
