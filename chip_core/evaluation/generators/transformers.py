"""Answers by transformers in the trial's own process, the reference for all other engines."""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Mapping, Sequence

from chip_core.data.encodings import EncodingCache
from chip_core.evaluation.generators.base import AnsweringModel, Generator, Pace, Tell
from chip_core.evaluation.inference.batches import make_batches
from chip_core.evaluation.inference.decoder import Decoder
from chip_core.evaluation.task import Decoding, Item
from chip_core.utils.seeding import derive_seed
from chip_core.utils.workers import Workers

_CHECKED = 16  # answers that are generated again alone in bf16


class TransformersGenerator(Generator):
    """Answers with `Decoder`; several workers share the items."""

    label = "transformers"

    def __init__(
        self,
        *,
        batch_size: int,
        encodings: EncodingCache | None = None,
        asked: Hashable = None,
        workers: Workers | None = None,
    ) -> None:
        """Set up.

        Args:
            batch_size: items answered together.
            encodings: prompts that the model's processor encoded in this process before.
            asked: identifies the items' namespace, such as a benchmark.
            workers: the workers that share the items; None: this process answers all.
        """
        self.identity: Mapping[str, str] = {}  # empty, as in earlier builds
        self.moved: tuple[int, int] = (0, 0)  # bf16: answers generated again, and differing
        self._batch_size, self._encodings, self._asked = batch_size, encodings, asked
        self._workers = workers or Workers()

    def answer(
        self, items: Sequence[Item], model: AnsweringModel, decoding: Decoding, tell: Tell
    ) -> Pace:
        """Answer this worker's share of the items."""
        if not items:
            return Pace()
        began = time.perf_counter()
        decoder = Decoder(
            model.model,
            model.processor,
            decoding,
            bf16=model.bf16,
            share_prefix=True,
            encodings=self._encodings,
            asked=self._asked,
        )
        made: dict[str, str] = {}
        batches = make_batches(
            items, size=self._batch_size, worker=self._workers.rank, workers=self._workers.size
        )
        for answers in decoder.stream(batches, size=self._batch_size):
            tell(answers)
            made.update((item.id, response.text) for item, response in answers)
        pace = Pace(seconds=time.perf_counter() - began, waited=decoder.waited, notes=decoder.notes)
        if model.bf16 and self._workers.is_main:
            self.moved = _moved(decoder, [item for item in items if item.id in made], made)
        return pace


def _moved(decoder: Decoder, items: Sequence[Item], made: Mapping[str, str]) -> tuple[int, int]:
    """Answer some items again, alone; return how many, and how many answers differ.

    In bf16 an answer depends on the rest of its batch.
    """
    draw = random.Random(derive_seed("bf16"))
    again = draw.sample(list(items), min(_CHECKED, len(items)))
    return len(again), sum(decoder.alone(item) != made[item.id] for item in again)
