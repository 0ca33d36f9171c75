"""Check preference data: counts, lengths, image sizes, bad rows."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.config.trial import DataConfig, ModelConfig
from chip_core.data import find_source_problem
from chip_core.data.checks import ProcessorChecker, ValidRow, check_rows, decode_threads
from chip_core.data.formats.extra_columns import RowRequirements, row_requirements
from chip_core.data.rows import BadRow
from chip_core.data.source import SHAPES, find_hub_error, open_source
from chip_core.models import loading
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.parts import changed_positions
from chip_core.utils.errors import TrialError, UserError
from orchestrator.utils.progress import track_progress

_MAX_LISTED_FILES = 3  # files that are listed

#: Splits a text into units that are compared: token ids, or numbers for words.
Tokenizer = Callable[[str], list[int]]


@dataclass(kw_only=True)
class DataReport:
    """The result of a check."""

    source: str
    format: str
    files: int
    read: list[str] = field(default_factory=list)  # the first files that have rows
    unit: str  # of `changed`: "tokens" or "words"
    good: int = 0
    rejected_images: int = 0
    sides: int = 0  # rows whose two responses have an image each
    asked: list[str] = field(default_factory=list)  # columns that the objective reads
    bad: list[BadRow] = field(default_factory=list)
    figures: dict[str, array[float]] = field(default_factory=dict)  # one value a good row

    @property
    def rows(self) -> int:
        """The number of rows checked."""
        return self.good + len(self.bad)

    def add(self, name: str, value: float) -> None:
        """Add a figure of a good row."""
        self.figures.setdefault(name, array("d")).append(value)


def check_data(
    data: DataConfig,
    *,
    model: ModelConfig | None,
    console: Console,
    model_source: str = "--model",
    objective: ObjectiveConfig | None = None,
) -> DataReport:
    """Check every row of a data source.

    Args:
        data: the source.
        model: its processor checks the rows, and its tokenizer splits the texts; None: unknown, and
            texts are split at whitespace.
        model_source: the option that named the model.
        console: the console for progress.
        objective: the objective to be trained on the rows; None: one that reads only what all do.

    Raises:
        UserError: the data or the model cannot be read.
    """
    if data.source == SHAPES:
        raise UserError("shapes: the embedded world's pairs are drawn: there is nothing to check")
    data_problem = find_source_problem(data)
    if data_problem is not None:
        raise UserError(data_problem)
    columns = RowRequirements() if objective is None else row_requirements(objective)
    checker = None if model is None else ProcessorChecker(_load_processor(model, model_source))
    tokenize = _whitespace_tokenizer() if checker is None else checker.special_tokens.tokenize
    with track_progress(console, "files opened") as report_opened:  # their number is not known yet
        source = open_source(data, report_opened)
    report = DataReport(
        source=data.source,
        format=source.format.name,
        files=len(source.tables),
        read=[table.location(0).file for table in source.tables if len(table)][:_MAX_LISTED_FILES],
        unit="words" if model is None else "tokens",
        asked=columns.names,
    )
    with track_progress(console, "rows checked", len(source)) as step:
        threads = decode_threads(len(source))
        rows = check_rows(source, requirements=columns, model=checker, threads=threads)
        for done_count, checked in enumerate(rows, start=1):
            if isinstance(checked, BadRow):
                report.bad.append(checked)
            else:
                _add_row(report, checked, tokenize, in_tokens=model is not None)
            step(done_count)
    return report


def data_lines(report: DataReport) -> Iterator[RenderableType]:
    """Format the result as text."""
    files = f"{report.files} file{'s' if report.files != 1 else ''}"
    yield Text(
        f"{report.source}: {report.rows} rows in {files}, format {report.format}", style="bold"
    )
    if report.files > 1:
        suffix = ", …" if report.files > len(report.read) else ""
        yield Text(f"read: {', '.join(report.read)}{suffix}")
    if report.good:
        table = Table(box=None, pad_edge=False)
        for title in ("", "least", "median", "mean", "most"):
            table.add_column(title, justify="right" if title else "left")
        for name, values in summarize_figures(report).items():
            table.add_row(name, *(_format_number(value) for value in values.values()))
        yield table
        method = (
            "by the model's tokenizer" if report.unit == "tokens" else "by whitespace: no --model"
        )
        yield Text(f"changed: share of a response's {report.unit} that differ, split {method}")
        if report.rejected_images:
            yield Text(f"{report.rejected_images} rows give a rejected image")
        if report.sides:
            yield Text(f"{report.sides} rows give chosen and rejected response an image each")
    if report.asked:
        yield Text(f"the objective asks of each row: {', '.join(report.asked)}")
    yield Text(
        f"{len(report.bad)} bad row{'s' if len(report.bad) != 1 else ''}",
        style="bold red" if report.bad else "green",
    )
    for row in report.bad:
        yield Text(f"  {row}")


def data_json(report: DataReport) -> dict[str, Any]:
    """Return the result as plain data."""
    return {
        "source": report.source,
        "format": report.format,
        "files": report.files,
        "rows": report.rows,
        "good": report.good,
        "rejected_images": report.rejected_images,
        "images_on_either_side": report.sides,
        **({"asked": report.asked} if report.asked else {}),
        "changed_unit": report.unit,
        "figures": summarize_figures(report),
        "bad": [
            {
                "file": row.location.file,
                row.location.unit: row.location.row,
                "reason": row.reason,
            }
            for row in report.bad
        ],
    }


def summarize_figures(report: DataReport) -> dict[str, dict[str, float]]:
    """Return least, median, mean and most of each figure over the good rows."""
    return {
        name: {
            "least": min(values),
            "median": statistics.median(values),
            "mean": statistics.fmean(values),
            "most": max(values),
        }
        for name, values in report.figures.items()
    }


def _add_row(
    report: DataReport, good_row: ValidRow, tokenize: Tokenizer, *, in_tokens: bool
) -> None:
    texts = good_row.row.texts
    report.good += 1
    report.rejected_images += good_row.row.rejected_image is not None
    report.sides += good_row.row.separate_images
    units = {name: tokenize(getattr(texts, name)) for name in ("prompt", "chosen", "rejected")}
    for name in units:
        report.add(f"{name}, characters", len(getattr(texts, name)))
    if in_tokens:
        for name, ids in units.items():
            report.add(f"{name}, tokens", len(ids))
    report.add("image width, pixels", good_row.size[0])
    report.add("image height, pixels", good_row.size[1])
    changed = changed_positions(units["chosen"], units["rejected"])
    for name, positions in zip(("chosen", "rejected"), changed, strict=True):
        report.add(f"{name} changed, %", 100 * len(positions) / max(len(units[name]), 1))


def _whitespace_tokenizer() -> Tokenizer:
    ids: dict[str, int] = {}
    return lambda text: [ids.setdefault(word, len(ids)) for word in text.split()]


def _load_processor(model: ModelConfig, model_source: str) -> Any:
    """Return a model's processor.

    Raises:
        UserError: it cannot be loaded.
    """
    model_problem = loading.find_model_problem(model)
    if model_problem is None and loading.find_local_folder(model.path) is None:
        model_problem = _find_hub_problem(model)
    if model_problem is not None:
        raise UserError(f"{model_source}: {model_problem}")
    try:
        return loading.load_processor_only(model)
    except TrialError as error:
        raise UserError(f"{model_source}: {error}") from None


def _find_hub_problem(model: ModelConfig) -> str | None:
    """Return why a model cannot be loaded from the hub or a local copy; None if it can."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model.path, "config.json", revision=model.revision), str):
        return None
    reason = find_hub_error("model", model.path, model.revision)
    if reason is None:
        return None
    return (
        f"{model.path}: the hub cannot be reached ({reason}), and this machine has no copy of it: "
        "check the name and the network, or name a folder"
    )


def _format_number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"
