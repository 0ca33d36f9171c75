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
from chip_core.data.answers import EncodedResponse, check_label_rule, encode_response, template_of
from chip_core.data.augment import augment_image
from chip_core.data.encodings import Encodings
from chip_core.data.formats.further import sentence_ends
from chip_core.data.preferences import Pairs, PreferencePair
from chip_core.data.rejected_images import RejectedImages
from chip_core.data.rejected_images.images import as_rgb
from chip_core.data.rows import RowError
from chip_core.data.special_tokens import SpecialTokens
from chip_core.data.tensors import PairBatch, Prompts, Responses, padded, stack_inputs
from chip_core.objectives.parts import COLUMNS, VIEWS, Prefix, Response, view_prefix
from chip_core.objectives.segments import changed_tokens
from chip_core.utils.errors import TrialError
from chip_core.utils.seeding import derive_seed, make_generator
from chip_core.utils.workers import Workers


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    ids: list[int]
    inputs: dict[str, Tensor]


#: A response, and the positions of its changed tokens.
_Marked = tuple[EncodedResponse, list[int]]


@dataclass(frozen=True, kw_only=True)
class _EncodedPair:
    """A pair with the true image, without padding."""

    pair: PreferencePair
    prompt: _Prompt
    chosen: _Marked
    rejected: _Marked
    #: The rejected response's prompt, with its own image if it has one, otherwise the pair's.
    own: _Prompt


class PairEncoder:
    """Encode pairs as batches for one trial's objective."""

    def __init__(
        self,
        processor: Any,
        config: TrialConfig,
        pairs: Sequence[PreferencePair],
        encodings: Encodings | None = None,
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
        self._processor, self._marks = processor, SpecialTokens(processor)
        self._config = config
        self._pairs = pairs
        self._encodings = encodings
        self._views = tuple(config.objective.views if views is None else views)
        self._images = {VIEWS[view][0] for view in self._views}
        self._fields = config.objective.fields if views is None else ()
        per_trial = config.rejected_image.corruption_seed == "per_trial"
        image_processor = getattr(processor, "image_processor", None)
        mean = getattr(image_processor, "image_mean", None)
        self._rejected_images = RejectedImages(
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

    def batch(self, places: Sequence[int], epoch: int = 0) -> PairBatch:
        """Encode and pad pairs, given by their indices in the data, of an epoch counted from 0."""
        prompts: dict[Prefix, list[_Prompt]] = {}
        answers: dict[str, list[_Marked]] = {}
        pairs: list[PreferencePair] = []
        void = 0
        cut: list[tuple[str, str, int]] = []
        for place in places:
            encoded = self._encoded(place, epoch)
            pairs.append(encoded.pair)
            asked, is_void = self._asked(encoded, epoch)
            void += is_void
            for which, prompt in asked.items():
                prompts.setdefault(which, []).append(prompt)
            marked = {"chosen": encoded.chosen, "rejected": encoded.rejected}
            for side, (response, _) in marked.items():
                room = self._config.training.max_length - len(
                    asked[view_prefix(side, separate_images=True)].ids
                )
                if 0 < room < len(response.ids):
                    cut.append((encoded.pair.id, side, len(response.ids) - room))
            for view in self._views:
                if view not in marked:
                    marked[view] = self._under(
                        encoded, asked[view_prefix(view, separate_images=True)], view
                    )
            for view, of_view in marked.items():
                answers.setdefault(view, []).append(of_view)
        sides = any(pair.own_image is not None for pair in pairs)
        lying = {view: view_prefix(view, separate_images=sides) for view in answers}
        responses = {view: self._responses(prompts[lying[view]], answers[view]) for view in answers}
        stacked = {
            which: self._stacked(under)
            for which, under in prompts.items()
            if not which[1] or which in lying.values()
        }
        return PairBatch(
            places=tuple(places),
            epoch=epoch,
            prompts=stacked["image", False],
            chosen=responses.pop("chosen"),
            rejected=responses.pop("rejected"),
            rejected_image_prompts=stacked.get(("rejected_image", False)),
            rejected_image=responses.pop("rejected_image", None),
            void=void,
            cut=tuple(cut),
            second_image_prompts=stacked.get(("second_image", False)),
            more=responses,
            own={image: under for (image, own), under in stacked.items() if own},
            fields=self._numbers(pairs),
        )

    def _asked(self, encoded: _EncodedPair, epoch: int) -> tuple[dict[Prefix, _Prompt], bool]:
        """Return the prompts of a pair's responses, and whether a rejected image is a true one.

        For the rejected response they are the pair's if the row has one image for both.
        """
        pair = encoded.pair
        asked: dict[Prefix, _Prompt] = {
            ("image", False): encoded.prompt,
            ("image", True): encoded.own,
        }
        void = False
        if "rejected_image" in self._images:
            made, void = self._rejected_prompt(pair, encoded.prompt, epoch)
            own = made
            if pair.own_image is not None and "rejected_image_rejected" in self._views:
                # The image given for one side is the other side's.
                turned = replace(pair, image=pair.own_image, rejected_image=pair.image)
                own, of_own = self._rejected_prompt(turned, encoded.own, epoch)
                void = void or of_own
            asked |= {("rejected_image", False): made, ("rejected_image", True): own}
        if "second_image" in self._images:
            asked["second_image", False] = self._second_prompt(pair)
        return asked, void

    def _under(self, encoded: _EncodedPair, prompt: _Prompt, view: str) -> _Marked:
        """Return a pair's response after a prompt, and which of its tokens changed."""
        image, response = VIEWS[view]
        pair, first = encoded.pair, encoded.own if response == "rejected" else encoded.prompt
        if image == "second_image" and pair.second_prompt is not None:
            pair = replace(pair, prompt=pair.second_prompt)
        if response == "other":
            if pair.other is None:
                raise TrialError(f"pair {pair.id} has no third response, which the objective reads")
            return self._answer(pair, prompt, pair.other), []
        again, marks = encoded.chosen if response == "chosen" else encoded.rejected
        if prompt.ids != first.ids:
            text = pair.chosen if response == "chosen" else pair.rejected
            again = self._answer(pair, prompt, text)
        return again, marks

    def _second_prompt(self, pair: PreferencePair) -> _Prompt:
        """Return the prompt with the second image: its own, or the pair's."""
        if pair.second_image is None:
            raise TrialError(f"pair {pair.id} has no second image, which the objective reads")
        text = pair.prompt if pair.second_prompt is None else pair.second_prompt
        return self._prompt(replace(pair, prompt=text), pair.second_image)

    def _numbers(self, pairs: Sequence[PreferencePair]) -> dict[str, Tensor]:
        """Return the numeric columns that the objective reads, (B,), or (B, T) by token."""
        numbers: dict[str, Tensor] = {}
        one: dict[str, Response | None] = {"": None}  # a user's own column is a number
        wanted = [(name, *item) for name in self._fields for item in COLUMNS.get(name, one).items()]
        for column, key, response in wanted:
            name = f"{column}/{key}" if key else column
            rows: list[Tensor] = []
            for pair in pairs:
                value = pair.scores.get(name)
                if value is None:
                    raise TrialError(f"pair {pair.id} has no {name}, which is read")
                if response is None or isinstance(value, float):
                    rows.append(torch.tensor(value, dtype=torch.float32))
                    continue
                by_token = self._by_token(pair, getattr(pair, response), value)
                rows.append(torch.tensor(by_token, dtype=torch.float32))
            together = torch.stack if response is None else _padded_rows
            numbers[name] = together(rows)
        return numbers

    def _by_token(
        self, pair: PreferencePair, text: str, sentences: Sequence[tuple[str, float]]
    ) -> list[float]:
        """Return each token's number: of the sentence it begins in; end tokens get the last one."""
        tokenizer = self._processor.tokenizer
        if hasattr(self._processor, "labels") or not tokenizer.is_fast:
            raise TrialError("scores of sentences need a fast tokenizer, and one end of sequence")
        try:
            ends = sentence_ends(text, [sentence for sentence, _ in sentences], "a score")
        except RowError as error:
            raise TrialError(f"pair {pair.id}: {error}") from None
        processor, (said,) = self._marks.hidden(text)
        # Offsets of the text itself: the stand-ins in `said` have none.
        plain = {} if said == text else {"split_special_tokens": True}
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **plain)
        if encoded["input_ids"] != processor.tokenizer(said, add_special_tokens=False)["input_ids"]:
            raise TrialError(
                f"pair {pair.id}: scores of sentences need a tokenizer that says where in a text "
                "with marks its tokens are: leave the pair out"
            )
        values = [value for _, value in sentences]
        last = len(ends) - 1
        by_token = [
            values[min(bisect_right(ends, start), last)] for start, _ in encoded["offset_mapping"]
        ]
        return [*by_token, values[last]]

    def _encoded(self, place: int, epoch: int) -> _EncodedPair:
        """Return an epoch's pair, encoded now or kept from before."""
        key = None
        if isinstance(self._pairs, Pairs) and self._config.training.augment == "off":
            key = self._pairs.key(place)
        if key is None or self._encodings is None:
            return self._encode(place, epoch)
        settings = self._config.objective
        rule = self._config.training.label_rule
        return self._encodings.get(
            ("pair", key, rule, settings.segment_scope, settings.segment.insertions),
            lambda: self._encode(place, epoch),
            lambda encoded: [
                *encoded.prompt.inputs.values(),
                *(() if encoded.own is encoded.prompt else encoded.own.inputs.values()),
            ],
        )

    def _encode(self, place: int, epoch: int) -> _EncodedPair:
        pair = self._pair(place, epoch)
        prompt = self._prompt(pair, pair.image)
        own = prompt if pair.own_image is None else self._prompt(pair, pair.own_image)
        chosen = self._answer(pair, prompt, pair.chosen)
        rejected = self._answer(pair, own, pair.rejected)
        marks = self._changed(prompt, chosen, rejected)
        return _EncodedPair(
            pair=pair,
            prompt=prompt,
            chosen=(chosen, marks[0]),
            rejected=(rejected, marks[1]),
            own=own,
        )

    def _pair(self, place: int, epoch: int) -> PreferencePair:
        """Return a pair with an epoch's augmentation."""
        pair = self._pairs[place]
        if self._config.training.augment == "off":
            return pair
        size = getattr(getattr(self._processor, "image_processor", None), "size", None) or {}
        sides = [size[name] for name in ("width", "height") if name in size and size[name]]
        seed = derive_seed("augment", self._config.seed, pair.id, epoch)
        both = (sides[0], sides[1]) if len(sides) == 2 else None
        own = pair.own_image
        return replace(
            pair,
            image=augment_image(as_rgb(pair.image), both, seed),
            own_image=None if own is None else augment_image(as_rgb(own), both, seed),
        )

    def _prompt(self, pair: PreferencePair, image: Any) -> _Prompt:
        processor, (asked,) = self._marks.hidden(pair.prompt)
        text = processor.apply_chat_template(
            [_question(asked)], add_generation_prompt=True, **template_of(processor)
        )
        encoded = processor(images=[image], text=[text], return_tensors="pt")
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask")
        return _Prompt(ids=ids, inputs=dict(encoded))

    def _rejected_prompt(
        self, pair: PreferencePair, prompt: _Prompt, epoch: int
    ) -> tuple[_Prompt, bool]:
        """Return the prompt with the rejected image, and whether that is the true one."""
        maker = self._rejected_images
        if maker.acts_on_pixel_values:
            pixels = maker.corrupt(prompt.inputs["pixel_values"], sample=pair.id, epoch=epoch)
            return _Prompt(ids=prompt.ids, inputs={**prompt.inputs, "pixel_values": pixels}), False
        made = maker.image(pair, epoch=epoch, others=self._pairs, given=pair.rejected_image)
        # An image of another size may take another number of tokens, so the prompt is encoded
        # again.
        return self._prompt(pair, made.image), made.void

    def _one_placeholder(self, ids: list[int]) -> list[int]:
        """Return a prompt's ids with one token for the image, for comparing segments."""
        image = self._processor.image_token_id
        return [
            token
            for place, token in enumerate(ids)
            if token != image or place == 0 or ids[place - 1] != image
        ]

    def _answer(self, pair: PreferencePair, prompt: _Prompt, text: str) -> EncodedResponse:
        rule = self._config.training.label_rule
        processor, (asked, said) = self._marks.hidden(pair.prompt, text)
        return encode_response(processor, _question(asked), prompt.ids, said, rule)

    def _changed(
        self, prompt: _Prompt, chosen: EncodedResponse, rejected: EncodedResponse
    ) -> tuple[list[int], list[int]]:
        """Return the changed tokens of two responses."""
        settings = self._config.objective
        # The end of a response is only compared in whole sequences.
        ids = [
            of.ids if settings.segment_scope == "sequence" else of.ids[: len(of.ids) - of.closing]
            for of in (chosen, rejected)
        ]
        return changed_tokens(
            settings.segment_scope,
            self._one_placeholder(prompt.ids),
            *ids,
            insertions=settings.segment.insertions,
        )

    def _stacked(self, prompts: list[_Prompt]) -> Prompts:
        ids, mask = padded([prompt.ids for prompt in prompts], self._padding)
        inputs = stack_inputs([prompt.inputs for prompt in prompts], tokens=ids.shape[1])
        return Prompts(ids=ids, mask=mask, inputs=inputs)

    def _responses(self, prompts: list[_Prompt], answers: list[_Marked]) -> Responses:
        """Return responses cut to the room that the longest sequence leaves after each prompt."""
        longest = self._config.training.max_length
        kept = []
        for prompt, (response, _) in zip(prompts, answers, strict=True):
            room = longest - len(prompt.ids)
            if room <= 0:
                raise TrialError(
                    f"training.max_length is {longest}, but a prompt with its image takes "
                    f"{len(prompt.ids)} tokens: raise training.max_length"
                )
            kept.append(response.ids[:room])
        ids, mask = padded(kept, self._padding)
        changed = torch.zeros_like(mask)
        for row, (_, marks) in enumerate(answers):
            changed[row, [mark for mark in marks if mark < len(kept[row])]] = True
        own = Responses(ids=ids, mask=mask, changed=changed)
        if not any(response.leading for response, _ in answers):
            return own
        places, there = padded([response.leading for response, _ in answers], 0)
        spelled, _ = padded(
            [
                [prompt.ids[place] for place in response.leading]
                for prompt, (response, _) in zip(prompts, answers, strict=True)
            ],
            self._padding,
        )
        return own.led(places=places, ids=spelled, mask=there)

    @property
    def _padding(self) -> int:
        token: int | None = self._processor.tokenizer.pad_token_id
        return 0 if token is None else token


def _question(prompt: str) -> Mapping[str, Any]:
    """Return a question, with its image, as a message."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return {"role": "user", "content": content}


def _padded_rows(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class CutCount:
    """The number of responses that a training cut; a repeated one counts once."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._tokens: dict[tuple[str, str], int] = {}  # (sample, side) -> tokens cut

    def add(self, batch: PairBatch) -> None:
        """Count a batch."""
        self._tokens.update({(sample, side): tokens for sample, side, tokens in batch.cut})

    def totals(self) -> dict[str, int]:
        """Return responses and tokens cut, over all workers, which all call this."""
        tokens = [entry[-1] for entry in self.state_dict()["cut"]]
        return {"cut_responses": len(tokens), "cut_tokens": sum(tokens)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of all workers as plain data for a checkpoint."""
        everyone = {
            key: cut for own in self._workers.all_gather(self._tokens) for key, cut in own.items()
        }
        return {"cut": [[*key, tokens] for key, tokens in everyone.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts from a checkpoint."""
        self._tokens = {(sample, side): tokens for sample, side, tokens in state["cut"]}


def batch_order(pairs: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
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
