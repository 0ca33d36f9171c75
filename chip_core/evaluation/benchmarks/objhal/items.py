"""Object HalBench: describe a COCO picture.

Folder: `obj_halbench_300_with_image.jsonl`, as RLHF-V publishes it, with the pictures inside.
"""

from __future__ import annotations

from chip_core.evaluation.benchmarks.chair.items import Chair
from chip_core.evaluation.benchmarks.objhal.score import ObjHalScorer
from chip_core.evaluation.task import BENCHMARKS


class ObjectHalBench(Chair):
    """Object HalBench's pictures and questions."""

    questions = ("obj_halbench_300_with_image.jsonl", "questions.jsonl")


BENCHMARKS.register("objhal")(ObjectHalBench(ObjHalScorer()))
