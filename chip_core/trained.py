"""A training that has ended, as it lies in its attempt's folder: what another attempt needs of it.

An attempt can end between training and the last figure. Its model is whole by then, so the next
attempt takes it over and only scores.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.models import ADAPTER_CONFIG
from chip_core.results import MODEL, TRAINED
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_checksummed, sha256_of, sync_folder, write_checksummed

#: The model that was picked, while it takes the place of those that it was picked from.
PICKED = f".{MODEL}.picked"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What a training came to."""

    steps: int
    seconds: float
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)  # TrialResult.engine
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)  # of these weights, no others
    #: file of the model -> sha256; empty: written by a version that did not note it
    files: dict[str, str] = field(default_factory=dict)
    #: after which steps models lie in the model's folder, the end as the last, of which one is
    #: still to be picked; empty: it is the trial's
    kept: list[int] = field(default_factory=list)
    picked: dict[str, Any] = field(default_factory=dict)  # TrialResult.picked
    training: str = ""  # `training_fingerprint` of its configuration; empty: as `files`


def write_trained(folder: Path, trained: TrainedModel) -> None:
    """Note that a folder's model is whole."""
    write_checksummed(folder / TRAINED, asdict(trained))


def read_trained(folder: Path) -> TrainedModel | None:
    """Return what a folder's training came to; None where none can be told."""
    if not has_model(folder):
        return None
    try:
        return TrainedModel(**read_checksummed(folder / TRAINED))
    except (OSError, ValueError, TypeError):
        return None  # it was changed since: what it says of the model is not known


def has_model(folder: Path) -> bool:
    """Return whether an attempt left a model that it called whole."""
    there = (folder / MODEL).is_dir() or (folder / PICKED).is_dir()
    return there and (folder / TRAINED).exists()


def model_files(model: Path) -> dict[str, str]:
    """Return the sha256 of all that is read of a model's folder, by the files' paths in it."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != ".md")
    return {path.relative_to(model).as_posix(): sha256_of(path) for path in files}


def training_fingerprint(config: TrialConfig) -> str:
    """Return what tells a training from others by its settings, wherever model and data lie."""
    return fingerprint(training_identity(config, {}, {}))


def model_problem(model: Path, config: TrialConfig | None = None) -> str | None:
    """Return why a trained model is not the one that was written; None where nothing says so.

    Args:
        model: its folder.
        config: what it is to be trained with; None: whatever it was.
    """
    if model.name != MODEL or not has_model(model.parent):
        return None
    trained = read_trained(model.parent)
    if trained is None:
        return f"{model.parent / TRAINED} is not as it was written"
    if config is not None and trained.training not in ("", training_fingerprint(config)):
        return f"{model} is of another training"
    for name, expected in trained.files.items():
        path = model / name
        try:
            found = sha256_of(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if found != expected:
            return f"{path} is not as it was written: its sha256 is another"
    return None


def check_model(model: Path, config: TrialConfig | None = None) -> None:
    """Check that a trained model is the one that was written, before it is read.

    Args:
        model: its folder.
        config: as for `model_problem`.

    Raises:
        TrialError: it is not.
    """
    why = model_problem(model, config)
    if why is not None:
        raise TrialError(
            f"{why}: take its trial out by `chip-ablate rm TRIAL`, and `chip-ablate run` trains "
            "it again"
        )


def adopt_model(earlier: Path, folder: Path) -> TrainedModel | None:
    """Move an earlier attempt's trained model here; None where it has none.

    Killed at any point, one of the two folders holds it whole.
    """
    trained = read_trained(earlier)
    if trained is None:
        return None
    if not trained.files:
        trained = replace(trained, files=model_files(earlier / MODEL))
    folder.mkdir(parents=True, exist_ok=True)
    write_trained(folder, trained)
    (earlier / MODEL).replace(folder / MODEL)
    sync_folder(folder)
    return trained


def weights_fingerprint(model: Path) -> str:
    """Return what tells a trained model's weights from all others."""
    trained = read_trained(model.parent) if model.name == MODEL else None
    if trained is not None:
        return trained.mark
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def weights_content(model: Path) -> str:
    """Return a hash of all that decides what a trained model says, whichever training made it.

    What PEFT writes of an adapter's settings is in no fixed order: of a training of ours, its
    settings stand for that.
    """
    trained = read_trained(model.parent) if model.name == MODEL else None
    known = trained is not None and trained.files and trained.training
    files = trained.files if known and trained is not None else model_files(model)
    settings = trained.training if known and trained is not None else ""
    kept = {name: mark for name, mark in files.items() if not settings or name != ADAPTER_CONFIG}
    return fingerprint({"files": kept, "training": settings})
