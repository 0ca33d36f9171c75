"""Check on one pair whether prefix sharing and compilation are exact for a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from chip_core.data.tensors import PairBatch
from chip_core.models.layers import compile_layers
from chip_core.models.loading import has_weights
from chip_core.models.packing import can_fuse, use_packed_attention
from chip_core.models.precision import compute_in_fp32, get_dtype
from chip_core.training.policy import Policy
from chip_core.training.states import compute_response_states, pad, sort_views
from chip_core.utils.errors import TrialError, first_line
from chip_core.utils.workers import Workers

SHARING_ON = "on"

#: With all pieces of a row in one attention call per layer (packing.fused_attention).
SHARING_ON_FUSED = "on (attention fused)"

#: The largest difference of hidden states and gradients from those of separate passes: the norm of
#: the difference over the norm.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

#: With weights in bf16: the largest distance from fp32, in multiples of the distance of separate
#: bf16 passes.
_BF16_FACTOR = 1.25

#: The quantities that are compared.
_QUANTITIES = ("hidden states", "gradients")

_log = logging.getLogger(__name__)


@contextmanager
def share_prefixes(
    policy: Policy,
    batch: PairBatch,
    setting: Literal["auto", "off"] = "auto",
    workers: Workers | None = None,
) -> Iterator[str]:
    """Let a policy share prefixes while the context is open, if it does so exactly.

    Args:
        policy: not yet sharded.
        batch: one pair to test with, on the policy's device.
        setting: `engine.prefix_sharing`.
        workers: the workers of the training, each with its own pair: either all of them share
            prefixes or none does. Only workers that hold the weights test. None: this process
            alone.

    Yields:
        `on`, alone or with how attention is computed; or `off (…)` with the reason: then every
        response has a pass of its own.

    Raises:
        TrialError: the model's logits are not the product of its output head and hidden states.
    """
    workers = workers or Workers()
    is_loaded = has_weights(policy)
    workers.gather_results(lambda: _check_head(policy, batch) if is_loaded else None)
    if setting == "off":
        yield "off (engine.prefix_sharing: off)"
        return
    fused = all(workers.gather_results(lambda: not is_loaded or can_fuse(policy.head.weight)))
    reason = _first_worker_problem(policy, batch, workers, fused=fused)
    if fused and reason is not None:
        _log.warning("attention of packed rows is not fused: %s", reason)
        fused, reason = False, _first_worker_problem(policy, batch, workers, fused=False)
    if reason is not None:
        _log.warning("prefix sharing is off: %s", reason)
        yield f"off ({reason})"
        return
    with use_packed_attention(policy.model, fused=fused):
        policy.prefix_sharing = True
        try:
            yield SHARING_ON_FUSED if fused else SHARING_ON
        finally:
            policy.prefix_sharing = False


def _first_worker_problem(
    policy: Policy, batch: PairBatch, workers: Workers, *, fused: bool
) -> str | None:
    is_loaded = has_weights(policy)
    problems = workers.gather_results(
        lambda: find_prefix_sharing_problem(policy, batch, fused=fused) if is_loaded else None
    )
    return next((problem for problem in problems if problem is not None), None)


def find_prefix_sharing_problem(
    policy: Policy, batch: PairBatch, *, fused: bool = False
) -> str | None:
    """Return why a model cannot share prefixes exactly, or None.

    Args:
        policy: not yet sharded.
        batch: one pair to test with.
        fused: whether attention is one call per layer.
    """
    bf16 = get_dtype(policy) == torch.bfloat16
    try:
        with use_packed_attention(policy.model, fused=fused):
            reference = _measure(policy, batch, shared=False)
            shared = _measure(policy, batch, shared=True)
            if bf16:
                reference_in_bf16 = _measure(policy, batch, shared=False, native=True)
                shared_in_bf16 = _measure(policy, batch, shared=True, native=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model not made for packed rows may raise anything
        return first_line(error)
    for index, quantity in enumerate(_QUANTITIES):
        differences = [
            (
                _compute_distance(shared[index], reference[index]),
                _TOLERANCE[reference[index].dtype],
                "",
            )
        ]
        if bf16:
            separate = _compute_distance(reference_in_bf16[index], reference[index])
            distance = _compute_distance(shared_in_bf16[index], reference[index])
            differences.append((distance, _BF16_FACTOR * separate, " in bf16"))
        for distance, limit, suffix in differences:
            if not distance <= limit:  # NaN counts as a difference
                return (
                    f"{quantity}{suffix} differ by {distance:.1e} from separate passes, but only "
                    f"{limit:.1e} is allowed"
                )
    return None


@contextmanager
def compile_exactly(policy: Policy, batch: PairBatch) -> Iterator[None]:
    """Compile a policy's layers while the context is open.

    Args:
        policy: not sharded.
        batch: one pair to test with, on the policy's device.

    Raises:
        TrialError: compiled layers give other results, or they cannot be compiled.
    """
    shared = policy.prefix_sharing
    uncompiled = _measure(policy, batch, shared=shared, native=True)
    limits = [_TOLERANCE.get(part.dtype, 0.0) for part in uncompiled]
    reference = uncompiled
    if get_dtype(policy) == torch.bfloat16:
        reference = _measure(policy, batch, shared=shared)
        limits = [
            _BF16_FACTOR * _compute_distance(*tensors)
            for tensors in zip(uncompiled, reference, strict=True)
        ]
    with compile_layers(policy.model):
        try:
            compiled = _measure(policy, batch, shared=shared, native=True)
        except (torch.OutOfMemoryError, TrialError):
            raise
        except Exception as error:  # a compiler may raise anything
            raise TrialError(
                f"engine.compile: layers: {first_line(error)}: write engine.compile: off"
            ) from error
        distances = [
            _compute_distance(*tensors) for tensors in zip(compiled, reference, strict=True)
        ]
        for quantity, distance, limit in zip(_QUANTITIES, distances, limits, strict=True):
            if not distance <= limit:
                raise TrialError(
                    f"engine.compile: layers: {quantity} differ by {distance:.1e} from layers "
                    f"that are not compiled, but only {limit:.1e} is allowed: write "
                    "engine.compile: off"
                )
        torch.compiler.reset()  # the compiled code is for other gradients than a training's
        yield


def _measure(
    policy: Policy, batch: PairBatch, *, shared: bool, native: bool = False
) -> tuple[Tensor, Tensor]:
    """Return hidden states, and the gradients of the vectors among the decoder's weights.

    The vectors are few and in every layer, and a token that is attended to wrongly changes their
    gradients.

    Args:
        policy: not yet sharded.
        batch: one pair.
        shared: whether prefixes are shared.
        native: whether to compute in the precision of the weights; else in fp32.
    """
    vectors = [p for p in policy.model.get_decoder().parameters() if p.ndim == 1]
    flags = [vector.requires_grad for vector in vectors]
    for vector in vectors:
        vector.requires_grad_(True)
    try:
        fp32 = nullcontext(vectors) if native else compute_in_fp32(policy.model, vectors)
        with torch.enable_grad(), fp32 as leaves:
            states = compute_response_states(policy.model, batch, prefix_sharing=shared)
            hidden = torch.cat([states.views[view] for view in sort_views(states.views)])
            # Fixed weights without a pattern: nothing cancels, and no random number is drawn.
            coefficients = (
                torch.arange(hidden.numel(), device=hidden.device).cos().view(hidden.shape)
            )
            coefficients = coefficients.to(hidden.dtype)
            gradients = torch.autograd.grad(
                (hidden * coefficients).sum(), leaves, allow_unused=True
            )
    finally:
        for vector, flag in zip(vectors, flags, strict=True):
            vector.requires_grad_(flag)
    return hidden.detach(), torch.cat([part for part in gradients if part is not None])


def _compute_distance(value: Tensor, reference: Tensor) -> float:
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm())


@torch.no_grad()
def _check_head(policy: Policy, batch: PairBatch) -> None:
    """Check that logits are only the product of hidden states and output head."""
    rows = pad(batch.prompts, batch.chosen)
    with compute_in_fp32(policy.model):
        logits = policy.model(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            logits_to_keep=2,
            **rows.inputs,
        ).logits[0, -2]  # the position that predicts the last token
        states = compute_response_states(policy.model, batch, prefix_sharing=False)
        computed = nn.functional.linear(states.chosen[-1], policy.head.weight, policy.head.bias)
    if not _compute_distance(computed, logits) <= 1e-4:
        raise TrialError(
            "the model's logits are not its last hidden states times its output head (it scales "
            "or caps them): such a model cannot be trained"
        )
