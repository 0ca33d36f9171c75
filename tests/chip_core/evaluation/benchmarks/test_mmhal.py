"""MMHal-Bench: ratings read as the official script does, and as a person would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.mmhal.score import KINDS, parse_as_script
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import (
    Answer,
    ProtocolName,
    Resources,
    ScoreResult,
)
from chip_core.evaluation.text.reply_ratings import read_rating
from chip_core.utils.errors import UserError

from .fake_judge import FakeJudge

MMHAL = BENCHMARKS["mmhal"]


def write_benchmark(folder: Path, size: int = 8) -> Path:
    rows = [
        {
            "image_id": f"i{number}",
            "question_type": KINDS[number % 8],
            "image_content": ["Cat", "Sofa"],
            "question": f"Question {number}?",
            "gt_answer": f"Truth {number}.",
        }
        for number in range(size)
    ]
    (folder / "response_template.json").write_text(json.dumps(rows))
    return folder


def make_answers(size: int = 8) -> list[Answer]:
    return [
        Answer(item=f"i{number}", response=f"Assistant: said {number} ") for number in range(size)
    ]


def score(
    given: Sequence[Answer],
    folder: Path,
    replies: Mapping[str, str | None],
    protocol: ProtocolName = "official",
) -> ScoreResult:
    resources = Resources(judge=FakeJudge(replies))
    return MMHAL.score(given, data=folder, protocol=protocol, resources=resources)


@pytest.mark.parametrize("protocol", ["official", "chip"])
def test_equals_the_official_figures(oracles: Path, protocol: ProtocolName) -> None:
    judge = ReplayJudge.from_file(oracles / "mmhal" / "judge_replies.jsonl")
    scored = MMHAL.score(
        MMHAL.read_responses(oracles / "mmhal" / "responses.jsonl"),
        data=oracles / "data" / "mmhal",
        protocol=protocol,
        resources=Resources(judge=judge),
    )
    assert scored.values == json.loads((oracles / "mmhal" / "expected.json").read_text())
    assert (scored.n, scored.missing) == (96, 0)
    for metric in scored.metrics:
        mean = sum(item.numerator for item in metric.items) / len(metric.items)
        scale = 100 if metric.unit == "percent" else 1
        digits = 2 if "/" in metric.name else 3
        assert metric.value == round(mean * scale, digits)


@pytest.mark.parametrize(
    ("reply", "official", "corrected"),
    [
        ("Fine.\n- Rating: 5, very informative", 5, 5),
        ("RATING: 2", 2, 2),
        ("**Rating**: 4", 4, 4),
        ("**Rating:** 4", 0, 4),  # only two spellings are known officially
        ("Rating : 4", 0, 4),
        ("Rating: [4]", 0, 4),
        ("rating: 3 or rating: 4", 0, None),  # two hits count 0
        ("rating: 3, I repeat, rating: 3", 3, 3),
        ("rating: 10", 1, None),  # a hit is a hit
        ("rating: 7", 0, None),
        ("rating: 4.5", 4, None),
        ("no verdict", 0, None),
        ("", 0, None),
    ],
)
def test_reading_ratings(reply: str, official: int, corrected: int | None) -> None:
    assert parse_as_script(reply) == official
    assert read_rating(reply) == corrected


def test_by_hand(tmp_path: Path) -> None:
    """Ratings 6, 3, 2, 0, 5, none, two, none: official 6+3+2+0+5+0+0+0 = 16 of 8."""
    said = ["Rating: 6", "Rating: 3", "Rating: 2", "Rating: 0", "Rating: 5", "-", None, None]
    replies = {f"i{number}": reply for number, reply in enumerate(said)}
    official = score(make_answers(), write_benchmark(tmp_path), replies)
    assert official.values["score"] == 2.0
    assert official.values["hallucination_rate"] == 62.5  # 2, 0 and three zeros of 8
    assert official.values["informative_rate"] == 37.5  # 6, 2, 5
    assert official.values["score/attribute"] == 6
    assert (official.n, official.missing) == (8, 2)  # two calls failed
    corrected = score(make_answers(), tmp_path, replies, "corrected")
    assert corrected.values["score"] == pytest.approx(16 / 5)
    assert corrected.values["hallucination_rate"] == pytest.approx(40.0)
    assert corrected.values["informative_rate"] == pytest.approx(60.0)
    assert (corrected.n, corrected.missing) == (5, 3)
    # The reply without a rating is shown; calls that failed have none.
    assert [(one.item, one.text, one.source) for one in corrected.unreadable] == [
        ("i5", "-", "reply")
    ]
    assert official.unreadable == ()


def test_what_the_judge_is_asked(tmp_path: Path) -> None:
    judge = FakeJudge({"i0": "Rating: 6"})
    resources = Resources(judge=judge, only=frozenset({"i0"}))
    MMHAL.score(
        make_answers(1), data=write_benchmark(tmp_path), protocol="official", resources=resources
    )
    (request,) = judge.requests
    assert (request.item, request.temperature, request.max_tokens) == ("i0", 0.0, 512)
    (message,) = request.messages
    for said in ("Cat, Sofa", "Question 0?", "Truth 0.", "Answer to rate: said 0\n"):
        assert said in message["content"]


def test_the_published_prompt_is_taken_where_it_lies(tmp_path: Path) -> None:
    script = tmp_path / "eval_gpt4.py"
    script.write_text("import openai\nprint(1)\ntemplate = '''A {} B {} C {} D {}.'''\n")
    judge = FakeJudge({})
    resources = Resources(judge=judge, only=frozenset({"i0"}))
    MMHAL.score(
        make_answers(1), data=write_benchmark(tmp_path), protocol="official", resources=resources
    )
    assert judge.requests[0].messages[0]["content"] == (
        "A Cat, Sofa B Question 0? C Truth 0. D said 0."
    )
    script.write_text("template = 'too few {}'")
    with pytest.raises(UserError, match="1 places"):
        MMHAL.score(make_answers(1), data=tmp_path, protocol="official", resources=resources)
    for text in ("x = 1", "template = ("):
        script.write_text(text)
        with pytest.raises(UserError, match="eval_gpt4.py"):
            MMHAL.score(make_answers(1), data=tmp_path, protocol="official", resources=resources)


def test_degenerate_answers(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    replies = {f"i{number}": "Rating: 4" for number in range(8)}
    for protocol in ("official", "corrected"):
        with pytest.raises(UserError, match="no answers"):
            score([], tmp_path, replies, protocol)
    with pytest.raises(UserError, match="image 'i3' has no answer"):
        score(make_answers(3), tmp_path, replies)
    part = score(make_answers(3), tmp_path, replies, "corrected")
    assert (part.values["score"], part.n, part.missing) == (4.0, 3, 5)
    assert "score/other" not in part.values
    # Officially unknown ids are passed over, the last of two answers counts, order does not.
    extra = [Answer(item="x", response=""), make_answers()[0], *reversed(make_answers())]
    assert score(extra, tmp_path, replies).values["score"] == 4.0
    with pytest.raises(UserError, match="'x' is not the id of a question"):
        score(extra, tmp_path, replies, "corrected")
    with pytest.raises(UserError, match="i0 is answered 2 times"):
        score(extra[1:], tmp_path, replies, "corrected")
    nothing = score(make_answers(), tmp_path, {}, "corrected")
    assert (nothing.values["score"], nothing.n, nothing.missing) == (None, 0, 8)
    long = [Answer(item=each.item, response="a" * 10_000_000) for each in make_answers(1)]
    assert score(long, tmp_path, {"i0": "x" * 10_000_000}, "corrected").n == 0
    with pytest.raises(UserError, match="mmhal: the answers need a judge"):
        MMHAL.score(make_answers(), data=tmp_path, protocol="official", resources=Resources())


def test_reading_files(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps([{"image_id": "a", "model_answer": "b"}, {"image": 1, "response": ""}])
    )
    assert [(a.item, a.response) for a in MMHAL.read_responses(file)] == [("a", "b"), ("1", "")]


RATED = st.dictionaries(
    st.integers(0, 23),
    st.sampled_from([*(f"rating: {k}" for k in range(8)), "none", "rating: 1 rating: 2", None]),
    min_size=1,
)


@given(RATED)
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[int, str | None]
) -> None:
    folder = write_benchmark(tmp_path_factory.mktemp("mmhal"), 24)
    replies = {f"i{number}": reply for number, reply in drawn.items()}
    scored = score([make_answers(24)[number] for number in drawn], folder, replies, "corrected")
    plain: dict[int, int] = {}
    for number, reply in drawn.items():
        if reply in [f"rating: {k}" for k in range(7)]:
            plain[number] = int(reply[-1])
    ratings = list(plain.values())
    assert (scored.n, scored.missing) == (len(plain), 24 - len(plain))
    if ratings:
        assert scored.values["score"] == pytest.approx(sum(ratings) / len(ratings))
        bad = len([k for k in ratings if k in (0, 1, 2)])
        told = len([k for k in ratings if k in (1, 2, 4, 5, 6)])
        assert scored.values["hallucination_rate"] == pytest.approx(100 * bad / len(ratings))
        assert scored.values["informative_rate"] == pytest.approx(100 * told / len(ratings))
    for place, kind in enumerate(KINDS):
        of_kind = [k for number, k in plain.items() if number % 8 == place]
        mean = sum(of_kind) / len(of_kind) if of_kind else None
        assert scored.values.get(f"score/{kind}") == pytest.approx(mean)
