"""POPE: is this object in the picture, yes or no, over three ways to sample absent objects.

Folder: `coco_pope_SPLIT.json` (or in `coco/` or `output/coco/`), as published.

Rules of the official evaluate.py (AoiDragon/POPE). Positive class is yes; figures are fractions.
Under `corrected` answers are read by `verdicts`; one without a verdict is neither, and wrong.

| metric      | numerator of an item     | denominator of an item        |
|-------------|--------------------------|-------------------------------|
| `accuracy`  | 1 if right               | 1                             |
| `precision` | 1 if yes and right       | 1 if yes                      |
| `recall`    | 1 if yes and right       | 1 if the label is yes         |
| `f1`        | 2 if yes and right       | (is yes) + (label is yes)     |
| `yes_ratio` | 1 if yes                 | 1                             |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.published import pope_names
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.unreadable import unreadable
from chip_core.utils.errors import UserError

SPLITS = ("random", "popular", "adversarial")
#: The form of the benchmark's questions.
QUESTION_PATTERN = re.compile(
    r"\s*(?:Is|Are) there (?:an?|any|the|some)?\s*(.{1,60}?)\s+in the (?:image|picture|photo)",
    re.IGNORECASE,
)
METRIC_NAMES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclass(frozen=True, kw_only=True)
class _LabelledQuestion:
    label: str  # "yes", "no"
    object_name: str | None  # None if the question has another form than the benchmark's


@dataclass(frozen=True, kw_only=True)
class _LabelledAnswer:
    """An answer and its label; an official answer past the last label has none."""

    item: str
    verdict: str | None  # "yes", "no", None: neither
    response: str
    label: str | None  # "yes", "no"


class PopeScorer(FileBenchmark):
    """Scores answers to POPE."""

    name = "pope"
    version = "pope-2"
    needs = frozenset({"data"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    response_keys = ("response", "answer", "text")
    metrics: Mapping[str, MetricInfo] = {
        f"{split}/{figure}": MetricInfo(
            unit="fraction", goal="minimize" if figure == "yes_ratio" else "maximize"
        )
        for split in SPLITS
        for figure in METRIC_NAMES
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read a folder of answers_SPLIT.jsonl, or one file with items SPLIT/QUESTION_ID."""
        if not path.is_dir():
            return super().read_responses(path)
        files = {split: path / f"answers_{split}.jsonl" for split in SPLITS}
        if not any(file.is_file() for file in files.values()):
            raise UserError(f"{path} holds none of {', '.join(f.name for f in files.values())}")
        return [
            Answer(
                item=f"{split}/{row.id('question_id')}"
                if row.has("question_id")
                else f"{split}/row {number}",
                response=row.text("answer", "response", "text"),
            )
            for split, file in files.items()
            if file.is_file()
            for number, row in enumerate(reading.read_rows(file), start=1)
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score answers of any of the splits against coco_pope_SPLIT.json in `data`."""
        self.require_protocol(protocol)
        reading.require_answers(answers, self.name)
        questions = {split: self._load_questions(data, split, resources) for split in SPLITS}
        if protocol == "official":
            pairs = _pair_by_position(answers, questions, is_limited=resources.only is not None)
        else:
            pairs = _pair_by_id(answers, questions)
        items: dict[str, list[ItemOutcome]] = {}
        official: dict[str, float] = {}
        for split, split_pairs in pairs.items():
            items |= _collect_items(split, split_pairs)
            if protocol == "official":
                official |= _compute_official(split, split_pairs)
        scored = sum(
            pair.label is not None for split_pairs in pairs.values() for pair in split_pairs
        )
        return ScoreResult(
            metrics=aggregation.build_metrics(
                self.metrics, items, official if protocol == "official" else None
            ),
            n=scored,
            missing=sum(map(len, questions.values())) - scored,
            unreadable=tuple(
                unreadable(pair.item, pair.response)
                for split_pairs in pairs.values()
                for pair in split_pairs
                if pair.verdict is None
            ),
        )

    def _load_questions(
        self, data: Path | None, split: str, resources: Resources
    ) -> dict[str, _LabelledQuestion]:
        rows = self.read_rows(data, *pope_names(split))
        return {
            item: _LabelledQuestion(
                label="no" if row.text("label") == "no" else "yes",
                object_name=_parse_object(row.values.get("text")),
            )
            for item, row in reading.iter_unique_rows(
                rows, lambda row: f"{split}/{row.id('question_id')}"
            )
            if resources.selects(item)
        }


def parse_as_script(answer: str) -> str:
    """Read an answer as the official script does: no, if its first sentence says so, else yes.

    The words are those between single spaces, and only these three spellings count.
    """
    first = answer.split(".")[0].replace(",", "")
    return "no" if {"No", "not", "no"} & set(first.split(" ")) else "yes"


def _parse_object(question: object) -> str | None:
    """Return the object of a question: a snowboard in "Is there a snowboard in the image?"."""
    match = QUESTION_PATTERN.match(question) if isinstance(question, str) else None
    return None if match is None else match[1]


def _parse_split(answer: Answer) -> str:
    split = answer.item.partition("/")[0]
    if split not in SPLITS:
        raise UserError(
            f"pope: '{answer.item}' is not the id of a question: it must be SPLIT/QUESTION_ID, "
            f"SPLIT one of {', '.join(SPLITS)}"
        )
    return split


def _pair_by_position(
    answers: Sequence[Answer],
    questions: Mapping[str, Mapping[str, _LabelledQuestion]],
    *,
    is_limited: bool,
) -> dict[str, list[_LabelledAnswer]]:
    """Pair the n-th answer of a split with its n-th label, whatever their ids."""
    ids = {split: list(split_questions) for split, split_questions in questions.items()}
    pairs: dict[str, list[_LabelledAnswer]] = {}
    for answer in answers:
        split = _parse_split(answer)
        split_pairs = pairs.setdefault(split, [])
        index = len(split_pairs)
        item = ids[split][index] if index < len(ids[split]) else f"{split}/row {index + 1}"
        if is_limited:  # for a subset of questions the script gets the labels of that subset
            item = answer.item
        question = questions[split].get(item)
        split_pairs.append(
            _LabelledAnswer(
                item=item,
                verdict=parse_as_script(answer.response),
                response=answer.response,
                label=None if question is None else question.label,
            )
        )
    return {split: pairs[split] for split in SPLITS if split in pairs}


def _pair_by_id(
    answers: Sequence[Answer], questions: Mapping[str, Mapping[str, _LabelledQuestion]]
) -> dict[str, list[_LabelledAnswer]]:
    # Imported here: its patterns take a tenth of a second to compile.
    from chip_core.evaluation.text.verdicts import read_verdict

    questions_by_id = {
        item: split_question
        for split in SPLITS
        for item, split_question in questions[split].items()
    }
    answers_by_id = reading.answers_by_item(answers, questions_by_id, "pope")
    pairs: dict[str, list[_LabelledAnswer]] = {}
    for item, question in questions_by_id.items():
        if item in answers_by_id:
            response = answers_by_id[item].response
            verdict = read_verdict(response, question.object_name)
            pairs.setdefault(item.partition("/")[0], []).append(
                _LabelledAnswer(item=item, verdict=verdict, response=response, label=question.label)
            )
    return pairs


def _collect_items(split: str, pairs: Sequence[_LabelledAnswer]) -> dict[str, list[ItemOutcome]]:
    shares: dict[str, Callable[[bool, bool, bool], tuple[int, int]]] = {
        "accuracy": lambda yes, true, right: (right, 1),
        "precision": lambda yes, true, right: (yes and true, yes),
        "recall": lambda yes, true, right: (yes and true, true),
        "f1": lambda yes, true, right: (2 * (yes and true), yes + true),
    }
    labelled = [pair for pair in pairs if pair.label is not None]
    items = {
        f"{split}/{figure}": [
            aggregation.make_outcome(
                pair.item,
                *share(pair.verdict == "yes", pair.label == "yes", pair.verdict == pair.label),
                group=split,
            )
            for pair in labelled
        ]
        for figure, share in shares.items()
    }
    items[f"{split}/yes_ratio"] = [
        aggregation.make_outcome(pair.item, pair.verdict == "yes", group=split) for pair in pairs
    ]
    return items


def _compute_official(split: str, pairs: Sequence[_LabelledAnswer]) -> dict[str, float]:
    """Return the official figures, each by the official order of operations."""
    labelled = [(pair.verdict == "yes", pair.label == "yes") for pair in pairs if pair.label]
    true_positives = sum(verdict and is_true for verdict, is_true in labelled)
    predicted_yes = sum(verdict for verdict, _ in labelled)
    true_yes = sum(is_true for _, is_true in labelled)
    for denominator, reason in (
        (predicted_yes, "no answer is read as yes, so its precision"),
        (true_yes, "no label is yes, so its recall"),
        (true_positives, "no answer is correctly yes, so its F1"),
    ):
        if not denominator:
            raise UserError(
                f"pope/{split}: {reason} divides by zero and the official script gives no figure; "
                "protocol corrected gives those that are defined"
            )
    precision, recall = true_positives / predicted_yes, true_positives / true_yes
    values = {
        "accuracy": sum(verdict == is_true for verdict, is_true in labelled) / len(labelled),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": sum(pair.verdict == "yes" for pair in pairs) / len(pairs),
    }
    return {f"{split}/{figure}": value for figure, value in values.items()}
