"""The progress reports of a trial, and the result files in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chip_core.utils.errors import warn_once
from chip_core.utils.files import file_sha256, read_checksummed, write_checksummed

#: Files in a trial's folder.
CONFIG, CURVES, MODEL, RESULT = "config.json", "curves.jsonl", "model", "result.json"
CHECKPOINTS = "checkpoints"  # folder; see chip_core/training/checkpoint.py
TRAINED = "trained.json"  # next to a complete model
SAMPLED = "sample pairs"  # phase of a trial: reading prompts, sampling, ranking, writing pairs
ANSWERED = "answered.json"  # next to the answers to all benchmarks, before they are scored


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a trial."""

    phase: str  # "start", "check data", "train", "answer shapes", "score shapes"
    done: int
    total: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One benchmark's figures, and the files of its item outcomes and responses."""

    metrics: dict[str, float]  # full name -> value; an undefined metric is absent
    items: int
    scores: str  # file in the trial's folder
    responses: str
    #: what readers of the figures need to know: "protocol", "scorer", "judge", "n", "missing",
    #: "unreadable" if there is any, …
    metadata: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as it is stored in files, where its metadata is called `how`."""
        return _as_json(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `as_json` converted.

        Raises:
            TypeError: the fields are others.
        """
        return cls(**_from_json_keys(raw))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answers to one benchmark, as stored in the trial's folder."""

    items: int
    responses: str  # file in the trial's folder
    #: of an `Evaluation`: what is known before scoring
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AnsweredTrial:
    """A trial whose model has answered all benchmarks; scoring needs no model."""

    steps: int  # fields without a comment are as in `TrialResult`
    answers: dict[str, Answers]  # "report/shapes" -> the answers to score
    evaluations: dict[str, Evaluation]  # of benchmarks that an external program scored
    seconds: dict[str, float]
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    machine: str = ""
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256: the responses
    picked: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The result of a trial."""

    steps: int
    evaluations: dict[str, Evaluation]  # "report/shapes" -> its figures
    seconds: dict[str, float]  # by phase
    #: pairs, rows skipped, responses and tokens cut; empty if nothing was trained
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # where it resumed, what was not reused
    #: how the work was done, by engine setting: `prefix_sharing` is `on` or `off (reason)`
    engine: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # CPU seconds of one worker, by phase
    machine: str = ""  # the device it ran on; empty: written by a version that did not record it
    #: if the training was scored at intermediate steps: the `step` of the trial's model, of how
    #: many `steps`, `why`, and `points`: each a `step` (0: untrained) and its `figures` under
    #: `select`
    picked: dict[str, Any] = field(default_factory=dict)
    #: path in its folder -> sha256: the files read later
    files: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All figures by full name."""
        return {
            name: value
            for evaluation in self.evaluations.values()
            for name, value in evaluation.metrics.items()
        }


def write_result(folder: Path, result: TrialResult) -> None:
    """Write a trial's result, its last file."""
    write_checksummed(folder / RESULT, _to_json(result, "evaluations"))


def read_result(folder: Path) -> TrialResult | None:
    """Return the result in a trial's folder; None if it did not finish or its file is damaged."""
    path = folder / RESULT
    try:
        raw = read_checksummed(path)
        raw["evaluations"] = {
            key: Evaluation.from_json(value) for key, value in raw["evaluations"].items()
        }
        return TrialResult(**raw)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warn_once(
            f"{path}: has changed since it was written ({type(error).__name__}): `chip-ablate "
            "run` restores it from the other files"
        )
        return None


def write_answered(folder: Path, answered: AnsweredTrial) -> None:
    """Record that a trial's answers are complete."""
    write_checksummed(folder / ANSWERED, _to_json(answered, "answers", "evaluations"))


def read_answered(folder: Path) -> AnsweredTrial | None:
    """Return the answers in a folder; None if any is missing or changed."""
    try:
        raw = read_checksummed(folder / ANSWERED)
        raw["answers"] = {
            key: Answers(**_from_json_keys(value)) for key, value in raw["answers"].items()
        }
        raw["evaluations"] = {
            key: Evaluation.from_json(value) for key, value in raw["evaluations"].items()
        }
        answered = AnsweredTrial(**raw)
        is_complete = all(
            file_sha256(folder / name) == sha256 for name, sha256 in answered.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return answered if is_complete else None


def _to_json(result: TrialResult | AnsweredTrial, *keys: str) -> dict[str, Any]:
    converted = {
        key: {name: _as_json(entry) for name, entry in getattr(result, key).items()} for key in keys
    }
    return {**asdict(result), **converted}


def _as_json(entry: Evaluation | Answers) -> dict[str, Any]:
    raw = asdict(entry)
    raw["how"] = raw.pop("metadata")  # the key in files since the first version
    return raw


def _from_json_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata" if key == "how" else key: value for key, value in {**raw}.items()}


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> sha256 of those of the named files that exist in a folder."""
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}
