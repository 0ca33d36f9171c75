"""The model and the batch with which a step is measured: a LLaVA built from its configuration.

Hidden 512, 6 layers, 32,000 tokens of vocabulary: in decoder and output head, an image's tokens, a
response's and the vocabulary have about the same shares as in a 7B model's step, on a machine
without a GPU. Weights are random; a step's cost does not depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.objectives.parts import VIEWS

PATCH = 14


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step's size."""

    image_tokens: int = 576
    text_tokens: int = 20  # of the prompt
    chosen: tuple[int, ...] = (100,)  # tokens of each pair's chosen response
    rejected: tuple[int, ...] = (110,)
    vocabulary: int = 32_000
    hidden: int = 512
    intermediate: int = 1408
    layers: int = 6
    heads: int = 8
    tower: tuple[int, int, int, int] = (192, 768, 4, 6)  # hidden, intermediate, layers, heads

    @property
    def image_token(self) -> int:
        """Return the image placeholder's id, the last of the vocabulary."""
        return self.vocabulary - 1

    @property
    def images(self) -> tuple[int, int]:
        """Return (images a prompt, patches on a side): 2,880 tokens are 5 tiles of 24 × 24."""
        for images in range(1, 9):
            side = round((self.image_tokens / images) ** 0.5)
            if images * side**2 == self.image_tokens:
                return images, side
        raise ValueError(f"{self.image_tokens} image tokens are no squares of one size")

    def built(self, dtype: torch.dtype, device: torch.device) -> Any:
        """Build the model with random weights, in this precision and on this device."""
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
        from transformers.models.llava import LlavaForConditionalGeneration

        _, side = self.images
        hidden, intermediate, layers, heads = self.tower
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                image_size=side * PATCH,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                vocab_size=self.vocabulary,
                hidden_size=self.hidden,
                intermediate_size=self.intermediate,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.heads,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
                pad_token_id=0,
            ),
            image_token_index=self.image_token,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                return LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(before)

    def model(self) -> tuple[Any, Any]:
        """Return (policy, reference): the reference frozen, the policy's weights changed."""
        reference = self.built(torch.float32, torch.device("cpu"))
        policy = copy.deepcopy(reference)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.ndim > 1:
                    parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
        reference.requires_grad_(False)
        policy.get_encoder(modality="image").requires_grad_(False)  # as the recipes have it
        return policy, reference

    def processor(self) -> Any:
        """Return the model's processor, with one token per word."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlavaProcessor, PreTrainedTokenizerFast
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "<image>": self.image_token}
        words |= {f"w{number}": number for number in range(3, self.image_token)}
        made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made,
            pad_token="<pad>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        )
        _, side = self.images
        size = {"height": side * PATCH, "width": side * PATCH}
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False),
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return pairs as text and images, each response as long as the first pair's."""
        import numpy
        from PIL import Image

        draw = numpy.random.default_rng(2)
        images, side = self.images
        shape = (side * PATCH, side * PATCH, 3)

        def text(length: int) -> str:
            return " ".join(f"w{word}" for word in draw.integers(3, self.image_token, length))

        return [
            {
                "images": [
                    Image.fromarray(draw.integers(0, 256, shape, dtype=numpy.uint8))
                    for _ in range(images)
                ],
                "prompt": " ".join(["<image>"] * images + [text(self.text_tokens)]),
                "chosen": text(self.chosen[0] - 1) + " </s>",
                "rejected": text(self.rejected[0] - 1) + " </s>",
            }
            for _ in range(number)
        ]

    def batch(self, *, visual: bool, views: Collection[str] = ()) -> PairBatch:
        """Return the pairs; half of each response is changed.

        Args:
            visual: whether to include the chosen response under the rejected image.
            views: further views that an objective reads (`chip_core.objectives.parts.VIEWS`).
        """
        torch.manual_seed(1)
        images, side = self.images
        pairs, pixels = len(self.chosen), (3, side * PATCH, side * PATCH)

        def prompts() -> Prompts:
            text = torch.randint(1, self.image_token, (pairs, self.text_tokens))
            ids = torch.cat([torch.full((pairs, self.image_tokens), self.image_token), text], 1)
            inputs = {"pixel_values": torch.randn(pairs * images, *pixels)}
            return Prompts(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), inputs=inputs)

        def responses(lengths: tuple[int, ...]) -> Responses:
            shape = (pairs, max(lengths))
            mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
            changed = mask & (torch.rand(shape) < 0.5)
            return Responses(
                ids=torch.randint(1, self.image_token, shape), mask=mask, changed=changed
            )

        under, chosen = prompts(), responses(self.chosen)
        other = Prompts(ids=under.ids, mask=under.mask, inputs=prompts().inputs)
        answers = {"chosen": chosen, "rejected": responses(self.rejected), "other": chosen}
        images = {VIEWS[view][0] for view in views}
        return PairBatch(
            indices=tuple(range(pairs)),
            epoch=0,
            prompts=under,
            chosen=chosen,
            rejected=answers["rejected"],
            rejected_image_prompts=other if visual or "rejected_image" in images else None,
            rejected_image=chosen if visual or "rejected_image" in views else None,
            second_image_prompts=other if "second_image" in images else None,
            extra_responses={
                view: answers[VIEWS[view][1]]
                for view in views
                if view not in ("chosen", "rejected", "rejected_image")
            },
        )
