"""Reference passes of a study: planned, made once, read by all, never in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chip_core.reference_cache.folder import build_lock, store_folder
from chip_core.reference_cache.spec import CacheSpec
from chip_core.results import CURVES, MODEL
from chip_core.utils.errors import UserError
from orchestrator.executors import inline
from orchestrator.executors.base import (
    Job,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.files import report_folder
from orchestrator.run import CACHE_RECORDS_FILE, run_study
from orchestrator.state.cache_plan import USES_FILE, PlannedCache, cache_folder, plan_caches
from orchestrator.state.ledger import Ledger

from ..conftest import SHORT, STUDY, TINY
from ..fakes import FakeExecutor, FakeTracker, write_job_result

PlanOf = Callable[..., Plan]

#: 60 steps of 16 pairs are 960 samples of 4,096 a trial.
EIGHT = {"text, hidden states in fp32": 8 * 960, "rejected image diffusion": 4 * 960}


@pytest.fixture
def plan_of(plan_of: PlanOf) -> PlanOf:
    """Plan a study whose images' features are not kept, unless that is asked for."""

    def planned(text: str = STUDY, **changes: Any) -> Plan:
        overrides = {"engine.feature_cache": "off", **changes.pop("overrides", {})}
        return plan_of(text, overrides=overrides, **changes)

    return planned


def plan_caches_by_name(plan: Plan, workdir: Path) -> dict[str, PlannedCache]:
    found = plan_caches(plan, Ledger(workdir), workdir)
    return {planned.spec.name: planned for planned in found}


def list_states(plan: Plan, workdir: Path) -> dict[str, str]:
    return {name: planned.state for name, planned in plan_caches_by_name(plan, workdir).items()}


def run(
    plan: Plan, workdir: Path, executor: Any = None, console: Console | None = None
) -> tuple[list[dict[str, Any]], Any]:
    """Run a study; return what became of its passes, and the executor."""
    executor = executor or RecordingExecutor()
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor,
        tracker=FakeTracker(),
        console=console or Console(quiet=True),
    )
    assert not outcome.failed
    file = report_folder(workdir, plan.study.name) / CACHE_RECORDS_FILE
    return json.loads(file.read_text()) if file.exists() else [], executor


class RecordingExecutor(InlineExecutor):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []

    def run(self, jobs: Any, on_event: Any, retry: Any = None, more: Any = None) -> None:
        self.jobs += jobs
        super().run(jobs, on_event, retry, more)

    @property
    def parts(self) -> list[str]:
        return [job.name for job in self.jobs if job.shard is not None]


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make passes as they are made, and of trials what they leave, without a training."""
    really = inline.execute_job

    def execute(job: Job, *given: Any) -> Any:
        return write_job_result(job) if job.shard is None else really(job, *given)

    monkeypatch.setattr(inline, "execute_job", execute)


def read_losses(workdir: Path) -> dict[str, list[float]]:
    found = {}
    for curves in sorted(workdir.glob(f"trials/*/attempt-1/{CURVES}")):
        lines = [json.loads(line)["figures"]["loss"] for line in curves.read_text().splitlines()]
        found[curves.parent.parent.name] = lines
    return found


def test_a_pass_is_planned_where_it_is_read_often_enough(plan_of: PlanOf, tmp_path: Path) -> None:
    found = plan_caches_by_name(plan_of(), tmp_path)
    assert {name: planned.reads for name, planned in found.items()} == EIGHT
    assert list_states(plan_of(), tmp_path) == {
        "text, hidden states in fp32": "to make",  # 7,680 ≥ 1.25 × 4,096 = 5,120
        "rejected image diffusion": "in the step",  # 3,840 < 5,120
    }
    one_more = list_states(plan_of(seeds=[0, 1, 2]), tmp_path)
    assert one_more["rejected image diffusion"] == "to make"  # 5,760
    # 2 responses of n tokens, 4 + 4 + 128 × 4 bytes a token; n is 17 or so
    text, image = (planned.bytes or 0 for planned in found.values())
    assert text / image == pytest.approx(2 * (8 + 4 * 128) / 8, rel=0.1)
    assert 4096 * 10 * 2 * 520 < text < 4096 * 25 * 2 * 520


def test_arms_without_the_token_term_alone_plan_no_hidden_states(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    text = STUDY.replace("[dpo, chip]", "[dpo, cmdpo]")
    assert list(plan_caches_by_name(plan_of(text), tmp_path)) == [
        "text",
        "rejected image diffusion",
    ]
    alone = STUDY.replace("[dpo, chip]", "[dpo]").replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    assert list_states(plan_of(alone), tmp_path) == {"text": "to make"}  # 2 × 3 × 960 = 5,760


def test_with_the_cache_off_nothing_is_planned(plan_of: PlanOf, tmp_path: Path) -> None:
    assert plan_caches_by_name(plan_of(overrides={"reference_cache": "off"}), tmp_path) == {}


def test_features_are_passes_of_arms_with_a_frozen_tower(plan_of: PlanOf, tmp_path: Path) -> None:
    on = {"engine.feature_cache": "auto"}
    found = plan_caches_by_name(plan_of(overrides=on, seeds=[0, 1, 2]), tmp_path)
    assert {name: planned.reads for name, planned in found.items()} == {
        "text, hidden states in fp32": 12 * 960,
        "image features": 6 * 960,
        "rejected image diffusion": 6 * 960,
        "features of rejected image diffusion": 3 * 960,
    }
    assert found["image features"].state == "in the step"  # 5,760 < 2 × 4,096
    more = list_states(plan_of(overrides=on, seeds=[0, 1, 2, 3, 4]), tmp_path)
    assert more["image features"] == "to make"  # 9,600 ≥ 8,192
    assert more["features of rejected image diffusion"] == "in the step"  # 4,800
    # 37 tokens of 96 numbers of 4 bytes: 48 pixels in patches of 8, and one more
    assert found["image features"].bytes == 4096 * 37 * 96 * 4


def test_trials_that_lack_scores_alone_read_nothing(plan_of: PlanOf, tmp_path: Path) -> None:
    run(plan_of(), tmp_path, FakeExecutor())
    assert plan_caches_by_name(plan_of(), tmp_path) == {}
    scored = STUDY.replace("report: [shapes]", "report: [shapes]\n  select: [shapes]")
    assert plan_caches_by_name(plan_of(scored), tmp_path) == {}
    for model in tmp_path.glob(f"trials/*/*/{MODEL}"):  # so that they are trained again
        model.rmdir()
    assert plan_caches_by_name(plan_of(), tmp_path) == {}
    found = plan_caches_by_name(plan_of(scored), tmp_path)
    assert {name: planned.reads for name, planned in found.items()} == EIGHT


def test_draws_of_a_trial_and_of_an_epoch_are_passes_where_they_pay(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    whole = {"training.max_steps": None, "training.epochs": 2}
    drawn = {**whole, "rejected_image.redraw": "each_epoch"}
    assert list_states(plan_of(overrides=drawn), tmp_path) == {
        "text, hidden states in fp32": "to make",
        "rejected image diffusion, epoch 0": "to make",  # by two arms of two seeds
        "rejected image diffusion, epoch 1": "to make",
    }
    own = {**drawn, "rejected_image.corruption_seed": "per_trial"}
    per_trial = list_states(plan_of(overrides=own), tmp_path)
    assert [name for name, state in per_trial.items() if state == "to make"] == [
        "text, hidden states in fp32",
        *(
            f"rejected image diffusion, epoch {epoch}, seed {seed}"  # by two arms
            for seed in (0, 1)
            for epoch in (0, 1)
        ),
    ]
    one_arm = STUDY.replace("vision_encoder: [frozen, trained]", "vision_encoder: [frozen]")
    alone = list_states(plan_of(one_arm, overrides=own), tmp_path)
    assert set(alone.values()) == {"to make", "in the step"}
    assert alone["rejected image diffusion, epoch 0, seed 0"] == "in the step"


def test_a_study_makes_its_passes_once_and_its_figures_are_the_same(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(TINY, overrides=SHORT)
    # Both read the text, 2 × 16 samples of 10; the rejected images are read by one, 16 of 10.
    assert set(list_states(plan, tmp_path / "stored").values()) == {"to make"}
    records, executor = run(plan, tmp_path / "stored")
    assert [(record["pass"], record["state"], record["samples"]) for record in records] == [
        ("text, hidden states in fp32", "made", 10),
        ("rejected image diffusion", "made", 10),
    ]
    assert all(record["bytes"] > 0 and record["seconds"] > 0 for record in records)
    # One job makes both: a sample is prepared once.
    assert executor.parts == [
        "reference pass 'text, hidden states in fp32', 'rejected image diffusion'"
    ]
    ledger = Ledger(tmp_path / "stored")
    trained = [trial for trial in plan.trials if not trial.untrained]
    assert [ledger[trial.fingerprint].engine["reference"] for trial in trained] == ["stored"] * 2
    cache = cache_folder(tmp_path / "stored")
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [USES_FILE, *(record["hash"] for record in records)]
    )

    off = plan_of(TINY, overrides={**SHORT, "reference_cache": "off"})
    assert [trial.fingerprint for trial in off.trials] == [
        trial.fingerprint for trial in plan.trials
    ]
    records, executor = run(off, tmp_path / "live")
    assert (records, executor.parts) == ([], [])
    stored, live = read_losses(tmp_path / "stored"), read_losses(tmp_path / "live")
    assert len(stored) == 2
    for name, values in stored.items():
        assert values == pytest.approx(live[name], rel=1e-5)

    # One more seed, and the trained models gone: all is read, nothing is made.
    for model in (tmp_path / "stored").glob(f"trials/*/*/{MODEL}"):
        shutil.rmtree(model)
    records, executor = run(plan_of(TINY, overrides=SHORT, seeds=[0, 1]), tmp_path / "stored")
    assert [record["state"] for record in records] == ["found", "found"]
    assert executor.parts == []
    assert Ledger(tmp_path / "stored")[trained[0].fingerprint].engine["reference"] == "stored"


def test_features_are_made_and_read(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(TINY, overrides={**SHORT, "engine.feature_cache": "auto"})
    records, _ = run(plan, tmp_path)
    assert [(record["pass"], record["state"]) for record in records] == [
        ("text, hidden states in fp32", "made"),
        ("image features", "made"),
        ("rejected image diffusion", "made"),
        ("features of rejected image diffusion", "computed in the step"),  # 16 of 10
    ]
    for trial in plan.trials:
        if not trial.untrained:
            engine = Ledger(tmp_path)[trial.fingerprint].engine
            assert (engine["reference"], engine["image_features"]) == ("stored", "stored")


@pytest.mark.usefixtures("fake_training")
def test_a_broken_store_is_made_anew_before_the_trials(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(TINY, overrides=SHORT)
    run(plan, tmp_path)
    for planned in plan_caches_by_name(
        plan_of(TINY, overrides=SHORT, seeds=[1]), tmp_path
    ).values():
        assert planned.state == "cached"
        file = store_folder(cache_folder(tmp_path), planned.spec.key) / "shard-00000.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    more = plan_of(TINY, overrides=SHORT, seeds=[0, 1])
    records, _ = run(more, tmp_path, console=Console(width=300))
    # The new seed alone reads 16 samples of 10.
    assert [record["state"] for record in records] == ["made", "made"]
    assert capsys.readouterr().out.count("is broken: shard-00000.safetensors is corrupt") == 2


def test_passes_are_shared_out_to_workers(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(seeds=[0, 1, 2])
    records, executor = run(plan, tmp_path, FakeExecutor(at_once=5))
    # 5 workers for one group of passes; a pass has 16 shards of 256
    assert [job.name for job in executor.parts] == [
        "reference pass 'text, hidden states in fp32', 'rejected image diffusion', "
        f"part {number} of 5"
        for number in (1, 2, 3, 4, 5)
    ]
    few = plan_of(overrides={"data.limit": 300})  # 2 shards
    _, executor = run(few, tmp_path, FakeExecutor(at_once=5))
    assert [job.name[-11:] for job in executor.parts] == ["part 1 of 2", "part 2 of 2"]
    # They fail there; the trials compute it themselves.
    assert [record["state"] for record in records] == ["failed: nothing is computed here"] * 2
    assert len(executor.jobs) == 8
    assert all(job.caches is None for job in executor.jobs)


@pytest.mark.usefixtures("fake_training")
def test_a_pass_that_another_driver_makes_is_waited_for(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(TINY, overrides=SHORT)
    waited = []
    elsewhere = tmp_path / "elsewhere"
    run(plan, elsewhere)
    ones = [planned.spec for planned in plan_caches_by_name(plan, tmp_path).values()]
    held = {one.key: build_lock(store_folder(cache_folder(tmp_path), one.key)) for one in ones}
    for lock in held.values():
        lock.__enter__()

    def comes_true(one: CacheSpec) -> None:
        waited.append(one.name)
        source = store_folder(cache_folder(elsewhere), one.key)
        shutil.copytree(source, store_folder(cache_folder(tmp_path), one.key))
        held[one.key].__exit__(None, None, None)

    class Watching(Console):
        def print(self, *given: Any, **options: Any) -> None:
            text = str(given[0]) if given else ""
            for one in ones:
                if f"'{one.name}' is being built by process " in text:
                    comes_true(one)

    records, executor = run(plan, tmp_path, console=Watching())
    assert sorted(waited) == sorted(one.name for one in ones)
    assert [record["state"] for record in records] == ["found", "found"]
    assert executor.parts == []


def test_without_room_nothing_is_begun(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 10**6})())
    executor = FakeExecutor()
    with pytest.raises(
        UserError, match=r"not enough space for the reference passes 'text, .*are needed"
    ):
        run(plan_of(), tmp_path, executor)
    assert executor.jobs == executor.parts == []
    run(plan_of(overrides={"reference_cache": "off"}), tmp_path, executor)


@pytest.mark.usefixtures("fake_training")
def test_a_part_whose_worker_was_lost_is_made_after_all(plan_of: PlanOf, tmp_path: Path) -> None:
    class LosesOne(RecordingExecutor):
        def run(self, jobs: Any, on_event: Any, retry: Any = None, more: Any = None) -> None:
            if not self.jobs:
                first, *rest = jobs
                assert first.shard is not None
                on_event(JobStarted(job=first))
                failed = JobFailed(job=first, reason="it died", cause="worker_lost")
                retry_job = retry(failed)
                on_event(replace(failed, retry_job=retry_job))
                jobs = [retry_job, *rest]
            super().run(jobs, on_event, retry, more)

    records, executor = run(plan_of(TINY, overrides=SHORT), tmp_path, LosesOne())
    assert {record["state"] for record in records} == {"made"}
    assert executor.jobs[0].id.endswith("-again")


@pytest.mark.usefixtures("fake_training")
def test_progress_of_a_pass_is_its_samples(plan_of: PlanOf, tmp_path: Path) -> None:
    events: list[JobEvent] = []

    class Watched(RecordingExecutor):
        def run(self, jobs: Any, on_event: Any, retry: Any = None, more: Any = None) -> None:
            def both(event: JobEvent) -> None:
                events.append(event)
                on_event(event)

            super().run(jobs, both, retry, more)

    run(plan_of(TINY, overrides=SHORT), tmp_path, Watched())
    of_text = [event for event in events if event.job.shard is not None]
    assert isinstance(of_text[0], JobStarted)
    assert isinstance(of_text[-1], JobFinished)
    told = [event.progress for event in of_text if isinstance(event, JobProgressed)]
    # batches of 8 and 2
    assert [(p.phase, p.done, p.total) for p in told][-2:] == [
        ("reference pass", 8, 10),
        ("reference pass", 10, 10),
    ]
