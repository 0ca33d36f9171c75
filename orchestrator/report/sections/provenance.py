"""Collect the provenance of every figure: configuration, code, data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from chip_core.config.trial import BEHAVIOUR
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.formatting import NO_VALUE
from orchestrator.report.layout import Disclosure, Table, TextBlock, make_columns, text_row
from orchestrator.report.sections.search import search_to_json
from orchestrator.state.ledger import Attempt, Ledger, TrialRecord
from orchestrator.state.search import SearchTrial
from orchestrator.utils.version import CodeVersion

_HASH_LENGTH = 12  # hex digits that identify a trial within a study


def collect_provenance(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Return the provenance of every figure, as plain data."""
    study = plan.study
    return {
        "study": study.name,
        "question": study.question,
        "file": study.source,
        "recipe": study.recipe,
        "baseline": dict(study.baseline),
        "seeds": list(study.seeds),
        "behaviour": BEHAVIOUR,
        "evaluations": dict(plan.base.evaluations),
        "benchmarks": study.benchmarks.model_dump(mode="json"),
        "benchmark_contents": {key: dict(contents) for key, contents in plan.benchmarks.items()},
        "search": search_to_json(plan, ledger),
        "trials": [
            {
                **_trial_to_json(trial, ledger[trial.fingerprint]),
                "model": dict(plan.identity(trial.config.model)),
                "data": None if trial.untrained else dict(plan.identity(trial.config.data)),
                "config": trial.config.model_dump(mode="json"),
            }
            for trial in plan.trials
        ],
    }


def provenance_blocks(plan: Plan, ledger: Ledger, provenance: Mapping[str, Any]) -> list[Any]:
    """Return the part of the provenance shown on the page; provenance.json has all of it."""
    rows = []
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        attempt = _training_attempt(record)
        rows.append(
            text_row(
                trial.name,
                trial.fingerprint[:_HASH_LENGTH],
                format_time(None if attempt is None else attempt.ended),
                f"{sum(record.seconds.values()):,.0f}" if record.seconds else NO_VALUE,
                str(record.attempts or NO_VALUE),
                format_code_version(None if attempt is None else attempt.code),
                "" if record.study in (None, plan.study.name) else f"study {record.study}",
            )
        )
    first = provenance["trials"][0]
    models = {json.dumps(entry["model"], sort_keys=True) for entry in provenance["trials"]}
    data_sets = {
        json.dumps(entry["data"], sort_keys=True) for entry in provenance["trials"] if entry["data"]
    }
    return [
        TextBlock(
            bulleted=True,
            lines=(
                f"Study file: {provenance['file']}; recipe: {provenance['recipe']}; baseline: "
                + ", ".join(f"{key} = {value}" for key, value in provenance["baseline"].items())
                + ".",
                *(f"Model: {text}." for text in sorted(models)),
                *(f"Data: {text}." for text in sorted(data_sets)),
                *(
                    f"Benchmark {name}: evaluation {fingerprint[:_HASH_LENGTH]}."
                    for name, fingerprint in provenance["evaluations"].items()
                ),
                f"Behaviour number of the package: {provenance['behaviour']}.",
                "Every trial's whole configuration, fingerprint and history: provenance.json.",
            ),
        ),
        Table(
            name="provenance",
            caption="Every trial: its settings and when it ran. Equal fingerprints are one trial.",
            columns=make_columns(
                "trial", "fingerprint", "ended (UTC)", "seconds", "attempts", "code", "run for",
                text=(0, 1, 2, 5, 6),
            ),
            rows=tuple(rows),
        ),
        Disclosure(
            title="The untrained model's configuration: shared by all trials except for factors "
                "and seed",
            text=json.dumps(first["config"], indent=1, ensure_ascii=False),
        ),
    ]  # fmt: skip


def last_end_time(plan: Plan, ledger: Ledger) -> float | None:
    """Return the end of the last of a plan's trials, in seconds since 1970."""
    ends = [
        attempt.ended
        for trial in plan.trials
        for attempt in ledger[trial.fingerprint].history.values()
        if attempt.ended is not None
    ]
    return max(ends, default=None)


def format_time(seconds: float | None) -> str:
    """Format a time in UTC, to the minute."""
    if seconds is None:
        return NO_VALUE
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def format_code_version(code: CodeVersion | None) -> str:
    """Format a code version for a table."""
    if code is None:
        return "not noted"
    if code.commit is None:
        return code.version
    return f"{code.version}, {code.commit[:10]}" + (" and changes" if code.uncommitted else "")


def _trial_to_json(trial: Trial, record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "arm": trial.arm,
        "seed": trial.seed,
        "factors": dict(trial.params),
        "searched": dict(trial.values) if isinstance(trial, SearchTrial) else None,
        "fingerprint": trial.fingerprint,
        "executed_for": record.study,
        "steps": record.steps,
        "seconds": dict(record.seconds),
        "data_counts": dict(record.data),
        "engine": dict(record.engine),
        "notes": list(record.notes),
        "figures": record.metrics(trial),
        "scored": {
            key: dict(record.evaluations[fingerprint].evaluation.metadata)
            for key, fingerprint in trial.evaluations.items()
            if fingerprint in record.evaluations
        },
        "attempts": [
            _attempt_to_json(number, attempt) for number, attempt in sorted(record.history.items())
        ],
    }


def code_to_json(code: CodeVersion | None) -> dict[str, Any]:
    """Return a code version as plain data; only null values if it was not noted."""
    names = [field.name for field in fields(CodeVersion)]
    return dict.fromkeys(names) if code is None else asdict(code)


def _attempt_to_json(number: int, attempt: Attempt) -> dict[str, Any]:
    return {
        "number": number,
        "study": attempt.study,
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": attempt.outcome,
        "folder": attempt.folder,
        **code_to_json(attempt.code),
    }


def _training_attempt(record: TrialRecord) -> Attempt | None:
    """Return the attempt that trained; for the untrained model, the last that finished."""
    finished = [
        attempt for _, attempt in sorted(record.history.items()) if attempt.outcome == "finished"
    ]
    trained = [attempt for attempt in finished if attempt.folder == record.model]
    return next(reversed(trained or finished), None)
