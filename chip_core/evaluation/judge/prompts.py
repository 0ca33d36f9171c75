"""Call a judge, and build its prompts.

An official prompt is the benchmark's own text, so it is read from the benchmark's folder if the
published file is there; otherwise the judge gets our own wording of the same rules.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from chip_core.evaluation.scorer import JudgeRequest, Resources
from chip_core.evaluation.unreadable import Unreadable, unreadable
from chip_core.utils.errors import UserError

T = TypeVar("T")


def ask_judge(
    resources: Resources, requests: Sequence[JudgeRequest], benchmark: str
) -> dict[str, str | None]:
    """Return the judge's reply to each request by its item; None if the call failed.

    Raises:
        UserError: there is no judge.
    """
    if not requests:
        return {}
    if resources.judge is None:
        raise UserError(
            f"{benchmark}: the answers need a judge and there is none: name an endpoint, or "
            "existing replies with --judge-replies"
        )
    replies = resources.judge.ask(requests)
    return {request.item: reply for request, reply in zip(requests, replies, strict=True)}


@dataclass(frozen=True, kw_only=True)
class ReadReplies(Generic[T]):
    """What a judge's replies say."""

    values: Mapping[str, T]  # by item
    failed: int  # calls without a reply, or without one that could be read
    unreadable: tuple[Unreadable, ...]


def read_replies(
    replies: Mapping[str, str | None], parse: Callable[[str], T | None]
) -> ReadReplies[T]:
    """Read each reply; a failed call is read as an empty one.

    Args:
        replies: by item; None for a failed call.
        parse: returns what a reply says, or None.
    """
    read = {item: parse(reply or "") for item, reply in replies.items()}
    return ReadReplies(
        values={item: value for item, value in read.items() if value is not None},
        failed=sum(reply is None or read[item] is None for item, reply in replies.items()),
        unreadable=tuple(
            unreadable(item, reply, "reply")
            for item, reply in replies.items()
            if reply is not None and read[item] is None
        ),
    )


def make_user_message(content: str) -> tuple[Mapping[str, str], ...]:
    """Return a conversation of one message."""
    return ({"role": "user", "content": content},)


def read_published_template(
    data: Path, scripts: Sequence[str], variable: str = "template"
) -> str | None:
    """Return the text that a published script in `data` assigns to a variable, or None.

    The script is parsed, never run.

    Raises:
        UserError: a script exists and assigns no such text.
    """
    for script in scripts:
        if not (data / script).is_file():
            continue
        for node in ast.walk(_parse_script(data / script)):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
                and any(isinstance(name, ast.Name) and name.id == variable for name in node.targets)
            ):
                return node.value.value
        raise UserError(
            f"{data / script} gives no text to '{variable}': it differs from the published one"
        )
    return None


@dataclass(frozen=True)
class Placeholder:
    """A place in a prompt that is filled with a text."""

    name: str


#: A prompt consists of literal texts and placeholders.
PromptPart = str | Placeholder


def fill_prompt(parts: Sequence[PromptPart], texts: Mapping[Placeholder, str]) -> str:
    """Return a prompt with its placeholders filled.

    Raises:
        UserError: a placeholder has no text.
    """
    for part in parts:
        if isinstance(part, Placeholder) and part not in texts:
            raise UserError(
                f"the judge's published prompt asks for '{part.name}', which is unknown here"
            )
    return "".join(part if isinstance(part, str) else texts[part] for part in parts)


def read_published_prompt(data: Path, script: str, function: str) -> tuple[PromptPart, ...] | None:
    """Return the prompt that a function of a published script builds in `prompt`.

    It consists of the `prompt = '…'` and `prompt += …` in the function's body, in order: a text, a
    name, or an item of something by a text or a name. None if the script is not in `data`. It is
    parsed, never run.

    Raises:
        UserError: the script exists and has no such function.
    """
    if not (data / script).is_file():
        return None
    for node in ast.walk(_parse_script(data / script)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            parts = tuple(_iter_parts(node))
            if parts:
                return parts
    raise UserError(
        f"{data / script} has no prompt in '{function}': it differs from the published one"
    )


def _iter_parts(function: ast.FunctionDef) -> Iterator[PromptPart]:
    assignments = [
        node
        for node in ast.walk(function)
        if (isinstance(node, ast.Assign) and _is_prompt(node.targets[0]))
        or (isinstance(node, ast.AugAssign) and _is_prompt(node.target))
    ]
    for assignment in sorted(assignments, key=lambda node: node.lineno):
        value: ast.expr = assignment.value
        if isinstance(value, ast.Subscript):
            value = value.slice
            if isinstance(value, ast.Constant):
                yield Placeholder(str(value.value))
                continue
        if isinstance(value, ast.Constant):
            yield str(value.value)
        elif isinstance(value, ast.Name):
            yield Placeholder(value.id)


def _is_prompt(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "prompt"


def _parse_script(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        raise UserError(f"{path} is not valid Python") from None
