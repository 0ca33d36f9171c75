"""Segments: the token spans in which chosen and rejected differ.

Source: the released CHiP code: difflib's SequenceMatcher over token ids, rejected first, matching
blocks shorter than 3 dropped, a span counted only where both sides changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal


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
    # int(): ids may be tensors, whose elements difflib cannot hash by value.
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


def changed_tokens(
    scope: Literal["response", "sequence"],
    prompt_ids: Sequence[int],
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    insertions: bool = False,
    eos_id: int | None = None,
) -> tuple[list[int], list[int]]:
    """Return the changed positions of both responses, as `segment.scope` defines them.

    `response`: the responses are compared, and an end of sequence never counts as changed.
    `sequence`: whole sequences are compared, as in the released code: prompt and response from
    their second token, padded on the right with id 0 to the same length, difflib's autojunk on.
    Short matches at the edges of the responses then count differently than with `response`.

    Args:
        scope: what is compared.
        prompt_ids: the prompt, with one placeholder for the image; only read with `sequence`.
        chosen_ids: the chosen response, its end of sequence included.
        rejected_ids: the rejected response, its end of sequence included.
        insertions: whether a span that is empty on the other side counts.
        eos_id: the end of sequence.
    """
    responses = (chosen_ids, rejected_ids)
    if scope == "response":
        texts = [
            ids[:-1] if eos_id is not None and len(ids) and ids[-1] == eos_id else ids
            for ids in responses
        ]
        return changed_positions(*texts, insertions=insertions)
    sequences = [[*prompt_ids, *ids][1:] for ids in responses]
    length = max(map(len, sequences))
    padded = [ids + [0] * (length - len(ids)) for ids in sequences]
    changed = changed_positions(*padded, insertions=insertions, autojunk=True)
    first = len(prompt_ids) - 1  # where a response begins in its sequence
    chosen_changed, rejected_changed = (
        [position - first for position in positions if first <= position < first + len(ids)]
        for positions, ids in zip(changed, responses, strict=True)
    )
    return chosen_changed, rejected_changed
