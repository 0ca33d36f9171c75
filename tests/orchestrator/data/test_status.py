"""chip-ablate data status, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..program import run_program


def run_data_status(*arguments: str) -> int:
    return run_program("data", "status", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("random", "popular", "adversarial"):
        file = tmp_path / "data" / "pope" / f"coco_pope_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f'{{"question_id": {number}}}\n' for number in range(3000)))
    return tmp_path / "data"


def test_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_status("pope", "mmvet", "--benchmark-data", str(folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "pope  scoring only",
        "  all 9,000 questions; licence: MIT; COCO: see the publisher",
        "  there    coco_pope_random.json, for scoring, 64,890 bytes (published: 368,166)",
    ]
    assert lines[7:9] == [
        "  missing  val2014/, for asking, 0 of 500 files",
        "           from cocodataset.org, 2014: pictures of val (6 GB)",
    ]
    assert lines[10] == "mmvet  by lmms-eval"
    assert "pip install 'chip-ablate[lmms]'" in lines[-1]


def test_as_json_and_from_the_environment(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIP_ABLATE_BENCHMARK_DATA", str(folder))
    assert run_data_status("--json") == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]
    assert len(found) == 12
    pope = found["pope"]
    assert (pope["state"], pope["questions"], pope["questions_published"]) == (
        "scoring only",
        9000,
        9000,
    )
    assert pope["files"][0] == {
        "name": "coco_pope_random.json",
        "there": True,
        "path": str(folder / "pope" / "coco_pope_random.json"),
        "parts": 1,
        "parts_published": 1,
        "bytes": 64_890,  # 3,000 rows of 19 to 22 bytes: 10·19 + 90·20 + 900·21 + 2,000·22
        "bytes_published": 368_166,
        "for": "scoring",
        "published": "github.com/AoiDragon/POPE, output/coco/",
    }


def test_a_wrong_count_is_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pope" / "coco_pope_random.json").write_text('{"question_id": 1}\n')
    assert run_data_status("pope", "--benchmark-data", str(folder)) == 1
    printed = capsys.readouterr().out
    assert "pope  broken" in printed
    assert "6,001 questions and not the 9,000 published" in printed


def test_without_a_folder_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_status("amber") == 0
    printed = capsys.readouterr().out
    assert "name one by --benchmark-data or CHIP_ABLATE_BENCHMARK_DATA" in printed
    assert "github.com/junyangwang0410/AMBER" in printed


def test_errors_are_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_status("pop") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean 'pope'" in line
    assert run_data_status("--benchmark-data", "none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no folder none" in line
