"""`report.json`: all that a report shows, as plain values. Pages, tables and summaries are pure functions of it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.card import ClassInfo
from pipeline.confusion import Counts, Scores, scores
from pipeline.image import Frozen

ImageState = Literal["complete", "partial", "failed", "empty", "skipped"]


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
    """Ground area of a working pixel; None without georeference."""
    tiles: int = 0
    """Tiles predicted, those on block borders more than once."""
    blocks: int = 0
    failed_blocks: int = 0
    redundancy: float = 0.0
    seconds: float = 0.0
    """Worker time spent on its blocks."""
    class_px: list[int] = Field(default_factory=list)
    """Mask pixels by class code."""
    failed_px: int = 0
    no_data_px: int = 0
    truth: str | None = None
    """Path of the reference labels; None without."""
    truth_error: str | None = None
    """Why it could not be scored."""
    unknown_labels: dict[int, int] = Field(default_factory=dict)
    """Label values that are no class and not ignored, and their pixels."""
    counts: list[list[int]] | None = None
    """Confusion matrix, shape (K + 1, K + 2); see pipeline.confusion. None where it was not scored."""
    quicklook: dict[str, str] = Field(default_factory=dict)
    """Pictures (image, truth, mask, errors), as paths relative to the run folder."""

    @property
    def matrix(self) -> Counts | None:
        """The counts as an array."""
        return None if self.counts is None else np.array(self.counts, np.int64)


class ModelFacts(Frozen):
    """Which model answered."""

    name: str
    digest: str
    path: str
    licence: str = "unknown"
    training: dict[str, Any] = Field(default_factory=dict)


class RunReport(Frozen):
    """One run, whole."""

    schema_version: Literal["1.0"] = "1.0"
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
    config: dict[str, Any]
    config_digest: str
    model: ModelFacts
    classes: tuple[ClassInfo, ...]
    background: int | None = None
    """Code of the class `background`, where there is one."""
    images: list[ImageResult]

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
