"""The night on a real SLURM of one node: munge, controller and node daemon are started here, on loopback, and end with it."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import TypeAdapter

from flows.console import Quiet
from pipeline.cluster import open_workers, run_tasks
from pipeline.config import ClusterConfig, load_config
from pipeline.night import run_night
from tests.conftest import write_raster
from tests.making import config_file, threshold_model
from tests.test_cluster import eventually
from tests.test_night import bytes_of

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
pytestmark = [
    pytest.mark.skipif(any(shutil.which(name, path=PATH) is None for name in (*DAEMONS, "sbatch")), reason="no SLURM here"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="SLURM's node daemon runs jobs as root only"),
]
SLURM_CONF = """
ClusterName=gigamask
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
KillWait=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=night Nodes={host} Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A node that takes jobs; the folder of its logs."""
    folder, host = tmp_path_factory.mktemp("slurm"), platform.node().split(".")[0]
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = dict(zip(("ctld_port", "d_port"), free_ports(2), strict=True))
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, user=getpass.getuser(), **ports))
    munge = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid", "seed-file": folder / "seed"}
    commands = {
        "munged": ["--foreground", "--force", *(f"--{name}={path}" for name, path in munge.items())],
        "slurmctld": ["-D"],
        "slurmd": ["-D", "-N", host],
    }
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("PATH", PATH)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name, options in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            daemon = subprocess.Popen([name, *options], stdout=log, stderr=log)
            stack.callback(daemon.wait, 30)
            stack.callback(daemon.terminate)
            if name == "munged":
                assert eventually((folder / "munge.sock").exists, 20), (folder / "munged.log").read_text()

        def idle() -> bool:
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
            return asked.stdout.strip() == "idle"

        logs = [folder / f"{name}.log" for name in commands]
        assert eventually(idle, 30), "\n".join(log.read_text() for log in logs)
        yield folder
        subprocess.run(["scancel", "--user", getpass.getuser()], check=False)
        assert eventually(idle, 30), "jobs are left"


def batch_cluster(folder: Path, **changes: object) -> dict[str, object]:
    """The section `cluster` for jobs of this node."""
    arguments = {
        "interface": "lo",
        "cores": 1,
        "processes": 1,
        "memory": "2GB",
        "walltime": "00:05:00",
        "shared_temp_directory": str(folder),
        "log_directory": str(folder / "logs"),
        "local_directory": str(folder),
        "python": sys.executable,
    }
    return {
        "type": "class",
        "class": "dask_jobqueue.SLURMCluster",
        "arguments": arguments | changes,
        "workers": 2,
        "threads": 1,
        "memory_gib": 1,
    }


def keys_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(".dask-jobqueue.worker.*"))


def listening(process: psutil.Process) -> set[str]:
    """Hosts that a process listens on."""
    return {c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}


def look_around(folder: str) -> tuple[str, list[str], list[str]]:
    """(address, command line, modes of the key files) of the worker that calls this."""
    from distributed import get_worker

    modes = [stat.filemode(path.stat().st_mode) for path in keys_in(Path(folder))]
    words = [word for process in (psutil.Process(), psutil.Process().parent()) if process for word in process.cmdline()]
    return get_worker().address, words, modes


def test_a_night_as_slurm_jobs_makes_the_masks_of_a_serial_run(slurm: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (tmp_path / "scenes").mkdir()
    for name in "ab":
        write_raster(tmp_path / "scenes" / f"{name}.tif", rng.integers(0, 256, (700, 900), np.uint8))
    threshold_model(tmp_path / "model")
    settings = {"tiling": {"block": 128, "overlap": 8}, "truth": {}}
    serial = run_night(load_config(config_file(tmp_path, output="serial", **settings)), Quiet(), "")
    assert serial.exit_code == 0
    assert all(image.blocks > 5 for image in serial.report.images)

    secret = "export TOKEN=dont-tell-anybody"
    cluster = batch_cluster(slurm, job_script_prologue=[secret])
    night = run_night(load_config(config_file(tmp_path, output="jobs", cluster=cluster, **settings)), Quiet(), "")
    assert night.exit_code == 0
    assert night.report.workers == "2 workers of dask_jobqueue.SLURMCluster"
    assert bytes_of(tmp_path / "jobs") == bytes_of(tmp_path / "serial")

    written = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if b"dont-tell-anybody" in path.read_bytes()]


def test_jobs_talk_by_tls_and_their_key_is_for_this_user_only(slurm: Path) -> None:
    config: ClusterConfig = TypeAdapter(ClusterConfig).validate_python(batch_cluster(slurm) | {"workers": 1})
    with open_workers(config) as workers:
        assert workers.client is not None
        assert workers.client.scheduler_info()["address"].startswith("tls://127.0.0.1:")
        address, words, modes = dict(run_tasks(look_around, [("look", (str(slurm),))], workers))["look"].result
        assert listening(psutil.Process()) == {"127.0.0.1"}
    assert address.startswith("tls://127.0.0.1:")
    assert modes == ["-rw-------"] * 3
    assert any(".dask-jobqueue.worker.key." in word for word in words)
    assert not any("PRIVATE KEY" in word for word in words)
    assert not keys_in(slurm)
