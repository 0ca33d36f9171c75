"""Trim a study to a budget so that what is left can still be compared.

The rule: whole seeds are left out first, the last one first, so that every arm has the same seeds
and the comparison stays paired. Two are kept, since no difference can be tested with one. If that
is still too much, whole arms are left out, the last of the plan first, never the baseline nor the
last other arm. Finished trials cost nothing and are kept, and so is the untrained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chip_core.utils.errors import UserError
from orchestrator.cost.estimate import Estimate, Prices
from orchestrator.plan.plan import Arm, Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Budget

#: Seeds below which arms are left out instead: fewer tell nothing of training variance.
LEAST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Trimmed:
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
            return f"budget ({self.budget.description}): everything fits: {_amounts(self.takes)}"
        parts = []
        if self.seeds:
            some = "seed" if len(self.seeds) == 1 else "seeds"
            parts.append(f"{some} {', '.join(map(str, self.seeds))} of every arm")
        if self.arms:
            some = "the arm" if len(self.arms) == 1 else f"{len(self.arms)} arms:"
            parts.append(f"{some} {'; '.join(self.arms)}")
        return (
            f"left out for the budget ({self.budget.description}): {', and '.join(parts)}: "
            f"{len(self.trials)} trials; all would take {_amounts(self.needed)}, what is kept "
            f"{_amounts(self.takes)}"
        )


def amounts(found: Estimate, prices: Prices) -> dict[str, float | None]:
    """Return what an estimate comes to, by the names of a budget's bounds."""
    known, gpu = not found.total.unknown, found.gpu
    return {
        "hours": None if found.wall is None else found.wall / 3600,
        "cpu_hours": found.total.whole.cpu / 3600 if known else None,
        "gpu_hours": None if gpu is None else gpu / 3600,
        "price": found.price(prices),
    }


def trim(
    plan: Plan,
    budget: Budget,
    estimated: Callable[[Plan], Estimate],
    prices: Prices,
    ledger: Ledger,
) -> Trimmed:
    """Return a plan with what fits a budget, by the rule above.

    Args:
        plan: the study's plan.
        budget: the bounds.
        estimated: what is left of a plan.
        prices: what is paid.
        ledger: what is done.

    Raises:
        UserError: what the budget bounds is unknown, not even the minimum fits, or the study has
            `tune:`, so that its seeds would be trimmed before their settings are known.
    """
    if plan.study.tune is not None:
        raise UserError(
            f"budget ({budget.description}): holds for no study with `tune:`: leave the budget "
            "out, or "
            "bound the search by tune.trials and the seeds by --seeds"
        )

    def taken(kept: Plan) -> dict[str, float]:
        return _bounded(estimated(kept), budget, prices)

    def fits(takes: dict[str, float]) -> bool:
        return all(takes[name] <= bound for name, bound in budget.bounds.items())

    def result(kept: Plan, takes: dict[str, float]) -> Trimmed:
        return _trimmed(plan, kept, budget, needed, takes, ledger)

    needed = taken(plan)
    if fits(needed):
        return result(plan, needed)
    whole = len(plan.study.seeds)
    least = min(LEAST_SEEDS, whole)
    kept, takes = plan, needed
    for seeds in range(whole - 1, least - 1, -1):
        kept = _with(plan, plan.arms, seeds)
        takes = taken(kept)
        if fits(takes):
            return result(kept, takes)
    # The most arms that fit, by halving: a plan may have thousands.
    low, high = min(2, len(plan.arms)), len(plan.arms)
    smallest = _with(plan, _first(plan.arms, low), least)
    takes = taken(smallest)
    if not fits(takes):
        raise UserError(
            f"budget ({budget.description}): too small: the baseline and one arm with {least} "
            f"seed{'s' * (least > 1)} take {_amounts(takes)}: give more, or ask for less"
        )
    best = smallest, takes
    while high - low > 1:
        middle = (low + high) // 2
        kept = _with(plan, _first(plan.arms, middle), least)
        takes = taken(kept)
        if fits(takes):
            low, best = middle, (kept, takes)
        else:
            high = middle
    return result(*best)


def _bounded(found: Estimate, budget: Budget, prices: Prices) -> dict[str, float]:
    known = amounts(found, prices)
    takes = {}
    for name in budget.bounds:
        value = known[name]
        if value is None:
            raise UserError(_unknown(found, name, budget))
        takes[name] = value
    return takes


def _unknown(found: Estimate, name: str, budget: Budget) -> str:
    if found.total.unknown:
        first = sorted(found.total.unknown)[0]
        more = len(found.total.unknown) - 1
        why = first + (f" and {more} more" if more else "")
        what = "measure it by --calibrate, or give rates (docs/cost.md)"
    elif name == "price":
        why, what = "no price is given", "give --price-per-gpu-hour or --price-per-cpu-hour"
    else:
        why, what = "how many trials run at a time", "give --max-concurrent"
    return f"budget ({budget.description}): what the study takes is not known ({why}): {what}"


def _trimmed(
    plan: Plan,
    kept: Plan,
    budget: Budget,
    needed: dict[str, float],
    takes: dict[str, float],
    ledger: Ledger,
) -> Trimmed:
    runs = {trial.fingerprint for trial in kept.trials}
    seeds = len(kept.arms[0].trials)
    names = {arm.name for arm in kept.arms}
    return Trimmed(
        plan=kept,
        budget=budget,
        seeds=tuple(plan.study.seeds[seeds:]),
        arms=tuple(arm.name for arm in plan.arms if arm.name not in names),
        trials=tuple(
            trial.fingerprint
            for trial in plan.trials
            if trial.fingerprint not in runs and not ledger[trial.fingerprint].is_done(trial)
        ),
        needed=needed,
        takes=takes,
    )


def _with(plan: Plan, arms: Sequence[Arm], seeds: int) -> Plan:
    return replace(plan, arms=tuple(replace(arm, trials=arm.trials[:seeds]) for arm in arms))


def _first(arms: Sequence[Arm], count: int) -> list[Arm]:
    """Return the first arms, the baseline among them, in their order."""
    others = [arm for arm in arms if not arm.baseline][: count - 1]
    return [arm for arm in arms if arm.baseline or any(arm is other for other in others)]


def _amounts(takes: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in takes.items())
