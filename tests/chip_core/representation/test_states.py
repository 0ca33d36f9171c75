"""Hidden states of the embedded model, and the sets that they are taken of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.representation.described import read_described_images
from chip_core.representation.states import Reading, compute_representations
from chip_core.shapes.world import compare_caption, parse_scene_id
from chip_core.utils.errors import TrialError, UserError

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    model, processor = loading.load(ModelConfig(path="shapes"))
    return model, processor


def test_a_vector_for_each_part_of_each_item(loaded: Loaded) -> None:
    described = read_described_images("shapes", 3)
    told: list[tuple[int, int]] = []
    found = compute_representations(*loaded, described, Reading(), lambda *at: told.append(at))
    hidden = loaded[0].config.text_config.hidden_size
    for part in (found.image, found.true, found.hallucinated):
        assert part.shape == (3, hidden) and np.isfinite(part).all()
    assert found.layer == loaded[0].config.text_config.num_hidden_layers
    assert told == [(1, 3), (2, 3), (3, 3)]
    again = compute_representations(*loaded, described, Reading())
    assert np.array_equal(found.true, again.true) and np.array_equal(found.image, again.image)


def test_vectors_are_those_of_the_model(loaded: Loaded) -> None:
    model, processor = loaded
    (item, other) = read_described_images("shapes", 2)
    content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    words = processor.tokenizer(item.true, add_special_tokens=False)["input_ids"]
    batch = processor(images=[item.image()], text=[text + item.true], return_tensors="pt")
    ids = batch["input_ids"][0]
    assert ids[-len(words) :].tolist() == words
    with torch.inference_mode():
        states = model(**batch, output_hidden_states=True).hidden_states[2][0].double().numpy()
    places = (ids == processor.image_token_id).numpy()
    assert places.sum() == 36  # 48 pixels in patches of 8: 6 × 6
    mean = compute_representations(model, processor, [item, other], Reading(layer=2))
    assert mean.image[0] == pytest.approx(states[places].mean(axis=0), abs=1e-5)
    assert mean.true[0] == pytest.approx(states[-len(words) :].mean(axis=0), abs=1e-5)
    last = compute_representations(model, processor, [item, other], Reading(layer=2, pool="last"))
    assert last.image[0] == pytest.approx(states[places][-1], abs=1e-5)
    assert last.true[0] == pytest.approx(states[-1], abs=1e-5)


def test_a_description_alone_does_not_see_the_image(loaded: Loaded) -> None:
    (one, other) = read_described_images("shapes", 2)
    swapped = [type(one)(**{**vars(one), "image": other.image, "prompt": other.prompt}), other]
    alone = Reading(alone=True)
    before = compute_representations(*loaded, [one, other], alone)
    after = compute_representations(*loaded, swapped, alone)
    assert np.array_equal(before.true[0], after.true[0])
    assert not np.allclose(before.image[0], after.image[0])
    seen = compute_representations(*loaded, [one, other], Reading())
    assert not np.allclose(
        seen.true[0], compute_representations(*loaded, swapped, Reading()).true[0]
    )


def test_a_layer_that_is_not_there(loaded: Loaded) -> None:
    with pytest.raises(TrialError, match=r"--layer: 9: .*0 \(embeddings\) to 4"):
        compute_representations(*loaded, read_described_images("shapes", 2), Reading(layer=9))


def test_the_embedded_set_names_one_object_too_many() -> None:
    found = read_described_images("shapes", 150)
    assert len(found) == 150 == len({item.id for item in found})
    for item in found:
        true, hallucinated = (
            compare_caption(parse_scene_id(item.id), text)
            for text in (item.true, item.hallucinated)
        )
        assert (true.invented, true.miscoloured, true.covered) == (0, 0, true.objects)
        assert (hallucinated.invented, hallucinated.miscoloured) == (1, 0)
        assert hallucinated.covered == true.objects


def write_rows(folder: Path, *rows: object) -> Path:
    file = folder / "set.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_a_set_of_ones_own(tmp_path: Path, loaded: Loaded) -> None:
    for name, item in zip(("one", "two"), read_described_images("shapes", 2), strict=True):
        item.image().save(tmp_path / f"{name}.png")
    file = write_rows(
        tmp_path,
        {"image": "one.png", "true": "a red moon", "hallucinated": "a red star"},
        {"image": "two.png", "true": "a ring", "hallucinated": "a cross", "prompt": "describe"},
    )
    one, two = read_described_images(str(file), 150)
    assert (one.id, one.prompt, two.prompt) == ("one", "Describe the image.", "describe")
    assert len(compute_representations(*loaded, [one, two], Reading()).true) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "one.png", "true": "x"}, ":2: `hallucinated` is missing"),
        ({"image": "gone.png", "true": "x", "hallucinated": "y"}, ":2: no image"),
        ("text", ":2: not a JSON object"),
    ],
)
def test_a_line_that_lacks_something(tmp_path: Path, row: object, said: str) -> None:
    read_described_images("shapes", 2)[0].image().save(tmp_path / "one.png")
    good = {"image": "one.png", "true": "x", "hallucinated": "y"}
    with pytest.raises(UserError, match=said):
        read_described_images(str(write_rows(tmp_path, good, row)), 150)


def test_a_set_that_is_not_there_or_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_described_images(str(tmp_path / "none.jsonl"), 150)
    with pytest.raises(UserError, match="holds 0 items"):
        read_described_images(str(write_rows(tmp_path)), 150)
