"""What the driver knows of its workers from afar: what executes where and since when, and how a worker's process ended."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Literal

GIB = 1024**3
DEADLINE_SECONDS = 600.0
"""No automatic deadline is shorter."""
DEADLINE_MEDIANS = 20
"""How many times the usual an automatic deadline is."""
NANNY_SECONDS = 1.0
"""Within how long after a death the nanny has told how the process ended."""

type Deadline = float | Literal["auto", "none"]
"""Seconds that a call may execute. `auto`: DEADLINE_MEDIANS times what calls of the same function took so far (the median), and
at least DEADLINE_SECONDS."""


class Pace:
    """How long calls of each function take."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=1000))

    def learn(self, function: str, seconds: float) -> None:
        """One more call has returned."""
        self._seconds[function].append(seconds)

    def limit(self, function: str, deadline: Deadline) -> float:
        """Seconds that a call may take by `deadline`; infinitely many where there is none."""
        if deadline == "none":
            return float("inf")
        if deadline != "auto":
            return deadline
        usual = statistics.median(list(self._seconds[function]) or [0.0])
        return max(DEADLINE_SECONDS, DEADLINE_MEDIANS * usual)


@dataclass(eq=False)
class WorkerProcess:
    """What is known of the process of a worker."""

    address: str
    pid: int
    host: str
    begun: dict[str, float] = field(default_factory=dict)
    """Dask keys that it executes, since when by the driver's clock. After its death: those that it took along."""
    died: float | None = None
    """When it was found dead, by the driver's clock."""
    given_up: bool = False
    """Whether the driver has ended it."""
    memory_limit: int = 0
    """Bytes."""
    rss: int = 0
    """Bytes at which its nanny ended it."""
    end: str = ""
    """Exit code or signal, as its nanny tells."""
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held by the one in flight of the tasks that may have caused its death."""

    def __str__(self) -> str:
        return f"worker {self.address} (pid {self.pid} on {self.host})"


class Watch:
    """Hears from workers what they begin, and from nannies how workers ended, through the scheduler's event topics.

    Without it, a task that kills its worker or never returns could not be told from those that wait behind it.
    """

    def __init__(self) -> None:
        self.run = uuid.uuid4().hex
        """Names the run on its scheduler, which others may use too: part of every task's key."""
        self.topic = f"gigamask-{self.run}"
        """Events of the run's tasks."""
        self._news = threading.Condition()
        self._processes: dict[str, WorkerProcess] = {}
        self._of: dict[str, WorkerProcess] = {}

    def listen(self, client: Any) -> None:
        """Hear what is told from now on."""
        for topic in (self.topic, "worker-exit", "worker-restart-memory"):
            client.subscribe_topic(topic, lambda event: self.hear(event[1]))

    def hear(self, news: dict[str, Any]) -> None:
        """`worker`, `pid`, and: `key` and `host`, it begins this task; `rss`, its nanny ends it for that memory; `end`, how the
        process has ended."""
        with self._news:
            process = self._process(news["worker"], news["pid"], news.get("host"))
            if "key" in news:
                process.begun[news["key"]] = time.monotonic()
                self._of[news["key"]] = process
            elif "rss" in news:
                process.rss = news["rss"]
            else:
                process.end = news["end"]
            self._news.notify_all()

    def executing(self, key: str) -> tuple[WorkerProcess, float] | None:
        """(where, for how many seconds) a task executes; None where no word of it has come."""
        with self._news:
            process = self._of.get(key)
            return None if process is None else (process, time.monotonic() - process.begun[key])

    def forget(self, key: str) -> None:
        """The task executes no longer."""
        with self._news:
            process = self._of.pop(key, None)
            if process is not None and process.died is None:
                process.begun.pop(key)

    def died(self, address: str, pid: int, memory_limit: int) -> WorkerProcess:
        """The process, which is dead as the scheduler says."""
        with self._news:
            process = self._process(address, pid)
            process.died = process.died or time.monotonic()
            process.memory_limit = memory_limit
            return process

    def end_of(self, process: WorkerProcess) -> str:
        """How a dead process ended. Waits a moment for its nanny's word."""
        with self._news:
            left = (process.died or 0.0) + NANNY_SECONDS - time.monotonic()
            self._news.wait_for(lambda: process.end, timeout=max(0.0, left))
        limit = f"its limit of {process.memory_limit / GIB:.2f} GiB"
        memory = f"its nanny ended it at {process.rss / GIB:.2f} GiB of memory, for {limit}" if process.rss else ""
        return ", ".join(filter(None, (memory, process.end))) or "how it ended is not known"

    def _process(self, address: str, pid: int, host: str | None = None) -> WorkerProcess:
        known = self._processes.get(address)
        if known is None or known.pid != pid:
            host = host or address.rpartition("://")[2].rpartition(":")[0]
            known = self._processes[address] = WorkerProcess(address, pid, host)
        return known
