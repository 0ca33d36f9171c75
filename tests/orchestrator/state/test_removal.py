"""rm: what goes, what stays, and that the ledger knows of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan
from orchestrator.plan.snapshot import iter_plan_snapshots
from orchestrator.run import run_study
from orchestrator.state.ledger import Ledger, lock_study
from orchestrator.state.removal import apply_removal, plan_removal
from orchestrator.tracking.client import MlflowStore
from orchestrator.tracking.projection import delete_runs

from ..conftest import STUDY
from ..fakes import FakeExecutor, InlineTracker, run_with_fakes
from ..program import run_program

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")
#: Shares the untrained model and the two cells under dpo.
OTHER = STUDY.replace("study: small", "study: other").replace("[dpo, chip]", "[dpo, hdpo]")


def run(plan: Plan, workdir: Path) -> list[str]:
    _, executor, _ = run_with_fakes(plan, workdir)
    return executor.names


def list_folders(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "trials").iterdir()}


def test_a_trial_goes_and_is_run_again(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of()
    run(plan, tmp_path)
    mark = plan.arms[2].trials[0].fingerprint
    going = plan_removal(tmp_path, mark[:8])
    assert (going.study, going.trials) == (None, {mark: "chip, frozen, seed 0"})
    assert going.studies == ("small",)
    assert going.bytes > 0
    apply_removal(tmp_path, going)
    assert mark[:16] not in list_folders(tmp_path)
    ledger = Ledger(tmp_path)
    assert mark not in dict(ledger.items())
    assert ledger.was_removed(mark)
    assert run(plan, tmp_path) == ["chip, frozen, seed 0"]
    assert list(Ledger(tmp_path)[mark].history) == [2]  # the first attempt's number is not reused
    assert Ledger(tmp_path)[mark].attempts == 2


def test_a_study_goes_but_for_what_another_shares(plan_of: PlanOf, tmp_path: Path) -> None:
    plan, other = plan_of(), plan_of(OTHER)
    run(plan, tmp_path)
    run(other, tmp_path)
    shared = {trial.fingerprint for trial in plan.trials} & {
        trial.fingerprint for trial in other.trials
    }
    assert len(shared) == 1 + 2 * 2  # base; two cells at two seeds
    going = plan_removal(tmp_path, "small")
    assert set(going.shared) == shared
    assert set(going.shared.values()) == {("other",)}
    assert sorted(going.trials.values()) == [
        "chip, frozen, seed 0", "chip, frozen, seed 1",
        "chip, trained, seed 0", "chip, trained, seed 1",
    ]  # fmt: skip
    apply_removal(tmp_path, going)
    assert list_folders(tmp_path) == {trial.fingerprint[:16] for trial in other.trials}
    assert [kept.study for kept in iter_plan_snapshots(tmp_path)] == ["other"]
    assert run(other, tmp_path) == []  # nothing of it is missing
    assert len(run(plan, tmp_path)) == 4
    apply_removal(tmp_path, plan_removal(tmp_path, "other"))
    assert len(list_folders(tmp_path)) == 9


def test_a_trial_of_two_studies_is_never_removed_alone(plan_of: PlanOf, tmp_path: Path) -> None:
    run(plan_of(), tmp_path)
    run(plan_of(OTHER), tmp_path)
    with pytest.raises(UserError, match="is in the tables of 2 studies, other, small"):
        plan_removal(tmp_path, "dpo, frozen, seed 0")


def test_what_a_study_file_no_longer_has_goes_with_the_study(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    run(plan_of(), tmp_path)
    run(plan_of(STUDY.replace("[dpo, chip]", "[dpo, hdpo]")), tmp_path)
    going = plan_removal(tmp_path, "small")
    assert len(going.trials) == 1 + 6 * 2  # base; dpo, chip and hdpo, two encoders, two seeds
    apply_removal(tmp_path, going)
    assert list_folders(tmp_path) == set()


def test_a_crash_leaves_a_trial_whole_or_gone(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    run(plan, tmp_path)
    mark = plan.arms[0].trials[0].fingerprint
    going = plan_removal(tmp_path, mark[:8])

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            apply_removal(tmp_path, going)
    assert mark[:16] not in list_folders(tmp_path)
    assert run(plan, tmp_path) == ["dpo, frozen, seed 0"]
    apply_removal(tmp_path, plan_removal(tmp_path, mark[:8]))  # and what the crash left goes too
    assert not [name for name in list_folders(tmp_path) if mark[:16] in name]


def test_the_command_asks_and_shows(
    plan_of: PlanOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    before = (workdir / "ledger/ledger.jsonl").read_bytes()
    monkeypatch.setattr("builtins.input", lambda prompt="": "n")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt="": "n")
    assert run_program("rm", "small", "--workdir", workdir) == 1
    printed = capsys.readouterr().out
    assert "9 trials: " in printed and "; … and 1 more" in printed
    assert "the reports, figures and experiment of study small" in printed
    assert (workdir / "ledger/ledger.jsonl").read_bytes() == before
    assert len(list_folders(workdir)) == 9
    assert run_program("rm", "small", "--workdir", workdir, "--yes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["study"], len(found["trials"]), found["shared"]) == ("small", 9, {})
    assert list_folders(workdir) == set()
    assert not (workdir / "studies/small").exists()


def test_nothing_goes_while_a_study_runs(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plan_of(), tmp_path / "runs")
    with lock_study(tmp_path / "runs", "another"):  # any study: it may come to share a trial
        assert run_program("rm", "small", "--workdir", tmp_path / "runs", "--yes") == 2
    assert "study another is being run by process" in capsys.readouterr().err
    assert len(list_folders(tmp_path / "runs")) == 9


def test_what_is_not_there_is_told(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(plan_of(), tmp_path / "runs")
    assert run_program("rm", "smal", "--workdir", tmp_path / "runs", "--yes") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no trial 'smal'" in line and "studies that ran there: small" in line
    assert run_program("rm", "small", "--workdir", tmp_path / "nowhere", "--yes") == 2
    assert not (tmp_path / "nowhere").exists()


def test_mlflow_forgets_a_trial_or_all(
    plan_of: PlanOf, tmp_path: Path, with_store: Callable[[Path], Path]
) -> None:
    plan = plan_of(STUDY.replace("[dpo, chip]", "[dpo]").replace("[0, 1]", "[0]"))
    executor = FakeExecutor()
    tracker = InlineTracker(with_store(tmp_path))
    run_study(
        plan,
        workdir=tmp_path,
        executor=lambda: executor,
        tracker=tracker,
        console=Console(quiet=True),
    )

    def kinds() -> list[str]:
        store = MlflowStore(tmp_path)
        store.open("small")
        return sorted(run.tags["chip.kind"] for run in store.runs())

    assert kinds() == ["arm", "arm", "base", "study", "trial", "trial"]
    mark = plan.arms[0].trials[0].fingerprint
    assert delete_runs(tmp_path, None, "small", {mark}) == 1
    assert kinds() == ["arm", "arm", "base", "study", "trial"]
    assert delete_runs(tmp_path, None, "unknown", None) == 0
    assert delete_runs(tmp_path, None, "small", None) == 5
    assert delete_runs(tmp_path, None, "small", None) == 0  # deleted already
    assert delete_runs(tmp_path / "empty", None, "small", None) == 0
    assert not (tmp_path / "empty").exists()
