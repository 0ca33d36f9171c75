"""Resuming: to the bit as if nothing had happened, and never from a broken checkpoint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chip_core.config.trial import TrialConfig
from chip_core.results import Progress, read_result
from chip_core.training import checkpoint, trainer
from chip_core.training.checkpoint import find_checkpoint_problem, list_checkpoints, remove_after
from chip_core.training.optimizer.masters import read_masters, write_masters
from chip_core.trial import run_trial
from chip_core.utils.errors import (
    DiskFullError,
    MemoryFullError,
    NonFiniteLossError,
    StoppedError,
    UnfitError,
)
from chip_core.utils.files import read_records

Configured = Callable[..., TrialConfig]
STEPS = 8
#: Before there is a checkpoint, right after one, and between the last one and the end.
INTERRUPTED = [1, 4, 7]
LORA = {"language_model": "lora", "lora": {"rank": 2, "alpha": 4}, "vision_encoder": "staged"}
BF16 = {"model": {"path": "shapes", "dtype": "bf16"}}


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == step:
            raise Interrupted

    return report


def read_curves(folder: Path) -> list[Any]:
    records = read_records(folder / "curves.jsonl")
    for record in records:
        del record["time"], record["figures"]["tokens_per_second"], record["figures"]["data_wait"]
    return records


def read_weight_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "model").glob("*.safetensors")}


def run_until(config: TrialConfig, folder: Path, step: int) -> Path:
    with pytest.raises(Interrupted):
        run_trial(config, folder=folder, report=interrupt_at(step))
    assert not (folder / "model").exists()
    return folder


Made = Callable[..., Path]


@pytest.fixture(scope="module")
def train_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Train what a configuration says, to the end or until it is cut in a step: each once."""
    kept: dict[tuple[str, int], Path] = {}

    def made(config: TrialConfig, step: int = 0) -> Path:
        key = config.model_dump_json(), step
        if key not in kept:
            folder = tmp_path_factory.mktemp("made")
            kept[key] = run_until(config, folder, step) if step else folder
            if not step:
                run_trial(config, folder=folder)
        return kept[key]

    return made


@pytest.fixture
def copy_interrupted(train_once: Made, tmp_path: Path) -> Made:
    """A copy of a training that was cut in a step, to be spoilt."""

    def copied(config: TrialConfig, step: int) -> Path:
        shutil.copytree(train_once(config, step), tmp_path / "first")
        return tmp_path / "first"

    return copied


def make_config(configured: Configured, **changes: Any) -> TrialConfig:
    return configured(
        training__max_steps=STEPS, training__batch_size=2, engine__checkpoint_every=2, **changes
    )


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, INTERRUPTED),
        (LORA, [3, 6]),
        ({"vision_encoder": "lora", "projector": "lora"}, [5]),
    ],
    ids=["full", "lora-staged", "full-lora-lora"],
)
def test_an_interrupted_training_comes_to_the_same_bits(
    shapes_config: Configured, tmp_path: Path, changes: dict[str, Any], steps: list[int]
) -> None:
    scored = {"report": [{"name": "shapes", "limit": 4, "max_new_tokens": 12}]}
    config = make_config(shapes_config, benchmarks=scored, **changes)
    whole = run_trial(config, folder=tmp_path / "whole")
    assert not (tmp_path / "whole" / "checkpoints").exists()  # the model is there
    for step in steps:
        first = run_until(config, tmp_path / f"{step}-first", step)
        second = tmp_path / f"{step}-second"
        result = run_trial(config, folder=second, resume_from=first)
        assert result.metrics == whole.metrics
        assert read_curves(second) == read_curves(tmp_path / "whole")
        assert read_weight_files(second) == read_weight_files(tmp_path / "whole")
        resumed = step - step % 2
        said = f"resumed after step {resumed}" if resumed else "no complete checkpoint"
        assert said in result.notes[-1]
        assert read_result(second) == result


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"language_model": "lora", "lora": {"rank": 2}}, id="lora"),
        pytest.param({"training__gradients": "bf16"}, id="full", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_in_bf16_comes_to_the_same_bits(
    shapes_config: Configured, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """What is kept are the masters: of the weights, an update of 5e-7 would be lost."""
    config = make_config(shapes_config, **BF16, **changes, optimizer__lr=5e-7)
    run_trial(config, folder=tmp_path / "whole")
    first = run_until(config, tmp_path / "first", 3)
    (kept,) = (first / "checkpoints").iterdir()
    assert sorted(file.name for file in kept.iterdir()) == [
        "manifest.json",
        "masters.safetensors",
        "state.pt",
    ]
    masters = load_file(kept / "masters.safetensors")
    assert {each.dtype for each in masters.values()} == {torch.float32}
    assert any(not torch.equal(each, each.bfloat16().float()) for each in masters.values())
    run_trial(config, folder=tmp_path / "second", resume_from=first)
    assert read_curves(tmp_path / "second") == read_curves(tmp_path / "whole")
    assert read_weight_files(tmp_path / "second") == read_weight_files(tmp_path / "whole")


def test_masters_of_other_weights_are_not_used(tmp_path: Path) -> None:
    one = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(3))}
    write_masters(one, tmp_path / "masters.safetensors")
    for other in ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}):
        with pytest.raises(UnfitError, match=r"masters.safetensors is of other weights \(b"):
            read_masters(
                tmp_path / "masters.safetensors",
                {name: torch.nn.Parameter(value) for name, value in other.items()},
            )


def test_a_training_can_be_cut_short_again_and_again(
    shapes_config: Configured, tmp_path: Path, train_once: Made, copy_interrupted: Made
) -> None:
    config = make_config(shapes_config)
    folder = copy_interrupted(config, 3)
    with pytest.raises(Interrupted):
        run_trial(config, folder=tmp_path / "two", report=interrupt_at(5), resume_from=folder)
    run_trial(config, folder=tmp_path / "three", resume_from=tmp_path / "two")
    assert read_curves(tmp_path / "three") == read_curves(train_once(config))
    assert read_weight_files(tmp_path / "three") == read_weight_files(train_once(config))


def test_what_was_cut_is_counted_over_both_attempts(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config, training__max_length=60)
    whole = run_trial(config, folder=tmp_path / "whole")
    assert whole.data["cut_responses"] > 2
    first = run_until(config, tmp_path / "first", 5)
    assert run_trial(config, folder=tmp_path / "second", resume_from=first).data == whole.data


def test_a_training_goes_on_in_its_own_folder(
    shapes_config: Configured, train_once: Made, copy_interrupted: Made
) -> None:
    config = make_config(shapes_config)
    folder = copy_interrupted(config, 5)
    assert len(read_curves(folder)) == 5  # one more than the checkpoint's
    run_trial(config, folder=folder, resume_from=folder)
    assert read_curves(folder) == read_curves(train_once(config))
    assert read_weight_files(folder) == read_weight_files(train_once(config))


def truncate_state(checkpoint: Path) -> str:
    file = checkpoint / "state.pt"
    file.write_bytes(file.read_bytes()[:-10])
    return "state.pt is cut off"


def corrupt_weights(checkpoint: Path) -> str:
    file = checkpoint / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return "model/model.safetensors is corrupt"


def remove_state(checkpoint: Path) -> str:
    (checkpoint / "state.pt").unlink()
    return "state.pt is missing"


def spoil_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").write_text("{")
    return "manifest.json cannot be read"


@pytest.mark.parametrize("harm", [truncate_state, corrupt_weights, remove_state, spoil_manifest])
def test_a_broken_checkpoint_is_said_and_the_one_before_is_used(
    shapes_config: Configured, tmp_path: Path, copy_interrupted: Made, harm: Callable[[Path], str]
) -> None:
    config = make_config(shapes_config)
    first = copy_interrupted(config, 6)
    found = sorted(path.name for path in (first / "checkpoints").iterdir())
    assert found == ["step-00000004", "step-00000006"]  # older ones are gone
    why = harm(first / "checkpoints" / found[-1])
    told: list[int] = []
    with pytest.raises(Interrupted):
        run_trial(
            config,
            folder=tmp_path / "second",
            resume_from=first,
            report=lambda p: (
                (told.append(p.done), interrupt_at(8)(p)) if p.phase == "train" else None
            ),
        )
    assert told[0] == 5  # the first update made again
    result = run_trial(config, folder=tmp_path / "third", resume_from=first)
    assert why in result.notes[0]
    assert "resumed after step 4" in result.notes[1]


def rewrite_weights(checkpoint: Path, file: str, change: Callable[[str], str | None]) -> None:
    """Name weights of a checkpoint otherwise, or leave them out, and let its manifest say so."""
    path = checkpoint / "model" / file
    weights = load_file(path)
    named = {change(name): weights[name] for name in weights}
    save_file({name: value for name, value in named.items() if name}, path, {"format": "pt"})
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][f"model/{file}"] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "file", "why"),
    [
        ({}, "model.safetensors", "model lacks 3 of its weights"),  # the tower's has a bias
        (LORA, "adapter_model.safetensors", "1 of the 28 layers that it adapts get none"),
        (LORA, "trained_parts.safetensors", "modules that were trained get none"),
    ],
    ids=["full", "adapter", "beside"],
)
def test_a_checkpoint_whose_weights_do_not_fit_is_not_used(
    shapes_config: Configured, tmp_path: Path, train_once: Made, copy_interrupted: Made,
    changes: dict[str, Any], file: str, why: str,
) -> None:  # fmt: skip
    """Its manifest is right, and still nothing of it is put into the policy."""
    config = make_config(shapes_config, **changes)
    first = copy_interrupted(config, 6)
    rewrite_weights(
        list_checkpoints(first)[-1],
        file,
        lambda name: None if "layers.1.self_attn.q_proj" in name else name,
    )
    result = run_trial(config, folder=tmp_path / "second", resume_from=first)
    assert result.notes[-2].startswith("checkpoint step-00000006 is not used: ")
    assert why in result.notes[-2]
    assert "resumed after step 4" in result.notes[-1]
    assert read_curves(tmp_path / "second") == read_curves(train_once(config))
    assert read_weight_files(tmp_path / "second") == read_weight_files(train_once(config))


def test_a_checkpoint_of_an_older_layout_goes_on_to_the_same_bits(
    shapes_config: Configured, tmp_path: Path, train_once: Made, copy_interrupted: Made
) -> None:
    """One that another version of transformers wrote: LLaVA before 4.52."""
    config = make_config(shapes_config, **LORA)
    first = copy_interrupted(config, 6)
    last = list_checkpoints(first)[-1]
    rewrite_weights(
        last,
        "adapter_model.safetensors",
        lambda name: name.replace("model.model.language_model.", "model.language_model.model."),
    )
    rewrite_weights(last, "trained_parts.safetensors", lambda name: name.removeprefix("model."))
    result = run_trial(config, folder=tmp_path / "second", resume_from=first)
    assert "resumed after step 6" in result.notes[-1]
    assert read_curves(tmp_path / "second") == read_curves(train_once(config))
    assert read_weight_files(tmp_path / "second") == read_weight_files(train_once(config))


def test_a_trial_cut_short_while_it_is_scored_is_not_trained_again(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = {"benchmarks": {"report": [{"name": "shapes", "limit": 2}]}}
    config = shapes_config(engine__checkpoint_every=1, **scored)

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr("chip_core.trial.generate_answers", stopped)
        with pytest.raises(Interrupted):
            run_trial(config, folder=tmp_path / "one")
        weights = (tmp_path / "one" / "model" / "model.safetensors").read_bytes()
        patched.undo()
        patched.setattr("chip_core.trial.Trainer", stopped)
        result = run_trial(config, folder=tmp_path / "two", resume_from=tmp_path / "one")
    assert result.steps == 3
    assert (tmp_path / "two" / "model" / "model.safetensors").read_bytes() == weights
    assert list_checkpoints(tmp_path / "two") == []  # it is done


def test_a_checkpoint_of_another_training_is_not_used(
    shapes_config: Configured, tmp_path: Path
) -> None:
    first = run_until(make_config(shapes_config), tmp_path / "first", 4)
    other = make_config(shapes_config, optimizer__lr=1e-6)
    result = run_trial(other, folder=tmp_path / "second", resume_from=first)
    assert "belongs to another training" in result.notes[0]
    assert "trained from the start" in result.notes[-1]
    run_trial(other, folder=tmp_path / "alone")
    assert read_curves(tmp_path / "second") == read_curves(tmp_path / "alone")


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ('{"format": 3}', "its format is 3, but only 1 and 2 are known"),
        ("[]", r"manifest.json cannot be read \(ValueError\)"),
        ('{"format": 1}', r"manifest.json cannot be read \(KeyError\)"),
    ],
)
def test_a_manifest_of_another_kind_is_not_read(
    shapes_config: Configured, tmp_path: Path, manifest: str, why: str
) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    assert re.fullmatch(why, str(find_checkpoint_problem(tmp_path, shapes_config())))


def test_checkpoints_that_are_gone_over_again_are_removed(tmp_path: Path) -> None:
    for step in (4, 6, 12):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    remove_after(tmp_path, 4)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]


def test_a_write_that_was_cut_off_leaves_no_checkpoint(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(shapes_config)
    monkeypatch.setattr("chip_core.training.checkpoint.sync_files", interrupt_at_once)
    with pytest.raises(Interrupted):
        run_trial(config, folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        ".step-00000002.partial"
    ]


def interrupt_at_once(path: Path) -> None:
    raise Interrupted


def test_where_the_last_attempts_checkpoints_are_broken_the_one_befores_are_used(
    shapes_config: Configured, tmp_path: Path, train_once: Made, copy_interrupted: Made
) -> None:
    config = make_config(shapes_config)
    first = copy_interrupted(config, 3)  # left step 2
    second = tmp_path / "second"
    with pytest.raises(Interrupted):
        run_trial(config, folder=second, resume_from=first, report=interrupt_at(5))  # left step 4
    (left,) = list_checkpoints(second)
    state = left / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    third, (used,) = tmp_path / "third", list_checkpoints(first)
    result = run_trial(config, folder=third, resume_from=second, earlier=[second, first])
    assert result.notes[-2].startswith("checkpoint step-00000004 is not used: state.pt is cut off")
    assert result.notes[-1] == f"resumed after step 2 from {used}"
    assert list_checkpoints(first) == list_checkpoints(second) == []  # a model is there
    assert read_curves(third) == read_curves(train_once(config))
    assert read_weight_files(third) == read_weight_files(train_once(config))


def test_a_training_that_is_stopped_goes_on_to_the_same_bits(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = shapes_config(training__max_steps=STEPS, training__batch_size=2)
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    run_trial(config, folder=whole)
    steps: list[int] = []
    with pytest.raises(StoppedError, match=f"stopped after step 3 of {STEPS}"):
        run_trial(
            config,
            folder=first,
            report=lambda progress: steps.append(progress.done),
            stop=lambda: bool(steps) and steps[-1] == 2,  # asked within step 3
        )
    assert [path.name for path in list_checkpoints(first)] == ["step-00000003"]
    run_trial(config, folder=second, resume_from=first)
    assert read_curves(second) == read_curves(whole)
    assert read_weight_files(second) == read_weight_files(whole)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(shapes_config)
    written = checkpoint.write_weights

    def full(model: Any, folder: Path, *rest: Any, **options: Any) -> None:
        written(model, folder, *rest, **options)
        if "step-00000004" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_weights", full)
    with pytest.raises(DiskFullError, match="no space for the checkpoint after step 4"):
        run_trial(config, folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_checkpoint_that_memory_does_not_hold_is_not_what_is_wrong(
    shapes_config: Configured,
    tmp_path: Path,
    copy_interrupted: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(shapes_config)
    first = copy_interrupted(config, 3)

    def full(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "read_weights", full)
    with pytest.raises(MemoryFullError, match="the machine's memory ran out in training"):
        run_trial(config, folder=tmp_path / "second", resume_from=first)


def test_no_checkpoint_is_written_of_a_weight_that_is_no_number(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer.make_optimizer

    def poisoned(*arguments: Any) -> Any:
        optimizer, schedule = made(*arguments)
        steps = iter(range(1, STEPS + 1))

        def after(*_: Any) -> None:
            if next(steps) == 4:
                optimizer.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")

        optimizer.register_step_post_hook(after)
        return optimizer, schedule

    monkeypatch.setattr(trainer, "make_optimizer", poisoned)
    with pytest.raises(NonFiniteLossError, match="weight is not finite after step 4"):
        run_trial(make_config(shapes_config), folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
