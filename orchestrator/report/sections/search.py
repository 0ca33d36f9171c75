"""Build the section on the arms' searches."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.plan.plan import Plan
from orchestrator.report.formatting import NOTHING, counted, listed, plain
from orchestrator.report.layout import Block, Cell, Table, TableRow, TextBlock, columns, text_row
from orchestrator.report.sections.search_progress import NOTHING_SPENT, Spent, space_text, spent_on
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import Search, SearchTrial, searches_of
from orchestrator.study.model import level_text
from orchestrator.study.search_space import Tune

CAUTION = (
    "Intervals and p-values take the chosen settings as given: what another search, by other luck, "
    "would have chosen is not in them."
)


def search_blocks(plan: Plan, ledger: Ledger) -> list[Block]:
    """Return how every arm came to its settings; empty where nothing was tuned."""
    tune = plan.study.tune
    if tune is None:
        return []
    searches = searches_of(plan)
    spent = [spent_on(search.trials, ledger, plan.study.name) for search in searches]
    return [
        TextBlock(lines=tuple(_introduction(plan, tune, searches)), bulleted=True),
        _choices(tune, searches, spent),
        _draws(tune, searches),
    ]


def _introduction(plan: Plan, tune: Tune, searches: Sequence[Search]) -> list[str]:
    quoted = listed([settings.name for settings in plan.study.benchmarks.report])
    better = "lowest" if tune.metric.goal == "minimize" else "highest"
    tried = sum(len(search.trials) for search in searches)
    spaces = "; ".join(f"{key}: {space_text(space)}" for key, space in tune.keys.items())
    return [
        f"Chosen on {tune.metric.name}, the {better}, by questions under `select` alone. Quoted "
        f"from {quoted} under `report`, of which no search trial was asked a question.",
        f"Every arm had the same {counted(tune.trials, 'draw')} ({spaces}), each trained once with "
        f"seed {tune.seed}, which is none of the study's seeds: {counted(tried, 'trial')} in all.",
        "Of equal figures the first draw counts; a draw that failed or whose figure is undefined "
        "does not; an arm of which none counts has failed.",
        CAUTION,
    ]


def _choices(tune: Tune, searches: Sequence[Search], spent: Sequence[Spent]) -> Table:
    """Return what each arm chose, and what that cost."""
    with_gpus = any(cost.gpu_seconds for cost in spent)
    rows = [
        text_row(
            search.arm.name,
            *_values(tune, search.chosen),
            _figure(search, search.chosen),
            *_cost(cost, with_gpus),
            kind="baseline" if search.arm.baseline else "",
        )
        for search, cost in zip(searches, spent, strict=True)
    ]
    whole = sum(spent, NOTHING_SPENT)
    rows.append(text_row("all arms", *[""] * (len(tune.keys) + 1), *_cost(whole, with_gpus)))
    gpus = ["GPU seconds"] if with_gpus else []
    return Table(
        name="search",
        caption="What each arm chose before its seeds ran, and what its search cost. Seconds are "
        "those of every attempt, from start to end; CPU seconds those of every CPU that was held "
        "meanwhile. Trials that were executed for another study are counted and were paid there.",
        columns=columns(
            "arm", *tune.keys, tune.metric.name, "trials", "failed", "of another study", "seconds",
            "CPU seconds", *gpus,
            text=range(len(tune.keys) + 1),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _cost(cost: Spent, with_gpus: bool) -> list[str]:
    gpus = [f"{cost.gpu_seconds:,.1f}"] if with_gpus else []
    seconds = (f"{cost.seconds:,.1f}", f"{cost.cpu_seconds:,.1f}")
    return [str(cost.trials), str(cost.failed), str(cost.reused), *seconds, *gpus]


def _draws(tune: Tune, searches: Sequence[Search]) -> Table:
    """Return what every draw of every arm came to: arms below each other, draws side by side."""
    rows = []
    for number, values in enumerate(tune.draws(), start=1):
        cells = [_drawn(search, search.draws[number - 1]) for search in searches]
        texts = [Cell(text=level_text(value)) for value in values.values()]
        rows.append(TableRow(cells=(Cell(text=str(number)), *texts, *cells)))
    names = [search.arm.name for search in searches]
    return Table(
        name="search-draws",
        caption=f"Every draw of every search: {tune.metric.name}. Bold: chosen.",
        columns=columns("draw", *tune.keys, *names, text=range(1, len(tune.keys) + 1)),
        rows=tuple(rows),
    )


def _drawn(search: Search, trial: SearchTrial) -> Cell:
    chosen = search.chosen is not None and search.chosen.number == trial.number
    first = next(one for one in search.trials if one.fingerprint == trial.fingerprint)
    if first.number != trial.number:
        return Cell(text=f"as {first.number}")
    return Cell(text=_figure(search, trial), bold=chosen)


def _values(tune: Tune, trial: SearchTrial | None) -> list[str]:
    return [NOTHING if trial is None else trial.text[key] for key in tune.keys]


def _figure(search: Search, trial: SearchTrial | None) -> str:
    if trial is None:
        return "failed" if search.ended else "not yet"
    if trial.fingerprint in search.failed:
        return "failed"
    found = search.figures.get(trial.fingerprint)
    return NOTHING if found is None else plain(found)
