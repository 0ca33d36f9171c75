"""Where image tokens lie in a row, told without asking the device how many there are.

transformers holds their number against that of image features in each pass: it has the device count
them, and waits. The number is known where the row was made.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

#: What LLaVA's way to find them takes; families with another one keep theirs.
_TAKEN = ["input_ids", "inputs_embeds", "image_features"]


@contextmanager
def counted_on_host(inner: Any, ids: Tensor) -> Iterator[None]:
    """Let a model find its image tokens by their number on the host, which is checked as well.

    Args:
        inner: the part of a model that merges images and text.
        ids: of the row that it is given, on the host.
    """
    own = getattr(inner, "get_placeholder_mask", None)
    if own is None or list(inspect.signature(own).parameters) != _TAKEN:
        yield
        return
    token = inner.config.image_token_id
    tokens = int((ids == token).sum())

    def mask(input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        if tokens * inputs_embeds.shape[-1] != image_features.numel():
            raise ValueError(
                f"the row has {tokens} image tokens, and its images "
                f"{image_features.numel() / inputs_embeds.shape[-1]:g} features"
            )
        return input_ids.eq(token).unsqueeze(-1)

    inner.get_placeholder_mask = mask  # on the instance, over the class's own
    try:
        yield
    finally:
        del inner.get_placeholder_mask
