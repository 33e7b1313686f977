"""Who may start nights through Prefect: holders of its auth string, and for each deployment the configuration it was made for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from pipeline.errors import ConfigError


def auth_string() -> str:
    """Return what a Prefect server that is started here asks of its clients: the configured string, else a random one."""
    configured = PREFECT_SERVER_API_AUTH_STRING.value()
    return _plain(configured) or f"gigamask:{secrets.token_urlsafe(32)}"


@contextmanager
def temporary_server_closed() -> Iterator[None]:
    """Have the temporary server that Prefect starts for a run without one ask for a random string, known to this process and its
    children only. Any user of this host could else add runs to the database, for `gigamask serve` to execute."""
    if PREFECT_API_URL.value():
        yield
        return
    auth = auth_string()
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: auth, PREFECT_API_AUTH_STRING: auth}):
        yield


@contextmanager
def auth_file(auth: str, port: int) -> Iterator[Path]:
    """Write the string for its owner, who needs it for the server's page and for Prefect's commands. Nobody else can read the
    file, which is removed with the context."""
    path = Path(PREFECT_HOME.value()) / f"gigamask-serve-{port}.auth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"{auth}\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def check_deployed(deployment: UUID | None, parameters: dict[str, Any]) -> None:
    """Raise ConfigError where a run of a deployment is about another configuration or root than the deployment is.

    A configuration can run commands, so that the parameters of a run must not choose it. A run without a deployment was started
    by a person on this machine.
    """
    if deployment is None:
        return
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment(deployment).parameters
    for name in ("config", "root"):
        asked, allowed = parameters.get(name), deployed.get(name)
        if asked != allowed:
            raise ConfigError(
                f"parameter {name} {asked!r}: this deployment runs {allowed!r} only, as a configuration can run commands. "
                "Nothing was read. Deploy the other one by itself, by gigamask serve or an entry in prefect.yaml"
            )


def _plain(value: Any) -> str:
    """Return the text of a setting that Prefect may hold as a secret."""
    return "" if value is None else str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)
