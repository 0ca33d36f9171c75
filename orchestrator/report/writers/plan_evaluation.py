"""Print what scoring a study costs and lacks, before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from chip_core.evaluation.generators.sharing import is_servable, is_shared
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.readiness import problems, sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.selection.rule import times_asked
from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.integrity import ledger_of
from orchestrator.state.ledger import Ledger


def evaluation_lines(plan: Plan, ledger: Ledger) -> Iterator[Text]:
    """Say how many questions each benchmark asks, how they are scored, and what it took so far."""
    counted: dict[str, int | None] = {}
    parts = []
    for side, settings in sides(plan.study.benchmarks):
        key = f"{side}/{settings.name}"
        if isinstance(find_benchmark(settings.name), ExternalBenchmark):
            counted[key] = None
            parts.append(f"{key} its program's own")
            continue
        try:
            asked, whole = select_items(side, settings, find_benchmark(settings.name), plan.places)
        except UserError:
            counted[key] = None
            parts.append(f"{key} unknown")
            continue
        counted[key] = len(asked)
        share = f" of {whole:,}" if len(asked) < whole else ""
        parts.append(f"{key} {len(asked):,}{share}")
    if not parts:
        return
    line = f"questions a trial: {', '.join(parts)}"
    if plan.study.tune is not None:
        line += " (`select` to a trial of a search, `report` to one of the seeds)"
    held = [trial for arm in plan.arms for trial in arm.trials if _waits(trial)]
    left, made = 0, 0
    for trial in (*plan.trials, *held):
        record = ledger[trial.fingerprint]
        trains = not trial.untrained and record.model is None
        for key in record.missing(trial):
            again = trains and key.startswith("select/")
            if trial.evaluations[key] in record.answers:
                made += counted[key] or 0
            else:
                left += (counted[key] or 0) * (times_asked(trial.config) if again else 1)
    if left:
        line += f"; {left:,} answers to make"
    if made:
        line += f"; {made:,} answers are there, to be scored"
    yield Text(line)
    if left and (who := _server(plan)) is not None:
        yield Text(who)
    if left or made:
        yield Text("scoring: a step of its own, without a GPU, beside the next trials' training")
    share_so_far = _share(plan, ledger)
    if share_so_far is not None:
        share_of_time, trials = share_so_far
        yield Text(
            f"answers and scoring took {share_of_time:.0%} of the time of the "
            f"{'trial' if trials == 1 else f'{trials} trials'} done so far"
        )


def readiness_lines(plan: Plan, workdir: Path) -> Iterator[Text]:
    """Say what benchmarks and trainings lack, where anything is left to run."""
    ledger = ledger_of(plan, workdir)
    if all(ledger[trial.fingerprint].done(trial) for trial in plan.trials):
        return
    for problem in problems(plan.study.benchmarks, plan.places) + plan.lacking:
        yield Text(f"cannot run yet: {problem}", style="bold red")


def _server(plan: Plan) -> str | None:
    """Return who answers, where that is one server of the study."""
    if not is_shared(plan.base.config):
        return None
    arms = [arm.trials[0].config for arm in plan.arms]
    served = sum(map(is_servable, arms))
    line = f"answers: one server for {served} {'arm' if served == 1 else 'arms'} and the untrained "
    line += "model, which holds adapters side by side"
    if any(config.engine.gpus_per_worker for config in arms):
        line += f", on {plan.base.config.evaluation.generator.gpus} GPU of its own"
    if others := len(arms) - served:
        line += f"; {others} that train{'s' if others == 1 else ''} more start one for each trial"
    return line


def _waits(trial: Trial) -> bool:
    return trial.blocked is not None and not trial.blocked.failed


def _share(plan: Plan, ledger: Ledger) -> tuple[float, int] | None:
    """Return what share of trainings' and scorings' time was scoring, and of how many trials."""
    trained = scored = 0.0
    trials = 0
    for trial in plan.trials:
        seconds = ledger[trial.fingerprint].seconds
        if trial.untrained or "train" not in seconds:
            continue
        trials += 1
        trained += seconds["train"]
        scored += sum(
            value
            for phase, value in seconds.items()
            if phase.startswith(("answer ", "score ", "select "))
        )
    return (scored / (trained + scored), trials) if trained + scored > 0 else None
