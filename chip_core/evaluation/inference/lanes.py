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

from chip_core.evaluation.inference.begun import Begun, begin
from chip_core.evaluation.inference.kv_cache import STRIDE, PlacedLayer, Places, cache_argument
from chip_core.evaluation.inference.rows import Row


class Lanes:
    """The rows being answered, with their keys and values."""

    def __init__(self, model: Any, *, padding: int, longest: int) -> None:
        """Create it without rows.

        Args:
            model: all of its layers keep every token.
            padding: the padding token.
            longest: the largest number of tokens of an answer.
        """
        self._model, self._padding = model, padding
        self._stride = min(longest, STRIDE)  # columns of room added at a time, per question
        self._device = next(model.parameters()).device
        self._places = Places()
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
        held = self._device.type == "cpu" and self._cache is not None
        return sum(layer.bytes for layer in self._cache.layers) if held else 0

    def enter(self, groups: Sequence[Sequence[Row]], *, expected: int = 0) -> Tensor:
        """Read prompts; return the logits (N, V) of their answers' first tokens.

        Args:
            groups: rows whose prompts share a picture and all tokens up to its end.
            expected: the number of lanes to make room for at once.
        """
        begun = begin(self._model, groups, self._padding)
        free = [place for place, lane in enumerate(self._lanes) if not lane][: len(groups)]
        more = len(groups) - len(free)
        free += range(len(self._lanes), len(self._lanes) + more)
        self._lanes += [[] for _ in range(more)]
        self._used += [0] * more
        self._make_room(begun, expected)
        lanes = torch.tensor(free, device=self._device)
        for mine, made in zip(self._cache.layers, begun.cache.layers, strict=True):
            mine.begin(lanes, made)
        _, questions, width = begun.seen.shape
        hidden = torch.finfo(self._mask.dtype).min
        self._mask[lanes] = hidden
        seen = torch.full(begun.seen.shape, hidden, dtype=self._mask.dtype, device=self._device)
        self._mask[lanes, 0, :questions, :width] = seen.masked_fill_(begun.seen, 0)
        self._positions[..., lanes, :questions] = begun.positions
        for place, group in zip(free, groups, strict=True):
            self._lanes[place], self._used[place] = list(group), width
        return begun.scores

    def step(self) -> Tensor:
        """Read the last token of each row; return the logits (N, V) of the next tokens."""
        questions = self._mask.shape[2]
        self._widen(max(map(sum, zip(self._used, map(len, self._lanes), strict=True))) + 1)
        nowhere = self._mask.shape[-1] - 1
        ids = [[self._padding] * questions for _ in self._lanes]
        columns = [[nowhere] * questions for _ in self._lanes]
        live: list[int] = []
        end = 0
        for place, lane in enumerate(self._lanes):
            for number, row in enumerate(lane):
                ids[place][number] = row.said[-1]
                columns[place][number] = self._used[place] + number
                live.append(place * questions + number)
            self._used[place] += len(lane)
            end = max(end, self._used[place]) if lane else end
        where = torch.tensor(columns, device=self._device)
        self._places.put(where, end)
        self._mask.scatter_(-1, where[:, None, :, None], 0)  # each sees itself
        logits: Tensor = self._model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=self._mask[..., :end],
            position_ids=self._positions,
            **cache_argument(self._model, self._cache),
            use_cache=True,
        ).logits
        logits = logits.flatten(0, 1)
        # Positions of unused entries stay 0: some kinds of RoPE depend on the largest of a batch.
        self._positions = (self._positions + 1) * (where != nowhere)
        if len(live) < len(logits):
            logits = logits[torch.tensor(live, device=self._device)]
        return logits.float()

    def drop(self, ended: Collection[Row], *, shrink: bool) -> None:
        """Remove rows.

        Args:
            ended: the rows.
            shrink: whether no rows will join: then empty lanes are dropped in time.
        """
        gone = set(ended)
        left = [[n for n, row in enumerate(lane) if row not in gone] for lane in self._lanes]
        self._lanes = [
            [lane[n] for n in kept] for lane, kept in zip(self._lanes, left, strict=True)
        ]
        deepest = max(map(len, left))
        if deepest and any(kept != [*range(len(kept))] for kept in left if kept):
            self._reorder([[*kept, *[0] * (deepest - len(kept))] for kept in left])
        elif 0 < deepest < self._mask.shape[2]:
            self._mask = self._mask[:, :, :deepest]
            self._positions = self._positions[..., :deepest]
        taken = [place for place, lane in enumerate(self._lanes) if lane]
        if shrink and 0 < len(taken) <= len(self._lanes) / 2:
            self._keep(taken)

    def _reorder(self, questions: Sequence[Sequence[int]]) -> None:
        """Reorder each lane's questions, to the same number in all lanes."""
        chosen = torch.tensor(questions, device=self._device)
        lanes = torch.arange(len(questions), device=self._device)[:, None]
        self._mask = self._mask[lanes, 0, chosen][:, None]
        self._positions = self._positions[..., lanes, chosen]

    def _keep(self, lanes: Sequence[int]) -> None:
        """Keep only these lanes, in this order."""
        chosen = torch.tensor(lanes, device=self._device)
        for layer in self._cache.layers:
            layer.keep(chosen)
        self._mask, self._positions = self._mask[chosen], self._positions[..., chosen, :]
        self._lanes = [self._lanes[place] for place in lanes]
        self._used = [self._used[place] for place in lanes]

    def _make_room(self, begun: Begun, expected: int) -> None:
        """Make room for lanes that join, and for a token of each of their questions."""
        _, questions, width = begun.seen.shape
        if self._cache is None:
            self._cache = Cache(layers=[PlacedLayer(self._places) for _ in begun.cache.layers])
            dtype = self._model.get_input_embeddings().weight.dtype  # fp32 within `compute_in_fp32`
            self._mask = torch.empty((0, 1, 0, 0), dtype=dtype, device=self._device)
            self._positions = begun.positions[..., :0, :0]
        rows, had = len(self._lanes), self._mask.shape
        columns = width + questions + 1
        columns = had[-1] if columns <= had[-1] else columns + self._stride * questions
        for mine, made in zip(self._cache.layers, begun.cache.layers, strict=True):
            mine.make_room(made, max(rows, expected), columns)
        most = max(had[2], questions)
        self._mask = pad(
            self._mask,
            (0, columns - had[-1], 0, most - had[2], 0, 0, 0, rows - had[0]),
            value=torch.finfo(self._mask.dtype).min,
        )
        self._positions = pad(self._positions, (0, most - had[2], 0, rows - had[0]))

    def _widen(self, columns: int) -> None:
        """Grow to at least this many columns."""
        had = self._mask.shape[-1]
        if columns <= had:
            return
        for layer in self._cache.layers:
            layer.make_room(layer, len(self._lanes), columns + self._stride)
        self._mask = pad(
            self._mask, (0, columns + self._stride - had), value=torch.finfo(self._mask.dtype).min
        )
