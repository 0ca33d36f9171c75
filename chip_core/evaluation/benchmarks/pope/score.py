"""Score POPE: is this object in the picture, yes or no, over three ways to sample absent objects.

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
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.scorer import (
    SCORERS,
    Answer,
    Need,
    ProtocolName,
    Resources,
    Scored,
    require_protocol,
)
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.unreadable import unreadable
from chip_core.utils.errors import UserError

SPLITS = ("random", "popular", "adversarial")
#: The form of the benchmark's questions.
ASKED = re.compile(
    r"\s*(?:Is|Are) there (?:an?|any|the|some)?\s*(.{1,60}?)\s+in the (?:image|picture|photo)",
    re.IGNORECASE,
)
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclass(frozen=True, kw_only=True)
class _Question:
    label: str  # "yes", "no"
    thing: str | None  # None if the question has another form than the benchmark's


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """An answer and its label; an official answer past the last label has none."""

    item: str
    said: str | None  # "yes", "no", None: neither
    response: str
    label: str | None  # "yes", "no"


class PopeScorer:
    """POPE's three splits."""

    name = "pope"
    version = "pope-2"
    needs: frozenset[Need] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        f"{split}/{figure}": MetricInfo(
            unit="fraction", goal="minimize" if figure == "yes_ratio" else "maximize"
        )
        for split in SPLITS
        for figure in FIGURES
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read a folder of answers_SPLIT.jsonl, or one file with items SPLIT/QUESTION_ID."""
        if not path.is_dir():
            return [
                Answer(item=row.id("item", "id"), response=row.text("response", "answer", "text"))
                for row in reading.read_rows(path)
            ]
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
        data: Path,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score answers of any of the splits against coco_pope_SPLIT.json in `data`."""
        require_protocol(self, protocol)
        reading.require_answers(answers, self.name)
        questions = {split: _questions(data, split, resources) for split in SPLITS}
        labels = {
            split: {item: question.label for item, question in found.items()}
            for split, found in questions.items()
        }
        if protocol == "official":
            pairs = _by_position(answers, labels, limited=resources.only is not None)
        else:
            pairs = _by_id(answers, questions)
        items: dict[str, list[ItemOutcome]] = {}
        official: dict[str, float] = {}
        for split, found in pairs.items():
            items |= _items(split, found)
            if protocol == "official":
                official |= _official(split, found)
        scored = sum(pair.label is not None for found in pairs.values() for pair in found)
        return Scored(
            metrics=aggregation.build_metrics(
                self.metrics, items, official if protocol == "official" else None
            ),
            n=scored,
            missing=sum(map(len, labels.values())) - scored,
            unreadable=tuple(
                unreadable(pair.item, pair.response)
                for found in pairs.values()
                for pair in found
                if pair.said is None
            ),
        )


def read_officially(answer: str) -> str:
    """Read an answer as the official script does: no, if its first sentence says so, else yes.

    The words are those between single spaces, and only these three spellings count.
    """
    first = answer.split(".")[0].replace(",", "")
    return "no" if {"No", "not", "no"} & set(first.split(" ")) else "yes"


def _questions(data: Path, split: str, resources: Resources) -> dict[str, _Question]:
    file = f"coco_pope_{split}.json"
    path = reading.find_file(data, [file, f"coco/{file}", f"output/coco/{file}"], "pope")
    rows = reading.iter_unique_rows(
        reading.read_rows(path), lambda row: f"{split}/{row.id('question_id')}"
    )
    return {
        item: _Question(
            label="no" if row.text("label") == "no" else "yes", thing=_thing(row.values.get("text"))
        )
        for item, row in rows
        if resources.only is None or item in resources.only
    }


def _thing(question: object) -> str | None:
    """Return the object of a question: a snowboard in "Is there a snowboard in the image?"."""
    asked = ASKED.match(question) if isinstance(question, str) else None
    return None if asked is None else asked[1]


def _split(answer: Answer) -> str:
    split = answer.item.partition("/")[0]
    if split not in SPLITS:
        raise UserError(
            f"pope: '{answer.item}' is the id of no question: it must be SPLIT/QUESTION_ID, "
            f"SPLIT one of {', '.join(SPLITS)}"
        )
    return split


def _by_position(
    answers: Sequence[Answer], labels: Mapping[str, Mapping[str, str]], *, limited: bool
) -> dict[str, list[_Pair]]:
    """Pair the n-th answer of a split with its n-th label, whatever their ids."""
    ids = {split: list(found) for split, found in labels.items()}
    pairs: dict[str, list[_Pair]] = {}
    for answer in answers:
        split = _split(answer)
        found = pairs.setdefault(split, [])
        place = len(found)
        item = ids[split][place] if place < len(ids[split]) else f"{split}/row {place + 1}"
        if limited:  # for a subset of questions the script gets the labels of that subset
            item = answer.item
        found.append(
            _Pair(
                item=item,
                said=read_officially(answer.response),
                response=answer.response,
                label=labels[split].get(item),
            )
        )
    return {split: pairs[split] for split in SPLITS if split in pairs}


def _by_id(
    answers: Sequence[Answer], questions: Mapping[str, Mapping[str, _Question]]
) -> dict[str, list[_Pair]]:
    # Imported here: its patterns take a tenth of a second to compile.
    from chip_core.evaluation.text.verdicts import read_verdict

    known = {item: asked for split in SPLITS for item, asked in questions[split].items()}
    by_item = reading.answers_by_item(answers, known, "pope")
    pairs: dict[str, list[_Pair]] = {}
    for item, question in known.items():
        if item in by_item:
            response = by_item[item].response
            said = read_verdict(response, question.thing)
            pairs.setdefault(item.partition("/")[0], []).append(
                _Pair(item=item, said=said, response=response, label=question.label)
            )
    return pairs


def _items(split: str, pairs: Sequence[_Pair]) -> dict[str, list[ItemOutcome]]:
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
                *share(pair.said == "yes", pair.label == "yes", pair.said == pair.label),
                group=split,
            )
            for pair in labelled
        ]
        for figure, share in shares.items()
    }
    items[f"{split}/yes_ratio"] = [
        aggregation.make_outcome(pair.item, pair.said == "yes", group=split) for pair in pairs
    ]
    return items


def _official(split: str, pairs: Sequence[_Pair]) -> dict[str, float]:
    """Return the official figures, each by the official order of operations."""
    labelled = [(pair.said == "yes", pair.label == "yes") for pair in pairs if pair.label]
    hits = sum(said and true for said, true in labelled)
    said_yes = sum(said for said, _ in labelled)
    true_yes = sum(true for _, true in labelled)
    for whole, what in (
        (said_yes, "no answer is read as yes, so its precision"),
        (true_yes, "no label is yes, so its recall"),
        (hits, "no answer is rightly yes, so its F1"),
    ):
        if not whole:
            raise UserError(
                f"pope/{split}: {what} divides by zero and the official script gives no figure; "
                "protocol corrected gives those that are defined"
            )
    precision, recall = hits / said_yes, hits / true_yes
    found = {
        "accuracy": sum(said == true for said, true in labelled) / len(labelled),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": sum(pair.said == "yes" for pair in pairs) / len(pairs),
    }
    return {f"{split}/{figure}": value for figure, value in found.items()}


SCORERS.register("pope")(PopeScorer())
