"""One server for all arms of a study on Ray: it ends with a study that is killed, which goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.study_server import ADDRESS_FILE
from chip_core.utils.files import read_records
from orchestrator.state.ledger import Ledger

from ..chip_core.evaluation.generators.fake_vllm import REAL, write_program

PROGRAM_VARIABLE = Path(sys.executable).parent / "chip-ablate"
STUDY = """
study: served
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 6, max_new_tokens: 20}]
primary: {metric: shapes/chair_i, goal: minimize}
evaluation:
  generator: {kind: vllm, serves: study, retries: 1}
  parity: {items: 2, share: 1.0}
"""
SET = [
    *("vision_encoder=frozen", "projector=frozen", "language_model=lora", "optimizer.lr=3e-3"),
    *("training.max_steps=2", "training.batch_size=2", "engine.threads=1"),
]

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def make_arguments(executor: str) -> list[str]:
    settings = [part for setting in SET for part in ("--set", setting)]
    return ["run", "served.yaml", *settings, "--workdir", executor, "--executor", executor]


def start_study(folder: Path, executor: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PROGRAM_VARIABLE), *make_arguments(executor)],
        cwd=folder,
        env={**os.environ, vllm.PROGRAM_VARIABLE: str(folder / "vllm")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_success(program: subprocess.Popen[str]) -> None:
    told, _ = program.communicate(timeout=900)
    assert program.returncode == 0, told


def wait_until(what: Callable[[], bool], program: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 600
    while not what():
        assert program is None or program.poll() is None, program.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def read_metrics(workdir: Path) -> dict[str, Mapping[str, float]]:
    """Read what each trial came to, by its fingerprint."""
    ledger = Ledger(workdir)
    found = {}
    for fingerprint in {str(entry["fingerprint"]) for entry in read_finished_entries(workdir)}:
        (scored,) = ledger[fingerprint].evaluations.values()
        assert scored.evaluation.metadata["parity"]["equal"] == 2
        found[fingerprint] = scored.evaluation.metrics
    return found


def read_finished_entries(workdir: Path) -> list[dict[str, object]]:
    made = read_records(workdir / "ledger" / "ledger.jsonl")
    return [entry for entry in made if entry["event"] == "finished"]


def test_arms_on_ray_share_a_server_which_ends_with_a_study_that_is_killed(
    tmp_path: Path, with_store: Callable[[Path], Path]
) -> None:
    write_program(tmp_path, REAL)
    (tmp_path / "served.yaml").write_text(STUDY)
    for executor in ("ray", "inline"):
        with_store(tmp_path / executor)
    program = start_study(tmp_path, "ray")
    engines = tmp_path / "ray" / "engines"

    def answers_an_arm() -> bool:
        return any("loaded chip-" in log.read_text() for log in engines.glob("*/vllm-1.log"))

    wait_until(answers_an_arm, program)
    begun = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
    serving = [each for each in begun if "fake_vllm" in " ".join(each.cmdline())]
    assert serving
    program.kill()
    program.communicate()
    wait_until(lambda: not any(each.is_running() for each in begun))

    again = start_study(tmp_path, "ray")
    assert_success(again)
    assert [*engines.glob("*/vllm-1.log")] and not [*engines.glob(f"*/{ADDRESS_FILE}")]
    assert_success(start_study(tmp_path, "inline"))
    on_ray, inline = read_metrics(tmp_path / "ray"), read_metrics(tmp_path / "inline")
    assert len(on_ray) == 3
    assert on_ray == inline
