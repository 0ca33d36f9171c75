"""A training that has ended, as it lies in its attempt's folder: what another attempt needs of it.

An attempt can end between training and the last figure. Its model is whole by then, so the next
attempt takes it over and only scores.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from chip_core.files import read_json, sync_folder, write_json
from chip_core.results import MODEL, TRAINED


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to."""

    steps: int
    seconds: float
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)  # TrialResult.engine
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)  # of these weights, no others


def write_trained(folder: Path, trained: Trained) -> None:
    """Note that a folder's model is whole."""
    write_json(folder / TRAINED, asdict(trained))


def read_trained(folder: Path) -> Trained | None:
    """Return what a folder's training came to; None where none can be told."""
    if not (folder / MODEL).is_dir() or not (folder / TRAINED).exists():
        return None
    try:
        return Trained(**read_json(folder / TRAINED))
    except (OSError, ValueError, TypeError):
        return None  # it was changed since: what it says of the model is not known


def take_over(earlier: Path, folder: Path) -> Trained | None:
    """Move an earlier attempt's trained model here; None where it has none.

    Killed at any point, one of the two folders holds it whole.
    """
    trained = read_trained(earlier)
    if trained is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_trained(folder, trained)
    (earlier / MODEL).replace(folder / MODEL)
    sync_folder(folder)
    return trained


def weights_mark(model: Path) -> str:
    """Return what tells a trained model's weights from all others."""
    trained = read_trained(model.parent) if model.name == MODEL else None
    if trained is not None:
        return trained.mark
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
