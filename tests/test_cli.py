"""The command line as a user types it, on real files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
import zarr
from affine import Affine

from flows.cli import main
from pipeline import __version__
from tests.conftest import write_raster
from tests.making import config_file, probed, threshold_model


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def gigamask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command as its entry point does; the exit code is checked."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["gigamask", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code == code, f"exit {ended.value.code}\n{printed.out}\n{printed.err}"
        return Done(printed.out, printed.err)

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One georeferenced scene with labels, and a model."""
    rng = np.random.default_rng(2)
    samples = rng.integers(1, 256, (300, 400), np.uint8)
    samples[:20] = 0
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    profile = {"crs": "EPSG:32633", "transform": Affine(2, 0, 5e5, 0, -2, 4.6e6)}
    write_raster(tmp_path / "scenes" / "a.tif", samples, nodata=0, **profile)
    write_raster(tmp_path / "labels" / "a.tif", (samples >= 100).astype(np.uint8) + 1, **profile)
    threshold_model(tmp_path / "model", (100,), resolution={"size": 2, "unit": "metre"})
    return tmp_path


def test_version_and_help(gigamask: Callable[..., Done]) -> None:
    assert gigamask("--version").stdout.strip() == f"gigamask {__version__}"
    text = gigamask("--help").stdout
    for command in ("plan", "run", "segment", "evaluate", "train", "doctor", "demo", "config", "model"):
        assert re.search(rf"^\W*{command} ", text, re.MULTILINE), command


def test_plan_tells_costs_and_writes_nothing(gigamask: Callable[..., Done], archive: Path) -> None:
    config = config_file(archive, truth={"pattern": "labels/{stem}.tif", "classes": {1: "background", 2: "low"}})
    before = sorted(archive.rglob("*"))
    facts = json.loads(gigamask("plan", config, "--json").stdout)
    (image,) = facts["images"]
    assert (image["height"], image["width"], image["tiles"]) == (300, 400, 13 * 17)
    assert image["memory_bytes"] > 0
    assert image["truth"].endswith("labels/a.tif")
    assert "a.tif" in gigamask("plan", config).stdout
    assert sorted(archive.rglob("*")) == before


def test_plan_exits_2_and_says_what_cannot_run(gigamask: Callable[..., Done], archive: Path) -> None:
    (archive / "scenes" / "b.tif").write_text("not an image")
    done = gigamask("plan", config_file(archive), code=2)
    assert "cannot run" in done.stdout
    assert "b.tif cannot be opened as a raster" in done.stdout


def test_a_wrong_configuration_exits_2_and_names_the_key(gigamask: Callable[..., Done], archive: Path) -> None:
    done = gigamask("run", config_file(archive, tilling={}), code=2)
    assert "tilling: unknown key. Did you mean 'tiling'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).parent / "gigamask"
    assert (
        subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        == f"gigamask {__version__}"
    )


def test_a_wrong_option_exits_2(gigamask: Callable[..., Done]) -> None:
    assert "No such option" in gigamask("run", "--fast", code=2).stderr
    assert "does not exist" in gigamask("segment", "a.tif", "--model", "nowhere", "--out", "b.zarr", code=2).stderr


def test_a_model_that_cannot_be_used_exits_2_before_anything_is_made(gigamask: Callable[..., Done], archive: Path) -> None:
    card = archive / "model" / "model.json"
    facts = json.loads(card.read_text())
    card.write_text(json.dumps({**facts, "adapter": "callable", "architecture": {"function": "a.b:c"}}))
    config = config_file(archive)

    for command in (
        ["plan", config],
        ["run", config, "--no-prefect"],
        ["segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", archive / "mask.zarr"],
    ):
        assert "(adapter callable) calls a Python function" in gigamask(*command, code=2).stderr
    assert not (archive / "mask.zarr").exists()
    assert not (archive / "out" / "masks").exists()


def test_segment_and_evaluate_one_image(gigamask: Callable[..., Done], archive: Path) -> None:
    store = archive / "mask.zarr"
    facts = json.loads(
        gigamask("segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", store, "--json").stdout
    )
    assert facts["state"] == "complete"
    assert facts["no_data_px"] == 20 * 400
    assert facts["peak_memory_mib"]["driver"] > 50
    assert not list(archive.glob(".mask*")), "nothing hidden is left"
    with rasterio.open(archive / "scenes/a.tif") as file:
        samples = file.read(1)
    labels = zarr.open_array(store, path="0/mask")[:]
    assert (labels == np.where(samples == 0, 255, samples >= 100)).all()

    scores = json.loads(
        gigamask(
            "evaluate", store, archive / "labels/a.tif", "--class-map", "1=background,2=low", "--out", archive / "r", "--json"
        ).stdout
    )
    assert scores["miou"] == 1
    assert scores["evaluated_px"] == 280 * 400
    assert (archive / "r" / "report.html").exists()
    assert (archive / "r" / "summary.md").exists()

    again = json.loads(
        gigamask("segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", store, "--json").stdout
    )
    assert again["reused"]
    other = gigamask("segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", store, "--overlap", 4, code=1)
    assert "was made by another plan" in other.stderr


@pytest.mark.parametrize(
    "options", [["--blend", "crop"], ["--tile", 48, "--overlap", 0], ["--workers", 2, "--block", 264, "--threads", 1]]
)
def test_segment_gives_the_models_answer_with_other_options_too(
    gigamask: Callable[..., Done], archive: Path, options: list[object]
) -> None:
    store = archive / "mask.zarr"
    gigamask("segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", store, *options)
    with rasterio.open(archive / "scenes/a.tif") as file:
        samples = file.read(1)
    assert (zarr.open_array(store, path="0/mask")[:] == np.where(samples == 0, 255, samples >= 100)).all()


def test_segment_chooses_the_tile_by_what_a_probe_found(gigamask: Callable[..., Done], archive: Path) -> None:
    command = ["segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", archive / "mask.zarr", "--tile"]
    assert "has not been probed" in gigamask(*command, "auto", code=2).stderr
    assert "tiling.tile" in gigamask(*command, "large", code=2).stderr
    found = probed({64: (1.0, 1), 128: (4.1, 1)}, halo=0, seams={0: 0.0, 32: 0.0})
    threshold_model(archive / "model", (100,), resolution={"size": 2, "unit": "metre"}, **found)
    # of the 300 x 400 px, those that are real need 5 x 7 tiles of 64 px or 3 x 4 of 128 px
    assert json.loads(gigamask(*command, "auto", "--json").stdout)["tiles"] == 5 * 7


def test_evaluate_refuses_another_grid_with_both_printed(gigamask: Callable[..., Done], archive: Path) -> None:
    store = archive / "mask.zarr"
    gigamask("segment", archive / "scenes/a.tif", "--model", archive / "model", "--out", store)
    write_raster(
        archive / "other.tif", np.zeros((150, 200), np.uint8), crs="EPSG:32633", transform=Affine(4, 0, 5e5, 0, -4, 4.6e6)
    )
    error = gigamask("evaluate", store, archive / "other.tif", code=1).stderr
    assert "150 x 200 px" in error
    assert "300 x 400 px" in error
    assert (
        json.loads(gigamask("evaluate", store, archive / "other.tif", "--resample", "nearest", "--json").stdout)["evaluated_px"]
        == 112_000
    )


def test_config_schema_and_check(gigamask: Callable[..., Done], archive: Path) -> None:
    schema = json.loads(gigamask("config", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "archive" in schema["properties"]
    told = [(name, key, facts) for name, section in schema["$defs"].items() for key, facts in section["properties"].items()]
    assert all("description" in facts or "$ref" in facts for _, key, facts in told if key != "type"), "a key says nothing"
    assert "valid configuration" in gigamask("config", "check", config_file(archive)).stdout


def test_doctor_names_versions_devices_and_formats(gigamask: Callable[..., Done]) -> None:
    findings = {f["what"]: f for f in json.loads(gigamask("doctor", "--json").stdout)}
    assert findings["gigamask"]["found"] == __version__
    assert findings["prefect server"]["found"] == "imports"
    assert any("GTiff" in f["found"] for f in findings.values())
    assert "CUDA devices" in findings


def test_train_from_options_alone_needs_all_of_them(gigamask: Callable[..., Done], archive: Path) -> None:
    assert "give a configuration file, or --labels, --out too" in gigamask("train", "--images", "x", code=2).stderr


def test_progress_is_plain_lines_where_there_is_no_terminal(gigamask: Callable[..., Done], archive: Path) -> None:
    truth = {"pattern": "labels/{stem}.tif", "classes": {1: "background", 2: "low"}}
    done = gigamask("run", config_file(archive, truth=truth), "--no-prefect")
    assert "1 images" in done.stderr
    assert "\x1b[" not in done.stdout + done.stderr
    assert "report.html" in done.stdout


def test_a_finished_run_says_where_its_report_is(gigamask: Callable[..., Done], archive: Path) -> None:
    truth = {"pattern": "labels/{stem}.tif", "classes": {1: "background", 2: "low"}}
    facts = json.loads(gigamask("run", config_file(archive, truth=truth), "--no-prefect", "--json").stdout)
    assert Path(facts["report"]).is_file()
    assert facts["miou"] == 1
    assert time.time() - Path(facts["report"]).stat().st_mtime < 600
