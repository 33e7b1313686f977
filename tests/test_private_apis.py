"""What we use of other libraries beyond their documented interfaces: each use by name, so that a release that changes one is seen
here first, with the file of ours to look at."""

from __future__ import annotations

import asyncio
import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import write_raster
from tests.test_cluster import eventually


def test_rasterio_opens_with_a_list_of_drivers_and_names_all_files_of_a_dataset(tmp_path: Path) -> None:
    """pipeline/rasterfile.py: rasterio.open takes one driver, DatasetReader the list that keeps the others out."""
    from rasterio.errors import RasterioError
    from rasterio.io import DatasetReader

    path = write_raster(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    with DatasetReader(str(path), driver=["GTiff", "PNG"]) as dataset:
        assert dataset.files == [str(path)]
        assert dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1) is not None
    with pytest.raises(RasterioError):
        DatasetReader(str(path), driver=["PNG"])


def test_gdal_is_configured_for_the_whole_process_and_raises_its_own_errors() -> None:
    """pipeline/gdal.py."""
    from rasterio._env import del_gdal_config, get_gdal_config, set_gdal_config
    from rasterio._err import CPLE_BaseError

    name = "GIGAMASK_CANARY"
    set_gdal_config(name, "1")
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(get_gdal_config(name)))
    other.start()
    other.join()
    del_gdal_config(name)
    assert str(found[0]) == "1", "it holds in every thread"
    assert issubclass(CPLE_BaseError, Exception)


def test_torch_runs_a_network_without_content_and_names_its_operations() -> None:
    """pipeline/models/activations.py, pipeline/models/locality.py."""
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func._schema.name)
            assert [argument.name for argument in func._schema.arguments]
            assert isinstance(func.tags, list)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        batch = torch.empty(1, 3, 16, 16)
        with Names():
            answer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())(batch)
        storage = StorageWeakRef(answer.untyped_storage())
        assert answer.untyped_storage().nbytes() == 4 * 16 * 16 * 4
        assert not storage.expired()
        assert storage == StorageWeakRef(answer[0].untyped_storage()), "equal for views"
        del answer
        assert storage.expired()
    assert "aten::convolution" in names
    assert torch.Tag.pointwise in torch.ops.aten.relu.default.tags
    assert len(tree_leaves(([1, 2], {"a": 3}))) == 3


def test_zarr_hands_over_the_document_that_it_has_written() -> None:
    """pipeline/mosaic.py `_template`: zarr's own document of an array is the pattern for ours."""
    import zarr
    from zarr.abc.buffer import Buffer
    from zarr.storage import MemoryStore

    store: dict[str, Buffer] = {}
    zarr.create_array(MemoryStore(store), shape=(2, 2), dtype="uint8", chunks=(2, 2), shards=(2, 2), fill_value=0)
    assert b'"sharding_indexed"' in store["zarr.json"].to_bytes()


def test_dask_workers_know_their_tasks_and_report_events() -> None:
    """pipeline/dispatch.py `_call`: `worker.state.tasks`, `log_event`, `worker.scheduler.log_event`, contexts of tasks;
    pipeline/nannies.py: what is overridden and called of SpecCluster and Nanny."""
    from distributed import Client, LocalCluster, Nanny, SpecCluster, get_worker
    from distributed.core import Status
    from distributed.protocol.pickle import dumps
    from distributed.utils import sync

    heard = threading.Event()

    def asked(_: int) -> tuple[str, str]:
        worker = get_worker()
        (key,) = [key for key, state in worker.state.tasks.items() if state.state == "executing"]
        worker.log_event("canary", {"worker": worker.address})
        sync(worker.loop, worker.scheduler.log_event, topic="canary", msg={"worker": worker.address})
        return key, worker.state.tasks[key].state

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://") as cluster,
        Client(cluster) as client,
    ):
        client.subscribe_topic("canary", lambda event: heard.set())
        assert client.submit(asked, 1, key="known").result() == ("known", "executing")
        assert heard.wait(10)
        assert isinstance(cluster, SpecCluster)
        assert isinstance(cluster.loop.asyncio_loop, asyncio.AbstractEventLoop)
        assert set(cluster.worker_spec) == set(cluster.workers)
        assert list(inspect.signature(SpecCluster._update_worker_status).parameters) == ["self", "op", "msg"]
        assert set(client.processing()) == set(client.nthreads())
    assert inspect.iscoroutinefunction(Nanny.instantiate)
    assert {"running", "closed", "failed"} <= set(Status.__members__)
    assert callable(dumps)
    source = inspect.getsource(Nanny)
    assert "WorkerProcess(" in source, "pipeline/nannies.py replaces on_exit of the process that a nanny makes"
    assert "on_exit" in inspect.getsource(inspect.getmodule(Nanny).WorkerProcess)  # type: ignore[union-attr]


GATE, STATES = threading.Event(), list[str]()


def wait_for_gate(_: int) -> None:
    """Waits, then notes in what state its task is."""
    from distributed import get_worker

    worker = get_worker()
    GATE.wait(30)
    state = worker.state.tasks.get("waits")
    STATES.append("forgotten" if state is None else state.state)


def test_a_task_that_is_released_while_it_waits_is_known_as_cancelled() -> None:
    """pipeline/dispatch.py `_call`: such a task must not start when its slot is free."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://") as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(wait_for_gate, 1, key="waits")
        (worker,) = cluster.workers.values()
        assert eventually(lambda: any(task.state == "executing" for task in worker.state.tasks.values()))
        future.release()
        assert eventually(lambda: all(task.state != "executing" for task in worker.state.tasks.values()))
        GATE.set()
        assert eventually(lambda: bool(STATES))
    assert STATES[0] in ("cancelled", "forgotten")


def test_dask_jobqueue_keeps_the_files_of_temporary_keys_where_we_close_them() -> None:
    """pipeline/clusterclass.py `_without_keys_left`, `_closed_dashboard`."""
    core = pytest.importorskip("dask_jobqueue.core")
    assert 'setattr(self, "_job_" + key, f)' in inspect.getsource(core)
    assert "scheduler_options" in inspect.signature(core.JobQueueCluster.__init__).parameters


def test_prefect_has_what_the_flows_stand_on() -> None:
    """flows/serve.py, flows/nightly.py, flows/doctor.py, flows/access.py."""
    import prefect.server.api.server as server
    from prefect.client.schemas.actions import ArtifactUpdate
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_SERVER_API_AUTH_STRING, temporary_settings
    from prefect.types.entrypoint import EntrypointType

    assert server.create_app
    assert ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW).limit == 1
    assert CronSchedule(cron="0 1 * * *", timezone="UTC").cron == "0 1 * * *"
    assert ArtifactUpdate(data=1.0, description="x").data == 1.0
    assert EntrypointType.MODULE_PATH
    with temporary_settings({PREFECT_API_AUTH_STRING: "a:b", PREFECT_SERVER_API_AUTH_STRING: "a:b"}):
        assert PREFECT_API_AUTH_STRING.value() is not None
