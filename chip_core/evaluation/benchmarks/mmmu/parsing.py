"""Read answers to MMMU as the official eval_utils.py (MMMU-Benchmark/MMMU) does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chip_core.evaluation.text.answers import find_marked_answers, normalize_answer, strip_markup

#: Stripped from both ends of a multiple-choice answer, one kind after the other.
MARKS = (",", ".", "!", "?", ";", ":", "'")
#: Words before the answer in a sentence that gives one.
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")

# Each form of a number. A match in the middle of a run of digits never succeeds if one at its start
# failed, so runs are entered only at their start: a long run then costs its length, not its
# square.
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN_NUMBER = re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])")


_UNIT = re.compile(
    r"(?<=\d)(?=(?:[kcmµnM]?(?:m|g|s|V|A|W|J|N|Pa|Hz|L|l|mol|Ω)|K|C|F|h|hr|min|kWh|ohms?|mA|mph|rpm|dB|bar"
    r"|atm|eV|ft|in|lb|oz|dollars|years?|days?|hours?|minutes?|seconds?)(?:[²³/^·*]|\b))"
)


def parse_choice(response: str, choices: Sequence[str], options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer chooses, or None.

    A letter in brackets has precedence over a bare one, and that over an option's text (only in
    answers of more than five words); of several the last one counts.

    Args:
        response: the answer.
        choices: letters to choose from.
        options: each letter's text.
    """
    for character in MARKS:
        response = response.strip(character)
    text = f" {response} "
    positions = {letter: text.rfind(f"({letter})") for letter in choices}
    if not _is_any_found(positions):
        positions = {letter: text.rfind(f" {letter} ") for letter in choices}
    if not _is_any_found(positions) and len(text.split()) > 5:
        lower_text = text.lower()
        positions = {letter: lower_text.rfind(option.lower()) for letter, option in options.items()}
    if not _is_any_found(positions):
        return None
    return max(positions, key=positions.__getitem__)


def read_open(response: str) -> set[str | float]:
    """Return the possible meanings of an open answer under `corrected`; empty if it says nothing.

    They come from what the answer marks as its answer, if anything, without reasoning and marks; a
    number may be right before its unit (`5cm`).
    """
    text = normalize_answer(response)
    text = strip_markup((find_marked_answers(text) or [text])[0])
    return parse_open(text) | parse_open(_UNIT.sub(" ", text)) if text else set()


def parse_open(response: str) -> set[str | float]:
    """Return the possible meanings of an open answer: lower-case texts, numbers to two decimals."""
    texts = _extract_key_texts(response)
    numbers = [
        number
        for text in texts
        for form in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN_NUMBER)
        for number in form.findall(text)
    ]
    return {meaning for text in (*texts, *numbers) for meaning in normalize_meanings(text)}


def normalize_meanings(text: str) -> list[str | float]:
    """Return a number to two decimals, or the text in lower case; a lone letter with its space.

    A lone letter would occur in nearly any text, so it must begin or end a word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def is_open_answer_right(truth: str | Sequence[str], meanings: set[str | float]) -> bool:
    """Whether an open answer contains a true text, or is a true number."""
    truths = [truth] if isinstance(truth, str) else truth
    true_meanings = [meaning for true_text in truths for meaning in normalize_meanings(true_text)]
    return any(
        any(isinstance(text, str) and text in meaning for text in true_meanings)
        if isinstance(meaning, str)
        else meaning in true_meanings
        for meaning in meanings
    )


def is_choice_right(truth: str | Sequence[str], choice: str | None) -> bool:
    """Whether a letter is the true one, or one of those."""
    return choice == truth if isinstance(truth, str) else choice in truth


def _is_any_found(positions: Mapping[str, int]) -> bool:
    return any(position >= 0 for position in positions.values())


def _extract_key_texts(response: str) -> list[str]:
    """Return, for each line, the shortest text after an indicator; the whole line if there is none.

    The official split at sentences looks for a capital after the text was lower-cased, so only
    lines are split.
    """
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    texts = []
    for number, line in enumerate(lines, start=1):
        indicators = (*INDICATORS, "=") if number == len(lines) else INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in line:
                following = line.split(indicator)[-1].strip()
                # Any other tail replaces an empty one, even a longer one.
                if not shortest or len(following) < len(shortest):
                    shortest = following
        if shortest and shortest not in MARKS:
            texts.append(shortest)
    return texts or [response]
