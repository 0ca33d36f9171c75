"""Released checkpoints of a tiny Muffin: the conformance cases' one, and one made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.convert_slow_tokenizer import import_protobuf

WIDTH, WIDE, HEADS, QUERIES, PATCH, SIDE, LAYERS = 16, 32, 2, 3, 4, 3, 2
TEXT = 16

#: What a tokenizer of LLaMA's needs, words whole, with the pieces that are merged on the way.
_WORDS = ["###", "A", "is", "red", "blue", "what", "Human", "Assistant"]


def list_pieces() -> list[str]:
    """List a vocabulary: bytes, letters, and some words as they begin and go on."""
    made = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    for word in _WORDS:
        for whole in (word, f"▁{word}"):
            made += [piece for end in range(1, len(whole) + 1) if (piece := whole[:end])]
        made += list(word)
    made += [":", "?", "."]
    return list(dict.fromkeys(made))


def make_tokenizer_model() -> bytes:
    """Make the vocabulary's file as SentencePiece writes it."""
    model = import_protobuf().ModelProto()
    for piece in list_pieces():
        model.pieces.add(piece=piece, score=0.0)
    return bytes(model.SerializeToString())


def list_tensor_shapes() -> dict[str, tuple[int, ...]]:
    """List every tensor's shape of a released checkpoint, by its released name."""
    vocabulary = len(list_pieces()) + 4
    beit, found = "model.vision_tower.beit3.", dict[str, tuple[int, ...]]()
    found["model.query"] = (QUERIES, WIDTH)
    found["model.embed_tokens.weight"] = found["lm_head.weight"] = (vocabulary, TEXT)
    found["model.norm.weight"] = (TEXT,)
    found["model.mm_projector.weight"] = (TEXT, WIDTH)
    found["model.mm_projector.bias"] = (TEXT,)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        found[f"model.layers.0.self_attn.{name}.weight"] = (TEXT, TEXT)
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = (4,)
    for name, shape in (("gate", (24, TEXT)), ("up", (24, TEXT)), ("down", (TEXT, 24))):
        found[f"model.layers.0.mlp.{name}_proj.weight"] = shape
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"model.layers.0.{name}.weight"] = (TEXT,)
    found[f"{beit}text_embed.weight"] = (7, WIDTH)
    found[f"{beit}vision_embed.mask_token"] = (1, 1, WIDTH)
    found[f"{beit}vision_embed.cls_token"] = (1, 1, WIDTH)
    found[f"{beit}vision_embed.proj.weight"] = (WIDTH, 3, PATCH, PATCH)
    found[f"{beit}vision_embed.proj.bias"] = (WIDTH,)
    found[f"{beit}encoder.embed_positions.A.weight"] = (SIDE**2 + 3, WIDTH)
    found[f"{beit}encoder.embed_positions.B.weight"] = (20, WIDTH)
    for branch in "AB":
        modules = {f"encoder.layer_norm.{branch}": (WIDTH,)}
        for number in range(LAYERS):
            layer = f"encoder.layers.{number}."
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                modules[f"{layer}self_attn.{name}.{branch}"] = (WIDTH, WIDTH)
            modules[f"{layer}ffn.{branch}.fc1"] = (WIDE, WIDTH)
            modules[f"{layer}ffn.{branch}.fc2"] = (WIDTH, WIDE)
            modules[f"{layer}ffn.{branch}.ffn_layernorm"] = (WIDE,)
            for name in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
                modules[f"{layer}{name}.{branch}"] = (WIDTH,)
        for name, shape in modules.items():
            found[f"{beit}{name}.weight"] = shape
            found[f"{beit}{name}.bias"] = shape[:1]
    return found


def make_weights() -> dict[str, torch.Tensor]:
    """Make the tensors, none of them trivial."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: 0.3 * torch.randn(shape, generator=draw)
        for name, shape in list_tensor_shapes().items()
    }


def make_config() -> dict[str, Any]:
    """Make a released config.json, as far as it is read."""
    return {
        "model_type": "beit3_llava", "vocab_size": len(list_pieces()) + 4, "hidden_size": TEXT,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2,
        "mm_vision_tower": f"beit3_tiny_patch4_{SIDE * PATCH}",
    }  # fmt: skip


def write_checkpoint(folder: Path, *, bins: int = 0, **changed: torch.Tensor | None) -> Path:
    """Write a released checkpoint made here; `changed` by name, None for left out.

    Args:
        folder: where.
        bins: in how many `.bin` shards; 0: one safetensors file.
        changed: tensors in place of those of `make_weights`, with `__` for a dot.
    """
    folder.mkdir(parents=True)
    held: dict[str, Any] = make_weights()
    for name, value in changed.items():
        held[name.replace("__", ".")] = value
    held = {name: value for name, value in held.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(make_config()))
    (folder / "tokenizer.model").write_bytes(make_tokenizer_model())
    if not bins:
        save_file(held, folder / "model.safetensors")
        return folder
    names = sorted(held)
    index = {}
    for number in range(bins):
        file = f"pytorch_model-{number + 1:05d}-of-{bins:05d}.bin"
        torch.save({name: held[name] for name in names[number::bins]}, folder / file)
        index.update(dict.fromkeys(names[number::bins], file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def copy_oracle_checkpoint(folder: Path, oracles: Path) -> Path:
    """Put the conformance cases' tiny checkpoint into a folder as it is released."""
    folder.mkdir(parents=True)
    cases = oracles / "muffin"
    shutil.copyfile(cases / "tiny.safetensors", folder / "model.safetensors")
    for file in (cases / "config.json", *(cases / "tokenizer").iterdir()):
        shutil.copyfile(file, folder / file.name)
    return folder
