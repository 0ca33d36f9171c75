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

from chip_core.data.encodings import EncodingCache, SpecialTokens
from chip_core.data.image_files import to_rgb
from chip_core.evaluation.inference.prompts import Inputs, Prompt, common_length
from chip_core.evaluation.task import Item

#: Processors, and the inputs of a picture that decide its layout, besides the shapes of all.
#: For other processors the picture's size may decide it.
_LAYOUT_INPUTS = {
    "LlavaProcessor": (),
    "MuffinProcessor": (),
    "Qwen2_5_VLProcessor": ("image_grid_thw",),
    "Qwen3VLProcessor": ("image_grid_thw",),
}

#: Texts and layouts that are kept: some MB at most.
_CACHE_SIZE = 1024

#: Layouts for which a picture's inputs are compared with the processor's own.
_MAX_LAYOUT_CHECKS = 8


@dataclass(frozen=True, kw_only=True)
class _PromptLayout:
    """The tokens of a prompt, from which prompts of pictures with the same layout are made."""

    raw: Sequence[int]  # its text's tokens, with one placeholder for the picture
    end: int  # number of its tokens up to and including the placeholder
    ids: Sequence[int]  # the prompt's first tokens, up to and including the picture
    token_types: Mapping[str, Sequence[int]]
    vision_end: int

    def prompt(self, raw: Sequence[int], pictures: Inputs, item: str) -> Prompt | None:
        """Return the prompt of another text; None if the texts differ before the picture's end."""
        if raw[: self.end] != self.raw[: self.end]:
            return None
        rest = raw[self.end :]
        return Prompt(
            ids=[*self.ids, *rest],
            pictures=pictures,
            token_types={
                name: [*token_types, *[0] * len(rest)]
                for name, token_types in self.token_types.items()
            },
            vision_end=self.vision_end,
            item=item,
        )


class Encoder:
    """Encodes items into prompts; a picture that several items share is processed once."""

    def __init__(
        self, processor: Any, encodings: EncodingCache | None = None, namespace: Hashable = None
    ) -> None:
        """Set up.

        Args:
            processor: the model's processor.
            encodings: prompts that it encoded in this process before.
            namespace: identifies the items' namespace, such as a benchmark's name.
        """
        self._processor, self._special_tokens = processor, SpecialTokens(processor)
        self._encodings, self._namespace = encodings, namespace
        self._texts: dict[Hashable, tuple[Any, str]] = {}
        self._text_tokens: dict[Hashable, list[int]] = {}
        self._layouts: dict[tuple[Hashable, Hashable], _PromptLayout] = {}
        # None until tested: prompts from others' layouts, pictures without a text.
        self._can_compose: bool | None = None
        self._can_process_alone: bool | None = None
        # Layouts whose pictures' inputs were compared with the processor's own.
        self._layouts_checked = 0
        self._input_names: tuple[str, ...] = ()  # of a picture's inputs

    def encode(self, items: Sequence[Item]) -> list[Prompt]:
        """Return the prompts of items that show the same pictures."""
        if self._encodings is None:
            return self._encode(items)
        key = (
            self._namespace,
            tuple((item.id, item.prompt) for item in items),
            tuple((picture.key, *_file_state(picture.file)) for picture in items[0].pictures),
        )
        return self._encodings.get(
            ("prompts", key),
            lambda: self._encode(items),
            lambda prompts: prompts[0].pictures.values(),  # the other prompts share them
        )

    def _encode(self, items: Sequence[Item]) -> list[Prompt]:
        pictures = [to_rgb(picture.read()) for picture in items[0].pictures]
        if len(pictures) != 1:
            return [self._encode_fully(item, pictures) for item in items]
        prompts: list[Prompt] = []
        inputs = None
        if self._can_process_alone and self._can_compose and self._may_know_layout(pictures):
            inputs = self._process_pictures(pictures) or None
        for item in items:
            prompt = None if inputs is None else self._compose_prompt(item, pictures, inputs)
            if prompt is None:
                prompt = self._encode_fully(item, pictures)
                self._compare_with_processor(item, prompt, pictures, inputs)
            inputs = prompt.pictures if inputs is None else inputs
            prompts.append(prompt)
        return prompts

    def _compose_prompt(self, item: Item, pictures: Sequence[Any], inputs: Inputs) -> Prompt | None:
        """Return a prompt made from a known layout, if such prompts equal the processor's."""
        layout = (
            self._layouts.get(self._layout_key(pictures, inputs)) if self._can_compose else None
        )
        return None if layout is None else layout.prompt(self._tokenize_text(item), inputs, item.id)

    def _may_know_layout(self, pictures: Sequence[Any]) -> bool:
        """Return whether the layout of pictures may be known before they are processed."""
        if self._layout_input_names() is not None:
            return True
        sizes = tuple(picture.size for picture in pictures)
        return any(key[1] == sizes for key in self._layouts)

    def _compare_with_processor(
        self, item: Item, full_prompt: Prompt, pictures: Sequence[Any], inputs: Inputs | None
    ) -> None:
        """Compare the faster way with a processor's own prompt.

        Args:
            item: the question.
            full_prompt: the processor's prompt of it.
            pictures: its pictures.
            inputs: the result of `_process_pictures` for them, if there is one.
        """
        key = self._layout_key(pictures, full_prompt.pictures)
        known_layout = self._layouts.get(key)
        if known_layout is None:
            if self._can_process_alone is not False and (
                inputs is not None or self._layouts_checked < _MAX_LAYOUT_CHECKS
            ):
                self._layouts_checked += 1
                inputs = (
                    self._process_pictures(pictures, full_prompt.pictures)
                    if inputs is None
                    else inputs
                )
                self._can_process_alone = _are_equal_inputs(inputs, full_prompt.pictures)
            layout = _find_layout(self._tokenize_text(item), full_prompt)
            if layout is not None:
                _store(self._layouts, key, layout)
        elif self._can_compose is None:
            composed = known_layout.prompt(self._tokenize_text(item), full_prompt.pictures, item.id)
            if composed is not None:
                self._can_compose = composed == full_prompt

    def _process_pictures(self, pictures: Sequence[Any], expected: Inputs | None = None) -> Inputs:
        """Return the image processor's own output for pictures.

        Args:
            pictures: of one prompt.
            expected: the processor's output for them; None: the same names as the last time.
        """
        if expected is not None:
            self._input_names = tuple(expected)
        try:
            output = self._processor.image_processor([list(pictures)], return_tensors="pt")
            return {name: output[name] for name in self._input_names}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}  # the image processor alone cannot do it

    def _layout_input_names(self) -> tuple[str, ...] | None:
        """Return the names of the inputs that decide a picture's layout; None: its size does."""
        class_names = (cls.__name__ for cls in type(self._processor).__mro__)
        return next((_LAYOUT_INPUTS[name] for name in class_names if name in _LAYOUT_INPUTS), None)

    def _layout_key(self, pictures: Sequence[Any], inputs: Inputs) -> tuple[Hashable, Hashable]:
        """Return a key that pictures with the same layout share."""
        names = self._layout_input_names()
        shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if names is None:
            return shapes, tuple(picture.size for picture in pictures)
        return shapes, tuple(tuple(inputs[name].flatten().tolist()) for name in names)

    def _get_text(self, item: Item) -> tuple[Any, str]:
        """Return the processor that reads an item's text, and the text."""
        key = item.prompt, len(item.pictures)
        if key not in self._texts:
            _store(self._texts, key, self._render_text(item))
        return self._texts[key]

    def _render_text(self, item: Item) -> tuple[Any, str]:
        processor, (prompt_text,) = self._special_tokens.hide(item.prompt)
        content = [{"type": "image"} for _ in item.pictures]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": prompt_text}]}],
            add_generation_prompt=True,
        )
        return processor, text

    def _tokenize_text(self, item: Item) -> list[int]:
        """Return the tokens of an item's text, in which each picture has one placeholder."""
        key = item.prompt, len(item.pictures)
        if key not in self._text_tokens:
            processor, text = self._get_text(item)
            _store(self._text_tokens, key, processor.tokenizer(text)["input_ids"])
        return self._text_tokens[key]

    def _encode_fully(self, item: Item, pictures: Sequence[Any]) -> Prompt:
        """Encode a prompt with the processor alone."""
        image_arguments = {"images": [list(pictures)]} if pictures else {}
        processor, text = self._get_text(item)
        encoded = dict(processor(**image_arguments, text=[text], return_tensors="pt"))
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask")
        token_types = {
            name: encoded.pop(name)[0].tolist()
            for name in list(encoded)
            if name.endswith("token_type_ids")
        }
        image_token = self._processor.image_token_id
        image_positions = [position for position, token in enumerate(ids) if token == image_token]
        return Prompt(
            ids=ids,
            pictures=encoded,
            token_types=token_types,
            vision_end=image_positions[-1] + 1 if image_positions else 0,
            item=item.id,
        )


def _find_layout(raw: Sequence[int], full_prompt: Prompt) -> _PromptLayout | None:
    """Return the layout of a prompt's picture; None if it cannot be found.

    Args:
        raw: the tokens of the prompt's text.
        full_prompt: the prompt.
    """
    start = common_length(raw, full_prompt.ids)
    end = len(raw) - min(common_length(raw[::-1], full_prompt.ids[::-1]), len(raw) - start)
    prefix_length = len(full_prompt.ids) - (len(raw) - end)
    if prefix_length < full_prompt.vision_end:
        return None
    return _PromptLayout(
        raw=raw,
        end=end,
        ids=full_prompt.ids[:prefix_length],
        token_types={
            name: token_types[:prefix_length]
            for name, token_types in full_prompt.token_types.items()
        },
        vision_end=full_prompt.vision_end,
    )


def _are_equal_inputs(actual: Inputs, expected: Inputs) -> bool:
    return actual.keys() == expected.keys() and all(
        actual[name].dtype == value.dtype and torch.equal(actual[name], value)
        for name, value in expected.items()
    )


def _store(cache: dict[Any, Any], key: Hashable, value: Any) -> None:
    """Store a value, and drop the oldest one if there are too many."""
    if len(cache) >= _CACHE_SIZE:
        del cache[next(iter(cache))]
    cache[key] = value


def _file_state(file: Path | None) -> tuple[object, ...]:
    """Return values that change with a picture's file; empty if it has no file of its own."""
    if file is None:
        return ()
    try:
        state = file.stat()
    except OSError:
        return (str(file),)  # reported when it is read
    return str(file), state.st_size, state.st_mtime_ns
