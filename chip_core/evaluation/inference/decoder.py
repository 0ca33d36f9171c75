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
    ContinuousBatching,
    RowMemoryError,
    measure_lane_error,
    supports_continuous_batching,
)
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.kv_cache import make_cache_argument, make_growing_cache
from chip_core.evaluation.inference.prompts import Prompt, pad_batch
from chip_core.evaluation.inference.rows import ChosenTokens, GreedyChooser
from chip_core.evaluation.inference.sampling import Sampling, SamplingChooser
from chip_core.evaluation.inference.shared import (
    MAX_LOGIT_ERROR,
    measure_sharing_error,
    share_prefix_rows,
)
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
        namespace: Hashable = None,
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
            namespace: identifies the items' namespace, such as a benchmark.
            sampling: how answers are sampled, without beams; None: they are not.
        """
        model.eval()
        self._model = model
        self._processor = processor
        self._encoder = Encoder(processor, encodings, namespace)
        self._decoding = decoding
        self._sampling = sampling
        self._bf16 = bf16
        # None: not tested yet.
        self._sharing_supported: bool | None = None if share_prefix else False
        self._batching_supported: bool | None = None  # the same for continuous batching
        self._lanes_exact: dict[bool, bool] = {}  # whether lanes are exact, by picture sharing
        self._settings, self._end_tokens = generation_settings(model, processor.tokenizer, decoding)
        self.wait_seconds = 0.0  # seconds for prompts and pictures
        self.notes: list[str] = []  # for the report

    def generate_responses(self, batch: Batch) -> list[Response]:
        """Return a response for each of the batch's items, in their order.

        Raises:
            TrialError: the device's memory does not hold a single item.
        """
        responses: dict[str, Response] = {}
        for answers in self.stream([batch], size=len(batch.items)):
            responses.update((item.id, response) for item, response in answers)
        return [responses[item.id] for item in batch.items]

    @torch.inference_mode()
    def stream(
        self, batches: Sequence[Batch], *, size: int
    ) -> Iterator[list[tuple[Item, Response]]]:
        """Yield the items of the batches with their responses, as they are generated.

        Args:
            batches: the questions, answered in about this order.
            size: items answered together: ended ones are replaced.

        Raises:
            TrialError: as in `generate_responses`.
        """
        for _, similar in itertools.groupby(batches, lambda batch: batch.kind):
            kind_batches = list(similar)
            groups = [group for batch in kind_batches for group in batch.groups]
            if self._can_batch_continuously(groups):
                yield from self._answer_continuously(groups, size)
                continue
            for batch in kind_batches:
                yield list(zip(batch.items, self._answer_batch(batch), strict=True))

    def _answer_continuously(
        self, groups: Sequence[Sequence[Item]], size: int
    ) -> Iterator[list[tuple[Item, Response]]]:
        """Answer by continuous batching, in which no answer waits for another's end."""
        items = {item.id: item for group in groups for item in group}
        batching = ContinuousBatching(
            self._model,
            self._make_chooser() or GreedyChooser(self._model, exact=False),
            pad_token=self._settings.pad_token_id,
            end_tokens=self._end_tokens,
            max_new_tokens=self._decoding.max_new_tokens,
        )
        try:
            for rows in batching.run(map(self._encode, groups), size):
                texts = self._decode_texts([row.answer_ids for row in rows])
                yield [
                    (items[row.prompt.item], self._to_response(text, row.answer_ids))
                    for row, text in zip(rows, texts, strict=True)
                ]
        except RowMemoryError as error:
            raise _out_of_memory_error(error.prompt.item) from None

    def _encode(self, group: Sequence[Item]) -> list[Prompt]:
        start = time.perf_counter()
        prompts = self._encoder.encode(group)
        self.wait_seconds += time.perf_counter() - start
        return prompts

    def _can_batch_continuously(self, groups: Sequence[Sequence[Item]]) -> bool:
        """Return whether these groups can use continuous batching, tested on the first ones."""
        is_shared = any(len(group) > 1 for group in groups)
        if self._batching_supported is None:
            self._batching_supported = (
                self._sharing_supported is not False
                and supports_continuous_batching(self._model, self._settings)
            )
        if not self._batching_supported:
            return False
        if is_shared not in self._lanes_exact:
            prompts = [self._encode(group[:2]) for group in groups[:2]]
            with compute_in_fp32(self._model):
                error = measure_lane_error(self._model, prompts, self._settings.pad_token_id)
            self._lanes_exact[is_shared] = error <= MAX_LOGIT_ERROR
        return self._lanes_exact[is_shared]

    def _answer_batch(self, batch: Batch) -> list[Response]:
        """Answer a batch with transformers' `generate`, which ends with the last answer."""
        groups = [self._encode(group) for group in batch.groups]
        try:
            return self._answer_groups(groups)
        except torch.cuda.OutOfMemoryError:
            if len(batch.items) == 1:
                raise _out_of_memory_error(batch.items[0].id) from None
        torch.cuda.empty_cache()
        return [response for half in batch.split() for response in self._answer_batch(half)]

    @torch.inference_mode()
    def answer_alone(self, item: Item) -> str:
        """Return the response to one item, computed without other items."""
        return self._answer_separately(self._encoder.encode([item]))[0].text

    def _answer_groups(self, groups: Sequence[Sequence[Prompt]]) -> list[Response]:
        prompts = [prompt for group in groups for prompt in group]
        if any(len(group) > 1 and group[0].vision_end for group in groups) and self._can_share(
            groups
        ):
            rows = share_prefix_rows(
                self._model,
                groups,
                copies=self._decoding.num_beams,
                pad=self._settings.pad_token_id,
            )
            if rows is not None:
                inputs = dict(vars(rows))
                cache = inputs.pop("cache")
                return self._generate(prompts, inputs, cache)
        return self._answer_separately(prompts)

    def _answer_separately(self, prompts: Sequence[Prompt]) -> list[Response]:
        device = next(self._model.parameters()).device
        ids = [prompt.ids for prompt in prompts]
        batch = pad_batch(prompts, ids, device, pad=self._settings.pad_token_id)
        return self._generate(prompts, match_dtype(batch, self._model))

    def _generate(
        self, prompts: Sequence[Prompt], inputs: dict[str, Any], cache: Any = None
    ) -> list[Response]:
        start = inputs["input_ids"].shape[1]
        chooser = self._make_chooser()
        processors = []
        if chooser is not None:
            processors = [ChosenTokens(chooser, prompts, start=start, end_tokens=self._end_tokens)]
        # An encoder-decoder needs a cache of two parts, which `generate` creates.
        encoder_decoder = self._model.config.is_encoder_decoder
        if cache is None and self._decoding.num_beams == 1 and not encoder_decoder:
            cache = make_growing_cache(self._model)
        if cache is not None:
            inputs |= make_cache_argument(self._model, cache)
        generated: Tensor = self._model.generate(
            **inputs,
            generation_config=self._settings,
            tokenizer=self._processor.tokenizer,  # finds the model's own stop strings
            logits_processor=processors,
        )
        rows = generated[:, start:].tolist()
        return [
            self._to_response(text, row)
            for text, row in zip(self._decode_texts(rows), rows, strict=True)
        ]

    def _make_chooser(self) -> GreedyChooser | SamplingChooser | None:
        """Return the chooser of tokens; None: transformers takes the best token itself."""
        if self._sampling is not None:
            return SamplingChooser(self._model, self._sampling, exact=not self._bf16)
        if self._decoding.num_beams == 1 and not self._bf16:
            return GreedyChooser(self._model, exact=True)
        return None

    def _decode_texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of rows, padded after their ends."""
        max_length = max(map(len, rows))
        padding = self._settings.pad_token_id
        padded_rows = torch.tensor([[*row, *[padding] * (max_length - len(row))] for row in rows])
        texts: list[str] = self._processor.post_process_image_text_to_text(
            padded_rows, skip_special_tokens=True
        )
        return texts

    def _to_response(self, text: str, ids: Sequence[int]) -> Response:
        """Return a row's response; the row is padded after its end."""
        end_index = next(
            (index for index, token in enumerate(ids) if token in self._end_tokens), None
        )
        tokens = len(ids) if end_index is None else end_index + 1
        is_cut = end_index is None and tokens >= self._decoding.max_new_tokens
        return Response(text=text.strip(), tokens=tokens, cut=is_cut)

    def _can_share(self, groups: Sequence[Sequence[Prompt]]) -> bool:
        """Return whether this family's rows can share a picture, tested on the first batch."""
        if self._sharing_supported is None:
            with compute_in_fp32(self._model):
                error = measure_sharing_error(self._model, groups)
            self._sharing_supported = error <= MAX_LOGIT_ERROR
            if not self._sharing_supported:
                self.notes.append(
                    "pictures with several questions were computed for each question: continuing "
                    f"from a shared beginning is off by {error:.1g} of the largest logit here"
                )
        return self._sharing_supported


def generation_settings(model: Any, tokenizer: Any, decoding: Decoding) -> tuple[Any, set[int]]:
    """Return transformers' settings and the tokens that end an answer.

    A model's own settings (Qwen-VL's repetition penalty) change its answers, so they are reset.
    """
    from transformers import GenerationConfig

    config = model.generation_config
    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id
    eos_ids = eos if isinstance(eos, list) else [eos]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos_ids[0] if pad is None else pad,
        repetition_penalty=1.0,
        length_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
    )
    return settings, {end for end in eos_ids if end is not None}


def _out_of_memory_error(item: str) -> TrialError:
    return TrialError(
        f"not enough GPU memory to answer item {item}: a smaller max_new_tokens or fewer beams "
        "take less"
    )
