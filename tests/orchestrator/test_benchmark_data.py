"""A study that also runs benchmarks with data of their own, from the questions to MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from chip_core.config.benchmark import DataPaths
from chip_core.evaluation.inference import Decoder
from chip_core.evaluation.task import Response
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import read_records
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.snapshot import read_identities, save_identities
from orchestrator.plan.training_rows import Overlap, count_overlaps, read_overlaps
from orchestrator.report.outcomes import load_scores
from orchestrator.report.summary import Summary, build_summary
from orchestrator.report.writers.plan import evaluation_lines, readiness_lines
from orchestrator.run import RunOutcome, check_can_start, run_study
from orchestrator.state.ledger import Ledger
from orchestrator.study.load import load_study
from orchestrator.study.model import StudyChanges
from orchestrator.tracking.address import resolve_uri

from ..chip_core.evaluation import benchmark_files
from .fakes import FakeExecutor, FakeTracker, InlineTracker
from .program import run_program

STUDY = """
study: scored
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
benchmarks:
  select: [{name: shapes, limit: 4}]
  report:
    - {name: amber, max_new_tokens: 12}
    - {name: pope, max_new_tokens: 4, protocol: corrected, limit: 9}
primary: {metric: pope/random/accuracy, goal: maximize}
"""
SHORT = {"training.max_steps": 1, "training.batch_size": 2, "engine.micro_batch": 2}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with AMBER's and POPE's files; descriptions too where NLTK's data are here."""
    shared = Path(__file__).parents[3] / "shared" / "oracles" / "nltk_data"
    root = tmp_path / "data"
    if shared.is_dir():
        root.mkdir()
        (root / "nltk_data").symlink_to(shared)
    benchmark_files.write_amber(root, pictures=1, describe=shared.is_dir())
    benchmark_files.write_pope(root, pictures=1)
    return root


def make_scored_plan(
    tmp_path: Path, data_paths: DataPaths, text: str = STUDY, **overrides: object
) -> Plan:
    file = tmp_path / "scored.yaml"
    file.write_text(text)
    study = load_study(file, StudyChanges(overrides={**SHORT, **overrides}))
    return make_plan(
        study, data_paths=data_paths, known_identities=read_identities(tmp_path / "w", study.name)
    )


def run(plan: Plan, workdir: Path) -> RunOutcome:
    return run_study(
        plan,
        workdir=workdir,
        executor=InlineExecutor,
        tracker=InlineTracker(workdir, None),
        console=Console(quiet=True),
    )


def load_summary(plan: Plan, workdir: Path) -> Summary:
    ledger = Ledger(workdir)
    return build_summary(plan, ledger, load_scores(plan, ledger, workdir))


def test_figures_on_pictures_that_were_read_otherwise_are_not_taken(
    tmp_path: Path, data: Path
) -> None:
    """Those of the embedded world, which is drawn, are what they were."""
    plan = make_scored_plan(tmp_path, DataPaths(benchmark_data=data))
    former = {
        key: {name: value for name, value in found.items() if name != "pictures"}
        for key, found in plan.benchmarks.items()
    }
    save_identities(tmp_path / "w", plan.study.name, former)
    # The second: also where the data are not on this machine.
    for data_paths in (DataPaths(benchmark_data=data), DataPaths()):
        found = make_scored_plan(tmp_path, data_paths).benchmarks
        assert found["report/pope"] != former["report/pope"]
        assert found["select/shapes"] == former["select/shapes"]


def test_from_questions_to_mlflow(tmp_path: Path, data: Path) -> None:
    workdir, data_paths = tmp_path / "w", DataPaths(benchmark_data=data)
    plan = make_scored_plan(tmp_path, data_paths)
    outcome = run(plan, workdir)
    assert outcome.executed == 3
    assert not outcome.failed
    metrics = set(outcome.summary.metrics)
    assert {"select/shapes/chair_i", "amber/accuracy", "pope/random/accuracy"} <= metrics

    client = MlflowClient(resolve_uri(workdir, None))
    experiment = client.get_experiment_by_name(plan.study.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (trial,) = [
        run for run in runs if run.data.tags["chip.kind"] == "trial" and "chip" in run.info.run_name
    ]
    ledger = Ledger(workdir)
    (own,) = plan.arms[1].trials
    assert {name: value for name, value in trial.data.metrics.items() if name in metrics} == ledger[
        own.fingerprint
    ].metrics(own)
    how = json.loads(trial.data.tags["chip.scored.report/pope"])
    assert (how["protocol"], how["scorer"]) == ("corrected", "pope-2")
    assert (how["n"], how["missing"], how["limit"], how["of"]) == (9, 0, 9, 18)
    amber = json.loads(trial.data.tags["chip.scored.report/amber"])
    assert (amber["protocol"], amber["missing"]) == ("official", 0)
    base = [run for run in runs if run.data.tags["chip.kind"] == "base"]
    assert "chip.scored.report/pope" in base[0].data.tags
    artifacts = {file.path for file in client.list_artifacts(trial.info.run_id, "responses")}
    assert "responses/report-amber.json" in artifacts

    text = (workdir / "studies" / plan.study.name / "report" / "report.md").read_text()
    assert "pope: protocol corrected, scorer pope-2; a seeded subset of 9 of 18 questions; " in text
    # "i see a yellow" names nothing of what is asked for.
    assert "up to 9 answers that could not be read (counted as wrong), in 3 of 3 trials" in text
    assert "amber: protocol official, scorer amber-2" in text
    origin = json.loads(
        (workdir / "studies" / plan.study.name / "report" / "provenance.json").read_text()
    )
    assert origin["benchmark_contents"]["report/pope"]["scorer"] == "pope-2"
    assert {entry["scored"]["report/pope"]["n"] for entry in origin["trials"]} == {9}

    # Again: nothing is run, also where the data are not here; the figures are found all the same.
    again = make_scored_plan(tmp_path, data_paths)
    assert run(again, workdir).executed == 0
    elsewhere = make_scored_plan(tmp_path, DataPaths())
    summary = load_summary(elsewhere, workdir)
    assert summary.rows[1].figures.keys() == outcome.summary.rows[1].figures.keys()
    # Other questions are other figures: they are scored, and nothing is trained again.
    file = data / "pope" / "coco_pope_random.json"
    file.write_text(file.read_text().replace("is there a", "do you see a"))
    changed = make_scored_plan(tmp_path, data_paths)
    assert changed.base.evaluations["report/pope"] != plan.base.evaluations["report/pope"]
    assert changed.base.evaluations["report/amber"] == plan.base.evaluations["report/amber"]
    executor = FakeExecutor()
    run_study(
        changed,
        workdir=workdir,
        executor=lambda: executor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    assert {job.name for job in executor.jobs} == {trial.name for trial in changed.trials}
    for job in executor.jobs:
        assert [settings.name for settings in job.config.benchmarks.report] == ["pope"]
        assert job.untrained or job.trained_model is not None
        assert job.data_paths.benchmark_data == data
        assert job.data_paths.judge_cache == workdir / "cache" / "judge"


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path, data: Path) -> None:
    (data / "amber" / "image" / "AMBER_1.png").unlink()
    text = STUDY.replace("    - {name: pope", "    - mmhal\n    - {name: pope")
    plan = make_scored_plan(tmp_path, DataPaths(benchmark_data=data), text)
    executor = FakeExecutor()
    with pytest.raises(ConfigError) as raised:
        run_study(
            plan,
            workdir=tmp_path / "w",
            executor=lambda: executor,
            tracker=FakeTracker(),
            console=Console(quiet=True),
        )
    first, second, third = raised.value.problems
    assert first.startswith("amber: 1 of 1 pictures are missing: ")
    assert second.startswith(f"mmhal: there is no folder {data}/mmhal")
    assert third.startswith("mmhal: its answers need a judge and there is none")
    assert executor.jobs == []
    assert [str(line) for line in readiness_lines(plan, tmp_path / "w")] == [
        f"cannot run yet: {problem}" for problem in raised.value.problems
    ]


def test_a_plan_says_what_scoring_costs(tmp_path: Path, data: Path) -> None:
    plan = make_scored_plan(tmp_path, DataPaths(benchmark_data=data))
    amber = len(plan.benchmarks and read_items(data))
    line, step = evaluation_lines(plan, Ledger(tmp_path / "w"))
    assert str(step) == (
        "scoring: a separate step without a GPU, in parallel with the next trials' training"
    )
    left = 3 * (4 + amber + 9)  # the untrained model and two trials
    assert str(line) == (
        f"questions a trial: select/shapes 4 of 500, report/amber {amber}, report/pope 9 of 18; "
        f"{left} answers to generate"
    )
    unknown = make_scored_plan(tmp_path, DataPaths())
    line, _ = evaluation_lines(unknown, Ledger(tmp_path / "w"))
    assert "report/amber unknown, report/pope unknown; 12 answers to generate" in str(line)
    trial = plan.arms[0].trials[0]
    ledger = Ledger(tmp_path / "w")
    from chip_core.results import AnsweredTrial, Answers, TrialResult

    seconds = {"train": 30.0, "answer report/amber": 4.0, "score report/amber": 6.0}
    result = TrialResult(steps=1, evaluations={}, seconds=seconds)
    ledger.record_result(trial, "scored", 1, "trials/x", result)
    *_, share = evaluation_lines(plan, ledger)
    told = "answers and scoring took 25% of the time of the trial done so far"  # 10 of 40 s
    assert str(share) == told
    answered = AnsweredTrial(
        steps=1, answers={"report/amber": Answers(items=amber, responses="x")}, evaluations={},
        seconds={},
    )  # fmt: skip
    ledger.record_answers(plan.arms[1].trials[0], "scored", 1, "trials/y", answered)
    line, *_ = evaluation_lines(plan, ledger)
    assert f"{left - amber} answers to generate; {amber} existing answers to score" in str(line)


def read_items(data: Path) -> list[object]:
    return list(json.loads((data / "amber" / "query" / "query_all.json").read_text()))


def test_the_same_questions_are_not_tuned_on_and_quoted(tmp_path: Path) -> None:
    text = STUDY.replace("[{name: shapes, limit: 4}]", "[pope]")
    with pytest.raises(ConfigError, match=r"benchmarks.report\[1\]: 'pope' is also under `select`"):
        make_scored_plan(tmp_path, DataPaths(), text)


def test_a_protocol_that_a_benchmark_does_not_know_is_told(tmp_path: Path) -> None:
    text = STUDY.replace("corrected", "chip")
    with pytest.raises(ConfigError, match="'pope' has no protocol 'chip': choices: corrected, "):
        make_scored_plan(tmp_path, DataPaths(), text)


@pytest.fixture
def pairs(tmp_path: Path, data: Path) -> Iterator[Path]:
    """Training pairs: one picture of POPE's by COCO's number, one of AMBER's scaled, others."""
    from PIL import Image

    folder = tmp_path / "pairs"
    folder.mkdir()
    shown = benchmark_files.draw_scenes(6)
    benchmark_files.save_picture(folder / "COCO_train2014_000000000001.png", shown[4])
    with Image.open(data / "amber" / "image" / "AMBER_1.png") as image:
        image.resize((96, 96)).save(folder / "scaled.jpg", quality=90)
    benchmark_files.save_picture(folder / "own.png", shown[5])
    rows = [
        {"id": name, "image": name, "prompt": "what?", "chosen": "a", "rejected": "b"}
        for name in ("COCO_train2014_000000000001.png", "scaled.jpg", "own.png")
    ]
    benchmark_files.write_rows(folder / "pairs.jsonl", rows)
    yield folder / "pairs.jsonl"


def test_training_images_that_a_benchmark_shows_are_counted(
    tmp_path: Path, data: Path, pairs: Path
) -> None:
    # POPE's picture 1 is scene 0, as AMBER's: the scaled one is in both.
    plan = make_scored_plan(tmp_path, DataPaths(benchmark_data=data), **{"data.source": str(pairs)})
    amber, pope = count_overlaps(plan, tmp_path / "w")
    assert (amber.key, amber.training, amber.pictures, amber.shared) == ("report/amber", 3, 1, 1)
    assert amber.examples == (("scaled.jpg", "AMBER_1.png"),)
    assert (pope.training, pope.shared) == (3, 2)
    assert dict(pope.examples)["COCO_train2014_000000000001.png"] == "COCO_val2014_000000000001.png"
    assert amber.sentence == (
        "amber: 1 of 3 training images are among its 1 pictures, by COCO id or by appearance "
        "(scaled.jpg is AMBER_1.png)."
    )
    assert read_overlaps(tmp_path / "w", plan.study.name) == [amber, pope]
    pairs.with_name("own.png").unlink()  # counted once: what is kept counts
    kept = list((tmp_path / "w" / "cache" / "overlap").iterdir())
    assert len(kept) == 2
    summary = load_summary(plan, tmp_path / "w")
    assert amber.sentence in summary.scoring
    none = Overlap(key="report/amber", source="x", training=5, pictures=3, shared=0)
    assert none.sentence == "amber: none of 5 training images is one of its pictures."
    hub = Overlap(key="report/amber", source="o/n", training=None, pictures=3, shared=0)
    assert "were not counted" in hub.sentence


def test_a_model_is_scored_without_a_study(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate", "shapes", "--benchmarks", "pope,shapes", "--benchmark-data", str(data),
        "--limit", "6", "--protocol", "official", "--set", "max_new_tokens=4", "--out", "out",
    ]  # fmt: skip
    # POPE's script divides by zero where no label is yes.
    assert run_program(*arguments, "--json") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "pope" in said and "protocol corrected" in said
    assert run_program(*arguments[:3], "shapes", *arguments[4:], "--json") == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]["shapes"]
    assert (found["n"], found["limit"], found["of"]) == (6, 6, 1000)
    assert set(found["metrics"]) <= {"chair_i", "chair_s", "hal", "cover"}
    assert len(read_records(tmp_path / found["responses"])) == 6
    assert run_program(*arguments[:3], "shapes", *arguments[4:]) == 0
    printed = capsys.readouterr()
    assert "shapes/cover" in printed.out
    assert "6 scored, 0 missing" in printed.out
    assert "shapes: 6 of 6 answers were cut at 4 tokens" in printed.out


def test_evaluate_says_what_could_not_be_read(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hm = Response(text="[hm]")
    monkeypatch.setattr(
        Decoder,
        "stream",
        lambda decoder, batches, *, size: [
            [(item, hm) for item in batch.items] for batch in batches
        ],
    )
    arguments = [
        "evaluate", "shapes", "--benchmarks", "pope", "--benchmark-data", str(data),
        "--limit", "6", "--protocol", "corrected", "--out", "out",
    ]  # fmt: skip
    assert run_program(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]["pope"]
    assert (found["unreadable"]["answers"], found["n"], found["missing"]) == (6, 6, 0)
    assert run_program(*arguments) == 0
    printed = capsys.readouterr().out
    assert "pope: 6 answers unreadable (counted as wrong), for instance" in printed
    assert "“[hm]”" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--benchmarks", "popee"], "unknown benchmark 'popee': did you mean 'pope'"),
        (["--benchmarks", ","], "--benchmarks: names none"),
        (["--benchmarks", "pope,pope"], "a benchmark is named twice"),
        (["--benchmarks", "pope"], "pope: its questions are in files: give the folder"),
        (["--benchmarks", "shapes", "--set", "limits=3"], "--set: limits: unknown key"),
        (["--benchmarks", "shapes", "--set", "judge.base_url=x"], "--set: judge"),
        (["--benchmarks", "shapes", "--base", "x"], "--base: shapes holds no adapter"),
        (
            ["--benchmarks", "shapes", "--set", "evaluation.generator=openai"],
            "--set: evaluation.generator: generator 'openai' needs base_url",
        ),
        (
            ["--benchmarks", "shapes", "--set", "evaluation.parity.shares=1"],
            "--set: evaluation.parity.shares: unknown key",
        ),
    ],
)
def test_bad_evaluations(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_program("evaluate", "shapes", *arguments) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_such_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("evaluate", "./nothing", "--benchmarks", "shapes") == 2
    assert "no folder nothing" in capsys.readouterr().err


def test_a_package_that_a_training_lacks_is_said_before_anything_is_written(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chip_core.evaluation.readiness.find_spec", lambda name: None)
    plan = plan_of(overrides={"optimizer.states": "int8"})
    said = (
        "optimizer.states is int8, but torchao is not installed here: "
        "pip install 'chip-ablate[int8]', or write optimizer.states: fp32"
    )
    assert plan.missing_requirements == [said]
    assert [str(line) for line in readiness_lines(plan, tmp_path / "w")] == [
        f"cannot run yet: {said}"
    ]
    with pytest.raises(ConfigError) as raised:
        check_can_start(plan, tmp_path / "w")
    assert list(raised.value.problems) == [said]
    assert plan_of().missing_requirements == []
