"""A model answers a benchmark's questions; what it says is left on disk, and is not scored here."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig
from chip_core.config.paths import DataPaths
from chip_core.data.encodings import Encodings
from chip_core.evaluation.inference import Decoder, make_batches
from chip_core.evaluation.inference.answer_files import (
    AnswerFile,
    answers_fingerprint,
    previous_answers,
)
from chip_core.evaluation.inference.external import run_external
from chip_core.evaluation.items import asking_identity, decoding_of, find_benchmark, select_items
from chip_core.evaluation.scoring import as_trial_error, file_name, write_scores
from chip_core.evaluation.task import Benchmark, ExternalBenchmark, Item, Side
from chip_core.results import Answers, Evaluation, Progress
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_atomically
from chip_core.utils.seeding import derived_seed
from chip_core.utils.workers import current_workers

_CHECKED = 16  # answers made again alone in bf16


@dataclass(frozen=True, kw_only=True)
class InferenceContext:
    """A model that answers, and where what it says goes."""

    model: Any
    processor: Any
    weights: str  # a mark of the weights: answers of others are not taken over
    folder: Path  # gets answers/, responses/ and scores/
    places: DataPaths
    batch_size: int = 64  # items answered together
    encodings: Encodings | None = None  # of the same processor, kept by this process
    bf16: bool = False
    earlier: Sequence[Path] = ()  # folders of attempts whose answers are taken over
    report: Callable[[Progress], None] = lambda progress: None
    checkpoint_dir: Path | None = None  # a Hugging Face folder of the whole model, if there is one


def answer(
    context: InferenceContext, side: Side, settings: BenchmarkConfig
) -> Answers | Evaluation:
    """Ask a model a benchmark's questions; leave its answers in `responses/`.

    On several workers (torch.distributed) each answers its share; the first writes, and all of
    them return the same.

    Returns:
        the answers, which `score_answers` scores without a model; the figures, where a program of
        the benchmark's own asked and scored.

    Raises:
        TrialError: something that the benchmark needs is not there.
    """
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        if isinstance(benchmark, ExternalBenchmark):
            asker = benchmark
            return current_workers().broadcast_from_rank0(
                lambda: _by_itself(context, side, settings, asker)
            )
        items, _ = select_items(side, settings, benchmark, context.places)
    if not items:
        raise TrialError(f"{settings.name}: there are no questions")
    began = time.perf_counter()
    responses, metadata = _responses(context, side, settings, benchmark, items)
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
    if current_workers().first:
        write_atomically(context.folder / lines, "".join(json.dumps(row) + "\n" for row in rows))
    return Answers(items=len(rows), responses=lines, metadata=metadata)


def _responses(
    context: InferenceContext,
    side: Side,
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    items: Sequence[Item],
) -> tuple[list[str], dict[str, Any]]:
    """Return a response for each item, and how they were made, on every worker."""
    workers = current_workers()
    decoding = decoding_of(settings, benchmark)
    decided_by = {
        **asking_identity(benchmark),
        "weights": context.weights,
        # Once by autocast over weights in fp32: those answers are others.
        "bf16": "held" if context.bf16 else False,
        "decoding": asdict(decoding),
    }
    fingerprint, name = answers_fingerprint(decided_by), file_name(side, settings.name)
    folders = [context.folder, *context.earlier]
    before = workers.broadcast_from_rank0(
        lambda: previous_answers(folders, name, fingerprint, items)
    )
    decoder = Decoder(
        context.model,
        context.processor,
        decoding,
        bf16=context.bf16,
        share_prefix=True,
        encodings=context.encodings,
        asked=(side, settings.name, str(context.places.data(settings.name)), settings.protocol),
    )

    def own_share() -> tuple[dict[str, str], tuple[int, int], list[str]]:
        """Answer this worker's share; return it, how much bf16 moved, and what is to be said."""
        left = [item for item in items if item.id not in before]
        batches = make_batches(
            left, size=context.batch_size, worker=workers.rank, workers=workers.size
        )
        clock = _Clock(context.report, f"answer {settings.name}", len(items), len(before))
        made: dict[str, str] = {}
        with AnswerFile(context.folder, name, fingerprint, workers.rank) as file:
            if workers.first:
                file.add((item, before[item.id]) for item in items if item.id in before)
            for batch in batches:
                answers = list(zip(batch.items, decoder.answers(batch), strict=True))
                file.add(answers)
                made.update((item.id, text) for item, text in answers)
                clock.tell(len(made), share=workers.size)
        moved = (0, 0)
        if context.bf16 and workers.first:
            moved = _moved(decoder, [item for item in items if item.id in made], made)
        return made, moved, decoder.notes

    shares = workers.each(own_share)
    answers = dict(before)
    for made, _, _ in shares:
        answers.update(made)
    metadata: dict[str, Any] = {}
    checked, differ = shares[0][1]
    if checked:
        metadata["bf16"] = {"checked": checked, "differ": differ}
    notes = list(dict.fromkeys(note for _, _, said in shares for note in said))
    if notes:
        metadata["notes"] = notes
    if before:
        metadata["taken_over"] = len(before)
    return [answers[item.id] for item in items], metadata


class _Clock:
    """Tells progress with items a second and the seconds left."""

    def __init__(
        self, report: Callable[[Progress], None], phase: str, total: int, before: int
    ) -> None:
        self._report, self._phase, self._total, self._before = report, phase, total, before
        self._began = time.perf_counter()
        report(Progress(phase=phase, done=before, total=total))

    def tell(self, made: int, *, share: int) -> None:
        """Say how far it is; the other workers are taken to be as far as this one."""
        done = min(self._before + made * share, self._total)
        rate = max(done - self._before, 1) / max(time.perf_counter() - self._began, 1e-9)
        figures = {"items_per_second": rate, "seconds_left": (self._total - done) / rate}
        self._report(Progress(phase=self._phase, done=done, total=self._total, figures=figures))


def _moved(decoder: Decoder, items: Sequence[Item], made: Mapping[str, str]) -> tuple[int, int]:
    """Answer some items again, alone; return how many, and how many answers are others.

    In bf16 an answer depends on what it is made together with.
    """
    draw = random.Random(derived_seed("bf16"))
    again = draw.sample(list(items), min(_CHECKED, len(items)))
    return len(again), sum(decoder.alone(item) != made[item.id] for item in again)


def _by_itself(
    context: InferenceContext, side: Side, settings: BenchmarkConfig, benchmark: ExternalBenchmark
) -> Evaluation:
    """Let the benchmark's own program ask the model."""
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
    write_atomically(context.folder / lines, "")  # they are the program's
    return write_scores(context.folder, side, settings, benchmark, found.scored, found.metadata)
