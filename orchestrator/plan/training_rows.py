"""Check a study's training data before anything runs: its rows, and what benchmarks share with it.

Rows are checked with their images decoded. Those that passed are recorded by content: no study of
the work directory checks them again unless it needs more of them.

Training images that are also in a benchmark are counted: a figure on images used for training does
not measure generalization.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from chip_core.config.identity import fingerprint
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.data import row_requirements
from chip_core.data.checks import check_rows, decode_threads, format_bad_rows
from chip_core.data.files import is_hub_name
from chip_core.data.formats.extra_columns import RowRequirements
from chip_core.data.image_files import READER_VERSION
from chip_core.data.rejected_images import find_strategy
from chip_core.data.rows import BadRow, ImageRef, RowError
from chip_core.data.source import SHAPES, DataSource, SourceRow, is_local, open_source
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.overlap import find_shared_images
from chip_core.evaluation.readiness import list_sides
from chip_core.pairs.prompts import check_prompts, open_prompts
from chip_core.utils.errors import ConfigError, TrialError, UserError, warn_once
from chip_core.utils.files import file_sha256, parse_json, read_checksummed, write_checksummed
from orchestrator.plan.plan import Plan
from orchestrator.utils.progress import track_progress

CHECKED_ROWS_FOLDER = Path("cache", "rows")  # in a work directory
OVERLAP_FILE = "overlap.json"  # in a study's folder
_MAX_EXAMPLES = 3  # pairs that a sentence lists

#: Rows that passed in this process: their hash -> the sets of checks that they passed.
_passed_checks: dict[str, set[frozenset[str]]] = {}


@dataclass(frozen=True, kw_only=True)
class _RowRequirements:
    """A data source, and what its rows must have for the arms that train on it."""

    data: DataConfig
    prompts: bool  # whether they are prompts for a model: `pairs.rounds`
    columns: RowRequirements = RowRequirements()
    needs_rejected_image: bool = False  # whether each row needs its own rejected image

    @property
    def check_names(self) -> frozenset[str]:
        """The names of the checks."""
        return frozenset(
            [*self.columns.names, *(["rejected_image"] if self.needs_rejected_image else [])]
        )


def check_training_rows(
    plan: Plan, configs: Iterable[TrialConfig], workdir: Path, console: Console
) -> None:
    """Check the rows of trainings. Nothing is written; `save_checked_rows` records the result.

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
    for requirement in _row_requirements(configs):
        data = requirement.data
        if not is_local(data):
            warn_once(
                f"{data.source} has not been downloaded: its rows are checked when a training "
                "starts"
            )
            continue
        rows_hash = _rows_hash(plan.identity(data), requirement)
        if any(
            requirement.check_names <= passed
            for passed in _load_passed_checks(workdir, rows_hash)
            | _passed_checks.get(rows_hash, set())
        ):
            continue
        try:
            rows, bad_rows = _check_rows(requirement, console)
        except ConfigError as error:
            problems += [f"data.source: {problem}" for problem in error.problems]
            continue
        if bad_rows:
            line_options = {"skip_option": "of the file"} if requirement.prompts else {}
            problems.append(f"data.source: {format_bad_rows(bad_rows, rows, **line_options)}")
        else:
            _passed_checks.setdefault(rows_hash, set()).add(requirement.check_names)
    if problems:
        raise ConfigError(f"{plan.study.source}: {problem}" for problem in problems)


def save_checked_rows(plan: Plan, workdir: Path) -> None:
    """Record the rows of a plan that passed in this process."""
    if not _passed_checks:
        return
    for requirement in _row_requirements(arm.trials[0].config for arm in plan.arms):
        if not is_local(requirement.data):
            continue
        rows_hash = _rows_hash(plan.identity(requirement.data), requirement)
        saved = _load_passed_checks(workdir, rows_hash)
        passed = saved | _passed_checks.get(rows_hash, set())
        if passed != saved:
            write_checksummed(
                _checked_rows_file(workdir, rows_hash), {"asked": sorted(map(sorted, passed))}
            )


def _row_requirements(configs: Iterable[TrialConfig]) -> list[_RowRequirements]:
    """Return each data source of the trainings once, with all that they need of its rows."""
    requirements: dict[tuple[str, bool], _RowRequirements] = {}
    for config in configs:
        data, rounds = config.data, bool(config.pairs.rounds)
        if data.source == SHAPES or (data.on_bad_row == "skip" and not rounds):
            continue
        key = (data.model_dump_json(), rounds)
        requirement = requirements.get(key, _RowRequirements(data=data, prompts=rounds))
        if not rounds:
            columns = row_requirements(config.objective)
            needs_rejected_image = _needs_rejected_image(config)
            columns = RowRequirements(
                other=columns.other or requirement.columns.other,
                second_image=columns.second_image or requirement.columns.second_image,
                columns=tuple(dict.fromkeys((*requirement.columns.columns, *columns.columns))),
            )
            requirement = replace(
                requirement,
                columns=columns,
                needs_rejected_image=needs_rejected_image or requirement.needs_rejected_image,
            )
        requirements[key] = requirement
    return list(requirements.values())


def _needs_rejected_image(config: TrialConfig) -> bool:
    needs_image: bool = find_strategy(config.rejected_image.strategy).traits.needs_given
    return needs_image and config.objective.needs_rejected_image


def _check_rows(requirement: _RowRequirements, console: Console) -> tuple[int, list[BadRow]]:
    """Check rows, and return their number and the bad ones.

    Raises:
        ConfigError: the rows cannot be read.
    """
    source = (
        open_prompts(requirement.data)[0] if requirement.prompts else open_source(requirement.data)
    )
    bad_rows = []
    with track_progress(console, "rows checked", len(source)) as step:
        for done_count, row in enumerate(_iter_checked_rows(requirement, source), start=1):
            if isinstance(row, BadRow):
                bad_rows.append(row)
            step(done_count)
    return len(source), bad_rows


def _iter_checked_rows(requirement: _RowRequirements, source: DataSource) -> Iterator[object]:
    threads = decode_threads(len(source))
    if requirement.prompts:
        return check_prompts(requirement.data, threads)
    return check_rows(
        source,
        rejected_images=requirement.needs_rejected_image,
        requirements=requirement.columns,
        threads=threads,
    )


def _rows_hash(identity: Mapping[str, Any], requirement: _RowRequirements) -> str:
    """Return a hash of the content of rows and of how they are read."""
    data = requirement.data
    hashed: dict[str, Any] = {
        "data": identity,
        "limit": data.limit,
        "format": data.format,
        "prompts": requirement.prompts,
        "reader": READER_VERSION,
    }
    if is_hub_name(data.source):  # its identity holds the name alone
        source = open_source(data)
        hashed["fetched"] = [
            [str(file), state.st_size, state.st_mtime_ns]
            for table in source.tables
            for file in table.files
            for state in [os.stat(file)]
        ]
        images = {path: file and file_sha256(file) for path, file in source.iter_image_files()}
        hashed["images"] = sorted(images.items())
    return fingerprint(hashed)[:32]


def _load_passed_checks(workdir: Path, rows_hash: str) -> set[frozenset[str]]:
    with suppress(OSError, ValueError, KeyError, TypeError):  # else they are checked again
        return {
            frozenset(names)
            for names in read_checksummed(_checked_rows_file(workdir, rows_hash))["asked"]
        }
    return set()


def _checked_rows_file(workdir: Path, rows_hash: str) -> Path:
    return workdir / CHECKED_ROWS_FOLDER / f"{rows_hash}.json"


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The images that one benchmark shares with one training data source."""

    key: str  # "report/amber"
    source: str  # training data, as named in the configuration
    training: int | None  # number of training images; None: not counted
    pictures: int
    shared: int
    examples: tuple[tuple[str, str], ...] = ()  # (training image, benchmark picture)

    @property
    def sentence(self) -> str:
        """The overlap as a sentence for the report."""
        name = self.key.removeprefix("report/")
        if self.training is None:
            return (
                f"{name}: images that {self.source} shares with it were not counted (not a file)."
            )
        if not self.shared:
            return f"{name}: none of {self.training:,} training images is one of its pictures."
        shown = ", ".join(f"{one} is {other}" for one, other in self.examples)
        return (
            f"{name}: {self.shared:,} of {self.training:,} training images are among its "
            f"{self.pictures:,} pictures, by COCO id or by appearance "
            f"({shown}{', …' if self.shared > len(self.examples) else ''})."
        )


def count_overlaps(plan: Plan, workdir: Path) -> list[Overlap]:
    """Count and save the images that a study's data share with its benchmarks.

    Each pair of data source and benchmark is counted once per work directory.
    """
    overlaps = [
        _count_overlap(plan, data, key, workdir)
        for data in _iter_data_sources(plan)
        for key, identity in plan.benchmarks.items()
        if identity.get("files")
    ]
    rows = [asdict(overlap) for overlap in overlaps]
    write_checksummed(_overlap_file(workdir, plan.study.name), {"overlaps": rows})
    return overlaps


def recount_damaged_overlaps(plan: Plan, workdir: Path) -> None:
    """Count again if the saved file is damaged and the data are still there."""
    file = _overlap_file(workdir, plan.study.name)
    try:
        if not file.exists() or isinstance(parse_json(file.read_bytes()), list):
            return
        read_checksummed(file)
    except (OSError, ValueError):
        with suppress(UserError):
            count_overlaps(plan, workdir)


def read_overlaps(workdir: Path, study: str) -> list[Overlap]:
    """Return the overlaps counted when the study last ran; empty if there are none."""
    file = _overlap_file(workdir, study)
    try:
        raw = parse_json(file.read_bytes())
        # Versions without a checksum saved a list.
        rows = raw if isinstance(raw, list) else read_checksummed(file)["overlaps"]
        return [_parse_overlap(row) for row in rows]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        warn_once(
            f"{file} has changed since it was written: the overlap of training data and "
            "benchmarks is not reported"
        )
        return []


def _iter_data_sources(plan: Plan) -> Iterator[DataConfig]:
    seen_configs = set()
    for arm in plan.arms:
        data = arm.trials[0].config.data
        if data.source != SHAPES and data.model_dump_json() not in seen_configs:
            seen_configs.add(data.model_dump_json())
            yield data


def _count_overlap(plan: Plan, data: DataConfig, key: str, workdir: Path) -> Overlap:
    from chip_core import data as preference_data

    side, settings = next(
        (side, settings)
        for side, settings in list_sides(plan.study.benchmarks)
        if f"{side}/{settings.name}" == key
    )
    items, _ = select_items(side, settings, find_benchmark(settings.name), plan.data_paths)
    pictures = {picture.key: picture for item in items for picture in item.pictures}
    if is_hub_name(data.source):
        return Overlap(key=key, source=data.source, training=None, pictures=len(pictures), shared=0)
    cache_key = {
        "data": preference_data.identity(data),
        "limit": data.limit,
        "benchmark": plan.benchmarks[key],
        "pictures": sorted(pictures),
    }
    cache_file = workdir / "cache" / "overlap" / f"{fingerprint(cache_key)[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # else counted again
        return _parse_overlap(read_checksummed(cache_file))
    try:
        source = open_source(data)
        rows = [entry for _, entry in source.scan() if isinstance(entry, SourceRow)]
        images = [(row, row.image) for row in rows]
        images += [
            (row, row.rejected_image) for row in rows if row.separate_images and row.rejected_image
        ]
        shared = find_shared_images(
            (
                (image.path or f"row {row.index}", _image_reader(row, image))
                for row, image in images
            ),
            ((name, picture.read) for name, picture in pictures.items()),
        )
    except (ConfigError, TrialError) as error:
        raise UserError(str(error)) from None
    overlap = Overlap(
        key=key,
        source=data.source,
        training=len(images),
        pictures=len(pictures),
        shared=len(shared),
        examples=tuple(shared[:_MAX_EXAMPLES]),
    )
    write_checksummed(cache_file, asdict(overlap))
    return overlap


def _image_reader(row: SourceRow, image: ImageRef) -> Callable[[], Image.Image | None]:
    return partial(_read_thumbnail, row, image)


def _read_thumbnail(row: SourceRow, image: ImageRef) -> Image.Image | None:
    try:
        return row.images.read_small(image)
    except RowError:
        return None  # reported when the rows are checked


def _parse_overlap(row: dict[str, object]) -> Overlap:
    examples = tuple((one, other) for one, other in row.pop("examples"))  # type: ignore[attr-defined]
    return Overlap(**row, examples=examples)  # type: ignore[arg-type]


def _overlap_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / OVERLAP_FILE
