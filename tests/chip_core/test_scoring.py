"""Models that exist, asked without a study: a folder, an adapter, what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.benchmark_config import BenchmarkConfig
from chip_core.config import TrialConfig
from chip_core.errors import ConfigError, UserError
from chip_core.places import Places
from chip_core.scoring import evaluate_model
from chip_core.trial import run_trial

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
        str(tmp_path / "trial" / "model"), ASKED, folder=tmp_path / "out", places=Places()
    )
    assert found["shapes"].metrics == trained.metrics
    base = evaluate_model("shapes", ASKED, folder=tmp_path / "base", places=Places())
    assert base["shapes"].metrics != trained.metrics  # so it is the trained one that answered
    # again, into the same folder: nothing is answered again; another model's answers do not count
    again = evaluate_model(
        str(tmp_path / "trial" / "model"), ASKED, folder=tmp_path / "out", places=Places()
    )
    assert again["shapes"].how["taken_over"] == 8
    other = evaluate_model("shapes", ASKED, folder=tmp_path / "out", places=Places())
    assert "taken_over" not in other["shapes"].how


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model: give it by --base"):
        evaluate_model(str(tmp_path), ASKED, folder=tmp_path / "out", places=Places())
    with pytest.raises(UserError, match="--base: shapes holds no adapter"):
        evaluate_model("shapes", ASKED, folder=tmp_path / "out", places=Places(), base="x")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    asked = [BenchmarkConfig(name="pope"), BenchmarkConfig(name="popee")]
    with pytest.raises(ConfigError) as raised:
        evaluate_model("./none", asked, folder=tmp_path / "out", places=Places())
    model, pope, popee = raised.value.problems
    assert model.startswith("./none: no folder none")
    assert pope.startswith("pope: its questions are in files")
    assert popee.startswith("popee: unknown benchmark 'popee'")
    assert not (tmp_path / "out").exists()
