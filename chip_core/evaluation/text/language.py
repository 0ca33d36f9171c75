"""Tokens, tags, lemmas and singular forms, by NLTK or spaCy, which are imported on first use.

Results that depend on a word or a sentence alone are cached.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from chip_core.evaluation.scorer import Tagger, Token
from chip_core.utils.errors import UserError

#: Package -> its path in NLTK's data folder.
NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}
SPACY_TAGGER = "en_core_web_trf"  # what Object HalBench's script uses

_CACHE_SIZE = 100_000  # entries of each cache


def nltk_problems(packages: Sequence[str] = tuple(NLTK_DATA)) -> list[str]:
    """Return what NLTK lacks, each with the command that installs it; empty if nothing."""
    if importlib.util.find_spec("nltk") is None:
        return ["NLTK is not installed: pip install nltk"]
    import nltk

    missing = [package for package in packages if not _has_nltk_package(nltk, package)]
    if not missing:
        return []
    names = " ".join(missing)
    return [
        f"NLTK has no {', '.join(missing)}: python -m nltk.downloader {names} "
        "(or set NLTK_DATA to a folder that holds them)"
    ]


def spacy_problems(model: str) -> list[str]:
    """Return what is missing for a spaCy model, with the command that installs it."""
    if importlib.util.find_spec("spacy") is None:
        return [f"spaCy is not installed: pip install spacy && python -m spacy download {model}"]
    if importlib.util.find_spec(model) is None:
        return [f"spaCy's {model} is not installed: python -m spacy download {model}"]
    return []


def require_tools(problems: Sequence[str], required_by: str) -> None:
    """Raise if something is missing.

    Raises:
        UserError: what, for whom, and the command that installs it.
    """
    if problems:
        raise UserError(f"{required_by}: {'; '.join(problems)}")


def tokenize_words(text: str) -> list[str]:
    """Return a text's tokens as `nltk.word_tokenize` gives them."""
    import nltk

    with _disable_time_limit():
        return [
            word for sentence in nltk.sent_tokenize(text) for word in _tokenize_sentence(sentence)
        ]


def tag_tokens(tokens: Sequence[str]) -> list[str]:
    """Return the tokens' Penn Treebank tags as `nltk.pos_tag` gives them."""
    tagger = _load_perceptron_tagger()
    context = [*tagger.START, *(tagger.normalize(word) for word in tokens), *tagger.END]
    second_last_tag, last_tag = tagger.START[1], tagger.START[0]
    predicted: list[str] = []
    for index, word in enumerate(tokens):
        tag = tagger.tagdict.get(word) or _predict_tag(
            word, tuple(context[index : index + 5]), last_tag, second_last_tag
        )
        predicted.append(tag)
        second_last_tag, last_tag = last_tag, tag
    return predicted


@lru_cache(maxsize=_CACHE_SIZE)
def lemmatize_noun(word: str) -> str:
    """Return WordNet's noun lemma of a word, or the word itself if it has none."""
    from nltk.stem import WordNetLemmatizer

    return str(WordNetLemmatizer().lemmatize(word))


@lru_cache(maxsize=_CACHE_SIZE)
def singularize_word(word: str) -> str:
    """Return a word's singular form as `pattern.en.singularize` gives it.

    textblob has copied pattern's rules; where it has changed since, pattern's own result is
    restored: "collies" and "border-collies" stay as they are, "minibuses" becomes "minibus" and
    "mini-buses" "mini-bus".
    """
    from textblob.en import inflect

    parts = word.split("-")
    is_compound = len(parts) > 1 and parts[1] in inflect.plural_prepositions  # sons-in-law
    if word.endswith("s") and not is_compound:
        lower = word.lower()
        if any(lower.endswith(f"{stem}s") for stem in inflect.singular_ie):
            return lower
        if lower.endswith("buses"):
            return word[:-2]
    return str(inflect.singularize(word))


class NltkTagger:
    """NLTK: WordNet's noun lemma of the lower-cased token, and the lemma's perceptron tag.

    Not the token's own tag: in "a umbrellas", as Object HalBench asks, that is an adjective's.
    """

    def __init__(self) -> None:
        import nltk

        self.name = f"nltk {nltk.__version__}"

    def __call__(self, text: str) -> Sequence[Token]:
        """Return the text's tokens."""
        tokens = tokenize_words(text)
        lemmas = [lemmatize_noun(word.lower()) for word in tokens]
        return [
            Token(text=word, tag=tag, lemma=base)
            for word, base, tag in zip(tokens, lemmas, tag_tokens(lemmas), strict=True)
        ]


class SpacyTagger:
    """A spaCy pipeline, by default the one that Object HalBench's script uses."""

    def __init__(self, model: str = SPACY_TAGGER) -> None:
        require_tools(spacy_problems(model), "--tagger spacy")
        import spacy

        self._pipeline = spacy.load(model)
        self.name = f"spacy {model} {self._pipeline.meta['version']}"

    def __call__(self, text: str) -> Sequence[Token]:
        """Return the text's tokens."""
        return [
            Token(text=token.text, tag=token.tag_, lemma=token.lemma_)
            for token in self._pipeline(text)
        ]


def make_tagger(name: str) -> Tagger:
    """Return the tagger `nltk` or `spacy`.

    Raises:
        UserError: it is not installed.
    """
    if name == "spacy":
        return SpacyTagger()
    require_tools(nltk_problems(), "--tagger nltk")
    return NltkTagger()


def _has_nltk_package(nltk: Any, package: str) -> bool:
    for suffix in ("", ".zip"):  # the downloader leaves wordnet as an archive
        with suppress(LookupError):
            nltk.data.find(f"{NLTK_DATA[package]}{suffix}")
            return True
    return False


@contextmanager
def _disable_time_limit() -> Iterator[None]:
    """Remove NLTK's time limit.

    From 3.10 on it gives up on a text after five seconds of wall time: the result for a long answer
    would depend on the load of the machine.
    """
    try:
        from nltk import redos
    except ImportError:  # an older release, without a limit
        yield
        return
    limit, redos.DEFAULT_TIMEOUT = redos.DEFAULT_TIMEOUT, None
    try:
        yield
    finally:
        redos.DEFAULT_TIMEOUT = limit


@lru_cache(maxsize=_CACHE_SIZE)
def _tokenize_sentence(sentence: str) -> tuple[str, ...]:
    import nltk

    return tuple(nltk.word_tokenize(sentence, preserve_line=True))


@lru_cache(maxsize=1)
def _load_perceptron_tagger() -> Any:
    # nltk.pos_tag reads the model's files again at every call.
    from nltk.tag import PerceptronTagger

    return PerceptronTagger()


@lru_cache(maxsize=_CACHE_SIZE)
def _predict_tag(word: str, context: tuple[str, ...], last_tag: str, second_last_tag: str) -> str:
    """Return a word's tag, given two normalised words on either side and the two tags before.

    The tagger's features read nothing else, so equal surroundings give equal tags.
    """
    tagger = _load_perceptron_tagger()
    features = tagger._get_features(0, word, list(context), last_tag, second_last_tag)
    return str(tagger.model.predict(features)[0])
