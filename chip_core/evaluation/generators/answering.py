"""Generate a model's answers to a benchmark's questions and store them; scoring is elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.config.generator import ParityConfig
from chip_core.config.trial import ModelConfig
from chip_core.data.encodings import EncodingCache
from chip_core.evaluation.generators.base import AnsweringModel, Generator, Pace
from chip_core.evaluation.generators.parity import Answered, check, compare, draw_sample
from chip_core.evaluation.generators.transformers import TransformersGenerator
from chip_core.evaluation.inference.answer_files import (
    AnswerFile,
    answers_fingerprint,
    previous_answers,
)
from chip_core.evaluation.inference.external import run_external
from chip_core.evaluation.items import asking_identity, decoding_of, find_benchmark, select_items
from chip_core.evaluation.scoring import as_trial_error, file_name, write_scores
from chip_core.evaluation.task import (
    Benchmark,
    Decoding,
    ExternalBenchmark,
    Item,
    Response,
    Side,
)
from chip_core.models.adapters import is_adapted, without_adapter
from chip_core.models.loading import local_folder
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
    places: DataPaths
    batch_size: int = 64  # items answered together
    encodings: EncodingCache | None = None  # of the same processor, kept by this process
    bf16: bool = False
    earlier: Sequence[Path] = ()  # folders of attempts whose answers are reused
    report: Callable[[Progress], None] = lambda progress: None
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
        base = self.base
        folder = None if base is None else local_folder(base.path)
        return AnsweringModel(
            model=self.model,
            processor=self.processor,
            weights=self.weights,
            bf16=self.bf16,
            base="" if base is None else str(folder or base.path),
            revision=None if base is None or folder is not None else base.revision,
            trust_remote_code=base is not None and base.trust_remote_code,
            trained=self.trained,
        )


def answer(
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
            asker = benchmark
            return current_workers().wait_for_rank0(
                lambda: _by_itself(context, side, settings, asker)
            )
        items, _ = select_items(side, settings, benchmark, context.places)
    if not items:
        raise TrialError(f"{settings.name}: there are no questions")
    began = time.perf_counter()
    responses, metadata = _responses(
        context, _Questions(side=side, settings=settings, benchmark=benchmark, items=items)
    )
    metadata["seconds"] = round(time.perf_counter() - began, 3)
    rows = [
        {
            "item": item.id,
            "prompt": item.prompt,
            "response": text,
            "truth": benchmark.truth(item),
        }
        for item, text in zip(items, responses, strict=True)
    ]
    lines = f"responses/{file_name(side, settings.name)}.jsonl"
    if current_workers().is_main:
        write_atomically(context.folder / lines, "".join(json.dumps(row) + "\n" for row in rows))
    return Answers(items=len(rows), responses=lines, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """The selected questions of a benchmark."""

    side: Side
    settings: BenchmarkConfig
    benchmark: Benchmark
    items: Sequence[Item]

    @property
    def decoding(self) -> Decoding:
        """How its answers are generated."""
        return decoding_of(self.settings, self.benchmark)

    def only(self, items: Sequence[Item]) -> _Questions:
        """Return a copy with these items alone."""
        return replace(self, items=items)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Answers by item id, with metadata on their generation."""

    answers: Mapping[str, Response]
    metadata: dict[str, Any]


def measure(context: InferenceContext, side: Side, settings: BenchmarkConfig) -> None:
    """Compute and store transformers' answers with which another engine's answers are compared.

    An engine may need the device that the model is on, so this runs for all benchmarks first. It
    does nothing if transformers generates the answers.

    Raises:
        TrialError: as in `answer`.
    """
    if context.generator is None:
        return
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        items, _ = select_items(side, settings, benchmark, context.places)
    questions = _Questions(side=side, settings=settings, benchmark=benchmark, items=items)
    current_workers().broadcast_from_rank0(lambda: _measured(context, questions))


def _measured(
    context: InferenceContext, questions: _Questions
) -> tuple[list[Item], _Made, _Made | None]:
    """Return the sample, and transformers' answers to it: of the arm, and without its adapter."""
    sample = draw_sample(questions.settings.name, questions.items, context.parity)
    asked, phase = questions.only(sample), f"measure {questions.settings.name}"
    trained = _answered(context, asked, _transformers(context, asked), phase)
    if not is_adapted(context.model):
        return sample, trained, None
    without = replace(context, weights=f"{context.weights} without its adapter", former_weights=())
    with without_adapter(context.model):
        bare = _answered(without, asked, _transformers(context, asked), f"{phase} bare")
    return sample, trained, bare


def _responses(
    context: InferenceContext, questions: _Questions
) -> tuple[list[str], dict[str, Any]]:
    """Return a response for each item, and their metadata, on every worker."""
    workers = current_workers()
    engine, phase = context.generator, f"answer {questions.settings.name}"
    if engine is None:
        own = _transformers(context, questions, workers)
        made = _answered(context, questions, own, phase, workers)
    else:
        made = workers.wait_for_rank0(lambda: _by_engine(context, questions, engine, phase))
    return [made.answers[item.id].text for item in questions.items], made.metadata


def _by_engine(
    context: InferenceContext, questions: _Questions, engine: Generator, phase: str
) -> _Made:
    """Answer with an engine other than transformers, after its parity check."""
    name = questions.settings.name
    sample, trained, bare = _measured(context, questions)
    first = _answered(context, questions.only(sample), engine, f"check {name}")
    parity = compare(
        Answered(
            items=sample,
            measure=trained.answers,
            engine=first.answers,
            bare=None if bare is None else bare.answers,
        ),
        context.answering_model,
        questions.decoding,
        context.parity,
    )
    check(parity, name, engine.label)
    made = _answered(context, questions, engine, phase)
    made.metadata["generator"] = engine.label
    made.metadata["parity"] = parity
    return made


def _transformers(
    context: InferenceContext, questions: _Questions, workers: Workers | None = None
) -> TransformersGenerator:
    settings, data = questions.settings, context.places.benchmark_folder(questions.settings.name)
    return TransformersGenerator(
        batch_size=context.batch_size,
        encodings=context.encodings,
        asked=(questions.side, settings.name, str(data), settings.protocol),
        workers=workers,
    )


def _answered(
    context: InferenceContext,
    questions: _Questions,
    generator: Generator,
    phase: str,
    workers: Workers | None = None,
) -> _Made:
    """Answer the items that have no stored answer, and store each new answer at once.

    Args:
        context: the model, and where answers are stored.
        questions: the questions.
        generator: the engine.
        phase: the name of the phase in progress reports.
        workers: the workers that share the items, all of which call this; None: this process alone.
    """
    workers, settings = workers or Workers(), questions.settings
    marks = _marks(context, questions, generator)
    before, own = workers.broadcast_from_rank0(lambda: _before(context, questions, marks))
    name, items = file_name(questions.side, settings.name), questions.items

    def own_share() -> tuple[dict[str, Response], Pace]:
        left = [item for item in items if item.id not in before]
        clock = _Clock(context.report, phase, len(items), len(before))
        made: dict[str, Response] = {}

        def tell(answers: Sequence[tuple[Item, Response]]) -> None:
            file.add(answers)
            made.update((item.id, response) for item, response in answers)
            clock.tell([response for _, response in answers], share=workers.size)

        with AnswerFile(context.folder, name, marks[0], workers.rank) as file:
            if workers.is_main:
                file.add(
                    (item, before[item.id])
                    for item in items
                    if item.id in before and item.id not in own
                )
            pace = generator.answer(left, context.answering_model, questions.decoding, tell)
        return made, pace

    shares = workers.gather_results(own_share)
    answers = dict(before)
    for share, _ in shares:
        answers.update(share)
    made_now = [response for share, _ in shares for response in share.values()]
    metadata = _metadata([pace for _, pace in shares], answers, len(before), questions.decoding)
    if made_now:
        metadata["pace"] = _pace([pace for _, pace in shares], made_now)
    moved = getattr(generator, "moved", (0, 0))
    checked, differ = workers.broadcast_from_rank0(lambda: moved)
    if checked:
        metadata["bf16"] = {"checked": checked, "differ": differ}
    return _Made(answers=answers, metadata=metadata)


def _marks(context: InferenceContext, questions: _Questions, generator: Generator) -> list[str]:
    """Return hashes of what decides answers besides the question: this build's, then others'."""
    decided_by = {
        **asking_identity(questions.benchmark),
        # It was once autocast over weights in fp32, which gives other answers.
        "bf16": "held" if context.bf16 else False,
        "decoding": asdict(questions.decoding),
    }
    if generator.identity:
        decided_by["generator"] = dict(generator.identity)
    weights = [context.weights, *context.former_weights]
    return [answers_fingerprint({**decided_by, "weights": mark}) for mark in weights]


def _before(
    context: InferenceContext, questions: _Questions, marks: Sequence[str]
) -> tuple[dict[str, Response], set[str]]:
    """Return stored answers by item id, and the ids of those in the attempt's own file.

    A question has the same answer on both sides of a benchmark.
    """
    other: Side = "report" if questions.side == "select" else "select"
    here, there = (file_name(side, questions.settings.name) for side in (questions.side, other))
    folders = [context.folder, *context.earlier]
    found = previous_answers(folders, (here, there), marks, questions.items)
    own = previous_answers([context.folder], (here,), marks[:1], questions.items)
    return found, set(own)


def _metadata(
    paces: Sequence[Pace], answers: Mapping[str, Response], before: int, decoding: Decoding
) -> dict[str, Any]:
    """Return the metadata on the generation of answers."""
    metadata: dict[str, Any] = {}
    cut = [response.cut for response in answers.values() if response.cut is not None]
    if any(cut):
        metadata["cut"] = {
            "answers": sum(cut), "of": len(cut), "max_new_tokens": decoding.max_new_tokens
        }  # fmt: skip
    notes = list(dict.fromkeys(note for pace in paces for note in pace.notes))
    if notes:
        metadata["notes"] = notes
    if before:
        metadata["taken_over"] = before
    return metadata


def _pace(paces: Sequence[Pace], made: Sequence[Response]) -> dict[str, float]:
    """Return the rates of generation, and the share of time in which nothing was ready."""
    seconds = max(max(pace.seconds for pace in paces), 1e-9)
    found = {"answers": len(made), "answers_per_second": len(made) / seconds}
    tokens = [response.tokens for response in made if response.tokens is not None]
    if len(tokens) == len(made):
        found["tokens_per_second"] = sum(tokens) / seconds
    found["waited"] = sum(pace.waited for pace in paces) / (seconds * len(paces))
    return {name: float(f"{value:.4g}") for name, value in found.items()}


class _Clock:
    """Reports progress with items a second and the seconds left."""

    def __init__(
        self, report: Callable[[Progress], None], phase: str, total: int, before: int
    ) -> None:
        self._report, self._phase, self._total, self._before = report, phase, total, before
        self._began = time.perf_counter()
        self._made = self._tokens = 0
        report(Progress(phase=phase, done=before, total=total))

    def tell(self, made: Sequence[Response], *, share: int) -> None:
        """Report progress, assuming that the other workers are as far as this one.

        Args:
            made: the responses since the last call.
            share: the number of workers.
        """
        self._made += len(made)
        self._tokens += sum(response.tokens or 0 for response in made)
        done = min(self._before + self._made * share, self._total)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rate = max(done - self._before, 1) / seconds
        figures = {"items_per_second": rate, "seconds_left": (self._total - done) / rate}
        if self._tokens:  # a server may not report them
            figures["tokens_per_second"] = self._tokens * share / seconds
        self._report(Progress(phase=self._phase, done=done, total=self._total, figures=figures))


def _by_itself(
    context: InferenceContext, side: Side, settings: BenchmarkConfig, benchmark: ExternalBenchmark
) -> Evaluation:
    """Run the benchmark's own program on the model."""
    phase = f"answer {settings.name}"
    context.report(Progress(phase=phase, done=0, total=1))
    found = run_external(
        benchmark,
        settings,
        model=context.model,
        processor=context.processor,
        checkpoint_dir=context.checkpoint_dir,
        folder=context.folder,
        batch_size=context.batch_size,
    )
    context.report(Progress(phase=phase, done=1, total=1))
    lines = f"responses/{file_name(side, settings.name)}.jsonl"
    write_atomically(context.folder / lines, "")  # the program has the responses
    return write_scores(context.folder, side, settings, benchmark, found.scored, found.metadata)
