"""A report is a pure function of report.json and its pictures, and its numbers are those of scikit-learn."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, matthews_corrcoef

from pipeline.card import ClassInfo
from pipeline.confusion import count
from pipeline.errors import StoreError
from pipeline.report import read_report, report_json, report_schema, words, write_report
from pipeline.report.contract import ImageResult, ModelFacts, RunReport
from pipeline.report.findings import Findings
from pipeline.report.quicklook import (
    CONFUSED,
    FALSE_ALARM,
    HATCH_PERIOD,
    MISSED,
    WRONG,
    percentile_stretch,
    quicklook_pngs,
    save_quicklook,
    special_colors,
)

SCRIPT = "<script>alert(1)</script>"
CLASSES = (
    ClassInfo(name="land", color="#8429F6"),
    ClassInfo(name="water", color="#E2A929"),
    ClassInfo(name=SCRIPT, color="#3C1098"),
    ClassInfo(name="absent", color="#1B9E77"),
)
WITH_BACKGROUND = (ClassInfo(name="background", color="#8429F6"), *CLASSES[1:])
FAILED, NO_DATA, UNLABELLED = 254, 255, len(CLASSES)


def toy(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A reference and a mask of three classes with some pixels of every special kind."""
    rng = np.random.default_rng(seed)
    reference = rng.choice(np.array([0, 0, 0, 1, 2], np.uint8), (40, 50))
    mask = np.where(rng.random((40, 50)) < 0.7, reference, rng.integers(0, 3, (40, 50))).astype(np.uint8)
    reference[:3], mask[5:7, 10:], mask[-4:] = UNLABELLED, FAILED, NO_DATA
    return reference, mask


def scored(name: str, seed: int, **more: object) -> ImageResult:
    reference, mask = toy(seed)
    facts: dict[str, object] = {
        "id": f"{name}-0000{seed}",
        "uri": f"/archive/{name}.tif",
        "state": "partial",
        "error": "1 of 4 blocks failed",
        "height": 40,
        "width": 50,
        "pixel_area_m2": 0.25,
        "tiles": 12,
        "blocks": 4,
        "failed_blocks": 1,
        "redundancy": 0.2,
        "seconds": 3.5,
        "class_px": [int((mask == c).sum()) for c in range(len(CLASSES))],
        "failed_px": int((mask == FAILED).sum()),
        "no_data_px": int((mask == NO_DATA).sum()),
        "truth": f"/archive/{name}_label.tif",
        "counts": count(reference, mask, len(CLASSES)).tolist(),
    }
    return ImageResult.model_validate(facts | more)


def run(*images: ImageResult, **more: object) -> RunReport:
    facts: dict[str, object] = {
        "run_id": "2026-11-22T021500-3f2a",
        "name": "toy",
        "title": "Toy & co",
        "started": "2026-11-22T02:15:00+00:00",
        "finished": "2026-11-22T02:16:05+00:00",
        "seconds": 65.0,
        "command": "gigamask run configs/toy.yaml",
        "software": {"gigamask": "0.1.0", "torch": "2.9"},
        "workers": "2 processes",
        "config": {"name": "toy", "archive": {"images": "*.tif", "nodata": float("nan")}},
        "config_digest": "c0ffee" * 10,
        "model": ModelFacts(name="unet", digest="9a8b7c" * 10, path="models/unet"),
        "classes": CLASSES,
        "images": list(images),
    }
    return RunReport.model_validate(facts | more)


BROKEN = ImageResult(
    id="broken-1", uri="/archive/broken.tif", state="failed", error="cannot be opened\nTraceback …", truth="/t.tif"
)


class Text(HTMLParser):
    """The words of a page, its tags, and all of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


def page_of(report: RunReport, folder: Path) -> str:
    return write_report(report, folder)["report.html"].read_text()


def joint_truth(*seeds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reference and answer of the evaluated pixels of toys, computed apart from our counts: failed is an answer 9."""
    pairs = [toy(seed) for seed in seeds]
    kept = [(r != UNLABELLED) & (m != NO_DATA) for r, m in pairs]
    reference = np.concatenate([r[k] for (r, _), k in zip(pairs, kept, strict=True)]).astype(np.int64)
    answer = np.concatenate([m[k] for (_, m), k in zip(pairs, kept, strict=True)]).astype(np.int64)
    return reference, np.where(answer == FAILED, 9, answer)


def test_the_same_json_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(run(scored("a", 1), scored("b", 2), BROKEN), tmp_path / "first")
    again = write_report(read_report(tmp_path / "first"), tmp_path / "again")

    made = {"report.html", "summary.md", "per_image.parquet", "per_class.csv", "junit.xml", "gigamask_mqc.json"}
    assert set(first) == {"report.json", *made}
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes(), name
    assert not list(tmp_path.rglob("*.partial"))


def test_json_keeps_the_report_and_follows_its_schema(tmp_path: Path) -> None:
    report = run(scored("a", 1, unknown_labels={17: 5}), BROKEN)
    data = json.loads(report_json(report), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    Draft202012Validator.check_schema(report_schema())
    Draft202012Validator(report_schema()).validate(data)
    assert data["scores"]["miou"] == report.scores.miou  # type: ignore[union-attr]
    assert data["scores"]["classes"][3]["iou"] is None
    write_report(report, tmp_path)
    assert read_report(tmp_path).images == report.images


def test_a_missing_or_damaged_report_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"schema_version": "0.1"}')
    with pytest.raises(StoreError, match="no report of this version"):
        read_report(tmp_path)


def test_numbers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    written = write_report(run(scored("a", 1), scored("b", 2)), tmp_path)
    reference, answer = joint_truth(1, 2)
    iou = jaccard_score(reference, answer, labels=[0, 1, 2], average=None)
    assert (answer == 9).any()
    assert min(iou) < 0.6 < max(iou)

    rows = list(csv.DictReader(io.StringIO(written["per_class.csv"].read_text())))
    assert [float(r["iou"]) for r in rows[:3]] == pytest.approx(iou)
    assert [float(r["dice"]) for r in rows[:3]] == pytest.approx(f1_score(reference, answer, labels=[0, 1, 2], average=None))
    assert [int(r["reference_px"]) for r in rows] == np.bincount(reference, minlength=4).tolist()
    assert rows[3]["iou"] == ""
    masks = np.concatenate([toy(1)[1], toy(2)[1]])
    assert [int(r["mask_px"]) for r in rows] == [int((masks == c).sum()) for c in range(4)]
    assert float(rows[1]["area_m2"]) == int((masks == 1).sum()) * 0.25

    table = pq.read_table(written["per_image.parquet"]).to_pylist()
    for seed, row in zip((1, 2), table, strict=True):
        one, other = joint_truth(seed)
        assert row["miou"] == pytest.approx(jaccard_score(one, other, labels=[0, 1, 2], average="macro"))
        assert row["pixel_accuracy"] == pytest.approx((one == other).mean())
        assert row["iou_water"] == pytest.approx(jaccard_score(one, other, labels=[1], average="macro"))
        assert row["iou_absent"] is None
        assert row["px_water"] * 0.25 == row["area_m2_water"]

    page = Text(written["report.html"].read_text()).words
    for value in (*iou, iou.mean(), matthews_corrcoef(reference, answer), (reference == answer).mean()):
        assert f"{value:.3f}" in page
    cells = confusion_matrix(reference, answer, labels=[0, 1, 2, 9])[:3]
    for cell in cells.ravel():
        assert words.short(int(cell)) in page
    titles = {a["title"] for tag, a in Text(written["report.html"].read_text()).tags if tag == "td" and "title" in a}
    assert f"land in the reference, water in the mask: {cells[0, 1]:,} px" in titles
    assert f"water in the reference, failed in the mask: {cells[1, 3]:,} px" in titles
    assert f"mIoU {iou.mean():.3f}" in written["summary.md"].read_text().replace("**", "")


def test_coverage_accounts_for_every_pixel() -> None:
    lost = ImageResult(id="x", uri="/x.tif", state="failed", error="gone", height=10, width=10)
    cover = Findings(run(scored("a", 1), lost)).coverage
    reference, mask = toy(1)

    assert cover.pixels == mask.size + 100
    assert cover.scored == ((reference != UNLABELLED) & (mask < 4)).sum()
    assert cover.segmented == ((reference == UNLABELLED) & (mask < 4)).sum()
    assert cover.failed == (mask == FAILED).sum() + 100
    assert cover.scored + cover.segmented + cover.failed + cover.no_data == cover.pixels


def test_the_largest_confusions_come_in_words() -> None:
    reference, answer = joint_truth(1)
    cells = confusion_matrix(reference, answer, labels=[0, 1, 2])
    np.fill_diagonal(cells, 0)
    top = Findings(run(scored("a", 1))).confusions[0]

    assert top.pixels == cells.max()
    assert (top.reference, top.predicted) == tuple(CLASSES[i].name for i in np.unravel_index(cells.argmax(), cells.shape))
    assert top.share == cells.max() / (reference == 0).sum()


def test_numbers_are_never_rounded_to_a_lie() -> None:
    assert (words.score(0.99996), words.score(1.0), words.score(float("nan")), words.score(None)) == ("0.999", "1.000", "–", "–")
    assert [words.percent(v) for v in (0, 1e-9, 0.031, 0.99999, 1)] == ["0 %", "< 0.1 %", "3.1 %", "> 99.9 %", "100 %"]
    assert [words.short(v) for v in (999, 1000, 99_950, 12_345_678)] == ["999", "1.00 k", "100 k", "12.3 M"]
    assert [words.area(v) for v in (12.5, 25_000, 3_400_000)] == ["12.50 m²", "2.50 ha", "3.40 km²"]
    assert [words.duration(v) for v in (4.21, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 5 min"]
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdefg"), 5) == "a, b, c, d, e and 2 more"


def test_names_stay_text(tmp_path: Path) -> None:
    page = page_of(run(scored("a", 1), scored("<img src=x>", 2, group='"><b onclick=1>')), tmp_path)
    parsed = Text(page)

    assert SCRIPT not in page
    assert any(SCRIPT in text for text in parsed.words)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert all(tag != "img" for tag, _ in parsed.tags)
    assert not any(name.startswith("on") or name == "style" for _, attrs in parsed.tags for name in attrs)


def test_pictures_outside_of_the_run_or_missing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    outside = {"image": "../secret.png", "mask": str(tmp_path / "secret.png"), "errors": "quicklook/gone.png"}
    page = page_of(run(scored("a", 1, quicklook=outside)), tmp_path / "run")

    assert "<img" not in page


def test_worst_images_come_first(tmp_path: Path) -> None:
    report = run(scored("a", 1), scored("b", 2), BROKEN, scored("c", 3, counts=None, truth=None))
    names = [image.id for image in Findings(report).worst_first]
    worst = min(report.images[:2], key=lambda image: report.image_scores(image).miou)  # type: ignore[union-attr]

    assert names[0] == "broken-1"
    assert names[1] == worst.id
    assert names[3] == "c-00003"


def test_a_run_without_truth_shows_shares(tmp_path: Path) -> None:
    _, mask = toy(1)
    page = page_of(run(scored("a", 1, truth=None, counts=None, state="complete", error=None, failed_px=0)), tmp_path)
    shown = Text(page).words

    assert "No accuracy" in shown
    assert "What was taken for what" not in shown
    assert "mIoU" not in shown
    assert words.percent((mask == 1).sum() / (mask < 4).sum()) in shown
    assert "nothing was scored" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("images", [(BROKEN,), (BROKEN, BROKEN.model_copy(update={"id": "b2"})), ()])
def test_a_run_that_came_to_nothing_still_has_a_page(images: tuple[ImageResult, ...], tmp_path: Path) -> None:
    written = write_report(run(*images), tmp_path)
    page = written["report.html"].read_text()

    assert 'class="verdict bad"' in page
    assert ("broken.tif failed: cannot be opened" in page) == bool(images)
    assert ("broken.tif, failed: cannot be opened" in written["summary.md"].read_text()) == bool(images)
    assert pq.read_table(written["per_image.parquet"]).num_rows == len(images)


@pytest.mark.parametrize(
    ("image", "level", "told"),
    [
        (scored("a", 1), "attention", "a.tif has holes: 1 of 4 blocks failed"),
        (scored("a", 1, unknown_labels={17: 100}), "attention", "is label 17, which is no class"),
        (scored("a", 1, counts=None, truth_error="labels are on another grid"), "attention", "labels are on another grid"),
        (
            scored("a", 1, counts=np.diag([9, 9, 9, 0, 0, 0])[:5].tolist(), state="complete", failed_px=0),
            "good",
            "mIoU 1.000 over 3",
        ),
        (
            scored("a", 1, counts=np.eye(5, 6, 1, int).tolist(), state="complete", failed_px=0),
            "attention",
            "no better than always",
        ),
        (ImageResult(id="e", uri="/e.tif", state="empty", height=9, width=9, no_data_px=81), "attention", "No image has a pixel"),
        (BROKEN, "bad", "broken.tif failed"),
    ],
    ids=["partial", "unknown label", "truth unusable", "perfect", "worse than a constant", "empty", "failed"],
)
def test_the_verdict_tells_what_matters(image: ImageResult, level: str, told: str) -> None:
    verdict = Findings(run(image)).verdict

    assert verdict.level == level
    assert told in " ".join([verdict.sentence, *verdict.reasons])


def test_failed_images_with_labels_are_told_beside_the_score() -> None:
    assert any("leave out 1 failed image" in r for r in Findings(run(scored("a", 1), BROKEN)).verdict.reasons)


def test_unknown_labels_are_a_share_of_the_whole_reference() -> None:
    reference, _ = toy(1)
    labelled = int((reference != UNLABELLED).sum())
    notes = Findings(run(scored("a", 1, unknown_labels={17: 100}))).unknown_label_notes

    assert notes == [f"{100 / (labelled + 100) * 100:.1f} % of the reference (100 px) is label 17, which is no class"]


@pytest.mark.parametrize(
    ("classes", "background", "legend"), [(CLASSES, None, "wrong class"), (WITH_BACKGROUND, 0, "missed: called background")]
)
def test_the_legend_tells_what_the_errors_show(
    classes: tuple[ClassInfo, ...], background: int | None, legend: str, tmp_path: Path
) -> None:
    image = scored("a", 1, quicklook=save_quicklook(pictures_of(1), tmp_path, "a"))
    assert legend in Text(page_of(run(image, classes=classes, background=background), tmp_path)).words


def test_a_hundred_classes_have_no_matrix_on_the_page(tmp_path: Path) -> None:
    classes = tuple(ClassInfo(name=f"class {i}", color=f"#{i:06x}") for i in range(100))
    counts = np.zeros((101, 102), np.int64)
    counts[3, 7], counts[3, 3] = 30, 70
    image = scored("a", 1, class_px=[1] * 100, counts=counts.tolist())
    page = page_of(run(image, classes=classes), tmp_path)

    assert 'class="matrix' not in page
    assert "30.0 %" in page


def test_the_summary_fits_a_chat_message(tmp_path: Path) -> None:
    many = [BROKEN.model_copy(update={"id": f"b{i}", "uri": f"/archive/b_{i}.tif", "error": "x" * 5000}) for i in range(300)]
    text = write_report(run(scored("a", 1), *many), tmp_path)["summary.md"].read_text()

    assert len(text) < 2000
    assert r"b\_0.tif" in text
    assert "296 more" in text
    assert "[report](report.html)" in text


def test_templates_lie_in_the_package() -> None:
    names = {path.name for path in (Path(words.__file__).parent / "templates").iterdir()}
    assert {"report.html.j2", "report.css", "report.js"} <= names


def pictures_of(seed: int) -> dict[str, Image.Image]:
    reference, mask = toy(seed)
    rgb = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    return quicklook_pngs(rgb, mask != NO_DATA, mask, reference, CLASSES)


def rgb_of(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def at(picture: Image.Image, row: int, col: int) -> tuple[int, ...]:
    pixel = picture.convert("RGB").getpixel((col, row))
    assert isinstance(pixel, tuple)
    return tuple(int(v) for v in pixel)


def test_every_kind_of_pixel_has_its_colour() -> None:
    wide = HATCH_PERIOD * 2
    kinds = [(0, 0), (0, 1), (1, 0), (1, 2), (UNLABELLED, 1), (0, FAILED), (1, NO_DATA), (UNLABELLED, NO_DATA)]
    reference = np.repeat(np.array([r for r, _ in kinds], np.uint8)[:, None], wide, axis=1)
    mask = np.repeat(np.array([m for _, m in kinds], np.uint8)[:, None], wide, axis=1)
    rgb = np.full((*mask.shape, 3), (200, 100, 50), np.uint8)
    special = special_colors(CLASSES)
    land, water, third = (rgb_of(c.color) for c in CLASSES[:3])
    stripes = {rgb_of(special.unlabelled), rgb_of(special.unlabelled_stripe)}
    alarm = {rgb_of(special.failed), (0, 0, 0)}

    def row(picture: Image.Image, index: int) -> set[tuple[int, ...]]:
        return {at(picture, index, col) for col in range(wide)}

    shown = quicklook_pngs(rgb, mask != NO_DATA, mask, reference, WITH_BACKGROUND)
    void = {rgb_of(special.no_data)}
    assert list(shown) == ["image", "truth", "mask", "errors"]
    assert [row(shown["image"], i) for i in range(8)] == [{(200, 100, 50)}] * 6 + [void] * 2
    assert [row(shown["truth"], i) for i in range(8)] == [{land}, {land}, {water}, {water}, stripes, {land}, {water}, void]
    assert [row(shown["mask"], i) for i in range(8)] == [{land}, {water}, {land}, {third}, {water}, alarm, void, void]
    errors = [row(shown["errors"], i) for i in range(8)]
    assert errors[1:] == [{rgb_of(FALSE_ALARM)}, {rgb_of(MISSED)}, {rgb_of(CONFUSED)}, stripes, alarm, void, void]
    ((red, green, blue),) = errors[0]
    assert red == green == blue

    plain = quicklook_pngs(rgb, mask != NO_DATA, mask, reference, CLASSES)["errors"]
    assert [row(plain, i) for i in (1, 2, 3)] == [{rgb_of(WRONG)}] * 3


def test_without_reference_there_is_only_image_and_mask() -> None:
    _, mask = toy(1)
    shown = quicklook_pngs(np.zeros((*mask.shape, 3), np.uint8), mask != NO_DATA, mask, None, CLASSES)
    assert list(shown) == ["image", "mask"]


@pytest.mark.parametrize("taken", ["#ff00d4", "#b9c1d3", "#e6e8eb"])
def test_no_special_colour_is_that_of_a_class(taken: str) -> None:
    special = special_colors([ClassInfo(name="x", color=taken)])
    assert taken not in (special.failed, special.no_data, special.unlabelled)
    assert len({special.failed, special.no_data, special.unlabelled, special.unlabelled_stripe}) == 4


@pytest.mark.parametrize(("mask", "reference"), [(4, 0), (253, 0), (0, 5)])
def test_pictures_refuse_codes_that_mean_nothing(mask: int, reference: int) -> None:
    def full(code: int) -> NDArray[np.uint8]:
        return np.full((2, 2), code, np.uint8)

    with pytest.raises(ValueError, match="codes"):
        quicklook_pngs(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool), full(mask), full(reference), CLASSES)


def test_saved_pictures_are_small_and_the_same_every_time(tmp_path: Path) -> None:
    paths = save_quicklook(pictures_of(1), tmp_path, "a")
    before = {name: (tmp_path / path).read_bytes() for name, path in paths.items()}
    save_quicklook(pictures_of(1), tmp_path, "a")

    assert paths["image"] == "quicklook/a_image.jpg"
    assert {name: (tmp_path / path).read_bytes() for name, path in paths.items()} == before
    with Image.open(tmp_path / paths["mask"]) as mask:
        assert mask.mode == "P"
        assert (np.asarray(mask.convert("RGB")) == np.asarray(pictures_of(1)["mask"].convert("RGB"))).all()


def test_more_colours_than_a_palette_holds_still_make_a_picture() -> None:
    classes = tuple(ClassInfo(name=str(i), color=f"#{i * 40503 % 2**24:06x}") for i in range(300))
    mask = np.arange(300, dtype=np.uint16).reshape(15, 20)
    shown = quicklook_pngs(np.zeros((15, 20, 3), np.uint8), np.ones((15, 20), bool), mask, None, classes)["mask"]
    assert at(shown, 14, 19) == rgb_of(classes[299].color)


def test_stretch_maps_the_percentiles_of_real_pixels() -> None:
    data = np.arange(101, dtype=np.uint16).reshape(1, 1, 101) * 100
    valid = np.ones((1, 101), bool)
    grey = percentile_stretch(data, valid)

    assert grey.shape == (1, 101, 3)
    assert grey[0, [0, 2, 50, 98, 100], 0].tolist() == [0, 0, 128, 255, 255]
    filled = np.concatenate([data, np.full((1, 1, 500), 65535, np.uint16)], axis=2)
    kept = percentile_stretch(filled, np.arange(601)[None] < 101)
    assert (kept[:, :101] == grey).all()
    assert (kept[:, 101:] == 0).all()


def test_stretch_takes_any_samples() -> None:
    valid = np.ones((2, 2), bool)
    floats = np.array([[[np.nan, 1.0], [2.0, 3.0]]] * 4, np.float32)
    byte = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)

    assert percentile_stretch(floats, valid)[0, 0].tolist() == [0, 0, 0]
    assert percentile_stretch(floats, valid)[1, 1].tolist() == [255, 255, 255]
    assert (percentile_stretch(byte, valid) == byte.transpose(1, 2, 0)).all()
    assert (percentile_stretch(np.full((1, 2, 2), 7, np.int16), valid) == 128).all()
    assert (percentile_stretch(floats, np.zeros((2, 2), bool)) == 0).all()
