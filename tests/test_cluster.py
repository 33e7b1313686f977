"""Workers: the same calls in this process and on Dask, retries by the driver, a bounded window, no open doors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pipeline import cluster
from pipeline.cluster import MOST_ATTEMPTS, Workers, local_workers, memory_per_worker, open_workers, run_tasks
from pipeline.config import ClusterConfig, LocalCluster
from pipeline.errors import ClusterError, ConfigError


def configured(**facts: object) -> ClusterConfig:
    return TypeAdapter(ClusterConfig).validate_python(facts)


@pytest.fixture(scope="module", params=["serial", "local"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    extra = {"workers": 2, "memory_gib": 1} if request.param == "local" else {}
    with open_workers(configured(type=request.param, threads=1, **extra)) as found:
        yield found


def square(value: int) -> int:
    return value * value


def fail_twice(folder: str, value: int) -> int:
    """Fails at the first two attempts, which leave a file each."""
    attempts = len(list(Path(folder).glob(f"{value}-*")))
    (Path(folder) / f"{value}-{attempts}").touch()
    if attempts < 2:
        raise OSError(f"attempt {attempts + 1}")
    return value


def always_fails(value: int) -> int:
    raise ValueError(f"no {value}")


def dies_once(marker: str) -> str:
    """Takes its worker with it the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(1)
        os._exit(1)
    return "survived"


def test_every_call_has_its_outcome(workers: Workers) -> None:
    outcomes = dict(run_tasks(square, [(f"square-{i}", (i,)) for i in range(20)], workers))
    assert {key: outcome.result for key, outcome in outcomes.items()} == {f"square-{i}": i * i for i in range(20)}


def test_a_call_that_fails_is_tried_again(workers: Workers, tmp_path: Path) -> None:
    outcomes = dict(run_tasks(fail_twice, [(f"twice-{i}", (str(tmp_path), i)) for i in range(3)], workers))
    assert [(outcome.result, outcome.attempts) for _, outcome in sorted(outcomes.items())] == [(0, 3), (1, 3), (2, 3)]


def test_a_call_that_always_fails_gives_its_error_and_the_others_go_on(workers: Workers) -> None:
    tasks = [("bad", (1,)), ("worse", (2,))]
    outcomes = dict(run_tasks(always_fails, tasks, workers))
    assert all(outcome.result is None and outcome.attempts == MOST_ATTEMPTS for outcome in outcomes.values())
    assert str(outcomes["bad"].error) == "no 1"


def test_no_more_is_taken_than_workers_can_hold(workers: Workers) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[tuple[str, tuple[int]]]:
        for i in range(50):
            taken.append(i)
            yield f"bounded-{i}", (i,)

    results = run_tasks(square, tasks(), workers)
    next(iter(results))
    assert len(taken) <= 6
    assert len(list(results)) == 49


def test_a_killed_worker_comes_back_and_its_call_is_made_again(tmp_path: Path) -> None:
    with open_workers(configured(type="local", workers=1, threads=1, memory_gib=1)) as workers:
        tasks = [("dies", (str(tmp_path / "died"),))]
        assert dict(run_tasks(dies_once, tasks, workers))["dies"].result == "survived"


def test_without_any_worker_the_run_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "WITHOUT_WORKERS_SECONDS", 1.0)
    arguments = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp://"}
    config = configured(type="class", **{"class": "distributed.LocalCluster"}, arguments=arguments, maximum=1)
    with open_workers(config) as workers:
        assert workers.client is not None
        workers.client.cluster.adapt(minimum=0, maximum=0)
        with pytest.raises(ClusterError, match="no worker is left since 1 s, and 1 tasks wait"):
            list(run_tasks(square, [("lonely", (1,))], workers))


def test_workers_listen_on_loopback_only() -> None:
    with open_workers(configured(type="local", workers=1, memory_gib=1)) as workers:
        assert workers.client is not None
        info = workers.client.scheduler_info()
        addresses = [info["address"], *info["workers"], *(w["nanny"] for w in info["workers"].values())]
        assert all(address.startswith("tcp://127.0.0.1:") for address in addresses)
        assert workers.client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES", "")) is not None


def test_plain_tcp_to_another_host_needs_a_word() -> None:
    with (
        pytest.raises(ConfigError, match="plain TCP to another host"),
        open_workers(configured(type="address", address="tcp://10.1.2.3:8786")),
    ):
        pass


def test_a_running_scheduler_is_joined() -> None:
    from distributed import LocalCluster as Running

    with (
        Running(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://") as running,
        open_workers(configured(type="address", address=running.scheduler_address, threads=1)) as workers,
    ):
        assert workers.count == 1
        assert dict(run_tasks(square, [("joined", (5,))], workers))["joined"].result == 25


def test_any_cluster_class_can_be_named() -> None:
    arguments = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp://"}
    config = configured(type="class", **{"class": "distributed.LocalCluster"}, arguments=arguments, workers=1)
    with open_workers(config) as workers:
        assert dict(run_tasks(square, [("class", (6,))], workers))["class"].result == 36
    with (
        pytest.raises(ClusterError, match="Is dask-jobqueue installed beside gigamask"),
        open_workers(configured(type="class", **{"class": "dask_jobqueue.SLURMCluster"}, workers=1)),
    ):
        pass


def test_a_scheduler_that_is_not_there_is_named() -> None:
    started = time.monotonic()
    with (
        pytest.raises(ClusterError, match="does not exist: is the scheduler running"),
        open_workers(configured(type="address", scheduler_file="/nowhere/s.json")),
    ):
        pass
    assert time.monotonic() - started < 5


def test_memory_and_threads_are_shared_out() -> None:
    workers, threads = local_workers(LocalCluster(workers=2))
    assert (workers, threads) == (2, max(1, len(os.sched_getaffinity(0)) // 2))
    assert memory_per_worker(LocalCluster(workers=2)) * 2 <= memory_per_worker(LocalCluster(workers=1)) + 2
    assert memory_per_worker(LocalCluster(memory_gib=1.5)) == 1536 * 1024**2
