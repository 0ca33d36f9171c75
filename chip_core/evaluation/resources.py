"""What a scorer needs beside its benchmark's folder: found where it lies, or said to be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chip_core.benchmark_config import BenchmarkConfig
from chip_core.errors import TrialError
from chip_core.evaluation.judge import EndpointJudge, ReplyCache, endpoint_problem
from chip_core.evaluation.scorers.base import Judge, Resources
from chip_core.evaluation.task import Benchmark
from chip_core.places import Places


def open_resources(
    settings: BenchmarkConfig,
    benchmark: Benchmark,
    places: Places,
    *,
    only: frozenset[str] | None = None,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> Resources:
    """Return what a benchmark's scorer needs.

    Args:
        settings: the benchmark's.
        benchmark: the benchmark.
        places: where things lie.
        only: the items that are asked, where they are not all.
        on_reply: told (replies so far, calls in all) of a judge.

    Raises:
        TrialError: the judge cannot be asked.
        UserError: a file of replies cannot be read.
    """
    needs = benchmark.needs
    return Resources(
        coco=coco_folder(places) if "coco" in needs else None,
        judge=_judge(settings, places, on_reply) if "judge" in needs else None,
        only=only,
    )


def resource_problems(settings: BenchmarkConfig, benchmark: Benchmark, places: Places) -> list[str]:
    """Return what a benchmark's scorer lacks, each with what to do; nothing is asked or loaded."""
    problems = []
    if "coco" in benchmark.needs and coco_folder(places) is None:
        problems.append(
            "COCO's annotations are not there: put instances_*2014.json and captions_*2014.json "
            f"into {_coco_wanted(places)}"
        )
    if "judge" in benchmark.needs:
        replies = places.judge_replies
        if replies is not None:
            if not replies.is_file():
                problems.append(f"--judge-replies: no file {replies}")
        elif settings.judge is None:
            problems.append(
                "its answers are read by a judge and there is none: name one "
                f"(`{{name: {settings.name}, judge: {{model: …, base_url: …}}}}`), or replies that "
                "exist by --judge-replies"
            )
        elif (broken := endpoint_problem(settings.judge)) is not None:
            problems.append(broken)
    return problems


def coco_folder(places: Places) -> Path | None:
    """Return where COCO's annotation files are; None where they are not."""
    if places.benchmark_data is None:
        return None
    for folder in (places.benchmark_data / "coco" / "annotations", places.benchmark_data / "coco"):
        if folder.is_dir() and any(folder.glob("instances_*.json")):
            return folder
    return None


def _coco_wanted(places: Places) -> str:
    within = places.benchmark_data
    return str((within or Path("DIR")) / "coco" / "annotations")


def _judge(
    settings: BenchmarkConfig, places: Places, on_reply: Callable[[int, int], None]
) -> Judge:
    if places.judge_replies is not None:
        from chip_core.evaluation.replay import ReplayJudge

        return ReplayJudge.from_file(places.judge_replies)
    if settings.judge is None or places.judge_cache is None:
        raise TrialError(f"{settings.name}: its answers are read by a judge and there is none")
    return EndpointJudge(settings.judge, ReplyCache(places.judge_cache), on_reply)
