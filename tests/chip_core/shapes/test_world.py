"""The embedded world is the same for everybody, and its splits share nothing.

Captions say exactly what is there, rejected ones exactly one thing that is not.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from chip_core.objectives.parts import changed_positions
from chip_core.shapes.processor import build_processor
from chip_core.shapes.world import (
    COLOURS,
    IMAGE_SIZE,
    PAIRS,
    PARTNER,
    SHAPES,
    SPLIT_SIZES,
    STYLES,
    Mention,
    Scene,
    Thing,
    draw_scene,
    find_mentions,
    get_question,
    list_vocabulary,
    make_corpus_caption,
    make_faithful_caption,
    make_practice_sheet,
    make_preference_pair,
    make_rejected_caption,
    make_scene,
    parse_scene_id,
)

CORPUS_READ = 32_000  # what `chip_core.shapes.build` reads of the corpus


def test_a_scene_is_a_function_of_split_and_index():
    assert make_scene("test", 17) == make_scene("test", 17)
    assert make_scene("test", 17) == parse_scene_id("test/17")
    assert make_scene("test", 17) != make_scene("test", 18)
    assert make_scene("test", 17).things != make_scene("select", 17).things


def test_scenes_are_those_the_base_was_built_and_scored_on():
    """A change of any draw makes the saved model and every published figure stale."""
    ids = [f"{split}/{i}" for split in ("train", "select", "test") for i in range(50)]
    digest = hashlib.sha256("\n".join(repr(parse_scene_id(item)) for item in ids).encode())
    assert digest.hexdigest()[:16] == "3c9fee349853a4b7"


def test_no_scene_of_one_split_occurs_in_another():
    sizes = SPLIT_SIZES | {"corpus": CORPUS_READ}
    keys = {split: {make_scene(split, i).key for i in range(size)} for split, size in sizes.items()}
    for split in keys:
        for other in keys:
            if split != other:
                assert not keys[split] & keys[other], (split, other)
    assert len(keys["test"]) > 0.98 * SPLIT_SIZES["test"]  # hardly a scene twice within a split


def test_practice_sheets_are_too_crowded_to_be_scenes():
    # A scene has at most two groups of two.
    assert min(len(make_practice_sheet(i).things) for i in range(200)) == 5
    assert max(len(make_scene("train", i).things) for i in range(200)) == 4


def test_things_have_their_own_cells_and_shapes_in_reading_order():
    for index in range(300):
        things = make_scene("train", index).things
        cells = [thing.cell for thing in things]
        assert cells == sorted(set(cells))
        assert len({thing.shape for thing in things}) == len(things)
        assert all(thing.shape in SHAPES and thing.colour in COLOURS for thing in things)


def test_partners_are_together_half_of_the_time_but_usually_in_the_corpus():
    def together(split: str, count: int) -> float:
        seen: Counter[bool] = Counter()
        for index in range(count):
            shapes = {thing.shape for thing in make_scene(split, index).things}
            for pair in PAIRS:
                if shapes & {pair.first, pair.second}:
                    seen[{pair.first, pair.second} <= shapes] += 1
        return seen[True] / seen.total()

    # 1,000 scenes hold about 1,333 groups of a pair: four standard errors are 0.055 and 0.039.
    assert abs(together("test", 1000) - 0.5) < 0.055
    assert abs(together("corpus", 1000) - 0.85) < 0.04


def test_partners_are_mutual():
    assert all(PARTNER[PARTNER[shape]] == shape for shape in PARTNER)


def test_an_image_shows_each_thing_in_its_cell_and_nothing_elsewhere():
    for index in range(30):
        shown = make_scene("test", index)
        image = draw_scene(shown)
        assert image.size == (IMAGE_SIZE, IMAGE_SIZE)
        assert image.mode == "RGB"
        cells = {thing.cell for thing in shown.things}
        for cell in range(9):
            x, y = cell % 3 * 16, cell // 3 * 16
            colours = image.crop((x, y, x + 16, y + 16)).getcolors()
            assert (colours == [(256, shown.background)]) == (cell not in cells)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no split 'dev'.*train, select, test"):
        make_scene("dev", 0)
    with pytest.raises(ValueError, match="no scene 1000 in 'test'"):
        make_scene("test", 1000)
    with pytest.raises(ValueError, match="no scene -1"):
        make_scene("test", -1)
    with pytest.raises(ValueError, match="no split 'practice'"):
        make_scene("practice", 0)
    for item in ("test", "test/", "test/x", "test/-1", "17"):
        with pytest.raises(ValueError, match="is not an item of the shapes world"):
            parse_scene_id(item)


SOME = [make_scene(split, index) for split in ("train", "select", "test") for index in range(400)]


def test_a_caption_by_hand():
    def thing(shape: str, colour: str, cell: int) -> Thing:
        return Thing(shape, colour, cell, 0.0, 0.0, 6.0, (0, 0, 0))

    things = (thing("star", "red", 0), thing("ring", "blue", 4), thing("moon", "black", 8))
    said = make_faithful_caption(Scene("train", 0, things, (255, 255, 255)))
    assert get_question("train", 0) == "what is in the picture?"
    assert said == "i see a red star next to a black moon and a blue ring alone."


def test_a_faithful_caption_names_everything_and_nothing_else():
    for shown in SOME:
        said = find_mentions(make_faithful_caption(shown))
        there = [Mention(thing.shape, thing.colour) for thing in shown.things]
        assert sorted(said, key=str) == sorted(there, key=str)


def test_a_rejected_caption_names_one_thing_that_is_not_there():
    kinds: Counter[str] = Counter()
    for shown in SOME:
        there = {thing.shape for thing in shown.things}
        said = {mention.shape for mention in find_mentions(make_rejected_caption(shown))}
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
        pair = make_preference_pair("train", index)
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
                said = {mention.shape for mention in find_mentions(make_corpus_caption(shown))}
                presumed += {pair.first, pair.second} <= said
        # About 300 scenes each: four standard errors at 0.5 are 0.115.
        assert abs(presumed / missing - pair.presumed) < 0.115


def test_texts_are_words_of_the_vocabulary_and_decode_to_themselves():
    tokenizer = build_processor().tokenizer
    assert len(list_vocabulary()) == len(set(list_vocabulary()))
    for shown in SOME:
        asked = get_question(shown.split, shown.index)
        for text in (asked, make_faithful_caption(shown), make_rejected_caption(shown)):
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
    pair, again = make_preference_pair("train", 5), make_preference_pair("train", 5)
    assert pair.id == "train/5"
    assert (pair.question, pair.chosen, pair.rejected) == (
        again.question,
        again.chosen,
        again.rejected,
    )
    assert pair.image.tobytes() == again.image.tobytes()
    with pytest.raises(ValueError, match="no scene"):
        make_preference_pair("train", SPLIT_SIZES["train"])


def test_all_questions_are_asked():
    asked = Counter(get_question("train", index) for index in range(600))
    assert set(asked) == {style.question for style in STYLES}
    assert min(asked.values()) > 150  # a third of 600 is 200, four standard errors are 46
