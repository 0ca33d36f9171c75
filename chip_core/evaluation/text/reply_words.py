"""Read verdicts in judges' replies as they are meant: one of a few words that a prompt names.

What decides, in this order: a label ("Verdict: incorrect"); the word with which a reply begins or
ends; the statements of its sentences. A negated verdict is its opposite, a partial one is none
("partially correct"), and "the correct answer is no" says nothing about the judged answer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from chip_core.evaluation.text.replies import plain

LONGEST = 50_000  # characters of a reply without its reasoning: no judge is asked for so many
_NEAR = 120  # characters before a word that are read

_LABEL = (
    r"verdict|output|judge?ment|answer|result|evaluation|conclusion|word|correctness|consistency|"
    r"assessment|grade|label|rating|decision|status|classification|urteil|ergebnis|antwort|"
    r"bewertung|fazit|jugement|résultat|réponse|évaluation|veredicto|resultado|respuesta|"
    r"evaluación|juicio|conclusión|判断|结论|结果|裁定|答案|判定|评价|裁决|评判"
)
_DENIALS = (
    r"not|non|cannot|never|hardly|neither|nor|nicht|kaum|keine?|keineswegs|pas|jamais|no|nunca|tampoco|"
    r"nowhere|by\s+no\s+means|in\s+no\s+way|lacks?|far\s+from|anything\s+but|fails\s+to\s+be|[a-z]{2,7}n't"
)
_PARTS = (
    r"partially|partly|half|semi|mostly|largely|somewhat|nearly|almost|in\s+part|teilweise|teils|"
    r"halb|größtenteils|weitgehend|überwiegend|zum\s+teil|fast|partiellement|en\s+partie|presque|"
    r"en\s+grande\s+partie|parcialmente|en\s+parte|casi|medio|mayormente|à\s+moitié|a\s+medias|zur\s+hälfte"
)
#: Words that may come before a verdict at the beginning of a reply.
_FILLERS = (
    r"it|this|that|they|the|model's|predicted|given|prediction|predictions|answer|answers|response|"
    r"responses|output|verdict|two|both|final|my|overall|so|therefore|thus|hence|is|are|be|i'd|i|"
    r"would|say|generate|write|classify|mark|judge|choose|considered|deemed|to|as|die|das|der|beiden|antwort|antworten|vorhersage|also|ist|"
    r"sind|somit|daher|la|le|les|las|el|dos|deux|réponse|réponses|prédiction|donc|c'est|n'est|ne|"
    r"sont|est|respuesta|respuestas|predicción|es|son|por|lo|tanto|"
    r"very|totally|completely|entirely|fully|clearly|definitely|factually|logically|absolutely|"
    r"quite|really|exactly|simply|völlig|vollständig|ganz|komplett|eindeutig|totalement|tout|à|fait|"
    r"complètement|clairement|totalmente|completamente|claramente|del|todo"
)
_FILLED = re.compile(
    rf"(?:[\W\d该预测回答案因此所以是为这个完全很的不没有并非两部分基本上]|"
    rf"(?<![^\W_])(?:{_FILLERS}|{_DENIALS}|{_PARTS})(?![^\W_]))*+"
)
_LABELLED = re.compile(
    rf"(?<![^\W\d_])(?:{_LABEL})(?:\s*\([^()\n]{{0,60}}\))?\s*"
    r"(?:[:=|\-–—]|\b(?:is|ist|est|es)\b|是|为)(?P<between>[^.!?\n。]*|[\s:]*)\Z"
)
_CODE = re.compile(rf"\W*(?:(?:{_LABEL})\s*[:=]\s*)?(?<![-\d.,])(\d)\W*")
_DENIED = re.compile(
    rf"(?:(?<![^\W_])(?:{_DENIALS})(?:\s+(?!only\b|clear\b|klar\b)[\w']+){{0,4}}|(?:不|没|非|未)\w{{0,3}})\s*\Z"
)
_PARTLY = re.compile(
    rf"(?:(?<![^\W_])(?:{_PARTS}|(?!100)\d{{1,3}}\s?%)|部分|基本上?|大致|半)(?:\s*[-]?\s*|\s+\w+\s+)\Z"
)
_PARTLY_BEHIND = re.compile(
    r"\s*,?\s*(?:in\s+part|only\s+in\s+part|to\s+(?:some|a\s+certain)\s+(?:extent|degree)|zum\s+teil|"
    r"en\s+partie|en\s+parte|but\s+(?:incomplete|partial)|"
    r"with\s+(?:\w+\s+)?(?:errors?|issues?|mistakes?|omissions?|inaccuracies))\b"
)
_HEDGED = re.compile(
    r"(?:\b(?:would\s+(?:be|have|seem)|could|might|may|whether|if|unless|wäre|könnte|ob|falls|wenn|serait|pourrait|si|"
    r"sería|podría)\b(?:\s+[\w']+){0,5}|是否\w{0,4}|(?:如果|若)\w{0,8}|"
    r"\b(?:not|isn't|un|nicht|pas|no\s+estoy)\s*(?:sure|certain|sicher|sûr|segur[oa])\b[^.;\n]{0,40})\s*\Z"
)
_COPULA = re.compile(
    r"(?:(?<![^\W_])(?:is|are|was|were|be|seems?|looks?|as|ist|sind|est|sont|es|son|deemed|considered|"
    r"not|nicht|pas|no)\b|'s\b|n't\b|是|为)(?:\s+[\w']+){0,2}\s*\Z"
)
_CLAUSE = re.compile(r"[,:.;!?\n。，；！？]|\b(?:but|aber|mais|pero|and|und|et|y)\b|但|而")
_SENTENCE = re.compile(r"[.!?;\n。！？；]+")
_ASKED = re.compile(r"[\s\w]{0,20}\?|\s+(?:or|oder|ou|o)\s+(?:not|nicht|non|no)\b|与否|吗")
#: Between verdicts that are offered as a choice.
_BESIDE = re.compile(
    r"\s*(?:[,/|、和与或]|\b(?:or|nor|and|oder|noch|und|ou|ni|et|o|y)\b)\s*(?:(?:or|and|oder|ou|o)\s+)?"
    r"(?:(?:in|as)\s+)?"
)
#: After a word that is a complete statement.
_STANDS = re.compile(
    r"\s*(?:\Z|[.,:;!?\n。！，；：)\]}(\-–—|]|的|吗?\Z|(?:because|since|as|for|given|although|weil|da|denn|"
    r"car|parce|puisque|porque|ya|pues)\b|因)"
)


@dataclass(frozen=True)
class Word:
    """A verdict and its words."""

    value: int
    said: str  # a pattern; counts anywhere
    predicate: str = r"(?!)"  # a pattern; counts alone or after "is"
    opposite: int | None = None  # its meaning when negated; None: nothing


@dataclass(frozen=True)
class _Found:
    """A verdict's word in a text."""

    start: int
    end: int
    value: int | None  # None: partial
    alone: bool  # counts alone or after "is"


@dataclass(frozen=True)
class Vocabulary:
    """The verdicts of a prompt, and other expressions of a judge."""

    words: tuple[Word, ...]
    apart: str = r"(?!)"  # expressions that contain a verdict's word and are no verdict
    phrases: tuple[tuple[int, str], ...] = ()  # expressions of a verdict without its word
    keys: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of JSON: true, false
    codes: Mapping[str, int] = field(default_factory=dict)  # whole replies

    def read(self, reply: str) -> int | None:
        """Return the verdict of a reply; None if it gives none, or several."""
        text = plain(reply)
        if len(text) > LONGEST:
            return None
        code = _CODE.fullmatch(text)
        flagged = self.codes.get(code[1]) if code is not None else self._flag(text)
        if flagged is not None:
            return flagged
        text = re.sub(self.apart, " ⁂ ", text)
        found = _without_choices(text, list(self._find(text)))
        for some in (
            [word for word in found if _has_label(text, word)],
            [word for word in found if _begins(text, word) or _ends(text, word)],
            [word for word in found if _is_told(text, word)],
        ):
            if some:
                values = {word.value for word in some}
                return values.pop() if len(values) == 1 else None
        said = {value for value, phrase in self.phrases if re.search(phrase, text)}
        return said.pop() if len(said) == 1 else None

    def _flag(self, text: str) -> int | None:
        """Return the verdict of `"correct": false`; None if there is none, or several differ."""
        values = {
            self.keys[found["key"]][found["flag"] in ("false", "no", "0")]
            for found in self._flags.finditer(text)
            if found["flag"] in ("true", "false") or text.startswith("{") or found[0] == text
        }
        return values.pop() if len(values) == 1 else None

    @cached_property
    def _flags(self) -> re.Pattern[str]:
        keys = "|".join(map(re.escape, self.keys)) or r"(?!)"
        return re.compile(
            rf"(?<![\w ])(?:is )?(?P<key>{keys})\s*[:=]\s*(?P<flag>true|false|yes|no|1|0)\b"
        )

    @cached_property
    def _any(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(
                f"(?P<said{number}>{word.said})|(?P<alone{number}>{word.predicate})"
                for number, word in enumerate(self.words)
            )
        )

    def _find(self, text: str) -> Iterator[_Found]:
        for found in self._any.finditer(text):
            kind = found.lastgroup or ""
            word = self.words[int(kind[-1])]
            clause = _CLAUSE.split(text[max(0, found.start() - _NEAR) : found.start()])[-1]
            value: int | None = word.value
            if _PARTLY.search(clause) or _PARTLY_BEHIND.match(text, found.end()):
                value = None
            elif _DENIED.search(clause):
                if word.opposite is None:
                    continue
                value = word.opposite
            if not _HEDGED.search(clause) and not _ASKED.match(text, found.end()):
                yield _Found(found.start(), found.end(), value, kind.startswith("alone"))


def _without_choices(text: str, found: list[_Found]) -> list[_Found]:
    """Remove verdicts that are named side by side: "same or different"."""
    named = set()
    for one, other in itertools.pairwise(found):
        if one.value != other.value and _BESIDE.fullmatch(text[one.end : other.start]):
            named |= {one, other}
    return [word for word in found if word not in named]


def _has_label(text: str, word: _Found) -> bool:
    label = _LABELLED.search(text[max(0, word.start - _NEAR) : word.start])
    return (
        label is not None
        and _FILLED.fullmatch(label["between"]) is not None
        and _STANDS.match(text, word.end) is not None
    )


def _begins(text: str, word: _Found) -> bool:
    return (
        word.start <= _NEAR
        and re.search(r"[.;!?\n。](?=.*\w)", text[: word.start]) is None
        and _FILLED.fullmatch(text[: word.start]) is not None
        and _STANDS.match(text, word.end) is not None
    )


def _ends(text: str, word: _Found) -> bool:
    """Whether a text's last sentence is a word alone."""
    if re.search(r"\w", text[word.end :]):
        return False
    before = _SENTENCE.split(text[max(0, word.start - _NEAR) : word.start])[-1]
    return _FILLED.fullmatch(before) is not None


def _is_told(text: str, word: _Found) -> bool:
    return (
        not word.alone or _COPULA.search(text[max(0, word.start - _NEAR) : word.start]) is not None
    )
