"""Where blocks run: in this process or on Dask workers. The only importer of dask."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from pipeline.config import ClassCluster, ClusterConfig, LocalCluster, RemoteCluster, SerialCluster
from pipeline.errors import ClusterError, ConfigError
from pipeline.models import cuda_devices

MIB = 1024**2
MOST_ATTEMPTS = 3
"""How often a block is tried before it is failed."""
LOOK_SECONDS = 5.0
"""How often it is looked whether there are workers at all, while nothing finishes."""
WITHOUT_WORKERS_SECONDS = 120.0
"""How long to wait for a worker when there is none left: batch systems take their time."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


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


@dataclass(frozen=True)
class Outcome[T]:
    """How a call ended: with a result, or with the error that its last attempt raised."""

    result: T | None
    error: BaseException | None
    attempts: int


def memory_per_worker(config: ClusterConfig) -> int:
    """Bytes that one worker may take, known before any is started."""
    if config.memory_gib:
        return int(config.memory_gib * 1024 * MIB)
    import psutil

    workers = local_workers(config)[0] if isinstance(config, LocalCluster) else 1
    return int(psutil.virtual_memory().total * 0.8 / workers)


def local_workers(config: LocalCluster) -> tuple[int, int]:
    """(workers, threads of arithmetic in each) on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers or len(cuda_devices()) or max(1, cores // 4)
    return workers, config.threads or max(1, cores // workers)


@contextmanager
def open_workers(config: ClusterConfig) -> Iterator[Workers]:
    """Start or join the configured workers; those started here end with the context.

    ClusterError says which workers could not be had.
    """
    memory = memory_per_worker(config)
    if isinstance(config, SerialCluster):
        threads = config.threads or len(os.sched_getaffinity(0))
        yield Workers(None, 1, threads, memory, "this process")
        return
    _configure_dask()
    from distributed import Client

    with ExitStack() as stack:
        try:
            if isinstance(config, LocalCluster):
                count, threads = local_workers(config)
                cluster = stack.enter_context(_local_cluster(config, count, memory))
                client = stack.enter_context(Client(cluster))
                words = f"{count} local worker{'s' * (count > 1)}"
            elif isinstance(config, RemoteCluster):
                client = stack.enter_context(_remote_client(config))
                count, threads = max(1, len(client.scheduler_info()["workers"])), config.threads or 1
                words = f"{count} worker{'s' * (count > 1)} of {config.address or config.scheduler_file}"
            else:
                cluster = stack.enter_context(_class_cluster(config))
                client = stack.enter_context(Client(cluster))
                count, threads = config.workers or config.maximum or 1, config.threads or 1
                words = f"{count} workers of {config.cls}"
        except (OSError, RuntimeError, TypeError, ValueError) as e:
            raise ClusterError(f"no workers: {type(e).__name__}: {e}. Check the section cluster of the configuration") from e
        yield Workers(client, count, threads, memory, words)


def run_tasks[Result](
    function: Callable[..., Result], tasks: Iterable[tuple[str, tuple[Any, ...]]], workers: Workers
) -> Iterator[tuple[str, Outcome[Result]]]:
    """Call `function(*arguments)` for every (key, arguments), and yield (key, outcome) as they finish.

    Retries belong to this driver: a task is tried up to three times, the attempt in its Dask key. At most twice as many
    tasks as there are worker threads are in flight, and their futures are released at once.
    """
    if workers.client is None:
        return ((key, _here(function, arguments)) for key, arguments in tasks)
    return _there(function, iter(tasks), workers.client)


def _here[Result](function: Callable[..., Result], arguments: tuple[Any, ...]) -> Outcome[Result]:
    error: Exception | None = None
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            return Outcome(function(*arguments), None, attempt)
        except Exception as e:  # noqa: BLE001 - a failure is data: it reaches the ledger and the report
            error = e
    return Outcome(None, error, MOST_ATTEMPTS)


def _there[Result](
    function: Callable[..., Result], tasks: Iterator[tuple[str, tuple[Any, ...]]], client: Any
) -> Iterator[tuple[str, Outcome[Result]]]:
    running: dict[Any, tuple[str, tuple[Any, ...], int]] = {}
    finished: SimpleQueue[Any] = SimpleQueue()
    seen_workers = time.monotonic()

    def submit(key: str, arguments: tuple[Any, ...], attempt: int) -> None:
        future = client.submit(function, *arguments, key=f"{function.__name__}-{key}-{attempt}", pure=False, retries=0)
        running[future] = key, arguments, attempt
        future.add_done_callback(finished.put)

    def refill() -> None:
        limit = 2 * max(1, sum(client.nthreads().values()))
        while len(running) < limit and (task := next(tasks, None)) is not None:
            submit(*task, attempt=1)

    refill()
    while running:
        try:
            future = finished.get(timeout=LOOK_SECONDS)
        except Empty:
            if client.nthreads():
                seen_workers = time.monotonic()
            elif time.monotonic() - seen_workers > WITHOUT_WORKERS_SECONDS:
                raise ClusterError(
                    f"no worker is left since {WITHOUT_WORKERS_SECONDS:.0f} s, and {len(running)} tasks wait; what is done "
                    "is kept. Look at the workers' logs, then run the same command again to go on"
                ) from None
            continue
        seen_workers = time.monotonic()
        key, arguments, attempt = running.pop(future)
        error = future.exception() if future.status != "finished" else None
        result = future.result() if error is None else None
        future.release()
        if error is not None and attempt < MOST_ATTEMPTS:
            submit(key, arguments, attempt + 1)
            continue
        refill()
        yield key, Outcome(result, error, attempt)


def _configure_dask() -> None:
    import dask

    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 1,
            "distributed.worker.daemon": True,
            "distributed.worker.multiprocessing-method": "spawn",
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.target": False,
            "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": "65536"},
            "distributed.scheduler.work-stealing": True,
            "logging": {"distributed": "error", "distributed.worker": "error", "distributed.nanny": "error"},
        }
    )


def _local_cluster(config: LocalCluster, count: int, memory: int) -> Any:
    """Nannies on loopback; where there are GPUs, each worker sees one of them."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = cuda_devices()
    options = {
        "nthreads": 2 if gpus else 1,
        "memory_limit": memory,
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    workers = {
        index: {
            "cls": Nanny,
            "options": options | ({"env": {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}} if gpus else {}),
        }
        for index in range(count)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": config.dashboard, "dashboard_address": "127.0.0.1:0"},
    }
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.ERROR, name="gigamask")


def _remote_client(config: RemoteCluster) -> Any:
    from distributed import Client
    from distributed.security import Security

    security = None
    if config.tls_ca:
        security = Security(
            tls_ca_file=str(config.tls_ca),
            tls_client_cert=str(config.tls_cert),
            tls_client_key=str(config.tls_key),
            require_encryption=True,
        )
    if config.address is not None:
        parts = urlsplit(config.address)
        if parts.scheme != "tls" and parts.hostname not in _LOOPBACK and not config.insecure:
            raise ConfigError(
                f"cluster.address {config.address} is plain TCP to another host: whoever listens there, or on the way, could run "
                "code on the workers and here. Use tls:// with certificates, or set cluster.insecure: true on a network you trust"
            )
        return Client(config.address, security=security, timeout="30s")
    if config.scheduler_file is None or not config.scheduler_file.is_file():
        raise ClusterError(
            f"cluster.scheduler_file {config.scheduler_file} does not exist: is the scheduler running, and the folder shared?"
        )
    return Client(scheduler_file=str(config.scheduler_file), security=security, timeout="30s")


@contextmanager
def _class_cluster(config: ClassCluster) -> Iterator[Any]:
    module, _, name = config.cls.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)(**config.arguments)
    except (ImportError, AttributeError) as e:
        package = module.split(".")[0].replace("_", "-")
        raise ClusterError(f"cluster.class {config.cls} cannot be imported ({e}). Is {package} installed beside gigamask?") from e
    with made as cluster:
        if config.maximum is not None:
            cluster.adapt(minimum=config.minimum or 0, maximum=config.maximum)
        else:
            cluster.scale(config.workers)
        yield cluster
