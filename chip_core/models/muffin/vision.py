"""BEiT-3 with two branches (Wang et al., 2022, arXiv 2208.10442), as Muffin uses it.

Image and query tokens pass through it side by side. Every linear layer and LayerNorm exists twice,
once for each kind of token; only the attention mixes them, every token with every other.

Shapes: B images, I tokens of an image (class token first), Q queries, D hidden, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from chip_core.models.muffin.configuration import MuffinVisionConfig

#: Rows of a position table that are never read; the first position is the row after them.
UNUSED_POSITIONS = 2


class Branch(nn.Module):
    """A layer's weights for one kind of token, with a LayerNorm before each final linear layer."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        width, wide, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.inner_attention_norm = nn.LayerNorm(width, eps=eps)
        self.out_proj = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, wide)
        self.inner_mlp_norm = nn.LayerNorm(wide, eps=eps)
        self.fc2 = nn.Linear(wide, width)

    def project_qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens, (B, …, D) each."""
        normed = self.attention_norm(tokens)
        return self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)

    def finish_layer(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output for tokens and what they attended to, (B, …, D)."""
        tokens = tokens + self.out_proj(self.inner_attention_norm(attended))
        inner = nn.functional.gelu(self.fc1(self.mlp_norm(tokens)))
        out: Tensor = tokens + self.fc2(self.inner_mlp_norm(inner))
        return out


class MuffinVisionLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Two branches, mixed by the attention."""

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.image = Branch(config)
        self.query = Branch(config)

    def forward(self, image: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layer; return image tokens (B, I, D) and query tokens (B, Q, D).

        There may be no query (Q = 0).
        """
        branch_qkv = zip(self.image.project_qkv(image), self.query.project_qkv(query), strict=True)
        heads = (*image.shape[:1], -1, self.config.num_attention_heads, self.head_size)
        queries, keys, values = (
            torch.cat(pair, 1).view(heads).transpose(1, 2) for pair in branch_qkv
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager)
        attended, _ = attend(
            self, queries, keys, values, None, scaling=self.head_size**-0.5, dropout=0.0
        )
        image_attended, query_attended = attended.flatten(2).split(
            [image.shape[1], query.shape[1]], 1
        )
        return self.image.finish_layer(image, image_attended), self.query.finish_layer(
            query, query_attended
        )


class MuffinVisionModel(PreTrainedModel):  # type: ignore[misc]
    """The vision tower: from pixels to the outputs of the queries."""

    config: MuffinVisionConfig
    config_class = MuffinVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MuffinVisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    #: Parts that belong to the projector although they are in the tower: what the released training
    #: trains of it (chip_core/models/parts.py).
    projector_parts = ("query", "query_positions", "query_norm")
    #: Modules of the last layer that only image tokens pass through after the attention; their
    #: output is unused.
    last_layer_unread = (
        "image.q_proj", "image.inner_attention_norm", "image.out_proj", "image.mlp_norm",
        "image.fc1", "image.inner_mlp_norm", "image.fc2",
    )  # fmt: skip

    def __init__(self, config: MuffinVisionConfig) -> None:
        super().__init__(config)
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.image_positions = nn.Embedding(side**2 + 1 + UNUSED_POSITIONS, width)
        self.query = nn.Parameter(torch.zeros(config.num_query, width))
        self.query_positions = nn.Embedding(config.max_query_positions, width)
        self.layers = nn.ModuleList(
            MuffinVisionLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.image_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, pixel_values: Tensor, *, without_queries: bool = False, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, 3, image_size, image_size).
            without_queries: whether to encode the image without queries.

        Returns:
            `last_hidden_state`: all tokens after the last LayerNorm, (B, I + Q, D);
            `pooler_output`: the queries among them, (B, Q, D).

        Raises:
            ValueError: the images have another size.
        """
        size = self.config.image_size
        if pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"images of {tuple(pixel_values.shape[-2:])} pixels: Muffin takes {size} x {size}"
            )
        pixels = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        image = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        image = (
            image
            + self.image_positions.weight[UNUSED_POSITIONS : UNUSED_POSITIONS + image.shape[1]]
        )
        query = self.query[: 0 if without_queries else None]
        query = (
            query + self.query_positions.weight[UNUSED_POSITIONS : UNUSED_POSITIONS + len(query)]
        )
        query = query.expand(len(image), -1, -1)
        for layer in self.layers:
            image, query = layer(image, query)
        image, query = self.image_norm(image), self.query_norm(query)
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat([image, query], 1), pooler_output=query
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MuffinVisionModel):
            for parameter in (module.cls_token, module.query):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention without a kernel: (B, H, …, D / H) each to (B, …, H, D / H) and weights."""
    assert attention_mask is None, "every token sees every other"
    products = torch.matmul(query * scaling, key.transpose(-1, -2))
    weights = products.softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), weights
