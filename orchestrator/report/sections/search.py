"""Build the section on the arms' searches, and their progress and cost as text and data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text

from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.formatting import NO_VALUE, format_count, format_number, join_names
from orchestrator.report.layout import (
    Block,
    Cell,
    Table,
    TableRow,
    TextBlock,
    make_columns,
    text_row,
)
from orchestrator.state.ledger import Ledger, TrialRecord
from orchestrator.state.search import Search, SearchTrial, plan_searches
from orchestrator.study.model import format_level
from orchestrator.study.search_space import Range, Tune, Values


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """The cost of some trials, failed attempts included."""

    trials: int = 0  # number of trials that have run
    failed: int = 0
    reused: int = 0  # of those, executed for another study; seconds included
    seconds: float = 0.0  # wall time of all attempts
    cpu_seconds: float = 0.0  # wall time × CPUs held
    gpu_seconds: float = 0.0

    def __add__(self, other: SearchCost) -> SearchCost:
        amounts = asdict(other)
        return SearchCost(**{name: amount + amounts[name] for name, amount in asdict(self).items()})


NO_COST = SearchCost()


def compute_search_cost(trials: Iterable[Trial], ledger: Ledger, study: str) -> SearchCost:
    """Return the cost of a study's trials recorded in the ledger."""
    total = NO_COST
    for trial in trials:
        record = ledger[trial.fingerprint]
        if record.attempts == 0:
            continue
        seconds = _wall_seconds(record)
        engine = trial.config.engine
        done = record.is_done(trial)
        total += SearchCost(
            trials=1,
            failed=int(not done and record.failure is not None),
            reused=int(done and record.study != study),
            seconds=seconds,
            cpu_seconds=seconds * engine.workers_per_trial * engine.cpus_per_worker,
            gpu_seconds=seconds * engine.workers_per_trial * engine.gpus_per_worker,
        )
    return total


def _wall_seconds(record: TrialRecord) -> float:
    """Return the wall time of a trial's attempts, or of their phases if times are missing."""
    return sum(
        sum(attempt.seconds.values())
        if attempt.started is None or attempt.ended is None
        else attempt.ended - attempt.started
        for attempt in record.history.values()
    )


def search_lines(plan: Plan, ledger: Ledger) -> Iterator[Text]:
    """Yield the search's settings, progress and choices; nothing without a search."""
    tune, searches = plan.study.tune, plan_searches(plan)
    if tune is None:
        return
    trials = {trial.fingerprint: trial for search in searches for trial in search.trials}
    done = sum(ledger[fingerprint].is_done(trial) for fingerprint, trial in trials.items())
    yield Text(
        f"search: {tune.trials} {'draw' if tune.trials == 1 else 'draws'} for every arm, the same "
        f"ones, with seed {tune.seed}, by {tune.metric.name} ({tune.metric.goal}): "
        f"{len(trials)} trials, {done} done, {len(trials) - done} to run"
    )
    for key, space in tune.keys.items():
        yield Text(f"  {key}: {format_space(space)}")
    for search in searches:
        if len(search.trials) < len(search.draws):
            duplicates = len(search.draws) - len(search.trials)
            yield Text(f"  {search.arm.name}: {duplicates} of its draws equal others: tried once")
    waiting = sum(trial.blocked is not None for arm in plan.arms for trial in arm.trials)
    if waiting:
        yield Text(f"  {waiting} trials of the seeds wait for their arms' choices")
    for search in searches:
        if search.chosen is not None:
            yield Text(f"  {format_choice(search)}")
        elif search.blocked is not None and search.blocked.failed:
            yield Text(f"  {search.arm.name}: FAILED: {search.blocked.reason}", style="bold red")


def format_choice(search: Search) -> str:
    """Return an arm's chosen settings and their figure, in one line."""
    assert search.chosen is not None
    values = ", ".join(f"{key}={value}" for key, value in search.chosen.value_texts.items())
    return f"{search.arm.name} chose {values} ({search.figures[search.chosen.fingerprint]:.2f})"


def format_space(space: Values | Range) -> str:
    """Return a key's search space in words."""
    if isinstance(space, Range):
        kind = "logarithmic " if space.log else "whole numbers " if space.is_integer else ""
        return f"{kind}{format_level(space.low)} to {format_level(space.high)}"
    return ", ".join(map(format_level, space.options))


def search_to_json(plan: Plan, ledger: Ledger) -> dict[str, Any] | None:
    """Return a study's search as plain data; None without a search."""
    tune = plan.study.tune
    if tune is None:
        return None
    return {
        "metric": tune.metric.name,
        "goal": tune.metric.goal,
        "seed": tune.seed,
        "draws": tune.trials,
        "keys": {key: _space_to_json(space) for key, space in tune.keys.items()},
        "chosen_on": [settings.name for settings in plan.study.benchmarks.select],
        "quoted_from": [settings.name for settings in plan.study.benchmarks.report],
        "arms": [_arm_to_json(search, plan, ledger, tune) for search in plan_searches(plan)],
    }


def _arm_to_json(search: Search, plan: Plan, ledger: Ledger, tune: Tune) -> dict[str, Any]:
    chosen = search.chosen
    return {
        "arm": search.arm.name,
        "state": "chosen" if chosen else "failed" if search.is_finished else "searching",
        "reason": None if search.blocked is None else search.blocked.reason,
        "chosen": None if chosen is None else dict(chosen.values),
        "figure": None if chosen is None else search.figures[chosen.fingerprint],
        "cost": asdict(compute_search_cost(search.trials, ledger, plan.study.name)),
        "draws": [
            {
                "number": trial.number,
                "values": dict(trial.values),
                "fingerprint": trial.fingerprint,
                "figure": search.figures.get(trial.fingerprint),
                "failed": search.failed.get(trial.fingerprint),
            }
            for trial in search.draws
        ],
    }


def _space_to_json(space: Values | Range) -> Mapping[str, Any]:
    if isinstance(space, Values):
        return {"values": list(space.options)}
    return {"low": space.low, "high": space.high, "log": space.log}


SEARCH_CAUTION = (
    "Intervals and p-values take the chosen settings as given: they do not cover what another "
    "search would have chosen by chance."
)


def search_blocks(plan: Plan, ledger: Ledger) -> list[Block]:
    """Return the section's blocks; empty without a search."""
    tune = plan.study.tune
    if tune is None:
        return []
    searches = plan_searches(plan)
    costs = [compute_search_cost(search.trials, ledger, plan.study.name) for search in searches]
    return [
        TextBlock(lines=tuple(_introduction(plan, tune, searches)), bulleted=True),
        _choice_table(tune, searches, costs),
        _draw_table(tune, searches),
    ]


def _introduction(plan: Plan, tune: Tune, searches: Sequence[Search]) -> list[str]:
    quoted = join_names([settings.name for settings in plan.study.benchmarks.report])
    better = "lowest" if tune.metric.goal == "minimize" else "highest"
    tried = sum(len(search.trials) for search in searches)
    spaces = "; ".join(f"{key}: {format_space(space)}" for key, space in tune.keys.items())
    return [
        f"Chosen on {tune.metric.name}, the {better}, using only questions under `select`. "
        f"Reported on {quoted} under `report`; no search trial was asked any of those questions.",
        f"Every arm had the same {format_count(tune.trials, 'draw')} ({spaces}), each trained "
        f"once with seed {tune.seed}, which is not one of the study's seeds: "
        f"{format_count(tried, 'trial')} in all.",
        "If figures are equal, the first draw wins. A draw that failed or has an undefined "
        "figure does not count; an arm without any valid draw has failed.",
        SEARCH_CAUTION,
    ]


def _choice_table(tune: Tune, searches: Sequence[Search], costs: Sequence[SearchCost]) -> Table:
    """Return the table of each arm's choice and the cost of its search."""
    with_gpus = any(cost.gpu_seconds for cost in costs)
    rows = [
        text_row(
            search.arm.name,
            *(search.chosen.value_texts[key] if search.chosen else NO_VALUE for key in tune.keys),
            _format_figure(search, search.chosen),
            *_cost_cells(cost, with_gpus),
            kind="baseline" if search.arm.baseline else "",
        )
        for search, cost in zip(searches, costs, strict=True)
    ]
    total = sum(costs, NO_COST)
    rows.append(text_row("all arms", *[""] * (len(tune.keys) + 1), *_cost_cells(total, with_gpus)))
    gpus = ["GPU seconds"] if with_gpus else []
    return Table(
        name="search",
        caption="What each arm chose before its seeds ran, and the cost of its search. Seconds "
            "are of every attempt, from start to end; CPU seconds are of every CPU held in that "
            "time. Trials that were run for another study are included, although that study paid "
            "for them.",
        columns=make_columns(
            "arm", *tune.keys, tune.metric.name, "trials", "failed", "of another study", "seconds",
            "CPU seconds", *gpus,
            text=range(len(tune.keys) + 1),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _cost_cells(cost: SearchCost, with_gpus: bool) -> list[str]:
    gpus = [f"{cost.gpu_seconds:,.1f}"] if with_gpus else []
    seconds = (f"{cost.seconds:,.1f}", f"{cost.cpu_seconds:,.1f}")
    return [str(cost.trials), str(cost.failed), str(cost.reused), *seconds, *gpus]


def _draw_table(tune: Tune, searches: Sequence[Search]) -> Table:
    """Return the table of the search's metric: one row per draw, one column per arm."""
    rows = []
    for number, values in enumerate(tune.make_draws(), start=1):
        cells = [_draw_cell(search, search.draws[number - 1]) for search in searches]
        texts = [Cell(text=format_level(value)) for value in values.values()]
        rows.append(TableRow(cells=(Cell(text=str(number)), *texts, *cells)))
    names = [search.arm.name for search in searches]
    return Table(
        name="search-draws",
        caption=f"Every draw of every search: {tune.metric.name}. Bold: chosen.",
        columns=make_columns("draw", *tune.keys, *names, text=range(1, len(tune.keys) + 1)),
        rows=tuple(rows),
    )


def _draw_cell(search: Search, trial: SearchTrial) -> Cell:
    is_chosen = search.chosen is not None and search.chosen.number == trial.number
    first_trial = next(
        candidate for candidate in search.trials if candidate.fingerprint == trial.fingerprint
    )
    if first_trial.number != trial.number:
        return Cell(text=f"as {first_trial.number}")
    return Cell(text=_format_figure(search, trial), bold=is_chosen)


def _format_figure(search: Search, trial: SearchTrial | None) -> str:
    if trial is None:
        return "failed" if search.is_finished else "not yet"
    if trial.fingerprint in search.failed:
        return "failed"
    figure = search.figures.get(trial.fingerprint)
    return NO_VALUE if figure is None else format_number(figure)
