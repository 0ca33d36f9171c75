"""Estimate the size of a reference cache, and check the disk space for it.

Planning uses this module, so it imports no torch and loads no image. Sizes are estimated from a
sample of the data and without the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from chip_core.config.trial import DataConfig, ModelConfig, TrialConfig
from chip_core.data.rows import RowError
from chip_core.data.source import SHAPES, open_source
from chip_core.models import own
from chip_core.models.loading import find_local_folder
from chip_core.objectives.parts import VIEWS
from chip_core.reference_cache.spec import CacheSpec
from chip_core.training.footprint.published import HEAD_SHAPES
from chip_core.utils.errors import ConfigError, TrialError
from chip_core.utils.files import read_json

#: Bytes per number, by precision.
BYTES_PER_VALUE = {"fp32": 4, "bf16": 2}

_SAMPLE_PAIRS = 128  # pairs whose responses are counted

#: Pairs of public data that planning does not open, from their pages on the hub.
PUBLISHED_ROWS = {"openbmb/RLHF-V-Dataset": 5733, "openbmb/RLAIF-V-Dataset": 83132}
#: Assumed number of tokens of a response of such data.
USUAL_RESPONSE_TOKENS = 160
_CHARS_PER_TOKEN = 4.0  # characters per token, if the tokenizer is not available


def count_bytes_per_token(spec: CacheSpec, width: int) -> int:
    """Return the bytes that a pass stores per token of a response.

    Args:
        spec: the pass.
        width: of the model's hidden states.
    """
    return 4 + 4 + (0 if spec.hidden is None else BYTES_PER_VALUE[spec.hidden] * width)


def estimate_store_bytes(spec: CacheSpec, config: TrialConfig, samples: int | None) -> int | None:
    """Return the size of a pass's store, to within some percent; None if it is not known yet.

    Args:
        spec: the pass.
        config: a trial that has it.
        samples: how many pairs the data has; None: not known yet.
    """
    if spec.is_features:
        image = _estimate_image_bytes(config.model)
        return None if samples is None or image is None else samples * image
    shape = _read_model_shape(config.model)
    if samples is None:
        samples = get_published_rows(config.data)
    if samples is None or shape is None:
        return None
    width, vocabulary = shape
    try:
        lengths = list(islice(iter_response_tokens(config), _SAMPLE_PAIRS))
    except ConfigError:
        return None
    if not lengths:
        return None
    # A third response is assumed to be as long as the chosen one.
    response_indices = [int(VIEWS[view][1] == "rejected") for view in spec.reads]
    tokens = fmean(sum(pair[position] for position in response_indices) for pair in lengths)
    head = 0 if spec.hidden is None else BYTES_PER_VALUE[config.model.dtype] * width * vocabulary
    return round(samples * tokens * count_bytes_per_token(spec, width)) + head


def iter_response_tokens(config: TrialConfig) -> Iterator[tuple[float, float]]:
    """Yield the number of tokens of each pair's chosen and rejected response, with their ends.

    Raises:
        ConfigError: the data cannot be read.
    """
    count = _make_token_counter(config.model)
    if config.data.source in PUBLISHED_ROWS:
        yield USUAL_RESPONSE_TOKENS, USUAL_RESPONSE_TOKENS
        return
    for chosen, rejected in _iter_responses(config.data):
        yield count(chosen), count(rejected)


def get_published_rows(data: DataConfig) -> int | None:
    """Return the number of pairs of public data that planning does not open; None if unknown."""
    count = PUBLISHED_ROWS.get(data.source)
    return count if count is None or data.limit is None else min(count, data.limit)


def _read_model_shape(model: ModelConfig) -> tuple[int, int] | None:
    """Return (width, vocabulary) of a model that is on this machine."""
    file = _find_model_file(model, "config.json")
    if file is None:
        return HEAD_SHAPES.get(model.path)
    try:
        raw = read_json(file)
        text: dict[str, Any] = raw.get("text_config") or raw
        return int(text["hidden_size"]), int(text["vocab_size"])
    except KeyError:
        return _read_default_shape(file.parent)
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # reported when the model is loaded


def _read_default_shape(folder: Path) -> tuple[int, int] | None:
    """Return (width, vocabulary) of a configuration that leaves them to its family's defaults."""
    from transformers import AutoConfig

    own.register()
    try:
        text_config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        return int(text_config.hidden_size), int(text_config.vocab_size)
    except Exception:  # a configuration's class may raise anything; reported when it is loaded
        return None


def _estimate_image_bytes(model: ModelConfig) -> int | None:
    """Return the size of an image's features, if every image has the same number of patches."""
    file = _find_model_file(model, "config.json")
    if file is None:
        return None
    try:
        raw = read_json(file)
        if raw.get("model_type") != "llava":
            return None
        vision = raw["vision_config"]
        patches = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        return int(patches * vision["hidden_size"] * BYTES_PER_VALUE[model.dtype])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None  # reported when the model is loaded


def _make_token_counter(model: ModelConfig) -> Any:
    """Return a counter of a response's tokens, its end included."""
    file = _find_model_file(model, "tokenizer.json")
    if file is None:
        return lambda text: len(text) / _CHARS_PER_TOKEN + 1
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids) + 1


def _find_model_file(model: ModelConfig, name: str) -> Path | None:
    """Return a model's file if it is on this machine."""
    folder = find_local_folder(model.path)
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.path, name, revision=model.revision)
        return Path(cached) if isinstance(cached, str) else None
    return folder / name if (folder / name).is_file() else None


def _iter_responses(data: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield the first pairs' responses."""
    if data.source == SHAPES:
        from chip_core.data.preferences import ShapesPairs

        pairs = ShapesPairs(data.limit)
        yield from (pairs.response_texts(index) for index in range(len(pairs)))
        return
    for _, row in open_source(data).scan():
        if not isinstance(row, RowError):
            yield row.texts.chosen, row.texts.rejected


class DiskSpaceError(TrialError):
    """The disk does not have enough space for a store. The message says how much is needed."""


def has_disk_space(cache: Path, required: int) -> bool:
    """Return whether a disk has space for a number of bytes."""
    return required <= _free_bytes(cache)


def check_disk_space(cache: Path, required: int, name: str) -> None:
    """Check that a disk has enough space.

    Args:
        cache: the folder of the stores.
        required: bytes.
        name: its name in messages.

    Raises:
        DiskSpaceError: there is less.
    """
    free = _free_bytes(cache)
    if required > free:
        raise DiskSpaceError(
            f"not enough space for {name}: {format_bytes(required)} are needed in {cache}, but "
            f"only {format_bytes(free)} are free: free some space (`chip-ablate cache --prune`), "
            "or set reference_cache: off"
        )


def _free_bytes(cache: Path) -> int:
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return shutil.disk_usage(existing).free


def format_bytes(size: int) -> str:
    """Return a size as text for a message."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
