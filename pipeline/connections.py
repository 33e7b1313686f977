"""Who can reach a Dask scheduler: by TLS only holders of its certificates, on loopback only this host, else anybody."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from distributed import Scheduler
from distributed.security import Security

from pipeline.errors import ConfigError

PRIVATE = ("tls", "inproc")
"""Schemes of Dask addresses that nobody else can use: certificates of both sides are checked, or there is no socket at all."""
LOOPBACK = "127.0.0.1"


def temporary_security() -> Security:
    """Return a certificate and key for one cluster, which exist in memory only and which nobody else holds."""
    found: Security = Security.temporary()
    return found


def on_loopback(address: str) -> bool:
    """Return whether only this host can reach a Dask address.

    assert on_loopback("tcp://127.0.0.1:8786") and not on_loopback("tcp://0.0.0.0:8786")
    """
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_private(where: str, addresses: Iterable[str], *, remedy: str, loopback: bool = True) -> None:
    """Raise ConfigError if an address is open to other hosts without TLS. `loopback`: whether a loopback address shows that it is
    not; that of a forwarded port does not."""
    for address in addresses:
        if urlsplit(address).scheme not in PRIVATE and not (loopback and on_loopback(address)):
            raise ConfigError(
                f"{where} {address}, plain TCP to another host: whoever listens there, or on the way, could run code on the "
                f"workers and here. {remedy}, or set cluster.insecure: true on a network you trust"
            )


def scheduler_addresses(cluster: Any) -> tuple[list[str], bool]:
    """Return (addresses of a cluster's scheduler, whether these are the sockets that it listens on).

    A scheduler in this process shows its sockets. One elsewhere only reports how it is reached: an address on loopback may then
    be that of a port forwarded to it.
    """
    scheduler = getattr(cluster, "scheduler", None)
    if isinstance(scheduler, Scheduler):
        return [listener.listen_address for listener in scheduler.listeners], True
    reported = [str(cluster.scheduler_address), cluster.scheduler_info.get("address")]
    return [address for address in reported if address], False
