"""The configuration section of pairs that are sampled from the model itself."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator, model_validator

from chip_core.config.benchmark import JudgeConfig
from chip_core.config.fields import Section, hashed
from chip_core.utils import registry
from chip_core.utils.registry import suggest

#: The rankers of a model's answers, in addition to a user's own function.
RANKERS = ("chair", "judge")


class PairsConfig(Section):
    """Preference pairs of answers that the model itself gives to the data's prompts."""

    rounds: int = hashed(
        0,
        ge=0,
        doc="number of rounds in which the model is sampled and trained on its pairs; 0: it is "
        "trained on the data's own pairs",
    )
    prompts: int | None = hashed(
        None, ge=1, doc="prompts per round, taken in turn from a seeded order; null: all"
    )
    answers: int = hashed(8, ge=2, doc="answers sampled to each prompt")
    temperature: float = hashed(1.0, gt=0, doc="temperature: what logits are divided by")
    top_p: float = hashed(
        1.0, gt=0, le=1, doc="top-p: probability mass of the tokens that may be drawn"
    )
    max_new_tokens: int = hashed(256, ge=1, doc="longest answer")
    ranker: str = hashed(
        "chair",
        doc="what ranks the answers: 'chair' (fewest hallucinated objects), 'judge', or "
        "module:function of your own",
    )
    margin: float = hashed(
        0.0, ge=0, doc="minimum difference between best and worst; equal ones are never a pair"
    )
    judge: JudgeConfig | None = hashed(None, doc="the judge of ranker 'judge'; it sees the image")

    @field_validator("ranker")
    @classmethod
    def _validate_ranker(cls, value: str) -> str:
        if registry.is_plugin(value):
            if not callable(registry.load_plugin(value)):
                raise ValueError(f"'{value}' is not a function")
        elif value not in RANKERS:
            raise ValueError(
                f"unknown level '{value}': {suggest(value, [*RANKERS, 'module:function'])}"
            )
        return value

    @field_validator("judge")
    @classmethod
    def _require_judge_for_rounds(
        cls, value: JudgeConfig | None, info: ValidationInfo
    ) -> JudgeConfig | None:
        # Without rounds, existing replies can replace the judge (`pairs --judge-replies`).
        if value is None and info.data.get("ranker") == "judge" and info.data.get("rounds"):
            raise ValueError("ranker is judge: name one, as `judge: {model: …}`")
        return value

    @model_validator(mode="after")
    def _check_judge(self) -> PairsConfig:
        if self.ranker != "judge" and self.judge is not None:
            raise ValueError(f"judge is set, but ranker is {self.ranker}: write ranker: judge")
        if self.judge is not None and self.judge.mode == "batch":
            raise ValueError(
                "judge.mode is batch, but rounds would wait for batches of up to a day one after "
                "another: write mode: live"
            )
        return self
