"""Object HalBench: the script's figures, its judge's replies, and a second count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.objhal.judge import (
    UnreadableReplyError,
    read_reply,
    read_reply_as_script,
)
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import (
    Answer,
    JudgeRequest,
    ProtocolName,
    Resources,
    ScoreResult,
)
from chip_core.utils.errors import UserError

from . import coco_cases

OBJHAL = BENCHMARKS["objhal"]
LONG = "here is what I can see"  # six words: the judge is asked


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return coco_cases.write_synonyms(tmp_path, "synonyms_refine.txt")


def score(
    data: Path,
    replies: Mapping[int, str | None],
    protocol: ProtocolName = "official",
    said: Mapping[int, str] | None = None,
    coco: Path | None = None,
) -> ScoreResult:
    texts = said or dict.fromkeys(replies, LONG)
    return OBJHAL.score(
        [
            Answer(item=str(image), response=text, fields={"question": "?"})
            for image, text in texts.items()
        ],
        data=data,
        protocol=protocol,
        resources=Resources(
            coco=coco or coco_cases.write_object_lists(data),
            judge=ReplayJudge([(str(image), reply) for image, reply in replies.items()]),
        ),
    )


def test_equals_the_official_figures(oracles: Path, nltk_data: None) -> None:
    folder = oracles / "objhal"
    scored = OBJHAL.score(
        OBJHAL.read_responses(folder / "responses.jsonl"),
        data=oracles / "data" / "chair",
        protocol="official",
        resources=Resources(
            coco=folder / "annotations",
            judge=ReplayJudge.from_file(folder / "judge_replies.jsonl"),
        ),
    )
    assert scored.values == json.loads((folder / "expected.json").read_text())
    assert (scored.n, scored.missing) == (60, 0)


def test_by_hand(data: Path, plain_language: None) -> None:
    """There: dog and person; a toilet and a chair; nothing."""
    scored = score(
        data,
        {
            1: '["dogs", "puppy", "two dogs", "tall man", "sky", "street light"]',
            3: '["toilet seat", "toilet", "wine glass"]',
            5: "[]",
        },
    )
    # dog and puppy are two words, of one class; the second dog is the same word.
    # A toilet seat is a toilet, which stands there once already.
    assert coco_cases.list_counts(scored, "object_hallucination") == [(1, 4), (1, 2), (0, 0)]
    assert coco_cases.list_counts(scored, "response_hallucination") == [(1, 1), (1, 1), (0, 0)]
    assert coco_cases.list_counts(scored, "object_recall") == [(2, 2), (1, 2), (0, 0)]
    assert scored.values == {
        "response_hallucination": 100.0,  # of the two that name an object
        "object_hallucination": 33.33,
        "object_recall": 75.0,
        "average_length": 6.0,
    }


def test_pairs_win_over_what_stands_beside_them(data: Path, plain_language: None) -> None:
    """In "dog near a street light" the pair is taken and the dog is not."""
    scored = score(data, {1: '["dog near a street light"]', 3: '["toilet"]'})
    assert coco_cases.list_counts(scored, "object_hallucination") == [(1, 1), (0, 1)]
    # Runs of nouns are one word: "dog house" is no dog.
    assert coco_cases.list_counts(score(data, {1: '["dog house", "man"]'}), "object_recall") == [
        (1, 2)
    ]


def test_captions_are_truth_too(data: Path, plain_language: None) -> None:
    scored = score(data, {1: '["street lights"]'}, coco=coco_cases.write_annotations(data))
    assert coco_cases.list_counts(scored, "object_recall") == [(1, 3)]
    assert coco_cases.list_counts(scored, "object_hallucination") == [(0, 1)]


def test_short_answers_are_not_judged(data: Path, plain_language: None) -> None:
    replies = {1: '["dog"]', 2: '["bus", "dog"]'}
    said = {1: LONG, 2: "a big bus"}
    official = score(data, replies, said=said)
    assert coco_cases.list_counts(official, "object_hallucination") == [(0, 1), (0, 0)]
    assert coco_cases.list_counts(official, "object_recall") == [(1, 2), (0, 1)]
    corrected = score(data, replies, "corrected", said)
    assert coco_cases.list_counts(corrected, "object_hallucination") == [(0, 1), (1, 2)]


def test_the_average_length_counts_words(data: Path, plain_language: None) -> None:
    said = {1: "one  two three four", 2: ""}
    replies = {1: '["dog"]'}
    # The script splits at each single space, so that nothing is one word: (5 + 1) / 2.
    assert score(data, replies, said=said).values["average_length"] == 3.0
    assert score(data, replies, "corrected", said).values["average_length"] == 2.0


def test_a_reply_that_fails(data: Path, plain_language: None) -> None:
    for reply in (None, "I see none.", "5"):
        replies = {1: '["dog"]', 2: reply}
        with pytest.raises(UserError, match=r"answer 2 \(image 2\): .*the official script stops"):
            score(data, replies)
        scored = score(data, replies, "corrected")
        assert (scored.n, scored.missing) == (1, 1)
        assert scored.values["object_recall"] == 50.0  # a dog of dog and person


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ({}, "response_hallucination has nothing to count here"),
        ({1: "[]"}, "response_hallucination has nothing to count here"),
        ({5: '["dog"]'}, "object_recall has nothing to count here"),
        ({1: '["bus"]'}, "every named object is wrong"),
    ],
)
def test_where_the_script_stops(
    data: Path, plain_language: None, replies: dict[int, str | None], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        score(data, replies)
    assert score(data, replies, "corrected").n == len(replies)


def test_degenerate_answers(data: Path, plain_language: None) -> None:
    unknown = {1: '["dog"]', 99: '["dog"]'}
    # The script takes an image that it does not know for an empty one.
    assert score(data, unknown).values["object_hallucination"] == 50.0
    with pytest.raises(UserError, match="answer 2: image 99 is not in COCO's annotations"):
        score(data, unknown, "corrected")
    twice = [Answer(item="1", response=LONG, fields={"question": "?"})] * 2
    judge = ReplayJudge([("1", '["dog"]'), ("1", '["bus"]')])
    resources = Resources(coco=coco_cases.write_object_lists(data), judge=judge)
    scored = OBJHAL.score(twice, data=data, protocol="official", resources=resources)
    assert scored.values["object_hallucination"] == 50.0
    with pytest.raises(UserError, match="item 1 is answered 2 times"):
        OBJHAL.score(twice, data=data, protocol="corrected", resources=resources)
    with pytest.raises(UserError, match="a judge is needed"):
        OBJHAL.score(twice, data=data, protocol="official", resources=Resources())


def test_chip_is_the_official_script(data: Path, plain_language: None) -> None:
    replies = {1: '["dog"]', 2: '["bus", "dog"]'}
    said = {1: f"Assistant: {LONG}", 2: LONG}
    chip = score(data, replies, "chip", said)
    assert chip.values == score(data, replies, said=said).values
    assert chip.values["average_length"] == 6.0


class RecordingJudge:
    model = "listener"

    def __init__(self) -> None:
        self.asked: list[JudgeRequest] = []

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        self.asked += requests
        return ['["dog"]' for _ in requests]


def test_what_the_judge_is_asked(data: Path, plain_language: None) -> None:
    questions = [
        {"image_id": 1, "question": "What is there?"},
        {"image_id": 4, "question": "And here?"},
    ]
    file = data / "obj_halbench_300_with_image.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    judge = RecordingJudge()
    answers = [Answer(item="1", response=LONG)]
    resources = Resources(coco=coco_cases.write_object_lists(data), judge=judge)
    scored = OBJHAL.score(answers, data=data, protocol="official", resources=resources)
    assert scored.missing == 1  # image 4
    (request,) = judge.asked
    text = request.messages[0]["content"]
    assert "What is there?" in text and LONG in text and "JSON list" in text
    assert (request.item, request.temperature, request.max_tokens) == ("1", 0.0, 512)
    published = 'def ask():\n    pass\nprompt_template = """Q {question} A {answer}"""\n'
    (data / "eval_gpt_obj_halbench.py").write_text(published)
    OBJHAL.score(answers, data=data, protocol="official", resources=resources)
    assert judge.asked[1].messages[0]["content"] == f"Q What is there? A {LONG}"


def test_responses_are_read_from_every_known_key(data: Path) -> None:
    def read(**row: Any) -> Answer:
        file = data / "rows.json"
        file.write_text(json.dumps([row]))
        return OBJHAL.read_responses(file)[0]

    told = read(image_id="007", prompt="p", question="q", text="a", response="b", answer="c")
    assert (told.item, told.response, told.fields["question"]) == ("7", "a", "p")
    assert read(image_id=1, question="q", response="b", answer="c").response == "b"
    with pytest.raises(UserError, match="image_id 'x' is not a whole number"):
        read(image_id="x", question="q", answer="c")
    with pytest.raises(UserError, match="row 1: there is no prompt or question"):
        read(image_id=1, answer="c")
    nothing = read(image_id=1, question="q", answer=None)
    assert nothing.fields["response"] is None


@pytest.mark.parametrize(
    ("reply", "script", "corrected"),
    [
        ('["a", "b"]', ["a", "b"], ["a", "b"]),
        ('```json\n["a"]\n```', ["a"], ["a"]),
        ('Here:\n["a"]', ["a"], ["a"]),
        ('["a"]\nThat is all.', None, ["a"]),
        ('Objects: ["a", "b"].', None, ["a", "b"]),
        ("```\n[]\n```", None, []),
        ("()", None, []),
        ("[]", [], []),
        ('{"a": 1}', ["a"], None),
        ('"ab"', ["a", "b"], None),
        ("[1]", [1], None),
        ("null", None, None),
        ("no objects", None, []),
        ("", None, None),
        ("[" * 100_000, None, None),
    ],
)
def test_reading_a_reply(reply: str, script: list[Any] | None, corrected: list[str] | None) -> None:
    for read, expected in ((read_reply_as_script, script), (read_reply, corrected)):
        if expected is None:
            with pytest.raises(UnreadableReplyError):
                read(reply)
        else:
            assert read(reply) == expected


#: written form -> (word, category); None: no object
FORMS = {
    "dogs": ("dog", "dog"),
    "two dogs": ("dog", "dog"),
    "puppy": ("puppy", "dog"),
    "man": ("man", "person"),
    "street lights": ("street light", "traffic light"),
    "adult dog": ("dog", "dog"),
    "passenger train": ("train", "train"),
    "sky": None,
    "home plate": None,
}
lists = st.lists(st.sampled_from(sorted(FORMS)), max_size=6)
replies = st.one_of(lists.map(json.dumps), st.sampled_from(["?", None]))


@given(said=st.dictionaries(st.sampled_from(sorted(coco_cases.OBJECTS)), replies))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrected_equals_a_second_count(
    data: Path, plain_language: None, said: dict[int, str | None]
) -> None:
    read = {image: json.loads(reply) for image, reply in said.items() if reply not in ("?", None)}
    bad = named = naming = hallucinating = found = objects = 0
    for image, listed in read.items():
        there = set(coco_cases.OBJECTS[image])
        mentions = {FORMS[thing] for thing in listed if FORMS[thing] is not None}
        false = [kind for _, kind in mentions if kind not in there]
        bad, named = bad + len(false), named + len(mentions)
        naming, hallucinating = naming + bool(mentions), hallucinating + bool(false)
        found += len(there & {kind for _, kind in mentions})
        objects += len(there)
    scored = score(data, said, "corrected")
    for name, top, bottom in (
        ("response_hallucination", hallucinating, naming),
        ("object_hallucination", bad, named),
        ("object_recall", found, objects),
    ):
        expected = pytest.approx(float(100 * Fraction(top, bottom))) if bottom else None
        assert scored.values[name] == expected, name
    assert scored.values["average_length"] == (6.0 if read else None)
    assert (scored.n, scored.missing) == (len(read), len(said) - len(read))
