"""A report that fits a chat message."""

from __future__ import annotations

import re

from pipeline.report.findings import Findings, first_line, image_name
from pipeline.report.words import duration, listed, number, of, percent, score

MARKS = {"good": "✓", "attention": "!", "bad": "✕"}


def summary_md(findings: Findings) -> str:
    """The run in a few lines of Markdown: verdict, headline, worst classes, failed images, where the report is."""
    report, scores, cover = findings.report, findings.scores, findings.coverage
    verdict = findings.verdict
    blocks = [f"**{MARKS[verdict.level]} {_plain(verdict.sentence)}**", f"{_plain(report.title)} · run `{report.run_id}`"]
    if scores is not None:
        parts = [
            f"**mIoU {score(scores.miou)}** over {of(scores.classes_counted, 'class', 'classes')}",
            f"mDice {score(scores.mdice)}",
            f"without background {score(scores.miou_without_background)}",
            f"mean per image {score(report.mean_image_miou)}",
            f"pixel accuracy {score(scores.pixel_accuracy)} (always the commonest class: {score(scores.majority_accuracy)})",
        ]
        blocks.append(" · ".join(part for part in parts if not part.endswith("–")))
        worst = [f"{_plain(c.name)} {score(c.scores.iou)}" for c in findings.worst_classes[:3] if c.scores]
        blocks.append(f"Lowest IoU: {', '.join(worst)}.")
    elif cover.scored + cover.segmented:
        largest = sorted(findings.classes, key=lambda c: (-c.mask_px, c.code))[:5]
        blocks.append(f"Classes of the masks: {', '.join(f'{_plain(c.name)} {percent(c.mask_share)}' for c in largest)}.")
    if cover.pixels:
        blocks.append(
            f"Pixels: {percent(cover.share(cover.scored))} scored, {percent(cover.share(cover.segmented))} segmented without "
            f"label, {percent(cover.share(cover.failed))} failed, {percent(cover.share(cover.no_data))} no data."
        )
    if findings.unknown_label_notes:
        blocks.append(f"Labels: {listed(findings.unknown_label_notes, 2)}.")
    troubled = findings.troubled
    if troubled:
        lines = [
            f"- {_plain(image_name(i))}, {i.state}: {_plain(first_line(i.error or i.truth_error or 'no cause recorded', 120))}"
            for i in troubled[:5]
        ]
        if len(troubled) > 5:
            lines.append(f"- and {number(len(troubled) - 5)} more")
        blocks.append("\n".join(lines))
    blocks.append(f"Model {_plain(report.model.name)} · {duration(report.seconds)} · [report](report.html)")
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", re.sub(r"\s+", " ", text))
