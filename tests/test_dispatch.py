"""What happens to tasks: workers that die, hang, grow too big, come and go; a run that is stopped; a scheduler that is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from pipeline import dispatch, nannies, stop, watch
from pipeline.cluster import Outcome, Workers, open_workers, run_tasks, stopping_on_signals
from pipeline.dispatch import TaskLostError, Window
from pipeline.errors import ClusterError, InterruptedRunError, OutputError
from pipeline.watch import Pace
from tests.conftest import REPO
from tests.test_cluster import SCHEDULER, configured, eventually, square, wait_for

GIB = 1024**3


@contextmanager
def local(workers: int, memory_gib: float = 1) -> Iterator[Workers]:
    with open_workers(configured(type="local", workers=workers, threads=1, memory_gib=memory_gib)) as found:
        yield found


class Wide(Window):
    """Has a place for everybody: tasks queue behind each other at the workers."""

    def _free(self) -> int:
        return 100


def touch(folder: str, name: str) -> int:
    """Leaves a file each time; how many there are now."""
    Path(folder, f"{name}-{time.monotonic_ns()}").touch()
    return len(list(Path(folder).glob(f"{name}-*")))


def killer(folder: str, wait_s: float, deaths: int) -> str:
    """Kills its worker so many times."""
    if touch(folder, "killer") <= deaths:
        time.sleep(wait_s)
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def behave(folder: str, wait_s: float, deaths: int) -> str:
    """As `killer` where it should, a short call otherwise."""
    return killer(folder, wait_s, deaths) if deaths else "innocent"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late a nanny tells how its worker ended, it is heard."""
    monkeypatch.setattr(watch, "NANNY_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("wait_s", [0.2, 0.0], ids=["after a while", "at once"])
def test_a_killer_is_charged_and_those_who_wait_behind_it_are_not(tmp_path: Path, wait_s: float) -> None:
    with local(1) as workers:
        tasks = [("killer", (str(tmp_path), wait_s, 9)), *((f"waits-{i}", (str(tmp_path), 0, 0)) for i in range(4))]
        outcomes = dict(run_tasks(behave, tasks, replace(workers, window=Wide()), attempts=2))
    killed = outcomes.pop("killer")
    assert (killed.attempts, killed.deaths) == (2, 2)
    assert isinstance(killed.error, TaskLostError)
    assert str(killed.error).startswith("2 of 2 attempts got no answer: attempt 1: worker tls://127.0.0.1:")
    assert all("died while working on it: signal 9 (SIGKILL)" in line for line in killed.evidence)
    assert set(outcomes.values()) == {Outcome("innocent", None, 1)}


class Bomb:
    """Kills the worker that opens it, before word of its start is out."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)


@pytest.mark.usefixtures("patient")
def test_whoever_dies_before_its_start_is_told_takes_nobody_with_it() -> None:
    with local(1) as workers:
        tasks = [("bomb", (Bomb(),)), *((f"waits-{i}", (i,)) for i in range(3))]
        outcomes = dict(run_tasks(unpacked, tasks, replace(workers, window=Wide()), attempts=1))
    assert "exit code 7" in str(outcomes.pop("bomb").error)
    assert [outcome for _, outcome in sorted(outcomes.items())] == [Outcome(i, None, 1) for i in range(3)]


def unpacked(value: int) -> int:
    return value


def test_a_survivor_tells_of_its_deaths(tmp_path: Path) -> None:
    with local(1) as workers:
        outcome = dict(run_tasks(behave, [("killer", (str(tmp_path), 0.2, 1))], workers))["killer"]
    assert (outcome.result, outcome.attempts, outcome.deaths, len(outcome.evidence)) == ("survived", 2, 1, 1)


def kill_or_sleep(folder: str, name: str) -> str:
    """The killer kills its worker each time; the other one sleeps until it is killed, and answers when it is tried again."""
    times = touch(folder, name)
    if name == "killer":
        assert eventually(lambda: bool(list(Path(folder).glob("beside-*"))))
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if times == 1:
        time.sleep(120)
    return "innocent"


def test_a_killer_does_not_use_up_the_attempts_of_a_task_beside_it(tmp_path: Path) -> None:
    arguments = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    cluster = {"class": "distributed.LocalCluster", "blocks_at_once": 2}
    with open_workers(configured(type="class", **cluster, arguments=arguments, workers=1)) as workers:
        tasks = [(name, (str(tmp_path), name)) for name in ("killer", "beside")]
        outcomes = dict(run_tasks(kill_or_sleep, tasks, workers, attempts=2))
    assert (outcomes["killer"].result, outcomes["killer"].deaths) == (None, 2)
    assert outcomes["beside"].result == "innocent"
    assert outcomes["beside"].deaths <= 1  # none where no word of its beginning came in time


def kill_workers(workers: Workers) -> None:
    assert workers.client is not None
    for worker in workers.client.run(os.getpid).values():
        os.kill(worker, signal.SIGKILL)


def test_nannies_that_dask_gives_up_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dask

    monkeypatch.setattr(nannies, "MEND_SECONDS", 0.3)
    with local(2) as workers, dask.config.set({"distributed.deploy.lost-worker-timeout": "50ms"}):
        client = workers.client
        assert client is not None
        first = set(client.cluster.workers.values())
        kill_workers(workers)
        assert eventually(lambda: not first & set(client.cluster.workers.values()), 60)
        client.wait_for_workers(2, timeout=60)
        assert len(dict(run_tasks(square, [(f"after-{i}", (i,)) for i in range(8)], workers))) == 8
        client.cluster._update_worker_status("remove", "tcp://127.0.0.1:1")  # an end that is told twice, or too early


def grow(gib: float) -> None:
    """Takes more memory than it may."""
    kept = bytearray(int(gib * GIB))
    kept[::1024] = b"x" * len(kept[::1024])
    time.sleep(30)


@pytest.mark.usefixtures("patient")
def test_a_worker_that_takes_too_much_memory_is_told_apart() -> None:
    with local(1, memory_gib=0.5) as workers:
        outcome = dict(run_tasks(grow, [("grows", (0.6,))], workers, attempts=1))["grows"]
    assert outcome.deaths == 1
    assert "GiB of memory, for its limit of 0.50 GiB, signal 15 (SIGTERM)" in str(outcome.error)


def hang(folder: str, name: str, times: int) -> str:
    """Does not answer, so many times."""
    if name == "hangs" and touch(folder, name) <= times:
        time.sleep(3600)
    return "answered"


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.4)


@pytest.mark.usefixtures("quick_looks")
def test_a_task_that_does_not_answer_is_tried_again_at_a_worker_that_does(tmp_path: Path) -> None:
    with local(1) as workers:
        tasks = [(name, (str(tmp_path), name, 1)) for name in ("hangs", "waits", "waits too")]
        outcomes = dict(run_tasks(hang, tasks, replace(workers, window=Wide()), attempts=2, deadline=3.0))
    hung = outcomes.pop("hangs")
    assert (hung.result, hung.attempts, hung.deaths) == ("answered", 2, 0)
    assert re.match(r"attempt 1: no answer after \d+ s from worker tls://127.0.0.1:", hung.evidence[0])
    assert set(outcomes.values()) == {Outcome("answered", None, 1)}


@contextmanager
def without_nannies(workers: int) -> Iterator[Workers]:
    """Threads of this process, which nobody can restart."""
    arguments = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": False,
        "dashboard_address": None,
        "protocol": "tcp://",
    }
    config = configured(type="class", **{"class": "distributed.LocalCluster"}, arguments=arguments, workers=workers)
    with open_workers(config) as found:
        yield found


def hang_until(gate: str, name: str) -> str:
    """The first call waits for the gate, every other answers."""
    if touch(str(Path(gate).parent), name) == 1:
        eventually(Path(gate).exists, 120)
    return "answered"


@pytest.mark.usefixtures("quick_looks")
def test_a_worker_without_a_nanny_that_does_not_answer_gets_nothing_more(tmp_path: Path) -> None:
    with without_nannies(2) as workers:
        tasks = [("hangs", (str(tmp_path / "gate"), "hangs"))]
        outcome = dict(run_tasks(hang_until, tasks, workers, deadline=2.0))["hangs"]
        assert (outcome.result, outcome.attempts) == ("answered", 2)
        assert workers.client is not None
        assert eventually(lambda: len(workers.client.nthreads()) == 1)
        (tmp_path / "gate").touch()


@pytest.mark.usefixtures("quick_looks")
def test_a_deadline_does_not_count_the_time_in_the_queue(tmp_path: Path) -> None:
    with without_nannies(1) as workers:
        tasks = [(f"short-{i}", (0.5,)) for i in range(6)]
        outcomes = dict(run_tasks(time.sleep, tasks, replace(workers, window=Wide()), attempts=1, deadline=2.0))
    assert [outcome.error for outcome in outcomes.values()] == [None] * 6


def test_the_automatic_deadline_learns_what_is_usual() -> None:
    pace = Pace()
    assert pace.limit("predict", "auto") == 600
    for seconds in (50.0, 60.0, 9000.0):
        pace.learn("predict", seconds)
    assert pace.limit("predict", "auto") == 20 * 60
    assert pace.limit("score", "auto") == 600
    assert pace.limit("predict", 5.0) == 5
    assert pace.limit("predict", "none") == float("inf")


def fill_the_disk(folder: str, value: int) -> int:
    if value == 1:
        touch(folder, "tried")
        raise OutputError("the disk is full")
    return value


@pytest.mark.parametrize("serial", [True, False], ids=["serial", "workers"])
def test_an_error_that_ends_the_run_is_not_tried_again(tmp_path: Path, serial: bool) -> None:
    tasks = [(f"task-{i}", (str(tmp_path), i)) for i in range(20)]
    with open_workers(configured(type="serial")) if serial else without_nannies(1) as workers:
        results = run_tasks(fill_the_disk, iter(tasks), workers)
        with pytest.raises(OutputError, match="the disk is full"):
            list(results)
        assert workers.window._taken == 0
    assert len(list(tmp_path.iterdir())) == 1


def collect(results: Iterator[tuple[str, Outcome[Any]]], outcomes: dict[str, Any], errors: list[BaseException]) -> None:
    try:
        outcomes.update((key, outcome.result) for key, outcome in results)
    except BaseException as e:
        errors.append(e)


@pytest.mark.parametrize("in_time", [True, False], ids=["that end in time", "that do not"])
def test_a_run_that_is_stopped_takes_in_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: bool) -> None:
    monkeypatch.setattr(stop, "STOP_SECONDS", 60.0 if in_time else 0.2)
    outcomes: dict[str, Any] = {}
    errors: list[BaseException] = []
    with without_nannies(1) as workers:
        tasks = [(f"task-{i}", (str(tmp_path / "gate"), i)) for i in range(6)]
        results = run_tasks(wait_for, tasks, workers)
        caller = threading.Thread(target=collect, args=(results, outcomes, errors))
        caller.start()
        assert eventually(lambda: workers.window._taken == 2)
        workers.stop.ask(signal.SIGTERM)
        if not in_time:
            caller.join(timeout=60)
        (tmp_path / "gate").touch()
        caller.join(timeout=60)
        with pytest.raises(InterruptedRunError):
            next(run_tasks(square, [("late", (1,))], workers))
    assert isinstance(errors[0], InterruptedRunError)
    assert errors[0].exit_code == 128 + signal.SIGTERM
    if in_time:
        assert outcomes == {"task-0": 0, "task-1": 1}
        assert str(errors[0]).startswith("interrupted by SIGTERM: 0 blocks in flight were dropped; what is done is kept")
    else:
        assert outcomes == {}
        assert "2 blocks in flight were dropped" in str(errors[0])


def test_a_run_in_this_process_is_interrupted_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with open_workers(configured(type="serial")) as workers, stopping_on_signals(workers.stop):
        results = run_tasks(square, [("first", (2,)), ("second", (3,))], workers)
        assert next(results) == ("first", Outcome(4, None, 1))
        with pytest.raises(InterruptedRunError) as interrupted:
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.value.exit_code == 143
        with pytest.raises(InterruptedRunError):
            next(results)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


INTERRUPTED = """
import sys, threading, time
from pipeline.cluster import open_workers, run_tasks, stopping_on_signals
from pipeline.config import LocalCluster
from pipeline.errors import InterruptedRunError
from tests.test_dispatch import say

def tell(stop):
    while not stop.asked:
        time.sleep(0.01)
    print("asked", flush=True)

if __name__ == "__main__":
    with open_workers(LocalCluster(workers=1, threads=1, memory_gib=1)) as workers, stopping_on_signals(workers.stop):
        threading.Thread(target=tell, args=(workers.stop,), daemon=True).start()
        try:
            for key, outcome in run_tasks(say, [(str(i), (float(sys.argv[1]),)) for i in range(9)], workers):
                print("kept", key, outcome.attempts, outcome.deaths, flush=True)
        except InterruptedRunError as e:
            print(e, flush=True)
            sys.exit(e.exit_code)
        except KeyboardInterrupt:
            print("at once", flush=True)
            sys.exit(1)
"""


def say(seconds: float) -> None:
    print("begun", flush=True)
    time.sleep(seconds)


@contextmanager
def interruptible(seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, as in a terminal, whose first task has begun."""
    command = [sys.executable, "-c", INTERRUPTED, str(seconds)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "begun\n"
            yield run
        finally:
            with_group(run, signal.SIGKILL)


def with_group(run: subprocess.Popen[str], signum: int) -> None:
    try:
        os.killpg(run.pid, signum)
    except ProcessLookupError:
        assert run.poll() is not None


def test_ctrl_c_reaches_workers_and_driver_and_what_executes_is_kept() -> None:
    with interruptible(1.0) as run:
        with_group(run, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert "kept 0 1 0" in said
    assert "interrupted by SIGINT" in said
    assert said.count("\nkept") <= 2
    assert run.returncode == 130


def test_a_second_ctrl_c_ends_at_once() -> None:
    with interruptible(60.0) as run:
        os.kill(run.pid, signal.SIGINT)
        assert run.stdout is not None
        assert run.stdout.readline() == "asked\n"
        os.kill(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert "at once" in said


WORKER = """
import asyncio, signal, sys
from distributed import Nanny

async def serve():
    async with Nanny(scheduler_file=sys.argv[1], nthreads=1, host="127.0.0.1", dashboard=False) as nanny:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(nanny.close()))
        await nanny.finished()

if __name__ == "__main__":
    asyncio.run(serve())
"""


@contextmanager
def processes() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, *arguments: Path) -> subprocess.Popen[bytes]:
        command, quiet = [sys.executable, "-c", code, *map(str, arguments)], {"PYTHONWARNINGS": "ignore"}
        started.append(subprocess.Popen(command, cwd=REPO, env=os.environ | quiet))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_workers_join_and_leave_while_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.4)
    contact = tmp_path / "scheduler.json"
    with processes() as start:
        start(SCHEDULER, contact)
        assert eventually(contact.exists, 60)
        first = start(WORKER, contact)
        with open_workers(configured(type="address", scheduler_file=str(contact), threads=1)) as workers:
            client = workers.client
            assert client is not None
            client.wait_for_workers(1, timeout=60)
            [leaves] = client.nthreads()
            results = run_tasks(where, [(f"task-{i}", (0.2,)) for i in range(8)], workers)
            assert next(results)[1].result == leaves
            start(WORKER, contact)
            client.wait_for_workers(2, timeout=60)
            first.terminate()
            first.wait(timeout=60)
            places = [outcome.result for _, outcome in results]
            assert len(places) == 7
            assert places[-1] != leaves


def where(seconds: float) -> str:
    from distributed import get_worker

    time.sleep(seconds)
    return str(get_worker().address)


def test_a_scheduler_that_is_killed_ends_the_run_and_says_so(tmp_path: Path) -> None:
    contact = tmp_path / "scheduler.json"
    with processes() as start:
        scheduler = start(SCHEDULER, contact)
        assert eventually(contact.exists, 60)
        start(WORKER, contact)
        with open_workers(configured(type="address", scheduler_file=str(contact), threads=1)) as workers:
            results = run_tasks(where, [(f"task-{i}", (0.2 if i == 0 else 60,)) for i in range(4)], workers)
            next(results)
            scheduler.kill()
            killed = time.monotonic()
            with pytest.raises(ClusterError, match=r"the scheduler is lost.*run the same command again to go on"):
                next(results)
        assert time.monotonic() - killed < 60


def test_who_was_refused_a_place_is_told_when_there_is_one() -> None:
    class Client:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            return {"worker": 1}

    window, bells = Window(), [SimpleQueue[None](), SimpleQueue[None](), SimpleQueue[None]()]
    assert [window.take(Client(), False, bells[0]) for _ in range(2)] == [True, True]
    assert not any(window.take(Client(), False, bell) for bell in bells)
    window.ring()
    assert all(bell.empty() for bell in bells)
    window.give(1)
    window.leave(bells[0])
    window.ring()
    assert [bell.qsize() for bell in bells] == [0, 1, 0]
