"""The benchmarks with data of their own, one a file: from their published files to items."""

from chip_core.evaluation.benchmarks import amber as amber
from chip_core.evaluation.benchmarks import described as described
from chip_core.evaluation.benchmarks import hallusionbench as hallusionbench
from chip_core.evaluation.benchmarks import llava_bench as llava_bench
from chip_core.evaluation.benchmarks import mmhal as mmhal
from chip_core.evaluation.benchmarks import mmmu as mmmu
from chip_core.evaluation.benchmarks import pope as pope
from chip_core.evaluation.benchmarks import scienceqa as scienceqa
