"""MMBench, MMBench-CN and MM-Vet, by lmms-eval."""

from chip_core.evaluation.benchmarks.lmms_eval import benchmark as benchmark
