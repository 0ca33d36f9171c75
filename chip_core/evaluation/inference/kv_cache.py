"""KV caches that grow in place.

transformers' DynamicLayer copies all keys and values of a layer for each token that it adds. Here
tensors have room for the next tokens, and only those are written: in a `GrowingLayer` after all
others, in a `PlacedLayer` at a position of each row.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

#: Tokens of room added to a full layer, which is copied once for them.
STRIDE = 64


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument with which a model's `forward` takes a cache.

    transformers 5.24 calls it `cache`; earlier versions, and a model's own code, `past_key_values`.
    """
    return {_cache_name(model.__class__): cache}


def returned_cache(output: Any) -> Any:
    """Return the cache in a model's output."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


@functools.cache
def _cache_name(kind: type) -> str:
    taken = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    return "cache" if "cache" in taken else "past_key_values"


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (B, H, T, D) as the beginning of a larger tensor."""

    def __init__(self) -> None:
        """Create an empty layer."""
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, t, D) of the next tokens; return all of them."""
        if not self.is_initialized or self.get_seq_length() == 0:
            self.lazy_initialization(key_states, value_states)
            # Nothing to copy yet, and a prompt that is never continued needs no room.
            self.keys, self.values, self._room = key_states, value_states, None
            return self.keys, self.values
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        if not self._has_room(after):
            self._room = (_roomy(self.keys, after), _roomy(self.values, after))
        assert self._room is not None
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., before:after, :] = new
        self.keys, self.values = (room[..., :after, :] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows (of B), each as often as it occurs, with room for the next tokens."""
        if not self.is_initialized or self.get_seq_length() == 0:
            return
        now = self.keys.shape[-2]
        self._room = (_chosen(self.keys, indices), _chosen(self.values, indices))
        self.keys, self.values = (room[..., :now, :] for room in self._room)

    def _has_room(self, tokens: int) -> bool:
        """Return whether keys and values are the beginning of a tensor with room for `tokens`.

        They are not if they were set from outside, for example by a selection of rows.
        """
        return self._room is not None and all(
            held.data_ptr() == room.data_ptr()
            and held.shape[:-2] == room.shape[:-2]
            and room.shape[-2] >= tokens
            for held, room in zip((self.keys, self.values), self._room, strict=True)
        )


class Places:
    """The positions of the next tokens' keys and values, the same in all layers of a cache."""

    def __init__(self) -> None:
        """Create it without positions, until `put`."""
        self.end = 0  # columns used by any row by then
        self._columns = torch.empty((0, 0), dtype=torch.long)
        self._indices: dict[tuple[int, int], Tensor] = {}

    def put(self, columns: Tensor, end: int) -> None:
        """Set the positions.

        Args:
            columns: (B, t) of t tokens of each row.
            end: columns used by any row then.
        """
        self._columns, self.end, self._indices = columns, end, {}

    def index(self, heads: int, room: int) -> Tensor:
        """Return the flat indices (B H t,) within all rows, heads and columns.

        Args:
            heads: H.
            room: columns of a row.
        """
        if (heads, room) not in self._indices:
            rows = torch.arange(len(self._columns), device=self._columns.device)
            starts = (rows[:, None] * heads + torch.arange(heads, device=rows.device)) * room
            index = (starts[..., None] + self._columns[:, None]).flatten()
            self._indices[heads, room] = index
        return self._indices[heads, room]


class PlacedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (B, H, T, D), in larger tensors, written at `places`."""

    def __init__(self, places: Places) -> None:
        """Create an empty layer, until `make_room`."""
        super().__init__()
        self._places = places
        self._room: list[Tensor] = []  # keys, values

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return sum(room.numel() * room.element_size() for room in self._room)

    def make_room(self, like: CacheLayerMixin, rows: int, columns: int) -> None:
        """Grow to at least so many rows and columns; the content stays.

        Args:
            like: a layer with keys and values of the same kind.
            rows: B, of which the first may be used.
            columns: of each row.
        """
        if not self._room:
            self.lazy_initialization(like.keys, like.values)
        held = self._room or [new[:0, :, :0] for new in (like.keys, like.values)]
        self._room = [_larger(room, rows, columns) for room in held]
        self._let_go()

    def begin(self, rows: Tensor, computed: CacheLayerMixin) -> None:
        """Set the first columns of rows to keys and values that were computed before.

        Args:
            rows: their indices.
            computed: a layer with their keys and values, in this order.
        """
        for room, new in zip(self._room, (computed.keys, computed.values), strict=True):
            room[:, :, : new.shape[-2]].index_copy_(0, rows, new)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self._room = [room.index_select(0, rows) for room in self._room]
        self._let_go()

    def _let_go(self) -> None:
        """Drop references to the old tensors, which would keep all layers twice until `update`."""
        self.keys, self.values = (room[:, :, :0] for room in self._room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, t, D) of the next tokens; return all of them."""
        places = self._places
        index = places.index(*self._room[0].shape[1:3])
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            flat = room.view(-1, room.shape[-1])
            flat.index_copy_(0, index, new.reshape(-1, room.shape[-1]))
        rows = len(key_states)
        self.keys, self.values = (room[:rows, :, : places.end] for room in self._room)
        return self.keys, self.values


def _larger(room: Tensor, rows: int, columns: int) -> Tensor:
    """Return a tensor (B, H, T, D) of at least so many rows and columns with the same content.

    The rest is 0: unwritten entries get no weight, but must be finite for that.
    """
    had, heads, wide, width = room.shape
    if had >= rows and wide >= columns:
        return room
    larger = room.new_zeros(max(had, rows), heads, max(wide, columns), width)
    larger[:had, :, :wide] = room
    return larger


def _roomy(held: Tensor, tokens: int) -> Tensor:
    """Return a copy (B, H, T, D) with room for `tokens` and `STRIDE` more."""
    *rows, now, width = held.shape
    room = held.new_empty(*rows, tokens + STRIDE, width)
    room[..., :now, :] = held
    return room


def _chosen(held: Tensor, indices: Tensor) -> Tensor:
    """Return a copy of rows, with room for `STRIDE` more tokens, in one copy."""
    _, heads, now, width = held.shape
    room = held.new_empty(len(indices), heads, now + STRIDE, width)
    torch.index_select(held, 0, indices.to(held.device), out=room[..., :now, :])
    return room


def growing_cache(model: Any) -> Cache:
    """Return an empty cache for a model, whose layers grow in place if all keep every token.

    If some do not (a sliding window), it is transformers' own.
    """
    own = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in own.layers):
        return own
    return Cache(layers=[GrowingLayer() for _ in own.layers])
