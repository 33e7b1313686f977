"""The night as a Prefect flow: a task an image, or many small ones, which drives a bounded Dask client; artifacts as it goes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Failed

from flows.access import check_deployed, temporary_server_closed
from flows.here import words
from flows.hooks import INTERRUPTS, Ending, headline, tell, telling, was_told
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, InterruptedRunError
from pipeline.night import Morning, Night, finish_night, open_night
from pipeline.report.contract import ImageResult
from pipeline.shop import Progress
from pipeline.stop import STOP_SECONDS
from pipeline.survey import Planned, division

PROGRESS_SECONDS = 10.0
"""How often the progress artifact is brought up to date."""
LAST_SECONDS = 30.0
"""How long the end waits for the artifact's last state: a busy SQLite lets Prefect's client try again, ever more slowly."""
BREAKING_SECONDS = 2.0
"""The same where the run breaks off: Prefect kills a run 30 s after it has asked it to end."""


class _Log:
    """Progress as lines of the flow run's log, and as an artifact that a thread of its own brings up to date: a server that is
    slow or gone holds up no block."""

    def __init__(self, listener: Progress | None, key: str) -> None:
        self._listener = listener
        self._logger = get_run_logger()
        self._key = key
        self._lock = threading.Lock()
        self._total = self._done = 0

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""
        with self._lock:
            self._total += pixels
        if self._listener:
            self._listener.expect(pixels)

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""
        with self._lock:
            self._done += pixels
        if self._listener:
            self._listener.advance(pixels)

    def say(self, text: str) -> None:
        """Something worth a line has happened."""
        self._logger.info(text)

    def warn(self, text: str) -> None:
        """Something that should be looked at has happened."""
        self._logger.warning(text)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the artifact up to date while the context lasts."""
        artifact = _left(self, create_progress_artifact, key=self._key, progress=0.0, description="Pixels done")
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(artifact, over), daemon=True)
        watch.start()
        patience = BREAKING_SECONDS
        try:
            yield
            patience = LAST_SECONDS
        finally:
            over.set()
            watch.join(patience)

    def _watch(self, artifact: UUID | None, over: threading.Event) -> None:
        told = 0
        while artifact is not None:
            last = over.wait(PROGRESS_SECONDS)
            if self._done != told:
                told = self._done
                words = f"{told / 1e6:,.1f} of {self._total / 1e6:,.1f} Mpx"
                update = ArtifactUpdate(data=min(100.0, 100.0 * told / max(self._total, 1)), description=words)
                _left(self, _update, key=self._key, artifact=artifact, update=update)
            if last:
                return


def _update(key: str, artifact: UUID, update: ArtifactUpdate) -> None:
    """Bring an artifact up to date over a connection of its own, beside those of the flow."""
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, update)


_LISTENERS: dict[str, Progress] = {}
"""Config path -> who watches in this process: a flow's parameters must be plain values."""


def _tell_for_the_dead(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell the hooks of a run whose process was killed before it could. Prefect calls this in the process that started the run,
    whenever a run crashed or was cancelled: also one that has told its ending itself."""
    try:
        check_deployed(flow_run.deployment_id, flow_run.parameters)
    except ConfigError as e:
        logging.getLogger("prefect.gigamask").error("no hooks for run %s: %s", flow_run.id, e)
        return
    config = _config(str(flow_run.parameters["config"]), flow_run.parameters.get("root"))
    if was_told(config, str(flow_run.id)):
        return
    crashed = state.is_crashed()
    now = datetime.now(UTC)
    tell(
        config,
        Ending(
            name=config.name,
            event="crash" if crashed else "cancellation",
            exit_code=1 if crashed else 128 + signal.SIGTERM,
            message=state.message or str(state.name),
            started=(flow_run.start_time or now).isoformat(timespec="seconds"),
            finished=now.isoformat(timespec="seconds"),
            flow_run=str(flow_run.id),
        ),
        logging.getLogger("prefect.gigamask").warning,
    )


@flow(
    name="gigamask-nightly",
    persist_result=False,
    validate_parameters=True,
    on_crashed=[_tell_for_the_dead],
    on_cancellation=[_tell_for_the_dead],
)
def nightly(config: str, root: str | None = None, part: str | None = None) -> State[Any]:
    """Segment and score what is new in the archive of the configuration file `config`, and write its report.

    The state is Failed when an image failed or a gate did not hold, and Cancelled when the run was asked to end; the report is
    written all the same in the first case. Its data is what the run left: {exit_code, folder}. ConfigError where the run belongs
    to a deployment of another configuration; nothing was read then.
    """
    run_context = FlowRunContext.get()
    flow_run = run_context.flow_run if run_context else None
    check_deployed(flow_run.deployment_id if flow_run else None, {"config": config, "root": root})
    own = division(part) if part else None
    loaded = _config(config, root)
    log = _Log(_LISTENERS.get(config), _key(loaded.name, "progress"))
    interrupts = (*INTERRUPTS, TerminationSignal)
    try:
        with telling(loaded, flow_run=str(this_run.id), interrupts=interrupts, say=log.warn) as run, log.shown():
            with open_night(loaded, log, words("run", config, root, part), own) as night:
                run.run_id = night.run_id
                morning = finish_night(night, _each_image(night))
            _publish(morning, log)
            run.ended(morning)
    except InterruptedRunError as e:
        return Cancelled(message=str(e), data=e)
    left = {"exit_code": morning.exit_code, "folder": str(morning.folder)}
    if morning.exit_code:
        return Failed(message=headline(morning), data=left)
    return Completed(message=str(morning.files["report.html"]), data=left)


def _config(config: str, root: str | None) -> Config:
    return load_config(Path(config), root=Path(root) if root else None)


def _each_image(night: Night) -> list[ImageResult]:
    """One Prefect task a portion, few enough at a time that images do not compete for the workers' memory."""
    at_once = 1 if night.shop.workers.client is None else night.shop.workers.count + 1
    portions = night.portions

    @task(name="images", cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
    def images(index: int, name: str) -> list[ImageResult]:
        return night.process(portions[index])

    futures: list[PrefectFuture[list[ImageResult]]] = []
    try:
        for index, portion in enumerate(portions):
            if index >= at_once:
                futures[index - at_once].result()  # raises what ended it: waiting alone would start all the others first
            futures.append(images.submit(index, _name(portion)))
        return [result for future in futures for result in future.result()]
    except BaseException:
        _stop(night, futures)
        raise


def _stop(night: Night, futures: list[PrefectFuture[list[ImageResult]]]) -> None:
    """Let the tasks that still run come to their end, before ledger and workers are closed under them."""
    night.shop.workers.stop.ask(signal.SIGTERM)
    wait(futures, timeout=STOP_SECONDS)


def _name(portion: list[Planned]) -> str:
    first = portion[0].plan.image.id
    return first if len(portion) == 1 else f"{first} and {len(portion) - 1} more"


def _publish(morning: Morning, log: _Log) -> None:
    """The summary, the way to the report and the per-class table, as artifacts of the flow run."""
    report, page = morning.report, morning.files["report.html"]
    summary = morning.files["summary.md"].read_text(encoding="utf-8")
    _left(log, create_markdown_artifact, key=_key(report.name, "summary"), markdown=summary, description=str(page))
    _left(log, create_link_artifact, key=_key(report.name, "report"), link=page.as_uri(), link_text="report.html")
    scores = report.scores
    if scores is None:
        return
    rows = [
        {
            "class": c.name,
            "IoU": s.iou,
            "Dice": s.dice,
            "precision": s.precision,
            "recall": s.recall,
            "reference px": s.reference_px,
        }
        for c, s in zip(report.classes, scores.classes, strict=True)
    ]
    _left(log, create_table_artifact, key=_key(report.name, "classes"), table=rows, description="Scores by class")


def _left(log: _Log, make: Callable[..., Any], **fields: Any) -> Any:
    """An artifact's id; None where the server does not take it: a night does not fail for want of one."""
    try:
        return make(**fields)
    except Exception as e:  # noqa: BLE001 - whatever the server's trouble is, the masks and the report are made
        log.warn(f"no artifact {fields.get('key', '')}: {type(e).__name__}: {e}")
        return None


def _key(name: str, what: str) -> str:
    """The key of an artifact: what Prefect allows in one."""
    plain = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    return f"gigamask-{plain or 'run'}-{what}"


@contextmanager
def _listening(name: str, listener: Progress | None) -> Iterator[None]:
    """Have `listener`, if any, hear of the flow of the configuration `name` while the context lasts."""
    before = _LISTENERS.pop(name, None)
    if listener is not None:
        _LISTENERS[name] = listener
    try:
        yield
    finally:
        _LISTENERS.pop(name, None)
        if before is not None:
            _LISTENERS[name] = before


def run_flow(config: Path, root: Path | None, part: str | None, listener: Progress | None) -> dict[str, Any]:
    """Run the flow here, once, and return what it left: {exit_code, folder}.

    A configuration that is wrong is told before anything of Prefect is started.
    """
    load_config(config, root=root)
    if part:
        division(part)
    name = str(config)
    with _listening(name, listener), temporary_server_closed():
        state: State[Any] = nightly(name, str(root) if root else None, part, return_state=True)
    left: Any = state.data if isinstance(state.data, InterruptedRunError) else state.result(raise_on_failure=False)
    if isinstance(left, BaseException):
        raise left
    return dict(left)
