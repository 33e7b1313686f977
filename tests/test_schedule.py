"""The night on a schedule, on a real Prefect server: states, artifacts, one run at a time, cancelled and killed in the middle.

Slow: one server for all tests, started as an operator would start it, with `gigamask serve`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.console import Quiet
from flows.nightly import _tell_for_the_dead, nightly
from pipeline.config import load_config
from pipeline.ledger import Ledger
from pipeline.night import run_night
from pipeline.records import BlockRecord
from tests.conftest import REPO, write_raster
from tests.making import config_file, threshold_model
from tests.test_night import bytes_of
from tests.test_publish import archive_of, at, scheduler

PATIENCE = 120.0
"""Seconds that anything may take on a loaded machine."""
MODEL = """
import time
from pathlib import Path
import numpy as np

def predict(data, valid, slow):
    if Path(slow).exists():
        time.sleep(0.03)
    return np.stack([data[:, 0] < 100, data[:, 0] >= 100], axis=1).astype(np.float32)
"""


def until[T](look: Callable[[], T], what: str) -> T:
    """What `look` finds, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Server:
    """A Prefect API, and the environment that leads to it."""

    url: str
    environment: dict[str, str]
    serving: subprocess.Popen[bytes]
    home: Path

    def auth(self) -> str:
        """What the server asks of its clients, as its owner finds it."""
        (file,) = self.home.glob("gigamask-serve-*.auth")
        assert file.stat().st_mode & 0o777 == 0o600
        return file.read_text().strip()

    def client_environment(self) -> dict[str, str]:
        return self.environment | {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.auth()}

    def ask(self, path: str, body: Any = None, *, auth: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        basic = base64.b64encode((self.auth() if auth is None else auth).encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as e:
                if e.code != 503:  # SQLite has one writer: ask again, as Prefect's own client does
                    raise
                time.sleep(0.5)
        raise TimeoutError(f"{path}: still 503")

    def deployment(self, name: str) -> Any:
        found = self.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found[0] if found else None

    def start(self, deployment: str, config: Path, when: str | None = None) -> str:
        """A new flow run, now or at a time, over a configuration."""
        state = {"type": "SCHEDULED"} | ({"state_details": {"scheduled_time": when}} if when else {})
        body = {"parameters": {"config": str(config)}, "state": state}
        return str(self.ask(f"deployments/{self.deployment(deployment)['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> tuple[str, str]:
        """(name, message) of a flow run's state."""
        state = self.ask(f"flow_runs/{run}")["state"]
        return state["name"], state["message"] or ""

    def ended(self, run: str) -> tuple[str, str]:
        final = ("Completed", "Failed", "Crashed", "Cancelled")
        until(lambda: self.state(run)[0] in final, f"the end of {run}")
        return self.state(run)

    def tasks(self, run: str) -> list[str]:
        return [task["name"] for task in self.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})]

    def artifacts(self, run: str) -> dict[str, tuple[str, str]]:
        found = self.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {a["key"].removeprefix("gigamask-test-"): (a["type"], str(a["data"])) for a in found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`gigamask serve` with a server of its own, every night at one in Berlin."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(home), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    (home / "scheduledmodel.py").write_text(MODEL)
    config = config_file(home)
    command = [sys.executable, "-m", "flows.cli", "serve", str(config), "--cron", "0 1 * * *", "--timezone", "Europe/Berlin"]
    with (home / "log").open("wb") as log:
        serving = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=REPO)
    url = f"http://127.0.0.1:{port}/api"
    here = Server(url, environment, serving, home)

    def served() -> Any:
        assert serving.poll() is None, (home / "log").read_text()
        try:
            return list(home.glob("gigamask-serve-*.auth")) and here.deployment("test")
        except OSError:
            return None

    try:
        until(served, "the deployment")
        yield here
    finally:
        serving.terminate()
        try:
            serving.wait(60)
        finally:
            serving.kill()


@pytest.fixture
def archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene of many blocks with labels, a model that is slow while there is a file `slow`, hooks that write to `told`."""
    rng = np.random.default_rng(3)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    samples = rng.integers(0, 256, (700, 900), np.uint8)
    write_raster(tmp_path / "scenes" / "a.tif", samples)
    write_raster(tmp_path / "labels" / "a.tif", (samples >= 90).astype(np.uint8))
    architecture = {"function": "scheduledmodel:predict", "arguments": {"slow": str(tmp_path / "slow")}}
    threshold_model(tmp_path / "model", (100,), adapter="callable", architecture=architecture)
    monkeypatch.syspath_prepend(server.environment["PREFECT_HOME"])
    return tmp_path


def served(server: Server, archive: Path, **sections: Any) -> Path:
    """The configuration that is served, over another archive from now on."""
    content = yaml.safe_load(settings(archive, **sections).read_text())
    content["model"]["path"] = str(archive / "model")
    content |= {"root": str(archive), "output": str(archive / content["output"])}
    path = server.home / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def settings(archive: Path, **sections: Any) -> Path:
    write = f"open({str(archive / 'told')!r}, 'a').write(sys.stdin.read() + chr(10))"
    defaults = {
        "model": {"path": "model", "batch": 3, "trust_code": True},
        "tiling": {"block": 64, "overlap": 8},
        "cluster": {"type": "local", "workers": 1, "threads": 1, "memory_gib": 2},
        "hooks": {
            "on": ["success", "failure", "crash", "cancellation"],
            "command": [sys.executable, "-c", f"import sys; {write}"],
        },
    }
    return config_file(archive, **defaults | sections)


def told(archive: Path) -> list[tuple[str, int]]:
    """(event, exit code) of each ending that the hooks were told."""
    path = archive / "told"
    endings = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(ending["event"], ending["exit_code"]) for ending in endings]


def records(output: Path, digest: str) -> dict[int, BlockRecord]:
    if not (output / "ledger.sqlite").exists():
        return {}
    with Ledger(output / "ledger.sqlite") as ledger:
        return ledger.blocks(digest, "predict", BlockRecord)


def test_the_nights_are_on_the_servers_calendar(server: Server) -> None:
    deployment = server.deployment("test")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"] == {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "day_or": True}
    assert schedule["active"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    due = {"deployments": {"id": {"any_": [deployment["id"]]}}, "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}}}
    runs = until(lambda: server.ask("flow_runs/filter", due), "a scheduled run")
    times = [datetime.fromisoformat(run["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin")) for run in runs]
    assert {(when.hour, when.minute) for when in times} == {(1, 0)}


def test_a_night_that_is_cancelled_keeps_what_is_done_and_the_next_one_finishes_it(server: Server, archive: Path) -> None:
    undisturbed = run_night(load_config(settings(archive, output="undisturbed")), Quiet(), "")
    assert undisturbed.exit_code == 0
    (image,) = undisturbed.report.images
    assert image.blocks > 10
    assert image.digest is not None
    config, output = served(server, archive), archive / "out"

    (archive / "slow").touch()
    first = server.start("test", config)
    until(lambda: len(records(output, str(image.digest))) >= 2, "two blocks")
    second = server.start("test", config)
    assert server.ended(second) == ("Cancelled", "Deployment concurrency limit reached.")
    assert server.state(first)[0] == "Running"
    server.ask(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert server.ended(first)[0] == "Cancelled"
    done = until(lambda: told(archive), "the hook") and records(output, image.digest)
    assert 2 <= len(done) < image.blocks
    assert {record.state for record in done.values()} == {"done"}
    assert not list((output / "masks").glob("*/*.zarr"))

    (archive / "slow").unlink()
    third = server.start("test", config)
    state, message = server.ended(third)
    assert (state, Path(message).name) == ("Completed", "report.html")
    assert bytes_of(output) == bytes_of(archive / "undisturbed")
    assert {index: again.seconds for index, again in records(output, image.digest).items() if index in done} == {
        index: record.seconds for index, record in done.items()
    }
    assert told(archive) == [("cancellation", 143), ("success", 0)]

    artifacts = server.artifacts(third)
    assert {key: kind for key, (kind, _) in artifacts.items()} == {
        "progress": "progress",
        "summary": "markdown",
        "report": "markdown",
        "classes": "table",
    }
    assert 0 <= float(artifacts["progress"][1]) <= 100
    assert Path(message).as_uri() in artifacts["report"][1]
    assert "background" in artifacts["classes"][1]
    assert 0 <= float(server.artifacts(first)["progress"][1]) < 100


def test_a_night_that_is_killed_is_told_by_the_process_that_started_it(server: Server, archive: Path) -> None:
    (archive / "slow").touch()
    run = server.start("test", served(server, archive))
    lock = archive / "out" / "run.lock"
    pid = json.loads(until(lambda: lock.exists() and lock.read_text(), "the lock"))["pid"]
    os.kill(pid, signal.SIGKILL)
    state, message = server.ended(run)
    assert state == "Crashed"
    assert "SIGKILL" in message
    until(lambda: told(archive), "the hook")
    assert told(archive) == [("crash", 1)]


def test_gigamask_run_is_a_flow_run_with_a_task_for_the_small_images(server: Server, archive: Path) -> None:
    for name in "bcd":
        samples = np.full((40, 50), 120, np.uint8)
        write_raster(archive / "scenes" / f"{name}.tif", samples)
    (archive / "scenes" / "c.tif").write_text("not an image")
    command = [sys.executable, "-m", "flows.cli", "run", str(settings(archive)), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=server.client_environment(), cwd=REPO, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert Path(json.loads(done.stdout)["folder"], "report.html").exists()
    runs = server.ask("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}})
    (run,) = [run for run in runs if run["parameters"]["config"] == command[4]]
    assert "1 of 4 images failed" in run["state"]["message"]
    assert "c.tif" in run["state"]["message"]
    assert [name[:2] + name[10:] for name in sorted(server.tasks(run["id"]))] == ["a-", "b- and 1 more"]
    assert told(archive) == [("failure", 1)]


WITHOUT_WORKERS = """
import sys
from pathlib import Path
import flows.nightly
from pipeline import dispatch, night

dispatch.LOOK_SECONDS, dispatch.WITHOUT_WORKERS_SECONDS = 0.4, 2.0
process_images, calls = night.process_images, []

def counted(shop, planned):
    calls.append(planned[0].plan.image.stem)
    return process_images(shop, planned)

night.process_images = counted
try:
    flows.nightly.run_flow(Path(sys.argv[1]), None, None, None)
except Exception as e:
    print(type(e).__name__, len(calls))
"""


def test_a_dead_cluster_ends_the_flow_at_the_first_images(server: Server, tmp_path: Path) -> None:
    archive_of(tmp_path, {f"scene{i}": (300, 280) for i in range(8)})
    with scheduler(workers=0) as cluster:
        path = config_file(tmp_path, tiling={"block": 64}, cluster=at(cluster))
        command = [sys.executable, "-c", WITHOUT_WORKERS, str(path)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPO, env=server.client_environment())
    assert done.returncode == 0, done.stderr
    error, calls = done.stdout.split()[-2:]
    assert error == "ClusterError"
    assert 1 <= int(calls) <= 2, "one image a worker and one more are at work at a time, and no other is started"


def test_nobody_without_the_auth_string_starts_a_run(server: Server) -> None:
    assert server.ask("health", auth="")
    deployment = server.deployment("test")["id"]
    for auth in ("", "gigamask:guessed"):
        for path, body in (("deployments/filter", {}), (f"deployments/{deployment}/create_flow_run", {})):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                server.ask(path, body, auth=auth)
    assert len(server.auth()) > 40
    assert server.auth() not in (server.home / "log").read_text()
    serving = psutil.Process(server.serving.pid)
    words = [word for process in (serving, *serving.children(recursive=True)) for word in process.cmdline()]
    assert not [word for word in words if server.auth() in word]


def test_a_run_takes_no_other_configuration_than_the_one_that_is_served(server: Server, archive: Path) -> None:
    served(server, archive)
    stranger = settings(archive, output="elsewhere")
    state, message = server.ended(server.start("test", stranger))
    assert state == "Failed"
    assert f"ConfigError: parameter config {str(stranger)!r}: this deployment runs" in message
    body = {"parameters": {"config": str(server.home / "config.yaml"), "root": "/"}, "state": {"type": "SCHEDULED"}}
    other_root = server.ask(f"deployments/{server.deployment('test')['id']}/create_flow_run", body)["id"]
    state, message = server.ended(other_root)
    assert (state, "ConfigError: parameter root '/': this deployment runs None only" in message) == ("Failed", True)
    assert not (archive / "elsewhere").exists()
    assert not told(archive)


def test_a_run_that_is_cancelled_before_it_begins_runs_no_hooks_of_another_configuration(server: Server, archive: Path) -> None:
    ended = State(type=StateType.CANCELLED, message="by hand")
    api = {PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: server.auth()}
    with temporary_settings(api), get_client(sync_client=True) as client:
        stranger = server.start("test", settings(archive), when="2099-01-01T00:00:00Z")
        _tell_for_the_dead(nightly, client.read_flow_run(UUID(stranger)), ended)
        assert not told(archive)
        own = server.start("test", served(server, archive), when="2099-01-01T00:00:00Z")
        _tell_for_the_dead(nightly, client.read_flow_run(UUID(own)), ended)
    assert told(archive) == [("cancellation", 143)]


def test_prefect_yaml_deploys_and_a_worker_runs_it(server: Server, archive: Path) -> None:
    def prefect(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        return subprocess.Popen(command, env=server.client_environment() | {"PWD": str(archive)}, cwd=archive)

    shutil.copy(REPO / "prefect.yaml", archive)
    (archive / "configs").mkdir()
    config = archive / "configs" / "nightly.yaml"
    served(server, archive).rename(config)
    assert prefect("work-pool", "create", "gigamask", "--type", "process").wait(PATIENCE) == 0
    assert prefect("deploy", "--all").wait(PATIENCE) == 0
    deployment = server.deployment("nightly")
    assert deployment["schedules"][0]["schedule"] == {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "day_or": True}
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment["parameters"]["config"] == str(config)
    assert load_config(REPO / "configs" / "nightly.yaml").name == "nightly"

    run = server.start("nightly", config)
    worker = prefect("worker", "start", "--pool", "gigamask")
    try:
        assert server.ended(run)[0] == "Completed"
        state, message = server.ended(server.start("nightly", settings(archive)))
        assert (state, "this deployment runs" in message) == ("Failed", True)
    finally:
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:  # Prefect's worker has missed the signal, which is not what is tested
            worker.kill()
            worker.wait()
    assert told(archive) == [("success", 0)]


def test_serve_joins_no_server_that_nobody_has_configured(server: Server) -> None:
    command = [sys.executable, "-m", "flows.cli", "serve", str(server.home / "config.yaml")]
    config_file(server.home)
    done = subprocess.run(command, capture_output=True, text=True, env=server.environment, cwd=REPO, check=False)
    assert done.returncode == 2
    assert f"a Prefect server runs at {server.url} already, and may be anybody's" in done.stderr


def test_serve_ends_with_its_server_when_it_is_asked_to(server: Server) -> None:
    server.serving.terminate()
    assert server.serving.wait(PATIENCE) == 0
    with pytest.raises(OSError, match="refused"):
        server.ask("health", auth="")
    assert not list(server.home.glob("*.auth"))
