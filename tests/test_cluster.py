"""Workers: the same calls in this process and on Dask, retries by the driver, a bounded window, no open doors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
from distributed.deploy.cluster import Cluster
from pydantic import TypeAdapter

from pipeline import dispatch
from pipeline.cluster import Workers, local_workers, open_workers, run_tasks, worker_budget
from pipeline.config import ClusterConfig, LocalCluster
from pipeline.connections import temporary_security
from pipeline.dispatch import MOST_ATTEMPTS, Window
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


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it holds within so long, which is far more than it takes: a machine under load is no failure."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def wait_for(gate: str, value: int) -> int:
    """`value`, as soon as there is a file `gate`; without one it is given up, far later than any test waits for something."""
    if not eventually(Path(gate).exists, 120):
        raise TimeoutError(gate)
    return value


def dies_once(marker: str) -> str:
    """Takes its worker with it the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
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
    error = outcomes["bad"].error
    assert isinstance(error, ValueError)
    assert str(error) == "no 1"
    assert traceback.extract_tb(error.__traceback__)[-1].name == "always_fails"


def test_a_call_is_tried_no_more_often_than_asked(workers: Workers, tmp_path: Path) -> None:
    outcomes = dict(run_tasks(fail_twice, [("once", (str(tmp_path), 0))], workers, attempts=1))
    assert (outcomes["once"].result, outcomes["once"].attempts) == (None, 1)
    assert str(outcomes["once"].error) == "attempt 1"


def test_no_more_is_taken_than_workers_can_hold(workers: Workers) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[tuple[str, tuple[int]]]:
        for i in range(50):
            taken.append(i)
            yield f"bounded-{i}", (i,)

    results = run_tasks(square, tasks(), workers)
    next(iter(results))
    assert len(taken) <= 4 + 4  # in flight now, and those that ended together
    assert len(list(results)) == 49


@pytest.fixture
def two_threads() -> Iterator[Workers]:
    """Workers in this process on a scheduler of their own: functions may share what tests look at."""
    arguments = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None, "protocol": "tcp://"}
    with open_workers(configured(type="class", **{"class": "distributed.LocalCluster"}, arguments=arguments, workers=2)) as found:
        yield found


def places(workers: Workers) -> int:
    return workers.window._taken


def test_calls_at_the_same_time_share_one_window_and_all_advance(two_threads: Workers, tmp_path: Path) -> None:
    most = []

    def image(name: str) -> list[int | None]:
        tasks = [(f"{name}-{i}", (str(tmp_path / "gate"), i)) for i in range(12)]
        results = []
        for _, outcome in run_tasks(wait_for, tasks, two_threads, attempts=1):
            most.append(places(two_threads))
            results.append(outcome.result)
        return results

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(image, "left")]
        full = eventually(lambda: places(two_threads) == 4)  # 2 x 2, all of the call that came first
        running.append(pool.submit(image, "right"))
        reached = eventually(lambda: places(two_threads) == 5)  # and the first of the other one
        (tmp_path / "gate").touch()
        assert full
        assert reached
        assert [sorted(one.result()) for one in running] == [list(range(12))] * 2
    assert max(most) <= 5
    assert places(two_threads) == 0


def test_a_caller_who_stops_early_leaves_nothing_behind(two_threads: Workers, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    gates = ["open", *["shut"] * 9]
    results = run_tasks(wait_for, [(f"early-{i}", (str(tmp_path / gate), i)) for i, gate in enumerate(gates)], two_threads)
    assert next(results)[1].result == 0
    assert places(two_threads) == 4
    results.close()  # type: ignore[attr-defined]
    assert places(two_threads) == 0
    assert two_threads.client is not None
    assert eventually(lambda: not two_threads.client.futures)
    (tmp_path / "shut").touch()
    assert len(dict(run_tasks(square, [(f"after-{i}", (i,)) for i in range(8)], two_threads))) == 8


def test_tasks_that_cannot_be_listed_give_their_places_back(two_threads: Workers) -> None:
    def tasks() -> Iterator[tuple[str, tuple[int]]]:
        yield "listed", (1,)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(run_tasks(square, tasks(), two_threads))
    assert places(two_threads) == 0


def test_a_task_that_somebody_else_cancels_ends_its_call(two_threads: Workers, tmp_path: Path) -> None:
    from distributed import Future

    client = two_threads.client
    assert client is not None
    (tmp_path / "open").touch()
    tasks = [("first", (str(tmp_path / "open"), 1)), ("second", (str(tmp_path / "shut"), 2))]
    results = run_tasks(wait_for, tasks, two_threads, attempts=1)
    next(results)
    client.cancel([Future(f"wait_for-{two_threads.watch.run}-second-1", client)])
    with pytest.raises(ClusterError, match="the scheduler is lost, or has dropped the tasks in flight"):
        next(results)
    (tmp_path / "shut").touch()
    assert places(two_threads) == 0


class Asked:
    """In place of a client: says how many threads there are, and counts who asks."""

    status = "running"

    def __init__(self) -> None:
        self.there, self.times = 1, 0

    def nthreads(self) -> dict[str, int]:
        self.times += 1
        return {"worker": self.there}


def test_the_window_asks_seldom_and_still_hears_of_new_workers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: now)
    client, window, bell = Asked(), Window(), SimpleQueue[None]()
    assert [window.take(client, i == 0, bell) for i in range(1000)] == [True, True] + [False] * 998
    assert client.times == 1
    client.there = 3
    now = dispatch.LOOK_SECONDS / 2
    assert [window.take(client, False, bell) for _ in range(5)] == [True] * 4 + [False]
    client.there = 0
    now = dispatch.LOOK_SECONDS
    window.give(6)
    assert [window.take(client, False, bell) for _ in range(3)] == [True, True, False]
    assert window.take(client, True, bell)


def test_new_workers_get_tasks_while_none_ends(two_threads: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.2)
    tasks = [(f"grow-{i}", (str(tmp_path / "gate"), i)) for i in range(12)]
    results: list[Any] = []
    caller = threading.Thread(target=lambda: results.extend(run_tasks(wait_for, tasks, two_threads, attempts=1)))
    caller.start()
    assert eventually(lambda: places(two_threads) == 4)
    assert two_threads.client is not None
    two_threads.client.cluster.scale(3)
    reached = eventually(lambda: places(two_threads) == 6)
    (tmp_path / "gate").touch()
    caller.join(timeout=60)
    assert reached
    assert len(results) == 12


SCHEDULER = """
import asyncio, sys
from distributed import Scheduler

async def serve():
    async with Scheduler(scheduler_file=sys.argv[1], host="127.0.0.1", port=0, dashboard=False) as scheduler:
        await scheduler.finished()

asyncio.run(serve())
"""


def test_the_scheduler_opens_no_task_and_needs_no_gigamask(tmp_path: Path) -> None:
    from distributed import Worker

    contact = tmp_path / "scheduler.json"

    async def start() -> Worker:
        return await Worker(scheduler_file=str(contact), nthreads=1, host="127.0.0.1", dashboard=False)

    with subprocess.Popen([sys.executable, "-c", SCHEDULER, str(contact)], cwd=tmp_path) as scheduler:
        try:
            assert eventually(contact.exists, 60)
            with open_workers(configured(type="address", scheduler_file=str(contact), threads=1)) as workers:
                assert workers.client is not None
                worker = workers.client.sync(start)
                assert dict(run_tasks(square, [("sealed", (7,))], workers))["sealed"].result == 49
                modules = workers.client.run_on_scheduler(lambda: sorted(sys.modules))
                assert not [name for name in modules if name.split(".")[0] in ("pipeline", "tests")]
                workers.client.sync(worker.close)
        finally:
            scheduler.kill()


def test_a_killed_worker_comes_back_and_its_call_is_made_again(tmp_path: Path) -> None:
    with open_workers(configured(type="local", workers=1, threads=1, memory_gib=1)) as workers:
        tasks = [("dies", (str(tmp_path / "died"),))]
        assert dict(run_tasks(dies_once, tasks, workers))["dies"].result == "survived"


def test_without_any_worker_the_run_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(dispatch, "WITHOUT_WORKERS_SECONDS", 1.0)
    arguments = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp://"}
    config = configured(type="class", **{"class": "distributed.LocalCluster"}, arguments=arguments, maximum=1)
    with open_workers(config) as workers:
        assert workers.client is not None
        workers.client.cluster.adapt(minimum=0, maximum=0)
        with pytest.raises(ClusterError, match="no worker is left since 1 s, and 1 tasks wait"):
            list(run_tasks(square, [("lonely", (1,))], workers))


def listening() -> set[str]:
    """Hosts that this process and its children listen on."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [c for process in processes for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    return {connection.laddr.ip for connection in found}


def test_workers_listen_on_loopback_only_and_by_tls() -> None:
    with open_workers(configured(type="local", workers=1, memory_gib=1)) as workers:
        assert workers.client is not None
        workers.client.wait_for_workers(1)
        info = workers.client.scheduler_info()
        addresses = [info["address"], *info["workers"], *(w["nanny"] for w in info["workers"].values())]
        assert len(addresses) == 3
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
        assert listening() == {"127.0.0.1"}
        assert workers.client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES", "")) is not None


def test_another_user_of_the_host_cannot_send_tasks() -> None:
    from distributed import Client

    with open_workers(configured(type="local", workers=1, memory_gib=1)) as workers:
        assert workers.client is not None
        address = workers.client.scheduler_info()["address"]
        for strange in (None, temporary_security()):
            url = address if strange else address.replace("tls", "tcp")
            with (
                pytest.raises(OSError, match=r"TCP \(closed\)|TLS certificate does not match"),
                Client(url, security=strange, timeout=2),
            ):
                pass


def test_plain_tcp_to_another_host_needs_a_word() -> None:
    with (
        pytest.raises(ConfigError, match="plain TCP to another host"),
        open_workers(configured(type="address", address="tcp://10.1.2.3:8786")),
    ):
        pass


def test_a_file_that_names_a_scheduler_gets_no_further_than_an_address(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://10.1.2.3:8786"}')
    with (
        pytest.raises(ConfigError, match=r"scheduler.json names tcp://10.1.2.3:8786, plain TCP to another host"),
        open_workers(configured(type="address", scheduler_file=str(file))),
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


HERE = {"n_workers": 0, "processes": False, "dashboard_address": None}
"""Arguments of a LocalCluster: a scheduler in this process, workers as threads."""


def of_class(name: str, arguments: dict[str, Any] | None = None, **settings: object) -> ClusterConfig:
    return configured(type="class", **{"class": name}, arguments=arguments or {}, **{"workers": 1, **settings})


def test_any_cluster_class_can_be_named() -> None:
    with open_workers(of_class("distributed.LocalCluster", HERE)) as workers:
        assert dict(run_tasks(square, [("class", (6,))], workers))["class"].result == 36
    with (
        pytest.raises(ClusterError, match="Is dask-nowhere installed beside gigamask"),
        open_workers(of_class("dask_nowhere.NowhereCluster")),
    ):
        pass


def test_a_class_that_takes_certificates_gets_temporary_ones() -> None:
    with open_workers(of_class("distributed.LocalCluster", HERE | {"host": "0.0.0.0"})) as workers:
        assert workers.client is not None
        assert workers.client.cluster.scheduler.listeners[0].listen_address.startswith("tls://0.0.0.0:")
        assert dict(run_tasks(square, [("open", (7,))], workers))["open"].result == 49


def test_a_scheduler_in_plain_tcp_that_others_reach_is_closed_before_it_has_a_task() -> None:
    arguments = HERE | {"host": "0.0.0.0", "protocol": "tcp://"}
    before = listening()
    words = r"LocalCluster: its scheduler listens on tcp://0.0.0.0:\d+, plain TCP .* set cluster.insecure: true"
    with pytest.raises(ConfigError, match=words), open_workers(of_class("distributed.LocalCluster", arguments)):
        pass
    assert listening() == before
    with open_workers(of_class("distributed.LocalCluster", arguments, insecure=True)) as workers:
        assert dict(run_tasks(square, [("declared", (8,))], workers))["declared"].result == 64


def test_a_user_may_bring_certificates(tmp_path: Path) -> None:
    own = temporary_security()
    (tmp_path / "both.pem").write_text(f"{own.tls_scheduler_key}{own.tls_scheduler_cert}")
    files = dict.fromkeys(["tls_ca_file", *(f"tls_{role}_cert" for role in ("scheduler", "worker", "client"))], tmp_path)
    security = {name: str(folder / "both.pem") for name, folder in files.items()}
    with open_workers(of_class("distributed.LocalCluster", HERE | {"host": "0.0.0.0", "security": security})) as workers:
        assert workers.client is not None
        assert workers.client.cluster.scheduler.address.startswith("tls://")
        assert dict(run_tasks(square, [("own", (9,))], workers))["own"].result == 81
    with (
        pytest.raises(ConfigError, match=r"cluster.arguments.security: .*tls_certificate"),
        open_workers(of_class("distributed.LocalCluster", HERE | {"security": {"tls_certificate": "me.pem"}})),
    ):
        pass


class Forwarded(Cluster):  # type: ignore[misc]
    """A cluster whose scheduler is elsewhere, and is reached through a forwarded port: as those of Kubernetes are."""

    scheduler_address = "tcp://127.0.0.1:40000"
    closed = False

    def __init__(self, token: str = "") -> None:
        if token:
            raise ValueError(f"nobody knows {token!r}")
        self.scheduler_info = {"address": "tcp://10.1.2.3:8786"}

    def __enter__(self) -> Forwarded:
        return self

    def __exit__(self, *_: object) -> None:
        Forwarded.closed = True


def test_a_forwarded_port_does_not_make_a_scheduler_private() -> None:
    with (
        pytest.raises(ConfigError, match=r"Forwarded: its scheduler listens on tcp://127.0.0.1:40000, plain TCP"),
        open_workers(of_class("tests.test_cluster.Forwarded")),
    ):
        pass
    assert Forwarded.closed


@pytest.mark.parametrize(("name", "kind"), [("os.system", "builtin_function_or_method"), ("subprocess.Popen", "type")])
def test_what_is_no_cluster_class_is_not_called(name: str, kind: str, tmp_path: Path) -> None:
    words = f"cluster.class {name} is a {kind} and not a Dask cluster class .* not called"
    arguments = {"args" if name.endswith("Popen") else "command": ["touch", str(tmp_path / "called")]}
    with pytest.raises(ConfigError, match=words), open_workers(of_class(name, arguments)):
        pass
    assert not (tmp_path / "called").exists()


def test_a_class_that_does_not_start_shows_no_secret_of_its_arguments() -> None:
    with (
        pytest.raises(ClusterError, match=r'Forwarded does not start: ValueError: nobody knows "\.\.\."$') as raised,
        open_workers(of_class("tests.test_cluster.Forwarded", {"token": "a'long\\passphrase"})),
    ):
        pass
    assert "passphrase" not in "".join(traceback.format_exception(raised.value))


def test_the_dashboard_of_a_class_is_on_loopback_where_nothing_is_said() -> None:
    arguments = {"n_workers": 0, "processes": False, "host": "0.0.0.0"}
    with open_workers(of_class("distributed.LocalCluster", arguments)) as workers:
        assert workers.client is not None
        scheduler = workers.client.cluster.scheduler
        assert scheduler.http_server.address == "127.0.0.1"
    with open_workers(of_class("distributed.LocalCluster", arguments | {"dashboard_address": "0.0.0.0:0"})) as workers:
        assert workers.client is not None
        assert workers.client.cluster.scheduler.http_server.address == "0.0.0.0"


def test_a_scheduler_that_is_not_there_is_named() -> None:
    started = time.monotonic()
    with (
        pytest.raises(ClusterError, match="does not exist: is the scheduler running"),
        open_workers(configured(type="address", scheduler_file="/nowhere/s.json")),
    ):
        pass
    assert time.monotonic() - started < 20  # not the 30 s that a connection may take


def memory_of(**facts: Any) -> int:
    return worker_budget(LocalCluster(**facts), "cpu").memory_bytes


def test_memory_and_threads_are_shared_out() -> None:
    workers, threads = local_workers(LocalCluster(workers=2))
    assert (workers, threads) == (2, max(1, len(os.sched_getaffinity(0)) // 2))
    assert 2 * memory_of(workers=2) <= memory_of(workers=1) + 2
    assert memory_of(memory_gib=1.5) == 1536 * 1024**2
