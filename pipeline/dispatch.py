"""Tasks on workers: a bounded number in flight, what went wrong tried again, and an end whatever happens."""

from __future__ import annotations

import math
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.errors import ClusterError, GigamaskError, RunEndedError
from pipeline.stop import GO_ON, Stop
from pipeline.watch import Deadline, Pace, Watch, WorkerProcess

MOST_ATTEMPTS = 3
"""How often a block is tried before it is failed."""
LOOK_SECONDS = 5.0
"""Within how long it is noticed that workers came or went, and that a task takes too long."""
WITHOUT_WORKERS_SECONDS = 120.0
"""How long to wait for a worker when there is none left: batch systems take their time."""
RESTART_SECONDS = 60.0
"""How long a worker that was given up may take to restart."""


class TaskLostError(GigamaskError):
    """No attempt at a task got an answer: workers died of it, or took too long."""


class Window:
    """How many tasks may be in flight: twice as many as the workers can have at work, over all calls of `run_tasks` together.

    Each of these calls may have one in any case, so that no image stands still while others fill the window.
    """

    def __init__(self, slots: int | None = None) -> None:
        """`slots`: calls that one worker has at work at a time, whatever threads Dask gives it; None: one a thread."""
        self.slots = slots
        self._lock = threading.Lock()
        self._taken = self._capacity = 0
        self._asked = -math.inf
        self._refused: dict[SimpleQueue[Any], None] = {}

    def capacity(self, client: Any) -> int:
        """Calls that all workers can have at work. The scheduler is asked every few seconds, not for every task."""
        with self._lock:
            if time.monotonic() - self._asked >= LOOK_SECONDS / 2:
                with _scheduler(client):
                    threads = client.nthreads().values()
                self._capacity = sum(n if self.slots is None else min(n, self.slots) for n in threads)
                self._asked = time.monotonic()
            return self._capacity

    def take(self, client: Any, first: bool, bell: SimpleQueue[Any]) -> bool:
        """Take the place of one task, if there is one; for the `first` of a call there always is.

        Otherwise None comes into `bell` when there may be one again.
        """
        self.capacity(client)
        with self._lock:
            free = first or self._free() > 0
            self._taken += free
            if not free:
                self._refused[bell] = None
            return free

    def give(self, places: int) -> None:
        """Give places back."""
        with self._lock:
            self._taken -= places

    def ring(self) -> None:
        """Wake those who were refused, the first ones first, as far as there are places now."""
        with self._lock:
            for bell in list(self._refused)[: max(0, self._free())]:
                del self._refused[bell]
                bell.put(None)

    def leave(self, bell: SimpleQueue[Any]) -> None:
        """Nobody waits there any longer."""
        with self._lock:
            self._refused.pop(bell, None)

    def _free(self) -> int:
        return 2 * max(1, self._capacity) - self._taken


@dataclass(frozen=True)
class Workers:
    """What there is to work with."""

    client: Any | None
    """Dask client; None where everything happens in this process."""
    count: int
    """Workers, or as many as are expected."""
    threads: int
    """Threads of the model's arithmetic in each."""
    memory_bytes: int
    """Memory that one may take."""
    description: str
    """In words, for the report."""
    window: Window = field(default_factory=Window)
    """Slots of the tasks in flight."""
    watch: Watch = field(default_factory=Watch)
    """What executes where, and how workers ended."""
    pace: Pace = field(default_factory=Pace)
    """How long tasks take."""
    stop: Stop = field(default_factory=Stop)
    """Whether somebody wants the run to end."""


@dataclass(frozen=True)
class Outcome[T]:
    """How a call ended: with a result, or with the error of its last attempt."""

    result: T | None
    error: BaseException | None
    attempts: int
    deaths: int = 0
    """Attempts that ended by the death of the worker."""
    evidence: tuple[str, ...] = ()
    """What is known of each attempt that got no answer: which worker had it, and what became of that."""


def run_tasks[Result](
    function: Callable[..., Result],
    tasks: Iterable[tuple[str, tuple[Any, ...]]],
    workers: Workers,
    attempts: int = MOST_ATTEMPTS,
    deadline: Deadline = "auto",
) -> Iterator[tuple[str, Outcome[Result]]]:
    """Call `function(*arguments)` for every (key, arguments), and yield (key, outcome) as they finish.

    Dask keys name the run, as other runs may share the scheduler, and the attempt. Retries belong to this driver: a task is tried
    up to `attempts` times. It has been tried where the call raised, where its worker died of it or of something else meanwhile,
    and where it executed for longer than `deadline`: that worker is restarted. Tasks that only waited at a lost worker are sent
    again, and have lost nothing. In this process nothing can be interrupted, and no deadline is kept.

    How many are in flight is up to `workers.window`; futures are released at once, and so are those of a caller who stops early.

    Raises RunEndedError where the run cannot go on: one that a task raised, ClusterError where scheduler or workers are lost, and
    InterruptedRunError after `workers.stop` was asked for and what executed has ended, or had its time. Outcomes that came until
    then are yielded before. What ends one call ends all others of the same `workers`.
    """
    if workers.client is None:
        return _run_here(function, tasks, workers.stop, attempts)
    return _Dispatch(function, iter(tasks), workers, attempts, deadline).outcomes()


def _run_here[Result](
    function: Callable[..., Result], tasks: Iterable[tuple[str, tuple[Any, ...]]], stop: Stop, attempts: int
) -> Iterator[tuple[str, Outcome[Result]]]:
    for key, arguments in tasks:
        stop.check()
        if stop.asked:
            raise stop.error(0)
        yield key, _here(function, arguments, attempts)


def _here[Result](function: Callable[..., Result], arguments: tuple[Any, ...], attempts: int) -> Outcome[Result]:
    error: Exception | None = None
    for attempt in range(1, attempts + 1):
        try:
            return Outcome(function(*arguments), None, attempt)
        except RunEndedError:
            raise
        except Exception as e:  # noqa: BLE001 - a failure is data: it reaches the ledger and the report
            error = e
    return Outcome(None, error, attempts)


@contextmanager
def _scheduler(client: Any) -> Iterator[None]:
    """ClusterError where the scheduler does not answer, or has dropped what was asked of it."""
    try:
        if client.status != "running":
            raise ConnectionError(f"the client is {client.status}")
        yield
    except (OSError, CancelledError) as e:
        raise ClusterError(f"the scheduler is lost, or has dropped the tasks in flight ({e}); {GO_ON}") from e


class _Call:
    """A call that is made where it is unpickled.

    Such bytes are a task for `pickle.loads`: the scheduler passes them on, and neither opens plans nor needs gigamask.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._made


class _Slots:
    """Calls that a worker has at work: its memory is planned for so many, while Dask starts one in each of its threads.

    They run in threads of their own, as few as there are slots: what a thread has allocated is kept for its next call (glibc has
    an arena a thread), so that memory would grow with Dask's threads otherwise.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._idle: list[SimpleQueue[tuple[Future[Any], Callable[[], Any]]]] = []

    def run(self, slots: int | None, call: Callable[[], Any]) -> Any:
        """The result of `call`, which starts when fewer than `slots` calls are at work."""
        with self._changed:
            self._changed.wait_for(lambda: slots is None or self._taken < slots)
            self._taken += 1
            thread = self._idle.pop() if self._idle else _start_thread()
        try:
            result: Future[Any] = Future()
            thread.put((result, call))
            return result.result()
        finally:
            with self._changed:
                self._idle.append(thread)
                self._taken -= 1
                self._changed.notify_all()


def _start_thread() -> SimpleQueue[tuple[Future[Any], Callable[[], Any]]]:
    """Start a thread that makes the calls put into the queue. It is a daemon: a call that hangs keeps no process from ending."""
    calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def serve() -> None:
        while True:
            result, call = calls.get()
            try:
                result.set_result(call())
            except BaseException as e:  # noqa: BLE001 - it is raised where the result is awaited
                result.set_exception(e)
            del result, call

    threading.Thread(target=serve, name="block", daemon=True).start()
    return calls


_SLOTS: WeakKeyDictionary[Any, _Slots] = WeakKeyDictionary()
"""Of each worker in this process."""
_MAKING_SLOTS = threading.Lock()


def _execute(topic: str, key: str, slots: int | None, suspect: bool, call: bytes) -> Any:
    """What workers do: wait for a slot, report the start to the driver's Watch, unpickle the call and make it."""
    from distributed import get_worker

    worker = get_worker()
    with _MAKING_SLOTS:
        own = _SLOTS.setdefault(worker, _Slots())
    return own.run(slots, partial(copy_context().run, _call, worker, topic, key, suspect, call))


def _call(worker: Any, topic: str, key: str, suspect: bool, call: bytes) -> Any:
    """Report the start and make the call, unless the driver has let go of it while it waited for its slot.

    A call that is suspected of a death waits until the scheduler has the report, and what the worker reported before: it may be
    the last.
    """
    from distributed.utils import sync

    state = worker.state.tasks.get(key)
    if state is None or state.state == "cancelled":
        return None
    news = {"key": key, "pid": os.getpid(), "host": socket.gethostname()}
    if suspect:
        sync(worker.loop, worker.scheduler.log_event, topic=topic, msg={**news, "worker": worker.address})
    else:
        worker.log_event(topic, news)
    function, arguments = pickle.loads(call)  # noqa: S301 - bytes of the driver, as Dask has them too
    return function(*arguments)


@dataclass(frozen=True)
class _Loss:
    """An attempt that got no answer."""

    attempt: int
    process: WorkerProcess
    seconds: float | None = None
    """After which the worker was given up; None: it died."""

    def evidence(self, watch: Watch) -> str:
        """In words."""
        if self.seconds is not None:
            return f"attempt {self.attempt}: no answer after {self.seconds:.0f} s from {self.process}, which was given up"
        return f"attempt {self.attempt}: {self.process} died while working on it: {watch.end_of(self.process)}"


@dataclass(frozen=True)
class _Try:
    """One attempt at a task."""

    key: str
    arguments: tuple[Any, ...]
    attempt: int = 1
    sent: int = 1
    """How often it was sent: more often than tried where workers were lost before they began with it."""
    losses: tuple[_Loss, ...] = ()
    suspect: WorkerProcess | None = None
    """A dead worker of which it may be the cause."""

    def again(self, *losses: _Loss) -> _Try:
        """The next attempt."""
        return replace(self, attempt=self.attempt + 1, sent=self.sent + 1, losses=(*self.losses, *losses))

    def take_turn(self) -> bool:
        """Whether it may be sent now: of those suspected of the same death one is tried at a time, so that the one that kills
        workers does not use up the attempts of the others."""
        return self.suspect is None or self.suspect.turn.acquire(blocking=False)

    def end_turn(self) -> None:
        """It is no longer in flight."""
        if self.suspect is not None:
            self.suspect.turn.release()


class _Dispatch[Result]:
    """One call of `run_tasks` on Dask workers: sends its tasks as the window allows, and those that failed again."""

    def __init__(
        self,
        function: Callable[..., Result],
        tasks: Iterator[tuple[str, tuple[Any, ...]]],
        workers: Workers,
        attempts: int,
        deadline: Deadline,
    ) -> None:
        self._function, self._tasks, self._attempts, self._deadline = function, tasks, attempts, deadline
        self._client: Any = workers.client
        self._window, self._watch, self._pace, self._stop = workers.window, workers.watch, workers.pace, workers.stop
        self._places = 0
        self._listed = False
        """Whether there is no task left that was not sent yet."""
        self._running: dict[Any, _Try] = {}
        self._again: list[_Try] = []
        self._ended: SimpleQueue[Any] = SimpleQueue()
        """Futures that have ended, and None where there may be a place in the window again."""
        self._looked = self._seen_workers = time.monotonic()

    def outcomes(self) -> Iterator[tuple[str, Outcome[Result]]]:
        """(key, outcome) of every task, as they end."""
        try:
            self._stop.check()
            self._send()
            while (self._running or (self._again and not self._stop.asked)) and not self._stop.overdue:
                outcomes, end = self._settle(self._wait())
                if end is None:
                    self._send()
                yield from outcomes
                if end is not None:
                    raise end
                self._stop.check()
            dropped = len(self._running) + len(self._again)
            if self._stop.asked and (dropped or not self._listed):
                raise self._stop.error(dropped)
        except RunEndedError as e:
            self._stop.end(e)
            raise
        finally:
            self._let_go()

    def _send(self) -> None:
        """Send what is to be tried again, and new tasks as far as there are places; nothing once the run is to end."""
        if self._stop.asked:
            return
        tries: list[_Try] = []
        wait: list[_Try] = []
        for one in self._again:
            (tries if one.take_turn() else wait).append(one)
        self._again = wait
        while self._window.take(self._client, not self._places, self._ended):
            self._places += 1
            task = next(self._tasks, None)
            if task is None:
                self._give(1)
                self._listed = True
                break
            tries.append(_Try(*task))
        self._window.ring()
        if tries:
            self._map(tries)

    def _map(self, tries: list[_Try]) -> None:
        from distributed.protocol.pickle import dumps

        name, topic, slots = f"{self._function.__name__}-{self._watch.run}", self._watch.topic, self._window.slots
        keys = [f"{name}-{one.key}-{one.attempt}" + f".{one.sent}" * (one.sent > one.attempt) for one in tries]
        calls = [
            dumps(_Call(_execute, topic, key, slots, one.suspect is not None, dumps((self._function, one.arguments))))
            for key, one in zip(keys, tries, strict=True)
        ]
        with _scheduler(self._client):
            futures = self._client.map(pickle.loads, calls, key=keys, pure=False, retries=0)
        self._running.update(zip(futures, tries, strict=True))
        for future in futures:
            future.add_done_callback(self._ended.put)

    def _wait(self) -> list[Any]:
        """Futures that have ended since the last time; none where it is time to look at something else."""
        ended = []
        with suppress(Empty):
            ended.append(self._ended.get(timeout=min(1.0, LOOK_SECONDS / 2)))
            ended += [self._ended.get() for _ in range(self._ended.qsize())]
        return [future for future in ended if future in self._running]

    def _settle(self, ended: list[Any]) -> tuple[list[tuple[str, Outcome[Result]]], RunEndedError | None]:
        """The outcomes of tasks that have ended, or that are given up, and the error that ends the run. Those that failed and
        have attempts left keep their places, to be sent again."""
        outcomes: list[tuple[str, Outcome[Result]]] = []
        end: RunEndedError | None = None
        for future, (result, error) in zip(ended, self._fetch(ended), strict=True):
            tried = self._running[future]
            if isinstance(error, RunEndedError):
                end = end or error
            elif error is not None:
                outcomes += self._failed(future.key, tried, error)
            else:
                self._learn(future.key)
                outcomes.append((tried.key, self._outcome(tried, tried.attempt, result, None)))
            self._release(future)
        if time.monotonic() - self._looked >= LOOK_SECONDS / 2:
            self._look_for_workers(seen=bool(ended))
            outcomes += self._give_up_overdue()
            self._looked = time.monotonic()
        self._give(len(outcomes))
        return outcomes, end

    def _fetch(self, ended: list[Any]) -> list[tuple[Result | None, BaseException | None]]:
        """(result, error) of each future: results come together, in one question to the scheduler."""
        if not ended:
            return []
        with _scheduler(self._client):
            for future in ended:
                if future.status == "cancelled":
                    future.result()  # raises: somebody else ended it, or the scheduler is gone
            results = self._client.gather(dict(enumerate(ended)), errors="skip")
            return [(results.get(i), future.exception() if future.status == "error" else None) for i, future in enumerate(ended)]

    def _failed(self, key: str, tried: _Try, error: BaseException) -> list[tuple[str, Outcome[Result]]]:
        """Have it tried again, or else its outcome. A death costs no attempt of those that only waited at that worker; where no
        word of any start came in time, it costs none the first time."""
        from distributed import KilledWorker

        if not isinstance(error, KilledWorker):
            return self._retry(tried.again(), error)
        worker = error.last_worker
        process = self._watch.died(worker.address, worker.pid, worker.memory_limit)
        if process.given_up or (process.begun and key not in process.begun):  # it only waited there
            return self._retry(replace(tried, sent=tried.sent + 1), None)
        no_word_yet = not process.begun and tried.suspect is None
        following = replace(tried, sent=tried.sent + 1) if no_word_yet else tried.again(_Loss(tried.attempt, process))
        return self._retry(replace(following, suspect=process), None)

    def _retry(self, following: _Try, error: BaseException | None) -> list[tuple[str, Outcome[Result]]]:
        """Have `following` sent; where it would be one attempt too many, the outcome. `error` None: there was no answer."""
        if following.attempt <= self._attempts:
            self._again.append(following)
            return []
        return [(following.key, self._outcome(following, self._attempts, None, error or TaskLostError()))]

    def _outcome(self, tried: _Try, attempts: int, result: Result | None, error: BaseException | None) -> Outcome[Result]:
        evidence = tuple(loss.evidence(self._watch) for loss in tried.losses)
        deaths = sum(loss.seconds is None for loss in tried.losses)
        if isinstance(error, TaskLostError):
            error = TaskLostError(f"{len(evidence)} of {attempts} attempts got no answer: {'; '.join(evidence)}")
        return Outcome(result, error, attempts, deaths, evidence)

    def _learn(self, key: str) -> None:
        executing = self._watch.executing(key)
        if executing is not None:
            self._pace.learn(self._function.__name__, executing[1])

    def _release(self, future: Any) -> None:
        self._running.pop(future).end_turn()
        self._watch.forget(future.key)
        future.release()

    def _look_for_workers(self, *, seen: bool) -> None:
        if self._window.capacity(self._client) or seen:
            self._seen_workers = time.monotonic()
        elif time.monotonic() - self._seen_workers > WITHOUT_WORKERS_SECONDS:
            raise ClusterError(
                f"no worker is left since {WITHOUT_WORKERS_SECONDS:.0f} s, and {len(self._running)} tasks wait; {GO_ON}. "
                "Look at the workers' logs first"
            )

    def _give_up_overdue(self) -> list[tuple[str, Outcome[Result]]]:
        """Have the workers restarted that execute one of these tasks for too long. A thread cannot be interrupted, and a worker
        without a nanny leaves the cluster for good."""
        limit = self._pace.limit(self._function.__name__, self._deadline)
        outcomes: list[tuple[str, Outcome[Result]]] = []
        for future, tried in list(self._running.items()):
            executing = self._watch.executing(future.key)
            if executing is None or executing[1] <= limit or future.done() or not self._still_executes(future.key, executing[0]):
                continue
            process, seconds = executing
            if not process.given_up:
                process.given_up = True
                threading.Thread(target=self._restart, args=(process.address,), daemon=True).start()
            self._release(future)
            outcomes += self._retry(tried.again(_Loss(tried.attempt, process, seconds)), None)
        return outcomes

    def _still_executes(self, key: str, process: WorkerProcess) -> bool:
        """Ask the scheduler: workers that leave take what they had begun back to its queue, and nobody tells."""
        with _scheduler(self._client):
            there = key in self._client.processing().get(process.address, ())
        if not there:
            self._watch.forget(key)
        return there

    def _restart(self, address: str) -> None:
        with suppress(OSError, RuntimeError):  # the scheduler removes what does not come back; without any worker the run ends
            try:
                self._client.restart_workers([address], timeout=RESTART_SECONDS, raise_for_error=False)
            except ValueError:  # no nanny there
                self._client.retire_workers([address])

    def _give(self, places: int) -> None:
        self._window.give(places)
        self._places -= places

    def _let_go(self) -> None:
        """Leave nothing behind: no future, and no place taken."""
        for future in list(self._running):
            self._release(future)
        self._give(self._places)
        self._window.leave(self._ended)
        self._window.ring()
