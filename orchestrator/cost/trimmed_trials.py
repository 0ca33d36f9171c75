"""Record which trials the last run left out for its budget."""

from __future__ import annotations

from pathlib import Path

from chip_core.utils.errors import warn_once
from chip_core.utils.files import read_checksummed, write_checksummed
from orchestrator.cost.budget import TrimmedPlan
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

TRIMMED_FILE = "left_out.json"  # in a study's folder


def save_trimmed(workdir: Path, study: str, trimmed: TrimmedPlan | None) -> None:
    """Save what is left out, and remove an older file if nothing is."""
    file = _trimmed_file(workdir, study)
    if trimmed is None or not trimmed.trials:
        file.unlink(missing_ok=True)
        return
    write_checksummed(file, {"trials": list(trimmed.trials), "sentence": trimmed.sentence})


def trimmed_notes(plan: Plan, ledger: Ledger) -> tuple[str, ...]:
    """Return the report's note on trials left out; empty once all of them are done."""
    file = _trimmed_file(ledger.folder.parent, plan.study.name)
    try:
        saved = read_checksummed(file)
        trials, sentence = set(map(str, saved["trials"])), str(saved["sentence"])
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, KeyError, TypeError):
        warn_once(f"{file} is not as it was written: what was left out for a budget is not known")
        return ()
    not_done = {
        trial.fingerprint for trial in plan.trials if not ledger[trial.fingerprint].is_done(trial)
    }
    count = len(not_done & trials)
    if not count:
        return ()
    sentence = f"{sentence[:1].upper()}{sentence[1:]}."
    total = len(trials)
    return (sentence if count == total else f"{sentence} Of these {total - count} are done since.",)


def _trimmed_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / TRIMMED_FILE
