"""Check that the files behind a study's figures are unchanged.

The ledger's line of an attempt holds its results, with the sha256 of the files that tables and
pages are made from. The line has a checksum of its own. A mismatch is reported, and the result
counts as missing: `run` makes it again, and commands that only read leave it out.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from chip_core.evaluation.task import metric_name
from chip_core.results import MODEL, read_answered, read_result
from chip_core.utils.errors import warn_once
from chip_core.utils.files import file_sha256, read_lines
from orchestrator.plan.plan import Plan, Trial, trial_key
from orchestrator.state.ledger import Ledger, ScoredBenchmark
from orchestrator.state.search import resolve_search
from orchestrator.study.model import StudyChanges


def inspect_plan(plan: Plan, ledger: Ledger, storage: Path) -> Plan:
    """Resolve a plan for a command that only reads, and add what the ledger lacks.

    Args:
        plan: the study's plan.
        ledger: read-only ledger; it gets the results found in the trials' folders.
        storage: where the trials' folders are.
    """
    known_fingerprints = set[str]()
    while True:
        plan = resolve_search(plan, ledger)
        fingerprints = {trial.fingerprint for trial in plan.trials}
        if fingerprints <= known_fingerprints:
            return plan
        record_results(plan, ledger, storage)
        check_results(plan, ledger, storage)
        known_fingerprints |= fingerprints


def read_ledger(plan: Plan, workdir: Path) -> Ledger:
    """Return a read-only ledger with the results and the lost figures of a plan."""
    ledger = Ledger(workdir, writable=False)
    inspect_plan(plan, ledger, workdir)
    return ledger


def trial_folder(storage: Path, trial: Trial) -> Path:
    """Return the folder of a trial's attempts."""
    return storage / trial_key(trial.fingerprint)


def attempt_folders(storage: Path, trial: Trial) -> dict[int, Path]:
    """Return the attempts' folders by number, in order."""
    folders = {}
    for folder in trial_folder(storage, trial).glob("attempt-*"):
        number = re.fullmatch(r"attempt-(\d+)", folder.name)
        if number:
            folders[int(number[1])] = folder
    return dict(sorted(folders.items()))


def record_results(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Record successful attempts that the ledger does not have."""
    for trial in plan.trials:
        for attempt, folder in attempt_folders(storage, trial).items():
            record = ledger[trial.fingerprint]
            # An attempt that ended after another one replaced it adds nothing.
            if attempt in record.finished or record.is_done(trial):
                continue
            result = read_result(folder)
            name = str(folder.relative_to(storage))
            if result is not None:
                ledger.record_result(trial, plan.study.name, attempt, name, result)
            elif name not in record.answers.values():
                answered = read_answered(folder)
                if answered is not None:
                    ledger.record_answers(trial, plan.study.name, attempt, name, answered)


def check_results(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Mark figures whose files are gone or changed as missing, and warn."""
    seen_fingerprints: set[str] = set()
    for trial in plan.trials:
        if trial.fingerprint in seen_fingerprints:
            continue
        seen_fingerprints.add(trial.fingerprint)
        record = ledger[trial.fingerprint]
        lost_evaluations: dict[str, str] = {}  # fingerprint of the evaluation -> problem
        for key, fingerprint in trial.evaluations.items():
            if fingerprint in record.evaluations:
                problem = find_result_problem(key, record.evaluations[fingerprint], storage)
                if problem is not None:
                    lost_evaluations[fingerprint] = problem
        if not lost_evaluations:
            continue
        is_model_lost = record.model is not None and not (storage / record.model / MODEL).is_dir()
        remedy = "trains and scores it again" if is_model_lost else "scores it again"
        for problem in dict.fromkeys(lost_evaluations.values()):
            warn_once(
                f"{trial.name}: {problem}: `chip-ablate run` {remedy} "
                "(or remove the trial with `chip-ablate rm`)"
            )
        ledger.mark_missing(trial.fingerprint, trial.name, lost_evaluations, model=is_model_lost)


def find_result_problem(key: str, scored: ScoredBenchmark, storage: Path) -> str | None:
    """Return the problem with the files of a benchmark's figures; None if there is none.

    Args:
        key: side and name, such as "report/amber".
        scored: the figures.
        storage: where the trials' folders are.
    """
    folder, evaluation = storage / scored.folder, scored.evaluation
    if not folder.is_dir():
        return f"its folder {folder} is gone"
    for name in (evaluation.scores, evaluation.responses):
        path = folder / name
        try:
            if name in scored.files:
                is_intact = file_sha256(path) == scored.files[name]
            elif name == evaluation.scores:
                is_intact = _matches_ledger(path, key, scored)
            else:  # recorded by a version without hashes
                is_intact = all(line.record is not None for line in read_lines(path))
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if not is_intact:
            return f"{path} has changed since it was written"
    return None


def is_file_changed(path: Path, expected: str | None) -> bool:
    """Return whether a file is gone or changed. Without a recorded hash the answer is no."""
    try:
        return expected is not None and file_sha256(path) != expected
    except OSError:
        return True


def trials_with_lost_figures(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the names of trials whose figures are lost by damage, not by a command."""
    unfinished_trials = {
        trial.fingerprint: trial.name
        for trial in plan.trials
        if not ledger[trial.fingerprint].is_done(trial)
    }
    if ledger.damaged_lines:  # damaged lines, of unknown trials
        return [
            name
            for fingerprint, name in unfinished_trials.items()
            if not ledger[fingerprint].failure
        ]
    return [
        name for fingerprint, name in unfinished_trials.items() if fingerprint in ledger.lost_trials
    ]


def describe_kept_report(page: Path, plan: Plan, workdir: Path, trial_names: list[str]) -> str:
    """Return the notice that a more complete report is not overwritten."""
    listed_names = "; ".join(trial_names[:5]) + ("; …" if len(trial_names) > 5 else "")
    is_variant = plan.study.changes != StudyChanges()  # a variant or more seeds: found by its name
    arguments = ["chip-ablate", "run", plan.study.name if is_variant else plan.study.source]
    command = shlex.join([*arguments, "--workdir", str(workdir)])
    return (
        f"{page} was not updated: the figures of {listed_names} are gone: `{command}` computes "
        "them again and updates the report"
    )


def _matches_ledger(path: Path, key: str, scored: ScoredBenchmark) -> bool:
    """Return whether a file of scores has the same figures as the ledger."""
    side, _, benchmark = key.partition("/")
    prefix = metric_name("select" if side == "select" else "report", benchmark, "")
    try:
        metrics = json.loads(path.read_bytes())["metrics"]
        values = {f"{prefix}{metric['name']}": metric["value"] for metric in metrics}
        items = [item["item"] for metric in metrics for item in metric["items"]]
    except (ValueError, KeyError, TypeError):
        return False
    defined_values = {name: value for name, value in values.items() if value is not None}
    return defined_values == scored.evaluation.metrics and all(
        isinstance(item, str) for item in items
    )
