"""Intervals hold the truth as often as they say, comparisons pair, gates give reasons, and areas are those of the paper."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats
from segmentation_models_pytorch.metrics import get_stats, iou_score
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional.classification import multiclass_jaccard_index

from pipeline.confusion import Counts, Scores, count, no_counts, scores
from pipeline.statistics.area import area_bounds, areas_of, estimate_areas
from pipeline.statistics.bootstrap import Estimates, Resampled, draws, effective_units, estimates, linearised_iou_error
from pipeline.statistics.calibration import calibration, histogram
from pipeline.statistics.chance import student_below, student_quantile
from pipeline.statistics.conventions import conventions
from pipeline.statistics.edges import advise_overlap, edge_curve
from pipeline.statistics.gates import Gate, judge
from pipeline.statistics.measures import CLASS_MEASURES, MEASURES, column, measure
from pipeline.statistics.paired import Comparison, compare, holm
from pipeline.statistics.strata import strata, worst
from pipeline.statistics.units import Units, margins, units


def population(rng: np.random.Generator, n: int, classes: int = 4, skill: float = 6.0) -> NDArray[np.int64]:
    """(n, K + 1, K + 2): images of very different size, mix of classes and difficulty."""
    size = np.exp(rng.normal(12, 1, n))
    share = rng.dirichlet(np.r_[1.6, np.full(classes - 1, 0.4)], n)
    right = rng.beta(skill, 2, (n, classes))
    wrong = rng.dirichlet(np.full(classes, 0.7), (n, classes)) * (1 - right)[:, :, None]
    wrong[:, range(classes), range(classes)] += right
    counts = np.zeros((n, classes + 1, classes + 2), np.int64)
    counts[:, :classes, :classes] = np.rint(share[:, :, None] * wrong * size[:, None, None])
    return counts


def named(counts: NDArray[np.int64]) -> Units:
    return units({f"{i:05}": matrix for i, matrix in enumerate(counts)})


def matrix(rows: list[list[int]]) -> Counts:
    """A matrix of labelled pixels by predicted class, nothing failed, nothing without data."""
    k = len(rows)
    found = no_counts(k)
    found[:k, :k] = rows
    return found


def as_row(found: Scores, image_miou: float) -> list[float]:
    """What `measure` should say, in its order, by pipeline.confusion."""
    overall = [image_miou if name == "mean_image_miou" else getattr(found, name) for name in MEASURES]
    return overall + [getattr(c, name) for name in CLASS_MEASURES for c in found.classes]


# units


def test_images_of_a_group_are_one_unit_and_the_others_their_own() -> None:
    one, two, three = matrix([[2**62, 0], [0, 1]]), matrix([[3, 0], [1, 1]]), matrix([[1, 1], [0, 0]])
    found = units({"c": three, "b": two, "a": one}, {"a": "P1", "b": "P1"})

    assert found.names == ("P1", "c")
    assert (found.counts[0] == one + two).all()
    assert found.counts[0, 0, 0] == 2**62 + 3
    assert found.images.tolist() == [2, 1]
    assert found.image_miou.tolist() == [1 + (3 / 4 + 1 / 2) / 2, 0.25]


def test_units_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="both a group and an image"):
        units({"a": matrix([[1]]), "b": matrix([[1]])}, {"b": "a"})
    with pytest.raises(ValueError, match="not integers"):
        units({"a": matrix([[1]]).astype(float)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="nothing to make units of"):
        units({})


def test_images_with_nothing_to_evaluate_are_no_evidence() -> None:
    empty = no_counts(2)
    empty[2] = 5
    empty[0, 3] = 7
    found = units({"a": matrix([[3, 1], [1, 3]]), "b": empty})

    assert found.names == ("a", "b")
    assert found.evaluated.names == ("a",)
    assert estimates(found).units == 1
    assert estimates(units({"b": empty})).of("miou").low is None


# measures


@given(arrays(np.int64, (4, 5), elements=st.integers(0, 10**12)), st.sampled_from([None, 0, 2]))
def test_measures_are_the_scores(counts: Counts, background: int | None) -> None:
    found = scores(counts, background)
    row = measure(units({"a": counts}).sums[0], 3, background)
    if found is None:
        assert np.isnan(row).all()
    else:
        np.testing.assert_allclose(row, as_row(found, found.miou), rtol=1e-12, atol=1e-12)


@given(arrays(np.int64, (6, 3, 4), elements=st.integers(0, 4) | st.just(0)), st.integers(0, 2**32 - 1))
def test_every_resample_has_the_scores_of_its_sum(counts: NDArray[np.int64], seed: int) -> None:
    found = named(counts)
    weights = next(draws(6, 8, seed))
    rows = measure(weights @ found.sums, 2, background=0)
    for w, row in zip(weights.astype(np.int64), rows, strict=True):
        each = np.repeat(np.arange(6), w)
        own = [s.miou for i in each if (s := scores(counts[i])) is not None]
        whole = scores(np.tensordot(w, counts, 1), background=0)
        assert w.sum() == 6
        if whole is None:
            assert np.isnan(row).all()
        else:
            np.testing.assert_allclose(row, as_row(whole, float(np.mean(own))), rtol=1e-12, atol=1e-12)


def test_matthews_of_ten_thousand_million_pixels_hardly_loses_a_digit() -> None:
    rare = matrix([[10**10, 3], [1, 2]])
    exact = scores(rare)
    assert exact is not None
    assert measure(units({"a": rare}).sums[0], 2)[MEASURES.index("matthews")] == pytest.approx(exact.matthews, rel=1e-14)


@given(arrays(np.int64, (5, 4, 5), elements=st.integers(0, 2**24 + 1)))
def test_sums_of_parts_are_those_of_the_whole(counts: NDArray[np.int64]) -> None:
    assert (margins(counts).sum(0) == margins(counts.sum(0))).all()


def test_metrics_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="'iou' is no metric of all classes"):
        column("iou", None, 3)
    with pytest.raises(ValueError, match="class 3 of 3"):
        column("iou", 3, 3)


# chance


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 29, 30, 1999])
def test_students_t_is_that_of_scipy(freedom: int) -> None:
    for share in (0.001, 0.025, 0.4, 0.975):
        assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-7)
    for t in (-7.0, -2.0, 0.0, 1.5):
        assert student_below(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


# the bootstrap


def test_the_same_seed_gives_the_same_intervals_in_any_order_of_images() -> None:
    counts = population(np.random.default_rng(1), 12)
    images = {f"{i:05}": m for i, m in enumerate(counts)}
    backwards = dict(reversed(images.items()))

    assert estimates(units(images), 0, seed=3) == estimates(units(backwards), 0, seed=3)
    assert estimates(units(images), 0, seed=3) != estimates(units(images), 0, seed=4)


def test_draws_are_as_many_as_units_and_do_not_depend_on_how_they_are_portioned(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draws(7, 50, seed=2)))
    monkeypatch.setattr("pipeline.statistics.bootstrap._CHUNK", 7 * 11)
    parts = list(draws(7, 50, seed=2))

    assert [len(p) for p in parts] == [11, 11, 11, 11, 6]
    assert (np.concatenate(parts) == whole).all()
    assert (whole.sum(1) == 7).all()
    assert whole.mean() == 1


def test_intervals_hold_the_score_and_the_report_says_of_how_many() -> None:
    counts = population(np.random.default_rng(2), 40)
    found = estimates(named(counts), background=0)
    whole = scores(counts.sum(0), background=0)
    assert whole is not None

    assert found.units == 40
    for name in MEASURES:
        e = found.of(name)
        assert e.low is not None
        assert e.high is not None
        assert -1 <= e.low < e.value < e.high <= 1
        assert e.warning is None
    assert found.of("miou").value == pytest.approx(whole.miou)
    assert found.of("recall", 2).value == pytest.approx(whole.classes[2].recall)


def test_few_units_get_a_warning_and_fewer_than_five_no_interval() -> None:
    counts = population(np.random.default_rng(3), 30)
    four, five, some, many = (estimates(named(counts[:n])).of("miou") for n in (4, 5, 29, 30))

    assert (four.low, four.high, four.error) == (None, None, None)
    assert four.warning == "no interval: it rests on 4 units, at least 5 are needed"
    assert five.low is not None
    assert "rests on 5 units" in (five.warning or "")
    assert "rests on 29 units" in (some.warning or "")
    assert many.warning is None


def test_a_class_rests_on_the_units_that_have_it() -> None:
    counts = np.stack([matrix([[90 + i, i], [0, 0]]) for i in range(36)])
    counts[:4, 1, 1] = 50
    counts[0, 1, 0] = 20
    found = estimates(named(counts))

    assert found.of("iou", 0).units == 36
    assert (found.of("recall", 1).units, found.of("recall", 1).low) == (4, None)
    assert found.of("recall", 1).value == pytest.approx(200 / 220)
    assert "rests on 4 units" in (found.of("recall", 1).warning or "")
    assert found.of("iou", 1).units == 36  # predicted in every image but one, and found in that


def test_resamples_without_the_class_are_left_out_of_its_interval_only() -> None:
    counts = np.stack([matrix([[80, 5], [0, 0]])] * 30)
    counts[:5] = [matrix([[80, 5], [i, 10]]) for i in range(5)]
    found = named(counts)
    drawn = Resampled.of(found, None, 2000, seed=0).drawn
    recall, miou = drawn[:, column("recall", 1, 2)], drawn[:, column("miou", None, 2)]

    assert 0 < np.isnan(recall).mean() < 0.01
    assert np.isfinite(miou).all()
    one = estimates(found).of("recall", 1)
    assert one.low is not None
    assert (one.units, one.value) == (5, 50 / 60)
    assert 0.5 < one.low < 50 / 60


def test_units_of_very_different_size_amount_to_fewer() -> None:
    alike = estimates(named(np.stack([matrix([[80, 20], [0, 0]])] * 30))).of("miou")
    one_large = estimates(named(np.stack([matrix([[80, 20], [0, 0]])] * 29 + [matrix([[7000, 1000], [0, 0]])]))).of("miou")

    assert (alike.units, alike.effective) == (30, 30)
    assert (one_large.units, one_large.effective) == (30, pytest.approx(10900**2 / (29 * 100**2 + 8000**2)))
    assert effective_units(np.array([[1.0, 0], [1, 4], [1, 0]])).tolist() == [3, 1]


def test_an_absent_class_has_no_score_and_no_interval() -> None:
    found = estimates(named(np.stack([matrix([[9, 1, 0], [1, 9, 0], [0, 0, 0]])] * 8)))
    absent = found.of("iou", 2)

    assert isnan(absent.value)
    assert (absent.low, absent.units) == (None, 0)
    assert "absent" in (absent.warning or "")
    assert found.of("miou").value == pytest.approx(9 / 11)


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="500 resamples are too few"):
        estimates(named(population(np.random.default_rng(0), 6)), resamples=500)


def test_the_bootstraps_error_is_that_of_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    n = 300
    counts = np.zeros((n, 3, 4), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = rng.integers(5000, 6000, n), rng.integers(200, 400, n)
    counts[:, 1, 0], counts[:, 1, 1] = rng.integers(100, 300, n), rng.integers(2000, 2500, n)
    found = named(counts)
    closed = linearised_iou_error(found)
    errors = [estimates(found).of("iou", c).error for c in range(2)]

    assert (closed > 0).all()
    assert errors == pytest.approx(closed.tolist(), rel=0.05)


def test_the_closed_form_can_be_checked_by_head() -> None:
    found = named(np.stack([matrix([[6, 4], [0, 0]]), matrix([[8, 2], [0, 0]])]))
    assert linearised_iou_error(found)[0] == pytest.approx(0.1)  # of 0.6 and 0.8: standard deviation 0.1414 over sqrt(2)


SIMULATED = 300
"""Data sets; the share that covers is then known to some 1.5 percentage points."""


def truths(classes: int = 4) -> NDArray[np.float64]:
    """Every metric of a population far larger than any sample."""
    return measure(named(population(np.random.default_rng(99), 60_000, classes)).sums.sum(0), classes, 0)


def test_intervals_of_thirty_units_hold_the_truth_as_often_as_they_should() -> None:
    rng = np.random.default_rng(5)
    truth = truths()
    held = np.zeros((SIMULATED, len(truth)), bool)
    for i in range(SIMULATED):
        found = estimates(named(population(rng, 30)), background=0, seed=i)
        entries = [found.of(name) for name in MEASURES]
        entries += [found.of(name, c) for name in CLASS_MEASURES for c in range(4)]
        held[i] = [e.low is not None and e.high is not None and e.low <= t <= e.high for e, t in zip(entries, truth, strict=True)]
    covered = held.mean(0)

    assert len(covered) == len(MEASURES) + 4 * len(CLASS_MEASURES)
    assert covered.min() >= 0.88, dict(zip(MEASURES, covered, strict=False))


def test_tiles_taken_for_units_would_hold_it_far_too_seldom() -> None:
    rng = np.random.default_rng(6)
    truth = truths()[MEASURES.index("pixel_accuracy")]
    held = []
    for _ in range(20):
        counts = population(rng, 30)
        tiles = np.repeat(counts // 20, 20, axis=0)
        wrong = estimates(named(tiles)).of("pixel_accuracy")
        assert wrong.low is not None
        assert wrong.high is not None
        held.append(wrong.low <= truth <= wrong.high)
    assert np.mean(held) < 0.5


# two runs


def improve(counts: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """The same pixels with a share of each class's errors put right."""
    better = counts.copy()
    k = counts.shape[1] - 1
    moved = np.rint(counts[:, :k, :k] * share).astype(np.int64)
    moved[:, range(k), range(k)] = 0
    better[:, :k, :k] -= moved
    better[:, range(k), range(k)] += moved.sum(2)
    return better


def test_pairing_sees_a_change_that_both_intervals_alone_would_hide() -> None:
    counts = population(np.random.default_rng(7), 40)
    before, after = named(counts), named(improve(counts, 0.05))
    found = compare(before, after)
    change, alone = found.of("miou"), estimates(before).of("miou")
    assert change.low is not None
    assert change.high is not None
    assert change.p is not None
    assert alone.low is not None
    assert alone.high is not None

    assert alone.low < change.after < alone.high
    assert change.low > 0
    assert change.p < 0.05
    assert (change.high - change.low) < 0.2 * (alone.high - alone.low)
    assert (change.improved, change.worsened, change.units) == (1.0, 0.0, 40)
    assert change.delta == pytest.approx(change.after - change.before)


def test_a_run_does_not_differ_from_itself() -> None:
    same = named(population(np.random.default_rng(8), 10))
    found = compare(same, same).of("miou")

    assert (found.delta, found.low, found.high, found.p, found.improved, found.worsened) == (0, 0, 0, 1, 0, 0)


def test_swapped_runs_give_the_mirrored_difference() -> None:
    rng = np.random.default_rng(9)
    one, two = named(population(rng, 20)), named(population(rng, 20))
    there, back = compare(one, two).of("mdice"), compare(two, one).of("mdice")
    assert there.low is not None
    assert there.high is not None

    assert back.delta == pytest.approx(-there.delta)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p == pytest.approx(there.p)


def test_units_of_one_run_only_are_named_and_left_out() -> None:
    counts = population(np.random.default_rng(10), 8)
    images = {f"{i}": m for i, m in enumerate(counts)}
    relabelled = {**images, "3": images["3"] * 2}
    before = units({k: v for k, v in images.items() if k != "0"})
    after = units({k: v for k, v in relabelled.items() if k != "7"})
    found = compare(before, after)

    assert (found.only_before, found.only_after, found.units) == (("7",), ("0",), 6)
    assert found.relabelled == ("3",)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(before.only({"7"}), after.only({"0"}))
    with pytest.raises(ValueError, match="4 classes before, 2 after"):
        compare(before, named(np.stack([matrix([[1, 0], [0, 1]])])))


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1) | st.none(), max_size=12))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(chances: list[float | None]) -> None:
    found = holm(chances)
    pairs = sorted((p, q) for p, q in zip(chances, found, strict=True) if p is not None and q is not None)
    assert [q is None for q in found] == [p is None for p in chances]
    assert all(p <= q <= 1 for p, q in pairs)
    assert all(a[1] <= b[1] for a, b in pairwise(pairs))


def test_p_values_hardly_ever_cry_wolf_and_go_with_the_interval() -> None:
    rng = np.random.default_rng(11)
    alarms = 0
    for seed in range(SIMULATED // 2):
        counts = population(rng, 30)
        flip = rng.random(30) < 0.5
        better = improve(counts, 0.2)
        one, two = np.where(flip[:, None, None], [counts, better], [better, counts])
        found = compare(named(one), named(two), seed=seed).of("miou")
        assert found.low is not None
        assert found.high is not None
        assert found.p is not None
        alarms += found.p < 0.05
        if abs(found.p - 0.05) > 0.01:
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert alarms <= 0.12 * SIMULATED / 2


# gates


def verdicts(found: Estimates, change: Comparison | None = None, **asked: float) -> tuple[str, str]:
    verdict = judge(Gate("miou", **asked), found, change)  # type: ignore[arg-type]
    return verdict.outcome, verdict.why


def with_miou(value: float, low: float | None, high: float | None, warning: str | None = None) -> Estimates:
    found = estimates(named(population(np.random.default_rng(12), 6)))
    entry = replace(found.of("miou"), value=value, low=low, high=high, warning=warning)
    return replace(found, overall={**found.overall, "miou": entry})


def with_delta(delta: float, low: float | None, high: float | None, warning: str | None = None) -> Comparison:
    same = named(population(np.random.default_rng(12), 6))
    found = compare(same, same)
    entry = replace(found.of("miou"), before=0.8, after=0.8 + delta, delta=delta, low=low, high=high, warning=warning)
    return replace(found, overall={**found.overall, "miou": entry})


NONE = "no interval: it rests on 3 units, at least 5 are needed"


@pytest.mark.parametrize(
    ("value", "low", "high", "outcome", "why"),
    [
        (0.9, 0.85, 0.95, "pass", "mIoU 0.900 and its interval from 0.850 are not below the floor 0.8"),
        (0.8, 0.8, 0.9, "pass", "not below"),
        (0.82, 0.75, 0.9, "inconclusive", "mIoU 0.820 is not below the floor 0.8, but its interval begins at 0.750"),
        (0.79, 0.7, 0.85, "fail", "mIoU 0.790 is below the floor 0.8 (its interval reaches up to 0.850)"),
        (0.5, 0.4, 0.6, "fail", "mIoU 0.500 is below the floor 0.8"),
        (0.5, None, None, "fail", "mIoU 0.500 is below the floor 0.8"),
        (0.9, None, None, "inconclusive", f"mIoU 0.900 is not below the floor 0.8, but has {NONE}"),
        (nan, None, None, "inconclusive", "not defined"),
    ],
)
def test_a_floor(value: float, low: float | None, high: float | None, outcome: str, why: str) -> None:
    found, said = verdicts(with_miou(value, low, high, NONE if low is None else None), min=0.8)
    assert found == outcome
    assert why in said


@pytest.mark.parametrize(
    ("delta", "low", "high", "outcome", "why"),
    [
        (-0.01, -0.015, 0.01, "pass", "went from 0.800 to 0.790 (-0.010, interval -0.015 to +0.010)"),
        (-0.02, -0.02, -0.02, "pass", "ruled out"),
        (-0.03, -0.05, -0.01, "inconclusive", "a drop of more than 0.02 is neither shown nor ruled out"),
        (-0.03, -0.05, -0.02, "inconclusive", "neither shown"),
        (-0.05, -0.06, -0.03, "fail", "all of it below the margin -0.02"),
        (-0.5, None, None, "inconclusive", f"but the difference has {NONE}"),
        (nan, None, None, "inconclusive", "not defined in both runs"),
    ],
)
def test_a_margin(delta: float, low: float | None, high: float | None, outcome: str, why: str) -> None:
    change = with_delta(delta, low, high, NONE if low is None else None)
    found, said = verdicts(with_miou(0.8, 0.7, 0.9), change, max_drop=0.02)
    assert found == outcome
    assert why in said


def test_a_gate_is_as_bad_as_its_worse_half_and_says_both() -> None:
    now = with_miou(0.5, 0.4, 0.6)
    outcome, why = verdicts(now, None, min=0.8, max_drop=0.02)

    assert outcome == "fail"
    assert why == "mIoU 0.500 is below the floor 0.8; mIoU cannot be compared: there is no earlier run"
    assert verdicts(now, None, max_drop=0.02)[0] == "inconclusive"


def test_a_gate_on_a_class_names_it() -> None:
    found = judge(
        Gate("iou", code=1, min=0.999), estimates(named(population(np.random.default_rng(13), 6))), names=["land", "water"]
    )
    assert found.outcome == "fail"
    assert found.why.startswith("IoU of water 0.")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"metric": "iou", "min": 0.5}, "without a class"),
        ({"metric": "miou", "code": 1, "min": 0.5}, "with a class"),
        ({"metric": "miou"}, "asks nothing"),
        ({"metric": "miou", "min": 80}, "not 80"),
        ({"metric": "miou", "max_drop": -0.1}, "must be 0 or more"),
    ],
)
def test_gates_that_make_no_sense_are_refused(asked: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Gate(**asked)  # type: ignore[arg-type]


# strata


def test_the_worst_slice_is_named_with_its_n() -> None:
    rng = np.random.default_rng(14)
    good, bad = population(rng, 9, skill=40), population(rng, 6, skill=1)
    images = {f"{i:02}": m for i, m in enumerate([*good, *bad])}
    season = {image: "summer" if int(image) < 9 else "winter" for image in images if image != "00"}
    slices = strata(images, season)
    found = worst(slices)
    assert found is not None
    whole = scores(bad.sum(0))
    assert whole is not None

    assert [(s.value, s.images) for s in slices] == [("summer", 8), ("winter", 6), (None, 1)]
    assert (found[0].value, found[1].units) == ("winter", 6)
    assert found[1].value == pytest.approx(whole.miou)
    assert found[1].low is not None
    assert slices[2].estimates.of("miou").low is None
    assert sum(s.scores.evaluated_px for s in slices if s.scores) == sum(int(m.sum()) for m in images.values())


def test_no_slice_is_the_worst_where_nothing_was_evaluated() -> None:
    slices = strata({"a": no_counts(2)}, {})
    assert slices[0].scores is None
    assert worst(slices) is None


# areas

SAMPLES = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
HECTARES = np.array([0.2, 0.15, 3.2, 6.45]) * 1e6 * 900 / 10_000


def test_areas_are_those_of_the_paper() -> None:
    found = estimate_areas(SAMPLES, HECTARES)

    assert np.rint(found.estimated).tolist() == [21158, 11686, 285770, 581386]
    assert np.rint(found.margin).tolist() == [6158, 3756, 15510, 16282]
    assert (round(found.accuracy, 4), round(found.accuracy_margin, 4)) == (0.9465, 0.0185)
    assert found.estimated.sum() == pytest.approx(HECTARES.sum())
    assert found.notes == ()


def test_a_faultless_map_has_its_own_areas_without_margin() -> None:
    found = estimate_areas(np.diag([10, 20]), np.array([3.0, 7.0]))
    assert found.estimated.tolist() == [3.0, 7.0]
    assert found.margin.tolist() == [0.0, 0.0]


def test_classes_without_samples_are_left_out_and_noted() -> None:
    found = estimate_areas(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]), np.array([10.0, 10.0, 5.0]))
    assert found.estimated.tolist() == pytest.approx([9.0, 11.0, 0.0])
    assert found.notes == ("class 2 is mapped and has no samples: its area is left out",)

    nothing = estimate_areas(np.zeros((2, 2), int), np.array([1.0, 1.0]))
    assert np.isnan(nothing.estimated).all()
    assert isnan(nothing.accuracy)
    single = estimate_areas(np.array([[1, 0], [0, 9]]), np.array([1.0, 1.0]))
    assert np.isnan(single.margin[0])


def test_areas_of_a_matrix_read_it_by_the_map_and_note_what_is_on_none() -> None:
    counts = no_counts(4)
    counts[:4, :4] = SAMPLES.T
    plain = areas_of(counts, HECTARES)
    counts[1, 4], counts[2, 5] = 30, 40
    found = areas_of(counts, HECTARES)

    assert found.estimated.tolist() == plain.estimated.tolist() == estimate_areas(SAMPLES, HECTARES).estimated.tolist()
    assert len(plain.notes) == 1
    assert found.notes[:2] == (
        "30 labelled pixels failed: no part of the map",
        "40 labelled pixels have no data: no part of the map",
    )


def test_areas_from_clustered_labels_are_less_sure_than_the_formula_says() -> None:
    rng = np.random.default_rng(17)
    found = named(population(rng, 40))
    mapped = np.array([4.0, 3.0, 2.0, 1.0])
    low, high = area_bounds(found, mapped)
    formula = areas_of(found.counts.sum(0), mapped)

    assert (low < formula.estimated).all()
    assert (formula.estimated < high).all()
    assert ((high - low) > 10 * formula.margin).all()
    assert np.isnan(area_bounds(found.only(found.names[:4]), mapped)).all()
    assert np.isnan(area_bounds(named(np.stack([no_counts(4)])), mapped)).all()


# what others would say


def pictures() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reference and mask (6, 40, 40) of 4 classes: 3 in no image, 2 only predicted, and not every class in every image."""
    rng = np.random.default_rng(15)
    reference = rng.integers(0, 2, (6, 40, 40), np.uint8)
    mask = np.where(rng.random((6, 40, 40)) < 0.8, reference, rng.integers(0, 3, (6, 40, 40), np.uint8))
    reference[0], mask[0] = 0, 0
    return reference, mask


def test_conventions_are_those_of_the_libraries() -> None:
    reference, mask = pictures()
    stack = np.stack([count(r, m, 4) for r, m in zip(reference, mask, strict=True)])
    found = {c.name: c for c in conventions(stack, background=0)}
    truth, answer = reference.ravel(), mask.ravel()
    whole = scores(stack.sum(0), background=0)
    assert whole is not None
    sk = {"labels": range(4), "zero_division": 0}

    assert (found["gigamask"].miou, found["gigamask"].mdice) == pytest.approx((whole.miou, whole.mdice))
    assert found["gigamask"].miou == pytest.approx(
        float(multiclass_jaccard_index(torch.from_numpy(answer), torch.from_numpy(truth), 4)), abs=1e-6
    )
    assert found["without background"].miou == pytest.approx(whole.miou_without_background)
    for name, average in (("absent class as 0", "macro"), ("micro", "micro"), ("weighted by frequency", "weighted")):
        assert found[name].miou == pytest.approx(jaccard_score(truth, answer, average=average, **sk))
        assert found[name].mdice == pytest.approx(f1_score(truth, answer, average=average, **sk))
    assert found["classes of the reference"].miou == pytest.approx(
        jaccard_score(truth, answer, average="macro", labels=np.unique(truth))
    )
    assert found["micro"].mdice == pytest.approx(whole.pixel_accuracy)
    each = [s.miou for s in map(scores, stack) if s is not None]
    assert found["mean of images"].miou == pytest.approx(np.mean(each))

    tensors = get_stats(torch.from_numpy(mask).long(), torch.from_numpy(reference).long(), mode="multiclass", num_classes=4)
    for name, reduction, empty in (
        ("absent class as 1", "macro", 1.0),
        ("mean of images, empty = 1", "macro-imagewise", 1.0),
        ("mean of images, empty = 0", "macro-imagewise", 0.0),
    ):
        score = float(iou_score(*tensors, reduction=reduction, zero_division=empty))
        assert found[name].miou == pytest.approx(score, abs=1e-6)


def test_conventions_that_can_be_checked_by_head() -> None:
    one, two = matrix([[3, 1], [0, 0]]), matrix([[4, 0], [0, 0]])
    two[0, 2] = 4
    found = {c.name: c for c in conventions(np.stack([one, two]), background=None)}

    assert (found["gigamask"].miou, found["gigamask"].mdice) == ((7 / 12) / 2, (14 / 19) / 2)
    assert found["classes of the reference"].miou == 7 / 12
    assert found["failed left out"].miou == (7 / 8) / 2
    assert found["mean of images"].miou == ((3 / 4 + 0) / 2 + 4 / 8) / 2
    assert found["mean of images, empty = 1"].miou == (3 / 4 + 0 + 4 / 8 + 1) / 4
    assert found["smoothed by 1"].miou == (4 / 5 + 1 / 2 + 5 / 9 + 1) / 4
    assert found["smoothed by 1"].mdice == (7 / 8 + 1 / 2 + 9 / 13 + 1) / 4
    assert "without background" not in found
    assert conventions(np.stack([no_counts(2)])) == ()


def test_conventions_differ_as_much_as_the_contract_says() -> None:
    reference, mask = pictures()
    found = conventions(np.stack([count(r, m, 4) for r, m in zip(reference, mask, strict=True)]), background=0)
    mious = [c.miou for c in found]
    assert max(mious) - min(mious) > 0.4
    assert all(c.rule.endswith(".") and c.name for c in found)


# calibration


def test_calibration_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(16)
    level = rng.integers(100, 256, 20_000, np.uint8)
    level += level % 17 == 0  # torchmetrics gives a confidence between two bins to the upper one, the papers to the lower
    right = rng.random(20_000) < (level / 255) ** 2
    found = calibration(histogram(level, right))
    probabilities = torch.from_numpy(np.stack([level / 255.0, 1 - level / 255.0], 1))
    confident = level >= 128
    truth = torch.from_numpy((~right[confident]).astype(np.int64))
    assert confident.sum() > 10_000

    kept = calibration(histogram(level[confident], right[confident]))
    for norm, value in (("l1", kept.ece), ("max", kept.mce)):
        peer = MulticlassCalibrationError(2, n_bins=15, norm=norm)
        assert value == pytest.approx(float(peer(probabilities[torch.from_numpy(confident)], truth)), abs=1e-5)
    assert 0 < found.ece < found.mce


def test_calibration_that_can_be_checked_by_head() -> None:
    level = np.array([255, 255, 255, 255, 51, 51, 51, 51, 51], np.uint8)
    right = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0], bool)
    found = calibration(histogram(level, right), bins=5)

    assert [b.pixels for b in found.bins] == [5, 0, 0, 0, 4]
    assert (found.bins[0].low, found.bins[0].high, found.bins[0].confidence, found.bins[0].accuracy) == (0, 0.2, 0.2, 0.2)
    assert isnan(found.bins[2].accuracy)
    assert (found.ece, found.mce) == pytest.approx((0.25 * 4 / 9, 0.25))
    assert isnan(calibration(histogram(level[:0], right[:0])).ece)


@given(arrays(np.uint8, 60), arrays(np.bool_, 60), st.integers(0, 60))
def test_histograms_of_parts_add_up_to_the_whole(level: NDArray[np.uint8], right: NDArray[np.bool_], cut: int) -> None:
    whole = histogram(level, right)
    assert (histogram(level[:cut], right[:cut]) + histogram(level[cut:], right[cut:]) == whole).all()
    assert whole.sum() == 60


def test_what_is_no_histogram_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        histogram(np.zeros(3), np.zeros(3, bool))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        calibration(np.zeros((3, 2), np.int64))


# borders of tiles


def test_wilsons_interval_is_that_of_scipy() -> None:
    curve = edge_curve(np.array([[3, 7], [0, 50], [0, 0]]), width=8)
    peer = stats.binomtest(3, 10).proportion_ci(method="wilson")

    assert curve.distance.tolist() == [0, 8, 16]
    assert (curve.low[0], curve.high[0]) == pytest.approx((peer.low, peer.high), abs=1e-4)
    assert (curve.rate[1], curve.low[1]) == (0, 0)
    assert curve.high[1] > 0
    assert np.isnan(curve.rate[2])


def test_the_overlap_is_twice_the_distance_where_the_interior_begins() -> None:
    counts = np.array([[300, 700], [200, 800], [103, 897], [100, 900], [101, 899], [99, 901], [100, 900], [102, 898]])
    advice = advise_overlap(counts, width=4, tolerance=0.005)
    assert advice is not None

    assert advice.interior == pytest.approx(0.1005)
    assert (advice.distance, advice.overlap, advice.edge) == (8, 16, 0.3)


def test_borders_that_do_no_harm_ask_for_no_overlap() -> None:
    even = advise_overlap(np.array([[0, 0], [5, 95], [10, 90], [10, 90], [10, 90]]))
    assert even is not None
    assert (even.distance, even.overlap) == (1, 2)
    assert advise_overlap(np.array([[1, 9], [0, 0]])) is None
