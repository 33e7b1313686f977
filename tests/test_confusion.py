"""Counts account for every pixel once, add up, and give the scores that torchmetrics and scikit-learn give."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import isnan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)
from torchmetrics.functional.classification import multiclass_jaccard_index

from pipeline.codes import label_type, mask_codes
from pipeline.confusion import Counts, count, kappa, no_counts, scores

FAILED, NO_DATA = 254, 255


def window(seed: int, classes: int, shape: tuple[int, int] = (60, 70)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A reference and a mask that agree on some two thirds of their pixels; all labelled, none failed."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, classes, shape, dtype=np.uint8)
    mask = np.where(rng.random(shape) < 0.6, reference, rng.integers(0, classes, shape, dtype=np.uint8))
    return reference, mask


def matrix(rows: list[list[int]]) -> Counts:
    return np.array(rows, np.int64)


@pytest.mark.parametrize(
    ("classes", "dtype", "failed", "no_data"),
    [(1, "uint8", 254, 255), (254, "uint8", 254, 255), (255, "uint16", 65534, 65535), (65534, "uint16", 65534, 65535)],
)
def test_reserved_codes_lie_above_every_class(classes: int, dtype: str, failed: int, no_data: int) -> None:
    codes = mask_codes(classes)
    assert (codes.dtype, codes.failed, codes.no_data) == (dtype, failed, no_data)
    assert classes - 1 < codes.failed < codes.no_data <= np.iinfo(codes.dtype).max


@pytest.mark.parametrize("classes", [1, 254, 255, 256, 65534])
def test_labels_have_room_for_not_labelled(classes: int) -> None:
    assert np.iinfo(label_type(classes)).max >= classes


def test_every_pixel_lands_in_its_cell() -> None:
    reference = np.array([[0, 0, 1, 1], [2, 2, 2, 2]], np.uint8)
    mask = np.array([[0, 1, FAILED, NO_DATA], [1, 0, FAILED, NO_DATA]], np.uint8)

    assert count(reference, mask, classes=2).tolist() == [
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1, 1],
    ]


def test_counts_are_those_of_scikit_learn() -> None:
    reference, mask = window(1, classes=5)
    counts = count(reference, mask, classes=5)

    assert counts[:5, :5].tolist() == confusion_matrix(reference.ravel(), mask.ravel()).tolist()
    assert counts.sum() == counts[:5, :5].sum() == mask.size


def test_more_classes_than_a_byte_holds() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 301, (50, 50), dtype=np.uint16)
    mask = rng.integers(0, 300, (50, 50), dtype=np.uint16)
    mask[0, :] = 65534
    mask[1, :] = 65535
    counts = count(reference, mask, classes=300)

    assert counts.sum() == 2500
    assert counts[:, 300].sum() == counts[:, 301].sum() == 50
    assert counts[300].sum() == np.count_nonzero(reference == 300) > 0


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30))
def test_the_sum_over_any_split_is_the_whole(classes: int, seed: int, row: int, col: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, classes + 1, (30, 30), dtype=np.uint8)
    mask = rng.choice(np.array([*range(classes), FAILED, NO_DATA], np.uint8), (30, 30))
    parts = no_counts(classes)
    for rows in (slice(0, row), slice(row, 30)):
        for cols in (slice(0, col), slice(col, 30)):
            parts += count(reference[rows, cols], mask[rows, cols], classes)

    whole = count(reference, mask, classes)
    assert (parts == whole).all()
    assert whole.sum() == 900


def test_one_pixel_more_than_float32_can_count() -> None:
    pixels = 2**24 + 1
    assert int(np.float32(pixels)) != pixels
    zeros = np.zeros((1, pixels), np.uint8)
    counts = count(zeros, zeros, classes=2)

    assert counts[0, 0] == counts.sum() == pixels
    assert scores(counts).evaluated_px == pixels  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("reference", "mask"),
    [([0], [2]), ([0], [253]), ([3], [0]), ([255], [0])],
    ids=["mask is no class", "mask below failed", "reference above not labelled", "reference is a mask's no data"],
)
def test_codes_that_mean_nothing_are_refused(reference: list[int], mask: list[int]) -> None:
    with pytest.raises(ValueError, match="holds"):
        count(np.array([reference], np.uint8), np.array([mask], np.uint8), classes=2)


def test_what_is_no_code_at_all_is_refused() -> None:
    whole, none = np.zeros((2, 2), np.uint8), np.zeros((0, 0), np.uint8)
    with pytest.raises(ValueError, match="mask of uint16: codes of 2 classes are uint8"):
        count(whole, np.array([[0, 300], [0, 0]], np.uint16), classes=2)
    with pytest.raises(ValueError, match="reference holds codes -1"):
        count(whole.astype(np.int16) - 1, whole, classes=2)
    with pytest.raises(ValueError, match="bool"):
        count(whole, whole.astype(bool), classes=2)
    with pytest.raises(ValueError, match="not the same window"):
        count(whole, np.zeros((4, 1), np.uint8), classes=2)
    assert count(none, none, classes=2).sum() == 0


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_those_of_scikit_learn_and_torchmetrics(classes: int) -> None:
    reference, mask = window(classes, classes)
    found = scores(count(reference, mask, classes), background=0)
    assert found is not None
    truth, answer = reference.ravel(), mask.ravel()

    assert [c.iou for c in found.classes] == pytest.approx(jaccard_score(truth, answer, average=None))
    assert [c.dice for c in found.classes] == pytest.approx(f1_score(truth, answer, average=None))
    assert [c.precision for c in found.classes] == pytest.approx(precision_score(truth, answer, average=None))
    assert [c.recall for c in found.classes] == pytest.approx(recall_score(truth, answer, average=None))
    assert found.miou == pytest.approx(jaccard_score(truth, answer, average="macro"))
    assert found.mdice == pytest.approx(f1_score(truth, answer, average="macro"))
    assert found.frequency_weighted_iou == pytest.approx(jaccard_score(truth, answer, average="weighted"))
    assert found.miou_without_background == pytest.approx(jaccard_score(truth, answer, average=None)[1:].mean())
    assert found.matthews == pytest.approx(matthews_corrcoef(truth, answer), abs=1e-12)
    assert found.pixel_accuracy == pytest.approx((truth == answer).mean())
    assert kappa(count(reference, mask, classes)) == pytest.approx(cohen_kappa_score(truth, answer))
    torch_iou = multiclass_jaccard_index(torch.from_numpy(answer), torch.from_numpy(truth), classes, average="none")
    assert [c.iou for c in found.classes] == pytest.approx(torch_iou.tolist(), abs=1e-6)


def test_scores_that_can_be_checked_by_head() -> None:
    found = scores(matrix([[6, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]), background=0)
    assert found is not None

    assert [c.iou for c in found.classes] == [6 / 9, 1 / 4]
    assert [c.dice for c in found.classes] == [12 / 15, 2 / 5]
    assert found.miou == (6 / 9 + 1 / 4) / 2
    assert found.miou_without_background == 1 / 4
    assert (found.pixel_accuracy, found.majority_accuracy) == (0.7, 0.8)
    assert (found.quantity_disagreement, found.allocation_disagreement) == (0.1, 0.2)
    assert isnan(scores(matrix([[6, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])).miou_without_background)  # type: ignore[union-attr]


def test_an_absent_class_is_left_out_and_a_class_only_predicted_is_zero() -> None:
    absent = scores(matrix([[8, 0, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    predicted = scores(matrix([[8, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    assert absent is not None
    assert predicted is not None

    assert isnan(absent.classes[2].iou)
    assert (absent.classes_counted, absent.miou) == (2, 1.0)
    assert predicted.classes[2].iou == 0
    assert isnan(predicted.classes[2].recall)
    assert (predicted.classes_counted, predicted.miou) == (3, (1 + 0.5 + 0) / 3)


def test_a_failed_pixel_is_a_miss_of_its_class() -> None:
    reference = np.array([[0, 0, 1, 1]], np.uint8)
    found = scores(count(reference, np.array([[0, 0, 1, FAILED]], np.uint8), classes=2))
    assert found is not None

    assert (found.classes[1].iou, found.classes[1].recall, found.classes[1].precision) == (0.5, 0.5, 1.0)
    assert (found.evaluated_px, found.failed_px, found.pixel_accuracy) == (4, 1, 0.75)
    assert (found.quantity_disagreement, found.allocation_disagreement) == (0.25, 0)
    assert found.matthews == pytest.approx(matthews_corrcoef([0, 0, 1, 1], [0, 0, 1, 2]))
    assert kappa(count(reference, np.array([[0, 0, 1, FAILED]], np.uint8), classes=2)) == pytest.approx(
        cohen_kappa_score([0, 0, 1, 1], [0, 0, 1, 2])
    )


def test_a_failure_never_raises_a_score() -> None:
    reference, mask = window(3, classes=3)
    before = scores(count(reference, mask, classes=3))
    mask[reference != mask] = FAILED
    after = scores(count(reference, mask, classes=3))
    assert before is not None
    assert after is not None

    assert after.failed_px > 0
    assert after.pixel_accuracy == before.pixel_accuracy
    assert [c.recall for c in after.classes] == [c.recall for c in before.classes]


def test_labels_without_data_are_left_out_and_told() -> None:
    reference = np.array([[0, 1, 1, 1, 2]], np.uint8)
    found = scores(count(reference, np.array([[0, 1, NO_DATA, NO_DATA, 1]], np.uint8), classes=2))
    assert found is not None

    assert (found.miou, found.evaluated_px, found.labelled_no_data_px, found.unlabelled_px) == (1.0, 2, 2, 1)


def test_false_positives_on_an_image_without_the_class_count() -> None:
    with_class = count(np.array([[1, 1, 0, 0]], np.uint8), np.array([[1, 1, 0, 0]], np.uint8), classes=2)
    without = count(np.array([[0, 0, 0, 0]], np.uint8), np.array([[1, 1, 0, 0]], np.uint8), classes=2)
    alone, both = scores(with_class), scores(with_class + without)
    assert alone is not None
    assert both is not None

    assert alone.classes[1].iou == 1
    assert both.classes[1].iou == 0.5


def test_nothing_to_evaluate_has_no_scores() -> None:
    assert scores(no_counts(3)) is None
    assert scores(matrix([[0, 0, 0, 9], [0, 0, 0, 9], [5, 5, 5, 5]])) is None


def test_what_is_no_confusion_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        scores(np.zeros((3, 3), np.int64))
    with pytest.raises(ValueError, match="float64"):
        scores(np.zeros((3, 4)))  # type: ignore[arg-type]


def test_matthews_of_ten_thousand_million_pixels_is_exact() -> None:
    rows = [[4_000_000_001, 123_456_789, 7], [98_765_432, 5_000_000_003, 11], [13, 17, 777_777_777]]
    labelled = [[*row, 0, 0] for row in rows]
    found = scores(matrix([*labelled, [0, 0, 0, 0, 0]]))
    assert found is not None
    assert found.evaluated_px == sum(map(sum, rows)) > 10**10 - 10**8
    assert found.evaluated_px**4 > 2**63

    with localcontext() as context:
        context.prec = 60
        total, hits = sum(map(sum, rows)), sum(rows[i][i] for i in range(3))
        truth, answer = [sum(row) for row in rows], [sum(column) for column in zip(*rows, strict=True)]
        above = Decimal(hits * total - sum(t * a for t, a in zip(truth, answer, strict=True)))
        below = (Decimal(total**2 - sum(t * t for t in truth)) * Decimal(total**2 - sum(a * a for a in answer))).sqrt()
        assert found.matthews == float(above / below)


def test_matthews_of_a_constant_answer_is_not_a_number() -> None:
    assert isnan(scores(matrix([[5, 0, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])).matthews)  # type: ignore[union-attr]
    assert isnan(kappa(matrix([[5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])))


@given(st.lists(st.integers(0, 10**12), min_size=20, max_size=20))
def test_scores_stay_in_range_and_disagreements_add_up(cells: list[int]) -> None:
    found = scores(np.array(cells, np.int64).reshape(4, 5), background=1)
    if found is None:
        return

    assert 0 <= found.miou <= found.mdice <= 1
    assert found.quantity_disagreement >= 0
    assert found.allocation_disagreement >= 0
    wrong = found.quantity_disagreement + found.allocation_disagreement
    assert wrong == pytest.approx(1 - found.pixel_accuracy, abs=1e-12)
    for c in found.classes:
        assert isnan(c.iou) or c.dice == pytest.approx(2 * c.iou / (1 + c.iou))
