"""What a slot's second load of a base model costs, as a share of its first.

    python -m benchmarks.base_model
    python -m benchmarks.base_model --json

A LLaVA of 0.75 GB with random weights, of the embedded model's kind and with its processor, is
loaded again and again in one process, as a slot loads it: for trials that train adapters alone
(nothing is copied) and for trials that train all of it. `held_gb` is the
process's resident memory after a load.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe, line

REPEATS = 3


def build(folder: Path) -> int:
    """Write the model and return its bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from chip_core.shapes import MODEL_FOLDER

    shutil.copytree(MODEL_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(MODEL_FOLDER)
    config.text_config.intermediate_size = 250_000_000 // (
        2 * config.text_config.hidden_size * config.text_config.num_hidden_layers
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def measure(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what loads cost one after another in a slot that begins at nothing."""
    from chip_core.config import TrialConfig
    from chip_core.models.loading import load
    from chip_core.models.warm import BASE_MODELS

    config = TrialConfig.model_validate({"model": str(folder), **settings})
    BASE_MODELS.forget()
    BASE_MODELS.keep()
    process = psutil.Process()
    loads = []
    for _ in range(1 + REPEATS):
        began, cpu = time.perf_counter(), process.cpu_times()
        model, _processor = load(config.model, config=config)
        wall, now = time.perf_counter() - began, process.cpu_times()
        spent = now.user + now.system - cpu.user - cpu.system
        loads.append({"wall_s": wall, "cpu_s": spent, "held_gb": process.memory_info().rss / 1e9})
        del model
    BASE_MODELS.forget()
    later = sorted(each["cpu_s"] for each in loads[1:])[REPEATS // 2]
    return {"loads": loads, "later_share_of_first_cpu": later / loads[0]["cpu_s"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine = describe()
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / "model"
        figures: dict[str, Any] = {"model_bytes": build(folder)}
        figures["adapters"] = measure(folder, {"language_model": "lora", "projector": "frozen"})
        figures["all"] = measure(folder, {"vision_encoder": "trained"})
    if options.json:
        print(json.dumps({"benchmark": "base_model", "machine": machine, "figures": figures}))
        return
    print(line(machine))
    for name in ("adapters", "all"):
        part = figures[name]
        first = part["loads"][0]
        print(
            f"trained: {name}: first load {first['cpu_s']:.2f} CPU s, later ones "
            f"{100 * part['later_share_of_first_cpu']:.1f} % of that"
        )


if __name__ == "__main__":
    main()
