"""The trainer: trains a base model to a policy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.data.encodings import EncodingCache
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.models.layers import keep_activations, recompute_layers
from chip_core.models.parts import set_trained
from chip_core.objectives.forms import BatchObjective
from chip_core.objectives.global_batch import FactsSource
from chip_core.objectives.scores import ReferenceScores
from chip_core.results import CURVES
from chip_core.training.batches import BatchLoader, StepPortions, TrainingBatches
from chip_core.training.checkpoint import Checkpointer, ResumePoint, Stateful, remove_after
from chip_core.training.exactness import compile_exactly, share_prefixes
from chip_core.training.optimizer.adamw import (
    count_encoder_steps,
    get_learning_rates,
    make_optimizer,
)
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.training.parallel import (
    SHARDED_PARALLELISMS,
    Compute,
    DDPStrategy,
    GlobalBatchScope,
    ReplicatedStrategy,
    SingleProcessStrategy,
    count_weight_shards,
)
from chip_core.training.policy import (
    NoReference,
    OpenedCaches,
    Policy,
    ReferenceCaches,
    TrainingReference,
    get_logits_chunk_size,
)
from chip_core.utils.errors import MemoryFullError, NonFiniteLossError, StoppedError
from chip_core.utils.files import JsonlWriter, format_record, read_records, write_bytes

#: torch's message if the machine's own memory cannot hold a tensor.
_HOST_OOM_MESSAGE = "can't allocate memory"

#: Called after each update with (step, steps, figures of that step).
StepReport = Callable[[int, int, dict[str, float]], None]


def never_stop() -> bool:
    """Return False: the training is never stopped."""
    return False


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training."""

    steps: int
    notes: tuple[str, ...]  # for the report: where it was resumed, what was not used
    cut: dict[str, int] = field(default_factory=dict)  # CutCount.totals
    first_step: float = 0.0  # seconds until the first update was made
    engine: dict[str, str] = field(default_factory=dict)  # how it was computed: TrialResult.engine


class Trainer:
    """Trains a model in place against a frozen copy of itself as it is now.

    It owns the components of a training: the policy with its objective, the batches, the parallel
    strategy, the reference, the optimizer and its schedule, the checkpointer. Use it as a context
    manager: the model's attention is changed while it is open.
    """

    def __init__(  # noqa: PLR0913 (its components)
        self,
        config: TrialConfig,
        *,
        model: Any,
        processor: Any,
        pairs: Pairs,
        folder: Path,
        compute: Compute | None = None,
        caches: ReferenceCaches | None = None,
        encodings: EncodingCache | None = None,
    ) -> None:
        """Build the components.

        Args:
            config: the trial.
            model: the policy, with its adapters; on the device, except that FSDP moves it there,
                and all workers but the first may have it without its weights.
            processor: its processor.
            pairs: the preference pairs.
            folder: the trial's folder: each step's figures go to its curves.jsonl, written by the
                first worker, and checkpoints next to it; all workers write sharded checkpoints.
            compute: device, workers and parallelism of the training; None: this process, here.
            caches: the reference caches that may be read.
            encodings: prompts that the processor encoded in this process before.

        Raises:
            TrialError: there is less than one batch of pairs.
        """
        self._started = time.perf_counter()
        self.config, self.model, self.folder = config, model, folder
        self.compute = compute or Compute()
        workers = self.compute.workers
        self.batches = TrainingBatches(
            config, processor=processor, pairs=pairs, workers=workers, encodings=encodings
        )
        model.eval()  # dropout is 0 in policy and reference: the ratio at step 0 is 1
        if config.engine.gradient_checkpointing:
            recompute_layers(model)
        set_trained(model, config)
        chunk = get_logits_chunk_size(model, config, self.compute.device)
        self.policy = Policy(model, config.objective, logits_chunk=chunk)
        with ExitStack() as stack:
            probe = self.batches.encode_shortest_pair().to(next(model.parameters()).device)
            self._prefix_sharing = stack.enter_context(
                share_prefixes(self.policy, probe, config.engine.prefix_sharing, workers)
            )
            opened_caches = None
            if caches is not None:
                opened_caches = caches.open(
                    self.policy, config, processor=processor, pairs=pairs, workers=workers
                )
            if config.engine.compile == "layers":
                stack.enter_context(compile_exactly(self.policy, probe))
            self.strategy = make_strategy(self.policy, config, self.compute)
            self._sharing = _describe_sharding(config, self.compute)
            self.reference = self._make_reference(opened_caches)
            self.masters = None
            if config.model.dtype == "bf16":
                self.masters = MasterWeights(model, config)
                stack.callback(self.masters.close)
            self.optimizer, self.schedule = make_optimizer(
                model, config, self.batches.steps, self.masters
            )
            self.scope = GlobalBatchScope(config, workers, self.compute.device)
            stateful: dict[str, Stateful] = {
                "schedule": self.schedule, "encoder": self.batches.cut_count
            }  # fmt: skip
            if self.scope.has_state:
                stateful["objective"] = self.scope
            self.checkpointer = Checkpointer(
                config,
                model=model,
                optimizer=self.optimizer,
                masters=self.masters,
                stateful=stateful,
                workers=workers,
            )
            self._exit_stack = stack.pop_all()

    def _make_reference(self, opened_caches: OpenedCaches | None) -> TrainingReference:
        if opened_caches is not None:
            return opened_caches.reference(self.strategy.reference)
        if self.config.objective.reference_reads:
            return TrainingReference(source=self.strategy.reference())
        return TrainingReference(source=NoReference())  # no copy of the trained weights is kept

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit_stack.close()

    def train(
        self,
        *,
        on_step: StepReport,
        resume_from: Path | None = None,
        earlier: Sequence[Path] = (),
        stop: Callable[[], bool] = never_stop,
        keep: Callable[[int], None] = lambda step: None,
    ) -> TrainingResult:
        """Train until the last step.

        Args:
            on_step: called after each update.
            keep: called at the steps of `score_at` but the last, before a checkpoint is written, by
                all workers together.
            resume_from: an earlier attempt's folder; its newest complete checkpoint is resumed.
            earlier: folders of further attempts, newest first, if that one has no checkpoint.
            stop: called after each update; true: end there, with a checkpoint.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; raised before its update.
            MemoryFullError: the device's memory ran out.
            StoppedError: `stop` returned true.
        """
        steps, config = self.batches.steps, self.config
        resumed = ResumePoint(step=0, folder=None, notes=())
        if resume_from is not None:
            with _convert_out_of_memory():
                resumed = self.checkpointer.restore(resume_from, earlier)
        shares = self.batches.list_step_portions(resumed.step)
        loader = self.batches.make_loader(shares, self.compute.device)
        encoder_steps = count_encoder_steps(config, steps)
        trained = set_trained(self.model, config, encoder_alone=resumed.step < encoder_steps)
        first_step = 0.0
        scored_steps = config.training.scored_steps(steps)[:-1]
        is_writer = self.compute.workers.is_main
        with (
            _open_curves(self.folder, resumed, is_writer=is_writer) as curves,
            _convert_out_of_memory(),
        ):
            for step, share in enumerate(shares, start=resumed.step + 1):
                if step == encoder_steps + 1:
                    trained = set_trained(self.model, config)
                figures, stopping = self._step(step, share, loader, trained, stop)
                first_step = first_step or time.perf_counter() - self._started
                is_last = step == steps
                if step in scored_steps:
                    keep(step)
                if curves is not None and (step % config.engine.log_every == 0 or is_last):
                    curves.append({"step": step, "time": time.time(), "figures": figures})
                if not is_last and (stopping or self._is_checkpoint_due(step)):
                    if curves is not None:
                        curves.sync()
                    self.checkpointer.save(self.folder, step)
                if stopping and not is_last:
                    raise StoppedError(f"stopped after step {step} of {steps}")
                on_step(step, steps, figures)
        if config.engine.gradient_checkpointing:
            keep_activations(self.model)
        return TrainingResult(
            steps=steps,
            notes=self.reference.notes + resumed.notes,
            cut=self.batches.cut_count.totals(),
            first_step=first_step,
            engine={
                **self.reference.engine,
                "prefix_sharing": self._prefix_sharing,
                **({"compile": "layers"} if config.engine.compile == "layers" else {}),
                **_describe_precision(config),
                **self._sharing,
            },
        )

    def _step(
        self,
        step: int,
        share: StepPortions,
        loader: BatchLoader,
        trained: list[nn.Parameter],
        stop: Callable[[], bool],
    ) -> tuple[dict[str, float], bool]:
        """Make one update; return its figures, and whether any worker was asked to stop."""
        began, waited = time.perf_counter(), loader.wait_seconds
        sums = _to_numbers(self._accumulate(step, share, loader))
        sums["stop"] = float(stop())
        # Summed, these are the same for all workers.
        sums = self.compute.workers.all_reduce(sums, self.compute.device)
        tokens, stopping = sums.pop("tokens"), sums.pop("stop") > 0
        figures = {name: value / self.config.training.batch_size for name, value in sums.items()}
        if not math.isfinite(figures["loss"]):
            raise NonFiniteLossError(f"the loss is {figures['loss']} at step {step}")
        void = figures.pop("void")
        if self.batches.may_be_void:
            figures["rejected_image/void"] = void
        figures |= get_learning_rates(self.optimizer, self.schedule, self.config)
        figures["grad_norm"] = self._update(step, trained)
        self.schedule.step()
        self.scope.commit()
        seconds = time.perf_counter() - began
        figures["tokens_per_second"] = tokens / seconds
        figures["data_wait"] = (loader.wait_seconds - waited) / seconds
        return figures, stopping

    def _update(self, step: int, trained: list[nn.Parameter]) -> float:
        """Clip the gradient and update the trained weights; return the norm before clipping."""
        limit, masters = self.config.optimizer.clip, self.masters
        if masters is None:
            norm = self.strategy.clip_grad_norm(trained, limit)
        else:
            self.strategy.average_gradients(masters, trained)
            norm = masters.norm(trained, sharded=self.strategy.sharded)
        norm_value = norm.item()
        if not math.isfinite(norm_value):
            raise NonFiniteLossError(f"the gradient's norm is {norm_value} at step {step}")
        if masters is None:
            self.optimizer.step()
        else:
            masters.update(trained, self.optimizer, norm, limit)
        self.optimizer.zero_grad(set_to_none=True)
        return norm_value

    def _accumulate(
        self, step: int, share: StepPortions, loader: BatchLoader
    ) -> dict[str, Tensor | float]:
        """Accumulate the gradient of this worker's share of a global batch; return sums of figures.

        Figures computed on a device stay there, to avoid waiting for it.

        The gradient is this worker's own until its last pass, in which it becomes the mean over the
        global batch.
        """
        size = self.config.training.batch_size
        reference, cuts = self.reference.source, self.batches.cut_count
        sums: dict[str, Tensor | float] = {}
        for pass_number, ((portion, _), (batch, reference_scores, facts)) in enumerate(
            zip(share, self._iter_passes(step, share, loader), strict=True), start=1
        ):
            with self.strategy.accumulate(last=pass_number == len(share)):
                result = self.strategy(batch, reference_scores, reference.head, facts)
                # Gradients are averaged over workers, so each share is scaled by their number.
                scale = self.compute.workers.size if portion.counts else 0
                loss: Tensor = result.loss.sum() * scale / size
                loss.backward()  # type: ignore[no-untyped-call]
            for name, value in _batch_figures(result, batch).items():
                sums[name] = sums.get(name, 0.0) + (value if portion.counts else 0.0)
            if portion.counts:
                cuts.add(batch)
            # Recomputed layers keep their inputs for as long as the graph exists.
            del result, loss
        return sums

    def _iter_passes(
        self, step: int, share: StepPortions, loader: BatchLoader
    ) -> Iterator[tuple[PairBatch, ReferenceScores, FactsSource]]:
        """Yield each pass's batch, on the device, with the reference's scores and the facts."""
        source, device = self.reference.source, self.compute.device
        is_single_pass = self.compute.workers.is_single and len(share) == 1
        if self.scope.scope is None or is_single_pass:
            for _ in share:
                batch = self.reference.attach_features(loader.next_batch()).to(device)
                facts = (
                    None
                    if self.scope.scope is None
                    else self.scope.make_single_pass_facts(batch, step)
                )
                yield batch, source.scores(batch), facts
            return
        batches = [self.reference.attach_features(loader.next_batch()) for _ in share]
        reference_scores: list[ReferenceScores] = []

        def compute_columns(batch: PairBatch) -> Mapping[str, Tensor]:
            batch = batch.to(device)
            reference_scores.append(source.scores(batch))
            return self.strategy.table_columns(batch, reference_scores[-1])

        counts = [portion.counts for portion, _ in share]
        gathered = self.scope.gather(list(zip(batches, counts, strict=True)), compute_columns, step)
        for index, (batch, batch_facts) in enumerate(zip(batches, gathered, strict=True)):
            batch = batch.to(device)
            yield (
                batch,
                reference_scores[index] if reference_scores else source.scores(batch),
                batch_facts,
            )

    def _is_checkpoint_due(self, step: int) -> bool:
        interval = self.config.engine.checkpoint_every
        return interval is not None and step % interval == 0


def make_strategy(policy: Policy, config: TrialConfig, compute: Compute) -> SingleProcessStrategy:
    """Return the parallel strategy of a training.

    Args:
        policy: with its trained weights marked; on the training's device, except that FSDP
            moves it there.
        config: the trial.
        compute: device, workers and parallelism of the training.
    """
    if compute.parallelism in SHARDED_PARALLELISMS:
        from chip_core.training.fsdp import FSDPStrategy

        return FSDPStrategy(policy, config, compute)
    if compute.parallelism != "ddp":
        return SingleProcessStrategy(policy, config, compute.workers)
    strategy = ReplicatedStrategy if config.model.dtype == "bf16" else DDPStrategy
    return strategy(policy, config, compute.workers)


def _describe_sharding(config: TrialConfig, compute: Compute) -> dict[str, str]:
    """Return how hybrid sharding, requested or chosen, was done; all workers call this together.

    It depends on the machines of the workers, which are in no setting.
    """
    parallelism = compute.parallelism
    if parallelism == "hsdp":
        return {
            "parallel": f"hsdp ({count_weight_shards(parallelism, compute.workers)} workers a "
            "machine)"
        }
    if config.engine.parallel == "hsdp" and not compute.workers.is_single:
        return {"parallel": f"{parallelism} (hsdp, and {_EQUIVALENT_REASONS[parallelism]})"}
    return {}


#: Why hybrid sharding became another strategy.
_EQUIVALENT_REASONS = {
    "fsdp": "all workers are on one machine",
    "ddp": "each worker is alone on its machine",
}


def _describe_precision(config: TrialConfig) -> dict[str, str]:
    """Return the precision of a training that is not fp32 throughout, for its notes."""
    quantize = "" if config.model.quantize == "none" else config.model.quantize
    if config.model.dtype == "fp32" and config.optimizer.states == "fp32" and not quantize:
        return {}
    parts = {
        "weights": config.model.dtype + (f" ({quantize} below adapters)" if quantize else ""),
        "masters": config.training.master,
        "gradients": config.training.gradients,
        "moments": config.optimizer.states,
    }
    return {"precision": ", ".join(f"{part} {dtype}" for part, dtype in parts.items())}


def _to_numbers(sums: dict[str, Tensor | float]) -> dict[str, float]:
    """Return figures as numbers, waiting once for the device."""
    tensors = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
    numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
    values = dict(zip(tensors, numbers, strict=True))
    return {
        name: value if not isinstance(value, Tensor) else values[name]
        for name, value in sums.items()
    }


def _batch_figures(result: BatchObjective, batch: PairBatch) -> dict[str, Tensor | float]:
    """Return the figures of a batch, each summed over its pairs."""
    parts: dict[str, Tensor] = {
        "loss": result.loss,
        **{f"term/{name}": value for name, value in result.terms.items()},
    }
    chosen, rejected = result.chosen_reward, result.rejected_reward
    parts |= {} if chosen is None else {"reward/chosen": chosen}
    parts |= {} if rejected is None else {"reward/rejected": rejected}
    if chosen is not None and rejected is not None:
        margin = chosen - rejected
        parts |= {"reward/margin": margin, "reward/accuracy": (margin > 0).float()}
    sums = {name: value.detach().double().sum() for name, value in parts.items()}
    return {**sums, "void": float(batch.void_count), "tokens": float(batch.tokens)}


@contextmanager
def _open_curves(
    folder: Path, resumed: ResumePoint, *, is_writer: bool
) -> Iterator[JsonlWriter | None]:
    """Open the training's curves, with the points of the attempt that it resumes.

    Args:
        folder: the trial's folder; its checkpoints of later steps are removed.
        resumed: where the training resumes.
        is_writer: whether this worker writes them.
    """
    remove_after(folder, resumed.step)
    if not is_writer:
        yield None
        return
    earlier = [] if resumed.folder is None else read_records(resumed.folder / CURVES)
    lines = [format_record(record) for record in earlier if record["step"] <= resumed.step]
    write_bytes(folder / CURVES, b"".join(lines))
    writer = JsonlWriter(folder / CURVES)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _convert_out_of_memory() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (is_gpu or isinstance(error, MemoryError) or _HOST_OOM_MESSAGE in str(error)):
            raise
        raise MemoryFullError(
            f"the {'GPU' if is_gpu else 'machine'}'s memory ran out in training: lower "
            "engine.micro_batch, or set engine.gradient_checkpointing: true"
        ) from None
