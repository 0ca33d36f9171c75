"""Count the training images that are also in a study's benchmarks.

A figure on pictures that were trained on does not measure generalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from chip_core.config.identity import fingerprint
from chip_core.config.trial import DataConfig
from chip_core.data.files import is_hub_name
from chip_core.data.rows import ImageRef, RowError
from chip_core.data.source import SHAPES, SourceRow, open_source
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.overlap import find_shared_images
from chip_core.evaluation.readiness import list_sides
from chip_core.utils.errors import ConfigError, TrialError, UserError, warn_once
from chip_core.utils.files import parse_json, read_checksummed, write_checksummed
from orchestrator.plan.plan import Plan

OVERLAP_FILE = "overlap.json"  # in a study's folder
_MAX_EXAMPLES = 3  # pairs that a sentence lists


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
            return f"{name}: whether {self.source} holds images of it was not counted (not a file)."
        if not self.shared:
            return f"{name}: none of {self.training:,} training images is one of its pictures."
        shown = ", ".join(f"{one} is {other}" for one, other in self.examples)
        return (
            f"{name}: {self.shared:,} of {self.training:,} training images are among its "
            f"{self.pictures:,} pictures, by COCO's number or by their looks ({shown}"
            f"{', …' if self.shared > len(self.examples) else ''})."
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
            f"{file} is not as it was written: what training data and benchmarks share is not told"
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
