"""A loss term of a user's own, named `module:attr` in a recipe or study.

It is a function like the terms in `forms.py`:

    def my_term(chosen, rejected, rejected_image, beta):
        return -F.logsigmoid(beta * (chosen.log_ratio() - rejected.log_ratio()))

of three `ResponseScores` (the last is None unless asked for) and the objective's beta, and returns
one loss a pair, (B,). What it needs beyond log-probabilities it says in an attribute:

    my_term.needs = {"rejected_image", "divergence"}
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from chip_core.objectives.terms import ResponseScores
from chip_core.utils import plugins
from chip_core.utils.errors import TrialError

NEEDS = frozenset({"rejected_image", "divergence"})

CustomTerm = Callable[[ResponseScores, ResponseScores, ResponseScores | None, float], Tensor]


def load_term(name: str) -> CustomTerm:
    """Return the term that `module:attr` names.

    Raises:
        ValueError: it cannot be imported, is no function, or needs what there is not.
    """
    term = plugins.load(name)
    if not callable(term):
        raise ValueError(f"'{name}' is no function: see docs/plugins.md")
    unknown = sorted(needs(term) - NEEDS)
    if unknown:
        raise ValueError(f"'{name}' needs {', '.join(unknown)}: it may need {sorted(NEEDS)}")
    return term  # type: ignore[no-any-return]


def needs(term: Any) -> frozenset[str]:
    """Return what a term needs beyond log-probabilities.

    Raises:
        ValueError: it does not say so by names.
    """
    said = getattr(term, "needs", ())
    names = (said,) if isinstance(said, str) else said
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`needs` is {said!r}: write names, such as {{'divergence'}}")
    return frozenset(names)


def computed(
    name: str,
    chosen: ResponseScores,
    rejected: ResponseScores,
    rejected_image: ResponseScores | None,
    beta: float,
) -> Tensor:
    """Return a term's loss of each pair, (B,).

    Raises:
        TrialError: it returned something else.
    """
    term = load_term(name)
    loss = term(chosen, rejected, rejected_image if "rejected_image" in needs(term) else None, beta)
    pairs = chosen.mask.shape[:1]
    if not isinstance(loss, Tensor) or loss.shape != pairs:
        raise TrialError(
            f"objective.custom: '{name}' returned {_shape(loss)}, not one loss a pair, "
            f"{tuple(pairs)}: see `chip-ablate plugin check {shlex.quote(name)}`"
        )
    return loss


def _shape(loss: Any) -> str:
    return str(tuple(loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__


def check_term(term: CustomTerm) -> Iterator[tuple[str, str | None]]:
    """Check a term as the shipped ones are checked; yield (what is checked, what is wrong).

    The batch is made up: three pairs with responses of different lengths, in float64.
    """
    scores = _made_up()

    def loss(rows: slice = slice(None), pad: int = 0, **changed: Tensor) -> Tensor:
        given = {name: _cut(part, rows, pad) for name, part in scores.items()}
        if changed:
            given["chosen"] = _with_policy(given["chosen"], changed["policy"])
        other = given["rejected_image"] if "rejected_image" in needs(term) else None
        return term(given["chosen"], given["rejected"], other, 0.1)

    try:
        value = loss()
    except (Exception, SystemExit) as error:  # whatever a user's term does
        yield "it can be computed", f"{type(error).__name__}: {error}"
        return
    yield "it can be computed", None
    fits = isinstance(value, Tensor) and value.shape == (3,)
    wrong = None if fits else f"it returned {_shape(value)}, not one loss a pair, (3,)"
    yield "one loss a pair", wrong
    if wrong:
        return
    finite = bool(torch.isfinite(value).all())
    yield "finite", None if finite else f"it returned {value.tolist()}"
    yield (
        "a pair's loss is its own",
        _differs(
            value,
            lambda: torch.cat([loss(slice(row, row + 1)) for row in range(3)]),
            "a batch of 3 differs from 3 batches of 1",
        ),
    )
    yield (
        "padding changes nothing",
        _differs(value, lambda: loss(pad=2), "two padded tokens changed the loss"),
    )
    policy = scores["chosen"].policy_logps.clone().requires_grad_()
    moved = loss(policy=policy)
    if not moved.requires_grad:
        yield "a gradient", "the loss does not depend on the policy's chosen log-probabilities"
        return
    moved.sum().backward()  # type: ignore[no-untyped-call]
    good = policy.grad is not None and bool(torch.isfinite(policy.grad).all())
    yield "a gradient", None if good else "its gradient is not finite"


def _differs(value: Tensor, other: Callable[[], Tensor], what: str) -> str | None:
    """Return what is wrong where another way to the same losses comes to others, or to nothing."""
    try:
        found = other()
    except Exception as error:  # whatever a user's term does
        return f"{type(error).__name__}: {error}"
    if found.shape == value.shape and torch.allclose(value, found, rtol=1e-9, equal_nan=True):
        return None
    return what


def _made_up() -> dict[str, ResponseScores]:
    draw = torch.Generator().manual_seed(0)

    def scores(lengths: tuple[int, ...], kl: bool) -> ResponseScores:
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]

        def logps() -> Tensor:
            return -torch.rand(shape, generator=draw, dtype=torch.float64) * 3

        return ResponseScores(
            policy_logps=logps(),
            reference_logps=logps(),
            mask=mask,
            changed=mask & (torch.rand(shape, generator=draw) < 0.5),
            kl=-logps() if kl else None,
        )

    return {
        "chosen": scores((5, 3, 4), True),
        "rejected": scores((2, 6, 4), True),
        "rejected_image": scores((5, 3, 4), False),
    }


def _cut(scores: ResponseScores, rows: slice, pad: int) -> ResponseScores:
    """Return some rows, with tokens of padding that hold anything."""

    def part(values: Tensor | None, fill: float) -> Tensor | None:
        if values is None:
            return None
        kept = values[rows]
        return torch.cat([kept, torch.full((len(kept), pad), fill).to(kept)], -1)

    policy, reference = part(scores.policy_logps, -50.0), part(scores.reference_logps, -40.0)
    mask, changed = part(scores.mask, 0), part(scores.changed, 0)
    assert policy is not None and reference is not None
    assert mask is not None and changed is not None
    return ResponseScores(
        policy_logps=policy,
        reference_logps=reference,
        mask=mask,
        changed=changed,
        kl=part(scores.kl, 7.0),
    )


def _with_policy(scores: ResponseScores, policy: Tensor) -> ResponseScores:
    return ResponseScores(
        policy_logps=policy,
        reference_logps=scores.reference_logps,
        mask=scores.mask,
        changed=scores.changed,
        kl=scores.kl,
    )
