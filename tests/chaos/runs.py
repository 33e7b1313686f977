"""Runs in processes of their own, and what they left: bytes, records, and how often each block was really predicted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.finished import masks, read_record
from pipeline.plan import Plan
from pipeline.report import read_report
from pipeline.report.contract import RunReport
from tests.chaos.ground import SCENES, Ground

REPO = Path(__file__).resolve().parents[2]
SECONDS = 0.01
"""How long the model takes for a batch of tiles."""
PATIENCE = 300.0
"""How long a run of some seconds may take on a busy machine before the harness gives it up."""

type BlockKey = tuple[str, int]
"""(scene, index of the block)."""
type Place = tuple[int, int]
"""(row, col) of a tile."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> RunReport:
        """What it reports."""
        return read_report(Path(json.loads(self.out)["folder"]))

    @property
    def said(self) -> str:
        """Its last message."""
        lines = [line for line in self.err.splitlines() if line.startswith("gigamask: ")]
        return lines[-1].removeprefix("gigamask: ") if lines else ""


class Running:
    """A run under way, in a process group of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        with tempfile.NamedTemporaryFile(delete=False) as out, tempfile.NamedTemporaryFile(delete=False) as err:
            self._files = Path(out.name), Path(err.name)
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=REPO, start_new_session=True)

    @property
    def alive(self) -> bool:
        """Whether it is still there."""
        return self.process.poll() is None

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send the driver, and only it, a signal."""
        if self.alive:
            self.process.send_signal(signum)

    def kill_group(self, signum: int) -> None:
        """Send all its processes a signal, as a terminal does."""
        if self.alive:
            os.killpg(self.process.pid, signum)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """How it ended; a run that does not end is killed and told."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            code = -1000
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self._files)
        for path in self._files:
            path.unlink(missing_ok=True)
        return Ended(code, out, err, time.monotonic() - self.started)

    def until(self, holds: Callable[[], bool], patience: float = PATIENCE, pause: float = 0.01) -> bool:
        """Wait until `holds()`; False where the run, or the patience, ended before."""
        end = time.monotonic() + patience
        while self.alive and time.monotonic() < end:
            if holds():
                return True
            time.sleep(pause)
        return False


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run leaves."""

    files: dict[str, bytes]
    """Every file of every published mosaic."""
    report: RunReport
    plans: dict[str, Plan]
    """By scene."""

    @cached_property
    def tiles(self) -> dict[str, dict[Place, tuple[int, list[Place]]]]:
        """Scene -> first tile of each block -> (index of the block, its tiles in the order in which they are predicted)."""
        found: dict[str, dict[Place, tuple[int, list[Place]]]] = {}
        for name, plan in self.plans.items():
            blocks = found.setdefault(name, {})
            for block in plan.blocks:
                rows, cols = plan.lattice.touching(block.core)
                blocks[rows[0], cols[0]] = block.index, [(row, col) for row in rows for col in cols]
            assert len(blocks) == len(plan.blocks), f"blocks of {name} share their first tile"
        return found


def mask_files(output: Path) -> dict[str, bytes]:
    """Every file below masks/, but for the records, which hold seconds."""
    folder = output / "masks"
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and (p.suffix != ".json" or p.name == "zarr.json"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def results(report: RunReport) -> dict[str, dict[str, Any]]:
    """Scene -> all that its result says, but for how long it took and who did it."""
    changing = {"seconds", "load_seconds", "retries", "deaths", "reused", "quicklook", "redundancy"}
    return {Path(image.uri).stem: image.model_dump(exclude=changing) for image in report.images}


@dataclass
class Trial:
    """One output folder, the runs that write to it, and the tiles that these were asked to predict."""

    ground: Ground
    name: str
    workers: int = 0
    sections: dict[str, Any] = field(default_factory=dict)
    output: Path = Path()
    """Default: a folder of the trial's name beside the scenes."""

    def __post_init__(self) -> None:
        if self.output == Path():
            self.output = self.ground.folder / self.name
        self.config = self.ground.config(self.name, self.output, self.workers, self.sections)
        self.log = self.ground.folder / f"{self.name}.tiles"
        self.log.touch()

    def environment(self, trouble: dict[str, Any] | None = None, seconds: float = SECONDS, **more: str) -> dict[str, str]:
        """What the processes of a run find in their environment."""
        path = os.pathsep.join(filter(None, [str(self.ground.folder), os.environ.get("PYTHONPATH", "")]))
        own = {"PYTHONPATH": path, "CHAOS_LOG": str(self.log), "CHAOS_SECONDS": str(seconds)}
        own["CHAOS_TROUBLE"] = json.dumps(trouble or {})
        return os.environ | own | more

    def start(
        self,
        trouble: dict[str, Any] | None = None,
        seconds: float = SECONDS,
        *,
        talk: bool = False,
        prefect: bool = False,
        command: str = "run",
        **more: str,
    ) -> Running:
        """Start a run; `talk`: with its messages on stderr instead of JSON on stdout."""
        parts = [sys.executable, "-m", "flows.cli", command, str(self.config)]
        parts += ["--no-prefect"] if command == "run" and not prefect else []
        return Running(parts + ([] if talk else ["--json"]), self.environment(trouble, seconds, **more))

    def run(self, *arguments: Any, **options: Any) -> Ended:
        """A run from start to end."""
        return self.start(*arguments, **options).wait()

    def marker(self, name: str) -> str:
        """A file that trouble is noted by."""
        return str(self.ground.folder / f"{self.name}.{name}")

    @property
    def ledger(self) -> Path:
        """The ledger."""
        return self.output / "ledger.sqlite"

    def count_records(self) -> int:
        """Blocks that a run under way has put into its ledger so far."""
        if not self.ledger.exists():
            return 0
        try:
            db = sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=5)
            try:
                return int(db.execute("SELECT count(*) FROM blocks WHERE task = 'predict'").fetchone()[0])
            finally:
                db.close()
        except sqlite3.Error:
            return 0

    def records(self, reference: Reference) -> dict[BlockKey, str]:
        """The records of blocks as they are, while no run is under way; read from a copy, so that nothing is mended by it."""
        names = {plan.digest: name for name, plan in reference.plans.items()}
        with tempfile.TemporaryDirectory() as folder:
            for path in self.output.glob("ledger.sqlite*"):
                shutil.copy(path, folder)
            copy = Path(folder) / "ledger.sqlite"
            if not copy.exists():
                return {}
            db = sqlite3.connect(copy)
            try:
                rows = db.execute("SELECT digest, block, record FROM blocks WHERE task = 'predict'").fetchall()
            except sqlite3.Error:
                return {}
            finally:
                db.close()
        return {(names[digest], block): record for digest, block, record in rows if digest in names}

    def begun(self, reference: Reference, start: int = 0) -> Counter[BlockKey]:
        """How often each block was begun after the first `start` bytes of the log.

        A process predicts a scene block by block, and each block's tiles in their order: a tile that does not go on with the
        block before, and is the first one of another, begins that.
        """
        scenes = dict(enumerate(SCENES, 1))
        sequences: dict[tuple[str, str], list[tuple[int, Place]]] = {}
        offset = 0
        for line in self.log.read_bytes().splitlines(keepends=True):
            pid, number, row, col = line.decode().split()
            if int(number) in scenes:
                sequences.setdefault((pid, scenes[int(number)]), []).append((offset, (int(row), int(col))))
            offset += len(line)
        found: Counter[BlockKey] = Counter()
        for (_, name), sequence in sequences.items():
            following: list[Place] = []
            for offset, place in sequence:
                if following and following[0] == place:
                    following = following[1:]
                    continue
                begins = reference.tiles[name].get(place)
                following = [] if begins is None else begins[1][1:]
                if begins is not None and offset >= start:
                    found[name, begins[0]] += 1
        return found

    def last_pid(self) -> int | None:
        """The process that was given a tile last."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 400))
            lines = log.read().decode().splitlines()
        return int(lines[-1].split()[0]) if lines else None


def reference_of(ground: Ground, name: str = "undisturbed") -> Reference:
    """A run that nobody disturbs, in a single process."""
    trial = Trial(ground, name)
    ended = trial.run(seconds=0)
    assert ended.code == 0, ended.err
    plans = {plan.image.stem: plan for mask in masks(trial.output) for plan in [read_record(mask).plan]}
    return Reference(mask_files(trial.output), ended.report, plans)
