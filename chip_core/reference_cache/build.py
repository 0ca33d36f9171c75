"""Run a reference pass: the model that a training begins with, over all samples.

Its batches are always the same consecutive samples, on any number of workers, so that a store's
content is a function of its identity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.encodings import ENCODINGS
from chip_core.data.formats.extra_columns import RowRequirements, row_requirements
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.objectives.config import ObjectiveConfig, Term
from chip_core.objectives.parts import VIEWS
from chip_core.reference_cache.finish import FACTS, HEAD, finish_cache
from chip_core.reference_cache.folder import (
    BrokenStoreError,
    Manifest,
    build_lock,
    partial_folder,
    recorded_file,
    shard_count,
    shard_name,
    shard_rows,
    store_folder,
    verify,
)
from chip_core.reference_cache.rows import ImageFeatures, ResponseLogps
from chip_core.reference_cache.shards import CacheRow, write_shard, write_tensors
from chip_core.reference_cache.size import BYTES, check_room, has_room
from chip_core.reference_cache.spec import BuildShard, CacheSpec, group_specs
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.training.exactness import compile_exactly, share_prefixes
from chip_core.training.policy import Policy, logits_chunk_size
from chip_core.training.prepare import load_checked_pairs, resolve_device
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_json
from chip_core.utils.seeding import seed_process

#: Pairs of a batch.
BATCH = 8

PHASE = "reference pass"

Report = Callable[[Progress], None]


def ensure_caches(
    passes: Sequence[CacheSpec],
    config: TrialConfig,
    *,
    cache: Path,
    report: Report = lambda _: None,
) -> list[Manifest]:
    """Return the stores of a trial's passes; build those that are missing or unusable.

    If another process is building one, wait for it.

    Args:
        passes: the passes.
        config: the trial.
        cache: the folder of the stores.
        report: called with the progress.

    Raises:
        TrialError: one cannot be built.
    """
    began = time.perf_counter()
    found: dict[str, Manifest] = {}
    with ExitStack() as locks:
        # In a fixed order, so that two processes never wait for each other.
        for spec in sorted(passes, key=lambda spec: spec.key):
            folder = store_folder(cache, spec.key)
            locks.enter_context(build_lock(folder, lambda who: report(_waiting(who))))
            with suppress(BrokenStoreError):
                found[spec.key] = verify(folder, spec.identity)
        for group in group_specs([spec for spec in passes if spec.key not in found]):
            rows = build_shard(group, config, cache=cache, report=report)
            seconds = time.perf_counter() - began
            for spec in group:
                found[spec.key] = finish_cache(spec, cache=cache, rows=rows, seconds=seconds)
    return [found[spec.key] for spec in passes]


def run_shard(
    part: BuildShard, config: TrialConfig, *, folder: Path, report: Report
) -> TrialResult:
    """Compute a share of passes as a separate job, and write its result to `folder`.

    Raises:
        TrialError: see `build_shard`.
    """
    began = time.perf_counter()
    seed_process(config.seed, config.engine.threads)
    rows = build_shard(
        part.passes, config, cache=part.cache, part=part.number, parts=part.of, report=report
    )
    seconds = {PHASE: time.perf_counter() - began}
    result = TrialResult(steps=0, evaluations={}, seconds=seconds, data={"samples": rows})
    write_json(folder / RESULT, asdict(result))
    return result


def build_shard(
    passes: Sequence[CacheSpec],
    config: TrialConfig,
    *,
    cache: Path,
    part: int = 0,
    parts: int = 1,
    report: Report = lambda _: None,
) -> int:
    """Write every `parts`-th shard of a group of passes; return the total number of samples.

    Shards that an earlier attempt completed are kept. The caller holds the `build_lock` of each
    pass.

    Args:
        passes: one of the groups of `group_specs`.
        config: `build_config` of the group, or of a trial with all of them.
        cache: the folder of the stores.
        part: counted from 0.
        parts: how many share the work.
        report: called with the progress.

    Raises:
        TrialError: the data or the model cannot be read, or there is not enough space.
    """
    report(Progress(phase="start", done=0, total=1))
    pairs = load_checked_pairs(config, report, _asks(passes, config))
    missing = _missing(passes, cache, range(part, shard_count(len(pairs)), parts))
    if not missing.shards and not missing.heads:
        return len(pairs)
    try:
        _write(passes, config, pairs, cache, missing, parts=parts, report=report)
    except torch.OutOfMemoryError:
        raise TrialError(
            "the GPU's memory ran out in the reference pass: give its worker a GPU with more "
            "memory, or set reference_cache: off"
        ) from None
    return len(pairs)


@dataclass(frozen=True, kw_only=True)
class _Missing:
    """The files that are not written yet."""

    shards: dict[int, list[CacheSpec]]  # shard number -> passes that lack it
    heads: list[CacheSpec]  # the passes that lack the output head


def _missing(passes: Sequence[CacheSpec], cache: Path, numbers: range) -> _Missing:
    """Return the shards that passes lack, and with shard 0 also the output head."""
    missing = _Missing(shards={}, heads=[])
    for spec in passes:
        partial = partial_folder(store_folder(cache, spec.key))
        for number in numbers:
            if recorded_file(partial, shard_name(number)) is None:
                missing.shards.setdefault(number, []).append(spec)
        if numbers.start == 0 and spec.hidden is not None and recorded_file(partial, HEAD) is None:
            missing.heads.append(spec)
    return missing


def _write(
    passes: Sequence[CacheSpec],
    config: TrialConfig,
    pairs: Pairs,
    cache: Path,
    missing: _Missing,
    *,
    parts: int,
    report: Report,
) -> None:
    model, processor = loading.load(config.model, attention=config.engine.attention)
    device = resolve_device(config)
    group = BuildGroup(passes, config, model.eval().to(device), processor, pairs)
    weights = model.get_output_embeddings()
    heads = len(missing.heads) * weights.weight.numel() * BYTES[config.model.dtype]
    made = []
    for spec in passes:
        shards = [number for number, specs in missing.shards.items() if spec in specs]
        places = [place for number in shards for place in shard_rows(number, len(pairs))]
        made.append((group.of(spec), places))
    longest = config.training.max_length
    most = sum(each.most_bytes(places, longest) for each, places in made)
    if not has_room(cache, heads + parts * most):  # exact token counts would need all of the data
        needed = sum(each.bytes(places) for each, places in made)
        names = ", ".join(f"'{spec.name}'" for spec in passes)
        check_room(cache, heads + parts * needed, f"the reference pass {names}")
    for spec in missing.heads:
        tensors = {"weight": weights.weight, "bias": weights.bias}
        kept = {name: value.detach().cpu() for name, value in tensors.items() if value is not None}
        write_tensors(partial_folder(store_folder(cache, spec.key)), HEAD, kept)
    done, total = 0, sum(len(shard_rows(number, len(pairs))) for number in missing.shards)
    with group.ready():
        for number, specs in missing.shards.items():
            rows: dict[str, list[CacheRow]] = {spec.key: [] for spec in specs}
            of_shard = shard_rows(number, len(pairs))
            for start in range(of_shard.start, of_shard.stop, BATCH):
                these = range(start, min(start + BATCH, of_shard.stop))
                batch = group.batch(these)
                for spec in specs:
                    rows[spec.key] += group.of(spec).rows(batch)
                done += len(these)
                report(Progress(phase=PHASE, done=done, total=total))
            for spec in specs:
                partial = partial_folder(store_folder(cache, spec.key))
                write_shard(partial, number, rows[spec.key])
                if number == 0:
                    write_json(partial / FACTS, group.of(spec).facts)


def _waiting(who: str) -> Progress:
    return Progress(phase=f"wait for {who}", done=0, total=1)


class BuildGroup:
    """The model, encoder and settings that a group of passes is computed with."""

    def __init__(
        self,
        passes: Sequence[CacheSpec],
        config: TrialConfig,
        model: Any,
        processor: Any,
        pairs: Pairs,
    ) -> None:
        """Create a group.

        Args:
            passes: a group.
            config: the configuration that it is computed with.
            model: the reference, on its device.
            processor: its processor.
            pairs: all pairs.

        Raises:
            TrialError: features are needed of a tower that is trained.
        """
        objective = _objective(passes)
        views = {view for spec in passes for view in spec.reads}
        if any(spec.of_rejected_image for spec in passes):
            views.add("rejected_image")  # its images, even if no response under them is read
        self._sharing = config.engine.prefix_sharing
        self._compiled = config.engine.compile == "layers"
        self._alone = all(spec.of_features for spec in passes)
        self._epoch = next((spec.epoch for spec in passes if spec.of_rejected_image), None) or 0
        self._device = next(model.parameters()).device
        encodings = ENCODINGS.for_model(
            loading.content_key(config.model)
        )  # also for the following trials
        self._encoder = PairEncoder(
            processor,
            config.model_copy(update={"objective": objective}),
            pairs,
            encodings,
            views=views,
        )
        self._policy = Policy(
            model,
            objective,
            logits_chunk=logits_chunk_size(model, config, self._device),
        )
        self._of: dict[str, ImageFeatures | ResponseLogps] = {}
        for spec in passes:
            if spec.of_features:
                self._of[spec.key] = ImageFeatures(spec, config, model, self._encoder)
            else:
                self._of[spec.key] = ResponseLogps(spec, self._policy, processor, pairs)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Share prefixes if the trials would, and compile what they compile."""
        if self._alone:
            yield
            return
        small = self.batch([0])
        with ExitStack() as stack:
            sharing = stack.enter_context(share_prefixes(self._policy, small, self._sharing))
            if self._compiled:
                stack.enter_context(compile_exactly(self._policy, small))
            for said in self._of.values():
                if isinstance(said, ResponseLogps):
                    said.facts["prefix_sharing"] = sharing
            yield

    def batch(self, places: Sequence[int]) -> PairBatch:
        """Return some samples as a batch, on the device."""
        return self._encoder.batch(places, self._epoch).to(self._device)

    def of(self, spec: CacheSpec) -> ImageFeatures | ResponseLogps:
        """Return the object that computes a pass's rows."""
        return self._of[spec.key]


def _asks(passes: Sequence[CacheSpec], config: TrialConfig) -> RowRequirements:
    """Return the further cells that a group needs; its passes may have several objectives."""
    own = row_requirements(config.objective)
    read = {part for spec in passes for view in spec.reads for part in VIEWS[view]}
    return replace(
        own,
        other=own.other or "other" in read,
        second_image=own.second_image or "second_image" in read,
    )


def _objective(passes: Sequence[CacheSpec]) -> ObjectiveConfig:
    """Return an objective that reads from the reference what the passes hold."""
    terms: list[Term] = ["response"]
    if any(spec.hidden is not None for spec in passes):
        terms.append("token")
    if any(spec.of_rejected_image for spec in passes):
        terms.append("visual")
    return ObjectiveConfig(terms=tuple(terms))
