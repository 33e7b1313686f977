"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.atomic import replacing
from pipeline.train.loop import Step


def draw_curve(curve: Sequence[Step], path: Path, title: str) -> None:
    """Loss and validation mIoU over minutes, as a PNG at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    minutes = [p.minutes for p in curve]
    axes.plot(minutes, [p.loss for p in curve], color="#0072B2", marker="o", markersize=3, label="training loss")
    axes.set_xlabel("minutes")
    axes.set_ylabel("training loss", color="#0072B2")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.spines[["top"]].set_visible(False)
    scored = [(p.minutes, p.miou) for p in curve if p.miou is not None]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored, strict=True), color="#D55E00", marker="s", markersize=3, label="validation mIoU")
        right.set_ylabel("validation mIoU", color="#D55E00")
        right.set_ylim(0, 1)
        right.spines[["top"]].set_visible(False)
        best = max(scored, key=lambda point: point[1])
        right.annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(0, 7), ha="center", color="#D55E00")
    with replacing(path) as draft:
        figure.savefig(draft, dpi=120)
