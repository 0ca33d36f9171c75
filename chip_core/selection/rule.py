"""Pick one of a training's checkpoints by a declared rule from their figures on `select`.

Nothing under `report` is read here or can be named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.items import find_benchmark
from chip_core.evaluation.task import MetricInfo, metric_name
from chip_core.utils.registry import suggest

#: Folders of a trial: kept models and their answers, each by its step.
KEPT, SELECTION = "kept", "selection"


@dataclass(frozen=True, kw_only=True)
class ScoredCheckpoint:
    """A checkpoint's figures under `select`, in the scorers' units."""

    step: int  # 0: the untrained model
    figures: Mapping[str, float]  # full name -> value; an undefined one is absent


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The checkpoint that is the trial's model."""

    step: int
    reason: str


def format_step_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def select_metrics(config: TrialConfig) -> dict[str, MetricInfo]:
    """Return the figures under `select` by full name: all that a rule can use."""
    selectable: dict[str, MetricInfo] = {}
    for settings in config.benchmarks.select:
        try:
            metrics = find_benchmark(settings.name).metrics
        except ValueError:
            continue  # reported where benchmarks are checked
        selectable |= {
            metric_name("select", settings.name, name): metrics[name] for name in metrics
        }
    return selectable


def find_selection_problems(config: TrialConfig) -> list[str]:
    """Return what is wrong with the scoring at intermediate steps; empty if nothing."""
    if not config.training.score_at:
        return []
    selectable = select_metrics(config)
    if not config.benchmarks.select:
        return [
            "training.score_at: there is no benchmark under `select` to score with: add one there"
        ]
    pick = config.training.pick
    metric_keys = {"training.pick.metric": pick.metric}
    if pick.constraint is not None:
        metric_keys["training.pick.constraint.metric"] = pick.constraint.metric
    return [
        f"{key}: unknown metric '{metric}', or not under `select`, which is the only side that "
        f"picks: {suggest(metric, selectable)}"
        for key, metric in metric_keys.items()
        if metric is not None and metric not in selectable
    ]


def describe_selection(config: TrialConfig) -> str | None:
    """Return how a training is scored at intermediate steps, as text; None if it is not."""
    settings = config.training
    if not settings.score_at:
        return None
    shares = ", ".join(f"{100 * share:g} %" for share in settings.score_at if share < 1)
    timing = f"after {shares} of the steps and at the end" if shares else "at the end"
    rule = f"the {settings.pick.rule} answers `report`"
    if settings.pick.metric is not None:
        rule = f"the best by {settings.pick.metric} answers `report`"
    if settings.pick.constraint is not None:
        bound = settings.pick.constraint
        rule += f", of those with {bound.metric} at most {bound.max_drop:g} worse than untrained"
    if not config.evaluation.in_process:
        rule += "; transformers answers `select` there, whatever evaluation.generator is"
    return f"models are scored on `select` {timing}; {rule}"


def needs_untrained(config: TrialConfig) -> bool:
    """Return whether the rule also uses the untrained model."""
    return config.training.pick.constraint is not None


def count_select_runs(config: TrialConfig, steps: int | None = None) -> int:
    """Return how often a trial that is trained answers each question under `select`.

    Args:
        config: the trial.
        steps: of its training; None: so many that no two shares of them coincide.
    """
    if not config.training.score_at:
        return 1
    return len(config.training.scored_steps(steps or 1_000_000)) + needs_untrained(config)


def pick_checkpoint(config: TrialConfig, points: Sequence[ScoredCheckpoint]) -> Pick:
    """Return the checkpoint that becomes the trial's model.

    Among equal ones it is the earliest. If none satisfies the constraint, it is the one that loses
    least, and the reason says so.

    Args:
        config: the trial.
        points: every checkpoint, the final one last; with the untrained model if the rule uses it.
    """
    rule = config.training.pick
    scored = [point for point in points if point.step > 0]
    end = scored[-1]
    if rule.rule == "last" or rule.metric is None:
        return Pick(step=end.step, reason="the training's end, by the rule `last`")
    metric, metrics = rule.metric, select_metrics(config)
    candidates = [point for point in scored if metric in point.figures]
    if not candidates:
        return Pick(step=end.step, reason=f"the training's end: {metric} is undefined everywhere")
    suffix = ""
    if rule.constraint is not None:
        drops = _compute_metric_drops(
            points, rule.constraint.metric, metrics[rule.constraint.metric]
        )
        comparable = [point for point in candidates if point.step in drops]
        eligible = [point for point in comparable if drops[point.step] <= rule.constraint.max_drop]
        bound = (
            f"{rule.constraint.metric} at most {rule.constraint.max_drop:g} worse than untrained"
        )
        if not eligible:
            if not comparable:
                return Pick(
                    step=end.step,
                    reason=f"the training's end: {bound} cannot be determined for any",
                )
            smallest_drop = min(comparable, key=lambda point: drops[point.step])
            loss_text = f"it is {drops[smallest_drop.step]:.4g} worse"
            return Pick(
                step=smallest_drop.step,
                reason=f"none has {bound}: this one loses least ({loss_text})",
            )
        candidates, suffix = eligible, f", of those with {bound}"
    sign = 1.0 if metrics[metric].goal == "minimize" else -1.0
    best = min(candidates, key=lambda point: sign * point.figures[metric])
    return Pick(step=best.step, reason=f"the best {metric}, {best.figures[metric]:.4g}{suffix}")


def _compute_metric_drops(
    points: Sequence[ScoredCheckpoint], metric: str, info: MetricInfo
) -> dict[int, float]:
    """Return how much worse than the untrained model each is, in points of a rate, by step."""
    untrained = next((point.figures.get(metric) for point in points if point.step == 0), None)
    if untrained is None:
        return {}
    scale = (100.0 if info.unit == "fraction" else 1.0) * (1 if info.goal == "minimize" else -1)
    return {
        point.step: scale * (point.figures[metric] - untrained)
        for point in points
        if point.step > 0 and metric in point.figures
    }


def as_json(pick: Pick, points: Sequence[ScoredCheckpoint]) -> dict[str, Any]:
    """Return a choice in the form of `TrialResult.picked`."""
    return {
        "step": pick.step,
        "steps": points[-1].step,
        "why": pick.reason,
        "points": [{"step": point.step, "figures": dict(point.figures)} for point in points],
    }
