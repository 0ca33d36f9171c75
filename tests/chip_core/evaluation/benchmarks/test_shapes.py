"""CHAIR, Hal and Cover in the embedded world, by hand."""

from __future__ import annotations

import pytest

from chip_core.evaluation.benchmarks.shapes.score import score, truth
from chip_core.shapes.world import (
    COLOURS,
    SHAPES,
    make_faithful_caption,
    make_rejected_caption,
    make_scene,
)


def test_by_hand():
    """Four scenes with n1–n4 objects: faithful, an extra one, a wrong colour, nothing said."""
    scenes = [make_scene("test", index) for index in range(4)]
    objects = [len(shown.things) for shown in scenes]
    extra = next(s for s in SHAPES if s not in {thing.shape for thing in scenes[1].things})
    first = scenes[2].things[0]
    wrong = next(colour for colour in COLOURS if colour != first.colour)
    answers = [
        ("test/0", make_faithful_caption(scenes[0])),
        ("test/1", make_faithful_caption(scenes[1]) + f" and a red {extra}, yes, a {extra}"),
        ("test/2", f"a {wrong} {first.shape}"),
        ("test/3", "nothing"),
    ]
    chair_i, chair_s, hal, cover = score(answers)

    # Mentions: all of scene 0, all of scene 1 and the extra one twice, one, none.
    mentions = objects[0] + (objects[1] + 2) + 1 + 0
    assert chair_i.value == pytest.approx(100 * 2 / mentions)
    # One answer of four invents a shape; a wrong colour is no CHAIR ...
    assert chair_s.value == pytest.approx(25.0)
    # ... but it is a hallucination.
    assert hal.value == pytest.approx(50.0)
    assert cover.value == pytest.approx(100 * (objects[0] + objects[1] + 1) / sum(objects))

    assert [o.item for o in chair_i.items] == ["test/0", "test/1", "test/2", "test/3"]
    assert [(o.numerator, o.denominator) for o in chair_i.items] == [
        (0, objects[0]),
        (2, objects[1] + 2),
        (0, 1),
        (0, 0),
    ]
    assert [(o.numerator, o.denominator) for o in hal.items] == [(0, 1), (1, 1), (1, 1), (0, 1)]


def test_names_units_and_goals():
    outcomes = score([("test/0", make_faithful_caption(make_scene("test", 0)))])
    assert [(o.name, o.unit, o.goal) for o in outcomes] == [
        ("chair_i", "percent", "minimize"),
        ("chair_s", "percent", "minimize"),
        ("hal", "percent", "minimize"),
        ("cover", "percent", "maximize"),
    ]


def test_faithful_captions_are_perfect_and_rejected_ones_all_hallucinate():
    scenes = [make_scene("select", index) for index in range(200)]
    faithful = score([(shown.id, make_faithful_caption(shown)) for shown in scenes])
    assert [outcome.value for outcome in faithful] == [0.0, 0.0, 0.0, 100.0]
    rejected = score([(shown.id, make_rejected_caption(shown)) for shown in scenes])
    assert [outcome.value for outcome in rejected[1:3]] == [100.0, 100.0]


def test_an_empty_set_raises():
    with pytest.raises(ValueError, match="no answers"):
        score([])


def test_a_rate_over_nothing_is_undefined_and_not_0():
    chair_i, chair_s, hal, cover = score([("test/0", "nothing"), ("test/1", "")])
    assert chair_i.value is None
    assert (chair_s.value, hal.value, cover.value) == (0.0, 0.0, 0.0)


def test_unknown_and_repeated_items_raise():
    with pytest.raises(ValueError, match="'amber/1'|no split 'amber'"):
        score([("amber/1", "a red moon")])
    with pytest.raises(ValueError, match="'test/0' is answered more than once"):
        score([("test/0", "a red moon"), ("test/0", "a red moon")])


def test_truth_names_everything():
    shown = make_scene("test", 3)
    said = truth("test/3")
    assert said.split(", ") == [f"a {thing.colour} {thing.shape}" for thing in shown.things]
