"""The same counts by the rules of other libraries: how far "mIoU" can differ before a single pixel does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.units import Floats, margins


@dataclass(frozen=True)
class Convention:
    """One rule, and what it makes of the counts."""

    name: str
    rule: str
    """A sentence."""
    miou: float
    mdice: float


@dataclass(frozen=True)
class _Parts:
    """Overlap and sizes, of all pixels (K,) or by image (n, K), and which of them mean anything."""

    hits: Floats
    reference: Floats
    predicted: Floats

    @property
    def union(self) -> Floats:
        return self.reference + self.predicted - self.hits

    @property
    def iou(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.hits / self.union

    @property
    def dice(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2 * self.hits / (self.reference + self.predicted)

    def smooth(self, term: float) -> tuple[Floats, Floats]:
        """(IoU, Dice) with a term added above and below."""
        both = self.reference + self.predicted
        return (self.hits + term) / (self.union + term), (2 * self.hits + term) / (both + term)


def conventions(matrices: NDArray[np.int64], background: int | None = None) -> tuple[Convention, ...]:
    """`matrices` (n, K + 1, K + 2), one an image -> what each rule gives; the first is ours.

    Failed pixels are misses under every rule but the one that says so. Images with nothing to evaluate are left out.
    """
    k = matrices.shape[1] - 1
    matrices = matrices[matrices[:, :k, : k + 1].any(axis=(1, 2))]
    if not len(matrices):
        return ()
    without_failed = matrices.copy()
    without_failed[:, :k, k] = 0
    each, whole, answered = _parts(matrices, k), _parts(matrices.sum(0), k), _parts(without_failed.sum(0), k)
    foreground = np.arange(k) != (-1 if background is None else background)

    def both(name: str, rule: str, mean: Callable[[Floats, _Parts], float], parts: _Parts) -> Convention:
        return Convention(name, rule, float(mean(parts.iou, parts)), float(mean(parts.dice, parts)))

    def smoothed(name: str, rule: str, term: float) -> Convention:
        return Convention(name, rule, *(float(np.mean(values)) for values in each.smooth(term)))

    present = "mean over classes in the reference or the prediction of the whole data set; only predicted counts as 0"
    found = [
        both("gigamask", f"{present}.", lambda v, _: np.nanmean(v), whole),
        both(
            "absent class as 0",
            "A class that is nowhere scores 0 and counts (scikit-learn with all labels and zero_division=0).",
            lambda v, _: np.nan_to_num(v).mean(),
            whole,
        ),
        both(
            "absent class as 1",
            "A class that is nowhere scores 1 and counts (segmentation_models_pytorch, macro, zero_division=1).",
            lambda v, _: np.nan_to_num(v, nan=1.0).mean(),
            whole,
        ),
        both(
            "classes of the reference",
            "A class that is only predicted is left out: its false alarms cost nothing but in other classes.",
            lambda v, parts: v[parts.reference > 0].mean(),
            whole,
        ),
    ]
    if background is not None and np.isfinite(whole.iou[foreground]).any():
        rule = "The class background is left out of the mean (include_background=False in MONAI and torchmetrics)."
        found.append(both("without background", rule, lambda v, _: np.nanmean(v[foreground]), whole))
    hits, reference, predicted = whole.hits.sum(), whole.reference.sum(), whole.predicted.sum()
    found += [
        Convention(
            "micro",
            "Pixels of all classes in one pot: where nothing failed its Dice is pixel accuracy (average='micro').",
            float(hits / (reference + predicted - hits)),
            float(2 * hits / (reference + predicted)),
        ),
        both(
            "weighted by frequency",
            "Each class weighs as many pixels as the reference has of it: large classes decide (average='weighted').",
            lambda v, parts: (np.nan_to_num(v) * parts.reference).sum() / parts.reference.sum(),
            whole,
        ),
        both(
            "mean of images",
            "mIoU of each image over the classes it has or is given, then the mean over images.",
            lambda v, _: np.nanmean(v, axis=1).mean(),
            each,
        ),
        both(
            "mean of images, empty = 1",
            "A class that an image neither has nor is given scores 1 there (segmentation_models_pytorch, macro-imagewise).",
            lambda v, _: np.nan_to_num(v, nan=1.0).mean(),
            each,
        ),
        both(
            "mean of images, empty = 0",
            "A class that an image neither has nor is given scores 0 there.",
            lambda v, _: np.nan_to_num(v).mean(),
            each,
        ),
        smoothed("smoothed by 1e-5", "Image by image, 1e-5 px added above and below: empty and rightly empty is 1.", 1e-5),
        smoothed("smoothed by 1", "Image by image, 1 px added above and below: small classes are lifted.", 1.0),
        both(
            "failed left out", f"{present}; pixels that failed are not counted as misses.", lambda v, _: np.nanmean(v), answered
        ),
    ]
    return tuple(found)


def _parts(counts: NDArray[np.int64], classes: int) -> _Parts:
    sums = margins(counts)
    return _Parts(*(sums[..., i * classes : (i + 1) * classes] for i in range(3)))
