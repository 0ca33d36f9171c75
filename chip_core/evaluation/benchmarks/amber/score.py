"""AMBER: descriptions against annotated objects, and yes/no questions on hallucinations.

Folder, as in the repository: `annotations.json`, `relation.json`, `safe_words.txt` (or all of these
in `data/`).

Source: arXiv 2311.07397, inference.py of junyangwang0410/AMBER. Answers: rows of `id` and
`response`. The questions' kinds are groups: `generative`, `existence`, `attribute/state`,
`attribute/number`, `attribute/action`, `relation`.

| metric        | numerator of an item               | denominator of an item                |
|---------------|------------------------------------|---------------------------------------|
| `chair`       | hallucinated nouns                 | nouns of the vocabulary               |
| `cover`       | annotated objects that are named   | annotated objects                     |
| `hal`         | 1 if any noun is hallucinated      | 1                                     |
| `cog`         | official: targets that are named   | official: targets                     |
|               | corrected: nouns that are a target | corrected: nouns of the vocabulary    |
| `accuracy`    | 1 if the answer is right           | 1                                     |
| `precision`   | 1 if "no" is said and right        | 1 if "no" is said                     |
| `recall`      | 1 if "no" is said and right        | 1 if "no" is right                    |
| `f1`          | 2 if "no" is said and right        | precision's and recall's denominators |
| `amber_score` | (100 − chair + f1) / 2: not a ratio of sums, so without items              |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.evaluation.aggregation import make_outcome
from chip_core.evaluation.benchmarks.amber import aggregation
from chip_core.evaluation.benchmarks.amber.nouns import (
    MIN_SIMILARITY,
    Counts,
    WordLists,
    count_as_script,
    count_corrected,
)
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.reading import (
    read_answers,
    read_json,
    require_unique_answers,
)
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult, Similarity
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.text.language import (
    lemmatize_noun,
    nltk_problems,
    require_tools,
    tag_tokens,
    tokenize_words,
)
from chip_core.evaluation.text.similarity import SpacySimilarity
from chip_core.evaluation.unreadable import unreadable
from chip_core.utils.errors import UserError

#: Kind of a question in annotations.json -> its group; every other kind is a relation.
GROUPS = {
    "generative": "generative",
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute/state",
    "discriminative-attribute-number": "attribute/number",
    "discriminative-attribute-action": "attribute/action",
}


@dataclass(frozen=True, kw_only=True)
class _AnnotatedQuestion:
    id: int
    group: str
    truth: Any  # "yes" or "no"; of a description, the objects that are there
    targets: Sequence[str] = ()


class AmberScorer(FileBenchmark):
    """Scores answers to AMBER."""

    name = "amber"
    version = "amber-2"
    needs = frozenset({"data", "similarity", "nltk"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected", "chip"})
    metrics: Mapping[str, MetricInfo] = aggregation.METRICS

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `id` (or `item`) and `response`, as JSON or JSON lines."""
        return read_answers(path, ("id", "item"), ("response",))

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score answers to the generative questions, the discriminative ones, or both.

        `chip` is the official reading of the answer after surrounding spaces are stripped.
        """
        self.require_protocol(protocol)
        folder = self.require_folder(data)
        if not (folder / "annotations.json").exists():
            folder = folder / "data"
        questions = _load_questions(folder / "annotations.json")
        answered = [
            _find_question(answer, number, questions) for number, answer in enumerate(answers, 1)
        ]
        corrected = protocol == "corrected"
        if corrected:
            require_unique_answers(answers, self.name)
        else:
            _check_script_input(answers, answered)
        pairs = [
            (question, answer.response.strip() if protocol == "chip" else answer.response)
            for question, answer in zip(answered, answers, strict=True)
            if not (corrected and "response" in answer.fields)
        ]
        items: dict[str, list[ItemOutcome]] = defaultdict(list)
        described = [pair for pair in pairs if pair[0].group == "generative"]
        if described:
            noun_counter = _NounCounter(folder, resources.similarity, corrected)
            for question, response in described:
                _add_description(items, question, noun_counter.count(question, response))
        yes_no_pairs = [pair for pair in pairs if pair[0].group != "generative"]
        verdicts = [_read_answer(response, corrected) for _, response in yes_no_pairs]
        for (question, _), verdict in zip(yes_no_pairs, verdicts, strict=True):
            _add_yes_or_no(items, question, verdict)
        answered_ids = {question.id for question, _ in pairs}
        groups = {
            question.id: question.group
            for item, question in questions.items()
            if resources.selects(item)
        }
        metrics = (
            aggregation.compute_corrected_metrics(items)
            if corrected
            else aggregation.compute_official_metrics(
                items, aggregation.detect_evaluation_type(answered_ids, groups)
            )
        )
        return ScoreResult(
            metrics=metrics,
            n=len(pairs),
            missing=len(groups.keys() - answered_ids),
            unreadable=tuple(
                unreadable(str(question.id), response)
                for (question, response), verdict in zip(yes_no_pairs, verdicts, strict=True)
                if not verdict
            ),
        )


class _NounCounter:
    """Counts the nouns of descriptions."""

    def __init__(self, folder: Path, similarity: Similarity | None, corrected: bool) -> None:
        require_tools(nltk_problems(), "amber")
        self._lists = _load_word_lists(folder)
        self._vocabulary = self._lists.vocabulary
        self._similarity = similarity or SpacySimilarity()
        self._corrected = corrected

    def count(self, question: _AnnotatedQuestion, response: str) -> Counts:
        tokens = tokenize_words(response)
        nouns = [
            lemmatize_noun(word.lower() if self._corrected else word)
            for word, tag in zip(tokens, tag_tokens(tokens), strict=True)
            if tag.startswith("NN")
        ]
        unknown = [
            word
            for word in [*question.truth, *question.targets]
            if word not in self._lists.associations
        ]
        if unknown:
            raise UserError(f"amber: relation.json has no '{unknown[0]}' (question {question.id})")
        return (count_corrected if self._corrected else count_as_script)(
            (noun for noun in nouns if noun in self._vocabulary),
            question.truth,
            question.targets,
            self._lists,
            lambda first, second: self._similarity(first, second) > MIN_SIMILARITY,
        )


def _load_questions(file: Path) -> dict[str, _AnnotatedQuestion]:
    questions = {}
    try:
        for row in read_json(file):
            group = GROUPS.get(row["type"], "relation")
            targets = row["hallu"] if group == "generative" else ()
            questions[str(row["id"])] = _AnnotatedQuestion(
                id=row["id"], group=group, truth=row["truth"], targets=targets
            )
    except (KeyError, TypeError):
        raise UserError(f"{file}: not AMBER's annotations (id, type, truth of each)") from None
    return questions


def _load_word_lists(folder: Path) -> WordLists:
    safe = folder / "safe_words.txt"
    if not safe.exists():
        raise UserError(f"{safe}: there is no such file")
    return WordLists(
        associations=read_json(folder / "relation.json"),
        safe=frozenset(safe.read_text(encoding="utf-8").split("\n")),
    )


def _find_question(
    answer: Answer, number: int, questions: Mapping[str, _AnnotatedQuestion]
) -> _AnnotatedQuestion:
    try:
        return questions[answer.item]
    except KeyError:
        raise UserError(
            f"amber: answer {number}: id {answer.item!r} is not a question of AMBER "
            f"({len(questions)} questions, ids from 1)"
        ) from None


def _check_script_input(answers: Sequence[Answer], questions: Sequence[_AnnotatedQuestion]) -> None:
    for number, (answer, question) in enumerate(zip(answers, questions, strict=True), start=1):
        if "id" in answer.fields:
            raise UserError(
                f"amber: answer {number}: id {answer.fields['id']!r} is not a whole number, at "
                "which the official script stops"
            )
        if question.group == "generative" and "response" in answer.fields:
            raise UserError(
                f"amber: answer {number} (id {question.id}): the response is not text, at which "
                "the official script stops; --protocol corrected counts it as missing"
            )


def _read_answer(response: str, corrected: bool) -> str:
    """Return "yes", "no" or "": the official script accepts `Yes` and `No` only."""
    if not corrected:
        return {"Yes": "yes", "No": "no"}.get(response, "")
    # Imported here: its patterns take a tenth of a second to compile.
    from chip_core.evaluation.text.verdicts import read_verdict

    return read_verdict(response) or ""


def _add_description(
    items: dict[str, list[ItemOutcome]], question: _AnnotatedQuestion, counts: Counts
) -> None:
    for name, numerator, denominator in (
        ("chair", counts.hallucinated, counts.nouns),
        ("cover", counts.covered, counts.objects),
        ("hal", not counts.clean, 1),
        ("cog", counts.expected, counts.expected_of),
    ):
        items[name].append(make_outcome(str(question.id), numerator, denominator, question.group))


def _add_yes_or_no(
    items: dict[str, list[ItemOutcome]], question: _AnnotatedQuestion, verdict: str
) -> None:
    """Add to a question's own part; questions are about hallucinations, so "no" is positive."""
    is_no, said_no = question.truth != "yes", verdict == "no"
    is_right = verdict == ("no" if is_no else "yes")
    true_positive = is_no and said_no
    for name, numerator, denominator in (
        ("accuracy", is_right, 1),
        ("precision", true_positive, said_no),
        ("recall", true_positive, is_no),
        ("f1", 2 * true_positive, said_no + is_no),
    ):
        items[f"{question.group}/{name}"].append(
            make_outcome(str(question.id), numerator, denominator, question.group)
        )
