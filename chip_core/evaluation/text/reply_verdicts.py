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

from chip_core.evaluation.text.replies import normalize_reply

MAX_LENGTH = 50_000  # characters of a reply without its reasoning: no judge is asked for so many
_CONTEXT_LENGTH = 120  # characters before a word that are read

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
_PARTIAL_WORDS = (
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
_FILLER_SPAN = re.compile(
    rf"(?:[\W\d该预测回答案因此所以是为这个完全很的不没有并非两部分基本上]|"
    rf"(?<![^\W_])(?:{_FILLERS}|{_DENIALS}|{_PARTIAL_WORDS})(?![^\W_]))*+"
)
_LABEL_BEFORE = re.compile(
    rf"(?<![^\W\d_])(?:{_LABEL})(?:\s*\([^()\n]{{0,60}}\))?\s*"
    r"(?:[:=|\-–—]|\b(?:is|ist|est|es)\b|是|为)(?P<between>[^.!?\n。]*|[\s:]*)\Z"
)
_CODE_REPLY = re.compile(rf"\W*(?:(?:{_LABEL})\s*[:=]\s*)?(?<![-\d.,])(\d)\W*")
_DENIED_BEFORE = re.compile(
    rf"(?:(?<![^\W_])(?:{_DENIALS})(?:\s+(?!only\b|clear\b|klar\b)[\w']+){{0,4}}|(?:不|没|非|未)\w{{0,3}})\s*\Z"
)
_PARTIAL_BEFORE = re.compile(
    rf"(?:(?<![^\W_])(?:{_PARTIAL_WORDS}|(?!100)\d{{1,3}}\s?%)|部分|基本上?|大致|半)(?:\s*[-]?\s*|\s+\w+\s+)\Z"
)
_PARTIAL_AFTER = re.compile(
    r"\s*,?\s*(?:in\s+part|only\s+in\s+part|to\s+(?:some|a\s+certain)\s+(?:extent|degree)|zum\s+teil|"
    r"en\s+partie|en\s+parte|but\s+(?:incomplete|partial)|"
    r"with\s+(?:\w+\s+)?(?:errors?|issues?|mistakes?|omissions?|inaccuracies))\b"
)
_HEDGE_BEFORE = re.compile(
    r"(?:\b(?:would\s+(?:be|have|seem)|could|might|may|whether|if|unless|wäre|könnte|ob|falls|wenn|serait|pourrait|si|"
    r"sería|podría)\b(?:\s+[\w']+){0,5}|是否\w{0,4}|(?:如果|若)\w{0,8}|"
    r"\b(?:not|isn't|un|nicht|pas|no\s+estoy)\s*(?:sure|certain|sicher|sûr|segur[oa])\b[^.;\n]{0,40})\s*\Z"
)
_COPULA_BEFORE = re.compile(
    r"(?:(?<![^\W_])(?:is|are|was|were|be|seems?|looks?|as|ist|sind|est|sont|es|son|deemed|considered|"
    r"not|nicht|pas|no)\b|'s\b|n't\b|是|为)(?:\s+[\w']+){0,2}\s*\Z"
)
_CLAUSE = re.compile(r"[,:.;!?\n。，；！？]|\b(?:but|aber|mais|pero|and|und|et|y)\b|但|而")
_SENTENCE = re.compile(r"[.!?;\n。！？；]+")
_QUESTION_AFTER = re.compile(r"[\s\w]{0,20}\?|\s+(?:or|oder|ou|o)\s+(?:not|nicht|non|no)\b|与否|吗")
#: Between verdicts that are offered as a choice.
_ALTERNATIVE_SEPARATOR = re.compile(
    r"\s*(?:[,/|、和与或]|\b(?:or|nor|and|oder|noch|und|ou|ni|et|o|y)\b)\s*(?:(?:or|and|oder|ou|o)\s+)?"
    r"(?:(?:in|as)\s+)?"
)
#: After a word that is a complete statement.
_STATEMENT_END = re.compile(
    r"\s*(?:\Z|[.,:;!?\n。！，；：)\]}(\-–—|]|的|吗?\Z|(?:because|since|as|for|given|although|weil|da|denn|"
    r"car|parce|puisque|porque|ya|pues)\b|因)"
)


@dataclass(frozen=True)
class VerdictWord:
    """A verdict and its words."""

    value: int
    pattern: str  # a pattern; counts anywhere
    predicate: str = r"(?!)"  # a pattern; counts alone or after "is"
    opposite: int | None = None  # its meaning when negated; None: nothing


@dataclass(frozen=True)
class _VerdictMatch:
    """A verdict's word in a text."""

    start: int
    end: int
    value: int | None  # None: partial
    alone: bool  # counts alone or after "is"


@dataclass(frozen=True)
class Vocabulary:
    """The verdicts of a prompt, and other expressions of a judge."""

    words: tuple[VerdictWord, ...]
    excluded: str = r"(?!)"  # expressions that contain a verdict's word and are no verdict
    phrases: tuple[tuple[int, str], ...] = ()  # expressions of a verdict without its word
    keys: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of JSON: true, false
    codes: Mapping[str, int] = field(default_factory=dict)  # whole replies

    def read(self, reply: str) -> int | None:
        """Return the verdict of a reply; None if it gives none, or several."""
        text = normalize_reply(reply)
        if len(text) > MAX_LENGTH:
            return None
        code = _CODE_REPLY.fullmatch(text)
        flag_verdict = self.codes.get(code[1]) if code is not None else self._read_flag(text)
        if flag_verdict is not None:
            return flag_verdict
        text = re.sub(self.excluded, " ⁂ ", text)
        matches = _remove_choices(text, list(self._iter_matches(text)))
        for selected in (
            [match for match in matches if _has_label(text, match)],
            [match for match in matches if _is_at_start(text, match) or _is_at_end(text, match)],
            [match for match in matches if _is_stated(text, match)],
        ):
            if selected:
                values = {match.value for match in selected}
                return values.pop() if len(values) == 1 else None
        phrase_verdicts = {value for value, phrase in self.phrases if re.search(phrase, text)}
        return phrase_verdicts.pop() if len(phrase_verdicts) == 1 else None

    def _read_flag(self, text: str) -> int | None:
        """Return the verdict of `"correct": false`; None if there is none, or several differ."""
        values = {
            self.keys[match["key"]][match["flag"] in ("false", "no", "0")]
            for match in self._flag_pattern.finditer(text)
            if match["flag"] in ("true", "false") or text.startswith("{") or match[0] == text
        }
        return values.pop() if len(values) == 1 else None

    @cached_property
    def _flag_pattern(self) -> re.Pattern[str]:
        keys = "|".join(map(re.escape, self.keys)) or r"(?!)"
        return re.compile(
            rf"(?<![\w ])(?:is )?(?P<key>{keys})\s*[:=]\s*(?P<flag>true|false|yes|no|1|0)\b"
        )

    @cached_property
    def _verdict_pattern(self) -> re.Pattern[str]:
        return re.compile(
            "|".join(
                f"(?P<said{number}>{word.pattern})|(?P<alone{number}>{word.predicate})"
                for number, word in enumerate(self.words)
            )
        )

    def _iter_matches(self, text: str) -> Iterator[_VerdictMatch]:
        for match in self._verdict_pattern.finditer(text):
            group_name = match.lastgroup or ""
            word = self.words[int(group_name[-1])]
            clause = _CLAUSE.split(text[max(0, match.start() - _CONTEXT_LENGTH) : match.start()])[
                -1
            ]
            value: int | None = word.value
            if _PARTIAL_BEFORE.search(clause) or _PARTIAL_AFTER.match(text, match.end()):
                value = None
            elif _DENIED_BEFORE.search(clause):
                if word.opposite is None:
                    continue
                value = word.opposite
            if not _HEDGE_BEFORE.search(clause) and not _QUESTION_AFTER.match(text, match.end()):
                yield _VerdictMatch(
                    match.start(), match.end(), value, group_name.startswith("alone")
                )


def _remove_choices(text: str, matches: list[_VerdictMatch]) -> list[_VerdictMatch]:
    """Remove verdicts that are named side by side: "same or different"."""
    offered = set()
    for first, second in itertools.pairwise(matches):
        if first.value != second.value and _ALTERNATIVE_SEPARATOR.fullmatch(
            text[first.end : second.start]
        ):
            offered |= {first, second}
    return [match for match in matches if match not in offered]


def _has_label(text: str, match: _VerdictMatch) -> bool:
    label = _LABEL_BEFORE.search(text[max(0, match.start - _CONTEXT_LENGTH) : match.start])
    return (
        label is not None
        and _FILLER_SPAN.fullmatch(label["between"]) is not None
        and _STATEMENT_END.match(text, match.end) is not None
    )


def _is_at_start(text: str, match: _VerdictMatch) -> bool:
    return (
        match.start <= _CONTEXT_LENGTH
        and re.search(r"[.;!?\n。](?=.*\w)", text[: match.start]) is None
        and _FILLER_SPAN.fullmatch(text[: match.start]) is not None
        and _STATEMENT_END.match(text, match.end) is not None
    )


def _is_at_end(text: str, match: _VerdictMatch) -> bool:
    """Whether a text's last sentence is a word alone."""
    if re.search(r"\w", text[match.end :]):
        return False
    before = _SENTENCE.split(text[max(0, match.start - _CONTEXT_LENGTH) : match.start])[-1]
    return _FILLER_SPAN.fullmatch(before) is not None


def _is_stated(text: str, match: _VerdictMatch) -> bool:
    return (
        not match.alone
        or _COPULA_BEFORE.search(text[max(0, match.start - _CONTEXT_LENGTH) : match.start])
        is not None
    )
