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
MIN_SIMILARITY = 0.8


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
        self._truth_words = _make_entries(truth, lists.associations)
        self._target_words = _make_entries(targets, lists.associations)
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
            is_wrong, truths, targets = self._known[noun]
            number += 1
            hallucinated += is_wrong
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
        exact_matches = _find_first(self._truth_words, lambda word: word == noun)
        if exact_matches:
            return False, exact_matches, set()
        targets = _find_first(self._target_words, lambda word: word == noun)
        targets |= _find_first(self._target_words, lambda word: self._similar(noun, word))
        truths = _find_first(self._truth_words, lambda word: self._similar(noun, word))
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
            objects, is_target = self._known[noun]
            if not objects and noun in self._lists.safe:
                continue
            number += 1
            covered |= objects
            hallucinated += not objects
            expected += not objects and is_target
        return Counts(
            hallucinated=hallucinated,
            nouns=number,
            covered=len(covered),
            objects=len(self._truth),
            expected=expected,
            expected_of=number,
        )

    def _judge(self, noun: str) -> tuple[set[str], bool]:
        objects = {name for name in self._truth if self._refers_to(noun, name)}
        return objects, any(self._refers_to(noun, name) for name in self._targets)

    def _refers_to(self, noun: str, name: str) -> bool:
        words = [name, *self._lists.associations[name]]
        return noun in words or any(self._similar(noun, word) for word in words)


def make_word_lists(relation: Any, safe: str) -> WordLists:
    """Build the word lists from relation.json's content and safe_words.txt's text."""
    return WordLists(associations=relation, safe=frozenset(safe.split("\n")))


def _make_entries(names: Sequence[str], associations: Mapping[str, Sequence[str]]) -> list[Any]:
    """Return (word, index of its thing): first all associated words, then the things."""
    associated = [(word, index) for index, name in enumerate(names) for word in associations[name]]
    return associated + [(name, index) for index, name in enumerate(names)]


def _find_first(entries: Sequence[tuple[str, int]], matches: Callable[[str], bool]) -> set[int]:
    """Return the index of the first entry that matches, or nothing."""
    return next(({index} for word, index in entries if matches(word)), set())
