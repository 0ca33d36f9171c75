"""What Object HalBench's judge is asked, and what its replies say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from chip_core.evaluation.scorers.asking import published_template
from chip_core.evaluation.scorers.base import JudgeRequest

#: Where the benchmark publishes its own prompt.
SCRIPT, VARIABLE = "eval_gpt_obj_halbench.py", "prompt_template"

#: In place of the published prompt, by the same rules.
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


def prompt_of(data: Path) -> str:
    """Return the published prompt where the benchmark's folder holds its script, else ours."""
    return published_template(data, [SCRIPT], VARIABLE) or PROMPT


def request(prompt: str, item: str, question: str, answer: str) -> JudgeRequest:
    """Return what the judge is asked about an answer, as the official script asks it."""
    text = prompt.replace("{question}", question).replace("{answer}", answer)
    return JudgeRequest(
        item=item,
        messages=({"role": "system", "content": text},),
        temperature=0.0,
        max_tokens=512,
    )


def read_reply_as_script(reply: str | None) -> list[Any]:
    """Return the entries of a reply as the official script reads it.

    Whatever JSON gives one entry after the other counts: of an object its keys, of a text its
    letters.

    Raises:
        UnreadableReplyError: the script could not go on.
    """
    if reply is None:
        raise UnreadableReplyError("there is no reply of the judge")
    tries = [reply]
    if "```json" in reply:
        tries.append(reply.replace("```json", "").replace("```", "").strip())
    elif '["' in reply:
        tries.append(reply.strip().split("\n")[-1])
    for text in tries:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, (list, dict, str)):
            raise UnreadableReplyError(f"the judge's reply {reply!r} is no list")
        return list(found)
    raise UnreadableReplyError("the judge's reply is no JSON")


def read_reply(reply: str | None) -> list[Any]:
    """Return the objects of a reply: its list of texts, whatever stands around it.

    Raises:
        UnreadableReplyError: there is no such list.
    """
    if reply is None:
        raise UnreadableReplyError("there is no reply of the judge")
    bare = re.sub(r"```(?:json)?", "", reply).strip()
    if bare == "()":  # as the prompt has it
        return []
    for text in (bare, *re.findall(r"\[.*?\]", bare, re.DOTALL)):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
    raise UnreadableReplyError("the judge's reply holds no list of names")
