"""What an objective is made of: what it reads of a pair, and the losses that it adds up.

No torch here: planning a study needs none of it.
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

#: What may be read of a view's tokens.
#: logps: log p of each; logits: the raw logit of each; best_other: log p of the most likely token
#: other than it.
Quantity = Literal["logps", "logits", "best_other"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

#: View -> what is read of it.
Reads = Mapping[str, frozenset[Quantity]]

#: Columns of rows that objectives read, each an object: its key -> the response whose sentences it
#: has a number for; None: it is one number.
COLUMNS: dict[str, dict[str, Response | None]] = {
    "clip_scores": {"chosen": None, "rejected": None},
    "image_text_scores": {"chosen": None, "rejected": None},
    "opa_scores": {"rejected_score": "rejected", "revised_score": "other",
                   "revised_image": "other"},
}  # fmt: skip

#: What a loss that looks at other pairs needs of the global batch. tokens: how many it has, which
#: its pairs alone say; scores: sums of log-probabilities, which take a pass over all of it.
Scope = Literal["tokens", "scores"]


def view_of(image: Image, response: Response) -> str:
    """Return the name of a response under an image."""
    return next(name for name, pair in VIEWS.items() if pair == (image, response))


#: What a response lies behind: an image, and whether it is the rejected side's own.
Behind = tuple[Image, bool]


def behind(view: str, *, sides: bool) -> Behind:
    """Return what a view's response lies behind.

    Args:
        view: the view.
        sides: whether chosen and rejected response have an image each. The rejected one is then
            read under its own, and under the rejected image that is made of that one.
    """
    image, response = VIEWS[view]
    return image, sides and response == "rejected" and image != "second_image"


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is read for a preset, or for a term of a user's own."""

    policy: Reads = field(default_factory=dict)
    reference: Reads = field(default_factory=dict)
    fields: tuple[str, ...] = ()  # columns of a row that are read beside texts and images
    scope: Scope | None = None
    divergence: bool = False  # whether it reads KL(reference || policy), of chosen and rejected
    takes_inputs: bool = True  # `losses.Inputs`, or three responses


@dataclass(frozen=True, kw_only=True)
class Part:
    """One summand: a loss of the rewards of some views, times a weight."""

    name: str  # as it is logged
    loss: str  # of chip_core/objectives/losses.py
    views: tuple[str, ...] = ("chosen", "rejected")  # whose rewards it takes, the better one first
    weight: float = 1.0
    beta: float | None = None  # None: the objective's


#: What enters a margin of each view; docs/objectives.md has the formulas.
#: log_ratio: lp_π − lp_ref. visual_weights: with log c of TPO added. multiplied: c times log p.
#: guided: V-DPO's log-probability. best_other: of Re-Align's trainer.
Reward = Literal["log_ratio", "visual_weights", "multiplied", "guided", "best_other"]


@dataclass(frozen=True, kw_only=True)
class Method(Declared):
    """An objective as a sum of parts."""

    parts: tuple[Part, ...]
    reward: Reward = "log_ratio"
    settings: Mapping[str, Any] = field(default_factory=dict)  # resolved; those that matter
    #: What is carried from batch to batch: `mean_reward` (BCO's shift), `gap` (DAMA's mean gap).
    state: Literal["mean_reward", "gap"] | None = None
