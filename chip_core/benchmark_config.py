"""The sections of a configuration that say what a model is asked, and who judges its answers."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from chip_core.fields import Section, Shorthand, engine, figure


class BudgetConfig(Section):
    """What a judge may cost: counted over all trials and studies of a work directory."""

    calls: int | None = engine(None, ge=1, doc="most calls that are paid for; null: no bound")
    tokens: int | None = engine(None, ge=1, doc="most tokens, of questions and replies")


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
    base_url: str | None = engine(None, doc="the endpoint, ending in /v1; null: OpenAI's")
    api_key_env: str | None = engine(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        doc="the environment variable that holds the key, where trials run; null: no key",
    )
    timeout: float = engine(60.0, gt=0, doc="seconds that one call may take")
    concurrency: int = engine(8, ge=1, doc="calls at a time of one trial")
    retries: int = engine(5, ge=0, doc="further tries of a call that failed, with growing pauses")
    budget: BudgetConfig = engine(BudgetConfig, doc="what it may cost")

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_it(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of a port or an IPv6 address that is none
            named = False
        if not named or not value.isprintable() or " " in value:
            raise ValueError("is no address: write https://HOST/v1")
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError(
                "holds a key or a query: this address is written down with every figure; put the "
                "key into an environment variable and name that by api_key_env"
            )
        return value


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
    def _a_half_to_draw(self) -> BenchmarkConfig:
        if self.half is None and self.half_seed != 0:
            raise ValueError("half_seed draws nothing where all is asked: write `half`, too")
        return self


class BenchmarksConfig(Section):
    """`select` is tuned on, `report` is quoted from."""

    select: tuple[BenchmarkConfig, ...] = figure((), doc="may choose hyper-parameters")
    report: tuple[BenchmarkConfig, ...] = figure((), doc="for the table alone")

    @model_validator(mode="after")
    def _each_once(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            names = [benchmark.name for benchmark in getattr(self, side)]
            if len(set(names)) != len(names):
                raise ValueError(f"{side}: a benchmark is named twice: name each once")
        return self

    @model_validator(mode="after")
    def _each_half_on_its_side(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            for benchmark in getattr(self, side):
                if benchmark.half not in (None, side):
                    raise ValueError(
                        f"{side}: '{benchmark.name}' asks the half that belongs to "
                        f"`{benchmark.half}`: write `half: {side}`"
                    )
        return self

    @property
    def selecting(self) -> BenchmarksConfig:
        """Those alone that may choose."""
        return BenchmarksConfig(select=self.select)

    @property
    def reporting(self) -> BenchmarksConfig:
        """Those alone that are quoted."""
        return BenchmarksConfig(report=self.report)
