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

from chip_core.evaluation.readiness import sides
from chip_core.evaluation.task import Side
from chip_core.utils.files import read_records
from orchestrator.analysis.values import Array
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.figures.thumbnails import item_images
from orchestrator.report.formatting import points_text
from orchestrator.report.layout import ChangedItem, ChangedItems, ShownAnswer
from orchestrator.report.outcomes import ComparedScores, Loaded
from orchestrator.report.summary import Summary
from orchestrator.state.ledger import Ledger

ARMS = 6  # number of arms shown, those with the largest differences
EACH_WAY = 3  # items per arm that got better, and as many that got worse
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def largest_changes(
    summary: Summary, loaded: Loaded, ledger: Ledger, storage: Path
) -> list[ChangedItems]:
    """Return the largest changes on the primary metric, arm by arm."""
    primary = summary.plan.study.primary
    one = None if primary is None else summary.compared.get(primary.metric)
    if primary is None or one is None or not one.items:
        return []
    metric, plan = primary.metric, summary.plan
    baseline = plan.baseline
    found = []
    for arm in _arms(summary, metric):
        if arm.name not in [entry.name for entry in one.results.arms]:
            continue
        rows = _Answers(metric, baseline, arm, loaded, ledger, storage)
        changed = _by_gain(one, metric, arm.name, primary.goal == "maximize")
        chosen = _ends(
            [
                (item, change, gain)
                for item, change, gain in changed
                if rows.differ(item) and rows.asked(item)
            ]
        )
        if chosen:
            found.append(
                ChangedItems(
                    arm=arm.name,
                    baseline=baseline.name,
                    metric=metric,
                    unit=points_text(summary.metrics[metric]),
                    items=tuple(
                        rows.change(item, change, gain > 0) for item, change, gain in chosen
                    ),
                )
            )
    return _with_images(found, metric, plan)


def _arms(summary: Summary, metric: str) -> list[Arm]:
    """Return the arms with the largest differences, in the table's order."""
    sizes = {
        row.name: abs(row.figures[metric].difference or 0.0)
        for row in summary.rows
        if row.arm is not None
        and not row.arm.baseline
        and not row.arm.placebo
        and metric in row.figures
    }
    kept = sorted(sizes, key=lambda name: -sizes[name])[:ARMS]
    return [arm for arm in summary.plan.arms if arm.name in kept]


def _by_gain(
    one: ComparedScores, metric: str, arm: str, more: bool
) -> list[tuple[str, float, float]]:
    """Return (item, change, gain), the largest gain first. The gain is positive if better."""
    results = one.results
    values = results.metric(metric).values
    place = [entry.name for entry in results.arms].index(arm)
    change: Array = values[place].mean(axis=0) - values[results.baseline_arm].mean(axis=0)
    gain = change if more else -change
    order = np.argsort(-gain, kind="stable")
    return [(one.items[place], float(change[place]), float(gain[place])) for place in order]


def _ends(changed: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return the `EACH_WAY` largest gains and the `EACH_WAY` largest losses, the worst first."""
    better = [entry for entry in changed if entry[2] > 0]
    worse = [entry for entry in reversed(changed) if entry[2] < 0]
    return [*better[:EACH_WAY], *worse[:EACH_WAY]]


class _Answers:
    """The answers of an arm and of the baseline, at the seeds that both have."""

    def __init__(
        self,
        metric: str,
        baseline: Arm,
        arm: Arm,
        loaded: Loaded,
        ledger: Ledger,
        storage: Path,
    ) -> None:
        self._metric, self._loaded = metric, loaded
        self._ledger, self._storage = ledger, storage
        ours = {trial.seed: trial for trial in arm.trials if self._known(trial)}
        theirs = {trial.seed: trial for trial in baseline.trials if self._known(trial)}
        shared = [seed for seed in ours if seed in theirs]
        # Without a common seed, the first of each are compared.
        self._pairs = [(ours[seed], theirs[seed]) for seed in shared] or [
            (next(iter(ours.values())), next(iter(theirs.values())))
        ]
        self._responses: dict[str, Mapping[str, Mapping[str, Any]]] = {}

    def asked(self, item: str) -> bool:
        """Return whether a unit is a question. For some metrics it is a set of questions."""
        return any(self._answer(trial, item) for pair in self._pairs for trial in pair)

    def differ(self, item: str) -> bool:
        """Return whether an item's score differs; its value may change by the rest of a ratio."""
        return any(self._scores(one)[item] != self._scores(two)[item] for one, two in self._pairs)

    def change(self, item: str, change: float, better: bool) -> ChangedItem:
        """Return an item's row, with the answers of the seed with the largest change."""
        ours, theirs = max(
            self._pairs,
            key=lambda pair: float(np.sign(change)) * (_rate(self._scores(pair[0])[item])
                                                      - _rate(self._scores(pair[1])[item])),
        )  # fmt: skip
        said = self._answer(ours, item)
        return ChangedItem(
            item=item,
            seed=ours.seed or 0,
            prompt=_text(said.get("prompt", "")),
            truth=_text(said.get("truth", "")),
            baseline=self._answered(theirs, item),
            arm=self._answered(ours, item),
            change=change,
            better=better,
        )

    def _known(self, trial: Trial) -> bool:
        scores = self._loaded[trial.fingerprint].get(self._metric)
        return scores is not None and scores.items is not None

    def _scores(self, trial: Trial) -> Mapping[str, tuple[float, float]]:
        return self._loaded[trial.fingerprint][self._metric].items or {}

    def _answered(self, trial: Trial, item: str) -> ShownAnswer:
        numerator, denominator = self._scores(trial)[item]
        return ShownAnswer(
            text=_text(self._answer(trial, item).get("response", "")),
            score=f"{numerator:g} of {denominator:g}",
        )

    def _answer(self, trial: Trial, item: str) -> Mapping[str, Any]:
        if trial.fingerprint not in self._responses:
            self._responses[trial.fingerprint] = self._read(trial)
        return self._responses[trial.fingerprint].get(item, {})

    def _read(self, trial: Trial) -> dict[str, Mapping[str, Any]]:
        side, benchmark = _benchmark(self._metric)
        fingerprint = trial.evaluations[f"{side}/{benchmark}"]
        scored = self._ledger[trial.fingerprint].evaluations[fingerprint]
        file = self._storage / scored.folder / scored.evaluation.responses
        return {str(row["item"]): row for row in read_records(file) if "item" in row}


def _with_images(found: Sequence[ChangedItems], metric: str, plan: Plan) -> list[ChangedItems]:
    """Return the changes with their items' pictures, each encoded once."""
    side, benchmark = _benchmark(metric)
    settings = next(
        chosen
        for which, chosen in sides(plan.study.benchmarks)
        if (which, chosen.name) == (side, benchmark)
    )
    items = {row.item for one in found for row in one.items}
    images = item_images(side, settings, plan.data_paths, items)
    return [
        replace(
            one, items=tuple(replace(row, images=images.get(row.item, ())) for row in one.items)
        )
        for one in found
    ]


def _benchmark(metric: str) -> tuple[Side, str]:
    """Return a metric's side and benchmark. Its name may have parts: `pope/random/accuracy`."""
    side: Side = "select" if metric.startswith("select/") else "report"
    return side, metric.removeprefix("select/").partition("/")[0]


def _rate(score: tuple[float, float]) -> float:
    numerator, denominator = score
    return numerator / denominator if denominator else 0.0


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Lone surrogates cannot be encoded, and control characters cannot be shown.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
