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
from chip_core.evaluation.items import decoding_of, find_benchmark, select_items
from chip_core.evaluation.judge.limits import CHARACTERS, sent_tokens
from chip_core.evaluation.resources import open_resources
from chip_core.evaluation.scorer import Answer, JudgeRequest
from chip_core.evaluation.task import ExternalBenchmark, Side
from chip_core.utils.errors import TrialError, UserError
from orchestrator.cost.workload import TrialWork
from orchestrator.plan.plan import BASE_ARM

_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class JudgeTokens:
    """Lower and upper bounds of some calls."""

    calls: tuple[int, int] = (0, 0)
    sent: tuple[int, int] = (0, 0)  # tokens of the questions
    replied: tuple[int, int | None] = (0, 0)  # of the replies; None: they have no bound
    price: tuple[float, float | None] | None = (0.0, 0.0)  # None: no price is given

    def __add__(self, other: JudgeTokens) -> JudgeTokens:
        """Return both together."""
        price = None
        if self.price is not None and other.price is not None:
            low, high = zip(self.price, other.price, strict=True)
            price = (sum(low), None if None in high else sum(high))  # type: ignore[arg-type]
        longest = (self.replied[1], other.replied[1])
        return JudgeTokens(
            calls=(self.calls[0] + other.calls[0], self.calls[1] + other.calls[1]),
            sent=(self.sent[0] + other.sent[0], self.sent[1] + other.sent[1]),
            replied=(
                self.replied[0] + other.replied[0],
                None if None in longest else sum(longest),  # type: ignore[arg-type]
            ),
            price=price,
        )

    def asked(self, times: int) -> JudgeTokens:
        """Return one to `times` times these, since recurring answers are cached."""
        price = self.price
        longest = self.replied[1]
        if price is not None and price[1] is not None:
            price = (price[0], price[1] * times)
        return JudgeTokens(
            calls=(self.calls[0], self.calls[1] * times),
            sent=(self.sent[0], self.sent[1] * times),
            replied=(self.replied[0], None if longest is None else longest * times),
            price=price,
        )


@dataclass(kw_only=True)
class JudgeCosts:
    """The calls that judges of a study still have to answer."""

    arms: dict[str, JudgeTokens] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)  # "report/mmhal" -> why; in no sum

    @property
    def total(self) -> JudgeTokens:
        """All arms together."""
        return sum(self.arms.values(), JudgeTokens())


def judge_costs(trials: Sequence[TrialWork], places: DataPaths) -> JudgeCosts:
    """Estimate the judges' calls for the remaining trials, without any call.

    Args:
        trials: remaining work of the trials.
        places: where the benchmarks' data are.
    """
    found = JudgeCosts()
    known: dict[str, JudgeTokens | None] = {}
    for each in trials:
        pairs = each.config.pairs
        if each.training and pairs.rounds and pairs.judge and places.judge_replies is None:
            found.unknown[f"pairs of {each.trial.arm}"] = (
                "answers that are sampled in its training, up to "
                f"{pairs.rounds} rounds x {pairs.prompts or 'all'} prompts x {pairs.answers} a seed"
            )
        for key, asked in each.asked.items():
            settings = asked.settings
            if settings.judge is None or places.judge_replies is not None:
                continue
            mark = f"{key} {settings.model_dump_json()}"
            if mark not in known:
                known[mark] = None
                try:
                    side: Side = "select" if key.startswith("select/") else "report"
                    known[mark] = _of_benchmark(side, settings, settings.judge, places)
                except (UserError, TrialError) as error:
                    found.unknown[key] = str(error)
            tokens = known[mark]
            if tokens is not None:
                arm = "base (untrained)" if each.trial.arm == BASE_ARM else each.trial.arm
                found.arms[arm] = found.arms.get(arm, JudgeTokens()) + tokens.asked(asked.times)
    return found


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


def _of_benchmark(
    side: Side, settings: BenchmarkConfig, judge: JudgeConfig, places: DataPaths
) -> JudgeTokens:
    """Return the judge's tokens for one model's answers to a benchmark.

    Raises:
        UserError, TrialError: its files or tools are not here.
    """
    benchmark = find_benchmark(settings.name)
    if "judge" not in benchmark.needs:
        return JudgeTokens()
    if isinstance(benchmark, ExternalBenchmark):
        raise UserError("it is asked by a program of its own")
    longest = decoding_of(settings, benchmark).max_new_tokens
    few = _requests(side, settings, places, answer="No.", reply="correct")
    many = _requests(side, settings, places, answer=_words(longest), reply="incorrect")
    bounds = [_longest_reply(request, judge) for request in many]
    replied = None if None in bounds else sum(bound for bound in bounds if bound is not None)
    sent = (sent_tokens(*few), sent_tokens(*many))
    price = None
    if judge.price is not None:
        of_sent = [tokens * judge.price.input / _MILLION for tokens in sent]
        of_replies = None if replied is None else replied * judge.price.output / _MILLION
        low = of_sent[0] + len(few) * judge.price.output / _MILLION  # a token each
        price = (low, None if of_replies is None else of_sent[1] + of_replies)
    return JudgeTokens(
        calls=(len(few), len(many)), sent=sent, replied=(len(few), replied), price=price
    )


def _requests(
    side: Side, settings: BenchmarkConfig, places: DataPaths, *, answer: str, reply: str
) -> list[JudgeRequest]:
    """Return the calls that a benchmark makes if every answer is the same."""
    benchmark = find_benchmark(settings.name)
    items, whole = select_items(side, settings, benchmark, places)
    asked = frozenset(item.id for item in items)
    judge = _CountingJudge(reply)
    resources = open_resources(
        settings,
        benchmark.needs_of(items) - {"judge"},
        places,
        only=asked if len(items) < whole else None,
    )
    answers = [Answer(item=item.id, response=answer, fields=item.fields) for item in items]
    # The score is not needed, and scoring may fail if nothing is left to score.
    with suppress(ValueError, ArithmeticError, LookupError, UserError):
        benchmark.score(
            answers,
            data=places.data(settings.name),
            protocol=settings.protocol,
            resources=replace(resources, judge=judge),
        )
    if not judge.requests:
        raise UserError("its scorer asked nothing of stand-in answers")
    return judge.requests


def _words(tokens: int) -> str:
    """Return an answer of so many tokens."""
    word = "thing "
    return (word * (1 + tokens * CHARACTERS // len(word)))[: tokens * CHARACTERS]


def _longest_reply(request: JudgeRequest, judge: JudgeConfig) -> int | None:
    """Return the largest number of tokens of a reply; None without a bound."""
    longest = request.max_tokens if judge.max_tokens is None else judge.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        if name in judge.send:
            said = judge.send[name]
            longest = said if isinstance(said, int) else None
    return longest
