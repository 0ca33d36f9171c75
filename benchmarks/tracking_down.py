"""Measure the cost of an MLflow server that is down for a study, and check `sync` afterwards.

    python -m benchmarks.tracking_down
    python -m benchmarks.tracking_down --pairs 5 --steps 60 --json

The same small study (dpo and chip, one seed, embedded world, inline executor, one thread) runs in
interleaved pairs, each in a new process and work directory: once with a server that answers, once
with no server at the address from beginning to end. Compared are the CPU seconds of the trials'
training, which include the tracker's share, since it works in the same process, and the time from
the command's start to its end. Then a server is started at the empty address, the command that the
study named is run, and the two stores are compared without timings; and the first study is logged
to a third store, which must equal the first including timings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats
from benchmarks.stores import find_differences, read_contents

STUDY = """
study: {name}
recipe: shapes
factors: {{objective: [dpo, chip]}}
seeds: [0]
benchmarks: {{report: [{{name: shapes, limit: 20}}]}}
primary: {{metric: shapes/chair_i, goal: minimize}}
"""
_CLI = "import sys; from orchestrator.cli import main; main(sys.argv[1:])"


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run chip-ablate in a process of its own."""
    one = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    one["PYTHONPATH"] = str(Path(__file__).parents[1])  # this code, from any working directory
    print(f"chip-ablate {' '.join(words)}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-c", _CLI, *words],
        env={**os.environ, **one},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"chip-ablate {' '.join(words)} ended with {done.returncode}: {done.stderr}"
        )
    return done


def run_study(file: Path, workdir: Path, uri: str, steps: int) -> dict[str, Any]:
    """Run the study; return its seconds and its messages about tracking."""
    began = time.perf_counter()
    done = run_command(
        "run", str(file), "--executor", "inline", "--workdir", str(workdir), "--json",
        "--tracking-uri", uri, "--set", f"training.max_steps={steps}",
        "--set", "engine.log_every=1",
    )  # fmt: skip
    wall = time.perf_counter() - began
    records = (workdir / "ledger" / "ledger.jsonl").read_text().splitlines()
    cpu = sum(json.loads(record).get("cpu", {}).get("train", 0.0) for record in records)
    return {"train_cpu_s": cpu, "wall_s": wall, "untracked": json.loads(done.stdout)["untracked"]}


@contextlib.contextmanager
def run_server(folder: Path, port: int) -> Iterator[str]:
    """Run an MLflow server on an empty store."""
    folder.mkdir(parents=True)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"},
        start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        due = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            if time.monotonic() > due:
                raise SystemExit("the MLflow server did not come up in 180 s")
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait()


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of each of the two trainings")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    up: list[dict[str, Any]] = []
    down: list[dict[str, Any]] = []
    apart: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with run_server(place / "up", find_free_port()) as there:
            empty = find_free_port()
            nobody = f"http://127.0.0.1:{empty}"
            names = []
            for pair in range(options.pairs):
                file = place / f"pair{pair}.yaml"
                file.write_text(STUDY.format(name=f"pair{pair}"), encoding="utf-8")
                ways = [("up", there, up), ("down", nobody, down)]
                for way, uri, found in ways if pair % 2 == 0 else ways[::-1]:
                    found.append(run_study(file, place / f"{way}-{pair}", uri, options.steps))
                assert up[-1]["untracked"] is None, up[-1]
                assert len(down[-1]["untracked"]["trials"]) == 3, down[-1]
                names.append(f"pair{pair}+engine.log_every=1+training.max_steps={options.steps}")
            with run_server(place / "late", empty) as late:
                for pair, name in enumerate(names):
                    words = down[pair]["untracked"]["command"].split()
                    assert words[:2] == ["chip-ablate", "sync"], words
                    run_command(*words[1:])
                    shown = read_contents(late, name, clocks=False)
                    apart += find_differences(read_contents(there, name, clocks=False), shown)
                runs = len(shown)
            third = f"sqlite:///{place}/third.db"
            os.chdir(place)  # where a database without a server puts artifacts
            run_command("sync", "--workdir", str(place / "up-0"), "--tracking-uri", third)
            exact = find_differences(read_contents(there, names[0]), read_contents(third, names[0]))
    figures: dict[str, Any] = {
        "train_cpu_up_s": summarize_repeats([one["train_cpu_s"] for one in up]),
        "train_cpu_down_s": summarize_repeats([one["train_cpu_s"] for one in down]),
        "train_cpu_down_over_up": statistics.median(
            one["train_cpu_s"] / two["train_cpu_s"] for one, two in zip(down, up, strict=True)
        ),
        "wall_down_over_up": statistics.median(
            one["wall_s"] / two["wall_s"] for one, two in zip(down, up, strict=True)
        ),
        "runs_of_a_study": runs,
        "differences_after_sync": apart,
        "differences_to_the_bit": exact,
    }
    if options.json:
        print(json.dumps({"benchmark": "tracking_down", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    print(
        f"training, CPU seconds: {figures['train_cpu_up_s']['median']:.1f} up, "
        f"{figures['train_cpu_down_s']['median']:.1f} down; down over up, median of "
        f"{options.pairs} pairs: {figures['train_cpu_down_over_up']:.3f} "
        f"(from start to end: {figures['wall_down_over_up']:.3f})"
    )
    print(
        f"after sync, {options.pairs} studies of {runs} runs: {len(apart)} differences; one study "
        f"shown to another store, with clocks: {len(exact)} differences"
    )
    for text in [*apart, *exact]:
        print(f"  {text}")


if __name__ == "__main__":
    main()
