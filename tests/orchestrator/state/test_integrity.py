"""A work directory that was damaged: what is told, what is kept, what is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from chip_core.utils.errors import UserError, reset_warnings
from chip_core.utils.files import read_records
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.snapshot import load_plan_snapshot
from orchestrator.run import RunOutcome
from orchestrator.state.integrity import read_ledger
from orchestrator.state.ledger import Ledger
from orchestrator.storage.binding import bind_storage
from orchestrator.study.model import Study, StudyChanges

from ..conftest import STUDY
from ..fakes import FakeExecutor, run_with_fakes
from ..program import run_program

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")


def run(plan: Plan, workdir: Path, **failures: str) -> tuple[RunOutcome, list[str]]:
    reset_warnings()
    outcome, executor, _ = run_with_fakes(plan, workdir, FakeExecutor(failures=failures))
    return outcome, executor.names


def list_metrics(plan: Plan, ledger: Ledger) -> dict[str, dict[str, float]]:
    return {trial.name: ledger[trial.fingerprint].metrics(trial) for trial in plan.trials}


def ledger_file(workdir: Path) -> Path:
    return workdir / "ledger" / "ledger.jsonl"


def change_line(file: Path, number: int, text: bytes) -> None:
    lines = file.read_bytes().split(b"\n")
    lines[number - 1] = text
    file.write_bytes(b"\n".join(lines))


@pytest.fixture
def finished_study(load: Callable[..., Study], tmp_path: Path) -> tuple[Path, Plan]:
    plan = make_plan(load())  # as the commands plan it
    run(plan, tmp_path)
    return tmp_path, plan


BAD = {
    "list": b"[]",
    "empty": b"{}",
    "nul": b"\0" * 40,
    "ff": b"\xff" * 40,
    "text": b"oops",
    "other keys": b'{"event": "finished", "fingerprint": 3}',
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_ledger_line_is_told_kept_aside_and_found_again(
    bad: str, finished_study: tuple[Path, Plan], caplog: pytest.LogCaptureFixture
) -> None:
    workdir, plan = finished_study
    file = ledger_file(workdir)
    whole = list_metrics(plan, Ledger(workdir))
    change_line(file, 4, BAD[bad])  # base: 1, 2; the first trial of the first arm ended there
    reset_warnings()
    told = (
        f"{file}: line 4 has changed since it was written: it is ignored; `chip-ablate run` moves "
        "it to ledger.bad.jsonl and recovers its content from the trials' folders"
    )
    assert list_metrics(plan, read_ledger(plan, workdir)) == whole  # who reads has the same
    assert caplog.messages == [told]
    assert BAD[bad] in file.read_bytes()  # and changes nothing
    outcome, executed = run(plan, workdir)
    assert executed == []
    assert list_metrics(plan, Ledger(workdir)) == whole
    assert not outcome.summary.remaining
    assert not Ledger(workdir).damaged_lines
    (aside,) = read_records(workdir / "ledger" / "ledger.bad.jsonl")
    assert aside == {"line": 4, "text": BAD[bad].decode("utf-8", "backslashreplace")}


def test_a_digit_of_a_ledger_line_is_not_taken_for_a_figure(
    finished_study: tuple[Path, Plan],
) -> None:
    workdir, plan = finished_study
    file = ledger_file(workdir)
    whole = list_metrics(plan, Ledger(workdir))
    content = file.read_bytes()
    assert content.count(b'"shapes/chair_i": 11.0') == 2  # seed 1 of the two arms under dpo
    file.write_bytes(content.replace(b'"shapes/chair_i": 11.0', b'"shapes/chair_i": 17.0', 1))
    assert len(Ledger(workdir).damaged_lines) == 1
    assert list_metrics(plan, read_ledger(plan, workdir)) == whole
    assert run(plan, workdir)[1] == []
    assert list_metrics(plan, Ledger(workdir)) == whole


def test_any_line_of_a_ledger_can_be_bad(finished_study: tuple[Path, Plan]) -> None:
    workdir, plan = finished_study
    file = ledger_file(workdir)
    whole, content = list_metrics(plan, Ledger(workdir)), file.read_bytes()
    for number in (1, 2, 5, 11, 18):  # of 18: each trial's start and end
        file.write_bytes(content)
        change_line(file, number, b"\xff\x00")
        assert list_metrics(plan, read_ledger(plan, workdir)) == whole, number
        assert run(plan, workdir)[1] == [], number
        assert list_metrics(plan, Ledger(workdir)) == whole, number


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"time": 1'])
def test_a_ledger_without_a_whole_line_is_made_again(
    content: bytes, finished_study: tuple[Path, Plan]
) -> None:
    workdir, plan = finished_study
    whole = list_metrics(plan, Ledger(workdir))
    ledger_file(workdir).write_bytes(content)
    assert list_metrics(plan, read_ledger(plan, workdir)) == whole
    assert run(plan, workdir)[1] == []
    assert list_metrics(plan, Ledger(workdir)) == whole


def test_a_ledger_of_a_version_without_checksums_is_taken_over(
    finished_study: tuple[Path, Plan],
) -> None:
    workdir, plan = finished_study
    whole, file = list_metrics(plan, Ledger(workdir)), ledger_file(workdir)
    records = read_records(file)
    for record in records:
        record.pop("files", None)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert b"checksum" not in file.read_bytes()
    assert list_metrics(plan, Ledger(workdir)) == whole
    assert run(plan, workdir)[1] == []


def test_no_command_ends_in_a_traceback_for_a_bad_line(
    finished_study: tuple[Path, Plan], caplog: pytest.LogCaptureFixture
) -> None:
    workdir, plan = finished_study
    change_line(ledger_file(workdir), 3, b"\xff")
    told = (
        f"{ledger_file(workdir)}: line 3 has changed since it was written: it is ignored; "
        "`chip-ablate run` moves it to ledger.bad.jsonl and recovers its content from the "
        "trials' folders"
    )
    where = ("--workdir", workdir)
    mark = plan.arms[1].trials[0].fingerprint[:8]
    for code, *words in (
        (0, "status", "small"),
        (0, "plan", "small"),
        (0, "show", mark),
        (0, "cache"),
        (2, "rm", "small", "--yes"),
        (2, "rm", mark, "--yes"),
    ):
        assert run_program(*words, *where) == code, words
        assert caplog.messages.count(told) == 1, words
        caplog.clear()
    assert (workdir / "studies" / "small").is_dir()


SPOILT: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "emptied": lambda file: file.write_bytes(b""),
    "another digit": lambda file: file.write_bytes(file.read_bytes().replace(b"12.0", b"13.0")),
    "removed": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize(
    ("spoilt", "noted"),
    [*((way, True) for way in SPOILT), ("cut", False), ("another digit", False)],
)
def test_scores_that_are_not_what_was_written_are_made_again(
    spoilt: str,
    noted: bool,
    plan_of: PlanOf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_of(seeds=[0, 2])
    run(plan, tmp_path)
    if not noted:  # of a version that noted no hash: held against the ledger's figures
        records = [{**record, "files": {}} for record in read_records(ledger_file(tmp_path))]
        lines = (json.dumps(record) + "\n" for record in records)
        ledger_file(tmp_path).write_text("".join(lines))
    trial = next(one for one in plan.trials if one.name == "dpo, frozen, seed 2")
    whole = list_metrics(plan, Ledger(tmp_path))
    page = tmp_path / "studies/small/report/report.html"
    before = page.read_bytes()
    file = tmp_path / "trials" / trial.fingerprint[:16] / "attempt-1/scores/report-shapes.json"
    SPOILT[spoilt](file)

    reset_warnings()
    ledger = read_ledger(plan, tmp_path)
    assert ledger.lost_trials == {trial.fingerprint: trial.name}
    assert ledger[trial.fingerprint].missing_evaluations(trial) == ["report/shapes"]
    (told,) = caplog.messages
    assert told.startswith(f"{trial.name}: {file} ")
    assert told.endswith(
        ": `chip-ablate run` scores it again (or remove the trial with `chip-ablate rm`)"
    )
    caplog.clear()
    failed, _ = run(plan, tmp_path, **{trial.name: "the judge is away"})
    assert failed.report == []
    assert page.read_bytes() == before  # not written over by a poorer one
    assert f"{page} was not updated: the figures of {trial.name} are" in caplog.text

    outcome, executed = run(plan, tmp_path)
    assert executed == [trial.name]
    assert outcome.report[0] == page
    assert list_metrics(plan, Ledger(tmp_path)) == whole
    assert run(plan, tmp_path)[1] == []


def test_a_copy_that_is_not_what_a_storage_has_comes_again(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir, shared, plan = tmp_path / "work", tmp_path / "shared", plan_of()
    bind_storage(workdir, str(shared))
    run(plan, workdir)
    shutil.copytree(workdir / "trials", shared / "trials")
    whole = list_metrics(plan, Ledger(workdir))
    trial = plan.arms[0].trials[0]
    file = workdir / "trials" / trial.fingerprint[:16] / "attempt-1/scores/report-shapes.json"
    written = file.read_bytes()
    file.write_bytes(written.replace(b"10.0", b"17.0"))  # of the same size
    assert run(plan, workdir)[1] == []
    assert file.read_bytes() == written
    assert list_metrics(plan, Ledger(workdir)) == whole


def test_a_finished_trial_whose_folder_is_gone_is_told_and_made_again(
    finished_study: tuple[Path, Plan],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir, plan = finished_study
    whole = list_metrics(plan, Ledger(workdir))
    page = workdir / "studies/small/report/report.html"
    before = page.read_bytes()
    trial = plan.arms[0].trials[0]
    folder = workdir / "trials" / trial.fingerprint[:16]
    shutil.rmtree(folder)
    assert run_program("report", "small", "--workdir", workdir) == 2
    err = capsys.readouterr().err
    assert f"{trial.name}: its folder {folder / 'attempt-1'} is gone" in caplog.text
    assert "`chip-ablate run` trains and scores it again" in caplog.text
    assert f"report.html was not updated: the figures of {trial.name} are gone" in err
    assert page.read_bytes() == before
    assert run_program("status", "small", "--workdir", workdir, "--json") == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    states = {one["fingerprint"]: one["state"] for one in trials}
    assert states.pop(trial.fingerprint) == "to run"
    assert set(states.values()) == {"done"}
    outcome, executed = run(plan, workdir)
    assert executed == [trial.name]
    assert not outcome.summary.remaining
    assert list_metrics(plan, Ledger(workdir)) == whole


def test_a_trial_that_was_taken_out_is_no_loss(finished_study: tuple[Path, Plan]) -> None:
    workdir, plan = finished_study
    page = workdir / "studies/small/report/report.html"
    before = page.read_bytes()
    mark = plan.arms[1].trials[0].fingerprint
    assert run_program("rm", mark[:8], "--workdir", workdir, "--yes") == 0
    assert run_program("report", "small", "--workdir", workdir) == 0
    assert page.read_bytes() != before


@pytest.mark.parametrize("spoilt", [b"", b"[]", b"\xff", b'{"study": "small"}'])
def test_a_spoilt_plan_of_a_study_is_read_from_its_report_or_told(
    spoilt: bytes, finished_study: tuple[Path, Plan], caplog: pytest.LogCaptureFixture
) -> None:
    workdir, plan = finished_study
    file = workdir / "studies/small/plan.json"
    began = load_plan_snapshot(workdir, "small")
    assert began is not None
    file.write_bytes(spoilt)
    kept = load_plan_snapshot(workdir, "small")  # as provenance.json has it
    assert kept is not None
    assert set(kept.trials) == {trial.fingerprint for trial in plan.trials}
    (workdir / "studies/small/report/provenance.json").unlink()
    assert load_plan_snapshot(workdir, "small") is None
    mark = plan.arms[1].trials[0].fingerprint
    assert run_program("show", mark[:8], "--workdir", workdir) == 0
    assert (
        f"{file} has changed since it was written: the plan of study small is not known"
        in caplog.text
    )
    # Another study may have it.
    assert run_program("rm", mark[:8], "--workdir", workdir, "--yes") == 2
    assert run(plan, workdir)[1] == []
    kept = load_plan_snapshot(workdir, "small")
    assert kept is not None
    assert set(kept.trials) == {trial.fingerprint for trial in plan.trials}


@pytest.mark.parametrize(
    "name", ["report/report.html", "report/values.csv", "report/figures/cost.png", "plan.json",
             "closed.jsonl"]
)  # fmt: skip
def test_a_folder_where_a_file_goes_is_told_in_a_line(
    name: str, finished_study: tuple[Path, Plan]
) -> None:
    workdir, plan = finished_study
    place = workdir / "studies/small" / name
    place.unlink(missing_ok=True)
    place.mkdir()
    with pytest.raises(
        UserError, match=f"{place}: is a folder, but .* must be written there: move it away"
    ):
        run(plan, workdir)


def write_own_study(folder: Path, **changes: object) -> Path:
    """Write a study file that needs no model of its own; return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(STUDY), **changes}))
    return path


def test_two_files_with_one_name_do_not_write_over_each_other(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "runs"
    first = plan_of()
    run(first, workdir)
    page = workdir / "studies/small/report/report.html"
    before = page.read_bytes(), (workdir / "studies/small/plan.json").read_bytes()
    other = write_own_study(tmp_path / "other", seeds=[3])
    for words in (("run", other, "--executor", "inline"), ("report", other), ("plan", other)):
        assert run_program(*words, "--workdir", workdir) == 2
        assert (
            f"chip-ablate: {other}: study: 'small' is already the name of "
            f"{tmp_path / 'study.yaml'} in {workdir}: rename one of them, or use another --workdir"
        ) in capsys.readouterr().err
    assert (page.read_bytes(), (workdir / "studies/small/plan.json").read_bytes()) == before


def move_file(path: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    path.replace(to)


@pytest.mark.parametrize(
    "what", ["changed", "moved", "copied", "the other renamed", "the other broken", "a job's"]
)
def test_a_study_file_may_change_and_move(what: str, plan_of: PlanOf, tmp_path: Path) -> None:
    workdir, path = tmp_path / "runs", tmp_path / "study.yaml"
    run(plan_of(), workdir)
    text = path.read_text()
    if what == "changed":
        assert run(plan_of(STUDY.replace("[0, 1]", "[0, 1, 2]")), workdir)[1]
        return
    other = tmp_path / "other" / "study.yaml"
    if what == "a job's":
        other = workdir / "jobs" / "small-1" / "study.yaml"
        other.parent.mkdir(parents=True)
        other.write_text(text.replace("[0, 1]", "[0, 1, 2]"))
    elif what == "moved":
        move_file(path, other)
    else:
        other.parent.mkdir()
        other.write_text(text)
    if what == "the other renamed":
        path.write_text(text.replace("study: small", "study: large").replace("[0, 1]", "[5]"))
    elif what == "the other broken":
        path.write_text("study: [")
    assert run_program("plan", other, "--workdir", workdir) == 0


def test_status_and_report_know_a_study_by_its_name(
    plan_of: PlanOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, path = tmp_path / "runs", tmp_path / "study.yaml"
    run(plan_of(seeds=[0, 1, 2]), workdir)
    variant = "small+optimizer.lr=0.0001"
    run(plan_of(overrides={"optimizer.lr": 1e-4}), workdir)
    kept = load_plan_snapshot(workdir, variant)
    assert kept is not None
    assert kept.changes == StudyChanges(overrides={"optimizer.lr": 1e-4})

    def asked(*words: object) -> Any:
        assert run_program(*words, "--workdir", workdir, "--json") == 0
        return json.loads(capsys.readouterr().out)

    found = asked("status", "small")
    assert (found["study"], found["seeds"]) == ("small", [0, 1, 2])  # as it was run last
    assert asked("status", variant)["study"] == variant
    assert asked("status", "small", "--seeds", "0,5")["seeds"] == [0, 1, 5]
    assert run_program("status", "smalls", "--workdir", workdir) == 2
    assert "no such study" in capsys.readouterr().err
    path.unlink()
    assert run_program("report", "small", "--workdir", workdir) == 2
    assert f"study small: its file {path} is gone" in capsys.readouterr().err


def test_a_shipped_name_means_the_shipped_study(tmp_path: Path, plan_of: PlanOf) -> None:
    from orchestrator.plan.snapshot import find_run_study

    names: Sequence[str] = ("encoder",)
    run(plan_of(STUDY.replace("study: small", "study: encoder")), tmp_path)
    assert [find_run_study(tmp_path, name) for name in names] == [None]
