"""Estimate what judges will cost, before any call.

A benchmark's own scorer makes its calls for placeholder answers to a judge that only counts them:
once with short answers and verdicts that need no further call, once with the longest answers and
verdicts that need all calls. The figures are therefore a range that contains the actual cost.
Cached replies are counted, too, since it is not known beforehand which answers will recur.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from chip_core.config.benchmark import BenchmarkConfig, DataPaths, JudgeConfig
from chip_core.evaluation.items import (
    find_benchmark,
    open_resources,
    resolve_decoding,
    select_items,
)
from chip_core.evaluation.judge.limits import CHARACTERS_PER_TOKEN, estimate_request_tokens
from chip_core.evaluation.scorer import Answer, JudgeRequest
from chip_core.evaluation.task import ExternalBenchmark, Side
from chip_core.utils.errors import TrialError, UserError
from orchestrator.cost.workload import TrialWork

_MILLION = 1e6

#: The lowest and the highest value; None: there is no highest.
Bounds = tuple[float, float | None]


@dataclass(frozen=True, kw_only=True)
class JudgeTokens:
    """Lower and upper bounds of some calls."""

    calls: Bounds = (0, 0)
    sent: Bounds = (0, 0)  # tokens of the questions
    replied: Bounds = (0, 0)  # tokens of the replies
    price: Bounds | None = (0.0, 0.0)  # None: no price is given

    def __add__(self, other: JudgeTokens) -> JudgeTokens:
        """Return both together."""
        return JudgeTokens(
            calls=_add_bounds(self.calls, other.calls),
            sent=_add_bounds(self.sent, other.sent),
            replied=_add_bounds(self.replied, other.replied),
            price=_add_bounds(self.price, other.price) if self.price and other.price else None,
        )

    def repeat(self, times: int) -> JudgeTokens:
        """Return one to `times` times these, since recurring answers are cached."""
        return JudgeTokens(
            calls=_raise_highest(self.calls, times),
            sent=_raise_highest(self.sent, times),
            replied=_raise_highest(self.replied, times),
            price=_raise_highest(self.price, times) if self.price else None,
        )


def _add_bounds(first: Bounds, second: Bounds) -> Bounds:
    (low, high), (other_low, other_high) = first, second
    return low + other_low, None if high is None or other_high is None else high + other_high


def _raise_highest(bounds: Bounds, times: int) -> Bounds:
    return bounds[0], None if bounds[1] is None else bounds[1] * times


@dataclass(kw_only=True)
class JudgeCosts:
    """The calls that judges of a study still have to answer."""

    arms: dict[str, JudgeTokens] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)  # "report/mmhal" -> why; in no sum

    @property
    def total(self) -> JudgeTokens:
        """All arms together."""
        return sum(self.arms.values(), JudgeTokens())


def estimate_judge_costs(trials: Sequence[TrialWork], data_paths: DataPaths) -> JudgeCosts:
    """Estimate the judges' calls for the remaining trials, without any call.

    Args:
        trials: remaining work of the trials.
        data_paths: where the benchmarks' data are.
    """
    costs = JudgeCosts()
    tokens_by_benchmark: dict[str, JudgeTokens | None] = {}
    for trial_work in trials:
        pairs = trial_work.config.pairs
        if (
            trial_work.training
            and pairs.rounds
            and pairs.judge
            and data_paths.judge_replies is None
        ):
            costs.unknown[f"pairs of {trial_work.trial.arm}"] = (
                "answers that are sampled in its training, up to "
                f"{pairs.rounds} rounds x {pairs.prompts or 'all'} prompts x {pairs.answers} a seed"
            )
        for key, questions in trial_work.questions.items():
            settings = questions.settings
            if settings.judge is None or data_paths.judge_replies is not None:
                continue
            cache_key = f"{key} {settings.model_dump_json()}"
            if cache_key not in tokens_by_benchmark:
                tokens_by_benchmark[cache_key] = None
                try:
                    side: Side = "select" if key.startswith("select/") else "report"
                    tokens_by_benchmark[cache_key] = _benchmark_tokens(
                        side, settings, settings.judge, data_paths
                    )
                except (UserError, TrialError) as error:
                    costs.unknown[key] = str(error)
            tokens = tokens_by_benchmark[cache_key]
            if tokens is not None:
                earlier = costs.arms.get(trial_work.arm_label, JudgeTokens())
                costs.arms[trial_work.arm_label] = earlier + tokens.repeat(questions.times)
    return costs


class _CountingJudge:
    """Records calls, and gives the same reply to all."""

    model = "counts"

    def __init__(self, reply: str) -> None:
        self.requests: list[JudgeRequest] = []
        self._reply = reply

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        """Return the one reply."""
        self.requests += requests
        return [self._reply] * len(requests)


def _benchmark_tokens(
    side: Side, settings: BenchmarkConfig, judge: JudgeConfig, data_paths: DataPaths
) -> JudgeTokens:
    """Return the judge's tokens for one model's answers to a benchmark.

    Raises:
        UserError, TrialError: its files or tools are not here.
    """
    benchmark = find_benchmark(settings.name)
    if "judge" not in benchmark.needs:
        return JudgeTokens()
    if isinstance(benchmark, ExternalBenchmark):
        raise UserError("it is asked by its own program")
    max_new_tokens = resolve_decoding(settings, benchmark).max_new_tokens
    min_requests = _collect_requests(side, settings, data_paths, answer="No.", reply="correct")
    max_requests = _collect_requests(
        side, settings, data_paths, answer=_filler_text(max_new_tokens), reply="incorrect"
    )
    bounds = [_max_reply_tokens(request, judge) for request in max_requests]
    replied = None if None in bounds else sum(bound for bound in bounds if bound is not None)
    sent = (estimate_request_tokens(*min_requests), estimate_request_tokens(*max_requests))
    price = None
    if judge.price is not None:
        sent_prices = [tokens * judge.price.input / _MILLION for tokens in sent]
        reply_price = None if replied is None else replied * judge.price.output / _MILLION
        # at least one token each
        min_price = sent_prices[0] + len(min_requests) * judge.price.output / _MILLION
        price = (min_price, None if reply_price is None else sent_prices[1] + reply_price)
    return JudgeTokens(
        calls=(len(min_requests), len(max_requests)),
        sent=sent,
        replied=(len(min_requests), replied),
        price=price,
    )


def _collect_requests(
    side: Side, settings: BenchmarkConfig, data_paths: DataPaths, *, answer: str, reply: str
) -> list[JudgeRequest]:
    """Return the calls that a benchmark makes if every answer is the same."""
    benchmark = find_benchmark(settings.name)
    items, total = select_items(side, settings, benchmark, data_paths)
    item_ids = frozenset(item.id for item in items)
    judge = _CountingJudge(reply)
    resources = open_resources(
        settings,
        benchmark.needs_of(items) - {"judge"},
        data_paths,
        only=item_ids if len(items) < total else None,
    )
    answers = [Answer(item=item.id, response=answer, fields=item.fields) for item in items]
    # The score is not needed, and scoring may fail if nothing is left to score.
    with suppress(ValueError, ArithmeticError, LookupError, UserError):
        benchmark.score(
            answers,
            data=data_paths.benchmark_folder(settings.name),
            protocol=settings.protocol,
            resources=replace(resources, judge=judge),
        )
    if not judge.requests:
        raise UserError("its scorer asked nothing of stand-in answers")
    return judge.requests


def _filler_text(tokens: int) -> str:
    """Return an answer of so many tokens."""
    word = "thing "
    return (word * (1 + tokens * CHARACTERS_PER_TOKEN // len(word)))[
        : tokens * CHARACTERS_PER_TOKEN
    ]


def _max_reply_tokens(request: JudgeRequest, judge: JudgeConfig) -> int | None:
    """Return the largest number of tokens of a reply; None without a bound."""
    max_tokens = request.max_tokens if judge.max_tokens is None else judge.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        if name in judge.send:
            limit = judge.send[name]
            max_tokens = limit if isinstance(limit, int) else None
    return max_tokens
