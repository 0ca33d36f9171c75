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
from chip_core.results import MODEL, TRAINED, Answers, Progress, file_hashes
from chip_core.selection.rule import (
    KEPT,
    SELECTION,
    Point,
    as_json,
    asks_untrained,
    pick_point,
    step_name,
)
from chip_core.trained import PICKED, TrainedModel, model_files, write_trained
from chip_core.training.checkpoint import list_checkpoints
from chip_core.trial_context import PhaseTimer, TrialContext
from chip_core.utils.files import read_checksummed, sync_folder, write_bytes, write_checksummed
from chip_core.utils.workers import current_workers


def folder_of(trial: Path, step: int) -> Path:
    """Return the folder of the model after a step."""
    place = trial / KEPT / step_name(step)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def note(model: Path, training: str) -> None:
    """Record what a kept model is, so that another attempt can check that it is complete.

    Args:
        model: its folder.
        training: `training_fingerprint` of its configuration.
    """
    write_checksummed(_note_of(model), {"files": model_files(model), "training": training})


def is_whole(model: Path, training: str, noted: Path | None = None) -> bool:
    """Return whether a kept model is complete and of a training, according to its note.

    Args:
        model: its folder.
        training: as for `note`.
        noted: the note, if it is not next to it.
    """
    try:
        found = read_checksummed(noted or _note_of(model))
        files: dict[str, str] = found["files"]
        known = found["training"] == training
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return known and bool(files) and file_hashes(model, files) == files


def take_over(
    attempts: Sequence[Path], folder: Path, steps: Sequence[int], training: str
) -> int | None:
    """Move the models here that earlier attempts kept before their newest checkpoint.

    A training resumed from a checkpoint does not produce the earlier ones again, so they must
    exist.

    Args:
        attempts: their folders.
        folder: this attempt's.
        steps: the steps whose models are kept.
        training: as for `note`.

    Returns:
        A step whose complete model is missing; None if there is none.
    """
    checkpoints = [path for attempt in attempts for path in list_checkpoints(attempt)]
    newest = max((int(path.name.rpartition("-")[2]) for path in checkpoints), default=0)
    for step in (step for step in steps if step <= newest):
        name = step_name(step)
        notes = {
            attempt / within / name: attempt / KEPT / f"{name}.json"
            for attempt in attempts
            for within in (KEPT, MODEL)  # where it was, and where it was to be moved
        }
        found = next((model for model in notes if is_whole(model, training, notes[model])), None)
        if found is None:
            shutil.rmtree(folder / KEPT, ignore_errors=True)
            return step
        place = folder_of(folder, step)
        write_bytes(_note_of(place), notes[found].read_bytes())
        found.replace(place)
    return None


def gather(folder: Path, steps: Sequence[int]) -> None:
    """Move kept models into the folder of the training's own model, which must exist."""
    for step in steps:
        folder_of(folder, step).replace(folder / MODEL / step_name(step))


def remove_all(attempt: Path) -> None:
    """Remove kept models that are no longer needed."""
    shutil.rmtree(attempt / KEPT, ignore_errors=True)


def mark_of(mark: str, step: int) -> str:
    """Return an identifier of the weights after a step of a training."""
    return f"{mark} after {step}"


def files_of(files: Mapping[str, str], step: int, end: int) -> dict[str, str]:
    """Return the files of the model after a step, among those of the folder that holds all."""
    if step == end:
        return {name: mark for name, mark in files.items() if not name.startswith("step-")}
    within = f"{step_name(step)}/"
    return {
        name.removeprefix(within): mark for name, mark in files.items() if name.startswith(within)
    }


def leave_picked(folder: Path) -> None:
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
    model, within = folder / MODEL, folder / MODEL / step_name(picked["step"])
    chosen, dropped = folder / PICKED, folder / f".{MODEL}.dropped"
    if within.is_dir():
        shutil.rmtree(chosen, ignore_errors=True)
        within.replace(chosen)
    if chosen.is_dir():
        if model.is_dir():
            shutil.rmtree(dropped, ignore_errors=True)
            model.replace(dropped)
        chosen.replace(model)
        sync_folder(folder)
    for left in (dropped, *model.glob("step-*")):
        shutil.rmtree(left, ignore_errors=True)


def _note_of(model: Path) -> Path:
    return model.with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class Picker:
    """Pick the model of one attempt, with all of its workers."""

    config: TrialConfig
    context: TrialContext
    device: torch.device
    #: (model, identifier of its weights, folder=, earlier=, model_folder=) -> its inference context
    asked: Callable[..., InferenceContext]
    report: Callable[[Progress], None]
    spans: PhaseTimer

    def pick(self, trained: TrainedModel) -> tuple[Any, TrainedModel]:
        """Return the picked model, on the device, and its training's record.

        Raises:
            StoppedError: a stop was requested.
            TrialError: a model cannot be loaded or cannot answer.
        """
        folder, workers, end = self.context.folder, current_workers(), trained.kept[-1]
        points = [
            self._scored(step, end, trained.mark)
            for step in ([0] if asks_untrained(self.config) else []) + trained.kept
        ]
        pick = pick_point(self.config, points)
        last = " of the last round" if self.config.pairs.rounds > 1 else ""
        model = self._whole(pick.step, end)
        workers.barrier()  # all workers have read it
        trained = replace(
            trained,
            mark=mark_of(trained.mark, pick.step),
            files=files_of(trained.files, pick.step, end),
            kept=[],
            picked=as_json(pick, points),
            notes=[*trained.notes, f"the model after step {pick.step} of {end}{last}: {pick.why}"],
        )
        if workers.is_main:
            write_trained(folder, trained)
            leave_picked(folder)
        workers.barrier()
        self.spans.end("pick")
        return model, trained

    def _scored(self, step: int, end: int, mark: str) -> Point:
        """Answer `select` with the model after a step, and score the answers."""
        place = self.context.folder / SELECTION / step_name(step)
        asked = self.asked(
            self._whole(step, end),
            mark_of(mark, step),
            folder=place,
            earlier=[attempt / SELECTION / step_name(step) for attempt in self.context.earlier],
            model_folder=self._kept_folder(step, end),
        )
        figures: dict[str, float] = {}
        for benchmark in self.config.benchmarks.select:
            made = generate_answers(asked, "select", benchmark)
            if isinstance(made, Answers):
                score = partial(
                    score_answers,
                    made,
                    "select",
                    benchmark,
                    folder=place,
                    data_paths=self.context.places,
                    report_progress=self.report,
                )
                made = current_workers().wait_for_rank0(score)
            figures |= made.metrics
        self.spans.end(f"select after step {step}")
        return Point(step=step, figures=figures)

    def _whole(self, step: int, end: int) -> Any:
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
        place = self.context.folder / MODEL
        return place if step == end else place / step_name(step)
