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
from chip_core.utils.files import without_checksum
from orchestrator.jobs.attempt import TRACEBACK_FILE
from orchestrator.plan.snapshot import iter_plan_snapshots
from orchestrator.report.formatting import NOTHING
from orchestrator.report.sections.provenance import code_text, when
from orchestrator.state.integrity import is_file_changed
from orchestrator.state.ledger import Attempt, Ledger, TrialRecord
from orchestrator.state.trial_lookup import trial_name
from orchestrator.storage.binding import find_storage

_TOLD_FIRST = ("protocol", "scorer", "judge", "n", "missing")


def trial_facts(workdir: Path, fingerprint: str) -> dict[str, Any]:
    """Return everything that is recorded of a trial, as plain data.

    Args:
        workdir: the work directory.
        fingerprint: the full fingerprint of the trial.
    """
    record = Ledger(workdir)[fingerprint]
    wanting = [plan for plan in iter_plan_snapshots(workdir) if fingerprint in plan.trials]
    known = wanting[0].trials[fingerprint] if wanting else None
    return {
        "fingerprint": fingerprint,
        "trial": trial_name(record),
        "arm": record.arm,
        "seed": record.seed,
        "executed_for": record.study,
        "studies": [
            {"study": plan.study, "file": plan.file, "arm": plan.trials[fingerprint].arm}
            for plan in wanting
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
        "model": None if known is None else dict(known.model),
        "data": None if known is None or known.data is None else dict(known.data),
        "data_counts": dict(record.data),
        "config": _config(workdir, record),
        "steps": record.steps,
        "seconds": dict(record.seconds),
        "engine": dict(record.engine),
        "notes": list(record.notes),
        "picked": dict(record.picked),
        "failure": record.failure,
        "trained_model": None if record.model is None else _model(workdir, record.model),
        "attempts": [
            _attempt(workdir, fingerprint, number, attempt)
            for number, attempt in sorted(record.history.items())
        ],
    }


def _model(workdir: Path, folder: str) -> str:
    remote = find_storage(workdir)
    return f"{workdir if remote is None else remote.uri}/{folder}/{MODEL}"


def fact_lines(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Format the result of `trial_facts` for the terminal."""
    yield Text(facts["trial"], style="bold")
    yield Text(f"fingerprint {facts['fingerprint']}")
    for one in facts["studies"]:
        executed = "" if one["study"] != facts["executed_for"] else ", which it was run for"
        yield Text(f"in study {one['study']} ({one['file']}) as {one['arm']}{executed}")
    if facts["failure"] is not None:
        yield Text(f"failed: {facts['failure']}")
    yield from _figure_lines(facts)
    for name in ("model", "data", "data_counts", "engine", "seconds"):
        if facts[name]:
            yield Text(f"{name.replace('_', ' ')}: {_listed(facts[name])}")
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
        how = entry["how"]
        told = [f"{key} {_plain(how[key])}" for key in _TOLD_FIRST if how.get(key) is not None]
        told += [f"{key} {_plain(how[key])}" for key in how if key not in _TOLD_FIRST]
        yield Text(f"  evaluation {entry['evaluation'][:12]}: {', '.join(told)}")
        yield Text(f"  scores in {entry['scores']}, answers in {entry['responses']}")


def _attempt_table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("attempt", "began (UTC)", "ended (UTC)", "outcome", "code", "folder"):
        table.add_column(title, overflow="fold")
    for entry in facts["attempts"]:
        reason = f": {entry['reason']}" if entry["reason"] else ""
        table.add_row(
            str(entry["number"]),
            when(entry["started"]),
            when(entry["ended"]),
            Text(f"{entry['outcome'] or 'runs, or its driver died'}{reason}"),
            Text(entry["code"]),
            Text(entry["folder"] or NOTHING),
        )
    return table


def _attempt(workdir: Path, fingerprint: str, number: int, attempt: Attempt) -> dict[str, Any]:
    folder = workdir / "trials" / fingerprint[:16] / f"attempt-{number}"
    left = [folder / name for name in (CONFIG, CURVES, TRACEBACK_FILE) if (folder / name).is_file()]
    code = attempt.code
    return {
        "number": number,
        "study": attempt.study,
        "started": attempt.started,
        "ended": attempt.ended,
        "outcome": attempt.outcome,
        "reason": attempt.reason,
        "seconds": dict(attempt.seconds),
        "code": code_text(code),
        "version": None if code is None else code.version,
        "commit": None if code is None else code.commit,
        "uncommitted": None if code is None else code.uncommitted,
        "folder": str(folder) if folder.is_dir() else None,
        "files": [str(path) for path in left],
    }


def _config(workdir: Path, record: TrialRecord) -> dict[str, Any] | None:
    """Return the configuration of the attempt that trained, else of the last one that has it."""
    hashes = {
        one.folder: one.files.get(CONFIG)
        for _, one in sorted(record.history.items())
        if one.folder is not None
    }
    for folder in [*([record.model] if record.model else []), *reversed(hashes)]:
        file = workdir / folder / CONFIG
        try:
            found = without_checksum(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            found = None
        if found is not None and not is_file_changed(file, hashes.get(folder)):
            return found
        warn_once(f"{file} is not as it was written: the configuration is not shown")
        return None
    return None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
