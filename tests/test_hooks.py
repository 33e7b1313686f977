"""Hooks: each ending is told once, to whom it should, and their own failures change nothing and give nothing away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.console import Quiet
from flows.hooks import ENDED, Ending, shown, tell, telling, was_told
from pipeline.config import Config, load_config
from pipeline.errors import ClusterError, InterruptedRunError
from pipeline.night import run_night
from tests.conftest import REPO, write_raster
from tests.making import config_file, threshold_model
from tests.test_cluster import eventually

EVERY = ["success", "failure", "crash", "cancellation"]
ENDING = Ending("test", "crash", 1, "no worker is left", "2026-11-30T01:00:00+00:00", "2026-11-30T01:10:00+00:00")


class Listener(ThreadingHTTPServer):
    """Takes POSTs at a web address; what it answers is in the path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        super().__init__(("127.0.0.1", 0), Answer)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Answer(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), json.loads(body)))
        if "slow" in self.path:
            time.sleep(60)
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("Location", self.server.url("elsewhere/200"))
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append((self.path, {}, None))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    samples = np.random.default_rng(3).integers(0, 256, (90, 120), np.uint8)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    write_raster(tmp_path / "scenes" / "a.tif", samples)
    write_raster(tmp_path / "labels" / "a.tif", (samples >= 100).astype(np.uint8))
    threshold_model(tmp_path / "model", (100,))
    return tmp_path


def hooked(folder: Path, **hooks: Any) -> Config:
    (folder / "out").mkdir(exist_ok=True)
    return load_config(config_file(folder, hooks={"on": EVERY} | hooks))


def test_a_night_is_told_with_all_that_one_wants_to_know(archive: Path, listener: Listener) -> None:
    config = hooked(archive, webhook=listener.url("token/200"))
    with telling(config) as run:
        run.ended(run_night(config, Quiet(), "gigamask run config.yaml"))
    ((path, headers, told),) = listener.got
    assert path == "/token/200"
    assert headers["Content-Type"] == "application/json"
    assert told["name"] == "test"
    assert (told["event"], told["exit_code"]) == ("success", 0)
    assert told["images"] == {"complete": 1}
    assert told["miou"] == 1.0
    assert told["message"] == "1 images, mIoU 1.0000"
    assert Path(told["report"]).is_file()
    assert Path(told["report"]).parent.name == told["run_id"]
    assert told["started"] <= told["finished"]
    assert told["host"]
    assert told["flow_run"] is None


def test_a_failed_image_is_a_failure_and_the_exit_code_stays(archive: Path) -> None:
    (archive / "scenes" / "b.tif").write_text("not an image")
    told = archive / "told"
    write = f"import sys; open({str(told)!r}, 'w').write(sys.stdin.read()); sys.exit('no mail server')"
    hooked(archive, command=[sys.executable, "-c", write])
    command = [sys.executable, "-m", "flows.cli", "run", str(archive / "config.yaml"), "--no-prefect", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)
    ending = json.loads(told.read_text())
    assert (ending["event"], ending["exit_code"]) == ("failure", 1)
    assert "1 of 2 images failed" in ending["message"]
    assert "b.tif" in ending["message"]
    assert "was not told of the failure: exit code 1: no mail server" in done.stderr


@pytest.mark.parametrize(
    ("error", "event", "exit_code"),
    [
        (ClusterError("no worker is left"), "crash", 1),
        (MemoryError(), "crash", 1),
        (KeyboardInterrupt(), "cancellation", 130),
        (InterruptedRunError(15, "asked to end"), "cancellation", 143),
    ],
)
def test_a_run_that_breaks_off_is_told_once_and_goes_on_breaking(
    archive: Path, listener: Listener, error: BaseException, event: str, exit_code: int
) -> None:
    config = hooked(archive, webhook=listener.url("200"))

    def broken() -> None:
        with telling(config) as run:
            run.run_id = "20261130T010000Z-aaaa"
            raise error

    with pytest.raises(type(error)):
        broken()
    ((_, _, told),) = listener.got
    assert (told["event"], told["exit_code"], told["run_id"]) == (event, exit_code, "20261130T010000Z-aaaa")
    assert told["report"] is None


def test_only_what_one_wants_to_hear_is_told(archive: Path, listener: Listener) -> None:
    config = hooked(archive, on=["failure"], webhook=listener.url("200"))
    tell(config, ENDING)
    assert not listener.got


@pytest.mark.parametrize(
    ("path", "patience", "said"),
    [
        ("secret/500", 50, "HTTP 500"),
        ("secret/302", 50, "it sends elsewhere"),
        ("secret/307", 50, "it sends elsewhere"),
        ("secret/slow/200", 0.5, "no answer within 0.5 s"),
    ],
)
def test_a_webhook_that_fails_is_told_without_its_address(
    archive: Path, listener: Listener, path: str, patience: float, said: str
) -> None:
    config = hooked(archive, webhook=listener.url(path), timeout_s=patience)
    words: list[str] = []
    started = time.monotonic()
    tell(config, ENDING, words.append)
    assert time.monotonic() - started < 40
    (line,) = words
    assert said in line
    assert f"http://127.0.0.1:{listener.server_port}/..." in line
    assert "secret" not in line
    assert eventually(lambda: [p for p, _, _ in listener.got] == [f"/{path}"])


@pytest.mark.parametrize(
    "url",
    ["http://user:secret@127.0.0.1:9/secret", "http://127.0.0.1:9/secret\x01", "http://127.0.0.1:secret/", "http://[secret/"],
)
def test_an_address_that_leads_nowhere_is_told_without_its_secrets(archive: Path, url: str) -> None:
    words: list[str] = []
    tell(hooked(archive, webhook=url), ENDING, words.append)
    assert len(words) == 1
    assert "secret" not in words[0]


def test_a_user_in_the_address_is_sent_as_such(archive: Path, listener: Listener) -> None:
    tell(hooked(archive, webhook=listener.url("200").replace("//", "//me:p%40ss@")), ENDING)
    ((_, headers, _),) = listener.got
    assert headers["Authorization"] == "Basic bWU6cEBzcw=="


def test_a_command_that_hangs_is_killed_with_what_it_started(archive: Path) -> None:
    started = f"sleep 60 & echo $! > {archive}/pid; wait"
    words: list[str] = []
    tell(hooked(archive, command=["sh", "-c", started], timeout_s=2), ENDING, words.append)
    assert words == ["hooks.command sh was not told of the crash: still running after 2 s, and killed"]
    status = Path(f"/proc/{int((archive / 'pid').read_text())}/status")

    def gone() -> bool:
        try:
            return "zombie" in status.read_text()
        except OSError:
            return True

    assert eventually(gone)


def test_a_command_that_is_not_there_is_said(archive: Path) -> None:
    words: list[str] = []
    tell(hooked(archive, command=["no-such-program"]), ENDING, words.append)
    assert words == ["hooks.command no-such-program was not told of the crash: No such file or directory"]


def test_the_last_ending_lies_beside_the_ledger_also_without_hooks(archive: Path) -> None:
    (archive / "out").mkdir()
    config = load_config(config_file(archive))
    assert not was_told(config, "f1")
    with pytest.raises(ClusterError), telling(config, flow_run="f1"):
        raise ClusterError("no worker is left")
    ending = json.loads((archive / "out" / ENDED).read_text())
    assert (ending["event"], ending["message"]) == ("crash", "no worker is left")
    assert was_told(config, "f1")
    assert not was_told(config, "f2")


def test_the_report_does_not_hold_the_address(archive: Path, listener: Listener) -> None:
    config = hooked(archive, webhook=listener.url("secret-token/200"), command=["true", "secret-token"])
    with telling(config) as run:
        morning = run_night(config, Quiet(), "")
        run.ended(morning)
    texts = [path.read_text(errors="replace") for path in (archive / "out").rglob("*.*") if path.is_file()]
    assert len(texts) > 5
    assert not any("secret-token" in text for text in texts)


def test_addresses_are_shown_without_what_lets_one_in() -> None:
    assert shown("https://user:pw@hooks.example.org:8443/T0/secret?key=1#x") == "https://hooks.example.org:8443/..."
