"""Estimate whether trials fit the memory of their device and the disk.

Measurements take precedence. Otherwise a step is run with the model on torch's fake tensors
(chip_core/training/footprint/estimate.py), which have its shapes and no memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chip_core.config.trial import EngineConfig, TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.data.source import SHAPES
from chip_core.utils.errors import ConfigError, TrialError
from chip_core.utils.files import expand_path
from chip_core.utils.machine import gpu_count
from orchestrator.cost.machines import machine_of
from orchestrator.cost.published.devices import GPUS_OF_A_MACHINE
from orchestrator.cost.rates import Rates
from orchestrator.cost.workload import TrialWork, Workload, prompts_of, steps_of

if TYPE_CHECKING:
    from chip_core.training.footprint.estimate import Footprint

_FP32, _BF16 = 4, 2  # bytes of a weight
_KEPT = 2  # checkpoints of a running training
_TOKEN = 5  # bytes of a token's text and what surrounds it, about
_SHAPES_IMAGE = 3 * 48 * 48  # of the embedded world, at most: its pixels
_MANY = 1_000_000  # steps: enough for all shares of them to differ


@dataclass(frozen=True, kw_only=True)
class Change:
    """Settings with which a training would fit."""

    settings: Mapping[str, Any]  # key -> value
    bytes: int  # of one device
    figures: bool  # whether it is another training, with figures of its own

    @property
    def words(self) -> str:
        """The settings as options of the command line."""
        return " ".join(f"--set {key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The memory of a device that trials of one kind need."""

    arms: tuple[str, ...]
    bytes: int | None  # None: not known
    measured: bool  # and not estimated
    device: int | None  # bytes of the device that one trial may take; None: not known
    parts: Mapping[str, int] = field(default_factory=dict)  # bytes, where it is estimated
    basis: str = ""  # what rows the estimate is of
    changes: tuple[Change, ...] = ()  # with which it would fit, where it does not
    gpu: bool = False  # whether the device is a GPU

    @property
    def fits(self) -> bool | None:
        """Whether the trials fit; None if unknown."""
        if self.bytes is None or self.device is None:
            return None
        return self.bytes <= self.device


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The disk space that a study needs apart from its report, and the free space."""

    passes: int | None  # bytes of the reference passes to be made; None: not known
    models: int | None  # of the trained models
    checkpoints: int | None  # of trainings that run at a time
    between: int | None  # of models that those keep until they end: of `score_at`, of rounds
    pairs: int | None  # of what rounds sample, which stays
    free: int

    @property
    def known(self) -> int:
        """Bytes of what is known."""
        parts = (self.passes, self.models, self.checkpoints, self.between, self.pairs)
        return sum(part or 0 for part in parts)


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """The estimated memory of a step."""

    footprint: Footprint  # of one worker
    basis: str
    adapted: bool  # whether adapters are trained
    masters: bool  # whether weights are held in bf16, with masters of what is trained
    states: float  # bytes of the optimizer's states, a trained weight

    @property
    def saved(self) -> int:
        """Bytes of a trained model's folder: weights as they are held."""
        found = self.footprint
        count = found.trained if self.adapted else found.trained + found.frozen
        return (_BF16 if self.masters else _FP32) * count

    def checkpoint(self, saved: int) -> int:
        """Return the bytes of a checkpoint: the masters, else the model; and the moments.

        Args:
            saved: bytes of a trained model's folder.
        """
        trained = self.footprint.trained
        weights = _FP32 * trained if self.masters else saved
        return weights + round(self.states * trained)


class MemoryEstimator:
    """Estimates steps, once for each kind."""

    def __init__(self, *, count: bool) -> None:
        """Estimate, or tell only what was measured.

        Args:
            count: whether models may be built, without weights, which takes torch.
        """
        self._count = count

    def of(
        self, config: TrialConfig, *, reference: bool, device: int | None = None
    ) -> Estimated | None:
        """Return the estimate of a worker's step; None if its model's sizes are unknown.

        Args:
            config: the trial.
            reference: whether the reference is computed, and not read from stores.
            device: bytes that a worker may take: `auto` spreads weights that do not fit whole.
        """
        if not self._count:
            return None
        engine = config.engine
        workers, machine = engine.workers_per_trial, workers_of_a_machine(engine)
        if engine.parallel in ("fsdp", "hsdp"):
            parts = workers if engine.parallel == "fsdp" else machine
            return self._spread(config, parts, reference=reference)
        found = self._kept(config, reference=reference, spread=False)
        may = engine.parallel == "auto" and config.model.quantize == "none" and workers > 1
        if not may or not engine.gpus_per_worker or device is None:
            return found
        for parts in sorted({machine, workers} - {1}):  # as `hsdp`, else as `fsdp`
            if found is not None and found.footprint.total > device:
                found = self._spread(config, parts, reference=reference)
        return found

    def _spread(self, config: TrialConfig, parts: int, *, reference: bool) -> Estimated | None:
        """Return what a worker's step takes where so many share each weight."""
        found = self._kept(config, reference=reference, spread=parts > 1)
        if found is None or parts == 1:
            return found
        basis = found.basis
        if parts < config.engine.workers_per_trial:
            basis += f"; taken for {parts} workers a machine"
        return replace(found, footprint=found.footprint.per_worker(parts), basis=basis)

    def _kept(self, config: TrialConfig, *, reference: bool, spread: bool) -> Estimated | None:
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
                [engine.logits_chunk, wants_gpu(config), passes or spread],
                [config.reference_precision, reference, spread],
            ]
        )
        if key not in _KNOWN:
            _KNOWN[key] = _estimated(config, reference=reference, spread=spread)
        return _KNOWN[key]


#: Estimates of this process, so that a run is checked with what its plan shows.
_KNOWN: dict[str, Estimated | None] = {}


def workers_of_a_machine(engine: EngineConfig) -> int:
    """Return how many of a trial's workers are taken to lie on one machine.

    The largest number that divides the workers evenly and is at most this machine's GPUs, if it has
    several, or those of a published machine.
    """
    here = gpu_count() if engine.gpus_per_worker else 0
    most = here if here > 1 else GPUS_OF_A_MACHINE
    workers = engine.workers_per_trial
    return max(count for count in range(1, most + 1) if workers % count == 0)


def _estimated(config: TrialConfig, *, reference: bool, spread: bool) -> Estimated | None:
    from chip_core.training.footprint.estimate import estimate_footprint, training_precision
    from chip_core.training.footprint.published import load_model_config
    from orchestrator.cost.published.rows import rows_of_trial

    try:
        found = load_model_config(config.model)
        if found is None:
            return None
        rows = rows_of_trial(found, config)
        made = estimate_footprint(found, config, rows.longest, stored=not reference, sharded=spread)
    except (ValueError, AttributeError, TrialError):  # an unsupported model family
        return None
    precision = training_precision(config)
    return Estimated(
        footprint=made,
        basis=rows.basis,
        adapted=config.has_adapters,
        masters=precision.master > 0,
        states=precision.states,
    )


def fits(
    work: Workload,
    rates: Rates,
    estimator: MemoryEstimator,
    *,
    at_once: int | None,
    given: float | None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Fit]:
    """Return the memory that each kind of training needs on its device.

    Args:
        work: what is left of a study.
        rates: what was measured.
        estimator: estimates what was not.
        at_once: trials that share this machine; a GPU is not shared, but by its shares.
        given: GiB of a device, in place of this machine's.
        say: told of each kind: a large model's takes a while.
    """
    found = []
    kinds = _by_training(work)
    for number, (kind, trials) in enumerate(kinds.items(), start=1):
        first = trials[0]
        say(f"memory of {first.trial.arm}: {number} of {len(kinds)}")
        config, device = first.config, _device(first.config, at_once, given)
        measured = rates.size("memory", kind)
        reckoned = None
        if measured is None:
            reckoned = estimator.of(config, reference=not first.caches, device=device)
        worker = None if reckoned is None else reckoned.footprint
        size = measured[0] if measured else None if worker is None else worker.total
        changes: tuple[Change, ...] = ()
        if worker is not None and device is not None and worker.total > device:
            changes = tuple(changes_that_fit(config, device, estimator))
        found.append(
            Fit(
                arms=tuple(dict.fromkeys(each.trial.arm for each in trials)),
                bytes=size,
                measured=measured is not None,
                device=device,
                parts={} if worker is None else worker.parts,
                basis="" if reckoned is None else reckoned.basis,
                changes=changes,
                gpu=wants_gpu(config),
            )
        )
    return found


#: Settings that need less memory, first those that only change rounding. Each is tried together
#: with the previous ones of its kind.
_ENGINE: tuple[Mapping[str, Any], ...] = (
    {"engine.gradient_checkpointing": True},
    {"engine.micro_batch": 1},
)
#: Where weights are held in bf16: gradients and moments in less.
_LESS: tuple[Mapping[str, Any], ...] = (
    {"training.gradients": "bf16"},
    {"optimizer.states": "int8"},
    {"model.quantize": "nf4"},
)
_WORKERS = (2, 4, 8)


def changes_that_fit(
    config: TrialConfig, device: int, estimator: MemoryEstimator
) -> Iterator[Change]:
    """Yield changes with which a training fits a device, the smallest first, one of each kind.

    Args:
        config: the trial.
        device: bytes of it.
        estimator: of steps.
    """
    kept: dict[str, Any] = {}
    for settings in _ENGINE:
        changed = _with(config, {**kept, **settings})
        if changed is None or changed == _with(config, kept):
            continue
        kept |= settings
        size = _size(changed, device, estimator, stored=False)
        if size is not None and size <= device:
            yield Change(settings=kept, bytes=size, figures=False)
            return
    less = dict(kept)
    for settings in _LESS if config.model.dtype == "bf16" else ():
        changed = _with(config, {**less, **settings})
        if changed is None or changed == _with(config, less):
            continue
        less |= settings
        size = _size(changed, device, estimator, stored=True)
        if size is not None and size <= device:
            yield Change(settings=less, bytes=size, figures=True)
            break
    if wants_gpu(config):
        for spread in _more_spread(config.engine):
            more = {**kept, **spread}
            changed = _with(config, more)
            size = None if changed is None else _size(changed, device, estimator, stored=True)
            if size is not None and size <= device:
                yield Change(settings=more, bytes=size, figures=False)
                break
    if config.language_model == "full":
        adapted = {"language_model": "lora", **kept}
        changed = _with(config, adapted)
        size = None if changed is None else _size(changed, device, estimator, stored=True)
        if size is not None and size <= device:
            yield Change(settings=adapted, bytes=size, figures=True)


def _more_spread(engine: EngineConfig) -> list[dict[str, Any]]:
    """Return settings by which each weight is spread over more workers, the fewest first."""
    if engine.workers_per_trial == 1:
        return [
            {"engine.workers_per_trial": workers, "engine.parallel": "fsdp"} for workers in _WORKERS
        ]
    return [{"engine.parallel": "fsdp"}] if engine.parallel == "hsdp" else []


def _size(
    config: TrialConfig, device: int, estimator: MemoryEstimator, *, stored: bool
) -> int | None:
    computed = not stored or config.reference_cache == "off"
    found = estimator.of(config, reference=computed, device=device)
    return None if found is None else found.footprint.total


def _with(config: TrialConfig, settings: Mapping[str, Any]) -> TrialConfig | None:
    """Return a configuration with other settings; None where they do not go together."""
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        set_key(tree, key, value)
    try:
        return parse_trial_config(tree, "a change")
    except ConfigError:
        return None


def require_fit(found: Sequence[Fit]) -> None:
    """Check that no training is estimated not to fit its GPU.

    Raises:
        ConfigError: some are; each with what would fit.
    """
    wrong = []
    for fit in found:
        if not fit.gpu or fit.measured or fit.fits is not False:
            continue
        assert fit.bytes is not None and fit.device is not None
        ways = "; or ".join(
            f"{change.words} ({_gib(change.bytes)}{', another training' * change.figures})"
            for change in fit.changes
        )
        wrong.append(
            f"{fit.arms[0]}: a step takes about {_gib(fit.bytes)} of a GPU, and a trial may take "
            f"{_gib(fit.device)}: {ways or 'choose a GPU with more memory, or a smaller model'}"
        )
    if wrong:
        raise ConfigError(wrong)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def disk(
    work: Workload, rates: Rates, estimator: MemoryEstimator, *, at_once: int | None, storage: Path
) -> Disk:
    """Return what a study's run writes to the disk beside its report."""
    to_make = [planned for planned in work.planned if planned.state == "to make"]
    sizes = [planned.bytes for planned in to_make]
    models: int | None = 0
    running: list[int] = []
    checkpoints: int | None = 0
    kept: list[int] = []
    between: int | None = 0
    pairs: int | None = 0
    for kind, trials in _by_training(work).items():
        first = trials[0]
        reckoned = estimator.of(first.config, reference=not first.caches)
        measured = rates.size("saved", kind)
        saved = measured[0] if measured else None if reckoned is None else reckoned.saved
        models = None if models is None or saved is None else models + saved * len(trials)
        if first.config.engine.checkpoint_every is not None:
            if saved is None or reckoned is None:
                checkpoints = None
            else:
                running += [_KEPT * reckoned.checkpoint(saved)] * len(trials)
        for each in trials:
            count = _kept_between(each)
            if count and saved is None:
                between = None
            kept.append(count * (saved or 0))
            sampled = sampled_bytes(each.config, each.rows)
            pairs = None if pairs is None or sampled is None else pairs + sampled
    at_a_time = at_once or len(work.trials)
    if checkpoints is not None:
        checkpoints = sum(sorted(running, reverse=True)[:at_a_time])
    if between is not None:
        between = sum(sorted(kept, reverse=True)[:at_a_time])
    above = next(
        path for path in (storage.absolute(), *storage.absolute().parents) if path.exists()
    )
    return Disk(
        passes=None if None in sizes else sum(size or 0 for size in sizes),
        models=models,
        checkpoints=checkpoints,
        between=between,
        pairs=pairs,
        free=shutil.disk_usage(above).free,
    )


def _kept_between(work: TrialWork) -> int:
    """Return how many models a training keeps besides its own until it ends."""
    config, steps = work.config, steps_of(work.config, work.rows)
    before = max(0, config.pairs.rounds - 1)
    if not config.training.score_at:
        return before
    rounds = config.pairs.rounds or 1
    scored = config.training.scored_steps(_MANY if steps is None else steps // rounds)
    return before + len(scored) - 1


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
    prompts, image = prompts_of(config, rows), _image_bytes(config, rows)
    if prompts is None or image is None:
        return None
    texts = settings.answers + 2  # those of a pair are written again
    each = image + texts * settings.max_new_tokens * _TOKEN
    return settings.rounds * prompts * each


def _image_bytes(config: TrialConfig, rows: int | None) -> int | None:
    """Return the bytes of one of the data's images, where their rows hold them."""
    if config.data.source == SHAPES:
        return _SHAPES_IMAGE
    source = expand_path(config.data.source)
    files = [source] if source.is_file() else sorted(source.glob("**/*.parquet"))
    whole = config.data.limit is None and all(file.suffix == ".parquet" for file in files)
    if not rows or not files or not whole:
        return None
    return sum(file.stat().st_size for file in files) // rows


def _by_training(work: Workload) -> dict[str, list[TrialWork]]:
    found: dict[str, list[TrialWork]] = {}
    for each in work.trials:
        if each.training is not None:
            found.setdefault(each.training, []).append(each)
    return found


def wants_gpu(config: TrialConfig) -> bool:
    """Return whether a trial is to run on a GPU."""
    return config.engine.gpus_per_worker > 0 or config.engine.device == "cuda"


def _device(config: TrialConfig, at_once: int | None, given: float | None) -> int | None:
    """Return the bytes of a device that one trial may take."""
    share = config.engine.gpus_per_worker
    part = min(share, 1.0) if share else 1.0
    if given is not None:
        return int(given * 2**30 * part)
    machine = machine_of(config)
    if machine is None:
        return None
    if wants_gpu(config):
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory * part)
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().total / (at_once or 1))


def memory_words(fit: Fit) -> Iterator[str]:
    """Yield the memory that trials need, in words."""
    if fit.bytes is None:
        yield "unknown"
        return
    yield _gib(fit.bytes) if fit.measured else f"about {_gib(fit.bytes)}, estimated"
    if fit.device is None:
        yield "of a device that is not here"
        return
    yield f"of {_gib(fit.device)} a trial"
    if not fit.fits:
        yield "does not fit"


def parts_words(fit: Fit) -> str:
    """Return the parts of an estimate in words, without those below 0.01 GiB."""
    shown = [f"{name} {size / 2**30:.1f}" for name, size in fit.parts.items() if size > 2**30 / 100]
    return f"GiB: {', '.join(shown)}; {fit.basis}" if shown else fit.basis


def change_words(change: Change) -> str:
    """Return a change with which a training would fit, and its effect, in words."""
    changes = "another training, with figures of its own" if change.figures else "rounding alone"
    return f"fits with {change.words}: about {_gib(change.bytes)} (changes {changes})"
