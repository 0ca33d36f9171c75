"""A reference pass: the model that a training begins with, run over all samples.

Its batches are always the same consecutive samples, whoever computes them and on however many
workers, so that a store's content is a function of what it is a store of.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from chip_core.config import TrialConfig
from chip_core.data.preferences import Pairs
from chip_core.errors import TrialError
from chip_core.files import write_json
from chip_core.models import loading
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.seeding import seed_process
from chip_core.training.prepare import checked_pairs, device_of
from chip_core.training.store.folder import (
    BrokenStoreError,
    Manifest,
    check,
    noted,
    partial_folder,
    seal,
    shard_count,
    shard_name,
    shard_rows,
    store_folder,
)
from chip_core.training.store.lock import making
from chip_core.training.store.of_images import OfImages
from chip_core.training.store.of_responses import OfResponses
from chip_core.training.store.passes import Part, ReferencePass
from chip_core.training.store.room import check_room
from chip_core.training.store.shards import Row, write_shard, write_tensors
from chip_core.training.store.size import BYTES

#: Pairs of a batch.
BATCH = 8

#: The output head that goes with hidden states.
HEAD = "head.safetensors"

#: In a partial folder, of its first batch: whether prefixes were shared, and by how much rounding
#: to bf16 moves a token's log-probability.
FACTS = "facts.note.json"

PHASE = "reference pass"

_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}

Report = Callable[[Progress], None]


def ensure(
    one: ReferencePass, config: TrialConfig, *, cache: Path, report: Report = lambda _: None
) -> Manifest:
    """Return the store of a pass; make it where there is none that can be used.

    Where another process is making it, that one is waited for.

    Args:
        one: the pass.
        config: a trial that has it.
        cache: where stores lie.
        report: told of progress.

    Raises:
        TrialError: it cannot be made.
    """
    folder = store_folder(cache, one.key)
    with making(folder, lambda who: report(Progress(phase=f"wait for {who}", done=0, total=1))):
        try:
            return check(folder, one.identity)
        except BrokenStoreError:
            began = time.perf_counter()
            rows = make_part(one, config, cache=cache, report=report)
            return finish(one, cache=cache, rows=rows, seconds=time.perf_counter() - began)


def run_part(part: Part, config: TrialConfig, *, folder: Path, report: Report) -> TrialResult:
    """Make a share of a pass as a job of its own, and leave its result in `folder`.

    Raises:
        TrialError: see `make_part`.
    """
    began = time.perf_counter()
    seed_process(config.seed, config.engine.threads)
    rows = make_part(
        part.one, config, cache=part.cache, part=part.number, parts=part.of, report=report
    )
    seconds = {PHASE: time.perf_counter() - began}
    result = TrialResult(steps=0, evaluations={}, seconds=seconds, data={"samples": rows})
    write_json(folder / RESULT, asdict(result))
    return result


def make_part(
    one: ReferencePass,
    config: TrialConfig,
    *,
    cache: Path,
    part: int = 0,
    parts: int = 1,
    report: Report = lambda _: None,
) -> int:
    """Write every `parts`-th shard of a pass, and return how many samples the whole has.

    Shards that an earlier attempt wrote whole are left as they are. The caller holds
    `making(folder)`.

    Args:
        one: the pass.
        config: a trial that has it.
        cache: where stores lie.
        part: counted from 0.
        parts: how many share the work.
        report: told of progress.

    Raises:
        TrialError: the data or the model cannot be read, or there is no room.
    """
    report(Progress(phase="start", done=0, total=1))
    pairs = checked_pairs(config, report)
    partial = partial_folder(store_folder(cache, one.key))
    shards = [
        number
        for number in range(part, shard_count(len(pairs)), parts)
        if noted(partial, shard_name(number)) is None
    ]
    head = part == 0 and one.hidden is not None and noted(partial, HEAD) is None
    if not shards and not head:
        return len(pairs)
    try:
        _write(one, config, pairs, partial, shards, head, parts, report)
    except torch.OutOfMemoryError:
        raise TrialError(
            "the GPU's memory ran out in the reference pass: give its worker a GPU with more "
            "memory, or set reference_cache: off"
        ) from None
    return len(pairs)


def finish(one: ReferencePass, *, cache: Path, rows: int, seconds: float) -> Manifest:
    """Give a pass its name, all of whose parts are made.

    Raises:
        BrokenStoreError: a part is missing.
    """
    names = [shard_name(number) for number in range(shard_count(rows))]
    if one.hidden is not None:
        names.append(HEAD)
    made: dict[str, Any] = {
        "time": time.time(),
        "seconds": round(seconds, 1),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    folder = store_folder(cache, one.key)
    with suppress(FileNotFoundError):
        made |= json.loads((partial_folder(folder) / FACTS).read_text(encoding="utf-8"))
    return seal(folder, identity=one.identity, rows=rows, names=names, made=made)


def _write(
    one: ReferencePass,
    config: TrialConfig,
    pairs: Pairs,
    partial: Path,
    shards: Sequence[int],
    head: bool,
    parts: int,
    report: Report,
) -> None:
    model, processor = loading.load(config.model, attention=config.engine.attention)
    model = model.eval().to(device_of(config))
    kind: type[OfImages] | type[OfResponses] = OfImages if one.of_features else OfResponses
    computed = kind(one, config, model, processor, pairs)
    weights = model.get_output_embeddings()
    places = [place for number in shards for place in shard_rows(number, len(pairs))]
    needed = parts * computed.bytes(places) + head * weights.weight.numel() * BYTES["fp32"]
    check_room(partial.parent, needed, f"the reference pass '{one.name}'")
    if head:
        tensors = {"weight": weights.weight, "bias": weights.bias}
        kept = {name: value.detach().cpu() for name, value in tensors.items() if value is not None}
        write_tensors(partial, HEAD, kept)
    done = 0
    with computed.ready():
        for number in shards:
            rows: list[Row] = []
            of_shard = shard_rows(number, len(pairs))
            for start in range(of_shard.start, of_shard.stop, BATCH):
                these = range(start, min(start + BATCH, of_shard.stop))
                rows += computed.rows(these)
                if start == 0:
                    write_json(partial / FACTS, computed.facts)
                done += len(these)
                report(Progress(phase=PHASE, done=done, total=len(places)))
            write_shard(partial, number, rows)
