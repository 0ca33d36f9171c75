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
    PredictionPowered,
    prediction_powered_mean,
)
from orchestrator.human_eval.pairs import Pool, find_scored
from orchestrator.human_eval.preference import WORTH, wilson
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
    means: bool  # whether the metric is their mean; else a ratio of sums


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
    figures: PredictionPowered


def judge_values(
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
    side, settings = find_scored(plan, benchmark)
    infos = find_benchmark(settings.name).metrics
    prefix = metric_name(side, settings.name, "")
    primary = plan.study.primary
    if metric is None and primary is not None and primary.metric.startswith(prefix):
        metric = primary.metric
    short = next(iter(infos)) if metric is None else metric.removeprefix(prefix)
    if short not in infos:
        raise UserError(f"--metric: {benchmark} has no metric '{short}': {suggest(short, infos)}")
    outcomes = {
        fingerprint: scores[prefix + short].items
        for fingerprint, scores in load_scores(plan, ledger, storage).items()
        if prefix + short in scores
    }
    values = {
        fingerprint: {item: top / below for item, (top, below) in items.items() if below}
        for fingerprint, items in outcomes.items()
        if items
    }
    if not values:
        raise UserError(
            f"study {plan.study.name}: {prefix + short} has no outcomes of items yet: run the "
            "study first, or name another --metric"
        )
    return JudgeValues(
        benchmark=benchmark,
        metric=prefix + short,
        info=infos[short],
        values=values,
        means=all(below == 1 for items in outcomes.values() for _, below in (items or {}).values()),
    )


def correct_preference(
    judge: JudgeValues, pool: Pool, made: Sequence[Judgement]
) -> CorrectedPreference | None:
    """Return the judge's corrected win less lose over all items on which answers differ.

    The judge prefers the answer with the better value, and equal values are a tie. None if it has
    no verdict on anything that people judged.
    """
    first, second = pool.arms
    better = 1.0 if judge.info.goal == "maximize" else -1.0
    verdicts: dict[str, dict[int, float]] = {}
    for pair in pool.pairs:
        ours, theirs = (
            judge.values.get(pool.trials[f"{arm}, seed {pair.seed}"], {}).get(pair.item)
            for arm in (second, first)
        )
        if pair.differs and ours is not None and theirs is not None:
            sign = better * float((ours > theirs) - (ours < theirs))
            verdicts.setdefault(pair.item, {})[pair.seed] = sign
    both = [
        (choice, verdicts[choice.item][choice.seed])
        for choice in made
        if choice.verdict != "cant_tell" and choice.seed in verdicts.get(choice.item, {})
    ]
    if not both:
        return None
    labels: dict[str, list[float]] = {}
    judged: dict[str, list[float]] = {}
    for choice, sign in both:
        labels.setdefault(choice.item, []).append(WORTH[choice.verdict])
        judged.setdefault(choice.item, []).append(sign)
    return CorrectedPreference(
        metric=judge.metric,
        agreement=judge_agreement([(choice.verdict, _VERDICTS[sign]) for choice, sign in both]),
        figures=correct(
            {item: fmean(of_seeds.values()) for item, of_seeds in verdicts.items()},
            {item: fmean(given) for item, given in labels.items()},
            {item: fmean(given) for item, given in judged.items()},
            paired=True,
        ),
    )


def correct(
    every: Mapping[str, float],
    labels: Mapping[str, float],
    judged: Mapping[str, float],
    *,
    paired: bool,
) -> PredictionPowered:
    """Return a judge's mean over items, and its correction by some items' labels.

    Args:
        every: item -> the judge's value, the mean over its answers.
        labels: item -> people's value of its labelled answers.
        judged: item -> the judge's value of the same answers.
        paired: whether these are differences of two answers.
    """
    places = {item: place for place, item in enumerate(sorted(every))}
    some = sorted(labels)
    return prediction_powered_mean(
        [every[item] for item in places],
        [places[item] for item in some],
        [labels[item] for item in some],
        [judged[item] for item in some],
        paired=paired,
    )


def judge_agreement(pairs: Sequence[tuple[Hashable, Hashable]]) -> JudgeAgreement:
    """Return how far people and a judge agree, from (people's value, the judge's) of each answer.

    κ = (p_o − p_e)/(1 − p_e), where p_o is the share of equal values, p_e the share expected by
    chance from the two distributions (J. Cohen, Educational and Psychological Measurement 20, 1960,
    37–46).
    """
    n = len(pairs)
    same = sum(one == other for one, other in pairs) / n
    ours, theirs = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    chance = sum(ours[value] * theirs[value] for value in ours) / n**2
    return JudgeAgreement(
        share=same,
        interval=wilson(same, n),
        kappa=None if chance == 1 else (same - chance) / (1 - chance),
        judgements=n,
    )


def figures_json(
    found: PredictionPowered, scale: float, bounds: tuple[float, float] | None
) -> dict[str, Any]:
    """Return figures as plain data, times `scale`, clipped to the possible values."""

    def cut(value: float) -> float:
        return value if bounds is None else min(max(value, bounds[0]), bounds[1])

    def shown(one: MeanEstimate) -> dict[str, Any]:
        interval = one.interval
        return {
            "value": scale * cut(one.value),
            "interval": None if interval is None else [scale * cut(bound) for bound in interval],
        }

    return {
        "corrected": shown(found.corrected),
        "raw": shown(found.raw),
        "labels_only": shown(found.labels_only),
        "power": found.power,
        "labelled": found.labelled,
        "items": found.items,
    }


def agreement_json(found: JudgeAgreement) -> dict[str, Any]:
    """Return agreement as plain data, in percent; κ is unscaled."""
    return {
        "value": 100 * found.share,
        "interval": [100 * bound for bound in found.interval],
        "kappa": found.kappa,
        "judgements": found.judgements,
    }
