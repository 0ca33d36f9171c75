"""Print a study's plan, what it lacks and trusts, and its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.data import row_requirements
from chip_core.evaluation.generators.sharing import is_servable, is_shared
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.readiness import problems, sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.folder import store_folder
from chip_core.reference_cache.size import format_bytes
from chip_core.selection.rule import count_select_runs, describe_selection
from chip_core.utils import plugins
from chip_core.utils.errors import UserError, printable
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.formatting import metric_title, plain
from orchestrator.report.sections.search import search_json, search_lines
from orchestrator.report.summary import study_metrics
from orchestrator.report.units import shown, shown_scale
from orchestrator.state.cache_plan import PlannedCache, cache_folder, plan_caches
from orchestrator.state.integrity import ledger_of
from orchestrator.state.ledger import Ledger, TrialRecord
from orchestrator.state.search import SearchTrial
from orchestrator.study.design import layout_notes
from orchestrator.tracking.names import EXPERIMENT, RUN, respelled


def plan_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield what a run would do."""
    study, ledger = plan.study, ledger_of(plan, workdir)
    yield Text(f"study {study.name}", style="bold")
    if study.question:
        yield Text(study.question)
    cells = sum(len(arm.cells) for arm in plan.arms)
    trained = {trial.fingerprint: trial for arm in plan.arms for trial in arm.trials}.values()
    done = sum(ledger[trial.fingerprint].done(trial) for trial in trained)
    line = f"{cells} cells, {len(plan.arms)} arms, seeds {' '.join(map(str, study.seeds))}: "
    line += f"{len(trained)} trials, {done} done, {len(trained) - done} to run"
    if not ledger[plan.base.fingerprint].done(plan.base):
        line += ", and the untrained model to score"
    yield Text(line)
    for note in layout_notes(study):
        yield Text(note)
    yield from _asked_lines(plan)
    for words in dict.fromkeys(describe_selection(arm.trials[0].config) for arm in plan.arms):
        if words is not None:
            yield Text(words)
    yield from trust_warning_lines(plan)
    yield from search_lines(plan, ledger)
    yield from evaluation_lines(plan, ledger)
    for arm in plan.arms:
        if len(arm.cells) > 1:
            yield Text(
                f"one trial for {len(arm.cells)} cells: {arm.name}: {'; '.join(arm.reasons)}"
            )
    yield from map(Text, mlflow_name_lines(mlflow_names(plan)))
    for caution in dict.fromkeys(arm.trials[0].config.objective.warning for arm in plan.arms):
        if caution is not None:
            yield Text(f"caution: {caution}", style="yellow")


def _asked_lines(plan: Plan) -> Iterator[Text]:
    """Yield what objectives need in rows besides image, prompt, chosen and rejected."""
    asked: dict[tuple[str, ...], list[str]] = {}
    for arm in plan.arms:
        names = tuple(row_requirements(arm.trials[0].config.objective).names)
        if names:
            asked.setdefault(names, []).append(arm.name)
    for names, arms in asked.items():
        yield Text(f"rows are to have {', '.join(names)}: {'; '.join(arms)}")


def cache_table(passes: Sequence[PlannedCache]) -> Table:
    """Return a table of the reference passes of the trials to be trained."""
    table = Table(box=None, pad_edge=False)
    for title in ("reference pass", "samples", "size", "state", "trials"):
        table.add_column(title, justify="right" if title in ("samples", "size") else "left")
    for planned in passes:
        size = "?" if planned.bytes is None else format_bytes(planned.bytes)
        about = "" if planned.state == "cached" or planned.bytes is None else "about "
        table.add_row(
            Text(planned.one.name),
            "?" if planned.samples is None else str(planned.samples),
            "—" if planned.state == "in the step" else f"{about}{size}",
            planned.state,
            str(len(planned.trials)),
        )
    return table


def cache_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield the table of the reference passes that a run would build or read, if any."""
    passes = plan_caches(plan, ledger_of(plan, workdir), workdir)
    if passes:
        yield cache_table(passes)


def status_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield the progress of a study."""
    ledger = ledger_of(plan, workdir)
    states = [state(trial, ledger[trial.fingerprint]) for trial in plan.trials]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    yield Text(f"study {plan.study.name}: {counts}", style="bold")
    yield from search_lines(plan, ledger)


def trial_table(plan: Plan, workdir: Path) -> Table:
    """Return a table of all trials with their state and primary metric."""
    ledger = ledger_of(plan, workdir)
    primary = plan.study.primary
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "arm", "seed", "state", "attempts"):
        table.add_column(title, overflow="fold")
    scale = 1.0
    if primary is not None:
        info = study_metrics(plan)[primary.metric]
        scale = shown_scale(info)
        table.add_column(metric_title(primary.metric, shown(info)), justify="right")
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        cells = [
            trial.fingerprint[:8],
            trial.arm,
            "—" if trial.seed is None else str(trial.seed),
            state(trial, record),
            str(record.attempts or ""),
        ]
        if primary is not None:
            value = record.metrics(trial).get(primary.metric)
            cells.append("—" if value is None else plain(scale * value))
        table.add_row(*map(Text, cells))
    for trial in _held(plan):
        nothing = ["—"] * (primary is not None)
        table.add_row(*map(Text, ("—", trial.arm, str(trial.seed), _waits(trial), "", *nothing)))
    return table


def _held(plan: Plan) -> list[Trial]:
    return [trial for arm in plan.arms for trial in arm.trials if trial.blocked is not None]


def _waits(trial: Trial) -> str:
    assert trial.blocked is not None
    return f"{'failed' if trial.blocked.failed else 'waits'}: {trial.blocked.reason}"


def state(trial: Trial, record: TrialRecord) -> str:
    """Return a trial's state in words."""
    if record.done(trial):
        return "done"
    if record.cut is not None:
        return record.failure or "cut by early stopping"
    if record.failure is not None:
        return f"{'killed' if record.killed else 'failed'}: {record.failure}"
    if record.model is not None or (trial.untrained and record.evaluations):
        missing = record.missing(trial)
        answered = all(trial.evaluations[key] in record.answers for key in missing)
        return f"{'answered, ' if answered else ''}to score: {', '.join(missing)}"
    return "to run"


def plan_json(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Return a study's plan and progress as plain data."""
    ledger = ledger_of(plan, workdir)
    passes = plan_caches(plan, ledger, workdir)
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "recipe": plan.study.recipe,
        "seeds": list(plan.study.seeds),
        "design": plan.study.design,
        "notes": list(layout_notes(plan.study)),
        "trusted": trust_warnings_json(plan),
        "mlflow_names": mlflow_names(plan),
        "arms": [
            {
                "arm": arm.name,
                "cells": [dict(cell) for cell in arm.cells],
                "reasons": list(arm.reasons),
                "baseline": arm.baseline,
                "placebo": arm.placebo,
                "tuned": dict(arm.tuned),
            }
            for arm in plan.arms
        ],
        "passes": [
            {
                "pass": planned.one.name,
                "hash": store_folder(cache_folder(workdir), planned.one.key).name,
                "samples": planned.samples,
                "bytes": planned.bytes,
                "state": planned.state,
                "trials": len(planned.trials),
            }
            for planned in passes
        ],
        "search": search_json(plan, ledger),
        "trials": [
            {
                "fingerprint": trial.fingerprint,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": state(trial, ledger[trial.fingerprint]),
                "attempts": ledger[trial.fingerprint].attempts,
                "metrics": ledger[trial.fingerprint].metrics(trial),
                "search": _search(trial),
            }
            for trial in plan.trials
        ]
        + [
            {
                "fingerprint": None,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": _waits(trial),
                "attempts": 0,
                "metrics": {},
                "search": None,
            }
            for trial in _held(plan)
        ],
    }


def _search(trial: Trial) -> dict[str, Any] | None:
    """Return a search trial's arm, number and drawn values; None for other trials."""
    if not isinstance(trial, SearchTrial):
        return None
    return {"of": trial.of, "number": trial.number, "values": dict(trial.values)}


def evaluation_lines(plan: Plan, ledger: Ledger) -> Iterator[Text]:
    """Yield the questions per benchmark, how they are answered and scored, and the time so far."""
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
    held = [trial for arm in plan.arms for trial in arm.trials if _is_blocked(trial)]
    left, made = 0, 0
    for trial in (*plan.trials, *held):
        record = ledger[trial.fingerprint]
        trains = not trial.untrained and record.model is None
        for key in record.missing(trial):
            again = trains and key.startswith("select/")
            if trial.evaluations[key] in record.answers:
                made += counted[key] or 0
            else:
                left += (counted[key] or 0) * (count_select_runs(trial.config) if again else 1)
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
    """Yield what benchmarks and trainings lack, if anything is left to run."""
    ledger = ledger_of(plan, workdir)
    if all(ledger[trial.fingerprint].done(trial) for trial in plan.trials):
        return
    for problem in problems(plan.study.benchmarks, plan.places) + plan.lacking:
        yield Text(f"cannot run yet: {problem}", style="bold red")


def _server(plan: Plan) -> str | None:
    """Return a line on the study's server, if it has one."""
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


def _is_blocked(trial: Trial) -> bool:
    return trial.blocked is not None and not trial.blocked.failed


def _share(plan: Plan, ledger: Ledger) -> tuple[float, int] | None:
    """Return the share of answers and scoring in the time of trials, and their number."""
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


@dataclass(frozen=True, kw_only=True)
class TrustWarning:
    """One thing that a run trusts."""

    kind: str  # "remote code", "plug-in", "judge" or "generator"
    what: str  # model, name of the code, or address of judge or engine
    sentence: str


def trust_warnings(plan: Plan) -> list[TrustWarning]:
    """Return what a study trusts, without duplicates."""
    return list(dict.fromkeys(_trusted(plan)))


def trust_warning_lines(plan: Plan) -> Iterator[Text]:
    """Yield what a study trusts, in red."""
    for one in trust_warnings(plan):
        yield Text(one.sentence, style="bold red")


def trust_warnings_json(plan: Plan) -> list[dict[str, Any]]:
    """Return what a study trusts as plain data."""
    return [{"kind": one.kind, "what": one.what} for one in trust_warnings(plan)]


def _trusted(plan: Plan) -> Iterator[TrustWarning]:
    configs = [plan.base.config, *(arm.trials[0].config for arm in plan.arms)]
    for config in configs:
        path = config.model.path
        if config.model.trust_remote_code:
            sentence = (
                f"trusted: code that comes with the model {path} is run, with all your rights"
            )
            yield TrustWarning(kind="remote code", what=path, sentence=sentence)
        own = [*config.objective.active_custom]
        if config.objective.needs_rejected_image:
            own.append(config.rejected_image.strategy)
        own += [settings.name for _, settings in sides(plan.study.benchmarks)]
        if config.pairs.rounds:
            own.append(config.pairs.ranker)
        for name in filter(plugins.is_plugin, own):
            sentence = f"trusted: the code {name} is run, with all your rights"
            yield TrustWarning(kind="plug-in", what=name, sentence=sentence)
        ranks = config.pairs.judge if config.pairs.rounds else None
        if ranks is not None and plan.places.judge_replies is None:
            what = ranks.base_url or "OpenAI"
            sentence = (
                f"trusted: {what} is sent the data's prompts and pictures and the model's answers"
                f"{_key(ranks.api_key_env)}"
            )
            yield TrustWarning(kind="judge", what=what, sentence=sentence)
    for _, settings in sides(plan.study.benchmarks):
        judge = settings.judge
        if judge is not None and judge.base_url is not None and plan.places.judge_replies is None:
            sentence = (
                f"trusted: {judge.base_url} is sent the answers to {settings.name}"
                f"{_key(judge.api_key_env)}"
            )
            yield TrustWarning(kind="judge", what=judge.base_url, sentence=sentence)
    engine = plan.base.config.evaluation.generator
    if engine.base_url is not None:
        yield TrustWarning(
            kind="generator",
            what=engine.base_url,
            sentence=f"trusted: {engine.base_url} is sent the benchmarks' questions and "
            f"pictures{_key(engine.api_key_env)}",
        )


def _key(variable: str | None) -> str:
    return f" and the key in {variable}" if variable else ""


_SHOWN = 4  # names


def mlflow_names(plan: Plan) -> dict[str, str]:
    """Return name -> its spelling in MLflow, for a study's names that MLflow does not accept."""
    params = dict.fromkeys(name for arm in plan.arms for name in (*arm.params, *arm.tuned))
    runs = [*(arm.name for arm in plan.arms), *(trial.name for trial in plan.trials)]
    return {
        **respelled(study_metrics(plan)),
        **respelled(params),
        **respelled(runs, RUN),
        **respelled([plan.study.name], EXPERIMENT),
    }


def mlflow_name_lines(names: Mapping[str, str]) -> Iterator[str]:
    """Yield the spelling in MLflow of the first few names."""
    for name, other in list(names.items())[:_SHOWN]:
        yield f"in MLflow '{printable(name)}' is called '{other}': it does not take that name"
    if len(names) > _SHOWN:
        yield f"and {len(names) - _SHOWN} more names are spelled otherwise there"
