"""Models of a training that were kept answer `select`; the one that the rule picks is left.

The rule is in rule.py, where models are kept in kept_models.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.generators.answering import InferenceContext, answer
from chip_core.evaluation.scoring import score_answers
from chip_core.models import loading
from chip_core.results import MODEL, Answers, Progress
from chip_core.selection import kept_models
from chip_core.selection.rule import (
    SELECTION,
    Point,
    as_json,
    asks_untrained,
    pick_point,
    step_name,
)
from chip_core.trained import TrainedModel, write_trained
from chip_core.trial_context import PhaseTimer, TrialContext
from chip_core.utils.workers import current_workers


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
            mark=kept_models.mark_of(trained.mark, pick.step),
            files=kept_models.files_of(trained.files, pick.step, end),
            kept=[],
            picked=as_json(pick, points),
            notes=[*trained.notes, f"the model after step {pick.step} of {end}{last}: {pick.why}"],
        )
        if workers.first:
            write_trained(folder, trained)
            kept_models.leave_picked(folder)
        workers.wait()
        self.spans.end("pick")
        return model, trained

    def _scored(self, step: int, end: int, mark: str) -> Point:
        """Have the model after a step answer `select`, and score what it says."""
        place = self.context.folder / SELECTION / step_name(step)
        asked = self.asked(
            self._whole(step, end),
            kept_models.mark_of(mark, step),
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
