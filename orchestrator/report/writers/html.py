"""Write a report as one HTML page without scripts or network."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.report.build import Report
from orchestrator.report.figures.base import DPI
from orchestrator.report.formatting import format_count
from orchestrator.report.layout import Block, ChangedItems, Picture


def render_page(report: Report) -> str:
    """Return the page. Everything in it is escaped: an answer is text, never markup."""
    environment = Environment(
        loader=PackageLoader("orchestrator.report.writers", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        kind=_block_kind, data_uri=format_data_uri, has_image=_has_image, width=_picture_width
    )
    study = report.summary.plan.study
    style = environment.get_template("style.css").render()
    return environment.get_template("report.html.j2").render(
        style=style,
        study=study,
        answer=report.answer,
        facts=_header_facts(report),
        sections=report.sections,
    )


def _header_facts(report: Report) -> list[str]:
    """Return the facts in the page's head."""
    plan = report.summary.plan
    done = sum(state == "done" for row in report.summary.rows for state in row.states.values())
    total = sum(len(row.states) for row in report.summary.rows)
    return [
        f"recipe {plan.study.recipe}",
        format_count(len(plan.arms), "arm"),
        format_count(len(plan.study.seeds), "seed"),
        f"{done} of {total} trials",
        f"as of {report.ended} UTC",
    ]


def _block_kind(block: Block) -> str:
    return type(block).__name__


def format_data_uri(content: bytes, media: str = "image/png") -> str:
    """Return the address of content that lies in the page itself."""
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"


def _picture_width(picture: Picture) -> int:
    """Return the width of a figure in CSS pixels, for which its text was sized."""
    return int.from_bytes(picture.png[16:20], "big") * 100 // DPI  # width from the PNG's header


def _has_image(changes: ChangedItems) -> bool:
    return any(change.images for change in changes.items)
