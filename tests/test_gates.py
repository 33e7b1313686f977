"""Nights that are judged: exit codes, the run that each is held against, the history, and the commands that look back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from flows.console import Quiet
from pipeline.config import load_config
from pipeline.errors import ConfigError, PlanError
from pipeline.ledger import Ledger
from pipeline.merge import merge_parts
from pipeline.night import Morning, run_night
from pipeline.report import read_report
from pipeline.report.history import HISTORY, history
from pipeline.survey import division
from tests.conftest import write_raster
from tests.making import config_file, threshold_model
from tests.test_cli import Done, gigamask

__all__ = ["gigamask"]


class Saying(Quiet):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six small scenes whose labels are the model's own answer at 100, and so right to the pixel."""
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(6):
        samples = np.random.default_rng(i).integers(1, 256, (40, 50), np.uint8)
        write_raster(tmp_path / "scenes" / f"s{i}.tif", samples)
        write_raster(tmp_path / "labels" / f"s{i}.tif", (samples >= 100).astype(np.uint8))
    threshold_model(tmp_path / "model", (100,))
    return tmp_path


def night(folder: Path, threshold: int = 100, progress: Quiet | None = None, part: str | None = None, **sections: Any) -> Morning:
    """A night with the model at `threshold`: at 100 all is right, the farther from it the less."""
    threshold_model(folder / "model", (threshold,))
    sections = {"report": {"max_quicklooks": 0}} | sections
    config = load_config(config_file(folder, truth={"pattern": "labels/{stem}.tif"}, **sections))
    return run_night(config, progress or Quiet(), "gigamask run config.yaml", division(part) if part else None)


def broken(folder: Path) -> None:
    (folder / "scenes" / "s9.tif").write_text("no image")


GATES = {"miou": {"min": 0.5, "max_drop": 0.05}, "iou/low": {"min": 0.5}}


@pytest.mark.parametrize(
    ("gates", "exit_code", "outcome"),
    [
        ({"miou": {"min": 0.9}, "iou/low": {"min": 0.9}}, 0, "pass"),
        ({}, 0, None),
        ({"miou": {"min": 0.9}, "mdice": {"max_drop": 0.1}}, 4, "inconclusive"),
    ],
)
def test_a_good_night_ends_as_its_gates_say(archive: Path, gates: dict[str, Any], exit_code: int, outcome: str | None) -> None:
    morning = night(archive, gates=gates)
    evaluation = read_report(morning.folder).evaluation
    assert evaluation is not None

    assert morning.exit_code == morning.report.exit_code == exit_code
    assert evaluation.outcome == outcome
    assert evaluation.overall["miou"].low == 1
    with Ledger(archive / "out" / "ledger.sqlite", read_only=True) as ledger:
        assert [r.exit_code for r in ledger.runs()] == [exit_code]
    assert set(morning.files) >= {"junit.xml", "gigamask_mqc.json", "summary.md"}


def test_a_failed_gate_is_3_and_a_failed_image_is_1_before_it(archive: Path) -> None:
    bad = night(archive, threshold=200, gates=GATES)
    assert bad.exit_code == 3
    assert "is below the floor 0.5" in bad.files["summary.md"].read_text()
    junit = ET.parse(bad.files["junit.xml"]).getroot()
    assert int(junit.get("failures", "")) == 2

    broken(archive)
    both = night(archive, threshold=200, gates=GATES)
    assert both.exit_code == 1
    assert both.report.evaluation is not None
    assert both.report.evaluation.outcome == "fail"


def test_every_night_is_held_against_the_last_one_accepted(archive: Path) -> None:
    first = night(archive, gates=GATES)
    worse = night(archive, threshold=150, gates=GATES)
    better = night(archive, threshold=98, gates=GATES)
    last = night(archive, threshold=98, gates=GATES)

    def against(morning: Morning) -> str | None:
        found = morning.report.evaluation
        return found.comparison.baseline.run_id if found and found.comparison else None

    assert [m.exit_code for m in (first, worse, better, last)] == [4, 3, 0, 0]
    assert against(first) is None
    assert against(worse) == against(better) == first.report.run_id, "a run that failed its gates is no baseline"
    assert against(last) == better.report.run_id
    assert "went from 1.000 to 0.6" in worse.files["summary.md"].read_text()
    rows = [row for row in history(archive / "out", "test") if row.metric == "miou"]
    assert [(r.run_id, r.exit_code, r.accepted) for r in rows] == [
        (first.report.run_id, 4, True),
        (worse.report.run_id, 3, False),
        (better.report.run_id, 0, True),
        (last.report.run_id, 0, True),
    ]

    (better.folder / "report.json").unlink()
    (last.folder / "report.json").unlink()
    assert against(night(archive, gates=GATES)) == first.report.run_id, "where a report is gone, the one before it serves"


def test_the_baseline_can_be_named(archive: Path) -> None:
    first = night(archive)
    path = f"./out/runs/{first.report.run_id}"
    for name in (first.report.run_id, path, f"{path}/report.json"):
        gates = {"miou": {"max_drop": 0.05}}
        assert night(archive, threshold=150, gates=gates, report={"baseline": name}).exit_code == 3
    none = night(archive, threshold=150, report={"baseline": "none"})
    assert none.report.evaluation is not None
    assert none.report.evaluation.no_comparison == "report.baseline is none"


def test_what_cannot_be_judged_is_refused_before_anything_runs(archive: Path) -> None:
    with pytest.raises(ConfigError, match=r"gates\.iou/fire: the model has no class 'fire'"):
        night(archive, gates={"iou/fire": {"min": 0.5}})
    with pytest.raises(PlanError, match=r"report\.baseline: 2020: .*cannot be read"):
        night(archive, report={"baseline": "2020"})
    with pytest.raises(PlanError, match="6 images have none"):
        night(archive, statistics={"unit": "group"})
    with pytest.raises(ConfigError, match=r"gates\.miou\.max_drop needs an earlier run, and report\.baseline is none"):
        night(archive, gates=GATES, report={"baseline": "none"})
    with pytest.raises(ConfigError, match=r"gates\.miuo: .miuo. is no score\. Did you mean miou\?"):
        night(archive, gates={"miuo": {"min": 0.5}})
    with pytest.raises(ConfigError, match=r"gates\.miou\.mni: unknown key\. Did you mean .min.\?"):
        night(archive, gates={"miou": {"mni": 0.5}})
    assert not list(archive.glob("out/masks/*"))


def test_a_damaged_history_costs_no_night(archive: Path) -> None:
    first = night(archive, gates=GATES)
    path = archive / "out" / HISTORY
    path.write_bytes(path.read_bytes()[:-20])
    progress = Saying()
    again = night(archive, threshold=98, progress=progress, gates=GATES)

    assert any("is damaged" in text and "history.damaged.parquet" in text for text in progress.said)
    assert again.exit_code == 0, "the first run is known again, from its report"
    assert list(dict.fromkeys(r.run_id for r in history(archive / "out"))) == [first.report.run_id, again.report.run_id]


def test_parts_have_a_history_each_and_the_whole_its_own(archive: Path) -> None:
    parts = [night(archive, part=f"{i}/2") for i in (1, 2)]
    config = load_config(config_file(archive, truth={"pattern": "labels/{stem}.tif"}, report={"max_quicklooks": 0}))
    merged = merge_parts(config, Quiet(), "gigamask merge config.yaml")

    for i, part in enumerate(parts, 1):
        rows = history(archive / "out" / "parts" / f"{i}-of-2")
        assert {(r.run_id, r.part) for r in rows} == {(part.report.run_id, f"{i}/2")}
    assert {(r.run_id, r.part) for r in history(archive / "out")} == {(merged.report.run_id, None)}
    assert merged.report.evaluation is not None
    assert merged.report.evaluation.units == 6


def test_commands_look_back(archive: Path, gigamask: Any) -> None:
    first = night(archive)
    second = night(archive, threshold=150)
    before, after = first.folder, second.folder
    (after / "report.html").unlink()

    assert "report.html" in gigamask("report", after).stdout
    assert (after / "report.html").exists()
    files = json.loads(gigamask("report", after, "--out", archive / "elsewhere", "--json").stdout)["files"]
    assert Path(files["summary.md"]).read_text() == (after / "summary.md").read_text()
    assert json.loads(gigamask("report", "--schema").stdout)["title"] == "RunReport"

    text: Done = gigamask("report", "--compare", before, after)
    assert text.stdout.startswith("# test: run `")
    assert "| mIoU | 1.000 |" in text.stdout
    facts = json.loads(gigamask("report", "--compare", before, after, "--json").stdout)
    assert facts["overall"]["miou"]["before"] == 1
    assert facts["baseline"]["run_id"] == first.report.run_id
    assert "give one of RUN" in gigamask("report", code=2).stderr
    assert "give one of RUN" in gigamask("report", after, "--schema", code=2).stderr
    assert "cannot be read" in gigamask("report", archive, code=1).stderr

    rules = json.loads(gigamask("metrics", "compare", after, "--json").stdout)["conventions"]
    assert second.report.scores is not None
    assert rules[0] == rules[0] | {"name": "gigamask", "miou": second.report.scores.miou}
    micro = next(r for r in rules if r["name"] == "micro")
    assert micro["mdice"] == pytest.approx(second.report.scores.pixel_accuracy)
    assert "absent class as 0" in gigamask("metrics", "compare", after).stdout


def test_the_command_ends_with_the_gates_code_and_tells_all(archive: Path, gigamask: Any) -> None:
    threshold_model(archive / "model", (200,))
    config = config_file(archive, truth={"pattern": "labels/{stem}.tif"}, gates={"miou": {"min": 0.9}})
    facts = json.loads(gigamask("run", config, "--no-prefect", "--json", code=3).stdout)

    assert facts["exit_code"] == 3
    assert facts["evaluation"]["gates"][0]["outcome"] == "fail"
    assert facts["evaluation"]["overall"]["miou"]["low"] < facts["miou"] < facts["evaluation"]["overall"]["miou"]["high"]
    assert "fail gate miou: mIoU 0." in gigamask("run", config, "--no-prefect", code=3).stdout
    wrong = config_file(archive, truth={"pattern": "labels/{stem}.tif"}, gates={"iou/fire": {"min": 0.9}})
    assert "no class 'fire'" in gigamask("plan", wrong, code=2).stderr
