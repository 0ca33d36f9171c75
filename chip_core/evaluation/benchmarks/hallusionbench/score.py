"""HallusionBench: yes/no questions on a figure, asked again of edited figures and of none.

Folder: `HallusionBench.json`, as published.

Rules of the official evaluation.py and utils.py (tianyi-lab/HallusionBench). Each answer has a
verdict: 1 right, 0 wrong, 2 unclear. VD questions need their figure; VS questions can be asked
without one (figure 0), and being unclear is right there.

| metric                 | an item is           | numerator               | denominator          |
|------------------------|----------------------|-------------------------|----------------------|
| `a_acc`                | a question           | 1 if right              | 1                    |
| `q_acc`                | one question over all its figures | 1 if all right | 1               |
| `easy_a_acc`           | the same, over figures that are not edited | ″     | 1               |
| `hard_a_acc`           | the same, over edited figures              | ″     | 1               |
| `f_acc`, `consistency/correct` | a figure     | 1 if all its questions are right | 1           |
| `consistency/wrong`    | a figure             | 1 if none is            | 1                    |
| `consistency/inconsistent` | a figure         | 1 if some are           | 1                    |
| `yes_no_bias_pct_diff` | a question           | (says yes) − (is yes)   | 1                    |
| `yes_no_bias_fp_ratio` | a question           | 1 if wrong and no is right | 1 if wrong        |
| `diagnosis/CAUSE`      | a question           | 1 if it failed for CAUSE | 1 if it failed      |

Under `corrected` the easy and hard accuracies count questions, not sets of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.hallusionbench import aggregation as hallusion_aggregation
from chip_core.evaluation.benchmarks.hallusionbench import judge as judge_module
from chip_core.evaluation.benchmarks.hallusionbench.aggregation import Question
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import MetricInfo
from chip_core.utils.errors import UserError

QUESTIONS = "HallusionBench.json"
KEY = ("category", "subcategory", "set_id", "figure_id", "question_id")
TRUTH = ("visual_input", "gt_answer")
TEXTS = ("question", "gt_answer_details")
#: A verdict's name in our cases and in the official script's own files.
VERDICTS = ("verdict", "gpt4v_output_gpt_check")


class HallusionBenchScorer(FileBenchmark):
    """Scores answers to HallusionBench by a judge."""

    name = "hallusionbench"
    version = "hallusionbench-2"
    needs = frozenset({"data", "judge"})  # no judge if the answers have verdicts
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected", "chip"})
    metrics: Mapping[str, MetricInfo] = {
        **{
            name: MetricInfo(unit="percent", goal="maximize")
            for name in ("q_acc", "f_acc", "easy_a_acc", "hard_a_acc", "a_acc")
        },
        "yes_no_bias_pct_diff": MetricInfo(unit="fraction", goal="minimize"),
        "yes_no_bias_fp_ratio": MetricInfo(unit="fraction", goal="minimize"),
        "consistency/correct": MetricInfo(unit="percent", goal="maximize"),
        "consistency/inconsistent": MetricInfo(unit="percent", goal="minimize"),
        "consistency/wrong": MetricInfo(unit="percent", goal="minimize"),
        **{
            f"diagnosis/{cause}": MetricInfo(unit="percent", goal="minimize")
            for cause in hallusion_aggregation.CAUSES
        },
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read the benchmark's rows with model_prediction, and verdict and same if present."""
        return [_to_answer(row) for row in reading.read_rows(path)]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score answers by their verdicts; a judge gives missing ones.

        `chip` is `official` with the paper's clean-up of an answer before it is judged.
        """
        self.require_protocol(protocol)
        reading.require_answers(answers, self.name)
        folder = self.require_folder(data)
        file_rows = self.read_rows(folder, QUESTIONS)
        rows = {
            item: row.values
            for item, row in reading.iter_unique_rows(file_rows, make_item_id)
            if resources.selects(item)
        }
        corrected = protocol == "corrected"
        if corrected:
            reading.answers_by_item(answers, rows, self.name)
        else:
            reading.require_unique_answers(
                answers, self.name, "the official script stops there: keep one"
            )
        questions = {
            answer.item: _make_question(
                answer.item, rows.get(answer.item, {}), {} if corrected else answer.fields
            )
            for answer in answers
        }
        judged, failed, unreadable_replies = judge_module.judge(
            answers, questions, rows, data=folder, protocol=protocol, resources=resources
        )
        if corrected:
            items = hallusion_aggregation.corrected_items(
                judged, [_make_question(item, row, {}) for item, row in rows.items()]
            )
            values = None
        else:
            judged = [
                judged_answer
                for judged_answer in judged
                if judged_answer.question.category in ("VD", "VS")
            ]
            items = hallusion_aggregation.official_items(judged)
            values = hallusion_aggregation.official_values(judged, items)
        return ScoreResult(
            metrics=aggregation.build_metrics(self.metrics, items, values),
            n=len(judged),
            missing=sum(item not in questions for item in rows) + failed,
            unreadable=unreadable_replies,
        )


def _to_answer(row: reading.FileRow) -> Answer:
    verdict = next((row.id(key) for key in VERDICTS if row.has(key)), None)
    has_response = verdict is None or row.has("model_prediction", "response")
    fields = {key: row.id(key) for key in (*KEY, *TRUTH, "same") if row.has(key)}
    fields |= {key: row.text(key) for key in TEXTS if row.has(key)}
    return Answer(
        item=make_item_id(row) if row.has(*KEY) else row.id("item"),
        response=row.text("model_prediction", "response") if has_response else "",
        fields=fields if verdict is None else fields | {"verdict": verdict},
    )


def make_item_id(row: reading.FileRow) -> str:
    """Return the id of a row's question: its key's parts joined."""
    return "_".join(row.id(key) for key in KEY)


def _make_question(item: str, row: Mapping[str, Any], answer_fields: Mapping[str, Any]) -> Question:
    """Return a question from the benchmark's row, or (the official way) from the answer's row."""
    values = {**row, **answer_fields}
    for key in (*KEY, *TRUTH):
        if key not in values:
            raise UserError(
                f"hallusionbench: '{item}' is not the id of a question of the benchmark, and its "
                f"row has no {key}"
            )
    if str(values["gt_answer"]) not in ("0", "1"):
        raise UserError(f"hallusionbench: '{item}': gt_answer must be 0 or 1")
    texts = {key: str(values[key]) for key in (*KEY, "visual_input")}
    return Question(**texts, truth=int(values["gt_answer"]))
