"""Measure a training step: naive, TRL, ours with each switch added in turn, and the floor.

    python -m benchmarks.step                      # CHiP and plain DPO at 36, 576 and 2,880 tokens
    python -m benchmarks.step --objective chip --image-tokens 576 --json
    python -m benchmarks.step --beside chip dpo mpo tpo symmpo --image-tokens 576
    pip install 'chip-ablate[benchmarks]'          # for TRL

A step is the loss of one pair and its gradients, in fp32; data loading and the optimizer are left
out everywhere. The model and the pair: benchmarks/workload.py. The variants:

naive               as the released code: 3 policy and 4 reference sequences, all logits
response logits     one pass a response, logits of response tokens alone, in chunks
prefix sharing      and chosen, rejected and the rejected image's pass in one packed row
stored reference    and the reference read from memory, as a study's reference pass leaves it
stored features     and the frozen vision encoder's output too
trl                 TRL's DPOTrainer (plain DPO; 2 policy and 2 reference sequences)
floor               forward and backward of the decoder over the unique tokens of both prefixes,
                    the output head and cross-entropy on response positions; no image is encoded

`--beside` compares objectives with each other instead: each one's step with its reference stored.

Ratios are medians over interleaved rounds. Operations are those of forward and backward, as torch
counts them. Gradients are compared with the naive ones by the norm
of the difference over the norm. Memory is the peak of a process that does one step, over what it
held before any model was made.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import trl_dpo
from benchmarks.machine import describe_machine, format_machine
from benchmarks.measure import Clock, PeakMemory, time_interleaved
from benchmarks.naive import compute_naive_loss
from benchmarks.workload import Workload
from chip_core.data.tensors import PairBatch, Prompts
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import compute_tower_features
from chip_core.objectives.config import ObjectiveConfig
from chip_core.training.policy import Policy

NAIVE, FLOOR, TRL = "naive", "floor", "trl"
OURS = ("response logits", "prefix sharing", "stored reference", "stored features")

STORED = OURS[2:]

Step = Callable[[], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objective", nargs="+", default=["chip", "dpo"])
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[36, 576, 2880])
    parser.add_argument("--rounds", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine that is busy"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--beside", nargs="+", help="objectives to compare, the first with all")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one variant's memory, in a process
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds: at least one")
    torch.set_num_threads(given.threads)
    if given.beside:
        print(_measure_peak(given.objective[0], given.image_tokens[0], given.beside))
        return
    if given.beside:
        for tokens in given.image_tokens:
            print(json.dumps(compare_objectives(given.beside, tokens, given.rounds, given.clock)))
        return
    found = [
        measure(objective, tokens, given.rounds, given.clock, memory=not given.no_memory)
        for objective in given.objective
        for tokens in given.image_tokens
    ]
    machine = {**describe_machine(), "threads": torch.get_num_threads()}
    report = {"machine": machine, "clock": given.clock, "settings": found}
    if has_trl() and "dpo" in given.objective:
        report["losses against trl"] = trl_dpo.compare_losses(Workload(), steps=20, rate=1e-5)
    if given.json:
        print(json.dumps(report))
    else:
        _print_report(report)


def measure(
    objective: str, tokens: int, rounds: int, clock: Clock, *, memory: bool
) -> dict[str, Any]:
    """Return one setting's figures, as numbers that JSON holds."""
    workload = Workload(image_tokens=tokens)
    names = [NAIVE, *OURS, *([TRL] if objective == "dpo" and has_trl() else []), FLOOR]
    policy, reference = workload.model()
    with use_packed_attention(policy), use_packed_attention(reference):
        steps = {name: _make_step(name, objective, workload, policy, reference) for name in names}
        gradients = {
            name: _compute_gradient(policy, step) for name, step in steps.items() if name != TRL
        }
        counts = {name: _count_operations(policy, steps[name]) for name in (*OURS, FLOOR)}

        def timed(step: Step) -> Callable[[], None]:
            def run() -> None:
                policy.zero_grad(set_to_none=True)
                step().backward()

            return run

        times = time_interleaved(
            {name: timed(step) for name, step in steps.items()}, rounds=rounds, clock=clock
        )
    variants = {}
    for name, seconds in times.items():
        variants[name] = {
            "seconds": round(seconds.median, 4),
            "naive over this": round(times[NAIVE].compute_median_ratio(seconds), 3),
            "this over floor": round(seconds.compute_median_ratio(times[FLOOR]), 3),
            **(
                {"trl over this": round(times[TRL].compute_median_ratio(seconds), 3)}
                if TRL in times
                else {}
            ),
        }
        if name in OURS:
            over = counts[name] / counts[FLOOR]
            variants[name]["operations over floor"] = round(over, 3)
            variants[name]["gradient apart"] = _compute_relative_distance(
                gradients[name], gradients[NAIVE]
            )
        if memory:
            variants[name]["peak MiB"] = round(_measure_peak_in_process(objective, tokens, name))
    return {"objective": objective, "image_tokens": tokens, "rounds": rounds, "variants": variants}


def compare_objectives(
    names: Sequence[str], tokens: int, rounds: int, clock: Clock
) -> dict[str, Any]:
    """Return each objective's step with a stored reference, and its ratio to the others'."""
    workload = Workload(image_tokens=tokens)
    policy, reference = workload.model()
    steps = {}
    with use_packed_attention(policy), use_packed_attention(reference):
        for name in names:
            settings = ObjectiveConfig.model_validate(name)
            batch = workload.batch(visual=False, views=settings.views)
            ours = Policy(policy, settings, prefix_sharing=True)
            frozen = Policy(reference, settings, prefix_sharing=True)
            stored = frozen.reference_scores(batch)

            def step(ours: Any = ours, batch: Any = batch, stored: Any = stored) -> None:
                policy.zero_grad(set_to_none=True)
                ours(batch, stored, None).loss.mean().backward()

            steps[name] = step
        times = time_interleaved(steps, rounds=rounds, clock=clock)
    return {
        "image_tokens": tokens,
        "rounds": rounds,
        "clock": clock,
        "seconds": {name: round(times[name].median, 4) for name in names},
        "over": {
            name: {
                other: round(times[name].compute_median_ratio(times[other]), 3)
                for other in names[:2]
            }
            for name in names
        },
    }


def _make_step(name: str, objective: str, workload: Workload, policy: Any, reference: Any) -> Step:
    """Return a variant's step, which keeps only the objects that it needs."""
    settings = ObjectiveConfig.model_validate(objective)
    if name == TRL:
        return _make_trl_step(workload)
    if name == NAIVE:
        # With the rejected image, which the released code reads for plain DPO, too.
        whole = workload.batch(visual=True)
        return lambda: compute_naive_loss(policy, reference, whole, settings)
    batch = workload.batch(visual=settings.needs_rejected_image)
    if name == FLOOR:
        return lambda: compute_floor(policy, batch)
    share = name != OURS[0]
    ours = Policy(policy, settings, prefix_sharing=share)
    frozen = Policy(reference, settings, prefix_sharing=share)
    head = frozen.head
    if name in STORED:
        stored = frozen.reference_scores(batch)
        if name == STORED[1]:
            batch = _add_features(batch, policy)
        return lambda: ours(batch, stored, head).loss.mean()
    return lambda: ours(batch, frozen.reference_scores(batch), head).loss.mean()


def _add_features(batch: PairBatch, policy: Any) -> PairBatch:
    """Return a batch with the vision encoder's output for its images."""

    def known(prompts: Prompts) -> Prompts:
        return replace(prompts, features=compute_tower_features(policy, prompts.images))

    rejected = batch.rejected_image_prompts
    return replace(
        batch,
        prompts=known(batch.prompts),
        rejected_image_prompts=None if rejected is None else known(rejected),
    )


def _make_trl_step(workload: Workload) -> Step:
    """Return TRL's step, on its own models, because it changes their forward."""
    theirs = trl_dpo.make_trainer(*workload.model(), workload, pairs=1)
    theirs.model.train()
    inputs = trl_dpo.collate_pairs(theirs, 0, workload)

    def step() -> Tensor:
        theirs.model.zero_grad(set_to_none=True)
        return theirs.compute_loss(theirs.model, dict(inputs))  # type: ignore[no-any-return]

    return step


def compute_floor(policy: Any, batch: Any) -> Tensor:
    """Compute the minimum of a step: no image, no mask, no reference."""
    rows = [(batch.prompts, (batch.chosen, batch.rejected))]
    if batch.rejected_image is not None:
        rows.append((batch.rejected_image_prompts, (batch.rejected_image,)))
    hidden, ids = [], []
    for prompts, responses in rows:
        row = torch.cat([prompts.ids, *(part.ids for part in responses)], 1)
        answers = sum(part.ids.shape[1] for part in responses)
        states = policy.get_decoder()(
            inputs_embeds=policy.get_input_embeddings()(row), use_cache=False
        ).last_hidden_state
        hidden.append(states[:, -answers - 1 : -1].flatten(0, 1))
        ids.append(row[:, -answers:].flatten())
    logits = policy.get_output_embeddings()(torch.cat(hidden))
    return torch.nn.functional.cross_entropy(logits, torch.cat(ids))


def _compute_gradient(policy: Any, step: Step) -> list[Tensor]:
    policy.zero_grad(set_to_none=True)
    step().backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def _count_operations(policy: Any, step: Step) -> int:
    policy.zero_grad(set_to_none=True)
    with FlopCounterMode(display=False) as counted:
        step().backward()
    return int(counted.get_total_flops())


def _compute_relative_distance(one: list[Tensor], other: list[Tensor]) -> float:
    pairs = list(zip(one, other, strict=True))
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    norm = sum(float(b.square().sum()) for _, b in pairs)
    return float(f"{(difference / norm) ** 0.5:.1e}")


def _measure_peak_in_process(objective: str, tokens: int, name: str) -> float:
    """Return a variant's peak memory, measured in a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.step", "--only", name]
    command += ["--objective", objective, "--image-tokens", str(tokens)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _measure_peak(objective: str, tokens: int, name: str) -> float:
    """Return the peak memory of one step over what the process held before any model, in MiB."""
    import transformers.models.llava.modeling_llava  # noqa: F401  # imports are no step's memory

    workload = Workload(image_tokens=tokens)
    if name == TRL:
        import trl  # noqa: F401

        memory = PeakMemory()
        step = _make_trl_step(workload)
        memory.reset()
        step().backward()
        return memory.read_peak()
    memory = PeakMemory()
    policy, reference = workload.model()
    with use_packed_attention(policy), ExitStack() as stack:
        open_for_reference = use_packed_attention(reference)
        stack.enter_context(open_for_reference)
        step = _make_step(name, objective, workload, policy, reference)
        if name in STORED:
            stack.close()
            del reference, open_for_reference  # a study's trial has none in memory
        memory.reset()  # without the memory for building
        step().backward()
    return memory.read_peak()


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def _print_report(report: dict[str, Any]) -> None:
    print(f"{format_machine(report['machine'])}, {report['machine']['threads']} threads")
    for setting in report["settings"]:
        print(f"\n{setting['objective']}, {setting['image_tokens']} image tokens")
        for name, figures in setting["variants"].items():
            shown = "  ".join(f"{what} {value}" for what, value in figures.items())
            print(f"  {name:17} {shown}")
    if "losses against trl" in report:
        apart = report["losses against trl"]
        print(f"\nlosses over {apart['steps']} steps part from TRL's by {apart['apart']:.1e}")


if __name__ == "__main__":
    main()
