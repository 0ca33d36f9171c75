"""Muffin's configuration, with the released model's sizes as defaults."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PretrainedConfig


class MuffinVisionConfig(PretrainedConfig):  # type: ignore[misc]
    """BEiT-3 with two branches, and the queries that pass through the second."""

    model_type = "muffin_vision"
    base_config_key = "vision_config"

    def __init__(  # noqa: PLR0913 (transformers' signature)
        self,
        *,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        image_size: int = 448,
        patch_size: int = 16,
        num_channels: int = 3,
        num_query: int = 64,
        max_query_positions: int = 1024,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **others: Any,
    ) -> None:
        """Make a configuration.

        Args:
            hidden_size: width of a token.
            intermediate_size: width within a feed-forward part.
            num_hidden_layers: layers.
            num_attention_heads: heads of each.
            image_size: pixels on a side; every image has this size.
            patch_size: pixels on a side of a patch.
            num_channels: of an image.
            num_query: learned queries: the number of an image's tokens in the language model.
            max_query_positions: rows of the queries' position table.
            layer_norm_eps: of every LayerNorm.
            initializer_range: standard deviation of new weights.
            others: arguments of every transformers configuration.
        """
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.num_query = num_query
        self.max_query_positions = max_query_positions
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**others)


class MuffinConfig(PretrainedConfig):  # type: ignore[misc]
    """The whole model."""

    model_type = "muffin"
    sub_configs = {"vision_config": MuffinVisionConfig, "text_config": LlamaConfig}

    def __init__(
        self,
        *,
        vision_config: MuffinVisionConfig | dict[str, Any] | None = None,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        image_token_id: int = 32001,
        image_start_token_id: int = 32002,
        image_end_token_id: int = 32003,
        tie_word_embeddings: bool = False,
        **others: Any,
    ) -> None:
        """Make a configuration.

        Args:
            vision_config: of the vision tower.
            text_config: of the language model.
            image_token_id: the placeholder `<im_patch>`, one per query.
            image_start_token_id: `<im_start>`, before an image's placeholders.
            image_end_token_id: `<im_end>`, after them.
            tie_word_embeddings: whether output head and embeddings share their weights.
            others: arguments of every transformers configuration.
        """
        self.vision_config = (
            vision_config
            if isinstance(vision_config, MuffinVisionConfig)
            else MuffinVisionConfig(**_to_plain_dict(vision_config))
        )
        self.text_config: Any = (
            text_config
            if isinstance(text_config, LlamaConfig)
            else LlamaConfig(**_to_plain_dict(text_config))
        )
        self.image_token_id = image_token_id
        self.image_start_token_id = image_start_token_id
        self.image_end_token_id = image_end_token_id
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)


def _to_plain_dict(config: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (config or {}).items() if name != "model_type"}
