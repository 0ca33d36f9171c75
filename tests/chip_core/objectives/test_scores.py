"""The output head in chunks against whole logits: values, gradients, extremes, precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chip_core.objectives.from_logits import token_kl, token_logps
from chip_core.objectives.scores import HeadScores, OutputHead, chunk_size, head_scores

CASES = ["trained", "frozen"]


def draw_inputs(
    positions: int = 7, known: int = 5, hidden: int = 4, vocabulary: int = 11, *, bias: bool = True,
    dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    def head() -> OutputHead:
        weight = scale * normal(vocabulary, hidden)
        return OutputHead(weight=weight, bias=normal(vocabulary) if bias else None)

    return {
        "hidden": normal(positions, hidden),
        "ids": torch.randint(vocabulary, (positions,), generator=source),
        "head": head(),
        "reference_hidden": normal(known, hidden),
        "reference_head": head(),
    }


def compute_from_logits(given: dict[str, Any]) -> HeadScores:
    """Compute the scores from whole logits."""

    def logits(hidden: Tensor, head: OutputHead) -> Tensor:
        made = torch.nn.functional.linear(hidden, head.weight, head.bias)
        return made.float() if made.dtype == torch.bfloat16 else made

    policy = logits(given["hidden"], given["head"])
    reference = logits(given["reference_hidden"], given["reference_head"])
    return HeadScores(
        logps=token_logps(policy, given["ids"]), kl=token_kl(reference, policy[: len(reference)])
    )


def compute_gradients(
    scores: HeadScores, given: dict[str, Any], differentiable: int
) -> list[Tensor]:
    """Compute gradients of a sum with fixed weights, of divergences the first few alone."""
    assert scores.kl is not None
    of_logps = torch.linspace(-1, 2, len(scores.logps), dtype=scores.logps.dtype)
    of_kl = torch.linspace(1, 3, len(scores.kl), dtype=scores.kl.dtype)
    of_kl[differentiable:] = 0
    trained = [given["hidden"], given["head"].weight, given["head"].bias]
    trained = [value for value in trained if value is not None and value.requires_grad]
    total = (scores.logps * of_logps).sum() + (scores.kl * of_kl).sum()
    return list(torch.autograd.grad(total, trained))


def require_gradients(given: dict[str, Any], case: str) -> dict[str, Any]:
    given["hidden"].requires_grad_()
    if case == "trained":
        for value in (given["head"].weight, given["head"].bias):
            if value is not None:
                value.requires_grad_()
    return given


@given(
    positions=st.integers(1, 9), known=st.integers(0, 9), differentiable=st.integers(0, 9),
    chunk=st.integers(1, 12), bias=st.booleans(), case=st.sampled_from(CASES),
    seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_scores_in_chunks_equal_those_of_whole_logits(
    positions: int, known: int, differentiable: int, chunk: int, bias: bool, case: str, seed: int
) -> None:
    known = min(known, positions)
    given = require_gradients(draw_inputs(positions, known, bias=bias, seed=seed), case)
    ours = head_scores(**given, kl_gradients=differentiable, chunk=chunk)
    theirs = compute_from_logits(given)
    assert ours.kl is not None and theirs.kl is not None
    assert torch.allclose(ours.logps, theirs.logps, rtol=1e-12, atol=1e-13)
    assert torch.allclose(ours.kl, theirs.kl, rtol=1e-12, atol=1e-13)
    pairs = zip(
        compute_gradients(ours, given, differentiable),
        compute_gradients(theirs, given, differentiable),
        strict=True,
    )
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [2, 100])
def test_gradcheck(case: str, chunk: int) -> None:
    given = require_gradients(draw_inputs(3, 2, 2, 4), case)

    def both(hidden: Tensor, *head: Tensor) -> tuple[Tensor, Tensor]:
        own = OutputHead(weight=head[0], bias=head[1]) if head else given["head"]
        scores = head_scores(
            hidden, given["ids"], own, reference_hidden=given["reference_hidden"],
            reference_head=given["reference_head"], kl_gradients=5, chunk=chunk,
        )  # fmt: skip
        assert scores.kl is not None
        return scores.logps, scores.kl

    inputs = [given["hidden"]]
    if case == "trained":
        inputs += [given["head"].weight, given["head"].bias]
    assert torch.autograd.gradcheck(both, inputs)


def test_the_divergence_of_the_others_is_a_constant() -> None:
    given = require_gradients(draw_inputs(), "trained")
    scores = head_scores(**given, kl_gradients=2)
    assert scores.kl is not None
    (gradient,) = torch.autograd.grad(scores.kl.sum(), given["hidden"])
    assert (gradient[:2] != 0).all()
    assert (gradient[2:] == 0).all()


def test_without_a_reference_there_is_no_divergence() -> None:
    given = draw_inputs()
    scores = head_scores(given["hidden"], given["ids"], given["head"])
    assert scores.kl is None
    assert torch.allclose(scores.logps, compute_from_logits(given).logps)


def test_without_a_head_of_its_own_the_reference_has_the_policys() -> None:
    given = draw_inputs()
    own = head_scores(
        given["hidden"], given["ids"], given["head"], reference_hidden=given["hidden"]
    )
    assert own.kl is not None and (own.kl == 0).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_ten_thousand_stay_finite(case: str, dtype: torch.dtype) -> None:
    # Hidden states of ±1 and weights of ±1e4 on one feature: logits of ±1e4.
    weight = torch.tensor([[1e4], [-1e4], [0.0]], dtype=dtype)
    given = {
        "hidden": torch.tensor([[1.0], [-1.0], [1.0]], dtype=dtype),
        "ids": torch.tensor([0, 0, 2]),
        "head": OutputHead(weight=weight),
        "reference_hidden": torch.tensor([[-1.0], [-1.0], [0.0]], dtype=dtype),
        "reference_head": OutputHead(weight=weight.clone()),
    }
    scores = head_scores(**require_gradients(given, case), kl_gradients=3)
    assert scores.kl is not None
    # log p of the largest is 0, of the smallest −2e4, of the middle one −1e4.
    assert scores.logps.tolist() == [0, -2e4, -1e4]
    # All of the reference on the policy's least likely: 2e4; alike: 0; evenly on three: the mean
    # of 0, 2e4 and 1e4, less the entropy log 3.
    assert scores.kl.tolist() == pytest.approx([2e4, 0, 1e4 - math.log(3)], rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in compute_gradients(scores, given, 3))


@pytest.mark.parametrize("case", CASES)
def test_under_autocast_products_are_in_bf16_and_sums_in_fp32(case: str) -> None:
    given = require_gradients(draw_inputs(64, 64, 32, 500, dtype=torch.float32, scale=0.3), case)
    true = compute_from_logits(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head_scores(**given, kl_gradients=64)
        theirs = compute_from_logits(given)
    assert ours.logps.dtype == torch.float32
    assert ours.kl is not None and true.kl is not None and theirs.kl is not None
    # To the bit what whole logits in bf16 and a log-softmax in fp32 give.
    assert torch.equal(ours.logps, theirs.logps)
    assert torch.allclose(ours.kl, theirs.kl, rtol=1e-5, atol=1e-6)
    exact, one, other = (compute_gradients(scores, given, 64) for scores in (true, ours, theirs))
    for truth, own, whole in zip(exact, one, other, strict=True):
        assert own.dtype == torch.float32
        assert (own - truth).norm() <= 1.25 * (whole - truth).norm()


def test_no_graph_is_kept_where_no_gradient_is_wanted() -> None:
    given = require_gradients(draw_inputs(), "trained")
    with torch.no_grad():
        scores = head_scores(**given, kl_gradients=5)
    assert not scores.logps.requires_grad


def test_a_chunk_of_its_own_size_takes_a_32nd_of_a_gpus_memory() -> None:
    """A logit takes 16 bytes: 80 GiB / 32 / (16 × 32,064) = 5,232.4."""
    assert chunk_size(7, 32_064, 80 * 2**30) == 7
    assert chunk_size(None, 32_064, 80 * 2**30) == 5_232
    assert chunk_size(None, 151_936, 8 * 2**30) == 512  # 110 would be more work than memory
    assert chunk_size(None, 32_064, None) == 512
