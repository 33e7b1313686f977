"""Nights without labels: what the model was shown is counted alike however it is cut, and held against training and history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from pipeline.card import Fingerprint, ModelCard
from pipeline.mosaic import create
from pipeline.report.contract import BandFacts, ImageResult, ModelFacts, RunReport
from pipeline.report.findings import Findings
from pipeline.report.history import HistoryRow, rows_of
from pipeline.report.page import page_html
from pipeline.report.past import Past, drift_words, drifts
from pipeline.report.signals import InputCheck, confidence, model_facts, signals
from pipeline.statistics.samples import BINS, Bins, apart, bins_of, count_samples, farthest, quantiles
from pipeline.whole import summarise
from pipeline.work import Job
from tests.making import card_of, plan_of, segment_block, threshold_model
from tests.test_page import Text, image_of, report_of


def card(**changes: Any) -> ModelCard:
    """Two bands of 8 bits."""
    facts: dict[str, Any] = {
        "name": "two-bands",
        "adapter": "threshold",
        "bands": ("red", "nir"),
        "dtype": "uint8",
        "scaling": {"offset": (100, 80), "divisor": (40, 20)},
        "classes": ({"name": "land", "color": "#000000"}, {"name": "water", "color": "#0072B2"}),
        "tile": 32,
        "overlap": 8,
        "multiple_of": 1,
    }
    return ModelCard.model_validate(facts | changes)


def test_bins_hold_what_the_scaling_says_and_the_type_can() -> None:
    eight = bins_of(card())[0]
    assert (eight.low, eight.width) == (0, 5), "256 values in 62 bins of 5"
    reflectance = bins_of(card(dtype="uint16", scaling={"offset": (0, 0), "divisor": (10000, 10000)}))[0]
    assert (reflectance.low, reflectance.width) == (0, 162)
    height = bins_of(card(dtype="float32", scaling={"offset": (10, 0), "divisor": (31, 1)}))[0]
    assert (height.low, height.width, height.high) == (-114, 4, 134)


def test_small_numbers_by_head() -> None:
    bins = Bins(0, 10)
    data = np.zeros((1, 8, 8))
    data[0, 0, 0], data[0, 4, 0], data[0, 0, 4], data[0, 4, 4] = -3, 5, 15, 9999
    found = count_samples(data, np.ones((8, 8), bool), (0, 0), [bins])[0]

    assert found[:3].tolist() == [1, 1, 1], "one below, one from 0 to 10, one from 10 to 20"
    assert found[-1] == 1
    assert found.sum() == 4, "every fourth row and column"
    assert quantiles([0, 0, 4, *[0] * (BINS - 3)], bins, (0, 0.5, 1)) == [10, 15, 20]
    assert quantiles([0] * BINS, bins, (0.5,))[0] != quantiles([0] * BINS, bins, (0.5,))[0], "NaN of nothing"
    assert apart([1, 1, 0], [0, 1, 1]) == 0.5
    assert apart([1, 0], [0, 1]) == 1


def test_no_number_is_no_sample() -> None:
    data = np.full((1, 4, 4), np.nan)
    assert count_samples(data, np.ones((4, 4), bool), (0, 0), [Bins(0, 1)]).sum() == 0


@given(rows=st.integers(1, 40), cols=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 99))
def test_windows_add_up_however_the_image_is_cut(rows: int, cols: int, cut: int, seed: int) -> None:
    rng, bins = np.random.default_rng(seed), bins_of(card())
    data, valid = rng.integers(0, 256, (2, rows, cols), dtype=np.uint8), rng.random((rows, cols)) < 0.8
    cut = min(cut, cols)
    whole = count_samples(data, valid, (3, 7), bins)
    parts = [
        count_samples(data[:, :, part], valid[:, part], (3, 7 + (part.start or 0)), bins)
        for part in (slice(0, cut), slice(cut, cols))
    ]
    assert (whole == parts[0] + parts[1]).all()


@given(seed=st.integers(0, 99))
def test_distance_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, BINS, 300), rng.integers(5, BINS, 200) // 2
    counts = [np.bincount(values, minlength=BINS) for values in (one, other)]
    assert apart(*counts) == pytest.approx(ks_2samp(one, other).statistic)


def test_the_image_least_like_the_others_is_found() -> None:
    alike, other = np.array([[10, 0]]), np.array([[0, 10]])
    assert farthest([alike, alike, other]) == [1.0]
    assert farthest([alike, alike]) == [0.0]
    assert farthest([alike]) == [0.0]


@pytest.mark.parametrize("block", [256, 512, 768])
def test_blocks_of_any_size_count_the_same_samples(raster: Callable[..., Path], tmp_path: Path, block: int) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(1, 256, (1, 600, 530), dtype=np.uint8)
    pixels[:, 40:60, 20:50] = 0
    image, model = raster(pixels, nodata=0), threshold_model(tmp_path / "model")
    tiling = {"tile": 32, "overlap": 0, "block": block, "store_confidence": True}
    plan = plan_of(image, model, tmp_path, tiling=tiling)
    job = Job(plan=plan, store=str(tmp_path / "mask.zarr"))
    create(Path(job.store), plan)
    found = summarise(plan, tuple(segment_block(job, b) for b in plan.blocks))

    bins = bins_of(card_of(model))
    expected = count_samples(pixels, pixels[0] > 0, (0, 0), bins)
    assert len(plan.blocks) == {256: 9, 512: 4, 768: 1}[block]
    assert found.band_px == expected.tolist()
    assert found.confidence_px is not None
    assert sum(found.confidence_px) == found.confidence_px[-1] == sum(found.class_px), "a threshold is always sure"
    assert found.device_seconds is None, "there is no GPU"


def of_bands(shift: int, n: int, **more: Any) -> ImageResult:
    """An image whose red samples lie `shift` bins above those of the training."""
    red, nir = np.zeros((2, BINS), int)
    red[10 + shift : 20 + shift] = 100
    nir[5:9] = 250
    return image_of(n, 2, band_px=[red.tolist(), nir.tolist()], confidence_px=[0] * 16 + [100] * 48, **more)


def trained(images: int = 8) -> ModelFacts:
    """A model whose training images differ by up to 0.2."""
    red, nir = np.zeros((2, BINS), int)
    red[10:20], nir[5:9] = 10, 25
    print_ = Fingerprint(images=images, band_px=(tuple(red), tuple(nir)), apart=(0.2, 0.0), class_px=(750, 250))
    return model_facts(card(fingerprint=print_), Path("models/two"))


def test_images_unlike_the_training_are_told_without_labels() -> None:
    images = [of_bands(0, n) for n in range(30)]
    calm = InputCheck(report_of(images, 2, model=trained()))
    assert calm.words[0].startswith("No image is farther from the training")
    assert [band.apart for band in calm.bands] == [0, 0]
    assert calm.bands[0].training == calm.bands[0].now

    one = Findings(report_of([*images, of_bands(9, 30)], 2, model=trained()))
    assert [s.image.id for s in one.inputs.strange] == [image_of(30, 2).id]
    assert one.inputs.strange[0].apart == pytest.approx(0.9)
    assert not one.inputs.matters
    assert "1 of 31 images are unlike those of the training" in one.verdict.reasons
    assert one.verdict.level == "good", "one odd image is worth a word, and no more"

    all_ = Findings(report_of([of_bands(4, n) for n in range(6)], 2, model=trained()))
    assert [band.name for band in all_.inputs.unlike] == ["red"]
    assert all_.verdict.level == "attention"
    assert any("unlike those of the training in red, 40.0 % apart" in reason for reason in all_.verdict.reasons)


def test_few_training_images_allow_more() -> None:
    report = report_of([of_bands(4, n) for n in range(6)], 2, model=trained(images=2))
    assert not InputCheck(report).unlike, "0.4 apart, and nobody knows how much two images may differ"


def test_a_model_without_a_fingerprint_has_bands_and_no_verdict(tmp_path: Path) -> None:
    report = report_of([of_bands(4, n) for n in range(6)], 2, model=model_facts(card(), Path("models/two")))
    check = InputCheck(report)
    assert check.words == []
    assert check.bands[0].now[2] == 90, "bins of 5 from 0 on: 14 to 23 were filled"
    page = Text(page_html(Findings(report), tmp_path))
    assert "does not tell what it was trained on" in page.of("drift")


def test_a_fingerprint_of_other_bands_is_refused() -> None:
    of_one = Fingerprint(images=1, band_px=((1,) * BINS,), apart=(0.0,), class_px=(1, 1))
    with pytest.raises(ValueError, match="fingerprint is of 1 bands, the card names 2"):
        card(fingerprint=of_one)
    assert card().digest == card(fingerprint=None, training={"steps": 3}).digest


def test_confidence_needs_no_labels() -> None:
    found = confidence(report_of([of_bands(0, n, counts=None) for n in range(3)], 2, model=trained()))
    assert found is not None
    assert found.mean == pytest.approx(159.5 / 255), "evenly from a quarter to one"
    assert found.guesses == pytest.approx(1 / 3)
    assert confidence(report_of([image_of(0, 2)], 2)) is None


def earlier(report: RunReport, runs: int, **values: float) -> Past:
    """Runs like `report`, in which signals had other values, all somewhat different from each other."""
    rows: list[HistoryRow] = []
    for n in range(runs):
        for row in rows_of(report):
            moved = values.get(row.metric, row.value) if row.value is not None else None
            value = None if moved is None else moved * (1 + 0.002 * (n % 3))
            rows.append(row.model_copy(update={"run_id": f"2026100{n}T00Z-00", "value": value}))
    return Past(tuple(rows))


def test_every_signal_is_held_against_history() -> None:
    report = report_of([of_bands(0, n) for n in range(8)], 2, model=trained())
    kinds = {s.metric for s in signals(report)}
    assert kinds == {"mask_share", "confidence", "seam_disagreement", "band_median", "band_apart"}

    same = drifts(report, earlier(report, 6))
    assert len(same) == len(signals(report))
    assert not any(d.unusual for d in same)
    assert drift_words(same, InputCheck(report))[0] == "As before: nothing is outside of what earlier runs had."

    moved = drifts(report, earlier(report, 6, confidence=0.9, seam_disagreement=0.01))
    assert {d.signal.metric for d in moved if d.unusual} == {"confidence", "seam_disagreement"}
    assert "Mean confidence and Disagreement" in drift_words(moved, InputCheck(report))[0]


def test_four_runs_are_too_few_and_another_models_confidence_is_no_history() -> None:
    report = report_of([of_bands(0, n) for n in range(8)], 2, model=trained())
    assert not any(d.unusual for d in drifts(report, earlier(report, 4, confidence=0.9)))
    other = report.model_copy(update={"model": report.model.model_copy(update={"digest": "other"})})
    assert {d.signal.metric for d in drifts(other, earlier(report, 9))} == {"mask_share", "band_median"}


def test_chance_alone_is_hardly_ever_called_drift() -> None:
    """Ten nights of the same archive, of ten images each: how often is one of six signals called unusual?"""
    rng, report = np.random.default_rng(0), report_of([of_bands(0, 0)], 2, model=trained())
    template, alarms, nights = rows_of(report), 0, 200
    for _ in range(nights):
        rows = [
            row.model_copy(update={"run_id": str(n), "value": (row.value or 0) + float(rng.normal(0, 0.05))})
            for n in range(10)
            for row in template
        ]
        tonight = drifts(report, Past(tuple(rows)))
        shifted = [d.signal.value + float(rng.normal(0, 0.05)) for d in tonight]
        alarms += any(
            abs(now - d.mean) >= d.signal.least and not d.low <= now <= d.high and d.unusual
            for now, d in zip(shifted, tonight, strict=True)
        )
    assert alarms / nights < 0.05


def test_the_page_shows_signals_bands_and_what_is_odd(tmp_path: Path) -> None:
    images = [*(of_bands(0, n) for n in range(7)), of_bands(9, 7)]
    report = report_of(images, 2, model=trained())
    words = Text(page_html(Findings(report), tmp_path, earlier(report, 6, confidence=0.9))).of("drift")

    for told in ("Mean confidence", "Disagreement of neighbouring tiles", "Share of water", "Median of red", "! unusual"):
        assert told in words
    assert "scene_007.tif" in words
    assert "90.0 % apart, where 30.0 % is usual" in words
    assert "25.0 %" in words, "a quarter of the training's labels is water"


def test_a_gpus_share_of_the_time_is_told(tmp_path: Path) -> None:
    images = [image_of(n, 2, device_seconds=100.0) for n in range(3)]
    page = page_html(Findings(report_of(images, 2, seconds=200.0, processes=2)), tmp_path)
    assert "GPU busy" in Text(page).of("cost")
    assert "75.0 %" in Text(page).of("cost"), "300 s of 2 GPUs x 200 s"
    assert "GPU busy" not in Text(page_html(Findings(report_of([image_of(0, 2)], 2)), tmp_path)).of("cost")


def test_band_facts_come_from_the_card() -> None:
    facts = trained()
    assert facts.bands[0] == BandFacts(name="red", low=0, width=5, training_px=[0] * 10 + [10] * 10 + [0] * 44, apart=0.2)
    assert facts.training_images == 8
    assert facts.training_class_px == [750, 250]
