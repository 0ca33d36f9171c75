"""Sample a model's answers to prompts; what is there already is not sampled again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.config.pairs import PairsConfig
from chip_core.evaluation.inference import Decoder, make_batches
from chip_core.evaluation.inference.answer_files import (
    AnswerFile,
    answers_fingerprint,
    previous_answers,
)
from chip_core.evaluation.inference.sampling import Sampling
from chip_core.evaluation.task import Decoding, Item
from chip_core.results import Progress

#: In a folder of pairs: a hidden one, so that the pairs alone are its data.
FOLDER = ".sampled"
_NAME = "pairs"


@dataclass(frozen=True, kw_only=True)
class SampledModel:
    """A model that is sampled."""

    model: Any
    processor: Any
    weights: str  # a mark of the weights: answers of others are not taken over
    bf16: bool = False
    batch_size: int = 64  # answers made together


def sampling_of(settings: PairsConfig, seed: int) -> Sampling:
    """Return how answers are drawn."""
    return Sampling(temperature=settings.temperature, top_p=settings.top_p, seed=seed)


def sample(
    sampled: SampledModel,
    prompts: Sequence[Item],
    settings: PairsConfig,
    *,
    seed: int,
    folder: Path,
    report: Callable[[Progress], None],
) -> tuple[list[list[str]], int]:
    """Return each prompt's answers, `settings.answers` of them, and how many were made now.

    An answer is a function of the weights, its prompt's text and id, its number among the prompt's
    answers, and the seed; in bf16 of what it is made together with, too: batches are the same
    however often the work was broken off.

    Args:
        sampled: the model.
        prompts: with ids of their own.
        settings: how answers are made.
        seed: of all draws.
        folder: keeps answers as they are made.
        report: told of progress, with the seconds left.
    """
    asked = [
        [Item(id=f"{prompt.id}#{number}", prompt=prompt.prompt, pictures=prompt.pictures)
         for number in range(settings.answers)]
        for prompt in prompts
    ]  # fmt: skip
    items = [item for group in asked for item in group]
    decoding = Decoding(max_new_tokens=settings.max_new_tokens)
    drawn = sampling_of(settings, seed)
    mark = answers_fingerprint(
        {
            "weights": sampled.weights,
            "bf16": sampled.bf16,
            "batch": sampled.batch_size if sampled.bf16 else None,
            "decoding": asdict(decoding),
            "sampling": asdict(drawn),
        }
    )
    answers = previous_answers([folder / FOLDER], [_NAME], [mark], items)
    decoder = Decoder(
        sampled.model,
        sampled.processor,
        decoding,
        bf16=sampled.bf16,
        share_prefix=True,
        sampling=drawn,
    )
    began, before, phase = time.perf_counter(), len(answers), "sample answers"
    report(Progress(phase=phase, done=before, total=len(items)))
    with AnswerFile(folder / FOLDER, _NAME, mark, 0) as file:
        for batch in make_batches(items, size=sampled.batch_size):
            left = {item.id for item in batch.items} - answers.keys()
            if not left:
                continue
            made = zip(batch.items, decoder.responses(batch), strict=True)
            new = [(item, response) for item, response in made if item.id in left]
            file.add(new)
            answers.update((item.id, response) for item, response in new)
            rate = (len(answers) - before) / max(time.perf_counter() - began, 1e-9)
            figures = {
                "items_per_second": rate,
                "seconds_left": (len(items) - len(answers)) / rate,
            }
            report(Progress(phase=phase, done=len(answers), total=len(items), figures=figures))
    texts = [[answers[item.id].text for item in group] for group in asked]
    return texts, len(answers) - before
