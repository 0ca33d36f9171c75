"""One trial: train a model with one configuration, answer benchmarks with it, and score it.

`answer_trial` needs the model and its device, `score_trial` neither; `run_trial` does both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.data.encodings import ENCODINGS
from chip_core.data.preferences import Pairs
from chip_core.evaluation.generators import generator_problems, missing_requirements, open_generator
from chip_core.evaluation.generators.answering import (
    InferenceContext,
    generate_answers,
    generate_reference_answers,
)
from chip_core.evaluation.readiness import (
    find_benchmark_problems,
    find_ranker_problems,
    find_unmet_requirements,
    list_sides,
)
from chip_core.models import loading
from chip_core.models.adapters import attach_adapters, save_model
from chip_core.models.memory import (
    check_memory,
    estimate_required_bytes,
    get_available_bytes,
    has_room_for_weights,
)
from chip_core.models.parts import describe_unread_modules
from chip_core.pairs.rounds import Rounds, remove_round_models
from chip_core.reference_cache.reader import CacheReader
from chip_core.results import (
    CONFIG,
    MODEL,
    AnsweredTrial,
    Answers,
    Evaluation,
    Progress,
    TrialResult,
    hash_files,
    write_answered,
)
from chip_core.selection import kept_models
from chip_core.selection.rule import SELECTION, find_selection_problems, format_step_name
from chip_core.trained import (
    TrainedModel,
    adopt_model,
    check_model,
    compute_training_fingerprint,
    find_model_problem,
    get_weights_fingerprint,
    hash_model_files,
    hash_weights_content,
    write_trained,
)
from chip_core.training.batches import load_checked_pairs, resolve_device
from chip_core.training.checkpoint import remove_all
from chip_core.training.parallel import (
    SHARDED_PARALLELISMS,
    Compute,
    Parallelism,
    choose_parallelism,
    count_weight_shards,
    require_equal_machines,
)
from chip_core.training.trainer import Trainer
from chip_core.trial_context import TrialContext
from chip_core.trial_scoring import score_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_json
from chip_core.utils.machine import device_name as machine_kind
from chip_core.utils.seeding import seed_process
from chip_core.utils.workers import Workers, current_workers

_log = logging.getLogger(__name__)


def run_trial(config: TrialConfig, *, folder: Path, **options: Any) -> TrialResult:
    """Train and score one model; write everything to `folder`, result.json last.

    Args:
        config: the trial.
        folder: where everything is written.
        **options: further fields of `TrialContext`: `report`, `stop`, `resume_from`, …

    Raises:
        StoppedError: a stop was requested.
        TrialError: the trial cannot continue; the message is its reason.
    """
    context = TrialContext(folder=folder, **options)
    answer_trial(config, context)
    scoring = replace(context, began=None, began_cpu=None)
    return current_workers().wait_for_rank0(lambda: score_trial(config, scoring))


def answer_trial(config: TrialConfig, context: TrialContext) -> AnsweredTrial:
    """Train one model and answer its benchmarks with it; write everything, answered.json last.

    All processes that torch.distributed has joined (utils/workers.py) call this together and share
    training and answering; the first of them writes.

    Raises:
        StoppedError: a stop was requested.
        TrialError: the trial cannot continue; the message is its reason.
    """
    return _Attempt(config, context).run()


@dataclass(frozen=True, kw_only=True)
class _LoadedModel:
    """A model on its device, and how it is distributed over workers."""

    model: Any
    processor: Any
    parallelism: Parallelism = "single"


class _Attempt:
    """One attempt at a trial, until its model has answered."""

    def __init__(self, config: TrialConfig, context: TrialContext) -> None:
        self._timer = context.make_timer()
        self._config, self._context = config, context
        self._workers = current_workers()
        self._report = context.make_stopping_report()
        self._notes = list(context.notes)
        self._steps_before, self._data = 0, dict[str, int]()  # of rounds before the last one

    def run(self) -> AnsweredTrial:
        """Train, or reuse an earlier training; answer the benchmarks with the model."""
        config, context, folder = self._config, self._context, self._context.folder
        if context.trains:  # one worker scores
            _check_workers(config, self._workers)
            if unmet_problems := find_unmet_requirements(config):
                raise TrialError(unmet_problems[0])
        missing = find_benchmark_problems(config.benchmarks, context.data_paths)
        if not config.evaluation.in_process:
            missing += generator_problems(config.evaluation, config.benchmarks, config.model)
            missing += missing_requirements(config.evaluation)
        if context.trains and config.training.score_at:
            missing += find_selection_problems(config)
        if context.trains and config.pairs.rounds:
            missing += find_ranker_problems(config, context.data_paths)
        if missing:
            raise TrialError("; ".join(missing))  # before the training, not after it
        self._device = resolve_device(config)
        self._report(Progress(phase="start", done=0, total=1))
        loading.import_libraries(adapters=config.has_adapters)
        self._timer.end("imports")
        seed_process(config.seed, config.engine.threads)
        if self._workers.is_main:
            write_json(folder / CONFIG, config.model_dump(mode="json"))
        trained, trained_model = self._reuse_training()
        trains, pairs = context.trains and trained is None, None
        if trains and not config.pairs.rounds:
            # Data first: a bad row is reported before a large model is loaded.
            pairs = load_checked_pairs(config, self._report)
            self._timer.end("check data")
        self._encodings = ENCODINGS.for_model(loading.make_content_key(config.model))
        loaded = self._load_model(trained_model, train=trains)
        if trains:
            if config.pairs.rounds:
                pairs = self._run_rounds(loaded)
            assert pairs is not None
            loaded, trained = self._train(loaded, pairs)
            trained_model = folder / MODEL
        elif trained is not None:
            self._timer.seconds["train"] = trained.seconds
        if trained is not None and trained.kept:
            loaded, trained = self._pick(loaded, trained)
        return self._answer_benchmarks(loaded, trained, trained_model)

    def _reuse_training(self) -> tuple[TrainedModel | None, Path | None]:
        """Return the reused training of an earlier attempt, and the trained model that answers.

        None if this attempt trains, or evaluates the base model.
        """
        config, context = self._config, self._context
        if context.trained_model is not None:
            trained_model = context.trained_model
            self._workers.broadcast_from_rank0(lambda: check_model(trained_model, config))
            return None, trained_model
        if not context.trains or context.resume_from is None:
            return None, None
        resumed_folder = context.resume_from

        def problem() -> str | None:
            kept_models.keep_only_picked(resumed_folder)
            return find_model_problem(resumed_folder / MODEL, config)

        reason = self._workers.broadcast_from_rank0(problem)
        if reason is not None:
            self._notes.append(f"a trained model is not reused, and trained again: {reason}")
            _log.warning(self._notes[-1])
            return None, None
        trained = self._workers.broadcast_from_rank0(
            lambda: adopt_model(resumed_folder, context.folder)
        )
        if trained is None:
            return None, None
        context.share()
        return trained, context.folder / MODEL

    def _load_model(self, trained_model: Path | None, *, train: bool) -> _LoadedModel:
        """Load the model that is trained or that answers, and move it to its device."""
        empty = self._load_empty() if train else None
        if empty is None or empty.parallelism not in SHARDED_PARALLELISMS:
            loaded = self._load_full(trained_model, empty, train=train)
        else:
            received: list[_LoadedModel] = []

            def load_or_receive() -> None:
                first = self._workers.is_main
                received.append(
                    self._load_full(trained_model, empty, train=True) if first else empty
                )

            # workers that wait for the first one receive its error
            self._workers.gather_results(load_or_receive)
            (loaded,) = received
        self._timer.end("model")
        return loaded

    def _load_empty(self) -> _LoadedModel | None:
        """Return the model without its weights if it may be sharded, else None."""
        config, device = self._config, self._device
        requested = config.engine.parallel
        may_shard = requested in SHARDED_PARALLELISMS or (
            requested == "auto" and device.type == "cuda"
        )
        if self._workers.is_single or not may_shard or config.model.quantize != "none":
            return None
        model, processor = loading.load_empty(config.model, attention=config.engine.attention)
        model = attach_adapters(model, config)
        parallelism = choose_parallelism(config, model, device, self._workers)
        self._check_memory(model, parallelism)
        return _LoadedModel(model=model, processor=processor, parallelism=parallelism)

    def _load_full(
        self, trained_model: Path | None, empty: _LoadedModel | None, *, train: bool
    ) -> _LoadedModel:
        """Load the model with all of its weights; `empty` comes from `_load_empty`."""
        config, device = self._config, self._device
        model, processor = loading.load(
            config.model,
            attention=config.engine.attention,
            trained=trained_model,
            config=config if train else None,
        )
        parallelism: Parallelism = "single"
        if train:
            model = attach_adapters(model, config)
            note = describe_unread_modules(model, config)
            self._notes += [] if note is None else [note]
            if empty is None:
                parallelism = choose_parallelism(config, model, device, self._workers)
                self._check_memory(model, parallelism)
            else:
                parallelism = empty.parallelism
        # A model that will be sharded is moved there whole too, if it fits: checks are fast there.
        if parallelism not in SHARDED_PARALLELISMS or has_room_for_weights(model, device):
            model.to(device)
        return _LoadedModel(model=model, processor=processor, parallelism=parallelism)

    def _check_memory(self, model: Any, parallelism: Parallelism) -> None:
        """Check that this worker's share of a training fits its device."""
        config, device = self._config, self._device
        if device.type != "cuda":
            return
        shards = count_weight_shards(parallelism, self._workers)
        caches = self._context.caches
        is_computed = caches is None or not caches.covers(config)
        required = estimate_required_bytes(model, config, reference=is_computed)
        check_memory(required // shards, get_available_bytes(model, device), config)

    def _run_rounds(self, loaded: _LoadedModel) -> Pairs:
        """Train the model through all rounds but the last; return the last one's pairs."""
        if not self._workers.is_single:
            raise TrialError(
                f"pairs.rounds: one worker samples a model, but there are {self._workers.size}"
            )
        rounds = Rounds(
            config=self._config,
            context=self._context,
            device=self._device,
            model=loaded.model,
            processor=loaded.processor,
            report=self._report,
            timer=self._timer,
        )
        pairs = rounds.run_rounds()
        self._steps_before, self._data = rounds.steps, {"sampled": rounds.sampled}
        self._notes += rounds.notes
        return pairs

    def _train(self, loaded: _LoadedModel, pairs: Pairs) -> tuple[_LoadedModel, TrainedModel]:
        """Train the model and save it; return the model that answers and the training's record."""
        config, context, workers = self._config, self._context, self._workers
        folder = context.folder
        parallelism, steps_before = loaded.parallelism, self._steps_before
        with Trainer(
            config,
            model=loaded.model,
            processor=loaded.processor,
            pairs=pairs,
            folder=folder,
            compute=Compute(device=self._device, workers=workers, parallelism=parallelism),
            caches=None if context.caches is None else CacheReader(context.caches),
            encodings=self._encodings,
        ) as trainer:
            scored_steps = config.training.scored_steps(trainer.batches.steps)
            can_resume = self._can_resume(scored_steps[:-1])
            result = trainer.train(
                on_step=lambda step, total, figures: self._report(
                    Progress(
                        phase="train",
                        done=steps_before + step,
                        total=steps_before + total,
                        figures=figures,
                    )
                ),
                resume_from=context.resume_from if can_resume else None,
                earlier=context.earlier if can_resume else (),
                stop=context.stop,
                keep=lambda step: self._save_kept_model(step, loaded),
            )
        del trainer  # frees the optimizer's state and the reference
        save_model(loaded.model, loaded.processor, folder / MODEL, config, write=workers.is_main)
        if workers.is_main:
            kept_models.move_kept_models(folder, scored_steps[:-1])
        self._timer.end("train")
        self._timer.seconds["first_step"] = result.first_step
        trained = TrainedModel(
            steps=steps_before + result.steps,
            seconds=self._timer.seconds["train"],
            data={"pairs": len(pairs), "skipped": len(pairs.skipped), **result.cut, **self._data},
            notes=[*self._notes, *result.notes],
            engine=result.engine,
            files=hash_model_files(folder / MODEL) if workers.is_main else {},
            kept=list(scored_steps),
            training=compute_training_fingerprint(config),
        )
        if workers.is_main:
            write_trained(folder, trained)
        workers.barrier()
        for attempt in (folder, *context.earlier):
            remove_all(attempt)  # of the checkpoints: the model is saved
            kept_models.remove_all(attempt)
        remove_round_models(folder)
        if parallelism not in SHARDED_PARALLELISMS:
            return loaded, trained
        context.share()  # its weights are sharded over the workers
        model, _ = loading.load(
            config.model, attention=config.engine.attention, trained=folder / MODEL
        )
        model.to(self._device)
        self._timer.end("model for scoring")
        return _LoadedModel(model=model, processor=loaded.processor), trained

    def _save_kept_model(self, step: int, loaded: _LoadedModel) -> None:
        """Save the model after a step; all workers call this together."""
        folder = kept_models.make_kept_folder(self._context.folder, step)
        training = compute_training_fingerprint(self._config)
        if self._workers.broadcast_from_rank0(lambda: kept_models.is_complete(folder, training)):
            return  # an earlier attempt saved it
        save_model(
            loaded.model, loaded.processor, folder, self._config, write=self._workers.is_main
        )
        if self._workers.is_main:
            kept_models.write_note(folder, training)
        self._workers.barrier()

    def _can_resume(self, steps: Sequence[int]) -> bool:
        """Return whether earlier checkpoints can be used; all models kept until then must exist."""
        context, first = self._context, self._context.resume_from
        if first is None:
            return False
        attempts = list(dict.fromkeys([first, *context.earlier]))
        training = compute_training_fingerprint(self._config)
        missing_step = self._workers.broadcast_from_rank0(
            lambda: kept_models.adopt_kept_models(attempts, context.folder, steps, training)
        )
        if missing_step is not None:
            self._notes.append(
                f"trained from the start: the model kept after step {missing_step} is missing"
            )
        return missing_step is None

    def _pick(
        self, loaded: _LoadedModel, trained: TrainedModel
    ) -> tuple[_LoadedModel, TrainedModel]:
        """Answer `select` with every kept model; keep the one that the rule picks."""
        self._context.share()  # each worker reads the models
        if self._device.type == "cuda":
            loaded.model.to("cpu")
        picker = kept_models.Picker(
            config=self._config,
            context=self._context,
            device=self._device,
            make_context=partial(self._inference_context, loaded.processor),
            report=self._report,
            timer=self._timer,
        )
        model, trained = picker.pick(trained)
        return replace(loaded, model=model, parallelism="single"), trained

    def _inference_context(
        self,
        processor: Any,
        model: Any,
        weights: str,
        *,
        folder: Path,
        earlier: Sequence[Path],
        model_folder: Path | None,
    ) -> InferenceContext:
        """Return the inference context of a model and of the folder for its answers."""
        config = self._config
        return InferenceContext(
            model=model,
            processor=processor,
            weights=weights,
            folder=folder,
            data_paths=self._context.data_paths,
            batch_size=config.engine.generation_batch,
            encodings=self._encodings,
            bf16=config.model.dtype == "bf16",
            earlier=earlier,
            report_progress=self._report,
            checkpoint_dir=_find_checkpoint_dir(config, model_folder),
            parity=config.evaluation.parity,
            base=config.model,
            trained=model_folder,
        )

    def _answer_benchmarks(
        self, loaded: _LoadedModel, trained: TrainedModel | None, trained_model: Path | None
    ) -> AnsweredTrial:
        """Answer the benchmarks with the model; write its answers, answered.json last."""
        config, folder, workers = self._config, self._context.folder, self._workers
        weights, former_weights = workers.broadcast_from_rank0(
            lambda: _identify_weights(config, trained_model)
        )
        context = replace(
            self._inference_context(
                loaded.processor,
                loaded.model,
                weights,
                folder=folder,
                earlier=self._context.earlier,
                model_folder=trained_model,
            ),
            former_weights=former_weights,
        )
        if trained is not None and trained.picked:  # it has already answered `select`
            selection_folder = Path(SELECTION, format_step_name(trained.picked["step"]))
            select_folders = [
                attempt / selection_folder for attempt in (folder, *self._context.earlier)
            ]
            context = replace(context, earlier=[*select_folders, *context.earlier])
        answers: dict[str, Answers] = {}
        evaluations: dict[str, Evaluation] = {}
        with open_generator(config.evaluation, folder, self._context.server) as generator:
            context = replace(context, generator=generator)
            for side, benchmark in list_sides(config.benchmarks):
                generate_reference_answers(context, side, benchmark)
            for side, benchmark in list_sides(config.benchmarks):
                key = f"{side}/{benchmark.name}"
                result = generate_answers(context, side, benchmark)
                if isinstance(result, Answers):
                    answers[key] = result
                else:
                    evaluations[key] = result
                self._timer.end(f"answer {key}")
        result_files = [entry.responses for entry in answers.values()]
        result_files += [
            name for entry in evaluations.values() for name in (entry.scores, entry.responses)
        ]
        answered = AnsweredTrial(
            steps=0 if trained is None else trained.steps,
            answers=answers,
            evaluations=evaluations,
            seconds=self._timer.seconds,
            data={} if trained is None else trained.data,
            notes=[] if trained is None else trained.notes,
            engine={} if trained is None else trained.engine,
            picked={} if trained is None else trained.picked,
            cpu=self._timer.cpu,
            machine=machine_kind(self._device.type),
            files=workers.broadcast_from_rank0(lambda: hash_files(folder, result_files)),
        )
        if workers.is_main:
            write_answered(folder, answered)
        return answered


def _check_workers(config: TrialConfig, workers: Workers) -> None:
    requested = config.engine.workers_per_trial
    if requested not in (1, workers.size):
        raise TrialError(
            f"engine.workers_per_trial is {requested}, but this trial has {workers.size}: run the "
            f"study on Ray, or `torchrun --nproc-per-node {requested} -m chip_core train`"
        )
    if config.engine.parallel == "hsdp":
        require_equal_machines(workers)  # before anything is read


def _identify_weights(config: TrialConfig, trained_model: Path | None) -> tuple[str, list[str]]:
    """Return an identifier of the weights that answer, and those of earlier versions for them."""
    if trained_model is not None:
        return hash_weights_content(trained_model), [get_weights_fingerprint(trained_model)]
    return loading.make_base_weights_id(config.model), []


def _find_checkpoint_dir(config: TrialConfig, trained_model: Path | None) -> Path | None:
    """Return a complete Hugging Face folder of the weights that answer, if there is one."""
    folder = trained_model or loading.find_local_folder(config.model.path)
    return None if folder is None or (folder / loading.ADAPTER_CONFIG).exists() else folder
