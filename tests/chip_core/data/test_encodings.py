"""Encoded prompts are kept up to a bound, and never another model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chip_core.data.encodings import ENTRY_OVERHEAD, EncodingCache, ProcessEncodings


def encoder(made: list[str], name: str, floats: int) -> Callable[[], Sequence[Tensor]]:
    def encode() -> Sequence[Tensor]:
        made.append(name)
        return [torch.zeros(floats)]

    return encode


def test_what_fits_is_encoded_once_and_the_rest_each_time() -> None:
    made: list[str] = []
    encodings = EncodingCache(2 * (ENTRY_OVERHEAD + 400))  # of two entries of 100 numbers in fp32
    for _ in range(2):
        for name in ("a", "b", "c"):
            encodings.get(name, encoder(made, name, 100), lambda tensors: tensors)
    assert made == ["a", "b", "c", "c"]


def test_nothing_is_kept_before_it_is_asked_for() -> None:
    kept = ProcessEncodings()
    assert kept.for_model("model") is None
    kept.enable()
    assert kept.for_model("model") is kept.for_model("model") is not None
    kept.disable()
    assert kept.for_model("model") is None


def test_those_of_another_model_are_dropped() -> None:
    kept = ProcessEncodings()
    kept.enable()
    first = kept.for_model("model")
    assert kept.for_model("other") is not first
    assert kept.for_model("model") is not first
