"""Answer generators: the engines that compute a model's answers."""

from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    OnAnswers,
)
from chip_core.evaluation.generators.choice import (
    generator_problems,
    missing_requirements,
    open_generator,
)

__all__ = [
    "AnsweringModel",
    "Generator",
    "GenerationTiming",
    "OnAnswers",
    "generator_problems",
    "missing_requirements",
    "open_generator",
]
