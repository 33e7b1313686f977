"""Who is told how a run has ended: a web address gets a POST, a command gets its standard input; both the same small JSON."""

from __future__ import annotations

import base64
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pipeline import __version__
from pipeline.atomic import write_bytes
from pipeline.config import Config
from pipeline.errors import GigamaskError, InterruptedRunError
from pipeline.night import Morning

Event = Literal["success", "failure", "crash", "cancellation"]
Say = Callable[[str], None]
ENDED = "ended.json"
"""File in the output folder that says how the last run has ended, for hooks that look later and for those who have none."""
INTERRUPTS: tuple[type[BaseException], ...] = (KeyboardInterrupt, InterruptedRunError)
_WORDS = 1000
"""Longest message, in characters: a hook gets a headline, not a log."""


@dataclass(frozen=True)
class Ending:
    """How a run has ended, as it is told."""

    name: str
    """The config's name."""
    event: Event
    exit_code: int
    """What `gigamask run` ends with: 0 all well."""
    message: str
    """One sentence for a person."""
    started: str
    """ISO 8601 with offset."""
    finished: str
    run_id: str | None = None
    """Names the folder under runs/; None where the run broke off before it had one."""
    report: str | None = None
    """Path of report.html; None without."""
    miou: float | None = None
    """Over all scored images; None where nothing was scored."""
    images: dict[str, int] = field(default_factory=dict)
    """How many images are complete, partial, failed, empty, skipped."""
    flow_run: str | None = None
    """Prefect's id of the run; None without Prefect."""
    host: str = field(default_factory=platform.node)


class Watch:
    """What `telling` knows of a run under way; the run itself tells it."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.morning: Morning | None = None

    def ended(self, morning: Morning) -> None:
        """The run came to its end and has a report."""
        self.morning = morning


@contextmanager
def telling(
    config: Config,
    *,
    flow_run: str | None = None,
    interrupts: tuple[type[BaseException], ...] = INTERRUPTS,
    say: Say | None = None,
) -> Iterator[Watch]:
    """Tell the hooks of `config` how the run within has ended, once, whichever way that was.

        with telling(config) as run:
            run.ended(run_night(config, progress, command))

    An exception is told and goes on: as a cancellation if it is one of `interrupts`, else as a crash.
    """
    started, run = _now(), Watch()
    try:
        yield run
    except BaseException as e:
        event: Event = "cancellation" if isinstance(e, interrupts) else "crash"
        ending = Ending(config.name, event, exit_code_of(e), _message(e), started, _now(), run.run_id, flow_run=flow_run)
        tell(config, ending, say)
        raise
    if run.morning is not None:
        tell(config, replace(ending_of(run.morning), flow_run=flow_run), say)


def ending_of(morning: Morning) -> Ending:
    """The ending of a run that has a report."""
    report, scores = morning.report, morning.report.scores
    return Ending(
        name=report.name,
        event="failure" if morning.exit_code else "success",
        exit_code=morning.exit_code,
        message=headline(morning),
        started=report.started,
        finished=report.finished,
        run_id=report.run_id,
        report=str(morning.files["report.html"]),
        miou=None if scores is None or math.isnan(scores.miou) else scores.miou,
        images=dict(Counter(image.state for image in report.images)),
    )


def headline(morning: Morning) -> str:
    """What became of the images, in a sentence."""
    images = morning.report.images
    bad = [image.uri for image in images if image.state in ("failed", "partial") or image.truth_error]
    if bad:
        return f"{len(bad)} of {len(images)} images failed: {', '.join(bad[:5])}" + (", ..." if len(bad) > 5 else "")
    scores = morning.report.scores
    scored = "" if scores is None or math.isnan(scores.miou) else f", mIoU {scores.miou:.4f}"
    found = morning.report.evaluation
    held = [gate.why for gate in found.gates if gate.outcome != "pass"] if found is not None else []
    return "; ".join([f"{len(images)} images{scored}", *held])


def exit_code_of(error: BaseException) -> int:
    """What a process ends with after `error`, as shells know it."""
    if isinstance(error, GigamaskError):
        return error.exit_code
    number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "signal", None)
    return 128 + int(number) if isinstance(number, int) else 1


def tell(config: Config, ending: Ending, say: Say | None = None) -> None:
    """Tell the hooks of `config` about `ending`, if they want to know of such. Whatever goes wrong is said, never raised."""
    say = say or _stderr
    _note(config.output, ending, say)
    hooks = config.hooks
    if ending.event not in hooks.on:
        return
    body = json.dumps(asdict(ending) | {"gigamask": __version__}).encode()
    calls: dict[str, Callable[[], str | None]] = {}
    if hooks.webhook is not None:
        url = hooks.webhook
        calls[f"hooks.webhook {shown(url)}"] = lambda: _post(url, body, hooks.timeout_s)
    if hooks.command is not None:
        command = hooks.command
        calls[f"hooks.command {command[0]}"] = lambda: _run(command, body, hooks.timeout_s)
    problems: dict[str, str | None] = dict.fromkeys(calls, f"no answer within {hooks.timeout_s:g} s")
    threads = [threading.Thread(target=_try, args=(name, call, problems), daemon=True) for name, call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(hooks.timeout_s + 1)
    for name, problem in problems.items():
        if problem is not None:
            say(f"{name} was not told of the {ending.event}: {problem}")


def was_told(config: Config, flow_run: str) -> bool:
    """Whether the process of this flow run has told its own ending."""
    try:
        known = json.loads((config.output / ENDED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known.get("flow_run") == flow_run


def shown(url: str) -> str:
    """A web address for a log: where it leads, without path, query and user, which are often what lets one in.

    assert shown("https://hooks.example.org/T0/secret?key=1") == "https://hooks.example.org/..."
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "..."
    return f"{parts.scheme}://{parts.hostname}{port}/..."


def _try(name: str, call: Callable[[], str | None], problems: dict[str, str | None]) -> None:
    try:
        problems[name] = call()
    except TimeoutError:
        pass  # `tell` has said so beforehand
    except Exception as e:  # noqa: BLE001 - told by `tell`
        problems[name] = _kind(e)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive as a GET without its content: better said than done."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Never."""


def _post(url: str, body: bytes, timeout_s: float) -> str | None:
    """What went wrong; None where the address took it."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": f"gigamask/{__version__}"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    request = urllib.request.Request(address, body, headers, method="POST")  # noqa: S310 - http or https, says the config
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as e:
        return f"it sends elsewhere (HTTP {e.code}): give the last address" if 300 <= e.code < 400 else f"HTTP {e.code}"
    except urllib.error.URLError as e:
        if isinstance(e.reason, TimeoutError):
            raise e.reason from e
        return _kind(e.reason if isinstance(e.reason, OSError) else e)


def _kind(error: Exception) -> str:
    """What kind of error it is; its words may hold the address."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _run(command: list[str], body: bytes, timeout_s: float) -> str | None:
    """What went wrong; None where the command ended with 0. It has a process group of its own, which ends with its time."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(  # noqa: S603 - the operator's own program, without a shell
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            child.communicate(body, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"still running after {timeout_s:g} s, and killed"
        if not child.returncode:
            return None
        errors.seek(0)
        return f"exit code {child.returncode}: {errors.read().decode(errors='replace').strip()[-_WORDS:]}"


def _note(output: Path, ending: Ending, say: Say) -> None:
    """Write how the run has ended beside its ledger."""
    if not output.is_dir():
        return
    path = output / ENDED
    try:
        write_bytes(path, f"{json.dumps(asdict(ending), indent=2)}\n".encode())
    except OSError as e:
        say(f"{path} cannot be written: {e.strerror}")


def _message(error: BaseException) -> str:
    words = str(error)
    if isinstance(error, GigamaskError):
        return words[:_WORDS]
    return f"{type(error).__name__}: {words}"[:_WORDS] if words else type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stderr(text: str) -> None:
    sys.stderr.write(f"gigamask: {text}\n")
    sys.stderr.flush()
