"""Code that comes with a model is run by an explicit key alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError

CODE = """
from pathlib import Path
from transformers import LlavaConfig, LlavaForConditionalGeneration
Path({mark!r}).touch()
class OwnConfig(LlavaConfig):
    model_type = "own_llava"
class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A model with code of its own, which leaves a mark where it is run."""
    folder = tmp_path / "own"
    shutil.copytree(MODEL_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own_llava",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForImageTextToText": "modeling_own.OwnModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return folder


def test_without_the_key_nothing_of_it_is_run(own_model: Path) -> None:
    model = ModelConfig(path=str(own_model))
    said = loading.find_model_problem(model)
    assert said == (
        f"{own_model} has its own code for model_type own_llava: read it, and write "
        "model.trust_remote_code: true to run it"
    )
    with pytest.raises(TrialError, match="has its own code"):
        loading.load(model)
    assert not (own_model.parent / "ran").exists()


def test_a_known_family_never_runs_code_without_the_key(own_model: Path) -> None:
    config = json.loads((own_model / "config.json").read_text())
    (own_model / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    loaded, _ = loading.load(ModelConfig(path=str(own_model)))
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    assert not (own_model.parent / "ran").exists()


def test_with_the_key_its_model_is_loaded(
    own_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    shipped, _ = loading.load(ModelConfig(path="shapes"))
    for file in own_model.glob("*.safetensors"):
        file.unlink()
    save_file(shipped.state_dict(), own_model / "model.safetensors", metadata={"format": "pt"})
    model = ModelConfig(path=str(own_model), trust_remote_code=True)
    assert loading.find_model_problem(model) is None
    loaded, _ = loading.load(model)
    assert type(loaded).__name__ == "OwnModel"
    assert (own_model.parent / "ran").exists()


def test_its_code_is_part_of_its_identity(own_model: Path) -> None:
    model = ModelConfig(path=str(own_model), trust_remote_code=True)
    before = loading.identity(model)
    (own_model / "modeling_own.py").write_text("x = 1")
    assert loading.identity(model) != before
    closed = ModelConfig(path=str(own_model))
    assert "code" not in loading.identity(closed)


def test_a_hub_name_is_taken_at_one_commit_alone() -> None:
    named = ModelConfig(path="owner/name", trust_remote_code=True)
    assert "write its 40 digits" in str(loading.find_model_problem(named))
    branch = named.model_copy(update={"revision": "main"})
    assert "write its 40 digits" in str(loading.find_model_problem(branch))
    commit = named.model_copy(update={"revision": "0123456789" * 4})
    assert loading.find_model_problem(commit) is None
    assert loading.identity(commit) != loading.identity(
        commit.model_copy(update={"trust_remote_code": False})
    )


def test_code_of_another_place_is_refused(own_model: Path) -> None:
    file = own_model / "tokenizer_config.json"
    held = json.loads(file.read_text())
    held["auto_map"] = {"AutoTokenizer": [None, "stranger/code--tokens.Own"]}
    file.write_text(json.dumps(held))
    with pytest.raises(TrialError, match=r"refers to code from another place \(stranger/code\)"):
        loading.load(ModelConfig(path=str(own_model), trust_remote_code=True))
    assert not (own_model.parent / "ran").exists()
