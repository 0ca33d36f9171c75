"""A model that the first of two workers alone has loaded: trained as one that both have loaded.

The trainings are in workers.py; files hold fp32, so that a training in bf16 converts them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from chip_core.models.loading import has_weights
from chip_core.models.shards import WeightsFromRank0
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers

from .. import families
from .test_parallel import helper, load_weights

Case = helper.Case

CASES = [
    Case("fsdp", "full", "float32", steps=3, loads="all"),
    Case("fsdp", "everywhere", "float32", steps=3, loads="all"),
    Case("fsdp", "bf16_lora", "bfloat16", steps=3, loads="all"),
    Case("fsdp", "full", "float32", steps=3, family="qwen2_5_vl", loads="all"),
    Case("fsdp", "bf16", "bfloat16", steps=3, family="qwen2_5_vl", loads="all"),
]
#: On two machines of two workers each.
HYBRID = [
    Case("hsdp", "full", "float32", steps=3, loads="all"),
    Case("hsdp", "bf16_lora", "bfloat16", steps=3, loads="all"),
    Case("hsdp", "full", "float32", steps=3, family="qwen2_5_vl", loads="all"),
]


def load_on_first_alone(case: Any) -> Any:
    return replace(case, loads="first")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tmp_path_factory.mktemp("first"))
    helper.run_rounds(folder, (2, [*CASES, *map(load_on_first_alone, CASES)]))
    return folder


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tmp_path_factory.mktemp("first-hybrid"))
    helper.run_rounds(folder, (4, [*HYBRID, *map(load_on_first_alone, HYBRID)]))
    return folder


def write_models(folder: Path) -> Path:
    """Write the families' files."""
    for family in ("llava", "qwen2_5_vl"):
        config, processor = families.FAMILIES[family]()
        if family == "qwen2_5_vl":  # as the small ones of the family: the head is the embedding
            config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder / "files" / family)
        processor.save_pretrained(folder / "files" / family)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_curves_and_weights_are_the_same_to_the_bit(out: Path, case: Any) -> None:
    assert_same_to_the_bit(out, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", HYBRID, ids=lambda case: case.name)
def test_of_all_machines_the_first_worker_alone_loads(hybrid: Path, case: Any) -> None:
    assert_same_to_the_bit(hybrid, case)


def assert_same_to_the_bit(out: Path, case: Any) -> None:
    curves = [helper.read_curve(out, each) for each in (case, load_on_first_alone(case))]
    assert len(curves[0]) == case.steps
    assert len({figures["loss"] for figures in curves[0]}) > 1  # it does train
    assert curves[1] == curves[0]
    all_load, first_loads = (load_weights(out, each) for each in (case, load_on_first_alone(case)))
    assert first_loads.keys() == all_load.keys()
    for name, weight in all_load.items():
        assert torch.equal(first_loads[name], weight), name
        assert first_loads[name].dtype == weight.dtype


def test_another_model_than_the_firsts_is_refused() -> None:
    class Second(Workers):
        def gather_results(self, make: Any) -> list[Any]:
            first = nn.Linear(2, 3)
            told = {name: (name, tuple(w.shape), w.dtype) for name, w in first.named_parameters()}
            return [told, make()]

    with torch.device("meta"):
        same, other = nn.Linear(2, 3), nn.Linear(2, 4)
    assert not has_weights(same)
    WeightsFromRank0(same, Second(rank=1, size=2), torch.device("cpu"))
    with pytest.raises(TrialError, match=r"differ from those of worker 0 \(bias, …\)"):
        WeightsFromRank0(other, Second(rank=1, size=2), torch.device("cpu"))
