"""Two workers against one: the same curve, the same weights, checkpoints that go either way.

The trainings are in workers.py: CHiP on a tiny LLaVA, three pairs a step, so that one of two
workers has two pairs and the other one. One start of a program serves all quick cases; the others
are slow because they are many.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.models import loading
from chip_core.models.memory import check_memory
from chip_core.models.parts import set_trained
from chip_core.models.shards import gather_whole
from chip_core.training.checkpoint import find_checkpoint_problem
from chip_core.training.parallel import Compute, SingleProcessStrategy, choose_parallelism
from chip_core.training.policy import Policy
from chip_core.training.trainer import make_strategy
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.workers import Workers, join_workers


def _import_workers() -> Any:
    spec = importlib.util.spec_from_file_location("workers", Path(__file__).parent / "workers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workers"] = module
    spec.loader.exec_module(module)
    return module


helper = _import_workers()
Case = helper.Case

#: As many steps as it takes to train, and a checkpoint in the middle: what goes wrong between
#: workers does so at once.
QUICK = [
    Case("ddp", "full", steps=6),
    Case("fsdp", "full", "float32", checkpoint_every=3, micro_batch=2, steps=6),
    Case("fsdp", "lora", checkpoint_every=4, micro_batch=2, separate_disks=True, steps=8),
    Case("fsdp", "everywhere", checkpoint_every=3, micro_batch=2, steps=6),
    Case("fsdp", "released", micro_batch=2, family="muffin", steps=6),
    Case("ddp", "mpo", steps=6),
    Case("fsdp", "dama", micro_batch=2, steps=6),
    Case("fsdp", "bf16_lora", "bfloat16", checkpoint_every=4, micro_batch=2, steps=8),
    Case("ddp", "bf16", "bfloat16", steps=6),
]
#: What three workers go on with from the checkpoint of two.
BY_THREE = Case("fsdp", "full", "float32", resume=QUICK[1].name, steps=6)
SLOW = [
    *(Case(kind, preset) for kind in ("ddp", "fsdp") for preset in ("aot", "aot_unpaired", "sft")),
    Case("fsdp", "mpo"),
    Case("ddp", "dama"),
    Case("ddp", "lora"),
    Case("ddp", "everywhere"),
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
    Case("ddp", "bf16_lora", "bfloat16"),
    Case("fsdp", "bf16", "bfloat16"),
    Case("ddp", "bf16_gradients", "bfloat16"),
    Case("fsdp", "bf16_gradients", "bfloat16"),
    Case("ddp", "bf16_staged", "bfloat16"),
    Case("fsdp", "bf16_staged", "bfloat16"),
    Case("ddp", "full", family="muffin"),
    Case("fsdp", "full", "float32", checkpoint_every=10, family="muffin"),
    Case("fsdp", "lora", family="muffin"),
    Case("fsdp", "staged", family="muffin"),
    Case("fsdp", "recomputed", family="muffin"),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_cases(tmp_path_factory.mktemp("quick"), QUICK, (3, [BY_THREE]))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = run_cases(tmp_path_factory.mktemp("slow"), SLOW)
    here = Case("single", "lora", "float32", checkpoint_every=10)
    shutil.rmtree(out / here.name)  # the same without checkpoints
    helper.run_case(here, out, Workers())
    there = [Case(kind, "lora", "float32", resume=here.name) for kind in ("ddp", "fsdp")]
    helper.run_rounds(out, (2, there))
    return out


def run_cases(out: Path, cases: list[Any], *more: tuple[int, list[Any]], workers: int = 2) -> Path:
    """Train every case by some workers and by one, and what is to be trained by others."""
    torch.set_num_threads(1)
    helper.run_rounds(out, (workers, cases), *more)
    for one in {to_single_case(case) for case in cases}:
        helper.run_case(one, out, Workers())
    return out


def to_single_case(case: Any) -> Any:
    return Case("single", case.changes, case.dtype, family=case.family, steps=case.steps)


def assert_same_training(out: Path, case: Any) -> None:
    """Compare every step's figures with one worker's, and the weights that come out."""
    # Where the true gradient is 0 (a key's bias), AdamW makes steps of rounding: its weights move
    # by up to lr = 1e-3 a step to either side.
    tolerance, moved = {
        "float64": (1e-6, 1e-6),
        "float32": (1e-4, 1e-3),
        "bfloat16": (2e-3, 1e-2),  # which has 8 bits
    }[case.dtype]
    both = to_single_case(case), case
    curves = [helper.read_curve(out, each) for each in both]
    assert len(curves[0]) == len(curves[1]) == case.steps
    losses = [[figures["loss"] for figures in curve] for curve in curves]
    assert max(losses[0]) - min(losses[0]) > 0.05  # it does train
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for one, other in zip(*curves, strict=True):
        if case.dtype == "bfloat16":  # of which pair's margin rounding decides the sign
            other["reward/accuracy"] = one["reward/accuracy"]
        assert other == pytest.approx(one, rel=100 * tolerance, abs=tolerance)
    weights = [load_weights(out, each) for each in both]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=0, atol=moved)


def load_weights(out: Path, case: Any) -> dict[str, torch.Tensor]:
    files = sorted((out / case.name / "model").glob("*.safetensors"))
    return {
        f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_two_workers_equal_one(quick: Path, case: Any) -> None:
    assert_same_training(quick, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_two_workers_equal_one_in_every_way(slow: Path, case: Any) -> None:
    assert_same_training(slow, case)


def assert_one_worker_resumes(out: Path, there: Any) -> None:
    """Check that one worker goes on from what a case left."""
    here = Case("single", there.changes, there.dtype, resume=there.name, steps=there.steps)
    trained = helper.run_case(here, out, Workers())
    assert f"resumed after step {there.checkpoint_every} from" in trained.notes[-1]
    assert_same_training(out, here)


def test_what_two_saved_one_goes_on_from(quick: Path) -> None:
    assert_one_worker_resumes(quick, QUICK[1])


def test_what_two_saved_in_bf16_one_goes_on_from(quick: Path) -> None:
    (there,) = (case for case in QUICK if case.changes == "bf16_lora")
    assert_one_worker_resumes(quick, there)


def test_what_two_saved_three_go_on_from(quick: Path) -> None:
    there = QUICK[1]
    before = there.checkpoint_every
    assert [figures["loss"] for figures in helper.read_curve(quick, BY_THREE)[:before]] == [
        figures["loss"] for figures in helper.read_curve(quick, there)[:before]
    ]
    assert_same_training(quick, BY_THREE)


def test_each_worker_writes_the_part_that_it_holds(quick: Path) -> None:
    (left,) = (quick / QUICK[1].name / "checkpoints").iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["manifest.json", "shards", "state.pt"]
    shards = sorted((left / "shards").iterdir())
    assert [path.suffix for path in shards] == [".safetensors"] * 2
    # Of 2 workers each has half of every tensor's rows, one row more at most.
    tensors = [sum(value.nbytes for value in load_file(path).values()) for path in shards]
    assert max(tensors) < 0.52 * sum(tensors)
    assert (left / "state.pt").stat().st_size < sum(tensors) / 10


def test_workers_on_machines_of_their_own_leave_one_checkpoint_together(quick: Path) -> None:
    """Each machine's part goes to the storage; from there all of it comes to whoever goes on."""
    there = QUICK[2]
    (first,) = (quick / there.name / "checkpoints").iterdir()
    (second,) = (quick / "elsewhere" / there.name / "checkpoints").iterdir()
    assert [path.name for path in second.iterdir()] == ["shards"]
    config = helper.make_config(there)
    (alone,) = (path.name for path in (second / "shards").iterdir())
    assert find_checkpoint_problem(first, config) == f"shards/{alone} is missing"
    shutil.copytree(second, first, dirs_exist_ok=True)
    assert find_checkpoint_problem(first, config) is None
    assert_one_worker_resumes(quick, there)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_one_saved_two_go_on_from(slow: Path, kind: str) -> None:
    assert_same_training(slow, Case(kind, "lora", "float32", resume="single-lora-float32"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_gradients_are_reduced_in_the_last_pass_alone(process_group: None, kind: str) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    strategy, batch = prepare_strategy(config, kind)
    calls = 0

    def count(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations
        nonlocal calls
        calls += 1
        return allreduce_hook(state, bucket)

    if kind == "ddp":
        strategy._wrapped.register_comm_hook(None, count)  # type: ignore[attr-defined]
    reference = strategy.reference()
    known = reference.scores(batch)

    def brought() -> bool:
        if kind == "ddp":
            return calls > 0
        return any(p.grad is not None for p in strategy._root.parameters())  # type: ignore[attr-defined]

    for last in (False, False, True):
        with strategy.accumulate(last=last):
            strategy(batch, known, reference.head).loss.sum().backward()
        assert brought() is last


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_the_norm_of_a_gradient_is_one_plain_number(process_group: None, kind: str) -> None:
    """FSDP2's `clip_grad_norm_` returns what looks spread and is whole: nothing is added up again.

    That two workers' norms are one worker's is held above, where every figure is compared.
    """
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    strategy, batch = prepare_strategy(config, kind)
    reference = strategy.reference()
    strategy(batch, reference.scores(batch), reference.head).loss.sum().backward()
    # of what is trained here; once spread, parameters are others than those of before
    spread = strategy._root if kind != "ddp" else strategy.policy  # type: ignore[attr-defined]
    trained = [parameter for parameter in spread.parameters() if parameter.grad is not None]
    squares = sum(gather_whole(parameter.grad).double().square().sum() for parameter in trained)
    norm = strategy.clip_grad_norm(trained, 1e-3)
    assert type(norm) is torch.Tensor and norm.shape == ()
    assert float(norm) == pytest.approx(float(squares) ** 0.5, rel=1e-5)
    after = sum(gather_whole(parameter.grad).double().square().sum() for parameter in trained)
    assert float(after) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def prepare_strategy(config: TrialConfig, kind: str) -> tuple[SingleProcessStrategy, Any]:
    from chip_core.data.preferences import load_pairs
    from chip_core.models.adapters import attach_adapters

    model, processor = loading.load(config.model)
    model = attach_adapters(copy.deepcopy(model), config)
    set_trained(model, config)
    policy = Policy(model, config.objective)
    batch = PairEncoder(processor, config, load_pairs(config.data)).encode_batch([0, 1])
    strategy = make_strategy(policy, config, Compute(parallelism=kind))  # type: ignore[arg-type]
    return strategy, batch


def test_the_parallelism_follows_from_the_workers() -> None:
    def kind(workers: int, **engine: Any) -> str:
        config = TrialConfig.model_validate({"model": "shapes", "engine": engine})
        return choose_parallelism(
            config, nn.Linear(1, 1), torch.device("cpu"), Workers(size=workers)
        )

    assert kind(1, parallel="fsdp") == "single"  # nobody to share with
    assert kind(2) == "ddp"
    assert kind(2, parallel="fsdp") == "fsdp"


def test_weights_in_four_bits_are_never_spread() -> None:
    """Nothing is asked of the GPU, which is not there: what fits is not the question."""
    config = TrialConfig.model_validate(
        {"model": {"path": "shapes", "quantize": "nf4"}, "language_model": "lora"}
    )
    cuda, two = torch.device("cuda"), Workers(size=2)
    assert choose_parallelism(config, nn.Linear(1, 1), cuda, two) == "ddp"
    with pytest.raises(TrialError) as told:
        check_memory(2**40, 2**30, config)
    assert "fsdp" not in str(told.value)


def test_a_trial_that_lacks_workers_is_told(tmp_path: Path) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "engine": {"workers_per_trial": 3}})
    with pytest.raises(TrialError, match="engine.workers_per_trial is 3, but this trial has 1"):
        run_trial(config, folder=tmp_path)


def test_torchruns_settings_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT is not"), join_workers():
        pass
