"""Rounds within a trial: sampled, trained, sampled again, the same wherever it was broken off."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from chip_core.config.identity import find_inert_keys, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.readiness import find_unmet_requirements
from chip_core.reference_cache.spec import list_cache_specs
from chip_core.results import Progress, TrialResult, read_result
from chip_core.selection.kept_models import make_kept_folder
from chip_core.shapes import MODEL_FOLDER
from chip_core.trial import run_trial
from chip_core.utils.errors import ConfigError, StoppedError, TrialError
from chip_core.utils.files import read_records

Configured = Callable[..., TrialConfig]
PAIRS = {"rounds": 2, "answers": 3, "temperature": 1.5, "max_new_tokens": 32, "prompts": 12}
CHANGES: dict[str, Any] = {
    "objective": "dpo",
    "optimizer__lr": 1e-3,
    "data__limit": 24,
    "training__batch_size": 2,
    "training__max_steps": 2,
    "engine__checkpoint_every": 1,
    "benchmarks": {"report": [{"name": "shapes", "limit": 4}]},
}


def make_config(configured: Configured, **pairs: Any) -> TrialConfig:
    return configured(**CHANGES, pairs={**PAIRS, **pairs})


def read_outputs(folder: Path) -> dict[str, bytes]:
    """Read the trial's weights and all rounds' pairs."""
    named = [folder / "model" / "model.safetensors", *(folder / "rounds").glob("*/*.json*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in named
        if path.name not in ("curves.jsonl", "trained.json")
    }


@pytest.fixture(scope="module")
def trial_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def undisturbed(shapes_config: Configured, trial_folder: Path) -> tuple[TrialResult, Path]:
    """Two rounds, once for all tests."""
    made = read_result(trial_folder)
    return made or run_trial(make_config(shapes_config), folder=trial_folder), trial_folder


def test_rounds_are_trainings_one_after_another(undisturbed: tuple[TrialResult, Path]) -> None:
    result, folder = undisturbed
    assert result.steps == 4 and result.data["sampled"] == 2 * 12 * 3
    assert not any("are reused" in note for note in result.notes)
    assert result.seconds["sample pairs"] > 0
    for curves in (folder / "rounds" / "1", folder):
        first, second = read_records(curves / "curves.jsonl")
        # The reference is the model at the round's beginning: log 2 there, and then no more.
        assert first["figures"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert second["figures"]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    asked = []
    for number in (1, 2):
        rows = read_records(folder / "rounds" / str(number) / "pairs.jsonl")
        provenance = json.loads((folder / "rounds" / str(number) / "provenance.json").read_text())
        assert provenance["round"] == number and provenance["counts"]["pairs"] == len(rows) > 3
        asked.append({row["id"] for row in rows})
    assert not asked[0] & asked[1]  # each round has prompts of its own, while there are others
    assert not (folder / "rounds" / "1" / "model").exists()  # the trial's is there
    before = load_file(MODEL_FOLDER / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    assert any((after[name] != before[name].float()).any() for name in before)


class InterruptAt:
    """Ends an attempt at the `number`th report of a phase."""

    def __init__(self, phase: str, number: int) -> None:
        self.phase, self.left = phase, number

    def __call__(self, progress: Progress) -> None:
        if progress.phase == self.phase and progress.done:
            self.left -= 1
            if self.left == 0:
                raise StoppedError("killed")


def test_broken_off_anywhere_it_comes_to_the_same(
    undisturbed: tuple[TrialResult, Path], shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config).model_copy(
        update={"engine": shapes_config(engine__generation_batch=9).engine}
    )
    attempts: list[Path] = []
    result = None
    for ends in (
        InterruptAt("sample answers", 2),  # in the first round's answers
        InterruptAt("train", 2),  # after the first round's last step, its model not saved
        InterruptAt("sample answers", 3),  # the first round is trained
        InterruptAt("train", 1),  # in the trial's own training
        InterruptAt("nothing", 1),
    ):
        folder = tmp_path / f"attempt-{len(attempts)}"
        if len(attempts) == 4:  # as on another machine, where a round's weights are not
            for weights in (attempts[0] / "rounds").rglob("*.safetensors"):
                weights.unlink()
        try:
            result = run_trial(
                config,
                folder=folder,
                report=ends,
                resume_from=attempts[0] if attempts else None,
                earlier=tuple(attempts),
            )
        except StoppedError:
            attempts.insert(0, folder)
    assert result is not None and len(attempts) == 4
    assert any("resumed" in note for note in result.notes)
    assert result.metrics == undisturbed[0].metrics and result.steps == 4
    assert read_outputs(folder) == read_outputs(undisturbed[1])


def test_a_checkpoint_of_other_pairs_is_not_gone_on_from(
    undisturbed: tuple[TrialResult, Path], shapes_config: Configured, tmp_path: Path
) -> None:
    """As where an attempt's checkpoints are at hand, and its rounds are not."""
    config = make_config(shapes_config)
    with pytest.raises(StoppedError):
        run_trial(config, folder=tmp_path / "one", report=InterruptAt("train", 3))
    kept = make_kept_folder(tmp_path / "one", 1)
    kept.mkdir()
    assert list((tmp_path / "one/checkpoints").iterdir())
    shutil.rmtree(tmp_path / "one/rounds")
    begun = tmp_path / "one"
    with pytest.raises(StoppedError):  # killed as soon as it has pairs of its own
        run_trial(
            config, folder=tmp_path / "two", resume_from=begun, report=InterruptAt("train", 2)
        )
    assert not kept.exists() and not (begun / "checkpoints").exists()
    result = run_trial(
        config, folder=tmp_path / "three", resume_from=tmp_path / "two", earlier=(begun,)
    )
    assert not any("resumed after step" in note and "one" in note for note in result.notes)
    assert read_outputs(tmp_path / "three") == read_outputs(undisturbed[1])


def test_one_round_takes_all_prompts_where_none_are_counted(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config, rounds=1, prompts=None)
    result = run_trial(config, folder=tmp_path)
    assert result.steps == 2 and result.data["sampled"] == 24 * 3
    provenance = json.loads((tmp_path / "rounds" / "1" / "provenance.json").read_text())
    assert provenance["counts"]["prompts"] == 24


def test_adapters_go_on_from_round_to_round(shapes_config: Configured, tmp_path: Path) -> None:
    config = make_config(shapes_config)
    config = config.model_copy(update={"language_model": "lora"})
    run_trial(config, folder=tmp_path / "whole")
    first, second = read_records(tmp_path / "whole" / "curves.jsonl")
    # The reference is the first round's adapter, not the model below it.
    assert first["figures"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert second["figures"]["loss"] != pytest.approx(math.log(2), abs=1e-4)
    ends = InterruptAt("sample answers", 2)  # of the second round: the first one's adapter is saved
    with pytest.raises(StoppedError):
        run_trial(config, folder=tmp_path / "one", report=ends)
    result = run_trial(config, folder=tmp_path / "two", earlier=(tmp_path / "one",))
    weights = [
        (tmp_path / name / "model" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "two")
    ]
    assert weights[0] == weights[1] and result.steps == 4


def all_ties(prompt: Any, answers: list[str]) -> list[float]:
    """A rule that finds no difference."""
    return [0.0] * len(answers)


def test_ties_alone_fail_the_trial_with_a_line(shapes_config: Configured, tmp_path: Path) -> None:
    config = make_config(shapes_config, rounds=1, prompts=2, ranker=f"{__name__}:all_ties")
    with pytest.raises(TrialError, match="^pairs, round 1: no pair: of 2 prompts"):
        run_trial(config, folder=tmp_path)


def test_without_rounds_nothing_of_them_is_in_a_fingerprint(shapes_config: Configured) -> None:
    plain = training_identity(shapes_config(), {}, {})
    assert "pairs" not in plain
    assert training_identity(shapes_config(pairs={"answers": 3}), {}, {}) == plain
    assert find_inert_keys(shapes_config())["pairs"] == "pairs.rounds is 0"
    rule = training_identity(
        shapes_config(pairs={"rounds": 1, "ranker": f"{__name__}:all_ties"}), {}, {}
    )
    assert len(rule["pairs"]["source"]) == 64
    judged = [
        training_identity(
            shapes_config(pairs={"rounds": 1, "ranker": "judge", "judge": judge}), {}, {}
        )
        for judge in ("a", "b", {"model": "b", "timeout": 5.0})
    ]
    assert judged[0] != judged[1] == judged[2]


def test_rounds_share_no_reference_cache(shapes_config: Configured) -> None:
    identity = {"content": "abc"}
    assert list_cache_specs(shapes_config(), identity, identity)
    assert list_cache_specs(shapes_config(pairs={"rounds": 1}), identity, identity) == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": "symmpo"}, "do not have other, second_image: choose another objective"),
        ({"rejected_image": "given"}, r"do not have a rejected image \(rejected_image is given\)"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(
    shapes_config: Configured, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        shapes_config(pairs={"rounds": 2}, **changes)
    assert len(str(refused.value).splitlines()) == 1


def test_several_workers_are_refused_before_anything_is_run(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config).model_copy(
        update={"engine": shapes_config(engine__workers_per_trial=2).engine}
    )
    (told,) = find_unmet_requirements(config)
    assert told.startswith("pairs.rounds is 2, but only one worker samples a model: write engine.")
    with pytest.raises(TrialError, match="this trial has 1|one worker samples a model"):
        run_trial(config, folder=tmp_path)
    assert not (tmp_path / "rounds").exists()
