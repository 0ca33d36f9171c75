"""Rule CHAIR: the script's figures with its quirks, and corrected ones against a second count."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.chair import score as chair
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.utils.errors import UserError

from . import coco_cases

CHAIR = BENCHMARKS["chair"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return coco_cases.write_synonyms(tmp_path, "synonyms.txt")


def score(
    data: Path,
    said: dict[int, str] | list[tuple[int, str]],
    protocol: ProtocolName = "official",
    coco: Path | None = None,
) -> ScoreResult:
    pairs = said.items() if isinstance(said, dict) else said
    return CHAIR.score(
        [Answer(item=str(image), response=text) for image, text in pairs],
        data=data,
        protocol=protocol,
        resources=Resources(coco=coco or coco_cases.write_object_lists(data)),
    )


def test_equals_the_official_figures(oracles: Path, nltk_data: None) -> None:
    scored = CHAIR.score(
        CHAIR.read_responses(oracles / "chair" / "captions.jsonl"),
        data=oracles / "data" / "chair",
        protocol="official",
        resources=Resources(coco=oracles / "chair" / "coco_objects.json"),
    )
    assert scored.values == json.loads((oracles / "chair" / "expected.json").read_text())
    assert (scored.n, scored.missing) == (400, 0)


@pytest.mark.parametrize(
    ("caption", "official", "corrected"),
    [
        ("Dogs and a man", ["dog", "person"], ["dog", "person"]),
        ("a dog, a dog, puppies", ["dog", "dog", "dog"], ["dog", "dog", "dog"]),
        ("a baby dog with an adult dog", ["dog", "dog"], ["dog", "dog"]),
        ("two street lights", ["traffic light"], ["traffic light"]),
        ("a bus", [], ["bus"]),  # singular: "bu"
        ("buses and minibuses", ["bus", "bus"], ["bus", "bus"]),
        ("a motor bike", [], ["motorcycle"]),  # listed as " motor bike"
        ("wine glasses, a wine glass", ["wine glass", "wine glass"], ["wine glass", "wine glass"]),
        ("a bow tie", ["tie"], ["tie"]),
        ("bow ties", [], ["tie"]),  # singular: "ty"
        ("a toilet seat", ["toilet"], ["toilet"]),
        ("the seat of the toilet", ["toilet"], ["toilet"]),
        ("the seat of the chair", ["chair", "chair"], ["chair", "chair"]),
        ("train tracks", [], []),
        ("a passenger train", ["train"], ["train"]),
        ("a passenger on a train", ["person", "train"], ["person", "train"]),
    ],
)
def test_which_objects_a_caption_names(
    data: Path, plain_language: None, caption: str, official: list[str], corrected: list[str]
) -> None:
    kinds = {"dog", "person", "bus", "motorcycle", "traffic light", "wine glass", "tie"}
    everything = sorted({*kinds, "chair", "toilet", "train"})
    objects = data / "all.json"
    readings: dict[ProtocolName, list[str]] = {"official": official, "corrected": corrected}
    for protocol, expected in readings.items():
        found = []
        for kind in everything:  # alone in the image: it is the mention that is not wrong
            objects.write_text(json.dumps({"1": [kind], "2": ["person"]}))
            scored = score(data, [(1, caption), (2, "a man")], protocol, objects)
            wrong, mentions = coco_cases.list_counts(scored, "chair_i")[0]
            found += [kind] * int(mentions - wrong)
        assert found == sorted(expected), protocol


@pytest.mark.parametrize("corrected", [False, True])
def test_a_word_with_a_hyphen_is_one_word(
    data: Path, monkeypatch: pytest.MonkeyPatch, corrected: bool
) -> None:
    """As NLTK splits; the singular form is "mini-bus", which is no object's name."""
    monkeypatch.setattr(chair, "tokenize_words", str.split)
    _, read = chair.make_object_reader(data, corrected=corrected)
    assert read("Buses and mini-buses") == ["bus"]


def test_corrected_finds_every_name_whatever_its_singular_is(
    oracles: Path, nltk_data: None
) -> None:
    """TextBlob makes "bus" a "bu" and "glass" a "glas": a name is looked up as it is written first.

    Names of two words at most: pairs are read as one, and "stove top oven" is a pair and an oven.
    """
    names, read = chair.make_object_reader(oracles / "data" / "chair", corrected=True)
    for name, category in names.category.items():
        if len(name.split()) > 2:
            continue
        ends = "es" if name.endswith(("s", "x", "ch", "sh")) else "s"
        several = f"{name[:-1]}ies" if re.search(r"[^aeiou]y$", name) else f"{name}{ends}"
        forms = [name] if name in ("skis", "scissors") else [name, several]
        for form in (*forms, name.upper()):
            assert read(f"There is {form} here.") == [category], form


def test_by_hand(data: Path, plain_language: None) -> None:
    scored = score(data, {1: "a dog, a puppy and a train", 2: "nothing", 3: "a toilet"})
    assert coco_cases.list_counts(scored, "chair_s") == [(1, 1), (0, 1), (0, 1)]
    assert coco_cases.list_counts(scored, "chair_i") == [(1, 3), (0, 0), (0, 1)]
    assert coco_cases.list_counts(scored, "recall") == [(1, 2), (0, 1), (1, 2)]
    assert scored.values == {"chair_s": 33.3, "chair_i": 25.0, "recall": 40.0}
    assert score(data, {1: "a train", 3: "a toilet"}, "corrected").values["chair_i"] == 50.0


def test_annotations_and_their_captions_are_the_truth(data: Path, plain_language: None) -> None:
    """Image 1: dog and person by instances, person and traffic light by its caption."""
    folder = coco_cases.write_annotations(data)
    said = {1: "a street light", 2: "minibuses", 5: "a train", 4: "a man"}
    scored = score(data, said, coco=folder)
    assert coco_cases.list_counts(scored, "recall") == [(1, 3), (1, 1), (1, 1), (0, 1)]
    assert coco_cases.list_counts(scored, "chair_i") == [(0, 1), (0, 1), (0, 1), (1, 1)]
    assert score(data, said, coco=folder.parent).values == scored.values  # COCO's own layout
    # The instances of one file alone are enough where nothing official is asked for.
    val = folder / "instances_val2014.json"
    assert coco_cases.list_counts(score(data, {2: "a minibus"}, "corrected", val), "recall") == [
        (1, 1)
    ]
    with pytest.raises(UserError, match="only one file; the official script reads"):
        score(data, {2: "minibuses"}, coco=val)
    (folder / "captions_train2014.json").unlink()
    with pytest.raises(UserError, match="holds no captions_train2014.json: they are in"):
        score(data, said, coco=folder)
    assert coco_cases.list_counts(score(data, said, "corrected", folder), "recall")[0] == (0, 2)


@pytest.mark.parametrize(
    ("said", "figure"),
    [({}, "chair_s"), ({1: ""}, "chair_i"), ({5: "a dog"}, "recall")],
)
def test_where_the_script_divides_by_zero(
    data: Path, plain_language: None, said: dict[int, str], figure: str
) -> None:
    with pytest.raises(UserError, match=f"chair: {figure} has nothing to count here"):
        score(data, said)
    assert score(data, said, "corrected").values[figure] is None


def test_degenerate_answers(data: Path, plain_language: None) -> None:
    twice = [(1, "a dog"), (1, "a train")]
    assert score(data, twice).values == {"chair_s": 50.0, "chair_i": 50.0, "recall": 25.0}
    with pytest.raises(UserError, match="item 1 is answered 2 times"):
        score(data, twice, "corrected")
    # The script takes an image that it does not know for an empty one.
    unknown = {1: "a dog", 99: "a dog"}
    assert score(data, unknown).values == {"chair_s": 50.0, "chair_i": 50.0, "recall": 50.0}
    with pytest.raises(UserError, match="answer 2: image 99 is not in COCO's annotations"):
        score(data, unknown, "corrected")
    said = {1: "a dog", 2: "a bus and a man", 3: "seats"}
    assert score(data, said).values == score(data, dict(reversed(said.items()))).values
    with pytest.raises(UserError, match="protocol chip is unknown here.*official, corrected"):
        score(data, said, "chip")


def test_responses_are_read_from_every_known_key(data: Path, plain_language: None) -> None:
    def read(*rows: dict[str, Any]) -> list[Answer]:
        file = data / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return CHAIR.read_responses(file)

    def scored(answers: list[Answer], protocol: ProtocolName) -> ScoreResult:
        resources = Resources(coco=coco_cases.write_object_lists(data))
        return CHAIR.score(answers, data=data, protocol=protocol, resources=resources)

    text_id = read({"image_id": "1", "caption": "a dog"})
    with pytest.raises(UserError, match="answer 1: image_id '1' is not a whole number"):
        scored(text_id, "official")
    assert scored(text_id, "corrected").values["chair_i"] == 0.0
    ours = read({"item": "1", "response": "a dog"})
    assert scored(ours, "official").values["recall"] == 50.0
    nothing = read({"image_id": 1, "caption": None}, {"image_id": 2, "caption": "a bus"})
    with pytest.raises(UserError, match=r"answer 1 \(item 1\): the response is not text"):
        scored(nothing, "official")
    assert (scored(nothing, "corrected").n, scored(nothing, "corrected").missing) == (1, 1)
    with pytest.raises(UserError, match="row 1: there is no caption or response; it has: image_id"):
        read({"image_id": 1})
    with pytest.raises(UserError, match="--coco FOLDER"):
        CHAIR.score(ours, data=data, protocol="official", resources=Resources())
    with pytest.raises(UserError, match="synonyms.txt: there is no such file"):
        score(data / "nowhere", {1: "a dog"}, coco=coco_cases.write_object_lists(data))


#: written form -> category, of the corrected reading; None: no object
FORMS = {
    "dog": "dog",
    "puppies": "dog",
    "people": "person",
    "buses": "bus",
    "bus": "bus",
    "motor bikes": "motorcycle",
    "street light": "traffic light",
    "train": "train",
    "baby dog": "dog",
    "train track": None,
    "chair": "chair",
    "sky": None,
}


@given(
    said=st.dictionaries(
        st.sampled_from(sorted(coco_cases.OBJECTS)),
        st.lists(st.sampled_from(sorted(FORMS)), max_size=6),
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrected_equals_a_second_count(
    data: Path, plain_language: None, said: dict[int, list[str]]
) -> None:
    bad = named = captions = hallucinated = found = objects = 0
    for image, words in said.items():
        there = set(coco_cases.OBJECTS[image])
        mentions = [FORMS[word] for word in words if FORMS[word] is not None]
        false = [kind for kind in mentions if kind not in there]
        bad, named = bad + len(false), named + len(mentions)
        captions, hallucinated = captions + 1, hallucinated + (len(false) > 0)
        found, objects = found + len(there & set(mentions)), objects + len(there)
    captions_said = {image: " with the ".join(words) for image, words in said.items()}
    values = score(data, captions_said, "corrected").values
    for name, top, bottom in (
        ("chair_s", hallucinated, captions),
        ("chair_i", bad, named),
        ("recall", found, objects),
    ):
        expected = pytest.approx(float(100 * Fraction(top, bottom))) if bottom else None
        assert values[name] == expected, name
