"""Tokens, tags, lemmas and singular forms are NLTK's and pattern's, only faster."""

from __future__ import annotations

import importlib.util
import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from chip_core.evaluation.text import language
from chip_core.evaluation.text.language import (
    NltkTagger,
    SpacyTagger,
    make_tagger,
    singularize_word,
)
from chip_core.utils.errors import UserError

TEXTS = (
    "",
    "A man's dog isn't here. It ran (quickly) to the 2-storey house in 1999!",
    "Two dogs, three cats and 12 birds; the U.S. flag... Mr. Smith sees it.",
    'He said: "No, they can\'t." 3.5% of $20 were lost -- gone.',
    "new york NEW YORK New York\n\nThe end",
)


@pytest.fixture
def nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    import nltk

    shared = Path(__file__).parents[5] / "shared" / "oracles" / "nltk_data"
    monkeypatch.setattr(nltk.data, "path", [str(shared), *nltk.data.path])
    if language.nltk_problems():
        pytest.skip("NLTK's data is not here")


def test_tokens_and_tags_are_nltks(nltk_data: None) -> None:
    import nltk
    from nltk.tag import PerceptronTagger

    plain = PerceptronTagger()  # nltk.pos_tag makes one at every call
    draw = random.Random(0)
    seen = " ".join(TEXTS).split()
    drawn = [" ".join(draw.choices(seen, k=30)) for _ in range(10)]
    for text in (*TEXTS, *drawn):
        tokens = language.tokenize_words(text)
        assert tokens == nltk.word_tokenize(text)
        assert list(zip(tokens, language.tag_tokens(tokens), strict=True)) == plain.tag(tokens)


def test_lemmas_are_wordnets(nltk_data: None) -> None:
    lemmas = [
        language.lemmatize_noun(word) for word in ("dogs", "benches", "knives", "Trees", "kwyjibos")
    ]
    assert lemmas == ["dog", "bench", "knife", "Trees", "kwyjibos"]


def test_the_tag_is_the_lemmas(nltk_data: None) -> None:
    """After "a", the tagger takes "umbrellas" for an adjective."""
    import nltk

    assert nltk.pos_tag(["a", "umbrellas"])[1][1] == "JJ"
    tokens = NltkTagger()("a Umbrellas")
    assert [(token.text, token.tag, token.lemma) for token in tokens] == [
        ("a", "DT", "a"),
        ("Umbrellas", "NN", "umbrella"),
    ]


def test_nltk_takes_its_time(nltk_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    redos = pytest.importorskip("nltk.redos")
    monkeypatch.setattr(redos, "DEFAULT_TIMEOUT", 1e-9)
    assert len(language.tokenize_words("A dog sleeps. " * 2000)) == 8000
    assert redos.DEFAULT_TIMEOUT == 1e-9


@pytest.mark.parametrize(
    ("word", "one"),
    [
        ("dogs", "dog"),
        ("knives", "knife"),
        ("people", "person"),
        ("scissors", "scissors"),
        ("glass", "glas"),
        ("bus", "bu"),
        ("buses", "bus"),
        ("minibuses", "minibus"),
        ("ties", "ty"),
        ("collies", "collies"),
        ("doggies", "doggies"),
        ("puppies", "puppy"),
        ("dog's", "dog'"),
        ("mini-buses", "mini-bus"),
        ("border-collies", "border-collies"),
        ("sons-in-overalls", "son-in-overalls"),
    ],
)
def test_singular_forms_are_patterns(word: str, one: str) -> None:
    assert singularize_word(word) == one


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    assert language.nltk_problems(("wordnet",)) == [
        "NLTK has no wordnet: python -m nltk.downloader wordnet "
        "(or set NLTK_DATA to a folder that holds them)"
    ]
    with pytest.raises(UserError, match="nltk.downloader punkt_tab"):
        make_tagger("nltk")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert language.nltk_problems() == ["NLTK is not installed: pip install nltk"]
    with pytest.raises(UserError, match="pip install spacy && python -m spacy download en_core"):
        make_tagger("spacy")


def test_spacys_tokens_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipeline(text: str) -> list[Any]:
        return [SimpleNamespace(text=word, tag_="NNS", lemma_=word[:-1]) for word in text.split()]

    pipeline.meta = {"version": "3.8"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: pipeline))
    monkeypatch.setattr(language, "spacy_problems", lambda model: [])
    tagger = SpacyTagger()
    assert tagger.name == "spacy en_core_web_trf 3.8"
    assert [(token.tag, token.lemma) for token in tagger("dogs")] == [("NNS", "dog")]
