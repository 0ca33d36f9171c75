"""Studies that have been run, made by hand: what each trial said of each item is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from chip_core.results import Evaluation, TrialResult
from chip_core.utils.files import write_json
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.build import Report, make_report
from orchestrator.report.outcomes import load_scores
from orchestrator.report.summary import Summary, build_summary
from orchestrator.state.ledger import Ledger

STUDY = """
study: small
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
  vision_encoder: [frozen, trained]
seeds: [0, 1, 2]
baseline: {objective: dpo, vision_encoder: frozen}
benchmarks:
  report: [shapes]
primary: {metric: shapes/chair_i, goal: minimize}
"""
ITEMS = 30
GOALS = {"chair_i": "minimize", "chair_s": "minimize", "hal": "minimize", "cover": "maximize"}

#: (trial, number of the item, metric) -> (numerator, denominator); None: the item is not there.
Score = Callable[[Trial, int, str], tuple[float, float] | None]


def draw_noisy_score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
    """Draw 3 mentions an item: about one is invented, by luck; fewer under chip, frozen."""
    if metric == "cover":
        return 3.0 - (item % 10 == 0), 3.0
    seed = -1 if trial.seed is None else trial.seed
    invented = crc32(f"{trial.arm} {seed} {item}".encode()) % 3
    if trial.arm == "chip, frozen":
        invented = float((item + seed) % 11 == 0)
    return float(invented), 3.0


@dataclass(kw_only=True)
class FinishedStudy:
    """A study in a work directory."""

    plan: Plan
    workdir: Path
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.workdir)

    @property
    def summary(self) -> Summary:
        return build_summary(
            self.plan, self.ledger, load_scores(self.plan, self.ledger, self.workdir)
        )

    @property
    def folder(self) -> Path:
        return self.workdir / "studies" / self.plan.study.name / "report"

    def make_report(self) -> Report:
        return make_report(self.plan, self.ledger, self.workdir, self.folder)

    def find_trial(self, name: str) -> Trial:
        return next(trial for trial in self.plan.trials if trial.name == name)

    def attempt_folder(self, trial: Trial) -> Path:
        return self.workdir / "trials" / trial.fingerprint[:16] / "attempt-1"

    def finish(
        self,
        trial: Trial,
        score: Score = draw_noisy_score,
        response: Callable[[Trial, int], Mapping[str, Any]] | None = None,
        metrics: Iterable[str] = GOALS,
        steps: int = 4,
        items: int = ITEMS,
        how: Callable[[Trial], Mapping[str, Any]] | None = None,
    ) -> None:
        """Leave what a worker leaves, and record it."""
        folder = self.attempt_folder(trial)
        found, values = [], {}
        for metric in metrics:
            outcomes = [(f"test/{item}", score(trial, item, metric)) for item in range(items)]
            kept = [(item, pair) for item, pair in outcomes if pair is not None]
            whole = sum(pair[1] for _, pair in kept)
            value = 100 * sum(pair[0] for _, pair in kept) / whole if whole else None
            if value is not None:
                values[f"shapes/{metric}"] = value
            listed = [
                {"item": item, "numerator": pair[0], "denominator": pair[1]} for item, pair in kept
            ]
            found.append({"name": metric, "value": value, "items": listed})
        write_json(folder / "scores/report-shapes.json", {"metrics": found})
        (folder / "responses").mkdir(exist_ok=True)
        rows = [
            {
                "item": f"test/{item}",
                "prompt": "what is there?",
                "response": f"{trial.name} on {item}",
                "truth": "a red moon",
                **(response(trial, item) if response else {}),
            }
            for item in range(items)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "responses/report-shapes.jsonl").write_text(text)
        trained = 0 if trial.untrained else steps
        points = [
            {"step": step, "time": 0.0, "figures": {"loss": 1.0 / step + (trial.seed or 0)}}
            for step in range(1, trained + 1)
        ]
        (folder / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        evaluation = Evaluation(
            metrics=values,
            items=items,
            scores="scores/report-shapes.json",
            responses="responses/report-shapes.jsonl",
            metadata=dict(how(trial)) if how else {},
        )
        self.ledger.record_start(trial, self.plan.study.name, 1)
        self.ledger.record_result(
            trial,
            self.plan.study.name,
            1,
            str(folder.relative_to(self.workdir)),
            TrialResult(
                steps=trained,
                evaluations={"report/shapes": evaluation},
                seconds={
                    "start": 1.0,
                    "train": 10.0,
                    "answer report/shapes": 3.0,
                    "score report/shapes": 1.0,
                },
            ),
        )


@pytest.fixture
def make_finished_study(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> Callable[..., FinishedStudy]:
    """Run a study; trials named in `without` are left out."""

    def run(text: str = STUDY, *, without: Iterable[str] = (), **how: Any) -> FinishedStudy:
        study = FinishedStudy(plan=plan_of(text), workdir=tmp_path / "runs")
        for trial in study.plan.trials:
            if trial.name not in without:
                study.finish(trial, **how)
        return study

    return run
