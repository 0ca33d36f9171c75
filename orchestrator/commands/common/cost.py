"""Define the options on cost, and estimate a study's cost from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.common.options import combine_options, unique_values
from orchestrator.commands.common.param_types import AmountType, FloatType, IntegerType, PathType
from orchestrator.cost.published.devices import DEVICES

if TYPE_CHECKING:
    from orchestrator.cost.power import PowerEstimate
    from orchestrator.cost.study_cost import CostEstimate, CostRequest
    from orchestrator.plan.plan import Plan
    from orchestrator.state.ledger import Ledger


#: What an estimate of the cost goes by.
cost_options = combine_options(
    click.option(
        "--calibrate",
        is_flag=True,
        help="Measure some steps and answers of each kind of trial on this machine.",
    ),
    click.option(
        "--rates",
        type=PathType("file", exists=True),
        help="A YAML file of rates and prices.",
    ),
    click.option(
        "--rate",
        "rate",
        multiple=True,
        type=AmountType("--rate step=1.5"),
        metavar="NAME=SECONDS",
        help="One rate: start, step, answer, score or sample.",
    ),
    click.option("--price-per-gpu-hour", type=FloatType(), help="In your currency."),
    click.option("--price-per-cpu-hour", type=FloatType(), help="In your currency."),
    click.option(
        "--device-memory",
        type=FloatType(is_positive=True, high=2**20),
        help="GiB of one device, if it is not this machine's.",
    ),
    click.option(
        "--device",
        type=click.Choice([*DEVICES]),
        help="Estimate memory and time on this GPU from published rates.",
    ),
    click.option("--gpus", type=IntegerType(1, 10**6), help="Number of --device GPUs; default: 1."),
    click.option(
        "--budget",
        multiple=True,
        type=AmountType("--budget hours=12"),
        metavar="NAME=AMOUNT",
        help="Run only what fits: hours, cpu_hours, gpu_hours or price.",
    ),
)


def cost_request(
    *,
    calibrate: bool,
    rates: Path | None,
    rate: Sequence[tuple[str, float]],
    device: str | None,
    gpus: int | None,
    budget: Sequence[tuple[str, float]],
    executor: str,
    max_concurrent: int | None,
    address: str | None = None,
    is_preview: bool = False,
    **flags: float | None,
) -> CostRequest:
    """Return the request for a cost estimate; `flags` are options named as keys of `UserRates`.

    Raises:
        ConfigError: a rate or a bound is wrong.
    """
    from chip_core.config.validation import parse_model
    from orchestrator.cost.study_cost import CostRequest
    from orchestrator.cost.user_rates import read_user_rates
    from orchestrator.study.limits import Budget

    if gpus is not None and device is None:
        raise click.UsageError("--gpus is the number of --device GPUs: give --device, too")
    if gpus is not None and max_concurrent is not None:
        raise click.UsageError(
            "--gpus and --max-concurrent both set how many trials run at a time: give one of them"
        )
    bounds = None
    if budget:
        bounds = parse_model(Budget, unique_values("--budget", budget), "--budget")
    return CostRequest(
        user_rates=read_user_rates(rates, {**unique_values("--rate", rate), **flags}),
        executor="inline" if executor == "inline" else "ray",
        max_concurrent=max_concurrent,
        on_cluster=address is not None,
        device=None if device is None else DEVICES[device],
        gpus=gpus or 1,
        calibrate=calibrate,
        budget=bounds,
        dry_run=is_preview,
    )


def estimate_cost(
    plan: Plan, workdir: Path, request: CostRequest, print_line: Callable[[str], None]
) -> CostEstimate:
    """Estimate a study's cost and the power of its seeds.

    Raises:
        UserError: its budget cannot be met.
    """
    from dataclasses import replace

    from orchestrator.cost.study_cost import estimate_study_cost
    from orchestrator.state.integrity import read_ledger

    ledger = read_ledger(plan, workdir)
    estimate = estimate_study_cost(plan, ledger, workdir, request, print_line)
    if not estimate.work.trials:
        return estimate
    return replace(estimate, power=_estimate_power(plan, ledger, workdir, request))


def require_device_memory(plan: Plan, workdir: Path, request: CostRequest) -> None:
    """Check, before anything is computed, that no training is too large for its GPU.

    If the GPU is unknown, as on a cluster without --device, nothing is checked.

    Raises:
        ConfigError: some are too large; lists what would fit for each.
    """
    from orchestrator.cost.memory import require_fit

    if not any(trial.config.engine.uses_gpu for trial in plan.trials):
        return
    if request.on_cluster and request.device_gib is None:
        return
    from orchestrator.cost.memory import MemoryEstimator, estimate_fits
    from orchestrator.cost.rates import Rates
    from orchestrator.cost.workload import build_workload
    from orchestrator.state.integrity import read_ledger

    work = build_workload(plan, read_ledger(plan, workdir), workdir)
    estimator = MemoryEstimator(count=True)
    require_fit(
        estimate_fits(work, Rates(), estimator, at_once=None, device_gib=request.device_gib)
    )


def _estimate_power(
    plan: Plan, ledger: Ledger, storage: Path, request: CostRequest
) -> PowerEstimate | None:
    """Return the power of seeds on the primary metric; None if unknown."""
    from orchestrator.cost.power import power_from_assumptions, power_from_runs
    from orchestrator.cost.workload import count_questions
    from orchestrator.report.formatting import format_difference_unit
    from orchestrator.report.outcomes import load_scores
    from orchestrator.report.sections.power import testable_comparisons
    from orchestrator.report.summary import build_summary, study_metrics

    primary = plan.study.primary
    if primary is None or len(plan.compared_arms) < 2:
        return None
    info = study_metrics(plan)[primary.metric]
    unit, seeds = format_difference_unit(info), len(plan.study.seeds)
    scored_trials = [trial for trial in plan.trials if ledger[trial.fingerprint].evaluations]
    if len(scored_trials) > len(plan.arms):  # else no arm has two seeds
        summary = build_summary(plan, ledger, load_scores(plan, ledger, storage))
        contrasts = [contrast for _, contrast in testable_comparisons(summary, primary.metric)]
        if contrasts:
            trials = sum(not trial.untrained for trial in scored_trials)
            return power_from_runs(primary.metric, unit, seeds, contrasts, trials)
    items = count_questions(plan).get(f"report/{primary.metric.rpartition('/')[0]}")
    if not items or info.unit != "percent":
        return None
    assumptions = request.user_rates.assumed
    return power_from_assumptions(
        primary.metric, unit, seeds, items, len(plan.compared_arms), assumptions
    )
