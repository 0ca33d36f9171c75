"""What benchmarks lack, said before anything is trained: all of it, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.data.source import SHAPES
from chip_core.evaluation.items import find_benchmark, select_items, settings_problems
from chip_core.evaluation.leakage import declared_overlaps, shared_questions
from chip_core.evaluation.resources import offer_nltk_data, resource_problems
from chip_core.evaluation.task import ExternalBenchmark, Item, Side
from chip_core.evaluation.text.language import nltk_problems
from chip_core.utils.errors import UserError

_NAMED = 3  # missing pictures that are listed


def sides(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig]]:
    """Return each benchmark of a configuration with its side, `select` first."""
    return [
        *(("select", settings) for settings in benchmarks.select),
        *(("report", settings) for settings in benchmarks.report),
    ]


def problems(benchmarks: BenchmarksConfig, places: DataPaths) -> list[str]:
    """Return what the benchmarks lack on this machine; empty where all can be scored.

    That a question is tuned on and quoted is one of these problems.
    """
    lacking = [
        f"{settings.name}: {problem}"
        for side, settings in sides(benchmarks)
        for problem in _problems(side, settings, places)
    ]
    overlaps = [f"benchmarks.{side}: {why}" for side, _, why in declared_overlaps(benchmarks)]
    shared = [] if overlaps else shared_questions(benchmarks, places)
    return list(dict.fromkeys([*lacking, *overlaps, *shared]))


def ranker_problems(config: TrialConfig, places: DataPaths) -> list[str]:
    """Return what ranks a trial's own answers lacks on this machine; empty where it has all."""
    pairs, lacking = config.pairs, list[str]()
    if not pairs.rounds:
        return lacking
    if pairs.ranker == "judge":
        judged = BenchmarkConfig(name="pairs", judge=pairs.judge)
        lacking = resource_problems(judged, frozenset({"judge"}), places)
    elif pairs.ranker == "chair" and config.data.source != SHAPES:
        data = places.data("chair")
        names = (data or Path("DIR/chair")) / "synonyms.txt"
        if data is None or not names.is_file():
            lacking.append(
                f"ranker chair reads objects' names from {names}, which is not there: put it into "
                "a folder chair/ of --benchmark-data"
            )
        offer_nltk_data(places)
        lacking += nltk_problems(("punkt_tab",))
    return [f"pairs: {problem}" for problem in lacking]


def replay_problems(config: TrialConfig, places: DataPaths) -> list[str]:
    """Return why a file of a judge's replies cannot serve a trial; empty where it can.

    A file has one reply to a question, whoever's answer it was of.
    """
    if places.judge_replies is None:
        return []
    judged = [settings.name for settings in config.benchmarks.select if _asks_judge(settings)]
    asked = {
        "pairs.rounds": bool(config.pairs.rounds) and config.pairs.ranker == "judge",
        f"training.score_at ({', '.join(judged)})": bool(config.training.score_at and judged),
    }
    return [
        f"{key}: the judge compares answers that are made on the way, and --judge-replies says the "
        "same of all of them: leave it out, and name a judge"
        for key, is_so in asked.items()
        if is_so
    ]


def _asks_judge(settings: BenchmarkConfig) -> bool:
    try:
        return "judge" in getattr(find_benchmark(settings.name), "needs", ())
    except ValueError:
        return False  # said of the benchmark itself


def _problems(side: Side, settings: BenchmarkConfig, places: DataPaths) -> Iterator[str]:
    try:
        benchmark = find_benchmark(settings.name)
    except ValueError as error:
        yield str(error)
        return
    wrong = list(settings_problems(settings, benchmark))
    yield from wrong
    if isinstance(benchmark, ExternalBenchmark):
        yield from benchmark.problems()
    if wrong or isinstance(benchmark, ExternalBenchmark):
        return
    data = places.data(settings.name)
    if "data" in benchmark.needs and (data is None or not data.is_dir()):
        yield (
            f"there is no folder {data} (`chip-ablate data status` says what goes there)"
            if data is not None
            else "its questions are in files: name the folder that holds a folder "
            f"{settings.name}/ by --benchmark-data or CHIP_ABLATE_BENCHMARK_DATA"
        )
        yield from resource_problems(settings, benchmark.needs, places)
        return
    try:
        benchmark.files(data)
        items, _ = select_items(side, settings, benchmark, places)
    except (UserError, ValueError) as error:
        yield str(error).removeprefix(f"{settings.name}: ")
        yield from resource_problems(settings, benchmark.needs, places)
        return
    yield from resource_problems(settings, benchmark.needs_of(items), places)
    yield from _missing_pictures(items)


def _missing_pictures(items: Sequence[Item]) -> Iterator[str]:
    files = {
        picture.file for item in items for picture in item.pictures if picture.file is not None
    }
    missing = sorted(file for file in files if not file.is_file())
    if missing:
        named = ", ".join(str(file) for file in missing[:_NAMED])
        more = ", …" if len(missing) > _NAMED else ""
        yield f"{len(missing)} of {len(files)} pictures are not there: {named}{more}"
