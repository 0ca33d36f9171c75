"""A model's hidden states of an image and of descriptions, each pooled to one vector.

Every description is read as the answer to its prompt under its image, as in training and evaluation
(or, with `alone`, without image and prompt). Shapes: N items, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chip_core.data.encodings import SpecialTokens
from chip_core.models.precision import match_dtype
from chip_core.representation.described import DescribedImage
from chip_core.utils.errors import TrialError

Pool = Literal["mean", "last"]
Vectors = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How hidden states are selected."""

    pool: Pool = "mean"
    layer: int = -1  # of the hidden states: 0 the embeddings, -1 the last layer's
    alone: bool = False  # descriptions without their image and prompt


@dataclass(frozen=True, kw_only=True)
class Representations:
    """One vector for each item's image, true and hallucinated description, (N, D) each."""

    image: Vectors
    true: Vectors
    hallucinated: Vectors
    layer: int  # counted from the embeddings, 0


@torch.inference_mode()
def compute_representations(
    model: Any,
    processor: Any,
    described: Sequence[DescribedImage],
    reading: Reading,
    on_item: Callable[[int, int], None] | None = None,
) -> Representations:
    """Return a model's representations of a set.

    An image is pooled over its tokens' states, a description over its own tokens: `mean` is their
    mean, `last` the state of the last token. The end token is not read.

    Args:
        model: an image-text-to-text model.
        processor: its processor.
        described: the set.
        reading: how hidden states are selected.
        on_item: called with (items done, items in all).

    Raises:
        TrialError: the model has no such layer, or its inputs show no image tokens.
    """
    model.eval()
    special_tokens = SpecialTokens(processor)
    vectors: dict[str, list[Vectors]] = {"image": [], "true": [], "hallucinated": []}
    layer = reading.layer
    for items_done, item in enumerate(described, start=1):
        prompt = _encode_prompt(special_tokens, item)
        texts = {"true": item.true, "hallucinated": item.hallucinated}
        for name, text in texts.items():
            answer = special_tokens.tokenize(text)
            if not answer:
                raise TrialError(f"{item.id}: its {name} description has no tokens")
            if name == "true" or not reading.alone:
                prefix = prompt.ids
                states, layer = _layer_states(model, prefix + answer, prompt.inputs, reading)
            if name == "true":  # text after an image does not change its states
                vectors["image"].append(_pool_states(states[prompt.image_positions], reading.pool))
            if reading.alone:
                prefix = processor.tokenizer("")["input_ids"][:1]  # the first token, if any
                states, layer = _layer_states(model, prefix + answer, {}, reading)
            vectors[name].append(_pool_states(states[len(prefix) :], reading.pool))
        if on_item is not None:
            on_item(items_done, len(described))
    stacked = {name: np.stack(rows) for name, rows in vectors.items()}
    return Representations(**stacked, layer=layer)


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    ids: list[int]
    inputs: dict[str, Tensor]  # pixel values and the like
    image_positions: list[int]  # of the image's tokens


def _encode_prompt(special_tokens: SpecialTokens, item: DescribedImage) -> _Prompt:
    processor, (hidden_prompt,) = special_tokens.hide(item.prompt)
    content = [{"type": "image"}, {"type": "text", "text": hidden_prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    encoded = processor(images=[item.image()], text=[text], return_tensors="pt")
    ids = encoded.pop("input_ids")[0].tolist()
    encoded.pop("attention_mask")
    image_positions = [
        position for position, token in enumerate(ids) if token == processor.image_token_id
    ]
    if not image_positions:
        raise TrialError("the processor puts no image tokens into a prompt: nothing to pool over")
    return _Prompt(ids=ids, inputs=dict(encoded), image_positions=image_positions)


def _layer_states(
    model: Any, ids: list[int], inputs: dict[str, Tensor], reading: Reading
) -> tuple[Tensor, int]:
    """Return one layer's states of a sequence, (T, D), and the layer's number."""
    device = next(model.parameters()).device
    tokens = torch.tensor([ids], device=device)
    padded = {name: _pad_tokens(name, value, len(ids)).to(device) for name, value in inputs.items()}
    states = model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
        **match_dtype(padded, model),
    ).hidden_states
    layer = reading.layer + len(states) if reading.layer < 0 else reading.layer
    if not 0 <= layer < len(states):
        raise TrialError(
            f"--layer: {reading.layer}: the model has states 0 (embeddings) to {len(states) - 1}"
        )
    return states[layer][0].double().cpu(), layer


def _pad_tokens(name: str, value: Tensor, tokens: int) -> Tensor:
    """Return an input padded to the sequence's length if it has one entry per token: 0 is text."""
    if not name.endswith("token_type_ids"):
        return value
    padded = value.new_zeros((value.shape[0], tokens))
    padded[:, : value.shape[1]] = value
    return padded


def _pool_states(states: Tensor, pool: Pool) -> Vectors:
    vector: Vectors = (states.mean(dim=0) if pool == "mean" else states[-1]).numpy()
    return vector
