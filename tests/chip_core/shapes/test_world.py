"""The embedded world is the same for everybody, and its splits share nothing."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from chip_core.shapes.world import (
    COLOURS,
    IMAGE_SIZE,
    PAIRS,
    PARTNER,
    SHAPES,
    SPLIT_SIZES,
    draw_scene,
    make_scene,
    practice_sheet,
    scene_from_id,
)

CORPUS_READ = 32_000  # what `chip_core.shapes.build` reads of the corpus


def test_a_scene_is_a_function_of_split_and_index():
    assert make_scene("test", 17) == make_scene("test", 17)
    assert make_scene("test", 17) == scene_from_id("test/17")
    assert make_scene("test", 17) != make_scene("test", 18)
    assert make_scene("test", 17).things != make_scene("select", 17).things


def test_scenes_are_those_the_base_was_built_and_scored_on():
    """A change of any draw makes the saved model and every published figure stale."""
    ids = [f"{split}/{i}" for split in ("train", "select", "test") for i in range(50)]
    digest = hashlib.sha256("\n".join(repr(scene_from_id(item)) for item in ids).encode())
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
    assert min(len(practice_sheet(i).things) for i in range(200)) == 5
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
        with pytest.raises(ValueError, match="is no item of the shapes world"):
            scene_from_id(item)
