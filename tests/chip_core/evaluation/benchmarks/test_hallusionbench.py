"""HallusionBench: sets of questions, causes of failure, verdicts in the answers or from a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.hallusionbench import judge as judging
from chip_core.evaluation.benchmarks.hallusionbench.aggregation import (
    JudgedAnswer,
    Question,
    classify_cause,
)
from chip_core.evaluation.scorer import (
    Answer,
    ProtocolName,
    Resources,
    ScoreResult,
)
from chip_core.utils.errors import UserError

from .fake_judge import FakeJudge

BENCH = BENCHMARKS["hallusionbench"]

#: category, figure, question, visual input, yes is right: two VD and two VS questions, with and
#: without an edited figure, and a VS question with a figure that is not edited.
QUESTIONS = [
    ("VD", "0", "0", "1", "1"),
    ("VD", "1", "0", "2", "0"),
    ("VD", "0", "1", "1", "0"),
    ("VD", "1", "1", "2", "1"),
    ("VS", "0", "0", "0", "1"),
    ("VS", "1", "0", "1", "1"),
    ("VS", "2", "0", "2", "0"),
    ("VS", "0", "1", "0", "0"),
    ("VS", "2", "1", "2", "1"),
]


def make_row(category: str, figure: str, question: str, visual: str, truth: str) -> dict[str, Any]:
    return {
        "category": category,
        "subcategory": "chart",
        "set_id": "0",
        "figure_id": figure,
        "question_id": question,
        "visual_input": visual,
        "gt_answer": truth,
        "question": f"Q{category}{question}?",
        "gt_answer_details": f"D{category}{figure}{question}.",
    }


ROWS = [make_row(*each) for each in QUESTIONS]
IDS = [f"{r['category']}_chart_0_{r['figure_id']}_{r['question_id']}" for r in ROWS]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "HallusionBench.json").write_text(json.dumps(ROWS))
    return tmp_path


def make_answers(verdicts: Sequence[int | None], same: Sequence[int | None] = ()) -> list[Answer]:
    agreed = [*same, *[None] * (len(verdicts) - len(same))]
    return [
        Answer(
            item=item,
            response=f"Assistant: R {item}",
            fields={
                **({} if verdict is None else {"verdict": str(verdict)}),
                **({} if alike is None else {"same": str(alike)}),
            },
        )
        for item, verdict, alike in zip(IDS, verdicts, agreed, strict=False)
    ]


def score(
    given: Sequence[Answer],
    folder: Path,
    protocol: ProtocolName = "official",
    judge: FakeJudge | None = None,
) -> ScoreResult:
    return BENCH.score(given, data=folder, protocol=protocol, resources=Resources(judge=judge))


def test_equals_the_official_figures(oracles: Path) -> None:
    scored = score(
        BENCH.read_responses(oracles / "hallusionbench" / "responses.json"),
        oracles / "data" / "hallusionbench",
    )
    expected = json.loads((oracles / "hallusionbench" / "expected.json").read_text())
    assert scored.values == expected
    assert (scored.n, scored.missing) == (1129, 0)
    for metric in scored.metrics:
        rate = sum(i.numerator for i in metric.items) / sum(i.denominator for i in metric.items)
        scale = 100 if metric.unit == "percent" else 1
        assert metric.value == pytest.approx(rate * scale, abs=6e-5)


def test_by_hand(data: Path) -> None:
    """Right: VD 0/0, VD 1/0, VS 0/0 (unclear, without figure), VS 1/0, VS 0/1."""
    verdicts = [1, 1, 0, 0, 2, 1, 2, 1, 0]
    scored = score(make_answers(verdicts, [None] * 3 + [0] + [None] * 4 + [1]), data)
    assert scored.values == {
        "a_acc": round(100 * 5 / 9, 4),
        # Same question over all its figures: VD 0 of the four.
        "q_acc": 25.0,
        # Over figures that are not edited: VD 0, VS 0 (both), VS 1 of four; over edited: VD 0.
        "easy_a_acc": 75.0,
        "hard_a_acc": 25.0,
        # Figures VD 0 (1 of 2), VD 1 (1 of 2), VS 1 (1 of 1), VS 2 (0 of 2).
        "f_acc": 25.0,
        "consistency/correct": 25.0,
        "consistency/inconsistent": 50.0,
        "consistency/wrong": 25.0,
        # Says yes = right and yes, or wrong and no: VD00, not VD10, VD01, not VD11, VS00, VS10,
        # VS20, not VS01, not VS21: 5 of 9; five truths are yes.
        "yes_no_bias_pct_diff": 0.0,
        # Wrong: VD01 (no), VD11 (yes), VS20 (no), VS21 (yes).
        "yes_no_bias_fp_ratio": 0.5,
        # VD01 and VD11 (its original is wrong): sight. VS20: original unclear: sight. VS21:
        # original right, edited figure, the same answer: language.
        "diagnosis/language_hallucination": 25.0,
        "diagnosis/visual_illusion": 75.0,
        "diagnosis/mixed": 0.0,
    }
    by_name = {metric.name: metric.items for metric in scored.metrics}
    assert [(i.item, i.numerator, i.group) for i in by_name["q_acc"]] == [
        ("VD_chart_0_0", 1, "VD_chart"),
        ("VD_chart_0_1", 0, "VD_chart"),
        ("VS_chart_0_0", 0, "VS_chart"),
        ("VS_chart_0_1", 0, "VS_chart"),
    ]
    assert by_name["a_acc"][0].item == "VD_chart_0_0_0"


@pytest.mark.parametrize(
    ("category", "figure", "visual", "verdict", "original", "same", "expected"),
    [
        ("VD", "0", "1", 1, None, None, None),
        ("VD", "0", "1", 0, None, None, "visual_illusion"),
        ("VD", "0", "1", 2, None, None, "visual_illusion"),
        ("VD", "1", "2", 1, 0, None, None),
        ("VD", "1", "2", 0, 1, True, "mixed"),
        ("VD", "1", "2", 0, 1, False, "visual_illusion"),
        ("VD", "1", "2", 0, 0, True, "visual_illusion"),
        ("VD", "1", "2", 0, 2, True, "visual_illusion"),
        ("VD", "1", "2", 2, 1, True, "visual_illusion"),
        ("VD", "1", "2", 2, 0, None, "visual_illusion"),
        ("VS", "0", "0", 0, None, None, "language_hallucination"),
        ("VS", "0", "0", 2, None, None, None),
        ("VS", "1", "1", 1, 0, None, None),
        ("VS", "1", "2", 0, 0, True, "language_hallucination"),
        ("VS", "1", "2", 0, 0, False, "mixed"),
        ("VS", "1", "1", 2, 0, None, "mixed"),
        ("VS", "1", "1", 0, 2, None, "visual_illusion"),
        ("VS", "1", "2", 2, 2, None, "visual_illusion"),
        ("VS", "1", "2", 2, 1, None, "visual_illusion"),
        ("VS", "1", "1", 0, 1, True, "visual_illusion"),
        ("VS", "1", "2", 0, 1, True, "language_hallucination"),
        ("VS", "1", "2", 0, 1, False, "visual_illusion"),
    ],
)
def test_each_wrong_answer_has_a_cause(
    category: str,
    figure: str,
    visual: str,
    verdict: int,
    original: int | None,
    same: bool | None,
    expected: str | None,
) -> None:
    question = Question(
        category=category,
        subcategory="map",
        set_id="1",
        figure_id=figure,
        question_id="2",
        visual_input=visual,
        truth=1,
    )
    assert (
        classify_cause(JudgedAnswer(question=question, verdict=verdict, same=same), original)
        == expected
    )


def test_a_judge_gives_what_is_not_there(data: Path) -> None:
    """Verdicts from replies; `same` is asked only where a cause hangs on it."""
    said = ["correct", "INCORRECT.", "It is correct", "correct", "who knows", None, "x", "correct"]
    replies: dict[str, str | None] = dict(zip(IDS, said, strict=False))
    replies |= {IDS[8]: "incorrect", f"{IDS[1]}/same": "The same!", f"{IDS[8]}/same": "different"}
    judge = FakeJudge(replies)
    scored = score(make_answers([None] * 9), data, judge=judge)
    # Right: VD00, VD01, VD11, VS00 (unclear), VS01. A failed call and "x" are unclear.
    assert scored.values["a_acc"] == round(100 * 5 / 9, 4)
    assert (scored.n, scored.missing) == (9, 1)
    asked = [request.item for request in judge.requests]
    assert asked == [*IDS, f"{IDS[1]}/same", f"{IDS[8]}/same"]
    # VD10: original right, same answer: mixed. VS10, VS20: original unclear: sight. VS21: sight.
    assert scored.values["diagnosis/mixed"] == 25.0
    text = judge.requests[1].messages[0]["content"]
    assert "QVD0?" in text and "DVD10." in text and f"Assistant: R {IDS[1]}" in text
    text = judge.requests[9].messages[0]["content"]
    assert f"Assistant: R {IDS[1]}\n" in text and f"Assistant: R {IDS[0]}\n" in text

    corrected = score(make_answers([None] * 9), data, "corrected", FakeJudge(replies))
    # "It is correct" names one verdict; "who knows", None and "x" none: three are missing.
    assert (corrected.n, corrected.missing) == (6, 3)
    assert [one.text for one in corrected.unreadable] == ["who knows", "x"]
    assert {one.source for one in corrected.unreadable} == {"reply"} and not scored.unreadable
    assert corrected.values["a_acc"] == pytest.approx(100 * 4 / 6)
    chip = FakeJudge(replies)
    score(make_answers([None] * 9), data, "chip", chip)
    assert f"Answer: R {IDS[0]}\n" in chip.requests[0].messages[0]["content"]


def test_the_published_prompts_are_taken_where_they_lie(data: Path) -> None:
    (data / "utils.py").write_text(
        "def evaluate_by_chatgpt(data, output_entry):\n"
        "    for sample in data:\n"
        "        prompt = 'Q:'\n"
        "        prompt += sample['question']\n"
        "        prompt += ' R:'\n"
        "        prompt += sample['gt_answer_details']\n"
        "        prompt += sample[output_entry]\n"
        "def check_same_by_chatgpt(data, output_entry):\n"
        "    prompt = sample[output_entry]\n"
        "    prompt += ' or '\n"
        "    prompt += response2\n"
    )
    judge = FakeJudge(dict.fromkeys(IDS, "incorrect") | {IDS[0]: "correct"})
    score(make_answers([None] * 9), data, judge=judge)
    assert judge.requests[0].messages == (
        {"role": "user", "content": f"Q:QVD0? R:DVD00.Assistant: R {IDS[0]}"},
    )
    assert judge.requests[9].messages[0]["content"] == (
        f"Assistant: R {IDS[1]} or Assistant: R {IDS[0]}"
    )
    for broken in ("", "def evaluate_by_chatgpt():\n    prompt = ''\n    prompt += other"):
        (data / "utils.py").write_text(broken)
        with pytest.raises(UserError, match="published"):
            score(make_answers([None] * 9), data, judge=judge)


@pytest.mark.parametrize(
    ("reply", "official", "corrected"),
    [
        ("Correct", 1, 1),
        ("incorrect", 0, 0),
        ("not correct, so incorrect", 0, 0),
        ("unclear", 2, 2),
        ("unclear whether correct", 1, 2),
        ("", 2, None),
        (None, 2, None),
    ],
)
def test_reading_verdicts(reply: str | None, official: int, corrected: int | None) -> None:
    assert judging.parse_verdict_as_script(reply) == official
    assert judging.parse_verdict(reply) == corrected


def test_where_the_official_script_stops(data: Path) -> None:
    good = make_answers([1, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 9)
    assert score(good, data).values["a_acc"] == round(100 * 8 / 9, 4)
    with pytest.raises(UserError, match="no answers"):
        score([], data)
    with pytest.raises(UserError, match=f"{IDS[0]} is answered 2 times"):
        score([*good, good[0]], data)
    with pytest.raises(UserError, match="no answer is wrong"):
        score(make_answers([1] * 9, [0] * 9), data)
    with pytest.raises(UserError, match="no answers to VD questions with edited figures"):
        score(good[:1], data)
    with pytest.raises(UserError, match=f"{IDS[1]} has an answer and the same question"):
        score(good[1:], data)
    with pytest.raises(UserError, match="verdict must be one of 0, 1, 2, got '3'"):
        score(make_answers([3] * 9), data)
    with pytest.raises(UserError, match="the answers need a judge"):
        score(make_answers([None] * 9), data)
    # Whether the answers agree is not known, and a cause hangs on it.
    with pytest.raises(UserError, match="the answers need a judge"):
        score(make_answers([1, 0, 1, 1, 1, 1, 1, 1, 1]), data)


def test_unknown_ids_and_other_orders(data: Path) -> None:
    good = make_answers([1, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 9)
    assert score(good[::-1], data).values == score(good, data).values
    strange = Answer(item="VD_map_9_0_0", response="", fields={"verdict": "1"})
    with pytest.raises(UserError, match="'VD_map_9_0_0' is not the id of a question"):
        score([*good, strange], data)
    with pytest.raises(UserError, match="'VD_map_9_0_0' is not the id of a question"):
        score([*good, strange], data, "corrected")
    # With all its fields the official script counts it like any other.
    whole = Answer(
        item=strange.item,
        response="",
        fields={
            **make_row("VD", "0", "0", "1", "1"),
            "subcategory": "map",
            "set_id": "9",
            "verdict": "1",
        },
    )
    scored = score([*good, whole], data)
    assert (scored.values["a_acc"], scored.n) == (90.0, 10)


def test_corrected_never_divides_by_zero(data: Path) -> None:
    one = score(make_answers([1])[:1], data, "corrected")
    assert one.values["a_acc"] == 100
    assert one.values["q_acc"] is None  # its pair is not whole
    assert one.values["diagnosis/mixed"] is None
    assert (one.n, one.missing) == (1, 8)
    right = score(make_answers([1] * 9), data, "corrected").values
    assert (right["q_acc"], right["yes_no_bias_fp_ratio"]) == (100, None)
    unclear = score(make_answers([2] * 9), data, "corrected").values
    assert unclear["yes_no_bias_pct_diff"] is None  # neither yes nor no
    assert unclear["a_acc"] == pytest.approx(100 * 2 / 9)


def test_corrected_leaves_out_causes_that_no_judge_tells(data: Path) -> None:
    """VD10 failed, its original did not: mixed or sight, nobody knows. VS21 failed by sight."""
    scored = score(make_answers([1, 0, 1, 1, 1, 1, 1, 2, 0]), data, "corrected")
    by_name = {metric.name: metric.items for metric in scored.metrics}
    failed = [item.item for item in by_name["diagnosis/mixed"] if item.denominator]
    assert failed == [IDS[8]]


def test_reading_files(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(
        json.dumps(
            [
                {**ROWS[0], "set_id": 0, "model_prediction": "yes", "verdict": 1, "same": "0"},
                {**ROWS[1], "gpt4v_output_gpt_check": "2"},
                {"item": "VD_chart_0_0_1", "response": "no"},
            ]
        )
    )
    one, two, three = BENCH.read_responses(file)
    assert (one.item, one.response, one.fields["verdict"]) == (IDS[0], "yes", "1")
    assert (two.response, two.fields["verdict"]) == ("", "2")
    assert (three.item, dict(three.fields)) == ("VD_chart_0_0_1", {})
    file.write_text(json.dumps([ROWS[0]]))
    with pytest.raises(UserError, match="row 1: there is no model_prediction or response"):
        BENCH.read_responses(file)


VERDICTS = st.lists(
    st.tuples(st.sampled_from([None, 0, 1, 2]), st.sampled_from([None, 0, 1])),
    min_size=len(ROWS),
    max_size=len(ROWS),
).filter(lambda drawn: any(verdict is not None for verdict, _ in drawn))


@given(VERDICTS)
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int | None, int | None]]
) -> None:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "HallusionBench.json").write_text(json.dumps(ROWS))
    known = {i: (v, s) for i, (v, s) in enumerate(drawn) if v is not None}
    every = make_answers([v for v, _ in drawn], [s for _, s in drawn])
    values = score([every[i] for i in known], folder, "corrected", FakeJudge({})).values

    right = {
        i: v == 1 or (v == 2 and QUESTIONS[i][0] == "VS" and QUESTIONS[i][1] == "0")
        for i, (v, _) in known.items()
    }

    def share(numbers: list[bool]) -> float | None:
        return 100 * sum(numbers) / len(numbers) if numbers else None

    def whole(groups: list[list[int]]) -> list[list[bool]]:
        return [[right[i] for i in g] for g in groups if all(i in known for i in g)]

    # By hand from QUESTIONS: which rows ask the same, which ask of the same figure.
    pairs = whole([[0, 1], [2, 3], [4, 5, 6], [7, 8]])
    figures = whole([[0, 2], [1, 3], [5], [6, 8]])
    told = {i for i, (v, _) in known.items() if v != 2}
    wrong = [i for i in told if not right[i]]
    truths = [each[4] == "1" for each in QUESTIONS]
    plain = {
        "a_acc": share(list(right.values())),
        "q_acc": share([all(g) for g in pairs]),
        "f_acc": share([all(g) for g in figures]),
        "consistency/correct": share([all(g) for g in figures]),
        "consistency/wrong": share([not any(g) for g in figures]),
        "consistency/inconsistent": share([any(g) and not all(g) for g in figures]),
        "easy_a_acc": share([r for i, r in right.items() if QUESTIONS[i][3] in "01"]),
        "hard_a_acc": share([r for i, r in right.items() if QUESTIONS[i][3] == "2"]),
        "yes_no_bias_pct_diff": (
            (sum(truths[i] == right[i] for i in told) - sum(truths[i] for i in told)) / len(told)
            if told
            else None
        ),
        "yes_no_bias_fp_ratio": (sum(not truths[i] for i in wrong) / len(wrong) if wrong else None),
    }
    causes = []
    for i, (v, s) in known.items():
        first = {1: 0, 3: 2, 5: 4, 6: 4, 8: 7}.get(i)
        if right[i]:
            continue
        if first is None:
            causes.append("V" if i < 4 else "L")
            continue
        if first not in known:
            continue
        o = known[first][0]
        if i < 4:
            table = {(1, 0, 1): "M", (1, 0, 0): "V", (1, 0, None): None}
            found = table.get((o, v, s), "V")
        elif o == 0:
            found = "M" if v == 2 else {1: "L", 0: "M", None: None}[s]
        elif o == 1 and v == 0 and i in (6, 8):
            found = {1: "L", 0: "V", None: None}[s]
        else:
            found = "V"
        if found:
            causes.append(found)
    for letter, name in (("L", "language_hallucination"), ("V", "visual_illusion"), ("M", "mixed")):
        plain[f"diagnosis/{name}"] = share([each == letter for each in causes])
    assert values == pytest.approx(plain)
