"""The second step of a trial: score its answers, without a model and without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.readiness import find_benchmark_problems, list_sides
from chip_core.evaluation.scoring import score_answers
from chip_core.results import (
    CONFIG,
    CURVES,
    Evaluation,
    TrialResult,
    hash_files,
    read_answered,
    write_result,
)
from chip_core.trial_context import TrialContext
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_bytes, write_json


def score_trial(
    config: TrialConfig, context: TrialContext, *, answers: Path | None = None
) -> TrialResult:
    """Score a trial's answers by rules and judges; write scores/ and result.json to its folder.

    No model is loaded, and one process does the work.

    Args:
        config: the trial, with the benchmarks to score.
        context: its folder, where data and replies are, and its callbacks.
        answers: the folder of an earlier attempt's `answer_trial`, whose training is then not
            recorded again; None: the context's own.

    Raises:
        StoppedError: a stop was requested; judges' replies are kept.
        TrialError: the answers cannot be scored; the message is the reason.
    """
    timer, report = context.make_timer(), context.make_stopping_report()
    folder, data_paths = context.folder, context.data_paths
    answers = answers or folder
    answered = read_answered(answers)
    if answered is None:
        raise TrialError(
            f"{answers}: its answers have changed since they were written: run the study again, "
            "which reuses the rest of them"
        )
    missing = find_benchmark_problems(config.benchmarks, data_paths)
    if missing:
        raise TrialError("; ".join(missing))
    is_same_folder = answers.absolute() == folder.absolute()
    if not is_same_folder:
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        for name in answered.files:
            write_bytes(folder / name, (answers / name).read_bytes())
    evaluations: dict[str, Evaluation] = {}
    timer.end("read answers")
    for side, benchmark in list_sides(config.benchmarks):
        key = f"{side}/{benchmark.name}"
        if key in answered.evaluations:
            evaluations[key] = answered.evaluations[key]
            continue
        evaluations[key] = score_answers(
            answered.answers[key],
            side,
            benchmark,
            folder=folder,
            data_paths=data_paths,
            report_progress=report,
        )
        timer.end(f"score {key}")
    result = TrialResult(
        steps=answered.steps if is_same_folder else 0,
        evaluations=evaluations,
        seconds={**answered.seconds, **timer.seconds} if is_same_folder else timer.seconds,
        data=answered.data if is_same_folder else {},
        notes=answered.notes if is_same_folder else [],
        engine=answered.engine if is_same_folder else {},
        cpu={**answered.cpu, **timer.cpu} if is_same_folder else timer.cpu,
        machine=answered.machine,
        picked=answered.picked if is_same_folder else {},
        files=hash_files(folder, _iter_result_files(evaluations)),
    )
    write_result(folder, result)
    return result


def _iter_result_files(evaluations: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield the files of a trial's folder that tables, figures and pages are made from."""
    yield from (CONFIG, CURVES)
    for evaluation in evaluations.values():
        yield from (evaluation.scores, evaluation.responses)
