"""Models that exist, asked without a study: a folder, an adapter, what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.evaluate import evaluate_model
from chip_core.models import loading
from chip_core.models.adapters import ADAPTER_WEIGHTS
from chip_core.shapes import MODEL_FOLDER
from chip_core.trial import run_trial
from chip_core.utils.errors import ConfigError, TrialError, UserError
from chip_core.utils.files import read_records

from . import families

Configured = Callable[..., TrialConfig]
ASKED = [BenchmarkConfig.model_validate({"name": "shapes", "limit": 8})]


@pytest.mark.parametrize("language_model", ["full", "lora"])
def test_a_trained_folder_is_scored_as_its_trial_was(
    shapes_config: Configured, tmp_path: Path, language_model: str
) -> None:
    config = shapes_config(
        language_model=language_model,
        optimizer__lr=1e-3,
        benchmarks={"report": [{"name": "shapes", "limit": 8}]},
    )
    trained = run_trial(config, folder=tmp_path / "trial")
    found = evaluate_model(
        str(tmp_path / "trial" / "model"), ASKED, folder=tmp_path / "out", data_paths=DataPaths()
    )
    assert found["shapes"].metrics == trained.metrics
    base = evaluate_model("shapes", ASKED, folder=tmp_path / "base", data_paths=DataPaths())
    assert base["shapes"].metrics != trained.metrics  # so it is the trained one that answered
    # again, into the same folder: nothing is answered again; another model's answers do not count
    again = evaluate_model(
        str(tmp_path / "trial" / "model"), ASKED, folder=tmp_path / "out", data_paths=DataPaths()
    )
    assert again["shapes"].metadata["taken_over"] == 8
    other = evaluate_model("shapes", ASKED, folder=tmp_path / "out", data_paths=DataPaths())
    assert "taken_over" not in other["shapes"].metadata


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model: give it with --base"):
        evaluate_model(str(tmp_path), ASKED, folder=tmp_path / "out", data_paths=DataPaths())
    with pytest.raises(UserError, match="--base: shapes holds no adapter"):
        evaluate_model("shapes", ASKED, folder=tmp_path / "out", data_paths=DataPaths(), base="x")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the embedded model's decoder and its head, as PEFT writes one."""
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = loading.load(ModelConfig(path="shapes"))
    settings = peft.LoraConfig(r=2, target_modules=r"(.*language_model.*_proj|lm_head)")
    adapted = peft.get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def copy_with_names(adapter: Path, into: Path, change: Callable[[str], str | None]) -> Path:
    """Copy an adapter with its weights named otherwise, or left out."""
    shutil.copytree(adapter, into)
    weights = load_file(into / ADAPTER_WEIGHTS)
    named = {change(name): weights[name] for name in weights}
    save_file({n: v for n, v in named.items() if n}, into / ADAPTER_WEIGHTS, {"format": "pt"})
    return into


def test_an_adapter_with_other_names_is_scored_as_itself(adapter: Path, tmp_path: Path) -> None:
    def answers(model: Path | str) -> list[str]:
        folder = tmp_path / f"{Path(model).name}-answers"
        found = evaluate_model(str(model), ASKED, folder=folder, data_paths=DataPaths())
        return [row["response"] for row in read_records(folder / found["shapes"].responses)]

    def before_4_52(name: str) -> str:
        name = name.replace(".model.language_model.", ".language_model.model.")
        return name.replace(".lm_head.", ".language_model.lm_head.")

    right = answers(adapter)
    assert right != answers("shapes")
    assert (
        answers(copy_with_names(adapter, tmp_path / "ddp", lambda name: f"module.{name}")) == right
    )
    assert answers(copy_with_names(adapter, tmp_path / "old", before_4_52)) == right


def test_an_adapter_is_not_scored_as_its_base(adapter: Path, tmp_path: Path) -> None:
    # 4 layers × (q k v o, gate up down) and the head: 29 layers
    missing = copy_with_names(
        adapter, tmp_path / "missing", lambda name: None if "layers.2.mlp.up" in name else name
    )
    with pytest.raises(
        TrialError, match="1 of the 29 layers that it adapts get none, .*incomplete"
    ):
        evaluate_model(str(missing), ASKED, folder=tmp_path / "out", data_paths=DataPaths())
    strange = copy_with_names(
        adapter, tmp_path / "strange", lambda name: name.replace("_proj", "_lin")
    )
    with pytest.raises(TrialError, match="56 of its 58 weights do not exist in it .*--base"):
        evaluate_model(str(strange), ASKED, folder=tmp_path / "out", data_paths=DataPaths())


def test_another_base_than_an_adapter_names_is_told(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(MODEL_FOLDER, tmp_path / "copy")

    def score(base: str | None, of: Path = adapter) -> None:
        evaluate_model(str(of), ASKED, folder=tmp_path / "out", data_paths=DataPaths(), base=base)

    score("shapes")  # the same one, by another name
    assert not caplog.text
    score(str(tmp_path / "copy"))
    assert (
        f"adapter_config.json names {MODEL_FOLDER} as its base model, but --base applies"
        in caplog.text
    )
    gone = copy_with_names(adapter, tmp_path / "gone", lambda name: name)
    said = json.loads((gone / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = "./nowhere"
    (gone / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(
        ConfigError, match=r"gone: its base model: no folder nowhere: .* with --base"
    ):
        score(None, gone)
    score("shapes", gone)


def test_a_base_of_another_size_is_refused(adapter: Path, tmp_path: Path) -> None:
    model, processor = families.build("llava")
    model.save_pretrained(tmp_path / "small")
    processor.save_pretrained(tmp_path / "small")
    with pytest.raises(TrialError, match=r"layers|another shape .*--base"):
        evaluate_model(
            str(adapter),
            ASKED,
            folder=tmp_path,
            data_paths=DataPaths(),
            base=str(tmp_path / "small"),
        )


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    asked = [BenchmarkConfig(name="pope"), BenchmarkConfig(name="popee")]
    with pytest.raises(ConfigError) as raised:
        evaluate_model("./none", asked, folder=tmp_path / "out", data_paths=DataPaths())
    model, pope, popee = raised.value.problems
    assert model.startswith("./none: no folder none")
    assert pope.startswith("pope: its questions are in files")
    assert popee.startswith("popee: unknown benchmark 'popee'")
    assert not (tmp_path / "out").exists()
