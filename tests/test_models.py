"""Models: what is built, saved and loaded answers what the plain network answers; what cannot work says why."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.card import CARD_NAME, ModelCard, read_card
from pipeline.errors import ModelError
from pipeline.models import choose_device, load_model, network_predictor, save_model, verify_weights
from pipeline.models.activations import WORKSPACE, activation_bytes_per_pixel
from pipeline.models.cpu import compute_alone
from pipeline.models.device import DevicePredictor
from pipeline.models.network import Inference, Network, normalised, to_device
from pipeline.models.predictor import Predictor
from pipeline.models.smp import ARCHITECTURES, build

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
TILE = 64
COLORS = ["#000000", "#ff0000", "#00ff00", "#0000ff"]


def make_card(**changes: Any) -> ModelCard:
    """A small card: three bands, three classes, tiles of 64 px, samples scaled to about -2...2."""
    classes = changes.pop("classes", 3)
    bands = changes.pop("bands", 3)
    facts = {
        "name": "toy",
        "adapter": "smp",
        "architecture": {"name": "Unet", "encoder": "resnet18"},
        "bands": [f"band{i + 1}" for i in range(bands)],
        "dtype": "uint8",
        "scaling": {"offset": [100 + i for i in range(bands)], "divisor": [60 + i for i in range(bands)]},
        "classes": [{"name": f"class {i}", "color": COLORS[i]} for i in range(classes)],
        "tile": TILE,
        "overlap": 16,
        "multiple_of": 1,
    }
    return ModelCard.model_validate({**facts, **changes})


def tiles(card: ModelCard, count: int, seed: int = 0, tile: int = TILE) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Random samples in the card's type over most of its range, and a valid mask with a hole."""
    rng = np.random.default_rng(seed)
    shape = (count, len(card.bands), tile, tile)
    if card.dtype == "float32":
        data = rng.normal(100, 60, shape).astype(np.float32)
    else:
        limits = np.iinfo(card.dtype)
        data = rng.integers(limits.min, limits.max, shape, dtype=card.dtype, endpoint=True)
    valid = np.ones((count, tile, tile), bool)
    valid[:, : tile // 4, : tile // 4] = False
    return data, valid


def scaled(card: ModelCard, data: NDArray[Any], valid: NDArray[np.bool_]) -> Tensor:
    """What the network should see, computed the obvious way."""
    offset, divisor = (np.array(v, np.float32)[:, None, None] for v in (card.scaling.offset, card.scaling.divisor))
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.where(valid[:, None], (data.astype(np.float32) - offset) / divisor, np.float32(0)))


def load(folder: Path, card: ModelCard, **changes: Any) -> Any:
    settings = {"device": "cpu", "batch": 2, "precision": "float32", "flips": 1, "trust_code": False, **changes}
    return load_model(folder, card, **settings)


class Pointwise(nn.Module):
    """A network whose answer can be known without it: fixed mixtures of the bands, plus their column-wise running sum, so
    that turning the input turns the answer."""

    def __init__(self, bands: int = 3, outputs: int = 3) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.linspace(-1, 1, bands * outputs).reshape(outputs, bands))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("ob,nbij->noij", self.mix, x)
        return mixed + 0.1 * mixed.cumsum(dim=3)


def predictor(card: ModelCard, network: nn.Module, **changes: Any) -> Predictor:
    how = Inference(**{"device": "cpu", "batch": 2, "precision": "float32", "flips": 1, **changes})
    return network_predictor(card, Network(network), how)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    """A saved U-Net with random weights."""
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    return folder, save_model(folder, make_card(), build(make_card()))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The cheapest real network, with random weights."""
    torch.manual_seed(0)
    return build(make_card(architecture={"name": "Unet", "encoder": "tu-mobilenetv3_small_050"})).eval()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoder"), [("Unet", "resnet18"), ("DeepLabV3Plus", "timm-efficientnet-b0"), ("Segformer", "mit_b0")]
)
def test_a_saved_network_answers_what_the_plain_one_does(tmp_path: Path, offline: None, name: str, encoder: str) -> None:
    card = make_card(architecture={"name": name, "encoder": encoder})
    network = build(card).eval()
    data, valid = tiles(card, 3)
    with torch.no_grad():
        expected = network(scaled(card, data, valid)).softmax(1).numpy()
    assert np.ptp(expected) > 0.01

    save_model(tmp_path, card, network)
    scores = load(tmp_path, read_card(tmp_path))(data, valid)

    assert scores.dtype == np.float32
    assert scores.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


CHEAPEST = {"DPT": "tu-vit_tiny_patch16_224"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_of_the_library_builds_and_predicts(offline: None, name: str) -> None:
    arguments = {"dynamic_img_size": True} if name == "DPT" else {}
    encoder = CHEAPEST.get(name, "tu-mobilenetv3_small_050" if name not in ("PAN", "DeepLabV3", "DeepLabV3Plus") else "resnet18")
    card = make_card(architecture={"name": name, "encoder": encoder, "arguments": arguments}, bands=4)

    with torch.no_grad():
        scores = network_predictor(card, Network(build(card), any_layout=True), Inference("cpu", 1, "float32", 1))(
            *tiles(card, 1, tile=128)
        )

    assert scores.shape == (1, 3, 128, 128)


def test_bfloat16_is_near_float32_and_not_it(unet: tuple[Path, ModelCard]) -> None:
    folder, card = unet
    data, valid = tiles(card, 2)
    exact, rounded = load(folder, card)(data, valid), load(folder, card, precision="bfloat16")(data, valid)

    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1


def threads_elsewhere() -> int:
    """How many threads torch would use in a thread that is new."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Torch set to three threads, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_predicting_does_not_change_torchs_threads_elsewhere(network: nn.Module, three_threads: None) -> None:
    predictor(make_card(), network)(*tiles(make_card(), 2))

    assert torch.get_num_threads() == threads_elsewhere() == 3


def test_a_thread_that_computes_alone_stays_alone(three_threads: None) -> None:
    with ThreadPoolExecutor(1, initializer=compute_alone) as pool:
        pool.submit(int).result()
        torch.set_num_threads(3)

        assert pool.submit(torch.get_num_threads).result() == 1
    assert threads_elsewhere() == 3


# --- scores of a tile depend on that tile only ------------------------------------------------------------------------


@settings(max_examples=12)
@given(count=st.integers(0, 5), batch=st.integers(1, 4), seed=st.integers(0, 9))
def test_scores_do_not_depend_on_the_batch(network: nn.Module, count: int, batch: int, seed: int) -> None:
    card = make_card()
    data, valid = tiles(card, count, seed)

    together = predictor(card, network, batch=batch)(data, valid)

    assert together.shape == (count, 3, TILE, TILE)
    alone = predictor(card, network, batch=1)
    for i in range(count):
        np.testing.assert_array_equal(together[i], alone(data[i : i + 1], valid[i : i + 1])[0])


def test_a_pass_always_sees_the_same_number_of_tiles() -> None:
    card = make_card()
    data, valid = tiles(card, 7)
    network = Greedy(most=3)

    scores = in_order(card, network, 3, data, valid)

    assert network.seen == [3, 3, 3]
    np.testing.assert_allclose(scores, predictor(card, Pointwise())(data, valid), atol=1e-6)


def test_scores_are_the_same_bits_for_any_number_of_threads(unet: tuple[Path, ModelCard], three_threads: None) -> None:
    folder, card = unet
    data, valid = tiles(card, 4)
    answers = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        predict = load(folder, card, batch=4)
        answers += [predict(data, valid).tobytes() for _ in range(2)]

    assert len(set(answers)) == 1


# --- samples in, scores out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_samples_of_every_type_are_scaled_on_the_device(dtype: str) -> None:
    card = make_card(dtype=dtype, activation="none")
    data, valid = tiles(card, 3)
    before = data.copy()

    scores = predictor(card, Pointwise())(data, valid)

    np.testing.assert_allclose(scores, Pointwise()(scaled(card, data, valid)).detach().numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(data, before)


def test_large_uint16_samples_stay_positive() -> None:
    samples = np.array([0, 1, 32767, 32768, 65535], np.uint16).reshape(1, 1, 1, 5)

    assert to_device(samples, torch.device("cpu")).flatten().tolist() == [0, 1, 32767, 32768, 65535]


def test_filling_is_zero_whatever_it_holds() -> None:
    samples = torch.tensor([[[[1.0, torch.nan, torch.inf, 5.0]]]])
    valid = torch.tensor([[[True, False, False, True]]])
    one = torch.ones(1, 1, 1)

    assert normalised(samples, valid, one, 2 * one).flatten().tolist() == [0, 0, 0, 2]


def test_not_a_number_in_real_data_is_an_error_and_in_filling_is_not() -> None:
    card = make_card(dtype="float32")
    data, valid = tiles(card, 2)
    data[1, 0, 0, 0] = np.nan
    predict = predictor(card, Pointwise())

    assert np.isfinite(predict(data, valid)).all()
    valid[1, 0, 0] = True
    with pytest.raises(ModelError, match=r"NaN or infinite outputs for tile 1 of a group of 2; 1 of their valid samples"):
        predict(data, valid)


def test_sigmoid_gives_two_classes_that_sum_to_one() -> None:
    card = make_card(classes=2, activation="sigmoid")
    data, valid = tiles(card, 1)

    scores = predictor(card, Pointwise(outputs=1))(data, valid)

    logits = Pointwise(outputs=1)(scaled(card, data, valid)).detach().numpy().astype(np.float64)
    np.testing.assert_allclose(scores[:, 1], (1 / (1 + np.exp(-logits)))[:, 0], atol=1e-6)
    np.testing.assert_allclose(scores[:, 0] + scores[:, 1], 1, atol=1e-6)


def test_built_for_sigmoid_a_network_has_one_output(tmp_path: Path) -> None:
    card = make_card(classes=2, activation="sigmoid")
    save_model(tmp_path, card, build(card))

    assert load(tmp_path, read_card(tmp_path))(*tiles(card, 1)).shape == (1, 2, TILE, TILE)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


TURNS = {
    1: [lambda x: x],
    2: [lambda x: x, lambda x: x[..., ::-1]],
    4: [lambda x: x, lambda x: x[..., ::-1], lambda x: x[..., ::-1, :], lambda x: np.rot90(x, 2, (2, 3))],
    8: [lambda x, k=k, m=m: np.rot90(x[..., ::-1] if m else x, k, (2, 3)) for k in range(4) for m in (False, True)],
}
BACK = {
    1: TURNS[1],
    2: TURNS[2],
    4: TURNS[4],
    8: [
        lambda x, k=k, m=m: np.rot90(x, -k, (2, 3))[..., ::-1] if m else np.rot90(x, -k, (2, 3))
        for k in range(4)
        for m in (False, True)
    ],
}


@pytest.mark.parametrize("flips", [1, 2, 4, 8])
def test_flips_average_the_scores_of_the_turned_tile_turned_back(flips: int) -> None:
    card = make_card()
    data, valid = tiles(card, 3)
    network = Pointwise().double()

    def plain(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return softmax(network(torch.from_numpy(x.copy())).detach().numpy())

    x = scaled(card, data, valid).numpy().astype(np.float64)
    expected = np.mean([back(plain(turn(x))) for turn, back in zip(TURNS[flips], BACK[flips], strict=True)], axis=0)

    scores = predictor(card, Pointwise(), flips=flips)(data, valid)

    np.testing.assert_allclose(scores, expected, atol=2e-5)
    if flips > 1:
        assert np.abs(scores - plain(x)).max() > 0.1
    assert scores.flags["C_CONTIGUOUS"]


def test_wrong_samples_are_refused_with_both_shapes() -> None:
    card = make_card()
    predict = predictor(card, Pointwise())
    data, valid = tiles(card, 2)

    with pytest.raises(ModelError, match=r"takes \(n, 3, t, t\) of uint8.* given \(2, 2, 64, 64\) of uint8"):
        predict(data[:, :2], valid)
    with pytest.raises(ModelError, match=r"of uint8.* given \(2, 3, 64, 64\) of uint16"):
        predict(data.astype(np.uint16), valid)
    with pytest.raises(ModelError, match=r"given \(2, 3, 64, 32\)"):
        predict(data[..., :32], valid)
    with pytest.raises(ModelError, match=r"valid must be \(2, 64, 64\) of bool.* it is \(1, 64, 64\) of bool"):
        predict(data, valid[:1])


def test_a_network_that_breaks_its_cards_promise_is_refused_with_both_shapes() -> None:
    card = make_card()

    with pytest.raises(ModelError, match=r"answers \(1, 4, 64, 64\), its card promises \(1, 3, 64, 64\)"):
        predictor(card, Pointwise(outputs=4))(*tiles(card, 1))
    with pytest.raises(ModelError, match=r"answers \(1, 3, 32, 32\), its card promises \(1, 3, 64, 64\)"):
        predictor(card, nn.AvgPool2d(2))(*tiles(card, 1))
    with pytest.raises(ModelError, match=r"answers tuple, not one tensor"):
        predictor(card, nn.AdaptiveMaxPool2d(8, return_indices=True))(*tiles(card, 1))


def test_what_torch_says_is_passed_on_with_the_batch() -> None:
    with pytest.raises(
        ModelError, match=r"'toy' fails on a batch of \(1, 3, 64, 64\) torch.float32 on cpu: .*to have 5 channels"
    ):
        predictor(make_card(), nn.Conv2d(5, 3, 1))(*tiles(make_card(), 1))


# --- a device with little memory --------------------------------------------------------------------------------------


class Greedy(Pointwise):
    """Runs out of memory above so many tiles at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def in_order(card: ModelCard, network: nn.Module, batch: int, data: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Scores by the way of a GPU, walked on the CPU."""
    return DevicePredictor(card, Network(network), Inference("cpu", batch, "float32", 1))(data, valid)


def test_out_of_memory_halves_the_batch_for_good() -> None:
    card = make_card()
    data, valid = tiles(card, 7)
    network = Greedy(most=3)

    scores = in_order(card, network, 8, data, valid)

    assert network.seen == [8, 4, 2, 2, 2, 2]
    np.testing.assert_allclose(scores, predictor(card, Pointwise())(data, valid), atol=1e-6)


def test_memory_for_not_even_one_tile_is_an_error() -> None:
    card = make_card()

    with pytest.raises(ModelError, match=r"out of memory on cpu with 1 tile\(s\) of 64 px at a time, and cannot take fewer"):
        in_order(card, Greedy(most=0), 2, *tiles(card, 1))


# --- weights ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_verified(unet: tuple[Path, ModelCard]) -> None:
    folder, card = unet

    assert card == read_card(folder)
    assert card.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card.activation_bytes_per_pixel > 100
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]
    verify_weights(folder, card)


def test_other_weights_are_refused_with_both_digests(tmp_path: Path, unet: tuple[Path, ModelCard]) -> None:
    card = unet[1]
    (tmp_path / "model.safetensors").write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()

    for attempt in (verify_weights, load):
        with pytest.raises(ModelError, match=f"its SHA-256 is {found}, the card says {card.weights_sha256}"):
            attempt(tmp_path, card)
    with pytest.raises(ModelError, match=f'add "weights_sha256": "{found}"'):
        verify_weights(tmp_path, card.model_copy(update={"weights_sha256": None}))


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be read: .*Copy model\.safetensors into"):
        load(tmp_path, make_card(weights_sha256="0" * 64))
    with pytest.raises(ModelError, match="names no weights, adapter smp needs them"):
        load(tmp_path, make_card(weights=None))


def resealed(folder: Path, card: ModelCard, **changes: Any) -> ModelCard:
    """The card with the digest of the weights that lie there, and other changes."""
    found = hashlib.sha256((folder / str(card.weights)).read_bytes()).hexdigest()
    return card.model_copy(update={"weights_sha256": found, **changes})


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path, unet: tuple[Path, ModelCard]) -> None:
    folder, card = unet

    with pytest.raises(ModelError, match=r"missing \(encoder\.layer1"):
        load(folder, resealed(folder, card, architecture={"name": "Unet", "encoder": "resnet34"}))
    with pytest.raises(ModelError, match=r"2 of another shape \(segmentation_head\.0\.weight is \(3, .* should be \(4, "):
        load(folder, resealed(folder, card, classes=make_card(classes=4).classes))
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"cannot be read: .*Copy them again"):
        load(tmp_path, resealed(tmp_path, card))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    card = make_card(weights="model.pth")
    torch.save(build(card).state_dict(), tmp_path / "model.pth")

    with pytest.raises(ModelError, match=r"must be \.safetensors: other formats can run code"):
        load(tmp_path, resealed(tmp_path, card))


def test_only_smp_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be saved with adapter exported"):
        save_model(tmp_path, make_card(adapter="exported"), Pointwise())


# --- what smp cannot build --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"name": "UNet", "encoder": "resnet18"}, r"no architecture 'UNet': did you mean Unet\? There are Unet, "),
        ({"name": "Unet", "encoder": "resnet19"}, r"cannot build Unet with encoder 'resnet19'"),
        ({"name": "Unet", "encoder": "tu-nothing"}, r"cannot build Unet with encoder 'tu-nothing'"),
        ({"name": "Linknet", "encoder": "mit_b0"}, r"cannot build Linknet .*not supported"),
        ({"name": "Unet", "encoder": "resnet18", "arguments": {"depth": 9}}, r"cannot build Unet .*depth"),
        ({"name": "Unet", "encoder": "resnet18", "arguments": {"encoder_weights": "imagenet"}}, r"sets encoder_weights"),
        ({"name": "Unet", "encoder": "resnet18", "arguments": {"classes": 7}}, r"sets classes: .* the card's own fields"),
        ({"name": "Unet", "encoder": "tu-resnet18", "arguments": {"checkpoint_path": "x.pth"}}, r"sets checkpoint_path"),
        ({"name": "Unet", "encoder": "tu-hf-hub:timm/resnet18"}, r"names a place: nothing is fetched"),
        ({"name": "Unet", "encoder": "resnet18", "depth": 4}, r"must be name, encoder, arguments"),
    ],
)
def test_what_cannot_be_built_says_why(offline: None, architecture: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(make_card(architecture=architecture))


# --- models that are programs -----------------------------------------------------------------------------------------


def export_card(
    folder: Path, network: nn.Module, *, name: str = "model.pt2", batch: int | None = None, **changes: Any
) -> ModelCard:
    """Saves `network` by torch.export, for `batch` tiles only or any number."""
    card = make_card(adapter="exported", weights=name, architecture={})
    example = torch.zeros(batch or 2, len(card.bands), TILE, TILE)
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    with (folder / name).open("wb") as file:
        torch.export.save(torch.export.export(network.eval(), (example,), dynamic_shapes=dynamic), file)
    return resealed(folder, card)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_an_exported_program_answers_what_its_network_does(tmp_path: Path, batch: int | None) -> None:
    card = export_card(tmp_path, Pointwise(), batch=batch)
    data, valid = tiles(card, 5)

    scores = load(tmp_path, card, trust_code=True)(data, valid)

    np.testing.assert_allclose(scores, predictor(card, Pointwise())(data, valid), atol=1e-6)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_torchscript_program_answers_what_its_network_does(tmp_path: Path, batch: int | None) -> None:
    card = make_card(adapter="exported", weights="model.pt", architecture={} if batch is None else {"batch": batch})
    torch.jit.save(torch.jit.trace(Pointwise().eval(), torch.zeros(batch or 1, 3, TILE, TILE)), tmp_path / "model.pt")
    data, valid = tiles(card, 4)

    scores = load(tmp_path, resealed(tmp_path, card), trust_code=True)(data, valid)

    np.testing.assert_allclose(scores, predictor(card, Pointwise())(data, valid), atol=1e-6)


def test_programs_are_told_apart_by_content(tmp_path: Path) -> None:
    card = export_card(tmp_path, Pointwise(), name="model.pt")

    assert load(tmp_path, card, trust_code=True)(*tiles(card, 1)).shape == (1, 3, TILE, TILE)


def test_a_program_for_other_bands_or_tiles_is_refused(tmp_path: Path) -> None:
    card = export_card(tmp_path, Pointwise())

    with pytest.raises(ModelError, match=r"takes 1 input\(s\) of .*'3', '64', '64'\); the card has 4 bands"):
        load(
            tmp_path,
            make_card(adapter="exported", weights="model.pt2", bands=4, weights_sha256=card.weights_sha256),
            trust_code=True,
        )
    with pytest.raises(ModelError, match=r"fails on a batch of \(1, 3, 32, 32\)"):
        load(tmp_path, card, trust_code=True)(*tiles(card, 1, tile=32))


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    card = make_card(adapter="exported", weights="model.pt")
    (tmp_path / "model.pt").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"is no torch program: "):
        load(tmp_path, resealed(tmp_path, card), trust_code=True)

    torch.save(Pointwise().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"no torch program but an archive of .*a pickled checkpoint is not loaded"):
        load(tmp_path, resealed(tmp_path, card), trust_code=True)


def mean_and_rest(data: NDArray[Any], valid: NDArray[np.bool_], gain: float = 1.0) -> NDArray[np.float64]:
    """A model that is a function: two logits from the mean over the bands."""
    assert len(data) == len(valid) == 2, "always a full batch"
    mean = gain * (data.mean(axis=1) - 128)
    return np.stack([-mean, mean], axis=1)


def function_card(**changes: Any) -> ModelCard:
    architecture = {"function": f"{__name__}:mean_and_rest", "arguments": {"gain": 0.1}}
    return make_card(**{"adapter": "callable", "weights": None, "architecture": architecture, "classes": 2, **changes})


def test_a_function_is_a_model(tmp_path: Path) -> None:
    card = function_card()
    data, valid = tiles(card, 3)

    scores = load(tmp_path, card, trust_code=True)(data, valid)

    np.testing.assert_allclose(scores[:, 1], 1 / (1 + np.exp(-0.2 * (data.mean(axis=1) - 128))), atol=1e-6)


def test_a_function_that_cannot_be_called_says_why(tmp_path: Path) -> None:
    for function, words in (("nowhere:f", "cannot be imported"), ("math:f", "cannot be imported"), ("math.sin", "must be 'pack")):
        with pytest.raises(ModelError, match=words):
            load(tmp_path, function_card(architecture={"function": function}), trust_code=True)
    with pytest.raises(ModelError, match=r"test_time_flips 2 does not reach it"):
        load(tmp_path, function_card(), trust_code=True, flips=2)
    with pytest.raises(ModelError, match=r"answers \(2, 2, 64, 64\), its card promises \(2, 3, 64, 64\)"):
        load(tmp_path, function_card(classes=3), trust_code=True)(*tiles(make_card(), 1))


def test_nothing_runs_code_unless_trusted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter callable\) calls a Python function.*model\.trust_code: true"):
        load(tmp_path, function_card(architecture={"function": "antigravity:fly"}))
    assert "antigravity" not in sys.modules

    card = export_card(tmp_path, Pointwise())
    with pytest.raises(ModelError, match=r"adapter exported\) is a program, whose file can hold any code.*--trust-code"):
        load(tmp_path, card)


# --- thresholds -------------------------------------------------------------------------------------------------------


def threshold_card(**changes: Any) -> ModelCard:
    return make_card(
        **{"adapter": "threshold", "weights": None, "architecture": {"band": 1, "thresholds": [100, 200]}, **changes}
    )


def test_thresholds_part_a_band_into_classes(tmp_path: Path) -> None:
    data = np.zeros((1, 3, 2, 2), np.uint8)
    data[0, 1] = [[0, 99], [100, 255]]

    scores = load(tmp_path, threshold_card())(data, np.ones((1, 2, 2), bool))

    assert scores.dtype == np.float32
    assert scores.argmax(axis=1).tolist() == [[[0, 0], [1, 2]]]
    assert (scores.sum(axis=1) == 1).all()
    assert scores.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 2}, r"2 thresholds \[100, 200\] part 3 classes, the card names 2"),
        ({"architecture": {"band": 3, "thresholds": [1, 2]}}, r"architecture\.band is 3, the card has bands 0 to 2"),
        ({"architecture": {"thresholds": [2, 1]}}, r"\[2, 1\] must grow"),
        ({"architecture": {}}, r"thresholds is None, it must be a list of numbers"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(tmp_path, threshold_card(**changes))


def test_thresholds_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_text(threshold_card().model_dump_json())
    code = (
        "import sys, pathlib; from pipeline.card import read_card; from pipeline.models import load_model; "
        "f = pathlib.Path(sys.argv[1]); load_model(f, read_card(f), device='auto', batch=1, precision='float32', flips=1, "
        "trust_code=False); sys.exit('torch' in sys.modules)"
    )

    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent, check=False).returncode == 0
    )


# --- devices and memory -----------------------------------------------------------------------------------------------


def test_devices_that_are_not_there_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == "cpu"
    for name in ("cuda", "cuda:1", "mps", "gpu"):
        with pytest.raises(ModelError, match=f"device '{name}' is not on this machine, which has cpu: "):
            choose_device(name)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(ModelError, match="which has cpu, cuda:0, cuda:1"):
        choose_device("cuda:2")


class Known(nn.Module):
    """Keeps 4 channels alive while it makes 8 from them, then 3: a peak of 12 float32 channels."""

    def forward(self, x: Tensor) -> Tensor:
        four = torch.cat([x, x], dim=1)
        eight = torch.cat([four, four], dim=1)
        return eight[:, :3] + four[:, :3]


def test_the_memory_of_a_pass_is_counted_while_tensors_live() -> None:
    peak = (4 + 8 + 3) * 4

    assert activation_bytes_per_pixel(Known(), bands=2, tile=16, classes=3) == pytest.approx(WORKSPACE * peak)


def test_a_larger_network_needs_more_memory_and_is_left_as_it_was() -> None:
    small, large = (
        build(make_card(architecture={"name": "Unet", "encoder": e})) for e in ("tu-mobilenetv3_small_050", "resnet34")
    )
    small.train()
    large.eval()
    before = json.dumps({k: v.sum().item() for k, v in small.state_dict().items()})

    assert 100 < activation_bytes_per_pixel(small, 3, 128, 3) < activation_bytes_per_pixel(large, 3, 128, 3) < 3000
    assert (small.training, large.training) == (True, False)
    assert json.dumps({k: v.sum().item() for k, v in small.state_dict().items()}) == before
