"""Record which trials the last run left out for its budget."""

from __future__ import annotations

from pathlib import Path

from chip_core.utils.errors import warn_once
from chip_core.utils.files import read_checksummed, write_checksummed
from orchestrator.cost.budget import Trimmed
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

LEFT_OUT = "left_out.json"  # in a study's folder


def save_trimmed(workdir: Path, study: str, trimmed: Trimmed | None) -> None:
    """Save what is left out, and remove an older file if nothing is."""
    file = _file(workdir, study)
    if trimmed is None or not trimmed.trials:
        file.unlink(missing_ok=True)
        return
    write_checksummed(file, {"trials": list(trimmed.trials), "sentence": trimmed.sentence})


def trimmed_notes(plan: Plan, ledger: Ledger) -> tuple[str, ...]:
    """Return the report's note on trials left out; empty once all of them are done."""
    file = _file(ledger.folder.parent, plan.study.name)
    try:
        kept = read_checksummed(file)
        trials, sentence = set(map(str, kept["trials"])), str(kept["sentence"])
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, KeyError, TypeError):
        warn_once(f"{file} is not as it was written: what was left out for a budget is not known")
        return ()
    waiting = {
        trial.fingerprint for trial in plan.trials if not ledger[trial.fingerprint].is_done(trial)
    }
    count = len(waiting & trials)
    if not count:
        return ()
    sentence = f"{sentence[:1].upper()}{sentence[1:]}."
    whole = len(trials)
    return (sentence if count == whole else f"{sentence} Of these {whole - count} are done since.",)


def _file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / LEFT_OUT
