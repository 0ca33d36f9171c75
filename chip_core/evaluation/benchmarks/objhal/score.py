"""Object HalBench: a judge lists the objects that a description names; COCO has those in the image.

Source: arXiv 2312.00849; the script is eval_gpt_obj_halbench.py with summarize_…_review.py of
RLHF-V/RLHF-V and LVUGAI/CHiP. Answers: rows of `image_id`, `question` (or `prompt`) and `answer`
(or `text`, `response`). Benchmark folder: synonyms_refine.txt; the questions in an
obj_halbench_300*.jsonl, if there is one, count missing answers.

| metric                   | numerator of a description          | denominator of one             |
|--------------------------|-------------------------------------|--------------------------------|
| `response_hallucination` | 1 if any object is not there        | 1 if any COCO object is named  |
| `object_hallucination`   | named objects that are not there    | named objects, each word once  |
| `object_recall`          | objects of the image that are named | objects of the image           |
| `average_length`         | words                               | 1                              |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation.aggregation import (
    build_metrics,
    compute_printed_values,
    compute_rate,
    make_outcome,
)
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.coco import (
    ObjectNames,
    build_joined_words,
    read_ground_truth,
    read_names,
)
from chip_core.evaluation.benchmarks.objhal.judge import (
    PROMPT,
    SCRIPT,
    VARIABLE,
    UnreadableReplyError,
    make_request,
    read_reply,
    read_reply_as_script,
)
from chip_core.evaluation.judge.prompts import read_published_template
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.reading import (
    FileRow,
    read_objects,
    read_rows,
    require_text_responses,
    require_unique_answers,
)
from chip_core.evaluation.scorer import Answer, Judge, ProtocolName, Resources, ScoreResult, Tagger
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.text.language import (
    NltkTagger,
    lemmatize_noun,
    nltk_problems,
    require_tools,
    tokenize_words,
)
from chip_core.evaluation.unreadable import Unreadable, unreadable
from chip_core.utils.errors import UserError

#: The script sends no judge an answer of so few words, and assumes that it names no object.
MAX_UNASKED_WORDS = 3


class ObjectHalBenchScorer(FileBenchmark):
    """Scores descriptions by objects that a judge lists."""

    name = "objhal"
    version = "objhal-2"
    needs = frozenset({"data", "coco", "judge", "nltk"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected", "chip"})
    metrics: Mapping[str, MetricInfo] = {
        "response_hallucination": MetricInfo(unit="percent", goal="minimize"),
        "object_hallucination": MetricInfo(unit="percent", goal="minimize"),
        "object_recall": MetricInfo(unit="percent", goal="maximize"),
        "average_length": MetricInfo(unit="words", goal="maximize"),
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `image_id` (or `item`), `question` and `answer`."""
        return [_to_answer(row) for row in read_rows(path)]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score descriptions; `chip` is `official`, which is the paper's own script."""
        self.require_protocol(protocol)
        folder = self.require_folder(data)
        corrected = protocol == "corrected"
        require_tools(nltk_problems(), self.name)
        if resources.judge is None:
            raise UserError(
                "objhal: a judge is needed: --judge-replies FILE, or a judge in the study"
            )
        if corrected:
            require_unique_answers(answers, self.name)
        else:
            require_text_responses(answers, self.name)
        category = read_names(folder / "synonyms_refine.txt", strip=True)
        pairs = [name for name in category if len(name.split(" ")) >= 2]
        names = ObjectNames(category=category, joined=build_joined_words(pairs))
        truth = read_ground_truth(
            resources.coco,
            (answer.item for answer in answers),
            names,
            lambda caption: _caption_categories(caption, names),
            official=not corrected,
            scorer=self.name,
        )
        if corrected:
            truth.require_known(answers, self.name)
        questions = _load_questions(folder)
        answers = [_normalize_answer(answer, questions) for answer in answers]
        prompt = read_published_template(folder, [SCRIPT], VARIABLE) or PROMPT
        listed, unreadable_replies = _list_objects(answers, resources.judge, prompt, corrected)
        tagger = resources.tagger or NltkTagger()
        items: dict[str, list[ItemOutcome]] = {name: [] for name in self.metrics}
        described = [
            (answer, objects)
            for answer, objects in zip(answers, listed, strict=True)
            if objects is not None
        ]
        for answer, objects in described:
            # The script ends a word at each single space.
            words = answer.response.split(None if corrected else " ")
            named_words = names.objects(_find_named(objects, names, tagger))
            true_objects = truth.get_objects(answer.item)
            wrong_count = sum(category[word] not in true_objects for word in named_words)
            named_true_objects = {category[word] for word in named_words} & true_objects
            for name, numerator, denominator in (
                ("response_hallucination", wrong_count > 0, len(named_words) > 0),
                ("object_hallucination", wrong_count, len(named_words)),
                ("object_recall", len(named_true_objects), len(true_objects)),
                ("average_length", len(words), 1),
            ):
                items[name].append(make_outcome(answer.item, numerator, denominator))
        expected_items = resources.only or questions.keys() | {answer.item for answer in answers}
        printed_values = None
        if not corrected:
            printed_values = compute_printed_values(self.metrics, items, digits=2, scorer=self.name)
            _check_script_summary(items)
        return ScoreResult(
            metrics=build_metrics(self.metrics, items, printed_values),
            n=len(described),
            missing=len(expected_items - {answer.item for answer, _ in described}),
            unreadable=tuple(unreadable_replies),
        )


def _to_answer(row: FileRow) -> Answer:
    image = row.get("image_id", "item")
    try:
        image = int(image)
    except (TypeError, ValueError):
        raise UserError(f"{row.location}: image_id {image!r} is not a whole number") from None
    text = row.get("text", "response", "answer")
    fields: dict[str, Any] = {"question": row.get("prompt", "question")}
    if not isinstance(text, str):
        fields["response"] = text
    return Answer(item=str(image), response=text if isinstance(text, str) else "", fields=fields)


def _normalize_answer(answer: Answer, questions: Mapping[str, str]) -> Answer:
    """Return an answer as the script reads it, with its question."""
    question = answer.fields.get("question", questions.get(answer.item, ""))
    return Answer(
        item=answer.item,
        response=answer.response.replace("Assistant:", "").strip(),
        fields={**answer.fields, "question": str(question)},
    )


def _list_objects(
    answers: Sequence[Answer], judge: Judge, prompt: str, corrected: bool
) -> tuple[list[list[Any] | None], list[Unreadable]]:
    """Return the objects that the judge lists for each answer, None if it fails; unread replies.

    Raises:
        UserError: it fails where the official script would stop.
    """
    max_unasked_words = 0 if corrected else MAX_UNASKED_WORDS
    asked_indices = [
        index
        for index, answer in enumerate(answers)
        if len(answer.response.split()) > max_unasked_words
    ]
    replies = judge.ask(
        [
            make_request(
                prompt,
                answers[index].item,
                answers[index].fields["question"],
                answers[index].response,
            )
            for index in asked_indices
        ]
    )
    listed: list[list[Any] | None] = [
        None if "response" in answer.fields else [] for answer in answers
    ]
    parse: Callable[[str | None], list[Any]] = read_reply if corrected else read_reply_as_script
    unreadable_replies: list[Unreadable] = []
    for index, reply in zip(asked_indices, replies, strict=True):
        try:
            listed[index] = parse(reply)
        except UnreadableReplyError as error:
            if not corrected:
                raise UserError(
                    f"objhal: answer {index + 1} (image {answers[index].item}): {error}, at which "
                    "the official script stops; --protocol corrected counts it as missing"
                ) from None
            listed[index] = None
            if reply is not None:
                unreadable_replies.append(unreadable(answers[index].item, reply, "reply"))
    return listed, unreadable_replies


def _find_named(objects: Sequence[Any], names: ObjectNames, tagger: Tagger) -> list[str]:
    """Return the words for the listed objects, each once.

    From an object with a pair that is read as one word, only the pairs are taken; from any other,
    its runs of nouns.
    """
    names_found: list[str] = []
    for object_name in objects:
        tokens = tagger(f"a {object_name}")
        pairs = names.join([token.lemma for token in tokens], pairs_only=True)
        names_found += pairs or _noun_runs([(token.tag, token.lemma) for token in tokens])
    return list(dict.fromkeys(names_found))


def _noun_runs(tokens: Sequence[tuple[str, str]]) -> list[str]:
    runs: list[list[str]] = [[]]
    for tag, word in tokens:
        if tag in ("NN", "NNS", "NNP", "NNPS"):
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _caption_categories(caption: str, names: ObjectNames) -> list[str]:
    joined = names.join([lemmatize_noun(word) for word in tokenize_words(caption.lower())])
    return [names.category[word] for word in names.objects(joined)]


def _load_questions(data: Path) -> dict[str, str]:
    """Return the benchmark's questions by image id, if the file exists."""
    files = sorted(data.glob("obj_halbench_300*.jsonl"))
    rows = read_objects(files[0]) if files else []
    return {
        str(row.get("image_id")): str(row.get("question", row.get("prompt", ""))) for row in rows
    }


def _check_script_summary(items: Mapping[str, Sequence[ItemOutcome]]) -> None:
    """Raise if the script's summary, which prints the figures, divides by zero."""
    if (
        compute_rate(items["object_hallucination"]) == 1
        and compute_rate(items["object_recall"]) == 0
    ):
        raise UserError(
            "objhal: every named object is wrong: the official summary divides by zero (its F1) "
            "and stops; --protocol corrected gives the figures"
        )
