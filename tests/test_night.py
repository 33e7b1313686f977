"""Nights on small archives: same bytes for any workers, nothing done twice, and one bad image costs its image."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import zarr

from flows.console import Quiet
from pipeline import bulk
from pipeline import night as night_module
from pipeline.card import Scaling, read_card
from pipeline.changes import SEEN
from pipeline.config import load_config
from pipeline.confusion import count, no_counts
from pipeline.errors import PlanError
from pipeline.ledger import Ledger
from pipeline.models import save_model
from pipeline.models.smp import build
from pipeline.night import Morning, run_night
from pipeline.overview import draw_overview
from pipeline.plan import Plan
from pipeline.records import BlockRecord
from pipeline.report import read_report
from pipeline.whole import Whole, WholeJob, do_whole
from tests.conftest import write_raster
from tests.making import config_file, threshold_model


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three scenes of several blocks with labels, and a threshold model."""
    rng = np.random.default_rng(5)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    for name, shape in (("a", (700, 600)), ("b", (300, 900)), ("c", (20, 30))):
        samples = rng.integers(1, 256, shape, np.uint8)
        samples[:10, :10] = 0
        write_raster(tmp_path / "scenes" / f"{name}.tif", samples, nodata=0)
        labels = np.digitize(samples, [100, 180]).astype(np.uint8)
        labels[rng.random(shape) < 0.1] = 0
        write_raster(tmp_path / "labels" / f"{name}.tif", labels)
    threshold_model(tmp_path / "model", (100, 200))
    return tmp_path


def night(folder: Path, **sections: Any) -> Morning:
    return run_night(load_config(config_file(folder, **sections)), Quiet(), "gigamask run config.yaml")


def bytes_of(output: Path) -> dict[str, bytes]:
    """Every file of every published mosaic."""
    masks = output / "masks"
    return {
        str(p.relative_to(masks)): p.read_bytes()
        for p in sorted(masks.rglob("*"))
        if (p.is_file() and p.suffix != ".json") or p.name == "zarr.json"
    }


def mask(morning: Morning, stem: str) -> np.ndarray:
    image = next(i for i in morning.report.images if Path(i.uri).stem == stem)
    assert image.mask is not None
    return zarr.open_array(morning.folder.parent.parent / image.mask, path="0/mask", mode="r")[:]


def result(morning: Morning, stem: str) -> Any:
    return next(i for i in morning.report.images if Path(i.uri).stem == stem)


TILING = {"block": 64, "overlap": 8}


def test_the_masks_are_the_same_bytes_for_one_two_and_four_workers(archive: Path) -> None:
    serial = night(archive, tiling=TILING, output="serial")
    assert serial.exit_code == 0
    assert sum(image.blocks for image in serial.report.images) > 10
    expected = bytes_of(archive / "serial")
    for workers in (1, 2, 4):
        cluster = {"type": "local", "workers": workers, "threads": 1, "memory_gib": 2}
        parallel = night(archive, tiling=TILING, output=f"with{workers}", cluster=cluster)
        assert bytes_of(archive / f"with{workers}") == expected
        assert (parallel.report.counts == serial.report.counts).all()


def test_a_network_gives_the_same_bytes_for_any_threads_and_workers(archive: Path) -> None:
    """Torch chooses other routines for one thread than for two, and they round otherwise: ours must not."""
    (archive / "scenes" / "b.tif").unlink()
    torch.manual_seed(0)
    plain = read_card(threshold_model(archive / "model", (100, 200), tile=64, overlap=16, activation="softmax"))
    architecture = {"name": "Unet", "encoder": "resnet18", "arguments": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}}
    card = plain.model_copy(update={"adapter": "smp", "architecture": architecture, "weights": "model.safetensors"})
    scaling = Scaling(offset=(128.0,), divisor=(64.0,))
    save_model(archive / "model", card.model_copy(update={"scaling": scaling, "activation_bytes_per_pixel": 500.0}), build(card))
    tiling = {"block": 336}
    found = []
    for output, cluster in (
        ("one", {"type": "serial", "threads": 1}),
        ("two", {"type": "serial", "threads": 2}),
        ("workers", {"type": "local", "workers": 2, "threads": 1, "memory_gib": 2}),
    ):
        morning = night(archive, tiling=tiling, output=output, cluster=cluster)
        assert morning.exit_code == 0
        found.append(bytes_of(archive / output))
    assert len({*mask(morning, "a").flat}) > 1
    assert found[0] == found[1] == found[2]


def test_streamed_counts_are_the_counts_of_the_whole(archive: Path) -> None:
    morning = night(archive, tiling=TILING)
    total = no_counts(3)
    for stem in "abc":
        with rasterio.open(archive / "labels" / f"{stem}.tif") as labels:
            counts = count(labels.read(1), mask(morning, stem), 3)
        assert (np.array(result(morning, stem).counts) == counts).all()
        assert counts.sum() == mask(morning, stem).size
        total += counts
    assert (morning.report.counts == total).all()


def test_a_second_night_does_nothing_and_says_the_same(archive: Path) -> None:
    first = night(archive)
    stamps = {p: p.stat().st_mtime_ns for p in (archive / "out" / "masks").rglob("*")}
    second = night(archive)
    assert {p: p.stat().st_mtime_ns for p in (archive / "out" / "masks").rglob("*")} == stamps
    assert all(image.reused for image in second.report.images)
    assert (second.report.counts == first.report.counts).all()
    assert second.exit_code == 0


def test_another_model_is_another_digest_and_never_mixes(archive: Path) -> None:
    first = night(archive)
    threshold_model(archive / "model", (100, 201))
    second = night(archive)
    assert not any(image.reused for image in second.report.images)
    assert {i.digest for i in first.report.images}.isdisjoint(i.digest for i in second.report.images)
    assert len(list((archive / "out" / "masks").glob("a-*/*.zarr"))) == 2


def test_a_lost_ledger_is_made_good_from_the_record_beside_the_mask(archive: Path) -> None:
    first = night(archive)
    for path in (archive / "out").glob("ledger.sqlite*"):
        path.unlink()
    second = night(archive)
    assert all(image.reused for image in second.report.images)
    assert (second.report.counts == first.report.counts).all()


HELD_MODEL = """
import time
from itertools import count
from pathlib import Path
import numpy as np

calls = count()

def predict(data, valid, hold, after):
    late = next(calls) >= after
    while late and Path(hold).exists():
        time.sleep(0.02)
    scores = np.stack([data[:, 0] < 100, (data[:, 0] >= 100) & (data[:, 0] < 200), data[:, 0] >= 200], axis=1)
    return scores.astype(np.float32)
"""


def test_a_killed_run_finishes_only_what_was_missing(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (archive / "heldmodel.py").write_text(HELD_MODEL)
    hold = archive / "hold"
    threshold_model(
        archive / "model",
        (100, 200),
        adapter="callable",
        architecture={"function": "heldmodel:predict", "arguments": {"hold": str(hold), "after": 200}},
    )
    sections = {"tiling": TILING, "model": {"path": "model", "batch": 3, "trust_code": True}}
    monkeypatch.setenv("PYTHONPATH", f"{archive}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(archive))
    undisturbed = night(archive, output="undisturbed", **sections)
    path = config_file(archive, output="killed", **sections)
    command = [sys.executable, "-m", "flows.cli", "run", str(path), "--no-prefect", "--json"]
    hold.touch()
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = archive / "killed" / "ledger.sqlite"
    done: dict[str, dict[int, BlockRecord]] = {}
    digests = [image.digest for image in undisturbed.report.images]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(map(len, done.values())) < 4:
        time.sleep(0.05)
        if ledger.exists():
            with Ledger(ledger) as found:
                done = {digest: found.blocks(digest, "predict", BlockRecord) for digest in digests}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    hold.unlink()
    finished = sum(map(len, done.values()))
    assert finished >= 4
    assert not (archive / "killed" / "runs").exists()

    resumed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    with Ledger(ledger) as found:
        after = {digest: found.blocks(digest, "predict", BlockRecord) for digest in digests}
    for digest, records in done.items():
        for index, record in records.items():
            assert after[digest][index] == record, "a finished block was computed again"
    report = read_report(Path(json.loads(resumed.stdout)["folder"]))
    assert (report.counts == undisturbed.report.counts).all()
    assert bytes_of(archive / "killed") == bytes_of(archive / "undisturbed")


def test_missing_truth_for_one_image_leaves_it_unscored(archive: Path) -> None:
    (archive / "labels" / "b.tif").unlink()
    morning = night(archive)
    assert result(morning, "b").counts is None
    assert result(morning, "b").state == "complete"
    assert result(morning, "a").counts is not None
    assert morning.exit_code == 0


def test_a_class_that_is_absent_from_one_image_still_counts_its_false_alarms(archive: Path) -> None:
    write_raster(archive / "labels" / "c.tif", np.zeros((20, 30), np.uint8))
    morning = night(archive)
    counts = np.array(result(morning, "c").counts)
    assert counts[1:3].sum() == 0
    assert counts[0, 1:3].sum() > 0


def test_an_image_without_any_data_is_empty(archive: Path) -> None:
    write_raster(archive / "scenes" / "b.tif", np.zeros((300, 900), np.uint8), nodata=0)
    morning = night(archive)
    assert result(morning, "b").state == "empty"
    assert (mask(morning, "b") == 255).all()
    assert result(morning, "b").tiles == 0
    assert morning.exit_code == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_text("not an image"), "cannot be opened as a raster"),
        (
            lambda p: p.write_text(
                '<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
            ),
            "is a GDAL VRT, which points at other files",
        ),
        (
            lambda p: write_raster(p, np.zeros((3, 40, 40), np.uint8), photometric="RGB"),
            r"expects 1 bands \(gray\).* has 3 \(red, green, blue\)",
        ),
        (lambda p: write_raster(p, np.zeros((40, 40), np.uint16)), "trained on uint8 samples.* has uint16"),
    ],
    ids=["text named .tif", "VRT named .tif", "other bands", "other type"],
)
def test_one_bad_image_costs_its_image_and_the_exit_code_tells(archive: Path, make: Callable[[Path], object], said: str) -> None:
    make(archive / "scenes" / "b.tif")
    morning = night(archive)
    bad = result(morning, "b")
    assert bad.state == "failed"
    assert re.search(said, bad.error, re.DOTALL), bad.error
    assert [result(morning, stem).state for stem in "ac"] == ["complete", "complete"]
    assert morning.exit_code == 1
    assert (morning.folder / "report.html").exists()


def test_a_night_without_a_single_usable_image_starts_nothing(archive: Path) -> None:
    for stem in "abc":
        (archive / "scenes" / f"{stem}.tif").write_text("not an image")
    with pytest.raises(PlanError, match="none of 3 images can be segmented"):
        night(archive)
    assert not (archive / "out").exists()


def test_labels_on_another_grid_are_refused_with_both_grids(archive: Path) -> None:
    write_raster(archive / "labels" / "a.tif", np.zeros((100, 100), np.uint8))
    morning = night(archive)
    assert result(morning, "a").counts is None
    assert "100 x 100 px" in result(morning, "a").truth_error
    assert "700 x 600 px" in result(morning, "a").truth_error
    assert morning.exit_code == 1


def test_label_values_that_are_no_class_are_counted_and_too_many_are_an_error(archive: Path) -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[0] = 17
    write_raster(archive / "labels" / "c.tif", labels)
    tolerant = night(archive, output="tolerant")
    assert result(tolerant, "c").unknown_labels == {17: 30}
    assert np.array(result(tolerant, "c").counts)[3].sum() == 30
    strict = night(archive, output="strict", truth={"pattern": "labels/{stem}.tif", "max_unknown_share": 0.01})
    assert result(strict, "c").counts is None
    assert "17 (30 px)" in result(strict, "c").truth_error
    assert strict.exit_code == 1


def test_a_model_that_fails_makes_blocks_failed_and_the_night_goes_on(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (archive / "brokenmodel.py").write_text("def predict(data, valid):\n    raise RuntimeError('no answer')\n")
    monkeypatch.syspath_prepend(str(archive))
    threshold_model(archive / "model", (100, 200), adapter="callable", architecture={"function": "brokenmodel:predict"})
    morning = night(archive, model={"path": "model", "trust_code": True})
    assert {image.state for image in morning.report.images} == {"failed"}
    assert all("no answer" in image.error for image in morning.report.images)
    assert morning.exit_code == 1
    assert morning.report.scores is not None
    assert morning.report.scores.failed_px == morning.report.scores.evaluated_px == 700 * 600 + 300 * 900 + 20 * 30
    assert morning.report.scores.miou == 0


@pytest.fixture
def small_archive(tmp_path: Path) -> Path:
    """Eight labelled scenes of one block each, and a threshold model; the first pixel of scene n has the value n."""
    rng = np.random.default_rng(8)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    for index in range(8):
        samples = rng.integers(10, 256, (60, 50 + index), np.uint8)
        samples[0, 0] = index
        write_raster(tmp_path / "scenes" / f"s{index}.tif", samples)
        write_raster(tmp_path / "labels" / f"s{index}.tif", np.digitize(samples, [100, 180]).astype(np.uint8))
    threshold_model(tmp_path / "model", (100, 200))
    return tmp_path


def trusting(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> dict[str, Any]:
    """Sections of a configuration whose model is `code` for predict(data, valid), in this process and in workers."""
    (folder / "ownmodel.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "ownmodel", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    threshold_model(folder / "model", (100, 200), adapter="callable", architecture={"function": "ownmodel:predict"})
    return {"model": {"path": "model", "batch": 3, "trust_code": True}}


SCORES = """
    scores = np.stack([data[:, 0] < 100, (data[:, 0] >= 100) & (data[:, 0] < 200), data[:, 0] >= 200], axis=1)
    return scores.astype(np.float32)
"""


def test_small_images_done_whole_are_the_bytes_of_those_done_block_by_block(
    small_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = night(small_archive, output="whole")
    workers = night(small_archive, output="workers", cluster={"type": "local", "workers": 2, "threads": 1, "memory_gib": 2})
    monkeypatch.setattr(bulk, "_untouched", lambda *_: False)
    single = night(small_archive, output="single")

    assert {image.blocks for image in whole.report.images} == {1}
    assert bytes_of(small_archive / "whole") == bytes_of(small_archive / "workers") == bytes_of(small_archive / "single")
    told = [
        [image.model_dump(exclude={"seconds", "load_seconds"}) for image in morning.report.images]
        for morning in (whole, workers, single)
    ]
    assert told[0] == told[1] == told[2]


def test_several_small_images_share_a_call_once_their_pace_is_known(small_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    def counting(images: tuple[WholeJob, ...]) -> tuple[Whole, ...]:
        called.append(len(images))
        return do_whole(images)

    monkeypatch.setattr(bulk, "do_whole", counting)
    night(small_archive)
    assert called[0] == 1
    assert sum(called) == 8
    assert max(called) > 1


def test_an_image_that_fails_among_small_ones_costs_itself_only(small_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (
        "import numpy as np\ndef predict(data, valid):\n    if (data[:, 0, 0, 0] == 5).any():\n        raise ValueError('five')"
    )
    morning = night(small_archive, **trusting(small_archive, monkeypatch, broken + SCORES))
    assert [result(morning, f"s{i}").state for i in range(8)] == ["failed" if i == 5 else "complete" for i in range(8)]
    assert "five" in result(morning, "s5").error
    assert morning.report.scores is not None
    assert morning.report.scores.failed_px == 60 * 55
    assert morning.report.scores.evaluated_px == sum(60 * (50 + i) for i in range(8))


def test_a_worker_that_dies_in_a_call_takes_no_image_with_it(small_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = f"""
import os, time
from pathlib import Path
import numpy as np
def predict(data, valid):
    marker = Path({str(small_archive / "died")!r})
    if (data[:, 0, 0, 0] == 3).any() and not marker.exists():
        marker.touch()
        os._exit(1)
"""
    sections = trusting(small_archive, monkeypatch, deadly + SCORES)
    morning = night(small_archive, cluster={"type": "local", "workers": 1, "threads": 1, "memory_gib": 2}, **sections)
    assert (small_archive / "died").exists()
    assert {image.state for image in morning.report.images} == {"complete"}
    assert morning.report.scores is not None
    assert morning.report.scores.evaluated_px == sum(60 * (50 + i) for i in range(8))


def test_the_ledger_hears_of_a_whole_image_only_after_it_is_published(
    small_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Ledger.put_image

    def published(ledger: Ledger, image: str, digest: str, task: str, record: Any) -> None:
        assert task == SEEN or (small_archive / "out" / "masks" / image / f"{digest}.zarr").is_dir()
        put(ledger, image, digest, task, record)

    monkeypatch.setattr(Ledger, "put_image", published)
    assert night(small_archive).exit_code == 0


def test_images_published_before_a_kill_and_after_the_last_record_are_not_computed_again(
    small_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = bulk.publish

    def published_and_killed(*arguments: Any, **options: Any) -> None:
        publish(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "publish", published_and_killed)
        with pytest.raises(KeyboardInterrupt):
            night(small_archive)
    published = {path.name for path in (small_archive / "out" / "masks").glob("*/*.zarr")}
    assert published
    morning = night(small_archive)
    assert {image.digest for image in morning.report.images if image.reused} == {name.removesuffix(".zarr") for name in published}
    assert {image.state for image in morning.report.images} == {"complete"}
    assert all(image.counts for image in morning.report.images)


def pictures(morning: Morning) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((morning.folder / "quicklook").iterdir())}


def test_pictures_of_unchanged_masks_are_taken_over(small_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def counting(plan: Plan, *arguments: Any) -> dict[str, str]:
        drawn.append(plan.image.stem)
        return draw_overview(plan, *arguments)

    monkeypatch.setattr(night_module, "draw_overview", counting)
    first = night(small_archive)
    assert sorted(drawn) == [f"s{i}" for i in range(8)]
    drawn.clear()
    second = night(small_archive)
    assert not drawn
    assert pictures(second) == pictures(first)
    assert len(pictures(first)) == 32

    write_raster(small_archive / "labels" / "s4.tif", np.zeros((60, 54), np.uint8))
    shutil.rmtree(first.folder)
    third = night(small_archive)
    assert drawn == ["s4"]
    changed = {name for name, content in pictures(third).items() if content != pictures(second)[name]}
    assert {name.partition("-")[0] for name in changed} == {"s4"}
    drawn.clear()
    shutil.rmtree(second.folder)
    shutil.rmtree(third.folder)
    night(small_archive)
    assert sorted(drawn) == [f"s{i}" for i in range(8)]
