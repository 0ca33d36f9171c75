"""Rows that a study trains on are looked at before anything runs, and once for their content."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chip_core.config.trial import DataConfig
from chip_core.data import checks
from chip_core.data.image_files import ImageReader
from chip_core.data.source import open_source
from chip_core.utils.errors import ConfigError
from orchestrator.cli import main
from orchestrator.plan import training_rows
from orchestrator.plan.plan import Plan
from orchestrator.plan.training_rows import check_training_rows, save_checked_rows

from ...chip_core.data import files

PlanOf = Callable[..., Plan]

STUDY = """
study: small
recipe: shapes
factors:
  objective: [OBJECTIVES]
seeds: [0]
baseline: {objective: BASELINE}
benchmarks:
  report: [shapes]
"""
BROKEN = files.make_image_bytes(size=(64, 64))[:-40]  # its header says what it should be
#: The column whose image is broken -> what a row has beside it, and who reads that.
COLUMNS: dict[str, tuple[dict[str, Any], str, str]] = {
    "image": ({}, "dpo", ""),
    "rejected_image": ({}, "dpo", "rejected image: "),
    "second_image": ({"other": "A blue ball."}, "symmpo", "second image: "),
    "chosen_image": ({"image": None, "rejected_image": "good"}, "dpo", ""),
    "rejected_image of a side": (
        {"image": None, "chosen_image": "good"},
        "dpo",
        "rejected image: ",
    ),
}


def make_row(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"pair-{index}",
        "image": "good",
        "prompt": "What is it?",
        "chosen": "A red ball.",
        "rejected": "A red ball and a dog.",
        **changes,
    }


def write_rows(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> Path:
    """Write rows whose images are "good" or "broken": files by path, or bytes in the row."""
    content = {"good": files.make_image_bytes(), "broken": BROKEN}
    for name, picture in content.items():
        (folder / f"{name}.jpg").write_bytes(picture)

    def cell(value: Any) -> Any:
        if not isinstance(value, str) or value not in content:
            return value
        return f"{value}.jpg" if kind == "jsonl" else {"bytes": content[value], "path": None}

    cells = [{name: cell(value) for name, value in each.items()} for each in rows]
    file = folder / f"rows.{kind}"
    return (files.write_lines if kind == "jsonl" else files.write_parquet)(file, cells)


def make_study_text(*objectives: str) -> str:
    return STUDY.replace("OBJECTIVES", ", ".join(objectives)).replace("BASELINE", objectives[0])


def check_all(plan: Plan, workdir: Path, console: Console | None = None) -> None:
    """Check all of a plan's trainings as a process of its own does."""
    training_rows._passed_checks.clear()
    configs = [trial.config for arm in plan.arms for trial in arm.trials]
    check_training_rows(plan, configs, workdir, console or Console(quiet=True))
    save_checked_rows(plan, workdir)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Note each image that is decoded."""
    seen: list[None] = []
    size = ImageReader.size
    monkeypatch.setattr(ImageReader, "size", lambda *of: (seen.append(None), size(*of))[1])
    return seen


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_broken_image_is_one_line_before_anything_is_written(
    column: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    beside, objective, called = COLUMNS[column]
    name = column.partition(" ")[0]
    if name == "second_image":  # symmpo reads a rejected image, too
        beside = {**beside, "second_image": "good", "rejected_image": "good"}
    good = {name: "good", **beside}
    rows = [make_row(0, **good), make_row(1, **{**good, name: "broken"}), make_row(2, **good)]
    file = write_rows(tmp_path, rows, kind)
    Path("study.yaml").write_text(make_study_text(objective))
    command = ["run", "study.yaml", "--executor", "inline", "--set", f"data.source={file.name}"]
    for workdir, there in (("new", False), ("old", True)):
        if there:  # where something else was run before
            (tmp_path / workdir / "cache").mkdir(parents=True)
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--workdir", workdir])
        said = capsys.readouterr().err.splitlines()
        place = "rows.jsonl line 2" if kind == "jsonl" else "rows.parquet row 1"
        assert stopped.value.code == 2
        assert len(said) == 1
        assert said[0].startswith(
            "chip-ablate: study.yaml: data.source: 1 of 3 rows are bad: "
            f"{place}: {called}the image is broken ("
        )
        assert said[0].endswith(
            "): fix them, or leave them out with data.on_bad_row=skip (`chip-ablate data check` "
            "lists all)"
        )
        left = [path.name for path in Path(workdir).rglob("*")] if Path(workdir).exists() else []
        assert left == (["cache"] if there else [])


def test_good_rows_are_decoded_once_for_their_content(
    plan_of: PlanOf, tmp_path: Path, decoded: list[None]
) -> None:
    file = write_rows(tmp_path, [make_row(0), make_row(1, rejected_image="good")])
    source = {"data.source": str(file)}

    def look(*objectives: str, **changes: Any) -> int:
        decoded.clear()
        plan = plan_of(make_study_text(*objectives), overrides={**source, **changes})
        check_all(plan, tmp_path / "runs")
        return len(decoded)

    assert look("dpo", "cmdpo") == 3  # by both arms
    assert look("dpo", "cmdpo") == look("dpo") == 0
    assert look("dpo", **{"data.limit": 1}) == 1
    (tmp_path / "good.jpg").write_bytes(files.make_image_bytes(colour=7))
    assert look("dpo") == 3
    (kept, *_) = (tmp_path / "runs" / "cache" / "rows").glob("*.json")
    for each in (tmp_path / "runs" / "cache" / "rows").glob("*.json"):
        each.write_bytes(kept.read_bytes()[:-3])
    assert look("dpo") == 3
    assert look("dpo") == 0


def test_an_arm_that_asks_for_more_has_the_rows_looked_at_again(
    plan_of: PlanOf, tmp_path: Path, decoded: list[None]
) -> None:
    whole = {"rejected_image": "good", "second_image": "good", "other": "A blue ball."}
    file = write_rows(tmp_path, [make_row(0, **whole)])
    source = {"data.source": str(file)}
    counts = []
    for objectives in (["dpo"], ["dpo", "symmpo"], ["symmpo"], ["dpo"]):
        decoded.clear()
        check_all(plan_of(make_study_text(*objectives), overrides=source), tmp_path / "runs")
        counts.append(len(decoded))
    assert counts == [2, 3, 0, 0]


def test_what_an_arm_asks_and_a_row_lacks_is_told(plan_of: PlanOf, tmp_path: Path) -> None:
    file = write_rows(
        tmp_path, [make_row(0, clip_scores={"chosen": 0.6, "rejected": 0.3}), make_row(1)]
    )
    with pytest.raises(ConfigError, match=r"rows.jsonl line 2: no clip_scores"):
        check_all(
            plan_of(make_study_text("dpo", "dadpo"), overrides={"data.source": str(file)}),
            tmp_path / "w",
        )
    given = {"data.source": str(file), "rejected_image": "given"}
    # Which reads no rejected image.
    check_all(plan_of(make_study_text("dpo"), overrides=given), tmp_path / "w")
    with pytest.raises(ConfigError, match="2 of 2 rows are bad: .*line 1: rejected image: the row"):
        check_all(plan_of(make_study_text("chip"), overrides=given), tmp_path / "w")


def test_rows_that_are_to_be_left_out_are_left_to_the_training(
    plan_of: PlanOf, tmp_path: Path, decoded: list[None]
) -> None:
    file = write_rows(tmp_path, [make_row(0, image="broken")])
    given = {"data.source": str(file), "data.on_bad_row": "skip"}
    check_all(plan_of(make_study_text("dpo"), overrides=given), tmp_path / "w")
    assert not decoded


def test_prompts_of_rounds_need_no_responses_and_cannot_be_left_out(
    plan_of: PlanOf, tmp_path: Path, decoded: list[None]
) -> None:
    def prompt(index: int, **changes: Any) -> dict[str, Any]:
        left_out = ("chosen", "rejected")
        return {name: of for name, of in make_row(index, **changes).items() if name not in left_out}

    file = write_rows(tmp_path, [prompt(0), prompt(1)])
    given = {
        "data.source": str(file),
        "data.on_bad_row": "skip",
        "data.format": "jsonl",
        "pairs.rounds": 1,
    }
    check_all(plan_of(make_study_text("dpo"), overrides=given), tmp_path / "w")
    assert len(decoded) == 2
    write_rows(tmp_path, [prompt(0), prompt(1, image="broken")])
    with pytest.raises(ConfigError, match="line 2: the image is broken .* leave them out of the f"):
        check_all(plan_of(make_study_text("dpo"), overrides=given), tmp_path / "w")


def test_the_embedded_world_is_not_looked_at(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open_source", "_check_rows", "_load_passed_checks"):
        monkeypatch.delattr(training_rows, name)
    check_all(plan_of(make_study_text("dpo")), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_what_the_hub_has_is_not_fetched_for_it(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[None]
) -> None:
    told: list[str] = []
    monkeypatch.setattr(training_rows, "warn_once", told.append)
    monkeypatch.setattr(training_rows, "is_local", lambda data: False)
    monkeypatch.delattr(training_rows, "open_source")
    check_all(
        plan_of(make_study_text("dpo"), overrides={"data.source": "owner/name"}), tmp_path / "w"
    )
    assert told == [
        "owner/name has not been downloaded: its rows are checked when a training starts"
    ]
    assert not decoded


def test_fetched_rows_are_known_by_their_files(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[None]
) -> None:
    file = write_rows(tmp_path, [make_row(0)], "parquet")
    there = open_source(DataConfig(source=str(file)))
    monkeypatch.setattr(training_rows, "is_local", lambda data: True)
    monkeypatch.setattr(training_rows, "open_source", lambda data: there)
    plan = plan_of(make_study_text("dpo"), overrides={"data.source": "owner/name"})
    counts = []
    for touched in (False, False, True):
        if touched:
            os.utime(file, (1, 1))
        decoded.clear()
        check_all(plan, tmp_path / "w")
        counts.append(len(decoded))
    assert counts == [1, 0, 1]


def test_many_rows_are_shared_and_progress_is_shown(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_MIN_ROWS_FOR_THREADS", 100)
    monkeypatch.setattr(checks, "cpu_count", lambda: 2)
    monkeypatch.setattr("orchestrator.utils.progress.SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.utils.progress.PLAIN_INTERVAL", 0.0)
    size, makers = ImageReader.size, set[str]()

    def sized(reader: ImageReader, ref: Any) -> tuple[int, int]:
        makers.add(threading.current_thread().name)
        return size(reader, ref)

    monkeypatch.setattr(ImageReader, "size", sized)
    images = ["broken" if index in (7, 90) else "good" for index in range(100)]
    file = write_rows(tmp_path, [make_row(index, image=name) for index, name in enumerate(images)])
    out = io.StringIO()
    with pytest.raises(ConfigError) as told:
        check_all(
            plan_of(make_study_text("dpo"), overrides={"data.source": str(file)}),
            tmp_path / "w",
            Console(file=out, width=100),
        )
    (line,) = told.value.problems
    assert "2 of 100 rows are bad" in line
    assert line.count("the image is broken") == 2
    assert "line 8: the image" in line
    assert "line 91: the image" in line
    assert "rows checked: 50 of 100, " in out.getvalue()
    assert makers and threading.current_thread().name not in makers
