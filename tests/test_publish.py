"""Nothing wrong is published: two runs on one scheduler, writers that wake too late, files that vanish, remains of other runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline import bulk, dispatch, mosaic, process
from pipeline import night as night_module
from pipeline.cluster import Workers, run_tasks
from pipeline.errors import ChangedError, ClusterError, OutputError
from pipeline.finished import masks, read_record
from pipeline.ledger import Ledger
from pipeline.night import Morning, for_each
from pipeline.records import PREDICT, BlockRecord
from pipeline.report.contract import ImageResult
from pipeline.whole import Whole, WholeJob, do_whole
from pipeline.work import BlockDraft, Job, fail_block, predict_block
from tests.conftest import write_raster
from tests.making import threshold_model
from tests.test_cluster import eventually
from tests.test_faults import Heard
from tests.test_night import bytes_of, night, result

LARGE, SMALL = (600, 500), (40, 50)
TILING = {"block": 256}
FREE: dict[str, threading.Event] = {}
"""What calls in threads of this process wait for."""


@pytest.fixture
def free() -> threading.Event:
    """Lets calls that wait go on."""
    FREE["go on"], FREE["woken"] = threading.Event(), threading.Event()
    return FREE["go on"]


def held(data: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A model that waits until the test lets it go on."""
    assert FREE["go on"].wait(120)
    return np.stack([data[:, 0] < 100, data[:, 0] >= 100], axis=1).astype(np.float32)


def archive_of(folder: Path, shapes: dict[str, tuple[int, int]], **model: Any) -> Path:
    """Scenes of these shapes with labels, and a threshold model."""
    rng = np.random.default_rng(3)
    for name in ("scenes", "labels"):
        (folder / name).mkdir()
    for stem, shape in shapes.items():
        samples = rng.integers(1, 256, shape, np.uint8)
        write_raster(folder / "scenes" / f"{stem}.tif", samples)
        write_raster(folder / "labels" / f"{stem}.tif", (samples >= 120).astype(np.uint8))
    threshold_model(folder / "model", (100,), **model)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One scene of six blocks, and two of one."""
    return archive_of(tmp_path, {"large": LARGE, "small": SMALL, "tiny": (30, 20)})


@contextmanager
def scheduler(workers: int) -> Iterator[Any]:
    """A scheduler that several runs may use, and its workers: threads of this process, which nobody can end."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def at(cluster: Any) -> dict[str, Any]:
    return {"type": "address", "address": cluster.scheduler_address, "threads": 1}


def stored(morning: Morning, stem: str) -> NDArray[np.uint8]:
    found = zarr.open_array(morning.folder.parent.parent / str(result(morning, stem).mask), path="0/mask", mode="r")[:]
    return np.asarray(found)


def check_against_records(output: Path) -> None:
    """Every published mask holds what its record and the ledger say, pixel by pixel."""
    with Ledger(output / "ledger.sqlite", read_only=True) as ledger:
        for mask in masks(output):
            finished = read_record(mask)
            labels = zarr.open_array(mask, path="0/mask", mode="r")[:]
            assert (labels == 254).sum() == finished.result.failed_px
            assert [(labels == code).sum() for code in range(2)] == finished.result.class_px
            rows = ledger.blocks(finished.plan.digest, PREDICT, BlockRecord)
            assert tuple(rows[i] for i in sorted(rows)) == finished.blocks
            assert mosaic.intact(mask, [shard for block in finished.blocks for shard in block.shards])


# --- two runs on one scheduler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [{"a": LARGE}, dict.fromkeys("abcdef", SMALL)], ids=["large images", "small images"])
def test_two_runs_over_the_same_images_on_one_scheduler_each_get_their_own_masks(
    tmp_path: Path, free: threading.Event, shapes: dict[str, tuple[int, int]]
) -> None:
    archive = archive_of(tmp_path, shapes, adapter="callable", architecture={"function": "tests.test_publish:held"})
    trusted = {"tiling": TILING, "model": {"path": "model", "batch": 3, "trust_code": True}}
    mornings: dict[str, Morning] = {}
    with scheduler(workers=2) as cluster:

        def run(output: str) -> None:
            mornings[output] = night(archive, output=output, cluster=at(cluster), **trusted)

        runs = [threading.Thread(target=run, args=(output,)) for output in ("production", "staging")]
        for thread in runs:
            thread.start()
            wanting = len([one for one in runs if one.ident is not None])
            assert eventually(lambda n=wanting: sum(bool(c.wants_what) for c in cluster.scheduler.clients.values()) == n)
        free.set()
        for thread in runs:
            thread.join(120)
    alone = night(archive, output="alone", **trusted)
    assert {*np.unique(stored(alone, "a"))} == {0, 1}
    for output, morning in mornings.items():
        assert morning.exit_code == 0
        assert bytes_of(archive / output) == bytes_of(archive / "alone")
        assert (morning.report.counts == alone.report.counts).all()
        check_against_records(archive / output)
    assert sorted(mornings) == ["production", "staging"]


# --- writers that wake too late -----------------------------------------------------------------------------------------


def late_block(job: Job, block: Any) -> BlockDraft:
    """Hangs with the second block of the large image until the driver has given it up."""
    hangs = job.plan.image.stem == "large" and block.index == 1
    if hangs:
        assert FREE["go on"].wait(120)
    draft = predict_block(job, block)
    if hangs:
        FREE["woken"].set()
    return draft


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.4)
    return {"attempts": 1, "deadline_s": 1.5}


def test_a_writer_that_wakes_after_its_block_was_failed_changes_nothing(
    archive: Path, free: threading.Event, short_deadline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed_and_woken(job: Job, block: Any, error: str) -> BlockRecord:
        record = fail_block(job, block, error)
        free.set()
        assert FREE["woken"].wait(60)
        return record

    monkeypatch.setattr(process, "predict_block", late_block)
    monkeypatch.setattr(process, "fail_block", failed_and_woken)
    with scheduler(workers=2) as cluster:
        morning = night(archive, cluster=at(cluster), faults=short_deadline, tiling=TILING)
    large = result(morning, "large")
    core = read_record(next((archive / "out" / "masks").glob("large-*/*.zarr"))).plan.blocks[1].core
    assert (large.state, large.failed_px, large.failed_blocks) == ("partial", core.pixels, 1)
    assert (stored(morning, "large")[core.slices] == 254).all(), "the late writer's labels are not in the mask"
    check_against_records(archive / "out")
    assert not list((archive / "out" / "masks").rglob("*.partial"))


def late_images(images: tuple[WholeJob, ...]) -> tuple[Whole, ...]:
    """Hangs with the first call until the driver has done its images by itself."""
    first = not FREE["woken"].is_set() and images[0].job.plan.image.stem == "small"
    if first:
        assert FREE["go on"].wait(120)
    done = do_whole(images)
    if first:
        FREE["woken"].set()
    return done


def test_a_writer_of_a_small_image_that_wakes_after_the_image_was_published_changes_nothing(
    archive: Path, free: threading.Event, short_deadline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_image, records = process.segment_image, {}

    def published_and_woken(shop: Any, plan: Any, final: Path) -> ImageResult:
        found = segment_image(shop, plan, final)
        if plan.image.stem == "small":
            records[final] = read_record(final)
            free.set()
            assert FREE["woken"].wait(60)
        return found

    monkeypatch.setattr(bulk, "do_whole", late_images)
    monkeypatch.setattr(process, "segment_image", published_and_woken)
    with scheduler(workers=2) as cluster:
        morning = night(archive, cluster=at(cluster), faults=short_deadline, tiling=TILING)
    assert morning.exit_code == 0
    assert [read_record(mask).blocks for mask in records] == [record.blocks for record in records.values()]
    assert len(records) == 1
    check_against_records(archive / "out")
    again = night(archive, tiling=TILING)
    assert all(image.reused for image in again.report.images)
    assert not list((archive / "out" / "masks").glob("*/.*")), "what the late writer left is removed by the next run"


WRITING = threading.local()
"""`late`: whether the thread writes for a block that goes on after its image has been found changed."""


def one_block_changes(job: Job, block: Any) -> BlockDraft:
    """Block 1 of the large image finds another file than was planned, while block 0 is being written."""
    if job.plan.image.stem != "large" or block.index > 1:
        return predict_block(job, block)
    if block.index == 1:
        assert FREE["writing"].wait(60)
        raise ChangedError("another file")
    WRITING.late = True
    try:
        return predict_block(job, block)
    finally:
        WRITING.late = False
        FREE["woken"].set()


def test_a_writer_of_an_image_that_has_changed_does_not_bring_its_mosaic_back(
    archive: Path, free: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, shard_bytes = mosaic.remove, mosaic.shard_bytes
    FREE["writing"] = threading.Event()

    def removed_and_woken(path: Path) -> None:
        remove(path)
        if path.name.endswith(".partial"):
            free.set()
            assert FREE["woken"].wait(60)

    def compressed_late(*arguments: Any) -> bytes | None:
        if getattr(WRITING, "late", False):
            FREE["writing"].set()
            assert free.wait(60)
        return shard_bytes(*arguments)

    monkeypatch.setattr(process, "predict_block", one_block_changes)
    monkeypatch.setattr(mosaic, "remove", removed_and_woken)
    monkeypatch.setattr(mosaic, "shard_bytes", compressed_late)
    with scheduler(workers=2) as cluster:
        morning = night(archive, cluster=at(cluster), tiling=TILING)
    assert result(morning, "large").state == "failed"
    assert not list((archive / "out" / "masks").glob("large-*/.*"))


# --- files that are not there -------------------------------------------------------------------------------------------


def remove_a_shard(store: Path) -> None:
    """What a program that cleans up does."""
    sorted(p for p in (store / "0" / "mask" / "c").rglob("*") if p.is_file())[0].unlink()


def test_a_mask_with_a_missing_file_is_not_published_and_the_next_run_makes_it_whole(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaic, "SETTLE_SECONDS", 0.3)
    summarise = process.summarise

    def cleaned_meanwhile(plan: Any, records: Any, *more: Any) -> ImageResult:
        if plan.image.stem == "large":
            remove_a_shard(next((archive / "out" / "masks").glob("large-*/.*.partial")))
        return summarise(plan, records, *more)

    with monkeypatch.context() as patch:
        patch.setattr(process, "summarise", cleaned_meanwhile)
        morning = night(archive, tiling=TILING)
    large = result(morning, "large")
    assert (large.state, large.mask, morning.exit_code) == ("failed", None, 1)
    assert "is missing, its record says" in str(large.error)
    assert "StoreError" not in str(large.error)
    assert not list((archive / "out" / "masks").glob("large-*/*.zarr"))
    assert result(night(archive, tiling=TILING), "large").state == "complete"
    night(archive, output="undisturbed", tiling=TILING)
    assert bytes_of(archive / "out") == bytes_of(archive / "undisturbed")


def test_a_small_image_whose_files_are_not_there_is_made_again_by_itself(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "SETTLE_SECONDS", 0.3)

    def cleaned_meanwhile(images: tuple[WholeJob, ...]) -> tuple[Whole, ...]:
        done = do_whole(images)
        for whole in done:
            remove_a_shard(next(iter(Path(whole.store).parent.glob(".*.draft"))) if whole.store else archive)
        return done

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "do_whole", cleaned_meanwhile)
        patch.setattr("tests.test_night.Quiet", lambda: heard)
        morning = night(archive, tiling=TILING)
    assert morning.exit_code == 0
    assert sum("tried again" in line and "is missing" in line for line in heard.lines) == 2
    night(archive, output="undisturbed", tiling=TILING)
    assert bytes_of(archive / "out") == bytes_of(archive / "undisturbed")
    check_against_records(archive / "out")


def test_a_file_that_a_network_disk_shows_late_is_waited_for(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    morning = night(archive, tiling=TILING)
    (mask,) = (archive / "out" / "masks").glob("large-*/*.zarr")
    finished = read_record(mask)
    shard = mask / finished.blocks[0].shards[0].path
    hidden = shard.with_name("hidden")
    shard.rename(hidden)
    threading.Timer(0.5, lambda: hidden.rename(shard)).start()
    started = time.monotonic()
    mosaic.check_complete(mask, finished.blocks[0].shards)
    assert time.monotonic() - started > 0.3
    assert morning.exit_code == 0


@pytest.mark.parametrize("left", ["nothing but pixels", "half of the documents", "documents of another plan"])
def test_remains_of_an_unfinished_mosaic_are_not_taken_for_one(archive: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """A kill while a mosaic was being removed, or a writer that came too late, left some of its files."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "publish", broken)
        with pytest.raises(KeyboardInterrupt):
            night(archive, tiling=TILING)
    (work,) = (archive / "out" / "masks").glob("large-*/.*.partial")
    if left == "documents of another plan":
        document = work / "zarr.json"
        digest = work.name.rpartition(".zarr.")[2].removesuffix(".partial")
        document.write_text(document.read_text().replace(digest, "0" * 16))
    else:
        for document in (
            [work / "zarr.json", *work.rglob("zarr.json")] if left == "nothing but pixels" else [work / "0" / "zarr.json"]
        ):
            document.unlink(missing_ok=True)
    morning = night(archive, tiling=TILING)
    assert morning.exit_code == 0
    night(archive, output="undisturbed", tiling=TILING)
    assert bytes_of(archive / "out") == bytes_of(archive / "undisturbed")


# --- a run that cannot go on --------------------------------------------------------------------------------------------


def test_a_dead_cluster_ends_the_run_at_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, {f"scene{i}": (300, 280) for i in range(8)})
    calls: list[str] = []
    process_images = night_module.process_images

    def counted(shop: Any, planned: Any) -> list[ImageResult]:
        calls.append(planned[0].plan.image.stem)
        found: list[ImageResult] = process_images(shop, planned)
        return found

    monkeypatch.setattr(night_module, "process_images", counted)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.4)
    monkeypatch.setattr(dispatch, "WITHOUT_WORKERS_SECONDS", 1.0)
    with scheduler(workers=0) as cluster, pytest.raises(ClusterError, match="no worker is left"):
        night(archive, cluster=at(cluster), tiling={"block": 64})
    assert 1 <= len(calls) <= 2, "one image a worker and one more are at work at a time, and no other is started"


def test_the_first_error_ends_the_run_whichever_image_it_comes_from() -> None:
    started, over = [], threading.Event()

    def work_on(image: int) -> int:
        started.append(image)
        if image == 0:
            over.wait(5)
            return image
        over.set() if image > 3 else None
        raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        for_each(Workers(SimpleNamespace(), 1, 1, 1 << 30, ""), work_on, list(range(50)))
    assert len(started) <= 4, "two at a time, and few that had been taken up when the error arrived"


def test_what_ends_one_call_ends_those_beside_it_at_once() -> None:
    workers = Workers(None, 1, 1, 1 << 30, "none")
    workers.stop.end(OutputError("the disk is full"))
    workers.stop.end(ClusterError("and the cluster is lost"))
    with pytest.raises(OutputError, match="the disk is full"):
        workers.stop.check()
    with pytest.raises(OutputError, match="the disk is full"):
        list(run_tasks(len, [("one", ("a",))], workers))
