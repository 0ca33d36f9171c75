"""The model and the batch that a step is measured on: a LLaVA built from its configuration.

Hidden 512, 6 layers, 32,000 tokens of vocabulary: a decoder and an output head in which an image's
tokens, a response's and the vocabulary weigh against each other about as in a 7B model's step, on
a machine without a GPU. Weights are random; a step's cost does not depend on them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from chip_core.data.tensors import PairBatch, Prompts, Responses

PATCH, IMAGE_TOKEN = 14, 31_999


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step's size."""

    image_tokens: int = 576
    text_tokens: int = 20  # of the prompt
    chosen: tuple[int, ...] = (100,)  # tokens of each pair's chosen response
    rejected: tuple[int, ...] = (110,)
    vocabulary: int = 32_000
    hidden: int = 512
    layers: int = 6

    @property
    def images(self) -> tuple[int, int]:
        """Return (images a prompt, patches on a side): 2,880 tokens are 5 tiles of 24 × 24."""
        for images in range(1, 9):
            side = round((self.image_tokens / images) ** 0.5)
            if images * side**2 == self.image_tokens:
                return images, side
        raise ValueError(f"{self.image_tokens} image tokens are no squares of one size")

    def model(self) -> tuple[Any, Any]:
        """Return (policy, reference): the reference frozen, the policy moved away from it."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
        from transformers.models.llava import LlavaForConditionalGeneration

        _, side = self.images
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=4,
                num_attention_heads=6,
                image_size=side * PATCH,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                vocab_size=self.vocabulary,
                hidden_size=self.hidden,
                intermediate_size=1408,
                num_hidden_layers=self.layers,
                num_attention_heads=8,
                num_key_value_heads=8,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
                pad_token_id=0,
            ),
            image_token_index=IMAGE_TOKEN,
        )
        torch.manual_seed(0)
        reference = LlavaForConditionalGeneration(config).float().eval()
        policy = copy.deepcopy(reference)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.ndim > 1:
                    parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
        reference.requires_grad_(False)
        policy.get_encoder(modality="image").requires_grad_(False)  # as the recipes have it
        return policy, reference

    def batch(self, *, visual: bool) -> PairBatch:
        """Return the pairs; half of each response is changed."""
        torch.manual_seed(1)
        images, side = self.images
        pairs, pixels = len(self.chosen), (3, side * PATCH, side * PATCH)

        def prompts() -> Prompts:
            text = torch.randint(1, IMAGE_TOKEN, (pairs, self.text_tokens))
            ids = torch.cat([torch.full((pairs, self.image_tokens), IMAGE_TOKEN), text], 1)
            inputs = {"pixel_values": torch.randn(pairs * images, *pixels)}
            return Prompts(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), inputs=inputs)

        def responses(lengths: tuple[int, ...]) -> Responses:
            shape = (pairs, max(lengths))
            mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
            changed = mask & (torch.rand(shape) < 0.5)
            return Responses(ids=torch.randint(1, IMAGE_TOKEN, shape), mask=mask, changed=changed)

        under, chosen = prompts(), responses(self.chosen)
        other = Prompts(ids=under.ids, mask=under.mask, inputs=prompts().inputs)
        return PairBatch(
            places=tuple(range(pairs)),
            epoch=0,
            prompts=under,
            chosen=chosen,
            rejected=responses(self.rejected),
            rejected_image_prompts=other if visual else None,
            rejected_image=chosen if visual else None,
        )
