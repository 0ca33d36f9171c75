"""The building blocks of an objective: what it reads of a pair, and the losses that it adds up.

No torch here: planning a study does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

#: View -> what is read of it.
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
    takes_inputs: bool = True  # it takes `losses.Inputs`, else three responses


@dataclass(frozen=True, kw_only=True)
class Part:
    """One summand: a loss of the rewards of some views, times a weight."""

    name: str  # the name in logs
    loss: str  # of chip_core/objectives/losses.py
    views: tuple[str, ...] = ("chosen", "rejected")  # views whose rewards it takes, better first
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
