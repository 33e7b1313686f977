"""One run at a time in an output folder: who holds it, and how a dead one's place is taken."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
RETRY_SECONDS = 0.02
"""How often a lock is tried for while there is patience."""


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
def holding(
    path: Path, since: str, command: str, *, shared: bool = False, remove: bool = False, patience_s: float = 0.0
) -> Iterator[Holder | None]:
    """Hold the lock file at `path`; yields who held it before and did not let go, as a killed run does not.

    The lock is the system's own (flock), which ends with its process however that ends: a dead run needs no taking over. Where
    the file system has no locks, the note in the file stands for it. `shared` holders exclude only the others. `remove` leaves
    no file behind. HeldError names the holder, after `patience_s` of trying.
    """
    with _locked(path, shared=shared, patience_s=patience_s) as file:
        before = _noted(file)
        if not shared:
            _note(file, Holder(pid=os.getpid(), host=socket.gethostname(), since=since, command=command))
        try:
            yield None if shared else before
        finally:
            if not shared:
                file.truncate(0)
            if remove and _is_at(file, path):
                with suppress(OSError):  # some systems remove no open file
                    path.unlink()


def check_free(path: Path) -> None:
    """Raise HeldError where somebody holds the lock file at `path` for himself. Leaves file and note as they are."""
    if path.exists():
        with _locked(path, shared=True, patience_s=0.0):
            pass


def _locked(path: Path, *, shared: bool, patience_s: float) -> IO[str]:
    """Return the lock file at `path`, open and locked.

    Whoever has it may remove it before letting go, and another process may make a new one. A lock on a file that is no longer
    the one at `path` excludes nobody: it is let go, and the file that is there now is locked.
    """
    deadline = time.monotonic() + patience_s
    while True:
        file = _opened(path)
        try:
            _take(file, path, _noted(file), shared=shared)
            if _is_at(file, path):
                return file
        except HeldError:
            file.close()
            if time.monotonic() >= deadline:
                raise
            time.sleep(RETRY_SECONDS)
            continue
        except BaseException:
            file.close()
            raise
        file.close()


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"{path} cannot be written ({e.strerror}): nothing was started. Make its folder writable") from e


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether the open file is the one that `path` names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


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
