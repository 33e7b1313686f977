"""The machine is asked in one place, and answers also where calls that only Linux has are missing."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline import machine
from pipeline.cluster import open_workers
from pipeline.config import LocalCluster, SerialCluster
from tests.conftest import REPO

MIB = 1 << 20
ELSEWHERE = (  # a Python without what only Linux, or no Windows, has
    "import os, sys, psutil; del os.sched_getaffinity; sys.modules['resource'] = None; taken = psutil.Process.memory_info; "
    "psutil.Process.memory_info = lambda self: type('', (), {'rss': taken(self).rss, 'peak_wset': 7 << 30})(); "
    "from pathlib import Path; from pipeline import machine; machine.STATUS = Path('/nowhere'); "
)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    assert machine.cores() == 3


def test_without_an_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    with open_workers(SerialCluster(type="serial")) as workers:
        assert workers.threads == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_memory_is_what_the_system_reports() -> None:
    memory = psutil.virtual_memory()
    assert machine.total_bytes() == memory.total
    assert 0 < machine.available_bytes() <= memory.total


@pytest.mark.parametrize(("unit", "expected"), [(1, 300 * MIB), (1024, 300 << 30)])
def test_the_peak_is_in_the_units_of_the_system(monkeypatch: pytest.MonkeyPatch, unit: int, expected: int) -> None:
    """300 Mi of whatever `ru_maxrss` counts: bytes on macOS, KiB elsewhere."""
    usage = type("Usage", (), {"ru_maxrss": 300 * MIB})()
    monkeypatch.setattr(machine, "STATUS", Path("/nowhere"))
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(machine, "_RUSAGE_UNIT", unit)
    assert machine.peak_bytes() == expected


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_the_unit_is_that_of_the_platform(platform: str, unit: int) -> None:
    code = f"import sys; sys.platform = {platform!r}; from pipeline import machine; print(machine._RUSAGE_UNIT)"
    assert int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPO).stdout) == unit


def test_an_account_without_a_peak_is_made_up_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As sandboxes have it: /proc is there, and says less."""
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t    2048 kB\n")
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    assert machine.resident_bytes() == 2 * MIB
    assert machine.peak_bytes() > 2 * MIB


def test_every_question_has_an_answer_without_linux() -> None:
    asked = "print(machine.cores(), machine.peak_bytes() >> 30, machine.resident_bytes() > 1 << 20)"
    done = subprocess.run([sys.executable, "-c", ELSEWHERE + asked], check=True, capture_output=True, text=True, cwd=REPO)
    assert done.stdout.split() == [str(os.cpu_count()), "7", "True"]


@pytest.mark.parametrize("module", ["pipeline.cluster", "pipeline.single", "pipeline.probe", "pipeline.models.probing"])
def test_modules_that_ask_import_without_linux(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"{ELSEWHERE}import {module}"], check=True, cwd=REPO)


def test_the_peak_grows_with_what_is_held_and_can_be_reset() -> None:
    before = machine.peak_bytes()
    held = bytearray(before + 64 * MIB)
    assert machine.peak_bytes() > before
    del held
    if Path("/proc/self/clear_refs").exists():
        machine.forget_peak()
        assert machine.peak_bytes() < before + 64 * MIB


def test_nobody_else_asks_the_system() -> None:
    calls = re.compile(r"sched_getaffinity|cpu_count\(|sysconf|ru_maxrss|getrusage|/proc/self/(status|clear_refs)|virtual_memory")
    files = [*(REPO / "pipeline").rglob("*.py"), *(REPO / "flows").rglob("*.py")]
    assert {path.name for path in files if calls.search(path.read_text())} == {"machine.py"}


def test_local_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cluster import local_workers

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert local_workers(LocalCluster(workers=2)) == (2, 4)
