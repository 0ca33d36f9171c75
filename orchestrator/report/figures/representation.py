"""Draw the representations of images and descriptions in a common basis."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

_COLOURS = {"image": "#4d4d4d", "true": "#0072b2", "hallucinated": "#d55e00"}
_LABELS = {
    "image": "image",
    "true": "true description",
    "hallucinated": "hallucinated description",
}


class DrawableRow(Protocol):
    """The part of a row that is drawn."""

    @property
    def name(self) -> str:
        """Title of the panel."""

    @property
    def points(self) -> Mapping[str, list[list[float]]]:
        """Points in the common basis, by kind."""


def draw_representation(
    rows: Sequence[DrawableRow], explained: Sequence[float], kind: str
) -> bytes:
    """Draw one panel per row, all with the same axes, and return the file's content.

    Args:
        rows: models or arms.
        explained: explained variance ratios of the axes.
        kind: "png" or "pdf".
    """
    from matplotlib.figure import Figure as Canvas

    columns = min(3, len(rows))
    row_count = math.ceil(len(rows) / columns)
    figure = Canvas(figsize=(3.6 * columns, 3.4 * row_count + 0.5), dpi=150)
    figure.subplots_adjust(
        left=0.02,
        right=0.94,
        bottom=0.06,
        top=1 - 0.65 / (3.4 * row_count),
        wspace=0.12,
        hspace=0.16,
    )
    bounds = _axis_bounds(rows)
    axes = None
    for index, row in enumerate(rows, start=1):
        axes = figure.add_subplot(row_count, columns, index, projection="3d")
        for name, colour in _COLOURS.items():
            xs, ys, zs = zip(*row.points[name], strict=True)
            axes.scatter(
                xs, ys, zs, s=7, c=colour, alpha=0.6, linewidths=0, label=_LABELS[name],
                depthshade=False,
            )  # fmt: skip
        axes.set_title(row.name, fontsize=10, pad=0)
        for axis_name, (low, high) in zip("xyz", bounds, strict=True):
            getattr(axes, f"set_{axis_name}lim")(low, high)
        axes.tick_params(labelsize=6, pad=-2)
        axis_setters = (axes.set_xlabel, axes.set_ylabel, axes.set_zlabel)
        for number, (set_axis_label, share) in enumerate(
            zip(axis_setters, explained, strict=True), start=1
        ):
            set_axis_label(f"PC {number} ({100 * share:.0f} %)", fontsize=7, labelpad=-6)
    assert axes is not None
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=9, frameon=False,
                  markerscale=2)  # fmt: skip
    buffer = io.BytesIO()
    # Without a date, the same figures give the same file.
    figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    return buffer.getvalue()


def _axis_bounds(rows: Sequence[DrawableRow]) -> list[tuple[float, float]]:
    bounds = []
    for axis in range(3):
        values = [point[axis] for row in rows for points in row.points.values() for point in points]
        margin = 0.03 * (max(values) - min(values)) or 1.0
        bounds.append((min(values) - margin, max(values) + margin))
    return bounds
