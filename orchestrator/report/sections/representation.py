"""Build the section on the arms' representations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.report.formatting import NO_VALUE
from orchestrator.report.layout import (
    Block,
    Cell,
    Picture,
    Table,
    TextBlock,
    make_columns,
    text_row,
)

#: Metrics in the table; the JSON file has all of them.
_TABLE_METRICS = {
    "image_truth/cosine": "image–truth, cosine",
    "image_truth/euclidean": "image–truth, euclidean",
    "truth_hallucination/cosine": "truth–hallucination, cosine",
    "truth_hallucination/euclidean": "truth–hallucination, euclidean",
    "nearer_truth/cosine": "image nearer to truth by, cosine",
    "probe_auc": "linear probe, held-out AUC",
}


def representation_blocks(data: Mapping[str, Any], png: bytes, name: str) -> list[Block]:
    """Return the picture, the table and notes on how to read them.

    Args:
        data: content of `NAME.json`.
        png: the picture's content.
        name: name of the picture's files.
    """
    return [
        Picture(
            name=name,
            caption="The first three principal components of the hidden states of images, true and "
            "hallucinated descriptions, all models in one basis.",
            png=png,
        ),
        Table(
            name=f"{name}-figures",
            caption="Mean over training seeds, with its 95 % interval over items below.",
            columns=make_columns("model", "seeds", *_TABLE_METRICS.values()),
            rows=tuple(
                text_row(
                    row["name"],
                    NO_VALUE if row["seeds"] == [None] else str(len(row["seeds"])),
                    *(_cell(row["figures"][metric]) for metric in _TABLE_METRICS),
                )
                for row in data["rows"]
            ),
        ),
        TextBlock(lines=tuple(representation_notes(data)), bulleted=True),
    ]


def representation_notes(data: Mapping[str, Any]) -> list[str]:
    """Return notes for readers of the table and the figure."""
    pooling = "the mean over its tokens" if data["pool"] == "mean" else "its last token"
    reading = (
        "descriptions without image and prompt"
        if data["alone"]
        else "descriptions as answers under their image"
    )
    lines = [
        f"{data['items']} items of {data['set']}; {reading}; layer {data['layer']} (0: the "
        f"embeddings), of an image or description {pooling}.",
        "The interval is 95 %, a bootstrap over items of the mean over training seeds: it says "
        "nothing about training variance, and the probe is not refitted in it.",
        "The probe is a logistic regression, scored on items that it was not fitted on. It may "
        "use the words alone: reading descriptions without their image (--alone) shows how much.",
        "The picture shows each row's first seed; its axes explain "
        f"{100 * sum(data['explained']):.0f} % of the variance of all rows' vectors together.",
    ]
    if data["missing"]:
        lines.append(f"Without a trained model, left out: {'; '.join(data['missing'])}.")
    return lines


def representation_lines(data: Mapping[str, Any], name: str) -> list[list[Any]]:
    """Return one CSV line per row and figure, unrounded, with the columns `CSV_COLUMNS`."""
    return [
        [
            row["name"],
            f"{name}/{metric}",
            0 if row["seeds"] == [None] else len(row["seeds"]),
            *(repr(figure[key]) for key in ("value", "low", "high")),
        ]
        for row in data["rows"]
        for metric, figure in row["figures"].items()
    ]


CSV_COLUMNS = ("arm", "metric", "seeds", "value", "low", "high")


def _cell(figure: Mapping[str, float]) -> Cell:
    return Cell(text=f"{figure['value']:.3f}", below=f"[{figure['low']:.3f}, {figure['high']:.3f}]")
