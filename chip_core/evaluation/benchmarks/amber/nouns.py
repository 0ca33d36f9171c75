"""Compare the nouns of a description with a picture, by AMBER's word lists.

A picture has objects that are there (truth) and objects that people would wrongly expect (targets).
Each has associated words. A noun is considered if it is in the vocabulary, that is a word of the
association file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Two words mean the same if they are more similar than this.
SIMILAR = 0.8


@dataclass(frozen=True, kw_only=True)
class WordLists:
    """AMBER's relation.json and safe_words.txt."""

    associations: Mapping[str, Sequence[str]]
    safe: frozenset[str]  # words that never count as hallucinated

    @property
    def vocabulary(self) -> frozenset[str]:
        """All words of the association file."""
        associated = {word for words in self.associations.values() for word in words}
        return frozenset(associated | set(self.associations))


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The contribution of one description to each metric's numerator and denominator."""

    hallucinated: int
    nouns: int
    covered: int
    objects: int
    expected: int  # Cog's numerator
    expected_of: int  # and its denominator

    @property
    def clean(self) -> bool:
        """Whether nothing in the description is hallucinated."""
        return self.hallucinated == 0


class OfficialPicture:
    """The rules of AMBER's inference.py, in its order.

    A noun that matches a list marks the first entry that it matches: the associated words of all
    objects come before the objects themselves. So of two similar objects only one can be covered,
    and a noun may cover another object than its own. A noun can mark a target and still be excused.
    """

    def __init__(
        self,
        truth: Sequence[str],
        targets: Sequence[str],
        lists: WordLists,
        similar: Callable[[str, str], bool],
    ) -> None:
        self._objects, self._targets = len(truth), len(targets)
        self._truth_words = _entries(truth, lists.associations)
        self._target_words = _entries(targets, lists.associations)
        self._lists, self._similar = lists, similar
        self._known: dict[str, tuple[bool, set[int], set[int]]] = {}

    def count(self, nouns: Iterable[str]) -> Counts:
        """Count the nouns that are in the vocabulary, with repeats; safe words count as nouns."""
        hallucinated = number = 0
        covered: set[int] = set()
        expected: set[int] = set()
        for noun in nouns:
            if noun not in self._known:
                self._known[noun] = self._judge(noun)
            wrong, truths, targets = self._known[noun]
            number += 1
            hallucinated += wrong
            covered |= truths
            expected |= targets
        return Counts(
            hallucinated=hallucinated,
            nouns=number,
            covered=len(covered),
            objects=self._objects,
            expected=len(expected),
            expected_of=self._targets,
        )

    def _judge(self, noun: str) -> tuple[bool, set[int], set[int]]:
        """Return whether a noun is hallucinated, and the objects and targets that it marks."""
        if noun in self._lists.safe:
            return False, set(), set()
        exact = _first(self._truth_words, lambda word: word == noun)
        if exact:
            return False, exact, set()
        targets = _first(self._target_words, lambda word: word == noun)
        targets |= _first(self._target_words, lambda word: self._similar(noun, word))
        truths = _first(self._truth_words, lambda word: self._similar(noun, word))
        return not truths, truths, targets


class CorrectedPicture:
    """The paper's rules: sets of objects, independent of the files' order.

    A noun means an object if it is the object, is associated with it, or is similar to either. An
    object is covered if any noun means it. A noun that means none is hallucinated, and expected if
    it means a target; a safe word that means none is not judged and counts nowhere.
    """

    def __init__(
        self,
        truth: Sequence[str],
        targets: Sequence[str],
        lists: WordLists,
        similar: Callable[[str, str], bool],
    ) -> None:
        self._truth, self._targets = set(truth), set(targets)
        self._lists, self._similar = lists, similar
        self._known: dict[str, tuple[set[str], bool]] = {}

    def count(self, nouns: Iterable[str]) -> Counts:
        """Count the nouns that are in the vocabulary, with repeats."""
        hallucinated = number = expected = 0
        covered: set[str] = set()
        for noun in nouns:
            if noun not in self._known:
                self._known[noun] = self._judge(noun)
            meant, target = self._known[noun]
            if not meant and noun in self._lists.safe:
                continue
            number += 1
            covered |= meant
            hallucinated += not meant
            expected += not meant and target
        return Counts(
            hallucinated=hallucinated,
            nouns=number,
            covered=len(covered),
            objects=len(self._truth),
            expected=expected,
            expected_of=number,
        )

    def _judge(self, noun: str) -> tuple[set[str], bool]:
        meant = {thing for thing in self._truth if self._means(noun, thing)}
        return meant, any(self._means(noun, thing) for thing in self._targets)

    def _means(self, noun: str, thing: str) -> bool:
        words = [thing, *self._lists.associations[thing]]
        return noun in words or any(self._similar(noun, word) for word in words)


def word_lists(relation: Any, safe: str) -> WordLists:
    """Build the word lists from relation.json's content and safe_words.txt's text."""
    return WordLists(associations=relation, safe=frozenset(safe.split("\n")))


def _entries(things: Sequence[str], associations: Mapping[str, Sequence[str]]) -> list[Any]:
    """Return (word, index of its thing): first all associated words, then the things."""
    associated = [
        (word, index) for index, thing in enumerate(things) for word in associations[thing]
    ]
    return associated + [(thing, index) for index, thing in enumerate(things)]


def _first(entries: Sequence[tuple[str, int]], hit: Callable[[str], bool]) -> set[int]:
    """Return the index of the first entry that matches, or nothing."""
    return next(({index} for word, index in entries if hit(word)), set())
