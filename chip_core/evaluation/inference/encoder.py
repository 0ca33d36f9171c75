"""Encode items into model inputs.

A processor takes longer for a prompt than a small model for its answer: most of the time goes into
the chat template, repeated checks of settings, and the search for picture placeholders. So a text
is rendered and tokenized once, a picture goes to the image processor alone, and the expansion of
its placeholder is copied from another prompt whose pictures have the same layout. Each of these is
compared with the processor's own prompt when it is first used; if they differ, or if nothing is
known, the processor does everything.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chip_core.data.encodings import EncodingCache
from chip_core.data.image_files import to_rgb
from chip_core.data.special_tokens import SpecialTokens
from chip_core.evaluation.inference.prompts import Inputs, Prompt, common
from chip_core.evaluation.task import Item

#: Processors, and the inputs of a picture that decide its layout, besides the shapes of all.
#: For other processors the picture's size may decide it.
_LAID_OUT_BY = {
    "LlavaProcessor": (),
    "MuffinProcessor": (),
    "Qwen2_5_VLProcessor": ("image_grid_thw",),
    "Qwen3VLProcessor": ("image_grid_thw",),
}

#: Texts and layouts that are kept: some MB at most.
_KEPT = 1024

#: Layouts for which a picture's inputs are compared with the processor's own.
_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The tokens of a prompt, from which prompts of pictures with the same layout are made."""

    raw: Sequence[int]  # its text's tokens, with one placeholder for the picture
    end: int  # number of its tokens up to and including the placeholder
    ids: Sequence[int]  # the prompt's first tokens, up to and including the picture
    kinds: Mapping[str, Sequence[int]]
    vision_end: int

    def prompt(self, raw: Sequence[int], pictures: Inputs, item: str) -> Prompt | None:
        """Return the prompt of another text; None if the texts differ before the picture's end."""
        if raw[: self.end] != self.raw[: self.end]:
            return None
        rest = raw[self.end :]
        return Prompt(
            ids=[*self.ids, *rest],
            pictures=pictures,
            kinds={name: [*kinds, *[0] * len(rest)] for name, kinds in self.kinds.items()},
            vision_end=self.vision_end,
            item=item,
        )


class Encoder:
    """Encodes items into prompts; a picture that several items share is processed once."""

    def __init__(
        self, processor: Any, encodings: EncodingCache | None = None, asked: Hashable = None
    ) -> None:
        """Set up.

        Args:
            processor: the model's processor.
            encodings: prompts that it encoded in this process before.
            asked: identifies the items' namespace, such as a benchmark's name.
        """
        self._processor, self._marks = processor, SpecialTokens(processor)
        self._encodings, self._asked = encodings, asked
        self._texts: dict[Hashable, tuple[Any, str]] = {}
        self._raws: dict[Hashable, list[int]] = {}
        self._layouts: dict[tuple[Hashable, Hashable], _Layout] = {}
        # None until tested: prompts from others' layouts, pictures without a text.
        self._composes: bool | None = None
        self._shows: bool | None = None
        self._tried = 0  # layouts whose pictures' inputs were compared with the processor's own
        self._names: tuple[str, ...] = ()  # of a picture's inputs

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
            lambda prompts: prompts[0].pictures.values(),  # the other prompts share them
        )

    def _encode(self, items: Sequence[Item]) -> list[Prompt]:
        pictures = [to_rgb(picture.read()) for picture in items[0].pictures]
        if len(pictures) != 1:
            return [self._whole(item, pictures) for item in items]
        prompts: list[Prompt] = []
        inputs = None
        if self._shows and self._composes and self._may_know(pictures):
            inputs = self._shown(pictures) or None
        for item in items:
            prompt = None if inputs is None else self._composed(item, pictures, inputs)
            if prompt is None:
                prompt = self._whole(item, pictures)
                self._look(item, prompt, pictures, inputs)
            inputs = prompt.pictures if inputs is None else inputs
            prompts.append(prompt)
        return prompts

    def _composed(self, item: Item, pictures: Sequence[Any], inputs: Inputs) -> Prompt | None:
        """Return a prompt made from a known layout, if such prompts equal the processor's."""
        layout = self._layouts.get(self._key(pictures, inputs)) if self._composes else None
        return None if layout is None else layout.prompt(self._raw(item), inputs, item.id)

    def _may_know(self, pictures: Sequence[Any]) -> bool:
        """Return whether the layout of pictures may be known before they are processed."""
        if self._laid_out_by() is not None:
            return True
        sizes = tuple(picture.size for picture in pictures)
        return any(key[1] == sizes for key in self._layouts)

    def _look(
        self, item: Item, whole: Prompt, pictures: Sequence[Any], shown: Inputs | None
    ) -> None:
        """Compare the faster way with a processor's own prompt.

        Args:
            item: the question.
            whole: the processor's prompt of it.
            pictures: its pictures.
            shown: the result of `_shown` for them, if there is one.
        """
        key = self._key(pictures, whole.pictures)
        known = self._layouts.get(key)
        if known is None:
            if self._shows is not False and (shown is not None or self._tried < _TRIED):
                self._tried += 1
                shown = self._shown(pictures, whole.pictures) if shown is None else shown
                self._shows = _equal(shown, whole.pictures)
            layout = _layout(self._raw(item), whole)
            if layout is not None:
                _keep(self._layouts, key, layout)
        elif self._composes is None:
            made = known.prompt(self._raw(item), whole.pictures, item.id)
            if made is not None:
                self._composes = made == whole

    def _shown(self, pictures: Sequence[Any], wanted: Inputs | None = None) -> Inputs:
        """Return the image processor's own output for pictures.

        Args:
            pictures: of one prompt.
            wanted: the processor's output for them; None: the same names as the last time.
        """
        if wanted is not None:
            self._names = tuple(wanted)
        try:
            made = self._processor.image_processor([list(pictures)], return_tensors="pt")
            return {name: made[name] for name in self._names}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}  # the image processor alone cannot do it

    def _laid_out_by(self) -> tuple[str, ...] | None:
        """Return the names of the inputs that decide a picture's layout; None: its size does."""
        own = (each.__name__ for each in type(self._processor).__mro__)
        return next((_LAID_OUT_BY[name] for name in own if name in _LAID_OUT_BY), None)

    def _key(self, pictures: Sequence[Any], inputs: Inputs) -> tuple[Hashable, Hashable]:
        """Return a key that pictures with the same layout share."""
        names = self._laid_out_by()
        shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if names is None:
            return shapes, tuple(picture.size for picture in pictures)
        return shapes, tuple(tuple(inputs[name].flatten().tolist()) for name in names)

    def _text(self, item: Item) -> tuple[Any, str]:
        """Return the processor that reads an item's text, and the text."""
        key = item.prompt, len(item.pictures)
        if key not in self._texts:
            _keep(self._texts, key, self._rendered(item))
        return self._texts[key]

    def _rendered(self, item: Item) -> tuple[Any, str]:
        processor, (asked,) = self._marks.hide(item.prompt)
        content = [{"type": "image"} for _ in item.pictures]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}],
            add_generation_prompt=True,
        )
        return processor, text

    def _raw(self, item: Item) -> list[int]:
        """Return the tokens of an item's text, in which each picture has one placeholder."""
        key = item.prompt, len(item.pictures)
        if key not in self._raws:
            processor, text = self._text(item)
            _keep(self._raws, key, processor.tokenizer(text)["input_ids"])
        return self._raws[key]

    def _whole(self, item: Item, pictures: Sequence[Any]) -> Prompt:
        """Encode a prompt with the processor alone."""
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


def _layout(raw: Sequence[int], whole: Prompt) -> _Layout | None:
    """Return the layout of a prompt's picture; None if it cannot be found.

    Args:
        raw: the tokens of the prompt's text.
        whole: the prompt.
    """
    start = common(raw, whole.ids)
    end = len(raw) - min(common(raw[::-1], whole.ids[::-1]), len(raw) - start)
    shared = len(whole.ids) - (len(raw) - end)
    if shared < whole.vision_end:
        return None
    return _Layout(
        raw=raw,
        end=end,
        ids=whole.ids[:shared],
        kinds={name: kinds[:shared] for name, kinds in whole.kinds.items()},
        vision_end=whole.vision_end,
    )


def _equal(made: Inputs, wanted: Inputs) -> bool:
    return made.keys() == wanted.keys() and all(
        made[name].dtype == value.dtype and torch.equal(made[name], value)
        for name, value in wanted.items()
    )


def _keep(kept: dict[Any, Any], key: Hashable, value: Any) -> None:
    """Store a value, and drop the oldest one if there are too many."""
    if len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


def _state_of(file: Path | None) -> tuple[object, ...]:
    """Return values that change with a picture's file; empty if it has no file of its own."""
    if file is None:
        return ()
    try:
        state = file.stat()
    except OSError:
        return (str(file),)  # reported when it is read
    return str(file), state.st_size, state.st_mtime_ns
