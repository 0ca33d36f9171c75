"""From preference pairs to padded tensors.

Shapes: B pairs, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.preferences import PreferencePair
from chip_core.data.rejected_images import RejectedImages
from chip_core.errors import TrialError
from chip_core.objectives.segments import changed_tokens
from chip_core.seeding import derived_seed, generator


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Padded sequences of prompt and response, and what the model takes beside their ids."""

    input_ids: Tensor  # (B, T), padded on the right
    attention_mask: Tensor  # (B, T)
    response: Tensor  # (B, T) bool, true on response tokens
    changed: Tensor  # (B, T) bool, true on tokens of a segment
    inputs: dict[str, Tensor]  # pixel values and their like

    def to(self, device: torch.device) -> Sequences:
        """Return the same on a device."""
        return Sequences(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response=self.response.to(device),
            changed=self.changed.to(device),
            inputs={name: value.to(device) for name, value in self.inputs.items()},
        )


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """What one forward pass of the objective needs."""

    chosen: Sequences
    rejected: Sequences
    rejected_image: Sequences | None  # the chosen response under the rejected image
    void: int = 0  # rejected images that are the true ones after all

    def __len__(self) -> int:
        return len(self.chosen.input_ids)

    def to(self, device: torch.device) -> PairBatch:
        """Return the same on a device."""
        visual = self.rejected_image
        return PairBatch(
            chosen=self.chosen.to(device),
            rejected=self.rejected.to(device),
            rejected_image=None if visual is None else visual.to(device),
            void=self.void,
        )

    @property
    def tokens(self) -> int:
        """How many tokens, padding left out, the policy reads."""
        parts = [self.chosen, self.rejected, self.rejected_image]
        return sum(int(part.attention_mask.sum()) for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    ids: list[int]
    inputs: dict[str, Tensor]


class PairEncoder:
    """Turns pairs into batches for one trial's objective."""

    def __init__(
        self, processor: Any, config: TrialConfig, pairs: Sequence[PreferencePair] = ()
    ) -> None:
        """Make ready.

        Args:
            processor: the model's.
            config: the trial.
            pairs: all training pairs, for strategies that take another pair's image.
        """
        self._processor = processor
        self._config = config
        self._pairs = pairs
        self._visual = config.objective.needs_rejected_image
        per_trial = config.rejected_image.corruption_seed == "per_trial"
        image_processor = getattr(processor, "image_processor", None)
        mean = getattr(image_processor, "image_mean", None)
        self._rejected_images = RejectedImages(
            config.rejected_image,
            seed=derived_seed("corruption", config.seed) if per_trial else 0,
            **({} if mean is None else {"image_mean": mean}),
        )
        self._cut: dict[tuple[str, str], int] = {}  # (sample, side) -> tokens

    @property
    def cut(self) -> dict[str, int]:
        """How many responses were cut to `training.max_length`, and by how many tokens in all.

        A response that is seen again counts once.
        """
        return {"cut_responses": len(self._cut), "cut_tokens": sum(self._cut.values())}

    def state_dict(self) -> dict[str, Any]:
        """Return what it has counted, as plain data for a checkpoint."""
        return {"cut": [[*key, tokens] for key, tokens in self._cut.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self._cut = {(sample, side): tokens for sample, side, tokens in state["cut"]}

    @property
    def may_be_void(self) -> bool:
        """Whether there are images on which the rejected-image strategy has no effect."""
        return self._visual and self._rejected_images.traits.void_where is not None

    def batch(self, pairs: Sequence[PreferencePair], epoch: int = 0) -> PairBatch:
        """Encode and pad pairs of an epoch, counted from 0."""
        chosen, rejected, under_rejected_image = [], [], []
        void = 0
        for pair in pairs:
            prompt = self._prompt(pair, pair.image)
            chosen_ids, rejected_ids = self._answer(pair.chosen), self._answer(pair.rejected)
            marks = changed_tokens(
                self._config.objective.segment_scope,
                self._one_placeholder(prompt.ids),
                chosen_ids,
                rejected_ids,
                insertions=self._config.objective.segment.insertions,
                eos_id=self._processor.tokenizer.eos_token_id,
            )
            chosen.append((prompt, chosen_ids, marks[0]))
            rejected.append((prompt, rejected_ids, marks[1]))
            self._count_cut(pair.id, prompt, {"chosen": chosen_ids, "rejected": rejected_ids})
            if self._visual:
                rejected_prompt, is_void = self._rejected_prompt(pair, prompt, epoch)
                under_rejected_image.append((rejected_prompt, chosen_ids, marks[0]))
                void += is_void
        return PairBatch(
            chosen=self._pad(chosen),
            rejected=self._pad(rejected),
            rejected_image=self._pad(under_rejected_image) if self._visual else None,
            void=void,
        )

    def _prompt(self, pair: PreferencePair, image: Any) -> _Prompt:
        content = [{"type": "image"}, {"type": "text", "text": pair.prompt}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        encoded = self._processor(images=[image], text=[text], return_tensors="pt")
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
        # An image of another size may take another number of tokens: the prompt is made anew.
        return self._prompt(pair, made.image), made.void

    def _one_placeholder(self, ids: list[int]) -> list[int]:
        """Return a prompt's ids with one token for the image, as segments compare them."""
        image = self._processor.image_token_id
        return [
            token
            for place, token in enumerate(ids)
            if token != image or place == 0 or ids[place - 1] != image
        ]

    def _answer(self, text: str) -> list[int]:
        tokenizer = self._processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id]

    def _count_cut(self, sample: str, prompt: _Prompt, answers: dict[str, list[int]]) -> None:
        room = self._config.training.max_length - len(prompt.ids)
        for side, ids in answers.items():
            if room > 0 and len(ids) > room:
                self._cut[sample, side] = len(ids) - room

    def _pad(self, rows: list[tuple[_Prompt, list[int], list[int]]]) -> Sequences:
        longest = self._config.training.max_length
        for prompt, _, _ in rows:
            if len(prompt.ids) >= longest:
                raise TrialError(
                    f"training.max_length is {longest}, but a prompt with its image takes "
                    f"{len(prompt.ids)} tokens: raise training.max_length"
                )
        ids = [(prompt.ids + answer)[:longest] for prompt, answer, _ in rows]
        shape = (len(rows), max(map(len, ids)))
        tokenizer = self._processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        input_ids = torch.full(shape, pad, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        response = torch.zeros(shape, dtype=torch.bool)
        changed = torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, _, marks) in enumerate(rows):
            length, start = len(ids[row]), len(prompt.ids)
            input_ids[row, :length] = torch.tensor(ids[row])
            attention_mask[row, :length] = 1
            response[row, start:length] = True
            changed[row, [start + mark for mark in marks if start + mark < length]] = True
        inputs = stack_inputs([prompt.inputs for prompt, _, _ in rows], tokens=shape[1])
        return Sequences(
            input_ids=input_ids,
            attention_mask=attention_mask,
            response=response,
            changed=changed,
            inputs=inputs,
        )


def stack_inputs(rows: Sequence[dict[str, Tensor]], *, tokens: int) -> dict[str, Tensor]:
    """Return what a family's model takes beside token ids, of several sequences as one batch.

    - One entry a token (`mm_token_type_ids` and its like): 0, which is text, for response and
      padding, to the batch's length.
    - Everything else goes one after the other along its first dimension: one entry an image, or
      (Qwen-VL) all patches of all images. Where images differ in their further dimensions (tiles
      of LLaVA-NeXT, tiles and pixels of Idefics3), the smaller are padded with zeros at the end:
      `image_sizes` or `pixel_attention_mask` tell the model what is padding.
    """
    stacked = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name.endswith("token_type_ids"):
            sizes: tuple[int, ...] = (tokens,)
        else:
            sizes = tuple(map(max, zip(*(value.shape[1:] for value in values), strict=True)))
        stacked[name] = torch.cat([_grown(value, sizes) for value in values])
    return stacked


def _grown(value: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return a tensor padded with zeros, past the first dimension, to these sizes."""
    if value.shape[1:] == sizes:
        return value
    grown = value.new_zeros((value.shape[0], *sizes))
    grown[tuple(slice(size) for size in value.shape)] = value
    return grown


def batch_order(pairs: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of each global batch; a last one that is not full is left out.

    The order is a function of (seed, epoch) alone: every cell of a study sees the same data in
    the same order at the same seed.
    """
    for epoch in range(epochs):
        order = torch.randperm(pairs, generator=generator("order", seed, epoch)).tolist()
        for start in range(0, pairs - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def count_steps(pairs: int, *, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Return how many updates a training makes."""
    steps = pairs // batch_size * epochs
    return steps if max_steps is None else min(steps, max_steps)
