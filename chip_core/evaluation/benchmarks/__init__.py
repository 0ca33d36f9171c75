"""The benchmarks, one a folder: `items` asks its questions, `score` scores the answers."""

from chip_core.evaluation.benchmarks import amber as amber
from chip_core.evaluation.benchmarks import chair as chair
from chip_core.evaluation.benchmarks import hallusionbench as hallusionbench
from chip_core.evaluation.benchmarks import llava_bench as llava_bench
from chip_core.evaluation.benchmarks import lmms_eval as lmms_eval
from chip_core.evaluation.benchmarks import mmhal as mmhal
from chip_core.evaluation.benchmarks import mmmu as mmmu
from chip_core.evaluation.benchmarks import objhal as objhal
from chip_core.evaluation.benchmarks import pope as pope
from chip_core.evaluation.benchmarks import scienceqa as scienceqa
from chip_core.evaluation.benchmarks import shapes as shapes
