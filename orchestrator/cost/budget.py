"""Trim a study to a budget so that what is left can still be compared, and record what is left out.

The rule: whole seeds are left out first, the last one first, so that every arm has the same seeds
and the comparison stays paired. Two are kept, since no difference can be tested with one. If that
is still too much, whole arms are left out, the last of the plan first, never the baseline nor the
last other arm. Finished trials cost nothing and are kept, and so is the untrained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chip_core.utils.errors import UserError, warn_once
from chip_core.utils.files import read_checksummed, write_checksummed
from orchestrator.cost.estimate import Estimate, Prices
from orchestrator.plan.plan import Arm, Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Budget

#: Seeds below which arms are left out instead: fewer tell nothing of training variance.
MIN_SEEDS = 2
TRIMMED_FILE = "left_out.json"  # in a study's folder


@dataclass(frozen=True, kw_only=True)
class TrimmedPlan:
    """A study's plan within a budget."""

    plan: Plan  # what is run
    budget: Budget
    seeds: tuple[int, ...]  # left out, of every arm
    arms: tuple[str, ...]  # left out wholly
    trials: tuple[str, ...]  # fingerprints that are left out and are not done
    needed: dict[str, float]  # what all would take, by the budget's bounds
    takes: dict[str, float]  # what is run will take

    @property
    def sentence(self) -> str:
        """What is said of it, on the terminal and in the report."""
        if not self.trials:
            takes = _format_amounts(self.takes)
            return f"budget ({self.budget.description}): everything fits: {takes}"
        parts = []
        if self.seeds:
            subject = "seed" if len(self.seeds) == 1 else "seeds"
            parts.append(f"{subject} {', '.join(map(str, self.seeds))} of every arm")
        if self.arms:
            subject = "the arm" if len(self.arms) == 1 else f"{len(self.arms)} arms:"
            parts.append(f"{subject} {'; '.join(self.arms)}")
        return (
            f"left out for the budget ({self.budget.description}): {', and '.join(parts)}: "
            f"{len(self.trials)} trials; all would take {_format_amounts(self.needed)}, the rest "
            f"takes {_format_amounts(self.takes)}"
        )


def budget_amounts(estimate: Estimate, prices: Prices) -> dict[str, float | None]:
    """Return what an estimate comes to, by the names of a budget's bounds."""
    is_known, gpu = not estimate.total.unknown, estimate.gpu
    return {
        "hours": None if estimate.wall is None else estimate.wall / 3600,
        "cpu_hours": estimate.total.total_time.cpu / 3600 if is_known else None,
        "gpu_hours": None if gpu is None else gpu / 3600,
        "price": estimate.price(prices),
    }


def trim_plan(
    plan: Plan,
    budget: Budget,
    estimate_plan: Callable[[Plan], Estimate],
    prices: Prices,
    ledger: Ledger,
) -> TrimmedPlan:
    """Return a plan with what fits a budget, by the rule above.

    Args:
        plan: the study's plan.
        budget: the bounds.
        estimate_plan: what is left of a plan.
        prices: what is paid.
        ledger: what is done.

    Raises:
        UserError: what the budget bounds is unknown, not even the minimum fits, or the study has
            `tune:`, so that its seeds would be trimmed before their settings are known.
    """
    if plan.study.tune is not None:
        raise UserError(
            f"budget ({budget.description}): cannot be used with `tune:`: leave out the budget, "
            "or limit the search with tune.trials and the seeds with --seeds"
        )

    def amounts_of(reduced: Plan) -> dict[str, float]:
        return _bounded_amounts(estimate_plan(reduced), budget, prices)

    def fits(amounts: dict[str, float]) -> bool:
        return all(amounts[name] <= bound for name, bound in budget.bounds.items())

    def make_result(reduced: Plan, amounts: dict[str, float]) -> TrimmedPlan:
        return _make_trimmed_plan(plan, reduced, budget, needed, amounts, ledger)

    needed = amounts_of(plan)
    if fits(needed):
        return make_result(plan, needed)
    seed_count = len(plan.study.seeds)
    min_seeds = min(MIN_SEEDS, seed_count)
    reduced, amounts = plan, needed
    for seeds in range(seed_count - 1, min_seeds - 1, -1):
        reduced = _reduce_plan(plan, plan.arms, seeds)
        amounts = amounts_of(reduced)
        if fits(amounts):
            return make_result(reduced, amounts)
    # The most arms that fit, by halving: a plan may have thousands.
    low, high = min(2, len(plan.arms)), len(plan.arms)
    smallest = _reduce_plan(plan, _first_arms(plan.arms, low), min_seeds)
    amounts = amounts_of(smallest)
    if not fits(amounts):
        raise UserError(
            f"budget ({budget.description}): too small: the baseline and one arm with {min_seeds} "
            f"seed{'s' * (min_seeds > 1)} take {_format_amounts(amounts)}: raise the budget, or "
            "make the study smaller"
        )
    best_fit = smallest, amounts
    while high - low > 1:
        middle = (low + high) // 2
        reduced = _reduce_plan(plan, _first_arms(plan.arms, middle), min_seeds)
        amounts = amounts_of(reduced)
        if fits(amounts):
            low, best_fit = middle, (reduced, amounts)
        else:
            high = middle
    return make_result(*best_fit)


def _bounded_amounts(estimate: Estimate, budget: Budget, prices: Prices) -> dict[str, float]:
    all_amounts = budget_amounts(estimate, prices)
    amounts = {}
    for name in budget.bounds:
        value = all_amounts[name]
        if value is None:
            raise UserError(_unknown_message(estimate, name, budget))
        amounts[name] = value
    return amounts


def _unknown_message(estimate: Estimate, name: str, budget: Budget) -> str:
    if estimate.total.unknown:
        first_unknown = sorted(estimate.total.unknown)[0]
        rest = len(estimate.total.unknown) - 1
        reason = first_unknown + (f" and {rest} more" if rest else "")
        advice = "measure it with --calibrate, or give rates (docs/cost.md)"
    elif name == "price":
        reason, advice = "no price is given", "give --price-per-gpu-hour or --price-per-cpu-hour"
    else:
        reason, advice = "how many trials run at a time", "give --max-concurrent"
    return f"budget ({budget.description}): the study's cost is unknown ({reason}): {advice}"


def _make_trimmed_plan(
    plan: Plan,
    reduced: Plan,
    budget: Budget,
    needed: dict[str, float],
    amounts: dict[str, float],
    ledger: Ledger,
) -> TrimmedPlan:
    kept_trials = {trial.fingerprint for trial in reduced.trials}
    seeds = len(reduced.arms[0].trials)
    names = {arm.name for arm in reduced.arms}
    return TrimmedPlan(
        plan=reduced,
        budget=budget,
        seeds=tuple(plan.study.seeds[seeds:]),
        arms=tuple(arm.name for arm in plan.arms if arm.name not in names),
        trials=tuple(
            trial.fingerprint
            for trial in plan.trials
            if trial.fingerprint not in kept_trials and not ledger[trial.fingerprint].is_done(trial)
        ),
        needed=needed,
        takes=amounts,
    )


def _reduce_plan(plan: Plan, arms: Sequence[Arm], seeds: int) -> Plan:
    return replace(plan, arms=tuple(replace(arm, trials=arm.trials[:seeds]) for arm in arms))


def _first_arms(arms: Sequence[Arm], count: int) -> list[Arm]:
    """Return the first arms, the baseline among them, in their order."""
    others = [arm for arm in arms if not arm.baseline][: count - 1]
    return [arm for arm in arms if arm.baseline or any(arm is other for other in others)]


def _format_amounts(amounts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in amounts.items())


def save_trimmed(workdir: Path, study: str, trimmed: TrimmedPlan | None) -> None:
    """Save what is left out, and remove an older file if nothing is."""
    file = _trimmed_file(workdir, study)
    if trimmed is None or not trimmed.trials:
        file.unlink(missing_ok=True)
        return
    write_checksummed(file, {"trials": list(trimmed.trials), "sentence": trimmed.sentence})


def trimmed_notes(plan: Plan, ledger: Ledger) -> tuple[str, ...]:
    """Return the report's note on trials left out; empty once all of them are done."""
    file = _trimmed_file(ledger.folder.parent, plan.study.name)
    try:
        saved = read_checksummed(file)
        trials, sentence = set(map(str, saved["trials"])), str(saved["sentence"])
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, KeyError, TypeError):
        warn_once(
            f"{file} has changed since it was written: the trials left out for a budget are unknown"
        )
        return ()
    not_done = {
        trial.fingerprint for trial in plan.trials if not ledger[trial.fingerprint].is_done(trial)
    }
    count = len(not_done & trials)
    if not count:
        return ()
    sentence = f"{sentence[:1].upper()}{sentence[1:]}."
    total = len(trials)
    return (
        sentence
        if count == total
        else f"{sentence} {total - count} of these have been done since.",
    )


def _trimmed_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / TRIMMED_FILE
