"""Define the `early_stopping:` block of a study file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Goal = Literal["minimize", "maximize"]

#: The training metrics that a rule can use, and their goal.
TRAINING_METRICS: dict[str, Goal] = {
    "reward/accuracy": "maximize",
    "reward/margin": "maximize",
    "loss": "minimize",
}


class EarlyStopping(BaseModel):
    """Trainings that fall behind the others of a run are cut; the baseline's never are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    method: Literal["asha", "median"] = Field(
        description="asha: at each rung the best 1/reduction_factor continue; median: a trial "
        "ends if its best figure is below the median of the others' means"
    )
    metric: str = Field(
        description="the training figure that decides: reward/accuracy, reward/margin or loss"
    )
    grace: float = Field(
        0.25, gt=0, lt=1, description="the fraction of its steps that every training completes"
    )
    reduction_factor: float | None = Field(
        None, gt=1, allow_inf_nan=False, description="only for asha; 3 by default"
    )
    min_trials: int | None = Field(
        None,
        ge=1,
        description="only for median: how many other trials must have come as far; 3 by default",
    )

    @model_validator(mode="after")
    def _check_method_options(self) -> EarlyStopping:
        if self.method == "median" and self.reduction_factor is not None:
            raise ValueError("reduction_factor is only for asha: leave it out under median")
        if self.method == "asha" and self.min_trials is not None:
            raise ValueError("min_trials is only for median: leave it out under asha")
        return self

    @property
    def goal(self) -> Goal:
        """Whether the metric is minimized or maximized."""
        return TRAINING_METRICS[self.metric]

    @property
    def effective_reduction_factor(self) -> float:
        """Reduction factor of asha: 1/factor of the trials continue."""
        return self.reduction_factor or 3.0

    @property
    def effective_min_trials(self) -> int:
        """Minimum number of other trials that have come as far, for median."""
        return self.min_trials or 3

    @property
    def description(self) -> str:
        """The rule in words. Equal rules have equal words."""
        parameter = (
            f"reduction factor {self.effective_reduction_factor:g}"
            if self.method == "asha"
            else f"{self.effective_min_trials} others at least"
        )
        return f"{self.method} on {self.metric}, grace {100 * self.grace:g} %, {parameter}"
