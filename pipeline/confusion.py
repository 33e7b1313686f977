"""Integer counts of reference against prediction that add up, and every score that derives from their sums."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import mask_codes

Counts = NDArray[np.int64]
"""`counts[reference, prediction]`, shape (K + 1, K + 2): rows 0...K-1 reference classes, row K not labelled; columns
0...K-1 predicted classes, column K failed, column K + 1 no data. The sum over all is the number of pixels."""


def no_counts(classes: int) -> Counts:
    """The counts of no pixels: what sums start from."""
    return np.zeros((classes + 1, classes + 2), np.int64)


def count(reference: NDArray[np.unsignedinteger], mask: NDArray[np.unsignedinteger], classes: int) -> Counts:
    """Counts of one window: every pixel once.

    `reference` (h, w): 0...classes - 1, and `classes` where not labelled. `mask` (h, w): codes of `mask_codes(classes)`.

        counts = count(reference, mask, classes)
        assert counts.sum() == mask.size
    """
    if reference.shape != mask.shape:
        raise ValueError(f"reference {reference.shape} and mask {mask.shape} are not the same window")
    from pipeline import kernels

    codes = mask_codes(classes)
    if mask.dtype != codes.dtype or reference.dtype.kind not in "iu":
        raise ValueError(f"reference of {reference.dtype} and mask of {mask.dtype}: codes of {classes} classes are {codes.dtype}")
    if reference.size and (reference.min() < 0 or reference.max() > classes):
        raise ValueError(f"reference holds codes {reference.min()}...{reference.max()}; 0...{classes} are known")
    place = np.full(codes.no_data + 1, -1, np.int32)
    place[:classes] = np.arange(classes)
    place[codes.failed], place[codes.no_data] = classes, classes + 1
    cells = np.zeros((classes + 1) * (classes + 2), np.int64)
    stray = kernels.count(reference.reshape(-1), mask.reshape(-1), place, classes + 2, cells)
    if stray >= 0:
        raise ValueError(f"mask holds {stray}: codes of {classes} classes are 0...{classes - 1}, {codes.failed}, {codes.no_data}")
    return cells.reshape(classes + 1, classes + 2)


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class over all pixels that were counted; NaN where the class is absent everywhere."""

    iou: float
    """TP / (TP + FP + FN)."""
    dice: float
    """2 TP / (2 TP + FP + FN), which is also F1."""
    precision: float
    """TP / (TP + FP); NaN where the class was never predicted."""
    recall: float
    """TP / (TP + FN); NaN where the class is not in the reference."""
    reference_px: int
    """Labelled pixels of the class, those without data left out."""
    predicted_px: int
    """Labelled pixels given to the class."""


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; nothing here can be computed from parts of it, so sum first."""

    classes: tuple[ClassScores, ...]
    """By class code."""
    miou: float
    """Mean IoU over classes present in reference or prediction, background included: the headline."""
    mdice: float
    """Mean Dice over the same classes."""
    classes_counted: int
    """How many classes those are."""
    miou_without_background: float
    """The same mean without the class `background`; NaN where there is no such class."""
    frequency_weighted_iou: float
    """IoU weighted by each class's labelled pixels."""
    pixel_accuracy: float
    """Right pixels / labelled pixels."""
    majority_accuracy: float
    """Pixel accuracy of always answering the commonest class of the reference."""
    matthews: float
    """Multi-class Matthews correlation (Gorodkin 2004)."""
    quantity_disagreement: float
    """Share of pixels wrong because class amounts differ (Pontius & Millones 2011)."""
    allocation_disagreement: float
    """Share of pixels wrong because of where the classes lie."""
    evaluated_px: int
    """Labelled pixels with data: what every score here is about."""
    failed_px: int
    """Of these, pixels that failed: they count as misses."""
    labelled_no_data_px: int
    """Labelled pixels without data, left out."""
    unlabelled_px: int
    """Pixels with data and without label."""


def scores(counts: Counts, background: int | None = None) -> Scores | None:
    """All scores of a confusion matrix; None where no pixel is both labelled and with data.

    Definitions: rows are the reference; TP = C[c, c]; FN = row sum (failed included) - TP; FP = column sum over labelled
    rows - TP. A class absent from reference and prediction has NaN and is left out of means; predicted but never present
    is 0 and counts. `background` is that class's code, for the mean without it.
    """
    classes = counts.shape[0] - 1
    if counts.shape != (classes + 1, classes + 2) or counts.dtype.kind not in "iu":
        raise ValueError(f"counts of shape {counts.shape} and type {counts.dtype} are no integer matrix (K + 1, K + 2)")
    labelled = counts[:classes, : classes + 1].astype(np.int64)
    evaluated = int(labelled.sum())
    if evaluated == 0:
        return None
    hits = labelled.diagonal()
    reference, predicted = labelled.sum(1), labelled.sum(0)[:classes]
    union = reference + predicted - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / union.astype(np.float64)
        dice = 2.0 * hits / (reference + predicted)
        precision = hits / predicted.astype(np.float64)
        recall = hits / reference.astype(np.float64)
    present = union > 0
    foreground = present.copy()
    if background is not None:
        foreground[background] = False
    has_background = background is not None and bool(foreground.any())
    wrong_px = evaluated - int(hits.sum())
    columns = np.append(predicted, labelled[:, classes].sum())
    quantity_px = int(np.abs(columns - np.append(reference, 0)).sum()) // 2  # even: both sides sum to the same
    return Scores(
        classes=tuple(
            ClassScores(
                iou=float(iou[c]),
                dice=float(dice[c]),
                precision=float(precision[c]),
                recall=float(recall[c]),
                reference_px=int(reference[c]),
                predicted_px=int(predicted[c]),
            )
            for c in range(classes)
        ),
        miou=float(iou[present].mean()),
        mdice=float(dice[present].mean()),
        classes_counted=int(present.sum()),
        miou_without_background=float(iou[foreground].mean()) if has_background else float("nan"),
        frequency_weighted_iou=float((iou[reference > 0] * reference[reference > 0]).sum() / evaluated),
        pixel_accuracy=float(hits.sum()) / evaluated,
        majority_accuracy=float(reference.max()) / evaluated,
        matthews=_matthews(labelled),
        quantity_disagreement=quantity_px / evaluated,
        allocation_disagreement=(wrong_px - quantity_px) / evaluated,
        evaluated_px=evaluated,
        failed_px=int(labelled[:, classes].sum()),
        labelled_no_data_px=int(counts[:classes, classes + 1].sum()),
        unlabelled_px=int(counts[classes, : classes + 1].sum()),
    )


def _matthews(labelled: Counts) -> float:
    """R_K of Gorodkin (2004), doi:10.1016/j.compbiolchem.2004.09.006, in exact integers: products of pixel counts pass 2**63.

    `labelled` (K, K + 1), the last column failed. NaN where reference or prediction is constant.
    """
    rows = [[int(v) for v in row] for row in labelled]
    total = sum(map(sum, rows))
    hits = sum(row[i] for i, row in enumerate(rows))
    truth = [sum(row) for row in rows]
    answer = [sum(column) for column in zip(*rows, strict=True)]
    above = hits * total - sum(t * a for t, a in zip(truth, answer, strict=False))
    below = (total * total - sum(t * t for t in truth)) * (total * total - sum(a * a for a in answer))
    if below == 0:
        return float("nan")
    shift = 1 << 128  # keeps the integer square root exact to the last float64 digit
    return float(above * shift / isqrt(below * shift * shift))


def kappa(counts: Counts) -> float:
    """Cohen's kappa of the labelled pixels, on request only (Pontius & Millones 2011 argue against it)."""
    classes = counts.shape[0] - 1
    labelled = counts[:classes, : classes + 1]
    total = int(labelled.sum())
    hits = int(labelled.diagonal().sum())
    chance = sum(int(r) * int(p) for r, p in zip(labelled.sum(1), labelled.sum(0), strict=False))
    return float((hits * total - chance) / (total * total - chance)) if total * total != chance else float("nan")
