"""What the released code printed on a tiny model with random weights, and what this one says."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.models.muffin import MuffinImageProcessor
from chip_core.models.muffin.convert import convert
from chip_core.models.muffin.released import resize_positions

from .checkpoints import copy_oracle_checkpoint

CASES = [
    "A_preference", "B_prompts", "C_multiturn_and_textonly", "D_quirk_textonly_first",
    "E_image_list", "F_text_lm",
]  # fmt: skip


@pytest.fixture(scope="module")
def cases(oracles: Path) -> Path:
    return oracles / "muffin"


@pytest.fixture(scope="module")
def tensors(cases: Path) -> dict[str, Tensor]:
    return load_file(cases / "cases.safetensors")


@pytest.fixture(scope="module")
def notes(cases: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((cases / "cases.json").read_text())
    return read


@pytest.fixture(scope="module")
def loaded(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("muffin")
    source = copy_oracle_checkpoint(root / "released", oracles)
    convert(source, root / "converted", vision_heads=4)
    return loading.load(ModelConfig(path=str(root / "converted")))


def compute_largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_features_logits_and_log_probabilities(
    loaded: tuple[Any, Any], tensors: dict[str, Tensor], case: str
) -> None:
    # In float64: in fp32 what this CPU rounds would come to what the released code's did.
    model = copy.deepcopy(loaded[0]).double()
    given = {
        name.removeprefix(f"{case}."): value.double() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(f"{case}.")
    }
    ids, images = given["input_ids"], given.get("images")
    mask = given.get("attention_mask", torch.ones_like(ids))
    if images is not None:
        tower = model.model.vision_tower(images)
        assert (
            compute_largest_difference(tower.last_hidden_state, given["beit3_encoder_out"]) <= 1e-5
        )
        assert compute_largest_difference(tower.pooler_output, given["query_features"]) <= 1e-5
        projected = model.get_image_features(images).pooler_output
        assert compute_largest_difference(projected, given["projected_features"]) <= 1e-5
        # Released, a row without an image takes none: case D's second row shows the first image.
        images = images[: int((ids == model.config.image_start_token_id).sum())]
    said = model(
        input_ids=ids,
        pixel_values=images,
        attention_mask=mask,
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),  # as released, padding included
        labels=given.get("labels"),
    )
    seen = mask == 1
    assert compute_largest_difference(said.logits[seen], given["logits"][seen]) <= 2e-5
    if "labels" not in given:
        return
    labels = given["labels"][:, 1:]
    kept = labels != -100
    logps = said.logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    assert compute_largest_difference(logps[kept], given["per_token_logps"][kept]) <= 1e-5
    sums = (logps * kept).sum(1)
    assert compute_largest_difference(sums, given["log_prob"]) <= 2e-4
    assert compute_largest_difference(sums / kept.sum(1), given["average_log_prob"]) <= 1e-5
    assert float(said.loss - given["loss"]) == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_the_branch_of_the_image_alone(loaded: tuple[Any, Any], tensors: dict[str, Tensor]) -> None:
    seen = loaded[0].model.vision_tower(tensors["vision_only.images"], without_queries=True)
    assert (
        compute_largest_difference(
            seen.last_hidden_state, tensors["vision_only.encoder_out_A_only"]
        )
        <= 1e-5
    )


def test_positions_for_another_size(tensors: dict[str, Tensor]) -> None:
    resized = resize_positions(tensors["pos_interp.in_64px"], 112 // 16)
    assert compute_largest_difference(resized, tensors["pos_interp.out_112px"]) <= 1e-6


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("row", [0, 1])
def test_generated_tokens_equal_the_released_models(
    loaded: tuple[Any, Any], tensors: dict[str, Tensor], row: int, beams: int
) -> None:
    from transformers import GenerationConfig

    model = loaded[0]
    ids = tensors[f"B_prompts.generate{row}_input_ids"]
    settings = GenerationConfig(
        do_sample=False, num_beams=beams, max_new_tokens=16,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    stop, model.generation_config.stop_strings = model.generation_config.stop_strings, None
    try:
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=tensors["B_prompts.images"][row : row + 1],
            generation_config=settings,
        )
    finally:
        model.generation_config.stop_strings = stop
    assert stop == ["###"]
    assert torch.equal(made[:, ids.shape[1] :], tensors[f"B_prompts.generate{row}_beams{beams}"])


def test_processed_images_equal_the_released_ones(cases: Path) -> None:
    told = json.loads((cases / "preprocess.json").read_text())["example_images"]
    assert len(told) == 3
    for file, sizes in told.items():
        for size in (448, 112):
            values = MuffinImageProcessor(size=size)(Image.open(cases / file), return_tensors="pt")
            values = values["pixel_values"][0].contiguous().numpy().tobytes()
            wanted = sizes[f"t{size}"]["sha256_float32_CHW"]
            assert hashlib.sha256(values).hexdigest() == wanted


def _to_conversation(turns: list[dict[str, str]]) -> list[dict[str, Any]]:
    made = []
    for turn in turns:
        text = turn["value"].removeprefix("<image>\n")
        image = [{"type": "image"}] if text != turn["value"] else []
        role = {"human": "user", "gpt": "assistant"}[turn["from"]]
        made.append({"role": role, "content": [*image, {"type": "text", "text": text}]})
    return made


def test_conversations_and_labels(
    loaded: tuple[Any, Any], tensors: dict[str, Tensor], notes: dict[str, Any]
) -> None:
    processor = loaded[1]
    pair = notes["A_preference"]["source"]
    asked = {"from": "human", "value": pair["question"]}
    rows = [
        ("A_preference", row, [asked, {"from": "gpt", "value": pair[kind]}])
        for row, kind in enumerate(("chosen", "rejected"))
    ]
    several = notes["C_multiturn_and_textonly"]["source"]["conversations"]
    rows += [("C_multiturn_and_textonly", row, turns) for row, turns in enumerate(several)]
    for case, row, turns in rows:
        ids, labels = processor.labels(_to_conversation(turns), "released")
        seen = tensors[f"{case}.attention_mask"][row] == 1
        assert ids == tensors[f"{case}.input_ids"][row][seen].tolist()
        assert labels == tensors[f"{case}.labels"][row][seen].tolist()
        same, clean = processor.labels(_to_conversation(turns), "clean")
        assert same == ids
        answers = [turn["value"] for turn in turns if turn["from"] == "gpt"]
        scored = [token for token in clean if token != -100]
        assert processor.tokenizer.decode(scored) == " ".join(answers)


def test_prompts_of_an_evaluation(
    loaded: tuple[Any, Any], tensors: dict[str, Tensor], notes: dict[str, Any], cases: Path
) -> None:
    processor, asked = loaded[1], notes["B_prompts"]["source"]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in asked["questions"]
    ]
    made = processor(
        images=[Image.open(cases / file) for file in asked["images"]],
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    assert torch.equal(made["input_ids"], tensors["B_prompts.input_ids"])
    assert torch.equal(made["attention_mask"], tensors["B_prompts.attention_mask"])
    assert torch.equal(made["pixel_values"], tensors["B_prompts.images"])
