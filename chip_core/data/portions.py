"""How a global batch is divided: into the portions of one forward pass, over workers and rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Portion:
    """The pairs of one worker's forward pass."""

    places: tuple[int, ...]  # of the pairs in the training data
    counts: bool = True  # False: the pass is made, for the others wait for it, and adds nothing


def portions(
    places: Sequence[int],
    *,
    micro_batch: int,
    workers: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[list[Portion]]:
    """Return each worker's portions of a global batch, round by round.

    Every worker has equally many, of nearly equal size, none above `micro_batch`: a worker that
    has fewer pairs makes a pass that does not count. The portions of a round are of like length,
    so that no worker waits long for another.

    Args:
        places: the pairs of the batch, in their order.
        micro_batch: most pairs of a pass.
        workers: how many share the batch.
        lengths: of every training pair, by place; None: the batch's order is kept.
    """
    rounds = math.ceil(len(places) / (micro_batch * workers))
    count = rounds * workers
    ordered = list(places)
    if lengths is not None and count > 1:
        # Longest first: what does not fit into memory is known at once.
        ordered.sort(key=lambda place: -lengths[place])
    cuts = [math.ceil(len(ordered) * number / count) for number in range(count + 1)]
    cut = [
        Portion(places=tuple(ordered[start:end]))
        if end > start
        else Portion(places=tuple(ordered[:1]), counts=False)
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]
    return [cut[rank::workers] for rank in range(workers)]
