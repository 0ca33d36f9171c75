"""run_trial: the one door in. One model is trained with one configuration, and scored."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from chip_core.config import TrialConfig
from chip_core.errors import StoppedError, TrialError
from chip_core.evaluation.readiness import problems, sides
from chip_core.evaluation.run import Answering, evaluate
from chip_core.files import write_json
from chip_core.machine import cpu_seconds
from chip_core.machine import kind_of as machine_kind
from chip_core.models import loading
from chip_core.models.adapters import attach, save_model
from chip_core.models.memory import bytes_needed, check_room, room_for, weights_fit
from chip_core.places import Places
from chip_core.results import (
    CONFIG,
    CURVES,
    MODEL,
    Evaluation,
    Progress,
    TrialResult,
    hashes,
    write_result,
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
from chip_core.training.loop import never, train
from chip_core.training.parallel import Kind, kind_of
from chip_core.training.prepare import checked_pairs, device_of
from chip_core.training.store.passes import Offered
from chip_core.workers import Workers, current

_log = logging.getLogger(__name__)


def run_trial(
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
    offered: Offered | None = None,
    stop: Callable[[], bool] = never,
    notes: Sequence[str] = (),
    share: Callable[[], None] = lambda: None,
) -> TrialResult:
    """Train and score one model; leave everything in `folder`, result.json last.

    Several processes that torch.distributed has joined (chip_core/workers.py) come here together
    and share training and scoring; the first of them writes.

    Args:
        config: the trial.
        folder: where config.json, curves.jsonl, model/, scores/, responses/ and result.json go.
        report: told of each step and batch.
        untrained: score the base model as it is.
        trained_model: score this trained model; do not train.
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
    spans = _Spans(began, began_cpu)
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
        why = workers.from_first(lambda: broken_model(left / MODEL, config))
        if why is None:
            trained = workers.from_first(lambda: take_over(left, folder))
        else:
            notes = [*notes, f"a trained model is not taken over, and trained again: {why}"]
            _log.warning(notes[-1])
        trained_model = None if trained is None else folder / MODEL
        if trained is not None:
            share()
    elif trained_model is not None:
        scored = trained_model
        workers.from_first(lambda: require_model(scored, config))
    if not untrained and trained_model is None:
        # Data first: a bad row is told before a large model is loaded.
        pairs = checked_pairs(config, report)
        spans.end("check data")
    model, processor = loading.load(
        config.model,
        attention=config.engine.attention,
        trained=trained_model,
        config=None if pairs is None else config,
    )
    kind: Kind = "alone"
    if pairs is not None:
        model = attach(model, config)
        kind = kind_of(config, model, device, workers)
        if device.type == "cuda":
            parts = workers.size if kind == "fsdp" else 1
            computed = offered is None or not offered.covers(config)
            needed = bytes_needed(model, config, reference=computed)
            check_room(needed // parts, room_for(model, device), config)
    # What is going to be spread is taken there whole too, if it can: checks are fast there.
    if kind != "fsdp" or weights_fit(model, device):
        model.to(device)
    spans.end("model")

    if pairs is not None:
        done = train(
            config,
            model=model,
            processor=processor,
            pairs=pairs,
            folder=folder,
            on_step=lambda step, total, figures: report(
                Progress(phase="train", done=step, total=total, figures=figures)
            ),
            resume_from=resume_from,
            earlier=earlier,
            device=device,
            workers=workers,
            kind=kind,
            offered=offered,
            stop=stop,
        )
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
            for attempt in (folder, *earlier):
                remove_all(attempt)  # of the checkpoints: the model is there
        workers.wait()
        if kind == "fsdp":  # its weights are spread over the workers
            share()
            model, _ = loading.load(
                config.model, attention=config.engine.attention, trained=folder / MODEL
            )
            model.to(device)
            spans.end("model for scoring")
    elif trained is not None:
        spans.seconds["train"] = trained.seconds

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
        key = f"{side}/{benchmark.name}"
        evaluations[key] = evaluate(answering, side, benchmark)
        spans.end(f"score {key}")
    result = TrialResult(
        steps=0 if trained is None else trained.steps,
        evaluations=evaluations,
        seconds=spans.seconds,
        data={} if trained is None else trained.data,
        notes=[] if trained is None else trained.notes,
        engine={} if trained is None else trained.engine,
        cpu=spans.cpu,
        machine=machine_kind(device.type),
        files=workers.from_first(lambda: hashes(folder, _read_later(evaluations))),
    )
    if workers.first:
        write_result(folder, result)
    return result


def _read_later(evaluations: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield the files of a trial's folder that tables, figures and pages are made from."""
    yield from (CONFIG, CURVES)
    for evaluation in evaluations.values():
        yield from (evaluation.scores, evaluation.responses)


def stopped_by(
    stop: Callable[[], bool], report: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """Return what reports progress, and ends the work there where it is asked to.

    A training ends by itself, after a checkpoint that all its workers write.

    Raises:
        StoppedError: from what is returned.
    """

    def told(progress: Progress) -> None:
        report(progress)
        if progress.phase != "train" and stop():
            raise StoppedError(f"stopped in '{progress.phase}', {progress.done}/{progress.total}")

    return told


class _Spans:
    """Where a trial's time goes, one phase after the other."""

    def __init__(self, began: float | None, began_cpu: float | None) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._began = time.perf_counter() if began is None else began
        self._began_cpu = cpu_seconds() if began_cpu is None else began_cpu

    def end(self, phase: str) -> None:
        """End a phase; the next begins."""
        now, computed = time.perf_counter(), cpu_seconds()
        self.seconds[phase], self.cpu[phase] = now - self._began, computed - self._began_cpu
        self._began, self._began_cpu = now, computed


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


def _lies_in(config: TrialConfig, trained_model: Path | None) -> Path | None:
    """Return a whole Hugging Face folder of the weights that answer, where there is one."""
    folder = trained_model or loading.local_folder(config.model.path)
    return None if folder is None or (folder / loading.ADAPTER_CONFIG).exists() else folder
