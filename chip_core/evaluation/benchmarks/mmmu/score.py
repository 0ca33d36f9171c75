"""MMMU (validation): college-level questions of 30 subjects, multiple-choice or open.

Folder: `answer_dict_val.json`, as published, and for responses without their options the data set's
`SUBJECT/validation-*.parquet`.

Rules of the official main_eval_only.py and main_parse_and_eval.py (MMMU-Benchmark/MMMU). Figures
are fractions, rounded to three decimals as printed; an item is a question, right or not.

Answers have two forms, as there: *final* ones (one JSON object of id → letter or open answer),
whose letter is used as it is, and *responses* with their options, in which the letter is searched;
if none is found, one is drawn with seed 42, subject by subject in the official order.
"""

from __future__ import annotations

import ast
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from chip_core.evaluation import aggregation, reading
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.mmmu import parsing
from chip_core.evaluation.benchmarks.published import MMMU_ANSWERS
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
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
CHOICE = "multiple-choice"
SEED = 42
#: The letters of a final answer under `corrected`, whose options are unknown.
LETTERS = "ABCDEFGHIJ"


class MmmuScorer(FileBenchmark):
    """Scores answers to MMMU."""

    name = "mmmu"
    version = "mmmu-2"
    needs = frozenset({"data"})
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
            output_files = [file for file in files if file.is_file()]
            if not output_files:
                raise UserError(f"{path} holds no SUBJECT/output.json")
            return [_to_answer(row) for file in output_files for row in reading.read_rows(file)]
        pairs = _read_json_object(path)
        if pairs is None:
            return [_to_answer(row) for row in reading.read_rows(path)]
        rows = [
            reading.FileRow(location=f"{path} '{item}'", values={"id": item, "response": response})
            for item, response in pairs
        ]
        return [
            Answer(item=row.id("id"), response=row.text("response"), fields={"final": True})
            for row in rows
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score final answers or responses.

        A response to a multiple-choice question has `all_choices` and `index2ans` in its fields, or
        `options`; otherwise they are read from the benchmark's validation-*.parquet in `data`.
        """
        self.require_protocol(protocol)
        reading.require_answers(answers, self.name)
        folder = self.require_folder(data)
        truths = _load_truths(folder, resources)
        official = protocol == "official"
        if official:
            # The last of repeated final answers counts, as in any JSON object.
            reading.require_unique_answers(
                [answer for answer in answers if not answer.fields.get("final")], self.name
            )
            answers_by_id = {answer.item: answer for answer in answers}
        else:
            answers_by_id = reading.answers_by_item(answers, truths, self.name)
        questions = _group_by_subject(answers_by_id, truths)
        random_generator = random.Random(SEED) if official else None
        read_published = cache(partial(_read_published_options, folder))
        is_right: dict[str, bool] = {}
        unreadable_answers: list[Unreadable] = []
        for item in itertools.chain.from_iterable(questions.values()):
            is_readable, is_right[item] = _judge_answer(
                answers_by_id[item], truths[item], read_published, random_generator
            )
            if not is_readable:
                unreadable_answers.append(unreadable(item, answers_by_id[item].response))
        items = _collect_items(questions, is_right, include_empty=not official)
        return ScoreResult(
            metrics=aggregation.build_metrics(
                self.metrics, items, _compute_official(items) if official else None
            ),
            n=len(is_right),
            missing=len(truths) - len(is_right),
            unreadable=tuple(unreadable_answers),
        )


def _get_options(
    answer: Answer, read_published: Callable[[], Mapping[str, list[str]]]
) -> tuple[list[str], dict[str, str]]:
    """Return the letters of a question and the text of each.

    Raises:
        UserError: neither the answer nor the folder has them.
    """
    fields = answer.fields
    if "all_choices" in fields and "index2ans" in fields:
        return list(fields["all_choices"]), dict(fields["index2ans"])
    if "options" in fields:
        texts = parse_options(fields["options"])
    elif answer.item in (published := read_published()):
        texts = published[answer.item]
    else:
        raise UserError(
            f"mmmu: '{answer.item}' is a response without its options: give all_choices and "
            "index2ans in its row, or put validation-*.parquet into the benchmark's folder; final "
            "answers are one JSON object of id and letter"
        )
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    return letters, dict(zip(letters, texts, strict=True))


def _read_published_options(data: Path) -> dict[str, list[str]]:
    """Return each question's options, by the benchmark's parquet files."""
    import pyarrow.parquet as parquet

    return {
        row["id"]: parse_options(row["options"])
        for file in sorted(data.glob("**/validation-*.parquet"))
        for row in parquet.read_table(file, columns=["id", "options"]).to_pylist()
    }


def _read_json_object(path: Path) -> list[tuple[str, Any]] | None:
    """Return the pairs of a file that is one JSON object of ids; None if it has rows.

    It returns pairs, not a dict, because the protocol decides on repeated ids.
    """
    try:
        pairs = json.loads(path.read_bytes(), object_pairs_hook=tuple)
    except (OSError, ValueError, RecursionError):
        return None  # rows, or nothing: reading them reports the problem
    is_object = isinstance(pairs, tuple) and all(isinstance(pair, tuple) for pair in pairs)
    return list(pairs) if is_object and "id" not in dict(pairs) else None


def parse_options(options: Any) -> list[str]:
    """Return options as a list; the benchmark stores the list as Python source."""
    try:
        parsed = ast.literal_eval(options) if isinstance(options, str) else list(options)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        parsed = None  # including values that are nested too deep
    if not isinstance(parsed, list) or not all(isinstance(option, str) for option in parsed):
        raise UserError(f"mmmu: options must be a list of texts, got {str(options)[:60]}")
    return parsed


def _to_answer(row: reading.FileRow) -> Answer:
    fields = {
        key: row.values[key] for key in ("all_choices", "index2ans", "options") if row.has(key)
    }
    if not isinstance(fields.get("all_choices", []), list) or not fields.get("all_choices", [""]):
        raise UserError(f"{row.location}: all_choices must be a list of letters")
    texts = fields.get("index2ans", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise UserError(f"{row.location}: index2ans must give a text for each letter")
    return Answer(item=row.id("id", "item"), response=row.text("response"), fields=fields)


def _load_truths(data: Path, resources: Resources) -> dict[str, Mapping[str, Any]]:
    path = reading.find_file(data, MMMU_ANSWERS, "mmmu")
    truths = reading.read_json(path)
    if not isinstance(truths, dict):
        raise UserError(f"{path} must be a JSON object of id and answer")
    for item, truth in truths.items():
        if not isinstance(truth, dict) or not {"question_type", "ground_truth"} <= truth.keys():
            raise UserError(f"{path}: '{item}' has no question_type or no ground_truth")
    return {item: truth for item, truth in truths.items() if resources.selects(item)}


def _group_by_subject(
    answers_by_id: Mapping[str, Answer], truths: Mapping[str, object]
) -> dict[str, list[str]]:
    """Return the answered items of each subject; ids of no subject are skipped, as there."""
    subjects: dict[str, list[str]] = {subject: [] for subject in SUBJECTS}
    known_subjects = {_parse_subject(item) for item in truths}
    for item in answers_by_id:
        subject = _parse_subject(item)
        if subject not in subjects or subject not in known_subjects:
            continue
        if item not in truths:
            raise UserError(
                f"mmmu: '{item}' is not the id of a question, and the official script stops there"
            )
        subjects[subject].append(item)
    return {subject: items for subject, items in subjects.items() if items}


def _parse_subject(item: str) -> str:
    return "_".join(item.split("_")[1:-1])


def _judge_answer(
    answer: Answer,
    truth: Mapping[str, Any],
    read_published: Callable[[], Mapping[str, list[str]]],
    random_generator: random.Random | None,
) -> tuple[bool, bool]:
    """Return whether an answer can be read, and whether it is right.

    Args:
        answer: a final answer or a response.
        truth: the question's kind and answer.
        read_published: returns the questions' options in the benchmark's folder.
        random_generator: under `official` draws a letter if none is found; None under `corrected`.
    """
    response, truths = answer.response, truth["ground_truth"]
    is_final = answer.fields.get("final")
    if truth["question_type"] != CHOICE:
        read_open = parsing.parse_open if random_generator is not None else parsing.read_open
        meanings = read_open(response)
        return bool(meanings), parsing.is_open_answer_right(truths, meanings)
    if random_generator is None:
        # Imported here: its patterns take a tenth of a second to compile.
        from chip_core.evaluation.text.letters import read_letter

        texts = dict.fromkeys(LETTERS, "") if is_final else _get_options(answer, read_published)[1]
        choice = read_letter(response, texts)
        return choice is not None, parsing.is_choice_right(truths, choice)
    if is_final:
        return True, parsing.is_choice_right(truths, response)
    choices, texts = _get_options(answer, read_published)
    choice = parsing.parse_choice(response, choices, texts)
    is_readable = choice is not None
    if choice is None:
        choice = random_generator.choice(choices)
    return is_readable, parsing.is_choice_right(truths, choice)


def _collect_items(
    questions: Mapping[str, Sequence[str]], is_right: Mapping[str, bool], *, include_empty: bool
) -> dict[str, list[ItemOutcome]]:
    """Return each metric's items; of a subject without answers only if `include_empty`."""
    outcomes_by_subject = {
        subject: [
            aggregation.make_outcome(item, is_right[item], group=subject)
            for item in questions.get(subject, ())
        ]
        for subject in SUBJECTS
    }
    return {
        "accuracy": list(itertools.chain.from_iterable(outcomes_by_subject.values())),
        **{
            f"domain/{domain}": [
                outcome for subject in subjects for outcome in outcomes_by_subject[subject]
            ]
            for domain, subjects in DOMAINS.items()
        },
        **{
            f"subject/{subject}": outcomes_by_subject[subject]
            for subject in SUBJECTS
            if outcomes_by_subject[subject] or include_empty
        },
    }


def _compute_official(items: Mapping[str, Sequence[ItemOutcome]]) -> dict[str, float]:
    """Return the figures as printed; sums go over subjects, and a domain without answers is 0."""

    def accuracy(subjects: Sequence[str]) -> float:
        shares = [items[f"subject/{name}"] for name in subjects if f"subject/{name}" in items]
        total = sum(map(len, shares))
        right = sum(
            sum(outcome.numerator for outcome in share) / len(share) * len(share)
            for share in shares
        )
        return round(right / total, 3) if total else 0.0

    return {
        "accuracy": accuracy(SUBJECTS),
        **{f"domain/{domain}": accuracy(subjects) for domain, subjects in DOMAINS.items()},
        **{
            name: round(sum(outcome.numerator for outcome in share) / len(share), 3)
            for name, share in items.items()
            if name.startswith("subject/")
        },
    }
