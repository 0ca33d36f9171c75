"""Rank a model's answers to a prompt: by CHAIR, by a judge, or by a user's own function.

A larger score is better. None: there is no score, because a judge's reply could not be read.
"""

from __future__ import annotations

import base64
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.config.pairs import PairsConfig
from chip_core.data.source import SHAPES
from chip_core.evaluation.benchmarks.chair.score import ChairScorer, make_object_reader
from chip_core.evaluation.benchmarks.coco import GroundTruth, read_ground_truth
from chip_core.evaluation.benchmarks.mmhal.score import RATING_SCALE
from chip_core.evaluation.benchmarks.shapes.score import ShapesScorer
from chip_core.evaluation.items import open_resources
from chip_core.evaluation.judge import EndpointJudge, ReplyCache
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.judge.prompts import ask_judge
from chip_core.evaluation.scorer import JudgeRequest, Resources
from chip_core.evaluation.task import Item
from chip_core.evaluation.text.language import nltk_problems, require_tools
from chip_core.evaluation.text.reply_ratings import read_rating
from chip_core.results import Progress
from chip_core.shapes.world import compare_caption, parse_scene_id
from chip_core.utils import registry
from chip_core.utils.errors import UserError, describe_error
from chip_core.utils.files import file_sha256

#: The judge's prompt, sent with the image.
PROMPT = (
    """\
Rate one answer that a vision-language model gave to a question about this image. An answer \
hallucinates if it states anything about the image that cannot be seen in it and does not follow \
from it. Not answering, being unsure, or leaving something out is no hallucination.

"""
    + RATING_SCALE
)
_BATCH_PROMPTS = 32  # prompts whose images are in memory at a time
_IMAGE_TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of an answer."""

    value: float  # margins are differences of it
    tie_break: float = 0.0  # decides among the best of equal value


#: For each prompt a score of each of its answers.
Scores = list[list[Score | None]]


class Ranker(ABC):
    """Rank answers."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What decides its scores; recorded with the pairs."""

    @abstractmethod
    def rank(self, prompts: Sequence[Item], answers: Sequence[Sequence[str]]) -> Scores:
        """Return the scores of each prompt's answers.

        Raises:
            UserError: they cannot be ranked; the message is one line.
            TrialError: the judge does not reply.
        """


class ShapesChair(Ranker):
    """CHAIR on the embedded world, whose scenes are known."""

    identity = {"ranker": "chair", "version": ShapesScorer.version}

    def rank(self, prompts: Sequence[Item], answers: Sequence[Sequence[str]]) -> Scores:
        """Score by mentions of absent objects, then by the scene's objects that are named."""
        findings = [
            [compare_caption(parse_scene_id(prompt.id), text) for text in texts]
            for prompt, texts in zip(prompts, answers, strict=True)
        ]
        return [[Score(value=-f.invented, tie_break=f.covered) for f in row] for row in findings]


class CocoChair(Ranker):
    """CHAIR on photographs; the objects in them are a row's `objects`, or COCO's."""

    def __init__(self, data_paths: DataPaths) -> None:
        """Read the objects' names.

        Raises:
            UserError: they are missing, or NLTK's data are.
        """
        data = data_paths.benchmark_folder("chair")
        if data is None:
            raise UserError(
                "ranker chair reads objects' names from chair/synonyms.txt: give its location "
                "with --benchmark-data"
            )
        needs = ChairScorer.needs
        self._coco = open_resources(BenchmarkConfig(name="chair"), needs, data_paths).coco
        require_tools(nltk_problems(("punkt_tab",)), "chair")
        self._names, self._read = make_object_reader(data, corrected=True)
        self._file = data / "synonyms.txt"

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its version and the list of names."""
        return {"ranker": "chair", "version": ChairScorer.version, "names": file_sha256(self._file)}

    def rank(self, prompts: Sequence[Item], answers: Sequence[Sequence[str]]) -> Scores:
        """Score by mentions of absent objects, then by the image's objects that are named."""
        truths = self._read_truth(prompts)
        scores: Scores = []
        for objects, texts in zip(truths, answers, strict=True):
            mentioned = [self._read(text) for text in texts]
            scores.append(
                [
                    Score(
                        value=-sum(name not in objects for name in names),
                        tie_break=len(objects.intersection(names)),
                    )
                    for names in mentioned
                ]
            )
        return scores

    def _read_truth(self, prompts: Sequence[Item]) -> list[frozenset[str]]:
        row_objects = [prompt.fields.get("objects") for prompt in prompts]
        images = [str(prompt.fields.get("image_id", "")) for prompt in prompts]
        missing_images = [
            name for name, objects in zip(images, row_objects, strict=True) if objects is None
        ]
        ground_truth = GroundTruth(objects={}, known=frozenset())
        if missing_images and self._coco is not None:
            ground_truth = read_ground_truth(
                self._coco, missing_images, self._names, self._read, official=False, scorer="chair"
            )
        truths = []
        for prompt, objects, image in zip(prompts, row_objects, images, strict=True):
            if objects is None and image in ground_truth.known:
                truths.append(ground_truth.get_objects(image))
            elif isinstance(objects, list) and all(isinstance(name, str) for name in objects):
                category = self._names.category
                truths.append(
                    frozenset(category.get(entry.lower(), entry.lower()) for entry in objects)
                )
            else:
                raise UserError(
                    f"prompt '{prompt.id}': the objects in its image are unknown: give a list of "
                    "names as `objects`, or `image_id` and COCO's annotations in --benchmark-data"
                )
        return truths


class JudgeRanker(Ranker):
    """A judge that sees the image rates each answer from 0 to 6."""

    def __init__(
        self, settings: PairsConfig, data_paths: DataPaths, report: Callable[[Progress], None]
    ) -> None:
        """Prepare to query the judge, or to read existing replies.

        Raises:
            UserError: there is no judge.
            TrialError: the judge cannot be reached.
        """
        self._report = report
        self._done = self._total = 0  # answers
        self._judge: ReplayJudge | EndpointJudge
        if data_paths.judge_replies is not None:
            self._judge = ReplayJudge.from_file(data_paths.judge_replies)
            self._settings: dict[str, Any] = {"replies": file_sha256(data_paths.judge_replies)}
        elif settings.judge is not None and data_paths.judge_cache is not None:
            self._judge = EndpointJudge(
                settings.judge, ReplyCache(data_paths.judge_cache), on_reply=self._on_reply
            )
            self._settings = {
                "model": settings.judge.model,
                "temperature": settings.judge.temperature,
                "max_tokens": settings.judge.max_tokens,
                "send": dict(settings.judge.send),
            }
        else:
            raise UserError("ranker judge: there is no judge: name one by judge.model")

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge, and the version of its prompt."""
        return {"ranker": "judge", "version": "judge-1", **self._settings}

    def rank(self, prompts: Sequence[Item], answers: Sequence[Sequence[str]]) -> Scores:
        """Score by the judge's rating; None if its reply has none."""
        scores: Scores = []
        self._done, self._total = 0, sum(len(texts) for texts in answers)
        for start in range(0, len(prompts), _BATCH_PROMPTS):
            batch = list(zip(prompts, answers, strict=True))[start : start + _BATCH_PROMPTS]
            scores += self._rank_batch(batch)
            self._done += sum(len(texts) for _, texts in batch)
            self._on_reply(0)
        return scores

    def _on_reply(self, done: int, _: int = 0) -> None:
        """Report replies, including those of the current part; a stop request takes effect here."""
        done += self._done
        self._report(Progress(phase="judge pairs", done=done, total=self._total))

    def _rank_batch(self, batch: Sequence[tuple[Item, Sequence[str]]]) -> Scores:
        requests = [
            _make_request(f"{prompt.id}#{number}", prompt, text)
            for prompt, texts in batch
            for number, text in enumerate(texts)
        ]
        replies = ask_judge(Resources(judge=self._judge), requests, "ranker judge")
        ratings = {item: read_rating(reply or "") for item, reply in replies.items()}
        rated = [
            [ratings[f"{prompt.id}#{number}"] for number, _ in enumerate(texts)]
            for prompt, texts in batch
        ]
        return [
            [None if rating is None else Score(value=rating) for rating in row] for row in rated
        ]


class RuleRanker(Ranker):
    """A user's own function of a prompt and its answers."""

    def __init__(self, name: str) -> None:
        """Import the function.

        Raises:
            UserError: it cannot be imported, or has no source file.
        """
        self._name, self._source = name, registry.source_hash(name)
        self._function = registry.load_plugin(name)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its name and the hash of its source file."""
        return {"ranker": self._name, "source": self._source}

    def rank(self, prompts: Sequence[Item], answers: Sequence[Sequence[str]]) -> Scores:
        """Score by what the function returns: a number for each answer, or None."""
        return [
            self._call_rule(*prompt_texts) for prompt_texts in zip(prompts, answers, strict=True)
        ]

    def _call_rule(self, prompt: Item, texts: Sequence[str]) -> list[Score | None]:
        try:
            values = list(self._function(prompt, list(texts)))
            scores = [None if value is None else Score(value=float(value)) for value in values]
        except Exception as error:  # a user's function may raise anything
            raise UserError(
                f"{self._name}: prompt '{prompt.id}': {describe_error(error)}"
            ) from None
        if len(scores) != len(texts):
            raise UserError(
                f"{self._name}: prompt '{prompt.id}': {len(scores)} scores for {len(texts)} "
                "answers: return one for each"
            )
        if not all(score is None or math.isfinite(score.value) for score in scores):
            raise UserError(f"{self._name}: prompt '{prompt.id}': a score is not finite")
        return scores


def open_ranker(
    settings: PairsConfig,
    source: str,
    data_paths: DataPaths,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Ranker:
    """Return a ranker that is ready for use.

    Args:
        settings: the settings that name it.
        source: where the prompts are from, `data.source`.
        data_paths: where benchmarks' data and judges' replies are.
        report: called with a judge's replies.

    Raises:
        UserError: something that it needs is missing.
        TrialError: its judge cannot be reached.
    """
    if settings.ranker == "chair":
        return ShapesChair() if source == SHAPES else CocoChair(data_paths)
    if settings.ranker == "judge":
        return JudgeRanker(settings, data_paths, report)
    return RuleRanker(settings.ranker)


def _make_request(name: str, prompt: Item, text: str) -> JudgeRequest:
    picture = prompt.pictures[0]
    suffix = "" if picture.file is None else picture.file.suffix.lower()
    if picture.file is not None and suffix in _IMAGE_TYPES:
        image_type, content = _IMAGE_TYPES[suffix], picture.file.read_bytes()
    else:
        buffer = io.BytesIO()
        picture.read().save(buffer, format="PNG")
        image_type, content = "png", buffer.getvalue()
    url = f"data:image/{image_type};base64,{base64.b64encode(content).decode()}"
    question = f"{PROMPT}\nQuestion: {prompt.prompt}\nAnswer to rate: {text}\n"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return JudgeRequest(item=name, messages=({"role": "user", "content": parts},), max_tokens=512)
