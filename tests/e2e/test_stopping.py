"""Ctrl-C at a terminal, which every process of the program gets, and how the study goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.utils.files import read_records

PROGRAM = Path(sys.executable).parent / "chip-ablate"
STUDY = """
study: short
question: Which?
recipe: shapes
factors:
  objective: [dpo]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 8}]
primary: {metric: shapes/chair_i, goal: minimize}
"""
#: So many that a stop is heard before the last one.
STEPS = {"inline": 40, "ray": 30}
#: Pairs of a step: on Ray, where a stop takes longer to be heard, so many that it lasts.
BATCH = {"inline": 4, "ray": 16}

pytestmark = pytest.mark.e2e


def read_ledger(folder: Path) -> list[dict[str, object]]:
    return read_records(folder / "w" / "ledger" / "ledger.jsonl")


@pytest.mark.parametrize(
    "executor",
    [
        # In one process a stop is held by tests/orchestrator/executors/test_conformance.py too.
        pytest.param("inline", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.ray),
    ],
)
def test_ctrl_c_once_leaves_a_checkpoint_and_the_command_goes_on(
    tmp_path: Path, executor: str, with_store: Callable[[Path], Path]
) -> None:
    with_store(tmp_path / "w")
    (tmp_path / "short.yaml").write_text(STUDY)
    arguments = ["run", "short.yaml", "--set", f"training.max_steps={STEPS[executor]}",
                 "--set", f"training.batch_size={BATCH[executor]}", "--workdir", "w",
                 "--executor", executor]  # fmt: skip
    program = subprocess.Popen(
        [str(PROGRAM), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that puts it in the background switches Ctrl-C off
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    curves: list[Path] = []
    while not any(len(read_records(path)) >= 2 for path in curves):
        assert time.monotonic() < deadline
        assert program.poll() is None, program.communicate()
        time.sleep(0.05)
        curves = list((tmp_path / "w").glob("trials/*/attempt-1/curves.jsonl"))
    os.killpg(program.pid, signal.SIGINT)
    told, error = program.communicate(timeout=300)

    assert program.returncode == 130
    assert "interrupt again to stop now" in error
    assert "Traceback" not in error
    assert "stopped: " in told
    assert f" left; continue with: chip-ablate {' '.join(arguments)}" in told
    (trial,) = {path.parents[1] for path in curves if read_records(path)}
    # The untrained model, which is answered beside it on Ray, may be stopped too.
    killed = {
        str(entry["fingerprint"])[:16]: entry
        for entry in read_ledger(tmp_path)
        if entry["event"] == "killed"
    }
    end = killed[trial.name]
    step = int(str(end["reason"]).split()[3])
    assert end["reason"] == f"stopped after step {step} of {STEPS[executor]}"
    assert (trial / "attempt-1" / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()

    again = subprocess.run(
        [str(PROGRAM), *arguments], cwd=tmp_path, capture_output=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr
    result = json.loads((trial / "attempt-2" / "result.json").read_text())
    assert any(f"resumed after step {step} from" in note for note in result["notes"])
    steps = [record["step"] for record in read_records(trial / "attempt-2" / "curves.jsonl")]
    assert steps == list(range(1, STEPS[executor] + 1))
    ends = [entry["event"] for entry in read_ledger(tmp_path)]
    assert sorted(ends) == (
        ["answered"] * 2
        + ["finished"] * 2
        + ["killed"] * len(killed)
        + ["started"] * (2 + len(killed))
    )
