"""Rows that are answered together: ended rows leave, and others join.

A lane is a row of the batch that a model reads. It holds one picture and all questions on it that
are being answered: the picture's part of the prompt is computed and kept once, and no question
sees another's tokens. So a step reads a token of each question, and a lane has the layout

    [padding | common beginning of the prompts | the questions | tokens of their answers in turn]

where a mask defines which part each question sees. A question alone is a lane of one.

Shapes: S lanes, Q questions of a lane at most, C columns, N rows in all, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from chip_core.evaluation.inference.kv_cache import (
    STRIDE,
    CachePositions,
    IndexedLayer,
    make_cache_argument,
)
from chip_core.evaluation.inference.prefill import Prefilled, prefill
from chip_core.evaluation.inference.rows import Row


class Lanes:
    """The rows being answered, with their keys and values."""

    def __init__(self, model: Any, *, pad_token: int, max_new_tokens: int) -> None:
        """Create it without rows.

        Args:
            model: all of its layers keep every token.
            pad_token: the padding token.
            max_new_tokens: the largest number of tokens of an answer.
        """
        self._model, self._pad_token = model, pad_token
        self._stride = min(max_new_tokens, STRIDE)  # columns of room added at a time, per question
        self._device = next(model.parameters()).device
        self._cache_positions = CachePositions()
        self._cache: Any = None
        self._lanes: list[list[Row]] = []
        self._used: list[int] = []  # columns of each lane
        self._mask = torch.empty(0)  # (S, 1, Q, C), additive; the last column is unused
        self._positions = torch.empty(0, dtype=torch.long)  # (…, S, Q) of the next tokens

    @property
    def groups(self) -> list[list[Row]]:
        """The rows, lane by lane."""
        return [lane for lane in self._lanes if lane]

    @property
    def rows(self) -> list[Row]:
        """The rows, in the order of their scores."""
        return [row for lane in self._lanes for row in lane]

    @property
    def host_bytes(self) -> int:
        """The host memory of the lanes; 0 if they are on another device."""
        is_on_host = self._device.type == "cpu" and self._cache is not None
        return sum(layer.bytes for layer in self._cache.layers) if is_on_host else 0

    def add(self, groups: Sequence[Sequence[Row]], *, expected: int = 0) -> Tensor:
        """Read prompts; return the logits (N, V) of their answers' first tokens.

        Args:
            groups: rows whose prompts share a picture and all tokens up to its end.
            expected: the number of lanes to make room for at once.
        """
        prefilled = prefill(self._model, groups, self._pad_token)
        free_lanes = [index for index, lane in enumerate(self._lanes) if not lane][: len(groups)]
        new_count = len(groups) - len(free_lanes)
        free_lanes += range(len(self._lanes), len(self._lanes) + new_count)
        self._lanes += [[] for _ in range(new_count)]
        self._used += [0] * new_count
        self._reserve(prefilled, expected)
        lanes = torch.tensor(free_lanes, device=self._device)
        for layer, computed in zip(self._cache.layers, prefilled.cache.layers, strict=True):
            layer.write_prefix(lanes, computed)
        _, questions, columns = prefilled.visible.shape
        masked = torch.finfo(self._mask.dtype).min
        self._mask[lanes] = masked
        visible = torch.full(
            prefilled.visible.shape, masked, dtype=self._mask.dtype, device=self._device
        )
        self._mask[lanes, 0, :questions, :columns] = visible.masked_fill_(prefilled.visible, 0)
        self._positions[..., lanes, :questions] = prefilled.positions
        for index, group in zip(free_lanes, groups, strict=True):
            self._lanes[index], self._used[index] = list(group), columns
        return prefilled.logits

    def step(self) -> Tensor:
        """Read the last token of each row; return the logits (N, V) of the next tokens."""
        questions = self._mask.shape[2]
        self._reserve_columns(
            max(map(sum, zip(self._used, map(len, self._lanes), strict=True))) + 1
        )
        unused_column = self._mask.shape[-1] - 1
        ids = [[self._pad_token] * questions for _ in self._lanes]
        columns = [[unused_column] * questions for _ in self._lanes]
        live_entries: list[int] = []
        end = 0
        for index, lane in enumerate(self._lanes):
            for number, row in enumerate(lane):
                ids[index][number] = row.answer_ids[-1]
                columns[index][number] = self._used[index] + number
                live_entries.append(index * questions + number)
            self._used[index] += len(lane)
            end = max(end, self._used[index]) if lane else end
        column_indices = torch.tensor(columns, device=self._device)
        self._cache_positions.assign(column_indices, end)
        self._mask.scatter_(-1, column_indices[:, None, :, None], 0)  # each sees itself
        logits: Tensor = self._model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=self._mask[..., :end],
            position_ids=self._positions,
            **make_cache_argument(self._model, self._cache),
            use_cache=True,
        ).logits
        logits = logits.flatten(0, 1)
        # Positions of unused entries stay 0: some kinds of RoPE depend on the largest of a batch.
        self._positions = (self._positions + 1) * (column_indices != unused_column)
        if len(live_entries) < len(logits):
            logits = logits[torch.tensor(live_entries, device=self._device)]
        return logits.float()

    def remove(self, ended: Collection[Row], *, shrink: bool) -> None:
        """Remove rows.

        Args:
            ended: the rows.
            shrink: whether no rows will join: then empty lanes are dropped in time.
        """
        removed = set(ended)
        remaining = [
            [n for n, row in enumerate(lane) if row not in removed] for lane in self._lanes
        ]
        self._lanes = [
            [lane[n] for n in indices] for lane, indices in zip(self._lanes, remaining, strict=True)
        ]
        max_questions = max(map(len, remaining))
        if max_questions and any(
            indices != [*range(len(indices))] for indices in remaining if indices
        ):
            self._reorder(
                [[*indices, *[0] * (max_questions - len(indices))] for indices in remaining]
            )
        elif 0 < max_questions < self._mask.shape[2]:
            self._mask = self._mask[:, :, :max_questions]
            self._positions = self._positions[..., :max_questions]
        used_lanes = [index for index, lane in enumerate(self._lanes) if lane]
        if shrink and 0 < len(used_lanes) <= len(self._lanes) / 2:
            self._select_lanes(used_lanes)

    def _reorder(self, questions: Sequence[Sequence[int]]) -> None:
        """Reorder each lane's questions, to the same number in all lanes."""
        indices = torch.tensor(questions, device=self._device)
        lanes = torch.arange(len(questions), device=self._device)[:, None]
        self._mask = self._mask[lanes, 0, indices][:, None]
        self._positions = self._positions[..., lanes, indices]

    def _select_lanes(self, lanes: Sequence[int]) -> None:
        """Keep only these lanes, in this order."""
        indices = torch.tensor(lanes, device=self._device)
        for layer in self._cache.layers:
            layer.select_rows(indices)
        self._mask, self._positions = self._mask[indices], self._positions[..., indices, :]
        self._lanes = [self._lanes[index] for index in lanes]
        self._used = [self._used[index] for index in lanes]

    def _reserve(self, prefilled: Prefilled, expected: int) -> None:
        """Make room for lanes that join, and for a token of each of their questions."""
        _, questions, width = prefilled.visible.shape
        if self._cache is None:
            self._cache = Cache(
                layers=[IndexedLayer(self._cache_positions) for _ in prefilled.cache.layers]
            )
            dtype = self._model.get_input_embeddings().weight.dtype  # fp32 within `compute_in_fp32`
            self._mask = torch.empty((0, 1, 0, 0), dtype=dtype, device=self._device)
            self._positions = prefilled.positions[..., :0, :0]
        rows, old_shape = len(self._lanes), self._mask.shape
        columns = width + questions + 1
        columns = old_shape[-1] if columns <= old_shape[-1] else columns + self._stride * questions
        for layer, computed in zip(self._cache.layers, prefilled.cache.layers, strict=True):
            layer.reserve(computed, max(rows, expected), columns)
        max_questions = max(old_shape[2], questions)
        self._mask = pad(
            self._mask,
            (
                0,
                columns - old_shape[-1],
                0,
                max_questions - old_shape[2],
                0,
                0,
                0,
                rows - old_shape[0],
            ),
            value=torch.finfo(self._mask.dtype).min,
        )
        self._positions = pad(
            self._positions, (0, max_questions - old_shape[2], 0, rows - old_shape[0])
        )

    def _reserve_columns(self, columns: int) -> None:
        """Grow to at least this many columns."""
        old_columns = self._mask.shape[-1]
        if columns <= old_columns:
            return
        for layer in self._cache.layers:
            layer.reserve(layer, len(self._lanes), columns + self._stride)
        self._mask = pad(
            self._mask,
            (0, columns + self._stride - old_columns),
            value=torch.finfo(self._mask.dtype).min,
        )
