"""Check a study's training rows, with their images decoded, before anything runs.

Rows that passed are recorded by content. No study of the work directory checks them again unless
it needs more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from chip_core.config.identity import fingerprint
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.data import row_requirements
from chip_core.data.checks import check_rows, decode_threads, format_bad_rows
from chip_core.data.files import is_hub_name
from chip_core.data.formats.extra_columns import RowRequirements
from chip_core.data.image_files import READER_VERSION
from chip_core.data.rejected_images import strategy_class
from chip_core.data.rows import BadRow
from chip_core.data.source import SHAPES, DataSource, is_local, open_source
from chip_core.pairs.prompts import check_prompts, open_prompts
from chip_core.utils.errors import ConfigError, warn_once
from chip_core.utils.files import file_sha256, read_checksummed, write_checksummed
from orchestrator.plan.plan import Plan
from orchestrator.utils.progress import track_progress

KEPT = Path("cache", "rows")  # in a work directory

#: Rows that passed in this process: their hash -> the sets of checks that they passed.
_good: dict[str, set[frozenset[str]]] = {}


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A data source, and what its rows must have for the arms that train on it."""

    data: DataConfig
    prompts: bool  # whether they are prompts for a model: `pairs.rounds`
    asks: RowRequirements = RowRequirements()
    given: bool = False  # whether each row needs its own rejected image

    @property
    def asked(self) -> frozenset[str]:
        """The names of the checks."""
        return frozenset([*self.asks.names, *(["rejected_image"] if self.given else [])])


def check_training_rows(
    plan: Plan, configs: Iterable[TrialConfig], workdir: Path, console: Console
) -> None:
    """Check the rows of trainings. Nothing is written; `keep_checked` records the result.

    Rows of a hub data set that has not been downloaded are checked when a training begins.

    Args:
        plan: the study's plan.
        configs: configurations of its trainings.
        workdir: the work directory, which has the earlier results.
        console: shows the progress.

    Raises:
        ConfigError: there are bad rows that must not be skipped; one line per data source.
    """
    problems = []
    for wanted in _wanted(configs):
        data = wanted.data
        if not is_local(data):
            warn_once(
                f"{data.source} has not been fetched: its rows are checked as a training begins"
            )
            continue
        mark = _mark(plan.identity(data), wanted)
        if any(wanted.asked <= asked for asked in _kept(workdir, mark) | _good.get(mark, set())):
            continue
        try:
            rows, bad = _checked(wanted, console)
        except ConfigError as error:
            problems += [f"data.source: {problem}" for problem in error.problems]
            continue
        if bad:
            out = {"leave_out": "of the file"} if wanted.prompts else {}
            problems.append(f"data.source: {format_bad_rows(bad, rows, **out)}")
        else:
            _good.setdefault(mark, set()).add(wanted.asked)
    if problems:
        raise ConfigError(f"{plan.study.source}: {problem}" for problem in problems)


def keep_checked(plan: Plan, workdir: Path) -> None:
    """Record the rows of a plan that passed in this process."""
    if not _good:
        return
    for wanted in _wanted(arm.trials[0].config for arm in plan.arms):
        if not is_local(wanted.data):
            continue
        mark = _mark(plan.identity(wanted.data), wanted)
        kept = _kept(workdir, mark)
        found = kept | _good.get(mark, set())
        if found != kept:
            write_checksummed(_file(workdir, mark), {"asked": sorted(map(sorted, found))})


def _wanted(configs: Iterable[TrialConfig]) -> list[_Wanted]:
    """Return each data source of the trainings once, with all that they need of its rows."""
    found: dict[tuple[str, bool], _Wanted] = {}
    for config in configs:
        data, rounds = config.data, bool(config.pairs.rounds)
        if data.source == SHAPES or (data.on_bad_row == "skip" and not rounds):
            continue
        key = (data.model_dump_json(), rounds)
        before = found.get(key, _Wanted(data=data, prompts=rounds))
        if not rounds:
            asks, needs_given = row_requirements(config.objective), _needs_given(config)
            asks = RowRequirements(
                other=asks.other or before.asks.other,
                second_image=asks.second_image or before.asks.second_image,
                columns=tuple(dict.fromkeys((*before.asks.columns, *asks.columns))),
            )
            before = replace(before, asks=asks, given=needs_given or before.given)
        found[key] = before
    return list(found.values())


def _needs_given(config: TrialConfig) -> bool:
    given: bool = strategy_class(config.rejected_image.strategy).traits.needs_given
    return given and config.objective.needs_rejected_image


def _checked(wanted: _Wanted, console: Console) -> tuple[int, list[BadRow]]:
    """Check rows, and return their number and the bad ones.

    Raises:
        ConfigError: the rows cannot be read.
    """
    source = open_prompts(wanted.data)[0] if wanted.prompts else open_source(wanted.data)
    bad = []
    with track_progress(console, "rows checked", len(source)) as step:
        for done, row in enumerate(_looked_at(wanted, source), start=1):
            if isinstance(row, BadRow):
                bad.append(row)
            step(done)
    return len(source), bad


def _looked_at(wanted: _Wanted, source: DataSource) -> Iterator[object]:
    threads = decode_threads(len(source))
    if wanted.prompts:
        return check_prompts(wanted.data, threads)
    return check_rows(
        source, rejected_images=wanted.given, requirements=wanted.asks, threads=threads
    )


def _mark(identity: Mapping[str, Any], wanted: _Wanted) -> str:
    """Return a hash of the content of rows and of how they are read."""
    data = wanted.data
    decided_by: dict[str, Any] = {
        "data": identity,
        "limit": data.limit,
        "format": data.format,
        "prompts": wanted.prompts,
        "reader": READER_VERSION,
    }
    if is_hub_name(data.source):  # its identity holds the name alone
        source = open_source(data)
        decided_by["fetched"] = [
            [str(file), state.st_size, state.st_mtime_ns]
            for table in source.tables
            for file in table.files
            for state in [os.stat(file)]
        ]
        images = {path: file and file_sha256(file) for path, file in source.image_files()}
        decided_by["images"] = sorted(images.items())
    return fingerprint(decided_by)[:32]


def _kept(workdir: Path, mark: str) -> set[frozenset[str]]:
    with suppress(OSError, ValueError, KeyError, TypeError):  # else they are checked again
        return {frozenset(asked) for asked in read_checksummed(_file(workdir, mark))["asked"]}
    return set()


def _file(workdir: Path, mark: str) -> Path:
    return workdir / KEPT / f"{mark}.json"
