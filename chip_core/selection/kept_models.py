"""Models that are kept during a training, until one of them is picked.

During the training they are in KEPT, each with a note of its files. After it, they are in the
folder of the training's model, so that they are reused with it. In the end only the picked one is
left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.generators.answering import InferenceContext, generate_answers
from chip_core.evaluation.scoring import score_answers
from chip_core.models import loading
from chip_core.results import MODEL, TRAINED, Answers, Progress, hash_files
from chip_core.selection.rule import (
    KEPT,
    SELECTION,
    ScoredCheckpoint,
    as_json,
    format_step_name,
    needs_untrained,
    pick_checkpoint,
)
from chip_core.trained import PICKED, TrainedModel, hash_model_files, write_trained
from chip_core.training.checkpoint import list_checkpoints
from chip_core.trial_context import PhaseTimer, TrialContext
from chip_core.utils.files import read_checksummed, sync_folder, write_bytes, write_checksummed
from chip_core.utils.workers import current_workers


def make_kept_folder(trial: Path, step: int) -> Path:
    """Return the folder of the model after a step."""
    kept = trial / KEPT / format_step_name(step)
    kept.parent.mkdir(parents=True, exist_ok=True)
    return kept


def write_note(model: Path, training: str) -> None:
    """Record what a kept model is, so that another attempt can check that it is complete.

    Args:
        model: its folder.
        training: `compute_training_fingerprint` of its configuration.
    """
    write_checksummed(_note_file(model), {"files": hash_model_files(model), "training": training})


def is_complete(model: Path, training: str, note_file: Path | None = None) -> bool:
    """Return whether a kept model is complete and of a training, according to its note.

    Args:
        model: its folder.
        training: as for `write_note`.
        note_file: the note, if it is not next to it.
    """
    try:
        note = read_checksummed(note_file or _note_file(model))
        files: dict[str, str] = note["files"]
        is_same_training = note["training"] == training
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return is_same_training and bool(files) and hash_files(model, files) == files


def adopt_kept_models(
    attempts: Sequence[Path], folder: Path, steps: Sequence[int], training: str
) -> int | None:
    """Move the models here that earlier attempts kept before their newest checkpoint.

    A training resumed from a checkpoint does not produce the earlier models again, so they must
    exist.

    Args:
        attempts: their folders.
        folder: this attempt's.
        steps: the steps whose models are kept.
        training: as for `write_note`.

    Returns:
        A step whose complete model is missing; None if there is none.
    """
    checkpoints = [path for attempt in attempts for path in list_checkpoints(attempt)]
    newest = max((int(path.name.rpartition("-")[2]) for path in checkpoints), default=0)
    for step in (step for step in steps if step <= newest):
        name = format_step_name(step)
        notes = {
            attempt / subfolder / name: attempt / KEPT / f"{name}.json"
            for attempt in attempts
            for subfolder in (KEPT, MODEL)  # where it was, and where it was to be moved
        }
        complete_model = next(
            (model for model in notes if is_complete(model, training, notes[model])), None
        )
        if complete_model is None:
            shutil.rmtree(folder / KEPT, ignore_errors=True)
            return step
        kept = make_kept_folder(folder, step)
        write_bytes(_note_file(kept), notes[complete_model].read_bytes())
        complete_model.replace(kept)
    return None


def move_kept_models(folder: Path, steps: Sequence[int]) -> None:
    """Move kept models into the folder of the training's own model, which must exist."""
    for step in steps:
        make_kept_folder(folder, step).replace(folder / MODEL / format_step_name(step))


def remove_all(attempt: Path) -> None:
    """Remove kept models that are no longer needed."""
    shutil.rmtree(attempt / KEPT, ignore_errors=True)


def make_step_id(weights_id: str, step: int) -> str:
    """Return an identifier of the weights after a step of a training."""
    return f"{weights_id} after {step}"


def select_step_files(files: Mapping[str, str], step: int, end: int) -> dict[str, str]:
    """Return the files of the model after a step, among those of the folder that holds all."""
    if step == end:
        return {name: sha256 for name, sha256 in files.items() if not name.startswith("step-")}
    prefix = f"{format_step_name(step)}/"
    return {
        name.removeprefix(prefix): sha256
        for name, sha256 in files.items()
        if name.startswith(prefix)
    }


def keep_only_picked(folder: Path) -> None:
    """Make the picked model the folder's only one; do nothing if none was picked.

    The folder's record names it and is written first, so that this can continue after an
    interruption.
    """
    try:
        picked = read_checksummed(folder / TRAINED)["picked"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not picked:
        return
    model, step_folder = folder / MODEL, folder / MODEL / format_step_name(picked["step"])
    picked_folder, dropped = folder / PICKED, folder / f".{MODEL}.dropped"
    if step_folder.is_dir():
        shutil.rmtree(picked_folder, ignore_errors=True)
        step_folder.replace(picked_folder)
    if picked_folder.is_dir():
        if model.is_dir():
            shutil.rmtree(dropped, ignore_errors=True)
            model.replace(dropped)
        picked_folder.replace(model)
        sync_folder(folder)
    for leftover in (dropped, *model.glob("step-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _note_file(model: Path) -> Path:
    return model.with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class Picker:
    """Pick the model of one attempt, with all of its workers."""

    config: TrialConfig
    context: TrialContext
    device: torch.device
    #: (model, identifier of its weights, folder=, earlier=, model_folder=) -> its inference context
    make_context: Callable[..., InferenceContext]
    report: Callable[[Progress], None]
    timer: PhaseTimer

    def pick(self, trained: TrainedModel) -> tuple[Any, TrainedModel]:
        """Return the picked model, on the device, and its training's record.

        Raises:
            StoppedError: a stop was requested.
            TrialError: a model cannot be loaded or cannot answer.
        """
        folder, workers, end = self.context.folder, current_workers(), trained.kept[-1]
        points = [
            self._score_step(step, end, trained.mark)
            for step in ([0] if needs_untrained(self.config) else []) + trained.kept
        ]
        pick = pick_checkpoint(self.config, points)
        last = " of the last round" if self.config.pairs.rounds > 1 else ""
        model = self._load_step(pick.step, end)
        workers.barrier()  # all workers have read it
        trained = replace(
            trained,
            mark=make_step_id(trained.mark, pick.step),
            files=select_step_files(trained.files, pick.step, end),
            kept=[],
            picked=as_json(pick, points),
            notes=[
                *trained.notes,
                f"the model after step {pick.step} of {end}{last}: {pick.reason}",
            ],
        )
        if workers.is_main:
            write_trained(folder, trained)
            keep_only_picked(folder)
        workers.barrier()
        self.timer.end("pick")
        return model, trained

    def _score_step(self, step: int, end: int, weights_id: str) -> ScoredCheckpoint:
        """Answer `select` with the model after a step, and score the answers."""
        folder = self.context.folder / SELECTION / format_step_name(step)
        context = self.make_context(
            self._load_step(step, end),
            make_step_id(weights_id, step),
            folder=folder,
            earlier=[
                attempt / SELECTION / format_step_name(step) for attempt in self.context.earlier
            ],
            model_folder=self._kept_folder(step, end),
        )
        figures: dict[str, float] = {}
        for benchmark in self.config.benchmarks.select:
            scored = generate_answers(context, "select", benchmark)
            if isinstance(scored, Answers):
                score = partial(
                    score_answers,
                    scored,
                    "select",
                    benchmark,
                    folder=folder,
                    data_paths=self.context.data_paths,
                    report_progress=self.report,
                )
                scored = current_workers().wait_for_rank0(score)
            figures |= scored.metrics
        self.timer.end(f"select after step {step}")
        return ScoredCheckpoint(step=step, figures=figures)

    def _load_step(self, step: int, end: int) -> Any:
        """Return the model after a step, on the device; 0: the untrained one."""
        model, _ = loading.load(
            self.config.model,
            attention=self.config.engine.attention,
            trained=self._kept_folder(step, end),
        )
        return model.to(self.device)

    def _kept_folder(self, step: int, end: int) -> Path | None:
        """Return the folder of the model after a step, among those to pick from."""
        if step == 0:
            return None
        folder = self.context.folder / MODEL
        return folder if step == end else folder / format_step_name(step)
