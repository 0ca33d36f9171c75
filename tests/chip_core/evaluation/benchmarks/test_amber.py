"""AMBER: the script's figures with its quirks, by hand and against the conformance cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.text.similarity import TableSimilarity
from chip_core.utils.errors import UserError

AMBER = BENCHMARKS["amber"]

RELATION = {
    "dog": ["puppy"],
    "tree": ["forest"],
    "forest": ["tree", "bush"],
    "sky": [],
    "cat": [],
    "person": ["man"],
    "orange": [],
}
SAFE = ["orange", "light"]
QUESTIONS: list[dict[str, Any]] = [
    {"type": "generative", "truth": ["tree", "forest", "dog"], "hallu": ["cat", "sky"]},
    {"type": "generative", "truth": ["dog", "dog"], "hallu": ["person"]},
    {"type": "discriminative-hallucination", "truth": "no"},
    {"type": "discriminative-attribute-state", "truth": "yes"},
    {"type": "discriminative-attribute-state", "truth": "no"},
    {"type": "discriminative-attribute-number", "truth": "no"},
    {"type": "discriminative-attribute-action", "truth": "yes"},
    {"type": "discriminative-relation", "truth": "yes"},
    {"type": "relation", "truth": "no"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "amber"
    folder.mkdir()
    rows = [{"id": number, **row} for number, row in enumerate(QUESTIONS, start=1)]
    (folder / "annotations.json").write_text(json.dumps(rows))
    (folder / "relation.json").write_text(json.dumps(RELATION))
    (folder / "safe_words.txt").write_text("\n".join(SAFE))
    return folder


def score(
    data: Path,
    said: Mapping[int, str] | list[Answer],
    protocol: ProtocolName = "official",
    similar: Mapping[tuple[str, str], float] | None = None,
    only: frozenset[str] | None = None,
) -> ScoreResult:
    answers = (
        said
        if isinstance(said, list)
        else [Answer(item=str(item), response=text) for item, text in said.items()]
    )
    return AMBER.score(
        answers,
        data=data,
        protocol=protocol,
        resources=Resources(similarity=TableSimilarity(similar or {}), only=only),
    )


def list_outcomes(scored: ScoreResult, name: str) -> list[tuple[str, float, float]]:
    metric = next(metric for metric in scored.metrics if metric.name == name)
    return [(outcome.item, outcome.numerator, outcome.denominator) for outcome in metric.items]


def test_equals_the_official_figures(oracles: Path, nltk_data: None) -> None:
    scored = AMBER.score(
        AMBER.read_responses(oracles / "amber" / "responses.json"),
        data=oracles / "data" / "amber",
        protocol="official",
        resources=Resources(
            similarity=TableSimilarity.from_file(oracles / "amber" / "similarity.json")
        ),
    )
    expected = json.loads((oracles / "amber" / "expected.json").read_text())
    # (100 - 35.5 + 52.9) / 2
    assert scored.values == {**expected, "amber_score": 58.7}
    assert set(scored.values) == set(AMBER.metrics)
    assert (scored.n, scored.missing) == (15220, 0)


def test_nouns_by_the_script(data: Path, plain_language: None) -> None:
    """Of truth tree, forest, dog the entries are, in order: forest (of tree), tree and bush (of
    forest), puppy (of dog), tree, forest, dog."""
    scored = score(data, {1: "forest puppies orange kite cat Dog puppy"})
    # Vocabulary: forest, orange, cat, puppy; "puppie", kite and "Dog" are not in it.
    # The cat; orange is safe, but counts as a noun.
    assert list_outcomes(scored, "chair") == [("1", 1, 4)]
    assert list_outcomes(scored, "cover") == [("1", 2, 3)]  # forest marks the tree, puppy the dog
    assert list_outcomes(scored, "cog") == [("1", 1, 2)]
    assert list_outcomes(scored, "hal") == [("1", 1, 1)]
    assert scored.values["chair"] == round(1 / 4.001 * 100, 1) == 25.0
    assert scored.values["cover"] == 66.6  # 2 / 3.001
    assert scored.values["hal"] == 100.0  # 100 - 0 / 1.001


def test_of_equal_objects_one_is_covered(data: Path, plain_language: None) -> None:
    assert list_outcomes(score(data, {2: "dog dogs"}), "cover") == [("2", 1, 2)]
    assert list_outcomes(score(data, {2: "dog dogs"}, "corrected"), "cover") == [("2", 1, 1)]


@pytest.mark.parametrize(
    ("near", "bad", "covered", "expected"),
    [
        ({}, 1, 0, 1),
        ({("cat", "dog"): 0.81}, 0, 1, 1),  # excused, but it has marked its target
        ({("cat", "dog"): 0.8}, 1, 0, 1),  # 0.8 is not above 0.8
        ({("cat", "sky"): 0.9}, 1, 0, 1),  # cat itself comes first among the targets
    ],
)
def test_similar_words(
    data: Path,
    plain_language: None,
    near: dict[tuple[str, str], float],
    bad: int,
    covered: int,
    expected: int,
) -> None:
    scored = score(data, {1: "cat"}, similar=near)
    found = [list_outcomes(scored, name)[0][1] for name in ("chair", "cover", "cog")]
    assert found == [bad, covered, expected]


def test_a_noun_marks_its_target_and_a_similar_one_before_it(
    data: Path, plain_language: None
) -> None:
    """sky is the second target, and like the first: the script marks both."""
    scored = score(data, {1: "sky"}, similar={("cat", "sky"): 0.9})
    assert list_outcomes(scored, "cog") == [("1", 2, 2)]
    # Corrected: one noun of one is expected.
    corrected = score(data, {1: "sky"}, "corrected", similar={("cat", "sky"): 0.9})
    assert list_outcomes(corrected, "cog") == [("1", 1, 1)]


def test_corrected_nouns(data: Path, plain_language: None) -> None:
    scored = score(data, {1: "Forest, orange. Cats and the Sky and a kite"}, "corrected")
    # forest is tree's word and itself: both are named. cat and sky are not there; orange is safe.
    assert list_outcomes(scored, "cover") == [("1", 2, 3)]
    assert list_outcomes(scored, "chair") == [("1", 2, 3)]
    assert list_outcomes(scored, "cog") == [("1", 2, 3)]
    assert scored.values["chair"] == pytest.approx(200 / 3)
    assert scored.missing == 8
    assert set(scored.values) == {"chair", "cover", "hal", "cog"}


SAID = {3: "No", 4: "Yes", 5: "No.", 6: "No", 7: "no", 8: "No", 9: "Yes"}


def test_yes_and_no_by_the_script(data: Path) -> None:
    """`No.` and `no` are neither. Truths: 3 no, 4 yes, 5 no, 6 no, 7 yes, 8 yes, 9 no."""
    values = score(data, SAID).values
    # Right: 3, 4, 6 of 7. Said no: 3, 6, 8, of which 3 and 6 are right. Truly no: 3, 5, 6, 9.
    assert values["accuracy"] == round(3 / 7.001 * 100, 1)
    assert values["precision"] == round(2 / 3.001 * 100, 1) == 66.6
    assert values["recall"] == round(2 / 4.001 * 100, 1) == 50.0
    assert values["f1"] == round(2 * 0.666 * 0.5 / (0.666 + 0.5 + 0.0001) * 100, 1)
    assert values["existence/precision"] == 99.9  # one question: 1 / 1.001
    # Each kind of attribute brings its own 0.001. Right: 4 and 6 of 4, 5, 6, 7.
    assert values["attribute/accuracy"] == round(2 / 4.003 * 100, 1) == 50.0
    assert values["attribute/precision"] == round(1 / 1.003 * 100, 1) == 99.7
    assert values["state/accuracy"] == 50.0
    assert values["relation/accuracy"] == 0.0  # both kinds of relation are in it
    assert [group for group, _, _ in list_outcomes(score(data, SAID), "relation/recall")] == [
        "8",
        "9",
    ]


def test_the_constant_of_existence_is_ten_times_the_others(data: Path) -> None:
    """Four questions, "No" to two: P 100.0 (2 / 2.001), R 50.0 (2 / 4.001)."""
    kinds = ["discriminative-hallucination", "relation"]
    rows = [
        {"id": number, "type": kind, "truth": "no"}
        for number, kind in enumerate([kind for kind in kinds for _ in range(4)], start=1)
    ]
    (data / "annotations.json").write_text(json.dumps(rows))
    values = score(data, {1: "No", 2: "No", 3: "Yes", 4: "", 5: "No", 6: "No", 7: "", 8: ""}).values
    assert values["existence/f1"] == round(1 / (1.5 + 0.001) * 100, 1) == 66.6
    assert values["relation/f1"] == round(1 / (1.5 + 0.0001) * 100, 1) == 66.7


def test_yes_and_no_corrected(data: Path) -> None:
    """Right: 3, 4, 5, 6 of 7. Said no: 3, 5, 6, 7, 8, of which 3, 5, 6; truly no: 3, 5, 6, 9."""
    values = score(data, SAID, "corrected").values
    assert values["accuracy"] == pytest.approx(400 / 7)
    assert values["precision"] == pytest.approx(60)
    assert values["recall"] == pytest.approx(75)
    assert values["f1"] == pytest.approx(2 * 60 * 75 / 135)
    assert "chair" not in values
    assert "amber_score" not in values


def test_chip_takes_the_space_around_an_answer_away(data: Path) -> None:
    assert score(data, {5: " No\n"}).values["accuracy"] == 0.0
    assert score(data, {5: " No\n"}, "chip").values["accuracy"] == 99.9


@pytest.mark.parametrize(
    ("answered", "printed"),
    [
        ([1, 2], {"chair", "cover", "hal", "cog"}),
        ([3], {f"existence/{rate}" for rate in ("accuracy", "precision", "recall", "f1")}),
        ([8, 9], {f"relation/{rate}" for rate in ("accuracy", "precision", "recall", "f1")}),
        (
            [4, 5, 6, 7],
            {
                f"{part}/{rate}"
                for part in ("attribute", "state", "number", "action")
                for rate in ("accuracy", "precision", "recall", "f1")
            },
        ),
        ([3, 4, 5, 6, 7, 8, 9], set(AMBER.metrics) - {"chair", "cover", "hal", "cog"}),
        ([1], set(AMBER.metrics)),  # no published part: all figures
        ([], set(AMBER.metrics)),
    ],
)
def test_a_published_part_has_its_own_figures(
    data: Path, plain_language: None, answered: list[int], printed: set[str]
) -> None:
    scored = score(data, {item: "No" for item in answered})
    assert set(scored.values) == printed - ({"amber_score"} if len(printed) == 29 else set())


def test_nothing_answered(data: Path) -> None:
    official = score(data, {})
    # 0 / 0.001 everywhere, and Hal is 100 - 0; (100 - 0 + 0) / 2.
    hal_and_score = {"hal": 100.0, "amber_score": 50.0}
    assert official.values == {name: hal_and_score.get(name, 0.0) for name in AMBER.metrics}
    assert (official.n, official.missing) == (0, 9)
    corrected = score(data, {}, "corrected")
    assert corrected.values == dict.fromkeys(AMBER.metrics)


def test_a_subset_is_the_whole_under_limit(data: Path, plain_language: None) -> None:
    scored = score(data, {1: "dog"}, only=frozenset({"1", "2"}))
    assert scored.missing == 1
    assert set(score(data, {1: "dog"}, only=frozenset({"1"})).values) == {
        "chair",
        "cover",
        "hal",
        "cog",
    }


def test_order_changes_nothing(data: Path, plain_language: None) -> None:
    said = {1: "cat dog forest", 2: "man orange", **SAID}
    assert score(data, said).values == score(data, dict(reversed(said.items()))).values


def test_repeats_count_again_or_are_refused(data: Path) -> None:
    twice = [Answer(item="3", response="No"), Answer(item="3", response="Yes")]
    assert score(data, twice).values["existence/accuracy"] == round(1 / 2.001 * 100, 1)
    with pytest.raises(UserError, match=r"item 3 is answered 2 times \(answers 1, 2\)"):
        score(data, twice, "corrected")


@pytest.mark.parametrize("item", ["0", "-1", "10", "x", "1.0"])
@pytest.mark.parametrize("protocol", ["official", "corrected", "chip"])
def test_an_unknown_id_is_named(data: Path, item: str, protocol: ProtocolName) -> None:
    with pytest.raises(UserError, match=f"answer 1: id '{item}' is not a question of AMBER"):
        score(data, [Answer(item=item, response="Yes")], protocol)


def write_json_rows(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_what_stops_the_script(data: Path, tmp_path: Path, plain_language: None) -> None:
    as_text = AMBER.read_responses(
        write_json_rows(tmp_path / "a.json", [{"id": "3", "response": "No"}])
    )
    with pytest.raises(UserError, match="answer 1: id '3' is not a whole number"):
        score(data, as_text)
    assert score(data, as_text, "corrected").n == 1
    ours = AMBER.read_responses(
        write_json_rows(tmp_path / "o.json", [{"item": "3", "response": "No"}])
    )
    assert score(data, ours).n == 1
    nothing = AMBER.read_responses(
        write_json_rows(tmp_path / "b.json", [{"id": 1, "response": None}])
    )
    with pytest.raises(UserError, match=r"answer 1 \(id 1\): the response is not text"):
        score(data, nothing)
    scored = score(data, nothing, "corrected")
    assert (scored.n, scored.missing) == (0, 9)
    # A yes/no question compares whatever there is: null is neither.
    number = AMBER.read_responses(write_json_rows(tmp_path / "c.json", [{"id": 5, "response": 1}]))
    assert score(data, number).values["accuracy"] == 0.0


def test_what_is_missing_is_named(data: Path, tmp_path: Path, plain_language: None) -> None:
    with pytest.raises(UserError, match="spaCy.*--similarity"):
        AMBER.score(
            [Answer(item="1", response="dog")],
            data=data,
            protocol="official",
            resources=Resources(),
        )
    with pytest.raises(UserError, match="there is no such file"):
        score(tmp_path, {3: "No"})
    (data / "relation.json").write_text('{"dog": []}')
    with pytest.raises(UserError, match=r"relation.json has no 'tree' \(question 1\)"):
        score(data, {1: "dog"})
    (data / "annotations.json").write_text('[{"id": 1}]')
    with pytest.raises(UserError, match="not AMBER's annotations"):
        score(data, {3: "No"})


def test_items_add_up(data: Path, plain_language: None) -> None:
    scored = score(data, {1: "cat dog forest", 2: "man orange", **SAID}, "corrected")
    for metric in scored.metrics:
        if metric.name != "amber_score":
            whole = sum(outcome.denominator for outcome in metric.items)
            rate = sum(o.numerator for o in metric.items) / whole if whole else None
            assert metric.value == (None if rate is None else pytest.approx(100 * rate))
            assert {o.group for o in metric.items} <= {
                "generative",
                "existence",
                "attribute/state",
                "attribute/number",
                "attribute/action",
                "relation",
            }
