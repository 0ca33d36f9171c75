"""Measure a slot's second load of a base model as a share of its first, and what slots share.

    python -m benchmarks.base_model
    python -m benchmarks.base_model --json

A LLaVA with random weights, of the embedded model's kind and with its processor, that takes 1 GB in
fp32 is loaded repeatedly in one process, as a slot loads it: from a file in fp32, which is mapped,
and from one in bf16, which is converted; for trials that train adapters alone (nothing is copied)
and for trials that train all of it. After the last load all trained weights are written to, as an
optimizer does at its first step: `first_write_cpu_s`. Then a second process does the same, and the
memory of the two is read while both live: `pss_gb` counts half of each page that both hold.
Imports are not counted: each process loads the embedded model first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

REPEATS = 3
#: Parameters that take 1 GB in fp32.
PARAMETERS = 250_000_000
TRAINED = {
    "adapters": {"language_model": "lora", "projector": "frozen"},
    "all": {"vision_encoder": "trained"},
}


def write_model(folder: Path, dtype: str, layers: int | None = None) -> int:
    """Write the model, with this number of layers, and return its file's size in bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from chip_core.shapes import MODEL_FOLDER

    shutil.copytree(MODEL_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(MODEL_FOLDER)
    config.text_config.num_hidden_layers = layers or config.text_config.num_hidden_layers
    config.text_config.intermediate_size = PARAMETERS // (
        3 * config.text_config.hidden_size * config.text_config.num_hidden_layers
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def read_memory() -> dict[str, float]:
    """Return this process's memory, in GB."""
    found = psutil.Process().memory_full_info()
    return {f"{kind}_gb": round(getattr(found, kind) / 1e9, 3) for kind in ("rss", "pss", "uss")}


def run_slot(folder: Path, trained: str) -> None:
    """Load repeatedly; print the costs, and print the memory held at each line on stdin."""
    from chip_core.config.trial import ModelConfig, TrialConfig
    from chip_core.models.base_models import BASE_MODELS
    from chip_core.models.loading import load
    from chip_core.models.parts import select_trained_parameters

    load(ModelConfig(path="shapes"))
    config = TrialConfig.model_validate({"model": str(folder), **TRAINED[trained]})
    BASE_MODELS.enable()
    before, loads, model = read_memory(), [], None
    for _ in range(1 + REPEATS):
        del model  # as when the previous trial ends
        began, cpu = time.perf_counter(), time.process_time()
        model, _processor = load(config.model, config=config)
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
        loads.append({"wall_s": round(wall, 4), "cpu_s": round(spent, 4), **read_memory()})
    cpu = time.process_time()
    for weights in select_trained_parameters(model, config).values():
        for weight in weights.values():
            weight.data.mul_(1.0)
    written = time.process_time() - cpu
    print(json.dumps({"before": before, "loads": loads, "first_write_cpu_s": round(written, 4)}))
    for _ in sys.stdin:
        print(json.dumps(read_memory()), flush=True)


def measure(folder: Path, trained: str) -> dict[str, Any]:
    """Return the costs of loads in one slot, and the memory of two slots at the same time."""
    command = [sys.executable, "-m", "benchmarks.base_model"]
    command += ["--slot", str(folder), "--trained", trained]
    slots, found = [], []
    for _ in range(2):
        one = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert one.stdin is not None and one.stdout is not None
        slots.append((one, one.stdin, one.stdout))
        one.stdin.write("\n")
        one.stdin.flush()
        found.append(json.loads(one.stdout.readline()))
        one.stdout.readline()  # it holds all its memory now
    together = []
    for _, asked, said in slots:
        asked.write("\n")
        asked.flush()
        together.append(json.loads(said.readline()))
    for one, asked, _ in slots:
        asked.close()
        one.wait()
    later = {
        kind: summarize_repeats([each[kind] for each in found[0]["loads"][1:]])
        for kind in ("cpu_s", "wall_s")
    }
    first = found[0]["loads"][0]
    return {
        "slot": found[0],
        "later_share_of_first_cpu": round(later["cpu_s"]["median"] / first["cpu_s"], 4),
        "later_share_of_first_wall": round(later["wall_s"]["median"] / first["wall_s"], 4),
        "two_slots": together,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--slot", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trained", choices=[*TRAINED], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.slot is not None:
        run_slot(options.slot, options.trained)
        return
    machine = describe_machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as above:
        for dtype in ("float32", "bfloat16"):
            folder = Path(above) / dtype
            figures[dtype] = {"file_bytes": write_model(folder, dtype)}
            for trained in TRAINED:
                figures[dtype][trained] = measure(folder, trained)
    if options.json:
        print(json.dumps({"benchmark": "base_model", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for dtype, parts in figures.items():
        for name in TRAINED:
            part = parts[name]
            first = part["slot"]["loads"][0]
            print(
                f"from {dtype}, trained: {name}: first load {first['cpu_s']:.2f} CPU s, later ones "
                f"{100 * part['later_share_of_first_cpu']:.1f} % of that; first write "
                f"{part['slot']['first_write_cpu_s']:.2f} CPU s; two slots hold "
                f"{sum(each['rss_gb'] for each in part['two_slots']):.2f} GB, of it "
                f"{sum(each['pss_gb'] for each in part['two_slots']):.2f} GB of memory"
            )


if __name__ == "__main__":
    main()
