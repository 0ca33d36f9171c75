"""Encode responses as a model's family writes them after a prompt, and select the scored tokens.

A processor may define both itself: `labels(conversation, rule)` returns ids and labels of a whole
conversation, as its chat template `training` writes it. For every other family, a response is its
text and an end of sequence, and all of it is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chip_core.utils.errors import TrialError

#: The chat template for training, if the processor has it.
TRAINING_TEMPLATE = "training"


@dataclass(frozen=True, kw_only=True)
class EncodedResponse:
    """A response after its prompt."""

    ids: list[int]  # after the prompt
    closing: int  # how many of them, at the end, are not part of its text
    #: Positions in the prompt whose tokens are scored like the response's.
    leading: tuple[int, ...] = ()


def check_label_rule(processor: Any, rule: str) -> None:
    """Check that a processor supports `training.label_rule`.

    Raises:
        TrialError: it has only one rule.
    """
    if rule != "clean" and not hasattr(processor, "labels"):
        raise TrialError(
            f"training.label_rule: {rule}: a {type(processor).__name__} scores the response alone: "
            "write clean"
        )


def training_template(processor: Any) -> dict[str, str]:
    """Return the chat template for training, as an option of `apply_chat_template`."""
    templates = processor.chat_template
    return (
        {"chat_template": TRAINING_TEMPLATE}
        if isinstance(templates, dict) and TRAINING_TEMPLATE in templates
        else {}
    )


def encode_response(
    processor: Any, question: Mapping[str, Any], prompt: list[int], text: str, rule: str
) -> EncodedResponse:
    """Encode a response after a prompt.

    Args:
        processor: the model's.
        question: the message that the prompt was made from.
        prompt: its ids.
        text: the response.
        rule: `training.label_rule`.

    Raises:
        TrialError: response and prompt are tokenized differently together than separately.
    """
    if not hasattr(processor, "labels"):
        tokenizer = processor.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return EncodedResponse(ids=[*ids, tokenizer.eos_token_id], closing=1)
    reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    conversation = [question, reply]
    conversation_ids, labels = processor.labels(conversation, rule)
    if conversation_ids[: len(prompt)] != prompt:
        raise TrialError(
            f"the response {text[:40]!r} changes how the tokens of its prompt are spelled: leave "
            "the pair out"
        )
    positions = _scored_positions(labels)
    text_positions = (
        positions
        if rule == "clean"
        else _scored_positions(processor.labels(conversation, "clean")[1])
    )
    end = positions[-1] + 1 if positions else len(prompt)
    return EncodedResponse(
        ids=conversation_ids[len(prompt) : end],
        closing=end - (text_positions[-1] + 1) if text_positions else 0,
        leading=tuple(position for position in positions if position < len(prompt)),
    )


def _scored_positions(labels: list[int]) -> list[int]:
    return [position for position, label in enumerate(labels) if label != -100]
