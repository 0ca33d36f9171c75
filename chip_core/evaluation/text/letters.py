"""Read the chosen option of a multiple-choice answer under protocol `corrected`.

The rules, each used only if those before it find nothing:

1. what the answer marks as its answer (a tag, a box, JSON); a letter, or an option's text, alone;
2. a letter that is named as the answer ("the answer is B", "I choose (B)", "B is correct"), or that
   takes another one back ("B... no, C"): the last;
3. the letter with which the answer begins (`C. A bowl of soup`);
4. the one letter that its last sentence names, or that is named at all;
5. the one option whose text is named: as the answer, at the end, or at all.

A rejected letter is not chosen, nor is an article ("A bowl"), a pronoun ("I think") or a repeated
list of options. Two letters without a decision between them cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from chip_core.evaluation.text import letter_patterns as patterns
from chip_core.evaluation.text.answers import find_marked_answers, normalize_answer, strip_markup

_SENTENCE = re.compile(r"(?:[^.!?。\n]|\.(?=\w))+[.!?。]*")
# Where an option's text may begin and end; Chinese has no space between words.
_TEXT_START, _TEXT_END = r"(?<![A-Za-zÀ-ÿ0-9_])(?<!\d\.)", r"(?![A-Za-zÀ-ÿ0-9_])(?!\.\d)"
_FIRST_CLAUSE = re.compile(r"[,;:.](?!\d)")
_CONTEXT_LENGTH = 60  # characters before a letter that show its meaning
_MAX_CHOICE_DISTANCE = 40  # characters between two choices that contradict each other
_ONLY_LETTERS = re.compile(r"(?:[\W_]*[A-J](?![^\W_]))+[\W_]*")
_ANSWER_PREFIX = re.compile(r"^\s*A:\s*(?=\W?[A-Ja-j]\b(?!'))")  # the prompt's "A:" for an answer
_ARTICLE = re.compile(r"^(?:an?|the|un|une|la|le|el|die|der|das|eine?)\s+", re.IGNORECASE)


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer chooses, or None.

    Args:
        answer: the answer.
        options: each letter's text; empty if it is unknown.
    """
    reader = _LetterReader(
        {
            letter: _normalize(strip_markup(normalize_answer(text)))
            for letter, text in options.items()
        }
    )
    text = normalize_answer(answer)
    for marked_text in find_marked_answers(text):
        choice = reader.read(strip_markup(marked_text))
        if choice is not None:
            return choice
    return reader.read(strip_markup(text))


class _LetterReader:
    """Reads answers to one question.

    Args:
        texts: each letter's text, normalised by `_normalize`.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def read(self, text: str) -> str | None:
        """Return the letter that a text without marks chooses, or None."""
        text = re.sub(r"\bN/A\b", " ", text)
        whole_answer = patterns.ONLY_LETTER.fullmatch(text)
        if whole_answer is not None or _ONLY_LETTERS.fullmatch(text):
            letters = (
                set(re.findall("[A-J]", text))
                if whole_answer is None
                else {whole_answer[1].upper()}
            )
            return letters.pop() if len(letters) == 1 and letters <= self._texts.keys() else None
        option = self._match_option_text(text)
        if option is not None:
            return option
        text = _remove_questions(self._remove_option_list(_ANSWER_PREFIX.sub("", text)))
        rejected = self._find_rejected(text)
        for choice in (self._find_decided(text, rejected), self._find_leading(text, rejected)):
            if choice is not None:
                return choice or None
        return self._find_labelled_text(text) or self._find_mentioned(text, rejected)

    def _find_mentioned(self, text: str, rejected: set[str]) -> str | None:
        """Return the one named letter, or option by its text; else the only one not rejected."""
        sentences = [match[0] for match in _SENTENCE.finditer(text) if re.search(r"\w", match[0])]
        first, last = (sentences[0], sentences[-1]) if sentences else ("", "")
        letters = [set(self._iter_mentions(part)) - rejected for part in (last, text)]
        texts = [self._find_option_texts(part) - rejected for part in (text, last, first)]
        for candidates in letters if letters[-1] else texts:
            if len(candidates) == 1:
                return candidates.pop()
        remaining = self._texts.keys() - rejected
        return remaining.pop() if rejected and len(remaining) == 1 and not letters[-1] else None

    def _find_decided(self, text: str, rejected: set[str]) -> str | None:
        """Return the letter named last as the answer; "" if that names several."""
        choices: list[tuple[int, str]] = []
        for pattern in (*patterns.ANSWER_LABELS, patterns.CORRECT):
            for match in pattern.finditer(text):
                group = next(index for index, matched in enumerate(match.groups(), 1) if matched)
                letter = self._parse_letter(match, group, text)
                negation = re.search(
                    r"(?:not|n't|never|nicht|pas|no)\s+$", _text_before(text, match.start()), re.I
                )
                if letter is None or negation is not None:
                    continue
                conjunction = patterns.CONJUNCTION.search(_text_before(text, match.start(group)))
                is_joined = conjunction is not None and conjunction[1] not in (letter, *rejected)
                if is_joined or self._has_alternative(text, match.end(group), letter, rejected):
                    choices.append((match.start(group), ""))
                elif letter not in rejected or pattern is not patterns.CORRECT:
                    choices.append((match.start(group), letter))
        leading = self._find_leading(text, set())
        if choices or leading:
            for match in patterns.REVISION.finditer(text):
                revision = patterns.LEADING.match(text, match.end())
                if revision is not None and match.start() > 0:
                    letter = self._parse_letter(revision, 1, text)
                    if letter is not None and letter not in rejected:
                        choices.append((revision.start(1), letter))
        choices.sort()
        if len(choices) > 1 and choices[-1][1] != choices[-2][1]:
            text_between = text[choices[-2][0] + 1 : choices[-1][0]]
            if len(text_between) < _MAX_CHOICE_DISTANCE and not re.search(
                patterns.DECISION, text_between
            ):
                return ""
        return choices[-1][1] if choices else None

    def _find_leading(self, text: str, rejected: set[str]) -> str | None:
        """Return the letter with which an answer begins; "" if it begins with several."""
        match = patterns.LEADING.match(text.lstrip())
        if match is None:
            return None
        text = text.lstrip()
        letter = match[1].upper()
        if letter not in self._texts or letter in rejected:
            return None
        if self._has_alternative(text, match.end(1), letter, rejected):
            return ""
        following = text[match.end() - len(match["tail"]) :]
        if match[0].strip()[-1:] in ")]}" or re.match(
            r"[)\]}.:,;!\n]|\s+[-–—=]+>?\s|\s*\n|\s*$", following
        ):
            return None if letter == "I" and following[:1] == "," else letter
        if self._is_option_text(letter, following):
            return letter
        if match[1] in "AIi" or match[1].islower():
            return (
                letter
                if re.match(r"\s+(?:because|since)\b", following) and match[1] == "A"
                else None
            )
        return letter

    def _parse_letter(self, match: re.Match[str], group: int, text: str) -> str | None:
        """Return a match's letter; None for an article, a pronoun or part of a sentence."""
        letter = match[group]
        if letter.upper() not in self._texts:
            return None
        is_enclosed = text[match.start(group) - 1 : match.start(group)] in ("(", "[", "{")
        if (letter in "AI" or letter.islower()) and not is_enclosed:
            following = text[match.end(group) :]
            if match.re is patterns.CORRECT:
                return letter.upper() if letter.isupper() and letter != "I" else None
            if not patterns.LETTER_END.match(following) and not self._is_option_text(
                letter.upper(), following
            ):
                return None
        return letter.upper()

    def _starts_option_text(self, letter: str, following: str) -> bool:
        """Whether the words that seem to reject a letter are its option's own."""
        normalized = _normalize(following)
        return bool(normalized) and self._texts.get(letter, "").startswith(normalized)

    def _is_option_text(self, letter: str, following: str) -> bool:
        """Whether the text after a letter is its option's text."""
        option_text = self._texts.get(letter, "")
        return (
            bool(option_text)
            and re.match(rf"{re.escape(option_text)}{_TEXT_END}", _normalize(following)) is not None
        )

    def _has_alternative(self, text: str, position: int, letter: str, rejected: set[str]) -> bool:
        """Whether another letter is named beside one: `A or B`."""
        while text[position : position + 1] in tuple("\"'”)]}"):
            position += 1
        other = patterns.ALTERNATIVE.match(text, position)
        return other is not None and other[1].upper() not in (letter, *rejected)

    def _find_rejected(self, text: str) -> set[str]:
        """Return the letters rejected as the answer; `A. False` may be an option's text."""
        return {
            letter
            for pattern in patterns.REJECTED
            for match in pattern.finditer(text)
            for letter in patterns.LONE_LETTER.findall(match[1])
            if not self._starts_option_text(letter, text[match.end(1) : match.end()])
            if not (match[1] in ("A", "I") and re.match(r"\s+[a-z]", text[match.end(1) :]))
            or pattern is not patterns.REJECTED[-1]
        }

    def _iter_mentions(self, text: str) -> Iterator[str]:
        """Yield the lone capital letters."""
        for match in patterns.LONE_LETTER.finditer(text):
            is_enclosed = match[0] != match[1]
            if match[1] not in self._texts:
                continue
            if not is_enclosed and not patterns.NO_NAME_BEFORE.search(
                _text_before(text, match.start())
            ):
                continue
            if (
                not is_enclosed
                and match[1] in "AI"
                and not patterns.LETTER_END.match(text[match.end() :])
            ):
                continue
            yield match[1]

    def _remove_option_list(self, text: str) -> str:
        """Remove the options if they are repeated: two or more, each with its own text."""
        listed: dict[str, tuple[int, int]] = {}
        for match in patterns.LIST_ENTRY.finditer(text):
            letter = match[1].upper()
            option_text = self._texts.get(letter, "")
            following = text[match.end() : match.end() + 2 * len(option_text) + 20]
            if option_text and (end := _find_text_end(option_text, following)) is not None:
                listed.setdefault(letter, (match.start(), match.end() + end))
        if len(listed) < 2:
            return text
        for start, end in sorted(listed.values(), reverse=True):
            text = f"{text[:start]}\n{text[end:]}"
        return re.sub(r"\n[\s.,;]*\n", "\n", text).strip()

    def _match_option_text(self, text: str) -> str | None:
        """Return the option whose text, or its first clause ("Yes, it does."), is all of it."""
        normalized = _normalize(text)
        if not normalized:
            return None
        without_spaces = "".join(normalized.split())
        rules: tuple[Callable[[str], bool], ...] = (
            lambda option: option == normalized,
            lambda option: "".join(option.split()) == without_spaces,
            lambda option: _FIRST_CLAUSE.split(option)[0] == normalized,
        )
        for is_match in rules:
            matching = [letter for letter, text in self._texts.items() if text and is_match(text)]
            if matching:
                return matching[0] if len(matching) == 1 else None
        return None

    def _find_labelled_text(self, text: str) -> str | None:
        """Return the option whose text comes last after a word for an answer."""
        choice = None
        for label in patterns.TEXT_LABEL.finditer(text):
            following = _normalize(text[label.end() :].split("\n\n")[0])
            matching = [
                letter
                for letter, option_text in self._texts.items()
                if option_text and re.match(rf"{re.escape(option_text)}{_TEXT_END}", following)
            ]
            if matching:
                choice = max(matching, key=lambda letter: len(self._texts[letter]))
        return choice

    def _find_option_texts(self, text: str) -> set[str]:
        """Return the options whose text is named and not rejected, unless inside another's."""
        normalized = _normalize(text)
        spans: list[tuple[int, int, str]] = []
        for letter, option_text in self._texts.items():
            for match in (
                re.finditer(rf"{_TEXT_START}{re.escape(option_text)}{_TEXT_END}", normalized)
                if option_text
                else ()
            ):
                if not patterns.NEGATION.search(
                    patterns.CLAUSE.split(normalized[: match.start()])[-1]
                ):
                    spans.append((match.start(), match.end(), letter))
        return {
            letter
            for start, end, letter in spans
            if not any(
                (other, stop) != (start, end) and other <= start and end <= stop
                for other, stop, _ in spans
            )
        }


def _text_before(text: str, position: int) -> str:
    """Return the text right before a position."""
    return text[max(0, position - _CONTEXT_LENGTH) : position]


def _remove_questions(text: str) -> str:
    remaining = re.sub(r"[^.!?\n]*\?(?=\s|$)", " ", text)
    return remaining if re.search(r"\w", remaining) else text


def _normalize(text: str) -> str:
    """Return a text in lower case, without marks and articles around it."""
    stripped = " ".join(text.lower().split()).strip(" \t\"'“”„«».,;:!?()[]{}")
    return _ARTICLE.sub("", stripped)


def _find_text_end(option_text: str, following: str) -> int | None:
    """Return where an option's text ends in the text after its letter; None: it is not there."""
    for end in range(len(option_text), min(len(following), len(option_text) + 20) + 1):
        if _normalize(following[:end]) == option_text:
            return end
    return None
