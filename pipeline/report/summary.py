"""A report that fits a chat message."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.report.contract import RunComparison, RunReport, ScoreDelta
from pipeline.report.findings import Findings, first_line, image_name
from pipeline.report.words import chance, duration, interval, listed, number, of, percent, score, signed
from pipeline.statistics.gates import WORDS

MARKS = {"good": "✓", "attention": "!", "bad": "✕"}


def summary_md(findings: Findings, drift: Sequence[str] = ()) -> str:
    """The run in a few lines of Markdown: verdict of gates and images, headline, change, worst classes, `drift` in sentences,
    failed images, where the report is."""
    report, scores, cover = findings.report, findings.scores, findings.coverage
    verdict = findings.verdict
    blocks = [f"**{MARKS[verdict.level]} {_plain(verdict.sentence)}**", f"{_plain(report.title)} · run {_code(report.run_id)}"]
    gates = findings.undecided_gates
    if gates:
        lines = [f"- {gate.outcome}: {_plain(first_line(gate.why))}" for gate in gates[:5]]
        if len(gates) > 5:
            lines.append(f"- and {number(len(gates) - 5)} more")
        blocks.insert(1, "\n".join(lines))
    if scores is not None:
        found = findings.evaluation.overall["miou"]
        sure = f"no interval, {of(found.units, findings.evaluation.unit)}"
        if found.low is not None:
            sure = f"95 % interval {interval(found.low, found.high)}, {of(found.units, findings.evaluation.unit)}"
        parts = [
            f"**mIoU {score(scores.miou)}** ({sure}) over {of(scores.classes_counted, 'class', 'classes')}",
            f"mDice {score(scores.mdice)}",
            f"without background {score(scores.miou_without_background)}",
            f"mean per image {score(findings.mean_image_miou)}",
            f"pixel accuracy {score(scores.pixel_accuracy)} (always the commonest class: {score(scores.majority_accuracy)})",
        ]
        blocks.append(" · ".join(part for part in parts if not part.endswith("–")))
        if (comparison := findings.evaluation.comparison) is not None:
            blocks.append(change_md(comparison, [c.name for c in findings.classes]))
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
    if findings.label_notes:
        blocks.append(f"Labels: {_plain(listed(findings.label_notes, 3))}.")
    if findings.unknown_label_notes:
        blocks.append(f"Labels: {listed(findings.unknown_label_notes, 2)}.")
    if drift:
        blocks.append(" ".join(map(_plain, drift)))
    if findings.changes:
        blocks.append(f"Archive: {findings.changes_words}.")
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


def change_md(comparison: RunComparison, names: list[str]) -> str:
    """A comparison in two or three sentences: mIoU, and the classes whose IoU has surely changed."""
    miou = comparison.overall["miou"]
    told = f"mIoU {score(miou.before)} to {score(miou.after)}, {signed(miou.delta)}"
    if miou.low is not None:
        told += f" (95 % interval {interval(miou.low, miou.high, signed)}, p {chance(miou.p)})"
    shares = f"; {percent(miou.improved)} of them better, {percent(miou.worsened)} worse" if miou.improved is not None else ""
    text = f"Against run {_code(comparison.baseline.run_id)} on {of(comparison.images, 'image')}: {told}{shares}."
    moved = [
        f"{_plain(names[code])} {signed(each['iou'].delta)}"
        for code, each in enumerate(comparison.classes)
        if (p := each["iou"].p_holm) is not None and p < 0.05
    ]
    return text + (f" IoU has changed of {listed(moved)} (p < 0.05 after Holm)." if moved else "")


def comparison_md(comparison: RunComparison, after: RunReport) -> str:
    """Two runs as a page of Markdown: what was compared, all scores, all classes."""
    names, before = [info.name for info in after.classes], comparison.baseline
    left = [
        (comparison.only_before, "only then"),
        (comparison.only_now, "only now"),
        (comparison.failed_before, "failed then"),
        (len(comparison.relabelled), "with another reference now"),
    ]
    out = listed([f"{number(n)} {why}" for n, why in left if n])
    blocks = [
        f"# {_plain(after.title)}: run {_code(after.run_id)} against {_code(before.run_id)}",
        f"Model {_plain(after.model.name)} {_code(after.model.digest[:12])} against {_plain(before.model)} "
        f"{_code(before.model_digest[:12])}. {of(comparison.images, 'image').capitalize()} in {of(comparison.units, 'unit')} "
        "compared" + (f"; left out: {out}." if out else "."),
        change_md(comparison, names),
        _delta_table("score", [(WORDS[metric], d) for metric, d in comparison.overall.items()], holm=False),
        _delta_table("IoU of", [(names[code], each["iou"]) for code, each in enumerate(comparison.classes)], holm=True),
    ]
    if warning := comparison.overall["miou"].warning:
        blocks.append(f"mIoU: {_plain(warning)}.")
    return "\n\n".join(blocks) + "\n"


def _delta_table(what: str, rows: list[tuple[str, ScoreDelta]], *, holm: bool) -> str:
    head = [what, "before", "after", "change", "95 % interval", "p after Holm" if holm else "p", "units better", "worse"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, d in rows:
        p = chance(d.p_holm if holm else d.p)
        cells = [_plain(name), score(d.before), score(d.after), signed(d.delta), interval(d.low, d.high, signed), p]
        lines.append("| " + " | ".join([*cells, percent(d.improved), percent(d.worsened)]) + " |")
    return "\n".join(lines)


def _code(text: str) -> str:
    return "`" + re.sub(r"[`\s]+", " ", text) + "`"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", re.sub(r"\s+", " ", text))
