"""Object HalBench: describe a COCO picture; objects listed by a judge."""

from chip_core.evaluation.benchmarks.objhal import items as items
