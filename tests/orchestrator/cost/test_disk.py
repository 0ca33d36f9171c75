"""What a run writes to the disk, of which some is there only while trainings run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from orchestrator.cost.memory import estimate_disk, sampled_bytes

SAVED = 1000  # bytes of a trained model


def make_config(**changes: Any) -> TrialConfig:
    training = {"batch_size": 4, "max_steps": 8, **changes.pop("training", {})}
    return TrialConfig.model_validate({"model": "shapes", "training": training, **changes})


def make_trial(config: TrialConfig, rows: int | None = 100) -> Any:
    return SimpleNamespace(config=config, rows=rows, training="kind", caches=())


def estimate_usage(
    trials: list[Any], at_once: int | None, tmp_path: Path, saved: int | None = SAVED
) -> Any:
    return estimate_disk(
        SimpleNamespace(planned=(), trials=trials),  # type: ignore[arg-type]
        SimpleNamespace(size=lambda what, kind: None),  # type: ignore[arg-type]
        SimpleNamespace(  # type: ignore[arg-type]
            estimate=lambda *_, **__: None if saved is None else SimpleNamespace(saved=saved)
        ),
        at_once=at_once,
        storage=tmp_path,
    )


def test_models_of_score_at_are_there_while_their_training_runs(tmp_path: Path) -> None:
    """Of 8 steps those after 2, 4 and 8 are kept; the last is the trial's own."""
    scored = make_trial(make_config(training={"score_at": (0.25, 0.5)}))
    found = estimate_usage([scored, scored, make_trial(make_config())], 2, tmp_path)
    assert (found.models, found.intermediate_models, found.pairs) == (3 * SAVED, 2 * 2 * SAVED, 0)
    assert found.known_bytes == 7 * SAVED
    assert estimate_usage([scored], None, tmp_path, saved=None).intermediate_models is None


def test_shares_that_fall_on_one_step_are_one_model(tmp_path: Path) -> None:
    """0.5 and 0.55 of 8 steps are both 4."""
    scored = make_trial(make_config(training={"score_at": (0.5, 0.55, 1.0)}))
    assert estimate_usage([scored], None, tmp_path).intermediate_models == SAVED


def test_rounds_keep_a_model_each_but_the_last_and_what_they_sampled(tmp_path: Path) -> None:
    """A round's 10 prompts: an image of 48 × 48 pixels, 5 answers and 2 again, 20 tokens each."""
    settings = {"rounds": 3, "prompts": 10, "answers": 5, "max_new_tokens": 20}
    rounds = make_trial(make_config(pairs=settings))
    found = estimate_usage([rounds] * 2, None, tmp_path)
    assert found.intermediate_models == 2 * 2 * SAVED
    assert found.pairs == 2 * 3 * 10 * (3 * 48 * 48 + 7 * 20 * 5)


@pytest.mark.parametrize(("suffix", "image"), [("parquet", 50), ("jsonl", None)])
def test_images_are_as_large_as_the_rows_that_hold_them(
    tmp_path: Path, suffix: str, image: int | None
) -> None:
    """Rows of JSON name their images, whose size is not known then."""
    (tmp_path / f"rows.{suffix}").write_bytes(b"x" * 500)
    settings = {"rounds": 1, "answers": 2, "max_new_tokens": 10}
    config = make_config(pairs=settings, data={"source": str(tmp_path / f"rows.{suffix}")})
    expected = None if image is None else 10 * (image + 4 * 10 * 5)
    assert sampled_bytes(config, 10) == expected
    assert sampled_bytes(config, None) is None
