"""The Prefect flow, with a real embedded server: one task an image, artifacts, and the same result as without Prefect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_raster
from tests.making import config_file, threshold_model

FLOW = """
import json, sys
from pathlib import Path
from flows.nightly import nightly, run_flow
from prefect.testing.utilities import prefect_test_harness
from prefect.client.orchestration import get_client

with prefect_test_harness(server_startup_timeout=180):
    first = run_flow(Path(sys.argv[1]), None, None)
    Path(sys.argv[2]).write_text("not an image")
    state = nightly(sys.argv[1], return_state=True)
    second = state.result(raise_on_failure=False)
    with get_client(sync_client=True) as client:
        tasks = [t.name for t in client.read_task_runs()]
        artifacts = client.read_artifacts()
    found = {
        "first": first,
        "second": second,
        "state": [state.name, state.message],
        "tasks": tasks,
        "artifacts": [[a.key, a.type, str(a.data)] for a in artifacts],
    }
    print("FOUND" + json.dumps(found))
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        samples = rng.integers(0, 256, (90, 120), np.uint8)
        write_raster(tmp_path / "scenes" / f"{name}.tif", samples)
        write_raster(tmp_path / "labels" / f"{name}.tif", (samples >= 90).astype(np.uint8))
    threshold_model(tmp_path / "model", (100,))
    return tmp_path


def test_the_flow_runs_a_task_an_image_and_leaves_artifacts(archive: Path) -> None:
    import json

    config = config_file(archive, cluster={"type": "local", "workers": 1, "threads": 1, "memory_gib": 1})
    environment = os.environ | {"PREFECT_HOME": str(archive / "prefect"), "PREFECT_LOGGING_LEVEL": "WARNING"}
    command = [sys.executable, "-c", FLOW, str(config), str(archive / "scenes" / "b.tif")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert "FOUND" in done.stdout, done.stdout + done.stderr
    found = json.loads(done.stdout.split("FOUND")[1])

    assert found["first"]["exit_code"] == 0
    assert (Path(found["first"]["folder"]) / "report.html").exists()
    assert sorted(name[:2] for name in found["tasks"]) == ["a-", "a-", "b-"]
    kinds = {(key, kind) for key, kind, _ in found["artifacts"]}
    assert kinds == {("gigamask-test-summary", "markdown"), ("gigamask-test-classes", "table")}
    assert any("background" in data for _, kind, data in found["artifacts"] if kind == "table")

    assert found["second"]["exit_code"] == 1
    name, message = found["state"]
    assert name == "Failed"
    assert "1 of 2 images failed" in message
    assert "b.tif" in message
