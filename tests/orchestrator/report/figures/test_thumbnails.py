"""Pictures of items, from benchmarks as they lie on disk."""

from __future__ import annotations

from pathlib import Path

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from orchestrator.report.figures.thumbnails import encode_item_images
from orchestrator.report.sections.changes import _split_metric

from ....chip_core.evaluation import benchmark_files

POPE = BenchmarkConfig(name="pope")


def test_pictures_are_read_from_the_benchmarks_files(tmp_path: Path) -> None:
    benchmark_files.write_pope(tmp_path, pictures=2)
    data_paths = DataPaths(benchmark_data=tmp_path)
    found = encode_item_images("report", POPE, data_paths, ["random/1", "random/0"])
    assert list(found) == ["random/1"]  # there is no question 0
    ((media, content),) = found["random/1"]
    assert (media, content[:4]) == ("image/png", b"\x89PNG")


def test_a_picture_that_is_gone_fails_nothing(tmp_path: Path) -> None:
    benchmark_files.write_pope(tmp_path, pictures=1)
    data_paths = DataPaths(benchmark_data=tmp_path)
    for file in tmp_path.glob("**/*.png"):
        file.unlink()
    assert encode_item_images("report", POPE, data_paths, ["random/1"]) == {"random/1": ()}
    assert encode_item_images("report", POPE, DataPaths(), ["random/1"]) == {}


def test_the_name_of_a_metric_may_have_parts() -> None:
    assert _split_metric("pope/random/accuracy") == ("report", "pope")
    assert _split_metric("select/mine.own:Few/hal") == ("select", "mine.own:Few")
