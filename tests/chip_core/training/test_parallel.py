"""Two workers against one: the same curve, the same weights, checkpoints that go either way.

The trainings are in workers.py: CHiP on a tiny LLaVA, three pairs a step, so that one of two
workers has two pairs and the other one. One start of two processes serves all quick cases; the
others are slow because they are many.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.errors import TrialError, UserError
from chip_core.models import loading
from chip_core.models.parts import set_trained
from chip_core.models.shards import whole
from chip_core.training.parallel import Alone, kind_of, parallel
from chip_core.training.policy import Policy
from chip_core.trial import run_trial
from chip_core.workers import Workers, joined


def _helper() -> Any:
    spec = importlib.util.spec_from_file_location("workers", Path(__file__).parent / "workers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workers"] = module
    spec.loader.exec_module(module)
    return module


helper = _helper()
Case = helper.Case

QUICK = [
    Case("ddp", "full"),
    Case("fsdp", "full", "float32", checkpoint_every=10, micro_batch=2),
    Case("fsdp", "lora", micro_batch=2),
    Case("fsdp", "released", micro_batch=2, family="muffin"),
]
SLOW = [
    Case("ddp", "lora"),
    Case("fsdp", "full"),
    Case("fsdp", "lora"),
    Case("ddp", "staged"),
    Case("fsdp", "staged"),
    Case("ddp", "recomputed"),
    Case("fsdp", "recomputed"),
    Case("fsdp", "each_pass"),
    Case("ddp", "full", "float32"),
    Case("ddp", "lora", "float32"),
    Case("fsdp", "lora", "float32", checkpoint_every=10),
    Case("ddp", "bf16", "float32"),
    Case("fsdp", "bf16", "float32"),
    Case("ddp", "full", family="muffin"),
    Case("fsdp", "full", "float32", checkpoint_every=10, family="muffin"),
    Case("fsdp", "lora", family="muffin"),
    Case("fsdp", "staged", family="muffin"),
    Case("fsdp", "recomputed", family="muffin"),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = launched(tmp_path_factory.mktemp("slow"), SLOW)
    here = Case("alone", "lora", "float32", checkpoint_every=10)
    shutil.rmtree(out / here.name)  # the same without checkpoints
    helper.run(here, out, Workers())
    there = [Case(kind, "lora", "float32", resume=here.name) for kind in ("ddp", "fsdp")]
    helper.launch(out, there)
    return out


def launched(out: Path, cases: list[Any]) -> Path:
    torch.set_num_threads(1)
    helper.launch(out, cases)
    for alone in {Case("alone", case.changes, case.dtype, family=case.family) for case in cases}:
        helper.run(alone, out, Workers())
    return out


def compare(out: Path, case: Any) -> None:
    """Every figure of every step as one worker has it, and the weights that come out."""
    # Where the true gradient is 0 (a key's bias), AdamW makes steps of rounding: its weights move
    # by up to lr = 1e-3 a step to either side.
    tolerance, moved = {"float64": (1e-6, 1e-6), "float32": (1e-4, 1e-3)}[case.dtype]
    if case.changes == "bf16":  # which has 8 bits
        tolerance, moved = 2e-3, 1e-2
    alone = Case("alone", case.changes, case.dtype, family=case.family)
    curves = [helper.curve(out, each) for each in (alone, case)]
    assert len(curves[0]) == len(curves[1]) == helper.STEPS
    losses = [[figures["loss"] for figures in curve] for curve in curves]
    assert max(losses[0]) - min(losses[0]) > 0.05  # it does train
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for one, other in zip(*curves, strict=True):
        assert other == pytest.approx(one, rel=100 * tolerance, abs=tolerance)
    weights = [load(out, each) for each in (alone, case)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=0, atol=moved)


def load(out: Path, case: Any) -> dict[str, torch.Tensor]:
    files = sorted((out / case.name / "model").glob("*.safetensors"))
    return {
        f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_two_workers_equal_one(quick: Path, case: Any) -> None:
    compare(quick, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_two_workers_equal_one_in_every_way(slow: Path, case: Any) -> None:
    compare(slow, case)


def test_what_two_saved_one_goes_on_from(quick: Path) -> None:
    there = QUICK[1]
    here = Case("alone", there.changes, there.dtype, resume=there.name)
    trained = helper.run(here, quick, Workers())
    assert "resumed after step 10" in trained.notes[-1]
    compare(quick, here)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_one_saved_two_go_on_from(slow: Path, kind: str) -> None:
    compare(slow, Case(kind, "lora", "float32", resume="alone-lora-float32"))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_gradients_come_together_in_the_last_pass_alone(group: None, kind: str) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    together, batch = prepared(config, kind)
    calls = 0

    def count(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations
        nonlocal calls
        calls += 1
        return allreduce_hook(state, bucket)

    if kind == "ddp":
        together._wrapped.register_comm_hook(None, count)  # type: ignore[attr-defined]
    reference = together.reference()
    known = reference.scores(batch)

    def brought() -> bool:
        if kind == "ddp":
            return calls > 0
        return any(p.grad is not None for p in together._root.parameters())  # type: ignore[attr-defined]

    for last in (False, False, True):
        with together.accumulating(last=last):
            together(batch, known, reference.head).loss.sum().backward()
        assert brought() is last


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_norm_of_a_gradient_is_one_plain_number(group: None, kind: str) -> None:
    """FSDP2's `clip_grad_norm_` returns what looks spread and is whole: nothing is added up again.

    That two workers' norms are one worker's is held above, where every figure is compared.
    """
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    together, batch = prepared(config, kind)
    reference = together.reference()
    together(batch, reference.scores(batch), reference.head).loss.sum().backward()
    # of what is trained here; once spread, parameters are others than those of before
    spread = together._root if kind == "fsdp" else together.policy  # type: ignore[attr-defined]
    trained = [parameter for parameter in spread.parameters() if parameter.grad is not None]
    squares = sum(whole(parameter.grad).double().square().sum() for parameter in trained)
    norm = together.clip(trained, 1e-3)
    assert type(norm) is torch.Tensor and norm.shape == ()
    assert float(norm) == pytest.approx(float(squares) ** 0.5, rel=1e-5)
    after = sum(whole(parameter.grad).double().square().sum() for parameter in trained)
    assert float(after) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def prepared(config: TrialConfig, kind: str) -> tuple[Alone, Any]:
    from chip_core.data.preferences import load_pairs
    from chip_core.models.adapters import attach

    model, processor = loading.load(config.model)
    model = attach(copy.deepcopy(model), config)
    set_trained(model, config)
    policy = Policy(model, config.objective)
    batch = PairEncoder(processor, config, load_pairs(config.data)).batch([0, 1])
    together = parallel(kind, policy, config, Workers(), torch.device("cpu"))  # type: ignore[arg-type]
    return together, batch


def test_who_shares_a_training_and_how() -> None:
    def kind(workers: int, **engine: Any) -> str:
        config = TrialConfig.model_validate({"model": "shapes", "engine": engine})
        return kind_of(config, nn.Linear(1, 1), torch.device("cpu"), Workers(size=workers))

    assert kind(1, parallel="fsdp") == "alone"  # nobody to share with
    assert kind(2) == "ddp"
    assert kind(2, parallel="fsdp") == "fsdp"


def test_a_trial_that_lacks_workers_is_told(tmp_path: Path) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "engine": {"workers_per_trial": 3}})
    with pytest.raises(TrialError, match="engine.workers_per_trial is 3, and this trial has 1"):
        run_trial(config, folder=tmp_path)


def test_torchruns_settings_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT is not"), joined():
        pass
