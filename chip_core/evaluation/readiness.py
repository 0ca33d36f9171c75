"""Report what a trial lacks on this machine, all at once and before anything is trained.

Benchmarks need their data, and a training may need packages that are not installed everywhere.
Figures must not come from questions used to tune: no question may be under both `select` and
`report`. This is checked from the configuration (`declared_overlaps`) and from the questions
themselves (`shared_questions`), since a user's own benchmark may declare its splits wrongly.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.data.source import SHAPES
from chip_core.evaluation.items import find_benchmark, select_items, settings_problems
from chip_core.evaluation.resources import offer_nltk_data, resource_problems
from chip_core.evaluation.task import ExternalBenchmark, Item, Picture, Side
from chip_core.evaluation.text.language import nltk_problems
from chip_core.utils.errors import TrialError, UserError

_NAMED = 3  # missing pictures that a message lists


def sides(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig]]:
    """Return each benchmark of a configuration with its side, `select` first."""
    return [
        *(("select", settings) for settings in benchmarks.select),
        *(("report", settings) for settings in benchmarks.report),
    ]


def problems(benchmarks: BenchmarksConfig, places: DataPaths) -> list[str]:
    """Return what the benchmarks lack on this machine; empty if all can be scored.

    A question that is both tuned on and reported is one of these problems.
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
    """Return what is missing to rank a trial's own answers on this machine; empty if nothing is."""
    pairs, lacking = config.pairs, list[str]()
    if not pairs.rounds:
        return lacking
    if pairs.ranker == "judge":
        judged = BenchmarkConfig(name="pairs", judge=pairs.judge)
        lacking = resource_problems(judged, frozenset({"judge"}), places)
    elif pairs.ranker == "chair" and config.data.source != SHAPES:
        data = places.benchmark_folder("chair")
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
    """Return why a file of judge replies cannot serve a trial; empty if it can.

    Such a file has one reply per question, whichever model's answer it judged.
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
        return False  # reported with the benchmark itself


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
    data = places.benchmark_folder(settings.name)
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


_COMPARED = 64  # questions with the same prompt and picture name whose pictures are compared


def declared_overlaps(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig, str]]:
    """Return the entries that share questions with the other side, and why.

    Unknown benchmarks are skipped: they are reported elsewhere.
    """
    tuned_on = {settings.name: settings for settings in benchmarks.select}
    found: list[tuple[Side, BenchmarkConfig, str]] = []
    sides: tuple[tuple[Side, Sequence[BenchmarkConfig]], ...] = (
        ("select", benchmarks.select),
        ("report", benchmarks.report),
    )
    for side, settings in ((side, one) for side, chosen in sides for one in chosen):
        try:
            splits = find_benchmark(settings.name).splits
        except ValueError:
            continue
        other = tuned_on.get(settings.name) if side == "report" else None
        problem = None
        if splits and settings.half is not None:
            problem = "has other questions on each side by itself: leave `half` out"
        elif other is not None and not splits:
            problem = _halves_problem(other, settings)
        if problem is not None:
            found.append((side, settings, f"'{settings.name}' {problem}"))
    return found


def shared_questions(benchmarks: BenchmarksConfig, places: DataPaths) -> list[str]:
    """Return a sentence for each benchmark of `report` that shares a question with `select`.

    Two questions are the same if prompt and pictures are, by the pictures' names and content.
    What cannot be read is skipped: it is reported elsewhere.
    """
    found = []
    tuned_on = [(one, _items("select", one, places)) for one in benchmarks.select]
    for settings in benchmarks.report if tuned_on else ():
        asked = {_question(item): item for item in _items("report", settings, places)}
        for other, items in tuned_on:
            alike = ((item, asked[key]) for item in items if (key := _question(item)) in asked)
            for one, same in itertools.islice(alike, _COMPARED):
                if all(map(_same, one.pictures, same.pictures)):
                    found.append(
                        f"{settings.name}: its question {same.id} is asked under `select`, too, "
                        f"by {other.name}: what was tuned on is not quoted"
                    )
                    break
    return found


def _halves_problem(tuned_on: BenchmarkConfig, quoted: BenchmarkConfig) -> str | None:
    if tuned_on.half is None and quoted.half is None:
        return (
            "is under `select` too and has one set of questions: what was tuned on is not quoted: "
            "name it on one side, or halve it: `half: select` there and `half: report` here"
        )
    if tuned_on.half is None or quoted.half is None:
        whole = "select" if tuned_on.half is None else "report"
        return f"is halved on one side and asked whole under `{whole}`: write `half: {whole}` there"
    if tuned_on.half_seed != quoted.half_seed:
        return "is halved by two seeds, so that its halves overlap: give both one `half_seed`"
    return None


def _items(side: Side, settings: BenchmarkConfig, places: DataPaths) -> Sequence[Item]:
    with contextlib.suppress(UserError, ValueError, TrialError):
        return select_items(side, settings, find_benchmark(settings.name), places)[0]
    return ()


def _question(item: Item) -> tuple[str, tuple[str, ...]]:
    return item.prompt, tuple(picture.key for picture in item.pictures)


def _same(one: Picture, other: Picture) -> bool:
    if one.file is not None and other.file is not None and one.file == other.file:
        return True
    with contextlib.suppress(Exception):  # a decoder or a user's code may raise anything
        left, right = one.read(), other.read()
        return bool(left.size == right.size and left.tobytes() == right.tobytes())
    return False


def unmet_requirements(config: TrialConfig) -> list[str]:
    """Return what a trial's training lacks on this machine, each with what to do.

    A plan is still shown, with these lines.
    """
    lacking = []
    if config.optimizer.states == "int8" and find_spec("torchao") is None:
        lacking.append(
            "optimizer.states is int8, and torchao is not installed here: "
            "pip install 'chip-ablate[int8]', or write optimizer.states: fp32"
        )
    if config.model.quantize == "nf4" and find_spec("bitsandbytes") is None:
        lacking.append(
            "model.quantize is nf4, and bitsandbytes is not installed here: "
            "pip install 'chip-ablate[nf4]', or write model.quantize: none"
        )
    if config.engine.compile == "layers":
        lacking += _compiler_problems(config)
    if config.pairs.rounds and config.engine.workers_per_trial > 1:
        lacking.append(
            f"pairs.rounds is {config.pairs.rounds}, and one worker samples a model: write "
            "engine.workers_per_trial: 1, or pairs.rounds: 0"
        )
    return lacking


def _compiler_problems(config: TrialConfig) -> list[str]:
    """Return what torch.compile lacks here: Triton on a GPU, and a compiler anywhere."""
    gpu = config.engine.gpus_per_worker > 0 or config.engine.device == "cuda"
    if gpu and find_spec("triton") is None:
        return [
            "engine.compile is layers, and triton is not installed here: it comes with torch's "
            "CUDA builds: install one, or write engine.compile: off"
        ]
    # What torch's inductor runs: CXX, or else this name.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return [
            f"engine.compile is layers, and there is no C++ compiler here ({compiler}): install "
            "g++, or write engine.compile: off"
        ]
    return []
