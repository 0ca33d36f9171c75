"""Finish a reference pass: give its store its final name.

A study's driver does this. It computes and loads nothing, and imports no torch.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chip_core.reference_cache.folder import (
    Manifest,
    commit,
    partial_folder,
    shard_count,
    shard_name,
    store_folder,
)
from chip_core.reference_cache.spec import CacheSpec

#: The output head for the hidden states.
HEAD_FILE = "head.safetensors"

#: In a partial folder, for its first batch: whether prefixes were shared, and by how much rounding
#: to bf16 moves a token's log-probability.
FACTS_FILE = "facts.note.json"


def finish_cache(
    spec: CacheSpec,
    *,
    cache: Path,
    rows: int,
    seconds: float,
    commit: Callable[..., Manifest] = commit,
) -> Manifest:
    """Give the store of a complete pass its final name.

    Args:
        spec: the pass.
        cache: the folder of the stores.
        rows: how many samples it has.
        seconds: how long it took.
        commit: the function that gives it its name, like `commit`.

    Raises:
        BrokenStoreError: a part is missing.
    """
    names = [shard_name(number) for number in range(shard_count(rows))]
    if spec.hidden is not None:
        names.append(HEAD_FILE)
    provenance: dict[str, Any] = {
        "time": time.time(),
        "seconds": round(seconds, 1),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    folder = store_folder(cache, spec.key)
    with suppress(FileNotFoundError):
        provenance |= json.loads((partial_folder(folder) / FACTS_FILE).read_text(encoding="utf-8"))
    return commit(folder, identity=spec.identity, rows=rows, names=names, made=provenance)
