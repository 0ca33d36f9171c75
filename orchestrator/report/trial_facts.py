"""Collect everything that is recorded of a trial, for `show`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.results import CONFIG, CURVES, MODEL
from chip_core.utils.errors import warn_once
from chip_core.utils.files import parse_checksummed
from orchestrator.jobs.attempt import TRACEBACK_FILE
from orchestrator.plan.snapshot import iter_plan_snapshots
from orchestrator.report.formatting import NO_VALUE
from orchestrator.report.sections.provenance import code_to_json, format_code_version, format_time
from orchestrator.state.integrity import is_file_changed
from orchestrator.state.ledger import Attempt, Ledger, TrialRecord
from orchestrator.state.trial_lookup import trial_name
from orchestrator.storage.binding import find_storage

_FIRST_KEYS = ("protocol", "scorer", "judge", "n", "missing")


def collect_trial_facts(workdir: Path, fingerprint: str) -> dict[str, Any]:
    """Return everything that is recorded of a trial, as plain data.

    Args:
        workdir: the work directory.
        fingerprint: the full fingerprint of the trial.
    """
    record = Ledger(workdir)[fingerprint]
    plans = [plan for plan in iter_plan_snapshots(workdir) if fingerprint in plan.trials]
    planned = plans[0].trials[fingerprint] if plans else None
    return {
        "fingerprint": fingerprint,
        "trial": trial_name(record),
        "arm": record.arm,
        "seed": record.seed,
        "executed_for": record.study,
        "studies": [
            {"study": plan.study, "file": plan.file, "arm": plan.trials[fingerprint].arm}
            for plan in plans
        ],
        "figures": {
            name: value
            for scored in record.evaluations.values()
            for name, value in scored.evaluation.metrics.items()
        },
        "evaluations": [
            {
                "evaluation": key,
                "metrics": dict(scored.evaluation.metrics),
                "items": scored.evaluation.items,
                "how": dict(scored.evaluation.metadata),
                "scores": str(workdir / scored.folder / scored.evaluation.scores),
                "responses": str(workdir / scored.folder / scored.evaluation.responses),
            }
            for key, scored in record.evaluations.items()
        ],
        "model": None if planned is None else dict(planned.model),
        "data": None if planned is None or planned.data is None else dict(planned.data),
        "data_counts": dict(record.data),
        "config": _read_config(workdir, record),
        "steps": record.steps,
        "seconds": dict(record.seconds),
        "engine": dict(record.engine),
        "notes": list(record.notes),
        "picked": dict(record.picked),
        "failure": record.failure,
        "trained_model": None if record.model is None else _model_location(workdir, record.model),
        "attempts": [
            _attempt_facts(workdir, fingerprint, number, attempt)
            for number, attempt in sorted(record.history.items())
        ],
    }


def _model_location(workdir: Path, folder: str) -> str:
    remote = find_storage(workdir)
    return f"{workdir if remote is None else remote.uri}/{folder}/{MODEL}"


def fact_lines(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Format the result of `collect_trial_facts` for the terminal."""
    yield Text(facts["trial"], style="bold")
    yield Text(f"fingerprint {facts['fingerprint']}")
    for study in facts["studies"]:
        executed = "" if study["study"] != facts["executed_for"] else ", which it was run for"
        yield Text(f"in study {study['study']} ({study['file']}) as {study['arm']}{executed}")
    if facts["failure"] is not None:
        yield Text(f"failed: {facts['failure']}")
    yield from _figure_lines(facts)
    for name in ("model", "data", "data_counts", "engine", "seconds"):
        if facts[name]:
            yield Text(f"{name.replace('_', ' ')}: {_format_mapping(facts[name])}")
    if facts["steps"]:
        yield Text(f"steps: {facts['steps']}")
    for note in facts["notes"]:
        yield Text(f"note: {note}")
    yield _attempt_table(facts)
    if facts["trained_model"] is not None:
        yield Text(f"model in {facts['trained_model']}")
    if facts["config"] is not None:
        yield Text("\nconfiguration", style="bold")
        yield Text(yaml.safe_dump(facts["config"], sort_keys=False, default_flow_style=None))


def _figure_lines(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not facts["evaluations"]:
        yield Text("no figures yet")
    for entry in facts["evaluations"]:
        for name, value in entry["metrics"].items():
            yield Text(f"{name} = {value:.4f}")
        metadata = entry["how"]
        first = {key: metadata[key] for key in _FIRST_KEYS if metadata.get(key) is not None}
        others = {key: value for key, value in metadata.items() if key not in _FIRST_KEYS}
        yield Text(f"  evaluation {entry['evaluation'][:12]}: {_format_mapping(first | others)}")
        yield Text(f"  scores in {entry['scores']}, answers in {entry['responses']}")


def _attempt_table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("attempt", "began (UTC)", "ended (UTC)", "outcome", "code", "folder"):
        table.add_column(title, overflow="fold")
    for entry in facts["attempts"]:
        reason = f": {entry['reason']}" if entry["reason"] else ""
        table.add_row(
            str(entry["number"]),
            format_time(entry["started"]),
            format_time(entry["ended"]),
            Text(f"{entry['outcome'] or 'runs, or its driver died'}{reason}"),
            Text(entry["code"]),
            Text(entry["folder"] or NO_VALUE),
        )
    return table


def _attempt_facts(
    workdir: Path, fingerprint: str, number: int, attempt: Attempt
) -> dict[str, Any]:
    folder = workdir / "trials" / fingerprint[:16] / f"attempt-{number}"
    files = [
        folder / name for name in (CONFIG, CURVES, TRACEBACK_FILE) if (folder / name).is_file()
    ]
    return {
        "number": number,
        "study": attempt.study,
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "seconds": dict(attempt.seconds),
        "code": format_code_version(attempt.code),
        **code_to_json(attempt.code),
        "folder": str(folder) if folder.is_dir() else None,
        "files": [str(path) for path in files],
    }


def _read_config(workdir: Path, record: TrialRecord) -> dict[str, Any] | None:
    """Return the configuration of the attempt that trained, else of the last one that has it."""
    hashes = {
        attempt.folder: attempt.files.get(CONFIG)
        for _, attempt in sorted(record.history.items())
        if attempt.folder is not None
    }
    for folder in [*([record.model] if record.model else []), *reversed(hashes)]:
        file = workdir / folder / CONFIG
        try:
            config = parse_checksummed(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            config = None
        if config is not None and not is_file_changed(file, hashes.get(folder)):
            return config
        warn_once(f"{file} has changed since it was written: the configuration is not shown")
        return None
    return None


def _format_mapping(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_format_value(value)}" for key, value in values.items())


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
