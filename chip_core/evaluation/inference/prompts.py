"""From items to what a model reads.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip_core.data.encodings import Encodings
from chip_core.data.image_files import to_rgb
from chip_core.data.special_tokens import SpecialTokens
from chip_core.data.tensors import stack_inputs
from chip_core.evaluation.task import Item

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question as a model reads it, without padding."""

    ids: list[int]
    pictures: Inputs  # pixel values and their like
    kinds: Mapping[str, list[int]]  # one entry a token: what Qwen-VL knows its image tokens by
    vision_end: int  # tokens up to and with the last one of a picture; 0 without one
    item: str = ""  # the question's id: what is drawn for its answer is drawn by it

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return it as a batch of one."""
        return padded([self], [self.ids], device)


class Encoder:
    """Makes prompts of items; a picture that several items share is processed once."""

    def __init__(
        self, processor: Any, encodings: Encodings | None = None, asked: Hashable = None
    ) -> None:
        """Make ready.

        Args:
            processor: the model's.
            encodings: prompts that it encoded in this process before.
            asked: what the items' ids are ids of: a benchmark's name, say.
        """
        self._processor, self._marks = processor, SpecialTokens(processor)
        self._encodings, self._asked = encodings, asked
        self._composes: bool | None = None  # not known before it was tried

    def encode(self, items: Sequence[Item]) -> list[Prompt]:
        """Return the prompts of items that show the same pictures."""
        if self._encodings is None:
            return self._encode(items)
        key = (
            self._asked,
            tuple((item.id, item.prompt) for item in items),
            tuple((picture.key, *_state_of(picture.file)) for picture in items[0].pictures),
        )
        return self._encodings.get(
            ("prompts", key),
            lambda: self._encode(items),
            lambda prompts: prompts[0].pictures.values(),  # those of the others are the same
        )

    def _encode(self, items: Sequence[Item]) -> list[Prompt]:
        pictures = [to_rgb(picture.read()) for picture in items[0].pictures]
        first = self._whole(items[0], pictures)
        prompts = [first]
        for item in items[1:]:
            composed = None
            if len(pictures) == 1 and self._composes is not False:
                composed = self._composed(items[0], first, item)
            if composed is None or self._composes is None:
                whole = self._whole(item, pictures)
                if composed is not None:
                    self._composes = composed.ids == whole.ids and composed.kinds == whole.kinds
                composed = whole
            prompts.append(composed)
        return prompts

    def _text(self, item: Item) -> tuple[Any, str]:
        """Return the processor that reads an item's text, and the text."""
        processor, (asked,) = self._marks.hidden(item.prompt)
        content = [{"type": "image"} for _ in item.pictures]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}],
            add_generation_prompt=True,
        )
        return processor, text

    def _whole(self, item: Item, pictures: Sequence[Any]) -> Prompt:
        """Let the processor do all."""
        shown = {"images": [list(pictures)]} if pictures else {}
        processor, text = self._text(item)
        encoded = dict(processor(**shown, text=[text], return_tensors="pt"))
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask")
        kinds = {
            name: encoded.pop(name)[0].tolist()
            for name in list(encoded)
            if name.endswith("token_type_ids")
        }
        image = self._processor.image_token_id
        places = [place for place, token in enumerate(ids) if token == image]
        return Prompt(
            ids=ids,
            pictures=encoded,
            kinds=kinds,
            vision_end=places[-1] + 1 if places else 0,
            item=item.id,
        )

    def _composed(self, known: Item, first: Prompt, item: Item) -> Prompt | None:
        """Return an item's prompt made of another's that shows the same picture.

        A picture's placeholder becomes many tokens; those are taken over. None where the two
        questions differ before the picture's end.
        """
        raw, other = (
            processor.tokenizer(text)["input_ids"]
            for processor, text in map(self._text, (known, item))
        )
        start = _common(raw, first.ids)
        end = len(raw) - min(_common(raw[::-1], first.ids[::-1]), len(raw) - start)
        if raw[:end] != other[:end]:
            return None
        shared = len(first.ids) - (len(raw) - end)
        rest = other[end:]
        if shared < first.vision_end:
            return None
        return Prompt(
            ids=[*first.ids[:shared], *rest],
            pictures=first.pictures,
            kinds={
                name: [*kinds[:shared], *[0] * len(rest)] for name, kinds in first.kinds.items()
            },
            vision_end=first.vision_end,
            item=item.id,
        )


def padded(
    prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], device: torch.device, *, pad: int = 0
) -> dict[str, Tensor]:
    """Return rows as one batch, padded on the left.

    Args:
        prompts: whose pictures are seen.
        ids: the tokens of each row: a prompt's own, or with some of its answer, or its beginning.
        device: where to.
        pad: the padding token.
    """
    longest = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + list(row) for row in ids]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        ),
    }
    for name in prompts[0].kinds:
        rows = []
        for prompt, row in zip(prompts, ids, strict=True):
            kinds = (prompt.kinds[name] + [0] * len(row))[: len(row)]
            rows.append([0] * (longest - len(row)) + kinds)
        batch[name] = torch.tensor(rows)
    if any(prompt.pictures for prompt in prompts):
        shown = [dict(prompt.pictures) for prompt in prompts if prompt.pictures]
        batch.update(stack_inputs(shown, tokens=longest))
    return {name: value.to(device) for name, value in batch.items()}


def _state_of(file: Path | None) -> tuple[object, ...]:
    """Return what changes when a picture's file does; nothing where it has none of its own."""
    if file is None:
        return ()
    try:
        state = file.stat()
    except OSError:
        return (str(file),)  # told when it is read
    return str(file), state.st_size, state.st_mtime_ns


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many entries two sequences begin with alike."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with alike."""
    return min(_common(rows[0], row) for row in rows)
