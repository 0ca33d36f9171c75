"""Tiny random models of the families, built from their configurations, offline.

Each has the family's own image processor, processor and chat layout; only the tokenizer is new: a
word a token, with the family's special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from chip_core.data.preferences import Pairs, PreferencePair
from chip_core.evaluation.task import Item, Picture
from chip_core.models import own
from chip_core.models.muffin import MuffinConfig, MuffinImageProcessor, MuffinProcessor
from chip_core.models.processing import compose_processor

SENTENCE = "user assistant : . ? what is here a the red blue green dog cat car tree and on with"
WORDS = SENTENCE.split()
PATCH, SIDE = 8, 32


def make_chat_template(image: str, end: str) -> str:
    """Make a chat template with the family's image placeholder and end of turn."""
    return (
        "{% for message in messages %}{{ message['role'] }} : "
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ ' ' + part['text'] }}{% endif %}"
        "{% endfor %}" + end + " {% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )


def make_tokenizer(special: Sequence[str], end: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer in which each word is a token."""
    words = ["<pad>", end, "<unk>", *special, *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token=end,
        unk_token="<unk>",
        additional_special_tokens=[word for word in special if word.startswith("<")],
    )


def _make_text_config(words: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        **more,
    }


def _make_clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, projection_dim=32,
    )  # fmt: skip


def make_llava() -> tuple[Any, Any]:
    words = make_tokenizer(["<image>"], "</s>")
    image_processor = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False
    )
    processor = compose_processor(
        "llava", image_processor, words, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=make_chat_template("<image>", "</s>"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=_make_clip_config(), text_config=LlamaConfig(**_make_text_config(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    return config, processor


def make_llava_next() -> tuple[Any, Any]:
    words = make_tokenizer(["<image>"], "</s>")
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    processor = compose_processor(
        "llava_next", image_processor, words, patch_size=PATCH, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=make_chat_template("<image>", "</s>"),
    )  # fmt: skip
    config = LlavaNextConfig(
        vision_config=_make_clip_config(), text_config=LlamaConfig(**_make_text_config(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    return config, processor


QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _find_qwen_ids(words: Any) -> dict[str, int]:
    ids = dict(zip(QWEN, words.convert_tokens_to_ids(QWEN), strict=True))
    return {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }


def _make_qwen_image_processor() -> Any:
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48},
    )  # fmt: skip


def make_qwen2_5_vl() -> tuple[Any, Any]:
    """Make one whose output head is tied to the embeddings, as the released 3B's is."""
    words = make_tokenizer(QWEN, "<|im_end|>")
    processor = compose_processor(
        "qwen2_5_vl",
        _make_qwen_image_processor(),
        words,
        chat_template=make_chat_template(_QWEN_IMAGE, "<|im_end|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=_make_text_config(words, rope_parameters=rope, tie_word_embeddings=True),
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
            "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 32,
        },
        tie_word_embeddings=True, **_find_qwen_ids(words),
    )  # fmt: skip
    return config, processor


def make_qwen3_vl() -> tuple[Any, Any]:
    words = make_tokenizer(QWEN, "<|im_end|>")
    processor = compose_processor(
        "qwen3_vl",
        _make_qwen_image_processor(),
        words,
        chat_template=make_chat_template(_QWEN_IMAGE, "<|im_end|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = Qwen3VLConfig(
        text_config=_make_text_config(words, rope_parameters=rope, head_dim=8),
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
            "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=False, **_find_qwen_ids(words),
    )  # fmt: skip
    return config, processor


def _make_idefics(kind: str, config_class: Any, image_class: Any) -> tuple[Any, Any]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    special = ["<fake_token_around_image>", "<image>", "<global-img>", *tiles]
    words = make_tokenizer([*special, "<row>"], "<end_of_utterance>")
    image_processor = image_class(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE},
        do_image_splitting=True,
    )  # fmt: skip
    processor = compose_processor(
        kind, image_processor, words, image_seq_len=4,
        chat_template=make_chat_template("<image>", "<end_of_utterance>"),
    )  # fmt: skip
    config = config_class(
        text_config=LlamaConfig(**_make_text_config(words)),
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    return config, processor


def make_idefics3() -> tuple[Any, Any]:
    return _make_idefics("idefics3", Idefics3Config, Idefics3ImageProcessorPil)


def make_smolvlm() -> tuple[Any, Any]:
    return _make_idefics("smolvlm", SmolVLMConfig, SmolVLMImageProcessorPil)


def make_muffin() -> tuple[Any, Any]:
    shown = ["<im_patch>", "<im_start>", "<im_end>"]
    words = make_tokenizer([*shown, "###", "Human", "Assistant"], "</s>")
    processor = MuffinProcessor(MuffinImageProcessor(size=SIDE), words, image_seq_length=4)
    config = MuffinConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "num_query": 4,
            "max_query_positions": 8,
        },
        text_config=_make_text_config(words),
        **dict(
            zip(
                ("image_token_id", "image_start_token_id", "image_end_token_id"),
                words.convert_tokens_to_ids(shown),
                strict=True,
            )
        ),
    )  # fmt: skip
    return config, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": make_llava,
    "llava_next": make_llava_next,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "muffin": make_muffin,
}


#: Those that the gate leaves to a near one: SmolVLM has Idefics3's layers, and a recipe.
BY_HAND = ("idefics3",)


def build(family: str) -> tuple[Any, Any]:
    """Return (model, processor) of a family, with seeded random weights."""
    config, processor = FAMILIES[family]()
    own.register()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


class ListPairs(list[PreferencePair], Pairs):
    """Pairs that are all held."""


def make_pairs() -> ListPairs:
    """Make three pairs whose images and texts differ in size."""
    made = ListPairs()
    for number, (size, chosen, rejected) in enumerate(
        [
            ((64, 40), "a red dog and a cat .", "a blue car and a cat ."),
            ((30, 60), "the tree .", "the green tree with a car on the dog ."),
            ((50, 50), "a cat is on the car .", "a cat is here ."),
        ]
    ):
        image = Image.new("RGB", size, (200, 180 - 40 * number, 40 * number))
        ImageDraw.Draw(image).rectangle((5, 5, 20, 25), fill=(20, 90, 220))
        made.append(
            PreferencePair(
                id=str(number),
                image=image,
                prompt=" ".join(["what is here"] * (number + 1)) + " ?",
                chosen=chosen,
                rejected=rejected,
            )  # fmt: skip
        )
    return made


def make_items(questions: int = 4) -> list[Item]:
    """Make questions of different lengths about the three pairs' images."""
    made = []
    for shown, pair in enumerate(make_pairs()):
        picture = Picture(key=pair.id, read=lambda image=pair.image: image)
        for number in range(questions):
            words = [WORDS[(5 + shown + number + n) % len(WORDS)] for n in range(2 + 3 * number)]
            prompt = " ".join(words)
            made.append(Item(id=f"{shown}/{number}", prompt=prompt, pictures=(picture,)))
    return made
