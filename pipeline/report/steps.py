"""What a reader does next: in sentences, and as commands to copy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.config import AUTO, WHOLE
from pipeline.image import STATED
from pipeline.report.contract import DRAWN, ImageResult, RunReport
from pipeline.report.findings import Findings, image_name
from pipeline.report.words import listed, of

HEADLINES = {"good": "All well", "attention": "Use with care", "bad": "Needs action"}


def next_steps(findings: Findings) -> list[str]:
    """Most urgent first; one at least."""
    report, found, states = findings.report, findings.evaluation, findings.states
    steps = []
    failed = [gate for gate in found.gates if gate.outcome == "fail"]
    undecided = [gate for gate in found.gates if gate.outcome == "inconclusive"]
    if failed:
        steps.append(f"Hold the masks back: {listed([gate.name for gate in failed])} did not reach what was asked for.")
    if states["failed"] or states["partial"]:
        lost = of(states["failed"] + states["partial"], "image")
        steps.append(f"Mend the causes under Failures, then run {lost} again: {retry_command(report)}")
    if wrong := sum(image.truth_error is not None for image in report.images):
        steps.append(f"Mend the labels of {of(wrong, 'image')}: see Failures. Masks are kept, only scores are made anew.")
    if findings.unknown_labels:
        values = listed([str(value) for value in findings.unknown_labels])
        steps.append(f"Say what the label values {values} mean: name them in truth.classes or in truth.ignore.")
    if undecided and not failed:
        names = listed([gate.name for gate in undecided])
        unlike = all(gate.min is None or gate.min <= (_score(findings, gate.metric, gate.code) or 0) for gate in undecided)
        why = f"{of(found.units, found.unit)} are too few to tell" if unlike and found.units else "the scores do not tell"
        if found.comparison is None and all(gate.max_drop is not None for gate in undecided):
            why = "there was no earlier run to hold this one against"
        steps.append(f"Decide by eye on {names}: {why}. More labelled images make the intervals narrower.")
    if steps:
        return steps
    if findings.scores is None:
        return ["Look at the pictures: without labels nothing says how right the masks are."] if report.images else [
            "Check archive.images in the configuration: it found no image."
        ]  # fmt: skip
    if findings.verdict.level != "good":
        return ["Read the reasons below before the masks are used."]
    if not found.gates:
        return ["Nothing has failed. Whether the scores are good enough is for you to say: no gate was set."]
    return ["Nothing: the masks can be used."]


def _score(findings: Findings, metric: str, code: int | None) -> float | None:
    found = findings.evaluation
    return (found.overall if code is None else found.classes[code])[metric].value


def retry_command(report: RunReport) -> str:
    """Return the command that tries again what failed. Of a part that is the run itself: `retry` is about whole archives."""
    if report.part is not None:
        return report.command
    try:
        words = shlex.split(report.command)
    except ValueError:  # an earlier version did not quote
        words = []
    if words[:1] != ["gigamask"] or words[1:2] not in (["run"], ["retry"], ["merge"]):
        return "gigamask retry CONFIG"
    return shlex.join(["gigamask", "retry", *(word for word in words[2:] if word not in ("--prefect", "--no-prefect"))])


@dataclass(frozen=True)
class Again:
    """Commands that make the mask of one image and its scores again, apart from the run."""

    segment: str
    evaluate: str | None


def again(report: RunReport, image: ImageResult) -> Again | None:
    """None where the settings of the run cannot be told to one command."""
    config: dict[str, Any] = report.config
    archive, model, tiling = (config.get(key) or {} for key in ("archive", "model", "tiling"))
    stated = image.read_as is not None and f"({STATED})" in image.read_as
    if archive.get("nodata", "header") != "header" or not image.class_px or stated:
        return None
    if archive.get("tissue", WHOLE) not in (WHOLE, AUTO) or (image.looked_at or "").startswith(DRAWN):
        return None
    store = f"{PurePath(image_name(image)).stem}.zarr"
    words = ["gigamask", "segment", image.uri, "--model", report.model.path, "--out", store]
    words += _options(tiling, {"tile": "--tile", "overlap": "--overlap", "blend": "--blend", "block": "--block"})
    words += _options(model, {"batch": "--batch", "precision": "--precision", "test_time_flips": "--flips"})
    words += ["--trust-code"] if model.get("trust_code") else []
    words += ["--bands", ",".join(map(str, archive["bands"]))] if archive.get("bands") else []
    size = config.get("resolution", "card")
    if isinstance(size, dict):
        unit = {"metre": "m", "micrometre": "um", "source-pixel": "px"}.get(str(size.get("unit")))
        if unit is None or size.get("accepted"):
            return None
        size = f"{size.get('size')}{unit}"
    words += ["--resolution", str(size)] if size != "card" else []
    for key, usual in (("tissue", WHOLE), ("reader", AUTO), ("icc", WHOLE)):
        words += [f"--{key}", str(archive[key])] if archive.get(key, usual) != usual else []
    return Again(shlex.join(words), _evaluate(config.get("truth") or {}, store, image.truth))


def _evaluate(truth: dict[str, Any], store: str, labels: str | None) -> str | None:
    if labels is None:
        return None
    words = ["gigamask", "evaluate", store, labels]
    if truth.get("classes"):
        words += ["--class-map", ",".join(f"{value}={name}" for value, name in truth["classes"].items())]
    if truth.get("ignore"):
        words += ["--ignore", ",".join(map(str, truth["ignore"]))]
    names = ("field", "constant", "background", "layer", "crs", "resample")
    words += _options(truth, {name: f"--{name}" for name in names} | {"buffer_m": "--buffer-m"})
    if truth.get("area"):
        return None
    return shlex.join(words)


def _options(settings: dict[str, Any], names: dict[str, str]) -> list[str]:
    given = [(flag, settings[key]) for key, flag in names.items() if settings.get(key) is not None]
    return [word for flag, value in given for word in (flag, str(value))]


def cite(findings: Findings) -> str:
    """A sentence for a paper or a data sheet."""
    report, found = findings.report, findings.evaluation
    parts = [
        f"Masks: gigamask {report.software.get('gigamask', '')}".strip(),
        f"model {report.model.name} ({report.model.digest[:12]}, licence {report.model.licence})",
        f"configuration {report.name} ({report.config_digest[:12]})",
        f"run {report.run_id}, {report.started[:10]}",
    ]
    text = ", ".join(parts) + "."
    if findings.scores is not None:
        text += f" Scores: {findings.headline}, of the confusion matrix summed over {of(found.images, 'image')}"
        sure = found.overall["miou"]
        if sure.low is not None and sure.high is not None:
            text += (
                f"; 95 % interval {sure.low:.3f} to {sure.high:.3f}, cluster bootstrap over {of(found.units, found.unit)} "
                f"({found.resamples:,} resamples, seed {found.seed})"
            )
        text += "."
    return text
