"""LLaVA-Bench (In-the-Wild): a judge rates each of 60 answers beside a reference answer.

Folder: `questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl` and `rule.json`, as published.

Rules of LLaVA's eval_gpt_review_bench.py and summarize_gpt_review.py. The judge sees a description
of the image, the question, the reference (first) and the answer, and gives two numbers on its first
line. Its instruction is the benchmark's own text, from `rule.json`.

| metric                        | unit    | numerator of an item | denominator of an item |
|-------------------------------|---------|----------------------|------------------------|
| `relative_score[/CATEGORY]`   | percent | the answer's rating  | the reference's rating |
| `answer_score[/CATEGORY]`     | points  | 10 × its rating      | 1                      |
| `reference_score[/CATEGORY]`  | points  | 10 × its rating      | 1                      |

The categories are conv, detail and complex.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.judge import prompts
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.scorer import Answer, JudgeRequest, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.text.reply_ratings import read_pair
from chip_core.utils.errors import UserError

CATEGORIES = ("conv", "detail", "complex")
#: The judge's system message, in our own words.
SYSTEM = "You check the quality of answers, helpfully and precisely."
KINDS: Mapping[str, MetricInfo] = {
    "relative_score": MetricInfo(unit="percent", goal="maximize"),
    "answer_score": MetricInfo(unit="points", goal="maximize"),
    "reference_score": MetricInfo(unit="points", goal="maximize"),
}


@dataclass(frozen=True, kw_only=True)
class _Question:
    """All that a judge sees of a question, except the answer."""

    item: str
    category: str
    question: str
    description: str
    reference: str
    rule: str
    role: str


@dataclass(frozen=True, kw_only=True)
class _RatedAnswer:
    """The two ratings of a question: the reference's and the answer's."""

    question: _Question
    reference: float
    answer: float


class LlavaBenchScorer(FileBenchmark):
    """Scores answers to LLaVA-Bench by a judge."""

    name = "llava_bench"
    version = "llava_bench-2"
    needs = frozenset({"data", "judge"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        name: info
        for kind, info in KINDS.items()
        for name in (kind, *(f"{kind}/{category}" for category in CATEGORIES))
    }
    item_keys = ("question_id", "item")
    response_keys = ("text", "response")

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Let a judge rate the answers beside answers_gpt4.jsonl."""
        self.require_protocol(protocol)
        reading.require_answers(answers, self.name)
        questions = self._load_questions(self.require_folder(data), resources)
        official = protocol == "official"
        if official and resources.only is None:
            # The official script pairs by position, whatever the ids.
            pairs = list(zip(questions.values(), answers, strict=False))
        else:
            answers_by_id = reading.answers_by_item(answers, questions, self.name)
            pairs = [
                (questions[item], answers_by_id[item])
                for item in questions
                if item in answers_by_id
            ]
        requests = [_make_request(question, answer.response) for question, answer in pairs]
        replies = prompts.read_replies(
            prompts.ask_judge(resources, requests, self.name),
            parse_as_script if official else read_pair,
        )
        rated = [
            _RatedAnswer(question=questions[item], reference=reference, answer=answer)
            for item, (reference, answer) in replies.values.items()
        ]
        return ScoreResult(
            metrics=aggregation.build_metrics(
                self.metrics, _collect_items(rated), _compute_official(rated) if official else None
            ),
            n=len(rated),
            missing=len(questions) - len(pairs) + replies.failed,
            unreadable=replies.unreadable,
        )

    def _load_questions(self, data: Path, resources: Resources) -> dict[str, _Question]:
        """Return the questions in order; the reference answers pair with them by position."""
        question_rows = self.read_rows(data, "questions.jsonl")
        references = self.read_rows(data, "answers_gpt4.jsonl")
        if len(question_rows) != len(references):
            raise UserError(
                f"llava_bench: {len(question_rows)} questions.jsonl rows and {len(references)} of "
                "answers_gpt4.jsonl: the benchmark's files do not belong together"
            )
        contexts = {row.id("image"): row for row in self.read_rows(data, "context.jsonl")}
        rules_file = reading.find_file(data, ["rule.json"], self.name)
        rules = reading.read_json(rules_file)
        questions: dict[str, _Question] = {}
        items = reading.iter_unique_rows(question_rows, lambda row: row.id("question_id"))
        for (item, row), reference in zip(items, references, strict=True):
            category = row.text("category")
            rule = rules.get(f"llava_bench_{category}") if isinstance(rules, dict) else None
            if category not in CATEGORIES or not isinstance(rule, dict):
                raise UserError(
                    f"{row.location}: category '{category}' has no rule in {rules_file}"
                )
            if row.id("image") not in contexts:
                raise UserError(
                    f"{row.location}: context.jsonl says nothing about image {row.id('image')}"
                )
            rule_row = reading.FileRow(location=f"{rules_file} llava_bench_{category}", values=rule)
            question = _Question(
                item=item,
                category=category,
                question=row.text("text"),
                description=_format_description(contexts[row.id("image")]),
                reference=reference.text("text"),
                rule=rule_row.text("prompt"),
                role=rule_row.text("role"),
            )
            if resources.selects(item):
                questions[item] = question
        return questions


def parse_as_script(reply: str) -> tuple[float, float]:
    """Return the two numbers of a reply's first line, commas read as spaces; −1 and −1 if none.

    The numbers must be one space apart: "8, 9" is not read, "8 9" and "8,9" are.
    """
    numbers = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, answer = map(float, numbers)
    except ValueError:
        return -1.0, -1.0
    return reference, answer


def _format_description(row: reading.FileRow) -> str:
    caption = row.values.get("caption")
    return "\n".join(map(str, caption)) if isinstance(caption, list) else row.text("caption")


def _make_request(question: _Question, answer: str) -> JudgeRequest:
    """Build the judge's prompt as the official script does: headed parts, the rule last."""
    first_name, second_name = f"{question.role} 1", f"{question.role} 2"
    parts = [
        f"[Context]\n{question.description}",
        f"[Question]\n{question.question}",
        f"[{first_name}]\n{question.reference}\n\n[End of {first_name}]",
        f"[{second_name}]\n{answer}\n\n[End of {second_name}]",
        f"[System]\n{question.rule}\n\n",
    ]
    messages = (
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n\n".join(parts)},
    )
    return JudgeRequest(item=question.item, messages=messages, temperature=0.2, max_tokens=1024)


def _collect_items(rated: Sequence[_RatedAnswer]) -> dict[str, list[ItemOutcome]]:
    items: dict[str, list[ItemOutcome]] = {name: [] for name in LlavaBenchScorer.metrics}
    for rated_answer in rated:
        item, category = rated_answer.question.item, rated_answer.question.category
        shares = {
            "relative_score": (rated_answer.answer, rated_answer.reference),
            "answer_score": (10 * rated_answer.answer, 1.0),
            "reference_score": (10 * rated_answer.reference, 1.0),
        }
        for kind, share in shares.items():
            outcome = aggregation.make_outcome(item, *share, group=category)
            items[kind].append(outcome)
            items[f"{kind}/{category}"].append(outcome)
    return items


def _compute_official(rated: Sequence[_RatedAnswer]) -> dict[str, float | None]:
    """Return the figures as printed: means to three decimals, then their ratio to one."""
    values: dict[str, float | None] = {}
    for category in (None, *CATEGORIES):
        selected = [
            rated_answer
            for rated_answer in rated
            if category in (None, rated_answer.question.category)
        ]
        suffix = f"/{category}" if category else ""
        if not selected:
            values |= {f"{kind}{suffix}": None for kind in KINDS}
            continue
        answer = round(sum(rated_answer.answer for rated_answer in selected) / len(selected), 3)
        reference = round(
            sum(rated_answer.reference for rated_answer in selected) / len(selected), 3
        )
        if not reference or not math.isfinite(reference + answer):
            raise UserError(
                f"llava_bench{suffix}: the mean ratings are {reference} (reference) and {answer}: "
                "the official script has no figure for them"
            )
        values[f"relative_score{suffix}"] = round(answer / reference * 100, 1)
        values[f"answer_score{suffix}"] = round(answer * 10, 1)
        values[f"reference_score{suffix}"] = round(reference * 10, 1)
    return values
