"""run_trial: the one door in. One model is trained with one configuration, and scored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from chip_core.config import BenchmarkConfig, TrialConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.generation import generate
from chip_core.evaluation.task import Side, metric_name
from chip_core.files import write_atomically, write_json
from chip_core.models import loading
from chip_core.models.adapters import attach, save_model
from chip_core.models.memory import bytes_needed, check_room
from chip_core.results import CONFIG, MODEL, RESULT, Evaluation, Progress, TrialResult
from chip_core.seeding import seed_process
from chip_core.training.checkpoint import remove_all
from chip_core.training.loop import train
from chip_core.training.prepare import checked_pairs, device_of
from chip_core.training.store.passes import Offered


def run_trial(
    config: TrialConfig,
    *,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    untrained: bool = False,
    trained_model: Path | None = None,
    resume_from: Path | None = None,
    offered: Offered | None = None,
) -> TrialResult:
    """Train and score one model; leave everything in `folder`, result.json last.

    Args:
        config: the trial.
        folder: where config.json, curves.jsonl, model/, scores/, responses/ and result.json go.
        report: told of each step and batch.
        untrained: score the base model as it is.
        trained_model: score this trained model; do not train.
        resume_from: an earlier attempt's folder; its newest whole checkpoint is gone on from.
        offered: the stores of reference passes that the training may read.

    Raises:
        TrialError: the trial cannot go on; the message is its reason.
    """
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    report(Progress(phase="start", done=0, total=1))
    seed_process(config.seed, config.engine.threads)
    write_json(folder / CONFIG, config.model_dump(mode="json"))
    pairs = None
    if not untrained and trained_model is None:
        # Data first: a bad row is told before a large model is loaded.
        pairs = checked_pairs(config, report)
        seconds["check data"] = time.perf_counter() - began
        began = time.perf_counter()
    model, processor = loading.load(
        config.model, attention=config.engine.attention, trained=trained_model
    )
    training = not untrained and trained_model is None
    if training:
        model = attach(model, config)
    device = device_of(config)
    if training and device.type == "cuda":
        computed = offered is None or not offered.covers(config)
        needed = bytes_needed(model, config, reference=computed)
        check_room(needed, torch.cuda.mem_get_info(device)[0], config)
    model.to(device)
    seconds["start"] = time.perf_counter() - began

    steps = 0
    data: dict[str, int] = {}
    notes: list[str] = []
    engine: dict[str, str] = {}
    if pairs is not None:
        began = time.perf_counter()
        trained = train(
            config,
            model=model,
            processor=processor,
            pairs=pairs,
            folder=folder,
            on_step=lambda step, total, figures: report(
                Progress(phase="train", done=step, total=total, figures=figures)
            ),
            resume_from=resume_from,
            offered=offered,
        )
        data = {"pairs": len(pairs), "skipped": len(pairs.skipped), **trained.cut}
        steps, notes, engine = trained.steps, list(trained.notes), trained.engine
        save_model(model, processor, folder / MODEL, config)
        remove_all(folder)  # of the checkpoints: the model is there
        seconds["train"] = time.perf_counter() - began

    evaluations: dict[str, Evaluation] = {}
    sides: list[tuple[Side, BenchmarkConfig]] = [
        *(("select", benchmark) for benchmark in config.benchmarks.select),
        *(("report", benchmark) for benchmark in config.benchmarks.report),
    ]
    for side, benchmark in sides:
        began = time.perf_counter()
        key = f"{side}/{benchmark.name}"
        evaluations[key] = _evaluate(config, model, processor, side, benchmark, folder, report)
        seconds[f"score {key}"] = time.perf_counter() - began
    result = TrialResult(
        steps=steps,
        evaluations=evaluations,
        seconds=seconds,
        data=data,
        notes=notes,
        engine=engine,
    )
    write_json(folder / RESULT, asdict(result))
    return result


def _evaluate(
    config: TrialConfig,
    model: Any,
    processor: Any,
    side: Side,
    settings: BenchmarkConfig,
    folder: Path,
    report: Callable[[Progress], None],
) -> Evaluation:
    benchmark = BENCHMARKS[settings.name]
    items = benchmark.items(side, settings.limit)
    phase = f"score {settings.name}"
    report(Progress(phase=phase, done=0, total=len(items)))
    responses = generate(
        model,
        processor,
        items,
        max_new_tokens=settings.max_new_tokens or benchmark.max_new_tokens,
        num_beams=settings.num_beams,
        batch_size=config.engine.generation_batch,
        bf16=config.model.dtype == "bf16",
        on_batch=lambda done, total: report(Progress(phase=phase, done=done, total=total)),
    )
    ids = [item.id for item in items]
    outcomes = benchmark.score(list(zip(ids, responses, strict=True)))
    scores, answers = (
        f"scores/{side}-{settings.name}.json",
        f"responses/{side}-{settings.name}.jsonl",
    )
    write_json(folder / scores, {"metrics": [asdict(outcome) for outcome in outcomes]})
    lines = [
        {
            "item": item.id,
            "prompt": item.prompt,
            "response": text,
            "truth": benchmark.truth(item.id),
        }
        for item, text in zip(items, responses, strict=True)
    ]
    write_atomically(folder / answers, "".join(json.dumps(line) + "\n" for line in lines))
    return Evaluation(
        metrics={
            metric_name(side, settings.name, outcome.name): outcome.value
            for outcome in outcomes
            if outcome.value is not None
        },
        items=len(items),
        scores=scores,
        responses=answers,
    )
