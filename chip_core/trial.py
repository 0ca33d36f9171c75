"""run_trial: the one door in. One model is trained with one configuration, and scored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from chip_core.config import TrialConfig
from chip_core.data.preferences import Pairs, load_pairs
from chip_core.data.rejected_images import strategy_class
from chip_core.errors import TrialError
from chip_core.evaluation import workers
from chip_core.evaluation.readiness import problems, sides
from chip_core.evaluation.run import Answering, evaluate
from chip_core.files import write_json
from chip_core.models import loading
from chip_core.models.adapters import attach, save_model
from chip_core.models.memory import bytes_needed, check_room
from chip_core.places import Places
from chip_core.results import CONFIG, MODEL, RESULT, Evaluation, Progress, TrialResult
from chip_core.seeding import seed_process
from chip_core.trained import Trained, take_over, weights_mark, write_trained
from chip_core.training.checkpoint import remove_all
from chip_core.training.loop import train


def run_trial(
    config: TrialConfig,
    *,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    untrained: bool = False,
    trained_model: Path | None = None,
    resume_from: Path | None = None,
    places: Places | None = None,
    earlier: Sequence[Path] = (),
) -> TrialResult:
    """Train and score one model; leave everything in `folder`, result.json last.

    Args:
        config: the trial.
        folder: where config.json, curves.jsonl, model/, scores/, responses/ and result.json go.
        report: told of each step and batch.
        untrained: score the base model as it is.
        trained_model: score this trained model; do not train.
        resume_from: an earlier attempt's folder; its trained model is taken over, or its newest
            whole checkpoint gone on from.
        places: where the benchmarks' data and the judges' replies lie.
        earlier: folders of earlier attempts; answers of the same weights are taken over.

    Raises:
        TrialError: the trial cannot go on; the message is its reason.
    """
    places = places or Places()
    lacking = problems(config.benchmarks, places)
    if lacking:
        raise TrialError("; ".join(lacking))  # now, and not after the training
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    report(Progress(phase="start", done=0, total=1))
    seed_process(config.seed, config.engine.threads)
    write_json(folder / CONFIG, config.model_dump(mode="json"))
    pairs, trained = None, None
    if not untrained and trained_model is None and resume_from is not None:
        left = resume_from
        trained = workers.from_first(lambda: take_over(left, folder))
        trained_model = None if trained is None else folder / MODEL
    if not untrained and trained_model is None:
        # Data first: a bad row is told before a large model is loaded.
        pairs = _pairs(config, report)
        seconds["check data"] = time.perf_counter() - began
        began = time.perf_counter()
    model, processor = loading.load(
        config.model, attention=config.engine.attention, trained=trained_model
    )
    training = not untrained and trained_model is None
    if training:
        model = attach(model, config)
    device = _device(config)
    if training and device.type == "cuda":
        check_room(bytes_needed(model, config), torch.cuda.mem_get_info(device)[0], config)
    model.to(device)
    seconds["start"] = time.perf_counter() - began

    if pairs is not None:
        began = time.perf_counter()
        done = train(
            config,
            policy=model,
            processor=processor,
            pairs=pairs,
            folder=folder,
            on_step=lambda step, total, figures: report(
                Progress(phase="train", done=step, total=total, figures=figures)
            ),
            resume_from=resume_from,
        )
        save_model(model, processor, folder / MODEL, config)
        trained = Trained(
            steps=done.steps,
            seconds=time.perf_counter() - began,
            data={"pairs": len(pairs), "skipped": len(pairs.skipped), **done.cut},
            notes=list(done.notes),
        )
        write_trained(folder, trained)
        remove_all(folder)  # of the checkpoints: the model is there
    if trained is not None:
        seconds["train"] = trained.seconds

    answering = Answering(
        model=model,
        processor=processor,
        weights=workers.from_first(
            lambda: _weights(config, folder / MODEL if trained is not None else trained_model)
        ),
        folder=folder,
        places=places,
        batch_size=config.engine.generation_batch,
        bf16=config.model.dtype == "bf16",
        earlier=earlier,
        report=report,
        lies_in=_lies_in(config, folder / MODEL if trained is not None else trained_model),
    )
    evaluations: dict[str, Evaluation] = {}
    for side, benchmark in sides(config.benchmarks):
        began = time.perf_counter()
        key = f"{side}/{benchmark.name}"
        evaluations[key] = evaluate(answering, side, benchmark)
        seconds[f"score {key}"] = time.perf_counter() - began
    result = TrialResult(
        steps=0 if trained is None else trained.steps,
        evaluations=evaluations,
        seconds=seconds,
        data={} if trained is None else trained.data,
        notes=[] if trained is None else trained.notes,
    )
    write_json(folder / RESULT, asdict(result))
    return result


def _pairs(config: TrialConfig, report: Callable[[Progress], None]) -> Pairs:
    """Load the pairs, telling of the rows checked about once a second."""
    told = time.monotonic()

    def on_row(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1.0:
            told = time.monotonic()
            report(Progress(phase="check data", done=done, total=total))

    given = strategy_class(config.rejected_image.strategy).traits.needs_given
    return load_pairs(
        config.data, on_row, rejected_images=given and config.objective.needs_rejected_image
    )


def _weights(config: TrialConfig, trained_model: Path | None) -> str:
    """Return a mark of the weights that answer."""
    if trained_model is not None:
        return weights_mark(trained_model)
    return json.dumps(loading.identity(config.model), sort_keys=True)


def _lies_in(config: TrialConfig, trained_model: Path | None) -> Path | None:
    """Return a whole Hugging Face folder of the weights that answer, where there is one."""
    folder = trained_model or loading.local_folder(config.model.path)
    return None if folder is None or (folder / loading.ADAPTER_CONFIG).exists() else folder


def _device(config: TrialConfig) -> torch.device:
    wanted = config.engine.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
