"""Encode responses as a model's family writes them, and keep encoded prompts for the next trial.

A processor may define both a response's ids and its scored tokens itself:
`labels(conversation, rule)` returns ids and labels of a whole conversation, as its chat template
`training` writes it. For every other family, a response is its text and an end of sequence, and all
of it is scored.

The arms of a study train on the same pairs and answer the same questions, so each prompt is
processed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chip_core.utils.errors import TrialError
from chip_core.utils.machine import total_memory

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: The chat template for training, if the processor has it.
TRAINING_TEMPLATE = "training"
#: The share of the machine's memory that a process's kept prompts may take.
MEMORY_SHARE = 1 / 128
#: Approximate bytes of an entry in addition to its tensors: token ids, texts and their objects.
ENTRY_OVERHEAD = 4096


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
            f"training.label_rule: {rule}: a {type(processor).__name__} scores only the response: "
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
    positions = _find_scored_positions(labels)
    text_positions = (
        positions
        if rule == "clean"
        else _find_scored_positions(processor.labels(conversation, "clean")[1])
    )
    end = positions[-1] + 1 if positions else len(prompt)
    return EncodedResponse(
        ids=conversation_ids[len(prompt) : end],
        closing=end - (text_positions[-1] + 1) if text_positions else 0,
        leading=tuple(position for position in positions if position < len(prompt)),
    )


def _find_scored_positions(labels: list[int]) -> list[int]:
    return [position for position, label in enumerate(labels) if label != -100]


class EncodingCache:
    """Encoded prompts by key, up to a number of bytes.

    When it is full, new entries are not kept and none is evicted: trials use the same prompts in
    about the same order, so evicting the oldest would always lose the one needed next.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty store of `max_bytes` bytes."""
        self._entries: dict[Hashable, Any] = {}
        self._free_bytes = max_bytes

    def get(
        self, key: Hashable, encode: Callable[[], T], tensors: Callable[[T], Iterable[Tensor]]
    ) -> T:
        """Return the entry of a key, encoding it if it is not kept.

        Args:
            key: equal for inputs that the same processor encodes to equal tensors.
            encode: encodes it.
            tensors: returns an encoded prompt's tensors. Nobody may write to them.
        """
        if key in self._entries:
            return cast(T, self._entries[key])
        encoded = encode()
        size = ENTRY_OVERHEAD + sum(
            tensor.numel() * tensor.element_size() for tensor in tensors(encoded)
        )
        if size <= self._free_bytes:
            self._entries[key] = encoded
            self._free_bytes -= size
        return encoded


class ProcessEncodings:
    """The encoded prompts of the model that this process used last, if they are kept."""

    def __init__(self) -> None:
        """Keep nothing until `enable` is called."""
        self._enabled = False
        self._last: tuple[Hashable, EncodingCache] | None = None

    def enable(self) -> None:
        """Keep what is encoded from now on, for everything that this process runs."""
        self._enabled = True

    def disable(self) -> None:
        """Drop the kept prompts and keep none."""
        self._enabled, self._last = False, None

    def for_model(self, model: Hashable) -> EncodingCache | None:
        """Return the encodings of a model; None if nothing is kept.

        Args:
            model: equal for models whose processors encode alike; another model's encodings are
                dropped.
        """
        if not self._enabled:
            return None
        if self._last is None or self._last[0] != model:
            self._last = (model, EncodingCache(int(MEMORY_SHARE * total_memory())))
        return self._last[1]


#: The instance of this process.
ENCODINGS = ProcessEncodings()
