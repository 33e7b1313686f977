"""Files that appear whole or not at all, whoever else writes the same file at the same moment."""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

LONGEST_NAME, LONGEST_SUFFIX = 200, 16
"""Bytes of a file's name, and characters of its ending, that names of its drafts hold."""
STALE_SECONDS = 86_400.0
"""After how long a draft is taken for that of a process which was killed."""


def draft_beside(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process, host or thread uses; it ends as `path` does."""
    return path.with_name(f"{_begin(path)}.{token_hex(8)}.partial{path.suffix[:LONGEST_SUFFIX]}")


def _begin(path: Path) -> str:
    """Return how the names of drafts of `path` begin: with its own, but short enough for the 255 bytes that disks allow."""
    return "." + os.fsencode(path.name)[:LONGEST_NAME].decode(errors="ignore")


def sweep_drafts(path: Path) -> None:
    """Remove the drafts of `path`, files or folders, that killed processes have left: nothing was written in them for a day."""
    oldest = time.time() - STALE_SECONDS
    for draft in path.parent.glob(f"{glob.escape(_begin(path))}.*.partial*"):
        with suppress(OSError):
            if _last_written(draft) < oldest:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _last_written(draft: Path) -> float:
    """Return when a draft last changed. Writing to a file does not change the time of its folder, so those inside count too."""
    return max(path.lstat().st_mtime for path in (draft, *draft.rglob("*")))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to: what lies there takes the place of `path` in one step when the block ends, and is removed on an
    error. Of two writers at the same moment the last one wins, whole.
    """
    draft = draft_beside(path)
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Put `content` at `path` in one step; `durable` also waits until it is on the disk."""
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
