"""What a run leaves for people and programs: report.json, and a page, a summary and tables that are functions of it."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.confusion import Scores
from pipeline.errors import StoreError
from pipeline.report.contract import RunReport

JSON_NAME = "report.json"


def write_report(report: RunReport, folder: Path) -> dict[str, Path]:
    """Write report.json, per_class.csv, per_image.parquet, summary.md and report.html into `folder`; paths by file name.

    All but the first are functions of report.json and of the pictures in `folder`/quicklook: the same ones give the same
    bytes. Each file appears whole or not at all; report.json first, so that nothing that goes wrong later loses the run.
    """
    from pipeline.report.findings import Findings
    from pipeline.report.page import page_html
    from pipeline.report.summary import summary_md
    from pipeline.report.tables import per_class_csv, per_image_parquet

    folder.mkdir(parents=True, exist_ok=True)
    written = {JSON_NAME: _put(folder / JSON_NAME, report_json(report).encode())}
    findings = Findings(read_report(folder))
    written["per_class.csv"] = _put(folder / "per_class.csv", per_class_csv(findings).encode())
    written["per_image.parquet"] = _put(folder / "per_image.parquet", per_image_parquet(findings))
    written["summary.md"] = _put(folder / "summary.md", summary_md(findings).encode())
    written["report.html"] = _put(folder / "report.html", page_html(findings, folder).encode())
    return written


def read_report(folder: Path) -> RunReport:
    """The report in `folder`; StoreError where it is missing, damaged, or of another version."""
    path = folder / JSON_NAME
    try:
        data = json.loads(path.read_bytes())
        data.pop("scores", None)
        return RunReport.model_validate_json(json.dumps(data))
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e}. Name the folder of a finished run") from e
    except (ValidationError, ValueError, AttributeError) as e:
        raise StoreError(f"{path} is no report of this version of gigamask: {e}") from e


def report_json(report: RunReport) -> str:
    """`report` as JSON: a line a key, and a line an image.

    Beside its own keys it has `scores`: the data-set-wide scores, derived, for programs; null where there are none.
    """
    data = json.loads(report.model_dump_json())
    scores = report.scores
    data["scores"] = None if scores is None else _without_nan(TypeAdapter(Scores).dump_python(scores, mode="json"))
    lines = []
    for key, value in data.items():
        images = key == "images" and value
        lines.append(
            f" {_line(key)}: " + ("[\n" + ",\n".join(f"  {_line(v)}" for v in value) + "\n ]" if images else _line(value))
        )
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


def _put(path: Path, content: bytes) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path
