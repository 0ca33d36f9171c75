"""The training loop: from a base model to a policy."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder, batch_order, count_steps
from chip_core.data.preferences import PreferencePair
from chip_core.data.tensors import PairBatch
from chip_core.errors import NonFiniteLossError, TrialError
from chip_core.files import Spool, read_records, write_atomically
from chip_core.models.memory import keep_activations, recompute_layers
from chip_core.models.parts import set_trained
from chip_core.results import CURVES
from chip_core.training import checkpoint
from chip_core.training.exactness import shared_prefixes
from chip_core.training.optimizer import encoder_alone_steps, learning_rates, make_optimizer
from chip_core.training.policy import Policy
from chip_core.training.store.open import Opened, open_stores
from chip_core.training.store.passes import Offered

#: Called after each update with (step, steps, figures of that step).
StepReport = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training came to."""

    steps: int
    notes: tuple[str, ...]  # what is to be said of it: where it was resumed, what was not used
    cut: dict[str, int] = field(default_factory=dict)  # PairEncoder.cut
    engine: dict[str, str] = field(default_factory=dict)  # how it was done: TrialResult.engine


def train(
    config: TrialConfig,
    *,
    model: Any,
    processor: Any,
    pairs: Sequence[PreferencePair],
    folder: Path,
    on_step: StepReport,
    resume_from: Path | None = None,
    offered: Offered | None = None,
) -> Training:
    """Train `model` in place against itself as it is now, frozen.

    Each step's figures go to `folder`/curves.jsonl, and checkpoints beside it.

    Args:
        config: the trial.
        model: the policy, with its adapters.
        processor: its processor.
        pairs: the preference pairs.
        folder: the trial's.
        on_step: told of each update.
        resume_from: an earlier attempt's folder; its newest whole checkpoint is gone on from.
        offered: the stores of reference passes that may be read.

    Raises:
        NonFiniteLossError: before an update whose loss or gradient is not finite.
        TrialError: there is less than one batch of pairs, or the device's memory ran out.
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
    device = next(model.parameters()).device
    model.eval()  # dropout is 0 in policy and reference: the ratio at step 0 is 1
    if config.engine.gradient_checkpointing:
        recompute_layers(model)
    policy = Policy(
        model,
        config.objective,
        bf16=config.model.dtype == "bf16",
        logits_chunk=config.engine.logits_chunk,
    )
    opened = open_stores(policy, config, processor=processor, pairs=pairs, offered=offered)
    optimizer, schedule = make_optimizer(model, config, steps)
    encoder = PairEncoder(processor, config, pairs)
    stateful = {"optimizer": optimizer, "schedule": schedule, "encoder": encoder}
    resumed = None
    if resume_from is not None:
        resumed = checkpoint.restore(resume_from, config=config, policy=model, stateful=stateful)
    done = 0 if resumed is None else resumed.step
    steps_an_epoch = len(pairs) // settings.batch_size
    order = _order(pairs, config)
    alone = encoder_alone_steps(config, steps)
    trained = set_trained(model, config, encoder_alone=done < alone)
    checkpoint.remove_after(folder, done)
    earlier = [] if resume_from is None else read_records(resume_from / CURVES)
    kept = [json.dumps(record) + "\n" for record in earlier if record["step"] <= done]
    write_atomically(folder / CURVES, "".join(kept))
    spool = Spool(folder / CURVES)
    sharing = ExitStack()
    engine = dict(opened.engine)
    try:
        engine["prefix_sharing"] = sharing.enter_context(
            shared_prefixes(
                policy, _small_pair(encoder, pairs, config, device), config.engine.prefix_sharing
            )
        )
        for step, indices in zip(range(1, steps + 1), order, strict=False):
            if step <= done:
                continue
            if step == alone + 1:
                trained = set_trained(model, config)
            began = time.perf_counter()
            figures, tokens = _accumulate(
                config,
                policy,
                opened,
                encoder,
                indices,
                step,
                epoch=(step - 1) // steps_an_epoch,
            )
            figures |= learning_rates(optimizer, schedule, config)
            figures["grad_norm"] = _clip(trained, config.optimizer.clip, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            figures["tokens_per_second"] = tokens / (time.perf_counter() - began)
            if step % config.engine.log_every == 0 or step == steps:
                spool.append({"step": step, "time": time.time(), "figures": figures})
            every = config.engine.checkpoint_every
            if every is not None and step % every == 0 and step < steps:
                spool.sync()
                checkpoint.save(folder, config=config, policy=model, stateful=stateful, step=step)
            on_step(step, steps, figures)
    except torch.OutOfMemoryError:
        raise TrialError(
            "the GPU's memory ran out in training: lower engine.micro_batch, or set "
            "engine.gradient_checkpointing: true"
        ) from None
    finally:
        sharing.close()
        spool.close()
    if config.engine.gradient_checkpointing:
        keep_activations(model)
    return Training(
        steps=steps,
        notes=opened.notes + (() if resumed is None else resumed.notes),
        cut=encoder.cut,
        engine=engine,
    )


def _small_pair(
    encoder: PairEncoder, pairs: Sequence[PreferencePair], config: TrialConfig, device: torch.device
) -> PairBatch:
    """Return that pair of the first global batch whose responses are shortest."""
    first = next(_order(pairs, config))
    place = min(first, key=lambda place: len(pairs[place].chosen) + len(pairs[place].rejected))
    return encoder.batch([place]).to(device)


def _order(pairs: Sequence[PreferencePair], config: TrialConfig) -> Iterator[list[int]]:
    settings = config.training
    return batch_order(
        len(pairs), batch_size=settings.batch_size, epochs=settings.epochs, seed=config.seed
    )


def _accumulate(
    config: TrialConfig,
    policy: Policy,
    opened: Opened,
    encoder: PairEncoder,
    places: Sequence[int],
    step: int,
    *,
    epoch: int,
) -> tuple[dict[str, float], int]:
    """Add up the gradient of a global batch; return its figures and how many tokens it read."""
    device = next(policy.parameters()).device
    sums: dict[str, float] = {}
    tokens = void = 0
    for start in range(0, len(places), config.engine.micro_batch):
        batch = encoder.batch(places[start : start + config.engine.micro_batch], epoch)
        batch = opened.attached(batch).to(device)
        result = policy(batch, opened.reference.scores(batch), opened.reference.head)
        loss = result.loss.sum() / len(places)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
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
    figures = {name: value / len(places) for name, value in sums.items()}
    if encoder.may_be_void:
        figures["rejected_image/void"] = void / len(places)
    return figures, tokens


def _clip(parameters: list[nn.Parameter], limit: float | None, step: int) -> float:
    """Clip to a global norm and return the norm before it."""
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
    if not torch.isfinite(norm):
        raise NonFiniteLossError(f"the gradient's norm is {norm.item()} at step {step}")
    return norm.item()
