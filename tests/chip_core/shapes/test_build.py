"""How the embedded world's model is made: a few steps of it, and what it writes."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch

from chip_core.config.trial import ModelConfig
from chip_core.evaluation.inference import generate
from chip_core.evaluation.task import Item, Picture
from chip_core.models import loading
from chip_core.shapes import MODEL_FOLDER, build, world


def test_it_builds_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "VISION_STEPS", 3)
    monkeypatch.setattr(build, "CAPTION_STEPS", 3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    weights = []
    for name in ("one", "two"):
        build.build(tmp_path / name)
        model, _ = loading.load(ModelConfig(path=str(tmp_path / name)))
        weights.append(model.state_dict())
    torch.set_rng_state(state)
    torch.set_num_threads(threads)
    shipped, _ = loading.load(ModelConfig(path="shapes"))
    expected = {name: tensor.shape for name, tensor in shipped.state_dict().items()}
    assert {name: tensor.shape for name, tensor in weights[0].items()} == expected
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in expected)
    said = capsys.readouterr().out
    assert "eyes: step 3/3  loss" in said
    assert "habit: step 3/3  loss" in said


def test_it_says_what_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "build", lambda out: shutil.copytree(MODEL_FOLDER, out))
    monkeypatch.setattr(build, "SPLIT_SIZES", {"select": 3, "test": 4})
    assert build.main([str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("  test (4 images, ")
    assert "chair_i" in lines[-1]


def test_its_answers_are_those_of_evaluation() -> None:
    scenes = [world.make_scene("test", index) for index in range(6)]
    items = [
        Item(
            id=scene.id,
            pictures=(Picture(key=scene.id, read=functools.partial(world.draw_scene, scene)),),
            prompt=world.get_question("test", scene.index),
        )
        for scene in scenes
    ]
    model, processor = loading.load(ModelConfig(path="shapes"))
    expected = generate(model, processor, items, max_new_tokens=32)
    assert build.generate_captions(model, processor, scenes, batch_size=4) == expected
