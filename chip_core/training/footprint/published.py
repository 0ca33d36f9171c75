"""The sizes of the recipes' models, for machines without their files.

Planning downloads nothing. These are the sizes that the models' own `config.json` states; each
builds to the number of parameters that its page on the hub shows (a test counts them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chip_core.config.trial import ModelConfig
from chip_core.models import own
from chip_core.models.loading import find_local_folder

_CLIP_L_336 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_VICUNA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
}  # fmt: skip
_MISTRAL_7B = {**_VICUNA_7B, "intermediate_size": 14336, "num_key_value_heads": 8}
#: LLaMA with its 32,000 tokens, the padding token and Muffin's three (docs/muffin.md).
_LLAMA_13B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32004,
}  # fmt: skip


def _llava_1_5() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**_CLIP_L_336), text_config=LlamaConfig(**_VICUNA_7B)
    )


def _llava_1_6_vicuna() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_CLIP_L_336), text_config=LlamaConfig(**_VICUNA_7B)
    )


def _llava_1_6_mistral() -> Any:
    from transformers import CLIPVisionConfig, LlavaNextConfig, MistralConfig

    text = MistralConfig(**_MISTRAL_7B, sliding_window=None)
    return LlavaNextConfig(vision_config=CLIPVisionConfig(**_CLIP_L_336), text_config=text)


def _qwen2_5_vl_3b() -> Any:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 2048,
        },
        tie_word_embeddings=True,
    )  # fmt: skip


def _smolvlm_500m() -> Any:
    from transformers import LlamaConfig, SmolVLMConfig

    return SmolVLMConfig(
        text_config=LlamaConfig(
            hidden_size=960, intermediate_size=2560, num_hidden_layers=32,
            num_attention_heads=15, num_key_value_heads=5, vocab_size=49280,
        ),
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
        },
        scale_factor=4,
    )  # fmt: skip


def _muffin_13b() -> Any:
    from chip_core.models.muffin import MuffinConfig

    return MuffinConfig(text_config=_LLAMA_13B)


#: Hub name -> function that returns its configuration.
MODELS: dict[str, Callable[[], Any]] = {
    "llava-hf/llava-1.5-7b-hf": _llava_1_5,
    "llava-hf/llava-v1.6-vicuna-7b-hf": _llava_1_6_vicuna,
    "llava-hf/llava-v1.6-mistral-7b-hf": _llava_1_6_mistral,
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl_3b,
    "HuggingFaceTB/SmolVLM-500M-Instruct": _smolvlm_500m,
    "Yirany/RLHF-V_v0_SFT": _muffin_13b,
}


#: Hub name -> (width of hidden states, vocabulary) of the same models, because planning does not
#: import transformers.
HEAD_SHAPES = {
    "llava-hf/llava-1.5-7b-hf": (4096, 32064),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (4096, 32064),
    "llava-hf/llava-v1.6-mistral-7b-hf": (4096, 32064),
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 151936),
    "HuggingFaceTB/SmolVLM-500M-Instruct": (960, 49280),
    "Yirany/RLHF-V_v0_SFT": (5120, 32004),
}


def load_model_config(model: ModelConfig) -> Any | None:
    """Return a model's configuration, from its files here or from its published sizes.

    None if it is in neither; nothing is downloaded, and no code of the model's folder is run.
    """
    from transformers import AutoConfig

    own.register()
    folder = find_local_folder(model.path)
    try:
        return AutoConfig.from_pretrained(
            str(folder or model.path),
            revision=model.revision,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError):
        make_config = MODELS.get(model.path)
        return None if make_config is None or folder is not None else make_config()


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """The tokens and pictures of an image."""

    tokens: int  # of the prompt
    tiles: int = 1  # number of tiles of the tower's input size, the whole image included


#: The size to assume for an image: COCO's most common one, since RLHF-V's images are from COCO.
_USUAL_SIZE = (480, 640)  # pixels, height × width


def estimate_image_size(model_config: Any) -> ImageSize:
    """Return the largest size of an image in a model; for Qwen, that of a usual image.

    Args:
        model_config: the model's configuration.
    """
    vision, model_type = model_config.vision_config, model_config.model_type
    if model_type == "llava_next":
        # Tiles of the largest grid, with a token at each row's end, and the whole image.
        patches = vision.image_size // vision.patch_size
        rows, columns = max(
            ((height // vision.image_size, width // vision.image_size)
             for height, width in model_config.image_grid_pinpoints),
            key=lambda grid: grid[0] * grid[1],
        )  # fmt: skip
        tokens = patches * patches + rows * patches * (columns * patches + 1)
        return ImageSize(tokens=tokens, tiles=1 + rows * columns)
    if model_type == "muffin":
        return ImageSize(tokens=vision.num_query + 2)
    if model_type in ("idefics3", "smolvlm"):
        # Up to 4 × 4 tiles and the whole image; a tile's position comes before it.
        tile_tokens = (vision.image_size // vision.patch_size // model_config.scale_factor) ** 2
        return ImageSize(tokens=17 * (tile_tokens + 3), tiles=17)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is not None:
        patches = vision.patch_size * merge
        return ImageSize(
            tokens=round(_USUAL_SIZE[0] / patches) * round(_USUAL_SIZE[1] / patches) + 2
        )
    return ImageSize(tokens=(vision.image_size // vision.patch_size) ** 2)
