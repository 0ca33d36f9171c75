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

from chip_core.evaluation.text import verdict_patterns as patterns
from chip_core.evaluation.text.answers import find_marked_answers, normalize_answer, strip_markup

Verdict = Literal["yes", "no"]
#: Most answers are one.
_BARE_VERDICT = re.compile(r"[\s\"'*_.(\[]{0,9}(yes|no)[\s\"'*_.!)\],]{0,9}", re.IGNORECASE)
#: The end of a sentence, but not the point of a number.
_SENTENCE = re.compile(r"(?:[^.!?。\n]|\.(?=\d))+[.!?。]*[\"')\]]*")
_EDGE_CHARACTERS = " \t\"'“”„«»‹›‘’()[]{}<>!?,;:.。|/\\=-–—~"
_CLAUSE = re.compile(r"\s*(?:[,;:()\[\]|]|\s[-–—=]+>?\s|[–—→⇒]|=+>|->)\s*")
#: "Yes... no, that is a fox": the second counts.
_HESITATION = re.compile(
    r"\W*(?:yes|no)\s*(?:\.{2,}|…|[—–-])\s*(?:well,? |or |hmm+,? )?(?=(?:yes|no)\b)", re.IGNORECASE
)
#: An option's letter or number before its verdict: `A. Yes`.
_OPTION = re.compile(r"(?:option )?\(?[a-d1-2][).:]\s+(?=\w)", re.IGNORECASE)
_SURROUNDING_SIGNS = re.compile(r"^[\W\d]+(?=\w)|(?<=\w)[\W]+$")  # emoji, numbers of a list
_ENGLISH = re.compile(r"\b(?:the|there|is|are|see|can|and)\b", re.IGNORECASE)
#: Words for a thing that was named before.
_REFERENCE = re.compile(r"\b(?:ones?|its?|them|they|some|many|several|both|such|this|that)\b", re.I)
_MAX_LABEL_DISTANCE = 300  # characters after a label that may be the answer
_MAX_CLAUSE_LENGTH = 80  # characters of a clause that is a verdict as a whole
_MIN_STATEMENT_WORDS = 3  # words of a sentence that states something about what it names
_MAX_CAPTION_WORDS = 10  # words of a caption that may be an answer


def read_verdict(answer: str, object_name: str | None = None) -> Verdict | None:
    """Return the verdict of an answer to a yes/no question, or None.

    Args:
        answer: the answer.
        object_name: the object of the question, if it is known: "It is a vase, not a bottle." is
            decided by it alone.
    """
    bare_verdict = _BARE_VERDICT.fullmatch(answer)
    if bare_verdict is not None:
        return "yes" if bare_verdict[1].lower() == "yes" else "no"
    text = normalize_answer(answer)
    for marked_text in find_marked_answers(text):
        verdict = _read_text(strip_markup(marked_text), object_name)
        if verdict is not None:
            return verdict
    return _read_text(strip_markup(text), object_name)


def _read_text(text: str, object_name: str | None) -> Verdict | None:
    hesitation = _HESITATION.match(text)
    if hesitation is not None:
        text = text[hesitation.end() :]
    text = patterns.YES_OR_NO.sub(" ", re.sub(r"\.{2,}|…", ", ", text))
    labelled = _find_labelled(text)
    if labelled is not None:
        return labelled
    sentences = _split_sentences(text)
    if not sentences:
        return _read_clause(text.strip(_EDGE_CHARACTERS), loose=False)  # "No?"
    first, last = sentences[0], sentences[-1]
    start = _read_sentence(first)
    if start is not None and (revised := _find_revision(text)) is not None:
        return revised
    if len(sentences) == 1:
        return start or _read_statements(sentences, object_name)
    end = _read_sentence(last)
    if start is not None and end not in (None, start):
        if patterns.CONCLUSION.match(last):
            return end
        return None if _is_bare_verdict(first) and _is_bare_verdict(last) else start
    if start is not None or end is not None:
        return start or end
    middle_verdicts = {
        verdict for sentence in sentences[1:-1] if (verdict := _read_sentence(sentence)) is not None
    }
    return (
        middle_verdicts.pop()
        if len(middle_verdicts) == 1
        else _read_statements(sentences, object_name)
    )


def _split_sentences(text: str) -> list[str]:
    """Return the sentences that are not questions, without the marks around them."""
    sentences = []
    for match in _SENTENCE.finditer(text):
        sentence = match[0].strip()
        if "?" not in sentence[-3:]:
            sentences.append(sentence.strip(_EDGE_CHARACTERS))
    return [sentence for sentence in sentences if sentence]


def _find_labelled(text: str) -> Verdict | None:
    """Return the last verdict after a word for an answer."""
    verdict = None
    for label in patterns.ANSWER_LABEL.finditer(text):
        following = _split_sentences(text[label.end() : label.end() + _MAX_LABEL_DISTANCE])
        if following and not re.match(r"\s*\?", text[label.end() :]):
            verdict = _read_sentence(following[0]) or verdict
    return verdict


def _read_sentence(sentence: str) -> Verdict | None:
    """Return the verdict with which a sentence begins, or which one of its clauses is."""
    option = _OPTION.match(sentence)
    sentence = sentence if option is None else sentence[option.end() :]
    if patterns.CHINESE.search(sentence):
        return _read_chinese_sentence(sentence)
    clauses = [clause.strip(_EDGE_CHARACTERS) for clause in _CLAUSE.split(sentence)]
    clauses = [clause for clause in clauses if clause]
    if not clauses:
        return None
    lead = patterns.LEAD_IN.match(sentence)
    remaining = sentence if lead is None else sentence[lead.end() :].strip(_EDGE_CHARACTERS)
    if not patterns.UNDECIDED.match(clauses[0]) and not patterns.UNDECIDED.match(remaining):
        first_clause = _CLAUSE.split(remaining)[0].strip(_EDGE_CHARACTERS)
        first_verdict = _read_clause(clauses[0], loose=True) or (
            _read_clause(first_clause, loose=True) if first_clause else None
        )
        if first_verdict is not None:
            return first_verdict
        false_negation = patterns.FALSE_NEGATION.match(remaining)
        if false_negation is not None:
            remaining = remaining[false_negation.end() :].strip(_EDGE_CHARACTERS)
        if patterns.LEADING_YES.match(remaining):
            return "yes"
        if patterns.LEADING_NO.match(remaining) and not patterns.OTHER_THINGS.match(remaining):
            return "no"
    for clause in clauses[1:]:
        lead = patterns.LEAD_IN.match(clause)
        verdict = _read_clause(clause, loose=False) or (
            None
            if lead is None
            else _read_clause(clause[lead.end() :].strip(_EDGE_CHARACTERS), loose=False)
        )
        if verdict is not None:
            return verdict
    return None


def _read_clause(clause: str, *, loose: bool) -> Verdict | None:
    """Return the verdict of a clause as a whole."""
    clause = _SURROUNDING_SIGNS.sub("", clause) or clause
    if len(clause) > _MAX_CLAUSE_LENGTH:
        return None
    if patterns.STRICT_YES.fullmatch(clause) or (loose and patterns.LOOSE_YES.fullmatch(clause)):
        return "yes"
    if patterns.STRICT_NO.fullmatch(clause) or (loose and patterns.LOOSE_NO.fullmatch(clause)):
        return "no"
    return None


def _read_chinese_sentence(sentence: str) -> Verdict | None:
    clauses = [clause for clause in re.split(r"[,;:、\s]", sentence) if clause]
    if patterns.UNDECIDED.search(clauses[0]):
        return None
    verdicts: list[Verdict] = []
    for index, clause in enumerate(clauses):
        is_contrast = index > 0 and patterns.CONTRAST.match(clause)
        verdict_part = (
            clause[lead_in.end() :]
            if (lead_in := patterns.CHINESE_LEAD_IN.match(clause))
            else clause
        )
        if patterns.UNDECIDED.search(verdict_part):
            continue
        if patterns.CHINESE_NO.match(verdict_part) or patterns.STRICT_NO.fullmatch(verdict_part):
            verdicts.append("no")
        elif patterns.CHINESE_YES.match(verdict_part) or patterns.STRICT_YES.fullmatch(
            verdict_part
        ):
            verdicts.append("yes")
        if is_contrast and verdicts[-1:] == ["no"] and clauses[0][:1] not in "是对":
            return "no"
    return verdicts[0] if verdicts else None


def _is_bare_verdict(sentence: str) -> bool:
    """Whether a sentence is a verdict and no more."""
    return _read_clause(sentence, loose=True) is not None


def _find_revision(text: str) -> Verdict | None:
    """Return the verdict after the last word that takes one back."""
    verdict = None
    for match in patterns.REVISION.finditer(text):
        following = _split_sentences(text[match.end() : match.end() + _MAX_LABEL_DISTANCE])[:2]
        by_sight = patterns.REVISION_BY_SIGHT.fullmatch(match[0]) is not None
        for sentence in following:
            revised = _read_sentence(sentence) or (_read_sight(sentence) if by_sight else None)
            if revised is not None:
                verdict = revised
                break
    return verdict


def _read_statements(sentences: Sequence[str], object_name: str | None) -> Verdict | None:
    """Return what is said of the thing in question; else whether anything is said to be there."""
    for sentence in sentences if object_name else ():
        verdict = (
            None
            if patterns.UNDECIDED.search(sentence)
            else _read_statement_about(sentence, object_name or "")
        )
        if verdict is not None:
            return verdict
    presence = _read_presence(sentences)
    if (
        object_name
        and presence == "yes"
        and not any(_may_refer_to(sentence) for sentence in sentences)
    ):
        return None  # other things are seen: a description
    return presence or (None if object_name else _read_caption(sentences))


def _may_refer_to(sentence: str) -> bool:
    """Whether a sentence that does not name the thing in English may still be about it."""
    return not _ENGLISH.search(sentence) or _REFERENCE.search(sentence) is not None


def _read_statement_about(sentence: str, object_name: str) -> Verdict | None:
    """Return whether a sentence says that a thing is there; None if it does not name it."""
    synonyms = patterns.SYNONYMS.get(object_name.lower(), "(?!)")
    name = rf"\b(?:{synonyms}|{re.escape(object_name)}(?:e?s)?)\b"
    sentence = patterns.FALSE_NEGATION.sub(" ", sentence)
    if re.search(rf"{patterns.DENIAL_PREFIX}(?:[\w-]+ ){{0,2}}{name}", sentence, re.IGNORECASE):
        return "no"
    for clause in patterns.CONTRAST.split(sentence):
        match = re.search(name, clause, re.IGNORECASE)
        if match is None:
            continue
        following = patterns.OTHER_NEGATION.sub(
            " ", patterns.ASIDE.sub("", f"a{clause[match.end() :]}")
        )
        if patterns.NEGATION.search(clause[: match.start()]) or patterns.NEGATION.search(following):
            return "no"
        none_found = patterns.NONE_FOUND.search(sentence)
        return (
            None if len(sentence.split()) < _MIN_STATEMENT_WORDS else "no" if none_found else "yes"
        )
    return None


def _read_presence(sentences: Sequence[str]) -> Verdict | None:
    """Return whether something is said to be there; a negation has precedence."""
    concluding = [sentence for sentence in sentences if patterns.CONCLUSION.match(sentence)]
    for group in (concluding[-1:], sentences):
        sights = [_read_sight(sentence) for sentence in group]
        denials = [
            sight
            for sight, sentence in zip(sights, group, strict=True)
            if sight == "no" and (patterns.PRESENCE.search(sentence) or sights[0] != "yes")
        ]
        if denials:
            return "no"
        if "yes" in sights:
            return "yes"
    return None


def _read_caption(sentences: Sequence[str]) -> Verdict | None:
    """Return yes if a short caption is the whole answer."""
    caption = sentences[0]
    is_short = len(sentences) == 1 and len(caption.split()) <= _MAX_CAPTION_WORDS
    return (
        "yes"
        if is_short and patterns.CAPTION.search(caption) and not patterns.UNDECIDED.search(caption)
        else None
    )


def _read_sight(sentence: str) -> Verdict | None:
    """Return whether a sentence says that something is there, or denies something."""
    if patterns.UNDECIDED.search(sentence):
        parts = patterns.CONTRAST.split(sentence, maxsplit=1)
        if len(parts) < 2 or patterns.UNDECIDED.search(parts[1]):
            return None
        sentence = parts[1].strip(_EDGE_CHARACTERS)
        verdict = _read_sentence(sentence)
        if verdict is not None:
            return verdict
    if patterns.CHINESE.search(sentence):
        if patterns.CHINESE_NEGATION.search(sentence):
            return "no"
        return "yes" if patterns.CHINESE_PRESENCE.search(sentence) else None
    main_clause = patterns.ASIDE.sub("", patterns.FALSE_NEGATION.sub(" ", sentence))
    if patterns.NEGATION.search(patterns.OTHER_THINGS.sub(" ", main_clause)):
        return "no"
    return "yes" if patterns.PRESENCE.search(sentence) else None
