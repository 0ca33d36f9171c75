"""Rows that come and go give the answers that transformers' `generate` gives in whole batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from chip_core.config.trial import ModelConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.inference import Decoder, continuous, generate, make_batches
from chip_core.evaluation.inference.continuous import (
    measure_lane_error,
    supports_continuous_batching,
)
from chip_core.evaluation.inference.decoder import generation_settings
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.lanes import Lanes
from chip_core.evaluation.task import Decoding, Item, Picture
from chip_core.models import loading
from chip_core.utils.errors import TrialError

from ... import families

EVERY = sorted(families.FAMILIES)


class LaneCounter:
    """Counts what lanes read: rows that come in at a time, and steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered: list[int] = []
        self.steps = 0
        add, step = Lanes.add, Lanes.step

        def entering(lanes: Lanes, groups: Any, **more: Any) -> Any:
            self.entered.append(sum(map(len, groups)))
            return add(lanes, groups, **more)

        def stepping(lanes: Lanes) -> Any:
            self.steps += 1
            return step(lanes)

        monkeypatch.setattr(Lanes, "add", entering)
        monkeypatch.setattr(Lanes, "step", stepping)


def generate_one_by_one(loaded: tuple[Any, Any], items: list[Item], longest: int) -> list[str]:
    """Answer each item alone, by transformers' own loop."""
    return generate(*loaded, items, max_new_tokens=longest, batch_size=1, share_prefix=False)


@pytest.mark.parametrize("family", EVERY)
def test_lanes_give_the_logits_of_rows_alone(family: str) -> None:
    model, processor = families.build(family)
    encoder, items = Encoder(processor), families.make_items()
    groups = [encoder.encode(items[start : start + 4]) for start in (0, 4, 8)]
    alone = [[prompt] for group in groups for prompt in group[:3]]
    with torch.inference_mode():  # measured: 1e-7 to 3e-7 on all
        assert measure_lane_error(model, groups, 0) < 1e-5
        assert measure_lane_error(model, groups[1:], 0) < 1e-5
        assert measure_lane_error(model, alone[::4], 0) < 1e-5


@pytest.mark.parametrize("family", EVERY)
def test_answers_of_all_lengths_are_those_of_whole_batches(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends that come often: questions of one picture leave one by one, others come in."""
    monkeypatch.setattr(continuous, "SMALL_CACHE_BYTES", 0)
    model, processor = loaded = families.build(family)
    items = families.make_items()
    watching = LaneCounter(monkeypatch)
    with torch.no_grad():  # else random weights say the same of all
        for weight in model.get_decoder().parameters():
            weight *= 6 if weight.ndim > 1 else 1
    model.generation_config.eos_token_id = [1, *range(2, len(processor.tokenizer), 5)]
    expected = generate_one_by_one(loaded, items, 12)
    assert not watching.entered
    assert len({len(answer.split()) for answer in expected}) > 1
    for size in (5, 12):
        watching.entered.clear()
        assert generate(*loaded, items, max_new_tokens=12, batch_size=size) == expected
        # The trial of two pictures with two questions each, then all questions.
        assert watching.entered[0] == 4 and sum(watching.entered[1:]) == len(items)


def test_who_ends_leaves_and_the_next_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "SMALL_CACHE_BYTES", 0)
    torch.set_num_threads(1)
    loaded = loading.load(ModelConfig(path="shapes"))
    items = list(BENCHMARKS["shapes"].items("report", data=None, protocol="official")[:48])
    blue = loaded[1].tokenizer.convert_tokens_to_ids("blue")
    loaded[0].generation_config.eos_token_id = [1, blue]  # answers of one to thirty tokens
    tokens: list[int] = []
    decoder = Decoder(*loaded, Decoding(max_new_tokens=32), bf16=False, share_prefix=False)
    texts = {}
    batches = make_batches(items, size=8)
    for answers in decoder.stream(batches, size=8):
        tokens.append(max(response.tokens or 0 for _, response in answers))
        texts.update((item.id, response) for item, response in answers)
    watching = LaneCounter(monkeypatch)
    decoder = Decoder(*loaded, Decoding(max_new_tokens=32), bf16=False, share_prefix=True)
    told = list(decoder.stream(batches, size=8))
    assert {item.id: response for answers in told for item, response in answers} == texts
    assert watching.entered[:2] == [2, 8] and sum(watching.entered[1:]) == 48
    assert len(watching.entered) > 7 and len(told) > 6
    # A batch takes its first token's pass and then a step for each token but the last.
    assert watching.steps < sum(length - 1 for length in tokens)
    watching.entered.clear()
    # As many bytes as eight rows take here.
    monkeypatch.setattr(continuous, "SMALL_CACHE_BYTES", 8 * 2**20)
    decoder = Decoder(*loaded, Decoding(max_new_tokens=32), bf16=False, share_prefix=True)
    told = list(decoder.stream(batches, size=8))
    assert {item.id: response for answers in told for item, response in answers} == texts
    assert watching.entered[:3] == [2, 8, 16]  # three times the eight


def test_what_does_not_fit_is_tried_with_half_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = families.build("llava")
    items = families.make_items()
    expected = generate_one_by_one(loaded, items, 5)
    add, step = Lanes.add, Lanes.step
    most, rows, stopped = 3, [], []

    def entering(lanes: Lanes, groups: Any, **more: Any) -> Any:
        rows.append(len(lanes.rows) + sum(map(len, groups)))
        if rows[-1] > max(most, 4 * (len(rows) == 1)):  # the trial has room
            raise torch.cuda.OutOfMemoryError("no room")
        return add(lanes, groups, **more)

    def stepping(lanes: Lanes) -> Any:
        if len(rows) > 3 and not stopped and lanes.rows[0].answer_ids[1:]:
            stopped.append(len(lanes.rows))  # once in the middle, too
            raise torch.cuda.OutOfMemoryError("no room")
        return step(lanes)

    monkeypatch.setattr(Lanes, "add", entering)
    monkeypatch.setattr(Lanes, "step", stepping)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert generate(*loaded, items, max_new_tokens=5) == expected
    # Twelve, one picture's four as six have no room for two pictures, two; then one.
    assert (rows[:5], stopped) == ([4, 12, 4, 2, 1], [2])
    most = 0
    rows.clear()
    with pytest.raises(TrialError, match=r"not enough GPU memory to answer item \d/\d: a smaller"):
        generate(*loaded, items, max_new_tokens=5)


@pytest.mark.parametrize(
    "wanted",
    [{"suppress_tokens": [5, 6]}, {"min_new_tokens": 4}],
    ids=lambda wanted: next(iter(wanted)),
)
def test_what_a_models_own_settings_want_beside_is_left_to_transformers(
    wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded = families.build("llava")
    settings, _ = generation_settings(model, processor.tokenizer, Decoding(max_new_tokens=5))
    assert supports_continuous_batching(model, settings)
    model.generation_config.update(**wanted)
    assert not supports_continuous_batching(model, settings)
    watching = LaneCounter(monkeypatch)
    items = families.make_items()[:4]
    assert generate(*loaded, items, max_new_tokens=5) == generate_one_by_one(loaded, items, 5)
    assert not watching.entered


def test_strings_that_end_answers_are_left_to_transformers() -> None:
    model, processor = families.build("llava")
    settings, _ = generation_settings(model, processor.tokenizer, Decoding(max_new_tokens=5))
    model.generation_config.stop_strings = ["dog"]
    assert not supports_continuous_batching(model, settings)


def test_beams_are_left_to_transformers() -> None:
    model, processor = families.build("llava")
    decoding = Decoding(max_new_tokens=5, num_beams=2)
    settings, _ = generation_settings(model, processor.tokenizer, decoding)
    assert not supports_continuous_batching(model, settings)


@pytest.mark.parametrize("family", EVERY)
def test_questions_without_a_picture(family: str) -> None:
    """Qwen-VL counts the positions of an answer by the prompt that it has read last."""
    loaded = families.build(family)
    asked = [
        Item(id=f"t{number}", prompt=" ".join(families.WORDS[: number + 2]), pictures=())
        for number in range(3)
    ]
    for items in (asked, [*families.make_items()[:4], *asked]):
        found = generate(*loaded, items, max_new_tokens=4, batch_size=4)
        assert found == generate_one_by_one(loaded, items, 4)


def make_picture(number: int) -> Image.Image:
    return Image.new("RGB", (90, 90), (20 * number, 100, 50))


def test_positions_of_nobody_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic RoPE takes its frequencies from the largest position of a batch."""
    monkeypatch.setattr(continuous, "SMALL_CACHE_BYTES", 0)
    loaded = families.build("llava")
    # Four pictures of two questions, then five of eight: three lanes stay empty while those are
    # answered, one after another.
    items = [
        Item(
            id=f"{number}/{question}",
            prompt=" ".join(families.WORDS[question : question + 3]),
            pictures=(Picture(key=str(number), read=partial(make_picture, number)),),
        )
        for number in range(9)
        for question in range(2 if number < 4 else 8)
    ]
    largest = [0]
    step = Lanes.step

    def stepping(lanes: Lanes) -> Any:
        made = step(lanes)
        largest.append(int(lanes._positions.max()))
        return made

    monkeypatch.setattr(Lanes, "step", stepping)
    longest = 12
    encoder = Encoder(loaded[1])
    most = max(len(encoder.encode([item])[0].ids) for item in items)
    generate(*loaded, items, max_new_tokens=longest, batch_size=8)
    assert most < max(largest) < most + longest


def test_long_questions_of_one_picture_take_lanes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = families.build("llava")
    items = families.make_items()[:4]
    expected = generate_one_by_one(loaded, items, 6)
    prompts = Encoder(loaded[1]).encode(items)
    start = continuous.shared_length(prompts)
    assert start is not None
    behind = [len(prompt.ids) - start for prompt in prompts]
    lanes: list[list[int]] = []
    add = Lanes.add

    def entering(self: Lanes, groups: Any, **more: Any) -> Any:
        lanes.append([len(group) for group in groups])
        return add(self, groups, **more)

    monkeypatch.setattr(Lanes, "add", entering)
    monkeypatch.setattr(continuous, "MAX_LANE_TOKENS", sum(behind) - 1)
    assert generate(*loaded, items, max_new_tokens=6) == expected
    assert lanes[-2:] == [[3], [1]]
