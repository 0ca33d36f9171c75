"""The vision tower against its formulas, written out a token at a time; and the merge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.models.muffin import MuffinConfig, MuffinForConditionalGeneration
from chip_core.models.muffin.convert import convert

from . import checkpoints

BEIT = "model.vision_tower.beit3."


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    root = tmp_path_factory.mktemp("muffin")
    convert(
        checkpoints.write_checkpoint(root / "released"),
        root / "dst",
        vision_heads=checkpoints.HEADS,
    )
    return loading.load(ModelConfig(path=str(root / "dst")))


def compute_by_formula(pixels: Tensor) -> Tensor:
    """Compute all tokens of one image, in float64, from the released names alone."""
    weights = {
        name.removeprefix(BEIT): value.double()
        for name, value in checkpoints.make_weights().items()
    }

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    side, size = checkpoints.SIDE, checkpoints.PATCH
    tokens, letters = [weights["vision_embed.cls_token"].flatten()], ["A"]
    for row in range(side):
        for column in range(side):
            patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            kernel = weights["vision_embed.proj.weight"]
            tokens.append((kernel * patch).sum((1, 2, 3)) + weights["vision_embed.proj.bias"])
            letters.append("A")
    tokens += list(weights["model.query"])
    letters += "B" * checkpoints.QUERIES
    count = {"A": 2, "B": 2}  # positions begin at row 2, for either kind
    for place, letter in enumerate(letters):
        table = weights[f"encoder.embed_positions.{letter}.weight"]
        tokens[place] = tokens[place] + table[count[letter]]
        count[letter] += 1
    width = checkpoints.WIDTH // checkpoints.HEADS
    for number in range(checkpoints.LAYERS):
        layer = f"encoder.layers.{number}."
        normed = [
            norm(token, f"{layer}self_attn_layer_norm.{letter}")
            for token, letter in zip(tokens, letters, strict=True)
        ]
        asked = {
            kind: torch.stack(
                [
                    linear(token, f"{layer}self_attn.{kind}_proj.{letter}")
                    for token, letter in zip(normed, letters, strict=True)
                ]
            )
            for kind in "qkv"
        }
        for place, letter in enumerate(letters):
            heads = []
            for head in range(checkpoints.HEADS):
                part = slice(head * width, (head + 1) * width)
                products = asked["k"][:, part] @ asked["q"][place, part] / math.sqrt(width)
                heads.append(products.softmax(0) @ asked["v"][:, part])
            attended = norm(torch.cat(heads), f"{layer}self_attn.inner_attn_ln.{letter}")
            token = tokens[place] + linear(attended, f"{layer}self_attn.out_proj.{letter}")
            inner = linear(
                norm(token, f"{layer}final_layer_norm.{letter}"), f"{layer}ffn.{letter}.fc1"
            )
            inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
            inner = norm(inner, f"{layer}ffn.{letter}.ffn_layernorm")
            tokens[place] = token + linear(inner, f"{layer}ffn.{letter}.fc2")
    return torch.stack(
        [
            norm(token, f"encoder.layer_norm.{letter}")
            for token, letter in zip(tokens, letters, strict=True)
        ]
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_tower_is_its_formulas(loaded: tuple[Any, Any], attention: str) -> None:
    tower = loaded[0].model.vision_tower
    tower.config._attn_implementation = attention
    try:
        pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
        seen = tower(pixels)
    finally:
        tower.config._attn_implementation = "sdpa"
    for row in range(2):
        wanted = compute_by_formula(pixels[row].double())
        assert float((seen.last_hidden_state[row] - wanted).abs().max()) <= 1e-5
    assert torch.equal(seen.pooler_output, seen.last_hidden_state[:, -checkpoints.QUERIES :])


def test_images_of_another_size_are_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"\(16, 12\) pixels: Muffin takes 12 x 12"):
        loaded[0].model.vision_tower(torch.zeros(1, 3, 16, 12))


@torch.no_grad()
def test_features_stand_where_the_placeholders_are(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    config = model.config
    start, patch, end = (
        config.image_start_token_id, config.image_token_id, config.image_end_token_id,
    )  # fmt: skip
    block = [start, *[patch] * checkpoints.QUERIES, end]
    # The first row has no image; the second two, side by side.
    ids = torch.tensor([[5] * 14, [1, *block, *block, 7, 8, 9]])
    pixels = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    embeds = model.get_input_embeddings()(ids)
    features = model.get_image_features(pixels).pooler_output
    embeds[1, 2:5], embeds[1, 7:10] = features
    merged = model.model(input_ids=ids, pixel_values=pixels).last_hidden_state
    assert torch.equal(merged, model.model(inputs_embeds=embeds).last_hidden_state)

    def refused(row: list[int], images: int = 1) -> None:
        with pytest.raises(ValueError, match="each takes 3 placeholders between its start"):
            model(input_ids=torch.tensor([row]), pixel_values=pixels[:images])

    refused([1, *block, 5], images=2)
    refused([1, start, patch, patch, end, 5, 5])
    refused([1, start, patch, patch, patch, 5, 5])
    refused([1, start, patch, patch, patch])
    refused([1, patch, patch, patch, end, 5, 5])
    refused([1, *block, patch])
    refused([1, *block, end])


def test_the_real_size_has_the_released_numbers() -> None:
    """13,015,905,280 LLaMA; 369,698,816 A and shared, of which 65,546,240 words and 1,024 for
    masks are dropped; 303,605,760 B; 5,313,536 queries and projector.
    """
    text = {
        "vocab_size": 32004, "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40,
    }  # fmt: skip
    with torch.device("meta"):
        model = MuffinForConditionalGeneration(MuffinConfig(text_config=text))
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        head = name.split(".")
        part = "language" if "language_model" in head or "lm_head" in head else "tower"
        if "multi_modal_projector" in head or name == "model.vision_tower.query":
            part = "queries"
        elif part == "tower" and {"query", "query_positions", "query_norm"} & set(head):
            part = "second branch"
        parts[part] = parts.get(part, 0) + parameter.numel()
    assert parts == {
        "language": 13_015_905_280,
        "tower": 369_698_816 - 65_546_240 - 1_024,
        "second branch": 303_605_760,
        "queries": 5_313_536,
    }


def test_a_folder_is_read_again(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    other, reader = loading.load(ModelConfig(path=str(tmp_path / "again")))
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()
    )
    asked = [{"role": "user", "content": "what is red ?"}, {"role": "assistant", "content": "A"}]
    assert reader.labels(asked, "released") == processor.labels(asked, "released")
    assert reader.chat_template == processor.chat_template
    (tmp_path / "again/additional_chat_templates/training.jinja").write_text("{{ messages }}")
    before, after = (
        loading.identity(ModelConfig(path=str(folder)))
        for folder in (Path(model.config._name_or_path), tmp_path / "again")
    )
    assert before != after
