"""Estimate whether trials fit the memory of their device and the disk.

Measurements take precedence. Otherwise a step is run with the model on torch's fake tensors
(chip_core/training/footprint/estimate.py), which have its shapes and no memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chip_core.config.trial import EngineConfig, TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.data.source import SHAPES
from chip_core.utils.errors import ConfigError, TrialError
from chip_core.utils.files import expand_path
from chip_core.utils.machine import gpu_count
from orchestrator.cost.machines import trial_machine
from orchestrator.cost.published.devices import GPUS_PER_MACHINE
from orchestrator.cost.rates import Rates
from orchestrator.cost.workload import TrialWork, Workload, round_prompts, training_steps

if TYPE_CHECKING:
    from chip_core.training.footprint.estimate import Footprint

_FP32, _BF16 = 4, 2  # bytes of a weight
_KEPT_CHECKPOINTS = 2  # checkpoints of a running training
_TOKEN_BYTES = 5  # bytes of a token's text and what surrounds it, about
_SHAPES_IMAGE_BYTES = 3 * 48 * 48  # of the embedded world, at most: its pixels
_MANY_STEPS = 1_000_000  # steps: enough for all shares of them to differ


@dataclass(frozen=True, kw_only=True)
class SettingsChange:
    """Settings with which a training would fit."""

    settings: Mapping[str, Any]  # key -> value
    bytes: int  # of one device
    changes_figures: bool  # whether it is a different training, with its own figures

    @property
    def option_text(self) -> str:
        """The settings as options of the command line."""
        return " ".join(f"--set {key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """The memory of a device that trials of one kind need."""

    arms: tuple[str, ...]
    bytes: int | None  # None: not known
    measured: bool  # and not estimated
    device: int | None  # bytes of the device that one trial may take; None: not known
    parts: Mapping[str, int] = field(default_factory=dict)  # bytes, where it is estimated
    basis: str = ""  # what rows the estimate is of
    changes: tuple[SettingsChange, ...] = ()  # with which it would fit, where it does not
    gpu: bool = False  # whether the device is a GPU

    @property
    def fits(self) -> bool | None:
        """Whether the trials fit; None if unknown."""
        if self.bytes is None or self.device is None:
            return None
        return self.bytes <= self.device


@dataclass(frozen=True, kw_only=True)
class DiskUsage:
    """The disk space that a study needs apart from its report, and the free space."""

    passes: int | None  # bytes of the reference passes to be made; None: not known
    models: int | None  # of the trained models
    checkpoints: int | None  # of trainings that run at a time
    #: of models that those keep until they end: of `score_at`, of rounds
    intermediate_models: int | None
    pairs: int | None  # of what rounds sample, which stays
    free: int

    @property
    def known_bytes(self) -> int:
        """Bytes of what is known."""
        parts = (self.passes, self.models, self.checkpoints, self.intermediate_models, self.pairs)
        return sum(part or 0 for part in parts)


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The estimated memory of a step."""

    footprint: Footprint  # of one worker
    basis: str
    is_adapted: bool  # whether adapters are trained
    has_masters: bool  # whether weights are held in bf16, with masters of what is trained
    state_bytes: float  # bytes of the optimizer's states, a trained weight

    @property
    def saved(self) -> int:
        """Bytes of a trained model's folder: weights as they are held."""
        footprint = self.footprint
        count = footprint.trained if self.is_adapted else footprint.trained + footprint.frozen
        return (_BF16 if self.has_masters else _FP32) * count

    def checkpoint(self, saved: int) -> int:
        """Return the bytes of a checkpoint: the masters, else the model; and the moments.

        Args:
            saved: bytes of a trained model's folder.
        """
        trained = self.footprint.trained
        weights = _FP32 * trained if self.has_masters else saved
        return weights + round(self.state_bytes * trained)


class MemoryEstimator:
    """Estimates steps, once for each kind."""

    def __init__(self, *, count: bool) -> None:
        """Estimate, or tell only what was measured.

        Args:
            count: whether models may be built, without weights, which takes torch.
        """
        self._count = count

    def estimate(
        self, config: TrialConfig, *, reference: bool, device: int | None = None
    ) -> StepMemory | None:
        """Return the estimate of a worker's step; None if its model's sizes are unknown.

        Args:
            config: the trial.
            reference: whether the reference is computed, and not read from stores.
            device: bytes that a worker may take: `auto` spreads weights that do not fit whole.
        """
        if not self._count:
            return None
        engine = config.engine
        workers, machine = engine.workers_per_trial, workers_per_machine(engine)
        if engine.parallel in ("fsdp", "hsdp"):
            shards = workers if engine.parallel == "fsdp" else machine
            return self._estimate_sharded(config, shards, reference=reference)
        step = self._estimate_cached(config, reference=reference, spread=False)
        can_shard = engine.parallel == "auto" and config.model.quantize == "none" and workers > 1
        if not can_shard or not engine.gpus_per_worker or device is None:
            return step
        for shards in sorted({machine, workers} - {1}):  # as `hsdp`, else as `fsdp`
            if step is not None and step.footprint.total > device:
                step = self._estimate_sharded(config, shards, reference=reference)
        return step

    def _estimate_sharded(
        self, config: TrialConfig, shards: int, *, reference: bool
    ) -> StepMemory | None:
        """Return what a worker's step takes where so many share each weight."""
        step = self._estimate_cached(config, reference=reference, spread=shards > 1)
        if step is None or shards == 1:
            return step
        basis = step.basis
        if shards < config.engine.workers_per_trial:
            basis += f"; assuming {shards} workers per machine"
        return replace(step, footprint=step.footprint.per_worker(shards), basis=basis)

    def _estimate_cached(
        self, config: TrialConfig, *, reference: bool, spread: bool
    ) -> StepMemory | None:
        engine = config.engine
        tree = config.model_dump(
            mode="json",
            include={"model", "lora", "data", "objective", "training", "optimizer"},
        )
        passes = engine.micro_batch * engine.workers_per_trial < config.training.batch_size
        key = json.dumps(
            [
                tree,
                [config.vision_encoder, config.projector, config.language_model],
                [engine.micro_batch, engine.gradient_checkpointing, engine.prefix_sharing],
                [engine.logits_chunk, engine.uses_gpu, passes or spread],
                [config.reference_precision, reference, spread],
            ]
        )
        if key not in _ESTIMATE_CACHE:
            _ESTIMATE_CACHE[key] = _estimate_step(config, reference=reference, spread=spread)
        return _ESTIMATE_CACHE[key]


#: Estimates of this process, so that a run is checked with what its plan shows.
_ESTIMATE_CACHE: dict[str, StepMemory | None] = {}


def workers_per_machine(engine: EngineConfig) -> int:
    """Return how many of a trial's workers are taken to lie on one machine.

    The largest number that divides the workers evenly and is at most this machine's GPUs, if it has
    several, or those of a published machine.
    """
    gpus = gpu_count() if engine.gpus_per_worker else 0
    max_workers = gpus if gpus > 1 else GPUS_PER_MACHINE
    workers = engine.workers_per_trial
    return max(count for count in range(1, max_workers + 1) if workers % count == 0)


def _estimate_step(config: TrialConfig, *, reference: bool, spread: bool) -> StepMemory | None:
    from chip_core.training.footprint.estimate import estimate_footprint, training_precision
    from chip_core.training.footprint.published import load_model_config
    from orchestrator.cost.published.rows import estimate_row_shapes

    try:
        model_config = load_model_config(config.model)
        if model_config is None:
            return None
        rows = estimate_row_shapes(model_config, config)
        step_footprint = estimate_footprint(
            model_config, config, rows.longest, stored=not reference, sharded=spread
        )
    except (ValueError, AttributeError, TrialError):  # an unsupported model family
        return None
    precision = training_precision(config)
    return StepMemory(
        footprint=step_footprint,
        basis=rows.basis,
        is_adapted=config.has_adapters,
        has_masters=precision.master > 0,
        state_bytes=precision.states,
    )


def estimate_fits(
    work: Workload,
    rates: Rates,
    estimator: MemoryEstimator,
    *,
    at_once: int | None,
    device_gib: float | None,
    notify: Callable[[str], None] = lambda text: None,
) -> list[MemoryFit]:
    """Return the memory that each kind of training needs on its device.

    Args:
        work: what is left of a study.
        rates: what was measured.
        estimator: estimates what was not.
        at_once: trials that share this machine; a GPU is not shared, but by its shares.
        device_gib: GiB of a device, in place of this machine's.
        notify: told of each kind: a large model's takes a while.
    """
    memory_fits = []
    kinds = _group_by_training(work)
    for number, (kind, trials) in enumerate(kinds.items(), start=1):
        first_trial = trials[0]
        notify(f"memory of {first_trial.trial.arm}: {number} of {len(kinds)}")
        config, device = first_trial.config, _device_bytes(first_trial.config, at_once, device_gib)
        measured = rates.size("memory", kind)
        step = None
        if measured is None:
            step = estimator.estimate(config, reference=not first_trial.caches, device=device)
        worker = None if step is None else step.footprint
        size = measured[0] if measured else None if worker is None else worker.total
        changes: tuple[SettingsChange, ...] = ()
        if worker is not None and device is not None and worker.total > device:
            changes = tuple(find_fitting_changes(config, device, estimator))
        memory_fits.append(
            MemoryFit(
                arms=tuple(dict.fromkeys(trial_work.trial.arm for trial_work in trials)),
                bytes=size,
                measured=measured is not None,
                device=device,
                parts={} if worker is None else worker.parts,
                basis="" if step is None else step.basis,
                changes=changes,
                gpu=config.engine.uses_gpu,
            )
        )
    return memory_fits


#: Settings that need less memory, first those that only change rounding. Each is tried together
#: with the previous ones of its kind.
_ENGINE_CHANGES: tuple[Mapping[str, Any], ...] = (
    {"engine.gradient_checkpointing": True},
    {"engine.micro_batch": 1},
)
#: Where weights are held in bf16: gradients and moments in less.
_PRECISION_CHANGES: tuple[Mapping[str, Any], ...] = (
    {"training.gradients": "bf16"},
    {"optimizer.states": "int8"},
    {"model.quantize": "nf4"},
)
_WORKER_COUNTS = (2, 4, 8)


def find_fitting_changes(
    config: TrialConfig, device: int, estimator: MemoryEstimator
) -> Iterator[SettingsChange]:
    """Yield changes with which a training fits a device, the smallest first, one of each kind.

    Args:
        config: the trial.
        device: bytes of it.
        estimator: of steps.
    """

    def find_fit(
        settings: Mapping[str, Any], *, stored: bool, changes_figures: bool
    ) -> SettingsChange | None:
        changed = _apply_settings(config, settings)
        size = None if changed is None else _step_bytes(changed, device, estimator, stored=stored)
        if size is None or size > device:
            return None
        return SettingsChange(settings=settings, bytes=size, changes_figures=changes_figures)

    kept: dict[str, Any] = {}
    for kept in _add_effective(config, {}, _ENGINE_CHANGES):
        if change := find_fit(kept, stored=False, changes_figures=False):
            yield change
            return
    precisions = _PRECISION_CHANGES if config.model.dtype == "bf16" else ()
    shardings = _sharding_changes(config.engine) if config.engine.uses_gpu else []
    adapters = [{"language_model": "lora"}] if config.language_model == "full" else []
    for candidates, changes_figures in (
        (_add_effective(config, kept, precisions), True),
        ([{**kept, **sharding} for sharding in shardings], False),
        ([{**adapter, **kept} for adapter in adapters], True),
    ):
        changes = (
            find_fit(settings, stored=True, changes_figures=changes_figures)
            for settings in candidates
        )
        if change := next(filter(None, changes), None):
            yield change


def _add_effective(
    config: TrialConfig, settings: Mapping[str, Any], additions: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield settings with one addition more each time, without those that have no effect."""
    current = dict(settings)
    for addition in additions:
        changed = _apply_settings(config, {**current, **addition})
        if changed is not None and changed != _apply_settings(config, current):
            current = {**current, **addition}
            yield current


def _sharding_changes(engine: EngineConfig) -> list[dict[str, Any]]:
    """Return settings by which each weight is spread over more workers, the fewest first."""
    if engine.workers_per_trial == 1:
        return [
            {"engine.workers_per_trial": workers, "engine.parallel": "fsdp"}
            for workers in _WORKER_COUNTS
        ]
    return [{"engine.parallel": "fsdp"}] if engine.parallel == "hsdp" else []


def _step_bytes(
    config: TrialConfig, device: int, estimator: MemoryEstimator, *, stored: bool
) -> int | None:
    computed = not stored or config.reference_cache == "off"
    step = estimator.estimate(config, reference=computed, device=device)
    return None if step is None else step.footprint.total


def _apply_settings(config: TrialConfig, settings: Mapping[str, Any]) -> TrialConfig | None:
    """Return a configuration with other settings; None where they do not go together."""
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        set_key(tree, key, value)
    try:
        return parse_trial_config(tree, "a change")
    except ConfigError:
        return None


def require_fit(memory_fits: Sequence[MemoryFit]) -> None:
    """Check that no training is estimated not to fit its GPU.

    Raises:
        ConfigError: some are; each with what would fit.
    """
    errors = []
    for fit in memory_fits:
        if not fit.gpu or fit.measured or fit.fits is not False:
            continue
        assert fit.bytes is not None and fit.device is not None
        remedies = "; or ".join(
            f"{change.option_text} "
            f"({format_gib(change.bytes)}{', a different training' * change.changes_figures})"
            for change in fit.changes
        )
        errors.append(
            f"{fit.arms[0]}: a step takes about {format_gib(fit.bytes)} of a GPU, but a trial "
            f"may take {format_gib(fit.device)}: "
            f"{remedies or 'choose a GPU with more memory, or a smaller model'}"
        )
    if errors:
        raise ConfigError(errors)


def format_gib(size: int) -> str:
    """Format a size in GiB."""
    return f"{size / 2**30:.1f} GiB"


def estimate_disk(
    work: Workload, rates: Rates, estimator: MemoryEstimator, *, at_once: int | None, storage: Path
) -> DiskUsage:
    """Return what a study's run writes to the disk beside its report."""
    to_make = [planned for planned in work.planned if planned.state == "to make"]
    # Bytes of each training; None: not known.
    models: list[int | None] = []
    checkpoints: list[int | None] = []
    intermediate_models: list[int | None] = []
    pairs: list[int | None] = []
    for kind, trials in _group_by_training(work).items():
        first_trial = trials[0]
        step = estimator.estimate(first_trial.config, reference=not first_trial.caches)
        measured = rates.size("saved", kind)
        saved = measured[0] if measured else None if step is None else step.saved
        models += [saved] * len(trials)
        if first_trial.config.engine.checkpoint_every is not None:
            checkpoint = None if saved is None or step is None else step.checkpoint(saved)
            size = None if checkpoint is None else _KEPT_CHECKPOINTS * checkpoint
            checkpoints += [size] * len(trials)
        for trial_work in trials:
            count = _count_intermediate_models(trial_work)
            intermediate_models.append(None if count and saved is None else count * (saved or 0))
            pairs.append(sampled_bytes(trial_work.config, trial_work.rows))
    concurrent = at_once or len(work.trials)
    existing_folder = next(
        path for path in (storage.absolute(), *storage.absolute().parents) if path.exists()
    )
    return DiskUsage(
        passes=_sum_largest([planned.bytes for planned in to_make]),
        models=_sum_largest(models),
        checkpoints=_sum_largest(checkpoints, concurrent),
        intermediate_models=_sum_largest(intermediate_models, concurrent),
        pairs=_sum_largest(pairs),
        free=shutil.disk_usage(existing_folder).free,
    )


def _sum_largest(sizes: Sequence[int | None], count: int | None = None) -> int | None:
    """Return the sum of the largest sizes, or of all; None if one is not known."""
    known = [size for size in sizes if size is not None]
    return sum(sorted(known, reverse=True)[:count]) if len(known) == len(sizes) else None


def _count_intermediate_models(work: TrialWork) -> int:
    """Return how many models a training keeps besides its own until it ends."""
    config, steps = work.config, training_steps(work.config, work.rows)
    earlier_rounds = max(0, config.pairs.rounds - 1)
    if not config.training.score_at:
        return earlier_rounds
    rounds = config.pairs.rounds or 1
    scored = config.training.scored_steps(_MANY_STEPS if steps is None else steps // rounds)
    return earlier_rounds + len(scored) - 1


def sampled_bytes(config: TrialConfig, rows: int | None) -> int | None:
    """Return the bytes of the answers and pairs that a trial's rounds leave, about.

    Every prompt is taken to give a pair, with its image. None where the images' size, or how many
    there are, is not known.

    Args:
        config: the trial.
        rows: of its data; None: not known.
    """
    settings = config.pairs
    if not settings.rounds:
        return 0
    prompts, image = round_prompts(config, rows), _image_bytes(config, rows)
    if prompts is None or image is None:
        return None
    texts = settings.answers + 2  # those of a pair are written again
    prompt_bytes = image + texts * settings.max_new_tokens * _TOKEN_BYTES
    return settings.rounds * prompts * prompt_bytes


def _image_bytes(config: TrialConfig, rows: int | None) -> int | None:
    """Return the bytes of one of the data's images, where their rows hold them."""
    if config.data.source == SHAPES:
        return _SHAPES_IMAGE_BYTES
    source = expand_path(config.data.source)
    files = [source] if source.is_file() else sorted(source.glob("**/*.parquet"))
    is_complete = config.data.limit is None and all(file.suffix == ".parquet" for file in files)
    if not rows or not files or not is_complete:
        return None
    return sum(file.stat().st_size for file in files) // rows


def _group_by_training(work: Workload) -> dict[str, list[TrialWork]]:
    groups: dict[str, list[TrialWork]] = {}
    for trial_work in work.trials:
        if trial_work.training is not None:
            groups.setdefault(trial_work.training, []).append(trial_work)
    return groups


def _device_bytes(config: TrialConfig, at_once: int | None, device_gib: float | None) -> int | None:
    """Return the bytes of a device that one trial may take."""
    share = config.engine.gpus_per_worker
    gpu_share = min(share, 1.0) if share else 1.0
    if device_gib is not None:
        return int(device_gib * 2**30 * gpu_share)
    machine = trial_machine(config)
    if machine is None:
        return None
    if config.engine.uses_gpu:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory * gpu_share)
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().total / (at_once or 1))
