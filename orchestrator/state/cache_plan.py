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
    BrokenStoreError,
    Manifest,
    store_folder,
)
from chip_core.reference_cache.size import DiskSpaceError, check_disk_space, estimate_store_bytes
from chip_core.reference_cache.spec import (
    PASS_KINDS,
    CacheSpec,
    cache_specs,
    count_samples_read,
    with_hidden,
)
from chip_core.results import MODEL
from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.ledger import Ledger
from orchestrator.storage.reference_cache import CACHE, ReferenceCacheStore

#: Mean number of times that the trials must read a sample for a pass over all samples to pay. A
#: pass also prepares its samples, which each trial does anyway, and the vision tower is a small
#: share of a step. Measured in docs/cache.md.
_WORTH, _WORTH_FEATURES = 1.25, 2.0

#: cached: it exists. to make: built before the trials. in the step: each trial computes it.
State = Literal["cached", "to make", "in the step"]


#: Which trials of which study read a pass, one line per pass and run. In the caches' folder.
USES = "uses.jsonl"


def cache_folder(storage: Path) -> Path:
    """Return the folder of a storage's reference caches."""
    return storage / CACHE


@dataclass(kw_only=True)
class PlannedCache:
    """A reference pass, and whether it is built."""

    one: CacheSpec
    config: TrialConfig  # configuration of a trial that reads it
    samples: int | None  # samples of the data; None: unknown until it is loaded
    trials: list[str] = field(default_factory=list)  # fingerprints of the trials that read it
    reads: float = 0.0  # samples read in all; in epochs if `samples` is None
    state: State = "in the step"
    bytes: int | None = None  # size, or its estimate; None: unknown
    rounding: float | None = None  # largest change of a token's log-probability by bf16

    def take(self, manifest: Manifest) -> None:
        """Record that the cache exists."""
        self.state, self.bytes, self.samples = "cached", manifest.bytes, manifest.rows
        self.rounding = manifest.made.get("rounding")

    def decide(self) -> bool:
        """Decide whether to build a missing pass, set its state and return the decision."""
        often = _WORTH_FEATURES if self.one.is_features else _WORTH
        worth = self.reads >= often * (self.samples or 1)
        self.state = "to make" if worth else "in the step"
        return worth


def plan_caches(plan: Plan, ledger: Ledger, storage: Path) -> list[PlannedCache]:
    """Return the passes of the trials that are still to be trained, without hashing or building.

    A pass over all samples is built if the trials read it often enough to pay. A pass of
    log-probabilities alone uses the same pass with hidden states, if that exists or is built.
    """
    found: dict[str, PlannedCache] = {}
    for one, trial, samples in _of_trials(plan, ledger, storage):
        reads = _reads(one, trial.config, samples)
        if reads == 0:  # of an epoch that the trial does not reach
            continue
        fresh = PlannedCache(one=one, config=trial.config, samples=samples)
        planned = found.setdefault(one.key, fresh)
        planned.trials.append(trial.fingerprint)
        planned.reads += reads
    caches = ReferenceCacheStore(storage)
    for planned in found.values():
        planned.bytes = _bytes_there(caches, planned.one)
        if planned.bytes is not None:
            planned.state = "cached"
    kept = _served(found, caches)
    for planned in kept:
        if planned.state != "cached":
            planned.decide()
            planned.bytes = estimate_store_bytes(planned.one, planned.config, planned.samples)
    return kept


def require_disk_space(passes: list[PlannedCache], storage: Path) -> None:
    """Check that the disk has space for the passes to build, as far as their size is known.

    With a remote storage there is no such check: each machine manages its own disk.

    Raises:
        UserError: there is not enough space.
    """
    if ReferenceCacheStore(storage).remote is not None:
        return
    wanted = [planned for planned in passes if planned.state == "to make"]
    what = ", ".join(f"'{planned.one.name}'" for planned in wanted)
    try:
        needed = sum(planned.bytes or 0 for planned in wanted)
        check_disk_space(cache_folder(storage), needed, f"the reference passes {what}")
    except DiskSpaceError as error:
        raise UserError(str(error)) from None


def _of_trials(
    plan: Plan, ledger: Ledger, storage: Path
) -> Iterator[tuple[CacheSpec, Trial, int | None]]:
    """Yield the passes of each trial to be trained, with the number of samples of its data."""

    @cache
    def count(data: str) -> int | None:
        return preference_data.count_rows(DataConfig.model_validate_json(data))

    known: dict[tuple[object, ...], tuple[CacheSpec, ...]] = {}
    for trial in plan.trials:
        config = trial.config
        if trial.untrained or config.reference_cache == "off":
            continue
        record = ledger[trial.fingerprint]
        if record.done(trial) or record.is_cut(plan.study.early_stopping):
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
        if key not in known:
            known[key] = cache_specs(
                config, plan.identity(config.model), plan.identity(config.data)
            )
        samples = count(config.data.model_dump_json())
        for one in known[key]:
            yield one, trial, samples


def _reads(one: CacheSpec, config: TrialConfig, samples: int | None) -> float:
    """Return how many samples of a pass a trial reads, in epochs if `samples` is None."""
    if samples is not None:
        return count_samples_read(one, config, samples)
    if config.training.max_steps is not None:
        return 0  # it may be less than an epoch
    return 1 if one.epoch is not None else config.training.epochs


def _served(found: dict[str, PlannedCache], caches: ReferenceCacheStore) -> list[PlannedCache]:
    """Merge passes that another pass's cache serves into that pass, and return the rest."""
    kept = []
    for planned in found.values():
        host = None
        if planned.one.kind == "text" and planned.one.hidden is None:
            host = _host(planned, found, caches)
        if host is None:
            kept.append(planned)
        else:
            host.trials += planned.trials
            host.reads += planned.reads
            if host.one.key not in found:
                kept.append(host)
    return sorted(kept, key=lambda planned: PASS_KINDS.index(planned.one.kind))


def _host(
    planned: PlannedCache, found: dict[str, PlannedCache], caches: ReferenceCacheStore
) -> PlannedCache | None:
    """Return the pass with hidden states that can serve one without; None if there is none."""
    if planned.state == "cached":
        return None
    for precision in ("fp32", "bf16"):
        one = with_hidden(planned.one, precision)
        if one.key in found:
            return found[one.key]
        size = _bytes_there(caches, one)
        if size is not None:
            return replace(planned, one=one, state="cached", bytes=size, trials=[], reads=0.0)
    return None


def _bytes_there(caches: ReferenceCacheStore, one: CacheSpec) -> int | None:
    """Return the size of a pass's cache; None if there is none."""
    try:
        return caches.stat(store_folder(caches.cache, one.key), one.identity).bytes
    except BrokenStoreError:
        return None
