"""One benchmark a file, pure functions from answers to outcomes."""

from chip_core.evaluation.scorers import amber as amber
from chip_core.evaluation.scorers import chair as chair
from chip_core.evaluation.scorers import embedded as embedded
from chip_core.evaluation.scorers import hallusionbench as hallusionbench
from chip_core.evaluation.scorers import llava_bench as llava_bench
from chip_core.evaluation.scorers import mmhal as mmhal
from chip_core.evaluation.scorers import mmmu as mmmu
from chip_core.evaluation.scorers import objhal as objhal
from chip_core.evaluation.scorers import pope as pope
from chip_core.evaluation.scorers import scienceqa as scienceqa
from chip_core.evaluation.scorers.base import SCORERS

__all__ = ["SCORERS"]
