"""Generate the answers of one model to batches of items."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.data.encodings import EncodingCache
from chip_core.evaluation.inference.batches import Batch
from chip_core.evaluation.inference.continuous import (
    Continuous,
    NoRoomError,
    can_continue,
    inexactness,
)
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.kv_cache import cache_argument, growing_cache
from chip_core.evaluation.inference.prompts import Prompt, padded
from chip_core.evaluation.inference.rows import Chosen, Greedy
from chip_core.evaluation.inference.sampling import Draws, Sampling
from chip_core.evaluation.inference.shared import EXACT, share, sharing_inexactness
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.models.precision import compute_in_fp32, match_dtype
from chip_core.utils.errors import TrialError


class Decoder:
    """Generates answers greedily or by beams, or samples each with a seed of its own."""

    def __init__(  # noqa: PLR0913 (how answers are made)
        self,
        model: Any,
        processor: Any,
        decoding: Decoding,
        *,
        bf16: bool,
        share_prefix: bool,
        encodings: EncodingCache | None = None,
        asked: Hashable = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Set up.

        Args:
            model: an image-text-to-text model.
            processor: its processor.
            decoding: how answers are generated.
            bf16: whether the weights and the computation are in bfloat16.
            share_prefix: whether a picture with several questions is computed once, and ended rows
                are replaced in the batch; else transformers' `generate` answers whole batches.
            encodings: prompts that the processor encoded in this process before.
            asked: identifies the items' namespace, such as a benchmark.
            sampling: how answers are sampled, without beams; None: they are not.
        """
        model.eval()
        self._model = model
        self._processor = processor
        self._encoder = Encoder(processor, encodings, asked)
        self._decoding = decoding
        self._sampling = sampling
        self._bf16 = bf16
        self._shares: bool | None = None if share_prefix else False  # None: not tested yet
        self._lanes: bool | None = None  # the same for continuous batching
        self._exact: dict[bool, bool] = {}  # whether lanes are exact, by picture sharing
        self._settings, self._ends = generation_settings(model, processor.tokenizer, decoding)
        self.near_ties = 0  # decided so far
        self.waited = 0.0  # seconds for prompts and pictures
        self.notes: list[str] = []  # for the report

    def answers(self, batch: Batch) -> list[str]:
        """Return the text of each response of `responses`."""
        return [response.text for response in self.responses(batch)]

    def responses(self, batch: Batch) -> list[Response]:
        """Return a response for each of the batch's items, in their order.

        Raises:
            TrialError: the device's memory does not hold a single item.
        """
        made: dict[str, Response] = {}
        for answers in self.stream([batch], size=len(batch.items)):
            made.update((item.id, response) for item, response in answers)
        return [made[item.id] for item in batch.items]

    @torch.inference_mode()
    def stream(
        self, batches: Sequence[Batch], *, size: int
    ) -> Iterator[list[tuple[Item, Response]]]:
        """Yield the items of the batches with their responses, as they are generated.

        Args:
            batches: the questions, answered in about this order.
            size: items answered together: ended ones are replaced.

        Raises:
            TrialError: as in `responses`.
        """
        for _, alike in itertools.groupby(batches, lambda batch: batch.kind):
            own = list(alike)
            groups = [group for batch in own for group in batch.groups]
            if self._continues(groups):
                yield from self._continued(groups, size)
                continue
            for batch in own:
                yield list(zip(batch.items, self._batch(batch), strict=True))

    def _continued(
        self, groups: Sequence[Sequence[Item]], size: int
    ) -> Iterator[list[tuple[Item, Response]]]:
        """Answer by continuous batching, in which no answer waits for another's end."""
        items = {item.id: item for group in groups for item in group}
        chooser = self._chooser()
        going = Continuous(
            self._model,
            chooser or Greedy(self._model, exact=False),
            padding=self._settings.pad_token_id,
            ends=self._ends,
            longest=self._decoding.max_new_tokens,
        )
        try:
            for rows in going.run(map(self._encoded, groups), size):
                texts = self._texts([row.said for row in rows])
                yield [
                    (items[row.prompt.item], self._response(text, row.said))
                    for row, text in zip(rows, texts, strict=True)
                ]
        except NoRoomError as error:
            raise _no_room(error.prompt.item) from None
        self.near_ties += 0 if chooser is None else chooser.decided

    def _encoded(self, group: Sequence[Item]) -> list[Prompt]:
        began = time.perf_counter()
        prompts = self._encoder.encode(group)
        self.waited += time.perf_counter() - began
        return prompts

    def _continues(self, groups: Sequence[Sequence[Item]]) -> bool:
        """Return whether these groups can use continuous batching, tested on the first ones."""
        shares = any(len(group) > 1 for group in groups)
        if self._lanes is None:
            self._lanes = self._shares is not False and can_continue(self._model, self._settings)
        if not self._lanes:
            return False
        if shares not in self._exact:
            few = [self._encoded(group[:2]) for group in groups[:2]]
            with compute_in_fp32(self._model):
                off = inexactness(self._model, few, self._settings.pad_token_id)
            self._exact[shares] = off <= EXACT
        return self._exact[shares]

    def _batch(self, batch: Batch) -> list[Response]:
        """Answer a batch with transformers' `generate`, which ends with the last answer."""
        groups = [self._encoded(group) for group in batch.groups]
        try:
            return self._answers(groups)
        except torch.cuda.OutOfMemoryError:
            if len(batch.items) == 1:
                raise _no_room(batch.items[0].id) from None
        torch.cuda.empty_cache()
        return [response for half in batch.halves() for response in self._batch(half)]

    @torch.inference_mode()
    def alone(self, item: Item) -> str:
        """Return the response to one item, computed without other items."""
        return self._separate(self._encoder.encode([item]))[0].text

    def _answers(self, groups: Sequence[Sequence[Prompt]]) -> list[Response]:
        prompts = [prompt for group in groups for prompt in group]
        if any(len(group) > 1 and group[0].vision_end for group in groups) and self._may_share(
            groups
        ):
            rows = share(
                self._model,
                groups,
                copies=self._decoding.num_beams,
                pad=self._settings.pad_token_id,
            )
            if rows is not None:
                inputs = dict(vars(rows))
                cache = inputs.pop("cache")
                return self._generate(prompts, inputs, cache)
        return self._separate(prompts)

    def _separate(self, prompts: Sequence[Prompt]) -> list[Response]:
        device = next(self._model.parameters()).device
        ids = [prompt.ids for prompt in prompts]
        batch = padded(prompts, ids, device, pad=self._settings.pad_token_id)
        return self._generate(prompts, match_dtype(batch, self._model))

    def _generate(
        self, prompts: Sequence[Prompt], inputs: dict[str, Any], cache: Any = None
    ) -> list[Response]:
        start = inputs["input_ids"].shape[1]
        chooser = self._chooser()
        chosen = []
        if chooser is not None:
            chosen = [Chosen(chooser, prompts, start=start, ends=self._ends)]
        # An encoder-decoder needs a cache of two parts, which `generate` creates.
        encoder_decoder = self._model.config.is_encoder_decoder
        if cache is None and self._decoding.num_beams == 1 and not encoder_decoder:
            cache = growing_cache(self._model)
        if cache is not None:
            inputs |= cache_argument(self._model, cache)
        made: Tensor = self._model.generate(
            **inputs,
            generation_config=self._settings,
            tokenizer=self._processor.tokenizer,  # finds the model's own stop strings
            logits_processor=chosen,
        )
        self.near_ties += 0 if chooser is None else chooser.decided
        rows = made[:, start:].tolist()
        return [
            self._response(text, row) for text, row in zip(self._texts(rows), rows, strict=True)
        ]

    def _chooser(self) -> Greedy | Draws | None:
        """Return the chooser of tokens; None: transformers takes the best token itself."""
        if self._sampling is not None:
            return Draws(self._model, self._sampling, exact=not self._bf16)
        if self._decoding.num_beams == 1 and not self._bf16:
            return Greedy(self._model, exact=True)
        return None

    def _texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of rows, padded after their ends."""
        longest = max(map(len, rows))
        padding = self._settings.pad_token_id
        whole = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        texts: list[str] = self._processor.post_process_image_text_to_text(
            whole, skip_special_tokens=True
        )
        return texts

    def _response(self, text: str, ids: Sequence[int]) -> Response:
        """Return a row's response; the row is padded after its end."""
        ended = next((place for place, token in enumerate(ids) if token in self._ends), None)
        tokens = len(ids) if ended is None else ended + 1
        cut = ended is None and tokens >= self._decoding.max_new_tokens
        return Response(text=text.strip(), tokens=tokens, cut=cut)

    def _may_share(self, groups: Sequence[Sequence[Prompt]]) -> bool:
        """Return whether this family's rows can share a picture, tested on the first batch."""
        if self._shares is None:
            with compute_in_fp32(self._model):
                off = sharing_inexactness(self._model, groups)
            self._shares = off <= EXACT
            if not self._shares:
                self.notes.append(
                    "pictures asked about more than once were computed for each question: going "
                    f"on from a shared beginning is off by {off:.1g} of the largest logit here"
                )
        return self._shares


def generation_settings(model: Any, tokenizer: Any, decoding: Decoding) -> tuple[Any, set[int]]:
    """Return transformers' settings and the tokens that end an answer.

    A model's own settings (Qwen-VL's repetition penalty) change its answers, so they are reset.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    every = ends if isinstance(ends, list) else [ends]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=every[0] if pad is None else pad,
        repetition_penalty=1.0,
        length_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
    )
    return settings, {end for end in every if end is not None}


def _no_room(item: str) -> TrialError:
    return TrialError(
        f"no room on the GPU to answer item {item}: a smaller max_new_tokens or fewer beams take "
        "less"
    )
