"""What a run leaves for people and programs: report.json, and a page, a summary and tables that are functions of it."""

from __future__ import annotations

import json
import shutil
from math import isnan
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.atomic import write_bytes
from pipeline.confusion import Scores
from pipeline.errors import StoreError
from pipeline.report.contract import RunReport

JSON_NAME = "report.json"


def write_report(report: RunReport, folder: Path) -> dict[str, Path]:
    """Write report.json into `folder`, and all that `render` makes of it; paths by file name.

    report.json comes first, so that nothing that goes wrong later loses the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {JSON_NAME: _put(folder / JSON_NAME, report_json(report).encode())}
    return written | render(folder)


def render(folder: Path, out: Path | None = None) -> dict[str, Path]:
    """Make page, summary, tables and lists of the report in `folder`, of whichever version, into `out` (`folder` itself where
    None); paths by file name.

    All are functions of report.json, of the pictures in quicklook, and the page also of the history of earlier runs: the same
    ones give the same bytes. Each file appears whole or not at all. report.json stays as it is.
    """
    from pipeline.report.findings import Findings
    from pipeline.report.outputs import junit_xml, multiqc_json
    from pipeline.report.page import page_html
    from pipeline.report.past import drifts, odd_words, read_past
    from pipeline.report.summary import summary_md
    from pipeline.report.tables import per_class_csv, per_image_parquet

    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    findings = Findings(read_report(folder))
    if out.resolve() != folder.resolve():
        _take_pictures(findings.report, folder, out)
    past = read_past(folder, findings.report)
    odd = odd_words(drifts(findings.report, past), findings.inputs)
    contents = {
        "per_class.csv": per_class_csv(findings).encode(),
        "per_image.parquet": per_image_parquet(findings),
        "summary.md": summary_md(findings, odd).encode(),
        "junit.xml": junit_xml(findings),
        "gigamask_mqc.json": multiqc_json(findings).encode(),
        "report.html": page_html(findings, out, past).encode(),
    }
    return {name: _put(out / name, content) for name, content in contents.items()}


def read_report(folder: Path) -> RunReport:
    """The report in `folder`, which may also be named by its report.json; StoreError where it is missing, damaged, or of
    another version."""
    path = folder if folder.name == JSON_NAME else folder / JSON_NAME
    try:
        data = json.loads(path.read_bytes())
        data.pop("scores", None)
        return RunReport.model_validate_json(json.dumps(data))
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e}. Name the folder of a finished run") from e
    except (ValidationError, ValueError, AttributeError) as e:
        raise StoreError(f"{path} is no report of this version of gigamask: {e}") from e


def report_json(report: RunReport) -> str:
    """`report` as JSON: a line a key, a line an image, and a line a part of the evaluation.

    Beside its own keys it has `scores`: the data-set-wide scores, derived, for programs; null where there are none.
    """
    data = json.loads(report.model_dump_json())
    scores = report.scores
    data["scores"] = None if scores is None else _without_nan(TypeAdapter(Scores).dump_python(scores, mode="json"))
    lines = []
    for key, value in data.items():
        text = _line(value)
        if key == "images" and value:
            text = "[\n" + ",\n".join(f"  {_line(v)}" for v in value) + "\n ]"
        elif key == "evaluation" and value:
            text = "{\n" + ",\n".join(f"  {_line(k)}: {_line(v)}" for k, v in value.items()) + "\n }"
        lines.append(f" {_line(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def report_schema() -> dict[str, Any]:
    """JSON schema of report.json."""
    schema = RunReport.model_json_schema(mode="serialization")
    scores = TypeAdapter(Scores).json_schema(mode="serialization", ref_template="#/$defs/{model}")
    definitions = scores.pop("$defs")
    for part in (scores, *definitions.values()):
        for name, value in part["properties"].items():
            if value.get("type") == "number":
                part["properties"][name] = {**value, "type": ["number", "null"]}
    schema["$defs"] |= definitions | {"Scores": scores}
    schema["properties"]["scores"] = {"anyOf": [{"$ref": "#/$defs/Scores"}, {"type": "null"}]}
    schema["required"].append("scores")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and isnan(value) else value


def _take_pictures(report: RunReport, folder: Path, out: Path) -> None:
    """Copy the pictures that lie where they should."""
    names = {PurePosixPath(name) for image in report.images for name in image.quicklook.values()}
    for name in sorted(names):
        if not name.is_absolute() and ".." not in name.parts and (folder / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)


def _put(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path
