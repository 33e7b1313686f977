"""What is said of a run beyond its sums: intervals, strata, areas, comparison, and the same in files for other programs."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from pipeline.card import ClassInfo
from pipeline.config import GateConfig, StatisticsConfig
from pipeline.confusion import no_counts
from pipeline.errors import ConfigError, PlanError, StoreError
from pipeline.image import ImageSpec
from pipeline.report import read_report, render, report_schema, write_report
from pipeline.report.contract import ImageResult, RunReport
from pipeline.report.evaluation import compare_runs, evaluate, gates_of, refuse
from pipeline.report.findings import Findings
from pipeline.report.history import HISTORY, history, mend, note_run
from pipeline.report.outputs import junit_xml, multiqc_json
from pipeline.report.summary import comparison_md, summary_md
from pipeline.report.tables import per_class_csv
from tests.conftest import REPO
from tests.test_report import run

SCRIPT, FORMULA = "<script>alert(1)</script>", "=cmd|' /C calc'!A0"
LAND = (ClassInfo(name="land", color="#8429F6"), ClassInfo(name="water/deep", color="#E2A929"))
HOSTILE = (ClassInfo(name=SCRIPT, color="#8429F6"), ClassInfo(name=FORMULA, color="#E2A929"))


def scored(name: str, right: int, wrong: int, **more: object) -> ImageResult:
    """An image of 100 px: `right` of each class, `wrong` of each taken for the other, the rest not labelled."""
    counts = no_counts(2)
    counts[:2, :2] = [[right, wrong], [wrong, right]]
    counts[2, 0] = 100 - counts.sum()
    facts: dict[str, object] = {
        "id": name,
        "uri": f"/archive/{name}.tif",
        "state": "complete",
        "height": 10,
        "width": 10,
        "class_px": [100 - right - wrong, right + wrong],
        "truth": f"/archive/{name}_label.tif",
        "counts": counts.tolist(),
    }
    return ImageResult.model_validate(facts | more)


def night(images: list[ImageResult], run_id: str = "r1", **more: object) -> RunReport:
    return run(*images, **({"run_id": run_id, "classes": LAND} | more))


def many(n: int, right: int = 30, wrong: int = 10) -> list[ImageResult]:
    return [scored(f"i{i:02}", right, wrong) for i in range(n)]


def judged(report: RunReport, before: RunReport | None = None, **gates: GateConfig) -> RunReport:
    asked = {name.replace("__", "/"): gate for name, gate in gates.items()}
    return report.model_copy(update={"evaluation": evaluate(report, before, gates=asked)})


# intervals


def test_images_that_are_all_alike_leave_no_doubt() -> None:
    found = evaluate(night(many(30)))
    miou = found.overall["miou"]

    assert (found.unit, found.units, found.images) == ("image", 30, 30)
    assert miou.value == 30 / 50
    assert miou.low == pytest.approx(0.6)
    assert miou.high == pytest.approx(0.6)
    assert miou.warning is None
    assert found.classes[1]["recall"].value == 0.75


def test_few_units_are_told_and_fewer_have_no_interval() -> None:
    few, fewer = evaluate(night(many(5))).overall["miou"], evaluate(night(many(4))).overall["miou"]

    assert few.low is not None
    assert "fewer than 30" in str(few.warning)
    assert (fewer.low, fewer.high) == (None, None)
    assert "at least 5 are needed" in str(fewer.warning)
    assert "mIoU has no interval: it rests on 4 images" in " ".join(Findings(night(many(4))).verdict.reasons)
    assert "rests on 5 images: with fewer than 30" in " ".join(Findings(night(many(5))).verdict.reasons)
    assert Findings(night(many(4))).verdict.level == "good", "few images are no fault of the masks"


def test_a_group_is_one_unit_unless_asked_otherwise() -> None:
    images = [scored(f"i{i}", 30, 10, group=f"site {i // 4}") for i in range(8)] + [scored("alone", 30, 10)]
    report = night(images)

    assert (evaluate(report).unit, evaluate(report).units) == ("group", 3)
    by_image = evaluate(report, statistics=StatisticsConfig(unit="image"))
    assert (by_image.unit, by_image.units) == ("image", 9)
    assert evaluate(night([*images, scored("site 0", 30, 10)])).units == 4, "an image may be called like a group"


def test_labelled_pixels_that_failed_are_misses() -> None:
    lost = no_counts(2)
    lost[0, 2] = 40
    failed = ImageResult(id="x", uri="/x.tif", state="failed", error="gone", truth="/t.tif", counts=lost.tolist())
    found = evaluate(night([*many(1), failed]))

    assert found.images == 2
    assert found.classes[0]["iou"].value == 30 / 90


def test_without_scores_there_is_nothing_but_words() -> None:
    found = evaluate(night([scored("a", 0, 0, counts=None, truth=None)]))

    assert found.units == found.images == 0
    assert found.overall["miou"].value is None
    assert found.overall["miou"].warning
    assert found.no_comparison == "there is no run to compare with"
    assert not found.strata
    assert found.areas is None


# strata


def test_columns_divide_and_the_worst_slice_is_named() -> None:
    good = [scored(f"g{i}", 40, 0, strata={"season": "summer", "sensor": "x", "tile": f"t{i}"}) for i in range(31)]
    bad = [scored(f"b{i}", 10, 30, strata={"season": "winter", "sensor": "x"}) for i in range(6)]
    found = evaluate(night([*good, *bad, scored("n", 20, 20, strata={"sensor": "x"})]))
    (season,) = found.strata

    assert [(s.value, s.images, s.units, s.evaluated_px) for s in season.slices] == [
        ("summer", 31, 31, 31 * 80),
        ("winter", 6, 6, 6 * 80),
        (None, 1, 1, 80),
    ]
    assert [s.overall["miou"].value for s in season.slices] == [1, 10 / 70, 20 / 60]
    assert season.worst == 1
    assert season.slices[1].iou[0].low == pytest.approx(10 / 70)
    assert season.slices[2].overall["miou"].low is None
    assert found.undivided == {"tile": 31}, "and `sensor` is the same everywhere: it divides nothing"


# areas


def test_areas_are_corrected_by_what_the_labels_say() -> None:
    """Half of what is mapped as water is land, and the rest is right: of 20 m² of water in each image 10 are left."""
    counts = no_counts(2)
    counts[:2, :2] = [[30, 10], [0, 10]]
    counts[2, 0] = 50
    images = [
        scored(f"i{i}", 0, 0, counts=counts.tolist(), class_px=[80, 20], pixel_area_m2=1.0, state="complete") for i in range(5)
    ]
    found = evaluate(night([*images, scored("plain", 30, 10)])).areas
    assert found is not None

    assert (found.images, found.scored_images, found.units) == (5, 5, 5)
    assert [c.mapped for c in found.classes] == [400, 100]
    assert [c.estimated for c in found.classes] == [450, 50]
    assert found.classes[1].low == pytest.approx(50)
    assert found.classes[1].margin > 0  # type: ignore[operator]
    assert evaluate(night(images[:4])).areas.classes[1].low is None  # type: ignore[union-attr]


def test_a_class_without_samples_is_named_in_the_notes() -> None:
    counts = no_counts(2)
    counts[0, 0], counts[2, 0] = 50, 50
    image = scored("i", 0, 0, counts=counts.tolist(), class_px=[80, 20], pixel_area_m2=1.0)
    assert "water/deep is mapped and has no samples" in " ".join(evaluate(night([image])).areas.notes)  # type: ignore[union-attr]


# comparison


def test_runs_are_compared_on_what_both_have_with_the_same_labels() -> None:
    failed = no_counts(2)
    failed[0, 2] = failed[1, 2] = 40
    failed[2, 2] = 20
    before = night(
        [
            *many(6),
            scored("gone", 40, 0),
            scored("new labels", 30, 10),
            scored("f", 0, 0, counts=failed.tolist(), state="failed"),
        ],
        "r0",
    )
    after = night([*many(6, 35, 5), scored("fresh", 40, 0), scored("new labels", 30, 5), scored("f", 40, 0)])
    found = compare_runs(before, after)

    assert (found.images, found.units) == (6, 6)
    assert (found.only_before, found.only_now, found.failed_before, found.relabelled) == (1, 1, 1, ["new labels"])
    miou = found.overall["miou"]
    assert (miou.before, miou.after) == (30 / 50, 35 / 45)
    assert miou.delta == pytest.approx(35 / 45 - 0.6)
    assert miou.low == pytest.approx(miou.delta)
    assert (miou.improved, miou.worsened) == (1, 0)
    assert found.classes[0]["iou"].p_holm is not None
    assert found.baseline.run_id == "r0"


def test_runs_with_nothing_in_common_say_why() -> None:
    one, two = night(many(6), "r0"), night([scored("other", 30, 10)])
    found = evaluate(two, one, gates={"miou": GateConfig(max_drop=0.1)})

    assert found.comparison is None
    assert "run r0 has no image to compare" in str(found.no_comparison)
    assert [g.outcome for g in found.gates] == ["inconclusive"]
    with pytest.raises(ValueError, match="has other classes"):
        compare_runs(night(many(6), classes=HOSTILE), night(many(6)))
    with pytest.raises(ValueError, match="no image to compare: of 0 scored images then and 6 now"):
        compare_runs(night([]), night(many(6)))


# gates


@pytest.mark.parametrize(
    ("images", "gate", "outcome", "why"),
    [
        (many(30), GateConfig(min=0.59), "pass", "are not below the floor 0.59"),
        (many(30), GateConfig(min=0.61), "fail", "0.600 is below the floor 0.61"),
        (many(4), GateConfig(min=0.5), "inconclusive", "no interval"),
        (many(30, 35, 5), GateConfig(max_drop=0), "pass", "is ruled out"),
        (many(30, 20, 20), GateConfig(max_drop=0.2), "fail", "all of it below the margin"),
        (many(15, 20, 20) + many(30, 40, 0)[15:], GateConfig(max_drop=0.01), "inconclusive", "neither shown nor ruled out"),
    ],
    ids=["above", "below", "too few", "better", "worse", "who knows"],
)
def test_a_gate_has_three_outcomes(images: list[ImageResult], gate: GateConfig, outcome: str, why: str) -> None:
    report = judged(night(images), night(many(30), "r0"), miou=gate)
    assert report.evaluation is not None
    (verdict,) = report.evaluation.gates

    assert verdict.outcome == outcome
    assert why in verdict.why
    assert report.exit_code == {"pass": 0, "fail": 3, "inconclusive": 4}[outcome]
    assert report.evaluation.accepted == (outcome == "pass")
    told = Findings(report).verdict
    assert told.level == {"pass": "good", "fail": "bad", "inconclusive": "attention"}[outcome]
    assert (verdict.why in told.reasons) == (outcome != "pass")
    assert told.sentence.startswith(
        {"pass": "The gate passed", "fail": "The gate failed"}.get(outcome, "The gate is inconclusive")
    )
    assert summary_md(Findings(report)).index("gate") < summary_md(Findings(report)).index("image")


def test_failures_come_before_gates_and_failed_ones_before_inconclusive_ones() -> None:
    gates = {"miou": GateConfig(max_drop=0.1), "iou__water/deep": GateConfig(min=0.9), "mdice": GateConfig(min=0.1)}
    report = judged(night(many(30)), **gates)
    broken = ImageResult(id="x", uri="/x.tif", state="failed", error="gone")

    assert report.exit_code == 3
    assert judged(night([*many(30), broken]), **gates).exit_code == 1
    assert Findings(report).gates_words == "1 of 3 gates failed, 1 is inconclusive"
    assert [g.name for g in Findings(report).undecided_gates] == ["iou/water/deep", "miou"]
    assert report.evaluation is not None
    assert report.evaluation.gates[1].code == 1


def test_the_first_run_is_accepted_unless_a_gate_failed() -> None:
    first = judged(night(many(30)), miou=GateConfig(min=0.5, max_drop=0.01))
    low = judged(night(many(30)), miou=GateConfig(min=0.7, max_drop=0.01))
    small = judged(night(many(4)), miou=GateConfig(min=0.5, max_drop=0.01))
    nothing = judged(night([scored("a", 0, 0, counts=None)]), miou=GateConfig(max_drop=0.01))

    assert (first.exit_code, first.evaluation.accepted) == (4, True)  # type: ignore[union-attr]
    assert (low.exit_code, low.evaluation.accepted) == (3, False)  # type: ignore[union-attr]
    assert (small.exit_code, small.evaluation.accepted) == (4, True)  # type: ignore[union-attr]
    assert not nothing.evaluation.accepted  # type: ignore[union-attr]


def test_gates_without_a_meaning_are_refused_before_anything_runs() -> None:
    assert gates_of({"iou/water/deep": GateConfig(min=0.1)}, LAND)["iou/water/deep"].code == 1
    with pytest.raises(ConfigError, match=r"gates\.iou/fire: the model has no class 'fire'. Its classes are land, water/deep"):
        gates_of({"iou/fire": GateConfig(min=0.1)}, LAND)
    with pytest.raises(ConfigError, match="no class `background`"):
        gates_of({"miou_without_background": GateConfig(min=0.1)}, LAND)
    with pytest.raises(PlanError, match=r"1 images have none, such as /b\.tif"):
        refuse({}, StatisticsConfig(unit="group"), LAND, [ImageSpec(uri="/a.tif", group="g"), ImageSpec(uri="/b.tif")])


# history


def test_history_grows_and_tells_what_was_measured(tmp_path: Path) -> None:
    first, second = judged(night(many(30), "r1")), judged(night(many(4), "r2"), miou=GateConfig(min=0.9))
    for report in (first, second, second):
        note_run(tmp_path, report)
    rows = history(tmp_path, "toy")

    assert [r.run_id for r in rows] == ["r1"] * 17 + ["r2"] * 17
    assert history(tmp_path, "other") == []
    miou = [r for r in rows if r.metric == "miou"]
    assert [(r.value, r.low is None, r.units, r.exit_code, r.accepted, r.outcome) for r in miou] == [
        (0.6, False, 30, 0, True, None),
        (0.6, True, 4, 3, False, "fail"),
    ]
    water = next(r for r in rows if r.metric == "iou" and r.code == 1)
    assert (water.class_name, water.value, water.model_digest) == ("water/deep", 0.6, first.model.digest)
    assert pq.read_table(tmp_path / HISTORY).num_rows == 34, "of each run 7 scores, 4 of each class, its share in the masks"
    assert [p.name for p in tmp_path.iterdir()] == [HISTORY]


def test_damaged_history_is_put_aside_and_taken_from_the_reports(tmp_path: Path) -> None:
    said: list[str] = []
    for run_id, part in (("r1", None), ("r2", None), ("r3", "1/2")):
        report = judged(night(many(5), run_id, part=part))
        write_report(report, tmp_path / "runs" / run_id)
        if part is None:
            note_run(tmp_path, report)
    whole = (tmp_path / HISTORY).read_bytes()
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "report.json").write_text("{")
    for damage in (whole[: len(whole) // 2], b"", whole.replace(b"PAR1", b"PAR2")):
        (tmp_path / HISTORY).write_bytes(damage)
        with pytest.raises(StoreError, match="is damaged"):
            history(tmp_path)
        mend(tmp_path, tmp_path / "runs", None, said.append)
        assert dict.fromkeys(r.run_id for r in history(tmp_path)) == {"r1": None, "r2": None}
    assert sorted(p.name for p in tmp_path.glob("history*")) == [
        "history.damaged.parquet", "history.damaged1.parquet", "history.damaged2.parquet", "history.parquet"
    ]  # fmt: skip
    assert "is damaged" in said[0]
    assert "it is now history.damaged.parquet" in said[0]
    assert said[1] == "history of 2 earlier runs taken from their reports"


def test_a_sound_history_is_left_alone(tmp_path: Path) -> None:
    note_run(tmp_path, night(many(5)))
    before = (tmp_path / HISTORY).read_bytes()
    mend(tmp_path, tmp_path / "runs", None, pytest.fail)
    assert (tmp_path / HISTORY).read_bytes() == before


# files


def test_a_report_of_version_1_0_is_read_and_rendered_anew(tmp_path: Path) -> None:
    path = write_report(night(many(5)), tmp_path)["report.json"]
    data = json.loads(path.read_text())
    del data["evaluation"]
    data["schema_version"] = "1.0"
    path.write_text(json.dumps(data))
    old = path.read_bytes()
    (tmp_path / "report.html").write_text("yesterday's")
    files = render(tmp_path, tmp_path / "elsewhere")

    assert read_report(tmp_path).evaluation is None
    assert set(files) == {"report.html", "summary.md", "per_image.parquet", "per_class.csv", "junit.xml", "gigamask_mqc.json"}
    assert "0.600" in files["report.html"].read_text()
    assert (tmp_path / "report.html").read_text() == "yesterday's"
    assert render(tmp_path)["report.html"].read_text() == files["report.html"].read_text()
    assert path.read_bytes() == old, "the record of the night stays as it is"


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((REPO / "docs" / "report.schema.json").read_text())
    assert published == report_schema(), "gigamask report --schema > docs/report.schema.json"
    Draft202012Validator.check_schema(published)


def test_reports_follow_the_schema(tmp_path: Path) -> None:
    report = judged(night(many(6), "r1"), night(many(6, 35, 5), "r0"), miou=GateConfig(max_drop=0.01))
    text = write_report(report, tmp_path)["report.json"].read_text()

    Draft202012Validator(report_schema()).validate(json.loads(text, parse_constant=pytest.fail))
    assert read_report(tmp_path).evaluation == report.evaluation
    assert json.loads(text)["evaluation"]["gates"][0]["outcome"] == "fail"


def hostile() -> RunReport:
    """A run in which every name that comes from outside is an attack."""
    images = [scored(f"i{i}", 30, 10, strata={SCRIPT: SCRIPT if i % 2 else FORMULA}, group=FORMULA) for i in range(6)]
    images.append(ImageResult(id="x", uri=f"/{SCRIPT}\x1b[31m\x00.tif", state="failed", error=f"]]>{SCRIPT}\x00"))
    report = night(images, classes=HOSTILE, name=SCRIPT, title=SCRIPT, run_id="r`1")
    before = night(images[:6], classes=HOSTILE, run_id=f"r0`{SCRIPT}")
    gates = {f"iou/{SCRIPT}": GateConfig(min=0.9), f"iou/{FORMULA}": GateConfig(min=0.1)}
    return report.model_copy(update={"evaluation": evaluate(report, before, gates=gates)})


def test_names_stay_text_in_every_file(tmp_path: Path) -> None:
    report = hostile()
    files = write_report(report, tmp_path)

    assert SCRIPT not in files["report.html"].read_text()
    plain = re.sub(r"\\.", "", files["summary.md"].read_text())
    assert "<" not in re.sub(r"`[^`]*`", "", plain)
    assert r"\<script\>" in files["summary.md"].read_text()
    row = list(csv.DictReader(io.StringIO(files["per_class.csv"].read_text())))[1]
    assert row["class"] == f"'{FORMULA}"
    assert SCRIPT not in files["gigamask_mqc.json"].read_text()
    cases = {case.get("name") for case in ET.parse(files["junit.xml"]).iter("testcase")}
    assert f"iou/{SCRIPT}" in cases
    assert f"/{SCRIPT}\ufffd[31m\ufffd.tif" in cases


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r=1"])
def test_no_spreadsheet_runs_a_class_name(name: str) -> None:
    classes = (ClassInfo.model_construct(name=name, color="#000000"), LAND[1])
    report = night(many(5)).model_copy(update={"classes": classes})
    rows = list(csv.reader(io.StringIO(per_class_csv(Findings(report)), newline="")))
    assert rows[1][1] == f"'{name}".replace("\r", " ")


def test_class_rows_carry_intervals_and_changes() -> None:
    report = judged(night(many(6, 35, 5)), night(many(6), "r0"))
    row = next(csv.DictReader(io.StringIO(per_class_csv(Findings(report)))))

    assert float(row["iou_low"]) == pytest.approx(35 / 45)
    assert int(row["iou_units"]) == 6
    assert float(row["iou_delta"]) == pytest.approx(35 / 45 - 0.6)
    assert row["area_estimated_m2"] == ""
    assert next(csv.DictReader(io.StringIO(per_class_csv(Findings(night(many(4)))))))["iou_low"] == ""


def test_junit_has_a_case_a_gate_and_a_case_an_image() -> None:
    images = [*many(3), ImageResult(id="b", uri="/b.tif", state="failed", error="gone\nTraceback")]
    images += [
        scored("s", 0, 0, counts=None, state="skipped", error="new"),
        scored("t", 0, 0, counts=None, truth_error="other grid"),
    ]
    gates = {"miou": GateConfig(min=0.9), "mdice": GateConfig(min=0.1), "iou__land": GateConfig(max_drop=0.1)}
    root = ET.fromstring(junit_xml(Findings(judged(night(images), **gates))))
    suites = {suite.get("name"): suite for suite in root.findall("testsuite")}

    assert root.tag == "testsuites"
    assert {k: root.get(k) for k in ("tests", "failures", "skipped")} == {"tests": "9", "failures": "3", "skipped": "3"}
    gate_cases = suites["gigamask gates"].findall("testcase")
    assert [(c.get("name"), [e.tag for e in c]) for c in gate_cases] == [
        ("miou", ["failure"]), ("mdice", ["skipped"]), ("iou/land", ["skipped"])
    ]  # fmt: skip
    assert "below the floor 0.9" in str(gate_cases[0].find("failure").get("message"))  # type: ignore[union-attr]
    assert "IoU of land cannot be compared: there is no run" in str(gate_cases[2].find("skipped").get("message"))  # type: ignore[union-attr]
    image_cases = {c.get("name"): c for c in suites["gigamask images"].findall("testcase")}
    assert image_cases["/b.tif"].find("failure").text == "gone\nTraceback"  # type: ignore[union-attr]
    assert image_cases["/archive/t.tif"].find("failure").get("type") == "not scored"  # type: ignore[union-attr]
    assert image_cases["/archive/s.tif"].find("skipped") is not None
    assert len(image_cases["/archive/i00.tif"]) == 0


def test_multiqc_gets_a_table_of_one_row_a_run() -> None:
    data = json.loads(multiqc_json(Findings(judged(night(many(6)), night(many(6), "r0")))), parse_constant=pytest.fail)
    (row,) = data["data"].values()

    assert (data["id"], data["plot_type"]) == ("gigamask", "table")
    assert list(data["data"]) == ["toy r1"]
    assert set(row) <= set(data["headers"])
    assert row["miou"] == row["iou_land"] == 0.6
    assert row["miou_delta"] == 0
    assert all(isinstance(value, int | float | str) for value in row.values())
    assert "miou_low" not in json.loads(multiqc_json(Findings(night(many(4)))))["data"]["toy r1"]


def test_a_comparison_reads_as_markdown() -> None:
    before, after = night(many(12), "r0"), night(many(12, 35, 5))
    text = comparison_md(compare_runs(before, after), after)

    assert "run `r1` against `r0`" in text
    assert "| land | 0.600 | 0.777 | +0.178 | +0.178 to +0.178 |" in text.replace("0.778", "0.777")
    assert "p < 0.05 after Holm" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {9}


def test_the_summary_tells_interval_and_change() -> None:
    text = summary_md(Findings(judged(night(many(6, 35, 5)), night(many(6), "r0"))))

    assert "(95 % interval 0.778 to 0.778, 6 images)" in text
    assert "Against run `r0` on 6 images: mIoU 0.600 to 0.778, +0.178" in text
    assert "100 % of them better" in text


def test_the_same_reports_give_the_same_evaluation() -> None:
    rng = np.random.default_rng(0)
    images = [scored(f"i{i}", int(rng.integers(5, 40)), int(rng.integers(0, 10))) for i in range(12)]
    report = night(images)
    assert evaluate(report) == evaluate(night(images[::-1]))
