"""Commands that are printed for a person: a shell takes them as they are, whatever is in a path."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from flows import demo, here
from flows.cli import main
from flows.console import Quiet
from pipeline.books import accounts
from pipeline.config import SerialCluster, TruthConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.ledger import Ledger
from pipeline.report.steps import retry_command
from pipeline.single import evaluate_one
from tests.conftest import write_raster
from tests.making import config_file, threshold_model
from tests.test_page import image_of, report_of

ODD = "my scenes; 'a' $HOME"


def gigamask(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command line, split as a shell does."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """An archive of one scene in a folder whose name no shell takes as it is."""
    folder = tmp_path / ODD
    (folder / "scenes").mkdir(parents=True)
    write_raster(folder / "scenes" / "a b.tif", np.full((40, 40), 200, np.uint8))
    threshold_model(folder / "model")
    config_file(folder)
    return folder


def test_the_command_of_a_run_is_quoted() -> None:
    config, root = Path(ODD) / "night.yaml", Path("/data of 2026")
    found = here.words("run", config, root, "1/2", "--no-prefect")
    assert shlex.split(found) == ["gigamask", "run", str(config), "--no-prefect", "--root", str(root), "--part", "1/2"]
    assert here.words("run", "configs/night.yaml", None) == "gigamask run configs/night.yaml"


def test_a_run_in_a_folder_with_blanks_is_run_again_by_its_own_command(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = odd / "of this root"
    root.mkdir()
    (odd / "scenes").rename(root / "scenes")
    first = here.run(odd / "config.yaml", root, None, Quiet())
    assert first.exit_code == 0
    assert gigamask(first.report.command, monkeypatch) == 0
    assert gigamask(retry_command(first.report), monkeypatch) == 0
    assert len(list((odd / "out" / "runs").iterdir())) == 3


@pytest.mark.parametrize(
    ("command", "part", "expected"),
    [
        ("gigamask run a.yaml", None, "gigamask retry a.yaml"),
        ("gigamask run 'a b.yaml' --no-prefect --root 'c d'", None, "gigamask retry 'a b.yaml' --root 'c d'"),
        ("gigamask retry 'a b.yaml'", None, "gigamask retry 'a b.yaml'"),
        ("gigamask merge a.yaml", None, "gigamask retry a.yaml"),
        ("gigamask run a.yaml --no-prefect --part 1/2", "1/2", "gigamask run a.yaml --no-prefect --part 1/2"),
        ("gigamask run it's.yaml", None, "gigamask retry CONFIG"),
        ("gigamask evaluate a.zarr b.tif", None, "gigamask retry CONFIG"),
        ("", None, "gigamask retry CONFIG"),
    ],
)
def test_what_failed_is_tried_again_by_a_command_that_there_is(command: str, part: str | None, expected: str) -> None:
    """`retry` knows neither parts nor Prefect; commands of earlier reports were not quoted."""
    assert retry_command(report_of([image_of(0, 3)], 3, command=command, part=part)) == expected


def test_an_evaluation_says_how_it_is_made_again(odd: Path) -> None:
    first = here.run(odd / "config.yaml", None, None, Quiet())
    store, labels = odd / "out" / str(first.report.images[0].mask), odd / "scenes" / "a b.tif"
    report = evaluate_one(store, labels, TruthConfig(ignore=[200]), SerialCluster(type="serial"), None)
    assert shlex.split(report.command) == ["gigamask", "evaluate", str(store), str(labels)]


def test_the_way_out_of_a_damaged_ledger_is_a_command(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.run(odd / "config.yaml", None, None, Quiet())
    (odd / "out" / "ledger.sqlite").write_bytes(b"no ledger" * 100)
    with pytest.raises(StoreError) as refused:
        Ledger(odd / "out" / "ledger.sqlite")
    command = str(refused.value).split("`")[1]
    assert shlex.split(command) == ["gigamask", "ledger", "rebuild", str(odd / "out")]
    assert gigamask(command, monkeypatch) == 0
    (odd / "out" / "ledger.sqlite").unlink()
    with pytest.raises(ConfigError) as missing:
        accounts(odd / "out")
    assert shlex.split(str(missing.value).split("`")[1]) == shlex.split(command)


def test_advice_of_an_audit_is_a_command(odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    here.run(odd / "config.yaml", None, None, Quiet())
    next((odd / "out" / "masks").rglob("0/mask/c/0/0")).write_bytes(b"torn")
    assert gigamask(shlex.join(["gigamask", "verify", str(odd / "out")]), monkeypatch) == 1
    command = next(part for part in capsys.readouterr().out.split("`") if part.startswith("gigamask verify"))
    assert shlex.split(command) == ["gigamask", "verify", str(odd / "out"), "--repair"]


def test_the_demo_names_its_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(demo, "_scenes", lambda *_, **__: 0)
    monkeypatch.setattr(demo, "_slides", lambda *_: 0)
    demo.run_demo(tmp_path / ODD, prefect=False)
    found = capsys.readouterr().out.partition("or: ")[2].replace("\n", " ").strip()
    assert found.startswith("gigamask run '")
