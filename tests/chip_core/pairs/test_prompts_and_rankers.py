"""Prompts of every form, and answers to photographs ranked by CHAIR and by a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.benchmark import DataPaths
from chip_core.config.pairs import PairsConfig
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.config.validation import parse_trial_config
from chip_core.evaluation import readiness
from chip_core.evaluation.benchmarks.chair import score as chair
from chip_core.evaluation.judge import EndpointJudge
from chip_core.evaluation.readiness import find_ranker_problems
from chip_core.evaluation.task import Item
from chip_core.pairs import ranking
from chip_core.pairs.prompts import read_prompts
from chip_core.pairs.ranking import PROMPT, Score, open_ranker
from chip_core.results import Progress
from chip_core.trial import run_trial
from chip_core.utils.errors import ConfigError, StoppedError, TrialError, UserError

from ..evaluation.benchmarks import coco_cases
from ..evaluation.judge.server import rate_question, run_judge_server


def write_prompts(folder: Path, *records: dict[str, Any], name: str = "prompts.jsonl") -> str:
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


def test_rows_of_prompts_alone_and_of_preferences(tmp_path: Path) -> None:
    alone = write_prompts(
        tmp_path,
        {"id": 7, "image": "red.png", "question": "<image>\nWhat?", "objects": ["dog"]},
        {"image": "red.png", "prompt": "Where?"},
    )
    first, second = read_prompts(DataConfig(source=alone))
    assert (first.id, first.prompt, first.fields["objects"]) == ("7", "What?", ["dog"])
    assert (second.id, second.prompt) == ("prompts.jsonl:1", "Where?")
    assert first.pictures[0].read().size == (8, 8)
    pair = {"image": "red.png", "prompt": "Where?", "chosen": "here", "rejected": "there"}
    preferences = write_prompts(
        tmp_path, {"id": "a", **pair}, {"id": "a", **pair}, name="pairs.jsonl"
    )
    assert [item.id for item in read_prompts(DataConfig(source=preferences))] == ["a", "a@1"]
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "blue.png")
    own = {"chosen_image": "blue.png", "rejected_image": "red.png", **pair}
    del own["image"]
    (item,) = read_prompts(DataConfig(source=write_prompts(tmp_path, own, name="sides.jsonl")))
    assert item.pictures[0].read().size == (4, 4)


def test_every_bad_row_is_told_with_its_place(tmp_path: Path) -> None:
    source = write_prompts(
        tmp_path,
        {"prompt": "What?"},
        {"image": "red.png"},
        {"image": "blue.png", "prompt": "What?"},
    )
    with pytest.raises(ConfigError) as told:
        read_prompts(DataConfig(source=source))
    lines = told.value.problems
    assert [line.split(":")[0].rsplit(" ", 1)[-1] for line in lines] == ["1", "2", "3"]
    assert "no image" in lines[0] and "no prompt" in lines[1] and "blue.png" in lines[2]


def read_one_prompt(folder: Path, **fields: Any) -> list[Item]:
    return read_prompts(
        DataConfig(source=write_prompts(folder, {"image": "red.png", "prompt": "?"} | fields))
    )


def test_chair_ranks_by_what_a_row_or_coco_says_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (chair, ranking):  # words between spaces: NLTK's data may not be here
        monkeypatch.setattr(module, "nltk_problems", lambda *packages: [])
    monkeypatch.setattr(chair, "tokenize_words", lambda text: re.findall(r"\w+", text))
    (tmp_path / "chair").mkdir()
    (tmp_path / "coco").mkdir()
    coco_cases.write_synonyms(tmp_path / "chair", "synonyms.txt")
    coco_cases.write_annotations(tmp_path / "coco")
    ranker = open_ranker(PairsConfig(), "x.jsonl", DataPaths(benchmark_data=tmp_path))
    answers = [["A puppy and two buses.", "A dog with a man.", "Nothing."]]
    # Image 1 shows a dog, a person and, by a caption, a traffic light.
    expected = [
        [Score(value=-1, tie_break=1), Score(value=0, tie_break=2), Score(value=0, tie_break=0)]
    ]
    assert ranker.rank(read_one_prompt(tmp_path, image_id=1), answers) == expected
    assert ranker.rank(read_one_prompt(tmp_path, objects=["Puppy", "man"]), answers) == expected
    with pytest.raises(UserError, match="the objects in its image are unknown: give a list"):
        ranker.rank(read_one_prompt(tmp_path, image_id=99), answers)
    with pytest.raises(UserError, match="give its location with --benchmark-data"):
        open_ranker(PairsConfig(), "x.jsonl", DataPaths())


def test_what_a_ranker_lacks_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(source: str, data_paths: DataPaths, **pairs: Any) -> list[str]:
        tree = {"model": "shapes", "data": {"source": source}, "pairs": {"rounds": 1, **pairs}}
        return find_ranker_problems(TrialConfig.model_validate(tree), data_paths)

    monkeypatch.setattr(readiness, "nltk_problems", lambda packages: [])
    data_paths = DataPaths(benchmark_data=tmp_path)
    assert lacking("shapes", data_paths) == lacking("x.jsonl", data_paths, rounds=0) == []
    (told,) = lacking("x.jsonl", data_paths)
    assert told.startswith(f"pairs: ranker chair reads objects' names from {tmp_path}/chair/syn")
    (tmp_path / "chair").mkdir()
    coco_cases.write_synonyms(tmp_path / "chair", "synonyms.txt")
    assert lacking("x.jsonl", data_paths) == []
    judge = {"model": "m", "api_key_env": "NO_SUCH_KEY"}
    (told,) = lacking("shapes", data_paths, ranker="judge", judge=judge)
    assert told.startswith("pairs: judge m: NO_SUCH_KEY is not set")
    config = TrialConfig.model_validate(
        {"model": "./absent", "pairs": {"rounds": 1, "ranker": "judge", "judge": judge}}
    )
    with pytest.raises(TrialError, match="NO_SUCH_KEY is not set"):
        run_trial(config, folder=tmp_path / "trial")


def test_rounds_ranked_by_a_judge_name_one() -> None:
    with pytest.raises(ConfigError, match="pairs.judge: ranker is judge: name one"):
        parse_trial_config(
            {"model": "shapes", "pairs": {"rounds": 1, "ranker": "judge"}}, "study.yaml"
        )


def test_a_judge_rates_each_answer(tmp_path: Path) -> None:
    replies = tmp_path / "replies.jsonl"
    said = {"a#0": "Rating: 5", "a#1": "I cannot say.", "a#2": "It lies.\nRating: 1"}
    replies.write_text(
        "".join(json.dumps({"item": item, "reply": text}) + "\n" for item, text in said.items())
    )
    settings = PairsConfig(ranker="judge")
    ranker = open_ranker(settings, "x.jsonl", DataPaths(judge_replies=replies))
    scores = ranker.rank(read_one_prompt(tmp_path, id="a"), [["one", "two", "three"]])
    assert scores == [[Score(value=5), None, Score(value=1)]]
    with pytest.raises(UserError, match="there is no judge: name one by judge.model"):
        open_ranker(settings, "x.jsonl", DataPaths())


def test_an_endpoint_sees_the_image_and_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def ask(self: Any, requests: Any) -> list[str]:
        seen.extend(requests)
        return ["Rating: 4"] * len(requests)

    monkeypatch.setattr(EndpointJudge, "ask", ask)
    settings = PairsConfig.model_validate(
        {"ranker": "judge", "judge": {"model": "m", "api_key_env": None}}
    )
    ranker = open_ranker(settings, "x.jsonl", DataPaths(judge_cache=tmp_path / "judge"))
    prompts = read_one_prompt(tmp_path, prompt="What {answer}?")
    assert ranker.rank(prompts, [["A dog."]]) == [[Score(value=4)]]
    image, text = seen[0].messages[0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text["text"].startswith(PROMPT)
    assert text["text"].endswith("Question: What {answer}?\nAnswer to rate: A dog.\n")


def test_what_a_section_refuses() -> None:
    for given, why in (
        ({"ranker": "chiar"}, "unknown level 'chiar': did you mean 'chair'"),
        ({"ranker": "absent_module:f"}, "module absent_module cannot be imported"),
        ({"ranker": "chip_core.pairs.ranking:PROMPT"}, "is not a function"),
        ({"judge": "m"}, "judge is set, but ranker is chair"),
        ({"ranker": "judge", "judge": {"model": "m", "mode": "batch"}}, "write mode: live"),
    ):
        with pytest.raises(ValueError, match=why):
            PairsConfig.model_validate(given)


def test_each_reply_of_a_judge_is_told_and_hears_a_stop(tmp_path: Path) -> None:
    told: list[Progress] = []

    def report(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 2:
            raise StoppedError("stop")

    with run_judge_server(rate_question) as judge:
        named = {"model": "m", "base_url": judge.url, "api_key_env": None, "concurrency": 1}
        settings = PairsConfig.model_validate({"ranker": "judge", "judge": named})
        ranker = open_ranker(settings, "x.jsonl", DataPaths(judge_cache=tmp_path / "judge"), report)
        with pytest.raises(StoppedError):
            ranker.rank(read_one_prompt(tmp_path), [["one", "two", "three"]])
    assert [(each.done, each.total) for each in told[:2]] == [(1, 3), (2, 3)]
