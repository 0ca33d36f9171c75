"""Print a cost estimate, and return it as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.reference_cache.size import format_bytes
from orchestrator.cost.budget import TrimmedPlan, budget_amounts
from orchestrator.cost.estimate import Cost, Estimate
from orchestrator.cost.judges import JudgeCosts, JudgeTokens
from orchestrator.cost.memory import MemoryFit, format_gib
from orchestrator.cost.power import PowerEstimate
from orchestrator.cost.published.devices import DEVICES, EAGER_SOURCE, UTILIZATION
from orchestrator.cost.published.rates import SOURCE_NAME, training_mode
from orchestrator.cost.rates import Seconds
from orchestrator.cost.study_cost import CostEstimate

_MAX_LISTED = 4  # unknown things that are named


def format_duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_price(price: float) -> str:
    """Format a price."""
    return f"{price:,.2f}" if price >= 1 or price == 0 else f"{price:.2g}"


def cost_lines(cost: CostEstimate) -> Iterator[RenderableType]:
    """Yield the cost of what is left of a study; nothing if nothing is left."""
    if cost.budget_problem is not None:
        yield Text(cost.budget_problem, style="yellow")
    if cost.trimmed is not None:
        yield Text(cost.trimmed.sentence, style="yellow" if cost.trimmed.trials else "")
    if not cost.work.trials:
        return
    for name, reason in cost.problems.items():
        yield Text(f"could not be calibrated: {name}: {reason}", style="yellow")
    estimate = cost.estimate
    if not cost.rates.sources:
        gpu = "" if cost.device is not None else ", or name a GPU with --device"
        yield Text(
            "the study's cost is unknown: measure it here with --calibrate, or give rates with "
            f"--rate and --rates{gpu}"
        )
    else:
        if cost.fastest is None:
            yield _cost_table(cost)
            yield Text(_total_line(cost))
        else:
            yield from _range_lines(cost)
        if estimate.total.unknown:
            names = sorted(estimate.total.unknown)
            rest_text = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            yield Text(
                f"unknown, and not included in any sum: {', '.join(names[:_MAX_LISTED])}{rest_text}"
            )
    yield from _judge_lines(cost.judges)
    for fit in cost.fits:
        if fit.bytes is not None:
            yield from _fit_lines(fit)
    disk = cost.disk
    sizes = {
        "reference passes": disk.passes,
        "trained models": disk.models,
        "checkpoints": disk.checkpoints,
        "models of running trainings": disk.intermediate_models,
        "sampled pairs": disk.pairs,
    }
    parts = [f"{label} {format_bytes(size)}" for label, size in sizes.items() if size]
    kept = ("reference passes", "trained models", "sampled pairs")
    unknown = [label for label in kept if sizes[label] is None]
    if parts:
        line = f"disk: {', '.join(parts)}; {format_bytes(disk.free)} are free"
        line += f"; unknown: {', '.join(unknown)}" if unknown else ""
        yield Text(line, style="bold red" if disk.known_bytes > disk.free else "")
    if cost.power is not None:
        yield from power_lines(cost.power, len(cost.plan.study.seeds))


def _judge_lines(judges: JudgeCosts) -> Iterator[RenderableType]:
    """Yield the judges' calls and their price."""
    if judges.arms:
        table = Table(box=None, pad_edge=False)
        for title in ("to be judged", "calls", "tokens sent", "tokens replied", "price"):
            table.add_column(title, justify="left" if title == "to be judged" else "right")
        for name, tokens in (*judges.arms.items(), ("all", judges.total)):
            counts = (tokens.calls, tokens.sent, tokens.replied)
            cells = [
                _format_bounds(*count, show=lambda number: f"{number:,.0f}") for count in counts
            ]
            cells.append(
                "?" if tokens.price is None else _format_bounds(*tokens.price, show=format_price)
            )
            table.add_row(Text(name), *cells)
        yield table
        if judges.total.price is None:
            yield Text("the judges' cost is unknown: give judge.price")
    for name, reason in judges.unknown.items():
        yield Text(f"the number of questions to the judge of {name} is unknown: {reason}")


def _format_bounds(low: float, high: float | None, *, show: Callable[[float], str]) -> str:
    if high is None:
        return f"{show(low)} or more"
    return show(low) if show(low) == show(high) else f"{show(low)} to {show(high)}"


def _judges_to_json(judges: JudgeCosts) -> dict[str, Any]:
    def tokens_to_json(tokens: JudgeTokens) -> dict[str, Any]:
        return {
            "calls": list(tokens.calls),
            "tokens_sent": list(tokens.sent),
            "tokens_replied": list(tokens.replied),
            "price": None if tokens.price is None else list(tokens.price),
        }

    return {
        "arms": [{"arm": name, **tokens_to_json(tokens)} for name, tokens in judges.arms.items()],
        "total": tokens_to_json(judges.total),
        "unknown": dict(judges.unknown),
    }


def _fit_lines(fit: MemoryFit) -> Iterator[Text]:
    """Yield the memory that trials need, its parts, and changes that would fit."""
    assert fit.bytes is not None
    needed = format_gib(fit.bytes)
    facts = [needed if fit.measured else f"about {needed}, estimated"]
    if fit.device is None:
        facts.append("of a device that is not here")
    else:
        facts.append(f"of {format_gib(fit.device)} a trial")
    if fit.fits is False:
        facts.append("does not fit")
    style = "bold red" if fit.fits is False else ""
    first, *others = fit.arms
    arms = "; ".join(fit.arms) if len(others) < 3 else f"{first} and {len(others)} others"
    yield Text(f"memory: {arms}: {', '.join(facts)}", style=style)
    if fit.parts:
        # without parts below 0.01 GiB
        shown = [f"{name} {size / 2**30:.1f}" for name, size in fit.parts.items()
                 if size > 2**30 / 100]  # fmt: skip
        yield Text(f"  GiB: {', '.join(shown)}; {fit.basis}" if shown else f"  {fit.basis}")
    for change in fit.changes:
        effect = (
            "a different training, with its own figures"
            if change.changes_figures
            else "changes only rounding"
        )
        yield Text(f"  fits with {change.option_text}: about {format_gib(change.bytes)} ({effect})")


def _range_lines(cost_estimate: CostEstimate) -> Iterator[RenderableType]:
    """Yield the cost for a range of rates, in GPU hours by arm and part, and the sources."""
    fastest, device = cost_estimate.fastest, cost_estimate.device
    if fastest is None or device is None:
        return
    slowest = cost_estimate.estimate
    table = Table(box=None, pad_edge=False, title=f"GPU hours on {device.name}, from {SOURCE_NAME}")
    for title in ("", "training", "reference cache", "answers", "judges", "all"):
        table.add_column(title, justify="right" if title else "left")

    def format_held(fast: Cost, slow: Cost) -> str:
        if slow.unknown:
            return "?"
        return _format_bounds(fast.gpu / 3600, slow.gpu / 3600, show=_format_hours)

    def row(name: str, fast: Cost, slow: Cost, total: str | None = None) -> None:
        cells = [
            _format_gpu_hours(getattr(fast, part), getattr(slow, part), fast, slow)
            for part in _GPU_PARTS
        ]
        table.add_row(Text(name), *cells[:3], "none", total or format_held(fast, slow))

    for name, cost in slowest.passes.items():
        row(f"reference pass {name}", fastest.passes[name], cost)
    fastest_by_arm = _group_by_arm(cost_estimate, fastest)
    for name, (_, cost) in _group_by_arm(cost_estimate).items():
        row(name, fastest_by_arm[name][1], cost)
    if fastest.server is not None and slowest.server is not None:
        table.add_row(_SERVER_NAME, *["—"] * 3, "none", format_held(fastest.server, slowest.server))
    row(
        "all",
        _total_without_server(fastest),
        _total_without_server(slowest),
        format_held(fastest.total, slowest.total),
    )
    yield table
    if fastest.wall is not None and slowest.wall is not None:
        yield Text(
            f"from start to end {format_duration(fastest.wall)} to "
            f"{format_duration(slowest.wall)}, from {SOURCE_NAME}: without start-up, reading of "
            "data and judges"
        )
    yield Text(f"{device.name}: {device.bf16:g} TFLOP/s in bf16, {device.bandwidth:g} TB/s "
               f"({DEVICES[device.name].source})")  # fmt: skip
    for kind in sorted(
        {training_mode(trial_work.config) for trial_work in cost_estimate.work.trials}
    ):
        share = UTILIZATION[kind]
        yield Text(f"training {kind}: {share.low:.0%} to {share.high:.0%} of it ({share.source})")
    yield Text(f"answers: {EAGER_SOURCE}")
    yield Text("recorded timings replace them as soon as there are some")


_SERVER_NAME = "the study's server"

#: The parts of a cost that GPUs are held for.
_GPU_PARTS = ("train", "passes", "answer")


def _total_without_server(estimate: Estimate) -> Cost:
    """Return the total without what the study's server holds, in which no part has a share."""
    server_gpu = 0.0 if estimate.server is None else estimate.server.gpu
    return replace(estimate.total, gpu=estimate.total.gpu - server_gpu)


def _format_gpu_hours(fast: Seconds, slow: Seconds, fast_cost: Cost, slow_cost: Cost) -> str:
    """Return a part of the GPU hours; a cost's parts share its GPUs alike."""
    if slow_cost.unknown and not slow.wall:
        return "?"
    hours = [
        part.wall * (cost.gpu / (cost.total_time - cost.score).wall if cost.gpu else 0.0) / 3600
        for part, cost in ((fast, fast_cost), (slow, slow_cost))
    ]
    return _format_bounds(*hours, show=_format_hours) if any(hours) else "—"


def _format_hours(hours: float) -> str:
    return f"{hours:.2f}" if hours < 1 else f"{hours:,.1f}"


def power_lines(power: PowerEstimate, seeds: int) -> Iterator[Text]:
    """Yield the detectable difference by number of seeds."""
    differences = dict(power.differences)
    if seeds in differences:
        yield Text(
            f"with {seeds} seeds and {power.items:,} items a difference of about "
            f"{differences[seeds]:.1f} {power.unit} on {power.metric} can be found in four "
            f"studies out of five ({power.basis})"
        )
    else:
        yield Text(
            f"with one seed no difference on {power.metric} is tested: two seeds find about "
            f"{differences[2]:.1f} {power.unit} ({power.basis})"
        )
    others = [f"{k}: {value:.1f}" for k, value in power.differences if k != seeds]
    yield Text(f"by number of seeds per arm: {', '.join(others)}")


def cost_to_json(cost_estimate: CostEstimate) -> dict[str, Any]:
    """Return a cost estimate as plain data. Unknown values are null and named."""
    estimate, disk, power = cost_estimate.estimate, cost_estimate.disk, cost_estimate.power
    return {
        "known": not estimate.total.unknown,
        "sources": sorted(estimate.total.sources),
        "unknown": sorted(estimate.total.unknown),
        "not_calibrated": cost_estimate.problems,
        "at_once": estimate.at_once,
        "wall_seconds": estimate.wall,
        "ray_counted": estimate.ray,
        **budget_amounts(estimate, cost_estimate.user_rates.prices),
        "total": _part_to_json(estimate.total, cost_estimate),
        "arms": _arms_to_json(cost_estimate, estimate),
        "server": None
        if estimate.server is None
        else _part_to_json(estimate.server, cost_estimate),
        "passes": [
            {"passes": name, **_part_to_json(cost, cost_estimate)}
            for name, cost in estimate.passes.items()
        ],
        "judges": _judges_to_json(cost_estimate.judges),
        "memory": [_fit_to_json(fit) for fit in cost_estimate.fits],
        "disk": {
            "passes": disk.passes,
            "models": disk.models,
            "checkpoints": disk.checkpoints,
            "between": disk.intermediate_models,
            "pairs": disk.pairs,
            "free": disk.free,
        },
        "device": None if cost_estimate.device is None else cost_estimate.device.name,
        "fastest": None
        if cost_estimate.fastest is None
        else {
            "wall_seconds": cost_estimate.fastest.wall,
            "total": _part_to_json(cost_estimate.fastest.total, cost_estimate),
            "server": None
            if cost_estimate.fastest.server is None
            else _part_to_json(cost_estimate.fastest.server, cost_estimate),
            "arms": _arms_to_json(cost_estimate, cost_estimate.fastest),
        },
        "budget_problem": cost_estimate.budget_problem,
        "budget": None if cost_estimate.trimmed is None else _budget_to_json(cost_estimate.trimmed),
        "seeds_buy": None
        if power is None
        else {**asdict(power), "differences": {str(k): value for k, value in power.differences}},
    }


def _arms_to_json(cost_estimate: CostEstimate, estimate: Estimate) -> list[dict[str, Any]]:
    return [
        {"arm": name, "trials": trials, **_part_to_json(cost, cost_estimate)}
        for name, (trials, cost) in _group_by_arm(cost_estimate, estimate).items()
    ]


def _fit_to_json(fit: MemoryFit) -> dict[str, Any]:
    return {
        "arms": list(fit.arms),
        "bytes": fit.bytes,
        "measured": fit.measured,
        "device_bytes": fit.device,
        "fits": fit.fits,
        "parts": dict(fit.parts),
        "basis": fit.basis,
        "would_fit": [
            {
                "settings": dict(change.settings),
                "bytes": change.bytes,
                "changes_figures": change.changes_figures,
            }
            for change in fit.changes
        ],
    }


def _budget_to_json(trimmed: TrimmedPlan) -> dict[str, Any]:
    return {
        "bounds": trimmed.budget.bounds,
        "needed": trimmed.needed,
        "takes": trimmed.takes,
        "left_out": {
            "seeds": list(trimmed.seeds),
            "arms": list(trimmed.arms),
            "trials": list(trimmed.trials),
        },
    }


def _cost_table(cost_estimate: CostEstimate) -> Table:
    estimate = cost_estimate.estimate
    has_gpu = estimate.total.gpu > 0
    has_price = estimate.price(cost_estimate.user_rates.prices) is not None
    table = Table(box=None, pad_edge=False)
    titles = [
        "to be run", "trials", "start-up", "training", "answers", "scoring", "passes", "CPU time",
        *["GPU hours"] * has_gpu, *["price"] * has_price,
    ]  # fmt: skip
    for title in titles:
        table.add_column(title, justify="left" if title == "to be run" else "right")

    def row(name: str, trials: str, cost: Cost) -> None:
        unknown = bool(cost.unknown)

        def format_wall(seconds: Seconds) -> str:
            if unknown and not seconds.wall:
                return "?"
            return format_duration(seconds.wall) if seconds.wall else "—"

        cells = [format_wall(part) for part in cost.parts.values()]
        cells.append("?" if unknown else format_duration(cost.total_time.cpu))
        if has_gpu:
            cells.append("?" if unknown else f"{cost.gpu / 3600:.1f}")
        if has_price:
            price = cost.price(cost_estimate.user_rates.prices)
            cells.append("?" if price is None else format_price(price))
        table.add_row(Text(name), trials, *cells)

    for name, cost in estimate.passes.items():
        row(f"reference pass {name}", "—", cost)
    for name, (trials, cost) in _group_by_arm(cost_estimate).items():
        row(name, str(trials), cost)
    if estimate.server is not None:
        row(_SERVER_NAME, "—", estimate.server)
    row("all", str(len(cost_estimate.work.trials)), estimate.total)
    return table


def _total_line(cost_estimate: CostEstimate) -> str:
    estimate = cost_estimate.estimate
    if estimate.total.unknown:
        parts = ["from start to end: unknown"]
    elif estimate.wall is None:
        parts = [
            "from start to end: unknown, because no such trial can run here: give --max-concurrent"
        ]
    else:
        order = "one after another" if estimate.at_once == 1 else f"{estimate.at_once} at a time"
        parts = [f"from start to end {format_duration(estimate.wall)}, {order}"]
    if not estimate.total.unknown:
        parts.append(f"{format_duration(estimate.total.total_time.cpu)} of CPU time")
        if estimate.total.gpu:
            parts.append(f"{estimate.total.gpu / 3600:.1f} GPU hours")
        if estimate.gpu is None:
            parts.append("without those of the study's server, which runs the whole time")
        price = estimate.price(cost_estimate.user_rates.prices)
        if price is not None:
            parts.append(f"price {format_price(price)}")
    if estimate.ray is False:
        parts.append("without Ray's own share")
    return f"{', '.join(parts)} (by {'; '.join(sorted(estimate.total.sources)) or 'nothing'})"


def _group_by_arm(
    cost_estimate: CostEstimate, estimate: Estimate | None = None
) -> dict[str, tuple[int, Cost]]:
    costs = cost_estimate.estimate if estimate is None else estimate
    by_arm: dict[str, tuple[int, Cost]] = {}
    for trial_work in cost_estimate.work.trials:
        trials, cost = by_arm.get(trial_work.arm_label, (0, Cost()))
        cost.add(costs.trials[trial_work.trial.fingerprint])
        by_arm[trial_work.arm_label] = trials + 1, cost
    return by_arm


def _part_to_json(cost: Cost, cost_estimate: CostEstimate) -> dict[str, Any]:
    return {
        "seconds": {name: part.wall for name, part in cost.parts.items()},
        "cpu_seconds": {name: part.cpu for name, part in cost.parts.items()},
        "gpu_seconds": cost.gpu,
        "price": cost.price(cost_estimate.user_rates.prices),
        "unknown": sorted(cost.unknown),
    }
