"""Estimate a study's whole cost from the rates that are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chip_core.utils.errors import UserError
from orchestrator.cost.budget import TrimmedPlan, trim_plan
from orchestrator.cost.calibration.calibrate import MessageCallback, calibrate, load_calibration
from orchestrator.cost.estimate import Estimate, ExecutorKind, estimate_workload
from orchestrator.cost.judges import JudgeCosts, estimate_judge_costs
from orchestrator.cost.machines import server_gpus, slots_on_gpus, slots_on_machine, trial_machines
from orchestrator.cost.memory import (
    DiskUsage,
    MemoryEstimator,
    MemoryFit,
    estimate_disk,
    estimate_fits,
)
from orchestrator.cost.power import PowerEstimate
from orchestrator.cost.published.devices import GIB, Device
from orchestrator.cost.published.rates import SOURCE_NAME, RateRange, published_rates
from orchestrator.cost.rates import Rates
from orchestrator.cost.recorded import recorded_rates
from orchestrator.cost.user_rates import UserRates
from orchestrator.cost.workload import Workload, build_workload
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Budget


@dataclass(frozen=True, kw_only=True)
class CostRequest:
    """The user's request for an estimate."""

    user_rates: UserRates = UserRates()
    executor: ExecutorKind = "ray"
    max_concurrent: int | None = None  # in place of what fits this machine
    device: Device | None = None  # in place of this machine's
    gpus: int = 1  # of that device
    on_cluster: bool = False  # on a cluster: what fits this machine says nothing
    calibrate: bool = False
    budget: Budget | None = None  # in place of the study's
    dry_run: bool = False  # nothing is run: the study's own budget that cannot be held is only told

    @property
    def builds_models(self) -> bool:
        """Whether models may be built without weights, to count parameters: it takes torch."""
        return self.calibrate or self.user_rates != UserRates() or self.device is not None

    @property
    def device_gib(self) -> float | None:
        """GiB of a device that a trial may take, where that is not this machine's to say."""
        if self.user_rates.device_memory is not None or self.device is None:
            return self.user_rates.device_memory
        return self.device.usable_bytes / GIB


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a study will cost."""

    plan: Plan  # what is run: within the budget
    work: Workload
    estimate: Estimate
    fastest: Estimate | None  # where rates have a range: the other end of it
    device: Device | None
    rates: Rates
    user_rates: UserRates
    fits: tuple[MemoryFit, ...]
    disk: DiskUsage
    judges: JudgeCosts
    problems: dict[str, str]  # what could not be calibrated, and why
    trimmed: TrimmedPlan | None  # None: no budget, or none that can be held
    budget_problem: str | None = None  # why the study's budget cannot be held
    power: PowerEstimate | None = None  # what seeds buy


def estimate_study_cost(
    plan: Plan, ledger: Ledger, storage: Path, request: CostRequest, notify: MessageCallback
) -> CostEstimate:
    """Return what a study will cost.

    Args:
        plan: the study's plan.
        ledger: what has been run.
        storage: where attempts, stores and calibrations lie.
        request: what the user asks.
        notify: told what is being measured.

    Raises:
        UserError: the budget cannot be held, or what it bounds is not known.
    """
    full_work = build_workload(plan, ledger, storage)
    at_once = _slot_count(full_work, request)
    server = server_gpus(full_work.trials)  # a part of the study has one too
    slots = 1 if request.executor == "inline" else at_once
    rate_finder = _RateFinder(
        plan, ledger, storage, request, notify, full_work=full_work, slots=slots
    )

    def estimate_work(work: Workload, rates: Rates) -> Estimate:
        return estimate_workload(
            work, rates, at_once=at_once, executor=request.executor, server_gpus=server
        )

    def estimate_part(part: Plan) -> Estimate:
        # A part can have kinds of its own: with fewer trials a reference pass may not pay.
        work = full_work if part is plan else build_workload(part, ledger, storage)
        return estimate_work(work, rate_finder.rates(work))

    budget = request.budget or plan.study.budget
    trimmed, budget_problem = None, None
    if budget is not None:
        try:
            trimmed = trim_plan(plan, budget, estimate_part, request.user_rates.prices, ledger)
        except UserError as error:
            if request.budget is not None or not request.dry_run:
                raise
            budget_problem = str(error)
    work = full_work
    if trimmed is not None and trimmed.plan is not plan:
        plan, work = trimmed.plan, build_workload(trimmed.plan, ledger, storage)
    rates = rate_finder.rates(work)
    slow_estimate = estimate_work(work, rates)
    fastest = None
    if SOURCE_NAME in slow_estimate.total.sources:
        fastest = estimate_work(work, rate_finder.rates(work, fast=True))
    estimator = MemoryEstimator(count=request.builds_models)
    return CostEstimate(
        plan=plan,
        work=work,
        estimate=slow_estimate,
        fastest=fastest,
        device=request.device,
        rates=rates,
        user_rates=request.user_rates,
        fits=tuple(
            estimate_fits(
                work,
                rates,
                estimator,
                at_once=slots,
                device_gib=request.device_gib,
                # Without a device there is nothing long to tell of.
                notify=notify if request.device is not None else lambda text: None,
            )
        ),
        disk=estimate_disk(work, rates, estimator, at_once=slots, storage=storage),
        judges=estimate_judge_costs(work.trials, plan.data_paths),
        problems=rate_finder.problems,
        trimmed=trimmed,
        budget_problem=budget_problem,
    )


def _slot_count(full_work: Workload, request: CostRequest) -> int | None:
    """Return how many trials run at once; None: a cluster's to say."""
    at_once = request.max_concurrent or request.user_rates.max_concurrent
    if at_once is None and request.device is not None:
        return slots_on_gpus(full_work.trials, max(0, request.gpus - server_gpus(full_work.trials)))
    if at_once is None and not request.on_cluster:
        return (
            slots_on_machine(full_work.trials, server_gpus(full_work.trials))
            if full_work.trials
            else 1
        )
    return at_once


class _RateFinder:
    """Finds the rates of workloads: given, recorded, measured here, or published."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        storage: Path,
        request: CostRequest,
        notify: MessageCallback,
        *,
        full_work: Workload,
        slots: int | None,
    ) -> None:
        """Read what was recorded of the study."""
        self.problems: dict[str, str] = {}  # what could not be calibrated, and why
        self._plan, self._storage, self._request, self._say = plan, storage, request, notify
        self._slots = slots or 1
        self._ranges: list[tuple[Workload, RateRange | None]] = []
        self._tried: list[Workload] = []  # what fails to be measured is not tried again at once
        self._earlier = (
            recorded_rates(plan, ledger, storage, trial_machines(full_work.trials))
            if full_work.trials
            else None
        )

    def rates(self, work: Workload, *, fast: bool = False) -> Rates:
        """Return a workload's rates; `fast`: where they have a range, its other end."""
        request = self._request
        if request.calibrate and work.trials and not any(work is tried for tried in self._tried):
            self._tried.append(work)
            self._calibrate(work)
        rate_range = None
        if request.device is not None:
            known_range = next(
                (found_range for ranged_work, found_range in self._ranges if ranged_work is work),
                None,
            )
            rate_range = known_range or published_rates(work, request.device, self._say)
            self._ranges.append((work, rate_range))
        sources = (
            request.user_rates.source,
            self._earlier,
            load_calibration(work, self._storage, self._slots, request.executor),
            None if rate_range is None else rate_range.fast if fast else rate_range.slow,
        )
        return Rates(sources=[source for source in sources if source is not None])

    def _calibrate(self, work: Workload) -> None:
        # a cluster's Ray is not started
        executor = "inline" if self._request.on_cluster else self._request.executor
        self.problems.update(
            calibrate(
                work,
                self._storage,
                self._plan.data_paths,
                at_once=self._slots,
                notify=self._say,
                executor=executor,
            )
        )
