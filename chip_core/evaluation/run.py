"""One model, one benchmark: questions, answers, figures, and what is left on disk."""

from __future__ import annotations

from chip_core.benchmark_config import BenchmarkConfig
from chip_core.evaluation.answering import InferenceContext, answer
from chip_core.evaluation.scoring import score_answers
from chip_core.evaluation.task import Side
from chip_core.results import Evaluation
from chip_core.workers import current


def evaluate(context: InferenceContext, side: Side, settings: BenchmarkConfig) -> Evaluation:
    """Ask a model a benchmark's questions and score its answers.

    On several workers (torch.distributed) each answers its share; the first scores, and all of
    them return the same.

    Raises:
        TrialError: something that the benchmark needs is not there, or its judge does not answer.
    """
    made = answer(context, side, settings)
    if isinstance(made, Evaluation):
        return made
    answers = made
    return current().broadcast_from_rank0(
        lambda: score_answers(
            answers,
            side,
            settings,
            folder=context.folder,
            places=context.places,
            report=context.report,
        )
    )
