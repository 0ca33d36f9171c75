"""Continuous batching: when a row's answer ends, the next question takes its place.

A batch takes as many steps as its longest answer, so most steps of most rows are wasted. Here the
number of rows stays about the same until the end. The rows of each step depend on the questions'
order and the answers' lengths alone, so they are the same in each run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from chip_core.evaluation.inference.kv_cache import GrowingLayer, growing_cache
from chip_core.evaluation.inference.lanes import Lanes
from chip_core.evaluation.inference.prompts import Prompt
from chip_core.evaluation.inference.rows import Chooser, Row, logits_alone
from chip_core.evaluation.inference.shared import start_of
from chip_core.models.adapters import is_adapted

#: Bytes of keys and values that count as small on a CPU, and the factor for the number of rows
#: then. A step of a small model takes about as long for 192 rows as for 64.
LITTLE = 64 * 2**20
TIMES = 3

#: Prompts read in one pass: with more, intermediate results do not stay in a CPU's cache.
AT_ONCE = 32

#: Tokens of questions that one lane reads after their picture: no question sees another's, but the
#: computation grows with the square of their total.
BEHIND = 1024


class NoRoomError(Exception):
    """The device's memory does not hold a single row."""

    def __init__(self, prompt: Prompt) -> None:
        """Record the row's prompt."""
        super().__init__(prompt.item)
        self.prompt = prompt


class Continuous:
    """Answers questions group by group, each group on one picture."""

    def __init__(
        self,
        model: Any,
        chooser: Chooser,
        *,
        padding: int,
        ends: set[int],
        longest: int,
    ) -> None:
        """Set up.

        Args:
            model: the model.
            chooser: chooses tokens.
            padding: the padding token.
            ends: tokens that end an answer.
            longest: the largest number of tokens of an answer.
        """
        self._model, self._chooser, self._padding = model, chooser, padding
        self._ends, self._longest = ends, longest

    def run(self, groups: Iterable[Sequence[Prompt]], size: int) -> Iterator[list[Row]]:
        """Yield the rows whose answers have ended, until all have.

        Args:
            groups: prompts, read when there is room for them.
            size: the largest number of rows at a time; more on a CPU if they take little memory. A
                larger group is answered alone.

        Raises:
            NoRoomError: the device does not hold one row.
        """
        waiting = _Waiting(groups)
        while True:
            going = _Going(lanes=Lanes(self._model, padding=self._padding, longest=self._longest))
            try:
                yield from self._until_the_end(going, waiting, size)
                return
            except torch.cuda.OutOfMemoryError:
                held = going.lanes.groups + going.coming
                rows = sum(map(len, held))
                if rows == 1:
                    raise NoRoomError(held[0][0].prompt) from None
            if going.ended:
                yield going.ended
            del going  # frees all that was computed
            torch.cuda.empty_cache()
            size = max(1, rows // 2)
            waiting.put_back(held, size)

    def _until_the_end(self, going: _Going, waiting: _Waiting, size: int) -> Iterator[list[Row]]:
        """Yield ended rows whenever others take their places."""
        lanes, coming, few = going.lanes, going.coming, size
        while True:
            coming += waiting.take(len(lanes.rows), size)
            if going.ended and (coming or not lanes.rows):
                ended, going.ended = going.ended, []
                yield ended
            if coming:
                rows = [row for group in coming for row in group]
                single = len(coming) == len(rows)
                scores = lanes.enter(coming, expected=size if single else 0)
                if single and 0 < lanes.host_bytes <= LITTLE:
                    size = TIMES * few
                coming.clear()
            elif lanes.rows:
                rows, scores = lanes.rows, lanes.step()
            else:
                return
            done = self._say(rows, scores)
            if done:
                going.ended += done
                lanes.drop(done, shrink=not waiting)

    def _say(self, rows: Sequence[Row], scores: Tensor) -> list[Row]:
        """Append a token to each row; return those that have ended."""
        for row, token in zip(rows, self._chooser(rows, scores), strict=True):
            row.said.append(token)
        return [row for row in rows if row.said[-1] in self._ends or len(row.said) >= self._longest]


@dataclass(kw_only=True)
class _Going:
    """The rows on the device, and those that have ended."""

    lanes: Lanes
    coming: list[list[Row]] = field(default_factory=list)  # in no lane yet
    ended: list[Row] = field(default_factory=list)  # not yielded yet


class _Waiting:
    """Groups that are not read yet."""

    def __init__(self, groups: Iterable[Sequence[Prompt]]) -> None:
        self._groups = iter(groups)
        self._next: deque[list[Row]] = deque()

    def __bool__(self) -> bool:
        """Whether there is a group left."""
        if not self._next:
            group = next(self._groups, None)
            if group is not None:
                self._next += _lanes_of([Row(prompt=prompt) for prompt in group])
        return bool(self._next)

    def take(self, held: int, size: int) -> list[list[Row]]:
        """Return the groups that join `held` rows, once there is enough room.

        Reading one prompt after the other would take longer than leaving rows empty for a while.
        """
        taken: list[list[Row]] = []
        room = size - held
        if held and room < max(1, size // 4):
            return taken
        while self and (len(self._next[0]) <= room or not (held or taken)):
            if sum(map(len, taken)) + len(self._next[0]) > AT_ONCE and taken:
                break
            if taken and (len(taken[0]) == 1) != (len(self._next[0]) == 1):
                break  # they are read by another method
            taken.append(self._next.popleft())
            room -= len(taken[-1])
        return taken

    def put_back(self, groups: Sequence[Sequence[Row]], size: int) -> None:
        """Restart rows from their prompts, at most `size` of a picture at a time."""
        for group in reversed(groups):
            again = [Row(prompt=row.prompt) for row in group]
            starts = range(0, len(again), size)
            self._next.extendleft(again[start : start + size] for start in reversed(starts))


def _lanes_of(rows: list[Row]) -> list[list[Row]]:
    """Split a picture's rows into lanes."""
    start = start_of([row.prompt for row in rows])
    if start is None:
        return [[row] for row in rows]
    lanes: list[list[Row]] = []
    behind = 0
    for row in rows:
        own = len(row.prompt.ids) - start
        if not lanes or behind + own > BEHIND:
            lanes.append([])
            behind = 0
        lanes[-1].append(row)
        behind += own
    return lanes


def can_continue(model: Any, settings: Any) -> bool:
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
    if not all(type(layer) is GrowingLayer for layer in growing_cache(model).layers):
        return False
    if getattr(model.generation_config, "stop_strings", None):
        return False  # `generate` below would lack the tokenizer that it needs for them
    base = model.get_base_model() if is_adapted(model) else model
    if is_adapted(model) and model.active_peft_config.is_prompt_learning:
        return False  # it puts its own tokens before each prompt
    found = []

    def look(
        asked: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, **_: Any
    ) -> Tensor:
        ends = all(
            type(each) in (MaxLengthCriteria, EosTokenCriteria) for each in stopping_criteria
        )
        found.append(asked is base and not logits_processor and ends)
        return input_ids

    nothing = torch.full((1, 1), settings.pad_token_id, device=next(model.parameters()).device)
    model.generate(
        input_ids=nothing,
        attention_mask=torch.ones_like(nothing),
        generation_config=settings,
        custom_generate=look,
    )
    own = type(base).generate is GenerationMixin.generate
    return own and found == [True]


def inexactness(model: Any, groups: Sequence[Sequence[Prompt]], padding: int) -> float:
    """Return the error of the first two tokens' logits in lanes, as a share of the largest.

    It is infinite if the family cannot be computed in lanes at all.
    """
    lanes = Lanes(model, padding=padding, longest=2)
    few = [
        lane
        for group in groups[:2]
        for lane in _lanes_of([Row(prompt=prompt) for prompt in group[:2]])
    ]
    rows = [row for lane in few for row in lane]
    try:
        first = lanes.enter(few)
        for row, token in zip(rows, first.argmax(-1).tolist(), strict=True):
            row.said.append(token)
        second = lanes.step()
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return float("inf")
    # Of the first lane the last row, which follows others; of the second the first.
    tried = {few[0][-1], few[-1][0]} if len(few) > 1 else {few[0][-1]}
    places = [place for place, row in enumerate(rows) if row in tried]
    alone = torch.stack(
        [logits_alone(model, rows[place].prompt, rows[place].said) for place in places], dim=1
    )
    off = (torch.stack([first, second])[:, places] - alone).abs().amax() / alone.abs().amax()
    return float(off) if off.isfinite() else float("inf")
