"""Compare the nouns of a description with a picture, by AMBER's word lists.

A picture has objects that are there (truth) and objects that people would wrongly expect (targets).
Each has associated words. A noun is considered if it is in the vocabulary, that is a word of the
association file.
"""

from __future__ import annotations

import functools
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


def count_as_script(
    nouns: Iterable[str],
    truth: Sequence[str],
    targets: Sequence[str],
    lists: WordLists,
    similar: Callable[[str, str], bool],
) -> Counts:
    """Count nouns of the vocabulary by the rules of AMBER's inference.py, in its order.

    A noun that matches a list marks the first entry that it matches: the associated words of all
    objects come before the objects themselves. So of two similar objects only one can be covered,
    and a noun may cover another object than its own. A noun can mark a target and still be excused.
    Repeated nouns count, and safe words count as nouns.
    """
    truth_words = _make_entries(truth, lists.associations)
    target_words = _make_entries(targets, lists.associations)

    @functools.cache
    def judge(noun: str) -> tuple[bool, set[int], set[int]]:
        """Return whether a noun is hallucinated, and the objects and targets that it marks."""
        if noun in lists.safe:
            return False, set(), set()
        exact_matches = _find_first(truth_words, lambda word: word == noun)
        if exact_matches:
            return False, exact_matches, set()
        marked_targets = _find_first(target_words, lambda word: word == noun)
        marked_targets |= _find_first(target_words, lambda word: similar(noun, word))
        marked_objects = _find_first(truth_words, lambda word: similar(noun, word))
        return not marked_objects, marked_objects, marked_targets

    judged = [judge(noun) for noun in nouns]
    return Counts(
        hallucinated=sum(is_wrong for is_wrong, _, _ in judged),
        nouns=len(judged),
        covered=len(set().union(*(objects for _, objects, _ in judged))),
        objects=len(truth),
        expected=len(set().union(*(marked for _, _, marked in judged))),
        expected_of=len(targets),
    )


def count_corrected(
    nouns: Iterable[str],
    truth: Sequence[str],
    targets: Sequence[str],
    lists: WordLists,
    similar: Callable[[str, str], bool],
) -> Counts:
    """Count nouns of the vocabulary by the paper's rules: sets of objects, in any order.

    A noun means an object if it is the object, is associated with it, or is similar to either. An
    object is covered if any noun means it. A noun that means none is hallucinated, and expected if
    it means a target; a safe word that means none is not judged and counts nowhere. Repeated nouns
    count.
    """
    objects = set(truth)

    def refers_to(noun: str, name: str) -> bool:
        words = [name, *lists.associations[name]]
        return noun in words or any(similar(noun, word) for word in words)

    @functools.cache
    def judge(noun: str) -> tuple[set[str], bool]:
        """Return the objects that a noun means, and whether it means a target."""
        meant = {name for name in objects if refers_to(noun, name)}
        return meant, any(refers_to(noun, name) for name in set(targets))

    judged = [
        (meant, is_target)
        for noun in nouns
        for meant, is_target in [judge(noun)]
        if meant or noun not in lists.safe
    ]
    return Counts(
        hallucinated=sum(not meant for meant, _ in judged),
        nouns=len(judged),
        covered=len(set().union(*(meant for meant, _ in judged))),
        objects=len(objects),
        expected=sum(not meant and is_target for meant, is_target in judged),
        expected_of=len(judged),
    )


def _make_entries(names: Sequence[str], associations: Mapping[str, Sequence[str]]) -> list[Any]:
    """Return (word, index of its thing): first all associated words, then the things."""
    associated = [(word, index) for index, name in enumerate(names) for word in associations[name]]
    return associated + [(name, index) for index, name in enumerate(names)]


def _find_first(entries: Sequence[tuple[str, int]], matches: Callable[[str], bool]) -> set[int]:
    """Return the index of the first entry that matches, or nothing."""
    return next(({index} for word, index in entries if matches(word)), set())
