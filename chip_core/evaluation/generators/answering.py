"""Generate a model's answers to a benchmark's questions and store them; scoring is elsewhere."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths, ParityConfig
from chip_core.config.trial import ModelConfig
from chip_core.data.encodings import EncodingCache
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    locate_base,
)
from chip_core.evaluation.generators.delivery import leave_device, save_merged_model
from chip_core.evaluation.generators.parity import (
    ParityAnswers,
    check_parity,
    compare_answers,
)
from chip_core.evaluation.generators.transformers import TransformersGenerator
from chip_core.evaluation.inference.answer_files import (
    AnswerFile,
    answers_fingerprint,
    read_stored_answers,
)
from chip_core.evaluation.items import (
    answering_identity,
    draw_items,
    find_benchmark,
    resolve_decoding,
    select_items,
)
from chip_core.evaluation.scoring import as_trial_error, file_name, write_scores
from chip_core.evaluation.task import (
    Benchmark,
    Decoding,
    ExternalBenchmark,
    Item,
    Response,
    Side,
)
from chip_core.models.adapters import disable_adapter, is_adapted
from chip_core.results import Answers, Evaluation, Progress
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_atomically
from chip_core.utils.workers import Workers, current_workers


@dataclass(frozen=True, kw_only=True)
class InferenceContext:
    """The model that answers, and where its answers are stored."""

    model: Any
    processor: Any
    weights: str  # an id unique to the weights: only their own answers are reused
    folder: Path  # gets answers/, responses/ and scores/
    data_paths: DataPaths
    batch_size: int = 64  # items answered together
    encodings: EncodingCache | None = None  # of the same processor, kept by this process
    bf16: bool = False
    earlier: Sequence[Path] = ()  # folders of attempts whose answers are reused
    report_progress: Callable[[Progress], None] = lambda progress: None
    checkpoint_dir: Path | None = None  # a Hugging Face folder of the whole model, if there is one
    #: ids of the same weights under which earlier builds stored answers
    former_weights: Sequence[str] = ()
    generator: Generator | None = None  # the engine that answers; None: transformers, in-process
    parity: ParityConfig = ParityConfig()  # how that engine is checked
    base: ModelConfig | None = None  # the untrained model, whose files an engine reads
    trained: Path | None = None  # the trained model's folder; None: the untrained model answers

    @property
    def answering_model(self) -> AnsweringModel:
        """The weights that answer."""
        return AnsweringModel(
            model=self.model,
            processor=self.processor,
            weights=self.weights,
            bf16=self.bf16,
            trained=self.trained,
            **({} if self.base is None else locate_base(self.base)),
        )


def generate_answers(
    context: InferenceContext, side: Side, settings: BenchmarkConfig
) -> Answers | Evaluation:
    """Generate a model's answers to a benchmark, and store them in `responses/`.

    With several workers (torch.distributed) each answers its share; the first one writes, and all
    of them return the same.

    Returns:
        the answers, which `score_answers` scores without a model; or the figures, if the
        benchmark's own program generated and scored the answers.

    Raises:
        TrialError: something that the benchmark needs is missing.
    """
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        if isinstance(benchmark, ExternalBenchmark):
            external = benchmark
            return current_workers().wait_for_rank0(
                lambda: _run_external(context, side, settings, external)
            )
        items, _ = select_items(side, settings, benchmark, context.data_paths)
    if not items:
        raise TrialError(f"{settings.name}: there are no questions")
    start = time.perf_counter()
    responses, metadata = _generate_responses(
        context, _QuestionSet(side=side, settings=settings, benchmark=benchmark, items=items)
    )
    metadata["seconds"] = round(time.perf_counter() - start, 3)
    rows = [
        {
            "item": item.id,
            "prompt": item.prompt,
            "response": text,
            "truth": benchmark.truth(item),
        }
        for item, text in zip(items, responses, strict=True)
    ]
    responses_file = f"responses/{file_name(side, settings.name)}.jsonl"
    if current_workers().is_main:
        write_atomically(
            context.folder / responses_file, "".join(json.dumps(row) + "\n" for row in rows)
        )
    return Answers(items=len(rows), responses=responses_file, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class _QuestionSet:
    """The selected questions of a benchmark."""

    side: Side
    settings: BenchmarkConfig
    benchmark: Benchmark
    items: Sequence[Item]

    @property
    def decoding(self) -> Decoding:
        """How its answers are generated."""
        return resolve_decoding(self.settings, self.benchmark)


@dataclass(frozen=True, kw_only=True)
class _GeneratedAnswers:
    """Answers by item id, with metadata on their generation."""

    answers: Mapping[str, Response]
    metadata: dict[str, Any]


def generate_reference_answers(
    context: InferenceContext, side: Side, settings: BenchmarkConfig
) -> None:
    """Compute and store transformers' answers with which another engine's answers are compared.

    An engine may need the device that the model is on, so this runs for all benchmarks first. It
    does nothing if transformers generates the answers.

    Raises:
        TrialError: as in `generate_answers`.
    """
    if context.generator is None:
        return
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        items, _ = select_items(side, settings, benchmark, context.data_paths)
    questions = _QuestionSet(side=side, settings=settings, benchmark=benchmark, items=items)
    current_workers().broadcast_from_rank0(lambda: _generate_reference(context, questions))


def _generate_reference(
    context: InferenceContext, questions: _QuestionSet
) -> tuple[list[Item], _GeneratedAnswers, _GeneratedAnswers | None]:
    """Return the sample, and transformers' answers to it: of the arm, and without its adapter."""
    name = questions.settings.name
    sample = draw_items("parity", name, questions.items, context.parity.items)
    sampled, phase = replace(questions, items=sample), f"measure {name}"
    generator = _make_transformers_generator(context, sampled)
    trained = _generate_missing(context, sampled, generator, phase)
    if not is_adapted(context.model):
        return sample, trained, None
    bare_context = replace(
        context, weights=f"{context.weights} without its adapter", former_weights=()
    )
    generator = _make_transformers_generator(context, sampled)
    with disable_adapter(context.model):
        bare = _generate_missing(bare_context, sampled, generator, f"{phase} bare")
    return sample, trained, bare


def _generate_responses(
    context: InferenceContext, questions: _QuestionSet
) -> tuple[list[str], dict[str, Any]]:
    """Return a response for each item, and their metadata, on every worker."""
    workers = current_workers()
    engine, phase = context.generator, f"answer {questions.settings.name}"
    if engine is None:
        generator = _make_transformers_generator(context, questions, workers)
        generated = _generate_missing(context, questions, generator, phase, workers)
    else:
        generated = workers.wait_for_rank0(
            lambda: _generate_with_engine(context, questions, engine, phase)
        )
    return [generated.answers[item.id].text for item in questions.items], generated.metadata


def _generate_with_engine(
    context: InferenceContext, questions: _QuestionSet, engine: Generator, phase: str
) -> _GeneratedAnswers:
    """Answer with an engine other than transformers, after its parity check."""
    name = questions.settings.name
    sample, trained, bare = _generate_reference(context, questions)
    sampled = replace(questions, items=sample)
    engine_answers = _generate_missing(context, sampled, engine, f"check {name}")
    parity = compare_answers(
        ParityAnswers(
            items=sample,
            measure=trained.answers,
            engine=engine_answers.answers,
            bare=None if bare is None else bare.answers,
        ),
        context.answering_model,
        questions.decoding,
        context.parity,
    )
    check_parity(parity, name, engine.label)
    generated = _generate_missing(context, questions, engine, phase)
    generated.metadata["generator"] = engine.label
    generated.metadata["parity"] = parity
    return generated


def _make_transformers_generator(
    context: InferenceContext, questions: _QuestionSet, workers: Workers | None = None
) -> TransformersGenerator:
    settings = questions.settings
    data = context.data_paths.benchmark_folder(settings.name)
    return TransformersGenerator(
        batch_size=context.batch_size,
        encodings=context.encodings,
        namespace=(questions.side, settings.name, str(data), settings.protocol),
        workers=workers,
    )


def _generate_missing(
    context: InferenceContext,
    questions: _QuestionSet,
    generator: Generator,
    phase: str,
    workers: Workers | None = None,
) -> _GeneratedAnswers:
    """Answer the items that have no stored answer, and store each new answer at once.

    Args:
        context: the model, and where answers are stored.
        questions: the questions.
        generator: the engine.
        phase: the name of the phase in progress reports.
        workers: the workers that share the items, all of which call this; None: this process alone.
    """
    workers, settings = workers or Workers(), questions.settings
    fingerprints = _compute_fingerprints(context, questions, generator)
    stored, own_ids = workers.broadcast_from_rank0(
        lambda: _load_stored(context, questions, fingerprints)
    )
    name, items = file_name(questions.side, settings.name), questions.items

    def answer_share() -> tuple[dict[str, Response], GenerationTiming]:
        missing = [item for item in items if item.id not in stored]
        reporter = _ProgressReporter(context.report_progress, phase, len(items), len(stored))
        generated: dict[str, Response] = {}

        def store_answers(answers: Sequence[tuple[Item, Response]]) -> None:
            file.add(answers)
            generated.update((item.id, response) for item, response in answers)
            reporter.report([response for _, response in answers], share=workers.size)

        with AnswerFile(context.folder, name, fingerprints[0], workers.rank) as file:
            if workers.is_main:
                file.add(
                    (item, stored[item.id])
                    for item in items
                    if item.id in stored and item.id not in own_ids
                )
            if not missing:
                return generated, GenerationTiming()
            timing = generator.answer(
                missing, context.answering_model, questions.decoding, store_answers
            )
        return generated, timing

    shares = workers.gather_results(answer_share)
    answers = dict(stored)
    for worker_share, _ in shares:
        answers.update(worker_share)
    new_responses = [response for worker_share, _ in shares for response in worker_share.values()]
    metadata = _build_metadata(
        [timing for _, timing in shares], answers, len(stored), questions.decoding
    )
    if new_responses:
        metadata["pace"] = _compute_rates([timing for _, timing in shares], new_responses)
    bf16_differences = getattr(generator, "bf16_differences", (0, 0))
    checked, differing = workers.broadcast_from_rank0(lambda: bf16_differences)
    if checked:
        metadata["bf16"] = {"checked": checked, "differ": differing}
    return _GeneratedAnswers(answers=answers, metadata=metadata)


def _compute_fingerprints(
    context: InferenceContext, questions: _QuestionSet, generator: Generator
) -> list[str]:
    """Return hashes of what decides answers besides the question: this build's, then others'."""
    decided_by = {
        **answering_identity(questions.benchmark),
        # It was once autocast over weights in fp32, which gives other answers.
        "bf16": "held" if context.bf16 else False,
        "decoding": asdict(questions.decoding),
    }
    if generator.identity:
        decided_by["generator"] = dict(generator.identity)
    weights = [context.weights, *context.former_weights]
    return [answers_fingerprint({**decided_by, "weights": weights_id}) for weights_id in weights]


def _load_stored(
    context: InferenceContext, questions: _QuestionSet, fingerprints: Sequence[str]
) -> tuple[dict[str, Response], set[str]]:
    """Return stored answers by item id, and the ids of those in the attempt's own file.

    A question has the same answer on both sides of a benchmark.
    """
    other_side: Side = "report" if questions.side == "select" else "select"
    file_prefix, other_prefix = (
        file_name(side, questions.settings.name) for side in (questions.side, other_side)
    )
    folders = [context.folder, *context.earlier]
    stored = read_stored_answers(
        folders, (file_prefix, other_prefix), fingerprints, questions.items
    )
    own_answers = read_stored_answers(
        [context.folder], (file_prefix,), fingerprints[:1], questions.items
    )
    return stored, set(own_answers)


def _build_metadata(
    timings: Sequence[GenerationTiming],
    answers: Mapping[str, Response],
    stored: int,
    decoding: Decoding,
) -> dict[str, Any]:
    """Return the metadata on the generation of answers."""
    metadata: dict[str, Any] = {}
    cut_flags = [response.cut for response in answers.values() if response.cut is not None]
    if any(cut_flags):
        metadata["cut"] = {
            "answers": sum(cut_flags),
            "of": len(cut_flags),
            "max_new_tokens": decoding.max_new_tokens,
        }
    notes = list(dict.fromkeys(note for timing in timings for note in timing.notes))
    if notes:
        metadata["notes"] = notes
    if stored:
        metadata["taken_over"] = stored
    return metadata


def _compute_rates(
    timings: Sequence[GenerationTiming], responses: Sequence[Response]
) -> dict[str, float]:
    """Return the rates of generation, and the share of time in which nothing was ready."""
    seconds = max(max(timing.seconds for timing in timings), 1e-9)
    rates = {"answers": len(responses), "answers_per_second": len(responses) / seconds}
    tokens = [response.tokens for response in responses if response.tokens is not None]
    if len(tokens) == len(responses):
        rates["tokens_per_second"] = sum(tokens) / seconds
    rates["waited"] = sum(timing.wait_seconds for timing in timings) / (seconds * len(timings))
    return {name: float(f"{value:.4g}") for name, value in rates.items()}


class _ProgressReporter:
    """Reports progress with items a second and the seconds left."""

    def __init__(
        self, report: Callable[[Progress], None], phase: str, total: int, stored: int
    ) -> None:
        self._report, self._phase, self._total, self._stored = report, phase, total, stored
        self._start = time.perf_counter()
        self._generated = self._tokens = 0
        report(Progress(phase=phase, done=stored, total=total))

    def report(self, responses: Sequence[Response], *, share: int) -> None:
        """Report progress, assuming that the other workers are as far as this one.

        Args:
            responses: the responses since the last call.
            share: the number of workers.
        """
        self._generated += len(responses)
        self._tokens += sum(response.tokens or 0 for response in responses)
        done = min(self._stored + self._generated * share, self._total)
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = max(done - self._stored, 1) / seconds
        figures = {"items_per_second": rate, "seconds_left": (self._total - done) / rate}
        if self._tokens:  # a server may not report them
            figures["tokens_per_second"] = self._tokens * share / seconds
        self._report(Progress(phase=self._phase, done=done, total=self._total, figures=figures))


def _run_external(
    context: InferenceContext, side: Side, settings: BenchmarkConfig, benchmark: ExternalBenchmark
) -> Evaluation:
    """Run the benchmark's own program on the model, which leaves its device to it meanwhile."""
    phase, start = f"answer {settings.name}", time.perf_counter()
    context.report_progress(Progress(phase=phase, done=0, total=1))
    merged_folder = context.folder / "whole-model"
    with leave_device(context.model) as device:
        try:
            if context.checkpoint_dir is None:
                save_merged_model(context.model, context.processor, merged_folder)
            scored, program_metadata = benchmark.ask(
                context.checkpoint_dir or merged_folder,
                folder=context.folder / "programs" / settings.name,
                batch_size=context.batch_size,
                device=device.type,
            )
        finally:
            shutil.rmtree(merged_folder, ignore_errors=True)
    metadata = {**program_metadata, "seconds": round(time.perf_counter() - start, 3)}
    context.report_progress(Progress(phase=phase, done=1, total=1))
    responses_file = f"responses/{file_name(side, settings.name)}.jsonl"
    write_atomically(context.folder / responses_file, "")  # the program has the responses
    return write_scores(context.folder, side, settings, benchmark, scored, metadata)
