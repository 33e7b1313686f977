"""What a run's report says, before it is put on a page: verdict, coverage, classes, confusions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import PurePath
from typing import Literal

import numpy as np

from pipeline.confusion import ClassScores, Counts, Scores
from pipeline.report.contract import (
    ClassArea,
    Evaluation,
    GateVerdict,
    ImageResult,
    ImageState,
    RunReport,
    ScoreDelta,
    ScoreEstimate,
)
from pipeline.report.evaluation import evaluate
from pipeline.report.signals import InputCheck
from pipeline.report.words import interval, listed, number, of, percent, score, signed
from pipeline.statistics.bootstrap import ENOUGH_UNITS, LEAST_UNITS

Level = Literal["good", "attention", "bad"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first thing that a reader is told."""

    level: Level
    """good: nothing to do; attention: use with care; bad: images are missing, a gate failed, or there is nothing to use."""
    sentence: str
    """What became of the gates and the images, and the headline score with its interval and its change."""
    reasons: list[str]
    """Why it is no better than `level`, gates first, and what else must be known beside the headline; may be empty."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Where all pixels of the run's images went; the five parts add up to `pixels`."""

    pixels: int
    """Pixels of all images whose size is known, skipped images left out."""
    scored: int
    """Segmented and labelled."""
    segmented: int
    """Segmented and not labelled."""
    failed: int
    """To be segmented, and not done."""
    no_data: int
    """Outside the valid area."""

    @property
    def with_data(self) -> int:
        """Pixels that were to be segmented."""
        return self.scored + self.segmented + self.failed

    def share(self, pixels: int) -> float:
        """`pixels` as a share of all; 0 where there are none."""
        return pixels / self.pixels if self.pixels else 0.0


@dataclass(frozen=True, slots=True)
class ClassFinding:
    """One class over the whole run."""

    code: int
    name: str
    color: str
    scores: ClassScores | None
    """None where nothing was scored."""
    estimates: dict[str, ScoreEstimate]
    """The same scores with their intervals, by metric."""
    deltas: dict[str, ScoreDelta] | None
    """Their changes against the baseline, by metric; None without comparison."""
    area: ClassArea | None
    """Its ground area, corrected; None where nothing is known of it."""
    mask_px: int
    """Pixels of all masks that have it, labelled or not."""
    mask_share: float
    """The same as a share of all class pixels; NaN where there are none."""
    area_m2: float | None
    """Mapped ground area, of the images with georeference; None where no image has one."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Pixels of one class that were called another."""

    reference: str
    predicted: str
    pixels: int
    share: float
    """Of the reference class's evaluated pixels."""


def image_name(image: ImageResult) -> str:
    """The image's file name."""
    return PurePath(image.uri).name or image.id


def lost_px(image: ImageResult) -> int:
    """Pixels that failed, those included that a failed image has no mask for."""
    missing = image.height * image.width - sum(image.class_px) - image.failed_px - image.no_data_px
    return image.failed_px + (max(0, missing) if image.state in ("failed", "partial") else 0)


class Findings:
    """What is read off one report; each computed once."""

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self.counts: Counts | None = report.counts
        self.scores: Scores | None = report.scores
        self.image_scores: dict[str, Scores | None] = {i.id: report.image_scores(i) for i in report.images}

    @cached_property
    def inputs(self) -> InputCheck:
        """What the model was shown against its training."""
        return InputCheck(self.report)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Intervals, strata, areas, comparison, gates; of a report that has none, what can be reckoned from its counts alone."""
        return self.report.evaluation or evaluate(self.report)

    @cached_property
    def states(self) -> Counter[ImageState]:
        """How many images are in each state."""
        return Counter(image.state for image in self.report.images)

    @cached_property
    def mean_image_miou(self) -> float:
        """Mean over scored images of each one's own mIoU; NaN where none was scored."""
        each = [s.miou for s in self.image_scores.values() if s is not None]
        return float(np.mean(each)) if each else float("nan")

    @cached_property
    def scored_images(self) -> int:
        """How many images have scores."""
        return sum(s is not None for s in self.image_scores.values())

    @cached_property
    def troubled(self) -> list[ImageResult]:
        """Images that failed, lack parts, were skipped, or could not be scored: those first that lost most."""
        rank = {"failed": 0, "partial": 1, "skipped": 2, "complete": 3, "empty": 4}
        found = [i for i in self.report.images if i.state in ("failed", "partial", "skipped") or i.truth_error]
        return sorted(found, key=lambda i: (rank[i.state], -lost_px(i), i.uri))

    @cached_property
    def worst_first(self) -> list[ImageResult]:
        """All images: failed ones, then those scored by mIoU from the lowest, then those without scores."""

        def rank(image: ImageResult) -> tuple[int, float, str]:
            found = self.image_scores[image.id]
            if image.state == "failed":
                return 0, 0.0, image.uri
            return (1, found.miou, image.uri) if found else (2, 0.0, image.uri)

        return sorted(self.report.images, key=rank)

    @cached_property
    def coverage(self) -> Coverage:
        """Where the pixels went."""
        images = [image for image in self.report.images if image.state != "skipped"]
        classes = len(self.report.classes)
        segmented = sum(sum(image.class_px) for image in images)
        scored = int(self.counts[:classes, :classes].sum()) if self.counts is not None else 0
        failed, no_data = sum(map(lost_px, images)), sum(image.no_data_px for image in images)
        return Coverage(segmented + failed + no_data, scored, max(0, segmented - scored), failed, no_data)

    @cached_property
    def classes(self) -> list[ClassFinding]:
        """By class code."""
        total = sum(sum(image.class_px) for image in self.report.images)
        comparison, corrected = self.evaluation.comparison, self.evaluation.areas
        found = []
        for code, info in enumerate(self.report.classes):
            pixels = [(image.class_px[code], image.pixel_area_m2) for image in self.report.images if image.class_px]
            px = sum(n for n, _ in pixels)
            areas = [n * pixel_area for n, pixel_area in pixels if pixel_area is not None]
            found.append(
                ClassFinding(
                    code=code,
                    name=info.name,
                    color=info.color,
                    scores=self.scores.classes[code] if self.scores else None,
                    estimates=self.evaluation.classes[code],
                    deltas=comparison.classes[code] if comparison else None,
                    area=corrected.classes[code] if corrected else None,
                    mask_px=px,
                    mask_share=px / total if total else float("nan"),
                    area_m2=float(sum(areas)) if areas else None,
                )
            )
        return found

    @cached_property
    def absent(self) -> list[str]:
        """Classes in neither reference nor prediction, left out of the means."""
        return [c.name for c in self.classes if c.scores is not None and isnan(c.scores.iou)]

    @cached_property
    def worst_classes(self) -> list[ClassFinding]:
        """Classes with an IoU, from the lowest."""
        present = [(c.scores.iou, c.code, c) for c in self.classes if c.scores is not None and not isnan(c.scores.iou)]
        return [c for _, _, c in sorted(present, key=lambda entry: entry[:2])]

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Pairs of different classes that were confused, from the most pixels; the reference first."""
        if self.counts is None:
            return []
        names = [info.name for info in self.report.classes]
        between = self.counts[: len(names), : len(names)].copy()
        np.fill_diagonal(between, 0)
        evaluated = self.counts[: len(names), : len(names) + 1].sum(axis=1)
        order = np.argsort(-between, axis=None, kind="stable")[: int(np.count_nonzero(between))]
        pairs = [divmod(int(cell), len(names)) for cell in order]
        return [Confusion(names[r], names[p], int(between[r, p]), float(between[r, p] / evaluated[r])) for r, p in pairs]

    @cached_property
    def unknown_labels(self) -> dict[int, int]:
        """Label values that are no class and not ignored, and their pixels, from the most."""
        total: Counter[int] = Counter()
        for image in self.report.images:
            total.update(image.unknown_labels)
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    @cached_property
    def label_notes(self) -> list[str]:
        """What a reader should know of the labels, and of how many images."""
        found = Counter(note for image in self.report.images for note in image.label_notes)
        return [f"{of(count, 'image')}: {note}" for note, count in found.most_common()]

    @cached_property
    def unknown_label_notes(self) -> list[str]:
        """A sentence a label value that means nothing."""
        labelled = 0
        if self.counts is not None:
            labelled = int(self.counts[: len(self.report.classes)].sum())
        unknown = sum(self.unknown_labels.values())
        return [
            f"{percent(pixels / (labelled + unknown))} of the reference ({number(pixels)} px) is label {value}, which is no class"
            for value, pixels in self.unknown_labels.items()
        ]

    @cached_property
    def redundancy(self) -> float | None:
        """Tiles predicted more than once, as a share of the tiles needed; None where no tile was predicted."""
        tiles = sum(image.tiles for image in self.report.images)
        needed = sum(image.tiles / (1 + image.redundancy) for image in self.report.images)
        return tiles / needed - 1 if needed else None

    @cached_property
    def changes(self) -> list[tuple[str, list[str]]]:
        """What is new, changed and vanished in the archive, each with its paths; nothing where nothing is."""
        changes = self.report.changes
        if changes is None:
            return []
        kinds = (("new", changes.new), ("changed", changes.changed), ("vanished", changes.vanished))
        return [(name, paths) for name, paths in kinds if paths]

    @cached_property
    def changes_words(self) -> str | None:
        """The same in a few words; None where no earlier run could be asked."""
        changes = self.report.changes
        if changes is None:
            return None
        parts = [f"{number(len(paths))} {name}" for name, paths in self.changes]
        return ", ".join([*parts, f"{number(changes.unchanged)} as before"])

    @cached_property
    def headline(self) -> str | None:
        """The score in words; None without one."""
        s = self.scores
        return f"mIoU {score(s.miou)} over {of(s.classes_counted, 'class', 'classes')}" if s else None

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the masks can be used, and why not."""
        return Verdict(self._level, self._sentence, self._reasons + self._notes)

    @cached_property
    def undecided_gates(self) -> list[GateVerdict]:
        """Gates that did not pass: failed ones, then inconclusive ones."""
        return sorted((g for g in self.evaluation.gates if g.outcome != "pass"), key=lambda g: g.outcome != "fail")

    @cached_property
    def gates_words(self) -> str | None:
        """What became of the gates: `1 of 3 gates failed, 1 is inconclusive`; None without gates."""
        total = len(self.evaluation.gates)
        counts = Counter(gate.outcome for gate in self.evaluation.gates)
        if not total:
            return None
        if counts["pass"] == total:
            return "The gate passed" if total == 1 else f"All {number(total)} gates passed"
        kinds = ((counts["fail"], "failed", "failed"), (counts["inconclusive"], "is inconclusive", "are inconclusive"))
        parts = [f"{number(n)} {one if n == 1 else many}" for n, one, many in kinds if n]
        if total == 1:
            return f"The gate {parts[0].partition(' ')[2]}"
        first, *others = parts
        count, _, what = first.partition(" ")
        return ", ".join([f"{count} of {number(total)} gates {what}", *others])

    @cached_property
    def change_words(self) -> str | None:
        """How the headline score has changed: `+0.012 against run X (95 % interval −0.003 to +0.027)`; None where it cannot be
        told."""
        comparison = self.evaluation.comparison
        if comparison is None or (moved := comparison.overall["miou"]).delta is None:
            return None
        if moved.delta == moved.low == moved.high == 0:
            return f"as in run {comparison.baseline.run_id}"
        span = "no interval" if moved.low is None else f"95 % interval {interval(moved.low, moved.high, signed)}"
        return f"{signed(moved.delta)} against run {comparison.baseline.run_id} ({span})"

    @property
    def _usable(self) -> int:
        return self.states["complete"] + self.states["partial"]

    @property
    def _level(self) -> Level:
        if self.states["failed"] or not self.report.images or not (self._usable or self.states["empty"]):
            return "bad"
        if self.evaluation.outcome == "fail":
            return "bad"
        return "attention" if self._reasons else "good"

    @property
    def _sentence(self) -> str:
        total = len(self.report.images)
        if not total:
            return "No images were found, so there is nothing to report."
        complete = self.states["complete"]
        others: list[ImageState] = ["failed", "partial", "skipped", "empty"]
        rest = listed([f"{number(self.states[state])} {state}" for state in others if self.states[state]])
        if complete == total:
            what = "The image is complete" if total == 1 else f"All {number(total)} images are complete"
        elif complete == 0:
            what = "The image is not complete" if total == 1 else f"None of the {number(total)} images is complete"
        else:
            what = f"{number(complete)} of {number(total)} images {'is' if complete == 1 else 'are'} complete"
        if rest:
            what += f" ({rest})"
        gates = f"{self.gates_words}. " if self.gates_words else ""
        if self.headline:
            where = "" if self.scored_images == total else f" on the {of(self.scored_images, 'image')} that could be scored"
            found = self.evaluation.overall["miou"]
            sure = "" if found.low is None else f" (95 % interval {interval(found.low, found.high)})"
            change = f", {self.change_words}" if self.change_words else ""
            return f"{gates}{what}; {self.headline}{where}{sure}{change}."
        return f"{gates}{what}; nothing was scored."

    @cached_property
    def _notes(self) -> list[str]:
        """What must be known beside the headline, and speaks against nothing."""
        found, comparison = self.evaluation.overall["miou"], self.evaluation.comparison
        notes = []
        if found.value is not None and found.units < LEAST_UNITS:
            rests = of(found.units, self.evaluation.unit)
            notes.append(f"mIoU has no interval: it rests on {rests}, and at least {LEAST_UNITS} are needed")
        elif found.value is not None and found.units < ENOUGH_UNITS:
            rests = of(found.units, self.evaluation.unit)
            notes.append(f"The interval rests on {rests}: with fewer than {ENOUGH_UNITS} it may be too narrow")
        if comparison is not None and comparison.relabelled:
            notes.append(
                f"{of(len(comparison.relabelled), 'image')} left out of the comparison: the reference is not the one of run "
                f"{comparison.baseline.run_id}"
            )
        return notes + self._strange_inputs * (not self.inputs.matters)

    @property
    def _strange_inputs(self) -> list[str]:
        """In what the images are unlike the training's; nothing where they are not."""
        return [said.rstrip(".") for said in self.inputs.words] if self.inputs.strange or self.inputs.unlike else []

    @cached_property
    def _reasons(self) -> list[str]:
        reasons = [gate.why for gate in self.undecided_gates[:5]]
        if len(self.undecided_gates) > 5:
            reasons.append(f"{of(len(self.undecided_gates) - 5, 'more gate')} did not pass")
        by_state: dict[ImageState, str] = {"failed": "failed", "partial": "has holes", "skipped": "was skipped"}
        for image in self.troubled[:5]:
            if image.state in by_state:
                cause = first_line(image.error) if image.error else "no cause was recorded"
                reasons.append(f"{image_name(image)} {by_state[image.state]}: {cause}")
            if image.truth_error:
                reasons.append(f"{image_name(image)} could not be scored: {first_line(image.truth_error)}")
        if len(self.troubled) > 5:
            reasons.append(f"{of(len(self.troubled) - 5, 'more image')} with trouble: see Failures")
        cover, s = self.coverage, self.scores
        if self.report.images and self.states["empty"] == len(self.report.images):
            reasons.append("No image has a pixel with data: is the nodata value right?")
        if cover.failed:
            lost = f"{percent(cover.failed / cover.with_data)} of the pixels with data failed ({number(cover.failed)} px)"
            misses = f": the {number(s.failed_px)} labelled ones count as misses" if s and s.failed_px else ""
            reasons.append(lost + misses)
        unscored = [i for i in self.report.images if i.truth and i.state == "failed" and i.counts is None]
        if s is not None and unscored:
            labelled = of(len(unscored), "failed image that has labels", "failed images that have labels")
            reasons.append(f"The scores leave out {labelled}: they may be too high")
        if s is not None:
            if s.pixel_accuracy <= s.majority_accuracy:
                common = max(self.classes, key=lambda c: c.scores.reference_px if c.scores else 0)
                reasons.append(
                    f"Pixel accuracy {score(s.pixel_accuracy)} is no better than always answering "
                    f"{common.name} ({score(s.majority_accuracy)})"
                )
        elif any(image.truth and not image.truth_error and image.class_px for image in self.report.images):
            reasons.append("There are reference labels, but no pixel is both labelled and with data")
        return reasons + self.unknown_label_notes + self._strange_inputs * self.inputs.matters


def first_line(text: str, most: int = 200) -> str:
    """The first line of an error, cut where it is long."""
    line = text.strip().partition("\n")[0].rstrip(".")
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
