"""Write the figures of representations as files and as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chip_core.representation.geometry import IntervalEstimate
from chip_core.representation.states import Reading
from chip_core.utils.files import write_atomically, write_checksummed
from orchestrator.report.figures.representation import draw_representation
from orchestrator.report.sections.representation import representation_blocks
from orchestrator.report.writers.markdown import render_section


@dataclass(frozen=True, kw_only=True)
class RepresentationRow:
    """An arm, or a model."""

    name: str
    seeds: tuple[int | None, ...]  # None: not trained
    figures: Mapping[str, IntervalEstimate]  # of the mean over seeds
    by_seed: tuple[Mapping[str, float], ...]
    points: Mapping[str, list[list[float]]]  # of the first seed, by kind, in the common basis
    trials: Mapping[str, str] = field(default_factory=dict)  # of a study: name -> fingerprint


@dataclass(frozen=True, kw_only=True)
class RepresentationResults:
    """The figures of all rows."""

    set_name: str
    items: int
    reading: Reading
    layer: int  # counted from the embeddings, 0
    explained: tuple[float, ...]  # share of the total variance on each of the picture's three axes
    rows: tuple[RepresentationRow, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """The stem of its files and metrics, another one for descriptions that are read alone."""
        return "representation-alone" if self.reading.alone else "representation"


def write_results(results: RepresentationResults, folder: Path) -> list[Path]:
    """Write the picture, the table and the figures as JSON into a folder; return the files."""
    files = [folder / f"{results.name}.{kind}" for kind in ("json", "md")]
    write_checksummed(files[0], results_json(results))
    write_atomically(files[1], results_markdown(results))
    figure_paths = [folder / "figures" / f"{results.name}.{kind}" for kind in ("png", "pdf")]
    figure_paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path in figure_paths:
        path.write_bytes(draw_representation(results.rows, results.explained, path.suffix[1:]))
    return [*files, *figure_paths]


def results_json(results: RepresentationResults) -> dict[str, Any]:
    """Return the figures as plain data."""
    return {
        "set": results.set_name,
        "items": results.items,
        **asdict(results.reading),
        "layer": results.layer,
        "explained": list(results.explained),
        "rows": [
            {
                "name": row.name,
                "seeds": list(row.seeds),
                "trials": dict(row.trials),
                "figures": {name: asdict(figure) for name, figure in row.figures.items()},
                "by_seed": [dict(values) for values in row.by_seed],
            }
            for row in results.rows
        ],
        "missing": list(results.missing),
    }


def results_markdown(results: RepresentationResults) -> str:
    """Return the figures as a section of a report."""
    data = results_json(results)
    blocks = representation_blocks(data, b"", results.name)
    return render_section("Representations of images, true and hallucinated descriptions", blocks)


def tracker_metrics(
    results: RepresentationResults, figures: Mapping[str, IntervalEstimate], *, intervals: bool
) -> dict[str, float]:
    """Return figures for a tracker: `representation/probe_auc`, `….low`, `….high`."""
    metrics = {f"{results.name}/{name}": figure.value for name, figure in figures.items()}
    if intervals:
        for name, figure in figures.items():
            metrics[f"{results.name}/{name}.low"] = figure.low
            metrics[f"{results.name}/{name}.high"] = figure.high
    return metrics
