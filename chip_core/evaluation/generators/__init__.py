"""Answer generators: the engines that compute a model's answers."""

from chip_core.evaluation.generators.base import AnsweringModel, Generator, Pace, Tell
from chip_core.evaluation.generators.choice import (
    generator_problems,
    lacking_here,
    open_generator,
)

__all__ = [
    "AnsweringModel",
    "Generator",
    "Pace",
    "Tell",
    "generator_problems",
    "lacking_here",
    "open_generator",
]
