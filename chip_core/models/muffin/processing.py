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
_TURN_PREFIX = "### "

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
            ValueError: the number of images differs from that of the placeholders.
        """
        inputs: dict[str, Any] = {}
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            placeholder_count = sum(each_text.count(PATCH) for each_text in texts)
            image_count = len(inputs.get("pixel_values", ()))
            if placeholder_count != image_count:
                raise ValueError(
                    f"{image_count} images for {placeholder_count} placeholders in the text "
                    f"({PATCH})"
                )
            inputs.update(
                self.tokenizer(
                    [self._expand_image_tokens(each_text) for each_text in texts],
                    return_tensors=return_tensors,
                    **options,
                )
            )
            inputs.pop("token_type_ids", None)
        return BatchFeature(inputs, tensor_type=return_tensors)

    def labels(
        self, conversation: Sequence[Mapping[str, Any]], rule: LabelRule
    ) -> tuple[list[int], list[int]]:
        """Return a conversation for training: (ids, labels), -100 for tokens that are not scored.

        `clean` scores the answers only. `released` scores what the released code does: it finds the
        start of turns from the lengths of the turns tokenized separately, each with an `<s>`. In a
        question, the first two tokens from there are scored; in everything else every token,
        including the final `### `.

        Args:
            conversation: messages of `user` and `assistant` in turn, as a chat template takes them.
            rule: the rule.
        """
        ids = self._tokenize(self._render(conversation))
        is_scored = [False] * len(ids)
        if rule == "released":
            prefix = self._render([]).removesuffix(_TURN_PREFIX)
            turn_start = len(self._tokenize(prefix))
            is_scored[turn_start:] = [True] * (len(ids) - turn_start)
            for message in conversation:
                turn = self._render([message]).removeprefix(prefix).removesuffix(_TURN_PREFIX)
                length = len(self._tokenize(turn))
                if message["role"] == "user":
                    unscored = range(turn_start + 2, min(turn_start + length, len(ids)))
                    for token in unscored:
                        is_scored[token] = False
                turn_start += length
        else:
            for turns, message in enumerate(conversation):
                if message["role"] == "assistant":
                    question = self._render(conversation[:turns], add_generation_prompt=True)
                    answered = self._render(conversation[: turns + 1]).removesuffix(
                        "\n" + _TURN_PREFIX
                    )
                    for token in range(
                        len(self._tokenize(question)), len(self._tokenize(answered))
                    ):
                        is_scored[token] = True
        return ids, [
            token if scored else -100 for token, scored in zip(ids, is_scored, strict=True)
        ]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """Return generated answers as texts: up to the first `###`, without the role's name."""
        texts: list[str] = self.tokenizer.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **options
        )
        return [text.split(STOP)[0].strip().removeprefix(_ASSISTANT).strip() for text in texts]

    def _render(self, conversation: Sequence[Any], **options: Any) -> str:
        """Return a conversation as text for training, with one `<im_patch>` per image."""
        # A list with one conversation, because a conversation may be empty.
        (text,) = self.apply_chat_template(
            [list(conversation)], chat_template="training", **options
        )
        rendered: str = text
        return rendered

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(self._expand_image_tokens(text))["input_ids"]
        return ids

    def _expand_image_tokens(self, text: str) -> str:
        """Return a text with all tokens of its images."""
        return text.replace(PATCH, START + PATCH * self.image_seq_length + END)
