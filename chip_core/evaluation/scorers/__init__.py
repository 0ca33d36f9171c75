"""One benchmark a file, pure functions from answers to outcomes."""

from chip_core.evaluation.scorers import amber as amber
from chip_core.evaluation.scorers.base import SCORERS

__all__ = ["SCORERS"]
