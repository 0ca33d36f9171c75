"""Checkpoints: everything a training needs to go on to the same figures, whole or not at all.

`checkpoints/step-00000012/` holds `model/` (a Hugging Face or PEFT folder's weights), `state.pt`
(optimizer, schedule, counts, random generators; read without pickle's code) and `manifest.json`
(the step, the data position, what was being trained, and size and sha256 of every other file). The
folder gets its name last, when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch

from chip_core.config import TrialConfig
from chip_core.errors import DiskFullError, NonFiniteLossError, TrialError, UnfitError, printable
from chip_core.files import read_json, room_for, sync_files, sync_folder, write_json
from chip_core.identity import fingerprint, training_identity
from chip_core.models.adapters import read_weights, write_weights
from chip_core.models.shards import held
from chip_core.results import CHECKPOINTS

MANIFEST, MODEL, STATE = "manifest.json", "model", "state.pt"

#: How many are kept: the newest, and the one before in case the newest turns out broken.
KEPT = 2

_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """What a checkpoint keeps beside the model."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state: tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from a state."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a training goes on, and what is to be said of it."""

    step: int  # updates already made
    folder: Path | None  # the attempt whose checkpoint it was; None: there was none
    notes: tuple[str, ...]


def save(
    folder: Path,
    *,
    config: TrialConfig,
    policy: Any,
    stateful: Mapping[str, Stateful],
    step: int,
    write: bool = True,
) -> None:
    """Write the checkpoint after an update into a trial's folder; older ones than two are removed.

    Args:
        folder: the trial's.
        config: the trial.
        policy: the model that is trained.
        stateful: what else has a state: optimizer, schedule, what was cut.
        step: how many updates were made.
        write: whether this worker writes: all come here, and what is spread comes together.

    Raises:
        NonFiniteLossError: a weight is no number; what went on from it would fail for ever.
        DiskFullError: it does not fit; nothing of it is left, and the ones before stay.
    """
    _check_finite(policy, step)
    whole = folder / CHECKPOINTS / f"step-{step:08d}"
    partial = whole.with_name(f".{whole.name}.partial")
    if write:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with room_for(f"the checkpoint after step {step}", folder):
            _write(partial, whole, config, policy, stateful, step, write)
    except DiskFullError:
        if write:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if write:
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)


def _check_finite(policy: Any, step: int) -> None:
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not torch.isfinite(held(parameter)).all():
            raise NonFiniteLossError(f"{name} is not finite after step {step}")


def _write(
    partial: Path,
    whole: Path,
    config: TrialConfig,
    policy: Any,
    stateful: Mapping[str, Stateful],
    step: int,
    write: bool,
) -> None:
    write_weights(policy, partial / MODEL, config, write=write)
    state = {
        **{name: part.state_dict() for name, part in stateful.items()},
        "random": _random_state(),
    }
    if not write:
        return
    torch.save(state, partial / STATE)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        "format": 1,
        "step": step,
        "data_position": {"batches": step, "pairs": step * config.training.batch_size},
        "training": _training(config),
        "files": {
            path.relative_to(partial).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
            for path in files
        },
    }
    write_json(partial / MANIFEST, manifest)
    sync_files(partial)
    shutil.rmtree(whole, ignore_errors=True)  # of a run of this folder that went over it before
    partial.replace(whole)
    sync_folder(whole.parent)


def restore(
    folder: Path,
    *,
    config: TrialConfig,
    policy: Any,
    stateful: Mapping[str, Stateful],
    before: Sequence[Path] = (),
) -> Resumed:
    """Go on from the newest whole checkpoint of an earlier attempt's folder.

    A checkpoint that is not whole is passed over for the one before, and a note says so; where
    there is none, the training starts anew.

    Args:
        folder: the attempt's.
        config: the trial.
        policy: the model that is trained.
        stateful: what else was kept.
        before: folders of the attempts before that one, newest first: theirs are next.
    """
    notes = []
    folders = [folder, *(each for each in before if each != folder)]
    found = [(each, path) for each in folders for path in reversed(checkpoints(each))]
    for attempt, checkpoint in found:
        problem = broken(checkpoint, config)
        if problem is not None:
            notes.append(f"checkpoint {checkpoint.name} is not used: {problem}")
            continue
        step = int(_manifest(checkpoint)["step"])
        try:
            state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is not torch's may raise anything
            notes.append(f"checkpoint {checkpoint.name} is not used: {STATE} ({_brief(error)})")
            continue
        try:
            trusted = config.model.trust_remote_code
            read_weights(policy, checkpoint / MODEL, trust_remote_code=trusted)
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            _set_random_state(state["random"])
        except UnfitError as error:  # none of it was put into the policy
            notes.append(f"checkpoint {checkpoint.name} is not used: {error}")
            continue
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the checkpoint is not what is wrong
        except Exception as error:  # the policy may be half of it: nothing can go on from that
            raise TrialError(
                f"{checkpoint} is whole and cannot be used ({_brief(error)}): remove it"
            ) from error
        notes.append(f"resumed after step {step} from {checkpoint}")
        return _said(Resumed(step=step, folder=attempt, notes=tuple(notes)))
    notes.append(f"no whole checkpoint in {folder / CHECKPOINTS}: trained from the start")
    return _said(Resumed(step=0, folder=None, notes=tuple(notes)))


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a trial's folder, oldest first; none is checked."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def broken(checkpoint: Path, config: TrialConfig) -> str | None:
    """Return why a checkpoint cannot be used for a training; None if it can."""
    try:
        manifest = _manifest(checkpoint)
        if manifest["format"] != 1:
            return f"its format is {manifest['format']}, known is 1"
        if manifest["training"] != _training(config):
            return "it is of another training (model, data, objective or settings differ)"
        for name, expected in manifest["files"].items():
            path = checkpoint / name
            if not path.resolve().is_relative_to(checkpoint.resolve()):
                return f"{MANIFEST} names {name!r}, which lies outside"
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} is cut off: {size} of {expected['bytes']} bytes"
            if _sha256(path) != expected["sha256"]:
                return f"{name} is corrupt: its sha256 is not the manifest's"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def remove_after(folder: Path, step: int) -> None:
    """Remove a folder's checkpoints of later steps: the training goes over them again."""
    for checkpoint in checkpoints(folder):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint)


def remove_all(folder: Path) -> None:
    """Remove a trial's checkpoints: its trained model is there."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _said(resumed: Resumed) -> Resumed:
    for note in resumed.notes:
        _log.warning(note)
    return resumed


def _brief(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__, 300)


def _manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = read_json(checkpoint / MANIFEST)
    if not isinstance(manifest, dict):
        raise ValueError("no mapping")
    return manifest


def _training(config: TrialConfig) -> str:
    """Return what a checkpoint's training is, by all of its settings that change figures."""
    named = {"path": config.model.path}, {"source": config.data.source}
    return fingerprint(training_identity(config, *named))


def _random_state() -> dict[str, Any]:
    drawn: Any = numpy.random.get_state()
    kind, keys, position, has_gauss, gauss = drawn
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
