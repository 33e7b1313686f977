"""Memory that is planned is memory that is kept: blocks at work in a worker, whatever threads Dask gives it; a GPU's memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import cluster as cluster_module
from pipeline.cluster import Workers, open_workers, run_tasks, worker_budget
from pipeline.config import ModelConfig, TilingConfig
from pipeline.errors import ModelError, PlanError
from pipeline.models import device as device_module
from pipeline.models.device import DeviceBlender, DevicePredictor
from pipeline.plan import MIB, Budget, Plan, peak_memory, plan_image
from pipeline.sources import open_source
from pipeline.work import predict_core
from tests.benchmarks.scenes import endless
from tests.conftest import REPO
from tests.making import config, config_file, plan_of, threshold_model
from tests.test_cluster import configured, eventually
from tests.test_device import both, plan_with

NOW = {"running": 0, "most": 0, "calls": 0}
LOCK, GATE = threading.Lock(), threading.Event()


def at_work(seconds: float) -> None:
    """Counts how many calls run in this process at the same time."""
    with LOCK:
        NOW["running"] += 1
        NOW["calls"] += 1
        NOW["most"] = max(NOW["most"], NOW["running"])
    GATE.wait(seconds)
    with LOCK:
        NOW["running"] -= 1


@pytest.fixture(params=[1, 3])
def two_workers(request: pytest.FixtureRequest) -> Iterator[tuple[Workers, int]]:
    """Two workers of eight threads each in this process, and the blocks that each may have at work."""
    NOW.update(running=0, most=0, calls=0)
    GATE.clear()
    arguments = {"n_workers": 2, "threads_per_worker": 8, "processes": False, "dashboard_address": None, "protocol": "tcp://"}
    settings = {"class": "distributed.LocalCluster", "arguments": arguments, "workers": 2, "blocks_at_once": request.param}
    with open_workers(configured(type="class", **settings)) as workers:
        yield workers, request.param
        GATE.set()


def test_a_worker_has_no_more_blocks_at_work_than_were_planned(two_workers: tuple[Workers, int]) -> None:
    workers, blocks = two_workers
    outcomes = dict(run_tasks(at_work, [(f"task-{i}", (0.1,)) for i in range(30)], workers))
    assert len(outcomes) == 30
    assert NOW["most"] == 2 * blocks
    assert workers.window.capacity(workers.client) == 2 * blocks


def test_what_waited_for_a_slot_and_was_let_go_is_never_started(two_workers: tuple[Workers, int]) -> None:
    workers, blocks = two_workers
    results = run_tasks(at_work, [(f"task-{i}", (0.0 if i == 0 else 60.0,)) for i in range(30)], workers)
    next(results)
    assert eventually(lambda: NOW["running"] == 2 * blocks)
    client = workers.client
    assert client is not None
    results.close()  # type: ignore[attr-defined]
    assert eventually(lambda: not client.futures)
    started = NOW["calls"]
    time.sleep(0.3)  # the scheduler's word is on its way to the workers
    GATE.set()
    assert eventually(lambda: NOW["running"] == 0)
    time.sleep(0.3)
    assert NOW["calls"] == started


SEGMENT = """
import json, sys
from pathlib import Path
from flows.console import Quiet
from pipeline.config import load_config
from pipeline.single import segment_one

if __name__ == "__main__":
    config, image, out = map(Path, sys.argv[1:])
    done = segment_one(load_config(config), image, out, Quiet())
    facts = {"state": done.result.state, "blocks": len(done.plan.blocks), "planned": done.plan.memory.total}
    print(json.dumps(facts | {"peak": done.peak_memory["worker 0"]}))
"""


@pytest.mark.parametrize(("threads", "blocks"), [(1, 1), (2, 1), (8, 1), (8, 4)])
def test_a_worker_of_any_threads_stays_within_its_planned_memory(tmp_path: Path, threads: int, blocks: int) -> None:
    image = endless(tmp_path / "image.tif", 4096, 8192)
    model = threshold_model(tmp_path / "model", bands=["red", "green", "blue"], tile=256, overlap=64)
    arguments = {"n_workers": 1, "threads_per_worker": threads, "dashboard_address": None, "host": "127.0.0.1"}
    settings = config_file(
        tmp_path,
        archive={"images": str(image)},
        model={"path": str(model)},
        tiling={"block": 2048},
        cluster={
            "type": "class",
            "class": "distributed.LocalCluster",
            "arguments": arguments,
            "workers": 1,
            "memory_gib": 4,
            "blocks_at_once": blocks,
        },
    )
    command = [sys.executable, "-c", SEGMENT, str(settings), str(image), str(tmp_path / "mask.zarr")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["state"] == "complete"
    assert facts["blocks"] >= 8
    assert 0.6 * facts["planned"] < facts["peak"] < 1.15 * facts["planned"], facts


def test_the_plan_counts_every_block_at_work(raster: Callable[..., Path], tmp_path: Path) -> None:
    image, model = raster(np.zeros((2000, 2000), np.uint8)), threshold_model(tmp_path / "model")
    one = plan_of(image, model, tmp_path, tiling={"block": 1000})
    four = one.model_copy(update={"blocks_at_once": 4})
    assert four.digest == one.digest, "the mask is the same"
    single, several = peak_memory(one, one.block_shape), peak_memory(four, four.block_shape)
    assert (several.process, several.model) == (single.process, single.model)
    for part in ("reading", "blending", "labels"):
        assert getattr(several, part) == pytest.approx(4 * getattr(single, part), abs=4)


def test_how_many_blocks_are_at_work_at_a_time_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    local, serial = configured(type="local", workers=1), configured(type="serial")
    address = configured(type="address", address="tcp://127.0.0.1:1")
    assert [worker_budget(c, "auto").blocks_at_once for c in (local, serial, address)] == [1, 1, 1]
    monkeypatch.setattr(cluster_module, "cuda_devices", lambda: ["0"])
    monkeypatch.setattr(cluster_module, "cuda_memory", lambda: 70 << 30)
    assert [worker_budget(c, "auto").blocks_at_once for c in (local, serial, address)] == [2, 1, 1]
    assert [worker_budget(c, "auto").gpu_bytes for c in (local, serial, address)] == [70 << 30, 70 << 30, None]
    assert worker_budget(local, "cpu").gpu_bytes is None
    told = configured(type="address", address="tcp://127.0.0.1:1", gpu_memory_gib=24)
    assert worker_budget(told, "auto").gpu_bytes == 24 << 30


# --- a GPU's memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_plan(raster: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    """Plans of a network on a GPU of so many MiB."""
    from pipeline.image import ImageSpec
    from pipeline.sources import describe
    from tests.making import card_of

    image = raster(np.zeros((3, 900, 900), np.uint8), photometric="RGB")
    model = threshold_model(tmp_path / "model", bands=["red", "green", "blue"], tile=64, overlap=16)
    card = card_of(model).model_copy(
        update={"adapter": "smp", "weights": "w.safetensors", "weights_bytes": 100 * MIB, "activation_bytes_per_pixel": 2000.0}
    )
    source = describe(str(image)).model_copy(update={"height": 30_000, "width": 30_000})

    def made(gpu_mib: int | None, batch: int = 4, **tiling: Any) -> Plan:
        settings = config(tmp_path).model_copy(
            update={"tiling": TilingConfig(**tiling), "model": ModelConfig(path=model, batch=batch)}
        )
        budget = Budget(64 << 30, 2, None if gpu_mib is None else gpu_mib * MIB)
        return plan_image(settings, ImageSpec(uri=source.uri), source, card, budget)

    return made


def test_what_lives_on_the_gpu_is_planned_there(gpu_plan: Callable[..., Plan]) -> None:
    here, there = gpu_plan(None, block=4096), gpu_plan(40_000, block=4096)
    assert (here.memory.gpu, here.on_gpu, there.on_gpu) == (0, False, True)
    assert there.memory.blending == 0 < here.memory.blending
    assert there.memory.model < here.memory.model
    wider = gpu_plan(40_000, block=8192)
    strips = 2 * 64 * (wider.block_shape[1] - there.block_shape[1]) * (2 * 4 + 9)
    assert wider.memory.gpu - there.memory.gpu == strips, "the strip of sums of each of two blocks"


def test_blocks_are_as_wide_as_the_gpu_holds(gpu_plan: Callable[..., Plan]) -> None:
    roomy, tight = gpu_plan(40_000), gpu_plan(735)
    assert tight.memory.gpu <= 735 * MIB < roomy.memory.gpu
    assert tight.block_shape[1] < roomy.block_shape[1]


def test_passes_that_no_gpu_memory_holds_are_refused_with_the_numbers(gpu_plan: Callable[..., Plan]) -> None:
    with pytest.raises(PlanError, match=r"tiles of 64 px in passes of 64 need [\d,]+ MiB of a GPU that has 900 MiB"):
        gpu_plan(900, batch=64)


class Scarce:
    """Makes a function of a blender run out of memory so many times."""

    def __init__(self, function: Callable[..., Any], times: int) -> None:
        self.function, self.left = function, times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.function(*arguments, **options)


def labels_of(plan: Plan, predictor: DevicePredictor) -> Any:
    return predict_core(plan, predictor, partial(open_source, plan.read), plan.blocks[0].core).labels


@pytest.mark.parametrize("what", ["the strip", "the weights of a tile", "the labels of a strip"])
def test_out_of_memory_in_the_blender_makes_passes_smaller(
    raster: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan = plan_with(raster, tmp_path, "hann", "softmax")
    _, device = both(plan, 4)
    assert isinstance(device, DevicePredictor)
    expected = labels_of(plan, device)
    _, scarce = both(plan, 4)
    assert isinstance(scarce, DevicePredictor)
    if what == "the strip":
        monkeypatch.setattr(device_module.torch, "zeros", Scarce(torch.zeros, 2))
    else:
        name = "_weighted" if what == "the weights of a tile" else "_winners"
        short = Scarce(getattr(DeviceBlender, name), 2)
        monkeypatch.setattr(DeviceBlender, name, lambda self, *arguments: short(self, *arguments))
    assert (labels_of(plan, scarce) == expected).all()
    assert scarce._batch == 1
    with pytest.raises(ModelError, match=r"runs out of memory on cpu with 1 tile\(s\)"):
        scarce.within_memory(Scarce(list, 1), 64)
