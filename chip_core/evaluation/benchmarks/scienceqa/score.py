"""ScienceQA (test): multiple choice.

Folder: `problems.json` and `pid_splits.json` (or in `data/scienceqa/`), as published.

Rules of LLaVA's eval_science_qa.py for reading an answer and for the two accuracies, and of the
benchmark's own evaluate_acc.py (lupantech/ScienceQA) for the parts. A letter is read if the answer
is that letter alone, begins with "X. ", or says "The answer is X." exactly once; under `corrected`
it is read by `letters`.

All are in percent, two decimals as printed; an item is a question, right or not.

| metric             | questions                                                       |
|--------------------|-----------------------------------------------------------------|
| `accuracy`         | all; one without an answer is wrong                           |
| `image_accuracy`   | those with `<image>` in their prompt, or, without one, an image |
| `subject/…`        | natural, social, language science                             |
| `context/…`        | with a hint (text), with an image, with neither               |
| `grade/…`          | grades 1–6, 7–12                                              |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.published import read_scienceqa_split, scienceqa_names
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.unreadable import Unreadable, unreadable
from chip_core.utils.errors import UserError

LETTERS = "ABCDE"
IMAGE = "<image>"
Problem = Mapping[str, Any]

#: The questions of each part of the benchmark.
PARTS: Mapping[str, Callable[[Problem], bool]] = {
    "subject/natural": lambda problem: problem["subject"] == "natural science",
    "subject/social": lambda problem: problem["subject"] == "social science",
    "subject/language": lambda problem: problem["subject"] == "language science",
    "context/text": lambda problem: bool(problem["hint"]),
    "context/image": lambda problem: bool(problem["image"]),
    "context/none": lambda problem: not problem["hint"] and not problem["image"],
    "grade/1-6": lambda problem: problem["grade"] in {f"grade{n}" for n in range(1, 7)},
    "grade/7-12": lambda problem: problem["grade"] in {f"grade{n}" for n in range(7, 13)},
}
FIELDS = ("choices", "answer", "subject", "hint", "image", "grade")


class ScienceQaScorer(FileBenchmark):
    """Scores answers to ScienceQA."""

    name = "scienceqa"
    version = "scienceqa-2"
    needs = frozenset({"data"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        name: MetricInfo(unit="percent", goal="maximize")
        for name in ("accuracy", "image_accuracy", *PARTS)
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of question_id, text, and prompt if it is present."""
        return [
            Answer(
                item=row.id("question_id", "item"),
                response=row.text("text", "response"),
                fields={"prompt": row.text("prompt")} if row.has("prompt") else {},
            )
            for row in reading.read_rows(path)
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score answers to the test split of problems.json."""
        # Imported here: its patterns take a tenth of a second to compile.
        from chip_core.evaluation.text.letters import read_letter

        self.require_protocol(protocol)
        reading.require_answers(answers, self.name)
        problems = load_problems(self.require_folder(data), resources)
        official = protocol == "official"
        if official:  # the last answer counts, a missing one is wrong, unknown ids are skipped
            answers_by_id = {answer.item: answer for answer in answers if answer.item in problems}
            scored = problems
        else:
            answers_by_id = reading.answers_by_item(answers, problems, self.name)
            scored = {item: problem for item, problem in problems.items() if item in answers_by_id}
        items: dict[str, list[ItemOutcome]] = {name: [] for name in self.metrics}
        unreadable_answers: list[Unreadable] = []
        for item, problem in scored.items():
            answer, letter = answers_by_id.get(item), None
            if answer is not None:
                letter = (
                    parse_as_script(answer.response)
                    if official
                    else read_letter(answer.response, _options(problem))
                )
                if letter is None:
                    unreadable_answers.append(unreadable(item, answer.response))
            is_right = letter is not None and LETTERS.index(letter) == problem["answer"]
            outcome = aggregation.make_outcome(item, is_right, group=problem["subject"])
            items["accuracy"].append(outcome)
            if _has_image(answer, problem) if official else problem["image"]:
                items["image_accuracy"].append(outcome)
            for part, is_in_part in PARTS.items():
                if is_in_part(problem):
                    items[part].append(outcome)
        if official and not items["image_accuracy"]:
            raise UserError(
                "scienceqa: no answered question has an image, and the official script divides "
                "by their number; protocol corrected does not"
            )
        values = aggregation.compute_values(self.metrics, items, 2 if official else None)
        return ScoreResult(
            metrics=aggregation.build_metrics(self.metrics, items, values),
            n=len(scored),
            missing=len(problems) - len(answers_by_id),
            unreadable=tuple(unreadable_answers),
        )


def parse_as_script(answer: str) -> str | None:
    """Return the letter of an answer that is one, begins with one, or names exactly one."""
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if answer[1:3] == ". " and answer[0] in LETTERS:
        return answer[0]
    letters = re.findall(r"The answer is ([A-Z]).", answer)
    return letters[0] if len(letters) == 1 and letters[0] in LETTERS else None


def _options(problem: Problem) -> dict[str, str]:
    """Return the text of each letter; all letters if the problem's choices are not texts."""
    choices = problem["choices"]
    if not isinstance(choices, list) or not choices:
        return dict.fromkeys(LETTERS, "")
    return dict(zip(LETTERS, map(str, choices), strict=False))


def _has_image(answer: Answer | None, problem: Problem) -> bool:
    """Whether a question counts as one with an image: by its prompt, if it is known."""
    if answer is None:
        return False
    if "prompt" in answer.fields:
        return IMAGE in answer.fields["prompt"]
    return bool(problem["image"])


def load_problems(data: Path, resources: Resources) -> dict[str, Problem]:
    """Return the problems of the test split."""
    split = read_scienceqa_split(data)
    problems_file = reading.find_file(data, scienceqa_names("problems.json"), "scienceqa")
    problems = reading.read_json(problems_file)
    if not isinstance(problems, dict):
        raise UserError(f"{problems_file} must be a JSON object of id and problem")
    test_problems: dict[str, Problem] = {}
    for item in map(str, split):
        problem = problems.get(item)
        if not isinstance(problem, dict) or not all(key in problem for key in FIELDS):
            raise UserError(
                f"{problems_file}: problem '{item}' must be there with {', '.join(FIELDS)}"
            )
        if resources.selects(item):
            test_problems[item] = problem
    return test_problems
