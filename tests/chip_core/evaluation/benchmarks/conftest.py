"""Language for the scorers: NLTK with its data, or a plain one that needs none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from chip_core.evaluation.benchmarks.amber import score as amber
from chip_core.evaluation.benchmarks.chair import score as chair
from chip_core.evaluation.benchmarks.objhal import score as objhal
from chip_core.evaluation.scorer import Token


@pytest.fixture
def nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NLTK find its data, beside the conformance cases or wherever it is installed."""
    import nltk

    from chip_core.evaluation.text.language import nltk_problems

    shared = Path(__file__).parents[5] / "shared" / "oracles" / "nltk_data"
    monkeypatch.setattr(nltk.data, "path", [str(shared), *nltk.data.path])
    if nltk_problems():
        pytest.skip("NLTK's data is not here")


@pytest.fixture
def plain_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words between spaces, all of them nouns, singular without their last s."""
    for module in (amber, chair, objhal):
        monkeypatch.setattr(module, "nltk_problems", lambda *packages: [])
        monkeypatch.setattr(module, "tokenize_words", split_words)
    for module in (amber, objhal):
        monkeypatch.setattr(module, "lemmatize_noun", strip_plural)
    monkeypatch.setattr(amber, "tag_tokens", lambda tokens: ["NN" for _ in tokens])
    monkeypatch.setattr(objhal, "NltkTagger", PlainTagger)


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def strip_plural(word: str) -> str:
    return word if word == "bus" else word.removesuffix("s")


class PlainTagger:
    """`a`, `two` and `tall` are no nouns."""

    name = "plain"

    def __call__(self, text: str) -> Sequence[Token]:
        return [
            Token(
                text=word,
                tag="JJ" if word in ("a", "two", "tall") else "NN",
                lemma=strip_plural(word.lower()),
            )
            for word in split_words(text)
        ]
