"""What a trial lacks is said: of what is tuned on and quoted by halves, sides and questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from chip_core.config.benchmark import (
    BenchmarkConfig,
    BenchmarksConfig,
    DataPaths,
    EvaluationConfig,
)
from chip_core.config.identity import evaluation_identity, fingerprint
from chip_core.evaluation.items import find_benchmark, select_half, select_items
from chip_core.evaluation.readiness import (
    find_benchmark_problems,
    find_declared_overlaps,
    find_shared_questions,
)
from chip_core.evaluation.task import BENCHMARKS, Item, Picture
from chip_core.utils.errors import UserError

from . import benchmark_files
from .benchmarks.test_items import OwnBenchmark


def make_config(**settings: Any) -> BenchmarkConfig:
    return BenchmarkConfig.model_validate({"name": "pope", **settings})


def put_on_both_sides(select: Any, report: Any) -> BenchmarksConfig:
    return BenchmarksConfig.model_validate({"select": [select], "report": [report]})


def make_picture(key: str, colour: str = "red") -> Picture:
    return Picture(key=key, read=lambda: Image.new("RGB", (4, 4), colour))


def test_halves_are_disjoint_whole_and_by_picture(tmp_path: Path) -> None:
    data_paths = DataPaths(benchmark_data=tmp_path)
    benchmark_files.write_pope(tmp_path, pictures=16)
    benchmark = find_benchmark("pope")

    def half(which: str, **settings: Any) -> list[Item]:
        items, whole = select_items(
            "report", make_config(half=which, **settings), benchmark, data_paths
        )
        assert whole == 16 * 18  # three splits of six questions
        return list(items)

    tuned, quoted = half("select"), half("report")
    everything, _ = select_items("report", make_config(), benchmark, data_paths)
    ids = [{item.id for item in items} for items in (tuned, quoted)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {item.id for item in everything}
    shown = [{item.pictures[0].key for item in items} for items in (tuned, quoted)]
    assert not shown[0] & shown[1]
    # a picture's half is the last bit of the first byte of a hash of seed and name alone
    for key in shown[0] | shown[1]:
        bit = hashlib.sha256(f"half\x1f0\x1f{key}".encode()).digest()[0] & 1
        assert key in shown[bit]
    assert [item.id for item in half("select", half_seed=1)] != [item.id for item in tuned]
    ten = half("select", limit=10)
    assert {item.id for item in ten} < ids[0]
    assert len(ten) == 10


def test_no_order_moves_a_question_to_the_other_half() -> None:
    items = [Item(id=str(number), prompt="?", pictures=()) for number in range(40)]
    settings = make_config(half="select")
    forward = select_half(items, settings, OwnBenchmark())
    backward = select_half(items[::-1], settings, OwnBenchmark())
    assert [item.id for item in backward] == [item.id for item in forward][::-1]
    fewer = select_half(items[:20], settings, OwnBenchmark())
    assert [item.id for item in fewer] == [item.id for item in forward if int(item.id) < 20]


def test_what_cannot_be_halved_is_told() -> None:
    class ByItem(OwnBenchmark):
        def group(self, item: Item) -> str:
            return item.id

    shared = [Item(id=str(n), prompt="?", pictures=(make_picture("a.png"),)) for n in range(20)]
    with pytest.raises(UserError, match=r"pope: picture a.png is in both halves: let the"):
        select_half(shared, make_config(half="select"), ByItem())
    with pytest.raises(UserError, match=r"pope: its (select|report) half is empty"):
        select_half(shared, make_config(half="select"), OwnBenchmark())  # by picture: one group


def test_a_set_of_hallusionbench_is_never_cut(tmp_path: Path) -> None:
    benchmark = BENCHMARKS["hallusionbench"]
    folder = benchmark_files.write_hallusionbench(tmp_path)
    items = benchmark.items("report", data=folder, protocol="official")
    for item in items:
        category, subcategory, number, _, _ = item.id.split("_")
        assert benchmark.group(item) == f"{category}_{subcategory}_{number}"


def test_a_half_is_part_of_the_evaluations_identity() -> None:
    def mark(**settings: Any) -> str:
        return fingerprint(
            evaluation_identity("report", make_config(**settings), {}, EvaluationConfig())
        )

    found = [mark(), mark(half="report"), mark(half="report", half_seed=1), mark(half="select")]
    assert len(set(found)) == 4
    with pytest.raises(ValidationError, match="half_seed has no effect if all questions are asked"):
        make_config(half_seed=1)
    # asked whole, an evaluation is what it was before there were halves
    known = {"name": "pope", "protocol": "official", "limit": None, "judge": None}
    before = {"behaviour": 1, "side": "report", **known}
    assert mark() == fingerprint(before)


@pytest.mark.parametrize(
    ("select", "report", "problem"),
    [
        (
            "pope",
            "pope",
            "has only one set of questions, and questions used for tuning cannot be reported",
        ),
        (
            {"name": "pope", "half": "select"},
            "pope",
            "is halved on one side but used whole under `report`: write `half: report` there",
        ),
        ("pope", {"name": "pope", "half": "report"}, "used whole under `select`"),
        (
            {"name": "pope", "half": "select"},
            {"name": "pope", "half": "report", "half_seed": 1},
            "is halved by two seeds, so that its halves overlap",
        ),
        (
            {"name": "shapes", "half": "select"},
            "pope",
            "already has different questions on each side: leave out `half`",
        ),
    ],
)
def test_what_stands_on_both_sides_is_refused(select: Any, report: Any, problem: str) -> None:
    benchmarks = put_on_both_sides(select, report)
    ((_, _, said),) = find_declared_overlaps(benchmarks)
    assert problem in said
    # A trial's check finds it, too.
    assert any(problem in line for line in find_benchmark_problems(benchmarks, DataPaths()))


def test_what_stands_apart_is_not() -> None:
    halved = put_on_both_sides(
        {"name": "pope", "half": "select"}, {"name": "pope", "half": "report"}
    )
    assert not find_declared_overlaps(halved)
    assert not find_declared_overlaps(put_on_both_sides("shapes", "shapes"))
    assert not find_shared_questions(put_on_both_sides("shapes", "shapes"), DataPaths())


def test_the_half_of_the_other_side_is_no_configuration() -> None:
    with pytest.raises(ValidationError, match="report: 'pope' uses the half for"):
        put_on_both_sides("shapes", {"name": "pope", "half": "select"})
    with pytest.raises(ValidationError, match="select: 'pope' uses the half for"):
        put_on_both_sides({"name": "pope", "half": "report"}, "shapes")


class DeclaresSplits(OwnBenchmark):
    """A user's own that says its sides differ, and asks the same on both."""

    splits = True

    def items(self, side: Any, *, data: Any, protocol: Any) -> Sequence[Item]:
        return [Item(id=f"{side}/1", prompt="Is it red?", pictures=(make_picture("one.png"),))]


class OtherPictures(DeclaresSplits):
    """Another benchmark, whose pictures happen to go by the same names."""

    def items(self, side: Any, *, data: Any, protocol: Any) -> Sequence[Item]:
        return [Item(id="1", prompt="Is it red?", pictures=(make_picture("one.png", "blue"),))]


def test_the_same_question_on_both_sides_is_found_by_its_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"a": DeclaresSplits(), "b": DeclaresSplits(), "c": OtherPictures()}
    monkeypatch.setattr("chip_core.evaluation.readiness.find_benchmark", own.__getitem__)
    said = "its question report/1 is asked under `select`, too, by a: questions used for tuning"
    # This benchmark says of itself that it splits.
    assert said in find_shared_questions(put_on_both_sides("a", "a"), DataPaths())[0]
    # Under another name.
    assert said in find_shared_questions(put_on_both_sides("a", "b"), DataPaths())[0]
    assert not find_shared_questions(put_on_both_sides("a", "c"), DataPaths())
    assert any(
        said in line for line in find_benchmark_problems(put_on_both_sides("a", "a"), DataPaths())
    )
