"""What a trial tells while it runs, and what it leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chip_core.utils.errors import warn_once
from chip_core.utils.files import read_checksummed, sha256_of, write_checksummed

#: What lies in a trial's folder.
CONFIG, CURVES, MODEL, RESULT = "config.json", "curves.jsonl", "model", "result.json"
CHECKPOINTS = "checkpoints"  # folder; see chip_core/training/checkpoint.py
TRAINED = "trained.json"  # beside a model that is whole
SAMPLED = "sample pairs"  # phase of a trial: reading prompts, sampling, ranking, writing pairs
ANSWERED = "answered.json"  # beside answers to all benchmarks, which are still to be scored


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a trial is."""

    phase: str  # "start", "check data", "train", "answer shapes", "score shapes"
    done: int
    total: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One benchmark's figures and where its item outcomes and responses lie."""

    metrics: dict[str, float]  # full name -> value; an undefined metric is not there
    items: int
    scores: str  # file in the trial's folder
    responses: str
    #: what has to be known beside the figures: "protocol", "scorer", "judge", "n", "missing",
    #: "unreadable" where there is any, …
    metadata: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as it lies in files, where its metadata is `how`."""
        return _as_json(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Evaluation:
        """Return what `as_json` made.

        Raises:
            TypeError: it is something else.
        """
        return cls(**_fields(raw))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A model's answers to one benchmark, as they lie in the trial's folder."""

    items: int
    responses: str  # file in the trial's folder
    metadata: dict[str, Any] = field(
        default_factory=dict
    )  # of an `Evaluation`: what is known by then


@dataclass(frozen=True, kw_only=True)
class AnsweredTrial:
    """A trial whose model has answered all benchmarks: scoring them needs no model."""

    steps: int  # as are those without a remark in `TrialResult`
    answers: dict[str, Answers]  # "report/shapes" -> what is to be scored
    evaluations: dict[str, Evaluation]  # of benchmarks that a program of their own scored
    seconds: dict[str, float]
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    machine: str = ""
    files: dict[str, str] = field(default_factory=dict)  # of its folder -> sha256: the responses
    picked: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial came to."""

    steps: int
    evaluations: dict[str, Evaluation]  # "report/shapes" -> its figures
    seconds: dict[str, float]  # by phase
    #: pairs, rows skipped, responses and tokens cut; empty where nothing was trained
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # where it was resumed, what was not used
    #: how the work was done, by engine setting: `prefix_sharing` is `on` or `off (reason)`
    engine: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # CPU seconds of one worker, by phase
    machine: str = ""  # the device it ran on; empty: noted by a version that did not note it
    #: of a training that was scored on its way: the `step` of the trial's model, of how many
    #: `steps`, `why`, and `points`: each a `step` (0: untrained) and its `figures` under `select`
    picked: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(
        default_factory=dict
    )  # of its folder -> sha256: what is read later

    @property
    def metrics(self) -> dict[str, float]:
        """All figures by full name."""
        return {
            name: value
            for evaluation in self.evaluations.values()
            for name, value in evaluation.metrics.items()
        }


def write_result(folder: Path, result: TrialResult) -> None:
    """Leave a trial's result: the last that it writes."""
    write_checksummed(folder / RESULT, _with_json(result, "evaluations"))


def read_result(folder: Path) -> TrialResult | None:
    """Return what a trial's folder holds; None where it did not end, or its file is damaged."""
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
            f"{path}: is not as it was written ({type(error).__name__}): what its trial came to "
            "is made again, by `chip-ablate run`, from what else is there"
        )
        return None


def write_answered(folder: Path, answered: AnsweredTrial) -> None:
    """Note that a trial's answers are whole."""
    write_checksummed(folder / ANSWERED, _with_json(answered, "answers", "evaluations"))


def read_answered(folder: Path) -> AnsweredTrial | None:
    """Return the answers that a folder holds; None where they are not all there as written."""
    try:
        raw = read_checksummed(folder / ANSWERED)
        raw["answers"] = {key: Answers(**_fields(value)) for key, value in raw["answers"].items()}
        raw["evaluations"] = {
            key: Evaluation.from_json(value) for key, value in raw["evaluations"].items()
        }
        answered = AnsweredTrial(**raw)
        whole = all(sha256_of(folder / name) == mark for name, mark in answered.files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return answered if whole else None


def _with_json(result: TrialResult | AnsweredTrial, *keys: str) -> dict[str, Any]:
    held = {
        key: {name: _as_json(entry) for name, entry in getattr(result, key).items()} for key in keys
    }
    return {**asdict(result), **held}


def _as_json(entry: Evaluation | Answers) -> dict[str, Any]:
    raw = asdict(entry)
    raw["how"] = raw.pop("metadata")  # as it was called when the first files were written
    return raw


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata" if key == "how" else key: value for key, value in {**raw}.items()}


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of a folder's files, of those that are there, by name."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}
