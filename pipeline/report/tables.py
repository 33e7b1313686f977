"""The same numbers for programs: a Parquet row for each image, a CSV row for each class."""

# pyarrow carries no types, so that mypy knows none of its names.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

import csv
import io
import re
from math import isnan
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.report.contract import ImageResult
from pipeline.report.findings import Findings, lost_px
from pipeline.statistics.measures import CLASS_MEASURES

_COLUMNS = {
    "id": pa.string(),
    "uri": pa.string(),
    "group": pa.string(),
    "state": pa.string(),
    "error": pa.string(),
    "reused": pa.bool_(),
    "digest": pa.string(),
    "mask": pa.string(),
    "height": pa.int64(),
    "width": pa.int64(),
    "pixel_area_m2": pa.float64(),
    "tiles": pa.int64(),
    "blocks": pa.int64(),
    "failed_blocks": pa.int64(),
    "redundancy": pa.float64(),
    "seconds": pa.float64(),
    "failed_px": pa.int64(),
    "no_data_px": pa.int64(),
    "truth": pa.string(),
    "truth_error": pa.string(),
    "unknown_label_px": pa.int64(),
    "evaluated_px": pa.int64(),
    "labelled_failed_px": pa.int64(),
    "labelled_no_data_px": pa.int64(),
    "unlabelled_px": pa.int64(),
    "classes_counted": pa.int64(),
    "miou": pa.float64(),
    "mdice": pa.float64(),
    "pixel_accuracy": pa.float64(),
    "matthews": pa.float64(),
}


def per_image_parquet(findings: Findings) -> bytes:
    """One row an image, in the order of the run; null where there is no number.

    Beside the fixed columns: `strata_<name>` for each stratum, and for each class `iou_<name>`, `px_<name>`,
    `area_m2_<name>`.
    """
    report = findings.report
    strata = sorted({key for image in report.images for key in image.strata})
    names = [info.name for info in report.classes]
    fields = dict(_COLUMNS)
    fields |= {f"strata_{key}": pa.string() for key in strata}
    fields |= {f"iou_{name}": pa.float64() for name in names}
    fields |= {f"px_{name}": pa.int64() for name in names}
    fields |= {f"area_m2_{name}": pa.float64() for name in names}
    rows = [_image_row(findings, image, strata, names) for image in report.images]
    columns = [pa.array([row[name] for row in rows], type=kind) for name, kind in fields.items()]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, names=list(fields)), out, compression="zstd")
    return out.getvalue()


def _image_row(findings: Findings, image: ImageResult, strata: list[str], names: list[str]) -> dict[str, Any]:
    found = findings.image_scores[image.id]
    row: dict[str, Any] = {name: getattr(image, name) for name in _COLUMNS if name in ImageResult.model_fields}
    row["failed_px"] = lost_px(image)
    row["unknown_label_px"] = sum(image.unknown_labels.values())
    row["labelled_failed_px"] = found.failed_px if found else None
    for name in (
        "evaluated_px", "labelled_no_data_px", "unlabelled_px", "classes_counted", "miou", "mdice", "pixel_accuracy", "matthews"
    ):  # fmt: skip
        row[name] = _real(getattr(found, name)) if found else None
    row |= {f"strata_{key}": image.strata.get(key) for key in strata}
    for code, name in enumerate(names):
        px = image.class_px[code] if image.class_px else None
        row[f"iou_{name}"] = _real(found.classes[code].iou) if found else None
        row[f"px_{name}"] = px
        row[f"area_m2_{name}"] = px * image.pixel_area_m2 if px is not None and image.pixel_area_m2 is not None else None
    return row


def per_class_csv(findings: Findings) -> str:
    """One row a class, by code; empty where there is no number.

    After the scores come, for IoU, Dice, precision and recall, the ends of their 95 % intervals and the units they rest on; the
    change of IoU against the baseline; the corrected area. Text that a spreadsheet would run as a formula begins with an
    apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    scored = ("iou", "dice", "precision", "recall", "reference_px", "predicted_px")
    head = ["code", "class", "color", *scored, "mask_px", "mask_share", "area_m2"]
    head += [f"{metric}_{end}" for metric in CLASS_MEASURES for end in ("low", "high", "units")]
    head += [f"iou_{end}" for end in ("before", "delta", "delta_low", "delta_high", "delta_p_holm")]
    head += ["area_estimated_m2", "area_low_m2", "area_high_m2"]
    writer.writerow(head)
    for c in findings.classes:
        row = [c.code, _cell(c.name), c.color, *([_real(getattr(c.scores, name)) if c.scores else None for name in scored])]
        row += [c.mask_px, _real(c.mask_share), c.area_m2]
        row += [value for e in (c.estimates[m] for m in CLASS_MEASURES) for value in (e.low, e.high, e.units)]
        iou = c.deltas["iou"] if c.deltas else None
        row += [iou.before, iou.delta, iou.low, iou.high, iou.p_holm] if iou else [None] * 5
        row += [c.area.estimated, c.area.low, c.area.high] if c.area else [None] * 3
        writer.writerow(row)
    return out.getvalue()


def _cell(text: str) -> str:
    """Text that stays text, in one line, in a spreadsheet."""
    text = re.sub(r"[\r\n]", " ", text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] == "\t" else text


def _real(value: float | None) -> float | None:
    return None if value is None or isnan(value) else value
