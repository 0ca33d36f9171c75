"""Object HalBench's pictures to describe.

They are inside `obj_halbench_300_with_image.jsonl`, as RLHF-V publishes it.
"""

from __future__ import annotations

from chip_core.evaluation.benchmarks.coco import CocoBenchmark
from chip_core.evaluation.benchmarks.objhal.score import ObjectHalBenchScorer
from chip_core.evaluation.task import BENCHMARKS


class ObjectHalBench(ObjectHalBenchScorer, CocoBenchmark):
    """Object HalBench: pictures to describe."""

    questions = ("obj_halbench_300_with_image.jsonl", "questions.jsonl")


BENCHMARKS.register("objhal")(ObjectHalBench())
