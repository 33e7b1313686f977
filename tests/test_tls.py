"""A Dask scheduler that runs already, behind TLS: joined with certificates of its authority, and with nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from pydantic import TypeAdapter

from pipeline.cluster import open_workers, run_tasks
from pipeline.config import ClusterConfig, RemoteCluster
from pipeline.errors import ClusterError, ConfigError
from tests.conftest import REPO
from tests.test_cluster import eventually, square

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")


def openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(folder: Path) -> Path:
    """A folder with an authority (ca.pem) and a certificate that it has signed (me.pem, me.key)."""
    folder.mkdir()
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    openssl(*new, "-subj", "/CN=gigamask", "-keyout", folder / "me.key", "-out", folder / "me.csr")
    signing = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", folder / "me.csr", *signing, "-out", folder / "me.pem")
    return folder


def of_address(address: str, folder: Path | None = None) -> RemoteCluster:
    files = {"tls_ca": "ca.pem", "tls_cert": "me.pem", "tls_key": "me.key"} if folder else {}
    content = {"type": "address", "address": address, **{name: str(Path(str(folder)) / file) for name, file in files.items()}}
    config: RemoteCluster = TypeAdapter(ClusterConfig).validate_python(content)
    return config


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def address(certificates: Path) -> Iterator[str]:
    """Of a scheduler with one worker, as an operator starts them; it could be reached from other hosts."""
    words = {"--tls-ca-file": "ca.pem", "--tls-cert": "me.pem", "--tls-key": "me.key"}
    tls = [word for option, file in words.items() for word in (option, str(certificates / file))]
    contact = certificates / "scheduler.json"
    listen = [
        "--host",
        "tls://0.0.0.0:0",
        "--scheduler-file",
        str(contact),
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with ExitStack() as stack:
        log = stack.enter_context((certificates / "log").open("wb"))

        def start(command: str, *options: str) -> psutil.Process:
            line = [sys.executable, "-m", "distributed.cli." + command, *options, *tls]
            process = subprocess.Popen(line, stdout=log, stderr=log, env=environment)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            return psutil.Process(process.pid)

        scheduler = start("dask_scheduler", *listen)
        assert eventually(contact.exists, 60), (certificates / "log").read_text()
        ports = {c.laddr for c in scheduler.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}
        (port,) = {laddr.port for laddr in ports if laddr.ip == "0.0.0.0"}
        address = f"tls://127.0.0.1:{port}"
        start("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(certificates))
        yield address


def test_a_scheduler_behind_tls_is_joined_with_certificates_of_its_authority(address: str, certificates: Path) -> None:
    with open_workers(of_address(address, certificates)) as workers:
        assert workers.client is not None
        workers.client.wait_for_workers(1, timeout=60)
        assert all(worker.startswith("tls://") for worker in workers.client.scheduler_info()["workers"])
        outcomes = dict(run_tasks(square, [(f"tls-{i}", (i,)) for i in range(10)], workers))
    assert {key: outcome.result for key, outcome in outcomes.items()} == {f"tls-{i}": i * i for i in range(10)}


def refusal(config: RemoteCluster) -> str:
    """What a person is told, which takes no longer than a connection may."""
    started = time.monotonic()
    with pytest.raises((ClusterError, ConfigError)) as raised, open_workers(config):
        pass
    assert time.monotonic() - started < 60
    return str(raised.value)


def test_certificates_of_another_authority_are_refused(address: str, tmp_path: Path) -> None:
    assert "TLS certificate does not match" in refusal(of_address(address, authority(tmp_path / "theirs")))


def test_without_certificates_there_is_no_way_in(address: str) -> None:
    told = refusal(of_address(address))
    assert "cluster.tls_ca, cluster.tls_cert and cluster.tls_key" in told
    assert "no workers" in refusal(of_address(address.replace("tls://", "tcp://")))


def test_plain_tcp_to_the_host_by_its_name_is_refused_before_anything_is_sent(address: str) -> None:
    told = refusal(of_address(address.replace("tls://127.0.0.1", "tcp://192.0.2.1")))
    assert "plain TCP to another host" in told


def test_a_certificate_that_is_not_there_is_named(address: str, tmp_path: Path) -> None:
    assert f"cluster.tls_ca {tmp_path / 'ca.pem'}" in refusal(of_address(address, tmp_path))
