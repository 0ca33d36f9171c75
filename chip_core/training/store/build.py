"""A reference pass: the model that a training begins with, run over all samples.

Its batches are always the same consecutive samples, whoever computes them and on however many
workers, so that a store's content is a function of what it is a store of.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch, Responses
from chip_core.errors import TrialError
from chip_core.files import write_json
from chip_core.models import loading
from chip_core.objectives.config import ObjectiveConfig
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.seeding import seed_process
from chip_core.training.exactness import shared_prefixes
from chip_core.training.policy import Policy
from chip_core.training.prepare import checked_pairs, device_of
from chip_core.training.reference import ResponseReference
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
from chip_core.training.store.passes import Part, ReferencePass
from chip_core.training.store.room import check_room
from chip_core.training.store.shards import Row, write_shard, write_tensors
from chip_core.training.store.size import BYTES, bytes_a_token

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
    model, processor = loading.load(config.model, attention=config.engine.attention)
    weights = model.get_output_embeddings()
    needed = head * weights.weight.numel() * BYTES["fp32"]
    needed += parts * _bytes(one, pairs, processor, shards, weights.weight.shape[1])
    check_room(cache, needed, f"the reference pass '{one.name}'")
    if head:
        tensors = {"weight": weights.weight, "bias": weights.bias}
        kept = {name: value.detach() for name, value in tensors.items() if value is not None}
        write_tensors(partial, HEAD, kept)
    try:
        _write_shards(one, config, model, processor, pairs, partial, shards, report)
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


def _write_shards(
    one: ReferencePass,
    config: TrialConfig,
    model: Any,
    processor: Any,
    pairs: Pairs,
    partial: Path,
    shards: Sequence[int],
    report: Report,
) -> None:
    config = config.model_copy(update={"objective": _objective(one)})
    device = device_of(config)
    policy = Policy(
        model.eval().to(device),
        config.objective,
        bf16=config.model.dtype == "bf16",
        logits_chunk=config.engine.logits_chunk,
    )
    encoder = PairEncoder(processor, config, pairs)
    total = sum(len(shard_rows(number, len(pairs))) for number in shards)
    done = 0
    small = encoder.batch([0], one.epoch or 0).to(device)
    with shared_prefixes(policy, small, config.engine.prefix_sharing) as sharing:
        for number in shards:
            places = shard_rows(number, len(pairs))
            rows: list[Row] = []
            for start in range(places.start, places.stop, BATCH):
                these = range(start, min(start + BATCH, places.stop))
                batch = encoder.batch(these, one.epoch or 0).to(device)
                said = _said(one, policy, batch)
                rows += _rows(one, said, len(batch))
                if these.start == 0:
                    rounding = _rounding(policy, said) if one.hidden == "bf16" else None
                    facts = {"prefix_sharing": sharing, "rounding": rounding}
                    write_json(partial / FACTS, facts)
                done += len(these)
                report(Progress(phase=PHASE, done=done, total=total))
            write_shard(partial, number, rows)


def _objective(one: ReferencePass) -> ObjectiveConfig:
    """Return an objective that needs of the reference what a pass says, and no more."""
    if one.kind == "rejected_image":
        return ObjectiveConfig(terms=("visual",))
    return ObjectiveConfig(terms=("response",) if one.hidden is None else ("response", "token"))


def _said(
    one: ReferencePass, policy: Policy, batch: PairBatch
) -> list[tuple[str, Responses, ResponseReference]]:
    """Return what a pass says of a batch, by group of columns."""
    if one.kind == "text":
        scores = policy.reference_scores(batch)
        return [
            ("chosen", batch.chosen, scores.chosen),
            ("rejected", batch.rejected, scores.rejected),
        ]
    assert batch.rejected_image is not None
    return [("chosen", batch.rejected_image, policy.rejected_image_reference(batch))]


def _rows(
    one: ReferencePass, said: list[tuple[str, Responses, ResponseReference]], size: int
) -> Iterator[Row]:
    """Yield what a pass says of each pair of a batch."""
    columns = [
        (f"{group}.{name}", values)
        for group, responses, reference in said
        for name, values in _columns(one, responses, reference).items()
    ]
    for row in range(size):
        yield {name: values[row] for name, values in columns}


def _rounding(policy: Policy, said: list[tuple[str, Responses, ResponseReference]]) -> float:
    """Return by how much rounding the hidden states moves a token's log-probability at most."""
    furthest = 0.0
    for _, responses, reference in said:
        assert reference.hidden is not None
        rounded = reference.hidden[responses.mask].bfloat16()
        gap = (policy.logps(rounded, responses) - reference.logps)[responses.mask]
        furthest = max(furthest, float(gap.abs().max()))
    return furthest


def _columns(
    one: ReferencePass, responses: Responses, reference: ResponseReference
) -> dict[str, list[Tensor]]:
    """Return each column's rows, on the CPU, without padding."""
    columns = {"ids": responses.ids.int(), "logps": reference.logps.float()}
    if one.hidden is not None:
        assert reference.hidden is not None
        columns["hidden"] = reference.hidden.to(_DTYPE[one.hidden])
    mask = responses.mask.cpu()
    return {
        name: [row[kept] for row, kept in zip(values.cpu(), mask, strict=True)]
        for name, values in columns.items()
    }


def _bytes(
    one: ReferencePass, pairs: Pairs, processor: Any, shards: Sequence[int], width: int
) -> int:
    """Return the bytes of shards whose responses are not cut."""
    tokens = 0
    for number in shards:
        places = shard_rows(number, len(pairs))
        texts = [text for place in places for text in pairs.responses(place)[: _sides(one)]]
        ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens += sum(map(len, ids)) + len(ids)  # each ends with one more
    return tokens * bytes_a_token(one, width)


def _sides(one: ReferencePass) -> int:
    """Return how many responses a pass says something of: the chosen one alone, or both."""
    return 2 if one.kind == "text" else 1
