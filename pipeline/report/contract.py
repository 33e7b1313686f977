"""`report.json`: all that a report shows, as plain values. Pages, tables and summaries are pure functions of it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.card import ClassInfo
from pipeline.confusion import Counts, Scores, scores
from pipeline.image import Frozen
from pipeline.measures import BoundaryScore, EdgeCounts, ErrorCells
from pipeline.statistics.gates import Outcome

ImageState = Literal["complete", "partial", "failed", "empty", "skipped"]


DRAWN = "drawn in "
"""How `looked_at` begins where somebody drew what is looked at."""


class ImageResult(Frozen):
    """What became of one image."""

    id: str
    uri: str
    group: str | None = None
    strata: dict[str, str] = Field(default_factory=dict)
    state: ImageState
    error: str | None = None
    """Why it failed, is partial or was skipped."""
    reused: bool = False
    """Finished by an earlier run with the same plan digest; nothing was computed."""
    digest: str | None = None
    """Plan digest."""
    mask: str | None = None
    """Path of the published mosaic, relative to the output folder."""
    height: int = 0
    width: int = 0
    """At working resolution."""
    pixel_area_m2: float | None = None
    """Area of a working pixel, on the ground or on the slide; None where its size is not known."""
    read_as: str | None = None
    """Of a slide: its format, the size of its pixels and where that was found, the level that was worked at."""
    looked_at: str | None = None
    """How that part of the image was found or drawn which alone is looked at; None: all of it is."""
    tiles: int = 0
    """Tiles predicted, those on block borders more than once."""
    blocks: int = 0
    failed_blocks: int = 0
    redundancy: float = 0.0
    seconds: float = 0.0
    """Worker time spent on its blocks."""
    retries: int = 0
    """Attempts at its blocks beyond the first of each."""
    deaths: int = 0
    """How many of them followed the death of a worker."""
    device_seconds: float | None = None
    """How long GPUs computed for it; None without any."""
    load_seconds: float = 0.0
    """Of the time of each worker, how long its model took to load: the longest."""
    class_px: list[int] = Field(default_factory=list)
    """Mask pixels by class code."""
    failed_px: int = 0
    no_data_px: int = 0
    truth: str | None = None
    """Path of the reference labels; None without."""
    truth_error: str | None = None
    """Why it could not be scored."""
    label_notes: list[str] = Field(default_factory=list)
    """What a reader should know of the labels: what they were taken to say, what had to be mended."""
    unknown_labels: dict[int, int] = Field(default_factory=dict)
    """Label values that are no class and not ignored, and their pixels."""
    counts: list[list[int]] | None = None
    """Confusion matrix, shape (K + 1, K + 2); see pipeline.confusion. None where it was not scored."""
    boundary: list[BoundaryScore] | None = None
    """How well borders between classes agree, by tolerance. None where it was not measured, as in the next four."""
    calibration: list[list[int]] | None = None
    """(wrong, right) pixels by confidence 0...255; see pipeline.statistics.calibration."""
    edge_errors: EdgeCounts | None = None
    """(wrong, right) pixels by distance to the border of the tile that saw them deepest; see pipeline.statistics.edges."""
    edge_disagreement: EdgeCounts | None = None
    """(differing, equal) pixels by distance to the border of the nearer of two tiles, in a sample of their overlaps."""
    band_px: list[list[int]] | None = None
    """What the model was shown: samples by band of the model, in the bins that ModelFacts has. None where it is not known, as in
    the next one."""
    confidence_px: list[int] | None = None
    """Pixels that have a class by the model's confidence, in equal steps from 0 to 1; labels are not needed."""
    block_errors: ErrorCells | None = None
    """Where in the image the errors are."""
    quicklook: dict[str, str] = Field(default_factory=dict)
    """Pictures (image, truth, mask, errors), as paths relative to the run folder."""

    @property
    def matrix(self) -> Counts | None:
        """The counts as an array."""
        return None if self.counts is None else np.array(self.counts, np.int64)


class BandFacts(Frozen):
    """How samples of one band are counted, and which ones the model was trained on."""

    name: str
    low: float
    width: float
    """Of bins in raw units, as in pipeline.statistics.samples: one below `low`, equal ones of `width`, one above."""
    training_px: list[int] | None = None
    """Samples of the training images in these bins; None where the model's card does not tell, as in the next one."""
    apart: float | None = None
    """How far the training image that is least like the others is from these: 0 alike, 1 nothing in common."""


class ModelFacts(Frozen):
    """Which model answered."""

    name: str
    digest: str
    path: str
    licence: str = "unknown"
    training: dict[str, Any] = Field(default_factory=dict)
    bands: list[BandFacts] = Field(default_factory=list)
    """In the model's order."""
    training_images: int = 0
    """Whose samples are known."""
    training_class_px: list[int] | None = None
    """Labelled pixels of the training by class code, where known."""


class Changes(Frozen):
    """How the archive differs from what earlier runs of the configuration saw."""

    new: list[str] = Field(default_factory=list)
    """Paths that no earlier run saw."""
    changed: list[str] = Field(default_factory=list)
    """Paths whose size or time of change is another."""
    vanished: list[str] = Field(default_factory=list)
    """Paths that are no longer there; told once."""
    unchanged: int = 0


class ScoreEstimate(Frozen):
    """A score and how sure it is."""

    value: float | None
    """Of all units together; None where it is not defined, such as the IoU of a class that is absent everywhere."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval; None below 5 units."""
    error: float | None = None
    """Standard error; None where there is no interval."""
    units: int
    """How many it rests on: where the class occurs, for a score of a class."""
    effective: float
    """To how many units of one size these amount: far fewer where a few hold most of the pixels."""
    warning: str | None = None
    """Why there is no interval, or why it should be trusted less (below 30 units)."""


class StratumSlice(Frozen):
    """The images that share a value of a manifest column."""

    value: str | None
    """None: images without a value."""
    images: int
    """Scored ones."""
    units: int
    evaluated_px: int
    """Labelled pixels with data."""
    overall: dict[str, ScoreEstimate]
    """By metric, as in Evaluation."""
    iou: list[ScoreEstimate]
    """By class code."""


class Stratum(Frozen):
    """Scores by the values of one manifest column."""

    name: str
    """The column."""
    slices: list[StratumSlice]
    """By value, in alphabetical order, images without one last."""
    worst: int | None
    """Index of the slice with the lowest mIoU, None where none has one. The lowest of many noisy scores is low partly by
    chance: show its units and interval."""


class ClassArea(Frozen):
    """Ground area of one class, in square metres."""

    mapped: float
    """What the masks show, errors included."""
    estimated: float | None
    """Corrected for what the labelled part of the masks confuses; None where nothing is known of it."""
    low: float | None
    high: float | None
    """Ends of the 95 % interval, from a bootstrap over units; None below 5 of them."""
    margin: float | None
    """1.96 standard errors of Olofsson et al. (2014), which takes pixels for independent: a lower bound of the uncertainty."""


class AreaEstimates(Frozen):
    """Areas of all images with georeference."""

    images: int
    """With georeference and a mask."""
    scored_images: int
    """Of these, scored: what the correction is drawn from."""
    units: int
    classes: list[ClassArea]
    """By class code."""
    notes: list[str]
    """What these numbers are not about."""


class ScoreDelta(Frozen):
    """One score of the baseline and of this run, over the same images."""

    before: float | None
    after: float | None
    delta: float | None
    """after - before; None where it is not defined in both."""
    low: float | None
    high: float | None
    """Ends of the delta's 95 % interval; None below 5 units."""
    p: float | None
    """Two-sided: how readily chance alone would give such a delta."""
    p_holm: float | None
    """The same after Holm's correction over classes; None for scores of all classes."""
    improved: float | None
    worsened: float | None
    """Shares of the units that got better and worse; the rest stayed as they were."""
    units: int
    warning: str | None


class ComparedRun(Frozen):
    """Which run it is that another is held against."""

    run_id: str
    name: str
    """Its config's name."""
    finished: str
    model: str
    model_digest: str
    config_digest: str


class RunComparison(Frozen):
    """This run against the baseline, paired over the images that both have scored with the same reference."""

    baseline: ComparedRun
    images: int
    """Compared."""
    units: int
    only_before: int
    """Images that only the baseline has scored: left out, as in the next two."""
    only_now: int
    failed_before: int
    """Images that failed in the baseline: that they are better now is not the model's doing."""
    relabelled: list[str]
    """Ids of images left out as their reference holds other amounts of the classes than it did."""
    overall: dict[str, ScoreDelta]
    """By metric, as in Evaluation."""
    classes: list[dict[str, ScoreDelta]]
    """By class code and metric."""


class GateVerdict(Frozen):
    """What became of a gate."""

    name: str
    """As the config has it: `miou`, `iou/building`."""
    metric: str
    code: int | None
    """Class code; None for scores of all classes."""
    min: float | None
    """Absolute floor."""
    max_drop: float | None
    """How far the score may fall against the baseline."""
    outcome: Outcome
    why: str
    """A sentence with the numbers."""


class Evaluation(Frozen):
    """What a run's counts say beyond their sums; computed once, when the run is reported."""

    unit: Literal["image", "group"]
    """What chance is reckoned over. group: images of a group are one unit, and those without one each their own."""
    units: int
    """n: units with something to evaluate."""
    images: int
    """Scored images, those included that failed: all of their labelled pixels are misses."""
    resamples: int
    seed: int
    overall: dict[str, ScoreEstimate]
    """By metric: miou, mdice, miou_without_background, mean_image_miou, frequency_weighted_iou, pixel_accuracy, matthews."""
    classes: list[dict[str, ScoreEstimate]]
    """By class code and metric: iou, dice, precision, recall."""
    strata: list[Stratum]
    """Every manifest column that divides the scored images, into at most 30 slices."""
    undivided: dict[str, int]
    """Columns left out for having more values, and how many."""
    areas: AreaEstimates | None
    """None where no image has both georeference and mask, or nothing was scored of these."""
    comparison: RunComparison | None
    """None where there is nothing to be compared with."""
    no_comparison: str | None
    """Why there is none; None with a comparison."""
    gates: list[GateVerdict]
    """In the order of the config."""
    accepted: bool
    """Whether later runs may take this one as their baseline: all gates passed; without gates, no image failed. The first run,
    and one with which no earlier one can be compared, is accepted unless a gate failed: else there would never be a baseline."""

    @property
    def outcome(self) -> Outcome | None:
        """The worst outcome of the gates; None without gates."""
        found = {gate.outcome for gate in self.gates}
        order: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
        return next((outcome for outcome in order if outcome in found), None)


class RunReport(Frozen):
    """One run, whole."""

    schema_version: Literal["1.0", "1.1"] = "1.1"
    """1.0 has no evaluation."""
    run_id: str
    name: str
    """The config's name."""
    title: str
    started: str
    """ISO 8601 with offset."""
    finished: str
    seconds: float
    """Wall time."""
    command: str
    """How to run it again."""
    software: dict[str, str]
    """Versions of gigamask and of what it stands on."""
    workers: str
    """Which workers did the work, in words."""
    processes: int | None = None
    """How many they were, each with a GPU at most; None where it was not noted."""
    config: dict[str, Any]
    config_digest: str
    model: ModelFacts
    classes: tuple[ClassInfo, ...]
    background: int | None = None
    """Code of the class `background`, where there is one."""
    images: list[ImageResult]
    changes: Changes | None = None
    """None where no earlier run could be asked."""
    part: str | None = None
    """`2/5`: the run was about the second of five parts of the archive; None: about all of it."""
    evaluation: Evaluation | None = None
    """Intervals, strata, areas, comparison and gates. None in reports of version 1.0: Findings then reckons what it can."""

    @property
    def has_failures(self) -> bool:
        """Whether an image failed, has holes, or could not be scored."""
        return any(image.state in ("failed", "partial") or image.truth_error for image in self.images)

    @property
    def exit_code(self) -> int:
        """What the run ends with: 1 an image failed, has holes or could not be scored; else 3 a gate failed; else 4 a gate is
        inconclusive; else 0."""
        if self.has_failures:
            return 1
        outcome = self.evaluation.outcome if self.evaluation else None
        return 3 if outcome == "fail" else 4 if outcome == "inconclusive" else 0

    @property
    def counts(self) -> Counts | None:
        """Sum over all scored images; None where none was."""
        matrices = [matrix for image in self.images if (matrix := image.matrix) is not None]
        return np.stack(matrices).sum(axis=0) if matrices else None

    @property
    def scores(self) -> Scores | None:
        """Scores of the data-set-wide matrix."""
        counts = self.counts
        return None if counts is None else scores(counts, self.background)

    def image_scores(self, image: ImageResult) -> Scores | None:
        """Scores of one image."""
        matrix = image.matrix
        return None if matrix is None else scores(matrix, self.background)

    @property
    def mean_image_miou(self) -> float:
        """Mean over scored images of each one's own mIoU; NaN where none was scored."""
        each = [s.miou for s in map(self.image_scores, self.images) if s is not None]
        return float(np.mean(each)) if each else float("nan")
