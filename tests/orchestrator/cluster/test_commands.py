"""cluster check, run --cluster and attach as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chip_core.recipes import parse_yaml
from chip_core.utils.files import read_checksummed
from orchestrator.cluster import session
from orchestrator.cluster.head import Head
from orchestrator.cluster.job import SubmittedJob

from .test_check import load_example, spoil_token, spoil_workdir

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(load_example("cluster.yaml")))
    return path


def write_spoilt_file(tmp_path: Path) -> Path:
    tree = load_example("cluster.yaml")
    spoil_token(tree)
    spoil_workdir(tree)
    path = tmp_path / "spoilt.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_good_file_is_said_to_be_good(run_captured: Call, cluster_file: Path) -> None:
    code, out, err = run_captured("cluster", "check", str(cluster_file), "--study", "encoder")
    assert (code, err) == (0, "")
    # Two machines of 16 CPUs; the study has 4 cells and 3 seeds, so 12 trials of one worker.
    assert out.splitlines() == [
        f"{cluster_file}: no problems found",
        "encoder: 12 trials at once; room for 32 workers",
    ]


def test_what_is_wrong_is_a_line_each_and_exit_code_2(run_captured: Call, tmp_path: Path) -> None:
    path = write_spoilt_file(tmp_path)
    code, out, err = run_captured("cluster", "check", str(path))
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith(f"chip-ablate: {path}: worker_start_ray_commands[1]: ")
    assert second.startswith(f"chip-ablate: {path}: metadata.chip_ablate.workdir: ")


def test_as_json(run_captured: Call, tmp_path: Path, cluster_file: Path) -> None:
    code, out, _ = run_captured("cluster", "check", str(write_spoilt_file(tmp_path)), "--json")
    assert code == 2
    told = json.loads(out)
    assert [problem["key"] for problem in told["problems"]] == [
        "worker_start_ray_commands[1]", "metadata.chip_ablate.workdir",
    ]  # fmt: skip
    assert told["room"] is None
    code, out, _ = run_captured(
        "cluster", "check", str(cluster_file), "--study", "encoder", "--json"
    )
    assert code == 0
    assert json.loads(out)["room"] == {"slots": 32, "at_once": 12}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        ("- a list\n", "does not hold a mapping of keys to values"),
        ("a: [1\n", ":2:1: "),
        ("{}\n", "cluster_name: is missing: add it"),
        ("provider: nothing\ncluster_name: x\n", "provider: 'nothing' is not of type 'object'"),
        ("provider: {type: [1]}\ncluster_name: 3\n", "cluster_name: 3 is not of type 'string'"),
    ],
)
def test_files_that_are_no_cluster_files(
    run_captured: Call, tmp_path: Path, content: str | None, told: str
) -> None:
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_text(content)
    code, out, err = run_captured("cluster", "check", str(path))
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--address", "auto"], "--address cannot be used with --cluster"),
        (["--executor", "inline"], "--executor inline cannot be used with --cluster"),
        (["--calibrate"], "--calibrate cannot be used with --cluster"),
    ],
)
def test_options_that_mean_nothing_on_a_cluster_are_refused(
    run_captured: Call, cluster_file: Path, options: list[str], told: str
) -> None:
    code, _, err = run_captured("run", "encoder", "--cluster", str(cluster_file), *options)
    assert code == 2
    assert told in err


@pytest.fixture
def submitted_jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def submit(head: Head, job: SubmittedJob, **given: Any) -> None:
        names = sorted(path.name for path in given.pop("files").iterdir())
        found.append({"head": head.host, "job": job, "files": names, **given})

    monkeypatch.setattr(session, "submit_job", submit)
    monkeypatch.setattr(session, "watch_job", lambda head, job, as_json: 1)
    return found


def test_a_study_is_sent_with_its_options(
    run_captured: Call, cluster_file: Path, submitted_jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, _, err = run_captured(
        "run", "encoder", "--cluster", str(cluster_file), "--seeds", "0", "1", "--workdir", "w",
        "--set", "optimizer.lr=1e-6", "--set", "language_model=lora", "--budget", "hours=12.125",
        "--benchmark-data", "/mnt/chip-ablate/benchmarks",
    )  # fmt: skip
    assert code == 1, "the study's own exit code"
    (given,) = submitted_jobs
    assert given["head"] == "ubuntu@10.0.0.10"
    assert given["venv"] == "/opt/chip-ablate/.venv"
    assert given["files"] == ["encoder.yaml"]
    assert given["arguments"] == [
        "run", "encoder.yaml", "--seeds", "0,1", "--set", "optimizer.lr=1e-06",
        "--set", 'language_model="lora"', "--budget", "hours=12.125",
        "--benchmark-data", "/mnt/chip-ablate/benchmarks", "--address", "auto",
        # 4 cells of 2 seeds: eight trials, and room for 32 workers
        "--workdir", "/mnt/chip-ablate/chip-runs", "--max-concurrent", "8",
    ]  # fmt: skip
    written = [word for word in given["arguments"] if word.startswith("optimizer.lr=")]
    assert parse_yaml(written[0].partition("=")[2], "") == 1e-6, "read there as it was here"
    job = given["job"]
    assert job.study == "encoder+language_model=lora+optimizer.lr=1e-6"
    assert job.folder == f"/mnt/chip-ablate/chip-runs/jobs/{job.job}"
    assert job.local == str(tmp_path / "w/clusters/chip-ablate" / job.study)
    kept = read_checksummed(tmp_path / "w/jobs" / f"{job.job}.json")
    assert kept == job.as_json
    assert "ssh -N -L 8265:127.0.0.1:8265 ubuntu@10.0.0.10" in err
    assert "ui --workdir /mnt/chip-ablate/chip-runs --port 5000" in err


def test_nothing_is_sent_to_a_cluster_that_will_not_do(
    run_captured: Call, submitted_jobs: list[dict[str, Any]], tmp_path: Path
) -> None:
    code, _, err = run_captured("run", "encoder", "--cluster", str(write_spoilt_file(tmp_path)))
    assert (code, submitted_jobs) == (2, [])
    assert len(err.splitlines()) == 2
    code, _, err = run_captured("run", "no-study", "--cluster", str(write_spoilt_file(tmp_path)))
    assert (code, submitted_jobs) == (2, [])


def test_attach_without_a_job(run_captured: Call) -> None:
    code, _, err = run_captured("attach")
    assert code == 2
    assert "no job was submitted from here: give its --cluster FILE" in err
