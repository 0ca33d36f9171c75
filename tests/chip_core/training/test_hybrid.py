"""Hybrid sharding: two machines of two workers each against one worker.

The trainings are in workers.py: CHiP, three pairs a step, so that one of the four workers has none.
What a worker is told of its machine, torchrun's GROUP_RANK, is all that the machines are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from chip_core.config.trial import TrialConfig
from chip_core.models.shards import get_shard_group
from chip_core.training import fsdp
from chip_core.training.parallel import (
    Compute,
    Parallelism,
    choose_parallelism,
    count_weight_shards,
    require_equal_machines,
)
from chip_core.training.trainer import _describe_sharding
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import BARRIER_TIMEOUT, Workers

from .test_parallel import (
    assert_one_worker_resumes,
    assert_same_training,
    helper,
    prepare_strategy,
    run_cases,
    to_single_case,
)

Case = helper.Case

QUICK = [
    Case("hsdp", "full", "float32", checkpoint_every=3, micro_batch=2, steps=6),
    Case("hsdp", "bf16_lora", "bfloat16", checkpoint_every=4, micro_batch=2, steps=8),
]
#: What two workers of one machine go on with from the checkpoint of two machines.
BY_ONE_MACHINE = Case("fsdp", "full", "float32", resume=QUICK[0].name, steps=6)
SLOW = [
    Case("hsdp", "full", steps=8),
    Case("hsdp", "lora", checkpoint_every=4, steps=8),
    Case("hsdp", "everywhere", steps=6),
    Case("hsdp", "staged"),
    Case("hsdp", "recomputed", steps=8),
    Case("hsdp", "each_pass", steps=8),
    Case("hsdp", "released", micro_batch=2, family="muffin", steps=6),
    *(Case("hsdp", preset) for preset in ("aot", "aot_unpaired", "sft")),
    Case("hsdp", "mpo", steps=8),
    Case("hsdp", "dama", steps=8),
    Case("hsdp", "full", "float32", steps=6, mixed=True),
    Case("hsdp", "lora", "float32", checkpoint_every=4, separate_disks=True, steps=8),
    Case("hsdp", "bf16", "bfloat16", steps=8),
    Case("hsdp", "bf16_gradients", "bfloat16", steps=8),
    Case("hsdp", "bf16_staged", "bfloat16"),
]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hybrid")
    return run_cases(out, QUICK, (2, [BY_ONE_MACHINE]), workers=4)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hybrid-slow")
    run_cases(out, SLOW, workers=4)
    of_one = Case("fsdp", "lora", checkpoint_every=4, steps=8)
    by_two = Case("hsdp", "lora", resume=of_one.name, steps=8)
    helper.run_rounds(out, (2, [of_one]), (4, [by_two]))
    return out


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_two_machines_of_two_workers_equal_one_worker(quick: Path, case: Any) -> None:
    assert_same_training(quick, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_two_machines_of_two_workers_equal_one_worker_in_every_way(slow: Path, case: Any) -> None:
    assert_same_training(slow, case)


def test_what_two_machines_saved_one_machine_goes_on_from(quick: Path) -> None:
    there = QUICK[0]
    before = there.checkpoint_every
    assert (
        helper.read_curve(quick, BY_ONE_MACHINE)[:before]
        == helper.read_curve(quick, there)[:before]
    )
    assert_same_training(quick, BY_ONE_MACHINE)


@pytest.mark.parametrize("there", QUICK, ids=lambda case: case.name)
def test_what_two_machines_saved_one_worker_goes_on_from(quick: Path, there: Any) -> None:
    assert_one_worker_resumes(quick, there)


@pytest.mark.slow
def test_what_one_machine_saved_two_go_on_from(slow: Path) -> None:
    assert_same_training(slow, Case("hsdp", "lora", resume="fsdp-lora-float64", steps=8))


@pytest.mark.slow
def test_machines_without_a_common_disk_leave_one_checkpoint_together(slow: Path) -> None:
    """Which of two workers that hold the same writes it, both on one machine or on two."""
    (there,) = (case for case in SLOW if case.separate_disks)
    (first,) = (slow / there.name / "checkpoints").iterdir()
    (others,) = (slow / "elsewhere" / there.name / "checkpoints").iterdir()
    own, further = ({path.name for path in (each / "shards").iterdir()} for each in (first, others))
    assert own and further and not own & further
    for name in further:
        (others / "shards" / name).rename(first / "shards" / name)
    assert_one_worker_resumes(slow, there)


def test_what_several_workers_hold_is_written_once(quick: Path) -> None:
    (left,) = (quick / QUICK[0].name / "checkpoints").iterdir()
    shards = [load_file(path) for path in sorted((left / "shards").iterdir())]
    whole = load_file(quick / to_single_case(QUICK[0]).name / "model" / "model.safetensors")
    written: dict[str, int] = {}
    for part in shards:
        for name, value in part.items():
            written[name] = written.get(name, 0) + value.numel()
    count = sum(value.numel() for value in whole.values())
    assert sum(n for name, n in written.items() if name.startswith("model.")) == count
    moments = [name for name in written if name.startswith("optimizer.")]
    assert len(moments) > 100
    for name in moments:
        weight = name.removeprefix("optimizer.").rpartition(".")[0]
        assert written[name] == written[f"model.{weight}"]
    # Each of the four writes about as much: no machine waits for the other's.
    sizes = [sum(value.nbytes for value in part.values()) for part in shards]
    assert len(sizes) == 4
    assert max(sizes) < 0.3 * sum(sizes)


@pytest.mark.parametrize("short", [False, True])
def test_between_machines_pass_the_gradients_of_an_update_once(
    process_group: None, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """Where memory is short, gradients are reduced within a machine in each pass."""
    monkeypatch.setattr(fsdp, "_fits_gradients", lambda root, device: not short)
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    strategy, batch = prepare_strategy(config, "hsdp")
    reference = strategy.reference()
    known = reference.scores(batch)
    passed: list[bool] = []
    reduced = dist.all_reduce

    def counting(*given: Any, **options: Any) -> Any:
        passed.append(True)
        return reduced(*given, **options)

    monkeypatch.setattr(dist, "all_reduce", counting)
    for last in (False, False, True):
        passed.clear()
        with strategy.accumulate(last=last):
            strategy(batch, known, reference.head).loss.sum().backward()
        assert bool(passed) is last
    assert any(parameter.grad is not None for parameter in strategy._root.parameters())


class FakeMachineWorkers(Workers):
    """Workers on machines, from the first of them, whose GPUs are as short as its own."""

    def __init__(self, *machines: str) -> None:
        super().__init__(size=len(machines))
        object.__setattr__(self, "machines", machines)

    def all_gather(self, value: Any) -> list[Any]:
        return list(self.machines)  # type: ignore[attr-defined]

    def all_reduce(self, values: Any, device: Any) -> dict[str, float]:
        return {name: value * self.size for name, value in values.items()}


def test_machines_are_told_by_who_started_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's number, else torchrun's, else the host's name."""
    from chip_core.utils.workers import _machine_id

    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    host = _machine_id()
    assert host
    monkeypatch.setenv("GROUP_RANK", "1")
    torchrun = _machine_id()
    monkeypatch.setenv("NODE_RANK", "0")
    assert len({host, torchrun, _machine_id()}) == 3
    assert Workers().ranks_by_machine() == [[0]]
    assert FakeMachineWorkers("b", "a", "b", "a").ranks_by_machine() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("machines", "kind", "shards"),
    [
        ("aabb", "hsdp", 2),
        ("abab", "hsdp", 2),
        ("aaaa", "fsdp", 4),
        ("abcd", "ddp", 1),
        ("a", "single", 1),
    ],
)
def test_what_hybrid_sharding_comes_to(machines: str, kind: Parallelism, shards: int) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "engine": {"parallel": "hsdp"}})
    workers = FakeMachineWorkers(*machines)
    assert choose_parallelism(config, nn.Linear(1, 1), torch.device("cpu"), workers) == kind
    assert count_weight_shards(kind, workers) == shards
    told = {
        "hsdp": {"parallel": "hsdp (2 workers a machine)"},
        "fsdp": {"parallel": "fsdp (hsdp, and all workers are on one machine)"},
        "ddp": {"parallel": "ddp (hsdp, and each worker is alone on its machine)"},
        "single": {},
    }
    assert _describe_sharding(config, Compute(workers=workers, parallelism=kind)) == told[kind]


def test_unequal_machines_are_refused() -> None:
    with pytest.raises(TrialError) as told:
        require_equal_machines(FakeMachineWorkers(*"aaab"))
    assert str(told.value) == (
        "engine.parallel is hsdp, which needs the same number of workers on each machine, but 4 "
        "workers are 3 + 1 on 2 machines: write an engine.workers_per_trial that divides evenly "
        "over the machines, or engine.parallel: fsdp"
    )


@pytest.mark.parametrize(
    ("machines", "gpus", "kind"),  # how many GPUs the training takes
    [
        ("aabb", 0.5, "ddp"),
        ("aabb", 1.5, "hsdp"),
        ("aabb", 2.5, "fsdp"),
        ("aaab", 1.5, "fsdp"),
        ("aaaa", 1.5, "fsdp"),
        ("abcd", 1.5, "fsdp"),
    ],
)
def test_auto_is_hybrid_where_a_machine_holds_the_model(
    monkeypatch: pytest.MonkeyPatch, machines: str, gpus: float, kind: str
) -> None:
    config, model = TrialConfig.model_validate({"model": "shapes"}), nn.Linear(1, 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    monkeypatch.setattr(
        "chip_core.training.parallel.estimate_required_bytes",
        lambda model, config: 0.8 * 1000 * gpus,
    )
    found = choose_parallelism(config, model, torch.device("cuda"), FakeMachineWorkers(*machines))
    assert found == kind


def test_weights_in_four_bits_are_never_spread() -> None:
    with pytest.raises(ValueError, match="nf4, but its weights cannot be sharded over workers"):
        TrialConfig.model_validate(
            {
                "model": {"path": "shapes", "quantize": "nf4"},
                "language_model": "lora",
                "engine": {"parallel": "hsdp"},
            }
        )


def test_the_workers_that_share_a_weight_are_those_of_one_machine(
    process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []
    made = dist.new_group

    def noting(ranks: list[int], **options: Any) -> Any:
        waits.append(options.get("timeout"))
        return made(ranks, **options)

    monkeypatch.setattr(dist, "new_group", noting)
    config = TrialConfig.model_validate({"model": "shapes", "language_model": "lora"})
    strategy, _ = prepare_strategy(config, "hsdp")
    weight = next(iter(strategy._root.parameters()))  # type: ignore[attr-defined]
    assert weight.device_mesh.mesh_dim_names == ("replicate", "shard")
    assert get_shard_group(weight) is weight.device_mesh.get_group("shard")
    assert waits == [BARRIER_TIMEOUT, BARRIER_TIMEOUT]  # for one another as long as all workers do
