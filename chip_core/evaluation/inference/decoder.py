"""Answers of one model to batches of items."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.data.encodings import Encodings
from chip_core.evaluation.inference.batches import Batch
from chip_core.evaluation.inference.kv_cache import growing_cache
from chip_core.evaluation.inference.prompts import Encoder, Prompt, padded
from chip_core.evaluation.inference.sampling import Sampling, SeededDraws
from chip_core.evaluation.inference.shared import EXACT, inexactness, share
from chip_core.evaluation.inference.ties import NearTies
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.models.precision import as_held, in_fp32
from chip_core.utils.errors import TrialError


class Decoder:
    """Makes answers, without drawing at random or each by a seed of its own."""

    def __init__(  # noqa: PLR0913 (how answers are made)
        self,
        model: Any,
        processor: Any,
        decoding: Decoding,
        *,
        bf16: bool,
        share_prefix: bool,
        encodings: Encodings | None = None,
        asked: Hashable = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Make ready.

        Args:
            model: an image-text-to-text model.
            processor: its processor.
            decoding: how answers are made.
            bf16: whether the model is held, and so computes, in bfloat16.
            share_prefix: whether a picture that is asked about more than once is computed once.
            encodings: prompts that the processor encoded in this process before.
            asked: what the items' ids are ids of.
            sampling: how answers are drawn; None: they are not. There are no beams then.
        """
        model.eval()
        self._model = model
        self._processor = processor
        self._encoder = Encoder(processor, encodings, asked)
        self._decoding = decoding
        self._sampling = sampling
        self._bf16 = bf16
        self._shares: bool | None = None if share_prefix else False  # None: not tried yet
        self._settings, self._ends = generation_settings(model, processor.tokenizer, decoding)
        self.near_ties = 0  # decided so far
        self.waited = 0.0  # seconds for prompts and pictures
        self.notes: list[str] = []  # what has to be said of how answers were made

    def answers(self, batch: Batch) -> list[str]:
        """Return the text of each response of `responses`."""
        return [response.text for response in self.responses(batch)]

    @torch.inference_mode()
    def responses(self, batch: Batch) -> list[Response]:
        """Return a response for each of the batch's items, in their order.

        Raises:
            TrialError: the device's memory does not hold a single item.
        """
        began = time.perf_counter()
        groups = [self._encoder.encode(group) for group in batch.groups]
        self.waited += time.perf_counter() - began
        try:
            return self._answers(groups)
        except torch.cuda.OutOfMemoryError:
            if len(batch.items) == 1:
                raise TrialError(
                    f"no room on the GPU to answer item {batch.items[0].id}: a smaller "
                    "max_new_tokens or fewer beams take less"
                ) from None
        torch.cuda.empty_cache()
        return [response for half in batch.halves() for response in self.responses(half)]

    @torch.inference_mode()
    def alone(self, item: Item) -> str:
        """Return the response to one item, nothing else beside it."""
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
                return self._generate(prompts, vars(rows))
        return self._separate(prompts)

    def _separate(self, prompts: Sequence[Prompt]) -> list[Response]:
        device = next(self._model.parameters()).device
        ids = [prompt.ids for prompt in prompts]
        batch = padded(prompts, ids, device, pad=self._settings.pad_token_id)
        return self._generate(prompts, as_held(batch, self._model))

    def _generate(self, prompts: Sequence[Prompt], inputs: dict[str, Any]) -> list[Response]:
        start = inputs["input_ids"].shape[1]
        ties: NearTies | SeededDraws | None = None
        if self._sampling is not None:
            ties = SeededDraws(
                self._model,
                prompts,
                self._sampling,
                start=start,
                ends=self._ends,
                exact=not self._bf16,
            )
        elif self._decoding.num_beams == 1 and not self._bf16:
            ties = NearTies(self._model, prompts, start, self._ends)
        # An encoder-decoder has a cache of two parts, which `generate` makes.
        if self._decoding.num_beams == 1 and not self._model.config.is_encoder_decoder:
            inputs.setdefault("past_key_values", growing_cache(self._model))
        made: Tensor = self._model.generate(
            **inputs,
            generation_config=self._settings,
            tokenizer=self._processor.tokenizer,  # finds the model's own stop strings
            logits_processor=[ties] if ties is not None else [],
        )
        self.near_ties += 0 if ties is None else ties.decided
        texts: list[str] = self._processor.post_process_image_text_to_text(
            made[:, start:], skip_special_tokens=True
        )
        return [
            self._response(text, row)
            for text, row in zip(texts, made[:, start:].tolist(), strict=True)
        ]

    def _response(self, text: str, ids: Sequence[int]) -> Response:
        """Return a row's response; the row is padded behind its end."""
        ended = next((place for place, token in enumerate(ids) if token in self._ends), None)
        tokens = len(ids) if ended is None else ended + 1
        cut = ended is None and tokens >= self._decoding.max_new_tokens
        return Response(text=text.strip(), tokens=tokens, cut=cut)

    def _may_share(self, groups: Sequence[Sequence[Prompt]]) -> bool:
        """Return whether this family's rows may share, as tried on the first batch."""
        if self._shares is None:
            with in_fp32(self._model):
                off = inexactness(self._model, groups)
            self._shares = off <= EXACT
            if not self._shares:
                self.notes.append(
                    "pictures asked about more than once were computed for each question: going "
                    f"on from a shared beginning is off by {off:.1g} of the largest logit here"
                )
        return self._shares


def generation_settings(model: Any, tokenizer: Any, decoding: Decoding) -> tuple[Any, set[int]]:
    """Return transformers' settings and the tokens that end an answer.

    A model's own settings (Qwen-VL's repetition penalty) change what it says: they are neutral.
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
