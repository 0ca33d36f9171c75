"""A finished study run again: nothing is drawn, written or shown that is there as it would be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chip_core.utils.files import read_json, write_checksummed
from orchestrator.executors.base import Executor
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.report import cached
from orchestrator.report.results import RunOutcome
from orchestrator.report.writers.files import report_folder
from orchestrator.run import run_study
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import resolve_search
from orchestrator.study.load import load_study
from orchestrator.study.model import StudyChanges
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.records import StoreRecord
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import PendingRuns, TrackingState, TrialView

from .conftest import STUDY
from .fakes import FakeExecutor, FakeTracker

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")

#: Libraries that a command without anything to run never needs.
HEAVY = ("torch", "transformers", "ray", "mlflow", "matplotlib", "scipy", "datasets", "sqlalchemy")


class FileTracker(FakeTracker):
    """Keeps its runs in a file, as a database in the work directory does."""

    def __init__(self, database: Path) -> None:
        super().__init__()
        self._database = database
        self.asked = False

    def open(self, plan: Plan, done: list[TrialView], began: float | None = None) -> None:  # type: ignore[override]
        super().open(plan, done, began)
        self.asked = True
        if not self._database.exists():
            self._database.write_text("runs")


def run(
    plan: Plan,
    workdir: Path,
    uri: str | None = None,
    tracker: FileTracker | None = None,
    executor: Callable[[], Executor] = FakeExecutor,
) -> tuple[RunOutcome, FileTracker]:
    tracker = tracker or FileTracker(workdir / "mlflow.db")
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=executor,
        tracker=tracker,
        console=Console(quiet=True),
        shown_record=StoreRecord(workdir, plan.study.name, uri),
    )
    return outcome, tracker


def refuse_to_execute() -> Executor:
    raise AssertionError("there is nothing to execute")


def list_write_times(workdir: Path) -> dict[str, int]:
    """Return when each file was written; locks are a run's own."""
    return {
        str(file): file.stat().st_mtime_ns
        for file in workdir.rglob("*")
        if file.is_file() and file.suffix not in (".lock", ".holder")
    }


def hash_report_inputs(plan: Plan, workdir: Path) -> str:
    folder = report_folder(workdir, plan.study.name)
    own = read_json(folder.with_name("report.json"))["files"]
    return cached.hash_inputs(plan, Ledger(workdir), workdir, folder, own)


def test_nothing_is_written_anew(plan_of: PlanOf, tmp_path: Path) -> None:
    first, _ = run(plan_of(), tmp_path / "runs")
    before = list_write_times(tmp_path / "runs")
    again, tracker = run(plan_of(), tmp_path / "runs", executor=refuse_to_execute)
    assert list_write_times(tmp_path / "runs") == before
    assert not tracker.asked and tracker.status is None
    assert again.executed == 0 and again.waiting is None
    assert again.results == first.results and list(again.report) == list(first.report)
    assert again.report[0].name == "report.html"
    assert again.summary.rows[1].figures == first.summary.rows[1].figures


def test_a_damaged_report_is_written_again(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    folder = report_folder(workdir, "small")
    names = ["report.html", "values.csv", next((folder / "figures").glob("*.pdf"))]
    for name, damage in zip(names, (None, b"", b"another"), strict=True):
        file = folder / name
        whole = file.read_bytes()
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        run(plan_of(), workdir)
        assert file.read_bytes() == whole, name
        before = list_write_times(workdir)
        run(plan_of(), workdir)
        assert list_write_times(workdir) == before


def test_a_damaged_note_of_the_report_is_not_believed(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    for name in ("report.json", "shown.json"):
        note = report_folder(workdir, "small").with_name(name)
        whole = note.read_bytes()
        for broken in (whole[:-40], b"{}", whole.replace(b"1", b"2", 1)):
            note.write_bytes(broken)
            outcome, _ = run(plan_of(), workdir)
            assert outcome.results.left == 0
            assert outcome.results.grids[0].rows[1][0][0] == ("dpo, frozen", "")
            assert note.stat().st_size == len(whole), (name, broken[:20])


MORE_SEEDS = STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")


CHANGED = {
    "seeds": MORE_SEEDS,
    "benchmark": STUDY.replace("[shapes]", "[{name: shapes, limit: 5}]"),
    "delta": STUDY.replace("goal: minimize}", "goal: minimize, smallest_difference: 0.5}"),
    "question": STUDY.replace("Which?", "Which one?"),
    "level": STUDY.replace("[dpo, chip]", "[dpo, chip, cmdpo]"),
    "order": STUDY.replace("[dpo, chip]", "[chip, dpo]"),
    "baseline": STUDY.replace("objective: dpo,", "objective: chip,"),
    "exploratory": STUDY + "exploratory: true\n",
    "published": STUDY + "published: [{source: A paper, arm: base, values: {shapes/hal: 12.5}}]\n",
    "primary": STUDY.replace("primary: {metric: shapes/chair_i", "primary: {metric: shapes/hal"),
}


def test_what_changes_a_report_changes_its_hash(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    seen = {"as it was": hash_report_inputs(plan_of(), workdir)}
    assert hash_report_inputs(plan_of(), workdir) == seen["as it was"]
    for what, text in CHANGED.items():
        seen[what] = hash_report_inputs(plan_of(text), workdir)
    assert len(set(seen.values())) == len(seen), seen


def test_every_shipped_study_has_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The version is asked of a process of its own.
    monkeypatch.setattr("chip_core.evaluation.benchmarks.lmms_eval.read_version", lambda: "0")
    seen = set()
    files = sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml"))
    for file in files:
        ledger = Ledger(tmp_path)
        plan = resolve_search(make_plan(load_study(file, StudyChanges())), ledger)
        seen.add(cached.hash_inputs(plan, ledger, tmp_path, tmp_path / "report", {}))
    assert len(seen) == len(files) > 5


def test_what_lies_beside_changes_it(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    plan = plan_of()
    run(plan, workdir)
    folder, seen = report_folder(workdir, "small"), [hash_report_inputs(plan, workdir)]

    def changed() -> None:
        seen.append(hash_report_inputs(plan, workdir))
        assert seen[-1] not in seen[:-1]

    write_checksummed(folder / "representation.json", {"rows": []})
    changed()
    write_checksummed(folder / "humans" / "sheet.json", {"figures": []})
    changed()
    write_checksummed(folder / "humans" / "sheet.json", {"figures": [1]})
    changed()
    (folder / "figures" / "representation.png").write_bytes(b"\x89PNG")
    changed()
    write_checksummed(folder.with_name("left_out.json"), {"trials": [], "sentence": "some"})
    changed()
    trial = plan.arms[1].trials[0]
    [attempt] = (workdir / "trials" / trial.fingerprint[:16]).iterdir()
    (attempt / "curves.jsonl").write_text("{}\n")
    changed()
    [scored] = Ledger(workdir)[trial.fingerprint].evaluations.values()
    scores = attempt / scored.evaluation.scores
    scores.write_text(scores.read_text() + "\n")
    changed()
    Ledger(workdir).record_start(trial, "small", 2)
    changed()
    Ledger(workdir).record_removal(trial.fingerprint)
    changed()
    data = tmp_path / "data"
    plan = replace(plan, data_paths=replace(plan.data_paths, benchmark_data=data))
    changed()
    (data / "shapes" / "images").mkdir(parents=True)
    changed()


def test_another_version_makes_it_anew(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    before = hash_report_inputs(plan_of(), workdir)
    page = report_folder(workdir, "small") / "report.html"
    written = page.stat().st_mtime_ns
    monkeypatch.setattr("orchestrator.__version__", "99.0")
    cached.hash_code.cache_clear()
    try:
        assert hash_report_inputs(plan_of(), workdir) != before
        run(plan_of(), workdir)
        assert page.stat().st_mtime_ns > written
    finally:
        cached.hash_code.cache_clear()


def test_more_seeds_are_reported_and_then_the_study_alone(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    more, _ = run(plan_of(MORE_SEEDS), workdir)
    assert more.results.data["arms"][1]["figures"]["shapes/chair_i"]["n"] == 3
    fewer, tracker = run(plan_of(), workdir)
    assert fewer.executed == 0 and tracker.asked
    assert fewer.results.data["arms"][1]["figures"]["shapes/chair_i"]["n"] == 2


def test_a_store_is_asked_unless_it_is_as_it_was_left(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"
    run(plan_of(), workdir)
    database = workdir / "mlflow.db"

    def asked(uri: str | None = None) -> bool:
        return run(plan_of(), workdir, uri)[1].asked

    assert not asked()
    database.unlink()
    assert asked() and not asked()
    database.write_text("runs of another program")  # as where a run was deleted by hand
    assert asked() and not asked()
    (workdir / "artifacts").mkdir()
    (workdir / "artifacts" / "report.html").write_text("page")
    assert asked() and not asked()
    (workdir / "artifacts" / "report.html").unlink()
    assert asked() and not asked()
    # Another database: first never, then as it was left; a server can tell only itself.
    other = tmp_path / "other.db"
    other.write_text("runs")
    assert asked(f"sqlite:///{other}") and not asked(f"sqlite:///{other}")
    assert not asked()
    for _ in range(2):
        assert asked("http://127.0.0.1:1")


def test_what_waits_is_never_told_as_tracked(plan_of: PlanOf, tmp_path: Path) -> None:
    workdir = tmp_path / "runs"

    class Away(FileTracker):
        def state(self) -> TrackingState:
            pending = PendingRuns(reason="away", trials=("base",))
            return replace(super().state(), pending=pending)

    first, _ = run(plan_of(), workdir, tracker=Away(workdir / "mlflow.db"))
    assert first.waiting is not None
    again, tracker = run(plan_of(), workdir, tracker=Away(workdir / "mlflow.db"))
    assert tracker.asked and again.waiting is not None
    assert run(plan_of(), workdir)[1].asked
    assert not run(plan_of(), workdir)[1].asked


def test_commands_import_what_they_use(
    write_study: Callable[[str], Path], tmp_path: Path, with_store: Callable[[Path], Path]
) -> None:
    study, workdir = write_study(STUDY), with_store(tmp_path / "runs")
    plan = make_plan(load_study(study, StudyChanges()))
    run_study(
        plan,
        workdir=workdir,
        executor=FakeExecutor,
        tracker=Tracker(MlflowProjection(workdir)),
        console=Console(quiet=True),
        shown_record=StoreRecord(workdir, "small", None),
    )
    before = list_write_times(workdir)
    script = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as ended:\n    code = ended.code\n"
        f"print('imported', sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    environment = {key: value for key, value in os.environ.items() if "TRACKING" not in key}
    for command in ("plan", "status", "run"):
        done = subprocess.run(
            [sys.executable, "-c", script, command, str(study), "--workdir", str(workdir)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "imported []" in done.stderr, (command, done.stderr)
    assert "nothing to run: everything is done already" in done.stdout
    assert f"report: {workdir}/studies/small/report/report.html" in done.stdout
    assert "all tracked" in done.stdout and "arms side by side" in done.stdout
    assert list_write_times(workdir) == before
    (workdir / "mlflow.db").unlink()
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(study), "--workdir", str(workdir)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "'mlflow'" in done.stderr  # it is shown again
    assert (workdir / "mlflow.db").stat().st_size > 100_000
