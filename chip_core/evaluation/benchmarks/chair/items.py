"""CHAIR's pictures to describe.

CHAIR publishes no questions: the folder has `questions.jsonl`, rows of `image_id`, with `question`
and `image` if they are not the usual ones. The pictures are COCO's, in `val2014/` there or in a
folder `coco/` beside it.
"""

from __future__ import annotations

from chip_core.evaluation.benchmarks.chair.score import ChairScorer
from chip_core.evaluation.benchmarks.coco import CocoBenchmark
from chip_core.evaluation.task import BENCHMARKS


class Chair(ChairScorer, CocoBenchmark):
    """Rule CHAIR: pictures to describe."""

    questions = ("questions.jsonl",)


BENCHMARKS.register("chair")(Chair())
