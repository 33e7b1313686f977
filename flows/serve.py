"""`gigamask serve`: the night on a schedule, on one machine, in one command, with a Prefect server where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

from pipeline.config import load_config
from pipeline.errors import ClusterError, ConfigError

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

LOOPBACK = "127.0.0.1"
STARTUP_SECONDS = 180.0


def serve_nights(config: Path, cron: str, timezone: str, root: Path | None) -> None:
    """Run the night of `config` whenever `cron` says so in `timezone`, until this process is ended.

    One run at a time: one that is due while another is under way is cancelled. A schedule or a configuration that cannot be
    is a ConfigError, before anything is started.
    """
    loaded = load_config(config, root=root)
    check_schedule(cron, timezone)
    with _server() as (api, auth):
        from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
        from prefect.schedules import Cron
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
        from prefect.types.entrypoint import EntrypointType

        from flows.nightly import nightly

        parameters = {"config": str(config.resolve()), "root": str(root.resolve()) if root else None}
        _say(f"{loaded.name}: {cron!r}, {timezone}; Prefect at {api.removesuffix('/api')}; Ctrl-C or SIGTERM ends it")
        # runs get both by their environment, which only their user can read
        with temporary_settings({PREFECT_API_URL: api} | ({PREFECT_API_AUTH_STRING: auth} if auth else {})):
            nightly.serve(
                name=loaded.name,
                schedule=Cron(cron, timezone=timezone),
                parameters=parameters,
                limit=2,  # with 1 a second run would wait here and begin after the first, where the server is to cancel it
                global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
                pause_on_shutdown=False,
                print_starting_message=False,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )


def check_schedule(cron: str, timezone: str) -> None:
    """ConfigError where Prefect could not read these."""
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as e:
        raise ConfigError(f"--timezone {timezone}: is no time zone; give one such as Europe/Berlin or UTC") from e
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron, timezone=timezone)
        known = len(cron.split()) == 5 or cron.startswith("@")
    except ValidationError:
        known = False
    if not known:
        raise ConfigError(
            f"--cron {cron!r}: is no schedule; give minute, hour, day of month, month, day of week: '0 1 * * *' is daily at one"
        )


@contextmanager
def _server() -> Iterator[tuple[str, str | None]]:
    """(address, auth string) of a Prefect API: the configured one, with the configured string (None here), or one that is started
    here and ends with the context. ConfigError where one runs on the usual port that nobody has configured: whoever controls a
    server decides what code its clients run.

    Prefect's own temporary server would not do: it runs no scheduler.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT

    from flows.access import auth_file, auth_string

    configured: str | None = PREFECT_API_URL.value()
    if configured:
        yield configured, None
        return
    usual_port: int = PREFECT_SERVER_API_PORT.value()
    usual = f"http://{LOOPBACK}:{usual_port}/api"
    if _answers(usual):
        raise ConfigError(
            f"a Prefect server runs at {usual} already, and may be anybody's on this host: set PREFECT_API_URL={usual} if it is "
            "yours, or PREFECT_SERVER_API_PORT to another port for a server of gigamask's own"
        )
    port = _free_port(usual_port)
    api = f"http://{LOOPBACK}:{port}/api"
    auth = auth_string()
    environment = os.environ | {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
    _say(f"starting a Prefect server at http://{LOOPBACK}:{port}, which takes half a minute")
    # a session of its own: Ctrl-C is for the runs first, which still tell the server how they have ended
    server = subprocess.Popen(  # noqa: S603 - Prefect's own command
        [*command, "--log-level", "ERROR"], stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    try:
        deadline = time.monotonic() + STARTUP_SECONDS
        while not (_listens(server.pid, port) and _answers(api)):
            if server.poll() is not None or time.monotonic() > deadline:
                ended = "does not answer" if server.returncode is None else f"ended with {server.returncode}"
                raise ClusterError(
                    f"the Prefect server at {api} {ended}. Start one with `prefect server start` and set PREFECT_API_URL, "
                    "or run `gigamask run --no-prefect` from cron"
                )
            time.sleep(0.2)
        with auth_file(auth, port) as file:
            _say(f"the auth string of this server, for its page and Prefect's commands, is in {file} while it runs")
            yield api, auth
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:  # noqa: S310 - loopback, over HTTP
            return bool(answer.read(5) == b"true")
    except (OSError, urllib.error.URLError):
        return False


def _listens(pid: int, port: int) -> bool:
    """Return whether the port is that of a process or its children: any user of this host could have taken it meanwhile, and
    would be given the auth string."""
    import psutil

    try:
        process = psutil.Process(pid)
        found = [c for one in (process, *process.children(recursive=True)) for c in one.net_connections(kind="tcp")]
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)


def _free_port(usual: int) -> int:
    """The usual port, or any other where a program has that."""
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ClusterError(f"no free port on {LOOPBACK} for a Prefect server")


def _say(text: str) -> None:
    sys.stderr.write(f"gigamask: {text}\n")
    sys.stderr.flush()
