"""Write an import's figures as JSON, as Markdown and as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.utils.files import write_atomically, write_checksummed
from orchestrator.human_eval.assignment import SheetKey
from orchestrator.human_eval.judge import (
    CorrectedPreference,
    JudgeValues,
    agreement_to_json,
    correct_preference,
    figures_to_json,
)
from orchestrator.human_eval.pairs import AnswerPool
from orchestrator.human_eval.preference import HumanFigures, compute_human_figures
from orchestrator.human_eval.replies import SheetReplies, decode_judgements
from orchestrator.report.attachments import HUMANS_FOLDER
from orchestrator.report.sections.human import human_blocks, human_title
from orchestrator.report.writers.markdown import render_section

_SHARES = ("judged", "win", "tie", "lose", "chose_a")


@dataclass(frozen=True, kw_only=True)
class HumanComparison:
    """The result of people's comparison of two arms."""

    key: SheetKey
    figures: HumanFigures
    sheets: dict[int, tuple[int, int]]  # sheet -> (questions judged, questions); 0 if not returned
    judge: CorrectedPreference | None = None  # None: it has no verdict on what people judged

    @property
    def name(self) -> str:
        """The stem of its file names."""
        return f"{self.key.benchmark.replace('/', '-').replace(':', '-')}-{self.key.export[:8]}"


def build_comparison(
    key: SheetKey,
    replies: Sequence[SheetReplies],
    judge: tuple[JudgeValues, AnswerPool] | None = None,
) -> HumanComparison:
    """Compute the figures from the replies to an export.

    Args:
        key: the export's key.
        replies: the returned sheets.
        judge: its values, and the pairs of answers from which the export was drawn.

    Raises:
        UserError: a sheet does not belong to the export.
    """
    judgements = decode_judgements(key, replies)
    judged = {sheet.sheet: sum(choice is not None for choice in sheet.choices) for sheet in replies}
    return HumanComparison(
        key=key,
        figures=compute_human_figures(judgements),
        sheets={
            number: (judged.get(number, 0), len(entries))
            for number, entries in enumerate(key.sheets, start=1)
        },
        judge=None if judge is None else correct_preference(*judge, judgements),
    )


def write_figures(figures: dict[str, Any], name: str, report: Path) -> list[Path]:
    """Write figures of a comparison or of labels, as plain data, into a study's report folder.

    Returns:
        the files.
    """
    files = [report / HUMANS_FOLDER / f"{name}.{extension}" for extension in ("json", "md")]
    write_checksummed(files[0], figures)
    write_atomically(files[1], render_section(human_title(figures), human_blocks(figures)))
    return files


def comparison_to_json(comparison: HumanComparison) -> dict[str, Any]:
    """Return a comparison as plain data.

    Shares are in percent and preferences in points, of the second arm; α is unscaled.
    """
    key = comparison.key
    figures = asdict(comparison.figures)
    for name in _SHARES:
        if figures[name] is not None:
            figures[name]["value"] *= 100
            figures[name]["interval"] = _interval_to_percent(figures[name]["interval"])
    preference = figures["preference"]
    if preference is not None:
        preference["value"] *= 100
        preference["over_items"] = _interval_to_percent(preference["over_items"])
        preference["over_seeds"] = _interval_to_percent(preference["over_seeds"])
        preference["by_seed"] = {
            str(seed): 100 * value for seed, value in preference["by_seed"].items()
        }
    return {
        "export": key.export,
        "study": key.study,
        "arms": list(key.arms),
        "benchmark": key.benchmark,
        "trials": dict(key.trials),
        "pairs": key.pairs,
        "same": key.same,
        "sheets": [
            {"sheet": number, "judged": judged, "questions": questions}
            for number, (judged, questions) in comparison.sheets.items()
        ],
        **figures,
        "judge": None
        if comparison.judge is None
        else {
            "metric": comparison.judge.metric,
            "agreement": agreement_to_json(comparison.judge.agreement),
            **figures_to_json(comparison.judge.figures, 100, (-1, 1)),
        },
    }


def _interval_to_percent(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [100 * bound for bound in interval]
