"""Muffin: BEiT-3 with queries, one linear layer, LLaMA.

Shapes: B sequences, T tokens, N images of the whole batch, Q queries of an image, D hidden,
V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from chip_core.models.muffin.configuration import MuffinConfig
from chip_core.models.muffin.vision import MuffinVisionModel


class MuffinPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The common base of both classes below."""

    config: MuffinConfig
    config_class = MuffinConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MuffinVisionLayer", "LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class MuffinModel(MuffinPreTrainedModel):
    """Muffin without the output head."""

    def __init__(self, config: MuffinConfig) -> None:
        super().__init__(config)
        self.vision_tower = MuffinVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = nn.Linear(
            config.vision_config.hidden_size, config.text_config.hidden_size
        )
        self.language_model: LlamaModel = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return the images' embeddings for the language model as `pooler_output`, (N, Q, D)."""
        features = self.vision_tower(pixel_values)
        return BaseModelOutputWithPooling(
            pooler_output=self.multi_modal_projector(features.pooler_output)
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states of sequences with images.

        Args:
            input_ids: (B, T), with Q placeholders per image.
            pixel_values: (N, 3, image_size, image_size), in the order of the placeholders.
            attention_mask: (B, T), or of four dimensions as LLaMA takes it.
            position_ids: (B, T).
            past_key_values: keys and values of the tokens before.
            inputs_embeds: (B, T, D), instead of ids; then without images.
            kwargs: further arguments of LLaMA.

        Raises:
            ValueError: the placeholders do not fit the images.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            if input_ids is None:
                raise ValueError("images need input_ids, which show their positions")
            features = self.get_image_features(pixel_values).pooler_output
            image_mask = self._find_placeholders(input_ids, features)[..., None]
            features = features.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(image_mask, features)
        out: BaseModelOutputWithPast = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return out

    def _find_placeholders(self, ids: Tensor, features: Tensor) -> Tensor:
        """Return where images are, (B, T): Q placeholders between a start and an end each."""
        config, (images, queries) = self.config, features.shape[:2]
        starts = ids == config.image_start_token_id
        # An image's placeholders are the Q tokens after its start: the positions with a start
        # counted within the last Q tokens.
        image_index = nn.functional.pad(starts.cumsum(1), (queries + 1, 0))
        placeholders = image_index[:, queries:-1] > image_index[:, : -queries - 1]
        ends = nn.functional.pad(starts, (queries + 1, 0))[:, : -queries - 1]
        fits = torch.equal(placeholders, ids == config.image_token_id) and torch.equal(
            ends, ids == config.image_end_token_id
        )
        if not fits or not int(starts.sum()) == int(ends.sum()) == images:
            raise ValueError(
                f"{images} images and {int(starts.sum())} starts of an image: each takes "
                f"{queries} placeholders between its start and its end"
            )
        return placeholders


class MuffinForConditionalGeneration(MuffinPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Muffin with its output head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: MuffinConfig) -> None:
        super().__init__(config)
        self.model = MuffinModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return the images' embeddings for the language model as `pooler_output`, (N, Q, D)."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(  # noqa: PLR0913 (transformers' signature)
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V), and the mean shifted cross-entropy if there are labels.

        Args:
            input_ids: as in `MuffinModel.forward`, like the following.
            pixel_values: images.
            attention_mask: which positions are not padding.
            position_ids: positions.
            past_key_values: the past.
            inputs_embeds: instead of ids.
            labels: (B, T), -100 for tokens that do not count.
            logits_to_keep: only the last so many positions; 0: all.
            kwargs: further arguments of LLaMA.
        """
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = out.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep or None :]
        else:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
