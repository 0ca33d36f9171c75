"""Build a report as data for all writers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.plan.plan import Plan
from orchestrator.report.attachments import find_attachments
from orchestrator.report.figures.cost import draw_costs
from orchestrator.report.figures.coverage import coverage_pairs, draw_coverage
from orchestrator.report.figures.forest import draw_differences, draw_effects
from orchestrator.report.figures.response import MAX_PANELS, draw_response, numeric_factors
from orchestrator.report.figures.training import draw_checkpoints, draw_training
from orchestrator.report.layout import Block, ChangedItems, Picture, Section, TextBlock
from orchestrator.report.outcomes import load_scores
from orchestrator.report.sections.answer import answer_sentence
from orchestrator.report.sections.arms import benchmark_tables, effect_table, verdict_table
from orchestrator.report.sections.changes import largest_changes
from orchestrator.report.sections.costs import arm_costs, cost_table
from orchestrator.report.sections.notes import build_notes, table_footnotes
from orchestrator.report.sections.power import power_blocks
from orchestrator.report.sections.provenance import (
    collect_provenance,
    format_time,
    last_end_time,
    provenance_blocks,
)
from orchestrator.report.sections.search import search_blocks
from orchestrator.report.sections.training import (
    load_checkpoint_curves,
    load_training_curves,
    picked_checkpoint_blocks,
)
from orchestrator.report.sections.unreadable import unread_blocks
from orchestrator.report.summary import Summary, build_summary
from orchestrator.state.ledger import Ledger

_Drawing = tuple[Picture, bytes] | None


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
    scores = load_scores(plan, ledger, storage)
    summary = build_summary(plan, ledger, scores)
    costs = arm_costs(plan, ledger)
    origin = collect_provenance(plan, ledger)
    attachments = find_attachments(folder, plan)
    figures = _FigureCollector()
    footnote_block = TextBlock(lines=tuple(table_footnotes(summary, origin)), bulleted=True)
    changes = largest_changes(summary, scores, ledger, storage)
    curves = load_training_curves(plan, ledger, storage)
    sections = [
        *_comparison_sections(summary, footnote_block, figures, search_blocks(plan, ledger)),
        _make_section(
            "checkpoints",
            "Hallucination along the training",
            picked_checkpoint_blocks(plan, ledger),
            figures.add([draw_checkpoints(summary, load_checkpoint_curves(summary, ledger))]),
        ),
        _make_section("training", "Training curves", figures.add([draw_training(summary, curves)])),
        _make_section(
            "items", "The items that changed most", _item_blocks(changes), in_paper=False
        ),
        _make_section(
            "unreadable",
            "What could not be read",
            unread_blocks(summary),
            in_paper=False,
        ),
        *attachments.sections,
        _make_section(
            "cost",
            "What it cost",
            [cost_table(costs)] if costs else [],
            figures.add([draw_costs(costs)]),
        ),
        _make_section("power", "What more seeds would show", power_blocks(summary)),
        _make_section(
            "notes", "Notes", [TextBlock(lines=tuple(build_notes(summary)), bulleted=True)]
        ),
        _make_section(
            "provenance",
            "Where the figures come from",
            provenance_blocks(plan, ledger, origin),
            in_paper=False,
        ),
    ]
    return Report(
        summary=summary,
        answer=answer_sentence(summary),
        ended=format_time(last_end_time(plan, ledger)),
        sections=tuple(section for section in sections if section.blocks),
        footnotes=footnote_block.lines,
        pdfs=figures.pdfs,
        tables=attachments.tables,
        provenance=origin,
    )


class _FigureCollector:
    """Collects the report's figures: pictures for the sections, PDFs as files."""

    def __init__(self) -> None:
        self.pdfs: dict[str, bytes] = {}  # by figure name

    def add(self, drawings: Iterable[_Drawing]) -> list[Picture]:
        """Keep the PDFs of the drawings that are not None, and return their pictures."""
        drawn = [drawing for drawing in drawings if drawing is not None]
        self.pdfs.update({picture.name: pdf for picture, pdf in drawn})
        return [picture for picture, _ in drawn]


def _comparison_sections(
    summary: Summary, footnote_block: TextBlock, figures: _FigureCollector, search: Iterable[Block]
) -> list[Section]:
    """Return the sections that compare arms, with the footnotes under the first table."""
    metrics = [metric for metric in summary.verdict_metrics if metric in summary.compared]
    effects = [effect_table(summary, metric) for metric in metrics]
    return [
        _make_section(
            "arms",
            "Arms against the baseline",
            [verdict_table(summary, metric) for metric in summary.verdict_metrics],
            [footnote_block] if summary.verdict_metrics else [],
            figures.add(draw_differences(summary, metric) for metric in metrics),
        ),
        _make_section(
            "effects",
            "What each change does",
            [table for table in effects if table is not None],
            figures.add(draw_effects(summary, metric) for metric in metrics),
        ),
        _make_section("search", "What each arm chose", search),
        _make_section(
            "response",
            "Response curves",
            figures.add(
                draw_response(summary, factor, _response_metrics(summary))
                for factor in numeric_factors(summary)
            ),
        ),
        _make_section(
            "figures",
            "All figures",
            benchmark_tables(summary),
            [] if summary.verdict_metrics else [footnote_block],
            figures.add(
                draw_coverage(summary, x_metric, y_metric)
                for x_metric, y_metric in coverage_pairs(summary)
            ),
        ),
    ]


def _response_metrics(summary: Summary) -> list[str]:
    """Return the metrics drawn along a factor: the declared ones and their trade-offs."""
    metrics = summary.verdict_metrics or list(summary.metrics)[:1]
    trade_offs = [
        name for pair in coverage_pairs(summary) if set(pair) & set(metrics) for name in pair
    ]
    return list(dict.fromkeys([*metrics, *trade_offs]))[:MAX_PANELS]


def _make_section(
    name: str, title: str, *blocks: Iterable[Block], in_paper: bool = True
) -> Section:
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
            "For each arm, the items that improved and worsened most against the baseline, by "
            "the mean over seeds; the answers shown are those of the seed with the largest "
            "change. They were chosen for the size of their change: they are illustrations, not "
            "evidence.",
        )
    )
    return [intro, *changes]
