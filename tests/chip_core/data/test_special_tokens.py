"""A family's marks in texts are text, and those of its template are marks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.encodings import SpecialTokens, may_hold_special_tokens
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.task import Item, Picture
from chip_core.utils.errors import TrialError

from .. import families

CORPUS = ["USER: What does the <b> tag or the image do?\nASSISTANT: It is bold.", "a red ball </a>"]
MARKS = ["<image>", "</s>", "<s>", "<|im_start|>"]
SIDE, PATCHES = 16, 4  # of 8 pixels a patch


def train_tokenizer(pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=[*pre_tokenizers.ByteLevel.alphabet(), "▁"]
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def make_byte_level() -> Tokenizer:
    """Train a byte-level tokenizer, as Qwen and Llama 3 have it."""
    return train_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def make_metaspace() -> Tokenizer:
    """Train one as Llama 2 has it: a beginning gets a space, and every text an `<s>`."""
    return train_tokenizer(
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False), decoders.Metaspace()
    )


def make_fast_tokenizer(
    made: Tokenizer, marks: list[str], *, begins: bool = False
) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=marks[-1])


def make_processor(tokenizer: Any) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template="{% for m in messages %}USER: {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{{ '\n' }}{% endfor %}ASSISTANT:",
    )


TEXTS = ["What does the </s> tag do?", " <image> and </s>\n", "</s>", "a<s>b <s> <|im_start|>"]


@pytest.mark.parametrize("make", [make_byte_level, make_metaspace])
@pytest.mark.parametrize("text", TEXTS)
def test_a_response_spells_marks(make: Any, text: str) -> None:
    tokenizer = make_fast_tokenizer(make(), MARKS)
    marks = SpecialTokens(make_processor(tokenizer))
    ids = marks.tokenize(text)
    # Those of a tokenizer that never knew the marks.
    assert ids == make().encode(text, add_special_tokens=False).ids
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(MARKS))
    assert marks.find_unencodable(text) is None


@pytest.mark.parametrize("make", [make_byte_level, make_metaspace])
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_spells_marks_and_shows_its_image(make: Any, begins: bool, text: str) -> None:
    own = make_processor(make_fast_tokenizer(make(), MARKS, begins=begins))
    hiding, (asked,) = SpecialTokens(own).hide(text)
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    written = hiding.apply_chat_template([{"role": "user", "content": content}])
    made = hiding(images=[Image.new("RGB", (SIDE, SIDE))], text=[written], return_tensors="pt")
    ids = made["input_ids"][0].tolist()
    image = own.image_token_id
    assert ids.count(image) == PATCHES
    assert made["attention_mask"].tolist() == [[1] * len(ids)]
    # Before the image and behind it: what a tokenizer that knew `<image>` alone makes of it.
    plain = make_fast_tokenizer(make(), ["<image>"])
    head = plain("USER: ")["input_ids"]
    segment = plain(f"<image>\n{text}\nASSISTANT:".replace("<image>", "", 1))["input_ids"]
    around = ids[begins : ids.index(image)], ids[len(ids) - ids[::-1].index(image) :]
    assert around[0] == head
    if "<image>" not in text and make is make_byte_level:
        assert around[1] == segment
    assert own.tokenizer.decode(around[1]).endswith(f"{text}\nASSISTANT:")
    assert (ids[0] == own.tokenizer.convert_tokens_to_ids("<s>")) is begins


def test_texts_without_marks_go_by_untouched() -> None:
    own = make_processor(make_fast_tokenizer(make_byte_level(), MARKS))
    marks = SpecialTokens(own)
    texts = ["What does <b> do?", "a < b > c", ""]
    hiding, shown = marks.hide(*texts)
    assert hiding is own
    assert shown == texts
    for text in texts:
        assert marks.tokenize(text) == own.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_slow_tokenizer_spells_marks() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    marks = SpecialTokens(make_processor(tokenizer))
    # A byte is its value and three more; `</s>` is 1 where it is a mark.
    assert marks.tokenize("</s> <image>") == [byte + 3 for byte in b"</s> <image>"]
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [1]
    hiding, (asked,) = marks.hide("the </s>")
    ids = hiding.tokenizer(f"<image>{asked}!")["input_ids"]
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert ids == [image, *(byte + 3 for byte in b"the </s>!"), 1]  # it ends with a mark


def test_a_mark_that_no_tokenizer_setting_splits_is_told() -> None:
    """One that is no special token: `split_special_tokens` lets it be."""
    made = make_byte_level()
    made.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    marks = SpecialTokens(make_processor(PreTrainedTokenizerFast(tokenizer_object=made)))
    assert marks.find_unencodable("the <image> tag") == "<image>"
    with pytest.raises(
        TrialError, match="^the text 'the <image> tag' holds <image>, a special token that"
    ):
        marks.hide("What?", "the <image> tag")


def test_a_tokenizer_that_splits_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mistral-common's in transformers."""
    own = make_processor(make_fast_tokenizer(make_byte_level(), MARKS))
    whole = type(own.tokenizer).__call__

    def call(self: Any, text: Any, **options: Any) -> Any:
        if options.get("split_special_tokens"):
            raise ValueError("does not support `split_special_tokens`")
        return whole(self, text, **options)

    monkeypatch.setattr(type(own.tokenizer), "__call__", call)
    assert SpecialTokens(own).find_unencodable("the </s> tag") == "</s>"
    assert SpecialTokens(own).find_unencodable("no tag") is None


def test_a_vocabulary_that_holds_the_mark_as_a_word_is_told() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<image>": 1, "the": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    assert SpecialTokens(make_processor(tokenizer)).find_unencodable("the <image>") == "<image>"
    # `<unk>` is as good as what it stands for.
    assert SpecialTokens(make_processor(tokenizer)).find_unencodable("the <unk>") is None


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_trains_and_asks_with_its_own_marks_in_texts(family: str) -> None:
    _, own = families.FAMILIES[family]()
    marks = [token.content for token in own.tokenizer.added_tokens_decoder.values()]
    config = TrialConfig.model_validate({"model": "shapes", "training": {"max_length": 512}})
    pairs = families.make_pairs()
    odd = families.ListPairs(
        replace(
            pair,
            prompt=f"{pair.prompt} {' '.join(marks)} ?",
            chosen=f"{marks[-1]} {pair.chosen}",
            rejected=f"{pair.rejected} {marks[1]}",
        )
        for pair in pairs
    )
    plain, batch = (PairEncoder(own, config, each).encode_batch(range(3)) for each in (pairs, odd))
    image = own.image_token_id
    assert (batch.prompts.ids == image).sum() == (plain.prompts.ids == image).sum() > 0
    known = torch.tensor([own.tokenizer.convert_tokens_to_ids(mark) for mark in marks])
    known = known[known != own.tokenizer.unk_token_id]
    for part in (batch.chosen, batch.rejected):
        inside = torch.isin(part.ids, known) & part.mask
        assert inside.sum(1).tolist() == [family != "muffin"] * 3  # what ends it, and no more
    picture = Picture(key="0", read=lambda: pairs[0].image)
    items = [
        Item(id=str(number), prompt=prompt, pictures=(picture,))
        for number, prompt in enumerate(["what is here ?", f"what is {marks[-1]} ?", "a dog ?"])
    ]
    counts = [prompt.ids.count(image) for prompt in Encoder(own).encode(items)]
    assert counts == [counts[0]] * 3
    assert counts[0] > 0


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("<|image_pad|>", True),
        ("an </s> tag", True),
        ("[INST] what?", True),
        ("<b>bold</b>", True),  # some family's it might be
        ("a < b and c > d", False),
        ("a [1] b", False),
        ("", False),
    ],
)
def test_texts_that_may_hold_special_tokens_are_recognized(text: str, held: bool) -> None:
    assert may_hold_special_tokens(text) is held
