"""An answer depends on its question alone: not on the batch, the padding, what is shared."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from chip_core.config.trial import ModelConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.inference import Decoder, generate, make_batches, rows
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.prompts import pad_batch
from chip_core.evaluation.inference.rows import NEAR_TIE_MARGIN, next_logits
from chip_core.evaluation.inference.shared import MAX_LOGIT_ERROR, measure_sharing_error
from chip_core.evaluation.task import Decoding, Item, Picture
from chip_core.models import loading

from ... import families

FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "smolvlm"]


@pytest.fixture(scope="module")
def shapes() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return loading.load(ModelConfig(path="shapes"))


def load_items(number: int) -> list[Item]:
    items = BENCHMARKS["shapes"].items("report", data=None, protocol="official")
    return list(items[:number])


def test_the_batch_changes_no_answer_on_shapes(shapes: tuple[Any, Any]) -> None:
    items = load_items(33)
    alone = generate(*shapes, items, max_new_tokens=32, batch_size=1)
    assert len(set(alone)) > 20
    for size in (7, 32):
        assert generate(*shapes, items, max_new_tokens=32, batch_size=size) == alone


@pytest.mark.filterwarnings("error::FutureWarning")
def test_transformers_has_nothing_to_warn_of(shapes: tuple[Any, Any]) -> None:
    for beams in (1, 2):  # by lanes, and by `generate`
        assert len(generate(*shapes, load_items(2), max_new_tokens=4, num_beams=beams)) == 2


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_neither_batch_nor_sharing_changes_an_answer(family: str) -> None:
    model, processor = families.build(family)
    items = families.make_items()
    alone = generate(model, processor, items, max_new_tokens=12, batch_size=1, share_prefix=False)
    assert any(alone)
    for size in (1, 7, 32):
        for share in (False, True):
            made = generate(
                model, processor, items, max_new_tokens=12, batch_size=size, share_prefix=share
            )
            assert made == alone, (size, share)


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_a_shared_picture_gives_the_logits_of_separate_rows(family: str) -> None:
    model, processor = families.build(family)
    encoder = Encoder(processor)
    items = families.make_items()
    groups = [encoder.encode(items[start : start + 4]) for start in (0, 4, 8)]
    with torch.inference_mode():
        assert measure_sharing_error(model, groups) < 1e-5  # measured: 1e-7 to 2e-7 on all six


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_made_from_anothers_is_what_the_processor_makes(family: str) -> None:
    _, processor = families.build(family)
    items = families.make_items()[:4]
    encoder = Encoder(processor)
    together = encoder.encode(items)
    assert encoder._can_compose  # it was tried and found equal, then used
    for item, prompt in zip(items, together, strict=True):
        (alone,) = Encoder(processor).encode([item])
        assert prompt.ids == alone.ids
        assert prompt.token_types == alone.token_types
        assert prompt.vision_end == alone.vision_end


def test_three_beams_share_pictures_too() -> None:
    model, processor = families.build("llava")
    items = families.make_items()
    separate, shared = (
        generate(model, processor, items, max_new_tokens=8, num_beams=3, share_prefix=share)
        for share in (False, True)
    )
    assert separate == shared


def test_a_family_that_cannot_share_is_noticed_and_answers_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = families.build("llava")
    items = families.make_items()
    expected = generate(model, processor, items, max_new_tokens=8, share_prefix=False)
    plain = type(model).forward

    @functools.wraps(plain)
    def off_from_a_cache(self: Any, *given: Any, **inputs: Any) -> Any:
        cache = inputs.get("cache", inputs.get("past_key_values"))
        cached = cache is not None and cache.get_seq_length() > 0
        out = plain(self, *given, **inputs)
        if cached and inputs["input_ids"].shape[1] > 1:
            out.logits = out.logits.roll(1, -1)  # as a family with other positions would be: wrong
        return out

    monkeypatch.setattr(type(model), "forward", off_from_a_cache)
    decoding = Decoding(max_new_tokens=8)
    decoder = Decoder(model, processor, decoding, bf16=False, share_prefix=True)
    made: dict[str, str] = {}
    for batch in make_batches(items, size=12):
        responses = decoder.generate_responses(batch)
        made.update((i.id, r.text) for i, r in zip(batch.items, responses, strict=True))
    assert [made[item.id] for item in items] == expected
    (note,) = decoder.notes
    assert note.startswith("pictures with several questions were computed for each question")


def test_a_near_tie_is_decided_alike_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens with the same output weights always tie; rounding that depends on the batch, put
    in here a hundred times larger than measured, must not decide between them."""
    model, processor = families.build("llava")
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[4:] = head[4:8].repeat(len(head) // 4, 1)[: len(head) - 4]
    plain = type(model).forward

    @functools.wraps(plain)
    def rounded_otherwise(self: Any, *given: Any, **inputs: Any) -> Any:
        out = plain(self, *given, **inputs)
        rows, tokens = inputs["input_ids"].shape
        noise = torch.rand(
            out.logits.shape, generator=torch.Generator().manual_seed(1000 * rows + tokens)
        )
        out.logits = out.logits + 1e-5 * out.logits.abs().max() * (noise - 0.5)
        return out

    monkeypatch.setattr(type(model), "forward", rounded_otherwise)
    items = families.make_items()

    def made(size: int) -> list[str]:
        return generate(model, processor, items, max_new_tokens=6, batch_size=size)

    assert made(1) == made(7) == made(12)
    monkeypatch.setattr(rows, "find_near_ties", lambda scores: torch.zeros(len(scores)))
    assert made(1) != made(12)  # so the tie is what was decided


def test_rounding_stays_far_below_what_counts_as_near() -> None:
    """Batched and alone, logits differ by about 1e-7 of the largest.

    That is a thousandth of `NEAR_TIE_MARGIN`.
    """
    for family in ("llava", "qwen2_5_vl"):
        model, processor = families.build(family)
        items = families.make_items()
        prompts = [Encoder(processor).encode([item])[0] for item in items]
        with torch.inference_mode():
            batch = pad_batch(prompts, [prompt.ids for prompt in prompts], torch.device("cpu"))
            together = model(**batch, use_cache=False).logits[:, -1]
            alone = torch.stack([next_logits(model, prompt) for prompt in prompts])
        assert (together - alone).abs().max() / alone.abs().max() < NEAR_TIE_MARGIN / 50
    assert MAX_LOGIT_ERROR < 1e-2


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_a_row_alone_goes_on_as_if_read_in_one_go(family: str) -> None:
    model, processor = families.build(family)
    (prompt,) = Encoder(processor).encode(families.make_items()[:1])
    answer = processor.tokenizer("a red dog on the car")["input_ids"]
    whole = pad_batch([prompt], [[*prompt.ids, *answer]], torch.device("cpu"))
    with torch.inference_mode():
        expected = model(**whole, use_cache=False).logits[0, -1]
        assert torch.allclose(next_logits(model, prompt, answer), expected, atol=1e-6)


def test_without_a_picture() -> None:
    model, processor = families.build("llava")
    items = [
        Item(id="a", prompt="what is here ?", pictures=()),
        *families.make_items()[:2],
        Item(id="b", prompt="what is a dog ?", pictures=()),
    ]
    alone = [generate(model, processor, [item], max_new_tokens=5)[0] for item in items]
    assert generate(model, processor, items, max_new_tokens=5) == alone


def test_two_pictures_in_one_question() -> None:
    model, processor = families.build("llava")
    first, *_, last = families.make_items()
    both = Item(id="both", prompt="what is here ?", pictures=first.pictures + last.pictures)
    other = Item(id="other", prompt="is a dog here ?", pictures=last.pictures + first.pictures)
    items = [both, first, other]
    alone = [generate(model, processor, [item], max_new_tokens=5)[0] for item in items]
    assert generate(model, processor, items, max_new_tokens=5) == alone


def test_a_models_own_settings_change_nothing() -> None:
    """Qwen2.5-VL's folder asks for a repetition penalty; temperature 0 is what is said here."""
    model, processor = families.build("llava")
    items = families.make_items()[:3]
    plain = generate(model, processor, items, max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 0.3
    model.generation_config.do_sample = True
    assert generate(model, processor, items, max_new_tokens=12) == plain


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams are decoded in whole batches."""
    model, processor = families.build("llava")
    items = families.make_items()
    expected = generate(model, processor, items, max_new_tokens=5, num_beams=2)
    plain = Decoder._answer_groups
    sizes = []

    def of_two_rows(self: Decoder, groups: Any) -> list[str]:
        sizes.append(sum(map(len, groups)))
        if sizes[-1] > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return plain(self, groups)

    monkeypatch.setattr(Decoder, "_answer_groups", of_two_rows)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert generate(model, processor, items, max_new_tokens=5, num_beams=2) == expected
    assert max(sizes) == 12


def test_like_goes_with_like() -> None:
    def item(name: str, prompt: str, picture: str = "p", task: str = "") -> Item:
        def read() -> Any:
            raise AssertionError("planning reads no picture")

        return Item(id=name, prompt=prompt, pictures=(Picture(key=picture, read=read),), task=task)

    items = [
        item("a", "describe", "1", "describe"),
        item("b", "is there a dog ?", "1", "yes or no"),
        item("c", "describe", "2", "describe"),
        item("d", "is there a cat ?", "1", "yes or no"),
        item("e", "is there a dog here ?", "2", "yes or no"),
        item("f", "is it ?", "2", "yes or no"),
    ]
    found = [[i.id for i in batch.items] for batch in make_batches(items, size=4)]
    assert found == [["e", "f", "b", "d"], ["a", "c"]]
    dealt = [
        [i.id for batch in make_batches(items, size=4, worker=w, workers=2) for i in batch.items]
        for w in (0, 1)
    ]
    assert dealt == [["e", "f", "a"], ["b", "d", "c"]]
    alone = make_batches(items, size=1)
    assert sorted(i.id for batch in alone for i in batch.items) == list("abcdef")
    assert all(len(batch.items) == 1 for batch in alone)


def test_a_pictures_questions_are_not_parted_up_to_twice_the_batch() -> None:
    """AMBER's fourteen in batches of eight: each picture is computed once."""
    asked = families.make_items(questions=14)
    batches = make_batches(asked, size=8)
    assert [len(batch.items) for batch in batches] == [14, 14, 14]
    assert len({batch.items[0].pictures[0].key for batch in batches}) == 3
    assert [len(batch.items) for batch in make_batches(asked, size=6)] == [6, 6, 2] * 3
