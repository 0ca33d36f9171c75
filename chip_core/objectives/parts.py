"""The building blocks of an objective: the inputs that it reads of a pair, and the losses that it
sums.

Among what it reads are segments, the token spans in which chosen and rejected differ. Their source:
the released CHiP code: difflib's SequenceMatcher over token ids, rejected first, matching blocks
shorter than 3 dropped, a span counted only where both sides changed.

No torch here: planning a study does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

Image = Literal["image", "rejected_image", "second_image"]
Response = Literal["chosen", "rejected", "other"]

#: A view is a response under an image: its name -> (image, response). `other` is a row's third
#: response, `second_image` a further image of the row, with a prompt of its own or the row's.
VIEWS: dict[str, tuple[Image, Response]] = {
    "rejected": ("image", "rejected"),
    "chosen": ("image", "chosen"),
    "other": ("image", "other"),
    "rejected_image": ("rejected_image", "chosen"),
    "rejected_image_rejected": ("rejected_image", "rejected"),
    "rejected_image_other": ("rejected_image", "other"),
    "second_image": ("second_image", "chosen"),
    "second_image_rejected": ("second_image", "rejected"),
    "second_image_other": ("second_image", "other"),
}

#: What may be read of a view's tokens. logps: log p of each; logits: the raw logit of each;
#: best_other: log p of the most likely token other than it.
Quantity = Literal["logps", "logits", "best_other"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

#: View -> the quantities that are read of it.
Reads = Mapping[str, frozenset[Quantity]]

#: Columns of rows that objectives read, each an object: its key -> the response with a number per
#: sentence; None: a single number.
COLUMNS: dict[str, dict[str, Response | None]] = {
    "clip_scores": {"chosen": None, "rejected": None},
    "image_text_scores": {"chosen": None, "rejected": None},
    "opa_scores": {"rejected_score": "rejected", "revised_score": "other",
                   "revised_image": "other"},
}  # fmt: skip

#: What a loss over several pairs needs of the global batch. tokens: the token count, which its
#: pairs alone determine; scores: sums of log-probabilities, which take a pass over all of it.
Scope = Literal["tokens", "scores"]


def view_name(image: Image, response: Response) -> str:
    """Return the name of a response under an image."""
    return next(name for name, view in VIEWS.items() if view == (image, response))


#: The prefix of a response: an image, and whether it is the rejected side's own.
Prefix = tuple[Image, bool]


def view_prefix(view: str, *, separate_images: bool) -> Prefix:
    """Return the prefix of a view's response.

    Args:
        view: the view.
        separate_images: whether chosen and rejected response have an image each. The rejected
            response is then read under its own image, and under the rejected image made from it.
    """
    image, response = VIEWS[view]
    return image, separate_images and response == "rejected" and image != "second_image"


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a preset, or a user's own term, reads."""

    policy: Reads = field(default_factory=dict)
    reference: Reads = field(default_factory=dict)
    fields: tuple[str, ...] = ()  # columns of a row, in addition to texts and images
    scope: Scope | None = None
    divergence: bool = False  # whether it reads KL(reference || policy), of chosen and rejected
    takes_inputs: bool = True  # whether it takes `losses.Inputs` instead of three responses


@dataclass(frozen=True, kw_only=True)
class Part:
    """One summand: a loss of the rewards of some views, times a weight."""

    name: str  # the name in logs
    loss: str  # of chip_core/objectives/losses.py
    views: tuple[str, ...] = (
        "chosen",
        "rejected",
    )  # views that provide the rewards, the better one first
    weight: float = 1.0
    beta: float | None = None  # None: the objective's


#: What enters a margin of each view; docs/objectives.md has the formulas. log_ratio: lp_π − lp_ref.
#: visual_weights: with TPO's log c added. multiplied: c times log p. guided: V-DPO's
#: log-probability. best_other: that of Re-Align's trainer.
RewardKind = Literal["log_ratio", "visual_weights", "multiplied", "guided", "best_other"]


@dataclass(frozen=True, kw_only=True)
class Method(Requirements):
    """An objective as a sum of parts."""

    parts: tuple[Part, ...]
    reward: RewardKind = "log_ratio"
    settings: Mapping[str, Any] = field(default_factory=dict)  # resolved; only those with an effect
    #: State carried from batch to batch: `mean_reward` (BCO's shift), `gap` (DAMA's mean gap).
    state: Literal["mean_reward", "gap"] | None = None


def changed_positions(
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    min_match: int = 3,
    insertions: bool = False,
    autojunk: bool = False,
) -> tuple[list[int], list[int]]:
    """Return the positions that changed, in the chosen and in the rejected sequence.

    Between two kept matching blocks there is a span on each side. It counts where both sides are
    non-empty; with `insertions`, also where only one side is.

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
