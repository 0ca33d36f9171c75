"""A released checkpoint's files: which there are, what is in them, read one at a time."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip_core.utils.errors import UserError

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def shards(folder: Path) -> list[Path]:
    """Return a checkpoint's files of weights, in order.

    Raises:
        UserError: there is none, or one that the index names is missing.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name a released checkpoint's")
    for name in _INDICES:
        if (folder / name).is_file():
            try:
                named = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
                files = [folder / file for file in sorted(set(named.values()))]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{folder / name} cannot be read ({error}): copy it again"
                ) from None
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(f"{folder} lacks {', '.join(missing)}: copy the folder again")
            return files
    for pattern in _PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise UserError(f"no weights in {folder}: neither {' nor '.join(_PATTERNS)}")


def tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors by name; those of a `.bin` are read without running any code of it.

    Raises:
        UserError: it is no file of weights.
    """
    if file.suffix == ".safetensors":
        yield from _of_safetensors(file)
        return
    held = _unpickled(file)
    if not isinstance(held, dict):
        raise UserError(f"{file} holds a {type(held).__name__}, and no tensors by name")
    for name, value in held.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{file}: {name} is a {type(value).__name__}, and no tensor")
        yield name, value


def _of_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again") from None


def _unpickled(file: Path) -> Any:
    """Return what a file holds: tensors and plain data, nothing else is let in."""
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # of before torch 1.6
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        what = next(
            line.strip() for line in [*str(error).splitlines(), repr(error)] if line.strip()
        )
        raise UserError(f"{file} is no file of weights ({what}): nothing of it was run") from None
