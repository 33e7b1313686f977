"""Where blocks run: in this process, or on Dask workers that are started here or joined."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline import machine
from pipeline.config import ClassCluster, ClusterConfig, LocalCluster, RemoteCluster, SerialCluster
from pipeline.dispatch import Outcome, Window, Workers, run_tasks
from pipeline.errors import ClusterError, ConfigError
from pipeline.models import cuda_devices, cuda_memory
from pipeline.plan import Budget
from pipeline.stop import Stop, stopping_on_signals

__all__ = ["Outcome", "Stop", "Workers", "local_workers", "open_workers", "run_tasks", "stopping_on_signals", "worker_budget"]

MIB = 1024**2
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(512 * MIB), "MALLOC_MMAP_THRESHOLD_": str(32 * MIB)}
"""glibc keeps what a worker frees for its next tile. Dask's own setting gives it back at once; fetching it again, page by page,
took a third of a worker's time around a cheap model."""


def memory_per_worker(config: ClusterConfig) -> int:
    """Bytes that one worker may take, known before any is started."""
    if config.memory_gib:
        return int(config.memory_gib * 1024 * MIB)
    workers = local_workers(config)[0] if isinstance(config, LocalCluster) else 1
    return int(machine.total_bytes() * 0.8 / workers)


def worker_budget(config: ClusterConfig, device: str) -> Budget:
    """What one worker may take with the model on `device`, known before any is started."""
    return Budget(memory_per_worker(config), blocks_at_once(config), _gpu_bytes(config, device))


def blocks_at_once(config: ClusterConfig) -> int:
    """Blocks that a worker has at work at a time."""
    if isinstance(config, SerialCluster):
        return 1
    return config.blocks_at_once or (2 if cuda_devices() else 1)


def _gpu_bytes(config: ClusterConfig, device: str) -> int | None:
    """Memory of a worker's GPU that a plan may use; None without one, or if it is not known."""
    if device in ("cpu", "mps"):
        return None
    if isinstance(config, RemoteCluster | ClassCluster):
        return None if config.gpu_memory_gib is None else int(config.gpu_memory_gib * 1024 * MIB)
    return cuda_memory() if cuda_devices() else None


def local_workers(config: LocalCluster) -> tuple[int, int]:
    """(workers, threads of arithmetic in each) on this machine."""
    cores = machine.cores()
    workers = config.workers or len(cuda_devices()) or max(1, cores // 4)
    return workers, config.threads or max(1, cores // workers)


@contextmanager
def open_workers(config: ClusterConfig) -> Iterator[Workers]:
    """Start or join the configured workers; those started here end with the context.

    ClusterError says which workers could not be had.
    """
    memory = memory_per_worker(config)
    if isinstance(config, SerialCluster):
        threads = config.threads or machine.cores()
        yield Workers(None, 1, threads, memory, "this process", stop=Stop(at_once=True))
        return
    _configure_dask()
    from distributed import Client

    from pipeline.clusterclass import class_cluster

    with ExitStack() as stack:
        try:
            if isinstance(config, LocalCluster):
                count, threads = local_workers(config)
                cluster = stack.enter_context(_local_cluster(config, count, memory))
                client = stack.enter_context(Client(cluster))
                words = f"{count} local worker{'s' * (count > 1)}"
            elif isinstance(config, RemoteCluster):
                client = stack.enter_context(_remote_client(config))
                found = client.nthreads()
                count, own = max(1, len(found)), min(found.values(), default=1)
                threads = config.threads or max(1, own // config.blocks_at_once)
                words = f"{count} worker{'s' * (count > 1)} of {config.address or config.scheduler_file}"
            else:
                cluster = stack.enter_context(class_cluster(config))
                client = stack.enter_context(Client(cluster))
                count, threads = config.workers or config.maximum or 1, config.threads or 1
                words = f"{count} workers of {config.cls}"
        except (OSError, RuntimeError, TypeError, ValueError) as e:
            raise ClusterError(f"no workers: {type(e).__name__}: {e}. Check the section cluster of the configuration") from e
        workers = Workers(client, count, threads, memory, words, window=Window(blocks_at_once(config)))
        workers.watch.listen(client)
        yield workers


def _configure_dask() -> None:
    import dask

    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 0,
            "distributed.deploy.lost-worker-timeout": "120s",
            "distributed.worker.daemon": True,
            "distributed.worker.multiprocessing-method": "spawn",
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.pause": False,  # a paused worker would wait for memory that nobody frees
            "distributed.nanny.pre-spawn-environ": KEEP_MEMORY,
            "distributed.scheduler.work-stealing": True,
            "distributed.worker.profile.enabled": False,
            "logging": {"distributed": "error", "distributed.scheduler": "critical", "distributed.worker": "critical"},
        }
    )


def _local_cluster(config: LocalCluster, count: int, memory: int) -> Any:
    """Nannies on loopback, with certificates that no other user of this host has; where there are GPUs, each worker sees one of
    them."""
    from pipeline.connections import temporary_security
    from pipeline.nannies import local_cluster

    gpus = cuda_devices()
    options = {
        "nthreads": blocks_at_once(config),
        "memory_limit": memory,
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    workers = [options | ({"env": {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}} if gpus else {}) for index in range(count)]
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard": config.dashboard, "dashboard_address": "127.0.0.1:0"}
    return local_cluster(workers, scheduler, temporary_security())


def _remote_client(config: RemoteCluster) -> Any:
    from distributed import Client

    if config.address is not None:
        address = config.address
        _check_private(config, "cluster.address", address)
    else:
        if config.scheduler_file is None or not config.scheduler_file.is_file():
            raise ClusterError(
                f"cluster.scheduler_file {config.scheduler_file} does not exist: is the scheduler running, and the folder shared?"
            )
        address = str(json.loads(config.scheduler_file.read_bytes()).get("address"))
        _check_private(config, f"cluster.scheduler_file {config.scheduler_file} names", address)
    return Client(address, security=_certificates(config, address), timeout="30s")


def _certificates(config: RemoteCluster, address: str) -> Any:
    """Return the certificates for a scheduler: the configured ones, else those of Dask's own configuration."""
    from distributed.security import Security

    files = {name: getattr(config, name) for name in ("tls_ca", "tls_cert", "tls_key")}
    missing = [f"cluster.{name} {path}" for name, path in files.items() if path is not None and not path.is_file()]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: no such file. Give the path of a certificate or key (PEM)")
    if config.tls_ca is None:
        found: Any = Security()
        if address.startswith("tls://") and not (found.tls_ca_file and found.tls_client_cert):
            raise ConfigError(
                f"{address} takes holders of a certificate only: give cluster.tls_ca, cluster.tls_cert and cluster.tls_key, or "
                "distributed.comm.tls in Dask's configuration"
            )
        return found
    return Security(
        tls_ca_file=str(config.tls_ca),
        tls_client_cert=str(config.tls_cert),
        tls_client_key=str(config.tls_key),
        require_encryption=True,
    )


def _check_private(config: RemoteCluster, where: str, address: str) -> None:
    from pipeline.connections import check_private

    if not config.insecure:
        check_private(where, [address], remedy="Use tls:// with certificates")
