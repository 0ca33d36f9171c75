r"""Extract the text of an answer from its markup: JSON, tags, boxes, Markdown, LaTeX.

Every reader of a model's own answers begins here: `marked` finds what an answer marks as its
answer (`<answer>no</answer>`, `\boxed{B}`, `{"answer": "B"}`), `plain` removes markup.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from chip_core.evaluation.text.replies import without_reasoning

#: JSON keys that may hold the answer, in order of precedence.
_KEYS = (
    "final_answer", "finalanswer", "final answer", "correct_answer", "correct answer", "answer",
    "prediction", "predicted_answer", "choice", "selected_option", "correct_option", "option",
    "letter", "verdict", "label", "result", "output", "response", "conclusion", "present",
    "antwort", "réponse", "reponse", "respuesta", "答案",
)  # fmt: skip
_FENCE = re.compile(r"^[ \t]*```[ \t]*[\w+-]{0,12}[ \t]*$", re.MULTILINE)
_TAGGED = re.compile(
    r"<(answer|final_?answer|final|conclusion|result|verdict|choice|option|output|response)>"
    r"((?:(?!</?\1>).){1,4000})(?:</\1>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_ANGLED = re.compile(r"<\s?([A-Za-z]{1,3})\s?>")  # as a whole
_BOXES = (
    re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"),
    re.compile(r"<\|begin_of_box\|>((?:(?!<\|).){1,4000})", re.DOTALL),
)
#: A key-value pair of an object that is not valid JSON as a whole.
_PAIR = re.compile(
    r"[{,\n]\s{0,20}[\"'](" + "|".join(_KEYS) + r")[\"']\s{0,9}:\s{0,9}"
    r"(?:\"([^\"\n]{0,2000})\"|'([^'\n]{0,2000})'|([^\s,}\]\"']{1,80}))",
    re.IGNORECASE,
)
_STRUCK = re.compile(r"~~[^~\n]{1,300}~~")
_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:unk|pad|eos|bos|end_of_turn)>|\[/?INST\]")
_TAG = re.compile(r"</?[A-Za-z][\w-]{0,30}(?:\s[^<>\n]{0,200})?/?>")
_BREAK = re.compile(r"<(?:br|/p|/div|/li)\s?/?>", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname|emph)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|(?<!\\)~(?=\w)")
_LATEX_MARK = re.compile(r"\\[()\[\]]|\$")
_UNDERSCORE = re.compile(r"(?<![^\W_])_{1,3}|_{1,3}(?![^\W_])")
_LINE_MARK = re.compile(r"^[ \t]*(?:(?:#{1,6}|>|[-•‣▪–—+*])[ \t]+)+", re.MULTILINE)
#: Apostrophes and the minus sign in their usual form; characters without width are removed.
_USUAL = str.maketrans({**dict.fromkeys("’‘´ʼ", "'"), "−": "-", "\u200b": None, "\ufeff": None})
_LONGEST = 2000  # characters of an answer's beginning, and of its end, that are read


def said(answer: str) -> str:
    """Return an answer without its reasoning, letters and signs in their usual form.

    Of a very long answer it returns the beginning and the end.
    """
    text = without_reasoning(answer)
    if len(text) > 2 * _LONGEST:
        text = f"{text[:_LONGEST]}\n{text[-_LONGEST:]}"
    text = unicodedata.normalize("NFKC", text)
    text = text.translate(_USUAL)
    return text.strip()


def marked(text: str) -> list[str]:
    """Return what a text marks as its answer, the strongest mark first."""
    found = _of_json(text)
    found += [angled[1] for angled in [_ANGLED.fullmatch(text)] if angled]
    found += [tagged[2] for tagged in list(_TAGGED.finditer(text))[-1:]]
    for box in _BOXES:
        found += box.findall(text)[-1:]
    pairs = [
        (pair[1].lower(), pair[2] or pair[3] or pair[4] or "") for pair in _PAIR.finditer(text)
    ]
    for key in _KEYS:
        found += [value for name, value in pairs if name == key][-1:]
    return [value.strip() for value in found if value.strip()]


def plain(text: str) -> str:
    """Return a text without markup of Markdown, HTML, LaTeX and of models; lines are kept."""
    text = _STRUCK.sub(" ", _TOKEN.sub(" ", text))
    text = _FENCE.sub("", _TAG.sub("", _BREAK.sub("\n", text)))
    for _ in range(3):  # nested ones
        text = _LATEX.sub(r"\1", text)
    for box in _BOXES:
        text = box.sub(r"\1", text)
    text = _LATEX_MARK.sub("", _LATEX_SPACE.sub(" ", text))
    text = _LINE_MARK.sub("", text).replace("*", "").replace("`", "")
    return _UNDERSCORE.sub("", text).strip()


def _of_json(text: str) -> list[str]:
    """Return the answer of a text that is JSON as a whole, also between fences."""
    try:
        found = json.loads(_FENCE.sub("", text).strip().removesuffix("<|im_end|>").strip())
    except (ValueError, RecursionError):
        return []
    value = _value(found)
    return [] if value is None else [value]


def _value(found: Any, depth: int = 3) -> str | None:
    """Return the one text, boolean or number that a JSON value gives as an answer."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, str | int | float):
        return str(found)
    if depth == 0:
        return None
    if isinstance(found, list) and len(found) == 1:
        return _value(found[0], depth - 1)
    if isinstance(found, dict):
        named = {str(key).strip().lower(): value for key, value in found.items()}
        for key in _KEYS:
            if key in named:
                return _value(named[key], depth - 1)
        if len(named) == 1:
            return _value(next(iter(named.values())), depth - 1)
    return None
