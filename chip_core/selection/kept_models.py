"""Models of a training that are kept on its way, until one of them is picked.

While it is trained they lie in KEPT, each with a note of its files; when it has ended, in the
folder of its model, so that they are taken over with it; and then one alone is left.
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
from chip_core.evaluation.generators.answering import InferenceContext, answer
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
    """Return where the model after a step goes."""
    place = trial / KEPT / step_name(step)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def note(model: Path, training: str) -> None:
    """Note what a kept model is, so that another attempt can tell whether it is whole.

    Args:
        model: its folder.
        training: `training_fingerprint` of its configuration.
    """
    write_checksummed(_note_of(model), {"files": model_files(model), "training": training})


def is_whole(model: Path, training: str, noted: Path | None = None) -> bool:
    """Return whether a kept model is the one of a training that its note tells of.

    Args:
        model: its folder.
        training: as for `note`.
        noted: the note, where it is not beside it.
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

    What a checkpoint lies behind is not made again: it has to be there.

    Args:
        attempts: their folders.
        folder: this attempt's.
        steps: after which models are to be kept.
        training: as for `note`.

    Returns:
        a step whose model is not there, whole; None where none is lacking.
    """
    checkpoints = [path for attempt in attempts for path in list_checkpoints(attempt)]
    newest = max((int(path.name.rpartition("-")[2]) for path in checkpoints), default=0)
    for step in (step for step in steps if step <= newest):
        name = step_name(step)
        notes = {
            attempt / within / name: attempt / KEPT / f"{name}.json"
            for attempt in attempts
            for within in (KEPT, MODEL)  # where it lay, and where it was to go
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
    """Move kept models into the folder of the training's own, which is there."""
    for step in steps:
        folder_of(folder, step).replace(folder / MODEL / step_name(step))


def remove_all(attempt: Path) -> None:
    """Remove what an attempt kept and nobody needs any more."""
    shutil.rmtree(attempt / KEPT, ignore_errors=True)


def mark_of(mark: str, step: int) -> str:
    """Return what tells the weights after a step of a training from all others."""
    return f"{mark} after {step}"


def files_of(files: Mapping[str, str], step: int, end: int) -> dict[str, str]:
    """Return the files of the model after a step, of those of the folder that holds all."""
    if step == end:
        return {name: mark for name, mark in files.items() if not name.startswith("step-")}
    within = f"{step_name(step)}/"
    return {
        name.removeprefix(within): mark for name, mark in files.items() if name.startswith(within)
    }


def leave_picked(folder: Path) -> None:
    """Leave the model that was picked as a folder's, and no other; nothing where none was picked.

    The folder's record says which, and is written first: wherever this is broken off, it goes on.
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
    """Picks the model of one attempt, with all of its workers."""

    config: TrialConfig
    context: TrialContext
    device: torch.device
    #: (model, mark of its weights, folder=, earlier=, model_folder=) -> a model that answers
    asked: Callable[..., InferenceContext]
    report: Callable[[Progress], None]
    spans: PhaseTimer

    def pick(self, trained: TrainedModel) -> tuple[Any, TrainedModel]:
        """Return the picked model, on the device, and what its training came to.

        Raises:
            StoppedError: it was asked to stop.
            TrialError: a model cannot be loaded or asked.
        """
        folder, workers, end = self.context.folder, current_workers(), trained.kept[-1]
        points = [
            self._scored(step, end, trained.mark)
            for step in ([0] if asks_untrained(self.config) else []) + trained.kept
        ]
        pick = pick_point(self.config, points)
        last = " of the last round" if self.config.pairs.rounds > 1 else ""
        model = self._whole(pick.step, end)
        workers.wait()  # everyone has read it
        trained = replace(
            trained,
            mark=mark_of(trained.mark, pick.step),
            files=files_of(trained.files, pick.step, end),
            kept=[],
            picked=as_json(pick, points),
            notes=[*trained.notes, f"the model after step {pick.step} of {end}{last}: {pick.why}"],
        )
        if workers.first:
            write_trained(folder, trained)
            leave_picked(folder)
        workers.wait()
        self.spans.end("pick")
        return model, trained

    def _scored(self, step: int, end: int, mark: str) -> Point:
        """Have the model after a step answer `select`, and score what it says."""
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
            made = answer(asked, "select", benchmark)
            if isinstance(made, Answers):
                score = partial(
                    score_answers,
                    made,
                    "select",
                    benchmark,
                    folder=place,
                    places=self.context.places,
                    report=self.report,
                )
                made = current_workers().awaited_from_rank0(score)
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
        """Return where the model after a step lies, of those still to be picked from."""
        if step == 0:
            return None
        place = self.context.folder / MODEL
        return place if step == end else place / step_name(step)
