"""A trained model's folder for serving: of every kind of training, and what cannot be made."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.export import export_model
from chip_core.models import loading
from chip_core.trial import run_trial
from chip_core.utils.errors import UserError

Configured = Callable[..., TrialConfig]
KINDS = {
    "full": {},
    "staged": {"vision_encoder": "staged"},
    "lora": {"language_model": "lora", "projector": "frozen"},
    "lora, staged": {"language_model": "lora", "vision_encoder": "staged"},
}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def trials_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


def train_once(trials_folder: Path, shapes_config: Configured, kind: str) -> Path:
    folder = trials_folder / kind
    if not folder.exists():
        config = shapes_config(training__batch_size=2, optimizer__lr=1e-2, **KINDS[kind])
        run_trial(config, folder=folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_is_one_plain_model_that_answers_alike(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path, kind: str
) -> None:
    folder = train_once(trials_folder, shapes_config, kind)
    said = export_model(folder, tmp_path / "deep" / "out", merge=True)
    out = tmp_path / "deep" / "out"
    assert not {path.name for path in out.iterdir()} & {*ADAPTER, "trained_parts.safetensors"}
    assert list(out.parent.iterdir()) == [out]
    assert said == [
        "the adapter is merged: a plain Hugging Face folder"
        if "lora" in kind
        else "nothing to merge: the model was trained without an adapter"
    ]
    base = ModelConfig(path="shapes")
    plain = loading.load(ModelConfig(path=str(out)))[0].state_dict()
    before = loading.load(base)[0].state_dict()
    assert plain.keys() == before.keys()
    towers = [name for name in plain if "vision_tower" in name]
    moved = any(not torch.equal(plain[name], before[name]) for name in towers)
    assert moved == ("staged" in kind)
    whole, processor = loading.load(base, trained=folder / "model")
    one, _ = loading.load(ModelConfig(path=str(out)))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    )
    from chip_core.shapes import world

    inputs = processor(
        images=[world.draw_scene(world.make_scene("train", 0))], text=[text], return_tensors="pt"
    )
    with torch.no_grad():
        assert torch.allclose(one(**inputs).logits, whole(**inputs).logits, atol=1e-4)


def test_without_merging_an_adapter_stays_one(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path
) -> None:
    folder = train_once(trials_folder, shapes_config, "lora, staged")
    said = export_model(folder, tmp_path / "out")
    assert said[0].startswith("a PEFT adapter of ")
    assert said[1].startswith("parts trained in addition to it are in trained_parts.safetensors")
    for name in (*ADAPTER, "trained_parts.safetensors"):
        original = (folder / "model" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == original
    assert "vision_tower" in " ".join(load_file(tmp_path / "out" / "trained_parts.safetensors"))


def test_into_the_folder_one_stands_in(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train_once(trials_folder, shapes_config, "full")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_model(folder, Path("."))
    assert (tmp_path / "here" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_cannot_be_exported_is_told(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path
) -> None:
    folder = train_once(trials_folder, shapes_config, "full")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not empty: name a new folder"):
        export_model(folder, tmp_path / "file")
    with pytest.raises(UserError, match=r"file/x: cannot be exported to \(Not a directory\)"):
        export_model(folder, tmp_path / "file" / "x")
    with pytest.raises(UserError, match="is in the trained model's own folder: name another"):
        export_model(folder, folder / "model" / "out")
    with pytest.raises(UserError, match="holds no trained model: its weights were removed"):
        export_model(tmp_path, tmp_path / "out")


def test_an_adapter_is_merged_where_it_belongs_or_not_at_all(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path
) -> None:
    whole = train_once(trials_folder, shapes_config, "lora, staged")
    export_model(whole, tmp_path / "right", merge=True)

    def named(into: str, file: str, change: Callable[[str], str]) -> Path:
        folder = tmp_path / into
        shutil.copytree(whole, folder)
        weights = load_file(folder / "model" / file)
        save_file({change(n): v for n, v in weights.items()}, folder / "model" / file)
        (folder / "trained.json").unlink()  # it would tell that the file is another
        return folder

    for number, (file, change) in enumerate(
        [
            ("adapter_model.safetensors", lambda name: f"module.{name}"),
            ("trained_parts.safetensors", lambda name: name.removeprefix("model.")),
        ]
    ):
        export_model(named(f"{number}", file, change), tmp_path / f"{number}-out", merge=True)
        merged = (tmp_path / f"{number}-out" / "model.safetensors").read_bytes()
        assert merged == (tmp_path / "right" / "model.safetensors").read_bytes()
    for number, (file, said) in enumerate(
        [
            # 4 layers × (q k v o, gate up down), two weights each
            ("adapter_model.safetensors", "16 of its 56 weights do not exist in it"),
            ("trained_parts.safetensors", "12 of its .* weights do not exist in it"),
        ]
    ):
        folder = named(f"bad-{number}", file, lambda name: re.sub("([qk])_proj", r"\1_lin", name))
        with pytest.raises(UserError, match=f"base model is needed to merge: .*{file}.*{said}"):
            export_model(folder, tmp_path / "out", merge=True)
        assert not (tmp_path / "out").exists()


def test_a_base_model_that_is_gone_is_told(
    trials_folder: Path, shapes_config: Configured, tmp_path: Path
) -> None:
    folder = tmp_path / "trial"
    shutil.copytree(train_once(trials_folder, shapes_config, "lora"), folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"path": "shapes"', '"path": "./gone"'))
    with pytest.raises(UserError, match="the base model is needed to merge: no folder gone"):
        export_model(folder, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()
