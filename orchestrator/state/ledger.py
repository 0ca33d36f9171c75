"""The ledger: an append-only record of what has run, durable before it is announced.

`ledger/ledger.jsonl` holds one record per event of an attempt; `ledger/*.lock` show which driver
runs which study. Both are on the driver's own file system. A damaged line is left out and reported;
`run` moves it to `ledger/ledger.bad.jsonl`, and restores its content from the trials' folders.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chip_core.results import AnsweredTrial, Evaluation, TrialResult, read_answered
from chip_core.utils.errors import UserError, to_printable, warn_once
from chip_core.utils.files import (
    JsonlLine,
    append_record,
    check_target_path,
    erase_line,
    read_lines,
    write_atomically,
)
from orchestrator.plan.plan import Trial
from orchestrator.study.early_stopping import EarlyStopping
from orchestrator.utils.version import CodeVersion, code_version

AttemptOutcome = Literal["finished", "failed", "killed", "cut"]

#: Folder in the work directory with one folder per study, for the log of the server it starts.
ENGINES_FOLDER = "engines"


@dataclass(frozen=True, kw_only=True)
class ScoredBenchmark:
    """A benchmark's figures, and the folder of their attempt."""

    folder: str  # relative to the storage
    evaluation: Evaluation
    #: sha256 of the folder's files by name; empty if recorded by a version without it
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Attempt:
    """One execution of a trial."""

    study: str  # study that ran it
    started: float | None = None  # seconds since 1970, as `record_end`
    ended: float | None = None
    outcome: AttemptOutcome | None = None  # None: it is running, or its driver died
    folder: str | None = None  # relative to the storage
    code: CodeVersion | None = None  # None: recorded by a version without it
    reason: str | None = None  # why it failed or was killed
    seconds: dict[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # file of its folder -> sha256


@dataclass(kw_only=True)
class TrialRecord:
    """All that is recorded of a trial."""

    attempts: int = 0
    history: dict[int, Attempt] = field(default_factory=dict)  # by attempt number
    finished: set[int] = field(default_factory=set)  # numbers of the attempts that finished
    model: str | None = None  # folder of the attempt that trained, relative to the storage
    steps: int = 0
    #: by evaluation fingerprint
    evaluations: dict[str, ScoredBenchmark] = field(default_factory=dict)
    #: folder of the attempt with the answers, scored or not, by evaluation fingerprint
    answers: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # CPU seconds of one worker, by phase
    machine: str = ""  # device of the attempt that trained, else of the last; empty: unknown
    data: dict[str, int] = field(default_factory=dict)  # pairs, skipped rows, cut responses
    notes: list[str] = field(default_factory=list)  # where it resumed and what it did not use
    engine: dict[str, str] = field(default_factory=dict)  # such as prefix_sharing
    picked: dict[str, Any] = field(default_factory=dict)  # picked checkpoint: TrialResult.picked
    failure: str | None = None  # why the last attempt did not finish
    cut: str | None = None  # early-stopping rule that cut the last attempt
    study: str | None = None  # study that executed it
    arm: str | None = None
    seed: int | None = None

    def missing_evaluations(self, trial: Trial) -> list[str]:
        """Return the keys ("report/shapes") of a trial's missing evaluations."""
        return [
            key
            for key, fingerprint in trial.evaluations.items()
            if fingerprint not in self.evaluations
        ]

    def is_done(self, trial: Trial) -> bool:
        """Return whether the trial is trained and scored on all of its benchmarks."""
        return (trial.untrained or self.model is not None) and not self.missing_evaluations(trial)

    @property
    def is_killed(self) -> bool:
        """Whether the last attempt was stopped from outside, as opposed to failed."""
        return bool(self.history) and self.history[max(self.history)].outcome == "killed"

    def is_cut(self, rule: EarlyStopping | None) -> bool:
        """Return whether this rule cut the trial. It stays cut as long as the rule is the same."""
        return rule is not None and self.cut == rule.description

    def metrics(self, trial: Trial) -> dict[str, float]:
        """Return the trial's available figures by full name."""
        return {
            name: value
            for fingerprint in trial.evaluations.values()
            if fingerprint in self.evaluations
            for name, value in self.evaluations[fingerprint].evaluation.metrics.items()
        }


class Ledger:
    """The ledger of a work directory."""

    def __init__(self, workdir: Path, *, writable: bool = True) -> None:
        """Read the ledger.

        Args:
            workdir: the work directory.
            writable: whether records are written to the file; if not, only this object has them.
        """
        self.workdir, self.folder = workdir, workdir / "ledger"
        self._file = self.folder / "ledger.jsonl"
        self._writable = writable
        self._records: dict[str, TrialRecord] = {}
        self._removed_attempts: dict[str, int] = {}  # of removed trials, to continue their numbers
        self.lost_trials: dict[str, str] = {}  # fingerprint -> name of trials with lost figures
        self.damaged_lines: list[JsonlLine] = []  # damaged lines
        self.reload()

    def reload(self) -> None:
        """Read the file again: another driver may have written to it.

        Raises:
            UserError: the file cannot be read.
        """
        self._records, self._removed_attempts, self.lost_trials, self.damaged_lines = {}, {}, {}, []
        try:
            lines = read_lines(self._file)
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be read ({error.strerror}): move it away: `chip-ablate "
                "run` recovers what is done from the trials' folders"
            ) from None
        for line in lines:
            if line.record is not None and _is_valid_entry(line.record):
                self._apply(line.record)
            elif not line.truncated:
                self.damaged_lines.append(line)
                warn_once(
                    f"{self._file}: line {line.number} has changed since it was written: it is "
                    "ignored; `chip-ablate run` moves it to ledger.bad.jsonl and recovers its "
                    "content from the trials' folders"
                )

    def move_damaged_lines(self) -> None:
        """Move damaged lines to `ledger.bad.jsonl` for inspection."""
        for line in self.damaged_lines:
            try:
                append_record(
                    self._file.with_name("ledger.bad.jsonl"),
                    {"line": line.number, "text": line.text.decode("utf-8", "backslashreplace")},
                )
                erase_line(self._file, line)
            except OSError as error:
                raise self._write_error(error) from error

    def mark_missing(
        self, fingerprint: str, name: str, fingerprints: Iterable[str], *, model: bool
    ) -> None:
        """Mark figures that are gone as missing, until they are made again.

        Args:
            fingerprint: fingerprint of the trial.
            name: display name of the trial.
            fingerprints: fingerprints of the evaluations.
            model: whether the trained model is gone, too.
        """
        record = self._records[fingerprint]
        for key in fingerprints:
            del record.evaluations[key]
        if model:
            record.model = None
        self.lost_trials[fingerprint] = name

    def __getitem__(self, fingerprint: str) -> TrialRecord:
        """Return the record of a fingerprint; an empty one if there is none."""
        record = self._records.get(fingerprint)
        return record or TrialRecord(attempts=self._removed_attempts.get(fingerprint, 0))

    def was_removed(self, fingerprint: str) -> bool:
        """Return whether a trial was removed."""
        return fingerprint in self._removed_attempts and fingerprint not in self._records

    def items(self) -> Iterator[tuple[str, TrialRecord]]:
        """Yield each fingerprint and its record."""
        yield from self._records.items()

    def record_start(self, trial: Trial, study: str, attempt: int) -> None:
        """Record the start of an attempt."""
        self._append(
            trial,
            {
                "event": "started",
                "attempt": attempt,
                "study": study,
                "code": asdict(code_version()),
            },
        )

    def record_answers(
        self, trial: Trial, study: str, attempt: int, folder: str, answered_trial: AnsweredTrial
    ) -> None:
        """Record that an attempt's model has answered, so that only scoring is left."""
        self._append(
            trial,
            {
                "event": "answered",
                "attempt": attempt,
                "study": study,
                "folder": folder,
                **_training_fields(answered_trial),
                "answers": [
                    trial.evaluations[key]
                    for key in (*answered_trial.answers, *answered_trial.evaluations)
                    if key in trial.evaluations
                ],
            },
        )

    def record_result(
        self, trial: Trial, study: str, attempt: int, folder: str, result: TrialResult
    ) -> None:
        """Record an attempt's figures."""
        self._append(
            trial,
            {
                "event": "finished",
                "attempt": attempt,
                "study": study,
                "folder": folder,
                **_training_fields(result),
                "files": result.files,
                "evaluations": {
                    trial.evaluations[key]: evaluation.as_json()
                    for key, evaluation in result.evaluations.items()
                    if key in trial.evaluations
                },
            },
        )

    def record_end(
        self, trial: Trial, study: str, attempt: int, outcome: AttemptOutcome, reason: str
    ) -> None:
        """Record that an attempt failed or was killed."""
        self._append(
            trial, {"event": outcome, "attempt": attempt, "study": study, "reason": reason}
        )

    def record_early_stop(
        self, trial: Trial, study: str, attempt: int, rule: EarlyStopping, reason: str
    ) -> None:
        """Record that early stopping ended an attempt's training."""
        self._append(
            trial,
            {
                "event": "cut",
                "attempt": attempt,
                "study": study,
                "rule": rule.description,
                "reason": reason,
            },
        )

    def record_removal(self, fingerprint: str) -> None:
        """Record that a trial was removed. Only its number of attempts is kept."""
        record = {"time": time.time(), "fingerprint": fingerprint, "event": "removed"}
        self._write(record)
        self._apply(record)

    def _append(self, trial: Trial, entry: Mapping[str, Any]) -> None:
        record = {
            "time": time.time(),
            "fingerprint": trial.fingerprint,
            "arm": trial.arm,
            "seed": trial.seed,
            **entry,
        }
        self._write(record)
        self._apply(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        if not self._writable:
            return
        try:
            append_record(self._file, record)
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> UserError:
        return UserError(
            f"{self._file}: cannot be written ({error.strerror}): free some space or fix the "
            "problem, and run the study again: finished work is not lost"
        )

    def _apply(self, entry: Mapping[str, Any]) -> None:
        if entry["event"] == "removed":
            removed_record = self._records.pop(entry["fingerprint"], TrialRecord())
            self._removed_attempts[entry["fingerprint"]] = removed_record.attempts
            return
        fingerprint = entry["fingerprint"]
        record = self._records.setdefault(
            fingerprint, TrialRecord(attempts=self._removed_attempts.get(fingerprint, 0))
        )
        record.attempts = max(record.attempts, int(entry["attempt"]))
        record.arm, record.seed = entry["arm"], entry["seed"]
        record.cut = entry.get("rule")  # of the last event
        _update_attempt(
            record.history.setdefault(entry["attempt"], Attempt(study=entry["study"])), entry
        )
        if entry["event"] in ("answered", "finished"):
            if entry["trained"]:
                record.model, record.steps = entry["folder"], entry["steps"]
                record.data, record.notes = entry["data"], entry["notes"]
                record.picked = entry.get("picked", {})
                record.engine = entry.get("engine", {})  # missing in records of earlier versions
            record.study = record.study or entry["study"]
            record.seconds = {**record.seconds, **entry["seconds"]}
            record.cpu = {**record.cpu, **entry.get("cpu", {})}
            if entry["trained"] or record.model is None:
                record.machine = entry.get("machine", "")
            record.answers |= dict.fromkeys(entry.get("answers", []), entry["folder"])
        if entry["event"] == "finished":
            record.failure = None
            record.finished.add(entry["attempt"])
            for fingerprint, evaluation in entry["evaluations"].items():
                record.evaluations[fingerprint] = ScoredBenchmark(
                    folder=entry["folder"],
                    evaluation=Evaluation.from_json(evaluation),
                    files=entry.get("files", {}),
                )
        elif entry["event"] in ("failed", "killed", "cut"):
            record.failure = entry["reason"]


def find_answers(trial: Trial, record: TrialRecord, storage: Path) -> Path | None:
    """Return the folder with all answers that a trial has yet to score; None if there is none."""
    if not trial.untrained and record.model is None:
        return None
    folders = {
        record.answers.get(trial.evaluations[key]) for key in record.missing_evaluations(trial)
    }
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None or read_answered(storage / folder) is None:
        return None
    return storage / folder


def _training_fields(result: AnsweredTrial | TrialResult) -> dict[str, Any]:
    """Return the fields of an entry on an attempt's training and time."""
    return {
        "trained": result.steps > 0,
        "steps": result.steps,
        "seconds": result.seconds,
        "cpu": result.cpu,
        "machine": result.machine,
        "data": result.data,
        "notes": result.notes,
        "engine": result.engine,
        **({"picked": result.picked} if result.picked else {}),
    }


def _update_attempt(attempt: Attempt, entry: Mapping[str, Any]) -> None:
    """Update an attempt from an entry."""
    if entry["event"] == "started":
        attempt.started = entry["time"]
        attempt.code = CodeVersion(**entry["code"]) if "code" in entry else None
        return
    if entry["event"] == "answered":
        attempt.folder = entry["folder"]
        return
    attempt.ended, attempt.outcome = entry["time"], entry["event"]
    attempt.reason = entry.get("reason")
    if entry["event"] == "finished":
        attempt.folder, attempt.seconds = entry["folder"], entry["seconds"]
        attempt.files = entry.get("files", {})


#: Required fields of the entries, by event; entries may have further fields.
_COMMON_FIELDS = {"time": (int, float), "fingerprint": str, "event": str}
_ATTEMPT_FIELDS = {"attempt": int, "study": str}
_TRAINING_FIELDS = {
    "folder": str, "trained": bool, "steps": int, "seconds": dict, "data": dict, "notes": list,
}  # fmt: skip
_EVENT_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "started": _ATTEMPT_FIELDS,
    "answered": {**_ATTEMPT_FIELDS, **_TRAINING_FIELDS, "answers": list},
    "finished": {**_ATTEMPT_FIELDS, **_TRAINING_FIELDS, "evaluations": dict},
    "failed": {**_ATTEMPT_FIELDS, "reason": str},
    "killed": {**_ATTEMPT_FIELDS, "reason": str},
    "cut": {**_ATTEMPT_FIELDS, "reason": str},
    "removed": {},
}


def _is_valid_entry(record: Mapping[str, Any]) -> bool:
    """Return whether a record has the required fields of its event."""
    fields = _EVENT_FIELDS.get(str(record.get("event")))
    if fields is None:
        return False
    has_names = {"arm", "seed"} <= record.keys() or record["event"] == "removed"
    if not has_names or not all(
        isinstance(record.get(key), kind) for key, kind in {**_COMMON_FIELDS, **fields}.items()
    ):
        return False
    try:
        if "code" in record:
            CodeVersion(**record["code"])
        for evaluation in record.get("evaluations", {}).values():
            Evaluation.from_json(evaluation)
    except TypeError:
        return False
    return True


@contextmanager
def lock_study(workdir: Path, study: str) -> Iterator[None]:
    """Lock a study for this driver. The lock is released when the process ends, however it does.

    Raises:
        UserError: another driver holds the lock.
    """
    folder = workdir / "ledger"
    path = folder / f"{study}.lock"
    check_target_path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder_file = path.with_suffix(".holder")
            owner = "another process"
            with suppress(OSError):
                owner = (
                    to_printable(holder_file.read_text(encoding="utf-8", errors="replace")) or owner
                )
            raise UserError(
                f"study {study} is being run by {owner}: wait for it, or stop it first"
            ) from None
        write_atomically(
            path.with_suffix(".holder"), f"process {os.getpid()} on {socket.gethostname()}"
        )
        yield
