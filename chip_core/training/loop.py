"""The training loop: from a base model to a policy."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder, batch_order, count_steps
from chip_core.data.preferences import PreferencePair
from chip_core.errors import NonFiniteLossError, TrialError
from chip_core.files import Spool
from chip_core.models.parts import set_trained
from chip_core.training.step import batch_loss

#: Called after each update with (step, steps, figures of that step).
StepReport = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to."""

    steps: int  # updates
    cut: dict[str, int] = field(default_factory=dict)  # PairEncoder.cut


def train(
    config: TrialConfig,
    *,
    policy: Any,
    processor: Any,
    pairs: Sequence[PreferencePair],
    curves: Path,
    on_step: StepReport,
) -> Trained:
    """Train `policy` in place against a frozen copy of itself.

    Each step's figures go to `curves`, a JSON-lines file.

    Raises:
        NonFiniteLossError: before an update whose loss or gradient is not finite.
        TrialError: there is less than one batch of pairs.
    """
    settings = config.training
    steps = count_steps(
        len(pairs),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )
    if steps == 0:
        raise TrialError(
            f"no full batch: {len(pairs)} pairs, training.batch_size {settings.batch_size}"
        )
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    policy.eval()  # dropout is 0 in policy and reference: the ratio at step 0 is 1
    trained = set_trained(policy, config)
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = get_scheduler(
        "cosine" if config.optimizer.schedule == "cosine" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=math.ceil(config.optimizer.warmup * steps),
        num_training_steps=steps,
    )
    encoder = PairEncoder(processor, config, pairs)
    steps_an_epoch = len(pairs) // settings.batch_size
    order = batch_order(
        len(pairs), batch_size=settings.batch_size, epochs=settings.epochs, seed=config.seed
    )
    spool = Spool(curves)
    try:
        for step, indices in zip(range(1, steps + 1), order, strict=False):
            began = time.perf_counter()
            figures, tokens = _accumulate(
                config,
                policy,
                reference,
                encoder,
                [pairs[index] for index in indices],
                step,
                epoch=(step - 1) // steps_an_epoch,
            )
            figures["lr"] = schedule.get_last_lr()[0]
            figures["grad_norm"] = _clip(trained, config.optimizer.clip, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            figures["tokens_per_second"] = tokens / (time.perf_counter() - began)
            if step % config.engine.log_every == 0 or step == steps:
                spool.append({"step": step, "time": time.time(), "figures": figures})
            on_step(step, steps, figures)
    finally:
        spool.close()
    return Trained(steps=steps, cut=encoder.cut)


def _accumulate(
    config: TrialConfig,
    policy: Any,
    reference: Any,
    encoder: PairEncoder,
    pairs: Sequence[PreferencePair],
    step: int,
    *,
    epoch: int,
) -> tuple[dict[str, float], int]:
    """Add up the gradient of a global batch; return its figures and how many tokens it read."""
    device = next(policy.parameters()).device
    sums: dict[str, float] = {}
    tokens = void = 0
    for start in range(0, len(pairs), config.engine.micro_batch):
        batch = encoder.batch(pairs[start : start + config.engine.micro_batch], epoch)
        batch = batch.to(device)
        result = batch_loss(
            policy, reference, batch, config.objective, bf16=config.model.dtype == "bf16"
        )
        loss = result.loss.sum() / len(pairs)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss.item()} at step {step}")
        loss.backward()  # type: ignore[no-untyped-call]
        tokens += batch.tokens
        void += batch.void
        margin = result.chosen_reward - result.rejected_reward
        parts: dict[str, Tensor] = {
            "loss": result.loss,
            **{f"term/{name}": value for name, value in result.terms.items()},
            "reward/chosen": result.chosen_reward,
            "reward/rejected": result.rejected_reward,
            "reward/margin": margin,
            "reward/accuracy": (margin > 0).float(),
        }
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double().sum().item()
    figures = {name: value / len(pairs) for name, value in sums.items()}
    if encoder.may_be_void:
        figures["rejected_image/void"] = void / len(pairs)
    return figures, tokens


def _clip(parameters: list[nn.Parameter], limit: float | None, step: int) -> float:
    """Clip to a global norm and return the norm before it."""
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    if not torch.isfinite(norm):
        raise NonFiniteLossError(f"the gradient's norm is {norm.item()} at step {step}")
    return norm.item()
