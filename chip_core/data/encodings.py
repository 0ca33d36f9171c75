"""Prompts as they were encoded, for the next trial of the same process.

The arms of a study train on the same pairs and answer the same questions: what a processor made of
them is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chip_core.utils.machine import total_memory

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: What the kept prompts of a process may take of the machine's memory.
SHARE = 1 / 128
#: Bytes that an entry takes beside its tensors, about: token ids, texts and their objects.
OVERHEAD = 4096


class Encodings:
    """Encoded prompts by key, up to a number of bytes.

    What comes when it is full is not kept, and nothing is dropped for it: trials ask for the same
    prompts in about the same order, and of a few too many the oldest would always be gone.
    """

    def __init__(self, room: int) -> None:
        """Keep nothing yet; `room` is in bytes."""
        self._kept: dict[Hashable, Any] = {}
        self._room = room

    def get(
        self, key: Hashable, encode: Callable[[], T], tensors: Callable[[T], Iterable[Tensor]]
    ) -> T:
        """Return what a key stands for, encoded now where it is not kept.

        Args:
            key: equal for what is encoded to equal tensors by the same processor.
            encode: encodes it.
            tensors: those of an encoded prompt. Nobody may write to them.
        """
        if key in self._kept:
            return cast(T, self._kept[key])
        made = encode()
        size = OVERHEAD + sum(each.numel() * each.element_size() for each in tensors(made))
        if size <= self._room:
            self._kept[key] = made
            self._room -= size
        return made


class KeptEncodings:
    """The encoded prompts of the model that this process used last, if they are to be kept."""

    def __init__(self) -> None:
        """Nothing is kept, until `keep`."""
        self._keep = False
        self._last: tuple[Hashable, Encodings] | None = None

    def keep(self) -> None:
        """Keep what is encoded from now on, for all that this process runs."""
        self._keep = True

    def forget(self) -> None:
        """Keep nothing."""
        self._keep, self._last = False, None

    def of(self, model: Hashable) -> Encodings | None:
        """Return those of a model; None where nothing is kept.

        Args:
            model: equal for models whose processors encode alike; those of another are dropped.
        """
        if not self._keep:
            return None
        if self._last is None or self._last[0] != model:
            self._last = (model, Encodings(int(SHARE * total_memory())))
        return self._last[1]


#: Of this process.
ENCODINGS = KeptEncodings()
