"""Print a study's plan, what it lacks and trusts, and its progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.data import row_requirements
from chip_core.evaluation.generators.choice import is_servable
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.readiness import find_benchmark_problems, list_sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.folder import store_folder
from chip_core.reference_cache.size import format_bytes
from chip_core.selection.rule import count_select_runs, describe_selection
from chip_core.utils import registry
from chip_core.utils.errors import UserError, to_printable
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.formatting import format_number, metric_title
from orchestrator.report.sections.search import search_lines, search_to_json
from orchestrator.report.summary import study_metrics
from orchestrator.report.units import shown_unit_scale, to_shown_unit
from orchestrator.state.cache_plan import cache_folder, plan_caches
from orchestrator.state.integrity import read_ledger
from orchestrator.state.ledger import Ledger, TrialRecord
from orchestrator.state.search import SearchTrial
from orchestrator.study.design import iter_layout_notes
from orchestrator.tracking.names import EXPERIMENT, RUN, encode_invalid


def plan_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield what a run would do."""
    study, ledger = plan.study, read_ledger(plan, workdir)
    yield Text(f"study {study.name}", style="bold")
    if study.question:
        yield Text(study.question)
    cells = sum(len(arm.cells) for arm in plan.arms)
    trained = {trial.fingerprint: trial for arm in plan.arms for trial in arm.trials}.values()
    done = sum(ledger[trial.fingerprint].is_done(trial) for trial in trained)
    line = f"{cells} cells, {len(plan.arms)} arms, seeds {' '.join(map(str, study.seeds))}: "
    line += f"{len(trained)} trials, {done} done, {len(trained) - done} to run"
    if not ledger[plan.base.fingerprint].is_done(plan.base):
        line += ", and the untrained model to score"
    yield Text(line)
    for note in iter_layout_notes(study):
        yield Text(note)
    yield from _row_field_lines(plan)
    for selection in dict.fromkeys(describe_selection(arm.trials[0].config) for arm in plan.arms):
        if selection is not None:
            yield Text(selection)
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


def _row_field_lines(plan: Plan) -> Iterator[Text]:
    """Yield what objectives need in rows besides image, prompt, chosen and rejected."""
    arms_by_fields: dict[tuple[str, ...], list[str]] = {}
    for arm in plan.arms:
        names = tuple(row_requirements(arm.trials[0].config.objective).names)
        if names:
            arms_by_fields.setdefault(names, []).append(arm.name)
    for names, arms in arms_by_fields.items():
        yield Text(f"rows must have {', '.join(names)}: {'; '.join(arms)}")


def cache_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield the table of the reference passes that a run would build or read, if any."""
    passes = plan_caches(plan, read_ledger(plan, workdir), workdir)
    if not passes:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("reference pass", "samples", "size", "state", "trials"):
        table.add_column(title, justify="right" if title in ("samples", "size") else "left")
    for planned in passes:
        size = "?" if planned.bytes is None else format_bytes(planned.bytes)
        prefix = "" if planned.state == "cached" or planned.bytes is None else "about "
        table.add_row(
            Text(planned.spec.name),
            "?" if planned.samples is None else str(planned.samples),
            "—" if planned.state == "in the step" else f"{prefix}{size}",
            planned.state,
            str(len(planned.trials)),
        )
    yield table


def status_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Yield the progress of a study."""
    ledger = read_ledger(plan, workdir)
    states = [trial_state(trial, ledger[trial.fingerprint]) for trial in plan.trials]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    yield Text(f"study {plan.study.name}: {counts}", style="bold")
    yield from search_lines(plan, ledger)


def trial_table(plan: Plan, workdir: Path) -> Table:
    """Return a table of all trials with their state and primary metric."""
    ledger = read_ledger(plan, workdir)
    primary = plan.study.primary
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "arm", "seed", "state", "attempts"):
        table.add_column(title, overflow="fold")
    scale = 1.0
    if primary is not None:
        info = study_metrics(plan)[primary.metric]
        scale = shown_unit_scale(info)
        table.add_column(metric_title(primary.metric, to_shown_unit(info)), justify="right")
    for trial, progress in _iter_progress(plan, ledger):
        cells = [
            "—" if progress.fingerprint is None else progress.fingerprint[:8],
            trial.arm,
            "—" if trial.seed is None else str(trial.seed),
            progress.state,
            str(progress.attempts or ""),
        ]
        if primary is not None:
            value = progress.metrics.get(primary.metric)
            cells.append("—" if value is None else format_number(scale * value))
        table.add_row(*map(Text, cells))
    return table


class _Progress(NamedTuple):
    fingerprint: str | None  # None: not known until other trials have run
    state: str
    attempts: int
    metrics: Mapping[str, float]


def _iter_progress(plan: Plan, ledger: Ledger) -> Iterator[tuple[Trial, _Progress]]:
    """Yield every trial with its progress, those that cannot run yet last."""
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        state, metrics = trial_state(trial, record), record.metrics(trial)
        yield trial, _Progress(trial.fingerprint, state, record.attempts, metrics)
    for trial in (trial for arm in plan.arms for trial in arm.trials):
        if trial.blocked is not None:
            kind = "failed" if trial.blocked.failed else "waits"
            yield trial, _Progress(None, f"{kind}: {trial.blocked.reason}", 0, {})


def trial_state(trial: Trial, record: TrialRecord) -> str:
    """Return a trial's state in words."""
    if record.is_done(trial):
        return "done"
    if record.cut is not None:
        return record.failure or "cut by early stopping"
    if record.failure is not None:
        return f"{'killed' if record.is_killed else 'failed'}: {record.failure}"
    if record.model is not None or (trial.untrained and record.evaluations):
        missing = record.missing_evaluations(trial)
        answered = all(trial.evaluations[key] in record.answers for key in missing)
        return f"{'answered, ' if answered else ''}to score: {', '.join(missing)}"
    return "to run"


def plan_to_json(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Return a study's plan and progress as plain data."""
    ledger = read_ledger(plan, workdir)
    passes = plan_caches(plan, ledger, workdir)
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "recipe": plan.study.recipe,
        "seeds": list(plan.study.seeds),
        "design": plan.study.design,
        "notes": list(iter_layout_notes(plan.study)),
        "trusted": trust_warnings_to_json(plan),
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
                "pass": planned.spec.name,
                "hash": store_folder(cache_folder(workdir), planned.spec.key).name,
                "samples": planned.samples,
                "bytes": planned.bytes,
                "state": planned.state,
                "trials": len(planned.trials),
            }
            for planned in passes
        ],
        "search": search_to_json(plan, ledger),
        "trials": [
            {
                "fingerprint": progress.fingerprint,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": progress.state,
                "attempts": progress.attempts,
                "metrics": progress.metrics,
                "search": {
                    "of": trial.arm_name,
                    "number": trial.number,
                    "values": dict(trial.values),
                }
                if isinstance(trial, SearchTrial)
                else None,
            }
            for trial, progress in _iter_progress(plan, ledger)
        ],
    }


def evaluation_lines(plan: Plan, ledger: Ledger) -> Iterator[Text]:
    """Yield the questions per benchmark, how they are answered and scored, and the time so far."""
    counts: dict[str, int | None] = {}
    parts = []
    for side, settings in list_sides(plan.study.benchmarks):
        key = f"{side}/{settings.name}"
        if isinstance(find_benchmark(settings.name), ExternalBenchmark):
            counts[key] = None
            parts.append(f"{key} its program's own")
            continue
        try:
            items, total = select_items(
                side, settings, find_benchmark(settings.name), plan.data_paths
            )
        except UserError:
            counts[key] = None
            parts.append(f"{key} unknown")
            continue
        counts[key] = len(items)
        share = f" of {total:,}" if len(items) < total else ""
        parts.append(f"{key} {len(items):,}{share}")
    if not parts:
        return
    line = f"questions a trial: {', '.join(parts)}"
    if plan.study.tune is not None:
        line += " (`select` to a trial of a search, `report` to one of the seeds)"
    waiting = [trial for arm in plan.arms for trial in arm.trials if _is_waiting(trial)]
    to_answer, to_score = 0, 0
    for trial in (*plan.trials, *waiting):
        record = ledger[trial.fingerprint]
        trains = not trial.untrained and record.model is None
        for key in record.missing_evaluations(trial):
            is_repeated = trains and key.startswith("select/")
            if trial.evaluations[key] in record.answers:
                to_score += counts[key] or 0
            else:
                to_answer += (counts[key] or 0) * (
                    count_select_runs(trial.config) if is_repeated else 1
                )
    if to_answer:
        line += f"; {to_answer:,} answers to generate"
    if to_score:
        line += f"; {to_score:,} existing answers to score"
    yield Text(line)
    if to_answer and (server_line := _server_line(plan)) is not None:
        yield Text(server_line)
    if to_answer or to_score:
        yield Text(
            "scoring: a separate step without a GPU, in parallel with the next trials' training"
        )
    share_so_far = _evaluation_share(plan, ledger)
    if share_so_far is not None:
        share_of_time, trials = share_so_far
        yield Text(
            f"answers and scoring took {share_of_time:.0%} of the time of the "
            f"{'trial' if trials == 1 else f'{trials} trials'} done so far"
        )


def readiness_lines(plan: Plan, workdir: Path) -> Iterator[Text]:
    """Yield what benchmarks and trainings lack, if anything is left to run."""
    ledger = read_ledger(plan, workdir)
    if all(ledger[trial.fingerprint].is_done(trial) for trial in plan.trials):
        return
    for problem in (
        find_benchmark_problems(plan.study.benchmarks, plan.data_paths) + plan.missing_requirements
    ):
        yield Text(f"cannot run yet: {problem}", style="bold red")


def _server_line(plan: Plan) -> str | None:
    """Return a line on the study's server, if it has one."""
    if not plan.base.config.evaluation.has_study_server:
        return None
    arms = [arm.trials[0].config for arm in plan.arms]
    served = sum(map(is_servable, arms))
    line = f"answers: one server for {served} {'arm' if served == 1 else 'arms'} and the untrained "
    line += "model, which holds all adapters"
    if any(config.engine.gpus_per_worker for config in arms):
        line += f", on its own {plan.base.config.evaluation.generator.gpus} GPU"
    if others := len(arms) - served:
        line += f"; {others} that train{'s' if others == 1 else ''} more start one for each trial"
    return line


def _is_waiting(trial: Trial) -> bool:
    return trial.blocked is not None and not trial.blocked.failed


def _evaluation_share(plan: Plan, ledger: Ledger) -> tuple[float, int] | None:
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
    target: str  # model, name of the code, or address of judge or engine
    sentence: str


def trust_warnings(plan: Plan) -> list[TrustWarning]:
    """Return what a study trusts, without duplicates."""
    return list(dict.fromkeys(_iter_trust_warnings(plan)))


def trust_warning_lines(plan: Plan) -> Iterator[Text]:
    """Yield what a study trusts, in red."""
    for warning in trust_warnings(plan):
        yield Text(warning.sentence, style="bold red")


def trust_warnings_to_json(plan: Plan) -> list[dict[str, Any]]:
    """Return what a study trusts as plain data."""
    return [{"kind": warning.kind, "what": warning.target} for warning in trust_warnings(plan)]


def _iter_trust_warnings(plan: Plan) -> Iterator[TrustWarning]:
    configs = [plan.base.config, *(arm.trials[0].config for arm in plan.arms)]
    for config in configs:
        path = config.model.path
        if config.model.trust_remote_code:
            yield _code_warning("remote code", path, f"code that comes with the model {path}")
        plugin_names = [*config.objective.active_custom]
        if config.objective.needs_rejected_image:
            plugin_names.append(config.rejected_image.strategy)
        plugin_names += [settings.name for _, settings in list_sides(plan.study.benchmarks)]
        if config.pairs.rounds:
            plugin_names.append(config.pairs.ranker)
        for name in filter(registry.is_plugin, plugin_names):
            yield _code_warning("plug-in", name, f"the code {name}")
        pair_judge = config.pairs.judge if config.pairs.rounds else None
        if pair_judge is not None and plan.data_paths.judge_replies is None:
            target = pair_judge.base_url or "OpenAI"
            content = "the data's prompts and pictures and the model's answers"
            yield _recipient_warning("judge", target, content, pair_judge.api_key_env)
    for _, settings in list_sides(plan.study.benchmarks):
        judge = settings.judge
        if (
            judge is not None
            and judge.base_url is not None
            and plan.data_paths.judge_replies is None
        ):
            content = f"the answers to {settings.name}"
            yield _recipient_warning("judge", judge.base_url, content, judge.api_key_env)
    engine = plan.base.config.evaluation.generator
    if engine.base_url is not None:
        content = "the benchmarks' questions and pictures"
        yield _recipient_warning("generator", engine.base_url, content, engine.api_key_env)


def _code_warning(kind: str, target: str, code: str) -> TrustWarning:
    sentence = f"trusted: {code} is run, with all your rights"
    return TrustWarning(kind=kind, target=target, sentence=sentence)


def _recipient_warning(
    kind: str, target: str, content: str, key_variable: str | None
) -> TrustWarning:
    key = f" and the key in {key_variable}" if key_variable else ""
    return TrustWarning(
        kind=kind, target=target, sentence=f"trusted: {target} is sent {content}{key}"
    )


_MAX_NAMES = 4  # names


def mlflow_names(plan: Plan) -> dict[str, str]:
    """Return name -> its spelling in MLflow, for a study's names that MLflow does not accept."""
    params = dict.fromkeys(name for arm in plan.arms for name in (*arm.params, *arm.tuned))
    runs = [*(arm.name for arm in plan.arms), *(trial.name for trial in plan.trials)]
    return {
        **encode_invalid(study_metrics(plan)),
        **encode_invalid(params),
        **encode_invalid(runs, RUN),
        **encode_invalid([plan.study.name], EXPERIMENT),
    }


def mlflow_name_lines(names: Mapping[str, str]) -> Iterator[str]:
    """Yield the spelling in MLflow of the first few names."""
    for name, spelling in list(names.items())[:_MAX_NAMES]:
        yield (
            f"in MLflow '{to_printable(name)}' is called '{spelling}', because MLflow does not "
            "accept that name"
        )
    if len(names) > _MAX_NAMES:
        yield f"and {len(names) - _MAX_NAMES} more names are changed there"
