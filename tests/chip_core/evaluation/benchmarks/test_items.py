"""Every benchmark's own layout is read, and every benchmark is held to the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.data.image_files import READER_VERSION
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.base import YES_OR_NO
from chip_core.evaluation.conformance import check_conformance
from chip_core.evaluation.items import (
    benchmark_identity,
    find_benchmark,
    resolve_decoding,
    select_items,
)
from chip_core.evaluation.outcomes import ItemOutcome, percent
from chip_core.evaluation.readiness import find_benchmark_problems
from chip_core.evaluation.scorer import Answer, JudgeRequest, Resources, ScoreResult
from chip_core.evaluation.task import Benchmark, Decoding, Item, MetricInfo, Picture, Side
from chip_core.evaluation.text.similarity import TableSimilarity
from chip_core.shapes.world import SHAPES
from chip_core.utils.errors import TrialError, UserError

from .. import benchmark_files


class StubJudge:
    """Says the same of everything."""

    model = "stub"

    def __init__(self, reply: str) -> None:
        self.reply = reply

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        return [self.reply for _ in requests]


def list_items(name: str, folder: Path, protocol: str = "official") -> Sequence[Item]:
    return BENCHMARKS[name].items("report", data=folder, protocol=protocol)  # type: ignore[arg-type]


def test_amber_has_descriptions_and_yes_or_no_questions(tmp_path: Path) -> None:
    folder = benchmark_files.write_amber(tmp_path, pictures=2)
    items = list_items("amber", folder)
    assert len(items) == 2 + 2 * len(SHAPES)
    assert [item.task for item in items[:3]] == ["describe", "describe", "yes or no"]
    assert items[0].pictures == items[2].pictures  # one picture, made once
    (shown,) = benchmark_files.open_pictures(items[0])
    assert (shown.mode, shown.size) == ("RGB", (48, 48))
    asked_as_paper = list_items("amber", folder, "chip")
    assert asked_as_paper[2].prompt == items[2].prompt + YES_OR_NO
    assert asked_as_paper[0].prompt == items[0].prompt


def test_pope_has_three_splits(tmp_path: Path) -> None:
    items = list_items("pope", benchmark_files.write_pope(tmp_path))
    assert len(items) == 3 * 2 * 6
    assert [items[0].id, items[12].id, items[-1].id] == ["random/1", "popular/1", "adversarial/12"]
    assert items[0].pictures[0].file == tmp_path / "coco/val2014/COCO_val2014_000000000001.png"


@pytest.mark.parametrize("inside", [False, True])
def test_mmhal_has_pictures_beside_it_or_inside(tmp_path: Path, inside: bool) -> None:
    items = list_items("mmhal", benchmark_files.write_mmhal(tmp_path, embedded=inside))
    assert [item.id for item in items] == [f"id{number}" for number in range(8)]
    assert benchmark_files.open_pictures(items[3])[0].size == (48, 48)


def test_hallusionbench_asks_without_a_figure_too(tmp_path: Path) -> None:
    items = list_items("hallusionbench", benchmark_files.write_hallusionbench(tmp_path))
    assert [len(item.pictures) for item in items] == [0, 1, 1]
    assert items[1].id == "VS_chart_0_1_0"
    assert benchmark_files.open_pictures(items[1])


def test_mmmu_shows_all_pictures_before_the_text(tmp_path: Path) -> None:
    items = list_items("mmmu", benchmark_files.write_mmmu(tmp_path))
    assert [len(item.pictures) for item in items] == [1, 2, 1]
    assert items[0].prompt == (
        "What is <image 1>?\n\n(A) a star\n(B) a moon\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[2].prompt.endswith("\n\nAnswer the question using a single word or phrase.")
    assert items[1].fields["options"] == ["red", "blue", "none"]
    assert [image.size for image in benchmark_files.open_pictures(items[1])] == [(48, 48), (48, 48)]


def test_scienceqa_is_asked_as_llava_asks_it(tmp_path: Path) -> None:
    first, second = list_items("scienceqa", benchmark_files.write_scienceqa(tmp_path))
    assert first.prompt == (
        "Context: N/A\nQuestion: Which is it?\nOptions: (A) a star (B) a moon\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert benchmark_files.open_pictures(first)
    assert second.pictures == ()
    assert second.prompt.startswith("Context: Look.\n")


def test_llava_bench(tmp_path: Path) -> None:
    items = list_items("llava_bench", benchmark_files.write_llava_bench(tmp_path))
    assert [item.id for item in items] == ["0", "1", "2"]


def test_pictures_to_describe(tmp_path: Path) -> None:
    first, second = list_items("chair", benchmark_files.write_chair(tmp_path))
    assert first.prompt == "Please describe this image in detail."
    assert second.prompt == "what?"
    assert first.pictures[0].file == tmp_path / "coco/val2014/COCO_val2014_000000000001.jpg"
    inside, _ = list_items("objhal", benchmark_files.write_objhal(tmp_path))
    assert (inside.id, inside.prompt) == ("100", "what do you see?")
    assert benchmark_files.open_pictures(inside)[0].size == (48, 48)


RESOURCES = {"amber": Resources(similarity=TableSimilarity({}))}
JUDGED = {
    "objhal": '["star", "moon"]',
    "mmhal": "Rating: 3",
    "hallusionbench": "correct",
    "llava_bench": "8 7",
}


@pytest.mark.parametrize(
    "name", sorted(name for name in BENCHMARKS if "data" in BENCHMARKS[name].needs)
)
def test_every_benchmark_with_a_folder_conforms(
    name: str, tmp_path: Path, oracles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLTK_DATA", str(oracles / "nltk_data"))
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(oracles / "nltk_data")])
    folder = getattr(benchmark_files, f"write_{name}")(tmp_path)
    resources = RESOURCES.get(name, Resources())
    if name in JUDGED:
        resources = replace(resources, judge=StubJudge(JUDGED[name]))
    if "coco" in BENCHMARKS[name].needs:
        resources = replace(resources, coco=tmp_path / "coco" / "annotations")
    found = check_conformance(BENCHMARKS[name], data=folder, resources=resources)
    assert {what: problem for what, problem in found.items() if problem is not None} == {}
    assert len(found) == 10


def test_the_embedded_world_conforms() -> None:
    class Few(type(BENCHMARKS["shapes"])):  # type: ignore[misc]
        def items(self, side: Side, *, data: Path | None, protocol: str) -> Sequence[Item]:
            return super().items(side, data=data, protocol=protocol)[:30]  # type: ignore[no-any-return]

    found = check_conformance(Few())
    assert {what: problem for what, problem in found.items() if problem is not None} == {}


class OwnBenchmark(Benchmark):
    """As a user writes it."""

    version = "own-1"
    metrics = {"right": MetricInfo(unit="percent", goal="maximize")}
    ids: Sequence[str] = ("a", "b", "c")

    def items(self, side: Side, *, data: Path | None, protocol: str) -> Sequence[Item]:
        def draw() -> Image.Image:
            return Image.new("RGB", (8, 8))

        return [
            Item(id=name, prompt="is it?", pictures=(Picture(key=name, read=draw),))
            for name in self.ids
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: str,
        resources: Resources,
    ) -> ScoreResult:
        known = [answer for answer in answers if answer.item in self.ids]
        outcomes = [
            ItemOutcome(
                item=answer.item,
                numerator=float(answer.response == "yes"),
                denominator=1.0,
            )
            for answer in known
        ]
        return ScoreResult(
            metrics=(percent("right", "maximize", outcomes),),
            n=len(known),
            missing=len(self.ids) - len(known),
        )


def test_a_users_own_conforms() -> None:
    assert set(check_conformance(OwnBenchmark()).values()) == {None}


class DuplicateIds(OwnBenchmark):
    ids = ("a", "a")


class UndeclaredMetric(OwnBenchmark):
    metrics = {"wrong": MetricInfo(unit="percent", goal="maximize")}


class WrongTotal(OwnBenchmark):
    def score(self, answers: Sequence[Answer], **given: object) -> ScoreResult:  # type: ignore[override]
        found = super().score(answers, **given)  # type: ignore[arg-type]
        moved = tuple(replace(metric, value=17.0) for metric in found.metrics)
        return replace(found, metrics=moved)


class OrderDependent(OwnBenchmark):
    ids = ("a", "b")

    def score(self, answers: Sequence[Answer], **given: object) -> ScoreResult:  # type: ignore[override]
        return super().score(answers[:1], **given)  # type: ignore[arg-type]


class CrashesOnEmptyAnswers(OwnBenchmark):
    def score(self, answers: Sequence[Answer], **given: object) -> ScoreResult:  # type: ignore[override]
        if not any(answer.response for answer in answers):
            raise ZeroDivisionError("division by zero")
        return super().score(answers, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("broken", "check", "problem"),
    [
        (DuplicateIds, "every question has an id of its own", "'a' is there twice"),
        (UndeclaredMetric, "figures are the declared ones", "'right' is not declared"),
        (WrongTotal, "items come to the figure", r"right is 17.0, its items come to 66\.6"),
        (OrderDependent, "the order of answers changes no figure", "right is another"),
        (
            CrashesOnEmptyAnswers,
            "empty answers give figures, or a sentence",
            "ZeroDivisionError: division",
        ),
    ],
)
def test_what_is_wrong_is_found(broken: type[OwnBenchmark], check: str, problem: str) -> None:
    assert re.match(problem, check_conformance(broken())[check] or "")


def make_config(name: str, **settings: object) -> BenchmarkConfig:
    return BenchmarkConfig.model_validate({"name": name, **settings})


def test_a_limit_asks_a_seeded_subset(tmp_path: Path) -> None:
    data_paths = DataPaths(benchmark_data=tmp_path)
    benchmark_files.write_pope(tmp_path, pictures=4)
    benchmark = find_benchmark("pope")

    def ids(limit: int | None) -> list[str]:
        items, whole = select_items(
            "report", make_config("pope", limit=limit), benchmark, data_paths
        )
        assert whole == 72
        return [item.id for item in items]

    everything, ten, twenty = ids(None), ids(10), ids(20)
    assert len(everything) == 72
    assert len(ten) == 10
    assert ten == ids(10)
    assert set(ten) < set(twenty)  # a larger limit asks the same and more
    assert ten == [item for item in everything if item in set(ten)]  # in the benchmark's order
    assert ten != everything[:10]
    assert len({item.partition("/")[0] for item in twenty}) == 3  # not the first split alone
    assert ids(72) == everything


def test_decoding_is_the_protocols_unless_it_is_set() -> None:
    amber = BENCHMARKS["amber"]
    assert resolve_decoding(make_config("amber"), amber) == Decoding(
        max_new_tokens=512, num_beams=1
    )
    paper = resolve_decoding(make_config("amber", protocol="chip"), amber)
    assert paper == Decoding(max_new_tokens=256, num_beams=3)
    own = resolve_decoding(
        make_config("amber", protocol="chip", num_beams=1, max_new_tokens=9), amber
    )
    assert own == Decoding(max_new_tokens=9, num_beams=1)


def test_what_decides_figures_is_in_the_identity(tmp_path: Path) -> None:
    benchmark_files.write_pope(tmp_path)
    benchmark_files.write_mmhal(tmp_path)
    data_paths = DataPaths(benchmark_data=tmp_path)

    def mark(**settings: object) -> dict[str, object]:
        return benchmark_identity(make_config("pope", **settings), data_paths)

    assert mark(num_beams=1) == mark()  # written out or not
    # how picture files are read counts where there are any
    assert mark()["pictures"] == READER_VERSION
    assert "pictures" not in benchmark_identity(make_config("shapes"), DataPaths())
    assert mark(num_beams=3) != mark()
    before = mark()
    file = tmp_path / "pope" / "coco_pope_random.json"
    file.write_text(file.read_text().replace('"yes"', '"no"', 1))
    assert mark() != before
    # a judge that is not asked is without effect; replies stand in place of who gives them
    assert mark()["judge"] is None
    assert "judge" not in benchmark_identity(make_config("mmhal", judge="gpt-4o"), data_paths)
    (tmp_path / "replies.jsonl").write_text("{}\n")
    replayed = DataPaths(benchmark_data=tmp_path, judge_replies=tmp_path / "replies.jsonl")
    assert benchmark_identity(make_config("mmhal"), replayed)["judge"] is not None


def test_all_that_is_missing_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    benchmark_files.write_pope(tmp_path)
    benchmark_files.write_mmhal(tmp_path)
    benchmark_files.write_llava_bench(tmp_path)
    (tmp_path / "coco/val2014/COCO_val2014_000000000002.png").unlink()
    asked = BenchmarksConfig.model_validate(
        {
            "report": [
                "pope",
                "mmhal",
                {"name": "llava_bench", "judge": "gpt-4o"},
                "hallusionbench",
                {"name": "mmmu", "protocol": "chip"},
            ]
        }
    )
    said = find_benchmark_problems(asked, DataPaths(benchmark_data=tmp_path))
    assert [line.partition(":")[0] for line in said] == [
        "pope", "mmhal", "llava_bench", "hallusionbench", "hallusionbench", "mmmu",
    ]  # fmt: skip
    assert "1 of 2 pictures are missing: " in said[0]
    assert "need a judge and there is none" in said[1]
    assert "OPENAI_API_KEY is not set" in said[2]
    assert said[3].startswith(f"hallusionbench: there is no folder {tmp_path}/hallusionbench")
    assert "'mmmu' has no protocol 'chip': choices: corrected, official" in said[5]
    (nowhere,) = find_benchmark_problems(
        BenchmarksConfig.model_validate({"report": ["pope"]}), DataPaths()
    )
    assert "--benchmark-data or CHIP_ABLATE_BENCHMARK_DATA" in nowhere
    assert (
        find_benchmark_problems(
            BenchmarksConfig.model_validate({"report": ["shapes"]}), DataPaths()
        )
        == []
    )


def test_descriptions_need_language_tools_and_yes_or_no_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chip_core.evaluation import items

    monkeypatch.setattr(items, "nltk_problems", lambda: ["NLTK has no wordnet"])
    asked = BenchmarksConfig.model_validate({"report": ["amber"]})
    folder = benchmark_files.write_amber(tmp_path, describe=False)
    assert find_benchmark_problems(asked, DataPaths(benchmark_data=tmp_path)) == []
    benchmark_files.write_amber(tmp_path)
    (folder / "similarity.json").unlink()
    monkeypatch.setattr(items, "spacy_problems", lambda model: [f"no {model}"])
    said = find_benchmark_problems(asked, DataPaths(benchmark_data=tmp_path))
    assert said[0] == "amber: NLTK has no wordnet"
    assert said[1].startswith("amber: no en_core_web_lg (or ")


def test_a_picture_that_is_broken_is_named(tmp_path: Path) -> None:
    folder = benchmark_files.write_pope(tmp_path)
    broken = tmp_path / "coco/val2014/COCO_val2014_000000000001.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(TrialError, match=r"picture .*000000001.png cannot be read \("):
        list_items("pope", folder)[0].pictures[0].read()


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "amber").mkdir()
    with pytest.raises(UserError, match="query_all.json"):
        list_items("amber", tmp_path / "amber")


def test_a_name_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'ambr': did you mean 'amber'"):
        find_benchmark("ambr")
    with pytest.raises(ValueError, match="make it a subclass of"):
        find_benchmark("pathlib:Path")
