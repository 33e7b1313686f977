"""The progress artifact, without a server: how often it is brought up to date, and that no server's trouble holds up a run.

The flow itself, on a real server, is in test_schedule.py.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import Completed

from flows import nightly as flows
from flows.console import Quiet
from pipeline.errors import InterruptedRunError
from tests.making import config_file, threshold_model
from tests.test_cluster import eventually


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[UUID, float]]:
    """(artifact, percent) as they would be sent to the server; the first by its making."""
    found: list[tuple[UUID, float]] = []

    def make(*, progress: float, **_: Any) -> UUID:
        found.append((uuid4(), progress))
        return found[0][0]

    monkeypatch.setattr(flows, "create_progress_artifact", make)
    monkeypatch.setattr(flows, "_update", lambda *, artifact, update, **_: found.append((artifact, update.data)))
    monkeypatch.setattr(flows, "get_run_logger", lambda: logging.getLogger("test"))
    return found


@pytest.mark.parametrize("fails", [False, True])
def test_a_listener_leaves_with_its_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Also one that another flow of the same configuration is still heard by."""
    threshold_model(tmp_path / "model")
    (tmp_path / "scenes").mkdir()
    path, heard, outer, inner = config_file(tmp_path), [], Quiet(), Quiet()

    def flow(name: str, root: str | None, part: str | None, *, return_state: bool) -> Any:
        heard.append(flows._LISTENERS.get(name))
        if len(heard) == 1:
            with pytest.raises(InterruptedRunError) if fails else nullcontext():
                flows.run_flow(path, None, None, inner)
            heard.append(flows._LISTENERS.get(name))
            flows.run_flow(path, None, None, None)
        if fails and len(heard) == 2:
            raise InterruptedRunError(15, "ended")
        return Completed(data={"exit_code": 0, "folder": "runs/a"})

    monkeypatch.setattr(flows, "nightly", flow)
    assert flows.run_flow(path, None, None, outer)["exit_code"] == 0
    assert heard == [outer, inner, outer, None]
    assert flows._LISTENERS == {}


def test_the_last_update_says_what_is_done(sent: list[tuple[UUID, float]]) -> None:
    log = flows._Log(None, "key")
    with log.shown():
        log.expect(200)
        for _ in range(100):
            log.advance(1)
    assert [percent for _, percent in sent] == [0, 50]
    assert len({artifact for artifact, _ in sent}) == 1


def test_updates_come_now_and_then_and_only_of_news(sent: list[tuple[UUID, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "PROGRESS_SECONDS", 0.2)
    log = flows._Log(None, "key")
    started = time.monotonic()
    with log.shown():
        log.expect(1_000_000)
        assert eventually(lambda: log.advance(1) or len(sent) >= 4)
        time.sleep(0.5)  # no news
    percents = [percent for _, percent in sent]
    assert percents == sorted(set(percents))
    assert percents[-1] == log._done / 10_000
    assert len(percents) <= 2 + (time.monotonic() - started) / 0.2


def test_a_server_that_does_not_answer_holds_up_no_run(sent: list[tuple[UUID, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "_update", lambda **_: time.sleep(30))
    monkeypatch.setattr(flows, "LAST_SECONDS", 0.2)
    log = flows._Log(None, "key")
    started = time.monotonic()
    with log.shown():
        log.expect(1)
        log.advance(1)
    assert time.monotonic() - started < 25


def test_a_server_that_refuses_is_told_in_the_log(
    sent: list[tuple[UUID, float]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: Any) -> UUID:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(flows, "create_progress_artifact", refuse)
    log = flows._Log(None, "key")
    with log.shown():
        log.advance(1)
    assert "no artifact key: ConnectionError: nobody there" in caplog.text
    assert not sent
