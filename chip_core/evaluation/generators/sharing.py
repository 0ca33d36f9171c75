"""The arms of a study that one server can answer for: those whose adapters its engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chip_core.config.trial import TrialConfig

#: The values that vLLM accepts as the largest rank of adapters.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def rank_problem(rank: int) -> str | None:
    """Return why vLLM takes no adapters of this rank, with what to do."""
    if rank <= RANKS[-1]:
        return None
    return (
        f"vLLM takes adapters of a rank up to {RANKS[-1]}, and this one's is {rank}: "
        "write evaluation.generator: transformers"
    )


def is_shared(config: TrialConfig) -> bool:
    """Return whether one server answers for the arms of a study."""
    generator = config.evaluation.generator
    return generator.kind == "vllm" and generator.serves == "study"


def is_servable(config: TrialConfig) -> bool:
    """Return whether a training changes only an adapter on the language model."""
    parts = (config.vision_encoder, config.projector, config.language_model)
    return parts == ("frozen", "frozen", "lora")


def largest_rank(configs: Iterable[TrialConfig]) -> int:
    """Return the largest rank of the adapters that one server takes; 0: it takes none."""
    return max((config.lora.rank for config in configs if is_servable(config)), default=0)


def sharing_problems(configs: Sequence[TrialConfig]) -> list[str]:
    """Return why one server cannot answer for a study's trials, with what to do.

    Args:
        configs: all trials that the study may train.
    """
    if not any(map(is_shared, configs)):
        return []
    condition = "evaluation.generator.serves is study"
    models = {config.model for config in configs}
    if len(models) > 1:
        return [
            f"{condition}, and this study has {len(models)} base models: one server has one: write "
            "serves: trial"
        ]
    rank = largest_rank(configs)
    if rank == 0:
        return [
            f"{condition}, and no arm trains an adapter on its language model alone "
            "(language_model: lora, the other parts frozen), which is all that one server can "
            "hold: write serves: trial"
        ]
    problem = rank_problem(rank)
    return [] if problem is None else [f"{condition}: {problem}"]
