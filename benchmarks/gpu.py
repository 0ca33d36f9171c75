"""A step at the size of LLaVA-1.5-7B on a GPU: tokens/s, MFU and peak memory.

    python -m benchmarks.gpu                          # LoRA in bf16, 576 image tokens
    python -m benchmarks.gpu --train full --json
    python -m benchmarks.gpu --size tiny --device cpu # the same code on a machine without a GPU

The model is built from its configuration with random weights: nothing is downloaded, and a step's
cost does not depend on them. A step is the loss of a batch and its gradients; no optimizer.

naive              as the released code: 3 policy and 4 reference sequences, all logits
live reference     one packed row; the reference is the adapter switched off, or a frozen copy
stored reference   the same, and the reference read from memory
trl                TRL's DPOTrainer (with `--objective dpo`, where the extra `benchmarks` is there)

Tokens are the unique ones of a batch: prefixes, chosen, rejected and, where the objective reads
it, chosen under the rejected image. MFU counts the floating-point operations of the floor (forward
and backward of the decoder over these tokens, output head on response positions) and no more,
regardless of what a way computes; it is given if the device's peak is known or given as an option.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import trl_dpo
from benchmarks.machine import describe_machine, format_machine, summarize_repeats
from benchmarks.naive import compute_naive_loss
from benchmarks.step import compute_floor, has_trl
from benchmarks.workload import Workload
from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import attach_adapters
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.training.policy import LiveReference, Policy

#: Dense bf16 operations a second, from the makers' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

#: Llama-2-7B's and CLIP-L's figures, and a model that a laptop builds in a second.
SIZES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden": 4096,
        "intermediate": 11008,
        "layers": 32,
        "heads": 32,
        "tower": (1024, 4096, 24, 16),
    },
    "tiny": {"hidden": 64, "layers": 2, "image_tokens": 36, "vocabulary": 1000},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--train", choices=["lora", "full"], default="lora")
    parser.add_argument("--objective", choices=["chip", "dpo"], default="chip")
    parser.add_argument("--pairs", type=int, default=2, help="of a batch")
    parser.add_argument("--image-tokens", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="the device's, dense bf16")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here: name --device cpu, with --size tiny")
    figures = measure(given, device)
    report = {"benchmark": "gpu", "machine": describe_machine(), "settings": vars(given), **figures}
    if given.json:
        print(json.dumps(report))
        return
    print(format_machine(report["machine"]))
    for name, part in figures["ways"].items():
        shown = (f"{what} {value}" for what, value in part.items() if what != "seconds")
        print(f"  {name:17} {part['seconds']['median']:.3f} s  " + "  ".join(shown))


def measure(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the figures of each way."""
    size = {"image_tokens": given.image_tokens, **SIZES[given.size]}
    workload = Workload(chosen=(100,) * given.pairs, rejected=(110,) * given.pairs, **size)
    config = TrialConfig.model_validate(
        {
            "model": "shapes",  # names a path; the model is the workload's
            "objective": given.objective,
            "language_model": "lora" if given.train == "lora" else "full",
            "vision_encoder": "frozen",
        }
    )
    whole = workload.batch(visual=True).to(device)  # the released code reads it for plain DPO too
    batch = whole if config.objective.needs_rejected_image else drop_image(whole)
    prefixes = 1 if batch.rejected_image is None else 2
    tokens = prefixes * (batch.prompts.ids.numel() + batch.chosen.ids.numel())
    tokens += batch.rejected.ids.numel()
    model = attach_adapters(workload.built(torch.bfloat16, device), config)
    set_trained(model, config)
    with use_packed_attention(model), FlopCounterMode(display=False) as counted:
        compute_floor(model, batch).backward()
    operations = counted.get_total_flops()
    ways = {}
    for name, step in _list_ways(model, config, whole, batch, workload, given).items():
        ways[name] = _time_way(step, model, device, given.rounds)
        seconds = ways[name]["seconds"]["median"]
        ways[name]["tokens/s"] = round(tokens / seconds)
        peak = find_peak_operations(given.peak_tflops, device)
        if peak is not None:
            ways[name]["mfu"] = round(operations / seconds / peak, 4)
    return {"unique tokens": tokens, "floor operations": operations, "ways": ways}


def drop_image(batch: PairBatch) -> PairBatch:
    """Return a batch as an objective without a visual term reads it."""
    return replace(batch, rejected_image_prompts=None, rejected_image=None)


def _list_ways(
    model: Any,
    config: TrialConfig,
    whole: PairBatch,
    batch: PairBatch,
    workload: Workload,
    given: argparse.Namespace,
) -> dict[str, Callable[[], Tensor]]:
    policy = Policy(model, config.objective, prefix_sharing=True)
    reference = LiveReference(policy, config)
    stored = reference.scores(batch)

    def naive() -> Tensor:
        def frozen(*args: Any, **inputs: Any) -> Any:
            with torch.no_grad():
                return reference.original(model, *args, **inputs)

        return compute_naive_loss(model, frozen, whole, config.objective)

    def packed(live: bool) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with use_packed_attention(model):
                said = reference.scores(batch) if live else stored
                return policy(batch, said, reference.head).loss.mean()

        return step

    ways = {"naive": naive, "live reference": packed(True), "stored reference": packed(False)}
    if given.objective == "dpo" and has_trl():
        cpu = given.device == "cpu"
        theirs = trl_dpo.make_trainer(
            model, None, workload, pairs=given.pairs, bf16=not cpu, use_cpu=cpu
        )
        inputs = trl_dpo.collate_pairs(theirs, 0, workload)
        inputs = {name: value.to(batch.prompts.ids.device) for name, value in inputs.items()}
        ways["trl"] = lambda: theirs.compute_loss(theirs.model, dict(inputs))
    return ways


def _time_way(
    step: Callable[[], Tensor], model: Any, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return seconds and peak GiB of a way; a first round is not counted."""
    cuda = device.type == "cuda"
    seconds = []
    for number in range(rounds + 1):
        model.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step().backward()
        if cuda:
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - began)
    figures: dict[str, Any] = {"seconds": summarize_repeats(seconds)}
    if cuda:
        figures["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return figures


def find_peak_operations(told: float | None, device: torch.device) -> float | None:
    """Return a device's operations a second, as given or as known, or None."""
    if told is not None:
        return told * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


if __name__ == "__main__":
    main()
