"""One trial: a model is trained with one configuration, answers benchmarks, and is scored.

`answer_trial` needs the model and its device, `score_trial` neither; `run_trial` is both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from chip_core.config import TrialConfig
from chip_core.data.encodings import ENCODINGS
from chip_core.errors import TrialError
from chip_core.evaluation.answering import InferenceContext, answer
from chip_core.evaluation.readiness import problems, sides
from chip_core.files import write_json
from chip_core.machine import kind_of as machine_kind
from chip_core.models import loading
from chip_core.models.adapters import attach, save_model
from chip_core.models.memory import bytes_needed, check_room, room_for, weights_fit
from chip_core.phases import Spans, stopped_by
from chip_core.places import Places
from chip_core.reference_cache.spec import AvailableCaches
from chip_core.results import (
    CONFIG,
    MODEL,
    AnsweredTrial,
    Answers,
    Evaluation,
    Progress,
    TrialResult,
    hashes,
    write_answered,
)
from chip_core.seeding import seed_process
from chip_core.trained import (
    Trained,
    broken_model,
    model_files,
    require_model,
    take_over,
    training_mark,
    weights_mark,
    write_trained,
)
from chip_core.training.checkpoint import remove_all
from chip_core.training.parallel import Compute, Parallelism, choose_parallelism
from chip_core.training.prepare import checked_pairs, device_of
from chip_core.training.trainer import Trainer, never
from chip_core.trial_scoring import score_trial
from chip_core.workers import Workers, current

_log = logging.getLogger(__name__)


class TrialOptions(TypedDict, total=False):
    """What `answer_trial` takes beside configuration, folder, places and progress."""

    untrained: bool
    trained_model: Path | None
    resume_from: Path | None
    began: float | None
    began_cpu: float | None
    earlier: Sequence[Path]
    offered: AvailableCaches | None
    notes: Sequence[str]
    share: Callable[[], None]


def run_trial(
    config: TrialConfig,
    *,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    places: Places | None = None,
    stop: Callable[[], bool] = never,
    **options: Unpack[TrialOptions],
) -> TrialResult:
    """Train and score one model; leave everything in `folder`, result.json last.

    Args:
        config: the trial.
        folder: as for `answer_trial` and `score_trial`.
        report: told of each step and batch.
        places: where the benchmarks' data and the judges' replies lie.
        stop: asked after each step and batch whether to end there.
        **options: of `answer_trial`.

    Raises:
        StoppedError: it was asked to stop.
        TrialError: the trial cannot go on; the message is its reason.
    """
    answer_trial(config, folder=folder, report=report, places=places, stop=stop, **options)
    workers = current()
    return workers.broadcast_from_rank0(
        lambda: score_trial(
            config, folder=folder, answers=folder, report=report, places=places, stop=stop
        )
    )


def answer_trial(
    config: TrialConfig,
    *,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    untrained: bool = False,
    trained_model: Path | None = None,
    resume_from: Path | None = None,
    began: float | None = None,
    began_cpu: float | None = None,
    places: Places | None = None,
    earlier: Sequence[Path] = (),
    offered: AvailableCaches | None = None,
    stop: Callable[[], bool] = never,
    notes: Sequence[str] = (),
    share: Callable[[], None] = lambda: None,
) -> AnsweredTrial:
    """Train one model and have it answer its benchmarks; leave all in `folder`, answered.json last.

    Several processes that torch.distributed has joined (chip_core/workers.py) come here together
    and share training and answering; the first of them writes.

    Args:
        config: the trial.
        folder: where config.json, curves.jsonl, model/, responses/ and answered.json go.
        report: told of each step and batch.
        untrained: ask the base model as it is.
        trained_model: ask this trained model; do not train.
        resume_from: an earlier attempt's folder; its trained model is taken over, or its newest
            whole checkpoint gone on from.
        began: `time.perf_counter` when this process turned to the trial, before it imported this.
        began_cpu: `cpu_seconds` (chip_core/machine.py) at that time.
        places: where the benchmarks' data and the judges' replies lie.
        earlier: folders of earlier attempts; answers of the same weights are taken over.
        offered: the stores of reference passes that the training may read.
        stop: asked after each step and batch whether to end there; a training leaves a checkpoint.
        notes: what is to be said of this attempt beside what it says itself.
        share: called by all processes together, where those on other machines go on with what the
            first one left in `folder`.

    Raises:
        StoppedError: it was asked to stop.
        TrialError: the trial cannot go on; the message is its reason.
    """
    spans = Spans(began, began_cpu)
    report = stopped_by(stop, report)
    places = places or Places()
    workers = current()
    if not untrained and trained_model is None:  # scoring is one worker's work
        _check_workers(config, workers)
    lacking = problems(config.benchmarks, places)
    if lacking:
        raise TrialError("; ".join(lacking))  # now, and not after the training
    device = device_of(config)
    report(Progress(phase="start", done=0, total=1))
    loading.import_libraries(adapters=config.language_model == "lora")
    spans.end("imports")
    seed_process(config.seed, config.engine.threads)
    if workers.first:
        write_json(folder / CONFIG, config.model_dump(mode="json"))
    pairs, trained = None, None
    if not untrained and trained_model is None and resume_from is not None:
        left = resume_from
        why = workers.broadcast_from_rank0(lambda: broken_model(left / MODEL, config))
        if why is None:
            trained = workers.broadcast_from_rank0(lambda: take_over(left, folder))
        else:
            notes = [*notes, f"a trained model is not taken over, and trained again: {why}"]
            _log.warning(notes[-1])
        trained_model = None if trained is None else folder / MODEL
        if trained is not None:
            share()
    elif trained_model is not None:
        scored = trained_model
        workers.broadcast_from_rank0(lambda: require_model(scored, config))
    if not untrained and trained_model is None:
        # Data first: a bad row is told before a large model is loaded.
        pairs = checked_pairs(config, report)
        spans.end("check data")
    encodings = ENCODINGS.of(loading.content_key(config.model))
    model, processor = loading.load(
        config.model,
        attention=config.engine.attention,
        trained=trained_model,
        config=None if pairs is None else config,
    )
    parallelism: Parallelism = "single"
    if pairs is not None:
        model = attach(model, config)
        parallelism = choose_parallelism(config, model, device, workers)
        if device.type == "cuda":
            parts = workers.size if parallelism == "fsdp" else 1
            computed = offered is None or not offered.covers(config)
            needed = bytes_needed(model, config, reference=computed)
            check_room(needed // parts, room_for(model, device), config)
    # What is going to be spread is taken there whole too, if it can: checks are fast there.
    if parallelism != "fsdp" or weights_fit(model, device):
        model.to(device)
    spans.end("model")

    if pairs is not None:
        with Trainer(
            config,
            model=model,
            processor=processor,
            pairs=pairs,
            folder=folder,
            compute=Compute(device=device, workers=workers, parallelism=parallelism),
            caches=offered,
            encodings=encodings,
        ) as trainer:
            done = trainer.train(
                on_step=lambda step, total, figures: report(
                    Progress(phase="train", done=step, total=total, figures=figures)
                ),
                resume_from=resume_from,
                earlier=earlier,
                stop=stop,
            )
        del trainer  # the optimizer's state and the reference go with it
        save_model(model, processor, folder / MODEL, config, write=workers.first)
        spans.end("train")
        spans.seconds["first_step"] = done.first_step
        trained = Trained(
            steps=done.steps,
            seconds=spans.seconds["train"],
            data={"pairs": len(pairs), "skipped": len(pairs.skipped), **done.cut},
            notes=[*notes, *done.notes],
            engine=done.engine,
            files=model_files(folder / MODEL) if workers.first else {},
            training=training_mark(config),
        )
        if workers.first:
            write_trained(folder, trained)
        workers.wait()
        for attempt in (folder, *earlier):
            remove_all(attempt)  # of the checkpoints: the model is there
        if parallelism == "fsdp":  # its weights are spread over the workers
            share()
            model, _ = loading.load(
                config.model, attention=config.engine.attention, trained=folder / MODEL
            )
            model.to(device)
            spans.end("model for scoring")
    elif trained is not None:
        spans.seconds["train"] = trained.seconds

    context = InferenceContext(
        model=model,
        processor=processor,
        weights=workers.broadcast_from_rank0(
            lambda: _weights(config, folder / MODEL if trained is not None else trained_model)
        ),
        folder=folder,
        places=places,
        batch_size=config.engine.generation_batch,
        encodings=encodings,
        bf16=config.model.dtype == "bf16",
        earlier=earlier,
        report=report,
        checkpoint_dir=_checkpoint_dir(
            config, folder / MODEL if trained is not None else trained_model
        ),
    )
    answers: dict[str, Answers] = {}
    evaluations: dict[str, Evaluation] = {}
    for side, benchmark in sides(config.benchmarks):
        key = f"{side}/{benchmark.name}"
        made = answer(context, side, benchmark)
        if isinstance(made, Answers):
            answers[key] = made
        else:
            evaluations[key] = made
        spans.end(f"answer {key}")
    told = [each.responses for each in answers.values()]
    told += [name for each in evaluations.values() for name in (each.scores, each.responses)]
    answered = AnsweredTrial(
        steps=0 if trained is None else trained.steps,
        answers=answers,
        evaluations=evaluations,
        seconds=spans.seconds,
        data={} if trained is None else trained.data,
        notes=[] if trained is None else trained.notes,
        engine={} if trained is None else trained.engine,
        cpu=spans.cpu,
        machine=machine_kind(device.type),
        files=workers.broadcast_from_rank0(lambda: hashes(folder, told)),
    )
    if workers.first:
        write_answered(folder, answered)
    return answered


def _check_workers(config: TrialConfig, workers: Workers) -> None:
    asked = config.engine.workers_per_trial
    if asked not in (1, workers.size):
        raise TrialError(
            f"engine.workers_per_trial is {asked}, and this trial has {workers.size}: run the "
            f"study on Ray, or `torchrun --nproc-per-node {asked} -m chip_core train`"
        )


def _weights(config: TrialConfig, trained_model: Path | None) -> str:
    """Return a mark of the weights that answer."""
    if trained_model is not None:
        return weights_mark(trained_model)
    return json.dumps(loading.identity(config.model), sort_keys=True)


def _checkpoint_dir(config: TrialConfig, trained_model: Path | None) -> Path | None:
    """Return a whole Hugging Face folder of the weights that answer, where there is one."""
    folder = trained_model or loading.local_folder(config.model.path)
    return None if folder is None or (folder / loading.ADAPTER_CONFIG).exists() else folder
