"""Captions say exactly what is there, rejected ones exactly one thing that is not."""

from __future__ import annotations

from collections import Counter

import pytest

from chip_core.objectives.segments import changed_positions
from chip_core.shapes.captions import (
    STYLES,
    Mention,
    caption_vocabulary,
    corpus_caption,
    faithful_caption,
    find_mentions,
    preference_pair,
    rejected_caption,
    scene_question,
)
from chip_core.shapes.processor import build_processor
from chip_core.shapes.world import PAIRS, PARTNER, SPLIT_SIZES, Scene, Thing, make_scene

SOME = [make_scene(split, index) for split in ("train", "select", "test") for index in range(400)]


def test_a_caption_by_hand():
    def thing(shape: str, colour: str, cell: int) -> Thing:
        return Thing(shape, colour, cell, 0.0, 0.0, 6.0, (0, 0, 0))

    things = (thing("star", "red", 0), thing("ring", "blue", 4), thing("moon", "black", 8))
    said = faithful_caption(Scene("train", 0, things, (255, 255, 255)))
    assert scene_question("train", 0) == "what is in the picture?"
    assert said == "i see a red star next to a black moon and a blue ring alone."


def test_a_faithful_caption_names_everything_and_nothing_else():
    for shown in SOME:
        said = find_mentions(faithful_caption(shown))
        there = [Mention(thing.shape, thing.colour) for thing in shown.things]
        assert sorted(said, key=str) == sorted(there, key=str)


def test_a_rejected_caption_names_one_thing_that_is_not_there():
    kinds: Counter[str] = Counter()
    for shown in SOME:
        there = {thing.shape for thing in shown.things}
        said = {mention.shape for mention in find_mentions(rejected_caption(shown))}
        (invented,) = said - there
        missed = there - said
        assert len(missed) <= 1
        if missed:
            kinds["in place of a true one"] += 1
        else:
            kinds["the partner" if PARTNER.get(invented) in there else "another"] += 1
    # The model's own mistake leads, and there are some of each.
    assert kinds["the partner"] > 0.35 * len(SOME)
    assert min(kinds.values()) > 0.05 * len(SOME)


def test_pairs_differ_by_replacement_of_few_tokens():
    """An inserted-only slip would get no segment (FACTS 9)."""
    tokenizer = build_processor().tokenizer
    for index in range(400):
        pair = preference_pair("train", index)
        chosen, rejected = tokenizer([pair.chosen, pair.rejected])["input_ids"]
        changed_chosen, changed_rejected = changed_positions(chosen, rejected)
        # "a red ring" → "next to a red ring." and, where the blocks between are short, some more.
        assert 1 <= len(changed_chosen) <= 8, pair
        assert 1 <= len(changed_rejected) <= 12, pair


def test_corpus_captions_name_missing_partners_as_often_as_their_pair_says():
    for pair in PAIRS:
        missing = presumed = 0
        for index in range(6000):
            shown = make_scene("corpus", index)
            there = {thing.shape for thing in shown.things}
            if len(there & {pair.first, pair.second}) == 1:
                missing += 1
                said = {mention.shape for mention in find_mentions(corpus_caption(shown))}
                presumed += {pair.first, pair.second} <= said
        # About 300 scenes each: four standard errors at 0.5 are 0.115.
        assert abs(presumed / missing - pair.presumed) < 0.115


def test_texts_are_words_of_the_vocabulary_and_decode_to_themselves():
    tokenizer = build_processor().tokenizer
    assert len(caption_vocabulary()) == len(set(caption_vocabulary()))
    for shown in SOME:
        asked = scene_question(shown.split, shown.index)
        for text in (asked, faithful_caption(shown), rejected_caption(shown)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert len(ids) <= 24


def test_objects_are_read_from_any_text():
    text = "Yes: a RED moon, the star; a big blue (ring) and rings. A green green heart"
    assert find_mentions(text) == [
        Mention("moon", "red"),
        Mention("star", None),
        Mention("ring", "blue"),
        Mention("heart", "green"),
    ]
    assert find_mentions("") == []


def test_a_pair_is_a_function_of_split_and_index():
    pair, again = preference_pair("train", 5), preference_pair("train", 5)
    assert pair.id == "train/5"
    assert (pair.question, pair.chosen, pair.rejected) == (
        again.question,
        again.chosen,
        again.rejected,
    )
    assert pair.image.tobytes() == again.image.tobytes()
    with pytest.raises(ValueError, match="no scene"):
        preference_pair("train", SPLIT_SIZES["train"])


def test_all_questions_are_asked():
    asked = Counter(scene_question("train", index) for index in range(600))
    assert set(asked) == {style.question for style in STYLES}
    assert min(asked.values()) > 150  # a third of 600 is 200, four standard errors are 46
