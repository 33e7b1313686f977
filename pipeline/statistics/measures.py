"""The scores of pipeline.confusion, for many sums at once: the same definitions, read off by the last axis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEASURES = (
    "miou",
    "mdice",
    "miou_without_background",
    "mean_image_miou",
    "frequency_weighted_iou",
    "pixel_accuracy",
    "matthews",
)
"""Of all classes together, in the order of `measure`'s columns."""
CLASS_MEASURES = ("iou", "dice", "precision", "recall")
"""Of one class; K columns each, after the others."""


def column(metric: str, code: int | None, classes: int) -> int:
    """Where `measure` puts a metric: of all classes (`code` None), or of the class `code`."""
    known = MEASURES if code is None else CLASS_MEASURES
    if metric not in known or not 0 <= (code or 0) < classes:
        of = "all classes" if code is None else f"class {code} of {classes}"
        raise ValueError(f"{metric!r} is no metric of {of}; there are {', '.join(known)}")
    return known.index(metric) if code is None else len(MEASURES) + known.index(metric) * classes + code


def measure(sums: Floats, classes: int, background: int | None = None) -> Floats:
    """(..., 7 + 4 K): every metric of `sums` (..., 3 K + 2), each row of them the sums of some units.

    Rules of the contract hold in every row: a class absent from reference and prediction is NaN and left out of the means,
    one that is predicted but never present is 0 and counts; no smoothing. NaN where a metric is not defined.
    """
    hits, reference, predicted = (sums[..., i * classes : (i + 1) * classes] for i in range(3))
    images, image_miou = sums[..., 3 * classes], sums[..., 3 * classes + 1]
    union = reference + predicted - hits
    evaluated = reference.sum(-1)
    present = union > 0
    foreground = present & (np.arange(classes) != background) if background is not None else np.zeros_like(present)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, dice = hits / union, 2 * hits / (reference + predicted)
        overall = [
            _mean(iou, present),
            _mean(dice, present),
            _mean(iou, foreground),
            image_miou / images,
            np.where(reference > 0, iou * reference, 0).sum(-1) / evaluated,
            hits.sum(-1) / evaluated,
            _matthews(hits, reference, predicted, evaluated),
        ]
        each = [iou, dice, hits / predicted, hits / reference]
    return np.concatenate([np.stack(overall, -1), *each], -1)


def _mean(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    return np.where(chosen, values, 0).sum(-1) / chosen.sum(-1)


def _matthews(hits: Floats, reference: Floats, predicted: Floats, evaluated: Floats) -> Floats:
    """R_K of Gorodkin (2004), doi:10.1016/j.compbiolchem.2004.09.006.

    As sums over classes of TP TN - FP FN above, and of r (N - r) below, which cancel far less in float64 than N² - sum r².
    Failed pixels are a column of the prediction that no class hits.
    """
    total = evaluated[..., None]
    failed = evaluated - predicted.sum(-1)
    above = (hits * (total - (reference + predicted - hits)) - (predicted - hits) * (reference - hits)).sum(-1)
    truth = (reference * (total - reference)).sum(-1)
    answer = (predicted * (total - predicted)).sum(-1) + failed * (evaluated - failed)
    found: Floats = above / (np.sqrt(truth) * np.sqrt(answer))
    return found
