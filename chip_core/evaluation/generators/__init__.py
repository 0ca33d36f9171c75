"""Answer generators: the engines that compute a model's answers."""

from chip_core.evaluation.generators.choice import (
    generator_problems,
    missing_requirements,
    open_generator,
)

__all__ = ["generator_problems", "missing_requirements", "open_generator"]
