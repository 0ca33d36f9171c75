"""Ask a judge about HallusionBench's answers, and read its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chip_core.evaluation.benchmarks.hallusionbench.aggregation import (
    RIGHT,
    UNCLEAR,
    WRONG,
    JudgedAnswer,
    Question,
    needs_agreement,
)
from chip_core.evaluation.judge import prompts
from chip_core.evaluation.judge.prompts import Placeholder, PromptPart
from chip_core.evaluation.scorer import Answer, JudgeRequest, ProtocolName, Resources
from chip_core.evaluation.text.reply_verdicts import VerdictWord, Vocabulary
from chip_core.evaluation.unreadable import Unreadable
from chip_core.utils.errors import UserError

#: Where the official prompts are published: a script, its function, the names it fills in.
SCRIPT = "utils.py"
VERDICT_FUNCTION, SAME_FUNCTION = "evaluate_by_chatgpt", "check_same_by_chatgpt"
QUESTION, REFERENCE = Placeholder("question"), Placeholder("gt_answer_details")
ANSWER, ORIGINAL = Placeholder("output_entry"), Placeholder("response2")

VERDICT_PROMPT: tuple[PromptPart, ...] = (
    "You mark the answer to a question about an image that you do not see. Compare it with the "
    "reference. Reply with one word: correct if it does not contradict the reference, incorrect if "
    "it does, unclear if it does not commit itself.\n\nQuestion: ",
    QUESTION,
    "\nReference: ",
    REFERENCE,
    "\nAnswer: ",
    ANSWER,
    "\nYour word: ",
)
SAME_PROMPT: tuple[PromptPart, ...] = (
    "Two answers were given to two questions that you do not see. Taking both as true, do they "
    "contradict each other? Reply with one word: same if they do not, different if they do.\n\n"
    "First answer: ",
    ANSWER,
    "\nSecond answer: ",
    ORIGINAL,
    "\nYour word: ",
)


#: Nouns after "correct" that make it say nothing about the judged answer.
_ANSWER_NOUNS = (
    r"answer|response|value|option|one|choice|statement|number|reading|information|interpretation"
)
_VERDICTS = Vocabulary(
    words=(
        VerdictWord(
            WRONG,
            r"(?<![^\W_])(?:in-?correct|inkorrekt\w*|unrichtig\w*|incorrecte?s?|incorrect[oa]s?|"
            r"erróne[oa]s?|erroné|erronée)(?![^\W_])|错误",
            r"(?<![^\W_])(?:wrong|false|inaccurate|falsch\w*|faux|fausse|inexacte?|fals[oa]|"
            r"equivocad[oa])(?![^\W_])|错(?!误)",
            RIGHT,
        ),
        VerdictWord(
            UNCLEAR,
            r"(?<![^\W_])(?:unclear|ambiguous|undetermined|indeterminate|inconclusive|non-?committal|"
            r"unklar|uneindeutig|mehrdeutig|ambigue?|ambiguë|ambigu[oa]|incierto|"
            r"(?:not|isn't|nicht|pas|peu|no\s+está|no\s+es|poco)\s+(?:entirely\s+|very\s+|ganz\s+|très\s+|muy\s+)?"
            r"(?:clear|klar|eindeutig|claire?|clar[oa]))(?![^\W_])|"
            r"不清楚|不明确|不清晰|不确定|模糊|含糊",
        ),
        VerdictWord(
            RIGHT,
            r"(?<![^\W_])(?:correct|korrekt\w*|richtig\w*|correcte?s?|correct[oa]s?)(?![^\W_])|正确",
            r"(?<![^\W_])(?:right|accurate|true|zutreffend|stimmt|exacte?|juste|vraie?|"
            r"acertad[oa]|ciert[oa])(?![^\W_])|对",
            WRONG,
        ),
    ),
    excluded=(
        r"(?<!is )(?<!not )(?<!is not )(?<!isn't )(?<!gives )(?<!give )(?<!gave )(?<!provides )"
        rf"(?<!provide )\b(?:the|a|its|their)\s+(?:correct|right|true|wrong|incorrect)\s+"
        rf"(?:{_ANSWER_NOUNS})s?\b|"
        r"\bcorrect\s+(?:answer|response)s?\s*(?:is|was|are|would|should|:|=|-)|"
        r"\b(?:the\s+)?(?:reference|ground[\s-]truth|gold|gt)(?:\s+(?:answer|response))?\s+(?:is|says\s+\w+\s+is)\s+(?:in)?correct\b|"
        r"\b(?:richtige|korrekte|falsche)\s+(?:antwort|lösung)\b|\bréponse\s+(?:in)?correcte\b|"
        r"\bbonne\s+réponse\b|\brespuesta\s+(?:in)?correcta\b|"
        r"正确的?(?:答案|回答)|参考答案是?正确的?|(?:the|to\s+the|on\s+the|upper|lower|top|bottom|left\s+and)\s+right\b|对于|对应|对比|对照|相对|对面"
    ),
    phrases=(
        (
            RIGHT,
            r"\b(?:(?:does|do|did)\s+not|(?:does|do|did)n't|not)\s+(?:\w+\s+)?(?:conflict|contradict)|"
            r"\bno\s+(?:conflict|contradiction)|\b(?:answer(?:s|ed)|respond(?:s|ed))\s+correctly\b|"
            r"(?:不|没有|无)(?:矛盾|冲突)",
        ),
        (
            WRONG,
            r"(?<!not )(?<!n't )(?<!directly )\b(?:contradict|conflict)(?:s|ed)\b|"
            r"(?<!not )(?<!n't )\bdirectly\s+(?:contradict|conflict)(?:s|ed)\b|"
            r"\bin\s+(?:conflict|contradiction)\s+with\b|"
            r"\b(?:answer(?:s|ed)|respond(?:s|ed))\s+incorrectly\b",
        ),
    ),
    keys={"correct": (RIGHT, WRONG), "incorrect": (WRONG, RIGHT)},
    # The names of the verdicts in the official script's own files.
    codes={"1": RIGHT, "0": WRONG, "2": UNCLEAR},
)
_AGREEMENT = Vocabulary(
    words=(
        VerdictWord(
            0,
            r"(?<![^\W_])(?:different|inconsistent|contradictory|unterschiedlich\w*|verschieden\w*|"
            r"widersprüchlich\w*|différente?s?|diferentes?|distint[oa]s?)(?![^\W_])|不同|不一致|不一样|矛盾",
            r"(?<![^\W_])(?:conflicting|incompatible)(?![^\W_])",
            1,
        ),
        VerdictWord(
            1,
            r"(?<![^\W_])(?:same|identical|consistent|gleich\w*|dasselbe|identisch|konsistent|mêmes?|"
            r"identiques?|cohérentes?|mism[oa]s?|igual(?:es)?|idéntic[oa]s?|coherentes?)(?![^\W_])|"
            r"相同|一致|一样",
            r"(?<![^\W_])(?:compatible|equivalent)(?![^\W_])",
            0,
        ),
    ),
    excluded=(
        r"\bsame\s+(?:images?|maps?|figures?|questions?|pictures?|topics?|things?|objects?|subjects?|"
        r"persons?|years?|values?|scenes?|charts?|tables?|data|time|place|country|city|set)\b|"
        r"\b(?:two|these)\s+different\s+\w+|"
        r"\bdifferent\s+(?:questions?|images?|figures?|aspects?|things|topics?|pictures?|wordings?|words)\b"
    ),
    phrases=(
        (
            1,
            r"\b(?:(?:does|do|did)\s+not|(?:does|do|did)n't)\s+(?:\w+\s+)?(?:conflict|contradict)|"
            r"\bno\s+(?:logical\s+)?(?:conflict|contradiction)",
        ),
        (
            0,
            r"(?<!not )(?<!n't )(?<!directly )\b(?:contradicts?|conflicts?\s+with)\b|"
            r"(?<!not )(?<!n't )\bdirectly\s+(?:contradict|conflict)s?\b|\bin\s+conflict\b|"
            r"\ba\s+(?:clear\s+|logical\s+)?(?:conflict|contradiction)\b",
        ),
    ),
    keys={"same": (1, 0), "consistent": (1, 0), "different": (0, 1)},
)


def judge(
    answers: Sequence[Answer],
    questions: Mapping[str, Question],
    rows: Mapping[str, Mapping[str, Any]],
    *,
    data: Path,
    protocol: ProtocolName,
    resources: Resources,
) -> tuple[list[JudgedAnswer], int, tuple[Unreadable, ...]]:
    """Return verdicts, how many answers a judge gave none for, and replies that were not read.

    Verdicts in the answers are used; a judge is asked for missing ones, and then for `same` if a
    failure's cause depends on it. Under `corrected` an answer without a verdict is left out.

    Args:
        answers: each item once.
        questions: by item.
        rows: the benchmark's rows by item.
        data: the benchmark's folder, which may have the official prompts.
        protocol: how replies are read.
        resources: the judge.
    """
    prompt_builder = _PromptBuilder(data=data, protocol=protocol)
    corrected = protocol == "corrected"
    texts = {answer.item: answer.response for answer in answers}
    if protocol == "chip":
        texts = {item: text.replace("Assistant:", "").strip() for item, text in texts.items()}
    requests = [
        prompt_builder.request_verdict(
            answer, texts[answer.item], {**rows.get(answer.item, {}), **answer.fields}
        )
        for answer in answers
        if "verdict" not in answer.fields
    ]
    verdict_replies = prompts.read_replies(
        prompts.ask_judge(resources, requests, "hallusionbench"),
        parse_verdict if corrected else parse_verdict_as_script,
    )
    verdicts = {
        answer.item: _parse_given_verdict(answer, "verdict", (WRONG, RIGHT, UNCLEAR))
        if "verdict" in answer.fields
        else verdict_replies.values.get(answer.item)
        for answer in answers
    }
    originals = {question.pair: item for item, question in questions.items() if question.original}
    requests = [
        prompt_builder.request_agreement(answer.item, texts[answer.item], texts[original_item])
        for answer in answers
        if "same" not in answer.fields
        and (original_item := originals.get(questions[answer.item].pair)) is not None
        and (verdict_found := verdicts[answer.item]) is not None
        and needs_agreement(questions[answer.item], verdict_found, verdicts[original_item])
    ]
    if corrected and resources.judge is None:
        requests = []  # those causes are left out
    agreement_replies = prompts.read_replies(
        prompts.ask_judge(resources, requests, "hallusionbench"),
        parse_agreement if corrected else parse_agreement_as_script,
    )
    judged = []
    for answer in answers:
        verdict_found = verdicts[answer.item]
        agreement = (
            _parse_given_verdict(answer, "same", (0, 1)) == 1
            if "same" in answer.fields
            else agreement_replies.values.get(f"{answer.item}/same")
        )
        if verdict_found is not None:
            judged.append(
                JudgedAnswer(question=questions[answer.item], verdict=verdict_found, same=agreement)
            )
    unreadable_replies = (*verdict_replies.unreadable, *agreement_replies.unreadable)
    return judged, verdict_replies.failed, unreadable_replies


def parse_verdict_as_script(reply: str | None) -> int:
    """Read a verdict as the official script does; no reply is unclear."""
    text = (reply or "").lower()
    return WRONG if "incorrect" in text else RIGHT if "correct" in text else UNCLEAR


def parse_agreement_as_script(reply: str | None) -> bool:
    """Read whether answers agree as the official script does; no reply is different."""
    return "same" in (reply or "").lower()


def parse_verdict(reply: str | None) -> int | None:
    """Read the one verdict in a reply; None for none or several."""
    return _VERDICTS.read(reply or "")


def parse_agreement(reply: str | None) -> bool | None:
    """Read whether a reply finds two answers the same; None if it says neither or both."""
    verdict = _AGREEMENT.read(reply or "")
    return None if verdict is None else verdict == 1


@dataclass(frozen=True, kw_only=True)
class _PromptBuilder:
    """The two prompts of a judge; the official ones if their script is in the folder."""

    data: Path
    protocol: ProtocolName

    def request_verdict(self, answer: Answer, text: str, row: Mapping[str, Any]) -> JudgeRequest:
        """Return the request whether an answer is right."""
        for key in (QUESTION.name, REFERENCE.name):
            if not isinstance(row.get(key), str):
                raise UserError(f"hallusionbench: '{answer.item}' has no {key} for the judge")
        texts = {QUESTION: row[QUESTION.name], REFERENCE: row[REFERENCE.name], ANSWER: text}
        return self._make_request(answer.item, self._verdict_prompt, texts)

    def request_agreement(self, item: str, text: str, original: str) -> JudgeRequest:
        """Return the request whether an answer agrees with the original's, as item ITEM/same."""
        texts = {ANSWER: text, ORIGINAL: original}
        return self._make_request(f"{item}/same", self._agreement_prompt, texts)

    @cached_property
    def _verdict_prompt(self) -> tuple[PromptPart, ...]:
        return prompts.read_published_prompt(self.data, SCRIPT, VERDICT_FUNCTION) or VERDICT_PROMPT

    @cached_property
    def _agreement_prompt(self) -> tuple[PromptPart, ...]:
        return prompts.read_published_prompt(self.data, SCRIPT, SAME_FUNCTION) or SAME_PROMPT

    def _make_request(
        self, item: str, parts: tuple[PromptPart, ...], texts: dict[Placeholder, str]
    ) -> JudgeRequest:
        return JudgeRequest(
            item=item,
            messages=prompts.make_user_message(prompts.fill_prompt(parts, texts)),
            # The official script sets no temperature, for which the API's default is 1.
            temperature=0.0 if self.protocol == "corrected" else 1.0,
        )


def _parse_given_verdict(answer: Answer, key: str, choices: tuple[int, ...]) -> int:
    value = str(answer.fields[key])
    if value not in map(str, choices):
        listed = ", ".join(map(str, choices))
        raise UserError(
            f"hallusionbench: '{answer.item}': {key} must be one of {listed}, got '{value[:40]}'"
        )
    return int(value)
