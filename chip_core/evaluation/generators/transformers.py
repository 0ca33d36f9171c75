"""Answers by transformers in the trial's own process, the reference for all other engines."""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Mapping, Sequence

from chip_core.data.encodings import EncodingCache
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    OnAnswers,
)
from chip_core.evaluation.inference.batches import make_batches
from chip_core.evaluation.inference.decoder import Decoder
from chip_core.evaluation.task import Decoding, Item
from chip_core.utils.seeding import derive_seed
from chip_core.utils.workers import Workers

_CHECK_SIZE = 16  # answers that are generated again alone in bf16


class TransformersGenerator(Generator):
    """Answers with `Decoder`; several workers share the items."""

    label = "transformers"

    def __init__(
        self,
        *,
        batch_size: int,
        encodings: EncodingCache | None = None,
        namespace: Hashable = None,
        workers: Workers | None = None,
    ) -> None:
        """Set up.

        Args:
            batch_size: items answered together.
            encodings: prompts that the model's processor encoded in this process before.
            namespace: identifies the items' namespace, such as a benchmark.
            workers: the workers that share the items; None: this process answers all.
        """
        self.identity: Mapping[str, str] = {}  # empty, as in earlier builds
        # bf16: answers generated again, and differing.
        self.bf16_differences: tuple[int, int] = (0, 0)
        self._batch_size, self._encodings, self._namespace = batch_size, encodings, namespace
        self._workers = workers or Workers()

    def answer(
        self,
        items: Sequence[Item],
        model: AnsweringModel,
        decoding: Decoding,
        on_answers: OnAnswers,
    ) -> GenerationTiming:
        """Answer this worker's share of the items."""
        start = time.perf_counter()
        decoder = Decoder(
            model.model,
            model.processor,
            decoding,
            bf16=model.bf16,
            share_prefix=True,
            encodings=self._encodings,
            namespace=self._namespace,
        )
        texts: dict[str, str] = {}
        batches = make_batches(
            items, size=self._batch_size, worker=self._workers.rank, workers=self._workers.size
        )
        for answers in decoder.stream(batches, size=self._batch_size):
            on_answers(answers)
            texts.update((item.id, response.text) for item, response in answers)
        timing = GenerationTiming(
            seconds=time.perf_counter() - start,
            wait_seconds=decoder.wait_seconds,
            notes=decoder.notes,
        )
        if model.bf16 and self._workers.is_main:
            self.bf16_differences = _count_bf16_differences(
                decoder, [item for item in items if item.id in texts], texts
            )
        return timing


def _count_bf16_differences(
    decoder: Decoder, items: Sequence[Item], texts: Mapping[str, str]
) -> tuple[int, int]:
    """Answer some items again, alone; return how many, and how many answers differ.

    In bf16 an answer depends on the rest of its batch.
    """
    random_generator = random.Random(derive_seed("bf16"))
    checked = random_generator.sample(list(items), min(_CHECK_SIZE, len(items)))
    return len(checked), sum(decoder.answer_alone(item) != texts[item.id] for item in checked)
