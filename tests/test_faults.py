"""What goes wrong in a night: damage stays where it is, is told, and is made good by the next run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr

from pipeline import merge, mosaic, process, survey
from pipeline.cluster import Outcome
from pipeline.errors import ConfigError, OutputError, PlanError
from pipeline.finished import masks, read_record
from pipeline.grid import Window
from pipeline.ledger import Ledger
from pipeline.lock import HeldError, holding
from pipeline.night import LOCK, Morning, run_night
from pipeline.records import PREDICT, BlockRecord
from pipeline.report.contract import ImageResult
from pipeline.survey import Division, division
from pipeline.work import BlockDraft, predict_block
from tests.conftest import write_mask, write_raster
from tests.making import config, threshold_model
from tests.test_night import bytes_of, result

TILING = {"block": 512}
HEIGHT, WIDTH = 1030, 1100
PIXELS = HEIGHT * WIDTH


class Heard:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def expect(self, pixels: int) -> None:
        """Nothing to do."""

    def advance(self, pixels: int) -> None:
        """Nothing to do."""

    def say(self, text: str) -> None:
        """Keeps the line."""
        self.lines.append(text)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three scenes of 3 x 3 blocks with labels."""
    rng = np.random.default_rng(7)
    for name in ("scenes", "labels"):
        (tmp_path / name).mkdir()
    for stem in "abc":
        samples = np.kron(rng.integers(1, 256, (103, 110)), np.ones((10, 10))).astype(np.uint8)
        write_raster(tmp_path / "scenes" / f"{stem}.tif", samples)
        write_raster(tmp_path / "labels" / f"{stem}.tif", (samples >= 120).astype(np.uint8))
    threshold_model(tmp_path / "model", (100,), tile=96, overlap=32)
    return tmp_path


def night(
    archive: Path, heard: Heard | None = None, part: Division | None = None, *, retry: bool = False, **sections: Any
) -> Morning:
    settings = config(archive, **({"tiling": TILING} | sections))
    return run_night(settings, heard or Heard(), "gigamask run", part, retry=retry)


def store_of(morning: Morning, stem: str) -> Path:
    return morning.folder.parent.parent / str(result(morning, stem).mask)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stem, block) of every block that is predicted."""
    seen: list[tuple[str, int]] = []

    def watched(job: Any, block: Any) -> BlockDraft:
        seen.append((job.plan.image.stem, block.index))
        return predict_block(job, block)

    monkeypatch.setattr(process, "predict_block", watched)
    return seen


def shards(store: Path) -> list[Path]:
    return sorted(path for path in (store / "0" / "mask" / "c").glob("*/*"))


# --- damage to what is finished ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9])], ids=["gone", "torn"])
def test_a_damaged_shard_of_a_published_mask_is_made_again_and_nothing_else(
    archive: Path, predicted: list[tuple[str, int]], damage: Callable[[Path], object]
) -> None:
    first = night(archive)
    good, counts = bytes_of(archive / "out"), first.report.counts
    assert len(predicted) == 27
    predicted.clear()
    damage(shards(store_of(first, "b"))[4])
    heard = Heard()
    second = night(archive, heard)
    assert predicted == [("b", 4)]
    assert bytes_of(archive / "out") == good
    assert (second.report.counts == counts).all()
    assert any("1 of 9 blocks are made again" in line for line in heard.lines)


def test_a_shard_torn_before_the_mask_was_published_is_found_by_its_checksum(
    archive: Path, predicted: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = night(archive, output="undisturbed")

    def broken(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(process, "publish", broken)
        with pytest.raises(OutputError):
            night(archive)
    work_store = next((archive / "out" / "masks").glob("a-*/.*.partial"))
    torn = shards(work_store)[3]
    content = bytearray(torn.read_bytes())
    content[5] ^= 0xFF
    torn.write_bytes(content)
    (torn.parent / "2.00ff00ff.partial").write_bytes(b"half a shard")
    predicted.clear()
    resumed = night(archive)
    assert [place for place in predicted if place[0] == "a"] == [("a", 3)]
    assert bytes_of(archive / "out") == bytes_of(archive / "undisturbed")
    assert (resumed.report.counts == undisturbed.report.counts).all()


# --- images that cannot be read ------------------------------------------------------------------------------------------


def spoil(path: Path, share: float) -> None:
    """Make the last part of a file unreadable: zeros in the place of compressed data."""
    content = bytearray(path.read_bytes())
    first = int(len(content) * (1 - share))
    content[first:] = bytes(len(content) - first)
    path.write_bytes(content)


def compressed(archive: Path, stem: str) -> Path:
    samples = np.random.default_rng(1).integers(1, 256, (HEIGHT, WIDTH), np.uint8)
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    return write_raster(archive / "scenes" / f"{stem}.tif", samples, **tiles)


def test_more_failed_pixels_than_allowed_publish_nothing_and_every_label_is_a_miss(archive: Path) -> None:
    spoil(compressed(archive, "b"), 0.4)
    partial = night(archive, output="kept")
    assert result(partial, "b").state == "partial"
    assert 0 < result(partial, "b").failed_px < PIXELS / 2
    assert result(partial, "b").counts is not None
    strict = night(archive, output="strict", faults={"max_failed_fraction": 0.05})
    b = result(strict, "b")
    assert b.state == "failed"
    assert "more than faults.max_failed_fraction 5.0% allows" in str(b.error)
    assert not list((archive / "strict" / "masks").glob("b-*/*.zarr"))
    counts = np.array(b.counts)
    assert counts[:, :2].sum() == 0
    assert counts[:2, 2].sum() == PIXELS
    assert strict.exit_code == partial.exit_code == 1


def test_labels_of_an_image_that_cannot_be_opened_are_misses(archive: Path) -> None:
    whole = night(archive, output="whole")
    (archive / "scenes" / "b.tif").write_text("no image")
    morning = night(archive)
    assert result(morning, "b").state == "failed"
    counts = np.array(result(morning, "b").counts)
    assert counts[:2, 2].sum() == PIXELS == counts.sum()
    assert morning.report.scores is not None
    assert whole.report.scores is not None
    assert morning.report.scores.miou < whole.report.scores.miou * 0.7


@pytest.mark.parametrize("how", ["changed", "vanished", "masked"])
def test_an_image_that_changes_while_it_is_read_is_failed_and_done_anew_by_the_next_run(
    archive: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = archive / "scenes" / "b.tif"
    other = write_raster(archive / "other.tif", np.full((HEIGHT, WIDTH), 7, np.uint8))
    calls: list[int] = []

    def disturbed(job: Any, block: Any) -> BlockDraft:
        if job.plan.image.stem == "b":
            calls.append(block.index)
            if len(calls) == 4:
                if how == "changed":
                    shutil.copyfile(other, path)
                elif how == "vanished":
                    path.unlink()
                else:
                    write_mask(path, np.zeros((HEIGHT, WIDTH), bool))
        return predict_block(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(process, "predict_block", disturbed)
        morning = night(archive)
    assert result(morning, "b").state == "failed"
    said = {"changed": "b.tif is not the file", "vanished": "b.tif has vanished", "masked": "b.tif.msk, which belongs to b.tif"}
    assert said[how] in str(result(morning, "b").error)
    assert result(morning, "a").state == result(morning, "c").state == "complete"
    assert not list((archive / "out" / "masks").glob("b-*/.*"))

    second = night(archive)
    assert second.report.changes is not None
    if how == "changed":
        assert result(second, "b").state == "complete"
        assert result(second, "b").class_px == [PIXELS, 0]
        assert second.report.changes.changed == [str(path)]
    elif how == "masked":
        assert (result(second, "b").state, result(second, "b").no_data_px) == ("empty", PIXELS)
        assert second.report.changes.changed == [str(path)]
    else:
        assert second.report.changes.vanished == [str(path)]
        assert len(second.report.images) == 2


# --- workers that die ----------------------------------------------------------------------------------------------------


def dying(kills: Callable[[Any], bool]) -> Callable[..., Any]:
    """`run_tasks` where workers die of what `kills` says of a window."""

    def run_tasks(function: Any, tasks: Any, *_: Any, **__: Any) -> Any:
        for key, arguments in tasks:
            place = getattr(arguments[-1], "window", None) or getattr(arguments[-1], "core", None)
            if place is not None and kills(place):
                yield key, Outcome(None, RuntimeError("worker died on it"), 3, deaths=3)
            else:
                yield key, Outcome(function(*arguments), None, 1)

    return run_tasks


def test_a_block_that_kills_workers_is_tried_in_parts_and_loses_the_part_that_kills(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = night(archive, output="whole")
    monkeypatch.setattr(
        process, "run_tasks", dying(lambda place: place.row <= 600 < place.row_stop and place.col <= 900 < place.col_stop)
    )
    heard = Heard()
    morning = night(archive, heard)
    assert any("block 4 is tried in parts" in line for line in heard.lines)
    for stem in "abc":
        good, left = (mosaic.read(store_of(m, stem), Window(0, 0, HEIGHT, WIDTH)) for m in (whole, morning))
        lost = left == 254
        assert lost[512:768, 768:1024].all()
        assert lost.sum() == 256 * 256
        assert (left[~lost] == good[~lost]).all()
        assert result(morning, stem).state == "partial"
        assert "worker died on it" in str(result(morning, stem).error)
        assert result(morning, stem).deaths == 6
    assert not list((archive / "out" / "masks").glob("*/*.parts"))
    assert not list((archive / "out" / "masks").glob("*/.*"))


def test_retry_makes_good_only_what_failed(
    archive: Path, monkeypatch: pytest.MonkeyPatch, predicted: list[tuple[str, int]]
) -> None:
    good = night(archive, output="good")
    (archive / "scenes" / "c.tif").rename(archive / "c.tif")
    (archive / "scenes" / "c.tif").write_text("no image yet")
    with monkeypatch.context() as patch:
        patch.setattr(process, "run_tasks", dying(lambda place: 512 <= place.row < 1024 and place.col < 512))
        broken = night(archive)
    assert {image.state for image in broken.report.images} == {"partial", "failed"}
    (archive / "scenes" / "c.tif").unlink()
    shutil.move(archive / "c.tif", archive / "scenes" / "c.tif")
    write_raster(archive / "scenes" / "d.tif", np.full((70, 70), 9, np.uint8))

    predicted.clear()
    again = night(archive)
    assert [place for place in predicted if place[0] in "ab"] == []
    assert result(again, "a").state == "partial"
    (archive / "scenes" / "e.tif").write_bytes((archive / "scenes" / "d.tif").read_bytes())
    predicted.clear()
    retried = night(archive, retry=True)
    assert sorted(predicted) == [("a", 3), ("b", 3)]
    assert result(retried, "e").state == "skipped"
    assert "`gigamask run` takes it" in str(result(retried, "e").error)
    assert retried.exit_code == 0
    for stem in "abc":
        assert result(retried, stem).state == "complete"
        assert result(retried, stem).counts == result(good, stem).counts
    assert {k: v for k, v in bytes_of(archive / "out").items() if "/d-" not in f"/{k}"} == bytes_of(archive / "good")


# --- the output's disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_with_what_is_done_kept(
    archive: Path, predicted: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = night(archive, output="undisturbed")
    predicted.clear()
    write, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        if path.name.endswith(".partial"):
            written.append(path)
            if len(written) > 12 * 2:  # each block writes its part of two levels
                raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"takes no more \(No space left on device\): what is finished is kept"):
            night(archive)
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        known = sum(len(ledger.blocks(str(image.digest), PREDICT, BlockRecord)) for image in undisturbed.report.images)
    assert known == 12
    assert len(written) == 25, "nothing is tried again on a full disk"
    assert len(list((archive / "out" / "masks").glob("*/*.zarr"))) == 1
    predicted.clear()
    resumed = night(archive)
    assert len(predicted) == 27 - 12
    assert bytes_of(archive / "out") == bytes_of(archive / "undisturbed")
    assert (resumed.report.counts == undisturbed.report.counts).all()


def test_too_little_room_is_refused_before_anything_is_written(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 29))
    with pytest.raises(PlanError, match=r"missing need about 0.00 GiB, and 1 GiB are to stay free .* has 0.50 GiB left"):
        night(archive)
    assert not (archive / "out").exists()


def test_a_finished_archive_needs_no_room(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the report is written; one new image, and the disk is too full again."""
    first = night(archive)
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    second = night(archive)
    assert second.exit_code == 0
    assert all(image.reused for image in second.report.images)
    assert (second.report.counts == first.report.counts).all()
    shutil.copyfile(archive / "scenes" / "a.tif", archive / "scenes" / "new.tif")
    with pytest.raises(PlanError, match=r"missing need about"):
        night(archive)


def test_what_is_written_of_a_mask_is_not_needed_again(archive: Path) -> None:
    night(archive)
    settings = config(archive, tiling=TILING)
    found = survey.survey(settings)
    assert (found.missing_bytes, found.is_finished) == (0, True)
    plan = next(p.plan for p in found.planned if p.plan.image.stem == "a")
    final = survey.mask_path(settings.output, plan)
    final.rename(survey.work_path(final, plan))
    final.with_suffix(".json").unlink()
    begun = found.missing_bytes
    assert not found.is_finished
    assert 0 <= begun < plan.expected_bytes
    written = sum(path.stat().st_size for path in survey.work_path(final, plan).rglob("*") if path.is_file())
    assert begun == max(0, plan.expected_bytes - written)
    shutil.rmtree(survey.work_path(final, plan) / "0" / "mask" / "c")
    assert begun < found.missing_bytes < plan.expected_bytes


def test_an_image_that_no_disk_could_hold_is_refused_by_itself(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(archive / "scenes" / "vast.tif", np.zeros((64, 64), np.uint8))
    honest = survey.describe_image

    def claiming(where: Any, image: Any) -> Any:
        vast = {"height": 1_000_000, "width": 1_000_000} if image.stem == "vast" else {}
        return honest(where, image).model_copy(update=vast)

    monkeypatch.setattr(survey, "describe_image", claiming)
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 << 30))
    morning = night(archive)
    assert morning.exit_code == 1
    assert "needs about 248.35 GiB" in str(result(morning, "vast").error)
    assert [result(morning, stem).state for stem in "abc"] == ["complete"] * 3


def test_whatever_a_file_makes_a_library_do_costs_its_image_only(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = survey.describe_image

    def strange(where: Any, image: Any) -> Any:
        return honest(where, image) if image.stem != "b" else 1 / 0

    monkeypatch.setattr(survey, "describe_image", strange)
    morning = night(archive)
    assert morning.exit_code == 1
    assert "ZeroDivisionError" in str(result(morning, "b").error)
    assert [result(morning, stem).state for stem in "ac"] == ["complete"] * 2


# --- a mask that is made again -------------------------------------------------------------------------------------------


@pytest.fixture
def holed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive after a night in which the middle block of one image failed; whole, that block is of one class, so that its
    files are as long as those of a failed one."""
    with rasterio.open(archive / "scenes" / "b.tif") as file:
        samples = file.read(1)
    samples[440:1030, 440:1030] = 200
    write_raster(archive / "scenes" / "b.tif", samples)

    def failing(job: Any, block: Any) -> BlockDraft:
        if (job.plan.image.stem, block.index) == ("b", 4):
            raise ValueError("not tonight")
        return predict_block(job, block)

    with monkeypatch.context() as patch:
        patch.setattr(process, "predict_block", failing)
        morning = night(archive)
    assert (result(morning, "b").state, result(morning, "b").failed_px) == ("partial", 512 * 512)
    return archive


@pytest.mark.parametrize("after", ["predicted", "forgotten", "published"])
def test_a_kill_while_a_mask_takes_the_place_of_another_leaves_the_truth(
    holed: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    publish, before = process.publish, after != "published"

    def killed(*arguments: Any, **options: Any) -> None:
        if not before:
            publish(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "summarise" if after == "predicted" else "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            night(holed, retry=True)

    morning = night(holed)
    told = result(morning, "b")
    stored = zarr.open_array(store_of(morning, "b"), path="0/mask", mode="r")[:]
    assert told.failed_px == (stored == 254).sum() == (512 * 512 if before else 0)
    assert np.array(told.counts)[:, 2].sum() == told.failed_px
    mended = night(holed, retry=True) if before else morning
    undisturbed = night(holed, output="undisturbed")
    assert bytes_of(holed / "out") == bytes_of(holed / "undisturbed")
    assert (mended.report.counts == undisturbed.report.counts).all()


def test_a_mask_that_is_done_takes_on_what_the_manifest_says_now(archive: Path) -> None:
    manifest = archive / "images.csv"
    rows = [f"{archive}/scenes/{stem}.tif,{archive}/labels/{stem}.tif" for stem in "abc"]
    manifest.write_text("\n".join(["image,truth", *rows]))
    settings = config(archive, tiling=TILING, archive={"images": "images.csv"})
    run_night(settings, Heard(), "gigamask run")
    manifest.write_text("\n".join(["image,truth,group,season", *(f"{row},{i % 2},wet" for i, row in enumerate(rows))]))
    again = run_night(settings, Heard(), "gigamask run")
    assert [result(again, stem).group for stem in "abc"] == ["0", "1", "0"]
    assert all(result(again, stem).reused and result(again, stem).strata == {"season": "wet"} for stem in "abc")


# --- who else is at work -------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_with_who_holds_the_output(archive: Path) -> None:
    (archive / "out").mkdir()
    with (
        holding(archive / "out" / LOCK, "2026-11-30T01:00:00+00:00", "gigamask run night.yaml"),
        pytest.raises(
            HeldError, match=rf"held by pid {os.getpid()} on .* since 2026-11-30T01:00:00.* \(gigamask run night.yaml\)"
        ),
    ):
        night(archive)
    assert not (archive / "out" / "masks").exists()
    assert night(archive).exit_code == 0


def test_the_place_of_a_dead_run_is_taken_and_told(archive: Path) -> None:
    (archive / "out").mkdir()
    (archive / "out" / LOCK).write_text('{"pid": 1234567, "host": "old", "since": "2026-11-30T01:00:00+00:00", "command": "x"}')
    heard = Heard()
    assert night(archive, heard).exit_code == 0
    assert any("pid 1234567 on old since 2026-11-30T01:00:00+00:00 (x), did not end well" in line for line in heard.lines)
    heard = Heard()
    night(archive, heard)
    assert not any("did not end well" in line for line in heard.lines)


# --- the archive changes -------------------------------------------------------------------------------------------------


def test_new_changed_and_vanished_images_are_told_apart_and_only_the_first_two_computed(
    archive: Path, predicted: list[tuple[str, int]]
) -> None:
    first = night(archive)
    assert first.report.changes is not None
    assert [Path(uri).stem for uri in first.report.changes.new] == ["a", "b", "c"]
    scenes = archive / "scenes"
    os.utime(scenes / "a.tif", ns=(1, 2**62))  # far in the future
    (scenes / "b.tif").unlink()
    shutil.copyfile(scenes / "c.tif", scenes / "d.tif")
    predicted.clear()
    second = night(archive)
    changes = second.report.changes
    assert changes is not None
    found = ([Path(uri).stem for uri in uris] for uris in (changes.new, changes.changed, changes.vanished))
    assert [*found, changes.unchanged] == [["d"], ["a"], ["b"], 1]
    assert {stem for stem, _ in predicted} == {"a", "d"}
    summary = (second.folder / "summary.md").read_text()
    assert "Archive: 1 new, 1 changed, 1 vanished, 1 as before." in summary
    third = night(archive)
    assert third.report.changes is not None
    assert third.report.changes.vanished == []
    assert third.report.changes.unchanged == 3


def test_a_mask_file_that_is_written_again_between_two_nights_makes_its_image_anew(
    archive: Path, predicted: list[tuple[str, int]]
) -> None:
    """The second mask has the size of the first and is older: the image is not the same all the same."""
    scene, valid = archive / "scenes" / "a.tif", np.zeros((HEIGHT, WIDTH), bool)
    valid[:500] = True
    write_mask(scene, valid)
    assert result(night(archive), "a").no_data_px == 530 * WIDTH
    sidecar = write_mask(scene, ~valid)
    os.utime(sidecar, ns=(1, 1))
    predicted.clear()
    second = night(archive)
    assert result(second, "a").no_data_px == 500 * WIDTH
    assert {stem for stem, _ in predicted} == {"a"}
    assert second.report.changes is not None
    assert second.report.changes.changed == [str(scene)]


# --- an archive in parts -------------------------------------------------------------------------------------------------


def comparable(image: ImageResult) -> dict[str, Any]:
    return image.model_dump(exclude={"seconds", "load_seconds", "reused", "quicklook"})


def test_parts_run_by_themselves_and_merge_to_the_report_of_the_whole(archive: Path) -> None:
    for stem in "defgh":
        shutil.copyfile(archive / "scenes" / "a.tif", archive / "scenes" / f"{stem}.tif")
        shutil.copyfile(archive / "labels" / "b.tif", archive / "labels" / f"{stem}.tif")
    (archive / "scenes" / "e.tif").write_text("no image")
    whole = night(archive, output="whole")
    held = [night(archive, part=Division(n, 3)) for n in (1, 2, 3)]
    assert sorted(image.id for morning in held for image in morning.report.images) == [i.id for i in whole.report.images]
    assert [morning.report.part for morning in held] == ["1/3", "2/3", "3/3"]
    assert not (archive / "out" / "ledger.sqlite").exists()

    merged = merge.merge_parts(config(archive, tiling=TILING), Heard(), "gigamask merge")
    assert [comparable(image) for image in merged.report.images] == [comparable(image) for image in whole.report.images]
    assert (merged.report.counts == whole.report.counts).all()
    assert merged.exit_code == whole.exit_code == 1
    assert bytes_of(archive / "out") == bytes_of(archive / "whole")
    assert all(image.reused for image in night(archive).report.images if image.state != "failed")


def test_a_part_that_never_ran_is_named_by_the_merge(archive: Path) -> None:
    night(archive, part=Division(1, 2))
    merged = merge.merge_parts(config(archive, tiling=TILING), Heard(), "gigamask merge")
    missing = [image for image in merged.report.images if image.state == "failed"]
    assert missing
    assert all("no part has finished it" in str(image.error) for image in missing)
    assert merged.exit_code == 1


def test_parts_exclude_each_other_only_where_they_would_collide(archive: Path) -> None:
    output = archive / "out"
    since = "2026-11-30T01:00:00+00:00"
    with (
        holding(output / LOCK, since, "other", shared=True),
        holding(output / "parts" / "1-of-2" / LOCK, since, "gigamask run --part 1/2"),
    ):
        assert night(archive, part=Division(2, 2)).exit_code == 0
        for part in (None, Division(1, 2), Division(1, 3)):
            with pytest.raises(HeldError):
                night(archive, part=part)


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1/0", "1"])
def test_a_part_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 2/5"):
        division(text)


def test_the_record_beside_a_mask_holds_its_scores(archive: Path) -> None:
    morning = night(archive)
    records = [read_record(mask) for mask in masks(archive / "out")]
    assert len(records) == 3
    for record in records:
        (score,) = record.scores.values()
        assert score.counts == next(image for image in morning.report.images if image.digest == record.plan.digest).counts
