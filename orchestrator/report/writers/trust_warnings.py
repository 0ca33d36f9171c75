"""Warn of code that a study runs, and of where it sends answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from chip_core.evaluation.readiness import sides
from chip_core.utils import plugins
from orchestrator.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class TrustWarning:
    """One thing that a run relies on."""

    kind: str  # "remote code", "plug-in", "judge" or "generator"
    what: str  # the model, the code's name, the judge's or the engine's address
    sentence: str


def trust_warnings(plan: Plan) -> list[TrustWarning]:
    """Return what a study trusts, each once."""
    return list(dict.fromkeys(_trusted(plan)))


def trust_warning_lines(plan: Plan) -> Iterator[Text]:
    """Say in red what a study trusts."""
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
