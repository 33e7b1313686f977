"""Code of callable models: which files are part of a model, and that no mask outlives the code that made it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.card import ModelCard, read_card
from pipeline.errors import ModelError, PlanError
from pipeline.models import load_model, usable_card
from pipeline.plan import Plan
from tests.conftest import write_raster
from tests.making import plan_of, threshold_model
from tests.test_night import night, result

BRIGHT = """
import numpy as np

def predict(data, valid):
    bright = data[:, 0] >= LEAST
    return np.stack([~bright, bright], axis=1).astype(np.float32)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported, none of which outlives the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("lonemodel", "packedmodel", "spacemodel"):
            del sys.modules[name]


def model(folder: Path, function: str, **changes: Any) -> Path:
    return threshold_model(folder / "model", (100,), adapter="callable", architecture={"function": function}, **changes)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def digest(folder: Path) -> str:
    return usable_card(folder / "model", trust_code=True).digest


def load(folder: Path, card: ModelCard) -> Any:
    return load_model(folder / "model", card, device="cpu", batch=1, precision="float32", flips=1, trust_code=True)


def plan_for(folder: Path, card: ModelCard) -> Plan:
    image = write_raster(folder / "scene.tif", np.zeros((40, 40), np.uint8))
    return plan_of(image, folder / "model", folder).model_copy(update={"card": card})


def test_another_text_of_a_function_is_another_model_and_is_not_imported_to_find_out(place: Path) -> None:
    code = write(place / "lonemodel.py", "raise AssertionError('imported')\n")
    model(place, "lonemodel:predict")
    first = usable_card(place / "model", trust_code=True)
    write(code, "raise AssertionError('changed')\n")
    second = usable_card(place / "model", trust_code=True)
    assert plan_for(place, first).digest != plan_for(place, second).digest
    write(code, "raise AssertionError('imported')\n")
    assert usable_card(place / "model", trust_code=True) == first
    assert "lonemodel" not in sys.modules
    assert read_card(place / "model").code_sha256 is None, "the file is as its author wrote it"


def test_a_function_in_a_package_is_all_source_of_the_package(place: Path) -> None:
    write(place / "packedmodel" / "__init__.py", "")
    write(place / "packedmodel" / "deep" / "model.py", "from packedmodel import tools\n")
    tools = write(place / "packedmodel" / "tools.py", "x = 1\n")
    model(place, "packedmodel.deep.model:predict")
    found = [digest(place)]
    write(tools, "x = 2\n")
    found.append(digest(place))
    write(place / "packedmodel" / "deep" / "more.py", "")
    found.append(digest(place))
    assert len(set(found)) == 3
    write(place / "packedmodel" / "table.txt", "no code")
    write(place / "other.py", "")
    assert digest(place) == found[-1]


def test_a_namespace_is_entered_and_not_digested_whole(place: Path) -> None:
    write(place / "spacemodel" / "own" / "__init__.py", "")
    write(place / "spacemodel" / "own" / "model.py", "x = 1\n")
    model(place, "spacemodel.own.model:predict")
    found = digest(place)
    write(place / "spacemodel" / "neighbour" / "__init__.py", "x = 1\n")
    assert digest(place) == found
    write(place / "spacemodel" / "own" / "model.py", "x = 2\n")
    assert digest(place) != found


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("math:sin", r"no Python source here \(.*State a `version` in model\.json"),
        ("numpy.fft._pocketfft_umath:fft", r"no Python source here"),
        ("nowhere.at_all:f", r"no module 'nowhere' here.*`version`"),
        ("nocolon", r"must be 'package\.module:function'"),
    ],
)
def test_code_without_source_must_state_a_version(place: Path, function: str, words: str) -> None:
    model(place, function)
    with pytest.raises(PlanError, match=words):
        digest(place)


def test_a_stated_version_stands_for_the_code(place: Path) -> None:
    code = write(place / "lonemodel.py", "x = 1\n")
    model(place, "lonemodel:predict", version="2026-11")
    stated = digest(place)
    write(code, "x = 2\n")
    assert digest(place) == stated
    model(place, "lonemodel:predict", version="2026-12")
    assert digest(place) != stated
    model(place, "math:sin", version="3.12")
    assert digest(place)


def test_code_that_the_card_names_by_its_digest_is_held_to_it(place: Path) -> None:
    code = write(place / "lonemodel.py", "x = 1\n")
    model(place, "lonemodel:predict")
    found = usable_card(place / "model", trust_code=True).code_sha256
    model(place, "lonemodel:predict", code_sha256=found)
    assert digest(place)
    write(code, "x = 2\n")
    with pytest.raises(PlanError, match=rf"is not what its card was written for.*the card says {found}"):
        digest(place)


def test_nothing_of_the_code_is_read_unless_trusted(place: Path) -> None:
    model(place, "nowhere:f")
    with pytest.raises(PlanError, match=r"set model\.trust_code"):
        usable_card(place / "model", trust_code=False)


def test_a_worker_with_other_code_than_was_planned_refuses(place: Path) -> None:
    code = write(place / "lonemodel.py", f"LEAST = 99{BRIGHT}")
    model(place, "lonemodel:predict")
    planned = usable_card(place / "model", trust_code=True)
    write(code, f"LEAST = 200{BRIGHT}")
    with pytest.raises(
        ModelError, match=rf"whose code here is not what the plan was made for.*planned was {planned.code_sha256}"
    ):
        load(place, planned)
    assert "lonemodel" not in sys.modules


def test_a_process_that_has_imported_the_code_before_it_was_changed_refuses(place: Path) -> None:
    """It would run the old function under the new one's digest."""
    code = write(place / "lonemodel.py", f"LEAST = 99{BRIGHT}")
    model(place, "lonemodel:predict")
    load(place, usable_card(place / "model", trust_code=True))
    load(place, usable_card(place / "model", trust_code=True))
    write(code, f"LEAST = 200{BRIGHT}")
    changed = usable_card(place / "model", trust_code=True)
    with pytest.raises(ModelError, match="changed after this process had imported it"):
        load(place, changed)
    del sys.modules["lonemodel"]
    data = np.full((1, 1, 32, 32), 150, np.uint8)
    assert load(place, changed)(data, np.ones((1, 32, 32), bool))[0, 1].max() == 0


def test_a_mask_does_not_outlive_the_code_that_made_it(place: Path) -> None:
    (place / "scenes").mkdir()
    write_raster(place / "scenes" / "a.tif", np.full((40, 50), 150, np.uint8))
    code = write(place / "lonemodel.py", f"LEAST = 99{BRIGHT}")
    model(place, "lonemodel:predict")
    sections = {"model": {"path": "model", "batch": 3, "trust_code": True}, "truth": {}}
    assert result(night(place, **sections), "a").class_px == [0, 2000]
    write(code, f"LEAST = 200{BRIGHT}")
    del sys.modules["lonemodel"]
    assert result(night(place, **sections), "a").class_px == [2000, 0]


def test_cards_of_earlier_versions_keep_their_digest(tmp_path: Path) -> None:
    folder = threshold_model(tmp_path / "model")
    facts = json.loads((folder / "model.json").read_text())
    assert {"version", "code_sha256"}.isdisjoint(facts)
    assert usable_card(folder, trust_code=False) == read_card(folder)
