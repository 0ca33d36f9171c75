"""Read yes or no in a model's own answer under protocol `corrected`.

The rules, each used only if those before it find nothing:

1. what the answer marks as its answer (a tag, a box, JSON);
2. the text after a word for it ("Answer: no", "the answer is yes"), the last;
3. a verdict at the start or at the end. If both are there and differ: the end's if it takes the
   start back ("Yes... wait, no.") or concludes ("So no."); neither if that is all ("Yes. No.");
   else the start's;
4. what is said to be there or not, to be seen or not ("I cannot see a dog" is a no).

An answer that leaves it open ("I cannot tell", "yes or no", a description) has no verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from chip_core.evaluation.text import verdict_words as words
from chip_core.evaluation.text.answers import marked, plain, said

Verdict = Literal["yes", "no"]
_PLAINEST = re.compile(r"[\s\"'*_.(\[]{0,9}(yes|no)[\s\"'*_.!)\],]{0,9}", re.IGNORECASE)  # most are
#: The end of a sentence, but not the point of a number.
_SENTENCE = re.compile(r"(?:[^.!?。\n]|\.(?=\d))+[.!?。]*[\"')\]]*")
_EDGES = " \t\"'“”„«»‹›‘’()[]{}<>!?,;:.。|/\\=-–—~"
_CLAUSE = re.compile(r"\s*(?:[,;:()\[\]|]|\s[-–—=]+>?\s|[–—→⇒]|=+>|->)\s*")
#: "Yes... no, that is a fox": the second counts.
_HESITANT = re.compile(
    r"\W*(?:yes|no)\s*(?:\.{2,}|…|[—–-])\s*(?:well,? |or |hmm+,? )?(?=(?:yes|no)\b)", re.IGNORECASE
)
#: An option's letter or number before its verdict: `A. Yes`.
_OPTION = re.compile(r"(?:option )?\(?[a-d1-2][).:]\s+(?=\w)", re.IGNORECASE)
_SIGNS = re.compile(r"^[\W\d]+(?=\w)|(?<=\w)[\W]+$")  # emoji, numbers of a list
_ENGLISH = re.compile(r"\b(?:the|there|is|are|see|can|and)\b", re.IGNORECASE)
#: Words for a thing that was named before.
_MEANT = re.compile(r"\b(?:ones?|its?|them|they|some|many|several|both|such|this|that)\b", re.I)
_REACH = 300  # characters after a label that may be the answer
_LONGEST_CLAUSE = 80  # characters of a clause that is a verdict as a whole
_SAID = 3  # words of a sentence that states something about what it names
_SHORT = 10  # words of a caption that may be an answer


def read_verdict(answer: str, thing: str | None = None) -> Verdict | None:
    """Return the verdict of an answer to a yes/no question, or None.

    Args:
        answer: the answer.
        thing: the object of the question, if it is known: "It is a vase, not a bottle." is decided
            by it alone.
    """
    plainest = _PLAINEST.fullmatch(answer)
    if plainest is not None:
        return "yes" if plainest[1].lower() == "yes" else "no"
    text = said(answer)
    for inner in marked(text):
        found = _read(plain(inner), thing)
        if found is not None:
            return found
    return _read(plain(text), thing)


def _read(text: str, thing: str | None) -> Verdict | None:
    hesitant = _HESITANT.match(text)
    if hesitant is not None:
        text = text[hesitant.end() :]
    text = words.CHOICE.sub(" ", re.sub(r"\.{2,}|…", ", ", text))
    labelled = _labelled(text)
    if labelled is not None:
        return labelled
    sentences = _sentences(text)
    if not sentences:
        return _clause(text.strip(_EDGES), loose=False)  # "No?"
    first, last = sentences[0], sentences[-1]
    start = _verdict(first)
    if start is not None and (revised := _taken_back(text)) is not None:
        return revised
    if len(sentences) == 1:
        return start or _stated(sentences, thing)
    end = _verdict(last)
    if start is not None and end not in (None, start):
        if words.CONCLUDES.match(last):
            return end
        return None if _alone(first) and _alone(last) else start
    if start is not None or end is not None:
        return start or end
    between = {found for each in sentences[1:-1] if (found := _verdict(each)) is not None}
    return between.pop() if len(between) == 1 else _stated(sentences, thing)


def _sentences(text: str) -> list[str]:
    """Return the sentences that are not questions, without the marks around them."""
    found = []
    for match in _SENTENCE.finditer(text):
        sentence = match[0].strip()
        if "?" not in sentence[-3:]:
            found.append(sentence.strip(_EDGES))
    return [sentence for sentence in found if sentence]


def _labelled(text: str) -> Verdict | None:
    """Return the last verdict after a word for an answer."""
    verdict = None
    for label in words.LABEL.finditer(text):
        rest = _sentences(text[label.end() : label.end() + _REACH])
        if rest and not re.match(r"\s*\?", text[label.end() :]):
            verdict = _verdict(rest[0]) or verdict
    return verdict


def _verdict(sentence: str) -> Verdict | None:
    """Return the verdict with which a sentence begins, or which one of its clauses is."""
    option = _OPTION.match(sentence)
    sentence = sentence if option is None else sentence[option.end() :]
    if words.ZH.search(sentence):
        return _verdict_in_chinese(sentence)
    clauses = [clause.strip(_EDGES) for clause in _CLAUSE.split(sentence)]
    clauses = [clause for clause in clauses if clause]
    if not clauses:
        return None
    lead = words.LEAD.match(sentence)
    rest = sentence if lead is None else sentence[lead.end() :].strip(_EDGES)
    if not words.OPEN.match(clauses[0]) and not words.OPEN.match(rest):
        behind = _CLAUSE.split(rest)[0].strip(_EDGES)
        whole = _clause(clauses[0], loose=True) or (_clause(behind, loose=True) if behind else None)
        if whole is not None:
            return whole
        denies_nothing = words.NO_DENIAL.match(rest)
        if denies_nothing is not None:
            rest = rest[denies_nothing.end() :].strip(_EDGES)
        if words.FIRST_YES.match(rest):
            return "yes"
        if words.FIRST_NO.match(rest) and not words.FURTHER.match(rest):
            return "no"
    for clause in clauses[1:]:
        lead = words.LEAD.match(clause)
        found = _clause(clause, loose=False) or (
            None if lead is None else _clause(clause[lead.end() :].strip(_EDGES), loose=False)
        )
        if found is not None:
            return found
    return None


def _clause(clause: str, *, loose: bool) -> Verdict | None:
    """Return the verdict of a clause as a whole."""
    clause = _SIGNS.sub("", clause) or clause
    if len(clause) > _LONGEST_CLAUSE:
        return None
    if words.STRICT_YES.fullmatch(clause) or (loose and words.LOOSE_YES.fullmatch(clause)):
        return "yes"
    if words.STRICT_NO.fullmatch(clause) or (loose and words.LOOSE_NO.fullmatch(clause)):
        return "no"
    return None


def _verdict_in_chinese(sentence: str) -> Verdict | None:
    clauses = [clause for clause in re.split(r"[,;:、\s]", sentence) if clause]
    if words.OPEN.search(clauses[0]):
        return None
    found: list[Verdict] = []
    for place, clause in enumerate(clauses):
        contrary = place > 0 and words.BUT.match(clause)
        bare = clause[lead.end() :] if (lead := words.ZH_LEAD.match(clause)) else clause
        if words.OPEN.search(bare):
            continue
        if words.ZH_NO.match(bare) or words.STRICT_NO.fullmatch(bare):
            found.append("no")
        elif words.ZH_YES.match(bare) or words.STRICT_YES.fullmatch(bare):
            found.append("yes")
        if contrary and found[-1:] == ["no"] and clauses[0][:1] not in "是对":
            return "no"
    return found[0] if found else None


def _alone(sentence: str) -> bool:
    """Whether a sentence is a verdict and no more."""
    return _clause(sentence, loose=True) is not None


def _taken_back(text: str) -> Verdict | None:
    """Return the verdict after the last word that takes one back."""
    found = None
    for mark in words.TAKEN_BACK.finditer(text):
        rest = _sentences(text[mark.end() : mark.end() + _REACH])[:2]
        by_sight = words.TAKEN_BACK_BY_SIGHT.fullmatch(mark[0]) is not None
        for sentence in rest:
            revised = _verdict(sentence) or (_sight(sentence) if by_sight else None)
            if revised is not None:
                found = revised
                break
    return found


def _stated(sentences: Sequence[str], thing: str | None) -> Verdict | None:
    """Return what is said of the thing in question; else whether anything is said to be there."""
    for sentence in sentences if thing else ():
        found = None if words.OPEN.search(sentence) else _said_of(sentence, thing or "")
        if found is not None:
            return found
    seen = _seen(sentences)
    if thing and seen == "yes" and not any(_may_be_of(sentence) for sentence in sentences):
        return None  # other things are seen: a description
    return seen or (None if thing else _shown(sentences))


def _may_be_of(sentence: str) -> bool:
    """Whether a sentence that does not name the thing in English may still be about it."""
    return not _ENGLISH.search(sentence) or _MEANT.search(sentence) is not None


def _said_of(sentence: str, thing: str) -> Verdict | None:
    """Return whether a sentence says that a thing is there; None if it does not name it."""
    name = rf"\b(?:{words.ALSO.get(thing.lower(), '(?!)')}|{re.escape(thing)}(?:e?s)?)\b"
    sentence = words.NO_DENIAL.sub(" ", sentence)
    if re.search(rf"{words.NAMES_NOT}(?:[\w-]+ ){{0,2}}{name}", sentence, re.IGNORECASE):
        return "no"
    for part in words.BUT.split(sentence):
        named = re.search(name, part, re.IGNORECASE)
        if named is None:
            continue
        behind = words.AND_NO.sub(" ", words.ASIDE.sub("", f"a{part[named.end() :]}"))
        if words.DENIED.search(part[: named.start()]) or words.DENIED.search(behind):
            return "no"
        none_found = words.BUT_NONE.search(sentence)
        return None if len(sentence.split()) < _SAID else "no" if none_found else "yes"
    return None


def _seen(sentences: Sequence[str]) -> Verdict | None:
    """Return whether something is said to be there; a negation has precedence."""
    concluding = [sentence for sentence in sentences if words.CONCLUDES.match(sentence)]
    for group in (concluding[-1:], sentences):
        sights = [_sight(sentence) for sentence in group]
        plainly = [
            sight
            for sight, sentence in zip(sights, group, strict=True)
            if sight == "no" and (words.SEEN.search(sentence) or sights[0] != "yes")
        ]
        if plainly:
            return "no"
        if "yes" in sights:
            return "yes"
    return None


def _shown(sentences: Sequence[str]) -> Verdict | None:
    """Return yes if a short caption is the whole answer."""
    only = sentences[0]
    short = len(sentences) == 1 and len(only.split()) <= _SHORT
    return "yes" if short and words.SHOWS.search(only) and not words.OPEN.search(only) else None


def _sight(sentence: str) -> Verdict | None:
    """Return whether a sentence says that something is there, or denies something."""
    if words.OPEN.search(sentence):
        parts = words.BUT.split(sentence, maxsplit=1)
        if len(parts) < 2 or words.OPEN.search(parts[1]):
            return None
        sentence = parts[1].strip(_EDGES)
        stated = _verdict(sentence)
        if stated is not None:
            return stated
    if words.ZH.search(sentence):
        if words.ZH_DENIED.search(sentence):
            return "no"
        return "yes" if words.ZH_SEEN.search(sentence) else None
    main = words.ASIDE.sub("", words.NO_DENIAL.sub(" ", sentence))
    if words.DENIED.search(words.FURTHER.sub(" ", main)):
        return "no"
    return "yes" if words.SEEN.search(sentence) else None
