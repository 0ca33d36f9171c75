"""Strip reasoning and markup from a reply."""

from __future__ import annotations

import re
import unicodedata

#: Names of elements that hold reasoning: `<think>…</think>`, `<Reasoning>…</Reasoning>`.
_REASONING_TAGS = (
    r"(?:seed:)?think(?:ing)?|ant_?thinking|thoughts?|reason(?:ing)?|reflection|rationale|"
    r"scratch_?pad|analysis|chain_of_thought|cot|inner_monologue"
)
_OPENING = (
    rf"(?:<|&lt;)\s{{0,4}}\|?(?:{_REASONING_TAGS})\|?(?:\s[^<>]{{0,80}})?(?:>|&gt;)|\[think\]|◁think▷|"
    r"<\|begin_of_thought\|>|<\|start_thinking\|>|<unused94>|<\|channel>\s{0,4}thought|"
    r"(?:<\|start\|>assistant\s{0,4})?<\|channel\|>\s{0,4}(?:analysis|commentary)|"
    r"\A\s*Thinking\.\.\.\s*\n(?=(?s:.*)^\.\.\.done thinking)|"
    r"^```(?:think(?:ing)?|reasoning)[ \t]*$"
)
_CLOSING = (
    rf"(?:<|&lt;)\s{{0,4}}\|?/\s{{0,4}}(?:{_REASONING_TAGS})\s{{0,4}}\|?(?:>|&gt;)|\[/think\]|◁/think▷|"
    r"<\|end_of_thought\|>|<\|end_thinking\|>|<unused95>|<channel\|>|"
    r"(?:<\|start\|>assistant\s{0,4})?<\|channel\|>\s{0,4}final(?:\s{0,4}<\|message\|>)?|"
    r"^\.\.\.done thinking\.?"
)
_REASONING_MARK = re.compile(
    rf"(?P<opens>{_OPENING})|(?P<closes>{_CLOSING})", re.IGNORECASE | re.MULTILINE
)
#: Opening and closing fences look the same: one closes a fence if one is open.
_FENCE = re.compile(r"^```[ \t]*$", re.MULTILINE)
#: Before the conclusion of models that write SUMMARY, CAPTION, REASONING, CONCLUSION.
_OTHER_SECTIONS = re.compile(r"<(SUMMARY|CAPTION)>[^<]*</\1>")
#: A marked answer after reasoning that was never closed.
_CLOSING_ANSWER = re.compile(
    r"<(answer|final_answer|conclusion)>(?:(?!</?\1>).){1,4000}</\1>\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
#: The marks of harmony if decoding has removed its special tokens.
_BARE_CHANNELS = re.compile(r"\A\s*analysis(?=\S).*assistantfinal", re.DOTALL)
_END_OF_TURN = re.compile(r"(?:<\|[a-zA-Z_]{1,30}\|>|</s>|<end_of_turn>|<eos>)\s?\s?\Z")


def strip_reasoning(text: str) -> str:
    """Return a reply without its reasoning and end-of-turn marks, or unchanged if it has none.

    Reasoning that is cut off has no answer after it: what remains is the text before it, mostly
    nothing. All text before a closing mark without an opening one is reasoning, too: chat templates
    write the opening mark themselves.
    """
    end = len(text)
    while (last := _END_OF_TURN.search(text, max(0, end - 64), end)) is not None:
        end = last.start()
    text = text[:end].lstrip("\ufeff")
    channels = _BARE_CHANNELS.match(text)
    if channels is not None:
        return text[channels.end() :].strip()
    parts: list[str] = []
    start, end = 0, 0  # of the text kept next; of the last mark
    opened: str | None = None
    while (mark := _REASONING_MARK.search(text, end)) is not None:
        end = max(mark.end(), end + 1)
        if mark["closes"] is not None:
            opened, start = None, mark.end()
        elif opened is None:
            parts.append(text[start : mark.start()])
            opened = mark["opens"]
            if opened.startswith("```") and (fence := _FENCE.search(text, end)) is not None:
                opened, start, end = None, fence.end(), fence.end()
    if end == 0:
        return text
    if opened is None:
        parts.append(text[start:])
    elif (answer := _CLOSING_ANSWER.search(text, end)) is not None:
        parts.append(answer[0])
    remaining = "".join(parts)
    if "<CONCLUSION>" in remaining:
        remaining = _OTHER_SECTIONS.sub("", remaining)
    return remaining.strip()


def normalize_reply(text: str) -> str:
    """Return a reply in lower case, without its reasoning and markup.

    Marks of Markdown, HTML, LaTeX and quotes are removed; so is struck-out text; full-width letters
    and digits become plain ones, and a fraction of one letter its decimals (4½ is 4.5). An element
    with a name reads as a label: `<rating>5</rating>` is `rating: 5`.
    """
    text = strip_reasoning(text)
    text = _FRACTIONS.sub(lambda match: f"{unicodedata.numeric(match[0]):.3g}"[1:], text)
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).lower()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text.strip()


_FRACTIONS = re.compile("[¼-¾⅐-⅞]")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\ufe0e\ufe0f\u20e3]")
#: Applied in this order.
_REPLACEMENTS = tuple(
    (re.compile(pattern, re.MULTILINE), instead)
    for pattern, instead in (
        (r"^[ \t]*(?:```|~~~)\w*[ \t]*$", ""),
        (r"~~[^~\n]{0,400}~~", " "),
        (r"\\(?:boxed|text(?:bf|it|rm)?|mathbf|mathrm|fbox)[ \t]{0,4}\{([^{}]{0,200})\}", r"\1"),
        (r"\\(?:boxed|text(?:bf|it|rm)?|mathbf|mathrm|fbox)[ \t]{0,4}\{([^{}]{0,200})\}", r"\1"),
        (r"\\[()\[\]n]|\$", " "),
        (r"<br[ \t]{0,4}/?>", "\n"),
        (r"<([a-z][a-z _-]{0,30})>", r"\n\1: "),
        (r"</?[a-z][^<>]{0,80}>", "\n"),
        ("[‘’ʼ´]", "'"),
        ("[【「『]", "["),
        ("[】」』]", "]"),
        ("[*`\"“”„«»‹›]|^[ \\t]*[#>]+", ""),
        (r"(?<![^\W_])'|'(?![^\W_])", ""),
        ("_", " "),
        # Last: readers' patterns scan a run of blanks repeatedly.
        (r"[^\S\n]+", " "),
        (r" ?\n ?", "\n"),
        (r"\n{3,}", "\n\n"),
    )
)  # fmt: skip
