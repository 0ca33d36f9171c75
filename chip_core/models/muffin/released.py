"""A released checkpoint: its files, read one at a time, and our names for its tensors."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip_core.utils.errors import UserError

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS_GLOBS = ("*.safetensors", "pytorch_model*.bin")


def find_weight_files(folder: Path) -> list[Path]:
    """Return a checkpoint's files of weights, in order.

    Raises:
        UserError: there is none, or one that the index names is missing.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name the folder of a released checkpoint")
    for name in _INDEX_FILES:
        if (folder / name).is_file():
            try:
                weight_map = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"]
                files = [folder / file for file in sorted(set(weight_map.values()))]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{folder / name} cannot be read ({error}): copy it again"
                ) from None
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise UserError(f"{folder} has no {', '.join(missing)}: copy the folder again")
            return files
    for pattern in _WEIGHTS_GLOBS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise UserError(f"no weights in {folder}: neither {' nor '.join(_WEIGHTS_GLOBS)}")


def iter_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield a file's tensors by name; a `.bin` is read without running any code in it.

    Raises:
        UserError: it is not a weights file.
    """
    if file.suffix == ".safetensors":
        yield from _iter_safetensors(file)
        return
    state_dict = _load_pickle_weights(file)
    if not isinstance(state_dict, dict):
        raise UserError(f"{file} holds a {type(state_dict).__name__}, not tensors by name")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{file}: {name} is a {type(value).__name__}, not a tensor")
        yield name, value


def _iter_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is not a mapping
                yield name, opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again") from None


def _load_pickle_weights(file: Path) -> Any:
    """Return a file's content; only tensors and plain data are allowed."""
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)  # from before torch 1.6
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = next(
            line.strip() for line in [*str(error).splitlines(), repr(error)] if line.strip()
        )
        raise UserError(f"{file} is not a weights file ({reason}): nothing in it was run") from None


#: Tensors that no trained model keeps: BEiT-3's own word embeddings, its mask token, and the
#: frequencies that a rotary embedding computes itself.
_DROPPED_PATTERN = re.compile(
    r"model\.vision_tower\.beit3\.(text_embed\.weight|vision_embed\.mask_token)"
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)

_BRANCH_NAMES = {"A": "image", "B": "query"}
_PART_NAMES = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.inner_attn_ln": "inner_attention_norm",
    "self_attn.out_proj": "out_proj",
    "final_layer_norm": "mlp_norm",
    "ffn.fc1": "fc1",
    "ffn.ffn_layernorm": "inner_mlp_norm",
    "ffn.fc2": "fc2",
}

_BEIT_PREFIX = "model.vision_tower.beit3."
_TOWER_PREFIX = "model.vision_tower."
_TENSOR_NAMES = {
    "model.query": f"{_TOWER_PREFIX}query",
    f"{_BEIT_PREFIX}vision_embed.cls_token": f"{_TOWER_PREFIX}cls_token",
    f"{_BEIT_PREFIX}vision_embed.proj.weight": f"{_TOWER_PREFIX}patch_embedding.weight",
    f"{_BEIT_PREFIX}vision_embed.proj.bias": f"{_TOWER_PREFIX}patch_embedding.bias",
    f"{_BEIT_PREFIX}encoder.embed_positions.A.weight": f"{_TOWER_PREFIX}image_positions.weight",
    f"{_BEIT_PREFIX}encoder.embed_positions.B.weight": f"{_TOWER_PREFIX}query_positions.weight",
    "model.mm_projector.weight": "model.multi_modal_projector.weight",
    "model.mm_projector.bias": "model.multi_modal_projector.bias",
    "lm_head.weight": "lm_head.weight",
}

#: The position table of the image, by its released name; its size depends on the image's.
IMAGE_POSITIONS = f"{_BEIT_PREFIX}encoder.embed_positions.A.weight"

#: Its first rows: two that are never read, and the class token's.
_ROWS_BEFORE_GRID = 3


def rename_tensor(name: str) -> str | None:
    """Return our name for a released tensor; None if it is dropped.

    Raises:
        KeyError: no released checkpoint has a tensor of this name.
    """
    if _DROPPED_PATTERN.fullmatch(name):
        return None
    if name in _TENSOR_NAMES:
        return _TENSOR_NAMES[name]
    if match := re.fullmatch(r"model\.((?:embed_tokens|norm|layers\.\d+)\..+)", name):
        return f"model.language_model.{match[1]}"
    encoder = re.escape(f"{_BEIT_PREFIX}encoder.")
    if match := re.fullmatch(rf"{encoder}layer_norm\.([AB])\.(weight|bias)", name):
        return f"{_TOWER_PREFIX}{_BRANCH_NAMES[match[1]]}_norm.{match[2]}"
    if match := re.fullmatch(rf"{encoder}(layers\.\d+)\.(.+)\.(weight|bias)", name):
        layer, middle, kind = match.groups()
        # The branch's letter is the last component, or the second of `ffn.A.fc1`.
        for letter, branch in _BRANCH_NAMES.items():
            part = re.sub(rf"\.{letter}(?=\.|$)", "", middle, count=1)
            if part != middle and part in _PART_NAMES:
                return f"{_TOWER_PREFIX}{layer}.{branch}.{_PART_NAMES[part]}.{kind}"
    raise KeyError(name)


def compute_grid_side(rows: int) -> int:
    """Return the number of patches on a side, from the rows of the image's position table.

    Raises:
        ValueError: they are not a square.
    """
    side = math.isqrt(max(rows - _ROWS_BEFORE_GRID, 0))
    if side < 1 or side**2 + _ROWS_BEFORE_GRID != rows:
        raise ValueError(f"{rows} rows are not {_ROWS_BEFORE_GRID} and a square")
    return side


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Return the image's position table for a grid of `side` x `side` patches.

    As in the released code, the first three rows stay, and the others are treated as a picture of
    the grid that is resized bicubically, without antialiasing.

    Args:
        table: (rows, D).
        side: patches on a side of the wanted grid.
    """
    old_side = compute_grid_side(len(table))
    if old_side == side:
        return table
    leading_rows, grid = table[:_ROWS_BEFORE_GRID], table[_ROWS_BEFORE_GRID:].float()
    picture = grid.view(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        picture, size=(side, side), mode="bicubic", align_corners=False
    )
    flat = resized.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([leading_rows, flat.to(table.dtype)])
