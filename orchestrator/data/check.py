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
from chip_core.data import problem
from chip_core.data.checks import ProcessorChecker, ValidRow, check_rows, decode_threads
from chip_core.data.formats.extra_columns import RowRequirements, row_requirements
from chip_core.data.rows import BadRow
from chip_core.data.source import SHAPES, hub_error, open_source
from chip_core.models import loading
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.segments import changed_positions
from chip_core.utils.errors import TrialError, UserError
from orchestrator.utils.progress import track_progress

_NAMED = 3  # files that are listed

#: Splits a text into units that are compared: token ids, or numbers for words.
Split = Callable[[str], list[int]]


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
    where: str = "--model",
    objective: ObjectiveConfig | None = None,
) -> DataReport:
    """Check every row of a data source.

    Args:
        data: the source.
        model: its processor checks the rows, and its tokenizer splits the texts; None: unknown, and
            texts are split at whitespace.
        where: the option that named the model.
        console: the console for progress.
        objective: the objective to be trained on the rows; None: one that reads only what all do.

    Raises:
        UserError: the data or the model cannot be read.
    """
    if data.source == SHAPES:
        raise UserError("shapes: the embedded world's pairs are drawn: there is nothing to check")
    broken = problem(data)
    if broken is not None:
        raise UserError(broken)
    asks = RowRequirements() if objective is None else row_requirements(objective)
    taken = None if model is None else ProcessorChecker(_processor(model, where))
    split = _words() if taken is None else taken.special_tokens.ids
    with track_progress(console, "files opened") as opened:  # their number is not known yet
        source = open_source(data, opened)
    report = DataReport(
        source=data.source,
        format=source.format.name,
        files=len(source.tables),
        read=[table.location(0).file for table in source.tables if len(table)][:_NAMED],
        unit="words" if model is None else "tokens",
        asked=asks.names,
    )
    with track_progress(console, "rows checked", len(source)) as step:
        threads = decode_threads(len(source))
        rows = check_rows(source, requirements=asks, model=taken, threads=threads)
        for done, checked in enumerate(rows, start=1):
            if isinstance(checked, BadRow):
                report.bad.append(checked)
            else:
                _note(report, checked, split, in_tokens=model is not None)
            step(done)
    return report


def data_lines(report: DataReport) -> Iterator[RenderableType]:
    """Format the result as text."""
    files = f"{report.files} file{'s' if report.files != 1 else ''}"
    yield Text(
        f"{report.source}: {report.rows} rows in {files}, format {report.format}", style="bold"
    )
    if report.files > 1:
        more = ", …" if report.files > len(report.read) else ""
        yield Text(f"read: {', '.join(report.read)}{more}")
    if report.good:
        table = Table(box=None, pad_edge=False)
        for title in ("", "least", "median", "mean", "most"):
            table.add_column(title, justify="right" if title else "left")
        for name, values in summary(report).items():
            table.add_row(name, *(_number(value) for value in values.values()))
        yield table
        how = "by the model's tokenizer" if report.unit == "tokens" else "by whitespace: no --model"
        yield Text(f"changed: share of a response's {report.unit} that differ, split {how}")
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
        "figures": summary(report),
        "bad": [
            {
                "file": row.location.file,
                row.location.unit: row.location.row,
                "reason": row.reason,
            }
            for row in report.bad
        ],
    }


def summary(report: DataReport) -> dict[str, dict[str, float]]:
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


def _note(report: DataReport, checked: ValidRow, split: Split, *, in_tokens: bool) -> None:
    texts = checked.row.texts
    report.good += 1
    report.rejected_images += checked.row.rejected_image is not None
    report.sides += checked.row.separate_images
    parts = {name: split(getattr(texts, name)) for name in ("prompt", "chosen", "rejected")}
    for name in parts:
        report.add(f"{name}, characters", len(getattr(texts, name)))
    if in_tokens:
        for name, ids in parts.items():
            report.add(f"{name}, tokens", len(ids))
    report.add("image width, pixels", checked.size[0])
    report.add("image height, pixels", checked.size[1])
    changed = changed_positions(parts["chosen"], parts["rejected"])
    for name, positions in zip(("chosen", "rejected"), changed, strict=True):
        report.add(f"{name} changed, %", 100 * len(positions) / max(len(parts[name]), 1))


def _words() -> Split:
    known: dict[str, int] = {}
    return lambda text: [known.setdefault(word, len(known)) for word in text.split()]


def _processor(model: ModelConfig, where: str) -> Any:
    """Return a model's processor.

    Raises:
        UserError: it cannot be loaded.
    """
    broken = loading.problem(model)
    if broken is None and loading.local_folder(model.path) is None:
        broken = _away(model)
    if broken is not None:
        raise UserError(f"{where}: {broken}")
    try:
        return loading.load_processor_only(model)
    except TrialError as error:
        raise UserError(f"{where}: {error}") from None


def _away(model: ModelConfig) -> str | None:
    """Return why a model cannot be loaded from the hub or a local copy; None if it can."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model.path, "config.json", revision=model.revision), str):
        return None
    away = hub_error("model", model.path, model.revision)
    if away is None:
        return None
    return (
        f"{model.path}: the hub cannot be reached ({away}), and this machine has no copy of it: "
        "check the name and the network, or name a folder"
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"
