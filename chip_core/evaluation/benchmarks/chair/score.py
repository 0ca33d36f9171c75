"""CHAIR by rule: objects that captions name against the objects in COCO's images.

Source: arXiv 1809.02156; the script is Maxlinn/CHAIR-metric-standalone, chair.py. Answers: rows of
`image_id` and `caption`. Benchmark folder: `synonyms.txt`.

| metric    | numerator of a caption             | denominator of a caption |
|-----------|------------------------------------|--------------------------|
| `chair_s` | 1 if any object is not there       | 1                        |
| `chair_i` | mentions of objects not there      | mentions of objects      |
| `recall`  | objects of the image that are named| objects of the image     |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chip_core.evaluation.aggregation import build_metrics, compute_printed_values, make_outcome
from chip_core.evaluation.benchmarks.base import FileBenchmark
from chip_core.evaluation.benchmarks.coco import (
    ObjectNames,
    build_joined_words,
    read_ground_truth,
    read_names,
)
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.reading import (
    read_answers,
    require_text_responses,
    require_unique_answers,
)
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import MetricInfo
from chip_core.evaluation.text.language import (
    nltk_problems,
    require_tools,
    singularize_word,
    tokenize_words,
)
from chip_core.utils.errors import UserError

#: The pairs that the script reads as one word, even if they are not among its synonyms.
PAIRS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal",
    "stop light", "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "bow tie", "laptop computer",
    "stove top oven",
)  # fmt: skip


class ChairScorer(FileBenchmark):
    """Scores descriptions by rule CHAIR."""

    name = "chair"
    version = "chair-2"
    needs = frozenset({"data", "coco", "nltk"})
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        "chair_s": MetricInfo(unit="percent", goal="minimize"),
        "chair_i": MetricInfo(unit="percent", goal="minimize"),
        "recall": MetricInfo(unit="percent", goal="maximize"),
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `image_id` (or `item`) and `caption` (or `response`)."""
        return read_answers(path, ("image_id", "item"), ("caption", "response"))

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score captions; an image with two captions counts twice under `official`."""
        self.require_protocol(protocol)
        require_tools(nltk_problems(("punkt_tab",)), self.name)
        corrected = protocol == "corrected"
        names, find_categories = make_object_reader(self.require_folder(data), corrected=corrected)
        if corrected:
            require_unique_answers(answers, self.name)
        else:
            _require_script_images(answers)
            require_text_responses(answers, self.name)
        truth = read_ground_truth(
            resources.coco,
            (answer.item for answer in answers),
            names,
            find_categories,
            official=not corrected,
            scorer=self.name,
        )
        if corrected:
            truth.require_known(answers, self.name)
        scored_answers = [
            answer for answer in answers if not (corrected and "response" in answer.fields)
        ]
        items: dict[str, list[ItemOutcome]] = {name: [] for name in self.metrics}
        for answer in scored_answers:
            true_objects = truth.get_objects(answer.item)
            mentions = find_categories(answer.response)
            wrong_count = sum(category not in true_objects for category in mentions)
            for name, numerator, denominator in (
                ("chair_s", wrong_count > 0, 1),
                ("chair_i", wrong_count, len(mentions)),
                ("recall", len(true_objects.intersection(mentions)), len(true_objects)),
            ):
                items[name].append(make_outcome(answer.item, numerator, denominator))
        printed_values = (
            None
            if corrected
            else compute_printed_values(self.metrics, items, digits=1, scorer=self.name)
        )
        expected_items = resources.only or {answer.item for answer in answers}
        return ScoreResult(
            metrics=build_metrics(self.metrics, items, printed_values),
            n=len(scored_answers),
            missing=len(expected_items - {answer.item for answer in scored_answers}),
        )


def _require_script_images(answers: Sequence[Answer]) -> None:
    for number, answer in enumerate(answers, start=1):
        if "image_id" in answer.fields:
            raise UserError(
                f"chair: answer {number}: image_id {answer.fields['image_id']!r} is not a whole "
                "number: the official script finds no such image and takes every object for wrong"
            )


def make_object_reader(
    data: Path, *, corrected: bool
) -> tuple[ObjectNames, Callable[[str], list[str]]]:
    """Return the objects' names, and a function that finds a text's categories, with repeats."""
    category = read_names(data / "synonyms.txt", strip=corrected)
    pairs = list(PAIRS)
    if corrected:
        category = {name.lower(): kind for name, kind in category.items()}
        pairs += [name for name in category if len(name.split()) == 2]
    names = ObjectNames(category=category, joined=build_joined_words(pairs))
    parts = {word for name in (*category, *names.joined) for word in name.split()}

    def normalize_word(word: str) -> str:
        if not corrected:
            return singularize_word(word)
        candidates = (word, singularize_word(word), word.removesuffix("s"))
        return next((form for form in candidates if form in parts), word)

    def read(text: str) -> list[str]:
        joined = names.join([normalize_word(word) for word in tokenize_words(text.lower())])
        return [category[word] for word in names.objects(joined)]

    return names, read
