"""A cluster of two machines on loopback comes up closed, runs a study by job, and goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run_script(script: str) -> dict[str, Any]:
    """Run a script of this folder, and return what it prints."""
    done = subprocess.run(
        [sys.executable, HERE / script],
        capture_output=True, text=True, check=False, timeout=2390,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )  # fmt: skip
    if done.returncode and done.stderr.startswith("test-cluster: "):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.timeout(2400)
@pytest.mark.slow  # more than three minutes: docs/results/cluster.md
@pytest.mark.ray
@pytest.mark.e2e
def test_a_cluster_comes_up_closed_runs_a_study_and_goes() -> None:
    figures = run_script("loopback.py")
    assert figures["executed"] == 3  # two arms of one seed, and the untrained model
    assert "report.html" in figures["report"]
    assert figures["processes left"] == {"head": []}
    assert figures["let in without the token"] == []


@pytest.mark.timeout(2400)
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_machines_that_share_no_disk_and_one_is_taken_away() -> None:
    figures = run_script("no_shared_disk.py")
    assert figures["lost"]["in mid-training"]
    assert not figures["failed"] and figures["differing"] == []
    tries = figures["tries"]
    assert tries["finished"] == 3  # two arms of one seed, and the untrained model
    assert tries["attempts"] == figures["executed"] > tries["finished"]
    assert tries["resumed"] >= 1
    assert figures["weights in the head's work directory"] == 0
    assert figures["files in the workers' work directories"] == [0]  # of the machine that is left
    assert figures["models in the storage"] == 2


@pytest.mark.timeout(2400)
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.e2e
def test_a_trial_on_two_machines_of_which_one_is_taken_away() -> None:
    figures = run_script("two_machines.py")
    for kind, reference, became in (
        ("fsdp", "stored", None),
        ("hsdp", "live", "fsdp (hsdp, and all workers are on one machine)"),
    ):
        found = figures[kind]
        assert found["workers on the lost machine"] == 2
        assert found["checkpoint"]["written by"] == 4
        assert found["resumed"] == [f"resumed after step {found['checkpoint']['after step']}"]
        assert found["engine"]["reference"] == reference
        assert found["engine"].get("parallel") == became
        assert found["largest relative difference of the loss"] < 1e-4


def test_what_is_let_in_is_read_from_the_answers() -> None:
    sys.path.insert(0, str(HERE))
    try:
        import ports
    finally:
        sys.path.remove(str(HERE))
    for closed in (
        "gRPC GetAllNodeInfo UNAUTHENTICATED, health OK", "HTTP 401 /api/jobs/", "HTTP 404",
        "HTTP 200 metrics", "HTTP 401 /metrics, 200 /api/local_raylet_healthz",
    ):  # fmt: skip
        assert not ports.grants_access(closed)
    for opened in (
        "gRPC GetAllNodeInfo OK, health OK", "gRPC GetNodeStats INVALID_ARGUMENT",
        "HTTP 200 /api/jobs/", "HTTP 500 /api/job_agent/jobs/none/logs",
    ):  # fmt: skip
        assert ports.grants_access(opened)
    found = ports.parse_listeners(
        'LISTEN 0 128 127.0.0.1:8265 0.0.0.0:* users:(("python3",pid=2,fd=5))\n'
        'LISTEN 0 128 *:6379 *:* users:(("gcs_server",pid=2,fd=5))\n'
        'LISTEN 0 128 [::ffff:127.0.0.1]:10001 *:* users:(("python3",pid=2,fd=5))\n'
    )
    assert [(each.port, each.is_loopback) for each in found] == [
        (6379, False), (8265, True), (10001, True),
    ]  # fmt: skip
