"""Workers on this machine: each a process of its own under a nanny, and always as many as were asked for."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Nanny, Scheduler, SpecCluster
from distributed.core import Status
from distributed.security import Security

MEND_SECONDS = 2.0
"""How often it is looked whether all nannies are there."""

_log = logging.getLogger(__name__)


class WatchedNanny(Nanny):
    """A nanny that tells, as an event of topic `worker-exit`, how the processes of its worker end."""

    _watched: Any = None
    _worker: dict[str, Any] | None = None

    async def instantiate(self) -> Status:
        """Start a worker process."""
        status = await super().instantiate()
        process = self.process
        if process is not None and status == Status.running:
            self._worker = {"worker": process.worker_address, "pid": process.pid}
            if process is not self._watched:
                process.on_exit, self._watched = functools.partial(self._tell, process.on_exit), process
        return status

    def _tell(self, go_on: Callable[[int], None], exit_code: int) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and self.status == Status.running:
            self.log_event("worker-exit", {**worker, "end": _in_words(exit_code)})  # type: ignore[no-untyped-call]
        go_on(exit_code)


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"signal {-exit_code}"


def dask_setup(_worker: Any) -> None:
    """Dask calls this in each worker process. Ctrl-C reaches all processes of a terminal, but is meant for the driver: workers
    finish what they have begun, so that it is kept. What a task raises is for the driver to tell: the worker does not log it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


class LocalNannies(SpecCluster):
    """A SpecCluster that bears to hear of the end of a worker that it does not know: two that die in one moment are told in any
    order, and Dask's own then fails with a KeyError when it is closed, after all work was done."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        if op != "remove" or msg in self.scheduler_info["workers"]:
            super()._update_worker_status(op, msg)  # type: ignore[no-untyped-call]


@contextmanager
def local_cluster(workers: list[dict[str, Any]], scheduler: dict[str, Any], security: Security) -> Iterator[SpecCluster]:
    """Start a scheduler in this process and one nannied worker for each of the given options. They talk to each other, and to
    the client, by TLS with the certificates of `security`."""
    encrypted = {"security": security, "protocol": "tls://"}
    workers, scheduler = [{**options, **encrypted} for options in workers], {**scheduler, **encrypted}
    spec = {name: {"cls": WatchedNanny, "options": {**options, "preload": [__name__]}} for name, options in enumerate(workers)}
    with LocalNannies(  # type: ignore[no-untyped-call]
        workers=spec.copy(),
        scheduler={"cls": Scheduler, "options": scheduler},
        security=security,
        silence_logs=logging.ERROR,
        name="gigamask",
    ) as cluster:
        mending = asyncio.run_coroutine_threadsafe(_keep_whole(cluster, spec), cluster.loop.asyncio_loop)
        try:
            yield cluster
        finally:
            mending.cancel()


async def _keep_whole(cluster: SpecCluster, spec: dict[int, Any]) -> None:
    """Replace nannies that are gone.

    SpecCluster closes and drops a nanny whose worker is not back within `distributed.deploy.lost-worker-timeout`, and a nanny
    closes where it cannot start its worker; neither ever starts another.
    """
    while cluster.status == Status.running:
        await asyncio.sleep(MEND_SECONDS)
        given_up = [name for name, nanny in cluster.workers.items() if nanny.status in (Status.closed, Status.failed)]
        if not given_up and cluster.workers.keys() == spec.keys():
            continue
        try:
            await cluster.scale_down(given_up)
            cluster.worker_spec.update(spec)
            await cluster
        except Exception as e:  # noqa: BLE001 - whatever keeps a process from starting now may be over at the next look
            _log.error("a local worker cannot be started: %s: %s", type(e).__name__, e)
