"""Training: crops are honest, the split is by image, and what comes out is what `segment` takes in."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flows.console import Quiet
from pipeline.atomic import STALE_SECONDS, draft_beside
from pipeline.card import ClassInfo, ModelCard, Scaling, read_card
from pipeline.config import AugmentConfig, Config, TrainConfig, load_config
from pipeline.errors import ConfigError, ModelError
from pipeline.grid import Window
from pipeline.image import ImageSpec
from pipeline.night import run_night
from pipeline.train import train, validation_scores
from pipeline.train.augment import to_batch, widest
from pipeline.train.data import Crop, Crops, Scene, band_statistics
from pipeline.train.loop import CHECKPOINT, class_weights, learning_rate
from pipeline.train.loss import segmentation_loss
from pipeline.train.prepare import prepare, split
from tests.conftest import write_raster
from tests.making import config_file

TRAIN = {
    "images": "scenes/*.tif",
    "validation": ["c"],
    "architecture": "Unet",
    "encoder": "resnet18",
    "arguments": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "tile": 32,
    "minutes": 0.08,
    "batch": 4,
    "learning_rate": 0.01,
    "validations": 2,
}

COLOURS = ("brightness", "contrast", "gamma", "channel", "shift", "saturation", "noise", "blur")
COLOURLESS = AugmentConfig(scale=(1, 1)).model_copy(update=dict.fromkeys(COLOURS, 0.0))


class Clock:
    """A clock that goes on when it is looked at: a training has the same number of steps however busy the machine is."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 0.03
        return self._now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.loop.time", Clock())


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three scenes of two classes: dark and bright squares; a corner is filling, a stripe is not labelled."""
    rng = np.random.default_rng(0)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "abc":
        bright = np.kron(rng.integers(0, 2, (6, 7)), np.ones((32, 32), int))[:150, :200]
        samples = (60 + 120 * bright + rng.normal(0, 10, bright.shape)).clip(1, 255).astype(np.uint8)
        samples[:20, :20] = 0
        labels = (bright + 1).astype(np.uint8)
        labels[:, 100:110] = 0
        write_raster(tmp_path / "scenes" / f"{name}.tif", samples, nodata=0)
        write_raster(tmp_path / "labels" / f"{name}.tif", labels)
    return tmp_path


def configured(folder: Path, **changes: Any) -> Config:
    truth = {"pattern": "labels/{stem}.tif", "ignore": [0]}
    return load_config(config_file(folder, truth=truth, train=TRAIN | changes))


def test_a_trained_model_segments_and_scores(scenes: Path) -> None:
    trained = train(configured(scenes), lambda *_: None, lambda _: None)
    assert trained.validation is not None
    assert trained.card.training["images"] == ["a", "b"]
    assert trained.card.training["validation_images"] == ["c"]
    assert (trained.folder / "training.png").stat().st_size > 5000
    assert not (trained.folder / CHECKPOINT).exists()
    assert read_card(trained.folder) == trained.card
    assert [c.value for c in trained.card.classes] == [1, 2]
    assert trained.card.activation_bytes_per_pixel > 0
    known = trained.card.fingerprint
    assert known is not None
    assert (known.images, len(known.band_px), len(known.class_px)) == (2, len(trained.card.bands), 2)
    assert min(known.class_px) > 0

    morning = run_night(configured(scenes), Quiet(), "gigamask run")
    image = next(i for i in morning.report.images if i.uri.endswith("c.tif"))
    found = morning.report.image_scores(image)
    assert found is not None
    assert found.miou == pytest.approx(trained.validation.miou, abs=0.02), "validation is not what evaluation says"
    assert found.miou > 0.8


def test_a_finished_model_is_not_trained_over(scenes: Path) -> None:
    (scenes / "model").mkdir()
    (scenes / "model" / "model.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a model already"):
        train(configured(scenes), lambda *_: None, lambda _: None)


def test_a_killed_training_goes_on_where_it_last_validated(scenes: Path) -> None:
    class Killed(BaseException):
        pass

    steps: list[int] = []

    def kill_after_the_first_validation(step: Any, share: float) -> None:
        if step.miou is not None:
            steps.append(step.step)
            raise Killed

    def listen(step: Any, share: float) -> None:
        steps.append(step.step)

    config = configured(scenes, validations=4)
    with pytest.raises(Killed):
        train(config, kill_after_the_first_validation, lambda _: None)
    checkpoint = scenes / "model" / CHECKPOINT
    assert not checkpoint.exists(), "the checkpoint comes after the report"
    trained_with = configured(scenes, validations=4)
    first = {"seen": 0}

    def kill_later(step: Any, share: float) -> None:
        first["seen"] += step.miou is not None
        if first["seen"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(trained_with, kill_later, lambda _: None)
    saved = torch.load(checkpoint, weights_only=True)["scalars"]["step"]
    trained = train(trained_with, listen, lambda _: None)
    assert trained.card.training["steps"] > saved > 0
    assert trained.curve[0].step == saved, "the curve of the first part is kept"


def test_drafts_of_checkpoints_that_killed_trainings_left_do_not_pile_up(scenes: Path) -> None:
    folder = scenes / "model"
    folder.mkdir()
    stale, fresh = draft_beside(folder / CHECKPOINT), draft_beside(folder / CHECKPOINT)
    for draft in (stale, fresh):
        draft.write_bytes(b"half a checkpoint")
    os.utime(stale, (time.time() - STALE_SECONDS - 60,) * 2)
    train(configured(scenes), lambda *_: None, lambda _: None)
    assert [path for path in folder.iterdir() if ".partial" in path.name] == [fresh], "it may be that of a training at work"


def test_validation_holds_out_whole_images_and_whole_groups(scenes: Path) -> None:
    lesson = prepare(configured(scenes, validation=0.3))
    assert {x.image.stem for x in lesson.training}.isdisjoint(x.image.stem for x in lesson.validation)
    assert len(lesson.validation) == 1
    manifest = "image,truth,group\n" + "".join(f"scenes/{n}.tif,labels/{n}.tif,{g}\n" for n, g in zip("abc", "xxy", strict=True))
    (scenes / "manifest.csv").write_text(manifest)
    for seed in range(4):
        lesson = prepare(configured(scenes, images="manifest.csv", validation=0.5, seed=seed))
        assert {x.image.group for x in lesson.training}.isdisjoint(x.image.group for x in lesson.validation)


def grouped(folder: Path, groups: str) -> None:
    """A manifest of the scenes a, b, c with a group each."""
    lines = (f"scenes/{n}.tif,labels/{n}.tif,{g}" for n, g in zip("abc", groups, strict=True))
    (folder / "manifest.csv").write_text("\n".join(["image,truth,group", *lines]))


def images_of(**groups: str | None) -> list[ImageSpec]:
    return [ImageSpec(uri=f"/archive/{name.replace('_', '/')}.tif", group=group) for name, group in groups.items()]


def held_out(images: list[ImageSpec], validation: list[str] | float, seed: int = 0) -> set[str]:
    train = TrainConfig(images="x", validation=validation, seed=seed)
    return {uri.removeprefix("/archive/") for uri in split(train, images, Path("/archive")).held_out}


def test_a_stem_holds_out_all_its_images_and_a_path_one() -> None:
    images = images_of(a_1=None, b_1=None, b_2=None)
    assert held_out(images, ["1"]) == {"a/1.tif", "b/1.tif"}
    assert held_out(images, ["a/1.tif"]) == held_out(images, ["/archive/a/1.tif"]) == {"a/1.tif"}
    assert held_out(images, ["b/../b/1.tif", "2"]) == {"b/1.tif", "b/2.tif"}
    with pytest.raises(ConfigError, match=r"names c/1\.tif, 1\.tif, which is neither"):
        held_out(images, ["1", "c/1.tif", "1.tif"])


def test_a_named_image_takes_its_group_along() -> None:
    images = images_of(a="p1", b="p1", c="p2", d=None)
    assert held_out(images, ["a"]) == {"a.tif", "b.tif"}
    assert held_out(images, ["d"]) == {"d.tif"}
    assert split(TrainConfig(images="x", validation=["b"]), images, Path("/")).by_group == ("/archive/a.tif",)


@given(
    groups=st.lists(st.sampled_from([None, "p1", "p2", "p3"]), min_size=1, max_size=12),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 5),
)
def test_a_share_holds_out_whole_groups_and_about_that_many_images(groups: list[str | None], share: float, seed: int) -> None:
    images = images_of(**{f"i{number}": group for number, group in enumerate(groups)})
    out = held_out(images, share, seed)
    sides = {(image.group, image.uri.removeprefix("/archive/") in out) for image in images if image.group is not None}
    assert len(sides) == len({group for group, _ in sides}), "a group lies on both sides"
    sizes = [1] * groups.count(None) + [groups.count(group) for group in set(groups) - {None}]
    assert len(out) <= max(1, round(share * len(images)), min(sizes))
    assert len(out) < len(images)
    assert bool(out) == (share > 0 and len(sizes) > 1)


def test_one_large_group_is_not_held_out_for_a_small_share() -> None:
    images = images_of(**{f"i{number}": "large" for number in range(8)}, x="small", y="other")
    for seed in range(8):
        assert held_out(images, 0.2, seed) == {"x.tif", "y.tif"}


def test_training_says_which_images_are_held_out_for_their_group(scenes: Path) -> None:
    grouped(scenes, "xyy")
    said: list[str] = []
    config = configured(scenes, images="manifest.csv", minutes=0.01, validations=1)
    trained = train(config, lambda *_: None, said.append)
    assert trained.card.training["validation_images"] == ["b", "c"]
    assert "1 of these are held out with the rest of their group: b.tif" in said
    grouped(scenes, "yyy")
    with pytest.raises(ConfigError, match="holds out all 3 images, 2 of them as they share a group"):
        prepare(config)


def test_weights_that_have_seen_an_image_that_is_held_out_by_now_are_not_gone_on_with(scenes: Path) -> None:
    class Killed(BaseException):
        pass

    def kill_at_the_second_validation(step: Any, share: float) -> None:
        if step.miou is not None and share > 0.6:
            raise Killed

    def listen(step: Any, share: float) -> None:
        if step.miou is not None:
            shares.append(share)

    shares: list[float] = []
    config = configured(scenes, images="manifest.csv", minutes=0.04, validations=2)
    grouped(scenes, "xyz")
    with pytest.raises(Killed):
        train(config, kill_at_the_second_validation, lambda _: None)
    assert (scenes / "model" / CHECKPOINT).exists()
    grouped(scenes, "xzz")
    assert train(config, listen, lambda _: None).card.training["images"] == ["a"]
    assert len(shares) == 2, "it began anew"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation": ["z"]}, "train.validation names z, which is neither .*scenes/a.tif, .*scenes/b.tif, .*scenes/c.tif"),
        ({"validation": ["a", "b", "c"]}, "nothing is left to train on"),
        ({"labels": "nowhere/{stem}.tif"}, "3 of 3 training images have no labels"),
        ({"classes": {1: "only"}}, "two classes or more"),
        ({"classes": {1: {"color": "#000000"}, 2: "b"}}, "train.classes.1 has no name"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_anything_is_trained(
    scenes: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(configured(scenes, **changes), lambda *_: None, lambda _: None)
    assert not (scenes / "model").exists()


def test_classes_are_found_in_the_labels_where_none_are_given(scenes: Path) -> None:
    assert [(c.name, c.value) for c in prepare(configured(scenes)).card.classes] == [("class 1", 1), ("class 2", 2)]


def test_band_statistics_leave_filling_out(scenes: Path) -> None:
    lesson = prepare(configured(scenes, validation=0))
    mean, deviation = band_statistics(lesson.training)
    real = []
    for name in "abc":
        with rasterio.open(scenes / "scenes" / f"{name}.tif") as file:
            samples = file.read(1)
            real.append(samples[samples > 0])
    values = np.concatenate(real).astype(float)
    assert mean[0] == pytest.approx(values.mean())
    assert deviation[0] == pytest.approx(values.std())
    assert lesson.card.scaling.offset == pytest.approx((values.mean(),))


@pytest.mark.parametrize("cached", [False, True])
def test_a_crop_is_what_the_files_hold_and_nothing_is_labelled_outside(scenes: Path, cached: bool) -> None:
    labelled = prepare(configured(scenes, validation=0)).training[0]
    with rasterio.open(labelled.read.source.uri) as file:
        samples = file.read(1)
    with rasterio.open(labelled.truth.source.uri) as file:
        truth = file.read(1)
    expected = np.where((truth == 0) | (samples == 0), 2, truth - 1)
    with Scene(labelled, 2, cached=cached) as scene:
        crop = scene.crop(Window(5, 90, 40, 30))
        assert (crop.data[0] == samples[5:45, 90:120]).all()
        assert (crop.codes == expected[5:45, 90:120]).all()
        hanging = scene.crop(Window(-8, 180, 30, 30))
        assert (hanging.codes[8:, :20] == expected[:22, 180:]).all()
        assert (hanging.codes[:8] == 2).all()
        assert (hanging.codes[:, 20:] == 2).all()
        assert (hanging.data[0, 7] == hanging.data[0, 9]).all(), "reflected at the edge"
        for code, places in enumerate(scene.sites()):
            assert len(places)
            assert (truth[places[:, 0], places[:, 1]] == code + 1).all()


def test_batches_are_the_same_for_the_same_seed(scenes: Path) -> None:
    config = configured(scenes, validation=0)
    assert config.train is not None
    lesson = prepare(config)

    def some() -> list[np.ndarray]:
        with Crops(lesson.training, 2, config.train, 1.5) as crops:  # type: ignore[arg-type]
            batches = crops.batches(7)
            return [crop.data for _ in range(2) for crop in next(batches)]

    assert all((one == other).all() for one, other in zip(some(), some(), strict=True))


def test_without_changes_a_batch_is_the_normalised_crop(scenes: Path) -> None:
    still = COLOURLESS.model_copy(update={"flip": False, "rotate": "none"})
    lesson = prepare(configured(scenes, validation=0))
    with Scene(lesson.training[0], 2, cached=False) as scene:
        crop = scene.crop(Window(0, 80, 32, 32))
    images, codes = to_batch([crop], lesson.card, still, [0])
    expected = (crop.data[0] - lesson.card.scaling.offset[0]) / lesson.card.scaling.divisor[0]
    np.testing.assert_allclose(images[0, 0].numpy(), np.where(crop.valid, expected, 0), atol=1e-4)
    assert (codes[0].numpy() == crop.codes).all()
    assert widest(32, still) == 1


@given(st.integers(0, 2**31))
def test_image_and_labels_turn_together(seed: int) -> None:
    """Labels made from the image still fit it after any turn, mirror and stretch."""
    turning = COLOURLESS.model_copy(update={"rotate": "any", "stretch": 0.3})
    classes = (ClassInfo(name="a", color="#000000"), ClassInfo(name="b", color="#ffffff"))
    scaling = Scaling(offset=(0,), divisor=(1,))
    card = ModelCard(name="x", adapter="smp", bands=("g",), dtype="uint8", scaling=scaling, classes=classes, tile=32, overlap=0)
    data = np.kron(np.random.default_rng(seed).integers(0, 2, (4, 4)), np.full((16, 16), 200)).astype(np.uint8)[None]
    crop = Crop(data, np.ones((64, 64), bool), (data[0] > 100).astype(np.uint8))
    images, codes = to_batch([crop], card, turning, [seed])
    sure = (images[0, 0] - 100).abs() > 90
    assert sure.float().mean() > 0.5
    assert ((images[0, 0] > 100).long() == codes[0])[sure].all()


def test_the_loss_looks_at_labelled_pixels_only() -> None:
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    codes[0] = 3
    loss = segmentation_loss(logits, codes, dice_weight=1)
    changed = logits.clone()
    changed[0] = 100
    assert segmentation_loss(changed, codes, dice_weight=1) == pytest.approx(float(loss))
    assert segmentation_loss(logits, torch.full_like(codes, 3), dice_weight=1) == 0


def test_the_loss_of_a_perfect_answer_is_nearly_nothing() -> None:
    codes = torch.randint(0, 3, (2, 8, 8))
    logits = 50 * torch.nn.functional.one_hot(codes, 3).permute(0, 3, 1, 2).float()
    assert float(segmentation_loss(logits, codes, dice_weight=1)) < 1e-3


def test_rare_classes_weigh_more_and_absent_ones_nothing() -> None:
    weights = class_weights([100, 900, 0], 0.5)
    assert weights[0] / weights[1] == pytest.approx(3)
    assert weights[2] == 0
    assert float(weights[0] * 0.1 + weights[1] * 0.9) == pytest.approx(1)
    assert class_weights([5, 5], 0.0).tolist() == [1, 1]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(1.0, p / 100) for p in range(101)]
    assert rates.index(max(rates)) == 5
    assert rates[0] == rates[-1] == pytest.approx(0.02)


def test_weights_that_have_diverged_are_no_result(scenes: Path) -> None:
    """Failed pixels would count as misses, and weights of NaN could pass for the best so far."""
    lesson = prepare(configured(scenes))

    class Diverged(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 2, *x.shape[2:]), torch.nan)

    with pytest.raises(ModelError, match=r"c\.tif: model .* answers NaN or infinite outputs for \d+ of"):
        validation_scores(Diverged(), lesson.card, lesson.validation, "cpu", 2)
