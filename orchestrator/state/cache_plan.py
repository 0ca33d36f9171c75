"""Choose the reference caches worth building for a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from chip_core import data as preference_data
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.reference_cache.folder import (
    CACHE_KEY,
    BrokenStoreError,
    LocalCaches,
    Manifest,
    store_folder,
)
from chip_core.reference_cache.size import DiskSpaceError, check_disk_space, estimate_store_bytes
from chip_core.reference_cache.spec import (
    PASS_KINDS,
    CacheSpec,
    count_samples_read,
    list_cache_specs,
    with_hidden,
)
from chip_core.results import MODEL
from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.ledger import Ledger
from orchestrator.storage.binding import find_storage
from orchestrator.storage.reference_cache import RemoteCaches

#: A pass over all samples pays off if the trials read each sample at least this often on average. A
#: pass also prepares its samples, which each trial does anyway, and the vision tower is a small
#: share of a step. Measured in docs/cache.md.
_MIN_READS, _MIN_FEATURE_READS = 1.25, 2.0

#: cached: it exists. to make: built before the trials. in the step: each trial computes it.
CacheState = Literal["cached", "to make", "in the step"]


#: Which trials of which study read a pass, one line per pass and run. In the caches' folder.
USES_FILE = "uses.jsonl"


def cache_folder(storage: Path) -> Path:
    """Return the folder of a storage's reference caches."""
    return storage / CACHE_KEY


def open_caches(workdir: Path) -> LocalCaches:
    """Return the reference caches of a work directory, which are in its storage if it has one.

    Raises:
        UserError: the file that names its storage cannot be read.
    """
    remote = find_storage(workdir)
    return LocalCaches(workdir) if remote is None else RemoteCaches(workdir, remote)


@dataclass(kw_only=True)
class PlannedCache:
    """A reference pass, and whether it is built."""

    spec: CacheSpec
    config: TrialConfig  # configuration of a trial that reads it
    samples: int | None  # samples of the data; None: unknown until it is loaded
    trials: list[str] = field(default_factory=list)  # fingerprints of the trials that read it
    reads: float = 0.0  # samples read in all; in epochs if `samples` is None
    state: CacheState = "in the step"
    bytes: int | None = None  # size, or its estimate; None: unknown
    rounding: float | None = None  # largest change of a token's log-probability by bf16

    def set_cached(self, manifest: Manifest) -> None:
        """Record that the cache exists."""
        self.state, self.bytes, self.samples = "cached", manifest.bytes, manifest.rows
        self.rounding = manifest.made.get("rounding")

    def decide_build(self) -> bool:
        """Decide whether to build a missing pass, set its state and return the decision."""
        min_reads = _MIN_FEATURE_READS if self.spec.is_features else _MIN_READS
        is_worthwhile = self.reads >= min_reads * (self.samples or 1)
        self.state = "to make" if is_worthwhile else "in the step"
        return is_worthwhile


def plan_caches(plan: Plan, ledger: Ledger, storage: Path) -> list[PlannedCache]:
    """Return the passes of the trials left to train, without hashing or building them.

    A pass over all samples is built if the trials read it often enough to pay off. A pass with
    log-probabilities only uses the same pass with hidden states, if that exists or is built.
    """
    planned_by_key: dict[str, PlannedCache] = {}
    for spec, trial, samples in _iter_trial_specs(plan, ledger, storage):
        reads = _estimate_samples_read(spec, trial.config, samples)
        if reads == 0:  # of an epoch that the trial does not reach
            continue
        new_cache = PlannedCache(spec=spec, config=trial.config, samples=samples)
        planned = planned_by_key.setdefault(spec.key, new_cache)
        planned.trials.append(trial.fingerprint)
        planned.reads += reads
    caches = open_caches(storage)
    for planned in planned_by_key.values():
        planned.bytes = _cached_bytes(caches, planned.spec)
        if planned.bytes is not None:
            planned.state = "cached"
    merged = _merge_served(planned_by_key, caches)
    for planned in merged:
        if planned.state != "cached":
            planned.decide_build()
            planned.bytes = estimate_store_bytes(planned.spec, planned.config, planned.samples)
    return merged


def require_disk_space(planned_caches: list[PlannedCache], storage: Path) -> None:
    """Check that the disk has space for the passes to build, as far as their size is known.

    With a remote storage there is no such check: each machine manages its own disk.

    Raises:
        UserError: there is not enough space.
    """
    if find_storage(storage) is not None:
        return
    missing_caches = [planned for planned in planned_caches if planned.state == "to make"]
    names = ", ".join(f"'{planned.spec.name}'" for planned in missing_caches)
    try:
        needed_bytes = sum(planned.bytes or 0 for planned in missing_caches)
        check_disk_space(cache_folder(storage), needed_bytes, f"the reference passes {names}")
    except DiskSpaceError as error:
        raise UserError(str(error)) from None


def _iter_trial_specs(
    plan: Plan, ledger: Ledger, storage: Path
) -> Iterator[tuple[CacheSpec, Trial, int | None]]:
    """Yield the passes of each trial to be trained, with the number of samples of its data."""

    @cache
    def sample_count(data: str) -> int | None:
        return preference_data.count_rows(DataConfig.model_validate_json(data))

    specs_by_key: dict[tuple[object, ...], tuple[CacheSpec, ...]] = {}
    for trial in plan.trials:
        config = trial.config
        if trial.untrained or config.reference_cache == "off":
            continue
        record = ledger[trial.fingerprint]
        if record.is_done(trial) or record.is_cut(plan.study.early_stopping):
            continue
        if record.model is not None and (storage / record.model / MODEL).is_dir():
            continue  # only scores are missing
        # Everything that the passes depend on. Computed once, since many arms have the same.
        key = (
            config.model.model_dump_json(),
            config.data.model_dump_json(),
            config.pairs.rounds > 0,
            config.rejected_image.model_dump_json(),
            config.rejected_image.corruption_seed == "per_trial" and config.seed,
            config.objective.needs_divergence,
            config.objective.needs_rejected_image,
            config.objective.resolved_method and str(config.objective.reference_reads),
            config.vision_encoder,
            config.projector,
            config.reference_cache,
            config.training.max_length,
            config.training.epochs,
            config.training.label_rule,
            config.training.augment,
            config.engine.model_dump_json(),
        )
        if key not in specs_by_key:
            specs_by_key[key] = list_cache_specs(
                config, plan.identity(config.model), plan.identity(config.data)
            )
        samples = sample_count(config.data.model_dump_json())
        for spec in specs_by_key[key]:
            yield spec, trial, samples


def _estimate_samples_read(spec: CacheSpec, config: TrialConfig, samples: int | None) -> float:
    """Return how many samples of a pass a trial reads, in epochs if `samples` is None."""
    if samples is not None:
        return count_samples_read(spec, config, samples)
    if config.training.max_steps is not None:
        return 0  # it may be less than an epoch
    return 1 if spec.epoch is not None else config.training.epochs


def _merge_served(
    planned_by_key: dict[str, PlannedCache], caches: LocalCaches
) -> list[PlannedCache]:
    """Merge passes that another pass's cache serves into that pass, and return the rest."""
    merged = []
    for planned in planned_by_key.values():
        host = None
        if planned.spec.kind == "text" and planned.spec.hidden is None:
            host = _find_host(planned, planned_by_key, caches)
        if host is None:
            merged.append(planned)
        else:
            host.trials += planned.trials
            host.reads += planned.reads
            if host.spec.key not in planned_by_key:
                merged.append(host)
    return sorted(merged, key=lambda planned: PASS_KINDS.index(planned.spec.kind))


def _find_host(
    planned: PlannedCache, planned_by_key: dict[str, PlannedCache], caches: LocalCaches
) -> PlannedCache | None:
    """Return the pass with hidden states that can serve one without; None if there is none."""
    if planned.state == "cached":
        return None
    for precision in ("fp32", "bf16"):
        spec = with_hidden(planned.spec, precision)
        if spec.key in planned_by_key:
            return planned_by_key[spec.key]
        size = _cached_bytes(caches, spec)
        if size is not None:
            return replace(planned, spec=spec, state="cached", bytes=size, trials=[], reads=0.0)
    return None


def _cached_bytes(caches: LocalCaches, spec: CacheSpec) -> int | None:
    """Return the size of a pass's cache; None if there is none."""
    try:
        return caches.stat(store_folder(caches.cache, spec.key), spec.identity).bytes
    except BrokenStoreError:
        return None
