"""The scores of responses: of each token, from hidden states; and summed over a response.

Log-probabilities and divergences are computed without holding all logits at once: from the hidden
states of a chunk of positions at a time, with gradients that are written out, so that no (all
positions, V) tensor is kept unless the gradient needs it.

With z = h Wᵀ + b, p = softmax(z), r the reference's distribution and y the token:
log p_y = z_y − logsumexp(z), its gradient in z is e_y − p; KL(r || p) = Σ r (log r − log p), its
gradient in z is p − r.

Shapes: N positions, M ≤ N positions with a divergence, K ≤ M with its gradient, D hidden, V
vocabulary; B pairs, T and C response tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Default number of positions whose logits are held together.
DEFAULT_CHUNK = 512

#: Share of a GPU's memory that the logits of a chunk may take, and bytes per logit: those of policy
#: and reference in fp32, their rounded copies, and two gradients.
_MEMORY_SHARE, _LOGIT_BYTES = 1 / 32, 16

#: Positions whose divergence is summed together: few enough to stay in a CPU's cache.
_BLOCK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """The output projection from hidden states to logits: h Wᵀ + b."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """The scores of each position."""

    logps: Tensor  # (N,) log p of the token
    kl: Tensor | None  # (M,) KL(reference || policy) of the first M positions


@dataclass(frozen=True, kw_only=True)
class ResponseScores:
    """The policy's and the reference's scores of one response per pair under one image."""

    policy_logps: Tensor  # (B, T) log p of each token
    reference_logps: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, true on response tokens
    changed: Tensor  # (B, T) bool, true on tokens of a segment
    kl: Tensor | None = None  # (B, T) KL(reference || policy); only the token term needs it
    #: (B, T) the raw logit of each token, and log p of the most likely other one; if declared
    policy_logits: Tensor | None = None
    reference_logits: Tensor | None = None
    policy_best_other: Tensor | None = None
    reference_best_other: Tensor | None = None

    @property
    def any_changed(self) -> Tensor:
        """Whether the response has a changed token, (B,)."""
        return (self.changed & self.mask).any(-1)

    def token_weights(self, on_all: float, on_changed: float) -> Tensor:
        """Return `on_all` on response tokens, and `on_changed` more on changed ones, (B, T)."""
        dtype = self.policy_logps.dtype
        return on_all * self.mask.to(dtype) + on_changed * (self.changed & self.mask).to(dtype)

    def log_ratio(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·(log p_policy − log p_reference), (B,).

        Args:
            weights: (B, T); None: 1 on response tokens.
            average: whether to divide by Σ w; an empty sum stays 0.
        """
        policy = self.policy_sum(weights, average=average)
        return policy - self.reference_sum(weights, average=average)

    def policy_sum(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·log p_policy, (B,)."""
        return self.total(self.policy_logps, weights, average=average)

    def reference_sum(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·log p_reference, (B,)."""
        return self.total(self.reference_logps, weights, average=average)

    def divergence(self) -> Tensor:
        """Return D = Σ_t KL(reference || policy), (B,)."""
        assert self.kl is not None, "the token term needs the divergence"
        return self.total(self.kl)

    def total(
        self, values: Tensor, weights: Tensor | None = None, *, average: bool = False
    ) -> Tensor:
        """Return Σ w·(a value of each token) over the response, (B,); see `log_ratio`."""
        # where(), not only a product: padding may hold any value, infinities included.
        masked = torch.where(self.mask, values, torch.zeros_like(values))
        total = (masked if weights is None else masked * weights).sum(-1)
        if not average:
            return total
        count = (self.mask.to(values.dtype) if weights is None else weights).sum(-1)
        return total / torch.where(count == 0, torch.ones_like(count), count)


@dataclass(frozen=True, kw_only=True)
class ResponseReference:
    """The reference's scores of one response per pair; undeclared ones are None."""

    logps: Tensor | None = None  # (B, C) log p of each token; padding may hold anything finite
    logits: Tensor | None = None  # (B, C) the raw logit of each token
    best_other: Tensor | None = None  # (B, C) log p of the most likely other token
    #: (B, C, D) the decoder's last hidden state that predicts each token; only if the divergence is
    #: needed
    hidden: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """The reference's scores of a batch, by view; undeclared ones are absent."""

    views: Mapping[str, ResponseReference] = field(default_factory=dict)


def chunk_size(requested: int | None, vocabulary: int, device_memory: int | None) -> int:
    """Return how many positions' logits are held together.

    It depends on a GPU's total memory, not on its free memory, so that the order of additions is
    the same for a resumed training and for one that shares the GPU.

    Args:
        requested: `engine.logits_chunk`; None: by the GPU's memory.
        vocabulary: V.
        device_memory: bytes of a GPU; None: there is none.
    """
    if requested is not None:
        return requested
    if device_memory is None:
        return DEFAULT_CHUNK
    return max(DEFAULT_CHUNK, int(device_memory * _MEMORY_SHARE) // (_LOGIT_BYTES * vocabulary))


def head_scores(
    hidden: Tensor,
    ids: Tensor,
    head: OutputHead,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: OutputHead | None = None,
    kl_gradients: int = 0,
    chunk: int = DEFAULT_CHUNK,
) -> HeadScores:
    """Score positions; differentiable in the hidden states and in the head.

    Under autocast the products with the head use its precision and everything else fp32; float64
    stays float64. If one chunk holds all positions, their log-probabilities are kept for the
    backward pass, otherwise they are recomputed there. If the head is frozen, neither is needed:
    only the gradient in the hidden states is, and the forward pass computes it.

    Args:
        hidden: (N, D) last hidden states that predict the tokens.
        ids: (N,) the tokens.
        head: the policy's output head.
        reference_hidden: (M, D) the reference's, of the first M positions; None: no divergence.
        reference_head: the reference's output head; None: the policy's.
        kl_gradients: K: the divergence of the first K positions is differentiable, that of the
            others constant.
        chunk: positions whose logits are held together.
    """
    divergence_head = reference_head or head
    needs_gradient = torch.is_grad_enabled() and any(
        value is not None and value.requires_grad for value in (hidden, head.weight, head.bias)
    )
    logps, kl = _HeadScoresFunction.apply(  # type: ignore[no-untyped-call]
        hidden,
        head.weight,
        head.bias,
        ids,
        reference_hidden,
        divergence_head.weight.detach(),
        None if divergence_head.bias is None else divergence_head.bias.detach(),
        kl_gradients,
        chunk,
        needs_gradient,
    )
    return HeadScores(logps=logps, kl=None if reference_hidden is None else kl)


def token_logits(hidden: Tensor, ids: Tensor, head: OutputHead) -> Tensor:
    """Return the raw logit of the given token at each position, (N,); differentiable.

    No other logits are computed.

    Args:
        hidden: (N, D).
        ids: (N,) the tokens.
        head: the output head.
    """
    dtype = torch.float64 if head.weight.dtype == torch.float64 else torch.float32
    device_type = hidden.device.type
    with torch.autocast(device_type, enabled=False):
        logits = (hidden.to(dtype) * head.weight[ids].to(dtype)).sum(-1)
        return logits if head.bias is None else logits + head.bias[ids].to(dtype)


@torch.no_grad()
def best_other_tokens(
    hidden: Tensor, ids: Tensor, head: OutputHead, chunk: int = DEFAULT_CHUNK
) -> Tensor:
    """Return the most likely token other than the given one at each position, (N,).

    Args:
        hidden: (N, D).
        ids: (N,) the tokens.
        head: the output head.
        chunk: positions whose logits are held together.
    """
    tokens = torch.empty_like(ids)
    for rows in _iter_chunks(len(hidden), chunk):
        logits = F.linear(hidden[rows].to(head.weight.dtype), head.weight, head.bias)
        tokens[rows] = logits.scatter_(-1, ids[rows].unsqueeze(-1), -torch.inf).argmax(-1)
    return tokens


class _HeadScoresFunction(torch.autograd.Function):
    """See `head_scores`; the module's docstring has the gradients."""

    @staticmethod
    def forward(  # noqa: PLR0913 (autograd's signature)
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        reference_hidden: Tensor | None,
        reference_weight: Tensor,
        reference_bias: Tensor | None,
        kl_gradients: int,
        chunk: int,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        if reference_hidden is None:
            reference_hidden = hidden.new_empty((0, hidden.shape[1]))
        device_type = hidden.device.type
        ctx.dtype = (
            torch.get_autocast_dtype(device_type)
            if torch.is_autocast_enabled(device_type)
            else weight.dtype
        )
        ctx.chunk, ctx.kl_gradients = chunk, min(kl_gradients, len(reference_hidden))
        ctx.frozen_head = not (weight.requires_grad or (bias is not None and bias.requires_grad))
        inputs = (hidden, weight, bias, ids, reference_hidden, reference_weight, reference_bias)
        saved: list[Tensor] = []
        with torch.autocast(device_type, enabled=False):
            policy = _HeadInputs(hidden, weight, bias, ctx.dtype)
            reference = _HeadInputs(reference_hidden, reference_weight, reference_bias, ctx.dtype)
            logps, kl = policy.new_empty(len(hidden)), policy.new_empty(len(reference_hidden))
            for rows in _iter_chunks(len(hidden), chunk):
                log_p = policy.log_probabilities(rows)
                logps[rows] = log_p.gather(-1, ids[rows].unsqueeze(-1)).squeeze(-1)
                kl_rows = _clip_rows(rows, len(kl))
                log_r = reference.log_probabilities(kl_rows)
                kl[kl_rows] = _kl_divergence(log_r, log_p)
                if not needs_gradient:
                    continue
                p, r = log_p.exp_(), log_r[: max(0, ctx.kl_gradients - rows.start)].exp()
                if ctx.frozen_head:
                    saved += _hidden_gradients(p, r, ids[rows], policy.weight)
                elif len(hidden) <= chunk:
                    saved += p, r
        ctx.save_for_backward(*inputs, *saved)
        return logps, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_kl: Tensor) -> Any:
        hidden, weight, bias, ids, reference_hidden, reference_weight, reference_bias, *saved = (
            ctx.saved_tensors
        )
        grad_kl = grad_kl[: ctx.kl_gradients]
        if ctx.frozen_head:
            logp_gradients, kl_gradients = torch.cat(saved[::2]), torch.cat(saved[1::2])
            grad_hidden = grad_logps.unsqueeze(-1) * logp_gradients
            grad_hidden[: len(grad_kl)] += grad_kl.unsqueeze(-1) * kl_gradients
            return grad_hidden.to(hidden.dtype), *[None] * 9
        with torch.autocast(hidden.device.type, enabled=False):
            policy = _HeadInputs(hidden, weight, bias, ctx.dtype)
            reference = _HeadInputs(reference_hidden, reference_weight, reference_bias, ctx.dtype)
            grad_hidden = torch.empty_like(hidden)
            grad_weight: Tensor | None = None
            grad_bias: Tensor | None = None
            for rows in _iter_chunks(len(hidden), ctx.chunk):
                kl_rows = _clip_rows(rows, len(grad_kl))
                if saved:
                    p, r = saved
                else:
                    p = policy.log_probabilities(rows).exp_()
                    r = reference.log_probabilities(kl_rows).exp_()
                grad_logits = _logit_gradients(p, r, ids[rows], grad_logps[rows], grad_kl[kl_rows])
                if bias is not None:
                    grad_bias = _accumulate(grad_bias, grad_logits.sum(0), bias.dtype)
                grad_logits = grad_logits.to(ctx.dtype)
                grad_hidden[rows] = (grad_logits @ policy.weight).to(hidden.dtype)
                grad_weight = _accumulate(
                    grad_weight, grad_logits.T @ policy.hidden[rows], weight.dtype
                )
        return grad_hidden, grad_weight, grad_bias, *[None] * 7


class _HeadInputs:
    """Hidden states and head of the policy or the reference, in the precision of the products."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.output_dtype = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def new_empty(self, length: int) -> Tensor:
        return self.hidden.new_empty(length, dtype=self.output_dtype)

    def log_probabilities(self, rows: slice) -> Tensor:
        """Return log p of all tokens at some positions, (rows, V), in fp32 or float64."""
        logits = F.linear(self.hidden[rows], self.weight, self.bias)
        return torch.log_softmax(logits, -1, dtype=self.output_dtype)


def _kl_divergence(log_r: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(r || p) of the first positions, as many as r has."""
    divergence = log_r.new_empty(len(log_r))
    for rows in _iter_chunks(len(log_r), _BLOCK_SIZE):
        log_ratio = log_r[rows] - log_p[rows]
        divergence[rows] = log_ratio.mul_(log_r[rows].exp()).sum(-1)
    return divergence


def _hidden_gradients(p: Tensor, r: Tensor, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients in the hidden states of log p_y, (n, D), and of KL, (k, D)."""
    dtype = weight.dtype
    kl_gradients = (p[: len(r)] - r).to(dtype) @ weight
    p.scatter_add_(-1, ids.unsqueeze(-1), p.new_full((len(p), 1), -1))
    return -(p.to(dtype) @ weight).to(p.dtype), kl_gradients.to(p.dtype)


def _logit_gradients(
    p: Tensor, r: Tensor, ids: Tensor, grad_logps: Tensor, grad_kl: Tensor
) -> Tensor:
    """Return the gradient in the logits: that of log p_y, e_y − p, and of KL, p − r."""
    scale = grad_logps.neg()
    scale[: len(r)] += grad_kl
    gradient = p * scale.unsqueeze(-1)
    for rows in _iter_chunks(len(r), _BLOCK_SIZE):
        gradient[rows] -= r[rows] * grad_kl[rows].unsqueeze(-1)
    return gradient.scatter_add_(-1, ids.unsqueeze(-1), grad_logps.unsqueeze(-1))


def _accumulate(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to(dtype) if total is None else total.add_(part)


def _iter_chunks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _clip_rows(rows: slice, limit: int) -> slice:
    """Return the rows that are among the first `limit`."""
    return slice(min(rows.start, limit), min(rows.stop, limit))
