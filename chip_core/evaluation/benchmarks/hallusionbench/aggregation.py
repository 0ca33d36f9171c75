"""HallusionBench's figures from verdicts: how the results of `score.py` are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from chip_core.evaluation import aggregation
from chip_core.evaluation.outcomes import ItemOutcome, compute_percentage
from chip_core.utils.errors import UserError

WRONG, RIGHT, UNCLEAR = 0, 1, 2

#: Why a question failed: language overruled vision, vision itself failed, or it could be either.
Cause = Literal["language_hallucination", "visual_illusion", "mixed"]
CAUSES: tuple[Cause, ...] = ("language_hallucination", "visual_illusion", "mixed")
_LANGUAGE_HALLUCINATION, _VISUAL_ILLUSION, _MIXED = CAUSES
_get_pair, _get_figure = attrgetter("pair"), attrgetter("figure")
_is_right = attrgetter("is_right")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of the benchmark: the same text may be asked about several figures of a set."""

    category: str  # VD: it needs its figure; VS: the figure only adds to it
    subcategory: str
    set_id: str
    figure_id: str  # "0": the original figure; of VS: none
    question_id: str
    visual_input: str  # "0" none, "1" as found, "2" edited
    truth: int  # 1: yes is right

    @property
    def item(self) -> str:
        """Its id."""
        return "_".join((self.part, self.set_id, self.figure_id, self.question_id))

    @property
    def part(self) -> str:
        """The part of the benchmark to which it belongs."""
        return f"{self.category}_{self.subcategory}"

    @property
    def pair(self) -> str:
        """The key of all questions with the same text."""
        return "_".join((self.part, self.set_id, self.question_id))

    @property
    def figure(self) -> str:
        """The key of all questions about the same figure."""
        return "_".join((self.part, self.set_id, self.figure_id))

    @property
    def original(self) -> bool:
        """Whether the others of its pair are compared with it."""
        return self.figure_id == "0"

    @property
    def is_text_only(self) -> bool:
        """Whether there is no figure: an unclear answer is right then."""
        return self.category == "VS" and self.original

    @property
    def is_edited(self) -> bool:
        """Whether its figure is edited."""
        return self.visual_input == "2"


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    """A question and the verdict on its answer."""

    question: Question
    verdict: int  # WRONG, RIGHT, UNCLEAR
    same: bool | None = None  # whether the answer agrees with the original's; None: unknown

    @property
    def is_right(self) -> bool:
        """Whether it counts as right."""
        return self.verdict == RIGHT or (self.verdict == UNCLEAR and self.question.is_text_only)


def needs_agreement(question: Question, verdict: int, original: int | None) -> bool:
    """Whether the cause of a failure depends on the answer's agreement with the original's."""
    if question.original or verdict != WRONG or original is None:
        return False
    if question.category == "VD":
        return original == RIGHT
    return original == WRONG or (original == RIGHT and question.is_edited)


def classify_cause(judged: JudgedAnswer, original: int | None) -> Cause | None:
    """Return why a question failed; None if it did not.

    Args:
        judged: the question; if the cause depends on it, `same` must be known.
        original: the verdict on its pair's original, None for the original itself.
    """
    question = judged.question
    agrees = needs_agreement(question, judged.verdict, original) and judged.same
    if judged.is_right:
        return None
    if question.original:
        return _VISUAL_ILLUSION if question.category == "VD" else _LANGUAGE_HALLUCINATION
    if question.category == "VD":
        return _MIXED if agrees else _VISUAL_ILLUSION
    if original == WRONG:
        return _LANGUAGE_HALLUCINATION if agrees else _MIXED
    # The answer to the text alone was right, or unclear: vision fails, unless an edited figure gets
    # the same answer as the text alone.
    return _LANGUAGE_HALLUCINATION if agrees else _VISUAL_ILLUSION


def official_items(judged: Sequence[JudgedAnswer]) -> dict[str, list[ItemOutcome]]:
    """Return each metric's items as the official script counts them.

    Raises:
        UserError: a question's original is missing, at which the official script stops.
    """
    originals = _collect_originals(judged)
    for answer in judged:
        if answer.question.pair not in originals:
            raise UserError(
                f"hallusionbench: {answer.question.item} has an answer and the same question "
                "without edited figure (figure_id 0) has none: the official script stops there"
            )
    unedited, edited = _split_by_edit(judged)
    return {
        "q_acc": _set_outcomes(judged, _get_pair),
        "f_acc": _set_outcomes(_with_figure(judged), _get_figure),
        "easy_a_acc": _set_outcomes(unedited, _get_pair),
        "hard_a_acc": _set_outcomes(edited, _get_pair),
        "a_acc": _question_outcomes(judged, _is_right),
        **_yes_no_bias(judged),
        **_consistency(_with_figure(judged)),
        **_compute_diagnosis(judged, originals),
    }


def corrected_items(
    judged: Sequence[JudgedAnswer], benchmark: Iterable[Question]
) -> dict[str, list[ItemOutcome]]:
    """Return each metric's items: sets of questions count if all of them have a verdict."""
    originals = _collect_originals(judged)
    judged_ids = {answer.question.item for answer in judged}
    unjudged = [question for question in benchmark if question.item not in judged_ids]
    incomplete_pairs = {question.pair for question in unjudged}
    incomplete_figures = {question.figure for question in unjudged}
    complete_pairs = [answer for answer in judged if answer.question.pair not in incomplete_pairs]
    complete_figures = _with_figure(
        answer for answer in judged if answer.question.figure not in incomplete_figures
    )
    diagnosable = [
        answer
        for answer in judged
        if (answer.question.original or answer.question.pair in originals)
        and (
            answer.same is not None
            or not needs_agreement(answer.question, answer.verdict, originals[answer.question.pair])
        )
    ]
    unedited, edited = _split_by_edit(judged)
    return {
        "q_acc": _set_outcomes(complete_pairs, _get_pair),
        "f_acc": _set_outcomes(complete_figures, _get_figure),
        "easy_a_acc": _question_outcomes(unedited, _is_right),
        "hard_a_acc": _question_outcomes(edited, _is_right),
        "a_acc": _question_outcomes(judged, _is_right),
        # An unclear answer is neither a yes nor a no.
        **_yes_no_bias([answer for answer in judged if answer.verdict != UNCLEAR]),
        **_consistency(complete_figures),
        **_compute_diagnosis(diagnosable, originals),
    }


def official_values(
    judged: Sequence[JudgedAnswer], items: Mapping[str, Sequence[ItemOutcome]]
) -> dict[str, float]:
    """Return the figures as printed.

    Raises:
        UserError: the official script divides by zero before it prints them.
    """
    for category in ("VD", "VS"):
        for is_edited in (False, True):
            if not any(
                answer.question.category == category and answer.question.is_edited is is_edited
                for answer in judged
            ):
                description = "with edited figures" if is_edited else "without edited figures"
                raise UserError(
                    f"hallusionbench: there are no answers to {category} questions {description}: "
                    "the official script divides by their number; protocol corrected does not"
                )
    if all(answer.is_right for answer in judged):
        raise UserError(
            "hallusionbench: no answer is wrong, and the official script divides by the number "
            "of wrong ones; protocol corrected does not"
        )
    values = {
        name: round(compute_percentage(outcomes) or 0.0, 4)
        for name, outcomes in items.items()
        if not name.startswith("yes_no_bias")
    }
    says_yes = sum(_says_yes(answer) for answer in judged)
    is_yes = sum(answer.question.truth for answer in judged)
    values["yes_no_bias_pct_diff"] = says_yes / len(judged) - is_yes / len(judged)
    values["yes_no_bias_fp_ratio"] = aggregation.compute_rate(items["yes_no_bias_fp_ratio"]) or 0.0
    return values


def _says_yes(answer: JudgedAnswer) -> bool:
    """Whether the answer is a yes, derived from whether it is right."""
    return int(answer.is_right) == answer.question.truth


def _collect_originals(judged: Iterable[JudgedAnswer]) -> dict[str, int]:
    """Return the verdict on each pair's original."""
    return {answer.question.pair: answer.verdict for answer in judged if answer.question.original}


def _split_by_edit(
    judged: Iterable[JudgedAnswer],
) -> tuple[list[JudgedAnswer], list[JudgedAnswer]]:
    """Return the answers about figures that are not edited, and about edited ones."""
    unedited: list[JudgedAnswer] = []
    edited: list[JudgedAnswer] = []
    for answer in judged:
        (edited if answer.question.is_edited else unedited).append(answer)
    return unedited, edited


def _with_figure(judged: Iterable[JudgedAnswer]) -> list[JudgedAnswer]:
    return [answer for answer in judged if not answer.question.is_text_only]


def _question_outcomes(
    judged: Iterable[JudgedAnswer], share: Callable[[JudgedAnswer], float]
) -> list[ItemOutcome]:
    return [
        aggregation.make_outcome(answer.question.item, share(answer), group=answer.question.part)
        for answer in judged
    ]


def _count_sets(
    judged: Iterable[JudgedAnswer], key: Callable[[Question], str]
) -> list[tuple[str, str, int, int]]:
    """Return name, part, right and all of each set of questions."""
    counts: dict[str, tuple[str, int, int]] = {}
    for answer in judged:
        part, right_count, total = counts.get(key(answer.question), (answer.question.part, 0, 0))
        counts[key(answer.question)] = (part, right_count + answer.is_right, total + 1)
    return [(name, *count) for name, count in counts.items()]


def _set_outcomes(
    judged: Iterable[JudgedAnswer], key: Callable[[Question], str]
) -> list[ItemOutcome]:
    return [
        aggregation.make_outcome(name, right_count == total, group=part)
        for name, part, right_count, total in _count_sets(judged, key)
    ]


def _consistency(judged: Iterable[JudgedAnswer]) -> dict[str, list[ItemOutcome]]:
    counts = _count_sets(judged, _get_figure)
    kinds: dict[str, Callable[[int, int], bool]] = {
        "correct": lambda right_count, total: right_count == total,
        "inconsistent": lambda right_count, total: 0 < right_count < total,
        "wrong": lambda right_count, total: right_count == 0,
    }
    return {
        f"consistency/{kind}": [
            aggregation.make_outcome(name, is_kind(right_count, total), group=part)
            for name, part, right_count, total in counts
        ]
        for kind, is_kind in kinds.items()
    }


def _yes_no_bias(judged: Sequence[JudgedAnswer]) -> dict[str, list[ItemOutcome]]:
    return {
        "yes_no_bias_pct_diff": _question_outcomes(
            judged, lambda answer: _says_yes(answer) - answer.question.truth
        ),
        "yes_no_bias_fp_ratio": [
            aggregation.make_outcome(
                answer.question.item,
                not answer.is_right and not answer.question.truth,
                not answer.is_right,
                answer.question.part,
            )
            for answer in judged
        ],
    }


def _compute_diagnosis(
    judged: Iterable[JudgedAnswer], originals: Mapping[str, int]
) -> dict[str, list[ItemOutcome]]:
    causes = [
        (
            answer.question,
            classify_cause(
                answer, None if answer.question.original else originals[answer.question.pair]
            ),
        )
        for answer in judged
    ]
    return {
        f"diagnosis/{kind}": [
            aggregation.make_outcome(
                question.item, found_cause == kind, found_cause is not None, question.part
            )
            for question, found_cause in causes
        ]
        for kind in CAUSES
    }
