"""The model card: what it refuses, in which words, and what its digest sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.card import CARD_NAME, ModelCard, digest_of, read_card
from pipeline.errors import ModelError
from tests.making import probed

FACTS: dict[str, Any] = {
    "name": "roads",
    "adapter": "smp",
    "architecture": {"name": "Unet", "encoder": "resnet18"},
    "weights_sha256": "0" * 64,
    "bands": ["red", "green", "blue"],
    "dtype": "uint8",
    "scaling": {"offset": [0, 0, 0], "divisor": [255, 255, 255]},
    "classes": [{"name": "other", "color": "#000000"}, {"name": "road", "color": "#ff0000"}],
}


def card(**changes: Any) -> ModelCard:
    return ModelCard.model_validate({**FACTS, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling": {"offset": [0], "divisor": [1, 1, 1]}}, r"scaling.offset has 1 values for 3 bands"),
        ({"scaling": {"offset": [0, 0, 0], "divisor": [1, 0, 1]}}, r"divisor \(1.0, 0.0, 1.0\) must be above 0 in every band"),
        ({"scaling": {"offset": [0, 0, 0], "divisor": [1, float("nan"), 1]}}, r"must be above 0 in every band"),
        ({"classes": [FACTS["classes"][0]] * 2}, r"class names \['other', 'other'\] are not all different"),
        ({"tile": 256, "overlap": 256}, r"overlap 256 must be below tile 256"),
        ({"tile": 200}, r"tile 200 is no multiple of 32"),
        ({"activation": "sigmoid", "classes": FACTS["classes"][:1]}, r"sigmoid answers 2 classes, the card names 1"),
        ({"weights": "../other/model.safetensors"}, r"must be a plain file name in the model's folder"),
        ({"weights": "/etc/passwd"}, r"must be a plain file name in the model's folder"),
        ({"dtype": "float64"}, r"uint8"),
        ({"bands": []}, r"at least 1"),
        ({"classes": [{"name": "a\x1b[2J", "color": "#000000"}]}, r"String should match pattern"),
        ({"colour": "red"}, r"Extra inputs are not permitted"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused_with_the_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        card(**changes)


def test_the_cards_of_the_documentation_are_cards() -> None:
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    shown = [ModelCard.model_validate_json(block.partition("```")[0]) for block in text.split("```json")[1:]]
    assert [each.adapter for each in shown] == ["smp", "exported", "callable"]


@pytest.mark.parametrize("weights", ["..", "."])
def test_a_folder_is_no_weights_file(tmp_path: Path, weights: str) -> None:
    (tmp_path / CARD_NAME).write_text(json.dumps({**FACTS, "weights": weights}))

    with pytest.raises(ModelError):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "prose",
    [
        {"name": "roads of the south"},
        {"description": "finds roads"},
        {"licence": "CC-BY-4.0"},
        {"training": {"iou": 0.9}},
        {"activation_bytes_per_pixel": 700},
        {"translation_invariant": True},
        probed({512: (1.0, 300)}),
    ],
)
def test_prose_does_not_change_the_digest(prose: dict[str, Any]) -> None:
    assert card(**prose) != card()
    assert card(**prose).digest == card().digest


@pytest.mark.parametrize(
    "fact",
    [
        {"weights_sha256": "1" * 64},
        {"classes": [*FACTS["classes"], {"name": "path", "color": "#00ff00"}]},
        {"classes": FACTS["classes"][::-1]},
        {"architecture": {"name": "Unet", "encoder": "resnet34"}},
        {"bands": ["blue", "green", "red"]},
        {"dtype": "uint16"},
        {"scaling": {"offset": [0, 0, 0], "divisor": [255, 255, 254]}},
        {"activation": "none"},
        {"resolution": {"size": 0.5}},
    ],
)
def test_what_decides_the_answer_changes_the_digest(fact: dict[str, Any]) -> None:
    assert card(**fact).digest != card().digest


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), max_size=5))
def test_the_digest_does_not_see_the_order_of_keys(facts: dict[str, Any]) -> None:
    assert digest_of(facts) == digest_of(dict(reversed(facts.items())))


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    written = card(resolution={"size": 0.3}, **probed({512: (1.0, 300)}))
    (tmp_path / CARD_NAME).write_text(written.model_dump_json())
    (tmp_path / "model.safetensors").touch()

    assert read_card(tmp_path) == written


def test_memory_is_what_was_measured_for_the_tile_else_what_its_pixels_say() -> None:
    known = card(activation_bytes_per_pixel=100, **probed({512: (1.0, 300)}))
    assert known.activation_bytes(512) == 300 << 20
    assert known.activation_bytes(1024) == 100 * 1024 * 1024
    assert card(activation_bytes_per_pixel=100).activation_bytes(512) == 100 * 512 * 512


def test_what_a_model_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist: a model is a folder with model\.json"):
        read_card(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no model\.json"):
        read_card(tmp_path)

    (tmp_path / CARD_NAME).write_text(json.dumps(FACTS))
    with pytest.raises(ModelError, match=r"names weights 'model\.safetensors', which .* does not hold"):
        read_card(tmp_path)

    (tmp_path / CARD_NAME).write_text(json.dumps({**FACTS, "tile": 100, "dtype": "int8"}))
    with pytest.raises(ModelError, match=r"not a valid model card:\n  dtype: "):
        read_card(tmp_path)

    (tmp_path / CARD_NAME).write_text("{")
    with pytest.raises(ModelError, match="not a valid model card"):
        read_card(tmp_path)
