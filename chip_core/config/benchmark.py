"""The configuration sections of benchmarks and of the judges of their answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, JsonValue, field_validator, model_validator

from chip_core.config.fields import Section, Shorthand, engine, figure

#: Keys of a request that users cannot set, and why.
_RESERVED_KEYS = {
    "model": "write judge.model",
    "messages": "they are what the benchmark asks",
    "stream": "replies are read whole",
    "stream_options": "replies are read whole",
    "n": "one reply is read",
}
#: Names of secrets, without case, - and _.
_SECRET_NAMES = re.compile(
    r"(?:x?api)?key|(?:x?api|access|auth|bearer|id|refresh|session|secret)token|token|secret|"
    r"clientsecret|secretkey|accesskey|password|passwd|authorization|authentication|credentials?|"
    r"cookie|bearer"
)
_SECRET_ADVICE = (
    ", and this is written down with every figure; put the key into an environment variable and "
    "name that by api_key_env"
)
#: The largest request settings allowed.
_MAX_SEND_LENGTH = 20_000  # characters, as JSON


def _validate_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # for an invalid port or IPv6 address
        is_valid = False
    if not is_valid or not address.isprintable() or " " in address:
        raise ValueError("is no address: write https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(
            "holds a key or a query: this address is written down with every figure; put the "
            "key into an environment variable and name that by api_key_env"
        )
    return address


#: An endpoint's address: valid, and without secrets, because it is recorded.
Address = Annotated[str, AfterValidator(_validate_address)]


class BudgetConfig(Section):
    """What a judge may cost: counted over all trials and studies of a work directory."""

    calls: int | None = engine(None, ge=1, doc="most calls that are paid for; null: no bound")
    tokens: int | None = engine(None, ge=1, doc="most tokens, of questions and replies")


class PriceConfig(Section):
    """What a judge's tokens cost, in your currency: `plan` tells what they come to."""

    input: float = engine(ge=0, doc="of a million tokens of questions")
    output: float = engine(ge=0, doc="of a million tokens of replies")


class LimitsConfig(Section):
    """What an endpoint takes: kept to by all trials and studies of a work directory together."""

    requests_per_minute: float | None = engine(None, gt=0, doc="spread evenly; null: no bound")
    tokens_per_minute: int | None = engine(
        None, ge=1, doc="of questions and replies; before a reply it counts as its longest"
    )
    concurrency: int | None = engine(None, ge=1, doc="calls at a time of all trials")


class JudgeConfig(Shorthand):
    """A language model that reads answers, behind an endpoint as OpenAI's. A string is the model.

    Figures from another judge are not comparable: its model is part of the fingerprint.
    """

    shorthand = "model"

    model: str = figure(min_length=1, doc="the judge's name, as the endpoint knows it")
    temperature: float | None = figure(
        None, ge=0, doc="in place of what the benchmark's own script asks with"
    )
    max_tokens: int | None = figure(None, ge=1, doc="longest reply, in place of the script's own")
    send: Mapping[str, JsonValue] = figure(
        {},
        doc="further keys of a request and their values, in place of those above; null: a key that "
        "is not sent (max_tokens: null, max_completion_tokens: 512)",
    )
    base_url: Address | None = engine(None, doc="the endpoint, ending in /v1; null: OpenAI's")
    api_key_env: str | None = engine(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        doc="the environment variable that holds the key, where trials run; null: no key",
    )
    mode: Literal["live", "batch"] = engine(
        "live",
        doc="'live': one call an answer; 'batch': files of calls by the endpoint's batches, which "
        "take up to a day and cost less",
    )
    poll: float = engine(30.0, gt=0, doc="seconds between two looks at a batch")
    timeout: float = engine(60.0, gt=0, doc="seconds that one call may take")
    concurrency: int = engine(8, ge=1, doc="calls at a time of one trial")
    retries: int = engine(5, ge=0, doc="further tries of a call that failed, with growing pauses")
    budget: BudgetConfig = engine(BudgetConfig, doc="what it may cost")
    price: PriceConfig | None = engine(None, doc="of its tokens; null: not known")
    limits: LimitsConfig = engine(LimitsConfig, doc="what the endpoint takes of all trials")

    @field_validator("send")
    @classmethod
    def _validate_send(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for key in value:
            if key in _RESERVED_KEYS:
                raise ValueError(f"'{key}' cannot be sent otherwise: {_RESERVED_KEYS[key]}")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", key):
                raise ValueError(f"{key[:40]!r} is no key of a request")
        try:
            text = json.dumps(value)
            names = list(_iter_keys(value))
        except RecursionError:
            raise ValueError("is nested too deep") from None
        if len(text) > _MAX_SEND_LENGTH:
            raise ValueError(f"is longer than {_MAX_SEND_LENGTH:,} characters")
        for key in names:
            if _SECRET_NAMES.fullmatch(re.sub(r"[-_.\s]", "", key.lower())):
                raise ValueError(f"'{key[:40]}' is the name of a secret{_SECRET_ADVICE}")
        for key, nested in value.items():
            if re.search(r"(?<![\w-])(?:sk|gsk|hf)[-_][\w-]{16,}", json.dumps(nested)):
                raise ValueError(f"'{key}' holds what looks like a key{_SECRET_ADVICE}")
        return value

    @model_validator(mode="after")
    def _reject_duplicate_settings(self) -> JudgeConfig:
        for key in ("temperature", "max_tokens"):
            if getattr(self, key) is not None and key in self.send:
                raise ValueError(f"{key} is said twice: remove {key} or send.{key}")
        return self


class BenchmarkConfig(Shorthand):
    """One benchmark of a study. A bare string is its name."""

    shorthand = "name"

    name: str = figure(min_length=1, doc="the benchmark's name, or module:attr of your own")
    protocol: Literal["official", "corrected", "chip"] = figure(
        "official",
        doc="'official': as its own script, quirks included; 'corrected': what it says it "
        "measures; 'chip': decoding and reading of the paper",
    )
    limit: int | None = figure(None, ge=1, doc="a seeded subset of N questions; null: all")
    max_new_tokens: int | None = figure(
        None, ge=1, doc="longest answer, in place of the benchmark's own"
    )
    num_beams: int | None = figure(
        None, ge=1, doc="beams of the decoding, 1 is greedy; null: 3 under 'chip', else 1"
    )
    half: Literal["select", "report"] | None = figure(
        None,
        doc="of a benchmark without a split of its own: the half that is tuned on, or the other",
    )
    half_seed: int = figure(0, ge=0, doc="of the draw that halves it")
    judge: JudgeConfig | None = figure(None, doc="who reads the answers, where it takes a judge")

    @model_validator(mode="after")
    def _check_half_seed(self) -> BenchmarkConfig:
        if self.half is None and self.half_seed != 0:
            raise ValueError("half_seed draws nothing where all is asked: write `half`, too")
        return self


class BenchmarksConfig(Section):
    """`select` is tuned on, `report` is quoted from."""

    select: tuple[BenchmarkConfig, ...] = figure((), doc="may choose hyper-parameters")
    report: tuple[BenchmarkConfig, ...] = figure((), doc="for the table alone")
    primary: str | None = engine(
        None,
        doc="the metric that a study is about which leaves out both its benchmarks and its primary",
    )

    @model_validator(mode="after")
    def _check_unique_names(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            names = [benchmark.name for benchmark in getattr(self, side)]
            if len(set(names)) != len(names):
                raise ValueError(f"{side}: a benchmark is named twice: name each once")
        return self

    @model_validator(mode="after")
    def _check_halves(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            for benchmark in getattr(self, side):
                if benchmark.half not in (None, side):
                    raise ValueError(
                        f"{side}: '{benchmark.name}' asks the half that belongs to "
                        f"`{benchmark.half}`: write `half: {side}`"
                    )
        return self

    @property
    def select_only(self) -> BenchmarksConfig:
        """Only the benchmarks used for selection."""
        return BenchmarksConfig(select=self.select)

    @property
    def report_only(self) -> BenchmarksConfig:
        """Only the benchmarks that are reported."""
        return BenchmarksConfig(report=self.report)


def _iter_keys(value: Any) -> Iterator[str]:
    """Yield the keys of a JSON value, at any depth."""
    if isinstance(value, Mapping):
        for key, nested in value.items():
            yield key
            yield from _iter_keys(nested)
    elif isinstance(value, list):
        for nested in value:
            yield from _iter_keys(nested)


@dataclass(frozen=True, kw_only=True)
class DataPaths:
    """Folders and files of the machine that a trial runs on."""

    #: `--benchmark-data`: a folder per benchmark, with its name, in its own published layout
    benchmark_data: Path | None = None
    judge_cache: Path | None = None  # where judges' replies are stored, for all trials
    judge_replies: Path | None = None  # `--judge-replies`: replies to use instead of a judge's

    def benchmark_folder(self, benchmark: str) -> Path | None:
        """Return a benchmark's folder, which may not exist.

        For my.module:Mine it is my.module.Mine.
        """
        if self.benchmark_data is None:
            return None
        return self.benchmark_data / benchmark.replace(":", ".")
