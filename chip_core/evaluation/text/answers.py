r"""Extract the text of an answer from its markup: JSON, tags, boxes, Markdown, LaTeX.

Every reader of a model's own answers begins here: `find_marked_answers` finds what an answer marks
as its answer (`<answer>no</answer>`, `\boxed{B}`, `{"answer": "B"}`), `strip_markup` removes
markup.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from chip_core.evaluation.text.replies import strip_reasoning

#: JSON keys that may hold the answer, in order of precedence.
_ANSWER_KEYS = (
    "final_answer", "finalanswer", "final answer", "correct_answer", "correct answer", "answer",
    "prediction", "predicted_answer", "choice", "selected_option", "correct_option", "option",
    "letter", "verdict", "label", "result", "output", "response", "conclusion", "present",
    "antwort", "réponse", "reponse", "respuesta", "答案",
)  # fmt: skip
_FENCE = re.compile(r"^[ \t]*```[ \t]*[\w+-]{0,12}[ \t]*$", re.MULTILINE)
_TAGGED_ANSWER = re.compile(
    r"<(answer|final_?answer|final|conclusion|result|verdict|choice|option|output|response)>"
    r"((?:(?!</?\1>).){1,4000})(?:</\1>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_ANGLED_ANSWER = re.compile(r"<\s?([A-Za-z]{1,3})\s?>")  # as a whole
_BOXES = (
    re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"),
    re.compile(r"<\|begin_of_box\|>((?:(?!<\|).){1,4000})", re.DOTALL),
)
#: A key-value pair of an object that is not valid JSON as a whole.
_KEY_VALUE = re.compile(
    r"[{,\n]\s{0,20}[\"'](" + "|".join(_ANSWER_KEYS) + r")[\"']\s{0,9}:\s{0,9}"
    r"(?:\"([^\"\n]{0,2000})\"|'([^'\n]{0,2000})'|([^\s,}\]\"']{1,80}))",
    re.IGNORECASE,
)
_STRIKETHROUGH = re.compile(r"~~[^~\n]{1,300}~~")
_SPECIAL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:unk|pad|eos|bos|end_of_turn)>|\[/?INST\]"
)
_HTML_TAG = re.compile(r"</?[A-Za-z][\w-]{0,30}(?:\s[^<>\n]{0,200})?/?>")
_LINE_BREAK = re.compile(r"<(?:br|/p|/div|/li)\s?/?>", re.IGNORECASE)
_LATEX_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname|emph)\s*\{([^{}]*)\}"
)
_LATEX_SPACE = re.compile(r"\\[,;:! ]|(?<!\\)~(?=\w)")
_LATEX_MARK = re.compile(r"\\[()\[\]]|\$")
_UNDERSCORE = re.compile(r"(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])")
_LINE_MARK = re.compile(r"^[ \t]*(?:(?:#{1,6}|>|[-•‣▪–—+*])[ \t]+)+", re.MULTILINE)
#: Apostrophes and the minus sign in their usual form; characters without width are removed.
_USUAL_CHARACTERS = str.maketrans(
    {**dict.fromkeys("’‘´ʼ", "'"), "−": "-", "\u200b": None, "\ufeff": None}
)
_MAX_LENGTH = 2000  # characters of an answer's beginning, and of its end, that are read


def normalize_answer(answer: str) -> str:
    """Return an answer without its reasoning, letters and signs in their usual form.

    Of a very long answer it returns the beginning and the end.
    """
    text = strip_reasoning(answer)
    if len(text) > 2 * _MAX_LENGTH:
        text = f"{text[:_MAX_LENGTH]}\n{text[-_MAX_LENGTH:]}"
    text = unicodedata.normalize("NFKC", text)
    text = text.translate(_USUAL_CHARACTERS)
    return text.strip()


def find_marked_answers(text: str) -> list[str]:
    """Return what a text marks as its answer, the strongest mark first."""
    candidates = _parse_json_answer(text)
    candidates += [angled[1] for angled in [_ANGLED_ANSWER.fullmatch(text)] if angled]
    candidates += [tagged[2] for tagged in list(_TAGGED_ANSWER.finditer(text))[-1:]]
    for box in _BOXES:
        candidates += box.findall(text)[-1:]
    pairs = [
        (pair[1].lower(), pair[2] or pair[3] or pair[4] or "") for pair in _KEY_VALUE.finditer(text)
    ]
    for key in _ANSWER_KEYS:
        candidates += [value for name, value in pairs if name == key][-1:]
    return [value.strip() for value in candidates if value.strip()]


def strip_markup(text: str) -> str:
    """Return a text without markup of Markdown, HTML, LaTeX and of models; lines are kept."""
    text = _STRIKETHROUGH.sub(" ", _SPECIAL_TOKEN.sub(" ", text))
    text = _FENCE.sub("", _HTML_TAG.sub("", _LINE_BREAK.sub("\n", text)))
    for _ in range(3):  # nested ones
        text = _LATEX_COMMAND.sub(r"\1", text)
    for box in _BOXES:
        text = box.sub(r"\1", text)
    text = _LATEX_MARK.sub("", _LATEX_SPACE.sub(" ", text))
    text = _LINE_MARK.sub("", text).replace("*", "").replace("`", "")
    return _UNDERSCORE.sub("", text).strip()


def _parse_json_answer(text: str) -> list[str]:
    """Return the answer of a text that is JSON as a whole, also between fences."""
    try:
        parsed = json.loads(_FENCE.sub("", text).strip().removesuffix("<|im_end|>").strip())
    except (ValueError, RecursionError):
        return []
    value = _find_answer_value(parsed)
    return [] if value is None else [value]


def _find_answer_value(parsed: Any, depth: int = 3) -> str | None:
    """Return the one text, boolean or number that a JSON value gives as an answer."""
    if isinstance(parsed, bool):
        return "yes" if parsed else "no"
    if isinstance(parsed, str | int | float):
        return str(parsed)
    if depth == 0:
        return None
    if isinstance(parsed, list) and len(parsed) == 1:
        return _find_answer_value(parsed[0], depth - 1)
    if isinstance(parsed, dict):
        values = {str(key).strip().lower(): value for key, value in parsed.items()}
        for key in _ANSWER_KEYS:
            if key in values:
                return _find_answer_value(values[key], depth - 1)
        if len(values) == 1:
            return _find_answer_value(next(iter(values.values())), depth - 1)
    return None
