"""Compute the table of memory by recipe and device in docs/scale.md, without measuring anything.

    python -m benchmarks.memory [--json FILE]

Each row is a recipe, unchanged or with further settings; a step runs on torch's fake tensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from chip_core import recipes
from chip_core.config.validation import parse_trial_config, set_key
from orchestrator.cost.memory import MemoryEstimator
from orchestrator.cost.published.devices import DEVICES

_LESS = {"training.gradients": "bf16", "optimizer.states": "int8"}
_ONE = {"engine.workers_per_trial": 1, "engine.parallel": "auto"}

#: Recipe, and further settings.
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llava-1.6-7b", {}),
    ("llava-1.6-7b-full", {}),
    ("llava-1.6-7b-full", {"engine.workers_per_trial": 8}),
    ("llava-1.6-7b-full", _ONE | _LESS),
    ("llava-1.6-7b-full", _ONE),
    ("llava-1.5-7b", {}),
    ("muffin-13b", {}),
    ("qwen2.5-vl-3b", {}),
    ("smolvlm-500m", {}),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [estimate_row(name, settings) for name, settings in ROWS]
    print("| recipe | GiB of a GPU | of that | fits |\n|---|---|---|---|")
    for each in found:
        parts = ", ".join(
            f"{name} {size / 2**30:.1f}" for name, size in each["parts"].items() if size > 2**25
        )
        fits = ", ".join(each["fits"]) or "none"
        settings = ", ".join(f"`{key}: {value}`" for key, value in each["settings"].items())
        print(f"| `{each['recipe']}` {settings} | {each['bytes'] / 2**30:.1f} | {parts} | {fits} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def estimate_row(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    tree = recipes.read_yaml(recipes.find_recipe(name))
    for key, value in settings.items():
        set_key(tree, key, value)
    config = parse_trial_config(tree, name)
    stored = config.training.augment == "off"
    made = MemoryEstimator(count=True).estimate(config, reference=not stored)
    assert made is not None
    worker = made.footprint
    return {
        "recipe": name,
        "settings": settings,
        "bytes": worker.total,
        "parts": dict(worker.parts),
        "basis": made.basis,
        "notes": list(worker.notes),
        "fits": [device.name for device in DEVICES.values() if worker.total <= device.usable_bytes],
    }


if __name__ == "__main__":
    main()
