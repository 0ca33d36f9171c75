"""Build a report as data for all writers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.plan.plan import Plan
from orchestrator.report.attachments import find_attachments
from orchestrator.report.figures.cost import draw_costs
from orchestrator.report.figures.coverage import draw_pair, pairs
from orchestrator.report.figures.forest import draw_differences, draw_effects
from orchestrator.report.figures.response import MOST_PANELS, draw_response, numeric_factors
from orchestrator.report.figures.training import draw_checkpoints, draw_training
from orchestrator.report.layout import Block, ChangedItems, Picture, Section, TextBlock
from orchestrator.report.outcomes import load_scores
from orchestrator.report.sections.answer import answer
from orchestrator.report.sections.arms import benchmark_tables, effect_table, verdict_table
from orchestrator.report.sections.changes import largest_changes
from orchestrator.report.sections.costs import arm_costs, cost_table
from orchestrator.report.sections.notes import footnotes, notes
from orchestrator.report.sections.power import power_blocks
from orchestrator.report.sections.provenance import last_ended, provenance, provenance_blocks, when
from orchestrator.report.sections.search import search_blocks
from orchestrator.report.sections.training import (
    checkpoint_curves,
    pick_blocks,
    training_curves,
)
from orchestrator.report.sections.unreadable import unread_blocks
from orchestrator.report.summary import Summary, summarise
from orchestrator.state.ledger import Ledger

_Drawn = tuple[Picture, bytes] | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A study's report."""

    summary: Summary
    answer: str
    ended: str  # end of the last trial in UTC, or a dash
    sections: tuple[Section, ...]
    footnotes: tuple[str, ...]  # footnotes of the first table
    pdfs: Mapping[str, bytes] = field(repr=False)  # by figure name
    tables: Mapping[str, str] = field(repr=False)  # CSV of the attachments, by file name
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def pictures(self) -> list[Picture]:
        """Every figure, in the report's order."""
        return [
            block
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Picture)
        ]


def make_report(plan: Plan, ledger: Ledger, storage: Path, folder: Path) -> Report:
    """Build a study's report.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        storage: where the trials' folders are.
        folder: folder of the report, with the attachments of other commands.
    """
    loaded = load_scores(plan, ledger, storage)
    summary = summarise(plan, ledger, loaded)
    spent = arm_costs(plan, ledger)
    origin = provenance(plan, ledger)
    beside = find_attachments(folder, plan)
    drawn = _Drawings()
    under = TextBlock(lines=tuple(footnotes(summary, origin)), bulleted=True)
    changes = largest_changes(summary, loaded, ledger, storage)
    curves = training_curves(plan, ledger, storage)
    sections = [
        *_comparison_sections(summary, under, drawn, search_blocks(plan, ledger)),
        _section(
            "checkpoints",
            "Hallucination along the training",
            pick_blocks(plan, ledger),
            drawn.add([draw_checkpoints(summary, checkpoint_curves(summary, ledger))]),
        ),
        _section("training", "Training curves", drawn.add([draw_training(summary, curves)])),
        _section("items", "The items that changed most", _item_blocks(changes), in_paper=False),
        _section(
            "unreadable",
            "What could not be read",
            unread_blocks(summary),
            in_paper=False,
        ),
        *beside.sections,
        _section(
            "cost",
            "What it cost",
            [cost_table(spent)] if spent else [],
            drawn.add([draw_costs(spent)]),
        ),
        _section("power", "What more seeds would buy", power_blocks(summary)),
        _section("notes", "Notes", [TextBlock(lines=tuple(notes(summary)), bulleted=True)]),
        _section(
            "provenance",
            "Where the figures come from",
            provenance_blocks(plan, ledger, origin),
            in_paper=False,
        ),
    ]
    return Report(
        summary=summary,
        answer=answer(summary),
        ended=when(last_ended(plan, ledger)),
        sections=tuple(section for section in sections if section.blocks),
        footnotes=under.lines,
        pdfs=drawn.pdfs,
        tables=beside.tables,
        provenance=origin,
    )


class _Drawings:
    """Collects the report's figures: pictures for the sections, PDFs as files."""

    def __init__(self) -> None:
        self.pdfs: dict[str, bytes] = {}  # by figure name

    def add(self, drawings: Iterable[_Drawn]) -> list[Picture]:
        """Keep the PDFs of the drawings that are not None, and return their pictures."""
        found = [one for one in drawings if one is not None]
        self.pdfs.update({picture.name: pdf for picture, pdf in found})
        return [picture for picture, _ in found]


def _comparison_sections(
    summary: Summary, under: TextBlock, drawn: _Drawings, search: Iterable[Block]
) -> list[Section]:
    """Return the sections that compare arms, with the footnotes under the first table."""
    decided = [metric for metric in summary.decided if metric in summary.compared]
    effects = [effect_table(summary, metric) for metric in decided]
    return [
        _section(
            "arms",
            "Arms against the baseline",
            [verdict_table(summary, metric) for metric in summary.decided],
            [under] if summary.decided else [],
            drawn.add(draw_differences(summary, metric) for metric in decided),
        ),
        _section(
            "effects",
            "What each change does",
            [table for table in effects if table is not None],
            drawn.add(draw_effects(summary, metric) for metric in decided),
        ),
        _section("search", "What each arm chose", search),
        _section(
            "response",
            "Response curves",
            drawn.add(
                draw_response(summary, factor, _along(summary))
                for factor in numeric_factors(summary)
            ),
        ),
        _section(
            "figures",
            "All figures",
            benchmark_tables(summary),
            [] if summary.decided else [under],
            drawn.add(draw_pair(summary, across, up) for across, up in pairs(summary)),
        ),
    ]


def _along(summary: Summary) -> list[str]:
    """Return the metrics drawn along a factor: the declared ones and their trade-offs."""
    shown = summary.decided or list(summary.metrics)[:1]
    traded = [name for pair in pairs(summary) if set(pair) & set(shown) for name in pair]
    return list(dict.fromkeys([*shown, *traded]))[:MOST_PANELS]


def _section(name: str, title: str, *blocks: Iterable[Block], in_paper: bool = True) -> Section:
    return Section(
        name=name,
        title=title,
        blocks=tuple(block for group in blocks for block in group),
        in_paper=in_paper,
    )


def _item_blocks(changes: list[ChangedItems]) -> list[Block]:
    if not changes:
        return []
    intro = TextBlock(
        lines=(
            "For each arm the items that got most better and most worse against the baseline, by "
            "the mean over seeds; the answers shown are those of the seed that shows it best. "
            "They were chosen for their size: they illustrate, they prove nothing.",
        )
    )
    return [intro, *changes]
