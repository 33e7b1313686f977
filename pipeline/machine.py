"""What the machine has and what this process uses of it: cores and memory, on any operating system. The one address of psutil."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
"""Where Linux accounts for the process that reads it."""
_RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes to a unit of `ru_maxrss`: macOS reports bytes, Linux and the BSDs KiB."""


def cores() -> int:
    """Return the number of cores that this process may use; all of the machine's where the system has no affinity."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def total_bytes() -> int:
    """Return the memory of this machine in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def available_bytes() -> int:
    """Return the bytes that programs can still be given without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return _status("VmRSS") or int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes, since `forget_peak` where that has an effect.

    `ru_maxrss` is second choice: on Linux a new process inherits it from the one that started it.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RUSAGE_UNIT


def forget_peak() -> None:
    """Reset the peak of resident memory, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str) -> int | None:
    """Return a figure, in bytes, of the system's account of this process; None where it has none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
