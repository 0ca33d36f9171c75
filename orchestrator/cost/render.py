"""Print a cost estimate, and return it as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.reference_cache.size import gigabytes
from orchestrator.cost.budget import Trimmed, amounts
from orchestrator.cost.estimate import Cost, Estimate
from orchestrator.cost.judges import JudgeCosts, JudgeTokens
from orchestrator.cost.memory import Fit, change_words, memory_words, parts_words
from orchestrator.cost.power import PowerEstimate
from orchestrator.cost.published.devices import DEVICES, EAGER_SOURCE, UTILIZATION
from orchestrator.cost.published.rates import NAME, trained_as
from orchestrator.cost.rates import Seconds
from orchestrator.cost.study_cost import CostEstimate
from orchestrator.plan.plan import BASE_ARM

_LISTED = 4  # unknown things that are named


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def money(price: float) -> str:
    """Format a price."""
    return f"{price:,.2f}" if price >= 1 or price == 0 else f"{price:.2g}"


def cost_lines(estimated: CostEstimate) -> Iterator[RenderableType]:
    """Yield the cost of what is left of a study; nothing if nothing is left."""
    if estimated.budget_problem is not None:
        yield Text(estimated.budget_problem, style="yellow")
    if estimated.trimmed is not None:
        yield Text(estimated.trimmed.sentence, style="yellow" if estimated.trimmed.trials else "")
    if not estimated.work.trials:
        return
    for name, why in estimated.problems.items():
        yield Text(f"could not be calibrated: {name}: {why}", style="yellow")
    found = estimated.estimate
    if not estimated.rates.sources:
        gpu = "" if estimated.device is not None else ", or name a GPU by --device"
        yield Text(
            "what it will cost is not known: measure it here by --calibrate, or give rates by "
            f"--rate and --rates{gpu}"
        )
    else:
        if estimated.fastest is None:
            yield _table(estimated)
            yield Text(_in_all(estimated))
        else:
            yield from _range_lines(estimated)
        if found.total.unknown:
            named = sorted(found.total.unknown)
            more = f", and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
            yield Text(f"not known, and in no sum: {', '.join(named[:_LISTED])}{more}")
    yield from _judge_lines(estimated.judges)
    for fit in estimated.fits:
        if fit.bytes is not None:
            yield from _fit_lines(fit)
    disk = estimated.disk
    parts = [
        f"{what} {gigabytes(size)}"
        for what, size in (
            ("reference passes", disk.passes),
            ("trained models", disk.models),
            ("checkpoints", disk.checkpoints),
            ("models of running trainings", disk.between),
            ("sampled pairs", disk.pairs),
        )
        if size
    ]
    lacking = [
        what
        for what, size in (
            ("reference passes", disk.passes),
            ("trained models", disk.models),
            ("sampled pairs", disk.pairs),
        )
        if size is None
    ]
    if parts:
        line = f"disk: {', '.join(parts)}; {gigabytes(disk.free)} are free"
        line += f"; not known: {', '.join(lacking)}" if lacking else ""
        yield Text(line, style="bold red" if disk.known > disk.free else "")
    if estimated.power is not None:
        yield from power_lines(estimated.power, len(estimated.plan.study.seeds))


def _judge_lines(judges: JudgeCosts) -> Iterator[RenderableType]:
    """Yield the judges' calls and their price."""
    if judges.arms:
        table = Table(box=None, pad_edge=False)
        for title in ("to be judged", "calls", "tokens sent", "tokens replied", "price"):
            table.add_column(title, justify="left" if title == "to be judged" else "right")
        for name, tokens in (*judges.arms.items(), ("all", judges.total)):
            counts = (tokens.calls, tokens.sent, tokens.replied)
            cells = [_between(*count, show=lambda number: f"{number:,.0f}") for count in counts]
            cells.append("?" if tokens.price is None else _between(*tokens.price, show=money))
            table.add_row(Text(name), *cells)
        yield table
        if judges.total.price is None:
            yield Text("what judges cost is not known: give judge.price")
    for name, why in judges.unknown.items():
        yield Text(f"what the judge of {name} will be asked is not known: {why}")


def _between(low: float, high: float | None, *, show: Callable[[float], str]) -> str:
    if high is None:
        return f"{show(low)} or more"
    return show(low) if show(low) == show(high) else f"{show(low)} to {show(high)}"


def _judges_json(judges: JudgeCosts) -> dict[str, Any]:
    def plain(tokens: JudgeTokens) -> dict[str, Any]:
        return {
            "calls": list(tokens.calls),
            "tokens_sent": list(tokens.sent),
            "tokens_replied": list(tokens.replied),
            "price": None if tokens.price is None else list(tokens.price),
        }

    return {
        "arms": [{"arm": name, **plain(tokens)} for name, tokens in judges.arms.items()],
        "total": plain(judges.total),
        "unknown": dict(judges.unknown),
    }


def _fit_lines(fit: Fit) -> Iterator[Text]:
    """Yield the memory that trials need, its parts, and changes that would fit."""
    style = "bold red" if fit.fits is False else ""
    yield Text(f"memory: {_arms(fit.arms)}: {', '.join(memory_words(fit))}", style=style)
    if fit.parts:
        yield Text(f"  {parts_words(fit)}")
    for change in fit.changes:
        yield Text(f"  {change_words(change)}")


def _range_lines(estimated: CostEstimate) -> Iterator[RenderableType]:
    """Yield the cost for a range of rates, in GPU hours by arm and part, and the sources."""
    fastest, device = estimated.fastest, estimated.device
    if fastest is None or device is None:
        return
    slowest = estimated.estimate
    table = Table(box=None, pad_edge=False, title=f"GPU hours on {device.name}, from {NAME}")
    for title in ("", "training", "reference cache", "answers", "judges", "all"):
        table.add_column(title, justify="right" if title else "left")

    def held(fast: Cost, slow: Cost) -> str:
        return "?" if slow.unknown else _span(fast.gpu / 3600, slow.gpu / 3600)

    def row(name: str, fast: Cost, slow: Cost, whole: str | None = None) -> None:
        cells = [_hours(getattr(fast, part), getattr(slow, part), fast, slow) for part in _OF_GPU]
        table.add_row(Text(name), *cells[:3], "none", whole or held(fast, slow))

    for name, cost in slowest.passes.items():
        row(f"reference pass {name}", fastest.passes[name], cost)
    quick = _by_arm(estimated, fastest)
    for name, (_, cost) in _by_arm(estimated).items():
        row(name, quick[name][1], cost)
    if fastest.server is not None and slowest.server is not None:
        table.add_row(_SERVER, *["—"] * 3, "none", held(fastest.server, slowest.server))
    row("all", _of_jobs(fastest), _of_jobs(slowest), held(fastest.total, slowest.total))
    yield table
    if fastest.wall is not None and slowest.wall is not None:
        yield Text(
            f"from start to end {duration(fastest.wall)} to {duration(slowest.wall)}, from {NAME}: "
            "without start-up, reading of data and what judges take"
        )
    yield Text(f"{device.name}: {device.bf16:g} TFLOP/s in bf16, {device.bandwidth:g} TB/s "
               f"({DEVICES[device.name].source})")  # fmt: skip
    for kind in sorted({trained_as(each.config) for each in estimated.work.trials}):
        share = UTILIZATION[kind]
        yield Text(f"training {kind}: {share.low:.0%} to {share.high:.0%} of it ({share.source})")
    yield Text(f"answers: {EAGER_SOURCE}")
    yield Text("recorded timings take their place as soon as there are some")


_SERVER = "the study's server"

#: The parts of a cost that GPUs are held for.
_OF_GPU = ("train", "passes", "answer")


def _of_jobs(found: Estimate) -> Cost:
    """Return the total without what the study's server holds, in which no part has a share."""
    held = 0.0 if found.server is None else found.server.gpu
    return replace(found.total, gpu=found.total.gpu - held)


def _hours(fast: Seconds, slow: Seconds, of_fast: Cost, of_slow: Cost) -> str:
    """Return a part of the GPU hours; a cost's parts share its GPUs alike."""
    if of_slow.unknown and not slow.wall:
        return "?"
    held = [
        part.wall * (cost.gpu / (cost.whole - cost.score).wall if cost.gpu else 0.0) / 3600
        for part, cost in ((fast, of_fast), (slow, of_slow))
    ]
    return _span(*held) if any(held) else "—"


def _span(low: float, high: float) -> str:
    texts = [f"{value:.2f}" if value < 1 else f"{value:,.1f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def power_lines(power: PowerEstimate, seeds: int) -> Iterator[Text]:
    """Yield the detectable difference by number of seeds."""
    found = dict(power.differences)
    if seeds in found:
        yield Text(
            f"with {seeds} seeds and {power.items:,} items a difference of about "
            f"{found[seeds]:.1f} {power.unit} on {power.metric} can be seen, in four studies of "
            f"five ({power.basis})"
        )
    else:
        yield Text(
            f"with one seed no difference on {power.metric} is tested: two seeds see about "
            f"{found[2]:.1f} {power.unit} ({power.basis})"
        )
    others = [f"{k}: {value:.1f}" for k, value in power.differences if k != seeds]
    yield Text(f"by seeds of each arm: {', '.join(others)}")


def cost_json(estimated: CostEstimate) -> dict[str, Any]:
    """Return a cost estimate as plain data. Unknown values are null and named."""
    found, disk = estimated.estimate, estimated.disk
    return {
        "known": not found.total.unknown,
        "sources": sorted(found.total.sources),
        "unknown": sorted(found.total.unknown),
        "not_calibrated": estimated.problems,
        "at_once": found.at_once,
        "wall_seconds": found.wall,
        "ray_counted": found.ray,
        **amounts(found, estimated.given.prices),
        "total": _cost_json(found.total, estimated),
        "arms": _arms_json(estimated, found),
        "server": None if found.server is None else _cost_json(found.server, estimated),
        "passes": [
            {"passes": name, **_cost_json(cost, estimated)} for name, cost in found.passes.items()
        ],
        "judges": _judges_json(estimated.judges),
        "memory": [_fit_json(fit) for fit in estimated.fits],
        "disk": {
            "passes": disk.passes,
            "models": disk.models,
            "checkpoints": disk.checkpoints,
            "between": disk.between,
            "pairs": disk.pairs,
            "free": disk.free,
        },
        "device": None if estimated.device is None else estimated.device.name,
        "fastest": None
        if estimated.fastest is None
        else {
            "wall_seconds": estimated.fastest.wall,
            "total": _cost_json(estimated.fastest.total, estimated),
            "server": None
            if estimated.fastest.server is None
            else _cost_json(estimated.fastest.server, estimated),
            "arms": _arms_json(estimated, estimated.fastest),
        },
        "budget_problem": estimated.budget_problem,
        "budget": None if estimated.trimmed is None else _budget_json(estimated.trimmed),
        "seeds_buy": None if estimated.power is None else _power_json(estimated.power),
    }


def _arms_json(estimated: CostEstimate, of: Estimate) -> list[dict[str, Any]]:
    return [
        {"arm": name, "trials": trials, **_cost_json(cost, estimated)}
        for name, (trials, cost) in _by_arm(estimated, of).items()
    ]


def _fit_json(fit: Fit) -> dict[str, Any]:
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
                "changes_figures": change.figures,
            }
            for change in fit.changes
        ],
    }


def _budget_json(trimmed: Trimmed) -> dict[str, Any]:
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


def _power_json(power: PowerEstimate) -> dict[str, Any]:
    return {
        "metric": power.metric,
        "unit": power.unit,
        "items": power.items,
        "comparisons": power.comparisons,
        "differences": {str(k): value for k, value in power.differences},
        "basis": power.basis,
    }


def _table(estimated: CostEstimate) -> Table:
    found = estimated.estimate
    gpu = found.total.gpu > 0
    priced = found.price(estimated.given.prices) is not None
    table = Table(box=None, pad_edge=False)
    for title in (
        "to be run",
        "trials",
        "start-up",
        "training",
        "answers",
        "scoring",
        "passes",
        "CPU time",
    ):
        table.add_column(title, justify="left" if title == "to be run" else "right")
    for title, shown in (("GPU hours", gpu), ("price", priced)):
        if shown:
            table.add_column(title, justify="right")

    def row(name: str, trials: str, cost: Cost) -> None:
        unknown = bool(cost.unknown)

        def told(seconds: Seconds) -> str:
            if unknown and not seconds.wall:
                return "?"
            return duration(seconds.wall) if seconds.wall else "—"

        parts = (cost.start, cost.train, cost.answer, cost.score, cost.passes)
        cells = [told(part) for part in parts]
        cells.append("?" if unknown else duration(cost.whole.cpu))
        if gpu:
            cells.append("?" if unknown else f"{cost.gpu / 3600:.1f}")
        if priced:
            price = cost.price(estimated.given.prices)
            cells.append("?" if price is None else money(price))
        table.add_row(Text(name), trials, *cells)

    for name, cost in found.passes.items():
        row(f"reference pass {name}", "—", cost)
    for name, (trials, cost) in _by_arm(estimated).items():
        row(name, str(trials), cost)
    if found.server is not None:
        row(_SERVER, "—", found.server)
    row("all", str(len(estimated.work.trials)), found.total)
    return table


def _in_all(estimated: CostEstimate) -> str:
    found = estimated.estimate
    if found.total.unknown:
        parts = ["from start to end: not known"]
    elif found.wall is None:
        parts = ["from start to end: not known, as no such trial runs here: give --max-concurrent"]
    else:
        together = "one after another" if found.at_once == 1 else f"{found.at_once} at a time"
        parts = [f"from start to end {duration(found.wall)}, {together}"]
    if not found.total.unknown:
        parts.append(f"{duration(found.total.whole.cpu)} of CPU time")
        if found.total.gpu:
            parts.append(f"{found.total.gpu / 3600:.1f} GPU hours")
        if found.gpu is None:
            parts.append("those of the study's server, which runs as long, not counted")
        price = found.price(estimated.given.prices)
        if price is not None:
            parts.append(f"price {money(price)}")
    if found.ray is False:
        parts.append("what Ray itself takes not counted")
    return f"{', '.join(parts)} (by {'; '.join(sorted(found.total.sources)) or 'nothing'})"


def _by_arm(estimated: CostEstimate, of: Estimate | None = None) -> dict[str, tuple[int, Cost]]:
    costs = estimated.estimate if of is None else of
    found: dict[str, tuple[int, Cost]] = {}
    for each in estimated.work.trials:
        name = "base (untrained)" if each.trial.arm == BASE_ARM else each.trial.arm
        trials, cost = found.get(name, (0, Cost()))
        cost.add(costs.trials[each.trial.fingerprint])
        found[name] = trials + 1, cost
    return found


def _cost_json(cost: Cost, estimated: CostEstimate) -> dict[str, Any]:
    parts = {
        "start": cost.start,
        "train": cost.train,
        "answer": cost.answer,
        "score": cost.score,
        "passes": cost.passes,
    }
    return {
        "seconds": {name: part.wall for name, part in parts.items()},
        "cpu_seconds": {name: part.cpu for name, part in parts.items()},
        "gpu_seconds": cost.gpu,
        "price": cost.price(estimated.given.prices),
        "unknown": sorted(cost.unknown),
    }


def _arms(names: tuple[str, ...]) -> str:
    if len(names) <= 3:
        return "; ".join(names)
    return f"{names[0]} and {len(names) - 1} others"
