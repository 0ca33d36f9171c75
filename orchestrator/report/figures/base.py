"""Size, colours and rendering of all figures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.report.layout import Picture, Tone

WIDTH = 7.2  # inches; a page's text is about as wide
DPI = 150
#: Okabe and Ito's colours, which colour-blind readers can distinguish, and four darker ones.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C564B",
    "#4D4D4D", "#A6761D",
)  # fmt: skip
MARKERS = "osD^vPX*<>"
BASELINE_COLOUR = "#222222"
TONE_COLOURS: Mapping[Tone, str] = {
    "better": "#1a7f4b",
    "worse": "#b3261e",
    "same": "#0b5cad",
    "open": "#8a8a8a",
    "": "#222222",
}
_MAX_LABEL_LENGTH = 44  # characters
_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a level may have a dollar in its name
    "pdf.fonttype": 42,  # text that can be searched and edited
    "svg.fonttype": "none",
}


def render_figure(
    name: str,
    caption: str,
    draw: Callable[[Any], None],
    *,
    height: float,
    width: float = WIDTH,
) -> tuple[Picture, bytes]:
    """Draw a figure, and return it as a picture (PNG) and as a PDF.

    Args:
        name: name of its files.
        caption: caption of the figure.
        draw: function that draws into the empty figure.
        height: height in inches.
        width: width in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names with glyphs that the font lacks are drawn as boxes; the page has them in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        draw(figure)
        png, pdf = render_files(figure)
    return Picture(name=name, caption=caption, png=png), pdf


def render_files(figure: Any) -> tuple[bytes, bytes]:
    """Render a figure as PNG and PDF. The same figure gives the same files."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png")
    figure.set_layout_engine("none")  # keep the layout, which takes a while to compute
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "ModDate": None})
    return png.getvalue(), pdf.getvalue()


def arm_style(index: int, *, baseline: bool = False) -> tuple[str, str]:
    """Return the colour and the marker of an arm, given its index."""
    if baseline:
        return BASELINE_COLOUR, "o"
    return COLOURS[index % len(COLOURS)], MARKERS[(index // len(COLOURS)) % len(MARKERS)]


def shorten_label(text: str) -> str:
    """Shorten a name for a figure."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LABEL_LENGTH else f"{line[: _MAX_LABEL_LENGTH - 1]}…"


def scale_axis(axis: Any, values: Sequence[float]) -> None:
    """Scale an axis of levels linearly, or logarithmically if they span a factor of 30 or more."""
    positive = sorted(value for value in values if value > 0)
    if min(values) >= 0 and len(positive) > 1 and positive[-1] / positive[0] >= 30:
        name = axis.axis_name
        scale = getattr(axis.axes, f"set_{name}scale")
        if len(positive) < len(values):
            scale("symlog", linthresh=positive[0], linscale=0.5)
        else:
            scale("log")
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)
