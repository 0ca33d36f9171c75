"""Verify that the files behind a study's figures are unchanged.

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
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.ledger import Ledger, ScoredBenchmark
from orchestrator.state.search import resolve_search
from orchestrator.storage.download import trial_key
from orchestrator.study.model import StudyChanges


def inspect_plan(plan: Plan, ledger: Ledger, storage: Path) -> Plan:
    """Resolve a plan for a command that only reads, and add what the ledger lacks.

    Args:
        plan: the study's plan.
        ledger: read-only ledger; it gets the results found in the trials' folders.
        storage: where the trials' folders are.
    """
    seen = set[str]()
    while True:
        plan = resolve_search(plan, ledger)
        fingerprints = {trial.fingerprint for trial in plan.trials}
        if fingerprints <= seen:
            return plan
        record_results(plan, ledger, storage)
        check_results(plan, ledger, storage)
        seen |= fingerprints


def ledger_of(plan: Plan, workdir: Path) -> Ledger:
    """Return a read-only ledger with the results and the lost figures of a plan."""
    ledger = Ledger(workdir, writes=False)
    inspect_plan(plan, ledger, workdir)
    return ledger


def trial_folder(storage: Path, trial: Trial) -> Path:
    """Return the folder of a trial's attempts."""
    return storage / trial_key(trial.fingerprint)


def attempts_of(storage: Path, trial: Trial) -> dict[int, Path]:
    """Return the attempts' folders by number, in order."""
    found = {}
    for folder in trial_folder(storage, trial).glob("attempt-*"):
        number = re.fullmatch(r"attempt-(\d+)", folder.name)
        if number:
            found[int(number[1])] = folder
    return dict(sorted(found.items()))


def record_results(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Record successful attempts that the ledger does not have."""
    for trial in plan.trials:
        for attempt, folder in attempts_of(storage, trial).items():
            record = ledger[trial.fingerprint]
            # An attempt that ended after another one replaced it adds nothing.
            if attempt in record.finished or record.done(trial):
                continue
            result = read_result(folder)
            name = str(folder.relative_to(storage))
            if result is not None:
                ledger.finished(trial, plan.study.name, attempt, name, result)
            elif name not in record.answers.values():
                answered = read_answered(folder)
                if answered is not None:
                    ledger.answered(trial, plan.study.name, attempt, name, answered)


def check_results(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Mark figures whose files are gone or changed as missing, and warn."""
    seen: set[str] = set()
    for trial in plan.trials:
        if trial.fingerprint in seen:
            continue
        seen.add(trial.fingerprint)
        record = ledger[trial.fingerprint]
        lost: dict[str, str] = {}  # fingerprint of the evaluation -> problem
        for key, fingerprint in trial.evaluations.items():
            if fingerprint in record.evaluations:
                why = result_problem(key, record.evaluations[fingerprint], storage)
                if why is not None:
                    lost[fingerprint] = why
        if not lost:
            continue
        untrained = record.model is not None and not (storage / record.model / MODEL).is_dir()
        again = "trains and scores it again" if untrained else "scores it again"
        for why in dict.fromkeys(lost.values()):
            warn_once(
                f"{trial.name}: {why}: `chip-ablate run` {again} "
                "(`chip-ablate rm` takes a trial out instead)"
            )
        ledger.forget(trial.fingerprint, trial.name, lost, model=untrained)


def result_problem(key: str, scored: ScoredBenchmark, storage: Path) -> str | None:
    """Return the problem with the files of a benchmark's figures; None without any.

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
                whole = file_sha256(path) == scored.files[name]
            elif name == evaluation.scores:
                whole = _agrees(path, key, scored)
            else:  # recorded by a version without hashes
                whole = all(line.record is not None for line in read_lines(path))
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if not whole:
            return f"{path} is not as it was written"
    return None


def is_changed(path: Path, expected: str | None) -> bool:
    """Return whether a file is gone or changed. Without a recorded hash the answer is no."""
    try:
        return expected is not None and file_sha256(path) != expected
    except OSError:
        return True


def lost_figures(plan: Plan, ledger: Ledger) -> list[str]:
    """Return the names of trials whose figures are lost by damage, not by a command."""
    undone = {
        trial.fingerprint: trial.name
        for trial in plan.trials
        if not ledger[trial.fingerprint].done(trial)
    }
    if ledger.bad:  # it is unknown whose lines they were
        return [name for fingerprint, name in undone.items() if not ledger[fingerprint].failure]
    return [name for fingerprint, name in undone.items() if fingerprint in ledger.lost]


def kept_report_notice(page: Path, plan: Plan, workdir: Path, lost: list[str]) -> str:
    """Return the notice that a more complete report is not overwritten."""
    named = "; ".join(lost[:5]) + ("; …" if len(lost) > 5 else "")
    own = plan.study.changes != StudyChanges()  # a variant or more seeds: found by its name
    words = ["chip-ablate", "run", plan.study.name if own else plan.study.source]
    again = shlex.join([*words, "--workdir", str(workdir)])
    return (
        f"{page} is kept as it was: the figures of {named} are not there any more: `{again}` makes "
        "them again, and the report with them"
    )


def _agrees(path: Path, key: str, scored: ScoredBenchmark) -> bool:
    """Return whether a file of scores has the same figures as the ledger."""
    side, _, benchmark = key.partition("/")
    prefix = metric_name("select" if side == "select" else "report", benchmark, "")
    try:
        metrics = json.loads(path.read_bytes())["metrics"]
        values = {f"{prefix}{metric['name']}": metric["value"] for metric in metrics}
        items = [item["item"] for metric in metrics for item in metric["items"]]
    except (ValueError, KeyError, TypeError):
        return False
    held = {name: value for name, value in values.items() if value is not None}
    return held == scored.evaluation.metrics and all(isinstance(item, str) for item in items)
