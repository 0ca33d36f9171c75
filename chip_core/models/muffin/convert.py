"""Convert a released Muffin checkpoint: `python -m chip_core.models.muffin.convert SRC DST`.

SRC is a folder as the authors released it: config.json, tokenizer.model, and weights in
pytorch_model*.bin or *.safetensors. DST becomes a folder that `model:` can name. Files are read and
written one at a time. Every tensor is used, dropped by a rule, or named in an error: nothing is
left out silently or invented.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chip_core.models.muffin.configuration import MuffinConfig, MuffinVisionConfig
from chip_core.models.muffin.processing import END, PATCH, START, STOP
from chip_core.models.muffin.released import (
    IMAGE_POSITIONS,
    compute_grid_side,
    find_weight_files,
    iter_tensors,
    rename_tensor,
    resize_positions,
)
from chip_core.models.muffin.tokens import read_tokenizer
from chip_core.utils.errors import UserError
from chip_core.utils.files import write_json

#: Attention heads of BEiT-3's sizes, which no tensor's shape shows.
_VISION_HEADS = {"base": 12, "large": 16}

_TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; return the exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m chip_core.models.muffin.convert", description=__doc__
    )
    parser.add_argument("src", type=Path, metavar="SRC", help="the released checkpoint's folder")
    parser.add_argument("dst", type=Path, metavar="DST", help="the folder to write")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS",
        help="pixels on a side (default: config.json's); the position table is interpolated",
    )  # fmt: skip
    parser.add_argument(
        "--vision-heads", type=int, metavar="N",
        help="attention heads of the vision tower, if config.json names an unknown tower",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        convert(
            options.src,
            options.dst,
            image_size=options.image_size,
            vision_heads=options.vision_heads,
        )
    except UserError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    print(f"converted: {options.dst}")
    return 0


def convert(
    src: Path, dst: Path, *, image_size: int | None = None, vision_heads: int | None = None
) -> None:
    """Write a released checkpoint's weights, configuration and processor into a new folder.

    Args:
        src: the checkpoint's folder.
        dst: the folder to write; it appears only when it is complete.
        image_size: pixels on a side; None: as in the checkpoint's config.json.
        vision_heads: of the vision tower; None: by the tower's name in config.json.

    Raises:
        UserError: a file or a tensor is missing, too many, or not what it should be.
    """
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise UserError(f"{dst} already exists: name another folder")
    files = find_weight_files(src)
    shapes = {name: shape for file in files for name, shape in _read_shapes(file).items()}
    tokenizer = read_tokenizer(src)
    config = _build_config(src, shapes, tokenizer, image_size, vision_heads)
    _check_tensors(shapes, config)
    partial = dst.with_name(f".{dst.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(files, config, partial)
    _write_config_and_processor(config, tokenizer, partial)
    if dst.exists():
        dst.rmdir()
    partial.replace(dst)


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in iter_tensors(file)}


def _build_config(
    src: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tokenizer: Any,
    image_size: int | None,
    heads: int | None,
) -> MuffinConfig:
    """Return the configuration that follows from config.json and the tensors' shapes."""
    file = src / "config.json"
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        text = {name: raw[name] for name in _TEXT_SETTINGS if name in raw}
        vocabulary = raw["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}): copy the checkpoint again") from None
    if len(tokenizer) != vocabulary:
        raise UserError(
            f"{src}: the tokenizer has {len(tokenizer)} tokens with those that Muffin adds, but "
            f"config.json has vocab_size {vocabulary}: they are from different checkpoints"
        )
    tower = str(raw.get("mm_vision_tower", ""))
    size_match = re.search(r"beit3_(base|large)_", tower)
    heads = heads or (_VISION_HEADS[size_match[1]] if size_match else None)
    if heads is None:
        raise UserError(
            f"{file}: the vision tower '{tower}' is not known: give its attention heads with "
            "--vision-heads"
        )
    query = _require_shape(shapes, "model.query", 2)
    patches = _require_shape(shapes, "model.vision_tower.beit3.vision_embed.proj.weight", 4)
    layer = "model.vision_tower.beit3.encoder.layers"
    layers = {name.split(".")[5] for name in shapes if name.startswith(f"{layer}.")}
    positions = _require_shape(shapes, IMAGE_POSITIONS, 2)
    try:
        side = compute_grid_side(positions[0])
    except ValueError as error:
        raise UserError(f"{src}: {IMAGE_POSITIONS}: {error}") from None
    pixels_match = re.search(r"_(\d+)$", tower)
    size = image_size or (int(pixels_match[1]) if pixels_match else side * patches[-1])
    if size % patches[-1]:
        raise UserError(f"{size} pixels are not a multiple of a patch's {patches[-1]}")
    if query[1] % heads:
        raise UserError(f"{heads} heads do not divide the vision tower's width, {query[1]}")
    ids = dict(
        zip(
            ("image_token_id", "image_start_token_id", "image_end_token_id"),
            tokenizer.convert_tokens_to_ids([PATCH, START, END]),
            strict=True,
        )
    )
    return MuffinConfig(
        vision_config=MuffinVisionConfig(
            hidden_size=query[1],
            intermediate_size=_require_shape(shapes, f"{layer}.0.ffn.A.fc1.weight", 2)[0],
            num_hidden_layers=len(layers),
            num_attention_heads=heads,
            image_size=size,
            patch_size=patches[-1],
            num_channels=patches[1],
            num_query=query[0],
            max_query_positions=_require_shape(
                shapes, "model.vision_tower.beit3.encoder.embed_positions.B.weight", 2
            )[0],
        ),
        text_config={**text, "pad_token_id": tokenizer.pad_token_id},
        architectures=["MuffinForConditionalGeneration"],
        **ids,
    )


def _require_shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"the checkpoint has no {name}")
    if len(shapes[name]) != axes:
        raise UserError(f"{name} has the shape {shapes[name]}, not {axes} axes")
    return shapes[name]


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], config: MuffinConfig) -> None:
    """Check that every tensor is known and has its shape, and none is missing."""
    from chip_core.models.muffin.modeling import MuffinForConditionalGeneration

    with torch.device("meta"):
        state_dict = MuffinForConditionalGeneration(config).state_dict()
    expected_shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    problems, found_names = [], set()
    for name, shape in shapes.items():
        try:
            target_name = rename_tensor(name)
        except KeyError:
            problems.append(f"{name} does not belong to any part of Muffin")
            continue
        if target_name is None:
            continue
        found_names.add(target_name)
        if target_name not in expected_shapes:
            problems.append(f"{name} does not belong to any part of a model of this size")
        elif name != IMAGE_POSITIONS and shape != expected_shapes[target_name]:
            problems.append(f"{name} has the shape {shape}, not {expected_shapes[target_name]}")
    problems += [
        f"no tensor in it becomes {target_name}"
        for target_name in sorted(expected_shapes.keys() - found_names)
    ]
    if problems:
        suffix = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the checkpoint does not fit: {'; '.join(problems[:3])}{suffix}")


def _write_weights(files: Sequence[Path], config: MuffinConfig, folder: Path) -> None:
    """Write one weights file for each of the checkpoint's, and their index."""
    from safetensors.torch import save_file

    side = config.vision_config.image_size // config.vision_config.patch_size
    index: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, start=1):
        weights: dict[str, Tensor] = {}
        for name, value in iter_tensors(file):
            target_name = rename_tensor(name)
            if target_name is not None:
                value = resize_positions(value, side) if name == IMAGE_POSITIONS else value
                weights[target_name] = value.contiguous()
        file_name = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        save_file(weights, folder / file_name, metadata={"format": "pt"})
        index.update(dict.fromkeys(weights, file_name))
        size += sum(value.nbytes for value in weights.values())
    if len(files) > 1:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": size}, "weight_map": index},
        )


def _write_config_and_processor(config: MuffinConfig, tokenizer: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    from chip_core.models.muffin.images import MuffinImageProcessor
    from chip_core.models.muffin.processing import MuffinProcessor

    config.save_pretrained(folder)
    MuffinProcessor(
        MuffinImageProcessor(size=config.vision_config.image_size),
        tokenizer,
        image_seq_length=config.vision_config.num_query,
    ).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=[STOP],
    ).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
