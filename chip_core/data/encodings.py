"""Keep encoded prompts for the next trial of the same process.

The arms of a study train on the same pairs and answer the same questions, so each prompt is
processed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chip_core.utils.machine import total_memory

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: The share of the machine's memory that a process's kept prompts may take.
MEMORY_SHARE = 1 / 128
#: Approximate bytes of an entry in addition to its tensors: token ids, texts and their objects.
ENTRY_OVERHEAD = 4096


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
