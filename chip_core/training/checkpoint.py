"""Write and read checkpoints, from which a training resumes to the same figures.

`checkpoints/step-00000012/` holds `state.pt` (schedule, counts, random generators, the optimizer's
settings; read without pickle's code) and `manifest.json` (the step, the data position, the identity
of the training, and size and sha256 of every other file). Format 1 adds `model/` (the weights of a
Hugging Face or PEFT folder) or, for a training in bf16, `masters.safetensors` (the trained weights
in fp32, by name), and the whole optimizer state is in `state.pt`. Format 2, for sharded weights,
adds `shards/` (sharded_state.py), where each worker writes its part. Any number of workers, with
any strategy, can resume from either. The folder gets its final name when all of it is on disk, so a
checkpoint is complete or does not exist.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import nn

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.models.adapters import write_weights
from chip_core.models.loading import read_weights
from chip_core.models.parts import select_trained_parameters
from chip_core.models.shards import get_local_weight, is_sharded
from chip_core.results import CHECKPOINTS
from chip_core.training.optimizer.int8_states import get_optimizer_state, load_optimizer_state
from chip_core.training.optimizer.masters import MasterWeights, read_masters, write_masters
from chip_core.utils.errors import (
    DiskFullError,
    NonFiniteLossError,
    TrialError,
    UnfitError,
    to_printable,
)
from chip_core.utils.files import (
    convert_disk_full,
    hash_file,
    read_json,
    sync_files,
    sync_folder,
    write_json,
)
from chip_core.utils.workers import Workers

MANIFEST, MODEL, SHARDS, STATE = "manifest.json", "model", "shards", "state.pt"
MASTERS = "masters.safetensors"

#: Formats that can be read: 1 has whole tensors, 2 sharded ones.
WHOLE_FORMAT, SHARDED_FORMAT = 1, 2

#: How many are kept: the newest, and the one before it in case the newest is damaged.
MAX_CHECKPOINTS = 2

_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a checkpoint besides model and optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state: tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore a state."""


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a training resumes, with notes for the report."""

    step: int  # updates already made
    folder: Path | None  # the attempt whose checkpoint was used; None: there was none
    notes: tuple[str, ...]


class Checkpointer:
    """Saves the state of a training, and resumes from a saved one.

    All workers of the training must call each method together.
    """

    def __init__(
        self,
        config: TrialConfig,
        *,
        model: Any,
        optimizer: Any,
        stateful: Mapping[str, Stateful],
        masters: MasterWeights | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Keep references to what is saved and restored.

        Args:
            config: the trial.
            model: the trained model, sharded or not.
            optimizer: over the model's trained parameters.
            stateful: other parts that have a state: the schedule, the count of cut responses.
            masters: updated by the optimizer instead of the model's weights; None: it updates the
                weights themselves.
            workers: the workers of the training; None: this process alone.
        """
        self._config, self._model, self._optimizer = config, model, optimizer
        self._masters = masters
        self._stateful, self._workers = stateful, workers or Workers()

    def save(self, folder: Path, step: int) -> None:
        """Write the checkpoint after an update into a trial's folder; keep only the newest two.

        Args:
            folder: the trial's folder.
            step: the number of updates made.

        Raises:
            NonFiniteLossError: a weight is not a number, and any resumed training would fail.
            DiskFullError: it does not fit; its files are removed, and older checkpoints stay.
        """
        self._workers.gather_results(lambda: _check_finite(self._model, step))
        final = folder / CHECKPOINTS / f"step-{step:08d}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._workers.barrier()
        try:
            with convert_disk_full(f"the checkpoint after step {step}", folder):
                self._write(partial, final, step)
        except DiskFullError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        # Every worker removes them, for machines that share no disk.
        for old in list_checkpoints(folder)[:-MAX_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def _write(self, partial: Path, final: Path, step: int) -> None:
        sharded = is_sharded(self._model)
        state: dict[str, Any] = {
            **{name: worker.state_dict() for name, worker in self._stateful.items()},
            "random": _get_random_state(),
        }
        if sharded:
            # torch's distributed checkpoint takes half a second to import.
            from chip_core.training.sharded_state import save_shards

            shards = partial / SHARDS
            names, state["optimizer"] = save_shards(
                shards, self._updated_parameters(), optimizer=self._optimizer
            )
            worker_facts = self._workers.gather_results(
                lambda: {name: _get_file_facts(shards / name) for name in names}
            )
            facts = {
                f"{SHARDS}/{name}": entry
                for worker in worker_facts
                for name, entry in worker.items()
            }
        else:
            facts, state["optimizer"] = {}, get_optimizer_state(self._optimizer)
        self._workers.broadcast_from_rank0(lambda: self._finish(partial, final, step, state, facts))
        if sharded:
            # The first worker has renamed the folder; a worker with another disk does it here.
            with suppress(FileNotFoundError):
                partial.replace(final)
                sync_folder(final.parent)
            self._workers.barrier()

    def _finish(
        self,
        partial: Path,
        final: Path,
        step: int,
        state: Mapping[str, Any],
        facts: dict[str, dict[str, Any]],
    ) -> None:
        """Write the first worker's files, and give the checkpoint its final name.

        Args:
            partial: the folder in which it is written.
            final: its final path.
            step: the number of updates made.
            state: the content of `state.pt`.
            facts: of all workers' shards; empty: the first worker writes the model.
        """
        config, files = self._config, dict(facts)
        partial.mkdir(parents=True, exist_ok=True)
        if not facts:
            if self._masters is None:
                write_weights(self._model, partial / MODEL, config)
            else:
                write_masters(self._updated_parameters(), partial / MASTERS)
            for path in sorted(file for file in partial.rglob("*") if file.is_file()):
                files[path.relative_to(partial).as_posix()] = _get_file_facts(path)
        torch.save(state, partial / STATE)
        files[STATE] = _get_file_facts(partial / STATE)
        manifest = {
            "format": SHARDED_FORMAT if facts else WHOLE_FORMAT,
            "step": step,
            "data_position": {"batches": step, "pairs": step * config.training.batch_size},
            "training": _compute_training_fingerprint(config),
            "files": files,
        }
        write_json(partial / MANIFEST, manifest)
        sync_files(partial)
        shutil.rmtree(final, ignore_errors=True)  # left by an earlier run that passed this step
        partial.replace(final)
        sync_folder(final.parent)

    def restore(self, folder: Path, earlier: Sequence[Path] = ()) -> ResumePoint:
        """Resume from the newest complete checkpoint of an earlier attempt's folder.

        An incomplete checkpoint is skipped for the one before it, and a note says so. If there is
        none, the training starts from the beginning.

        Args:
            folder: the attempt's folder.
            earlier: folders of the attempts before that one, newest first, searched next.
        """
        notes = []
        folders = [folder, *(attempt for attempt in earlier if attempt != folder)]
        # By index and name: the path of a folder may differ on another worker's machine.
        candidates = self._workers.broadcast_from_rank0(
            lambda: [
                (index, path.name)
                for index, attempt in enumerate(folders)
                for path in reversed(list_checkpoints(attempt))
            ]
        )
        for index, name in candidates:
            checkpoint = folders[index] / CHECKPOINTS / name
            problem = self._first_problem(find_checkpoint_problem(checkpoint, self._config))
            if problem is None:
                problem = self._load(checkpoint)
            if problem is not None:
                notes.append(f"checkpoint {checkpoint.name} is not used: {problem}")
                continue
            step = int(_read_manifest(checkpoint)["step"])
            notes.append(f"resumed after step {step} from {checkpoint}")
            return _log_notes(ResumePoint(step=step, folder=folders[index], notes=tuple(notes)))
        notes.append(f"no complete checkpoint in {folder / CHECKPOINTS}: trained from the start")
        return _log_notes(ResumePoint(step=0, folder=None, notes=tuple(notes)))

    def _updated_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer updates, by weight name, in its order."""
        return {
            name: weight if self._masters is None else self._masters.master_of(weight)
            for weights in select_trained_parameters(self._model, self._config).values()
            for name, weight in weights.items()
        }

    def _first_problem(self, problem: str | None) -> str | None:
        """Return the first problem of any worker, so that all workers skip a checkpoint or none."""
        return next(
            (
                worker_problem
                for worker_problem in self._workers.all_gather(problem)
                if worker_problem is not None
            ),
            None,
        )

    def _load(self, checkpoint: Path) -> str | None:
        """Resume from a complete checkpoint; return why it cannot be used, or None."""
        problem, state = None, {}
        try:
            state = torch.load(
                checkpoint / STATE,
                map_location="cpu",
                weights_only=True,
                # Each worker takes its part of the optimizer's whole state. Mapping the file keeps
                # it in memory once for all workers of a machine.
                mmap=is_sharded(self._model),
            )
        except Exception as error:  # a file that torch did not write may raise anything
            problem = f"{STATE} ({_describe_error(error)})"
        problem = self._first_problem(problem)
        if problem is not None:
            return problem
        try:
            if _read_manifest(checkpoint)["format"] == SHARDED_FORMAT:
                from chip_core.training.sharded_state import load_shards

                load_shards(
                    checkpoint / SHARDS,
                    self._updated_parameters(),
                    optimizer=self._optimizer,
                    state=state["optimizer"],
                )
            elif self._masters is not None:
                read_masters(checkpoint / MASTERS, self._updated_parameters())
                load_optimizer_state(self._optimizer, state["optimizer"])
            else:
                trust_remote_code = self._config.model.trust_remote_code
                read_weights(self._model, checkpoint / MODEL, trust_remote_code=trust_remote_code)
                load_optimizer_state(self._optimizer, state["optimizer"])
            if self._masters is not None:
                self._masters.round_weights()
            for name, part in self._stateful.items():
                part.load_state_dict(state[name])
            _set_random_state(state["random"])
        except UnfitError as error:  # raised before anything was put into the policy
            return str(error)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the checkpoint is not the cause
        except Exception as error:  # the policy may be half restored and cannot be used
            raise TrialError(
                f"{checkpoint} is complete but cannot be used ({_describe_error(error)}): remove it"
            ) from error
        return None


def _check_finite(model: Any, step: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(get_local_weight(parameter)).all():
            raise NonFiniteLossError(f"{name} is not finite after step {step}")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a trial's folder, oldest first, without checking them."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def find_checkpoint_problem(checkpoint: Path, config: TrialConfig) -> str | None:
    """Return why a checkpoint cannot be used for a training, or None."""
    try:
        manifest = _read_manifest(checkpoint)
        if manifest["format"] not in (WHOLE_FORMAT, SHARDED_FORMAT):
            return (
                f"its format is {manifest['format']}, but only {WHOLE_FORMAT} and "
                f"{SHARDED_FORMAT} are known"
            )
        if manifest["training"] != _compute_training_fingerprint(config):
            return "it belongs to another training (model, data, objective or settings differ)"
        for name, expected in manifest["files"].items():
            path = checkpoint / name
            if not path.resolve().is_relative_to(checkpoint.resolve()):
                return f"{MANIFEST} names {name!r}, which is outside the folder"
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} is cut off: {size} of {expected['bytes']} bytes"
            if hash_file(path) != expected["sha256"]:
                return f"{name} is corrupt: its sha256 is not the manifest's"
        for path in (checkpoint / SHARDS).glob("*"):  # every file there is read
            if f"{SHARDS}/{path.name}" not in manifest["files"]:
                return f"{SHARDS}/{path.name} does not belong to it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def remove_after(folder: Path, step: int) -> None:
    """Remove a folder's checkpoints of later steps, which the training will repeat."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint.name > f"step-{step:08d}":
            shutil.rmtree(checkpoint, ignore_errors=True)  # several workers may remove it


def remove_all(folder: Path) -> None:
    """Remove a trial's checkpoints once its trained model is stored."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _log_notes(resumed: ResumePoint) -> ResumePoint:
    for note in resumed.notes:
        _log.warning(note)
    return resumed


def _describe_error(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return to_printable(f"{type(error).__name__}: {first}" if first else type(error).__name__, 300)


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    manifest = read_json(checkpoint / MANIFEST)
    if not isinstance(manifest, dict):
        raise ValueError("no mapping")
    return manifest


def _compute_training_fingerprint(config: TrialConfig) -> str:
    """Return the fingerprint of the settings that change a training's figures."""
    locations = {"path": config.model.path}, {"source": config.data.source}
    return fingerprint(training_identity(config, *locations))


def _get_random_state() -> dict[str, Any]:
    numpy_state: Any = numpy.random.get_state()
    kind, keys, position, has_gauss, gauss = numpy_state
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


def _get_file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}
