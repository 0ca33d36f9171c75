"""What a folder of benchmarks holds: files, pictures, counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.published import SOURCES
from chip_core.evaluation.benchmarks.status import BenchmarkStatus, find_benchmark_status
from chip_core.utils.errors import UserError


def find_status(name: str, folder: Path | None) -> BenchmarkStatus:
    (found,) = find_benchmark_status([name], folder)
    return found


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_mmhal(folder: Path, rows: int) -> None:
    listed = [{"image_id": str(number)} for number in range(rows)]
    write_file(folder / "mmhal" / "response_template.json", json.dumps(listed))


def test_every_scorer_has_a_source() -> None:
    assert set(BENCHMARKS) - {"shapes"} <= set(SOURCES)  # the embedded one has no files


def test_the_counts_of_the_published_files(oracles: Path) -> None:
    counts = {"amber": 15_220, "hallusionbench": 1_129, "pope": 9_000, "mmhal": 96, "mmmu": 900}
    for name, count in counts.items():
        found = find_status(name, oracles / "data")
        assert (found.count, found.state) == (count, "scoring only")
        sizes = {held.size == held.file.size for held in found.files if held.file.use == "scoring"}
        assert sizes == {True}


def test_a_status_says_what_its_files_allow(tmp_path: Path) -> None:
    assert find_status("mmhal", None).state == "absent"
    assert find_status("mmhal", tmp_path).state == "absent"
    write_mmhal(tmp_path, 96)
    assert (find_status("mmhal", tmp_path).state, find_status("mmhal", tmp_path).count) == (
        "scoring only",
        96,
    )
    for number in range(95):
        write_file(tmp_path / "mmhal" / "images" / f"{number}.jpg", "")
    held = find_status("mmhal", tmp_path).files[1]
    assert (held.parts, held.is_complete) == (95, False)
    write_file(tmp_path / "mmhal" / "images" / "95.PNG", "")
    # The official judge's prompt is not needed: there is one in its place.
    assert find_status("mmhal", tmp_path).state == "complete"
    write_mmhal(tmp_path, 95)
    assert (find_status("mmhal", tmp_path).state, find_status("mmhal", tmp_path).count) == (
        "broken",
        95,
    )
    write_file(tmp_path / "mmhal" / "response_template.json", "{")
    broken = find_status("mmhal", tmp_path)
    assert broken.state == "broken"
    assert broken.problem is not None and "not JSON" in broken.problem


def test_a_part_of_the_files_is_incomplete(tmp_path: Path) -> None:
    write_file(tmp_path / "pope" / "coco" / "coco_pope_random.json", '{"question_id": 1}')
    found = find_status("pope", tmp_path)
    assert (found.state, found.count) == ("incomplete", None)
    assert [held.is_complete for held in found.files] == [True, False, False, False]


def test_coco_may_lie_beside(tmp_path: Path) -> None:
    for kind in ("instances", "captions"):
        for split in ("train", "val"):
            write_file(tmp_path / "coco" / "annotations" / f"{kind}_{split}2014.json", "{}")
    write_file(tmp_path / "chair" / "synonyms.txt", "person, man")
    assert find_status("chair", tmp_path).state == "scoring only"
    assert find_status("objhal", tmp_path).state == "incomplete"


def test_counts_of_other_layouts(tmp_path: Path) -> None:
    write_file(tmp_path / "scienceqa" / "problems.json", "{}")
    splits = tmp_path / "scienceqa" / "pid_splits.json"
    write_file(splits, json.dumps({"test": ["1", "2"]}))
    assert find_status("scienceqa", tmp_path).count == 2
    write_file(splits, "[]")
    assert find_status("scienceqa", tmp_path).state == "broken"
    write_file(tmp_path / "mmmu" / "answer_dict_val.json", '{"a": 1, "b": 2}')
    assert find_status("mmmu", tmp_path).count == 2
    write_file(tmp_path / "mmmu" / "answer_dict_val.json", "[]")
    assert find_status("mmmu", tmp_path).state == "broken"
    assert find_status("mmvet", tmp_path).state == "by lmms-eval"


def test_errors_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--benchmark-data: no folder"):
        find_benchmark_status([], tmp_path / "none")
    with pytest.raises(UserError, match="unknown benchmark 'pop': did you mean 'pope'"):
        find_benchmark_status(["pop"], tmp_path)
    assert [found.name for found in find_benchmark_status([], tmp_path)] == list(SOURCES)
