"""KV caches that grow in place.

transformers' DynamicLayer copies all keys and values of a layer for each token that it adds. Here
tensors have room for the next tokens, and only those are written: in a `GrowingLayer` after all
others, in a `IndexedLayer` at a position of each row.
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


def make_cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument with which a model's `forward` takes a cache.

    transformers 5.24 calls it `cache`; earlier versions, and a model's own code, `past_key_values`.
    """
    return {_cache_parameter(model.__class__): cache}


def get_returned_cache(output: Any) -> Any:
    """Return the cache in a model's output."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


@functools.cache
def _cache_parameter(kind: type) -> str:
    parameters = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    return "cache" if "cache" in parameters else "past_key_values"


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (B, H, T, D) as the beginning of a larger tensor."""

    def __init__(self) -> None:
        """Create an empty layer."""
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, t, D) of the next tokens; return all of them."""
        if not self.is_initialized or self.get_seq_length() == 0:
            self.lazy_initialization(key_states, value_states)
            # Nothing to copy yet, and a prompt that is never continued needs no room.
            self.keys, self.values, self._buffers = key_states, value_states, None
            return self.keys, self.values
        old_length = self.keys.shape[-2]
        new_length = old_length + key_states.shape[-2]
        if not self._has_room(new_length):
            self._buffers = (
                _copy_with_room(self.keys, new_length),
                _copy_with_room(self.values, new_length),
            )
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., old_length:new_length, :] = new
        self.keys, self.values = (buffer[..., :new_length, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows (of B), each as often as it occurs, with room for the next tokens."""
        if not self.is_initialized or self.get_seq_length() == 0:
            return
        length = self.keys.shape[-2]
        self._buffers = (
            _select_with_room(self.keys, indices),
            _select_with_room(self.values, indices),
        )
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _has_room(self, tokens: int) -> bool:
        """Return whether keys and values are the beginning of a tensor with room for `tokens`.

        They are not if they were set from outside, for example by a selection of rows.
        """
        return self._buffers is not None and all(
            tensor.data_ptr() == buffer.data_ptr()
            and tensor.shape[:-2] == buffer.shape[:-2]
            and buffer.shape[-2] >= tokens
            for tensor, buffer in zip((self.keys, self.values), self._buffers, strict=True)
        )


class CachePositions:
    """The positions of the next tokens' keys and values, the same in all layers of a cache."""

    def __init__(self) -> None:
        """Create it without positions, until `assign`."""
        self.end = 0  # columns used by any row by then
        self._columns = torch.empty((0, 0), dtype=torch.long)
        self._indices: dict[tuple[int, int], Tensor] = {}

    def assign(self, columns: Tensor, end: int) -> None:
        """Set the positions.

        Args:
            columns: (B, t) of t tokens of each row.
            end: columns used by any row then.
        """
        self._columns, self.end, self._indices = columns, end, {}

    def index(self, heads: int, row_length: int) -> Tensor:
        """Return the flat indices (B H t,) within all rows, heads and columns.

        Args:
            heads: H.
            row_length: columns of a row.
        """
        if (heads, row_length) not in self._indices:
            rows = torch.arange(len(self._columns), device=self._columns.device)
            starts = (rows[:, None] * heads + torch.arange(heads, device=rows.device)) * row_length
            index = (starts[..., None] + self._columns[:, None]).flatten()
            self._indices[heads, row_length] = index
        return self._indices[heads, row_length]


class IndexedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (B, H, T, D), in larger tensors, written at `positions`."""

    def __init__(self, positions: CachePositions) -> None:
        """Create an empty layer, until `reserve`."""
        super().__init__()
        self._positions = positions
        self._buffers: list[Tensor] = []  # keys, values

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def reserve(self, like: CacheLayerMixin, rows: int, columns: int) -> None:
        """Grow to at least so many rows and columns; the content stays.

        Args:
            like: a layer with keys and values of the same kind.
            rows: B, of which the first may be used.
            columns: of each row.
        """
        if not self._buffers:
            self.lazy_initialization(like.keys, like.values)
        buffers = self._buffers or [new[:0, :, :0] for new in (like.keys, like.values)]
        self._buffers = [_enlarge(buffer, rows, columns) for buffer in buffers]
        self._release_views()

    def write_prefix(self, rows: Tensor, computed: CacheLayerMixin) -> None:
        """Set the first columns of rows to keys and values that were computed before.

        Args:
            rows: their indices.
            computed: a layer with their keys and values, in this order.
        """
        for buffer, new in zip(self._buffers, (computed.keys, computed.values), strict=True):
            buffer[:, :, : new.shape[-2]].index_copy_(0, rows, new)

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self._buffers = [buffer.index_select(0, rows) for buffer in self._buffers]
        self._release_views()

    def _release_views(self) -> None:
        """Drop references to the old tensors, which would keep all layers twice until `update`."""
        self.keys, self.values = (buffer[:, :, :0] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, t, D) of the next tokens; return all of them."""
        positions = self._positions
        index = positions.index(*self._buffers[0].shape[1:3])
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            flat = buffer.view(-1, buffer.shape[-1])
            flat.index_copy_(0, index, new.reshape(-1, buffer.shape[-1]))
        rows = len(key_states)
        self.keys, self.values = (buffer[:rows, :, : positions.end] for buffer in self._buffers)
        return self.keys, self.values


def _enlarge(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """Return a tensor (B, H, T, D) of at least so many rows and columns with the same content.

    The rest is 0: unwritten entries get no weight, but must be finite for that.
    """
    old_rows, heads, old_columns, width = buffer.shape
    if old_rows >= rows and old_columns >= columns:
        return buffer
    enlarged = buffer.new_zeros(max(old_rows, rows), heads, max(old_columns, columns), width)
    enlarged[:old_rows, :, :old_columns] = buffer
    return enlarged


def _copy_with_room(tensor: Tensor, tokens: int) -> Tensor:
    """Return a copy (B, H, T, D) with room for `tokens` and `STRIDE` more."""
    *rows, length, width = tensor.shape
    buffer = tensor.new_empty(*rows, tokens + STRIDE, width)
    buffer[..., :length, :] = tensor
    return buffer


def _select_with_room(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return a copy of rows, with room for `STRIDE` more tokens, in one copy."""
    _, heads, length, width = tensor.shape
    buffer = tensor.new_empty(len(indices), heads, length + STRIDE, width)
    torch.index_select(tensor, 0, indices.to(tensor.device), out=buffer[..., :length, :])
    return buffer


def make_growing_cache(model: Any) -> Cache:
    """Return an empty cache for a model, whose layers grow in place if all keep every token.

    If some do not (a sliding window), it is transformers' own.
    """
    default_cache = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in default_cache.layers):
        return default_cache
    return Cache(layers=[GrowingLayer() for _ in default_cache.layers])
