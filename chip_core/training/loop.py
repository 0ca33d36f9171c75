"""The training loop: from a base model to a policy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config import TrialConfig
from chip_core.data.batches import CutCount, PairEncoder, batch_order, count_steps
from chip_core.data.loader import Loader
from chip_core.data.portions import Portion, portions
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.errors import MemoryFullError, NonFiniteLossError, StoppedError, TrialError
from chip_core.files import Spool, read_records, record_line, write_bytes
from chip_core.models.memory import keep_activations, recompute_layers
from chip_core.models.parts import set_trained
from chip_core.results import CURVES
from chip_core.training import checkpoint
from chip_core.training.exactness import shared_prefixes
from chip_core.training.optimizer import encoder_alone_steps, learning_rates, make_optimizer
from chip_core.training.parallel import Alone, Kind, parallel
from chip_core.training.policy import Policy
from chip_core.training.reference import ReferenceSource
from chip_core.training.store.open import open_stores
from chip_core.training.store.passes import Offered
from chip_core.workers import Workers

CPU, ALONE = torch.device("cpu"), Workers()

#: Processes that encode ahead where none are asked for and a GPU would wait for them.
LOADERS = 2

#: What torch says where the machine's own memory does not hold a tensor.
_NO_MEMORY = "can't allocate memory"

#: Called after each update with (step, steps, figures of that step).
StepReport = Callable[[int, int, dict[str, float]], None]


def never() -> bool:
    """Nobody asks a training to stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training came to."""

    steps: int
    notes: tuple[str, ...]  # what is to be said of it: where it was resumed, what was not used
    cut: dict[str, int] = field(default_factory=dict)  # CutCount.totals
    first_step: float = 0.0  # seconds until the first update was made
    engine: dict[str, str] = field(default_factory=dict)  # how it was done: TrialResult.engine


def train(
    config: TrialConfig,
    *,
    model: Any,
    processor: Any,
    pairs: Pairs,
    folder: Path,
    on_step: StepReport,
    resume_from: Path | None = None,
    earlier: Sequence[Path] = (),
    device: torch.device = CPU,
    workers: Workers = ALONE,
    kind: Kind = "alone",
    offered: Offered | None = None,
    stop: Callable[[], bool] = never,
) -> Training:
    """Train `model` in place against itself as it is now, frozen.

    Each step's figures go to `folder`/curves.jsonl, and checkpoints beside it: the first worker
    writes them.

    Args:
        config: the trial.
        model: the policy, with its adapters; on the device, but that `fsdp` takes it there.
        processor: its processor.
        pairs: the preference pairs.
        folder: the trial's.
        on_step: told of each update.
        resume_from: an earlier attempt's folder; its newest whole checkpoint is gone on from.
        earlier: further attempts' folders, newest first, for where that one has none.
        device: where it is trained.
        workers: who share it.
        kind: how they share it (`parallel.kind_of`).
        offered: the stores of reference passes that may be read.
        stop: asked after each update whether to end there, with a checkpoint.

    Raises:
        NonFiniteLossError: before an update whose loss or gradient is not finite.
        MemoryFullError: the device's memory ran out.
        StoppedError: it was asked to stop.
        TrialError: there is less than one batch of pairs.
    """
    started = time.perf_counter()
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
    model.eval()  # dropout is 0 in policy and reference: the ratio at step 0 is 1
    if config.engine.gradient_checkpointing:
        recompute_layers(model)
    set_trained(model, config)
    policy = Policy(
        model,
        config.objective,
        bf16=config.model.dtype == "bf16",
        logits_chunk=config.engine.logits_chunk,
    )
    encoder, cut = PairEncoder(processor, config, pairs), CutCount(workers)
    within = ExitStack()
    sharing = within.enter_context(
        shared_prefixes(
            policy, _small_pair(encoder, pairs, config, model), config.engine.prefix_sharing
        )
    )
    stores = open_stores(policy, config, processor=processor, pairs=pairs, offered=offered)
    together = parallel(kind, policy, config, workers, device)
    opened = stores.opened(together.reference)
    optimizer, schedule = make_optimizer(model, config, steps)
    stateful = {
        "optimizer": together.optimizer_state(optimizer),
        "schedule": schedule,
        "encoder": cut,
    }
    resumed = None
    if resume_from is not None:
        with _memory_told():
            resumed = checkpoint.restore(
                resume_from, config=config, policy=model, stateful=stateful, before=earlier
            )
    done = 0 if resumed is None else resumed.step
    alone = encoder_alone_steps(config, steps)
    trained = set_trained(model, config, encoder_alone=done < alone)
    shares = _shares(config, pairs, workers, steps)[done:]
    loaders = config.engine.loader_workers
    if loaders is None:
        loaders = LOADERS if device.type == "cuda" else 0
    loader = Loader(
        encoder.batch, [pass_ for share in shares for pass_ in share], processes=loaders
    )
    first_step = 0.0
    curves = _curves(folder, None if resumed is None else resumed.folder, done, write=workers.first)
    with within, curves as spool, _memory_told():
        for step, share in enumerate(shares, start=done + 1):
            if step == alone + 1:
                trained = set_trained(model, config)
            began, waited = time.perf_counter(), loader.waited
            figures, tokens, stopping = _accumulate(
                together,
                opened.reference,
                (
                    (opened.attached(loader.next()).to(device), portion.counts)
                    for portion, _ in share
                ),
                len(share),
                cut,
                step,
                stop,
            )
            if encoder.may_be_void:
                figures["rejected_image/void"] = figures["void"]
            del figures["void"]
            figures |= learning_rates(optimizer, schedule, config)
            figures["grad_norm"] = _clip(together, trained, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            seconds = time.perf_counter() - began
            figures["tokens_per_second"] = tokens / seconds
            figures["data_wait"] = (loader.waited - waited) / seconds
            first_step = first_step or time.perf_counter() - started
            if spool is not None and (step % config.engine.log_every == 0 or step == steps):
                spool.append({"step": step, "time": time.time(), "figures": figures})
            every = config.engine.checkpoint_every
            due = every is not None and step % every == 0
            if (due or stopping) and step < steps:
                if spool is not None:
                    spool.sync()
                checkpoint.save(
                    folder,
                    config=config,
                    policy=model,
                    stateful=stateful,
                    step=step,
                    write=workers.first,
                )
            if stopping and step < steps:
                raise StoppedError(f"stopped after step {step} of {steps}")
            on_step(step, steps, figures)
    if config.engine.gradient_checkpointing:
        keep_activations(model)
    return Training(
        steps=steps,
        notes=opened.notes + (() if resumed is None else resumed.notes),
        cut=cut.totals(),
        first_step=first_step,
        engine={**opened.engine, "prefix_sharing": sharing},
    )


def _small_pair(encoder: PairEncoder, pairs: Pairs, config: TrialConfig, model: Any) -> PairBatch:
    """Return that pair of the first global batch whose responses are shortest."""
    first = next(_order(pairs, config))
    place = min(first, key=lambda place: len(pairs[place].chosen) + len(pairs[place].rejected))
    return encoder.batch([place]).to(next(model.parameters()).device)


def _order(pairs: Pairs, config: TrialConfig) -> Iterator[list[int]]:
    settings = config.training
    return batch_order(
        len(pairs), batch_size=settings.batch_size, epochs=settings.epochs, seed=config.seed
    )


def _shares(
    config: TrialConfig, pairs: Pairs, workers: Workers, steps: int
) -> list[list[tuple[Portion, int]]]:
    """Return this worker's portions of each step's global batch, with their epoch."""
    order = _order(pairs, config)
    steps_an_epoch = len(pairs) // config.training.batch_size
    shares = []
    for step, places in zip(range(steps), order, strict=False):
        divided = portions(
            places,
            micro_batch=config.engine.micro_batch,
            workers=workers.size,
            lengths=pairs.lengths if config.engine.bucket else None,
        )
        shares.append([(portion, step // steps_an_epoch) for portion in divided[workers.rank]])
    return shares


@contextmanager
def _curves(
    folder: Path, resume_from: Path | None, done: int, *, write: bool
) -> Iterator[Spool | None]:
    """Open the training's curves, with the points of the attempt that it goes on from."""
    if not write:
        yield None
        return
    checkpoint.remove_after(folder, done)
    earlier = [] if resume_from is None else read_records(resume_from / CURVES)
    kept = [record_line(record) for record in earlier if record["step"] <= done]
    write_bytes(folder / CURVES, b"".join(kept))
    spool = Spool(folder / CURVES)
    try:
        yield spool
    finally:
        spool.close()


@contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (gpu or isinstance(error, MemoryError) or _NO_MEMORY in str(error)):
            raise
        raise MemoryFullError(
            f"the {'GPU' if gpu else 'machine'}'s memory ran out in training: lower "
            "engine.micro_batch, or set engine.gradient_checkpointing: true"
        ) from None


def _accumulate(
    together: Alone,
    reference: ReferenceSource,
    batches: Iterator[tuple[PairBatch, bool]],
    passes: int,
    cut: CutCount,
    step: int,
    stop: Callable[[], bool],
) -> tuple[dict[str, float], float, bool]:
    """Add up the gradient of a global batch; return its figures, how many tokens it has, whether
    any worker was asked to stop.

    Figures and tokens are of all workers' pairs. The gradient is this worker's until its last
    pass, in which it becomes the mean over the global batch.
    """
    workers, size = together.workers, together.config.training.batch_size
    sums: dict[str, float] = {}
    for number, (batch, counts) in enumerate(batches, start=1):
        known = reference.scores(batch)
        with together.accumulating(last=number == passes):
            result = together(batch, known, reference.head)
            # Gradients are averaged over workers: a share's are to be as many times as large.
            loss: Tensor = result.loss.sum() * (workers.size if counts else 0) / size
            loss.backward()  # type: ignore[no-untyped-call]
        margin = result.chosen_reward - result.rejected_reward
        parts: dict[str, Tensor] = {
            "loss": result.loss,
            **{f"term/{name}": value for name, value in result.terms.items()},
            "reward/chosen": result.chosen_reward,
            "reward/rejected": result.rejected_reward,
            "reward/margin": margin,
            "reward/accuracy": (margin > 0).float(),
        }
        here = {name: value.detach().double().sum().item() for name, value in parts.items()}
        here |= {"void": float(batch.void), "tokens": float(batch.tokens)}
        for name, value in here.items():
            sums[name] = sums.get(name, 0.0) + (value if counts else 0.0)
        if counts:
            cut.add(batch)
    sums["stop"] = float(stop())
    sums = workers.sums(sums, batch.prompts.ids.device)  # from here on, known to all workers alike
    tokens, stopping = sums.pop("tokens"), sums.pop("stop") > 0
    figures = {name: value / size for name, value in sums.items()}
    if not math.isfinite(figures["loss"]):
        raise NonFiniteLossError(f"the loss is {figures['loss']} at step {step}")
    return figures, tokens, stopping


def _clip(together: Alone, parameters: list[nn.Parameter], step: int) -> float:
    """Clip to a global norm and return the norm before it."""
    norm = together.clip(parameters, together.config.optimizer.clip)
    if not torch.isfinite(norm):
        raise NonFiniteLossError(f"the gradient's norm is {norm.item()} at step {step}")
    return norm.item()
