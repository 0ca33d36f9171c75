"""Group items into batches. Pure.

A batch takes as long as its longest answer and is as wide as its longest prompt, so similar items
go together: items of one task, with the same number of pictures, by the length of their prompts.
Items with the same picture stay together: its part of the prompt is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from chip_core.evaluation.task import Item


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Items answered together, in groups that each show the same pictures."""

    groups: tuple[tuple[Item, ...], ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, group by group."""
        return tuple(item for group in self.groups for item in group)

    @property
    def kind(self) -> Hashable:
        """The common kind of its groups; batches of the same kind are alike."""
        return _group_kind(self.groups[0])

    def split(self) -> tuple[Batch, Batch]:
        """Split it in two; it has more than one item."""
        if len(self.groups) == 1:
            (group,) = self.groups
            middle = len(group) // 2
            return Batch(groups=(group[:middle],)), Batch(groups=(group[middle:],))
        middle = len(self.groups) // 2
        return Batch(groups=self.groups[:middle]), Batch(groups=self.groups[middle:])


def make_batches(
    items: Sequence[Item], *, size: int, worker: int = 0, workers: int = 1
) -> list[Batch]:
    """Return a worker's batches; every item is in one batch of one worker.

    Args:
        items: all items.
        size: the largest number of items of a batch; above 1, the items of a picture stay together
            up to twice that number, because each part would compute the picture again.
        worker: the worker's index, from 0.
        workers: the number of workers that share the items.
    """
    groups: dict[tuple[object, ...], list[Item]] = {}
    for index, item in enumerate(items):
        keys = tuple(picture.key for picture in item.pictures)
        # Without a picture there is nothing to share: a group of its own.
        groups.setdefault((item.task, *(keys or (index,)), len(keys)), []).append(item)
    # Longest first: what does not fit into memory fails at once, and the end is not a long wait.
    ordered = sorted(groups.values(), key=_similarity_key, reverse=True)
    return list(_fill_batches(ordered[worker::workers], size))


def _fill_batches(groups: Sequence[Sequence[Item]], size: int) -> Iterator[Batch]:
    pending: list[tuple[Item, ...]] = []
    kind: object = None
    for group in groups:
        max_part = len(group) if size > 1 and len(group) <= 2 * size else size
        for start in range(0, len(group), max_part):
            part = tuple(group[start : start + max_part])
            is_full = sum(map(len, pending)) + len(part) > size
            if pending and (is_full or _group_kind(part) != kind):
                yield Batch(groups=tuple(pending))
                pending = []
            pending.append(part)
            kind = _group_kind(part)
    if pending:
        yield Batch(groups=tuple(pending))


def _group_kind(group: Sequence[Item]) -> tuple[str, int, bool]:
    """Return what all groups of a batch have in common."""
    return group[0].task, len(group[0].pictures), len(group) > 1


def _similarity_key(group: Sequence[Item]) -> tuple[object, ...]:
    pixels = sum(picture.pixels for picture in group[0].pictures)
    return *_group_kind(group), pixels, max(len(item.prompt) for item in group)
