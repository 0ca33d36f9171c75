"""One model, one benchmark: questions, answers, figures, and what is left on disk."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.benchmark_config import BenchmarkConfig
from chip_core.errors import TrialError, UserError
from chip_core.evaluation.answer_files import AnswerFile, answers_mark, made_before
from chip_core.evaluation.asked import asked_items, asking_identity, decoding_of, find_benchmark
from chip_core.evaluation.by_itself import ask_by_itself
from chip_core.evaluation.generation import Decoder, make_batches
from chip_core.evaluation.resources import open_resources
from chip_core.evaluation.scorers.base import Answer, Scored
from chip_core.evaluation.task import AsksByItself, Benchmark, Item, Side, metric_name
from chip_core.evaluation.unreadable import counts
from chip_core.files import write_atomically, write_json
from chip_core.places import Places
from chip_core.results import Evaluation, Progress
from chip_core.seeding import derived_seed
from chip_core.workers import current

_CHECKED = 16  # answers made again alone in bf16


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A model that answers, and where what it says goes."""

    model: Any
    processor: Any
    weights: str  # a mark of the weights: answers of others are not taken over
    folder: Path  # gets answers/, responses/ and scores/
    places: Places
    batch_size: int = 64  # items answered together
    bf16: bool = False
    earlier: Sequence[Path] = ()  # folders of attempts whose answers are taken over
    report: Callable[[Progress], None] = lambda progress: None
    checkpoint_dir: Path | None = (
        None  # a whole Hugging Face folder of the model, where there is one
    )


def evaluate(answering: Answering, side: Side, settings: BenchmarkConfig) -> Evaluation:
    """Ask a model a benchmark's questions and score its answers.

    On several workers (torch.distributed) each answers its share; the first scores, and all of
    them return the same.

    Raises:
        TrialError: something that the benchmark needs is not there, or its judge does not answer.
    """
    with _told(settings.name):
        benchmark = find_benchmark(settings.name)
        if isinstance(benchmark, AsksByItself):
            asker = benchmark
            return current().broadcast_from_rank0(
                lambda: _by_itself(answering, side, settings, asker)
            )
        items, whole = asked_items(side, settings, benchmark, answering.places)
    if not items:
        raise TrialError(f"{settings.name}: there are no questions")
    began = time.perf_counter()
    responses, how = _responses(answering, side, settings, benchmark, items)
    how["seconds"] = round(time.perf_counter() - began, 3)
    if len(items) < whole:
        how["limit"], how["of"] = len(items), whole
    if settings.half is not None:
        how["half"] = settings.half

    def scored() -> Evaluation:
        with _told(settings.name):
            return _scored(answering, side, settings, benchmark, items, responses, how)

    return current().broadcast_from_rank0(scored)


def file_name(side: Side, benchmark: str) -> str:
    """Return the name that a benchmark's files begin with."""
    return f"{side}-{re.sub(r'[^A-Za-z0-9_.-]', '.', benchmark)}"


def _responses(
    answering: Answering,
    side: Side,
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    items: Sequence[Item],
) -> tuple[list[str], dict[str, Any]]:
    """Return a response for each item, and how they were made, on every worker."""
    workers = current()
    decoding = decoding_of(settings, benchmark)
    decided_by = {
        **asking_identity(benchmark),
        "weights": answering.weights,
        "bf16": answering.bf16,
        "decoding": asdict(decoding),
    }
    mark, name = answers_mark(decided_by), file_name(side, settings.name)
    folders = [answering.folder, *answering.earlier]
    before = workers.broadcast_from_rank0(lambda: made_before(folders, name, mark, items))
    decoder = Decoder(
        answering.model, answering.processor, decoding, bf16=answering.bf16, share_prefix=True
    )

    def own_share() -> tuple[dict[str, str], tuple[int, int], list[str]]:
        """Answer this worker's share; return it, how much bf16 moved, and what is to be said."""
        left = [item for item in items if item.id not in before]
        batches = make_batches(
            left, size=answering.batch_size, worker=workers.rank, workers=workers.size
        )
        clock = _Clock(answering.report, f"score {settings.name}", len(items), len(before))
        made: dict[str, str] = {}
        with AnswerFile(answering.folder, name, mark, workers.rank) as file:
            if workers.first:
                file.add((item, before[item.id]) for item in items if item.id in before)
            for batch in batches:
                answers = list(zip(batch.items, decoder.answers(batch), strict=True))
                file.add(answers)
                made.update((item.id, text) for item, text in answers)
                clock.tell(len(made), share=workers.size)
        moved = (0, 0)
        if answering.bf16 and workers.first:
            moved = _moved(decoder, [item for item in items if item.id in made], made)
        return made, moved, decoder.notes

    shares = workers.each(own_share)
    answers = dict(before)
    for made, _, _ in shares:
        answers.update(made)
    how: dict[str, Any] = {}
    checked, differ = shares[0][1]
    if checked:
        how["bf16"] = {"checked": checked, "differ": differ}
    notes = list(dict.fromkeys(note for _, _, said in shares for note in said))
    if notes:
        how["notes"] = notes
    if before:
        how["taken_over"] = len(before)
    return [answers[item.id] for item in items], how


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


def _scored(
    answering: Answering,
    side: Side,
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    items: Sequence[Item],
    responses: Sequence[str],
    how: dict[str, Any],
) -> Evaluation:
    """Score the answers and leave scores and responses on disk."""
    phase = f"judge {settings.name}"
    resources = open_resources(
        settings,
        benchmark.needs_of(items),
        answering.places,
        only=frozenset(item.id for item in items) if "limit" in how else None,
        on_reply=lambda done, total: answering.report(
            Progress(phase=phase, done=done, total=total)
        ),
    )
    answers = [
        Answer(item=item.id, response=text, fields=item.fields)
        for item, text in zip(items, responses, strict=True)
    ]
    found: Scored = benchmark.score(
        answers,
        data=answering.places.data(settings.name),
        protocol=settings.protocol,
        resources=resources,
    )
    if resources.judge is not None:
        how["judge"] = _judge(resources.judge)
    how |= _named(similarity=resources.similarity, tagger=resources.tagger)
    rows = [
        {
            "item": item.id,
            "prompt": item.prompt,
            "response": text,
            "truth": benchmark.truth(item),
        }
        for item, text in zip(items, responses, strict=True)
    ]
    return _left(answering, side, settings, benchmark, found, how, rows)


def _by_itself(
    answering: Answering, side: Side, settings: BenchmarkConfig, benchmark: AsksByItself
) -> Evaluation:
    """Let the benchmark's own program ask the model."""
    phase = f"score {settings.name}"
    answering.report(Progress(phase=phase, done=0, total=1))
    found = ask_by_itself(
        benchmark,
        settings,
        model=answering.model,
        processor=answering.processor,
        checkpoint_dir=answering.checkpoint_dir,
        folder=answering.folder,
        batch_size=answering.batch_size,
    )
    answering.report(Progress(phase=phase, done=1, total=1))
    return _left(answering, side, settings, benchmark, found.scored, found.how, [])


def _left(
    answering: Answering,
    side: Side,
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    found: Scored,
    how: dict[str, Any],
    rows: Sequence[Mapping[str, str]],
) -> Evaluation:
    """Leave scores and responses on disk."""
    how = {
        "protocol": settings.protocol,
        "scorer": benchmark.version,
        "n": found.n,
        "missing": found.missing,
        **how,
    }
    if found.unreadable:
        how["unreadable"] = counts(found.unreadable)
    name = file_name(side, settings.name)
    scores, lines = f"scores/{name}.json", f"responses/{name}.jsonl"
    write_json(
        answering.folder / scores,
        {
            "how": how,
            "metrics": [asdict(outcome) for outcome in found.metrics],
            "unreadable": [asdict(one) for one in found.unreadable],
        },
    )
    write_atomically(answering.folder / lines, "".join(json.dumps(row) + "\n" for row in rows))
    return Evaluation(
        metrics={
            metric_name(side, settings.name, outcome.name): outcome.value
            for outcome in found.metrics
            if outcome.value is not None
        },
        items=len(rows) or found.n,
        scores=scores,
        responses=lines,
        how=how,
    )


def _judge(judge: Any) -> dict[str, Any]:
    returned = sorted(getattr(judge, "returned", ()))
    send = getattr(judge, "send", None)
    return {
        "model": judge.model,
        **({"send": dict(send)} if send else {}),
        **({"returned": returned} if returned else {}),
    }


def _named(**tools: Any) -> dict[str, str]:
    """Return the names of the language tools that were used."""
    return {kind: tool.name for kind, tool in tools.items() if hasattr(tool, "name")}


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Make what is wrong with a benchmark's files the trial's reason."""
    try:
        yield
    except (UserError, ValueError) as error:
        text = str(error)
        raise TrialError(text if name in text else f"{name}: {text}") from None
