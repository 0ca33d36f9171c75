"""The representation figure and its table: where arms put images, truths and hallucinations."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.files import write_atomically, write_json
from chip_core.representation.geometry import Figure
from chip_core.representation.states import Reading

_COLOURS = {"image": "#4d4d4d", "true": "#0072b2", "hallucinated": "#d55e00"}
_LABELS = {
    "image": "image",
    "true": "true description",
    "hallucinated": "hallucinated description",
}
#: What the table shows; everything is in the JSON.
_TABLE = {
    "image_truth/cosine": "image–truth, cosine",
    "image_truth/euclidean": "image–truth, euclidean",
    "truth_hallucination/cosine": "truth–hallucination, cosine",
    "truth_hallucination/euclidean": "truth–hallucination, euclidean",
    "nearer_truth/cosine": "image nearer to truth by, cosine",
    "probe_auc": "linear probe, held-out AUC",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm, or a model."""

    name: str
    seeds: tuple[int | None, ...]  # None: not trained
    figures: Mapping[str, Figure]  # of the mean over seeds
    by_seed: tuple[Mapping[str, float], ...]
    points: Mapping[str, list[list[float]]]  # of the first seed, by kind, in the common basis


@dataclass(frozen=True, kw_only=True)
class Represented:
    """What was found, of every row."""

    set_name: str
    items: int
    reading: Reading
    layer: int  # counted from the embeddings, 0
    explained: tuple[float, ...]  # share of all variance of the picture's three axes
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its files and metrics are called: descriptions read alone stand by themselves."""
        return "representation-alone" if self.reading.alone else "representation"


def write_represented(found: Represented, folder: Path) -> list[Path]:
    """Write figure, table and figures as JSON into a folder; return the files."""
    files = [folder / f"{found.name}.{kind}" for kind in ("json", "md")]
    write_json(files[0], as_json(found))
    write_atomically(files[1], markdown(found))
    pictures = [folder / "figures" / f"{found.name}.{kind}" for kind in ("png", "pdf")]
    pictures[0].parent.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        path.write_bytes(draw(found, path.suffix[1:]))
    return [*files, *pictures]


def as_json(found: Represented) -> dict[str, Any]:
    """Return the figures as plain data."""
    return {
        "set": found.set_name,
        "items": found.items,
        **asdict(found.reading),
        "layer": found.layer,
        "explained": list(found.explained),
        "rows": [
            {
                "name": row.name,
                "seeds": list(row.seeds),
                "figures": {name: asdict(figure) for name, figure in row.figures.items()},
                "by_seed": [dict(values) for values in row.by_seed],
            }
            for row in found.rows
        ],
        "missing": list(found.missing),
    }


def markdown(found: Represented) -> str:
    """Return the table as a section of a report."""
    lines = [
        "## Representations of images, true and hallucinated descriptions",
        "",
        f"![The first three principal components of all, in one basis](figures/{found.name}.png)",
        "",
        f"| | seeds | {' | '.join(_TABLE.values())} |",
        "| " + " | ".join(["---"] * (len(_TABLE) + 2)) + " |",
    ]
    for row in found.rows:
        seeds = "—" if row.seeds == (None,) else str(len(row.seeds))
        cells = [_cell(row.figures[name]) for name in _TABLE]
        lines.append("| " + " | ".join([row.name.replace("|", "\\|"), seeds, *cells]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(found)), ""])


def notes(found: Represented) -> list[str]:
    """Return what a reader of table and figure has to know."""
    over = "the mean over its tokens" if found.reading.pool == "mean" else "its last token"
    read = (
        "descriptions without image and prompt"
        if found.reading.alone
        else "descriptions as answers under their image"
    )
    lines = [
        f"{found.items} items of {found.set_name}; {read}; layer {found.layer} (0: the "
        f"embeddings), of an image or description {over}.",
        "The interval is 95 %, a bootstrap over items of the mean over training seeds: it says "
        "nothing of training variance, and the probe is not fitted again in it.",
        "The probe is a logistic regression on items that it has not seen. It may go by the words "
        "alone: reading descriptions without their image (--alone) shows how far.",
        "The picture shows each row's first seed; its axes hold "
        f"{100 * sum(found.explained):.0f} % of the variance of all rows' vectors together.",
    ]
    if found.missing:
        lines.append(f"Without a trained model, left out: {'; '.join(found.missing)}.")
    return lines


def metrics(
    found: Represented, figures: Mapping[str, Figure], *, intervals: bool
) -> dict[str, float]:
    """Return figures for a tracker: `representation/probe_auc`, `….low`, `….high`."""
    named = {f"{found.name}/{name}": figure.value for name, figure in figures.items()}
    if intervals:
        for name, figure in figures.items():
            named[f"{found.name}/{name}.low"] = figure.low
            named[f"{found.name}/{name}.high"] = figure.high
    return named


def draw(found: Represented, kind: str) -> bytes:
    """Return the picture: a panel a row, all with the same axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(3, len(found.rows))
    lines = math.ceil(len(found.rows) / columns)
    figure = Canvas(figsize=(3.6 * columns, 3.4 * lines + 0.5), dpi=150)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=0.02, right=0.94, bottom=0.06, top=1 - 0.65 / (3.4 * lines), wspace=0.12, hspace=0.16
    )
    bounds = _bounds(found.rows)
    axes = None
    for place, row in enumerate(found.rows, start=1):
        axes = figure.add_subplot(lines, columns, place, projection="3d")
        for name, colour in _COLOURS.items():
            across, along, up = zip(*row.points[name], strict=True)
            axes.scatter(
                across, along, up, s=7, c=colour, alpha=0.6, linewidths=0, label=_LABELS[name],
                depthshade=False,
            )  # fmt: skip
        axes.set_title(row.name, fontsize=10, pad=0)
        for which, (low, high) in zip("xyz", bounds, strict=True):
            getattr(axes, f"set_{which}lim")(low, high)
        axes.tick_params(labelsize=6, pad=-2)
        names = (axes.set_xlabel, axes.set_ylabel, axes.set_zlabel)
        for number, (name_axis, share) in enumerate(
            zip(names, found.explained, strict=True), start=1
        ):
            name_axis(f"PC {number} ({100 * share:.0f} %)", fontsize=7, labelpad=-6)
    assert axes is not None
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=9, frameon=False,
                  markerscale=2)  # fmt: skip
    out = io.BytesIO()
    # Without a date the same figures give the same file.
    figure.savefig(out, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    return out.getvalue()


def _bounds(rows: Sequence[Row]) -> list[tuple[float, float]]:
    found = []
    for axis in range(3):
        values = [point[axis] for row in rows for points in row.points.values() for point in points]
        margin = 0.03 * (max(values) - min(values)) or 1.0
        found.append((min(values) - margin, max(values) + margin))
    return found


def _cell(figure: Figure) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
