"""One run at a time in an output folder: who holds it, and how a dead one's place is taken."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from pipeline.errors import OutputError
from pipeline.image import Frozen

try:
    import fcntl
except ImportError:  # pragma: no cover - no such system in the tests
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class Holder(Frozen):
    """Who holds a lock."""

    pid: int
    host: str
    since: str
    """ISO 8601 with offset."""
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since} ({self.command})"


class HeldError(OutputError):
    """Somebody else is at work in the folder."""


@contextmanager
def holding(path: Path, since: str, command: str, *, shared: bool = False) -> Iterator[Holder | None]:
    """Hold the lock file at `path`; what it gives is who held it before and did not let go, as a killed run does not.

    The lock is the system's own (flock), which ends with its process however that ends: a dead run needs no taking over. Where
    the file system has no locks, the note in the file stands for it. `shared` holders exclude only the others. HeldError names
    the holder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{path} cannot be written ({e.strerror}): nothing was started. Make its folder writable") from e
    with file:
        before = _noted(file)
        _take(file, path, before, shared=shared)
        if not shared:
            _note(file, Holder(pid=os.getpid(), host=socket.gethostname(), since=since, command=command))
        try:
            yield None if shared else before
        finally:
            if not shared:
                file.truncate(0)


def _take(file: IO[str], path: Path, before: Holder | None, *, shared: bool) -> None:
    who = "another run" if before is None else str(before)
    refusal = (
        f"{path.parent} is held by {who}: two runs there would do the same work twice. Wait until it has ended, or end it; the "
        "lock ends with its process"
    )
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "no flock")
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise HeldError(refusal) from e
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise
        if before is not None and (before.host != socket.gethostname() or _alive(before.pid)):
            raise HeldError(f"{refusal}. This file system has no locks: where that run is dead, delete {path}") from e


def _noted(file: IO[str]) -> Holder | None:
    file.seek(0)
    try:
        return Holder.model_validate(json.loads(file.read()))
    except (ValueError, ValidationError):
        return None


def _note(file: IO[str], holder: Holder) -> None:
    file.truncate(0)
    file.write(holder.model_dump_json())
    file.flush()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
