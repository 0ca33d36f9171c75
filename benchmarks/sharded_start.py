"""Measure the memory of each of two workers when a training under `parallel: fsdp` starts.

    python -m benchmarks.sharded_start
    python -m benchmarks.sharded_start --json

The model is that of benchmarks/base_model.py with 32 layers: random weights that take 1 GB in fp32,
in a file of fp32, which is mapped, and of bf16, which is converted to fp32. Two processes, joined
by gloo, load and shard it: once each of them loads all of it, as builds before 2026-11-30 did, and
once the first alone, as a trial does. `uss` is memory that no other process shares, `peak` its
maximum while the model was loaded and sharded, sampled 50 times a second; what was held before is
subtracted. With `MALLOC_MMAP_THRESHOLD_` the C library returns every larger piece at once: the
memory that it would keep otherwise differs from run to run by half a gigabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.base_model import read_memory, write_model
from benchmarks.machine import describe_machine, format_machine

WORKERS, LAYERS = 2, 32


class PeakWatch:
    """The most memory of its own that this process held."""

    def __init__(self) -> None:
        self.uss = 0.0
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._watch, daemon=True)
        self._looking.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.uss = max(self.uss, psutil.Process().memory_full_info().uss / 1e9)

    def close(self) -> float:
        """Stop sampling; return the maximum."""
        self._over.set()
        self._looking.join()
        return self.uss


def run_worker(folder: Path, loads: str) -> None:
    """Load and shard the model; print the memory held."""
    from chip_core.config.trial import ModelConfig, TrialConfig
    from chip_core.models import loading
    from chip_core.models.adapters import attach_adapters
    from chip_core.models.parts import set_trained
    from chip_core.training.parallel import Compute
    from chip_core.training.policy import Policy
    from chip_core.training.trainer import make_strategy
    from chip_core.utils.workers import join_workers

    config = TrialConfig.model_validate({"model": str(folder), "language_model": "lora"})
    with join_workers() as workers:
        loading.load(ModelConfig(path="shapes"))
        before, peak = read_memory(), PeakWatch()
        began = time.perf_counter()
        load = loading.load if loads == "all" or workers.is_main else loading.load_empty
        model, _ = load(config.model)
        model = attach_adapters(model, config)
        set_trained(model, config)
        workers.barrier()
        loaded = read_memory()
        compute = Compute(workers=workers, parallelism="fsdp")
        strategy = make_strategy(Policy(model, config.objective), config, compute)
        workers.barrier()
        seconds, spread = time.perf_counter() - began, read_memory()
        found = {
            "peak_uss_gb": peak.close(),
            "loaded_uss_gb": loaded["uss_gb"],
            "spread_uss_gb": spread["uss_gb"],
        }
        del strategy
        told = {name: round(value - before["uss_gb"], 3) for name, value in found.items()}
        print(json.dumps({**told, "seconds": round(seconds, 2)}))


def measure(folder: Path, loads: str) -> list[dict[str, float]]:
    """Return each worker's memory, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    joined = {"WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    joined |= {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sharded_start", "--worker", str(folder), loads],
            env={**os.environ, **joined, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        run_worker(Path(options.worker[0]), options.worker[1])
        return
    machine = describe_machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as above:
        for dtype in ("float32", "bfloat16"):
            folder = Path(above) / dtype
            size = write_model(folder, dtype, LAYERS)
            figures[dtype] = {
                "file_bytes": size,
                **{f"{loads} loads": measure(folder, loads) for loads in ("all", "first")},
            }
    if options.json:
        print(json.dumps({"benchmark": "sharded_start", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for dtype, ways in figures.items():
        for loads in ("all loads", "first loads"):
            for rank, found in enumerate(ways[loads]):
                said = ", ".join(f"{name} {value}" for name, value in found.items())
                print(f"{dtype}, {loads}, worker {rank}: {said}")


if __name__ == "__main__":
    main()
