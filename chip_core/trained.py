"""A finished training in its attempt's folder, as another attempt reuses it.

An attempt can end between training and its last figure. Its model is complete by then, so the next
attempt reuses the model and only scores it.
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
from chip_core.utils.files import file_sha256, read_checksummed, sync_folder, write_checksummed

#: The picked model, while it replaces the models that it was picked from.
PICKED = f".{MODEL}.picked"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The record of a finished training."""

    steps: int
    seconds: float
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)  # TrialResult.engine
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)  # identifies these weights
    #: file of the model -> sha256; empty: written by a version that did not record it
    files: dict[str, str] = field(default_factory=dict)
    #: the steps of the models in the model's folder, the last step included, of which one is still
    #: to be picked; empty: the folder holds the trial's model
    kept: list[int] = field(default_factory=list)
    picked: dict[str, Any] = field(default_factory=dict)  # TrialResult.picked
    training: str = ""  # `compute_training_fingerprint` of its configuration; empty: as for `files`


def write_trained(folder: Path, trained: TrainedModel) -> None:
    """Record that a folder's model is complete."""
    write_checksummed(folder / TRAINED, asdict(trained))


def read_trained(folder: Path) -> TrainedModel | None:
    """Return a folder's training record; None if the model is incomplete or the record invalid."""
    if not has_model(folder):
        return None
    try:
        return TrainedModel(**read_checksummed(folder / TRAINED))
    except (OSError, ValueError, TypeError):
        return None  # it was changed since, so its content cannot be trusted


def has_model(folder: Path) -> bool:
    """Return whether an attempt left a model that it recorded as complete."""
    exists = (folder / MODEL).is_dir() or (folder / PICKED).is_dir()
    return exists and (folder / TRAINED).exists()


def hash_model_files(model: Path) -> dict[str, str]:
    """Return path -> sha256 of the files that are read from a model's folder."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != ".md")
    return {path.relative_to(model).as_posix(): file_sha256(path) for path in files}


def compute_training_fingerprint(config: TrialConfig) -> str:
    """Return a fingerprint of a training's settings, independent of where model and data are."""
    return fingerprint(training_identity(config, {}, {}))


def find_model_problem(model: Path, config: TrialConfig | None = None) -> str | None:
    """Return why a trained model is not the one that was written; None if nothing shows that.

    Args:
        model: its folder.
        config: the configuration it must have been trained with; None: any.
    """
    if model.name != MODEL or not has_model(model.parent):
        return None
    trained = read_trained(model.parent)
    if trained is None:
        return f"{model.parent / TRAINED} has changed since it was written"
    if config is not None and trained.training not in ("", compute_training_fingerprint(config)):
        return f"{model} belongs to another training"
    for name, expected in trained.files.items():
        path = model / name
        try:
            actual = file_sha256(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if actual != expected:
            return f"{path} has changed since it was written: its sha256 differs"
    return None


def check_model(model: Path, config: TrialConfig | None = None) -> None:
    """Check that a trained model is the one that was written, before reading it.

    Args:
        model: its folder.
        config: as for `find_model_problem`.

    Raises:
        TrialError: it is a different one.
    """
    problem = find_model_problem(model, config)
    if problem is not None:
        raise TrialError(
            f"{problem}: remove its trial with `chip-ablate rm TRIAL`, and `chip-ablate run` "
            "trains it again"
        )


def adopt_model(earlier: Path, folder: Path) -> TrainedModel | None:
    """Move an earlier attempt's trained model into `folder`; return None if there is none.

    If it is killed at any point, one of the two folders holds the complete model.
    """
    trained = read_trained(earlier)
    if trained is None:
        return None
    if not trained.files:
        trained = replace(trained, files=hash_model_files(earlier / MODEL))
    folder.mkdir(parents=True, exist_ok=True)
    write_trained(folder, trained)
    (earlier / MODEL).replace(folder / MODEL)
    sync_folder(folder)
    return trained


def get_weights_fingerprint(model: Path) -> str:
    """Return an identifier of a trained model's weights."""
    trained = read_trained(model.parent) if model.name == MODEL else None
    if trained is not None:
        return trained.mark
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def hash_weights_content(model: Path) -> str:
    """Return a hash of all that decides a trained model's outputs, whichever training made it.

    PEFT writes an adapter's settings in no fixed order. For our own trainings, the fingerprint of
    the training's settings is hashed instead.
    """
    trained = read_trained(model.parent) if model.name == MODEL else None
    is_recorded = trained is not None and trained.files and trained.training
    files = trained.files if is_recorded and trained is not None else hash_model_files(model)
    settings = trained.training if is_recorded and trained is not None else ""
    hashed = {
        name: sha256 for name, sha256 in files.items() if not settings or name != ADAPTER_CONFIG
    }
    return fingerprint({"files": hashed, "training": settings})
