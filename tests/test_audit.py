"""Verification by real damage: each is found, named, and where it can be, mended to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from affine import Affine

from flows.cli import main
from flows.console import Quiet
from pipeline import books, mosaic
from pipeline.audit import Audit, verify
from pipeline.books import accounts, rebuild
from pipeline.cluster import open_workers
from pipeline.config import LocalCluster, SerialCluster, load_config
from pipeline.errors import ConfigError
from pipeline.finished import read_record, write_record
from pipeline.ledger import Ledger
from pipeline.lock import HeldError, holding
from pipeline.night import LOCK, Morning, run_night
from pipeline.records import PREDICT, SEGMENT, BlockRecord, ShardRecord
from pipeline.report.contract import ImageResult
from tests.conftest import write_raster
from tests.making import config_file, threshold_model

TILINGS = {"own levels": {"block": 264, "overlap": 8}, "mixed levels": {"block": 279, "overlap": 1}}
"""Blocks whose writers write every level, and blocks of an odd side, which cannot be halved."""


@pytest.fixture(params=TILINGS, scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night over a large scene with an empty corner and a small one, both with labels; never changed by a test."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(7)
    (folder / "scenes").mkdir()
    (folder / "labels").mkdir()
    profile = {"crs": "EPSG:32633", "transform": Affine(2, 0, 5e5, 0, -2, 4.6e6)}
    for name, shape in (("a", (1100, 700)), ("b", (60, 80))):
        samples = np.repeat(np.repeat(rng.integers(1, 256, (shape[0] // 10, shape[1] // 10), np.uint8), 10, 0), 10, 1)
        if name == "a":
            samples[:300, :300] = 0
        write_raster(folder / "scenes" / f"{name}.tif", samples, nodata=0, **profile)
        write_raster(folder / "labels" / f"{name}.tif", np.digitize(samples, [100, 180]).astype(np.uint8), **profile)
    threshold_model(folder / "model", (100, 200))
    config_file(folder, tiling=TILINGS[request.param])
    night(folder)
    assert mosaic.own_levels(read_record(mask_of(folder)).plan) == {"own levels": 2, "mixed levels": 1}[request.param]
    return folder


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, and afterwards its output as it was: plans know the absolute paths of images."""
    kept = tmp_path / "kept"
    shutil.copytree(made / "out", kept)
    yield made
    shutil.rmtree(made / "out")
    shutil.copytree(kept, made / "out")


def night(folder: Path) -> Morning:
    return run_night(load_config(folder / "config.yaml"), Quiet(), "gigamask run config.yaml")


def audit(folder: Path, *, repair: bool = False, truth: bool = False) -> Audit:
    with open_workers(SerialCluster(type="serial")) as workers:
        config = load_config(folder / "config.yaml")
        return verify(folder / "out", workers, Quiet(), config.truth if truth else None, repair=repair)


def told(found: Audit) -> set[tuple[str, int | None, str | None]]:
    return {(fault.kind, fault.block, fault.file) for fault in found.faults}


def mask_of(folder: Path, stem: str = "a") -> Path:
    (mask,) = (folder / "out" / "masks").glob(f"{stem}-*/*.zarr")
    return mask


def edit(mask: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record beside a mask."""
    path = mask.with_suffix(".json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out" / "masks").rglob("*.zarr/**/*")) if p.is_file()
    }


def a_shard(mask: Path, name: str = "0/mask") -> tuple[int, Path, str]:
    """(block, file, its path in the mosaic) of the last block's shard of a level."""
    record = next(r for r in reversed(read_record(mask).blocks) if any(s.path.startswith(name) for s in r.shards))
    inside = next(s.path for s in record.shards if s.path.startswith(name))
    return record.block, mask / inside, inside


def test_what_was_just_made_is_equal(archive: Path) -> None:
    found = audit(archive, truth=True)
    finished = read_record(mask_of(archive))
    assert {record.state for record in finished.blocks} == {"done", "empty"}
    assert mosaic.levels(*finished.plan.grid.shape) == 2
    assert found.faults == []
    assert found.notes == []
    assert (found.masks, found.blocks, found.pixels) == (2, len(finished.blocks) + 1, 1100 * 700 + 60 * 80)
    assert found.scores == 2


def test_workers_find_what_this_process_finds(archive: Path) -> None:
    block, file, inside = a_shard(mask_of(archive))
    file.write_bytes(file.read_bytes()[:-1])
    with open_workers(LocalCluster(workers=2, threads=1, memory_gib=2)) as workers:
        found = verify(archive / "out", workers, Quiet())
    assert told(found) == told(audit(archive)) == {("file", block, inside)}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "found"),
    [(flip, "another, of the same size"), (truncate, "bytes"), (Path.unlink, "no such file")],
    ids=["flipped bit", "truncated", "deleted"],
)
def test_a_damaged_shard_is_found_removed_and_made_again_to_the_same_bytes(
    archive: Path, damage: Callable[[Path], None], found: str
) -> None:
    before = bytes_of(archive)
    block, file, inside = a_shard(mask_of(archive))
    damage(file)
    assert bytes_of(archive) != before
    (fault,) = audit(archive).faults
    assert (fault.kind, fault.block, fault.file) == ("file", block, inside)
    assert fault.found is not None
    assert found in fault.found
    assert "--repair" in fault.advice

    repaired = audit(archive, repair=True)
    assert any(f"block {block}" in text for text in repaired.repairs)
    assert not file.exists()
    morning = night(archive)
    image = next(i for i in morning.report.images if i.uri.endswith("a.tif"))
    assert not image.reused
    assert bytes_of(archive) == before
    assert audit(archive, truth=True).faults == []


def test_damage_of_the_same_size_is_not_seen_by_a_run_alone(archive: Path) -> None:
    _, file, _ = a_shard(mask_of(archive))
    flip(file)
    assert all(image.reused for image in night(archive).report.images)
    assert {fault.kind for fault in audit(archive).faults} == {"file"}


def test_a_damaged_coarser_level_is_built_anew(archive: Path) -> None:
    before = bytes_of(archive)
    file = next(p for p in (mask_of(archive) / "1" / "mask" / "c").rglob("*") if p.is_file())
    inside = str(file.relative_to(mask_of(archive)))
    flip(file)
    (fault,) = audit(archive).faults
    assert (fault.file, fault.expected and fault.expected[:6]) == (inside, "CRC-32")
    own = fault.kind == "file"
    assert own == (mosaic.own_levels(read_record(mask_of(archive)).plan) == 2)
    audit(archive, repair=True)
    if own:
        night(archive)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def test_a_level_that_is_not_the_one_below_halved_is_found_whatever_its_checksum(archive: Path) -> None:
    mask = mask_of(archive)
    finished = read_record(mask)
    level = zarr.open_array(mask, path="1/mask", mode="r+")
    labels = level[:]
    labels[-1, -1] = 2 - labels[-1, -1] if labels[-1, -1] != 1 else 0
    before = bytes_of(archive)
    shutil.rmtree(mask / "1" / "mask" / "c")
    level[:] = labels
    records = tuple(
        record.model_copy(update={"shards": tuple(written(mask, shard.path) for shard in record.shards)})
        for record in finished.blocks
    )
    changed = finished.model_copy(update={"blocks": records, "coarse": tuple(written(mask, s.path) for s in finished.coarse)})
    write_record(mask, changed)
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        for record in records:
            ledger.put_block(finished.plan.digest, PREDICT, record.block, record)
    (fault,) = audit(archive).faults
    assert "level 1 is not level 0 halved" in fault.what
    audit(archive, repair=True)
    night(archive)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def written(mask: Path, name: str) -> ShardRecord:
    content = (mask / name).read_bytes()
    return ShardRecord(path=name, size=len(content), crc32c=google_crc32c.value(content))


def test_stray_files_are_found_and_removed(archive: Path) -> None:
    before = bytes_of(archive)
    mask = mask_of(archive)
    _, file, _ = a_shard(mask)
    (mask / "0" / "mask" / "c" / "0").mkdir(parents=True, exist_ok=True)
    (mask / "notes.txt").write_text("found on the disk")
    shutil.copyfile(file, mask / "0" / "mask" / "c" / "0" / "0")
    assert read_record(mask).blocks[0].state == "empty"
    found = audit(archive)
    strays = {fault.file for fault in found.faults if fault.kind == "stray"}
    assert strays == {"notes.txt", "0/mask/c/0/0"}
    assert ("count", 0, None) in told(found)
    audit(archive, repair=True)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def test_metadata_that_was_edited_is_found_and_laid_out_anew(archive: Path) -> None:
    before = bytes_of(archive)
    mask = mask_of(archive)
    document = json.loads((mask / "0/mask/zarr.json").read_text())
    document["attributes"]["nodata"] = 0
    (mask / "0/mask/zarr.json").write_text(json.dumps(document))
    flip(mask / "0/x/c.0")
    (mask / "1/spatial_ref/zarr.json").unlink()
    found = audit(archive)
    assert told(found) == {
        ("layout", None, "0/mask/zarr.json"),
        ("layout", None, "0/x/c.0"),
        ("layout", None, "1/spatial_ref/zarr.json"),
    }
    assert ("attributes.nodata 255", "attributes.nodata 0") in {(f.expected, f.found) for f in found.faults}
    audit(archive, repair=True)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []
    assert all(image.reused for image in night(archive).report.images)


@pytest.mark.parametrize("text", ["no json at all", '{"zarr_format": 3}', "[]"])
def test_pixels_that_metadata_hides_are_whole_again_after_it_is_mended(archive: Path, text: str) -> None:
    before = bytes_of(archive)
    (mask_of(archive) / "0/mask/zarr.json").write_text(text)
    found = audit(archive)
    assert {fault.kind for fault in found.faults} == {"layout", "unchecked"}
    audit(archive, repair=True)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def test_another_version_of_gigamask_in_the_metadata_is_no_fault(archive: Path) -> None:
    document = json.loads((mask_of(archive) / "zarr.json").read_text())
    document["attributes"]["gigamask"]["version"] = "0.0.9"
    (mask_of(archive) / "zarr.json").write_text(json.dumps(document))
    assert audit(archive).faults == []


def test_a_changed_count_in_the_record_is_found_where_it_is_and_counted_anew(archive: Path) -> None:
    mask = mask_of(archive)
    original = read_record(mask)
    block, _, _ = a_shard(mask)

    def change(record: dict[str, Any]) -> None:
        record["blocks"][block]["class_px"][1] += 5

    edit(mask, change)
    found = audit(archive)
    assert ("count", block, None) in told(found)
    fault = next(fault for fault in found.faults if fault.kind == "count" and fault.block == block)
    right = original.blocks[block].class_px[1]
    assert (fault.expected, fault.found) == (f"class_px[1] {right + 5}", f"class_px[1] {right}")
    assert ("ledger", block, "ledger.sqlite") in told(found)
    audit(archive, repair=True)
    assert read_record(mask) == original
    assert audit(archive).faults == []


def test_a_changed_sum_of_an_image_is_found(archive: Path) -> None:
    mask = mask_of(archive)
    original = read_record(mask)
    edit(mask, lambda record: record["result"].update(failed_px=9))
    assert ("count", None, None) in told(audit(archive))
    audit(archive, repair=True)
    assert read_record(mask) == original
    assert audit(archive).faults == []


def test_a_record_that_has_lost_its_shards_costs_no_pixels_that_the_ledger_knows(archive: Path) -> None:
    before, mask = bytes_of(archive), mask_of(archive)
    block, _, inside = a_shard(mask)
    edit(mask, lambda record: record["blocks"][block].update(shards=[]))
    assert ("stray", None, inside) in told(audit(archive))
    audit(archive, repair=True)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def test_a_block_whose_shards_nobody_knows_is_made_again(archive: Path) -> None:
    before, mask = bytes_of(archive), mask_of(archive)
    block, _, inside = a_shard(mask)
    edit(mask, lambda record: record["blocks"][block].update(shards=[]))
    finished = read_record(mask)
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        ledger.put_block(finished.plan.digest, PREDICT, block, finished.blocks[block])
    assert ("stray", None, inside) in told(audit(archive))
    audit(archive, repair=True)
    assert {fault.kind for fault in audit(archive).faults} >= {"file"}, "what is missing stays a fault until it is made again"
    night(archive)
    assert bytes_of(archive) == before
    assert audit(archive).faults == []


def test_a_changed_confusion_count_is_found_dropped_and_scored_again(archive: Path) -> None:
    mask = mask_of(archive)
    right = read_record(mask).scores

    def change(record: dict[str, Any]) -> None:
        next(iter(record["scores"].values()))["counts"][0][0] += 1

    edit(mask, change)
    found = audit(archive)
    assert {fault.kind for fault in found.faults} == {"score"}
    assert any("do not sum to the mask's pixels" in fault.what for fault in found.faults)
    assert any("not the record's" in fault.what for fault in found.faults)
    audit(archive, repair=True)
    assert read_record(mask).scores == {}
    night(archive)
    assert read_record(mask).scores == right
    assert audit(archive, truth=True).faults == []


def test_confusion_counts_that_sum_up_and_are_wrong_are_found_with_the_labels_alone(archive: Path) -> None:
    """One pixel moved from one reference class to another, in record and ledger alike: only the labels know better."""
    mask = mask_of(archive)

    def change(record: dict[str, Any]) -> None:
        counts = next(iter(record["scores"].values()))["counts"]
        counts[0][0] -= 1
        counts[1][0] += 1

    edit(mask, change)
    finished = read_record(mask)
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        ledger.forget(finished.plan.image.id, finished.plan.digest)
        ledger.put_image(finished.plan.image.id, finished.plan.digest, SEGMENT, finished.result)
        for task, score in finished.scores.items():
            ledger.put_image(finished.plan.image.id, finished.plan.digest, task, score)
    assert audit(archive).faults == []
    (fault,) = audit(archive, truth=True).faults
    assert fault.kind == "score"
    assert "counts[0][0]" in (fault.expected or "")


def test_labels_that_have_changed_are_not_held_against_old_counts(archive: Path) -> None:
    labels = archive / "labels" / "b.tif"
    kept, status = labels.read_bytes(), labels.stat()
    try:
        write_raster(labels, np.zeros((60, 80), np.uint8), crs="EPSG:32633", transform=Affine(2, 0, 5e5, 0, -2, 4.6e6))
        found = audit(archive, truth=True)
    finally:
        labels.write_bytes(kept)
        os.utime(labels, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found.faults == []
    assert found.scores == 1
    assert any("not scored again" in note for note in found.notes)


def test_a_changed_row_of_the_ledger_is_found_and_the_record_has_the_last_word(archive: Path) -> None:
    mask = mask_of(archive)
    finished = read_record(mask)
    image, digest = finished.plan.image.id, finished.plan.digest
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        ledger.put_block(digest, PREDICT, 3, finished.blocks[3].model_copy(update={"failed_px": 1}))
        ledger.put_image(image, digest, SEGMENT, finished.result.model_copy(update={"tiles": 1}))
    found = audit(archive)
    assert told(found) == {("ledger", 3, "ledger.sqlite"), ("ledger", None, "ledger.sqlite")}
    audit(archive, repair=True)
    assert audit(archive).faults == []
    with Ledger(archive / "out" / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.image(image, digest, SEGMENT, ImageResult) == finished.result


def test_a_mask_without_record_and_a_record_without_mask_are_named(archive: Path) -> None:
    mask_of(archive, "a").with_suffix(".json").unlink()
    shutil.rmtree(mask_of(archive, "b"))
    found = audit(archive)
    assert sorted((fault.kind, fault.image[0]) for fault in found.faults) == [("mask", "b"), ("record", "a")]
    assert "move the mask and its record away" in next(f for f in found.faults if f.kind == "record").advice


def test_a_mask_that_is_gone_with_its_record_is_missed_by_the_ledger(archive: Path) -> None:
    mask = mask_of(archive, "b")
    shutil.rmtree(mask)
    mask.with_suffix(".json").unlink()
    (fault,) = audit(archive).faults
    assert (fault.kind, fault.image, fault.file) == ("mask", mask.parent.name, "ledger.sqlite")
    night(archive)
    assert audit(archive).faults == []


def test_a_record_of_another_plan_or_no_record_at_all_is_named(archive: Path) -> None:
    edit(mask_of(archive, "a"), lambda record: record["plan"].update(overlap=9))
    mask_of(archive, "b").with_suffix(".json").write_text("{")
    found = audit(archive)
    assert {fault.kind for fault in found.faults} == {"record"}
    assert any("another major version" in fault.what for fault in found.faults)
    assert any("cannot be read" in fault.what for fault in found.faults)


def test_leftovers_of_a_broken_run_are_no_fault(archive: Path) -> None:
    mask = mask_of(archive)
    (mask.parent / f".{mask.name}.{mask.stem}.partial").mkdir()
    found = audit(archive)
    assert found.faults == []
    assert any(".partial" in note for note in found.notes)


def test_repair_waits_for_nobody(archive: Path) -> None:
    with holding(archive / "out" / LOCK, "2026-01-01", "gigamask run"), pytest.raises(HeldError, match="gigamask run"):
        audit(archive, repair=True)
    with holding(archive / "out" / LOCK, "2026-01-01", "gigamask run"):
        found = audit(archive)
    assert found.faults == []
    assert "a run is at work" in found.notes[0]


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with open_workers(SerialCluster(type="serial")) as workers, pytest.raises(ConfigError, match="no output of gigamask"):
        verify(tmp_path, workers, Quiet())
    with pytest.raises(ConfigError, match="no output of gigamask"):
        rebuild(tmp_path)
    with pytest.raises(ConfigError, match="has no ledger"):
        accounts(tmp_path)


def lose(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    path.write_bytes(b"something else entirely " * 500)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_inside(path: Path) -> None:
    """Leave the first page, which opens, and overwrite the rest."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


@pytest.mark.parametrize("damage", [lose, garble, tear, spoil_inside])
def test_a_ledger_that_is_lost_or_damaged_is_rebuilt_and_a_run_reuses_everything(archive: Path, damage: Any) -> None:
    before = night(archive).report
    path = archive / "out" / "ledger.sqlite"
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    damage(path)
    assert any(fault.kind == "ledger" for fault in audit(archive).faults)
    if damage is not lose:
        with pytest.raises(Exception, match="gigamask ledger rebuild"):
            night(archive)
    rebuilt = rebuild(archive / "out")
    assert (rebuilt.masks, rebuilt.damaged) == (2, [])
    assert [aside.name for aside in rebuilt.aside] == ([] if damage is lose else ["ledger.sqlite.before-rebuild"])
    assert audit(archive).faults == []
    after = night(archive).report
    assert all(image.reused for image in after.images)
    assert (after.counts == before.counts).all()


def test_a_rebuilt_ledger_takes_over_what_only_the_old_one_knows(archive: Path) -> None:
    digest = mask_of(archive, "b").stem
    work = mask_of(archive, "b").with_name(f".{digest}.zarr.unfinished0000000.partial")
    work.mkdir()
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        runs = ledger.runs()
        ledger.put_block("unfinished0000000", PREDICT, 0, BlockRecord(block=0, state="done"))
        ledger.put_block("long gone", PREDICT, 0, BlockRecord(block=0, state="done"))
    rebuilt = rebuild(archive / "out")
    assert rebuilt.taken_over["blocks"] == 1
    with Ledger(archive / "out" / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.runs() == runs
        assert ledger.count_blocks("unfinished0000000", PREDICT) == 1
        assert ledger.count_blocks("long gone", PREDICT) == 0
    report = night(archive).report
    assert (report.changes.new, report.changes.unchanged) == ([], 2), "what earlier runs saw is still known"


def test_a_rebuild_that_was_killed_with_the_old_ledger_aside_is_gone_on_with(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive / "out" / "ledger.sqlite"
    with Ledger(path, read_only=True) as ledger:
        runs = ledger.runs()
    assert runs

    def killed(aside: Path) -> Path:
        books_set_aside(aside)
        raise KeyboardInterrupt

    books_set_aside = books._set_aside
    with monkeypatch.context() as patch:
        patch.setattr(books, "_set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            rebuild(archive / "out")
    assert not path.exists()
    rebuild(archive / "out")
    with Ledger(path, read_only=True) as ledger:
        assert ledger.runs() == runs


def test_a_rebuild_says_which_records_it_could_not_read_and_waits_for_nobody(archive: Path) -> None:
    mask_of(archive, "b").with_suffix(".json").write_text("{")
    with holding(archive / "out" / LOCK, "2026-01-01", "gigamask run"), pytest.raises(HeldError):
        rebuild(archive / "out")
    rebuilt = rebuild(archive / "out")
    assert rebuilt.masks == 1
    (text,) = rebuilt.damaged
    assert text.startswith(f"masks/{mask_of(archive, 'b').parent.name}/")


def test_ledgers_of_parts_are_verified_and_shown(archive: Path) -> None:
    home = archive / "out" / "parts" / "1-of-1"
    home.mkdir(parents=True)
    (archive / "out" / "ledger.sqlite").rename(home / "ledger.sqlite")
    assert audit(archive).faults == []
    (account,) = accounts(archive / "out")
    assert account.name == "parts/1-of-1/ledger.sqlite"
    with Ledger(home / "ledger.sqlite") as ledger:
        ledger.put_block(mask_of(archive).stem, PREDICT, 0, BlockRecord(block=0, state="failed"))
    assert told(audit(archive)) == {("ledger", 0, "parts/1-of-1/ledger.sqlite")}
    audit(archive, repair=True)
    assert audit(archive).faults == []
    assert not (archive / "out" / "ledger.sqlite").exists()


def test_an_account_names_runs_that_broke_off_and_blocks_in_trouble(archive: Path) -> None:
    mask = mask_of(archive)
    with Ledger(archive / "out" / "ledger.sqlite") as ledger:
        ledger.start_run("20990101T000000Z-dead", "2099-01-01T00:00:00+00:00")
        failed = BlockRecord(block=4, state="failed", failed_px=7, attempt=3, deaths=2, error="TaskLostError: no answer\nframes")
        ledger.put_block(mask.stem, PREDICT, 4, failed)
        (account,) = accounts(archive / "out")  # the writer is still at it
    assert [run.finished is None for run in account.runs] == [False, True]
    assert account.under_way is None
    (trouble,) = account.troubles
    assert (trouble.image, trouble.record) == (mask.parent.name, failed)
    assert [image.state for image in account.images] == ["complete", "complete"]
    with holding(archive / "out" / LOCK, "2026-01-01", "gigamask run"):
        (account,) = accounts(archive / "out")
    assert account.under_way is not None
    assert "gigamask run" in account.under_way


def test_the_commands_say_it_and_exit_0_1_or_2(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gigamask(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gigamask", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().out

    out = archive / "out"
    code, text = gigamask("verify", out, "--config", archive / "config.yaml")
    assert code == 0
    assert "2 masks" in text
    assert "2 scored again: all equal to record and ledger" in text
    block, file, inside = a_shard(mask_of(archive))
    flip(file)
    code, text = gigamask("verify", out)
    assert code == 1
    assert f"block {block}, {inside}: the file has another checksum" in text
    assert f"gigamask verify {out} --repair" in text
    code, text = gigamask("verify", out, "--json")
    assert code == 1
    assert json.loads(text)["faults"][0]["block"] == block
    assert gigamask("verify", tmp_path)[0] == 2
    code, text = gigamask("ledger", "show", out)
    assert code == 0
    assert "images: 2 complete" in text
    assert json.loads(gigamask("ledger", "show", out, "--json")[1])[0]["states"] == {"complete": 2}
    code, text = gigamask("ledger", "rebuild", out)
    assert code == 0
    assert "before-rebuild" in text
    assert gigamask("ledger", "rebuild", tmp_path)[0] == 2
    garble(out / "ledger.sqlite")
    code, text = gigamask("ledger", "show", out)
    assert code == 1
    assert "gigamask ledger rebuild" in text
