"""The end of a reference pass: its store gets its name.

A study's driver does this, and neither computes nor loads anything: it imports no torch.
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

#: The output head that goes with hidden states.
HEAD = "head.safetensors"

#: In a partial folder, of its first batch: whether prefixes were shared, and by how much rounding
#: to bf16 moves a token's log-probability.
FACTS = "facts.note.json"


def finish_cache(
    spec: CacheSpec,
    *,
    cache: Path,
    rows: int,
    seconds: float,
    commit: Callable[..., Manifest] = commit,
) -> Manifest:
    """Give a pass its name, all of whose parts are made.

    Args:
        spec: the pass.
        cache: where stores lie.
        rows: how many samples it has.
        seconds: how long it took.
        commit: what gives it its name, as `commit` does.

    Raises:
        BrokenStoreError: a part is missing.
    """
    names = [shard_name(number) for number in range(shard_count(rows))]
    if spec.hidden is not None:
        names.append(HEAD)
    made: dict[str, Any] = {
        "time": time.time(),
        "seconds": round(seconds, 1),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    folder = store_folder(cache, spec.key)
    with suppress(FileNotFoundError):
        made |= json.loads((partial_folder(folder) / FACTS).read_text(encoding="utf-8"))
    return commit(folder, identity=spec.identity, rows=rows, names=names, made=made)
