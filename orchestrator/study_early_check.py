"""What is wrong with an `early_stopping:` block in its study: what may decide, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chip_core.registry import suggestion
from orchestrator.study import Factor
from orchestrator.study_benchmarks import Goal
from orchestrator.study_declared import Wrong
from orchestrator.study_early import TRAINING_METRICS, EarlyStopping


def check_early(
    rule: EarlyStopping | None,
    factors: Sequence[Factor],
    goals: Mapping[str, Goal],
    *,
    tuned: bool,
    wrong: Wrong,
) -> None:
    """Tell `wrong` of a metric that must not or cannot decide.

    Args:
        rule: as the file has it.
        factors: what the study varies.
        goals: the figures of its benchmarks.
        tuned: whether its arms choose settings for themselves.
        wrong: told of a key and what is wrong there.
    """
    if rule is None:
        return
    if tuned:
        wrong(
            "early_stopping",
            "holds for no study with `tune:`: draws of one arm would cut those of another, and "
            "every arm is to have the same search: leave one of the two out",
        )
    choices = suggestion(rule.metric, TRAINING_METRICS)
    key = "early_stopping.metric"
    if rule.metric in goals and rule.metric.startswith("select/"):
        wrong(
            key,
            f"'{rule.metric}' is known when a training has ended, too late to cut it: {choices}",
        )
    elif rule.metric in goals:
        wrong(key, f"'{rule.metric}' is of `report`, which decides nothing: {choices}")
    elif rule.metric not in TRAINING_METRICS:
        wrong(key, f"unknown training figure '{rule.metric}': {choices}")
    elif rule.metric == "loss":
        varied = [factor.name for factor in factors if _varies_objective(factor)]
        if varied:
            wrong(
                key,
                f"losses of different objectives are no common measure (factor '{varied[0]}'): "
                "name reward/accuracy",
            )


def _varies_objective(factor: Factor) -> bool:
    keys = {key for level in factor.levels for key in level.overrides}
    return any(key.partition(".")[0] == "objective" for key in keys)
