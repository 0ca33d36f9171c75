"""Estimate a study's whole cost from the rates that are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chip_core.utils.errors import UserError
from orchestrator.cost.budget import Trimmed, trim
from orchestrator.cost.calibration.calibrate import Say, calibrate, kept
from orchestrator.cost.estimate import Estimate, Way, estimate
from orchestrator.cost.judges import JudgeCosts, judge_costs
from orchestrator.cost.machines import machines_of, places_for, places_on, server_gpus
from orchestrator.cost.memory import Disk, Fit, MemoryEstimator, disk, fits
from orchestrator.cost.power import PowerEstimate
from orchestrator.cost.published.devices import GIB, Device
from orchestrator.cost.published.rates import NAME, Range, published
from orchestrator.cost.rates import Rates
from orchestrator.cost.recorded import recorded
from orchestrator.cost.user_rates import UserRates
from orchestrator.cost.workload import Workload, workload
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Budget


@dataclass(frozen=True, kw_only=True)
class CostRequest:
    """The user's request for an estimate."""

    given: UserRates = UserRates()
    way: Way = "ray"
    max_concurrent: int | None = None  # in place of what fits this machine
    device: Device | None = None  # in place of this machine's
    gpus: int = 1  # of that device
    elsewhere: bool = False  # on a cluster: what fits this machine says nothing
    calibrate: bool = False
    budget: Budget | None = None  # in place of the study's
    looks: bool = False  # nothing is run: the study's own budget that cannot be held is only told

    @property
    def counts(self) -> bool:
        """Whether models may be built without weights, to count parameters: it takes torch."""
        return self.calibrate or self.given != UserRates() or self.device is not None

    @property
    def memory(self) -> float | None:
        """GiB of a device that a trial may take, where that is not this machine's to say."""
        if self.given.device_memory is not None or self.device is None:
            return self.given.device_memory
        return self.device.room / GIB


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a study will cost."""

    plan: Plan  # what is run: within the budget
    work: Workload
    estimate: Estimate
    fastest: Estimate | None  # where rates have a range: the other end of it
    device: Device | None
    rates: Rates
    given: UserRates
    fits: tuple[Fit, ...]
    disk: Disk
    judges: JudgeCosts
    problems: dict[str, str]  # what could not be calibrated, and why
    trimmed: Trimmed | None  # None: no budget, or none that can be held
    budget_problem: str | None = None  # why the study's budget cannot be held
    power: PowerEstimate | None = None  # what seeds buy


def estimate_study_cost(
    plan: Plan, ledger: Ledger, storage: Path, request: CostRequest, say: Say
) -> CostEstimate:
    """Return what a study will cost.

    Args:
        plan: the study's plan.
        ledger: what has been run.
        storage: where attempts, stores and calibrations lie.
        request: what the user asks.
        say: told what is being measured.

    Raises:
        UserError: the budget cannot be held, or what it bounds is not known.
    """
    whole = workload(plan, ledger, storage)
    at_once = _places(whole, request)
    server = server_gpus(whole.trials)  # a part of the study has one too
    slots = 1 if request.way == "inline" else at_once
    found = _RateFinder(plan, ledger, storage, request, say, whole=whole, slots=slots)

    def of_work(work: Workload, rates: Rates) -> Estimate:
        return estimate(work, rates, at_once=at_once, way=request.way, server_gpus=server)

    def estimated(part: Plan) -> Estimate:
        # A part can have kinds of its own: with fewer trials a reference pass may not pay.
        work = whole if part is plan else workload(part, ledger, storage)
        return of_work(work, found.rates(work))

    budget = request.budget or plan.study.budget
    trimmed, budget_problem = None, None
    if budget is not None:
        try:
            trimmed = trim(plan, budget, estimated, request.given.prices, ledger)
        except UserError as error:
            if request.budget is not None or not request.looks:
                raise
            budget_problem = str(error)
    work = whole
    if trimmed is not None and trimmed.plan is not plan:
        plan, work = trimmed.plan, workload(trimmed.plan, ledger, storage)
    rates = found.rates(work)
    made = of_work(work, rates)
    fastest = None
    if NAME in made.total.sources:
        fastest = of_work(work, found.rates(work, fast=True))
    estimator = MemoryEstimator(count=request.counts)
    # without a device there is nothing long to tell of
    speaks = say if request.device is not None else _say_nothing
    return CostEstimate(
        plan=plan,
        work=work,
        estimate=made,
        fastest=fastest,
        device=request.device,
        rates=rates,
        given=request.given,
        fits=tuple(fits(work, rates, estimator, at_once=slots, given=request.memory, say=speaks)),
        disk=disk(work, rates, estimator, at_once=slots, storage=storage),
        judges=judge_costs(work.trials, plan.data_paths),
        problems=found.problems,
        trimmed=trimmed,
        budget_problem=budget_problem,
    )


def _say_nothing(text: str) -> None:
    pass


def _places(whole: Workload, request: CostRequest) -> int | None:
    """Return how many trials run at once; None: a cluster's to say."""
    at_once = request.max_concurrent or request.given.max_concurrent
    if at_once is None and request.device is not None:
        return places_on(whole.trials, max(0, request.gpus - server_gpus(whole.trials)))
    if at_once is None and not request.elsewhere:
        return places_for(whole.trials, server_gpus(whole.trials)) if whole.trials else 1
    return at_once


class _RateFinder:
    """Finds the rates of workloads: given, recorded, measured here, or published."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        storage: Path,
        request: CostRequest,
        say: Say,
        *,
        whole: Workload,
        slots: int | None,
    ) -> None:
        """Read what was recorded of the study."""
        self.problems: dict[str, str] = {}  # what could not be calibrated, and why
        self._plan, self._storage, self._request, self._say = plan, storage, request, say
        self._slots = slots or 1
        self._ranges: list[tuple[Workload, Range | None]] = []
        self._tried: list[Workload] = []  # what fails to be measured is not tried again at once
        self._earlier = (
            recorded(plan, ledger, storage, machines_of(whole.trials)) if whole.trials else None
        )

    def rates(self, work: Workload, *, fast: bool = False) -> Rates:
        """Return a workload's rates; `fast`: where they have a range, its other end."""
        request = self._request
        if request.calibrate and work.trials and not any(work is done for done in self._tried):
            self._tried.append(work)
            self._calibrate(work)
        ranged = None
        if request.device is not None:
            known = next((found for of, found in self._ranges if of is work), None)
            ranged = known or published(work, request.device, self._say)
            self._ranges.append((work, ranged))
        sources = (
            request.given.source,
            self._earlier,
            kept(work, self._storage, self._slots, request.way),
            None if ranged is None else ranged.fast if fast else ranged.slow,
        )
        return Rates(sources=[source for source in sources if source is not None])

    def _calibrate(self, work: Workload) -> None:
        # a cluster's Ray is not started
        way = "inline" if self._request.elsewhere else self._request.way
        self.problems.update(
            calibrate(
                work,
                self._storage,
                self._plan.data_paths,
                at_once=self._slots,
                say=self._say,
                way=way,
            )
        )
