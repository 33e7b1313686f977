"""The night as a Prefect flow: one task an image, which drives a bounded Dask client; a summary and a table as artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from pipeline.config import load_config
from pipeline.night import Morning, Night, finish_night, open_night
from pipeline.process import Progress
from pipeline.report.contract import ImageResult
from pipeline.survey import Planned


class _Log:
    """Progress as lines of the flow run's log."""

    def __init__(self, listener: Progress | None) -> None:
        self._listener = listener
        self._logger = get_run_logger()

    def expect(self, pixels: int) -> None:
        """So many pixels more are to be done."""
        if self._listener:
            self._listener.expect(pixels)

    def advance(self, pixels: int) -> None:
        """So many pixels are done."""
        if self._listener:
            self._listener.advance(pixels)

    def say(self, text: str) -> None:
        """Something worth a line has happened."""
        self._logger.info(text)


_LISTENERS: dict[str, Progress] = {}
"""Config path -> who watches in this process: a flow's parameters must be plain values."""


@flow(name="gigamask-nightly", persist_result=False, validate_parameters=True)
def nightly(config: str, root: str | None = None) -> State[Any]:
    """Segment and score what is new in the archive of the configuration file `config`, and write its report.

    The state is Failed when an image failed; the report is written all the same. Its data is what the run left:
    exit code, run folder and headline.
    """
    loaded = load_config(Path(config), root=Path(root) if root else None)
    words = f"gigamask run {config}" + (f" --root {root}" if root else "")
    with open_night(loaded, _Log(_LISTENERS.get(config)), words) as night:
        morning = finish_night(night, _each_image(night))
    _publish(morning)
    left = {"exit_code": morning.exit_code, "folder": str(morning.folder)}
    if morning.exit_code:
        bad = [image.uri for image in morning.report.images if image.state in ("failed", "partial") or image.truth_error]
        return Failed(message=f"{len(bad)} of {len(morning.report.images)} images failed: {', '.join(bad[:5])}", data=left)
    return Completed(message=str(morning.files["report.html"]), data=left)


def _each_image(night: Night) -> list[ImageResult]:
    """One Prefect task an image, few enough at a time that images do not compete for the workers' memory."""
    at_once = 1 if night.shop.workers.client is None else night.shop.workers.count + 1

    @task(name="image", cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
    def image(index: int, name: str) -> ImageResult:
        return night.process(night.survey.planned[index])

    futures: list[PrefectFuture[ImageResult]] = []
    for index, planned in enumerate(night.survey.planned):
        if index >= at_once:
            futures[index - at_once].wait()
        futures.append(image.submit(index, _name(planned)))
    return [future.result() for future in futures]


def _name(planned: Planned) -> str:
    return planned.plan.image.id


def _publish(morning: Morning) -> None:
    """The summary and the per-class table, as artifacts of the flow run."""
    key = "".join(c if c.isalnum() else "-" for c in morning.report.name.lower()).strip("-") or "run"
    summary = morning.files["summary.md"].read_text(encoding="utf-8")
    create_markdown_artifact(key=f"gigamask-{key}-summary", markdown=summary, description=str(morning.files["report.html"]))
    scores = morning.report.scores
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
        for c, s in zip(morning.report.classes, scores.classes, strict=True)
    ]
    create_table_artifact(key=f"gigamask-{key}-classes", table=rows, description="Scores by class")


def run_flow(config: Path, root: Path | None, listener: Progress | None) -> dict[str, Any]:
    """Run the flow here, once, and return what it left: {exit_code, folder}.

    A configuration that is wrong is told before anything of Prefect is started.
    """
    load_config(config, root=root)
    name = str(config)
    if listener is not None:
        _LISTENERS[name] = listener
    state: State[Any] = nightly(name, str(root) if root else None, return_state=True)
    left: Any = state.result(raise_on_failure=False)
    if isinstance(left, BaseException):
        raise left
    return dict(left)
