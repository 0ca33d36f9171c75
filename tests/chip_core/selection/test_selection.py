"""A training that is scored on its way, and the rule that picks its model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.results import Progress, read_result
from chip_core.selection import kept_models
from chip_core.selection.rule import (
    Pick,
    ScoredCheckpoint,
    describe_selection,
    find_selection_problems,
    pick_checkpoint,
)
from chip_core.trained import find_model_problem, has_model
from chip_core.trial import run_trial
from chip_core.utils.errors import StoppedError, TrialError

Configured = Callable[..., TrialConfig]
CHAIR, COVER = "select/shapes/chair_i", "select/shapes/cover"
BEST = {"rule": "best", "metric": CHAIR}
ASKED = {"select": [{"name": "shapes", "limit": 4}], "report": [{"name": "shapes", "limit": 4}]}


def make_declared_config(**training: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {"model": "shapes", "benchmarks": {"select": ["shapes"]}, "training": training}
    )


def make_points(*figures: tuple[int, float | None, float | None]) -> list[ScoredCheckpoint]:
    return [
        ScoredCheckpoint(
            step=step,
            figures={
                name: value for name, value in ((CHAIR, chair), (COVER, cover)) if value is not None
            },
        )
        for step, chair, cover in figures
    ]


def test_steps_are_shares_of_the_training_and_its_end() -> None:
    settings = make_declared_config(score_at=[0.25, 0.5]).training
    assert settings.scored_steps(40) == (10, 20, 40)
    assert settings.scored_steps(2) == (1, 2)  # what falls together is scored once
    assert make_declared_config(score_at=[0.001, 1.0]).training.scored_steps(40) == (1, 40)
    assert make_declared_config().training.scored_steps(40) == ()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"score_at": [0.0, 0.5]}, "0 is not a fraction of a training"),
        ({"score_at": [0.5, 1.5]}, "1.5 is not a fraction of a training"),
        ({"score_at": [0.5, 0.25]}, "must increase"),
        ({"score_at": [0.5, 0.5]}, "must increase"),
        ({"pick": BEST}, "pick has no effect without score_at"),
        ({"score_at": [0.5], "pick": "best"}, "write `metric: select/BENCHMARK/METRIC`"),
        (
            {"score_at": [0.5], "pick": {"rule": "last", "metric": CHAIR}},
            "'last' uses no metric",
        ),
    ],
)
def test_what_is_no_rule_is_refused(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make_declared_config(**training)


def test_only_select_picks() -> None:
    assert find_selection_problems(make_declared_config(score_at=[0.5], pick=BEST)) == []
    (unknown,) = find_selection_problems(
        make_declared_config(score_at=[0.5], pick={**BEST, "metric": "shapes/chair_i"})
    )
    assert unknown.startswith("training.pick.metric: unknown metric 'shapes/chair_i', or not under")
    assert "did you mean 'select/shapes/chair_i'?" in unknown
    constraint = {"metric": "select/shapes/covr", "max_drop": 1}
    (covr,) = find_selection_problems(
        make_declared_config(score_at=[0.5], pick={**BEST, "constraint": constraint})
    )
    assert covr.startswith("training.pick.constraint.metric: unknown metric")
    alone = TrialConfig.model_validate({"model": "shapes", "training": {"score_at": [0.5]}})
    assert find_selection_problems(alone) == [
        "training.score_at: there is no benchmark under `select` to score with: add one there"
    ]


def test_the_rule_is_said_in_words() -> None:
    assert describe_selection(make_declared_config()) is None
    assert describe_selection(make_declared_config(score_at=[0.25, 1.0])) == (
        "models are scored on `select` after 25 % of the steps and at the end; the last answers "
        "`report`"
    )
    rule = {**BEST, "constraint": {"metric": COVER, "max_drop": 1.0}}
    assert str(describe_selection(make_declared_config(score_at=[0.5], pick=rule))).endswith(
        "; the best by select/shapes/chair_i answers `report`, of those with select/shapes/cover "
        "at most 1 worse than untrained"
    )


def test_the_rule_is_in_the_fingerprint_where_there_is_one() -> None:
    def mark(**training: Any) -> str:
        return fingerprint(training_identity(make_declared_config(**training), {}, {}))

    assert mark() == mark(score_at=[])
    assert len({mark(), mark(score_at=[0.5]), mark(score_at=[0.5], pick=BEST)}) == 3


def test_the_last_is_the_end_and_the_best_is_the_earliest_of_equals() -> None:
    said = make_points((10, 3.0, 90.0), (20, 2.0, 80.0), (40, 2.0, 70.0))
    assert pick_checkpoint(make_declared_config(score_at=[0.5]), said).step == 40
    best = pick_checkpoint(make_declared_config(score_at=[0.5], pick=BEST), said)
    assert best == Pick(step=20, reason="the best select/shapes/chair_i, 2")
    most = pick_checkpoint(
        make_declared_config(score_at=[0.5], pick={**BEST, "metric": COVER}), said
    )
    assert most.step == 10  # more cover is better
    holes = make_points((10, None, 90.0), (40, None, 70.0))
    assert pick_checkpoint(make_declared_config(score_at=[0.5], pick=BEST), holes).step == 40


def test_a_constraint_leaves_out_what_says_less_than_the_untrained_model() -> None:
    rule = {**BEST, "constraint": {"metric": COVER, "max_drop": 1.0}}
    config = make_declared_config(score_at=[0.5], pick=rule)
    said = make_points((0, 9.0, 90.0), (10, 4.0, 89.5), (20, 3.0, 89.0), (40, 1.0, 80.0))
    found = pick_checkpoint(config, said)
    assert found.step == 20  # 1.0 less is not more than 1.0
    assert found.reason == (
        "the best select/shapes/chair_i, 3, of those with select/shapes/cover at most 1 worse than "
        "untrained"
    )
    none = pick_checkpoint(config, make_points((0, 9.0, 90.0), (10, 4.0, 85.0), (40, 1.0, 80.0)))
    assert none.step == 10 and "this one loses least (it is 5 worse)" in none.reason
    unknown = pick_checkpoint(config, make_points((0, 9.0, None), (10, 4.0, 85.0), (40, 1.0, 80.0)))
    assert unknown.step == 40


def make_config(configured: Configured, **changes: Any) -> TrialConfig:
    return configured(
        training__max_steps=4,
        training__score_at=[0.5],
        optimizer__lr=1e-3,
        benchmarks=ASKED,
        **changes,
    )


def load_weights(folder: Path) -> dict[str, Any]:
    return {file.name: load_file(file) for file in sorted((folder / "model").glob("*.safetensors"))}


def is_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        bool((one[file][name] == other[file][name]).all()) for file in one for name in one[file]
    )


@pytest.fixture
def picks_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kept_models, "pick_checkpoint", lambda config, points: Pick(step=2, reason="told so")
    )


@pytest.mark.usefixtures("picks_the_second")
@pytest.mark.parametrize("changes", [{}, {"language_model": "lora"}], ids=["full", "lora"])
def test_the_picked_checkpoint_is_the_trials_model(
    shapes_config: Configured, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = make_config(shapes_config, engine__checkpoint_every=2, **changes)

    def stop_at(step: int) -> Callable[[Progress], None]:
        def stop(progress: Progress) -> None:
            if progress.phase == "train" and progress.done == step:
                raise StoppedError("killed")

        return stop

    with pytest.raises(StoppedError):
        run_trial(config, folder=tmp_path / "first", report=stop_at(3))
    after_two = load_file(next((tmp_path / "first/kept/step-00000002").glob("*.safetensors")))
    result = run_trial(config, folder=tmp_path / "second", resume_from=tmp_path / "first")
    assert result.picked["step"] == 2 and result.picked["steps"] == 4
    assert [point["step"] for point in result.picked["points"]] == [2, 4]
    assert "resumed after step 2" in " ".join(result.notes)
    assert result.notes[-1] == "the model after step 2 of 4: told so"
    model = tmp_path / "second/model"
    assert not list(model.glob("step-*")) and find_model_problem(model, config) is None
    name = next(iter(load_weights(tmp_path / "second")))
    assert is_equal({name: after_two}, {name: load_weights(tmp_path / "second")[name]})
    # what it says of `select` is what it was picked by, and is not answered twice
    scored = result.picked["points"][0]["figures"]
    assert {k: v for k, v in result.metrics.items() if k.startswith("select/")} == scored
    assert result.evaluations["select/shapes"].metadata["taken_over"] == 4
    later = run_trial(config, folder=tmp_path / "later", trained_model=model)
    assert later.metrics == result.metrics
    assert read_result(tmp_path / "second") == result
    whole = run_trial(config, folder=tmp_path / "whole")
    assert is_equal(load_weights(tmp_path / "whole"), load_weights(tmp_path / "second"))
    assert whole.picked == result.picked and whole.metrics == result.metrics


def test_a_training_that_was_killed_before_the_pick_is_not_made_again(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {**BEST, "constraint": {"metric": COVER, "max_drop": 100}}
    config = make_config(shapes_config, training__pick=rule)
    with monkeypatch.context() as patch:
        patch.setattr(kept_models, "pick_checkpoint", lambda config, points: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_trial(config, folder=tmp_path / "first")
    steps: list[str] = []
    result = run_trial(
        config,
        folder=tmp_path / "second",
        resume_from=tmp_path / "first",
        earlier=[tmp_path / "first"],
        report=lambda progress: steps.append(progress.phase),
    )
    assert "train" not in steps
    assert [point["step"] for point in result.picked["points"]] == [0, 2, 4]
    assert result.picked["why"].startswith("the best select/shapes/chair_i")
    figures = {point["step"]: point["figures"][CHAIR] for point in result.picked["points"][1:]}
    assert figures[result.picked["step"]] == min(figures.values())


class Killed(Exception):
    """A process that ends at a moment."""


@pytest.mark.parametrize("step", [2, 4])
def test_killed_at_any_moment_of_the_pick_it_is_gone_on_with(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = make_config(shapes_config)
    monkeypatch.setattr(
        kept_models, "pick_checkpoint", lambda config, points: Pick(step=step, reason="so")
    )
    with monkeypatch.context() as patch:
        patch.setattr(kept_models, "keep_only_picked", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_trial(config, folder=tmp_path / "first")
    whole, moments = tmp_path / "first", 0
    while True:  # at the next rename or removal each time
        shutil.copytree(whole, tmp_path / f"at-{moments}")
        if not _settle_until_killed(moments, tmp_path / f"at-{moments}", monkeypatch):
            break
        moments += 1
    assert moments == (6 if step == 2 else 2)
    for number in range(moments + 1):
        folder = tmp_path / f"at-{number}"
        assert has_model(folder)  # so that the next attempt looks there
        kept_models.keep_only_picked(folder)
        assert find_model_problem(folder / "model", config) is None
        assert not list(folder.glob(".model.*")) and not list(folder.glob("model/step-*"))
    phases: list[str] = []
    result = run_trial(
        config,
        folder=tmp_path / "second",
        resume_from=whole,
        earlier=[whole],
        report=lambda progress: phases.append(progress.phase),
    )
    assert "train" not in phases and result.picked["step"] == step
    assert result.evaluations["select/shapes"].metadata["taken_over"] == 4  # not asked again


def _settle_until_killed(moment: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Settle a pick, killed before the renaming or removal of this number; False: there is none."""
    left = [moment]

    def counted(made: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return made(*args, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        try:
            kept_models.keep_only_picked(folder)
        except Killed:
            return True
    return False


def test_a_kept_model_that_is_not_whole_is_made_again_in_the_same_folder(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config)
    partly = kept_models.make_kept_folder(tmp_path, 2)
    partly.mkdir()
    (partly / "config.json").write_text("{", encoding="utf-8")
    kept_models.write_note(partly, "of another training")
    (tmp_path / "model").mkdir()  # as a kill leaves it before the record is written
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    result = run_trial(config, folder=tmp_path, resume_from=tmp_path, earlier=[tmp_path])
    assert [point["step"] for point in result.picked["points"]] == [2, 4]


def test_without_a_kept_model_a_checkpoint_behind_it_is_not_used(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = make_config(shapes_config, engine__checkpoint_every=2)

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 3:
            raise StoppedError("killed")

    with pytest.raises(StoppedError):
        run_trial(config, folder=tmp_path / "first", report=stop)
    shutil.rmtree(tmp_path / "first/kept")
    result = run_trial(config, folder=tmp_path / "second", resume_from=tmp_path / "first")
    assert "trained from the start: the model kept after step 2 is missing" in result.notes
    assert result.picked["step"] == 4


def test_it_says_what_is_missing_before_it_trains(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = shapes_config(training__score_at=[0.5], benchmarks={"report": ASKED["report"]})
    with pytest.raises(TrialError, match="training.score_at: there is no benchmark under `select`"):
        run_trial(config, folder=tmp_path)
