"""Probes: what is known of a model beforehand is what they find, and what they find is what `tile: auto` rests on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flows.cli import main
from pipeline import probe
from pipeline.card import ModelCard, read_card
from pipeline.errors import ModelError, PlanError
from pipeline.models import save_model
from pipeline.models.locality import looks_across
from pipeline.models.probing import (
    Loading,
    Profile,
    felt_across,
    felt_at_borders,
    gradient_energy,
    measure_tile,
    radius_of,
    tile_cost,
    tiled,
)
from pipeline.models.smp import build
from pipeline.plan import MIB
from tests.conftest import write_raster
from tests.making import card_of, plan_of, threshold_model

Answer = Callable[[NDArray[Any]], NDArray[np.float32]]


def answer_of(network: nn.Module) -> Answer:
    """A network that sees raw samples."""

    def answer(samples: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            scores: NDArray[np.float32] = network(torch.from_numpy(samples[None].astype(np.float32)))[0].numpy()
        return scores

    return answer


def stack(layers: int) -> nn.Sequential:
    """So many convolutions of 3 x 3, all weights positive: what is `layers` px away is seen, what is farther is not."""
    convolutions = [nn.Conv2d(1 if i == 0 else 2, 2, 3, padding=1, bias=False) for i in range(layers)]
    for convolution in convolutions:
        nn.init.uniform_(convolution.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(layers))
    return nn.Sequential(*convolutions)


class Pooled(nn.Module):
    """Adds the whole tile's mean to each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)


class Placed(nn.Module):
    """Adds how far down the tile a pixel lies."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 2.0 * torch.arange(x.shape[2])[None, None, :, None].expand_as(x)], 1)


@pytest.fixture
def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (1, 160, 160), np.uint8)


GRAY: dict[str, Any] = {"bands": ["gray"], "scaling": {"offset": [0], "divisor": [1]}}


def gray_card(folder: Path, **changes: Any) -> ModelCard:
    return card_of(threshold_model(folder, tile=64, multiple_of=8, **changes))


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_a_stack_of_convolutions_is_found_to_reach_as_far_as_it_has_layers(layers: int, noise: NDArray[np.uint8]) -> None:
    answer = answer_of(stack(layers))
    whole = answer(noise)
    assert felt_across(answer, noise, whole, 255 - noise).reach == layers
    assert felt_at_borders(answer, noise, whole, 64, [(16, 40), (33, 8)]).reach == layers


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_the_gradient_reaches_as_far_and_half_of_it_is_nearer(layers: int) -> None:
    energy = gradient_energy(stack(layers), np.random.default_rng(0).random((3, 1, 96, 96), np.float32))
    assert energy is not None
    assert np.nonzero(energy)[0][-1] == layers
    assert radius_of(energy, 1.0) == layers
    assert radius_of(energy, 0.5) <= (layers + 1) // 2


def test_what_has_no_gradient_says_so() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float()

    assert gradient_energy(Steps(), np.ones((1, 1, 32, 32), np.float32)) is None


def test_a_radius_holds_its_share() -> None:
    energy = np.array([50.0, 30.0, 15.0, 4.0, 1.0])
    assert [radius_of(energy, share) for share in (0.5, 0.8, 0.81, 0.95, 0.999)] == [0, 1, 2, 2, 4]


def test_a_halo_ends_where_labels_hardly_change() -> None:
    profile = Profile(40)
    profile.pixels[1:] = 1000
    profile.relabelled[1:21] = 100
    profile.relabelled[21:31] = 10
    assert profile.halo(0.005) == 26  # 50 of 8000 labels from distance 26 to 33, 40 of them from 27 to 34
    assert profile.halo(0.02) == 20  # 170 of 8000 from distance 20 to 27, 80 from 21 to 28
    assert profile.halo(0.2) == 0


@pytest.mark.parametrize(
    ("network", "words"), [(Pooled(), "looks at the whole tile"), (Placed(), "where in the tile a pixel lies")]
)
def test_a_network_that_is_not_translation_invariant_is_found_out(
    tmp_path: Path, noise: NDArray[np.uint8], network: nn.Module, words: str
) -> None:
    card = gray_card(tmp_path)
    for module, expected in ((network, False), (stack(2), True)):
        seen = probe.look(answer_of(module), card, noise, probe.Sizes(64, 160), any_tile=True)
        invariant, finding = probe.judge(seen, [])
        assert invariant == expected, finding
        assert expected or words in finding


@pytest.mark.parametrize(
    ("name", "encoder", "across"),
    [
        ("Unet", "resnet18", None),
        ("Linknet", "mobilenet_v2", None),
        ("UnetPlusPlus", "resnet18", None),
        ("Unet", "timm-mobilenetv3_small_100", "mean"),
        ("Unet", "efficientnet-b0", "mean"),
        ("DeepLabV3Plus", "resnet18", "mean"),
        ("PSPNet", "resnet18", "_adaptive_avg_pool2d"),
        ("FPN", "resnet18", "native_group_norm"),
        ("Segformer", "mit_b0", "bmm"),
    ],
)
def test_what_a_network_mixes_over_the_tile_is_named(name: str, encoder: str, across: str | None) -> None:
    network = getattr(smp, name)(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=2)
    found = looks_across(network, 3, 128)
    assert found == [] if across is None else across in found


def test_tiles_that_see_enough_have_no_seams(noise: NDArray[np.uint8]) -> None:
    blurred = answer_of(stack(3))
    middle = np.median(blurred(noise)[0])

    def answer(samples: NDArray[Any]) -> NDArray[np.float32]:
        one = blurred(samples)[:1]
        return np.concatenate([one, np.full_like(one, middle)])

    reference = answer(noise).argmax(0)
    assert 0.4 < reference.mean() < 0.6
    seams = [float((tiled(answer, noise, 64, overlap) != reference).mean()) for overlap in (0, 8, 32)]
    assert seams[0] > seams[1] > seams[2]
    assert seams[0] > 0.01
    assert (tiled(answer, noise, 160, 0) == reference).all()


def function_model(folder: Path, name: str, **arguments: Any) -> Path:
    architecture = {"function": f"tests.making:{name}", "arguments": arguments}
    return threshold_model(folder, adapter="callable", architecture=architecture, tile=64, multiple_of=8)


def test_memory_is_what_the_model_took(tmp_path: Path) -> None:
    folder = function_model(tmp_path, "hungry", mib=96)
    cost = tile_cost(Loading(folder, card_of(folder), "cpu", 1, True), 64)
    assert cost is not None
    assert 92 <= cost.bytes / MIB < 110  # the system counts pages in batches, and some of the 96 MiB may be recycled ones
    assert cost.seconds > 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that take seconds, all in this process."""
    monkeypatch.setattr(probe, "tile_cost", measure_tile)
    monkeypatch.setattr(probe, "SEAM_TILE", 64)
    monkeypatch.setattr(probe, "OVERLAPS", (0, 8, 32))
    monkeypatch.setattr(probe, "TILES", (128,))


def quiet(_: str) -> None:
    """Nobody listens."""


@pytest.mark.usefixtures("small")
def test_a_model_of_pixels_has_neither_reach_nor_seams(tmp_path: Path) -> None:
    folder = threshold_model(tmp_path, (100,), tile=64, multiple_of=8, scaling={"offset": [100], "divisor": [30]})
    found = probe.probe_model(folder, probe.Looking(device="cpu"), quiet)
    assert (found.invariant, found.reach, found.halo, found.gradient_radius) == (True, 0, 0, {})
    assert [(s.overlap, s.share) for s in found.seams] == [(0, 0), (8, 0), (32, 0)]
    assert [cost.tile for cost in found.tiles] == [64, 128]
    card = probe.keep_probe(folder, found)
    assert card == read_card(folder)
    assert card.advised_overlap(128) == 0


@pytest.mark.usefixtures("small")
def test_a_program_for_one_tile_size_is_probed_with_that(tmp_path: Path) -> None:
    folder = function_model(tmp_path, "picky")
    with pytest.raises(ModelError, match="--trust-code"):
        probe.probe_model(folder, probe.Looking(device="cpu"), quiet)
    found = probe.probe_model(folder, probe.Looking(device="cpu", trust_code=True), quiet)
    assert found.invariant
    assert [cost.tile for cost in found.tiles] == [64]


def test_an_image_that_does_not_fit_or_is_empty_is_refused(tmp_path: Path) -> None:
    card = gray_card(tmp_path)
    wrong = write_raster(tmp_path / "wrong.tif", np.zeros((50, 50), np.uint16))
    with pytest.raises(PlanError, match=r"trained on uint8 samples, .* has uint16"):
        probe.sample(card, wrong, 64)
    empty = write_raster(tmp_path / "empty.tif", np.zeros((300, 300), np.uint8), nodata=0)
    with pytest.raises(PlanError, match=r"mostly filling \(0% real"):
        probe.sample(card, empty, 64)
    ramp = np.add.outer(np.arange(40), np.arange(1, 51)).astype(np.uint8)
    seen = probe.sample(card, write_raster(tmp_path / "ramp.tif", ramp, nodata=0), 64)
    assert seen.shape == (1, 64, 64)
    assert (seen[0, :40, :50] == ramp).all()
    assert (seen[0, 40:, :50] == ramp[:-25:-1]).all()


def test_texture_is_the_same_each_time_and_spreads_as_the_scaling_says(tmp_path: Path) -> None:
    card = gray_card(tmp_path).model_copy(update={"dtype": "float32"})
    card = card.model_copy(update={"scaling": card.scaling.model_copy(update={"offset": (40.0,), "divisor": (9.0,)})})
    one = probe.texture(card, 256)
    assert (one == probe.texture(card, 256)).all()
    assert one.mean() == pytest.approx(40, abs=2)
    assert one.std() == pytest.approx(9, rel=0.1)
    fine, coarse = np.abs(np.diff(one[0])).mean(), np.abs(one[0, 64:] - one[0, :-64]).mean()
    assert coarse > 2 * fine, "neighbours are no more alike than strangers: that is white noise"


@pytest.mark.usefixtures("small")
def test_probe_write_and_tile_auto_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((threshold_model(tmp_path / "facts") / "model.json").read_text())
    facts |= {"adapter": "smp", "weights": "model.safetensors", "tile": 64, "overlap": 32, "multiple_of": 8}
    facts |= {"activation": "softmax", "scaling": {"offset": [128], "divisor": [60]}}
    arguments = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    facts["architecture"] = {"name": "Unet", "encoder": "resnet18", "arguments": arguments}
    card = ModelCard.model_validate(facts)
    torch.manual_seed(0)
    folder = tmp_path / "model"
    before = save_model(folder, card, build(card).eval())
    assert before.translation_invariant
    image = write_raster(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8))
    with pytest.raises(PlanError, match=r"has not been probed .* `gigamask model probe DIR --write`"):
        plan_of(image, folder, tmp_path, tiling={"tile": "auto"})

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["gigamask", "model", "probe", str(folder), "--image", str(image), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.err
        return printed.out

    text = run("--device", "cpu")
    assert "translation-invariant; measured on a.tif" in text
    assert read_card(folder) == before

    found = json.loads(run("--device", "cpu", "--write", "--json"))
    card = read_card(folder)
    assert card.probe is not None
    assert found["halo"] == card.probe.halo > 0
    assert set(card.probe.gradient_radius) == {"0.95", "0.99", "0.999"}
    assert card.digest == before.digest
    assert card.activation_bytes(128) == card.probe.tiles[-1].bytes > 0
    plan = plan_of(image, folder, tmp_path, tiling={"tile": "auto"})
    assert plan.tile in (64, 128)
