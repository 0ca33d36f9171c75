"""Segments: the token spans in which chosen and rejected differ.

Source: released CHiP code (FACTS: difflib's SequenceMatcher over token ids, rejected first,
matching blocks shorter than 3 dropped, a span counted only where both sides changed).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def changed_positions(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    min_match: int = 3,
    insertions: bool = False,
    autojunk: bool = False,
) -> tuple[list[int], list[int]]:
    """Return the positions that changed, in the chosen and in the rejected sequence.

    Between two kept matching blocks lies a span on each side. It counts where both sides are
    non-empty; with `insertions` also where one side alone is.

    Args:
        chosen_ids: token ids of the chosen response.
        rejected_ids: token ids of the rejected response.
        min_match: matching blocks shorter than this do not separate spans.
        insertions: whether a span that is empty on the other side counts.
        autojunk: difflib's heuristic for sequences of 200 and more (the released code has it on).
    """
    # int(): ids may come as tensors, whose elements difflib cannot hash by value.
    rejected, chosen = [int(i) for i in rejected_ids], [int(i) for i in chosen_ids]
    matcher = SequenceMatcher(None, rejected, chosen, autojunk=autojunk)
    changed_chosen: list[int] = []
    changed_rejected: list[int] = []
    end_rejected = end_chosen = 0
    for block in matcher.get_matching_blocks():
        last = block.size == 0
        if block.size < min_match and not last:
            continue
        span_rejected = range(end_rejected, block.a)
        span_chosen = range(end_chosen, block.b)
        if insertions or (span_rejected and span_chosen):
            changed_rejected.extend(span_rejected)
            changed_chosen.extend(span_chosen)
        end_rejected, end_chosen = block.a + block.size, block.b + block.size
    return changed_chosen, changed_rejected
