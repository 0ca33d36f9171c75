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
from collections.abc import Iterator, Mapping

from chip_core.evaluation.text import letter_words as words
from chip_core.evaluation.text.answers import marked, plain, said

_SENTENCE = re.compile(r"(?:[^.!?。\n]|\.(?=\w))+[.!?。]*")
# Where an option's text may begin and end; Chinese has no space between words.
_BEGIN, _END = r"(?<![A-Za-zÀ-ÿ0-9_])(?<!\d\.)", r"(?![A-Za-zÀ-ÿ0-9_])(?!\.\d)"
_FIRST_CLAUSE = re.compile(r"[,;:.](?!\d)")
_BESIDE = 60  # characters before a letter that show its meaning
_NEAR = 40  # characters between two choices that contradict each other
_LETTERS_ALONE = re.compile(r"(?:[\W_]*[A-J](?![^\W_]))+[\W_]*")
_PROMPTED = re.compile(r"^\s*A:\s*(?=\W?[A-Ja-j]\b(?!'))")  # the prompt's "A:" for an answer
_ARTICLE = re.compile(r"^(?:an?|the|un|une|la|le|el|die|der|das|eine?)\s+", re.IGNORECASE)


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer chooses, or None.

    Args:
        answer: the answer.
        options: each letter's text; empty if it is unknown.
    """
    reader = _Reader({letter: _normal(plain(said(text))) for letter, text in options.items()})
    text = said(answer)
    for inner in marked(text):
        found = reader.read(plain(inner))
        if found is not None:
            return found
    return reader.read(plain(text))


class _Reader:
    """Reads answers to one question.

    Args:
        texts: each letter's text, normalised by `_normal`.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def read(self, text: str) -> str | None:
        """Return the letter that a text without marks chooses, or None."""
        text = re.sub(r"\bN/A\b", " ", text)
        only = words.ONLY.fullmatch(text)
        if only is not None or _LETTERS_ALONE.fullmatch(text):
            alone = set(re.findall("[A-J]", text)) if only is None else {only[1].upper()}
            return alone.pop() if len(alone) == 1 and alone <= self._texts.keys() else None
        exact = self._exact(text)
        if exact is not None:
            return exact
        text = _without_questions(self._without_list(_PROMPTED.sub("", text)))
        rejected = self._rejected(text)
        for chosen in (self._decided(text, rejected), self._start(text, rejected)):
            if chosen is not None:
                return chosen or None
        return self._labelled_text(text) or self._named(text, rejected)

    def _named(self, text: str, rejected: set[str]) -> str | None:
        """Return the one named letter, or option by its text; else the only one not rejected."""
        sentences = [found[0] for found in _SENTENCE.finditer(text) if re.search(r"\w", found[0])]
        first, last = (sentences[0], sentences[-1]) if sentences else ("", "")
        letters = [set(self._mentions(part)) - rejected for part in (last, text)]
        texts = [self._named_texts(part) - rejected for part in (text, last, first)]
        for chosen in letters if letters[-1] else texts:
            if len(chosen) == 1:
                return chosen.pop()
        left = self._texts.keys() - rejected
        return left.pop() if rejected and len(left) == 1 and not letters[-1] else None

    def _decided(self, text: str, rejected: set[str]) -> str | None:
        """Return the letter named last as the answer; "" if that names several."""
        found: list[tuple[int, str]] = []
        for pattern in (*words.LABELS, words.CORRECT):
            for match in pattern.finditer(text):
                group = next(number for number, each in enumerate(match.groups(), 1) if each)
                letter = self._letter(match, group, text)
                negated = re.search(
                    r"(?:not|n't|never|nicht|pas|no)\s+$", _before(text, match.start()), re.I
                )
                if letter is None or negated is not None:
                    continue
                before = words.TOGETHER.search(_before(text, match.start(group)))
                joined = before is not None and before[1] not in (letter, *rejected)
                if joined or self._alternative(text, match.end(group), letter, rejected):
                    found.append((match.start(group), ""))
                elif letter not in rejected or pattern is not words.CORRECT:
                    found.append((match.start(group), letter))
        start = self._start(text, set())
        if found or start:
            for match in words.TAKEN_BACK.finditer(text):
                behind = words.START.match(text, match.end())
                if behind is not None and match.start() > 0:
                    letter = self._letter(behind, 1, text)
                    if letter is not None and letter not in rejected:
                        found.append((behind.start(1), letter))
        found.sort()
        if len(found) > 1 and found[-1][1] != found[-2][1]:
            between = text[found[-2][0] + 1 : found[-1][0]]
            if len(between) < _NEAR and not re.search(words.DECIDES, between):
                return ""
        return found[-1][1] if found else None

    def _start(self, text: str, rejected: set[str]) -> str | None:
        """Return the letter with which an answer begins; "" if it begins with several."""
        match = words.START.match(text.lstrip())
        if match is None:
            return None
        text = text.lstrip()
        letter = match[1].upper()
        if letter not in self._texts or letter in rejected:
            return None
        if self._alternative(text, match.end(1), letter, rejected):
            return ""
        rest = text[match.end() - len(match["tail"]) :]
        if match[0].strip()[-1:] in ")]}" or re.match(
            r"[)\]}.:,;!\n]|\s+[-–—=]+>?\s|\s*\n|\s*$", rest
        ):
            return None if letter == "I" and rest[:1] == "," else letter
        if self._is_own(letter, rest):
            return letter
        if match[1] in "AIi" or match[1].islower():
            return letter if re.match(r"\s+(?:because|since)\b", rest) and match[1] == "A" else None
        return letter

    def _letter(self, match: re.Match[str], group: int, text: str) -> str | None:
        """Return a match's letter; None for an article, a pronoun or part of a sentence."""
        letter = match[group]
        if letter.upper() not in self._texts:
            return None
        enclosed = text[match.start(group) - 1 : match.start(group)] in ("(", "[", "{")
        if (letter in "AI" or letter.islower()) and not enclosed:
            rest = text[match.end(group) :]
            if match.re is words.CORRECT:
                return letter.upper() if letter.isupper() and letter != "I" else None
            if not words.ENDED.match(rest) and not self._is_own(letter.upper(), rest):
                return None
        return letter.upper()

    def _begins_own(self, letter: str, behind: str) -> bool:
        """Whether the words that seem to reject a letter are its option's own."""
        said_of_it = _normal(behind)
        return bool(said_of_it) and self._texts.get(letter, "").startswith(said_of_it)

    def _is_own(self, letter: str, behind: str) -> bool:
        """Whether the text after a letter is its option's text."""
        own = self._texts.get(letter, "")
        return bool(own) and re.match(rf"{re.escape(own)}{_END}", _normal(behind)) is not None

    def _alternative(self, text: str, place: int, letter: str, rejected: set[str]) -> bool:
        """Whether another letter is named beside one: `A or B`."""
        while text[place : place + 1] in tuple("\"'”)]}"):
            place += 1
        other = words.ALTERNATIVE.match(text, place)
        return other is not None and other[1].upper() not in (letter, *rejected)

    def _rejected(self, text: str) -> set[str]:
        """Return the letters rejected as the answer; `A. False` may be an option's text."""
        return {
            letter
            for pattern in words.REJECTED
            for match in pattern.finditer(text)
            for letter in words.MENTION.findall(match[1])
            if not self._begins_own(letter, text[match.end(1) : match.end()])
            if not (match[1] in ("A", "I") and re.match(r"\s+[a-z]", text[match.end(1) :]))
            or pattern is not words.REJECTED[-1]
        }

    def _mentions(self, text: str) -> Iterator[str]:
        """Yield the lone capital letters."""
        for match in words.MENTION.finditer(text):
            enclosed = match[0] != match[1]
            if match[1] not in self._texts:
                continue
            if not enclosed and not words.NAMES_NONE.search(_before(text, match.start())):
                continue
            if not enclosed and match[1] in "AI" and not words.ENDED.match(text[match.end() :]):
                continue
            yield match[1]

    def _without_list(self, text: str) -> str:
        """Remove the options if they are repeated: two or more, each with its own text."""
        listed: dict[str, tuple[int, int]] = {}
        for match in words.LISTED.finditer(text):
            letter = match[1].upper()
            own = self._texts.get(letter, "")
            behind = text[match.end() : match.end() + 2 * len(own) + 20]
            if own and (end := _end_of(own, behind)) is not None:
                listed.setdefault(letter, (match.start(), match.end() + end))
        if len(listed) < 2:
            return text
        for start, end in sorted(listed.values(), reverse=True):
            text = f"{text[:start]}\n{text[end:]}"
        return re.sub(r"\n[\s.,;]*\n", "\n", text).strip()

    def _exact(self, text: str) -> str | None:
        """Return the option whose text, or its first clause ("Yes, it does."), is all of it."""
        bare = _normal(text)
        known = {letter: own for letter, own in self._texts.items() if own and bare}
        for same in (
            [letter for letter, own in known.items() if own == bare],
            [
                letter
                for letter, own in known.items()
                if "".join(own.split()) == "".join(bare.split())
            ],
            [letter for letter, own in known.items() if _FIRST_CLAUSE.split(own)[0] == bare],
        ):
            if same:
                return same[0] if len(same) == 1 else None
        return None

    def _labelled_text(self, text: str) -> str | None:
        """Return the option whose text comes last after a word for an answer."""
        found = None
        for label in words.TEXT_LABEL.finditer(text):
            behind = _normal(text[label.end() :].split("\n\n")[0])
            fitting = [
                letter
                for letter, own in self._texts.items()
                if own and re.match(rf"{re.escape(own)}{_END}", behind)
            ]
            if fitting:
                found = max(fitting, key=lambda letter: len(self._texts[letter]))
        return found

    def _named_texts(self, text: str) -> set[str]:
        """Return the options whose text is named and not rejected, unless inside another's."""
        bare = _normal(text)
        spans: list[tuple[int, int, str]] = []
        for letter, own in self._texts.items():
            for match in re.finditer(rf"{_BEGIN}{re.escape(own)}{_END}", bare) if own else ():
                if not words.NOT.search(words.CLAUSE.split(bare[: match.start()])[-1]):
                    spans.append((match.start(), match.end(), letter))
        return {
            letter
            for start, end, letter in spans
            if not any(
                (other, stop) != (start, end) and other <= start and end <= stop
                for other, stop, _ in spans
            )
        }


def _before(text: str, place: int) -> str:
    """Return the text right before a position."""
    return text[max(0, place - _BESIDE) : place]


def _without_questions(text: str) -> str:
    kept = re.sub(r"[^.!?\n]*\?(?=\s|$)", " ", text)
    return kept if re.search(r"\w", kept) else text


def _normal(text: str) -> str:
    """Return a text in lower case, without marks and articles around it."""
    bare = " ".join(text.lower().split()).strip(" \t\"'“”„«».,;:!?()[]{}")
    return _ARTICLE.sub("", bare)


def _end_of(own: str, behind: str) -> int | None:
    """Return where an option's text ends in the text after its letter; None: it is not there."""
    for end in range(len(own), min(len(behind), len(own) + 20) + 1):
        if _normal(behind[:end]) == own:
            return end
    return None
