"""Score MMMU (validation): college-level questions of 30 subjects, multiple-choice or open.

Rules of the official main_eval_only.py and main_parse_and_eval.py (MMMU-Benchmark/MMMU). Figures
are fractions, rounded to three decimals as printed; an item is a question, right or not.

Answers have two forms, as there: *final* ones (one JSON object of id → letter or open answer),
whose letter is used as it is, and *responses* with their options, in which the letter is searched;
if none is found, one is drawn with seed 42, subject by subject in the official order.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.mmmu import parsing
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.reading import require_unique_answers
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
from chip_core.evaluation.unreadable import Unreadable, unreadable
from chip_core.utils.errors import UserError

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
#: In the order of the official scripts.
SUBJECTS = sorted(subject for subjects in DOMAINS.values() for subject in subjects)
ANSWERS = ("answer_dict_val.json", "mmmu/answer_dict_val.json")
CHOICE = "multiple-choice"
SEED = 42
#: The letters of a final answer under `corrected`, whose options are unknown.
LETTERS = "ABCDEFGHIJ"


class MmmuScorer:
    """MMMU's validation questions."""

    name = "mmmu"
    version = "mmmu-2"
    needs: frozenset[Need] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        name: MetricInfo(unit="fraction", goal="maximize")
        for name in (
            "accuracy",
            *(f"domain/{domain}" for domain in DOMAINS),
            *(f"subject/{subject}" for subject in SUBJECTS),
        )
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read final answers (one JSON object), rows, or a folder of SUBJECT/output.json."""
        if path.is_dir():
            files = [path / subject / "output.json" for subject in SUBJECTS]
            found = [file for file in files if file.is_file()]
            if not found:
                raise UserError(f"{path} holds no SUBJECT/output.json")
            return [_answer(row) for file in found for row in reading.read_rows(file)]
        pairs = _object(path)
        if pairs is None:
            return [_answer(row) for row in reading.read_rows(path)]
        rows = [
            reading.FileRow(location=f"{path} '{item}'", values={"id": item, "response": said})
            for item, said in pairs
        ]
        return [
            Answer(item=row.id("id"), response=row.text("response"), fields={"final": True})
            for row in rows
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score final answers or responses.

        A response to a multiple-choice question has `all_choices` and `index2ans` in its fields, or
        `options`; otherwise they are read from the benchmark's validation-*.parquet in `data`.
        """
        require_protocol(self, protocol)
        reading.require_answers(answers, self.name)
        truths = _truths(data, resources)
        official = protocol == "official"
        if official:
            # The last of repeated final answers counts, as in any JSON object.
            require_unique_answers(
                [answer for answer in answers if not answer.fields.get("final")], self.name
            )
            given = {answer.item: answer for answer in answers}
        else:
            given = reading.answers_by_item(answers, truths, self.name)
        questions = _by_subject(given, truths)
        options = _Options(data)
        draw = random.Random(SEED) if official else None
        right: dict[str, bool] = {}
        unread: list[Unreadable] = []
        for item in (item for found in questions.values() for item in found):
            read, right[item] = _judged(given[item], truths[item], options, draw)
            if not read:
                unread.append(unreadable(item, given[item].response))
        items = _items(questions, right, every=not official)
        return Scored(
            metrics=aggregation.build_metrics(
                self.metrics, items, _official(items) if official else None
            ),
            n=len(right),
            missing=len(truths) - len(right),
            unreadable=tuple(unread),
        )


class _Options:
    """Each question's options, read from the benchmark's parquet files when first needed."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._found: dict[str, list[str]] | None = None

    def of(self, answer: Answer) -> tuple[list[str], dict[str, str]]:
        """Return the letters of a question and the text of each.

        Raises:
            UserError: neither the answer nor the folder has them.
        """
        fields = answer.fields
        if "all_choices" in fields and "index2ans" in fields:
            return list(fields["all_choices"]), dict(fields["index2ans"])
        texts = _listed(fields["options"]) if "options" in fields else self._published(answer.item)
        letters = [chr(ord("A") + place) for place in range(len(texts))]
        return letters, dict(zip(letters, texts, strict=True))

    def _published(self, item: str) -> list[str]:
        if self._found is None:
            self._found = {}
            for file in sorted(self._data.glob("**/validation-*.parquet")):
                import pyarrow.parquet as parquet

                table = parquet.read_table(file, columns=["id", "options"])
                for row in table.to_pylist():
                    self._found[row["id"]] = _listed(row["options"])
        if item not in self._found:
            raise UserError(
                f"mmmu: '{item}' is a response without its options: give all_choices and index2ans "
                f"in its row, or put the benchmark's validation-*.parquet into {self._data}; final "
                "answers are one JSON object of id and letter"
            )
        return self._found[item]


def _object(path: Path) -> list[tuple[str, Any]] | None:
    """Return the pairs of a file that is one JSON object of ids; None if it has rows.

    It returns pairs, not a dict, because the protocol decides on repeated ids.
    """
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=tuple)
    except (OSError, ValueError, RecursionError):
        return None  # rows, or nothing: reading them reports the problem
    named = isinstance(found, tuple) and all(isinstance(pair, tuple) for pair in found)
    return list(found) if named and "id" not in dict(found) else None


def _listed(options: Any) -> list[str]:
    """Return options as a list; the benchmark stores the list as Python source."""
    try:
        found = ast.literal_eval(options) if isinstance(options, str) else list(options)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found = None  # including values that are nested too deep
    if not isinstance(found, list) or not all(isinstance(option, str) for option in found):
        raise UserError(f"mmmu: options must be a list of texts, got {str(options)[:60]}")
    return found


def _answer(row: reading.FileRow) -> Answer:
    fields = {
        key: row.values[key] for key in ("all_choices", "index2ans", "options") if row.has(key)
    }
    if not isinstance(fields.get("all_choices", []), list) or not fields.get("all_choices", [""]):
        raise UserError(f"{row.location}: all_choices must be a list of letters")
    texts = fields.get("index2ans", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise UserError(f"{row.location}: index2ans must give a text for each letter")
    return Answer(item=row.id("id", "item"), response=row.text("response"), fields=fields)


def _truths(data: Path, resources: Resources) -> dict[str, Mapping[str, Any]]:
    path = reading.find_file(data, ANSWERS, "mmmu")
    truths = reading.read_json(path)
    if not isinstance(truths, dict):
        raise UserError(f"{path} must be a JSON object of id and answer")
    for item, truth in truths.items():
        if not isinstance(truth, dict) or not {"question_type", "ground_truth"} <= truth.keys():
            raise UserError(f"{path}: '{item}' has no question_type or no ground_truth")
    return {
        item: truth
        for item, truth in truths.items()
        if resources.only is None or item in resources.only
    }


def _by_subject(given: Mapping[str, Answer], truths: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the answered items of each subject; ids of no subject are skipped, as there."""
    subjects: dict[str, list[str]] = {subject: [] for subject in SUBJECTS}
    known = {_subject(item) for item in truths}
    for item in given:
        subject = _subject(item)
        if subject not in subjects or subject not in known:
            continue
        if item not in truths:
            raise UserError(
                f"mmmu: '{item}' is the id of no question, and the official script stops there"
            )
        subjects[subject].append(item)
    return {subject: items for subject, items in subjects.items() if items}


def _subject(item: str) -> str:
    return "_".join(item.split("_")[1:-1])


def _judged(
    answer: Answer, truth: Mapping[str, Any], options: _Options, draw: random.Random | None
) -> tuple[bool, bool]:
    """Return whether an answer can be read, and whether it is right.

    Args:
        answer: a final answer or a response.
        truth: the question's kind and answer.
        options: the questions' options.
        draw: under `official` draws a letter if none is found; None under `corrected`.
    """
    response, wanted = answer.response, truth["ground_truth"]
    final = answer.fields.get("final")
    if truth["question_type"] != CHOICE:
        read_open = parsing.parse_open if draw is not None else parsing.read_open
        meanings = read_open(response)
        return bool(meanings), parsing.right_open(wanted, meanings)
    if draw is None:
        # Imported here: its patterns take a tenth of a second to compile.
        from chip_core.evaluation.text.letters import read_letter

        texts = dict.fromkeys(LETTERS, "") if final else dict(options.of(answer)[1])
        choice = read_letter(response, texts)
        return choice is not None, parsing.right_choice(wanted, choice)
    if final:
        return True, parsing.right_choice(wanted, response)
    choices, texts = options.of(answer)
    choice = parsing.parse_choice(response, choices, texts)
    read = choice is not None
    if choice is None:
        choice = draw.choice(choices)
    return read, parsing.right_choice(wanted, choice)


def _items(
    questions: Mapping[str, Sequence[str]], right: Mapping[str, bool], *, every: bool
) -> dict[str, list[ItemOutcome]]:
    """Return each metric's items; of a subject without answers only if `every` one is wanted."""
    of = {
        subject: [
            aggregation.make_outcome(item, right[item], group=subject)
            for item in questions.get(subject, ())
        ]
        for subject in SUBJECTS
    }
    return {
        "accuracy": [outcome for subject in SUBJECTS for outcome in of[subject]],
        **{
            f"domain/{domain}": [outcome for subject in subjects for outcome in of[subject]]
            for domain, subjects in DOMAINS.items()
        },
        **{f"subject/{subject}": of[subject] for subject in SUBJECTS if of[subject] or every},
    }


def _official(items: Mapping[str, Sequence[ItemOutcome]]) -> dict[str, float]:
    """Return the figures as printed; sums go over subjects, and a domain without answers is 0."""

    def accuracy(subjects: Sequence[str]) -> float:
        shares = [items[f"subject/{name}"] for name in subjects if f"subject/{name}" in items]
        whole = sum(map(len, shares))
        right = sum(
            sum(outcome.numerator for outcome in share) / len(share) * len(share)
            for share in shares
        )
        return round(right / whole, 3) if whole else 0.0

    return {
        "accuracy": accuracy(SUBJECTS),
        **{f"domain/{domain}": accuracy(subjects) for domain, subjects in DOMAINS.items()},
        **{
            name: round(sum(outcome.numerator for outcome in share) / len(share), 3)
            for name, share in items.items()
            if name.startswith("subject/")
        },
    }


SCORERS.register("mmmu")(MmmuScorer())
