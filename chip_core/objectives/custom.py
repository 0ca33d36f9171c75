"""A user's own loss term, named `module:attr` in a recipe or study.

It is a function like the terms in `forms.py`:

    def my_term(chosen, rejected, rejected_image, beta):
        return -F.logsigmoid(beta * (chosen.log_ratio() - rejected.log_ratio()))

It takes three `ResponseScores` (the last is None unless requested) and the objective's beta, and
returns one loss per pair, (B,). An attribute names what it needs beyond log-probabilities:

    my_term.needs = {"rejected_image", "divergence"}

A term with an attribute `reads` is a function of `Inputs` and beta: `reads` names views
(`parts.VIEWS`), or maps them to quantities; `fields` names columns of rows, `scope` what it takes
of the global batch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chip_core.objectives.global_batch import BatchFacts, BatchTable
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import COLUMNS, QUANTITIES, VIEWS, Declared, Quantity
from chip_core.objectives.terms import ResponseScores
from chip_core.utils import plugins
from chip_core.utils.errors import TrialError

NEEDS = frozenset({"rejected_image", "divergence"})

CustomTerm = Callable[..., Tensor]


def load_term(name: str) -> CustomTerm:
    """Return the term that `module:attr` names.

    Raises:
        ValueError: it cannot be imported, is not a function, or needs something unknown.
    """
    term = plugins.load_plugin(name)
    if not callable(term):
        raise ValueError(f"'{name}' is no function: see docs/plugins.md")
    unknown = sorted(needs(term) - NEEDS)
    if unknown:
        raise ValueError(f"'{name}' needs {', '.join(unknown)}: it may need {sorted(NEEDS)}")
    declared(term)
    return term  # type: ignore[no-any-return]


def declared(term: Any) -> Declared:
    """Return what a term reads.

    Raises:
        ValueError: it names an unknown view, quantity or scope.
    """
    said, needed = getattr(term, "reads", None), needs(term)
    divergence = "divergence" in needed
    plain: frozenset[Quantity] = frozenset(["logps"])
    images = {"rejected_image": plain} if "rejected_image" in needed else {}
    if said is None:
        return Declared(policy=images, reference=images, divergence=divergence, takes_inputs=False)
    named = said if isinstance(said, Mapping) else dict.fromkeys(said, plain)
    reads = images | {view: frozenset(quantities) for view, quantities in named.items()}
    scope = getattr(term, "scope", None)
    if scope == "scores":  # the batch table holds log-probabilities
        reads |= {view: reads.get(view, plain) | plain for view in ("chosen", "rejected")}
    wrong = [view for view in reads if view not in VIEWS]
    wrong += [name for of in reads.values() for name in of if name not in QUANTITIES]
    wrong += [] if scope in (None, "tokens", "scores") else [str(scope)]
    if wrong:
        raise ValueError(
            f"`reads` and `scope` name {', '.join(wrong)}: views are {', '.join(VIEWS)}; "
            f"quantities {', '.join(QUANTITIES)}; scopes tokens and scores"
        )
    fields = tuple(sorted(getattr(term, "fields", ())))
    return Declared(
        policy=reads, reference=reads, fields=fields, scope=scope, divergence=divergence
    )


def needs(term: Any) -> frozenset[str]:
    """Return what a term needs beyond log-probabilities.

    Raises:
        ValueError: `needs` is not a collection of names.
    """
    said = getattr(term, "needs", ())
    names = (said,) if isinstance(said, str) else said
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`needs` is {said!r}: write names, such as {{'divergence'}}")
    return frozenset(names)


def computed(name: str, inputs: Inputs, beta: float) -> Tensor:
    """Return a term's loss of each pair, (B,).

    Raises:
        TrialError: it returned something else.
    """
    loss = _called(load_term(name), inputs, beta)
    pairs = next(iter(inputs.views.values())).mask.shape[:1]
    if not isinstance(loss, Tensor) or loss.shape != pairs:
        raise TrialError(
            f"objective.custom: '{name}' returned {_shape(loss)}, not one loss a pair, "
            f"{tuple(pairs)}: see `chip-ablate plugin check {shlex.quote(name)}`"
        )
    return loss


def _called(term: CustomTerm, inputs: Inputs, beta: float) -> Tensor:
    said, views = declared(term), inputs.views
    if said.takes_inputs:
        return term(inputs, beta)
    other = views["rejected_image"] if said.policy else None
    return term(views["chosen"], views["rejected"], other, beta)


def _shape(loss: Any) -> str:
    return str(tuple(loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__


def check_term(term: CustomTerm) -> Iterator[tuple[str, str | None]]:
    """Check a term like the built-in ones; yield (what is checked, what is wrong).

    The batch is synthetic: three pairs with responses of different lengths, in float64.
    """
    scores, said = _made_up(), declared(term)
    names = [
        f"{column}/{key}" if key else column
        for column in said.fields
        for key in COLUMNS.get(column, {"": None})
    ]

    def loss(rows: slice = slice(None), pad: int = 0, **changed: Tensor) -> Tensor:
        given = {name: _cut(part, rows, pad) for name, part in scores.items()}
        if changed:
            given["chosen"] = replace(given["chosen"], policy_logps=changed["policy"])
        fields = {name: torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)[rows] for name in names}
        facts = None if said.scope is None else _made_up_facts(scores)
        return _called(term, Inputs(views=given, fields=fields, facts=facts), 0.1)

    try:
        value = loss()
    except (Exception, SystemExit) as error:  # a user's term can raise anything
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
    if said.scope is None:
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
    """Return `what` if another way to compute the losses gives other values, or why it fails."""
    try:
        found = other()
    except Exception as error:  # a user's term can raise anything
        return f"{type(error).__name__}: {error}"
    if found.shape == value.shape and torch.allclose(value, found, rtol=1e-9, equal_nan=True):
        return None
    return what


def _made_up() -> dict[str, ResponseScores]:
    draw = torch.Generator().manual_seed(0)
    lengths = {"chosen": (5, 3, 4), "rejected": (2, 6, 4), "other": (3, 3, 1)}
    made = {}
    for view, (_, response) in VIEWS.items():
        mask = torch.arange(max(lengths[response])) < torch.tensor(lengths[response])[:, None]
        draws = torch.rand(8, *mask.shape, generator=draw, dtype=torch.float64)
        said = {f"{who}_{what}" for who in ("policy", "reference") for what in QUANTITIES}
        made[view] = ResponseScores(
            mask=mask,
            changed=mask & (draws[0] < 0.5),
            kl=3 * draws[1] if view in ("chosen", "rejected") else None,
            **dict(zip(sorted(said), -3 * draws[2:], strict=True)),
        )
    return made


def _made_up_facts(scores: Mapping[str, ResponseScores]) -> BatchFacts:
    columns = {
        f"{who}_{view}": getattr(scores[view], f"{who}_sum")()
        for who in ("policy", "reference")
        for view in ("chosen", "rejected")
    }
    table = BatchTable(tokens=12, pairs=3, columns=columns)
    return BatchFacts(scalar={"pairs": 3, "tokens": 12}, pair={}, table=table)


def _cut(scores: ResponseScores, rows: slice, pad: int) -> ResponseScores:
    """Return some rows, with padding tokens of arbitrary content."""

    def part(values: Tensor, fill: float) -> Tensor:
        kept = values[rows]
        return torch.cat([kept, torch.full((len(kept), pad), fill).to(kept)], -1)

    return ResponseScores(
        **{
            name: part(value, _BEYOND.get(name, 7.0))
            for name, value in vars(scores).items()
            if value is not None
        }
    )


#: The content of padding tokens.
_BEYOND = {"policy_logps": -50.0, "reference_logps": -40.0, "mask": 0, "changed": 0}
