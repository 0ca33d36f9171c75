"""Muffin's processor: prompts in both of its orders, their tokens, and which of them are scored.

The released code trains with the image before the question, tokenized as the slow tokenizer of 2023
did, and evaluates with the image after it, tokenized as the fast one did. The slow one drops white
space next to an added token; the template `training` writes none there, and so this one tokenizer
serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import BatchFeature, ProcessorMixin

START, PATCH, END = "<im_start>", "<im_patch>", "<im_end>"

#: The end of a turn: nothing after it is part of an answer.
STOP = "###"

#: The start of a turn in training, and the end of a conversation.
_OPEN = "### "

_ASSISTANT = "Assistant:"

_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)

_TEXT = (
    "{% macro text(message) %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% macro pictures(message) %}"
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<im_patch>' }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
)

_EVALUATION = (
    _TEXT + "{{ '" + _SYSTEM.replace("'", "\\'") + "\\n###' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + text(message) }}"
    "{% set shown = pictures(message) %}{% if shown %}{{ '\\n' + shown }}{% endif %}"
    "{% else %}{{ 'Assistant: ' + text(message) }}{% endif %}"
    "{{ '\\n###' }}"
    "{% endfor %}"
)

_TRAINING = (
    _TEXT + "{{ '" + _SYSTEM.replace("'", "\\'") + "\\n\\n### ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% set shown = pictures(message) %}"
    "{% if shown %}{{ 'Human:' + shown + text(message).lstrip() }}"
    "{% else %}{{ 'Human: ' + text(message) }}{% endif %}"
    "{% else %}{{ 'Assistant: ' + text(message) }}{% endif %}"
    "{{ '\\n### ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

#: Templates by name: `default` for questions, `training` for training.
CHAT_TEMPLATES = {"default": _EVALUATION, "training": _TRAINING}

LabelRule = Literal["clean", "released"]


class MuffinProcessor(ProcessorMixin):  # type: ignore[misc]
    """An image processor and a LLaMA tokenizer with `[PAD]` and the three image tokens."""

    image_token = PATCH

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 64,
        chat_template: str | Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        """Create a processor.

        Args:
            image_processor: computes pixel values.
            tokenizer: computes ids.
            image_seq_length: tokens per image, which are the model's queries.
            chat_template: the templates `default` and `training`; None: the released prompts.
            others: arguments of every transformers processor.
        """
        self.image_seq_length = image_seq_length
        self.image_token_id = tokenizer.convert_tokens_to_ids(PATCH)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATES)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Return `input_ids`, `attention_mask` and, with images, `pixel_values`.

        Args:
            images: as many, in order, as there are `<im_patch>` in the texts.
            text: one or several; None: only pixel values.
            return_tensors: `pt`, or None for lists.
            options: the tokenizer's, such as `padding`.

        Raises:
            ValueError: the number of images is another.
        """
        made: dict[str, Any] = {}
        if images is not None:
            made.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            wanted, given = sum(t.count(PATCH) for t in texts), len(made.get("pixel_values", ()))
            if wanted != given:
                raise ValueError(f"{given} images for {wanted} places in the text ({PATCH})")
            made.update(
                self.tokenizer(
                    [self._spelled(t) for t in texts], return_tensors=return_tensors, **options
                )
            )
            made.pop("token_type_ids", None)
        return BatchFeature(made, tensor_type=return_tensors)

    def labels(
        self, conversation: Sequence[Mapping[str, Any]], rule: LabelRule
    ) -> tuple[list[int], list[int]]:
        """Return a conversation for training: (ids, labels), -100 for tokens that are not scored.

        `clean` scores the answers only. `released` scores what the released code does: it finds the
        start of turns from the lengths of the turns tokenized separately, each with an `<s>`. Of a
        question the first two tokens from there count, of everything else every token, including
        the final `### `.

        Args:
            conversation: messages of `user` and `assistant` in turn, as a chat template takes them.
            rule: the rule.
        """
        ids = self._ids(self._rendered(conversation))
        kept = [False] * len(ids)
        if rule == "released":
            before = self._rendered([]).removesuffix(_OPEN)
            place = len(self._ids(before))
            kept[place:] = [True] * (len(ids) - place)
            for message in conversation:
                turn = self._rendered([message]).removeprefix(before).removesuffix(_OPEN)
                length = len(self._ids(turn))
                if message["role"] == "user":
                    asked = range(place + 2, min(place + length, len(ids)))
                    for token in asked:
                        kept[token] = False
                place += length
        else:
            for turns, message in enumerate(conversation):
                if message["role"] == "assistant":
                    question = self._rendered(conversation[:turns], add_generation_prompt=True)
                    answered = self._rendered(conversation[: turns + 1]).removesuffix("\n" + _OPEN)
                    for token in range(len(self._ids(question)), len(self._ids(answered))):
                        kept[token] = True
        return ids, [token if scored else -100 for token, scored in zip(ids, kept, strict=True)]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """Return generated answers as texts: up to the first `###`, without the role's name."""
        texts: list[str] = self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **options
        )
        return [text.split(STOP)[0].strip().removeprefix(_ASSISTANT).strip() for text in texts]

    def _rendered(self, conversation: Sequence[Any], **options: Any) -> str:
        """Return a conversation as text for training, with one `<im_patch>` per image."""
        # A list with one conversation, because a conversation may be empty.
        (text,) = self.apply_chat_template(
            [list(conversation)], chat_template="training", **options
        )
        made: str = text
        return made

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(self._spelled(text))["input_ids"]
        return ids

    def _spelled(self, text: str) -> str:
        """Return a text with all tokens of its images."""
        return text.replace(PATCH, START + PATCH * self.image_seq_length + END)
