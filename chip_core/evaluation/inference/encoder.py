"""From items to what a model reads.

A processor takes longer for a prompt than a small model for its answer: most of it goes into the
chat template, into settings that it checks anew, and into looking for the places of pictures. So a
text is rendered and tokenized once, a picture is given to the image processor alone, and what a
picture's placeholder becomes is taken over from another prompt whose pictures are laid out alike.
All of that is held against the processor's own prompt when it is first done; where it is not
equal, and where nothing is known, the processor does all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chip_core.data.encodings import Encodings
from chip_core.data.image_files import to_rgb
from chip_core.data.special_tokens import SpecialTokens
from chip_core.evaluation.inference.prompts import Inputs, Prompt, common
from chip_core.evaluation.task import Item

#: Processors, and by which of a picture's inputs they lay it out, beside the shapes of all of them.
#: Others may go by the picture's size.
_LAID_OUT_BY = {
    "LlavaProcessor": (),
    "MuffinProcessor": (),
    "Qwen2_5_VLProcessor": ("image_grid_thw",),
    "Qwen3VLProcessor": ("image_grid_thw",),
}

#: Texts and layouts that are kept: some MB at most.
_KEPT = 1024

#: Layouts of which a picture's inputs are held against the processor's own.
_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A prompt whose tokens are known, and how others with such a picture are made of it."""

    raw: Sequence[int]  # its text's tokens, a placeholder for the picture
    end: int  # tokens of it up to and with the picture's
    ids: Sequence[int]  # the prompt's first tokens, up to and with the picture
    kinds: Mapping[str, Sequence[int]]
    vision_end: int

    def prompt(self, raw: Sequence[int], pictures: Inputs, item: str) -> Prompt | None:
        """Return the prompt of another text; None where the two differ before the picture's end."""
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
        self._texts: dict[Hashable, tuple[Any, str]] = {}
        self._raws: dict[Hashable, list[int]] = {}
        self._layouts: dict[tuple[Hashable, Hashable], _Layout] = {}
        # Not known before it was tried: prompts of others' layouts, pictures without a text.
        self._composes: bool | None = None
        self._shows: bool | None = None
        self._tried = 0  # layouts whose pictures' inputs were held against the processor's own
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
            lambda prompts: prompts[0].pictures.values(),  # those of the others are the same
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
        """Return a prompt made of what is known, if that was seen to be the processor's."""
        layout = self._layouts.get(self._key(pictures, inputs)) if self._composes else None
        return None if layout is None else layout.prompt(self._raw(item), inputs, item.id)

    def _may_know(self, pictures: Sequence[Any]) -> bool:
        """Return whether a layout may be known that pictures have, before they are processed."""
        if self._laid_out_by() is not None:
            return True
        sizes = tuple(picture.size for picture in pictures)
        return any(key[1] == sizes for key in self._layouts)

    def _look(
        self, item: Item, whole: Prompt, pictures: Sequence[Any], shown: Inputs | None
    ) -> None:
        """Hold what could have been made faster against a processor's own prompt.

        Args:
            item: the question.
            whole: its prompt.
            pictures: which it shows.
            shown: what `_shown` made of them, where it did.
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
        """Return what the image processor alone makes of pictures.

        Args:
            pictures: of one prompt.
            wanted: what the processor makes of them; None: the same names as of the last ones.
        """
        if wanted is not None:
            self._names = tuple(wanted)
        try:
            made = self._processor.image_processor([list(pictures)], return_tensors="pt")
            return {name: made[name] for name in self._names}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {}  # it is not for this one alone to do

    def _laid_out_by(self) -> tuple[str, ...] | None:
        """Return by which of a picture's inputs it is laid out; None: by its size."""
        own = (each.__name__ for each in type(self._processor).__mro__)
        return next((_LAID_OUT_BY[name] for name in own if name in _LAID_OUT_BY), None)

    def _key(self, pictures: Sequence[Any], inputs: Inputs) -> tuple[Hashable, Hashable]:
        """Return what pictures have in common that are laid out alike."""
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
        processor, (asked,) = self._marks.hidden(item.prompt)
        content = [{"type": "image"} for _ in item.pictures]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}],
            add_generation_prompt=True,
        )
        return processor, text

    def _raw(self, item: Item) -> list[int]:
        """Return the tokens of an item's text, whose placeholder of a picture is one."""
        key = item.prompt, len(item.pictures)
        if key not in self._raws:
            processor, text = self._text(item)
            _keep(self._raws, key, processor.tokenizer(text)["input_ids"])
        return self._raws[key]

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


def _layout(raw: Sequence[int], whole: Prompt) -> _Layout | None:
    """Return how a prompt's picture is laid out; None where that is not seen.

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
    """Keep something, and of too many not the oldest."""
    if len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


def _state_of(file: Path | None) -> tuple[object, ...]:
    """Return what changes when a picture's file does; nothing where it has none of its own."""
    if file is None:
        return ()
    try:
        state = file.stat()
    except OSError:
        return (str(file),)  # told when it is read
    return str(file), state.st_size, state.st_mtime_ns
