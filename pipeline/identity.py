"""The files that an image or its labels consist of, and whether they are still those that were planned."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import ChangedError, SourceError
from pipeline.image import FileSet, FileState

Stamp = tuple[int, int]
"""(size in bytes, time of the last change in ns) of a file."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of `stat` that mean that there is no such file."""


def file_set(path: Path, beside: Iterable[str | Path] = ()) -> FileSet:
    """The file at `path` and those of `beside` that exist, as they are now. SourceError where there is no file at `path`."""
    main = stamp_of(path)
    if main is None:
        raise SourceError(f"{path} does not exist: there is nothing to read. Correct the path, or leave it out")
    folder = str(path.parent)
    names = sorted({_inside(folder, file) for file in beside} - {path.name})
    stamps = [(name, stamp_of(f"{folder}/{name}")) for name in names]
    states = tuple(FileState(name=name, size_bytes=stamp[0], mtime_ns=stamp[1]) for name, stamp in stamps if stamp is not None)
    return FileSet(uri=str(path), size_bytes=main[0], mtime_ns=main[1], beside=states)


def check_files(planned: FileSet, may_appear: Iterable[str | Path] = ()) -> None:
    """Raise ChangedError, naming the file, where a file of `planned` has changed or is gone, or one of `may_appear` is new.

    `may_appear` must have been given to `file_set` too: a file that was there already and left out would pass for a new one.
    """
    path = Path(planned.uri)
    found = stamp_of(path)
    if found is None:
        raise ChangedError(f"{path} has vanished since it was planned: what was read so far is no whole image")
    _compare(path, path, (planned.size_bytes, planned.mtime_ns), found)
    before = {state.name: (state.size_bytes, state.mtime_ns) for state in planned.beside}
    folder = str(path.parent)
    for name in sorted(before.keys() | {_inside(folder, file) for file in may_appear}):
        _compare(path, path.parent / name, before.get(name), stamp_of(f"{folder}/{name}"))


def _inside(folder: str, file: str | Path) -> str:
    """The name of a file relative to `folder`. Of most it is what follows; pathlib takes a good part of a survey's time."""
    name = os.fspath(file)
    rest = name.removeprefix(f"{folder}/")
    return rest if rest != name and "/" not in rest else os.path.relpath(name, folder)


def stamp_of(path: str | Path) -> Stamp | None:
    """Size and time of change of a regular file; None where there is none. SourceError where that cannot be found out."""
    try:
        status = os.stat(path)  # noqa: PTH116 - see _inside
    except OSError as e:
        if e.errno in _ABSENT:
            return None
        raise SourceError(f"{path} cannot be reached: {e}. Mount the folder, or correct its permissions") from e
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _compare(image: Path, file: Path, before: Stamp | None, now: Stamp | None) -> None:
    """ChangedError where `file`, which belongs to `image`, is not what was planned."""
    if before == now:
        return
    belongs = "" if file == image else f", which belongs to {image.name},"
    raise ChangedError(
        f"{file}{belongs} is not the file that was planned: {_text(now)}, planned was {_text(before)}. Its mask would mix two "
        "images; run again to plan it anew"
    )


def _text(stamp: Stamp | None) -> str:
    return "no such file" if stamp is None else f"{stamp[0]} bytes changed at {stamp[1]} ns"
