"""The prompt of Object HalBench's judge, and the reading of its replies."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from chip_core.evaluation.scorer import JudgeRequest
from chip_core.evaluation.text.replies import strip_reasoning

#: Where the benchmark publishes its own prompt.
SCRIPT, VARIABLE = "eval_gpt_obj_halbench.py", "prompt_template"

#: Our own prompt by the same rules, if the published one is missing.
PROMPT = """\
A vision-language model was asked about an image and answered. Take the answer for true and list \
the objects that it says can be seen in the image.

- List only objects that the answer itself names.
- Give each object's name alone, without its colour, material or any other property.
- Reply with nothing but a JSON list of names: ["first", "second"]. Where it names no visible \
object, reply [].

Question: {question}

Answer: {answer}
"""


class UnreadableReplyError(ValueError):
    """A reply that lists no objects; its message says why."""


def make_request(prompt: str, item: str, question: str, answer: str) -> JudgeRequest:
    """Return the request about an answer, in the form of the official script."""
    text = prompt.replace("{question}", question).replace("{answer}", answer)
    return JudgeRequest(
        item=item,
        messages=({"role": "system", "content": text},),
        temperature=0.0,
        max_tokens=512,
    )


def read_reply_as_script(reply: str | None) -> list[Any]:
    """Return the entries of a reply as the official script reads it.

    Anything in JSON that can be iterated counts: the keys of an object, the letters of a text.

    Raises:
        UnreadableReplyError: the script could not continue.
    """
    if reply is None:
        raise UnreadableReplyError("there is no reply of the judge")
    candidates = [reply]
    if "```json" in reply:
        candidates.append(reply.replace("```json", "").replace("```", "").strip())
    elif '["' in reply:
        candidates.append(reply.strip().split("\n")[-1])
    for text in candidates:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(parsed, (list, dict, str)):
            raise UnreadableReplyError(f"the judge's reply {reply!r} is not a list")
        return list(parsed)
    raise UnreadableReplyError("the judge's reply is not JSON")


def read_reply(reply: str | None) -> list[str]:
    """Return the objects of a reply: its one list of names, in any notation.

    That is a list in brackets, with any quotes or none; else lines with bullets or numbers; else
    names separated by commas. Lists that differ count as none.

    Raises:
        UnreadableReplyError: there is no such list.
    """
    if reply is None:
        raise UnreadableReplyError("there is no reply of the judge")
    text = strip_reasoning(reply)
    if len(text) > _MAX_LENGTH:
        raise UnreadableReplyError("the judge's reply is too long for a list of names")
    text = (
        _ESCAPED.sub(r"\1", _CHECKBOX.sub(r"\1", _FENCE.sub("", text))).translate(_QUOTES).strip()
    )
    # Shortened, because patterns scan a run of blanks repeatedly.
    text = re.sub(r"\n{2,}", "\n", re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text)))
    for parse in (
        _parse_json_names,
        _parse_bracketed_names,
        _parse_listed_names,
        _parse_plain_names,
    ):
        names = parse(text)
        if names is not None:
            return names
    raise UnreadableReplyError("the judge's reply does not contain a list of names")


_MAX_LENGTH = 50_000  # characters: no judge is asked for so many
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$|```(?:json|python)?", re.MULTILINE)
_CHECKBOX = re.compile(r"^([ \t]{0,8}[-*][ \t])\[[ xX]\]", re.MULTILINE)
_ESCAPED = re.compile(r"\\([\[\]_*])")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "＂": '"', "‘": "'",
                         "’": "'", "`": "'", "，": ",", "、": ",", "；": ";", "［": "[", "］": "]",
                         "【": "[", "】": "]", "（": "(", "）": ")", "：": ":"})  # fmt: skip
_NAME_KEYS = ("object", "name", "label", "item", "noun")
#: One name between brackets; an apostrophe ends it if a comma or the list's end follows.
_QUOTED = re.compile(r"""\s*(?:"([^"\n]{0,80})"|'((?:[^'\n]|'(?!\s*[,;\])}])){0,80})')\s*""")
_BARE = re.compile(r"""\s*([^\W\d_][^"\n,;\[\](){}:]{0,60})""")
_MAX_OPENINGS = 200  # brackets that are tried
_BULLET = re.compile(r"\s{0,8}(?:[-*•‣◦–+]|\(?\d{1,3}[.):,]|[a-z][.)])\s*(?P<name>\S.*)")
#: Words before a list: "The visible objects are:".
_LEAD = re.compile(
    r"[^\n:]{0,100}\b(?:objects?|list|items?|nouns|answer|output|result|objekte?|liste|gegenstände|"
    r"objets?|objetos?|lista|respuesta|réponse|antwort)\b[^\n:]{0,60}:|"
    r"[^\n:]{0,40}(?:物体|对象|列表|答案)[^\n:]{0,20}:",
    re.IGNORECASE,
)
_NO_OBJECTS = re.compile(
    r"\W*(?:none|nothing|empty(?:\s+list)?|(?:there\s+are\s+)?no\s+(?:visible\s+|such\s+)?objects?"
    r"(?:\s+(?:are\s+)?(?:named|mentioned|visible|listed|found))?(?:\s+in\s+the\s+(?:answer|image|text))?|"
    r"keine?(?:\s+(?:sichtbaren\s+)?objekte?)?|aucun(?:\s+objet(?:\s+visible)?)?|"
    r"ning[uú]n[oa]?(?:\s+objeto(?:\s+visible)?)?|无|没有(?:可见)?(?:的)?(?:物体|对象)?)\W*",
    re.IGNORECASE,
)
_PROSE = re.compile(
    r"\b(?:i|i'm|is|are|was|were|there|sorry|cannot|can't|not|no|yes|answer|image|the|this|that|it|ok|"
    r"okay|sure|however|but|please|list|none|n/a|unknown|error)\b",
    re.IGNORECASE,
)


def _parse_json_names(text: str) -> list[str] | None:
    """Return the names of a reply that is JSON: a list, or an object that holds one."""
    try:
        return _extract_names(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _extract_names(value: Any) -> list[str] | None:
    if isinstance(value, str):
        return _parse_json_names(value) if value.lstrip()[:1] in ("[", "{") else None
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        return _extract_names(lists[0]) if len(lists) == 1 else None
    if not isinstance(value, list):
        return None
    names = [_extract_name(entry) for entry in value]
    return [name for name in names if name] if None not in names else None


def _extract_name(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _NAME_KEYS if key in entry), None)
    return entry.strip() if isinstance(entry, str) else None


def _parse_bracketed_names(text: str) -> list[str] | None:
    """Return the names between brackets, if all brackets of names have the same."""
    lists: list[list[str]] = []
    end = 0
    for opening in itertools.islice(re.finditer(r"[\[{(]", text), _MAX_OPENINGS):
        if opening.start() < end:
            continue
        parsed = _parse_json_at(text, opening.start()) or _scan_list(text, opening.start())
        if parsed is not None:
            names, end = parsed
            lists.append(names)
    return lists[0] if lists and all(names == lists[0] for names in lists) else None


def _parse_json_at(text: str, start: int) -> tuple[list[str], int] | None:
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    names = _extract_names(value) if value != {} else None
    return None if names is None else (names, end)


def _scan_list(text: str, start: int) -> tuple[list[str], int] | None:
    """Return the names of a list that is not JSON, and its end."""
    closing = {"[": "]", "{": "}", "(": ")"}[text[start]]
    names, kinds, position = [], set(), start + 1
    while True:
        position += len(text[position : position + 80]) - len(
            text[position : position + 80].lstrip()
        )
        if text[position : position + 1] == closing:
            break
        name = _QUOTED.match(text, position) or _BARE.match(text, position)
        if name is None:
            return None
        kinds.add(name.re)
        names.append((name[1] or name[name.lastindex or 1] or "").strip())
        position = name.end()
        if text[position : position + 1] in (",", ";"):
            position += 1
        elif text[position : position + 1] != closing:
            return None
    if len(kinds) > 1 or (not names and closing != "]" and text != "()"):
        return None
    # Unquoted words are a list in square brackets; a single one is more likely a remark.
    if _BARE in kinds and (
        closing != "]" or (len(names) == 1 and len(text) > position + 1 - start)
    ):
        return None
    if _BARE in kinds and any(_NO_OBJECTS.fullmatch(name) or name == "null" for name in names):
        return None
    return [name for name in names if name], position + 1


def _parse_listed_names(text: str) -> list[str] | None:
    """Return the names of lines with bullets or numbers."""
    lines = [match["name"] for line in text.splitlines() if (match := _BULLET.fullmatch(line))]
    if not lines or any(_LEAD.match(line) for line in lines):
        return None
    return _clean_names([piece for line in lines for piece in line.split(",")])


def _parse_plain_names(text: str) -> list[str] | None:
    """Return names separated by commas or lines; none if a reply says that there are none."""
    if re.search(r"[\[\]{}]", text):
        return None  # a list that was cut, or several
    lead_in = _LEAD.match(text)
    remaining = text[lead_in.end() :] if lead_in is not None else text
    if _NO_OBJECTS.fullmatch(remaining):
        return []
    remaining = re.sub(r"[,\s]\s*(?:and|und|et|y)\s+(?=[^,\n]{1,40}\W*$)", ", ", remaining)
    pieces = [piece for piece in re.split(r"[,;\n]", remaining) if piece.strip()]
    return _clean_names(pieces) if lead_in is not None or len(pieces) > 1 else None


def _clean_names(pieces: Sequence[str]) -> list[str] | None:
    """Return names without the characters around them; None if one is not a name."""
    names = []
    for piece in pieces:
        name = re.sub(r"^\W*\d{1,3}[.):]\s*", "", piece)
        name = re.split(r"[:(–—=]|\s-\s", name)[0].strip(" \t\"'*_`.!?-[]{}")
        if not name or len(name.split()) > 5 or not name[0].isalpha() or _PROSE.search(name):
            return None
        names.append(name)
    return names or None
