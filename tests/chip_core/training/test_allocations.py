"""No tensor of all positions and the whole vocabulary exists on the way of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.models.adapters import attach_adapters
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.training.policy import LiveReference, Policy

from .. import families
from ..naive_forward import compute_logits

VOCABULARY = 997  # no other size in the model is


class RowWatch(TorchDispatchMode):
    """Notes the most rows that any tensor with a vocabulary's last dimension has."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[-1] == VOCABULARY:
                self.most = max(self.most, value.numel() // VOCABULARY)
        return made


def make_model() -> tuple[Any, Any]:
    config, processor = families.make_llava()
    config.text_config.vocab_size = VOCABULARY
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return made.eval(), processor


@pytest.mark.parametrize("language_model", ["full", "lora"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("chunk", [34, 512])
def test_logits_are_of_a_chunk_of_response_positions(
    language_model: str, shared: bool, chunk: int
) -> None:
    config = TrialConfig.model_validate({"model": "x", "language_model": language_model})
    made, processor = make_model()
    hidden = made.config.text_config.hidden_size
    made = attach_adapters(made, config)
    set_trained(made, config)
    batch = PairEncoder(processor, config, families.make_pairs()).encode_batch(range(3))
    of_responses = [batch.chosen, batch.rejected, batch.rejected_image]
    positions = sum(int(part.mask.sum()) for part in of_responses if part is not None)
    assert chunk > hidden  # the head's weight, transposed, is (hidden, vocabulary)
    assert positions > 34  # so that the smaller chunk cuts something
    policy = Policy(made, config.objective, logits_chunk=chunk, prefix_sharing=shared)
    reference = LiveReference(policy, config)
    with use_packed_attention(made), RowWatch() as watch:
        policy(batch, reference.scores(batch), reference.head).loss.mean().backward()
    assert watch.most == min(chunk, positions)


def test_the_watch_sees_whole_logits() -> None:
    made, processor = make_model()
    config = TrialConfig.model_validate({"model": "x"})
    batch = PairEncoder(processor, config, families.make_pairs()).encode_batch(range(3))
    with RowWatch() as watch:
        whole = compute_logits(made, batch)
    assert watch.most == whole.shape[0] * whole.shape[1] > 34
