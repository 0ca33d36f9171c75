"""Select the items whose answers changed most compared to the baseline.

Each row is an item. Its value is the one that the statistics compare, so that the mean over the
items is the metric.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from chip_core.evaluation.readiness import list_sides
from chip_core.evaluation.task import Side
from chip_core.utils.files import read_records
from orchestrator.analysis.values import Array
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.figures.thumbnails import encode_item_images
from orchestrator.report.formatting import format_difference_unit
from orchestrator.report.layout import ChangedItem, ChangedItems, ShownAnswer
from orchestrator.report.outcomes import ComparedScores, StudyScores
from orchestrator.report.summary import Summary
from orchestrator.state.ledger import Ledger

MAX_ARMS = 6  # number of arms shown, those with the largest differences
ITEMS_PER_DIRECTION = 3  # items per arm that got better, and as many that got worse
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def largest_changes(
    summary: Summary, scores: StudyScores, ledger: Ledger, storage: Path
) -> list[ChangedItems]:
    """Return the largest changes on the primary metric, arm by arm."""
    primary = summary.plan.study.primary
    compared = None if primary is None else summary.compared.get(primary.metric)
    if primary is None or compared is None or not compared.items:
        return []
    metric, plan = primary.metric, summary.plan
    baseline = plan.baseline
    tables = []
    for arm in _select_arms(summary, metric):
        if arm.name not in [entry.name for entry in compared.results.arms]:
            continue
        answers = _AnswerPairs(metric, baseline, arm, scores, ledger, storage)
        changed = _sort_by_gain(compared, metric, arm.name, primary.goal == "maximize")
        chosen = _select_extremes(
            [
                (item, change, gain)
                for item, change, gain in changed
                if answers.scores_differ(item) and answers.has_answer(item)
            ]
        )
        if chosen:
            tables.append(
                ChangedItems(
                    arm=arm.name,
                    baseline=baseline.name,
                    metric=metric,
                    unit=format_difference_unit(summary.metrics[metric]),
                    items=tuple(
                        answers.make_changed_item(item, change, gain > 0)
                        for item, change, gain in chosen
                    ),
                )
            )
    return _add_images(tables, metric, plan)


def _select_arms(summary: Summary, metric: str) -> list[Arm]:
    """Return the arms with the largest differences, in the table's order."""
    sizes = {
        row.name: abs(row.figures[metric].difference or 0.0)
        for row in summary.rows
        if row.arm is not None
        and not row.arm.baseline
        and not row.arm.placebo
        and metric in row.figures
    }
    names = sorted(sizes, key=lambda name: -sizes[name])[:MAX_ARMS]
    return [arm for arm in summary.plan.arms if arm.name in names]


def _sort_by_gain(
    compared: ComparedScores, metric: str, arm: str, higher_is_better: bool
) -> list[tuple[str, float, float]]:
    """Return (item, change, gain), the largest gain first. The gain is positive if better."""
    results = compared.results
    values = results.metric(metric).values
    index = [entry.name for entry in results.arms].index(arm)
    change: Array = values[index].mean(axis=0) - values[results.baseline_arm].mean(axis=0)
    gain = change if higher_is_better else -change
    order = np.argsort(-gain, kind="stable")
    return [(compared.items[index], float(change[index]), float(gain[index])) for index in order]


def _select_extremes(changes: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return the `ITEMS_PER_DIRECTION` largest gains and as many losses, the worst first."""
    better = [entry for entry in changes if entry[2] > 0]
    worse = [entry for entry in reversed(changes) if entry[2] < 0]
    return [*better[:ITEMS_PER_DIRECTION], *worse[:ITEMS_PER_DIRECTION]]


class _AnswerPairs:
    """The answers of an arm and of the baseline, at the seeds that both have."""

    def __init__(
        self,
        metric: str,
        baseline: Arm,
        arm: Arm,
        scores: StudyScores,
        ledger: Ledger,
        storage: Path,
    ) -> None:
        self._metric, self._loaded = metric, scores
        self._ledger, self._storage = ledger, storage
        arm_trials = {trial.seed: trial for trial in arm.trials if self._has_scores(trial)}
        baseline_trials = {
            trial.seed: trial for trial in baseline.trials if self._has_scores(trial)
        }
        shared = [seed for seed in arm_trials if seed in baseline_trials]
        # Without a common seed, the first of each are compared.
        self._pairs = [(arm_trials[seed], baseline_trials[seed]) for seed in shared] or [
            (next(iter(arm_trials.values())), next(iter(baseline_trials.values())))
        ]
        self._responses: dict[str, Mapping[str, Mapping[str, Any]]] = {}

    def has_answer(self, item: str) -> bool:
        """Return whether a unit is a question. For some metrics it is a set of questions."""
        return any(self._find_answer(trial, item) for pair in self._pairs for trial in pair)

    def scores_differ(self, item: str) -> bool:
        """Return whether an item's score differs; its value may change by the rest of a ratio."""
        return any(
            self._scores(arm_trial)[item] != self._scores(baseline_trial)[item]
            for arm_trial, baseline_trial in self._pairs
        )

    def make_changed_item(self, item: str, change: float, better: bool) -> ChangedItem:
        """Return an item's row, with the answers of the seed with the largest change."""
        arm_trial, baseline_trial = max(
            self._pairs,
            key=lambda pair: float(np.sign(change)) * (_ratio(self._scores(pair[0])[item])
                                                      - _ratio(self._scores(pair[1])[item])),
        )  # fmt: skip
        answer = self._find_answer(arm_trial, item)
        return ChangedItem(
            item=item,
            seed=arm_trial.seed or 0,
            prompt=_to_printable(answer.get("prompt", "")),
            truth=_to_printable(answer.get("truth", "")),
            baseline=self._shown_answer(baseline_trial, item),
            arm=self._shown_answer(arm_trial, item),
            change=change,
            better=better,
        )

    def _has_scores(self, trial: Trial) -> bool:
        scores = self._loaded[trial.fingerprint].get(self._metric)
        return scores is not None and scores.items is not None

    def _scores(self, trial: Trial) -> Mapping[str, tuple[float, float]]:
        return self._loaded[trial.fingerprint][self._metric].items or {}

    def _shown_answer(self, trial: Trial, item: str) -> ShownAnswer:
        numerator, denominator = self._scores(trial)[item]
        return ShownAnswer(
            text=_to_printable(self._find_answer(trial, item).get("response", "")),
            score=f"{numerator:g} of {denominator:g}",
        )

    def _find_answer(self, trial: Trial, item: str) -> Mapping[str, Any]:
        if trial.fingerprint not in self._responses:
            self._responses[trial.fingerprint] = self._read_answers(trial)
        return self._responses[trial.fingerprint].get(item, {})

    def _read_answers(self, trial: Trial) -> dict[str, Mapping[str, Any]]:
        side, benchmark = _split_metric(self._metric)
        fingerprint = trial.evaluations[f"{side}/{benchmark}"]
        scored = self._ledger[trial.fingerprint].evaluations[fingerprint]
        file = self._storage / scored.folder / scored.evaluation.responses
        return {str(row["item"]): row for row in read_records(file) if "item" in row}


def _add_images(tables: Sequence[ChangedItems], metric: str, plan: Plan) -> list[ChangedItems]:
    """Return the changes with their items' pictures, each encoded once."""
    side, benchmark = _split_metric(metric)
    settings = next(
        candidate
        for settings_side, candidate in list_sides(plan.study.benchmarks)
        if (settings_side, candidate.name) == (side, benchmark)
    )
    items = {row.item for table in tables for row in table.items}
    images = encode_item_images(side, settings, plan.data_paths, items)
    return [
        replace(
            table, items=tuple(replace(row, images=images.get(row.item, ())) for row in table.items)
        )
        for table in tables
    ]


def _split_metric(metric: str) -> tuple[Side, str]:
    """Return a metric's side and benchmark. Its name may have parts: `pope/random/accuracy`."""
    side: Side = "select" if metric.startswith("select/") else "report"
    return side, metric.removeprefix("select/").partition("/")[0]


def _ratio(score: tuple[float, float]) -> float:
    numerator, denominator = score
    return numerator / denominator if denominator else 0.0


def _to_printable(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Lone surrogates cannot be encoded, and control characters cannot be shown.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
