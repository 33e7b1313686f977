"""The verdict for machines that know nothing of segmentation: JUnit for continuous integration, a table for MultiQC."""

from __future__ import annotations

import hashlib
import html
import json
import re
from typing import Any
from xml.etree import ElementTree as ET

from pipeline.report.contract import ImageResult
from pipeline.report.findings import Findings, first_line

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold, however written."""


def junit_xml(findings: Findings) -> bytes:
    """Two suites. `gates`: a case a gate, failed where it failed, skipped where it is inconclusive. `images`: a case an image,
    failed where it failed, has holes or could not be scored, skipped where it was."""
    report = findings.report
    root = ET.Element("testsuites", name=_xml(report.name))
    cases = [_case("gates", gate.name, 0.0) for gate in findings.evaluation.gates]
    for case, gate in zip(cases, findings.evaluation.gates, strict=True):
        if gate.outcome == "fail":
            _told(case, "failure", "gate", gate.why)
        elif gate.outcome == "inconclusive":
            _told(case, "skipped", None, f"inconclusive: {gate.why}")
    _suite(root, "gates", cases, report.started)
    cases = [_image_case(image) for image in report.images]
    _suite(root, "images", cases, report.started)
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def multiqc_json(findings: Findings) -> str:
    """A table section of MultiQC's custom content, one row a run: files of several runs become one table.

    https://docs.seqera.io/multiqc/custom_content; MultiQC takes titles for HTML, so names are escaped.
    """
    report, found = findings.report, findings.evaluation
    headers: dict[str, dict[str, Any]] = {}
    row: dict[str, Any] = {}

    def put(key: str, value: float | str | None, title: str, description: str, **more: Any) -> None:
        headers[key] = {"title": html.escape(title), "description": html.escape(description), **more}
        if value is not None:
            row[key] = value

    score = {"min": 0, "max": 1, "format": "{:,.3f}", "scale": "RdYlGn"}
    miou = found.overall["miou"]
    put("gates", found.outcome or "none", "Gates", "The worst outcome of the gates")
    put("miou", miou.value, "mIoU", "Mean IoU over classes", **score)
    put("miou_low", miou.low, "mIoU from", "Lower end of its 95 % interval", **score)
    put("miou_high", miou.high, "mIoU to", "Upper end of its 95 % interval", **score)
    if found.comparison is not None:
        delta = {"format": "{:+,.3f}", "min": -1, "max": 1, "scale": "RdYlGn"}
        put("miou_delta", found.comparison.overall["miou"].delta, "Change", "Of mIoU, against the baseline", **delta)
    put("mdice", found.overall["mdice"].value, "mDice", "Mean Dice over classes", **score)
    put("pixel_accuracy", found.overall["pixel_accuracy"].value, "Accuracy", "Share of right pixels", **score, hidden=True)
    whole = {"format": "{:,.0f}", "min": 0}
    put("units", found.units, "Units", f"What chance is reckoned over: each a {found.unit}", **whole)
    put("images", len(report.images), "Images", "All of the run", **whole)
    put("failed", findings.states["failed"], "Failed", "Images that failed", **whole, scale="Reds")
    for code, info in enumerate(report.classes):
        put(_key(info.name), found.classes[code]["iou"].value, f"IoU {info.name}", f"IoU of {info.name}", **score)
    content = {
        "id": "gigamask",
        "section_name": "gigamask",
        "description": "Segmentation masks against their reference: scores over all scored images of a run.",
        "plot_type": "table",
        "pconfig": {"id": "gigamask_table", "title": "gigamask: scores", "namespace": "gigamask", "col1_header": "Run"},
        "headers": headers,
        "data": {html.escape(f"{report.name} {report.run_id}"): row},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _key(name: str) -> str:
    """The same for the same class in every run; letters that a key cannot have are made up for by a hash."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name)
    return f"iou_{plain}" if plain == name else f"iou_{plain}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _suite(root: ET.Element, name: str, cases: list[ET.Element], started: str) -> None:
    suite = ET.SubElement(
        root,
        "testsuite",
        name=f"gigamask {name}",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors="0",
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=f"{sum(float(case.get('time', 0)) for case in cases):.3f}",
        timestamp=_xml(started[:19]),
    )
    suite.extend(cases)


def _image_case(image: ImageResult) -> ET.Element:
    case = _case("images", image.uri, image.seconds)
    if image.state in ("failed", "partial"):
        _told(case, "failure", image.state, image.error or "no cause was recorded")
    elif image.truth_error:
        _told(case, "failure", "not scored", image.truth_error)
    elif image.state == "skipped":
        _told(case, "skipped", None, image.error or "no cause was recorded")
    return case


def _case(suite: str, name: str, seconds: float) -> ET.Element:
    return ET.Element("testcase", classname=f"gigamask.{suite}", name=_xml(name), time=f"{seconds:.3f}")


def _told(case: ET.Element, what: str, kind: str | None, why: str) -> None:
    told = ET.SubElement(case, what, message=_xml(first_line(why)))
    if kind is not None:
        told.set("type", kind)
        told.text = _xml(why)


def _xml(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
