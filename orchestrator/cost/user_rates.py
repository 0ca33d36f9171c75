"""Read rates and prices that the user gives, by file and by flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from chip_core.config.validation import parse_model
from chip_core.recipes import read_yaml
from orchestrator.cost.estimate import Prices
from orchestrator.cost.rates import ANY_KIND, NO_TIME, Quantity, RateSource, Seconds, Size

#: Of seconds and money, as of the options of the same names.
MAX_VALUE = 1e9


def _amount_field(description: str) -> Any:
    """Return a field of seconds or money; None: not given."""
    return Field(None, ge=0, le=MAX_VALUE, description=description)


class Assumptions(BaseModel):
    """What is taken to be true of a metric in percent while no study has shown it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    rate: float = Field(20.0, gt=0, lt=100, description="the metric, in percent")
    correlation: float = Field(
        0.5, ge=0, lt=1, description="between two arms' outcomes on the same items"
    )
    seed_sd: float = Field(
        1.0, ge=0, le=100, description="standard deviation between seeds of an arm, in points"
    )


class UserRates(BaseModel):
    """A file of rates. What is left out is measured or unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    start: float | None = _amount_field("seconds of a trial in addition to steps and answers")
    step: float | None = _amount_field("seconds of a training step")
    answer: float | None = _amount_field("seconds of an answer, scored if `score` is not given")
    score: float | None = _amount_field("seconds of scoring an answer, by rules or a judge")
    sample: float | None = _amount_field("seconds of a reference pass's sample")
    rows: int | None = Field(
        None, ge=1, le=10**12, description="samples of the data, if planning cannot count them"
    )
    price_per_gpu_hour: float | None = _amount_field("in your currency")
    price_per_cpu_hour: float | None = _amount_field("in your currency")
    max_concurrent: int | None = Field(
        None, ge=1, le=10**6, description="trials that run at a time"
    )
    device_memory: float | None = Field(None, gt=0, le=2**20, description="GiB of one device")
    assumed: Assumptions = Field(
        Assumptions(), description="of the metric, before anything has run"
    )

    @property
    def prices(self) -> Prices:
        """What is paid."""
        return Prices(gpu_hour=self.price_per_gpu_hour, cpu_hour=self.price_per_cpu_hour)

    @property
    def source(self) -> RateSource | None:
        """The rates that are given; None without any. The CPU computes all of the time."""
        rates: dict[tuple[Quantity, str], Seconds] = {}
        if self.start is not None:
            rates["model", ANY_KIND] = Seconds(wall=self.start, cpu=self.start)
            # What a given start is said to hold.
            rates |= {
                (name, ANY_KIND): Seconds(wall=0.0, cpu=0.0)
                for name in ("session", "dispatch", "imports", "row", "setup")
            }
        if self.answer is not None:  # what it is said to hold where nothing is said of scoring
            rates["score", ANY_KIND] = NO_TIME
        for name in ("step", "answer", "score", "sample"):
            seconds = getattr(self, name)
            if seconds is not None:
                rates[name, ANY_KIND] = Seconds(wall=seconds, cpu=seconds)
        sizes: dict[tuple[Size, str], int] = {}
        if self.rows is not None:
            sizes["rows", ANY_KIND] = self.rows
        return RateSource(name="given rates", rates=rates, sizes=sizes) if rates or sizes else None


def read_user_rates(file: Path | None, flags: Mapping[str, Any]) -> UserRates:
    """Return what the user gives.

    Args:
        file: of rates; None: none.
        flags: of the command line, which win over the file; None is not given.

    Raises:
        ConfigError: every problem at once.
    """
    file_rates = parse_model(UserRates, {} if file is None else read_yaml(file), str(file))
    given_flags = {name: value for name, value in flags.items() if value is not None}
    rates = {**file_rates.model_dump(exclude_unset=True), **given_flags}
    return parse_model(UserRates, rates, "--rate")
