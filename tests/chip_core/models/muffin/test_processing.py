"""Prompts, tokens and labels on a tokenizer that is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.convert_slow_tokenizer import generate_merges

from chip_core.config.trial import ModelConfig
from chip_core.evaluation.inference import generate
from chip_core.evaluation.task import Item, Picture
from chip_core.models import loading
from chip_core.models.muffin import MuffinImageProcessor, MuffinProcessor
from chip_core.models.muffin.convert import convert
from chip_core.models.muffin.tokens import build_tokenizer

from .checkpoints import list_pieces, write_checkpoint

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@pytest.fixture(scope="module")
def processor() -> MuffinProcessor:
    vocabulary = {piece: place for place, piece in enumerate(list_pieces())}
    tokenizer = build_tokenizer(vocabulary, generate_merges(vocabulary, None))
    return MuffinProcessor(MuffinImageProcessor(size=12), tokenizer, image_seq_length=2)


def make_user_turn(text: str, images: int = 1) -> dict[str, Any]:
    content = [*[{"type": "image"}] * images, {"type": "text", "text": text}]
    return {"role": "user", "content": content}


def make_assistant_turn(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_an_evaluation_asks_first_and_shows_then(processor: MuffinProcessor) -> None:
    asked = [make_user_turn("what is red?")]
    assert processor.apply_chat_template(asked, add_generation_prompt=True) == (
        f"{SYSTEM}\n###Human: what is red?\n<im_patch>\n###"
    )
    asked = [
        make_user_turn("what is red?", images=0),
        make_assistant_turn("A"),
        make_user_turn("what?", images=2),
    ]
    assert processor.apply_chat_template(asked) == (
        f"{SYSTEM}\n###Human: what is red?\n###Assistant: A\n###Human: what?\n"
        "<im_patch><im_patch>\n###"
    )


def test_a_training_shows_first_and_asks_then(processor: MuffinProcessor) -> None:
    def text(conversation: list[dict[str, Any]], **options: bool) -> str:
        made: str = processor.apply_chat_template(conversation, chat_template="training", **options)
        return made

    # No white space beside the image: the slow tokenizer of 2023 dropped it.
    asked = [make_user_turn("\n what is red? ")]
    assert text(asked, add_generation_prompt=True) == (
        f"{SYSTEM}\n\n### Human:<im_patch>what is red? \n### Assistant:"
    )
    assert text([*asked, make_assistant_turn("A red.")]) == (
        f"{SYSTEM}\n\n### Human:<im_patch>what is red? \n### Assistant: A red.\n### "
    )
    assert text([make_user_turn("what?", images=0)]) == f"{SYSTEM}\n\n### Human: what?\n### "


def test_an_images_tokens(processor: MuffinProcessor) -> None:
    image = Image.new("RGB", (20, 30), (255, 0, 128))
    made = processor(
        images=[image, image], text=["A<im_patch>is", "red <im_patch>"], padding=True,
        return_tensors="pt",
    )  # fmt: skip
    words = [processor.tokenizer.convert_ids_to_tokens(row) for row in made["input_ids"].tolist()]
    shown = ["<im_start>", "<im_patch>", "<im_patch>", "<im_end>"]
    # Behind an image text begins anew, with a space of its own; white space before it is kept.
    assert words[0] == ["<s>", "▁A", *shown, "▁is"]
    assert words[1] == ["<s>", "▁red", "▁", *shown]
    assert made["attention_mask"].tolist() == [[1] * 7] * 2
    # (255, 0, 128) / 255 = (1, 0, 0.50196); less 0.5, over 0.5
    values = made["pixel_values"]
    assert values.shape == (2, 3, 12, 12) and values.dtype == torch.float32
    assert values[0, :, 5, 5].tolist() == pytest.approx([1.0, -1.0, 2 * 128 / 255 - 1], abs=1e-6)
    with pytest.raises(ValueError, match="1 images for 2 placeholders"):
        processor(images=[image], text=["<im_patch><im_patch>"])


def test_the_width_is_resized_before_the_height() -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 50, 3), generator=draw, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    wide = image.resize((12, 9), Image.Resampling.BICUBIC).resize(
        (12, 12), Image.Resampling.BICUBIC
    )
    values = MuffinImageProcessor(size=12)(image, return_tensors="pt")["pixel_values"][0]
    wanted = MuffinImageProcessor(size=12)(wide, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(values, wanted)


def mark_scored_tokens(
    processor: MuffinProcessor, conversation: list[dict[str, Any]], rule: Any
) -> list[str]:
    ids, labels = processor.labels(conversation, rule)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return [
        f"{'' if label == -100 else '*'}{word}"
        for word, label in zip(processor.tokenizer.convert_ids_to_tokens(ids), labels, strict=True)
    ]


def test_labels_cover_what_the_rule_scores(processor: MuffinProcessor) -> None:
    conversation = [make_user_turn("what is red?"), make_assistant_turn("A red.")]
    ids, _ = processor.labels(conversation, "clean")
    header = len(processor.tokenizer(f"{SYSTEM}\n\n")["input_ids"])
    shown = ["<im_start>", "<im_patch>", "<im_patch>", "<im_end>"]
    asked = [":", *shown, "▁what", "▁is", "▁red", "?", "<0x0A>", "###"]
    # A turn alone begins with <s> and "▁###", and goes on as in its place: of the question's
    # tokens the first two count, and the first of the answer's turn does not.
    assert mark_scored_tokens(processor, conversation, "released")[header:] == [
        "*###", "*▁Human", *asked, "*▁Assistant", "*:", "*▁A", "*▁red", "*.", "*<0x0A>", "*###",
        "*▁",
    ]  # fmt: skip
    assert mark_scored_tokens(processor, conversation, "clean")[header:] == [
        "###", "▁Human", *asked, "▁Assistant", ":", "*▁A", "*▁red", "*.", "<0x0A>", "###", "▁",
    ]  # fmt: skip
    # Every turn is one token ahead of the turn before: four of the second question's count.
    conversation = [
        make_user_turn("what?"),
        make_assistant_turn("A"),
        make_user_turn("what is?", images=0),
        make_assistant_turn("red"),
    ]
    words = mark_scored_tokens(processor, conversation, "released")[header:]
    assert words[words.index("*▁A") :] == [
        "*▁A", "*<0x0A>", "*###", "*▁Human", "*:", "*▁what", "▁is", "?", "<0x0A>", "###",
        "▁Assistant", ":", "*▁red", "*<0x0A>", "*###", "*▁",
    ]  # fmt: skip


def test_a_generation_stops_at_the_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_checkpoint(tmp_path / "released"), tmp_path / "muffin", vision_heads=2)
    model, reader = loading.load(ModelConfig(path=str(tmp_path / "muffin")))
    words = ["▁Assistant", ":", "▁A", "▁red", "###", "▁what", "▁what"]
    said = iter(reader.tokenizer.convert_tokens_to_ids(words))

    def head(hidden: torch.Tensor) -> torch.Tensor:
        """One word after the other, whatever was asked; far ahead of all others."""
        logits = torch.zeros(*hidden.shape[:2], len(reader.tokenizer))
        logits[..., next(said)] = 10
        return logits

    monkeypatch.setattr(model.lm_head, "forward", head)
    items = [
        Item(
            id=str(shade),
            prompt="what is red?" * (1 + shade),
            pictures=(
                Picture(key=str(shade), read=lambda s=shade: Image.new("RGB", (9, 9), (s, 0, 0))),
            ),
        )
        for shade in range(2)
    ]
    assert generate(model, reader, items, max_new_tokens=7) == ["A red"] * 2
    assert reader.tokenizer.convert_ids_to_tokens(list(said)) == words[5:]  # never asked for


def test_an_answer_ends_where_the_next_turn_opens(processor: MuffinProcessor) -> None:
    tokenizer = processor.tokenizer
    said = ["Assistant: A red.\n### Human: what?", " A red.", "Assistant:", ""]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    assert processor.post_process_image_text_to_text(padded) == ["A red.", "A red.", "", ""]
