"""Run a reference pass: the initial model of a training, over all samples.

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
from chip_core.reference_cache.finish import FACTS_FILE, HEAD_FILE, finish_cache
from chip_core.reference_cache.folder import (
    BrokenStoreError,
    Manifest,
    build_lock,
    partial_folder,
    read_recorded_file,
    shard_count,
    shard_name,
    shard_rows,
    store_folder,
    verify,
)
from chip_core.reference_cache.rows import ImageFeatures, ResponseLogps
from chip_core.reference_cache.shards import CacheRow, write_shard, write_tensors
from chip_core.reference_cache.size import BYTES_PER_VALUE, check_disk_space, has_disk_space
from chip_core.reference_cache.spec import BuildShard, CacheSpec, group_specs
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.training.batches import load_checked_pairs, resolve_device
from chip_core.training.exactness import compile_exactly, share_prefixes
from chip_core.training.policy import Policy, get_logits_chunk_size
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_json
from chip_core.utils.seeding import seed_process

#: Pairs of a batch.
BATCH_SIZE = 8

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
    manifests: dict[str, Manifest] = {}
    with ExitStack() as locks:
        # In a fixed order, so that two processes never wait for each other.
        for spec in sorted(passes, key=lambda spec: spec.key):
            folder = store_folder(cache, spec.key)
            locks.enter_context(build_lock(folder, lambda owner: report(_waiting_progress(owner))))
            with suppress(BrokenStoreError):
                manifests[spec.key] = verify(folder, spec.identity)
        for group in group_specs([spec for spec in passes if spec.key not in manifests]):
            rows = build_shard(group, config, cache=cache, report=report)
            seconds = time.perf_counter() - began
            for spec in group:
                manifests[spec.key] = finish_cache(spec, cache=cache, rows=rows, seconds=seconds)
    return [manifests[spec.key] for spec in passes]


def run_shard(
    shard: BuildShard, config: TrialConfig, *, folder: Path, report: Report
) -> TrialResult:
    """Compute a share of passes as a separate job, and write its result to `folder`.

    Raises:
        TrialError: see `build_shard`.
    """
    began = time.perf_counter()
    seed_process(config.seed, config.engine.threads)
    rows = build_shard(
        shard.passes, config, cache=shard.cache, part=shard.number, parts=shard.of, report=report
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
    pairs = load_checked_pairs(config, report, _group_requirements(passes, config))
    missing = _find_missing(passes, cache, range(part, shard_count(len(pairs)), parts))
    if not missing.shards and not missing.heads:
        return len(pairs)
    try:
        _write_missing(passes, config, pairs, cache, missing, parts=parts, report=report)
    except torch.OutOfMemoryError:
        raise TrialError(
            "the GPU's memory ran out in the reference pass: give its worker a GPU with more "
            "memory, or set reference_cache: off"
        ) from None
    return len(pairs)


@dataclass(frozen=True, kw_only=True)
class _MissingFiles:
    """The files that are not written yet."""

    shards: dict[int, list[CacheSpec]]  # shard number -> passes that lack it
    heads: list[CacheSpec]  # the passes that lack the output head


def _find_missing(passes: Sequence[CacheSpec], cache: Path, shard_numbers: range) -> _MissingFiles:
    """Return the shards that passes lack, and with shard 0 also the output head."""
    missing = _MissingFiles(shards={}, heads=[])
    for spec in passes:
        partial = partial_folder(store_folder(cache, spec.key))
        for number in shard_numbers:
            if read_recorded_file(partial, shard_name(number)) is None:
                missing.shards.setdefault(number, []).append(spec)
        if (
            shard_numbers.start == 0
            and spec.hidden is not None
            and read_recorded_file(partial, HEAD_FILE) is None
        ):
            missing.heads.append(spec)
    return missing


def _write_missing(
    passes: Sequence[CacheSpec],
    config: TrialConfig,
    pairs: Pairs,
    cache: Path,
    missing: _MissingFiles,
    *,
    parts: int,
    report: Report,
) -> None:
    model, processor = loading.load(config.model, attention=config.engine.attention)
    device = resolve_device(config)
    group = BuildGroup(passes, config, model.eval().to(device), processor, pairs)
    weights = model.get_output_embeddings()
    head_bytes = len(missing.heads) * weights.weight.numel() * BYTES_PER_VALUE[config.model.dtype]
    pass_indices = []
    for spec in passes:
        shards = [number for number, specs in missing.shards.items() if spec in specs]
        indices = [index for number in shards for index in shard_rows(number, len(pairs))]
        pass_indices.append((group.computer_of(spec), indices))
    max_length = config.training.max_length
    max_bytes = sum(computer.max_bytes(indices, max_length) for computer, indices in pass_indices)
    if not has_disk_space(cache, head_bytes + parts * max_bytes):
        # exact token counts would need all of the data
        required = sum(computer.estimate_bytes(indices) for computer, indices in pass_indices)
        names = ", ".join(f"'{spec.name}'" for spec in passes)
        check_disk_space(cache, head_bytes + parts * required, f"the reference pass {names}")
    for spec in missing.heads:
        tensors = {"weight": weights.weight, "bias": weights.bias}
        present = {
            name: value.detach().cpu() for name, value in tensors.items() if value is not None
        }
        write_tensors(partial_folder(store_folder(cache, spec.key)), HEAD_FILE, present)
    done, total = 0, sum(len(shard_rows(number, len(pairs))) for number in missing.shards)
    with group.prepare():
        for number, specs in missing.shards.items():
            rows: dict[str, list[CacheRow]] = {spec.key: [] for spec in specs}
            shard_range = shard_rows(number, len(pairs))
            for start in range(shard_range.start, shard_range.stop, BATCH_SIZE):
                batch_indices = range(start, min(start + BATCH_SIZE, shard_range.stop))
                batch = group.encode_batch(batch_indices)
                for spec in specs:
                    rows[spec.key] += group.computer_of(spec).rows(batch)
                done += len(batch_indices)
                report(Progress(phase=PHASE, done=done, total=total))
            for spec in specs:
                partial = partial_folder(store_folder(cache, spec.key))
                write_shard(partial, number, rows[spec.key])
                if number == 0:
                    write_json(partial / FACTS_FILE, group.computer_of(spec).facts)


def _waiting_progress(owner: str) -> Progress:
    return Progress(phase=f"wait for {owner}", done=0, total=1)


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
        objective = _group_objective(passes)
        views = {view for spec in passes for view in spec.reads}
        if any(spec.is_rejected_image for spec in passes):
            views.add("rejected_image")  # its images, even if no response under them is read
        self._sharing = config.engine.prefix_sharing
        self._compiled = config.engine.compile == "layers"
        self._only_features = all(spec.is_features for spec in passes)
        self._epoch = next((spec.epoch for spec in passes if spec.is_rejected_image), None) or 0
        self._device = next(model.parameters()).device
        # also for the following trials
        encodings = ENCODINGS.for_model(loading.make_content_key(config.model))
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
            logits_chunk=get_logits_chunk_size(model, config, self._device),
        )
        self._computers: dict[str, ImageFeatures | ResponseLogps] = {}
        for spec in passes:
            if spec.is_features:
                self._computers[spec.key] = ImageFeatures(spec, config, model, self._encoder)
            else:
                self._computers[spec.key] = ResponseLogps(spec, self._policy, processor, pairs)

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Share prefixes if the trials would, and compile what they compile."""
        if self._only_features:
            yield
            return
        probe = self.encode_batch([0])
        with ExitStack() as stack:
            sharing = stack.enter_context(share_prefixes(self._policy, probe, self._sharing))
            if self._compiled:
                stack.enter_context(compile_exactly(self._policy, probe))
            for computer in self._computers.values():
                if isinstance(computer, ResponseLogps):
                    computer.facts["prefix_sharing"] = sharing
            yield

    def encode_batch(self, indices: Sequence[int]) -> PairBatch:
        """Return some samples as a batch, on the device."""
        return self._encoder.encode_batch(indices, self._epoch).to(self._device)

    def computer_of(self, spec: CacheSpec) -> ImageFeatures | ResponseLogps:
        """Return the object that computes a pass's rows."""
        return self._computers[spec.key]


def _group_requirements(passes: Sequence[CacheSpec], config: TrialConfig) -> RowRequirements:
    """Return the further cells that a group needs; its passes may have several objectives."""
    requirements = row_requirements(config.objective)
    responses = {part for spec in passes for view in spec.reads for part in VIEWS[view]}
    return replace(
        requirements,
        other=requirements.other or "other" in responses,
        second_image=requirements.second_image or "second_image" in responses,
    )


def _group_objective(passes: Sequence[CacheSpec]) -> ObjectiveConfig:
    """Return an objective that reads from the reference what the passes hold."""
    terms: list[Term] = ["response"]
    if any(spec.hidden is not None for spec in passes):
        terms.append("token")
    if any(spec.is_rejected_image for spec in passes):
        terms.append("visual")
    return ObjectiveConfig(terms=tuple(terms))
