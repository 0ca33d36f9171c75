"""CHAIR: describe a COCO picture; scored by rule."""

from chip_core.evaluation.benchmarks.chair import items as items
