"""Report what a trial lacks on this machine, all at once and before anything is trained.

Benchmarks need their data, and a training may need packages that are not installed everywhere.
Figures must not come from questions used to tune: no question may be under both `select` and
`report`. This is checked from the configuration (`find_declared_overlaps`) and from the questions
themselves (`find_shared_questions`), since a user's own benchmark may declare its splits wrongly.
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
from chip_core.evaluation.items import (
    add_nltk_data_path,
    find_benchmark,
    find_resource_problems,
    find_settings_problems,
    select_items,
)
from chip_core.evaluation.task import ExternalBenchmark, Item, Picture, Side
from chip_core.evaluation.text.language import nltk_problems
from chip_core.utils.errors import TrialError, UserError

_MAX_LISTED = 3  # missing pictures that a message lists


def list_sides(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig]]:
    """Return each benchmark of a configuration with its side, `select` first."""
    return [
        *(("select", settings) for settings in benchmarks.select),
        *(("report", settings) for settings in benchmarks.report),
    ]


def find_benchmark_problems(benchmarks: BenchmarksConfig, data_paths: DataPaths) -> list[str]:
    """Return what the benchmarks lack on this machine; empty if all can be scored.

    A question that is both tuned on and reported is one of these problems.
    """
    problems_found = [
        f"{settings.name}: {problem}"
        for side, settings in list_sides(benchmarks)
        for problem in _find_side_problems(side, settings, data_paths)
    ]
    overlaps = [
        f"benchmarks.{side}: {reason}" for side, _, reason in find_declared_overlaps(benchmarks)
    ]
    shared_found = [] if overlaps else find_shared_questions(benchmarks, data_paths)
    return list(dict.fromkeys([*problems_found, *overlaps, *shared_found]))


def find_ranker_problems(config: TrialConfig, data_paths: DataPaths) -> list[str]:
    """Return what is missing to rank a trial's own answers on this machine; empty if nothing is."""
    pairs, missing = config.pairs, list[str]()
    if not pairs.rounds:
        return missing
    if pairs.ranker == "judge":
        judge_settings = BenchmarkConfig(name="pairs", judge=pairs.judge)
        missing = find_resource_problems(judge_settings, frozenset({"judge"}), data_paths)
    elif pairs.ranker == "chair" and config.data.source != SHAPES:
        folder = data_paths.benchmark_folder("chair")
        names_file = (folder or Path("DIR/chair")) / "synonyms.txt"
        if folder is None or not names_file.is_file():
            missing.append(
                f"ranker chair reads objects' names from {names_file}, which does not exist: put "
                "it into a folder chair/ of --benchmark-data"
            )
        add_nltk_data_path(data_paths)
        missing += nltk_problems(("punkt_tab",))
    return [f"pairs: {problem}" for problem in missing]


def find_replay_problems(config: TrialConfig, data_paths: DataPaths) -> list[str]:
    """Return why a file of judge replies cannot serve a trial; empty if it can.

    Such a file has one reply per question, whichever model's answer it judged.
    """
    if data_paths.judge_replies is None:
        return []
    judged_benchmarks = [
        settings.name for settings in config.benchmarks.select if _needs_judge(settings)
    ]
    uses_judge = {
        "pairs.rounds": bool(config.pairs.rounds) and config.pairs.ranker == "judge",
        f"training.score_at ({', '.join(judged_benchmarks)})": bool(
            config.training.score_at and judged_benchmarks
        ),
    }
    return [
        f"{key}: the judge compares answers at intermediate steps, but --judge-replies gives the "
        "same reply to all of them: leave it out, and name a judge"
        for key, is_used in uses_judge.items()
        if is_used
    ]


def _needs_judge(settings: BenchmarkConfig) -> bool:
    try:
        return "judge" in find_benchmark(settings.name).needs
    except ValueError:
        return False  # reported with the benchmark itself


def _find_side_problems(
    side: Side, settings: BenchmarkConfig, data_paths: DataPaths
) -> Iterator[str]:
    try:
        benchmark = find_benchmark(settings.name)
    except ValueError as error:
        yield str(error)
        return
    settings_problems = list(find_settings_problems(settings, benchmark))
    yield from settings_problems
    if isinstance(benchmark, ExternalBenchmark):
        yield from benchmark.problems()
    if settings_problems or isinstance(benchmark, ExternalBenchmark):
        return
    folder = data_paths.benchmark_folder(settings.name)
    if "data" in benchmark.needs and (folder is None or not folder.is_dir()):
        yield (
            f"there is no folder {folder} (`chip-ablate data status` shows what belongs there)"
            if folder is not None
            else "its questions are in files: give the folder that holds a folder "
            f"{settings.name}/ with --benchmark-data or CHIP_ABLATE_BENCHMARK_DATA"
        )
        yield from find_resource_problems(settings, benchmark.needs, data_paths)
        return
    try:
        benchmark.files(folder)
        items, _ = select_items(side, settings, benchmark, data_paths)
    except (UserError, ValueError) as error:
        yield str(error).removeprefix(f"{settings.name}: ")
        yield from find_resource_problems(settings, benchmark.needs, data_paths)
        return
    yield from find_resource_problems(settings, benchmark.needs_of(items), data_paths)
    yield from _find_missing_pictures(items)


def _find_missing_pictures(items: Sequence[Item]) -> Iterator[str]:
    files = {
        picture.file for item in items for picture in item.pictures if picture.file is not None
    }
    missing = sorted(file for file in files if not file.is_file())
    if missing:
        listed = ", ".join(str(file) for file in missing[:_MAX_LISTED])
        more = ", …" if len(missing) > _MAX_LISTED else ""
        yield f"{len(missing)} of {len(files)} pictures are missing: {listed}{more}"


_MAX_COMPARED = 64  # questions with the same prompt and picture name whose pictures are compared


def find_declared_overlaps(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig, str]]:
    """Return the entries that share questions with the other side, and why.

    Unknown benchmarks are skipped: they are reported elsewhere.
    """
    selected = {settings.name: settings for settings in benchmarks.select}
    overlaps: list[tuple[Side, BenchmarkConfig, str]] = []
    for side, settings in list_sides(benchmarks):
        try:
            splits = find_benchmark(settings.name).splits
        except ValueError:
            continue
        selected_settings = selected.get(settings.name) if side == "report" else None
        problem = None
        if splits and settings.half is not None:
            problem = "already has different questions on each side: leave out `half`"
        elif selected_settings is not None and not splits:
            problem = _find_half_problem(selected_settings, settings)
        if problem is not None:
            overlaps.append((side, settings, f"'{settings.name}' {problem}"))
    return overlaps


def find_shared_questions(benchmarks: BenchmarksConfig, data_paths: DataPaths) -> list[str]:
    """Return a sentence for each benchmark of `report` that shares a question with `select`.

    Two questions are the same if prompt and pictures are, by the pictures' names and content.
    What cannot be read is skipped: it is reported elsewhere.
    """
    sentences = []
    selected = [
        (settings, _load_items("select", settings, data_paths)) for settings in benchmarks.select
    ]
    for settings in benchmarks.report if selected else ():
        reported = {
            _question_key(item): item for item in _load_items("report", settings, data_paths)
        }
        for selected_settings, items in selected:
            candidates = (
                (item, reported[key]) for item in items if (key := _question_key(item)) in reported
            )
            for selected_item, reported_item in itertools.islice(candidates, _MAX_COMPARED):
                if all(map(_is_same_picture, selected_item.pictures, reported_item.pictures)):
                    sentences.append(
                        f"{settings.name}: its question {reported_item.id} is asked under "
                        f"`select`, too, by {selected_settings.name}: questions used for tuning "
                        "cannot be reported"
                    )
                    break
    return sentences


def _find_half_problem(selected: BenchmarkConfig, reported: BenchmarkConfig) -> str | None:
    if selected.half is None and reported.half is None:
        return (
            "is also under `select` and has only one set of questions, and questions used for "
            "tuning cannot be reported: name it on one side, or halve it: `half: select` there "
            "and `half: report` here"
        )
    if selected.half is None or reported.half is None:
        unhalved_side = "select" if selected.half is None else "report"
        return (
            f"is halved on one side but used whole under `{unhalved_side}`: write "
            f"`half: {unhalved_side}` there"
        )
    if selected.half_seed != reported.half_seed:
        return "is halved by two seeds, so that its halves overlap: give both one `half_seed`"
    return None


def _load_items(side: Side, settings: BenchmarkConfig, data_paths: DataPaths) -> Sequence[Item]:
    with contextlib.suppress(UserError, ValueError, TrialError):
        return select_items(side, settings, find_benchmark(settings.name), data_paths)[0]
    return ()


def _question_key(item: Item) -> tuple[str, tuple[str, ...]]:
    return item.prompt, tuple(picture.key for picture in item.pictures)


def _is_same_picture(first: Picture, second: Picture) -> bool:
    if first.file is not None and second.file is not None and first.file == second.file:
        return True
    with contextlib.suppress(Exception):  # a decoder or a user's code may raise anything
        first_image, second_image = first.read(), second.read()
        return bool(
            first_image.size == second_image.size
            and first_image.tobytes() == second_image.tobytes()
        )
    return False


def find_unmet_requirements(config: TrialConfig) -> list[str]:
    """Return what a trial's training lacks on this machine, each with what to do.

    A plan is still shown, with these lines.
    """
    missing = []
    if config.optimizer.states == "int8" and find_spec("torchao") is None:
        missing.append(
            "optimizer.states is int8, but torchao is not installed here: "
            "pip install 'chip-ablate[int8]', or write optimizer.states: fp32"
        )
    if config.model.quantize == "nf4" and find_spec("bitsandbytes") is None:
        missing.append(
            "model.quantize is nf4, but bitsandbytes is not installed here: "
            "pip install 'chip-ablate[nf4]', or write model.quantize: none"
        )
    if config.engine.compile == "layers":
        missing += _find_compiler_problems(config)
    if config.pairs.rounds and config.engine.workers_per_trial > 1:
        missing.append(
            f"pairs.rounds is {config.pairs.rounds}, but only one worker samples a model: write "
            "engine.workers_per_trial: 1, or pairs.rounds: 0"
        )
    return missing


def _find_compiler_problems(config: TrialConfig) -> list[str]:
    """Return what torch.compile lacks here: Triton on a GPU, and a compiler anywhere."""
    if config.engine.uses_gpu and find_spec("triton") is None:
        return [
            "engine.compile is layers, but triton is not installed here: install a CUDA build of "
            "torch, which includes it, or write engine.compile: off"
        ]
    # What torch's inductor runs: CXX, or else this name.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return [
            f"engine.compile is layers, but there is no C++ compiler here ({compiler}): install "
            "g++, or write engine.compile: off"
        ]
    return []
