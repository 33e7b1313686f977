"""Processes that die: drivers, workers, schedulers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import mosaic
from pipeline.grid import Window
from tests.chaos.ground import Ground
from tests.chaos.rows import Row, Watched, finish
from tests.chaos.runs import PATIENCE, REPO, Reference, Running, Trial, results

DOORS = (
    ("the first shard is renamed into place", "os.rename", r"\.partial \S+/c/\d+/\d+$", 1),
    ("a later shard is renamed into place", "os.rename", r"\.partial \S+/c/\d+/\d+$", 9),
    ("a new mosaic is renamed into place", "os.rename", r"\.draft \S+\.partial$", 2),
    ("a mask's record is renamed into place", "os.rename", r"\.draft /\S+/masks/\S+\.json$", 2),
    ("a mask is published", "os.rename", r"\.partial \S+\.zarr$", 2),
    ("the ledger hears of a mask that is published", "shutil.rmtree", r"\.zarr\.old", 2),
    ("the last mask is published", "os.rename", r"\.partial \S+\.zarr$", 1),
    ("the report is renamed into place", "os.rename", r"/report\.json", 1),
    ("the page is renamed into place", "os.rename", r"/report\.html", 1),
)
"""(right before which step, event of sys.audit, what its arguments are like, the how manieth)."""


def driver(ground: Ground, reference: Reference, kills: int, workers: int, seed: int) -> Row:
    """kill -9 of the driver at random moments: by the clock from its start, or by its records."""
    where = f"{workers} workers" if workers else "one process"
    row = Row("kill -9 of the driver", f"at random moments (seed {seed}), {where}")
    rng = random.Random(seed)
    rounds = 0
    while row.times < kills:
        rounds += 1
        trial = Trial(ground, f"driver{workers}-{rounds}", workers)
        watched = Watched(trial, reference)
        while True:
            running = trial.start()
            if row.times < kills:
                _at_random(trial, running, rng)
                running.kill()
            ended = running.wait()
            watched.check(row)
            if ended.code != -signal.SIGKILL:
                break
            watched.fault()
            row.times += 1
        row.ended(ended, 0)
        if ended.code == 0:
            finish(row, trial, reference, ended.report)
    return row


def _at_random(trial: Trial, running: Running, rng: random.Random) -> None:
    """Wait for a moment: some records from now, or some seconds."""
    if rng.random() < 0.6:
        wanted = trial.count_records() + rng.randint(1, 4)
        running.until(lambda: trial.count_records() >= wanted)
        time.sleep(rng.uniform(0, 0.2))
    else:
        moment = time.monotonic() + rng.uniform(0, 5)
        running.until(lambda: time.monotonic() >= moment)


def doors(ground: Ground, reference: Reference, which: tuple[tuple[str, str, str, int], ...] = DOORS) -> Row:
    """kill -9 of the driver right before steps that must not be torn."""
    row = Row("kill -9 of the driver", "right before " + "; ".join(step for step, *_ in which))
    left = list(which)
    rounds = 0
    while left and not row.problems:
        rounds += 1
        trial = Trial(ground, f"door-{rounds}")
        watched = Watched(trial, reference)
        killed = True
        while killed:
            door = {"event": left[0][1], "like": left[0][2], "nth": left[0][3]} if left else {}
            ended = trial.run(seconds=0, CHAOS_KILL=json.dumps(door))
            watched.check(row)
            killed = ended.code == -signal.SIGKILL
            if killed:
                watched.fault()
                row.times += 1
                del left[0]
        row.ended(ended, 0)
        row.expect(watched.times > 0, f"never came: {left[:1]}")
        if ended.code == 0:
            finish(row, trial, reference, ended.report)
    return row


def worker(ground: Ground, reference: Reference, kills: int, seed: int) -> Row:
    """kill -9 of whichever worker was given a tile last."""
    row = Row("kill -9 of a worker", f"whichever was given a tile last, at random moments (seed {seed}) of a run with 2 workers")
    rng = random.Random(seed)
    attempts = {"min_free_gib": 0, "attempts": kills + 1}  # all may hit one block, which is not to be tried in parts for that
    trial = Trial(ground, "worker", 2, {"faults": attempts})
    running = trial.start(seconds=0.05)
    killed: set[int] = set()
    while running.alive and row.times < kills:
        running.until(lambda: trial.last_pid() not in (None, *killed))
        time.sleep(rng.uniform(0, 0.5))
        pid = trial.last_pid()
        if running.alive and pid is not None and pid not in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                row.times += 1
                killed.add(pid)
    ended = running.wait()
    row.ended(ended, 0)
    row.expect(row.times >= kills, f"only {row.times} could be killed")
    if ended.code == 0:
        deaths = sum(image.deaths for image in ended.report.images)
        row.expect(deaths > 0, "no death is reported")
        row.said = f"{deaths} attempts ended by the death of their worker, as the report says"
        finish(row, trial, reference, ended.report)
    return row


DEADLY = {"a": (1, 264, 264), "b": (2, 264, 264)}
"""Scene -> (its number, row, col) of a tile that lies in the first quarter of one block (fifth of a's, sixth of b's)."""


def deadly(ground: Ground, reference: Reference) -> list[Row]:
    """Two blocks of which workers die each time: one that kills, one that takes memory without end; then `gigamask retry`."""
    rows = [
        Row("a block that kills its worker each time", "the model sends itself kill -9 on one tile, with 2 workers"),
        Row("a block that takes memory without end", "the model allocates on one tile until the worker's limit, with 2 workers"),
    ]
    trial = Trial(ground, "deadly", 2)
    kinds = {"die": DEADLY["a"], "devour": DEADLY["b"]}
    trouble = {kind: {"at": place, "marker": trial.marker(kind)} for kind, place in kinds.items()}
    ended = trial.run(trouble)
    watched = Watched(trial, reference)
    for row, scene in zip(rows, DEADLY, strict=True):
        row.ended(ended, 1)
        if ended.code != 1:
            continue
        image = results(ended.report)[scene]
        row.times = next(i.deaths for i in ended.report.images if Path(i.uri).stem == scene)
        row.expect(image["state"] == "partial", f"state {image['state']}: {image['error']}")
        quarter = _quarter(trial, reference, scene)
        row.expect(quarter == "", quarter)
        words = ("signal 9 (SIGKILL)",) if scene == "a" else ("of memory, for its limit",)
        row.expect(all(word in (image["error"] or "") for word in words), f"its end is not told: {image['error']}")
        row.said = (image["error"] or "").splitlines()[0]
        finish(row, trial, reference, ended.report, frozenset(DEADLY))
        if row.equal == "yes":
            row.equal = "NO" if quarter else "yes, all but the quarter, which is 254"
        row.recomputed = trial.begun(reference)[scene, _block(reference, scene)] - 1
    watched.fault(damaged={(scene, _block(reference, scene)) for scene in DEADLY})
    again = trial.run(command="retry")
    last = Row("such blocks, once the cause is gone", "`gigamask retry`, with the model mended", times=len(DEADLY))
    last.ended(again, 0)
    watched.check(last)
    if again.code == 0:
        finish(last, trial, reference, again.report)
        last.recomputed = sum(trial.begun(reference, watched.log_bytes).values())
    return [*rows, last]


def _block(reference: Reference, scene: str) -> int:
    """The block that the deadly tile of a scene lies in."""
    _, row, col = DEADLY[scene]
    return next(b.index for b in reference.plans[scene].blocks if (b.core.row, b.core.col) == (row, col))


def _quarter(trial: Trial, reference: Reference, scene: str) -> str:
    """What is wrong where a mask is not that of the undisturbed run but for one quarter of one block, which is failed."""
    plan = reference.plans[scene]
    mask = trial.output / "masks" / plan.image.id / f"{plan.digest}.zarr"
    undisturbed = trial.ground.folder / "undisturbed" / mask.relative_to(trial.output)
    if not mask.exists():
        return f"no mask of {scene}"
    expected, found = (mosaic.read(path, Window(0, 0, *plan.grid.shape)) for path in (undisturbed, mask))
    core = plan.blocks[_block(reference, scene)].core
    expected[core.row : core.row + core.height // 2, core.col : core.col + core.width // 2] = 254
    wrong = np.argwhere(expected != found)
    return f"{len(wrong)} px of {scene} are wrong, from {wrong[0]} to {wrong[-1]}" if len(wrong) else ""


def scheduler(ground: Ground, reference: Reference) -> Row:
    """kill -9 of a scheduler on its own; another one takes its place for the second run."""
    row = Row("kill -9 of the scheduler", "a scheduler of its own with 2 workers, in the midst of a run; then another one")
    file = ground.folder / "scheduler.json"
    sections = {"cluster": {"type": "address", "scheduler_file": str(file), "memory_gib": 1.5, "threads": 1}}
    trial = Trial(ground, "scheduler", sections=sections)
    watched = Watched(trial, reference)
    with _cluster(file, trial) as (process, *_):
        running = trial.start()
        running.until(lambda: trial.count_records() >= 4)
        process.kill()
        row.times += 1
        ended = running.wait()
    row.ended(ended, 1, "the scheduler is lost", "run the same command again")
    row.expect(ended.seconds < 60, f"it took {ended.seconds:.0f} s to end")
    said = row.said
    row.expect(len(watched.fault()) >= 4, "nothing was kept")
    with _cluster(file, trial):
        ended = trial.run()
    watched.check(row)
    row.ended(ended, 0)
    row.said = said
    if ended.code == 0:
        finish(row, trial, reference, ended.report)
    return row


def abandoned(ground: Ground, reference: Reference) -> Row:
    """kill -9 of all workers under Prefect; the scheduler stays. The run ends once, not once an image."""
    row = Row("every worker dies, under Prefect", "kill -9 of both in the midst of a run, while the scheduler stays; then others")
    file = ground.folder / "abandoned.json"
    sections = {"cluster": {"type": "address", "scheduler_file": str(file), "memory_gib": 1.5, "threads": 1}}
    trial = Trial(ground, "abandoned", sections=sections)
    watched = Watched(trial, reference)
    with _cluster(file, trial) as (_, *workers):
        running = trial.start(prefect=True, PREFECT_HOME=str(ground.folder / "prefect"))
        running.until(lambda: trial.count_records() >= 4)
        for process in workers:
            os.killpg(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        row.times += 1
        ended = running.wait(2 * PATIENCE)
        took = time.monotonic() - killed
    row.ended(ended, 1, "no worker is left since 120 s", "run the same command again")
    row.expect(took < 180, f"it took {took:.0f} s to end")
    row.said += f" ({took:.0f} s after the workers' death)"
    said = row.said
    row.expect(len(watched.fault()) >= 4, "nothing was kept")
    with _cluster(file, trial):
        ended = trial.run()
    watched.check(row)
    row.ended(ended, 0)
    row.said = said
    if ended.code == 0:
        finish(row, trial, reference, ended.report)
    return row


def side_by_side(ground: Ground, reference: Reference) -> Row:
    """Two runs over the same images with the same model, at the same time on one scheduler."""
    row = Row("two runs over the same images", "at once on one scheduler with 2 workers, each with an output of its own", times=2)
    file = ground.folder / "beside.json"
    sections = {"cluster": {"type": "address", "scheduler_file": str(file), "memory_gib": 1.5, "threads": 1}}
    trials = [Trial(ground, f"beside-{name}", sections=sections) for name in ("production", "staging")]
    with _cluster(file, trials[0]):
        running = [trial.start() for trial in trials]
        ended = [run.wait() for run in running]
    for trial, end in zip(trials, ended, strict=True):
        row.ended(end, 0)
        if end.code == 0:
            finish(row, trial, reference, end.report)
    begun = trials[0].begun(reference)  # the workers' log, of both runs
    row.recomputed = begun.total() - 2 * len(begun)
    row.expect(not row.problems and row.recomputed >= 0, f"{begun.total()} blocks were begun, of {len(begun)}")
    return row


@contextmanager
def _cluster(file: Path, trial: Trial) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler and two workers: their processes, that of the scheduler first."""
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": trial.environment(), "cwd": REPO}
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker = [*dask, "worker", "--scheduler-file", str(file), "--nthreads", "1", "--memory-limit", "1.5GiB", "--no-dashboard"]
    processes = [subprocess.Popen(command, start_new_session=True, **quiet) for command in (scheduler,)]
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    local = ["--host", "127.0.0.1", "--local-directory", str(file.parent), "--death-timeout", "60"]
    processes += [subprocess.Popen([*worker, *local], start_new_session=True, **quiet) for _ in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def hung(ground: Ground, reference: Reference) -> Row:
    """A block that never returns at its first attempt. How long one may take is measured, as machines are busy: a whole run."""
    usual = Trial(ground, "usual", 2).run()
    deadline = float(round(max(10.0, usual.seconds)))
    how = f"the model sleeps for ever on a tile once; faults.deadline_s: {deadline:g}, as long as a whole run took; 2 workers"
    row = Row("a block that never returns", how, times=1)
    row.expect(usual.code == 0, usual.err[-1500:])
    trial = Trial(ground, "hung", 2, {"faults": {"min_free_gib": 0, "deadline_s": deadline}})
    ended = trial.run({"hang": {"at": DEADLY["a"], "marker": trial.marker("hang"), "times": 1}})
    row.ended(ended, 0)
    row.expect(Path(trial.marker("hang") + "-0").exists(), "it never hung")
    if ended.code == 0:
        retries = sum(image.retries for image in ended.report.images)
        row.said = f"{retries} more attempt{'s' * (retries != 1)}, as the report says"
        row.expect(retries >= 1, "no retry is reported")
        finish(row, trial, reference, ended.report)
    return row
