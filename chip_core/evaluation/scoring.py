"""Score answers stored on disk, by a benchmark's rules and judges, without a model or torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.resources import open_resources
from chip_core.evaluation.scorer import Answer, Scored
from chip_core.evaluation.task import Benchmark, Item, Side, metric_name
from chip_core.evaluation.unreadable import counts
from chip_core.results import Answers, Evaluation, Progress
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import read_records, write_json


def file_name(side: Side, benchmark: str) -> str:
    """Return the prefix of the names of a benchmark's files."""
    return f"{side}-{re.sub(r'[^A-Za-z0-9_.-]', '.', benchmark)}"


def score_answers(
    made: Answers,
    side: Side,
    settings: BenchmarkConfig,
    *,
    folder: Path,
    places: DataPaths,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Evaluation:
    """Score a benchmark's answers, and write its figures to `scores/`.

    Args:
        made: the answers, whose file is in `folder`.
        side: the part of the benchmark that they answer.
        settings: the benchmark's settings.
        folder: the trial's folder.
        places: the locations of the benchmark's data and the judges' replies.
        report: called with the progress of the judge's replies.

    Raises:
        TrialError: something that the benchmark needs is missing, its judge does not answer, or
            the answers are to other questions.
    """
    with as_trial_error(settings.name):
        benchmark = find_benchmark(settings.name)
        items, whole = select_items(side, settings, benchmark, places)
        responses = _read_responses(folder / made.responses, items)
        metadata = dict(made.metadata)
        if len(items) < whole:
            metadata["limit"], metadata["of"] = len(items), whole
        if settings.half is not None:
            metadata["half"] = settings.half
        report(Progress(phase=f"score {settings.name}", done=0, total=1))
        resources = open_resources(
            settings,
            benchmark.needs_of(items),
            places,
            only=frozenset(item.id for item in items) if "limit" in metadata else None,
            on_reply=lambda done, total: report(
                Progress(phase=f"judge {settings.name}", done=done, total=total)
            ),
        )
        found: Scored = benchmark.score(
            [
                Answer(item=item.id, response=text, fields=item.fields)
                for item, text in zip(items, responses, strict=True)
            ],
            data=places.benchmark_folder(settings.name),
            protocol=settings.protocol,
            resources=resources,
        )
        if resources.judge is not None:
            metadata["judge"] = _judge(resources.judge)
        metadata |= _named(similarity=resources.similarity, tagger=resources.tagger)
        evaluation = write_scores(
            folder, side, settings, benchmark, found, metadata, items=len(responses)
        )
    report(Progress(phase=f"score {settings.name}", done=1, total=1))
    return evaluation


def _read_responses(path: Path, items: Sequence[Item]) -> list[str]:
    """Return the response to each item.

    Raises:
        TrialError: the file has other questions.
    """
    rows = read_records(path)
    asked = [(row.get("item"), row.get("prompt")) for row in rows]
    if asked != [(item.id, item.prompt) for item in items]:
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
    found: Scored,
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
        found: the scorer's result.
        metadata: recorded with the figures.
        items: the number of answers scored; 0: the scorer's own count.
    """
    metadata = {
        "protocol": settings.protocol,
        "scorer": benchmark.version,
        "n": found.n,
        "missing": found.missing,
        **metadata,
    }
    if found.unreadable:
        metadata["unreadable"] = counts(found.unreadable)
    name = file_name(side, settings.name)
    scores = f"scores/{name}.json"
    write_json(
        folder / scores,
        {
            "how": metadata,
            "metrics": [asdict(outcome) for outcome in found.metrics],
            "unreadable": [asdict(entry) for entry in found.unreadable],
        },
    )
    return Evaluation(
        metrics={
            metric_name(side, settings.name, outcome.name): outcome.value
            for outcome in found.metrics
            if outcome.value is not None
        },
        items=items or found.n,
        scores=scores,
        responses=f"responses/{name}.jsonl",
        metadata=metadata,
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
def as_trial_error(name: str) -> Iterator[None]:
    """Raise an error of a benchmark's files as the trial's error."""
    try:
        yield
    except (UserError, ValueError) as error:
        text = str(error)
        raise TrialError(text if name in text else f"{name}: {text}") from None
