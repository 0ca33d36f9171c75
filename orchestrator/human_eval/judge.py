"""Compare people's judgements with those of a benchmark's judge on the same answers.

The judge is the source of the items' outcomes: a language model, or rules. People label few
answers, and the judge read all: their disagreements correct the judge's figures
(orchestrator/analysis/prediction_powered.py). The item is the unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from chip_core.evaluation.items import find_benchmark
from chip_core.evaluation.outcomes import MetricInfo
from chip_core.evaluation.task import metric_name
from chip_core.utils.errors import UserError
from chip_core.utils.registry import suggest
from orchestrator.analysis.prediction_powered import (
    MeanEstimate,
    PredictionPoweredEstimate,
    prediction_powered_mean,
)
from orchestrator.human_eval.pairs import AnswerPool, find_benchmark_settings
from orchestrator.human_eval.preference import VERDICT_VALUES, wilson_interval
from orchestrator.human_eval.replies import Judgement
from orchestrator.plan.plan import Plan
from orchestrator.report.outcomes import load_scores
from orchestrator.state.ledger import Ledger

_VERDICTS = {1.0: "win", 0.0: "tie", -1.0: "lose"}


@dataclass(frozen=True, kw_only=True)
class JudgeValues:
    """A metric's value of every answer that has one."""

    benchmark: str  # "mmhal", "select/mmhal"
    metric: str  # "mmhal/hallucination_rate"
    info: MetricInfo
    values: Mapping[str, Mapping[str, float]]  # trial's fingerprint -> item -> value
    is_mean: bool  # whether the metric is their mean; else a ratio of sums


@dataclass(frozen=True, kw_only=True)
class JudgeAgreement:
    """How often people and the judge agree on an answer."""

    share: float  # 0 to 1
    interval: tuple[float, float]  # Wilson's
    kappa: float | None  # Cohen's; None if both only ever gave the same value
    judgements: int


@dataclass(frozen=True, kw_only=True)
class CorrectedPreference:
    """Win less lose by the judge, and corrected by people's choices; from −1 to 1."""

    metric: str
    agreement: JudgeAgreement
    figures: PredictionPoweredEstimate


def load_judge_values(
    plan: Plan, ledger: Ledger, storage: Path, *, benchmark: str, metric: str | None
) -> JudgeValues:
    """Return the outcomes of a benchmark's items, answer by answer.

    Args:
        plan: the study's plan.
        ledger: what has been run.
        storage: the folder with the attempts' folders.
        benchmark: its name; "select/NAME" for the questions used to tune.
        metric: its name; None: the study's primary metric, if it is of the benchmark, else the
            benchmark's first.

    Raises:
        UserError: there is no such benchmark or metric, or it has no outcomes of items.
    """
    side, settings = find_benchmark_settings(plan, benchmark)
    infos = find_benchmark(settings.name).metrics
    prefix = metric_name(side, settings.name, "")
    primary = plan.study.primary
    if metric is None and primary is not None and primary.metric.startswith(prefix):
        metric = primary.metric
    short_name = next(iter(infos)) if metric is None else metric.removeprefix(prefix)
    if short_name not in infos:
        raise UserError(
            f"--metric: {benchmark} has no metric '{short_name}': {suggest(short_name, infos)}"
        )
    outcomes = {
        fingerprint: scores[prefix + short_name].items
        for fingerprint, scores in load_scores(plan, ledger, storage).items()
        if prefix + short_name in scores
    }
    values = {
        fingerprint: {
            item: numerator / denominator
            for item, (numerator, denominator) in items.items()
            if denominator
        }
        for fingerprint, items in outcomes.items()
        if items
    }
    if not values:
        raise UserError(
            f"study {plan.study.name}: {prefix + short_name} has no item outcomes yet: run the "
            "study first, or choose another --metric"
        )
    return JudgeValues(
        benchmark=benchmark,
        metric=prefix + short_name,
        info=infos[short_name],
        values=values,
        is_mean=all(
            denominator == 1
            for items in outcomes.values()
            for _, denominator in (items or {}).values()
        ),
    )


def correct_preference(
    judge: JudgeValues, pool: AnswerPool, judgements: Sequence[Judgement]
) -> CorrectedPreference | None:
    """Return the judge's corrected win less lose over all items on which answers differ.

    The judge prefers the answer with the better value, and equal values are a tie. None if it has
    no verdict on anything that people judged.
    """
    first, second = pool.arms
    direction = 1.0 if judge.info.goal == "maximize" else -1.0
    verdicts: dict[str, dict[int, float]] = {}
    for pair in pool.pairs:
        second_value, first_value = (
            judge.values.get(pool.trials[f"{arm}, seed {pair.seed}"], {}).get(pair.item)
            for arm in (second, first)
        )
        if pair.differs and second_value is not None and first_value is not None:
            sign = direction * float((second_value > first_value) - (second_value < first_value))
            verdicts.setdefault(pair.item, {})[pair.seed] = sign
    matched = [
        (choice, verdicts[choice.item][choice.seed])
        for choice in judgements
        if choice.verdict != "cant_tell" and choice.seed in verdicts.get(choice.item, {})
    ]
    if not matched:
        return None
    labels: dict[str, list[float]] = {}
    judged: dict[str, list[float]] = {}
    for choice, sign in matched:
        labels.setdefault(choice.item, []).append(VERDICT_VALUES[choice.verdict])
        judged.setdefault(choice.item, []).append(sign)
    return CorrectedPreference(
        metric=judge.metric,
        agreement=compute_agreement(
            [(choice.verdict, _VERDICTS[sign]) for choice, sign in matched]
        ),
        figures=correct_mean(
            {item: fmean(seed_values.values()) for item, seed_values in verdicts.items()},
            {item: fmean(values) for item, values in labels.items()},
            {item: fmean(values) for item, values in judged.items()},
            paired=True,
        ),
    )


def correct_mean(
    values: Mapping[str, float],
    labels: Mapping[str, float],
    judged: Mapping[str, float],
    *,
    paired: bool,
) -> PredictionPoweredEstimate:
    """Return a judge's mean over items, and its correction by some items' labels.

    Args:
        values: item -> the judge's value, the mean over its answers.
        labels: item -> people's value of its labelled answers.
        judged: item -> the judge's value of the same answers.
        paired: whether these are differences of two answers.
    """
    indices = {item: index for index, item in enumerate(sorted(values))}
    labelled = sorted(labels)
    return prediction_powered_mean(
        [values[item] for item in indices],
        [indices[item] for item in labelled],
        [labels[item] for item in labelled],
        [judged[item] for item in labelled],
        paired=paired,
    )


def compute_agreement(pairs: Sequence[tuple[Hashable, Hashable]]) -> JudgeAgreement:
    """Return how far people and a judge agree, from (people's value, the judge's) of each answer.

    κ = (p_o − p_e)/(1 − p_e), where p_o is the share of equal values, p_e the share expected by
    chance from the two distributions (J. Cohen, Educational and Psychological Measurement 20, 1960,
    37–46).
    """
    n = len(pairs)
    share = sum(human == judge for human, judge in pairs) / n
    human_counts, judge_counts = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    chance = sum(human_counts[value] * judge_counts[value] for value in human_counts) / n**2
    return JudgeAgreement(
        share=share,
        interval=wilson_interval(share, n),
        kappa=None if chance == 1 else (share - chance) / (1 - chance),
        judgements=n,
    )


def figures_to_json(
    estimate: PredictionPoweredEstimate, scale: float, bounds: tuple[float, float] | None
) -> dict[str, Any]:
    """Return figures as plain data, times `scale`, clipped to the possible values."""

    def cut(value: float) -> float:
        return value if bounds is None else min(max(value, bounds[0]), bounds[1])

    def estimate_to_json(mean: MeanEstimate) -> dict[str, Any]:
        interval = mean.interval
        return {
            "value": scale * cut(mean.value),
            "interval": None if interval is None else [scale * cut(bound) for bound in interval],
        }

    return {
        "corrected": estimate_to_json(estimate.corrected),
        "raw": estimate_to_json(estimate.raw),
        "labels_only": estimate_to_json(estimate.labels_only),
        "power": estimate.power,
        "labelled": estimate.labelled,
        "items": estimate.items,
    }


def agreement_to_json(agreement: JudgeAgreement) -> dict[str, Any]:
    """Return agreement as plain data, in percent; κ is unscaled."""
    return {
        "value": 100 * agreement.share,
        "interval": [100 * bound for bound in agreement.interval],
        "kappa": agreement.kappa,
        "judgements": agreement.judgements,
    }
