"""Clusters of any Dask class that the configuration names, such as those of batch systems: started, checked, scaled."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from pipeline.config import ClassCluster
from pipeline.connections import LOOPBACK, check_private, scheduler_addresses, temporary_security
from pipeline.errors import ClusterError, ConfigError

SHORTEST_SECRET = 8
"""Strings of `cluster.arguments` with as many characters do not reach error messages."""


@contextmanager
def class_cluster(config: ClassCluster) -> Iterator[Cluster]:
    """Start the configured cluster; it ends with the context.

    ConfigError where the class is not a cluster, or where others could reach its scheduler: no task was sent then. ClusterError
    where the class cannot be imported or started.
    """
    cls = _class_of(config.cls)
    with _start(config, cls) as cluster, _without_keys_left(cluster):
        if not config.insecure:
            _check_scheduler(config, cluster)
        if config.maximum is not None:
            cluster.adapt(minimum=config.minimum or 0, maximum=config.maximum)
        else:
            cluster.scale(config.workers)
        yield cluster


@contextmanager
def _without_keys_left(cluster: Cluster) -> Iterator[None]:
    """Remove the files by which dask-jobqueue hands temporary keys to its jobs; it leaves them until the process ends."""
    try:
        yield
    finally:
        for name, file in vars(cluster).items():
            if name in ("_job_ca_file", "_job_cert", "_job_key"):
                file.close()


def _class_of(path: str) -> type[Cluster]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        package = module.split(".")[0].replace("_", "-")
        raise ClusterError(f"cluster.class {path} cannot be imported ({e}). Is {package} installed beside gigamask?") from e
    if not (isinstance(found, type) and issubclass(found, Cluster)):
        raise ConfigError(
            f"cluster.class {path} is a {type(found).__name__} and not a Dask cluster class (a subclass of "
            "distributed.deploy.Cluster): it was not called. Name one such as dask_jobqueue.SLURMCluster"
        )
    return found


def _start(config: ClassCluster, cls: type[Cluster]) -> Cluster:
    arguments = _arguments(config, cls)
    try:
        return cls(**arguments)
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as e:
        words = _without_secrets(f"{type(e).__name__}: {e}", config.arguments)
        made = arguments.get("security") is not None and "security" not in config.arguments
        hint = (
            ". It was given temporary TLS certificates: where the class cannot use them, give cluster.arguments.security your "
            "own, or set cluster.insecure: true on a network you trust"
        )
        # without the cause: its words repeat the arguments, and logs show the causes of errors
        raise ClusterError(f"cluster.class {config.cls} does not start: {words}{hint if made else ''}") from None


def _arguments(config: ClassCluster, cls: type[Cluster]) -> dict[str, Any]:
    """Return the keyword arguments of the class: those configured, and what keeps others out where nothing is said about it."""
    arguments = dict(config.arguments)
    security = arguments.get("security", not config.insecure and _takes(cls, "security") and _may_encrypt(arguments))
    if isinstance(security, dict):
        try:
            arguments["security"] = Security(require_encryption=True, **security)
        except (TypeError, ValueError) as e:
            raise ConfigError(f"cluster.arguments.security: {e}. Give the arguments of distributed.security.Security") from e
    elif security is True:
        arguments["security"] = temporary_security()
    return arguments | _closed_dashboard(arguments, cls)


def _may_encrypt(arguments: dict[str, Any]) -> bool:
    options = arguments.get("scheduler_options")
    protocols = [arguments.get("protocol"), options.get("protocol") if isinstance(options, dict) else None]
    return all(str(protocol).startswith("tls") for protocol in protocols if protocol is not None)


def _closed_dashboard(arguments: dict[str, Any], cls: type[Cluster]) -> dict[str, Any]:
    """Return the arguments that serve the dashboard on loopback only, where nothing is configured. Dask's own default is all
    interfaces, for everybody, without TLS."""
    address = f"{LOOPBACK}:8787"
    if _takes(cls, "scheduler_options"):
        name = arguments.get("config_name") or getattr(getattr(cls, "job_cls", None), "config_name", None)
        defaults = dask.config.get(f"jobqueue.{name}.scheduler-options", None) or {}
        options = arguments.get("scheduler_options") or defaults
        return {"scheduler_options": {"dashboard_address": address, **options}} if isinstance(options, dict) else {}
    return {"dashboard_address": address} if _takes(cls, "dashboard_address") and "dashboard_address" not in arguments else {}


def _takes(cls: type, name: str) -> bool:
    """Return whether the constructor of `cls` has this keyword, or hands it on to that of a base class which has it."""
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        if name in parameters:
            return True
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False


def _check_scheduler(config: ClassCluster, cluster: Cluster) -> None:
    addresses, sockets = scheduler_addresses(cluster)
    if not addresses:
        raise ConfigError(f"cluster.class {config.cls}: its scheduler has no address that could be checked; see cluster.insecure")
    check_private(
        f"cluster.class {config.cls}: its scheduler listens on",
        addresses,
        loopback=sockets,
        remedy="Have it use TLS (cluster.arguments.security: true, where the class takes it) or, in this process, loopback",
    )


def _without_secrets(text: str, arguments: Any) -> str:
    """Return `text` without the strings that `arguments` hold: any of them may be a password."""
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, list):
        for value in arguments:
            text = _without_secrets(text, value)
    elif isinstance(arguments, str) and len(arguments) >= SHORTEST_SECRET:
        text = text.replace(arguments, "...").replace(repr(arguments)[1:-1], "...")
    return text
