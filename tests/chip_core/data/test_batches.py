"""Rejected images in batches: epochs, other pairs, void ones counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairBatch, PairEncoder
from chip_core.data.preferences import load_pairs
from chip_core.shapes.processor import build_processor
from chip_core.trial import run_trial

Configured = Callable[..., TrialConfig]


def encode_pairs(config: TrialConfig, *, epoch: int = 0, **changes: Any) -> PairBatch:
    pairs = [dataclasses.replace(pair, **changes) for pair in list(load_pairs(config.data))[:4]]
    return PairEncoder(build_processor(), config, pairs).encode_batch(range(4), epoch)


def get_rejected_pixels(batch: PairBatch) -> torch.Tensor:
    assert batch.rejected_image_prompts is not None
    return batch.rejected_image_prompts.inputs["pixel_values"]


@pytest.mark.parametrize("strategy", ["diffusion", "rotate"])
def test_an_image_is_drawn_anew_each_epoch_where_that_is_configured(
    shapes_config: Configured, strategy: str
) -> None:
    once = shapes_config(rejected_image=strategy, data__limit=4)
    each = shapes_config(
        rejected_image=strategy, rejected_image__redraw="each_epoch", data__limit=4
    )
    assert torch.equal(
        get_rejected_pixels(encode_pairs(once)), get_rejected_pixels(encode_pairs(once, epoch=1))
    )
    assert not torch.equal(
        get_rejected_pixels(encode_pairs(each)), get_rejected_pixels(encode_pairs(each, epoch=1))
    )
    assert torch.equal(
        get_rejected_pixels(encode_pairs(each, epoch=1)),
        get_rejected_pixels(encode_pairs(each, epoch=1)),
    )


def test_random_takes_another_pairs_image(shapes_config: Configured) -> None:
    batch = encode_pairs(shapes_config(rejected_image="random", data__limit=4))
    true = batch.prompts.inputs["pixel_values"]
    for row, image in enumerate(get_rejected_pixels(batch)):
        matches = [place for place in range(4) if torch.equal(image, true[place])]
        assert len(matches) == 1
        assert matches != [row]


def test_void_images_are_counted(shapes_config: Configured) -> None:
    batch = encode_pairs(shapes_config(rejected_image="crop", data__limit=4))
    assert batch.void_count == 4  # 48 pixels on a side, and a window of 320 × 240
    assert batch.to(torch.device("cpu")).void_count == 4
    assert torch.equal(get_rejected_pixels(batch), batch.prompts.inputs["pixel_values"])
    batch = encode_pairs(shapes_config(rejected_image="rotate", data__limit=4))
    assert batch.void_count == 0


def test_given_images_of_another_size(shapes_config: Configured) -> None:
    given = Image.new("L", (20, 70), 200)
    batch = encode_pairs(shapes_config(rejected_image="given", data__limit=4), rejected_image=given)
    assert get_rejected_pixels(batch).shape == batch.prompts.inputs["pixel_values"].shape
    assert batch.void_count == 0


def test_a_training_draws_anew_each_epoch_and_counts(
    shapes_config: Configured, tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {}
    for redraw in ("once", "each_epoch"):
        config = shapes_config(
            rejected_image={"strategy": "crop", "crop": {"share": 0.3}, "redraw": redraw},
            data__limit=4,
            training__epochs=2,
            training__max_steps=None,
        )
        run_trial(config, folder=tmp_path / redraw)
        lines = (tmp_path / redraw / "curves.jsonl").read_text().splitlines()
        figures = [json.loads(line)["figures"] for line in lines]
        assert len(figures) == 2
        assert all(0 <= figure["rejected_image/void"] < 1 for figure in figures)
        losses[redraw] = [figure["loss"] for figure in figures]
    assert losses["once"] != losses["each_epoch"]
