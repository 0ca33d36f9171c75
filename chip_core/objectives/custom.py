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
from chip_core.objectives.parts import COLUMNS, QUANTITIES, VIEWS, Quantity, Requirements
from chip_core.objectives.scores import ResponseScores
from chip_core.utils import registry
from chip_core.utils.errors import TrialError

NEEDS = frozenset({"rejected_image", "divergence"})

CustomTerm = Callable[..., Tensor]


def load_term(name: str) -> CustomTerm:
    """Return the term that `module:attr` names.

    Raises:
        ValueError: it cannot be imported, is not a function, or needs something unknown.
    """
    term = registry.load_plugin(name)
    if not callable(term):
        raise ValueError(f"'{name}' is not a function: see docs/plugins.md")
    unknown = sorted(term_needs(term) - NEEDS)
    if unknown:
        raise ValueError(f"'{name}' needs {', '.join(unknown)}: it may need {sorted(NEEDS)}")
    term_requirements(term)
    return term  # type: ignore[no-any-return]


def term_requirements(term: Any) -> Requirements:
    """Return what a term reads.

    Raises:
        ValueError: it names an unknown view, quantity or scope.
    """
    reads_declared, needs_declared = getattr(term, "reads", None), term_needs(term)
    divergence = "divergence" in needs_declared
    default_quantities: frozenset[Quantity] = frozenset(["logps"])
    images = {"rejected_image": default_quantities} if "rejected_image" in needs_declared else {}
    if reads_declared is None:
        return Requirements(
            policy=images, reference=images, divergence=divergence, takes_inputs=False
        )
    view_quantities = (
        reads_declared
        if isinstance(reads_declared, Mapping)
        else dict.fromkeys(reads_declared, default_quantities)
    )
    reads = images | {view: frozenset(quantities) for view, quantities in view_quantities.items()}
    scope = getattr(term, "scope", None)
    if scope == "scores":  # the batch table holds log-probabilities
        reads |= {
            view: reads.get(view, default_quantities) | default_quantities
            for view in ("chosen", "rejected")
        }
    unknown = [view for view in reads if view not in VIEWS]
    unknown += [
        name for quantities in reads.values() for name in quantities if name not in QUANTITIES
    ]
    unknown += [] if scope in (None, "tokens", "scores") else [str(scope)]
    if unknown:
        raise ValueError(
            f"`reads` and `scope` name {', '.join(unknown)}: views are {', '.join(VIEWS)}; "
            f"quantities {', '.join(QUANTITIES)}; scopes tokens and scores"
        )
    fields = tuple(sorted(getattr(term, "fields", ())))
    return Requirements(
        policy=reads, reference=reads, fields=fields, scope=scope, divergence=divergence
    )


def term_needs(term: Any) -> frozenset[str]:
    """Return what a term needs beyond log-probabilities.

    Raises:
        ValueError: `needs` is not a collection of names.
    """
    declared = getattr(term, "needs", ())
    names = (declared,) if isinstance(declared, str) else declared
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`needs` is {declared!r}: write names, such as {{'divergence'}}")
    return frozenset(names)


def compute_custom_loss(name: str, inputs: Inputs, beta: float) -> Tensor:
    """Return a term's loss of each pair, (B,).

    Raises:
        TrialError: it returned something else.
    """
    loss = _call_term(load_term(name), inputs, beta)
    pairs = next(iter(inputs.views.values())).mask.shape[:1]
    if not isinstance(loss, Tensor) or loss.shape != pairs:
        raise TrialError(
            f"objective.custom: '{name}' returned {_describe_shape(loss)}, not one loss per pair, "
            f"{tuple(pairs)}: see `chip-ablate plugin check {shlex.quote(name)}`"
        )
    return loss


def _call_term(term: CustomTerm, inputs: Inputs, beta: float) -> Tensor:
    requirements, views = term_requirements(term), inputs.views
    if requirements.takes_inputs:
        return term(inputs, beta)
    rejected_image = views["rejected_image"] if requirements.policy else None
    return term(views["chosen"], views["rejected"], rejected_image, beta)


def _describe_shape(loss: Any) -> str:
    return str(tuple(loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__


def check_term(term: CustomTerm) -> Iterator[tuple[str, str | None]]:
    """Check a term like the built-in ones; yield (what is checked, what is wrong).

    The batch is synthetic: three pairs with responses of different lengths, in float64.
    """
    scores, requirements = _make_synthetic_scores(), term_requirements(term)
    names = [
        f"{column}/{key}" if key else column
        for column in requirements.fields
        for key in COLUMNS.get(column, {"": None})
    ]

    def loss(rows: slice = slice(None), padding: int = 0, **changed: Tensor) -> Tensor:
        views = {name: _slice_rows(part, rows, padding) for name, part in scores.items()}
        if changed:
            views["chosen"] = replace(views["chosen"], policy_logps=changed["policy"])
        fields = {name: torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)[rows] for name in names}
        facts = None if requirements.scope is None else _make_synthetic_facts(scores)
        return _call_term(term, Inputs(views=views, fields=fields, facts=facts), 0.1)

    try:
        value = loss()
    except (Exception, SystemExit) as error:  # a user's term can raise anything
        yield "it can be computed", f"{type(error).__name__}: {error}"
        return
    yield "it can be computed", None
    has_loss_shape = isinstance(value, Tensor) and value.shape == (3,)
    problem = (
        None
        if has_loss_shape
        else f"it returned {_describe_shape(value)}, not one loss per pair, (3,)"
    )
    yield "one loss a pair", problem
    if problem:
        return
    is_finite = bool(torch.isfinite(value).all())
    yield "finite", None if is_finite else f"it returned {value.tolist()}"
    if requirements.scope is None:
        yield (
            "a pair's loss is its own",
            _check_same_losses(
                value,
                lambda: torch.cat([loss(slice(row, row + 1)) for row in range(3)]),
                "a batch of 3 differs from 3 batches of 1",
            ),
        )
    yield (
        "padding changes nothing",
        _check_same_losses(value, lambda: loss(padding=2), "two padded tokens changed the loss"),
    )
    policy = scores["chosen"].policy_logps.clone().requires_grad_()
    loss_value = loss(policy=policy)
    if not loss_value.requires_grad:
        yield "a gradient", "the loss does not depend on the policy's chosen log-probabilities"
        return
    loss_value.sum().backward()  # type: ignore[no-untyped-call]
    is_gradient_finite = policy.grad is not None and bool(torch.isfinite(policy.grad).all())
    yield "a gradient", None if is_gradient_finite else "its gradient is not finite"


def _check_same_losses(
    value: Tensor, compute_other: Callable[[], Tensor], problem: str
) -> str | None:
    """Return `problem` if another way to compute the losses gives other values, or why it fails."""
    try:
        other_value = compute_other()
    except Exception as error:  # a user's term can raise anything
        return f"{type(error).__name__}: {error}"
    if other_value.shape == value.shape and torch.allclose(
        value, other_value, rtol=1e-9, equal_nan=True
    ):
        return None
    return problem


def _make_synthetic_scores() -> dict[str, ResponseScores]:
    generator = torch.Generator().manual_seed(0)
    lengths = {"chosen": (5, 3, 4), "rejected": (2, 6, 4), "other": (3, 3, 1)}
    scores = {}
    for view, (_, response) in VIEWS.items():
        mask = torch.arange(max(lengths[response])) < torch.tensor(lengths[response])[:, None]
        values = torch.rand(8, *mask.shape, generator=generator, dtype=torch.float64)
        names = {
            f"{model}_{quantity}" for model in ("policy", "reference") for quantity in QUANTITIES
        }
        scores[view] = ResponseScores(
            mask=mask,
            changed=mask & (values[0] < 0.5),
            kl=3 * values[1] if view in ("chosen", "rejected") else None,
            **dict(zip(sorted(names), -3 * values[2:], strict=True)),
        )
    return scores


def _make_synthetic_facts(scores: Mapping[str, ResponseScores]) -> BatchFacts:
    columns = {
        f"{model}_{view}": getattr(scores[view], f"{model}_sum")()
        for model in ("policy", "reference")
        for view in ("chosen", "rejected")
    }
    table = BatchTable(tokens=12, pairs=3, columns=columns)
    return BatchFacts(scalar={"pairs": 3, "tokens": 12}, pair={}, table=table)


def _slice_rows(scores: ResponseScores, rows: slice, padding: int) -> ResponseScores:
    """Return some rows, with padding tokens of arbitrary content."""

    def slice_and_pad(values: Tensor, fill: float) -> Tensor:
        selected = values[rows]
        return torch.cat([selected, torch.full((len(selected), padding), fill).to(selected)], -1)

    return ResponseScores(
        **{
            name: slice_and_pad(value, _PADDING_VALUES.get(name, 7.0))
            for name, value in vars(scores).items()
            if value is not None
        }
    )


#: The content of padding tokens.
_PADDING_VALUES = {"policy_logps": -50.0, "reference_logps": -40.0, "mask": 0, "changed": 0}
