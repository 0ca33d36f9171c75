"""Pixels are Pillow's, whatever else is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.models.processing import load_processor

from .. import families

CONFIG = TrialConfig.model_validate({"model": "x"})


def get_pixels(processor: Any) -> torch.Tensor:
    batch = PairEncoder(processor, CONFIG, families.make_pairs()).encode_batch(range(3))
    return batch.prompts.inputs["pixel_values"]


class TorchvisionBackend:
    """Bears the name of transformers' own, which is there with torchvision alone."""


# Those that transformers loads whole; the others are put together here, by Pillow.
@pytest.mark.parametrize("family", ["idefics3", "llava", "llava_next"])
def test_an_image_processor_that_resizes_by_torchvision_is_put_aside(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = families.build(family)
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    own = type(processor.image_processor)
    expected = get_pixels(load_processor(str(tmp_path)))

    class Torchvisions(TorchvisionBackend, own):  # type: ignore[misc, valid-type]
        def preprocess(self, *given: Any, **options: Any) -> Any:
            made = super().preprocess(*given, **options)
            made["pixel_values"] = made["pixel_values"] + 1e-3
            return made

    real = transformers.AutoProcessor.from_pretrained

    def with_torchvision(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        found.image_processor.__class__ = Torchvisions
        assert not torch.equal(get_pixels(found), expected)
        return found

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", with_torchvision)
    found = load_processor(str(tmp_path))
    assert not isinstance(found.image_processor, TorchvisionBackend)
    assert torch.equal(get_pixels(found), expected)
