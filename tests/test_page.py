"""The page says what a report holds, in a fixed order, and leaves out what was not measured."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.card import ClassInfo
from pipeline.config import GateConfig
from pipeline.measures import BoundaryScore, EdgeCounts, ErrorCells
from pipeline.report import measured, plots, write_report
from pipeline.report.contract import Changes, ImageResult, ModelFacts, RunReport
from pipeline.report.evaluation import evaluate
from pipeline.report.findings import Findings
from pipeline.report.gallery import EMBEDDED_BYTES
from pipeline.report.history import note_run, rows_of
from pipeline.report.page import page_html
from pipeline.report.past import Past, drifts, read_past
from pipeline.report.quicklook import quicklook_pngs, save_quicklook
from pipeline.report.steps import again, next_steps

SCRIPT = "<script>alert(1)</script>"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#8429F6", "#6EC1E4", "#3C1098")
ORDER = [
    *("verdict", "run", "scores", "classes", "confusion", "strata", "images", "maps", "history", "borders", "calibration"),
    *("seams", "areas", "drift", "cost", "failures", "changes", "again"),
]
TILING = {"tile": 256, "overlap": 64}


def classes_of(count: int) -> tuple[ClassInfo, ...]:
    names = [SCRIPT, "water", "forest", "<b>rock</b>", *(f"class {n}" for n in range(4, count))]
    return tuple(ClassInfo(name=name, color=COLORS[n % len(COLORS)]) for n, name in enumerate(names[:count]))


def matrix_of(rng: np.random.Generator, classes: int, skill: float) -> list[list[int]]:
    """A confusion matrix of about 80,000 pixels, some of them without data, some not labelled."""
    counts = rng.integers(0, 60, (classes + 1, classes + 2))
    counts[np.arange(classes), np.arange(classes)] += (rng.random(classes) * 8000 * skill).astype(np.int64)
    counts[:, classes] = 0
    return counts.tolist()  # type: ignore[no-any-return]


def image_of(n: int, classes: int, skill: float = 1.0, seed: int = 0, **more: object) -> ImageResult:
    """An image of which everything was measured."""
    rng = np.random.default_rng([seed, n])
    counts = np.array(matrix_of(rng, classes, skill * (0.4 + 0.6 * rng.random())))
    confidence = np.zeros((256, 2), int)
    confidence[100:] = rng.integers(0, 400, (156, 2)) * np.array([1, 3])
    edge = np.stack([np.linspace(90, 40, 64).astype(int), np.full(64, 900)], 1)
    cells = tuple((row, col, 600, int(rng.integers(0, 200))) for row in range(6) for col in range(8))
    facts: dict[str, object] = {
        "id": f"scene_{n:03d}-{n:08x}",
        "uri": f"/archive/scene_{n:03d}.tif",
        "group": f"site {n % 40}",
        "strata": {"season": ("dry", "wet", "snow <i>")[n % 3]},
        "state": "complete",
        "height": 1500,
        "width": 2000,
        "pixel_area_m2": 0.25,
        "tiles": 96,
        "blocks": 4,
        "redundancy": 0.03,
        "seconds": 12.5 + n % 7,
        "retries": n % 11 == 0,
        "deaths": n % 33 == 0,
        "load_seconds": 2.5,
        "class_px": counts[:, :classes].sum(0).tolist(),
        "failed_px": int(counts[:, classes].sum()),
        "no_data_px": int(counts[:, classes + 1].sum()),
        "truth": f"/archive/scene_{n:03d}_label.tif",
        "counts": counts.tolist(),
        "boundary": [
            BoundaryScore(
                size=size,
                unit="px",
                bands=((300 + size, 500, 520),) * classes,
                edges=((400, 250 + 20 * size, 410, 260 + 20 * size),) * classes,
            )
            for size in (1, 2, 4)
        ],
        "calibration": confidence.tolist(),
        "edge_errors": EdgeCounts(**TILING, bin_px=2, counts=tuple(map(tuple, edge.tolist()))),
        "edge_disagreement": EdgeCounts(**TILING, bin_px=2, counts=tuple((max(0, 60 - 4 * b), 500) for b in range(16))),
        "block_errors": ErrorCells(cell_px=256, cells=cells),
    }
    return ImageResult.model_validate(facts | more)


def weakened(image: ImageResult) -> ImageResult:
    """The same image by a model that takes every tenth pixel of a class for the next one."""
    counts = np.array(image.counts)
    for code in range(len(counts) - 1):
        moved = counts[code, code] // (10 + int(image.id[6:9]) % 5)
        counts[code, code] -= moved
        counts[code, (code + 1) % (len(counts) - 1)] += moved
    return image.model_copy(update={"counts": counts.tolist()})


def report_of(images: list[ImageResult], classes: int, **more: object) -> RunReport:
    facts: dict[str, object] = {
        "run_id": "20261122T021500Z-3f2a",
        "name": "nightly",
        "title": "Land cover of the coast & <em>islands</em>",
        "started": "2026-11-22T02:15:00+00:00",
        "finished": "2026-11-22T02:46:05+00:00",
        "seconds": 1865.0,
        "command": "gigamask run configs/nightly.yaml",
        "software": {"gigamask": "0.1.0", "torch": "2.15.0", "rasterio": "1.5.0"},
        "workers": "4 processes, each with 4 threads",
        "config": {"name": "nightly", "tiling": {**TILING, "blend": "hann"}, "truth": {"classes": {"1": "water"}, "ignore": [0]}},
        "config_digest": "c0ffee" * 10,
        "model": ModelFacts(name="coast-unet", digest="9a8b7c" * 10, path="models/coast"),
        "classes": classes_of(classes),
        "images": images,
        "changes": Changes(new=["/archive/scene_099.tif"], unchanged=len(images) - 1),
    }
    return RunReport.model_validate(facts | more)


def whole(images: int = 8, classes: int = 4, nights: int = 6) -> tuple[RunReport, Past]:
    """A report in which every section has something to say, gates of all three outcomes, and what earlier nights said."""
    shots = [image_of(n, classes) for n in range(images)]
    broken = {"counts": None, "class_px": [], "boundary": None, "calibration": None, "edge_errors": None, "block_errors": None}
    shots[-1] = image_of(images - 1, classes, **broken, state="failed", error=f"cannot be read: {SCRIPT}\nTraceback …")
    shots[-2] = image_of(
        images - 2, classes, state="partial", failed_px=500, failed_blocks=1, error="1 of 4 blocks failed: worker died"
    )
    before = report_of(
        [weakened(image_of(n, classes)) for n in range(images)],
        classes,
        run_id="20261121T021500Z-11aa",
        started="2026-11-21T02:15:00+00:00",
    )
    report = report_of(shots, classes)
    gates = {
        "miou": GateConfig(min=0.99),
        "iou/water": GateConfig(min=0.01),
        "iou/forest": GateConfig(min=round((evaluate(report).classes[2]["iou"].value or 0) - 0.001, 4)),
    }
    report = report.model_copy(update={"evaluation": evaluate(report, before, gates=gates)})
    return report, past_of(report, nights)


def past_of(report: RunReport, nights: int) -> Past:
    """Nights before the report's, of another model for the first half."""
    rng, rows = np.random.default_rng(1), []
    for n in range(nights):
        day = nights - n
        facts = {
            "run_id": f"202610{n + 1:02d}T021500Z-0000",
            "started": f"2026-10-{n + 1:02d}T02:15:00+00:00",
            "outcome": ("pass", "pass", "inconclusive", "fail")[n % 4],
            **({"model": "old-unet", "model_digest": "0dd" * 20} if n < nights // 2 else {}),
        }
        for row in rows_of(report):
            shift = float(rng.normal(0, 0.01)) - 0.004 * day
            moved = {end: None if (v := getattr(row, end)) is None else min(1.0, v + shift) for end in ("value", "low", "high")}
            rows.append(row.model_copy(update=facts | moved))
    return Past(tuple(rows))


def with_pictures(report: RunReport, folder: Path, side: int) -> RunReport:
    """The same, its images pictured by noise: the worst that a page can be given to hold."""
    images = []
    for n, image in enumerate(report.images):
        rng = np.random.default_rng(n)
        rgb = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        codes = rng.integers(0, len(report.classes), (2, side // 4, side // 4), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
        shown = quicklook_pngs(rgb, np.ones((side, side), bool), codes[0], codes[1], report.classes)
        images.append(image.model_copy(update={"quicklook": save_quicklook(shown, folder, image.id)}))
    return report.model_copy(update={"images": images})


class Text(HTMLParser):
    """The words of a page by section, its tags, and all of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, list[str]] = {"": []}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections[dict(attrs)["id"] or ""] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.sections[list(self.sections)[-1]].append(" ".join(data.split()))

    def of(self, section: str) -> str:
        return " ".join(self.sections[section])


def policy_of(page: Text) -> str:
    """Its Content-Security-Policy."""
    metas = [attrs for tag, attrs in page.tags if tag == "meta"]
    return next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")


@pytest.fixture(scope="module")
def told() -> tuple[RunReport, Past]:
    return whole()


def test_sections_come_in_their_order(told: tuple[RunReport, Past], tmp_path: Path) -> None:
    page = Text(page_html(Findings(told[0]), tmp_path, told[1]))

    assert list(page.sections)[1:] == ORDER
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links
    assert {link.lstrip("#") for link in links if link} <= set(ORDER)


def test_what_was_not_measured_is_absent(tmp_path: Path) -> None:
    bare = {"boundary": None, "calibration": None, "edge_errors": None, "edge_disagreement": None, "block_errors": None}
    report = report_of([image_of(0, 3, strata={}, pixel_area_m2=None, **bare)], 3, changes=None)
    page = Text(page_html(Findings(report), tmp_path))

    assert list(page.sections)[1:] == ["verdict", "run", "scores", "classes", "confusion", "images", "cost", "again"]
    assert "km²/h" not in page.of("cost")


def test_a_report_of_version_1_0_has_a_page(tmp_path: Path) -> None:
    report = whole()[0].model_copy(update={"schema_version": "1.0", "evaluation": None})
    page = Text(page_html(Findings(report), tmp_path))

    assert "95 % interval" in page.of("scores")
    assert "strata" in page.sections
    assert "history" not in page.sections


def test_the_three_outcomes_are_told_apart_in_words(told: tuple[RunReport, Past], tmp_path: Path) -> None:
    assert told[0].evaluation is not None
    assert {gate.outcome for gate in told[0].evaluation.gates} == {"pass", "fail", "inconclusive"}
    said = Text(page_html(Findings(told[0]), tmp_path)).of("verdict")

    assert said.index("✕ fail") < said.index("? inconclusive") < said.index("✓ pass")
    assert all(gate.why in said for gate in told[0].evaluation.gates)
    assert said.count(told[0].evaluation.gates[0].why) == 1, "a gate is told once, not again among the reasons"


def test_the_first_words_say_what_to_do(told: tuple[RunReport, Past]) -> None:
    steps = next_steps(Findings(told[0]))
    fine = report_of([image_of(n, 3) for n in range(6)], 3)
    gated = fine.model_copy(update={"evaluation": evaluate(fine, gates={"miou": GateConfig(min=0.01)})})
    unsure = fine.model_copy(update={"evaluation": evaluate(fine, gates={"miou": GateConfig(max_drop=0.01)})})

    assert steps[0].startswith("Hold the masks back: miou ")
    assert "2 images again: gigamask retry configs/nightly.yaml" in steps[1]
    assert next_steps(Findings(fine)) == [
        "Nothing has failed. Whether the scores are good enough is for you to say: no gate was set."
    ]
    assert next_steps(Findings(gated)) == ["Nothing: the masks can be used."]
    assert "no earlier run" in next_steps(Findings(unsure))[0]


def test_intervals_and_paired_change_stand_beside_the_score(told: tuple[RunReport, Past], tmp_path: Path) -> None:
    found = Findings(told[0]).evaluation
    assert found.comparison is not None
    miou, delta = found.overall["miou"], found.comparison.overall["miou"]
    said = Text(page_html(Findings(told[0]), tmp_path)).of("scores")

    assert f"{miou.low:.3f} to {miou.high:.3f} 95 % interval over {miou.units} groups" in said
    assert f"{delta.delta:+.3f} ( {delta.low:+.3f}".replace("( ", "(") in said.replace("−", "-")
    assert "20261121T021500Z-11aa" in said


def test_few_labels_are_told_aloud(tmp_path: Path) -> None:
    counts = np.array(matrix_of(np.random.default_rng(0), 3, 1.0))
    counts[3] += 10**6
    image = image_of(0, 3, counts=counts.tolist(), class_px=counts[:, :3].sum(0).tolist())
    page = Text(page_html(Findings(report_of([image], 3)), tmp_path))

    assert any("note" in (attrs.get("class") or "").split() for tag, attrs in page.tags if tag == "p")
    assert any("loud" in (attrs.get("class") or "").split() for tag, attrs in page.tags if tag == "div")


def test_the_curve_over_nights_marks_another_model(told: tuple[RunReport, Past], tmp_path: Path) -> None:
    page = page_html(Findings(told[0]), tmp_path, told[1])
    history = page[page.index('<section id="history">') : page.index('<section id="borders">')]

    assert history.count('class="mark model"') == 1
    assert "model coast-unet 9a8b7c" in history
    assert history.count('class="hit"') == 2, "nights with a failed gate are crosses: one of six, and this one"
    assert f"IoU over {6 + 1} runs" in history


def test_history_is_read_from_beside_the_run_and_only_from_before_it(tmp_path: Path) -> None:
    runs = []
    for day in (1, 2, 3):
        images = [image_of(n, 3, skill=0.6 + 0.1 * day) for n in range(5)]
        report = report_of(images, 3, run_id=f"2026110{day}T00Z-aa", started=f"2026-11-0{day}T00:00:00+00:00")
        write_report(report, tmp_path / "runs" / report.run_id)
        note_run(tmp_path, report)
        runs.append(report)
    other = report_of([image_of(0, 3)], 3, run_id="20261101T12Z-bb", name="other", started="2026-11-01T12:00:00+00:00")
    note_run(tmp_path, other)

    past = read_past(tmp_path / "runs" / runs[1].run_id, runs[1])
    assert {row.run_id for row in past.rows} == {runs[0].run_id}
    shares = {row.class_name: row.value for row in past.rows if row.metric == "mask_share"}
    assert sum(v or 0 for v in shares.values()) == pytest.approx(1)
    assert shares["water"] == pytest.approx(Findings(runs[0]).classes[1].mask_share)
    assert read_past(tmp_path / "elsewhere", runs[1]) == Past()


def test_a_damaged_history_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    report = report_of([image_of(n, 3) for n in range(5)], 3)
    (tmp_path / "history.parquet").write_bytes(b"no parquet")
    page = write_report(report, tmp_path / "runs" / report.run_id)["report.html"].read_text()

    assert "history.parquet is damaged" in Text(page).of("history")


def test_shares_beyond_all_earlier_ones_are_unusual() -> None:
    report = report_of([image_of(0, 3)], 3)
    rows = [
        row.model_copy(update={"run_id": str(n), "value": (row.value or 0) - (0.1 + n / 100) * (row.class_name == "water")})
        for n in range(5)
        for row in rows_of(report)
        if row.metric == "mask_share"
    ]

    found = {d.signal.name: d.unusual for d in drifts(report, Past(tuple(rows)))}
    assert found == {SCRIPT: False, "water": True, "forest": False}
    assert not any(d.unusual for d in drifts(report, Past(tuple(rows[:12])))), "four runs are too few to tell"


def test_calibration_is_that_of_the_sum_over_images() -> None:
    counts = np.zeros((2, 256, 2), int)
    counts[0, 255] = (20, 80)  # certain, and right in 0.8
    counts[1, 0] = (0, 100)  # unsure, and right
    found = measured.reliability(report_of([image_of(n, 3, calibration=counts[n].tolist()) for n in range(2)], 3))

    assert found is not None
    assert (found.confidence, found.accuracy) == (0.5, 0.9)
    assert found.found.ece == pytest.approx((0.2 + 1.0) / 2)
    assert found.sentence.startswith("The model is less sure than it could be")


def test_seams_are_advised_of_only_where_they_are() -> None:
    level = tuple((50, 950) for _ in range(64))
    seam = tuple((400 if b < 20 else 50, 950) for b in range(64))
    flat, steep = (
        measured.seams(report_of([image_of(0, 3, edge_errors=EdgeCounts(**TILING, bin_px=2, counts=c))], 3))[0]
        for c in (level, seam)
    )

    faint = tuple((52 if b < 20 else 50, 950) for b in range(64))
    slight = measured.seams(report_of([image_of(0, 3, edge_errors=EdgeCounts(**TILING, bin_px=2, counts=faint))], 3))[0]
    assert slight.sentence.startswith("No seams to be seen")
    assert flat.errors
    assert flat.sentence.startswith("No seams to be seen")
    assert "overlap of 80 px, now 64 px, would help" in steep.sentence


def test_the_error_map_shows_each_square_in_its_place() -> None:
    cells = ErrorCells(cell_px=512, cells=((0, 0, 100, 0), (0, 3, 100, 50), (2, 1, 100, 100)))
    (found,), full = measured.error_maps(report_of([image_of(0, 3, block_errors=cells)], 3))
    picture = np.asarray(Image.open(io.BytesIO(found.png)).convert("RGBA"))

    assert full == 1.0
    assert picture.shape == (23, 31, 4), "1500 x 2000 px, of which 512 are 8 of the picture"
    assert picture[:8, :8, 3].max() == 0
    assert picture[0, 24].tolist() == picture[7, 30].tolist() == [213, 94, 0, 128]
    assert picture[16, 8].tolist() == picture[22, 15].tolist() == [213, 94, 0, 255]
    assert picture[8, 8, :3].tolist() == [128, 128, 128], "not labelled"
    assert found.worst == "100 % wrong at row 1,024, column 512"


def test_images_that_failed_of_the_same_are_told_once(tmp_path: Path) -> None:
    images = [
        ImageResult(id=f"i{n}", uri=f"/archive/{n}/i{n}.tif", state="failed", error=f"/archive/{n}/i{n}.tif is damaged\n")
        for n in range(30)
    ]
    said = Text(page_html(Findings(report_of(images, 3)), tmp_path)).of("failures")

    assert said.count("is damaged") == 2  # the cause, and the whole error of the first
    assert "30 images" in said
    assert "/archive/29/i29.tif" in said


def test_speed_is_of_what_this_run_did_itself(tmp_path: Path) -> None:
    made = image_of(0, 3, class_px=[10**9, 0, 0], failed_px=0, seconds=100.0)
    reused = image_of(1, 3, class_px=[10**9, 0, 0], reused=True, tiles=5000, retries=17)
    said = Text(page_html(Findings(report_of([made, reused], 3, seconds=1000.0)), tmp_path)).of("cost")

    assert "1 Mpx/s" in said
    assert "a worker 10 Mpx/s" in said
    assert "900 km²/h" in said  # 250 km2 in 1000 s
    assert "96 tiles 4 blocks" in said
    assert "Retries 1 " in said
    assert "none every mask was made by an earlier run" in Text(page_html(Findings(report_of([reused], 3)), tmp_path)).of("cost")
    slide = image_of(0, 3, class_px=[10**9, 0, 0], failed_px=0, pixel_area_m2=0.25e-12)
    assert "4 s/mm²" in Text(page_html(Findings(report_of([slide], 3, seconds=1000.0)), tmp_path)).of("cost")


def test_a_slides_mask_can_be_made_again_where_one_command_can_say_how() -> None:
    config = {"archive": {"tissue": "auto", "reader": "slide"}, "resolution": {"size": 0.5, "unit": "micrometre"}}
    slide = image_of(0, 3, read_as="aperio slide; pixels of 0.25 µm (openslide.mpp-x)")
    found = again(report_of([slide], 3, config=config), slide)
    assert found is not None
    assert found.segment.endswith("--resolution 0.5um --tissue auto --reader slide")
    stated = slide.model_copy(update={"read_as": "aperio slide; pixels of 0.25 µm (stated)"})
    drawn = slide.model_copy(update={"looked_at": "drawn in a.geojson"})
    assert again(report_of([stated], 3, config=config), stated) is None
    assert again(report_of([drawn], 3, config=config), drawn) is None


def test_a_crop_can_be_made_again_by_a_command() -> None:
    image = image_of(0, 3, uri="/archive/a scene.tif", truth="/archive/labels $(rm).tif")
    found = again(report_of([image], 3), image)

    assert found is not None
    assert found.segment == (
        "gigamask segment '/archive/a scene.tif' --model models/coast --out 'a scene.zarr' --tile 256 --overlap 64 --blend hann"
    )
    assert found.evaluate == ("gigamask evaluate 'a scene.zarr' '/archive/labels $(rm).tif' --class-map 1=water --ignore 0")
    assert again(report_of([image], 3, config={"archive": {"nodata": 7}}), image) is None


def test_commands_are_those_of_the_command_line() -> None:
    from typer.main import get_command

    from flows.cli import app

    image = image_of(0, 3)
    config = {
        "tiling": {"tile": 256, "overlap": 64, "blend": "crop", "block": "auto"},
        "model": {"batch": 4, "precision": "float32", "test_time_flips": 2, "trust_code": True},
        "archive": {"bands": [1, 2]},
        "resolution": {"size": 0.5, "unit": "metre"},
        "truth": {"classes": {"1": "water"}, "ignore": [0], "field": "kind", "buffer_m": 1.0, "resample": "nearest"},
    }
    found = again(report_of([image], 3, config=config), image)
    assert found is not None
    assert found.evaluate is not None

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, text in (("segment", found.segment), ("evaluate", found.evaluate)):
        known = {option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
        flags = re.findall(r" (--[a-z-]+)", text)
        assert flags
        assert set(flags) <= known


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    report, past = whole()
    page = page_html(Findings(with_pictures(report, tmp_path, 64)), tmp_path, past)
    parsed = Text(page)
    without_pictures = re.sub(r"data:image/(png|webp);base64,[\w+/=]+", "", page)

    assert len(without_pictures) < len(page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures)
    sources = [attrs["src"] or "" for tag, attrs in parsed.tags if tag == "img"]
    assert len(sources) == 8 * 4 + 7
    assert all(source.startswith("data:image/") for source in sources)
    policy = policy_of(parsed)
    assert policy.startswith("default-src 'none'")
    assert "img-src data:;" in policy
    assert "unsafe" not in policy


def test_pictures_that_the_page_cannot_hold_stay_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.gallery.EMBEDDED_BYTES", 100)
    report = with_pictures(report_of([image_of(0, 3)], 3), tmp_path, 64)
    page = page_html(Findings(report), tmp_path)

    assert f'src="quicklook/{report.images[0].id}_errors.png"' in page
    assert "img-src data: 'self' file:;" in policy_of(Text(page))
    assert (tmp_path / f"quicklook/{report.images[0].id}_errors.png").is_file()


def test_pictures_keep_the_exact_colours_of_classes(tmp_path: Path) -> None:
    report = with_pictures(report_of([image_of(0, 4)], 4), tmp_path, 400)
    page = Text(page_html(Findings(report), tmp_path))
    source = next(attrs["src"] or "" for tag, attrs in page.tags if attrs.get("data-kind") == "mask")
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")

    colors = {"#{:02X}{:02X}{:02X}".format(*color) for _, color in picture.getcolors() or []}  # type: ignore[misc]
    assert colors == {info.color for info in report.classes}


@pytest.mark.parametrize("side", [128, 300])
def test_a_hundred_images_fit_two_megabytes(side: int, tmp_path: Path) -> None:
    report, past = whole(100, 20, 30)
    report = with_pictures(report, tmp_path, side)
    page = page_html(Findings(report), tmp_path, past)
    files = sum(path.stat().st_size for path in (tmp_path / "quicklook").iterdir())
    sources = [attrs["src"] or "" for tag, attrs in Text(page).tags if tag == "img"]

    assert files > EMBEDDED_BYTES
    assert len(page.encode()) <= 2_000_000
    assert any(src.startswith("data:image/webp") for src in sources)
    assert any(src.startswith("quicklook/") for src in sources)
    assert "keep both together" in page


def test_figures_say_what_they_show_and_escape_it() -> None:
    drawn = plots.trend([plots.Point(0.5, title="<i>"), plots.Point(0.6)], ["<1>", "2"], "<b>", [plots.Mark(0.5, "<u>")])

    assert not re.search(r"<(i|b|u|1)>", drawn)
    assert "&lt;u&gt;" in drawn
    assert plots.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert plots.ticks(0.29, 0.49, 5) == [0.3, 0.35, 0.4, 0.45]
    assert plots.around([0.5, 0.98]) == (pytest.approx(0.5 - 0.48 * 0.12), 1.0)
    assert plots.around([]) == (0.0, 1.0)


def test_every_figure_has_a_description(told: tuple[RunReport, Past], tmp_path: Path) -> None:
    page = Text(page_html(Findings(told[0]), tmp_path, told[1]))
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]

    assert len(drawn) > 20
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") == "true" for attrs in drawn)
