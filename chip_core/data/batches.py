"""Encode preference pairs as padded tensors.

Shapes: B pairs, T tokens of a sequence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.augment import augment_image
from chip_core.data.encodings import (
    EncodedResponse,
    EncodingCache,
    SpecialTokens,
    check_label_rule,
    encode_response,
    training_template,
)
from chip_core.data.formats.extra_columns import find_sentence_ends
from chip_core.data.preferences import Pairs, PreferencePair
from chip_core.data.rejected_images import RejectedImageMaker
from chip_core.data.rejected_images.images import to_rgb_image
from chip_core.data.rows import RowError
from chip_core.data.tensors import PairBatch, Prompts, Responses, pad_rows, stack_inputs
from chip_core.objectives.parts import COLUMNS, VIEWS, Prefix, Response, changed_tokens, view_prefix
from chip_core.utils.errors import TrialError
from chip_core.utils.seeding import derive_seed, make_generator
from chip_core.utils.workers import Workers


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    ids: list[int]
    inputs: dict[str, Tensor]


#: A response, and the positions of its changed tokens.
_MarkedResponse = tuple[EncodedResponse, list[int]]


@dataclass(frozen=True, kw_only=True)
class _EncodedPair:
    """A pair with the true image, without padding."""

    pair: PreferencePair
    prompt: _Prompt
    chosen: _MarkedResponse
    rejected: _MarkedResponse
    #: The rejected response's prompt, with its own image if it has one, otherwise the pair's.
    own_prompt: _Prompt


class PairEncoder:
    """Encode pairs as batches for one trial's objective."""

    def __init__(
        self,
        processor: Any,
        config: TrialConfig,
        pairs: Sequence[PreferencePair],
        encodings: EncodingCache | None = None,
        *,
        views: Collection[str] | None = None,
    ) -> None:
        """Create an encoder.

        Args:
            processor: the model's.
            config: the trial.
            pairs: all training pairs.
            encodings: of the same processor, kept by this process from trial to trial.
            views: what to encode in addition to chosen and rejected; None: what the objective
                reads.

        Raises:
            TrialError: the processor does not support the label rule.
        """
        check_label_rule(processor, config.training.label_rule)
        self._processor, self._special_tokens = processor, SpecialTokens(processor)
        self._config = config
        self._pairs = pairs
        self._encodings = encodings
        self._views = tuple(config.objective.views if views is None else views)
        self._images = {VIEWS[view][0] for view in self._views}
        self._fields = config.objective.fields if views is None else ()
        per_trial = config.rejected_image.corruption_seed == "per_trial"
        image_processor = getattr(processor, "image_processor", None)
        mean = getattr(image_processor, "image_mean", None)
        self._rejected_images = RejectedImageMaker(
            config.rejected_image,
            seed=derive_seed("corruption", config.seed) if per_trial else 0,
            **({} if mean is None else {"image_mean": mean}),
        )

    @property
    def may_be_void(self) -> bool:
        """Whether the rejected-image strategy may have no effect on some images."""
        return (
            "rejected_image" in self._images and self._rejected_images.traits.void_where is not None
        )

    def encode_batch(self, indices: Sequence[int], epoch: int = 0) -> PairBatch:
        """Encode and pad pairs, given by their indices in the data, of an epoch counted from 0."""
        prompts: dict[Prefix, list[_Prompt]] = {}
        answers: dict[str, list[_MarkedResponse]] = {}
        pairs: list[PreferencePair] = []
        void_count = 0
        cut_responses: list[tuple[str, str, int]] = []
        for index in indices:
            encoded = self._get_encoded(index, epoch)
            pairs.append(encoded.pair)
            pair_prompts, is_void = self._encode_prompts(encoded, epoch)
            void_count += is_void
            for prefix, prompt in pair_prompts.items():
                prompts.setdefault(prefix, []).append(prompt)
            pair_responses = {"chosen": encoded.chosen, "rejected": encoded.rejected}
            for side, (response, _) in pair_responses.items():
                max_tokens = self._config.training.max_length - len(
                    pair_prompts[view_prefix(side, separate_images=True)].ids
                )
                if 0 < max_tokens < len(response.ids):
                    cut_responses.append((encoded.pair.id, side, len(response.ids) - max_tokens))
            for view in self._views:
                if view not in pair_responses:
                    pair_responses[view] = self._encode_view(
                        encoded, pair_prompts[view_prefix(view, separate_images=True)], view
                    )
            for view, marked_response in pair_responses.items():
                answers.setdefault(view, []).append(marked_response)
        separate_images = any(pair.own_image is not None for pair in pairs)
        prefixes = {view: view_prefix(view, separate_images=separate_images) for view in answers}
        responses = {
            view: self._stack_responses(prompts[prefixes[view]], answers[view]) for view in answers
        }
        stacked_prompts = {
            prefix: self._stack_prompts(image_prompts)
            for prefix, image_prompts in prompts.items()
            if not prefix[1] or prefix in prefixes.values()
        }
        return PairBatch(
            indices=tuple(indices),
            epoch=epoch,
            prompts=stacked_prompts["image", False],
            chosen=responses.pop("chosen"),
            rejected=responses.pop("rejected"),
            rejected_image_prompts=stacked_prompts.get(("rejected_image", False)),
            rejected_image=responses.pop("rejected_image", None),
            void_count=void_count,
            cut_responses=tuple(cut_responses),
            second_image_prompts=stacked_prompts.get(("second_image", False)),
            extra_responses=responses,
            own_image_prompts={
                image: image_prompts
                for (image, is_own), image_prompts in stacked_prompts.items()
                if is_own
            },
            fields=self._stack_fields(pairs),
        )

    def _encode_prompts(
        self, encoded: _EncodedPair, epoch: int
    ) -> tuple[dict[Prefix, _Prompt], bool]:
        """Return the prompts of a pair's responses, and whether a rejected image is a true one.

        For the rejected response they are the pair's if the row has one image for both.
        """
        pair = encoded.pair
        prompts: dict[Prefix, _Prompt] = {
            ("image", False): encoded.prompt,
            ("image", True): encoded.own_prompt,
        }
        void = False
        if "rejected_image" in self._images:
            rejected, void = self._encode_rejected_prompt(pair, encoded.prompt, epoch)
            own_rejected = rejected
            if pair.own_image is not None and "rejected_image_rejected" in self._views:
                # The image given for one side is the other side's.
                swapped = replace(pair, image=pair.own_image, rejected_image=pair.image)
                own_rejected, own_void = self._encode_rejected_prompt(
                    swapped, encoded.own_prompt, epoch
                )
                void = void or own_void
            prompts |= {("rejected_image", False): rejected, ("rejected_image", True): own_rejected}
        if "second_image" in self._images:
            prompts["second_image", False] = self._encode_second_prompt(pair)
        return prompts, void

    def _encode_view(self, encoded: _EncodedPair, prompt: _Prompt, view: str) -> _MarkedResponse:
        """Return a pair's response after a prompt, and which of its tokens changed."""
        image, response = VIEWS[view]
        pair = encoded.pair
        true_prompt = encoded.own_prompt if response == "rejected" else encoded.prompt
        if image == "second_image" and pair.second_prompt is not None:
            pair = replace(pair, prompt=pair.second_prompt)
        if response == "other":
            if pair.other is None:
                raise TrialError(f"pair {pair.id} has no third response, which the objective reads")
            return self._encode_answer(pair, prompt, pair.other), []
        encoded_response, changed = encoded.chosen if response == "chosen" else encoded.rejected
        if prompt.ids != true_prompt.ids:
            text = pair.chosen if response == "chosen" else pair.rejected
            encoded_response = self._encode_answer(pair, prompt, text)
        return encoded_response, changed

    def _encode_second_prompt(self, pair: PreferencePair) -> _Prompt:
        """Return the prompt with the second image: its own, or the pair's."""
        if pair.second_image is None:
            raise TrialError(f"pair {pair.id} has no second image, which the objective reads")
        text = pair.prompt if pair.second_prompt is None else pair.second_prompt
        return self._encode_prompt(replace(pair, prompt=text), pair.second_image)

    def _stack_fields(self, pairs: Sequence[PreferencePair]) -> dict[str, Tensor]:
        """Return the numeric columns that the objective reads, (B,), or (B, T) by token."""
        numbers: dict[str, Tensor] = {}
        single_key: dict[str, Response | None] = {"": None}  # a user's own column is a number
        columns = [
            (name, *item) for name in self._fields for item in COLUMNS.get(name, single_key).items()
        ]
        for column, key, response in columns:
            name = f"{column}/{key}" if key else column
            rows: list[Tensor] = []
            for pair in pairs:
                value = pair.scores.get(name)
                if value is None:
                    raise TrialError(f"pair {pair.id} has no {name}, which the objective reads")
                if response is None or isinstance(value, float):
                    rows.append(torch.tensor(value, dtype=torch.float32))
                    continue
                token_scores = self._spread_scores(pair, getattr(pair, response), value)
                rows.append(torch.tensor(token_scores, dtype=torch.float32))
            stack = torch.stack if response is None else _pad_scores
            numbers[name] = stack(rows)
        return numbers

    def _spread_scores(
        self, pair: PreferencePair, text: str, sentences: Sequence[tuple[str, float]]
    ) -> list[float]:
        """Return each token's number, that of its sentence; end tokens get the last sentence's."""
        tokenizer = self._processor.tokenizer
        if hasattr(self._processor, "labels") or not tokenizer.is_fast:
            raise TrialError(
                "scores of sentences need a fast tokenizer and a single end of sequence"
            )
        try:
            ends = find_sentence_ends(text, [sentence for sentence, _ in sentences], "a score")
        except RowError as error:
            raise TrialError(f"pair {pair.id}: {error}") from None
        processor, (hidden_text,) = self._special_tokens.hide(text)
        # Offsets of the text itself: the stand-ins in `hidden_text` have none.
        options = {} if hidden_text == text else {"split_special_tokens": True}
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
        if (
            encoded["input_ids"]
            != processor.tokenizer(hidden_text, add_special_tokens=False)["input_ids"]
        ):
            raise TrialError(
                f"pair {pair.id}: scores of sentences need a tokenizer that gives its tokens' "
                "offsets in a text with special tokens: leave the pair out"
            )
        values = [value for _, value in sentences]
        last = len(ends) - 1
        token_scores = [
            values[min(bisect_right(ends, start), last)] for start, _ in encoded["offset_mapping"]
        ]
        return [*token_scores, values[last]]

    def _get_encoded(self, index: int, epoch: int) -> _EncodedPair:
        """Return an epoch's pair, encoded now or kept from before."""
        key = None
        if isinstance(self._pairs, Pairs) and self._config.training.augment == "off":
            key = self._pairs.content_key(index)
        if key is None or self._encodings is None:
            return self._encode(index, epoch)
        settings = self._config.objective
        rule = self._config.training.label_rule
        return self._encodings.get(
            ("pair", key, rule, settings.segment_scope, settings.segment.insertions),
            lambda: self._encode(index, epoch),
            lambda encoded: [
                *encoded.prompt.inputs.values(),
                *(
                    ()
                    if encoded.own_prompt is encoded.prompt
                    else encoded.own_prompt.inputs.values()
                ),
            ],
        )

    def _encode(self, index: int, epoch: int) -> _EncodedPair:
        pair = self._load_pair(index, epoch)
        prompt = self._encode_prompt(pair, pair.image)
        own_prompt = prompt if pair.own_image is None else self._encode_prompt(pair, pair.own_image)
        chosen = self._encode_answer(pair, prompt, pair.chosen)
        rejected = self._encode_answer(pair, own_prompt, pair.rejected)
        changed = self._find_changed_tokens(prompt, chosen, rejected)
        return _EncodedPair(
            pair=pair,
            prompt=prompt,
            chosen=(chosen, changed[0]),
            rejected=(rejected, changed[1]),
            own_prompt=own_prompt,
        )

    def _load_pair(self, index: int, epoch: int) -> PreferencePair:
        """Return a pair with an epoch's augmentation."""
        pair = self._pairs[index]
        if self._config.training.augment == "off":
            return pair
        size = getattr(getattr(self._processor, "image_processor", None), "size", None) or {}
        sides = [size[name] for name in ("width", "height") if name in size and size[name]]
        seed = derive_seed("augment", self._config.seed, pair.id, epoch)
        image_size = (sides[0], sides[1]) if len(sides) == 2 else None
        own_image = pair.own_image
        return replace(
            pair,
            image=augment_image(to_rgb_image(pair.image), image_size, seed),
            own_image=None
            if own_image is None
            else augment_image(to_rgb_image(own_image), image_size, seed),
        )

    def _encode_prompt(self, pair: PreferencePair, image: Any) -> _Prompt:
        processor, (hidden_prompt,) = self._special_tokens.hide(pair.prompt)
        text = processor.apply_chat_template(
            [_make_question(hidden_prompt)],
            add_generation_prompt=True,
            **training_template(processor),
        )
        encoded = processor(images=[image], text=[text], return_tensors="pt")
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask")
        return _Prompt(ids=ids, inputs=dict(encoded))

    def _encode_rejected_prompt(
        self, pair: PreferencePair, prompt: _Prompt, epoch: int
    ) -> tuple[_Prompt, bool]:
        """Return the prompt with the rejected image, and whether that is the true one."""
        maker = self._rejected_images
        if maker.acts_on_pixel_values:
            pixels = maker.corrupt(prompt.inputs["pixel_values"], sample=pair.id, epoch=epoch)
            return _Prompt(ids=prompt.ids, inputs={**prompt.inputs, "pixel_values": pixels}), False
        rejected = maker.image(pair, epoch=epoch, others=self._pairs, given=pair.rejected_image)
        # An image of another size may take another number of tokens, so the prompt is encoded
        # again.
        return self._encode_prompt(pair, rejected.image), rejected.void

    def _merge_image_tokens(self, ids: list[int]) -> list[int]:
        """Return a prompt's ids with one token for the image, for comparing segments."""
        image = self._processor.image_token_id
        return [
            token
            for index, token in enumerate(ids)
            if token != image or index == 0 or ids[index - 1] != image
        ]

    def _encode_answer(self, pair: PreferencePair, prompt: _Prompt, text: str) -> EncodedResponse:
        rule = self._config.training.label_rule
        processor, (hidden_prompt, hidden_text) = self._special_tokens.hide(pair.prompt, text)
        return encode_response(
            processor, _make_question(hidden_prompt), prompt.ids, hidden_text, rule
        )

    def _find_changed_tokens(
        self, prompt: _Prompt, chosen: EncodedResponse, rejected: EncodedResponse
    ) -> tuple[list[int], list[int]]:
        """Return the changed tokens of two responses."""
        settings = self._config.objective
        # The end of a response is only compared in whole sequences.
        ids = [
            response.ids
            if settings.segment_scope == "sequence"
            else response.ids[: len(response.ids) - response.closing]
            for response in (chosen, rejected)
        ]
        return changed_tokens(
            settings.segment_scope,
            self._merge_image_tokens(prompt.ids),
            *ids,
            insertions=settings.segment.insertions,
        )

    def _stack_prompts(self, prompts: list[_Prompt]) -> Prompts:
        ids, mask = pad_rows([prompt.ids for prompt in prompts], self._pad_token_id)
        inputs = stack_inputs([prompt.inputs for prompt in prompts], tokens=ids.shape[1])
        return Prompts(ids=ids, mask=mask, inputs=inputs)

    def _stack_responses(self, prompts: list[_Prompt], answers: list[_MarkedResponse]) -> Responses:
        """Return responses cut to the room that the longest sequence leaves after each prompt."""
        max_length = self._config.training.max_length
        cut_ids = []
        for prompt, (response, _) in zip(prompts, answers, strict=True):
            max_tokens = max_length - len(prompt.ids)
            if max_tokens <= 0:
                raise TrialError(
                    f"training.max_length is {max_length}, but a prompt with its image takes "
                    f"{len(prompt.ids)} tokens: raise training.max_length"
                )
            cut_ids.append(response.ids[:max_tokens])
        ids, mask = pad_rows(cut_ids, self._pad_token_id)
        changed = torch.zeros_like(mask)
        for row, (_, positions) in enumerate(answers):
            changed[row, [position for position in positions if position < len(cut_ids[row])]] = (
                True
            )
        responses = Responses(ids=ids, mask=mask, changed=changed)
        if not any(response.leading for response, _ in answers):
            return responses
        leading, leading_mask = pad_rows([response.leading for response, _ in answers], 0)
        leading_ids, _ = pad_rows(
            [
                [prompt.ids[position] for position in response.leading]
                for prompt, (response, _) in zip(prompts, answers, strict=True)
            ],
            self._pad_token_id,
        )
        return responses.with_leading(positions=leading, ids=leading_ids, mask=leading_mask)

    @property
    def _pad_token_id(self) -> int:
        token: int | None = self._processor.tokenizer.pad_token_id
        return 0 if token is None else token


def _make_question(prompt: str) -> Mapping[str, Any]:
    """Return a question, with its image, as a message."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return {"role": "user", "content": content}


def _pad_scores(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class CutCount:
    """The number of responses that a training cut; a repeated one counts once."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._tokens: dict[tuple[str, str], int] = {}  # (sample, side) -> tokens cut

    def add(self, batch: PairBatch) -> None:
        """Count a batch."""
        self._tokens.update(
            {(sample, side): tokens for sample, side, tokens in batch.cut_responses}
        )

    def totals(self) -> dict[str, int]:
        """Return responses and tokens cut, over all workers, which all call this."""
        tokens = [entry[-1] for entry in self.state_dict()["cut"]]
        return {"cut_responses": len(tokens), "cut_tokens": sum(tokens)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of all workers as plain data for a checkpoint."""
        all_cuts = {
            key: cut
            for worker_cuts in self._workers.all_gather(self._tokens)
            for key, cut in worker_cuts.items()
        }
        return {"cut": [[*key, tokens] for key, tokens in all_cuts.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts from a checkpoint."""
        self._tokens = {(sample, side): tokens for sample, side, tokens in state["cut"]}


def iter_batch_indices(
    pairs: int, *, batch_size: int, epochs: int, seed: int
) -> Iterator[list[int]]:
    """Yield the indices of each global batch; an incomplete last one is left out.

    The order depends only on (seed, epoch): every cell of a study sees the same data in the same
    order with the same seed.
    """
    for epoch in range(epochs):
        order = torch.randperm(pairs, generator=make_generator("order", seed, epoch)).tolist()
        for start in range(0, pairs - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def count_steps(pairs: int, *, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Return the number of updates of a training."""
    steps = pairs // batch_size * epochs
    return steps if max_steps is None else min(steps, max_steps)
