from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import DataPaths
from chip_core.utils.errors import ConfigError
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.report.writers.plan import trust_warnings
from orchestrator.study.model import Study

from ..conftest import STUDY

PlanOf = Callable[..., Plan]


def list_fingerprints(plan: Plan) -> set[str]:
    return {trial.fingerprint for trial in plan.trials}


def test_a_grid_is_every_cell_at_every_seed(plan_of: PlanOf) -> None:
    plan = plan_of()
    names = ["dpo, frozen", "dpo, trained", "chip, frozen", "chip, trained"]
    assert [arm.name for arm in plan.arms] == names
    assert len(plan.trials) == 1 + 4 * 2
    assert plan.baseline.name == "dpo, frozen"
    assert [trial.seed for trial in plan.trials] == [None, 0, 0, 0, 0, 1, 1, 1, 1]
    chip = plan.arms[3].trials[1]
    assert chip.config.objective.preset == "chip"
    assert (chip.config.vision_encoder, chip.config.seed) == ("trained", 1)
    assert chip.params == {"objective": "chip", "vision_encoder": "trained"}


def test_cells_that_cannot_differ_are_one_trial(plan_of: PlanOf) -> None:
    text = STUDY.replace(
        "vision_encoder: [frozen, trained]", "objective.weights.segment: [1, 3]"
    ).replace("vision_encoder: frozen", "objective.weights.segment: 1")
    plan = plan_of(text)
    assert [len(arm.cells) for arm in plan.arms] == [2, 1, 1]
    assert plan.arms[0].reasons == (
        "objective.weights.segment has no effect: objective dpo has no segment term",
    )
    assert plan.arms[0].params["objective.weights.segment"] == "1|3"
    assert plan.arms[0].baseline


def test_excluded_cells_are_left_out(plan_of: PlanOf) -> None:
    text = STUDY + "\nexclude: [{objective: chip, vision_encoder: trained}]\n"
    assert len(plan_of(text).arms) == 3


def test_nothing_left_is_told(plan_of: PlanOf) -> None:
    text = STUDY.replace("baseline: {objective: dpo, vision_encoder: frozen}", "")
    with pytest.raises(ConfigError, match="excluded|leaves no cell"):
        plan_of(text + "\nexclude: [{objective: [dpo, chip]}]\n")


def test_more_seeds_add_trials_and_keep_the_others(plan_of: PlanOf) -> None:
    assert list_fingerprints(plan_of()) < list_fingerprints(plan_of(STUDY, seeds=[0, 1, 2]))


def test_what_changes_nothing_keeps_every_fingerprint(plan_of: PlanOf) -> None:
    before = list_fingerprints(plan_of())
    renamed = STUDY.replace("study: small", "study: other").replace("Which?", "What?")
    assert list_fingerprints(plan_of(renamed)) == before
    reordered = STUDY.replace("[dpo, chip]", "[chip, dpo]").replace("[0, 1]", "[1, 0]")
    assert list_fingerprints(plan_of(reordered)) == before
    assert list_fingerprints(plan_of(STUDY, overrides={"engine.micro_batch": 2})) == before


def test_a_changed_recipe_makes_new_trials(plan_of: PlanOf) -> None:
    before = {trial.fingerprint for trial in plan_of().trials if not trial.untrained}
    after = {
        trial.fingerprint
        for trial in plan_of(STUDY, overrides={"optimizer.lr": 3e-7}).trials
        if not trial.untrained
    }
    assert not before & after


def test_a_benchmark_more_does_not_train_again(plan_of: PlanOf) -> None:
    more = plan_of(STUDY.replace("report: [shapes]", "{report: [shapes], select: [shapes]}"))
    assert list_fingerprints(more) == list_fingerprints(plan_of())
    assert set(more.base.evaluations) == {"report/shapes", "select/shapes"}
    limited = plan_of(STUDY.replace("report: [shapes]", "report: [{name: shapes, limit: 5}]"))
    assert limited.base.evaluations != plan_of().base.evaluations


def test_a_ranker_that_cannot_be_asked_is_said_by_the_plan(plan_of: PlanOf) -> None:
    judge = {"model": "m", "api_key_env": "NO_SUCH_KEY"}
    pairs = {"pairs.rounds": 1, "pairs.ranker": "judge", "pairs.judge": judge}
    (line,) = plan_of(overrides=pairs).missing_requirements
    assert line.startswith("pairs: judge m: NO_SUCH_KEY is not set")


def test_the_engine_that_answers_is_of_evaluations_alone(plan_of: PlanOf) -> None:
    served = "{kind: openai, server: vllm, version: '1', base_url: 'http://127.0.0.1:8000/v1'}"
    text = f"{STUDY}\nevaluation: {{generator: {served}}}\n"
    plain, by_vllm = plan_of(), plan_of(text)
    assert list_fingerprints(plain) == list_fingerprints(by_vllm)
    assert plain.base.evaluations != by_vllm.base.evaluations
    assert {trial.config.evaluation.generator.kind for trial in by_vllm.trials} == {"openai"}
    assert by_vllm.missing_requirements == []
    (trusted,) = trust_warnings(by_vllm)
    assert trusted.target == "http://127.0.0.1:8000/v1"
    beams = text.replace("report: [shapes]", "report: [{name: shapes, num_beams: 3}]")
    (line,) = plan_of(beams).missing_requirements
    assert line.startswith("benchmarks.report: shapes needs 3 beams, but generator 'openai' ")


def make_small_plan(load: Callable[..., Study], overrides: dict[str, Any], **further: Any) -> Plan:
    return make_plan(load(STUDY, overrides=overrides), lambda _: {"content": "x"}, **further)


def test_the_names_that_chair_ranks_by_are_in_a_trials_fingerprint(
    load: Callable[..., Study], tmp_path: Path
) -> None:
    """Where they decide its pairs; what a run saw holds where they are not here."""
    texts = {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**texts, "objects": ["cat"]}) + "\n")
    file = tmp_path / "data" / "chair" / "synonyms.txt"
    file.parent.mkdir(parents=True)
    data_paths = DataPaths(benchmark_data=tmp_path / "data")
    source = {"data.source": str(rows)}
    ranked = {**source, "pairs.rounds": 1, "pairs.ranker": "chair"}

    def marked(overrides: dict[str, Any], names: str) -> list[str]:
        file.write_text(names)
        plan = make_small_plan(load, overrides, data_paths=data_paths)
        return [trial.fingerprint for arm in plan.arms for trial in arm.trials]

    assert marked(ranked, "cat, kitten\n") == marked(ranked, "cat, kitten\n")
    assert not {*marked(ranked, "cat, kitten\n")} & {*marked(ranked, "cat, kitten, puss\n")}
    for other in ({**ranked, "pairs.rounds": 0}, {"pairs.rounds": 1, "pairs.ranker": "chair"}):
        assert marked(other, "cat\n") == marked(other, "dog\n")
    file.write_text("cat\n")
    seen = make_small_plan(load, ranked, data_paths=data_paths)
    file.unlink()
    again = make_small_plan(load, ranked, data_paths=data_paths, known_identities=seen.benchmarks)
    assert [arm.trials for arm in again.arms] == [arm.trials for arm in seen.arms]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (
            {"pairs.rounds": 1, "pairs.ranker": "judge", "pairs.judge": {"model": "m"}},
            "pairs.rounds",
        ),
        ({"pairs.rounds": 0}, None),
    ],
)
def test_replies_that_exist_judge_no_answers_made_on_the_way(
    load: Callable[..., Study], tmp_path: Path, overrides: dict[str, Any], key: str | None
) -> None:
    replies = tmp_path / "replies.jsonl"
    replies.write_text('{"item": "1", "reply": "x"}\n')
    found = make_small_plan(
        load, overrides, data_paths=DataPaths(judge_replies=replies)
    ).missing_requirements
    assert [line.split(":")[0] for line in found] == ([] if key is None else [key])
