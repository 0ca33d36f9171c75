"""The budget of a study and the limits of a run, as written in the study file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Budget(BaseModel):
    """Bounds as written, in the study file or on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hours: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="hours from start to end"
    )
    cpu_hours: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="hours of computing"
    )
    gpu_hours: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="hours that GPUs are held"
    )
    price: float | None = Field(None, gt=0, allow_inf_nan=False, description="in your currency")

    @model_validator(mode="after")
    def _check_not_empty(self) -> Budget:
        if not self.bounds:
            raise ValueError("sets no bound: give hours, cpu_hours, gpu_hours or price")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set, by name."""
        return {name: value for name, value in self if value is not None}

    @property
    def description(self) -> str:
        """For people: `hours 12, price 200`."""
        return ", ".join(f"{name} {value:g}" for name, value in self.bounds.items())


class Limits(BaseModel):
    """Limits as written, in the study file or on the command line; each run counts from zero."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_hours: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="hours from the first trial's start"
    )
    max_gpu_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="hours that trials and reference passes hold GPUs",
    )
    max_failures: int | None = Field(None, ge=1, description="trials that have failed")

    @model_validator(mode="after")
    def _check_not_empty(self) -> Limits:
        if not self.limits:
            raise ValueError("sets no limit: give max_hours, max_gpu_hours or max_failures")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by name."""
        return {name: value for name, value in self if value is not None}
