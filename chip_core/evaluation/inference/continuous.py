"""Continuous batching: when a row's answer ends, the next question takes its place.

A batch takes as many steps as its longest answer, so most steps of most rows are wasted. Here the
number of rows stays about the same until the end. The rows of each step depend on the questions'
order and the answers' lengths alone, so they are the same in each run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from chip_core.evaluation.inference.kv_cache import GrowingLayer, make_growing_cache
from chip_core.evaluation.inference.lanes import Lanes
from chip_core.evaluation.inference.prompts import Prompt
from chip_core.evaluation.inference.rows import Row, TokenChooser, compute_logits
from chip_core.evaluation.inference.shared import (
    UNSUPPORTED_ERRORS,
    relative_error,
    shared_length,
)
from chip_core.models.adapters import is_adapted

#: Bytes of keys and values that count as small on a CPU, and the factor for the number of rows
#: then. A step of a small model takes about as long for 192 rows as for 64.
SMALL_CACHE_BYTES = 64 * 2**20
SMALL_CACHE_FACTOR = 3

#: Prompts read in one pass: with more, intermediate results do not stay in a CPU's cache.
MAX_PREFILL_ROWS = 32

#: Tokens of questions that one lane reads after their picture: no question sees another's, but the
#: computation grows with the square of their total.
MAX_LANE_TOKENS = 1024


class RowMemoryError(Exception):
    """The device's memory does not hold a single row."""

    def __init__(self, prompt: Prompt) -> None:
        """Record the row's prompt."""
        super().__init__(prompt.item)
        self.prompt = prompt


class ContinuousBatching:
    """Answers questions group by group, each group on one picture."""

    def __init__(
        self,
        model: Any,
        chooser: TokenChooser,
        *,
        pad_token: int,
        end_tokens: set[int],
        max_new_tokens: int,
    ) -> None:
        """Set up.

        Args:
            model: the model.
            chooser: chooses tokens.
            pad_token: the padding token.
            end_tokens: tokens that end an answer.
            max_new_tokens: the largest number of tokens of an answer.
        """
        self._model, self._chooser, self._pad_token = model, chooser, pad_token
        self._end_tokens, self._max_new_tokens = end_tokens, max_new_tokens

    def run(self, groups: Iterable[Sequence[Prompt]], size: int) -> Iterator[list[Row]]:
        """Yield the rows whose answers have ended, until all have.

        Args:
            groups: prompts, read when there is room for them.
            size: the largest number of rows at a time; more on a CPU if they take little memory. A
                larger group is answered alone.

        Raises:
            RowMemoryError: the device does not hold one row.
        """
        waiting = _WaitingGroups(groups)
        while True:
            state = _RunState(
                lanes=Lanes(
                    self._model, pad_token=self._pad_token, max_new_tokens=self._max_new_tokens
                )
            )
            try:
                yield from self._run_to_end(state, waiting, size)
                return
            except torch.cuda.OutOfMemoryError:
                unfinished = state.lanes.groups + state.joining
                rows = sum(map(len, unfinished))
                if rows == 1:
                    raise RowMemoryError(unfinished[0][0].prompt) from None
            if state.ended:
                yield state.ended
            del state  # frees all that was computed
            torch.cuda.empty_cache()
            size = max(1, rows // 2)
            waiting.requeue(unfinished, size)

    def _run_to_end(
        self, state: _RunState, waiting: _WaitingGroups, size: int
    ) -> Iterator[list[Row]]:
        """Yield ended rows whenever others take their places."""
        lanes, joining, base_size = state.lanes, state.joining, size
        while True:
            joining += waiting.take(len(lanes.rows), size)
            if state.ended and (joining or not lanes.rows):
                ended, state.ended = state.ended, []
                yield ended
            if joining:
                rows = [row for group in joining for row in group]
                is_single = len(joining) == len(rows)
                logits = lanes.add(joining, expected=size if is_single else 0)
                if is_single and 0 < lanes.host_bytes <= SMALL_CACHE_BYTES:
                    size = SMALL_CACHE_FACTOR * base_size
                joining.clear()
            elif lanes.rows:
                rows, logits = lanes.rows, lanes.step()
            else:
                return
            finished = self._append_tokens(rows, logits)
            if finished:
                state.ended += finished
                lanes.remove(finished, shrink=not waiting)

    def _append_tokens(self, rows: Sequence[Row], logits: Tensor) -> list[Row]:
        """Append a token to each row; return those that have ended."""
        for row, token in zip(rows, self._chooser(rows, logits), strict=True):
            row.answer_ids.append(token)
        return [
            row
            for row in rows
            if row.answer_ids[-1] in self._end_tokens or len(row.answer_ids) >= self._max_new_tokens
        ]


@dataclass(kw_only=True)
class _RunState:
    """The rows on the device, and those that have ended."""

    lanes: Lanes
    joining: list[list[Row]] = field(default_factory=list)  # in no lane yet
    ended: list[Row] = field(default_factory=list)  # not yielded yet


class _WaitingGroups:
    """Groups that are not read yet."""

    def __init__(self, groups: Iterable[Sequence[Prompt]]) -> None:
        self._groups = iter(groups)
        self._next: deque[list[Row]] = deque()

    def __bool__(self) -> bool:
        """Whether there is a group left."""
        if not self._next:
            group = next(self._groups, None)
            if group is not None:
                self._next += _split_into_lanes([Row(prompt=prompt) for prompt in group])
        return bool(self._next)

    def take(self, active: int, size: int) -> list[list[Row]]:
        """Return the groups that join `active` rows, once there is enough room.

        Reading one prompt after the other would take longer than leaving rows empty for a while.
        """
        groups: list[list[Row]] = []
        room = size - active
        if active and room < max(1, size // 4):
            return groups
        while self and (len(self._next[0]) <= room or not (active or groups)):
            if sum(map(len, groups)) + len(self._next[0]) > MAX_PREFILL_ROWS and groups:
                break
            if groups and (len(groups[0]) == 1) != (len(self._next[0]) == 1):
                break  # they are read by another method
            groups.append(self._next.popleft())
            room -= len(groups[-1])
        return groups

    def requeue(self, groups: Sequence[Sequence[Row]], size: int) -> None:
        """Restart rows from their prompts, at most `size` of a picture at a time."""
        for group in reversed(groups):
            restarted = [Row(prompt=row.prompt) for row in group]
            starts = range(0, len(restarted), size)
            self._next.extendleft(restarted[start : start + size] for start in reversed(starts))


def _split_into_lanes(rows: list[Row]) -> list[list[Row]]:
    """Split a picture's rows into lanes."""
    start = shared_length([row.prompt for row in rows])
    if start is None:
        return [[row] for row in rows]
    lanes: list[list[Row]] = []
    lane_tokens = 0
    for row in rows:
        own_tokens = len(row.prompt.ids) - start
        if not lanes or lane_tokens + own_tokens > MAX_LANE_TOKENS:
            lanes.append([])
            lane_tokens = 0
        lanes[-1].append(row)
        lane_tokens += own_tokens
    return lanes


def supports_continuous_batching(model: Any, settings: Any) -> bool:
    """Return whether answers need no feature of transformers' `generate` that is missing here.

    That is: the chooser needs only the scores, and an answer ends at an ending token or at its
    largest length. A model's own settings may need more (forbidden words, stop strings). This is
    tested by `generate` itself, which stops before it reads anything.

    Args:
        model: the model.
        settings: how answers are generated.
    """
    if settings.num_beams > 1 or model.config.is_encoder_decoder:
        return False
    if not all(type(layer) is GrowingLayer for layer in make_growing_cache(model).layers):
        return False
    if getattr(model.generation_config, "stop_strings", None):
        return False  # `generate` below would lack the tokenizer that it needs for them
    base_model = model.get_base_model() if is_adapted(model) else model
    if is_adapted(model) and model.active_peft_config.is_prompt_learning:
        return False  # it puts its own tokens before each prompt
    supported = []

    def capture_call(
        called_model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        **_: Any,
    ) -> Tensor:
        is_supported_end = all(
            type(criterion) in (MaxLengthCriteria, EosTokenCriteria)
            for criterion in stopping_criteria
        )
        supported.append(called_model is base_model and not logits_processor and is_supported_end)
        return input_ids

    padding = torch.full((1, 1), settings.pad_token_id, device=next(model.parameters()).device)
    model.generate(
        input_ids=padding,
        attention_mask=torch.ones_like(padding),
        generation_config=settings,
        custom_generate=capture_call,
    )
    is_standard = type(base_model).generate is GenerationMixin.generate
    return is_standard and supported == [True]


def measure_lane_error(model: Any, groups: Sequence[Sequence[Prompt]], padding: int) -> float:
    """Return the error of the first two tokens' logits in lanes, as a share of the largest.

    It is infinite if the family cannot be computed in lanes at all.
    """
    lanes = Lanes(model, pad_token=padding, max_new_tokens=2)
    lanes_tried = [
        lane
        for group in groups[:2]
        for lane in _split_into_lanes([Row(prompt=prompt) for prompt in group[:2]])
    ]
    rows = [row for lane in lanes_tried for row in lane]
    try:
        first_logits = lanes.add(lanes_tried)
        for row, token in zip(rows, first_logits.argmax(-1).tolist(), strict=True):
            row.answer_ids.append(token)
        second_logits = lanes.step()
    except UNSUPPORTED_ERRORS:
        return math.inf
    # Of the first lane the last row, which follows others; of the second the first.
    rows_tried = (
        {lanes_tried[0][-1], lanes_tried[-1][0]} if len(lanes_tried) > 1 else {lanes_tried[0][-1]}
    )
    indices = [index for index, row in enumerate(rows) if row in rows_tried]
    exact = torch.stack(
        [compute_logits(model, rows[index].prompt, rows[index].answer_ids) for index in indices],
        dim=1,
    )
    return relative_error(torch.stack([first_logits, second_logits])[:, indices], exact)
