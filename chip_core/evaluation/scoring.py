"""Score answers stored on disk, by a benchmark's rules and judges, without a model or torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation.items import find_benchmark, open_resources, select_items
from chip_core.evaluation.scorer import Answer, ScoreResult
from chip_core.evaluation.task import Benchmark, Item, Side, metric_name
from chip_core.evaluation.unreadable import count_unreadable
from chip_core.results import Answers, Evaluation, Progress
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import read_records, write_json


def file_name(side: Side, benchmark: str) -> str:
    """Return the prefix of the names of a benchmark's files."""
    return f"{side}-{re.sub(r'[^A-Za-z0-9_.-]', '.', benchmark)}"


def score_answers(
    answers: Answers,
    side: Side,
    settings: BenchmarkConfig,
    *,
    folder: Path,
    data_paths: DataPaths,
    report_progress: Callable[[Progress], None] = lambda progress: None,
) -> Evaluation:
    """Score a benchmark's answers, and write its figures to `scores/`.

    Args:
        answers: the answers, whose file is in `folder`.
        side: the part of the benchmark that they answer.
        settings: the benchmark's settings.
        folder: the trial's folder.
        data_paths: the locations of the benchmark's data and the judges' replies.
        report_progress: called with the progress of the judge's replies.

    Raises:
        TrialError: something that the benchmark needs is missing, its judge does not answer, or
            the answers are to other questions.
    """
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        items, item_count = select_items(side, settings, benchmark, data_paths)
        responses = _read_responses(folder / answers.responses, items)
        metadata = dict(answers.metadata)
        if len(items) < item_count:
            metadata["limit"], metadata["of"] = len(items), item_count
        if settings.half is not None:
            metadata["half"] = settings.half
        report_progress(Progress(phase=f"score {settings.name}", done=0, total=1))
        resources = open_resources(
            settings,
            benchmark.needs_of(items),
            data_paths,
            only=frozenset(item.id for item in items) if "limit" in metadata else None,
            on_reply=lambda done, total: report_progress(
                Progress(phase=f"judge {settings.name}", done=done, total=total)
            ),
        )
        scored: ScoreResult = benchmark.score(
            [
                Answer(item=item.id, response=text, fields=item.fields)
                for item, text in zip(items, responses, strict=True)
            ],
            data=data_paths.benchmark_folder(settings.name),
            protocol=settings.protocol,
            resources=resources,
        )
        if resources.judge is not None:
            metadata["judge"] = _judge_metadata(resources.judge)
        similarity_name = getattr(resources.similarity, "name", None)
        if similarity_name is not None:
            metadata["similarity"] = similarity_name
        evaluation = write_scores(
            folder, side, settings, benchmark, scored, metadata, items=len(responses)
        )
    report_progress(Progress(phase=f"score {settings.name}", done=1, total=1))
    return evaluation


def _read_responses(path: Path, items: Sequence[Item]) -> list[str]:
    """Return the response to each item.

    Raises:
        TrialError: the file has other questions.
    """
    rows = read_records(path)
    questions = [(row.get("item"), row.get("prompt")) for row in rows]
    if questions != [(item.id, item.prompt) for item in items]:
        raise TrialError(
            f"{path} holds answers to other questions than the benchmark asks now: its files were "
            "changed since they were answered; run the study again"
        )
    return [str(row["response"]) for row in rows]


def write_scores(
    folder: Path,
    side: Side,
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    scored: ScoreResult,
    metadata: dict[str, Any],
    *,
    items: int = 0,
) -> Evaluation:
    """Write a benchmark's figures and item outcomes to `scores/`.

    Args:
        folder: the trial's folder.
        side: the part of the benchmark that was answered.
        settings: the benchmark's settings.
        benchmark: the benchmark.
        scored: the scorer's result.
        metadata: recorded with the figures.
        items: the number of answers scored; 0: the scorer's own count.
    """
    metadata = {
        "protocol": settings.protocol,
        "scorer": benchmark.version,
        "n": scored.n,
        "missing": scored.missing,
        **metadata,
    }
    if scored.unreadable:
        metadata["unreadable"] = count_unreadable(scored.unreadable)
    name = file_name(side, settings.name)
    scores = f"scores/{name}.json"
    write_json(
        folder / scores,
        {
            "how": metadata,
            "metrics": [asdict(outcome) for outcome in scored.metrics],
            "unreadable": [asdict(entry) for entry in scored.unreadable],
        },
    )
    return Evaluation(
        metrics={
            metric_name(side, settings.name, outcome.name): outcome.value
            for outcome in scored.metrics
            if outcome.value is not None
        },
        items=items or scored.n,
        scores=scores,
        responses=f"responses/{name}.jsonl",
        metadata=metadata,
    )


def _judge_metadata(judge: Any) -> dict[str, Any]:
    returned = sorted(getattr(judge, "returned", ()))
    send = getattr(judge, "send", None)
    return {
        "model": judge.model,
        **({"send": dict(send)} if send else {}),
        **({"returned": returned} if returned else {}),
    }


@contextmanager
def as_trial_error(name: str) -> Iterator[None]:
    """Raise an error of a benchmark's files as the trial's error."""
    try:
        yield
    except (UserError, ValueError) as error:
        message = str(error)
        raise TrialError(message if name in message else f"{name}: {message}") from None
