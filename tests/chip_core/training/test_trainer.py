"""What a trainer leaves of a model, and what ends a training early, told as its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.preferences import load_pairs
from chip_core.models import loading
from chip_core.training.trainer import Trainer
from chip_core.trial import run_trial
from chip_core.utils.errors import NonFiniteLossError, TrialError
from chip_core.utils.files import read_records

Configured = Callable[..., TrialConfig]


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be finite where its gradient is not."""
    measured = torch.nn.utils.clip_grad_norm_
    calls = []

    def overflowing(*given: object) -> torch.Tensor:
        calls.append(given)
        norm = measured(*given)
        return norm * torch.inf if len(calls) == 2 else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflowing)
    with pytest.raises(NonFiniteLossError, match="the gradient's norm is inf at step 2"):
        run_trial(shapes_config(), folder=tmp_path)
    assert [record["step"] for record in read_records(tmp_path / "curves.jsonl")] == [1]
    assert not (tmp_path / "model").exists()


def test_memory_that_ran_out_is_told_with_what_to_do(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("chip_core.training.policy.Policy.forward", full)
    with pytest.raises(TrialError, match=r"memory ran out in training: lower engine\.micro_batch"):
        run_trial(shapes_config(), folder=tmp_path)


def test_points_of_the_curves_are_as_far_apart_as_asked(
    shapes_config: Configured, tmp_path: Path
) -> None:
    run_trial(shapes_config(training__max_steps=5, engine__log_every=2), folder=tmp_path)
    steps = [record["step"] for record in read_records(tmp_path / "curves.jsonl")]
    assert steps == [2, 4, 5]  # the last one always


@pytest.mark.parametrize("broken", [False, True])
def test_the_models_attention_is_as_before_when_a_trainer_is_closed_or_never_made(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A warm slot's next trial gets the same model."""
    config = shapes_config()
    model, processor = loading.load(config.model)
    components = {"model": model, "processor": processor, "pairs": load_pairs(config.data)}
    seen = []

    def attention() -> str:
        return str(model.get_decoder().config._attn_implementation)

    def note(*_: object) -> None:
        seen.append(attention())
        if broken:
            raise MemoryError

    before = attention()
    monkeypatch.setattr("chip_core.training.trainer.Checkpointer", lambda *_, **__: note())
    if broken:
        with pytest.raises(MemoryError):
            Trainer(config, folder=tmp_path, **components)
    else:
        with Trainer(config, folder=tmp_path, **components):
            pass
    assert seen != [before]  # it shares prefixes
    assert attention() == before
