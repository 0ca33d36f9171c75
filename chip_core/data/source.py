"""Open a data source: its rows as texts and images, its problems, its identity."""

from __future__ import annotations

import hashlib
import itertools
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chip_core.config.trial import DataConfig
from chip_core.data.encodings import may_hold_special_tokens
from chip_core.data.files import (
    JSON_LINES_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    find_data_files,
    is_hub_name,
)
from chip_core.data.formats import FORMATS, Format, find_format, find_rejected_image
from chip_core.data.formats.base import (
    CHOSEN_IMAGE_COLUMNS,
    REJECTED_IMAGE_COLUMNS,
    SECOND_IMAGE_COLUMNS,
    find_first_image,
)
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import ImageRef, PreferenceTexts, RowError, RowLocation, check_texts
from chip_core.data.tables import HubTable, JsonTable, ParquetTable, RowReader, Table
from chip_core.utils.errors import ConfigError, first_line
from chip_core.utils.files import expand_path, file_sha256

SHAPES = "shapes"


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A row whose texts are a preference; its images are not decoded yet."""

    index: int
    texts: PreferenceTexts
    image: ImageRef  # the pair's, or the chosen response's own
    rejected_image: ImageRef | None
    images: ImageReader
    separate_images: bool = False  # whether the rejected image is the rejected response's own
    raw: Mapping[str, Any] = field(default_factory=dict)  # for `parse_extra_cells`

    @property
    def id(self) -> str | None:
        """The row's own id."""
        return self.texts.id


class DataSource:
    """The rows of all shards, numbered consecutively."""

    def __init__(self, data: DataConfig, tables: list[Table]) -> None:
        self.tables = tables
        self.format = _select_format(data, tables)
        root = None if data.image_root is None else expand_path(data.image_root)
        self._images = [ImageReader(root or table.folder, data.transparency) for table in tables]
        self._starts = [0]
        for table in tables:
            self._starts.append(self._starts[-1] + len(table))
        row_count = self._starts[-1]
        self._length = row_count if data.limit is None else min(data.limit, row_count)

    def __len__(self) -> int:
        return self._length

    def location(self, index: int) -> RowLocation:
        """Return the location of a row."""
        shard, row = self._locate(index)
        return self.tables[shard].location(row)

    def fallback_id(self, index: int) -> str:
        """Return the id of a row without one: its shard's name and its number."""
        shard, row = self._locate(index)
        return f"{self.tables[shard].name}:{row}"

    def scan(self) -> Iterator[tuple[int, SourceRow | RowError]]:
        """Yield each row with its number, in order; for a bad row the reason."""
        for index, shard, read in self._iter_readers():
            try:
                yield index, self._row(index, shard, read())
            except RowError as error:
                yield index, error

    def row(self, index: int) -> SourceRow:
        """Return one row.

        Raises:
            RowError: it is bad.
        """
        shard, row = self._locate(index)
        return self._row(index, shard, self.tables[shard].read(row))

    def raw(self, index: int) -> tuple[Mapping[str, Any], ImageReader]:
        """Return one row's raw cells, and the reader of its images.

        Raises:
            RowError: it cannot be read.
        """
        shard, row = self._locate(index)
        return self.tables[shard].read(row), self._images[shard]

    def is_read_differently(self) -> bool:
        """Return whether versions before 2026-11-28 read a row differently, or refused it.

        A text with what may be a special token of a model's family was tokenized differently; the
        chosen response's own image was ignored.
        """
        for _, _, read in self._iter_readers((*self.format.text_columns, *CHOSEN_IMAGE_COLUMNS)):
            try:
                raw = read()
                texts, has_chosen_image = self.format.parse_texts(raw), _has_chosen_image(raw)
            except RowError:
                continue  # reported when the rows are checked
            if (
                texts.read_differently
                or has_chosen_image
                or any(
                    may_hold_special_tokens(text)
                    for text in (texts.prompt, texts.chosen, texts.rejected)
                )
            ):
                return True
        return False

    def has_separate_images(self, rows: int) -> bool:
        """Return whether one of the first rows has an image of the chosen response's own."""
        first = itertools.islice(self._iter_readers(CHOSEN_IMAGE_COLUMNS), rows)
        for _, _, read in first:
            with suppress(RowError):  # reported when the rows are checked
                if _has_chosen_image(read()):
                    return True
        return False

    def iter_image_files(self) -> Iterator[tuple[str, Path | None]]:
        """Yield each image path, and its file if it exists."""
        columns = (
            *self.format.image_columns,
            *CHOSEN_IMAGE_COLUMNS,
            *REJECTED_IMAGE_COLUMNS,
            *SECOND_IMAGE_COLUMNS,
        )
        if all(table.has_no_image_paths(columns) for table in self.tables):
            return
        for _, shard, read in self._iter_readers(columns):
            try:
                raw = read()
                refs = (
                    self.format.parse_image(raw),
                    find_first_image(raw, *CHOSEN_IMAGE_COLUMNS),
                    find_rejected_image(raw),
                    find_first_image(raw, *SECOND_IMAGE_COLUMNS),
                )
            except RowError:
                continue  # reported when the rows are checked
            for ref in refs:
                if ref is None or ref.data is not None or ref.path is None:
                    continue
                try:
                    yield ref.path, self._images[shard].resolve_file(ref.path)
                except RowError:
                    yield ref.path, None

    def _iter_readers(
        self, columns: tuple[str, ...] | None = None
    ) -> Iterator[tuple[int, int, RowReader]]:
        index = 0
        for shard, table in enumerate(self.tables):
            for read in table.scan(columns):
                if index >= self._length:
                    return
                yield index, shard, read
                index += 1

    def _row(self, index: int, shard: int, raw: Mapping[str, Any]) -> SourceRow:
        texts, rejected = self.format.parse_texts(raw), find_rejected_image(raw)
        image = self.format.parse_image(raw)
        chosen_image = find_first_image(raw, *CHOSEN_IMAGE_COLUMNS)
        if chosen_image != ImageRef():
            if image != ImageRef():
                raise RowError("image and chosen_image: leave image out, or chosen_image")
            if rejected is None:
                raise RowError("chosen_image without rejected_image, the other response's own")
            image = chosen_image
        separate_images = chosen_image not in (ImageRef(), rejected)
        check_texts(texts, separate_images=separate_images)
        if image == ImageRef():
            raise RowError("no image")
        return SourceRow(
            index=index,
            texts=texts,
            image=image,
            rejected_image=rejected,
            images=self._images[shard],
            separate_images=separate_images,
            raw=raw,
        )

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]


def _has_chosen_image(raw: Mapping[str, Any]) -> bool:
    return find_first_image(raw, *CHOSEN_IMAGE_COLUMNS) != ImageRef()


def open_source(
    data: DataConfig, on_file: Callable[[int, int], None] = lambda done, total: None
) -> DataSource:
    """Open a source other than the embedded world.

    Args:
        data: the source.
        on_file: called with (files opened, files).

    Raises:
        ConfigError: there is no such file, it cannot be read, or its columns fit no format.
    """
    if is_hub_name(data.source):
        return DataSource(data, _open_hub_tables(data))
    tables: list[Table] = []
    files = find_data_files(data)
    for file in files:
        tables.append(_open_file_table(file))
        on_file(len(tables), len(files))
    return DataSource(data, tables)


def is_local(data: DataConfig) -> bool:
    """Return whether a source can be opened without downloading it from the hub."""
    if data.source == SHAPES or not is_hub_name(data.source):
        return True
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, name = data.source.split("/")
    return (Path(config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}").is_dir()


def find_source_problem(data: DataConfig) -> str | None:
    """Return what is wrong with a source before anything is started; None if nothing.

    Its rows are not checked, and a hub name is not looked up.
    """
    if data.source == SHAPES and data.split is not None:
        return f"split '{data.split}': only a folder or a hub name has splits"
    if data.source == SHAPES or is_hub_name(data.source):
        return None
    if data.image_root is not None and not os.path.isdir(expand_path(data.image_root)):
        return (
            f"no folder {data.image_root}: data.image_root is the folder that image paths start "
            "from"
        )
    try:
        source = open_source(data)
    except ConfigError as error:
        return error.problems[0]
    return None if len(source) else f"{data.source} has no rows"


def count_rows(data: DataConfig) -> int | None:
    """Return the number of rows of a source, bad ones included; None for a hub name."""
    if data.source == SHAPES:
        from chip_core.shapes import world

        row_count = world.SPLIT_SIZES["train"]
        return row_count if data.limit is None else min(data.limit, row_count)
    return None if is_hub_name(data.source) else len(open_source(data))


def identity(data: DataConfig) -> dict[str, Any]:
    """Return what a fingerprint includes of a source: its content, not its location.

    It includes the files' names, which are part of the ids of rows without their own, and images
    that rows name by path, by content. It includes how rows are read if one of them was once read
    differently.
    """
    if data.source == SHAPES:
        return {"source": SHAPES}
    if is_hub_name(data.source):
        return {"hub": data.source, "revision": data.revision or "main", "format": data.format}
    source = open_source(data)
    files = [[file.name, file_sha256(file)] for file in find_data_files(data)]
    images = hashlib.sha256()
    seen: set[tuple[str, str]] = set()
    for path, file in source.iter_image_files():
        key = (path, "none" if file is None else file_sha256(file))
        if key not in seen:
            seen.add(key)
            images.update("\0".join((*key, "")).encode("utf-8", "surrogatepass"))
    return {
        "files": files,
        "format": source.format.name,
        **({"images": images.hexdigest()} if seen else {}),
        **({"reading": 2} if source.is_read_differently() else {}),
    }


def _open_file_table(file: Path) -> Table:
    if file.suffix.lower() in PARQUET_SUFFIXES:
        return ParquetTable(file, file.name)
    return JsonTable(file, file.name)


def _open_hub_tables(data: DataConfig) -> list[Table]:
    from datasets import load_dataset

    split = data.split or "train"
    network_error = find_hub_error("dataset", data.source, data.revision)
    if network_error is not None and not is_local(data):
        raise ConfigError(
            [
                f"{data.source}: the hub cannot be reached ({network_error}), and no copy of it is "
                "among this machine's data sets: check the name and the network, or name a file"
            ]
        )
    with _hub_offline() if network_error is not None else nullcontext():
        try:
            dataset = load_dataset(data.source, split=split, revision=data.revision)
            table = HubTable(dataset, data.source)
            files = _download_json_files(data, split) if table.has_times else []
        except Exception as error:  # hub, network and loaders may raise anything
            reason = first_line(error)
            raise ConfigError(
                [f"{data.source}, split {split}, cannot be loaded ({reason})"]
            ) from None
    # `datasets` converts JSON texts to times if all of a column look like times, so read them
    # directly.
    return [JsonTable(file, data.source, is_download=True) for file in files] or [table]


def _download_json_files(data: DataConfig, split: str) -> list[Path]:
    """Return a hub data set's JSON files, downloaded; none if it has other files."""
    from datasets import DownloadManager, load_dataset_builder

    builder = load_dataset_builder(data.source, revision=data.revision)
    file_names = (builder.config.data_files or {}).get(split, [])
    if not file_names or any(
        Path(str(name)).suffix not in (*JSON_LINES_SUFFIXES, *JSON_SUFFIXES) for name in file_names
    ):
        return []
    return [Path(file) for file in DownloadManager().download(list(file_names))]


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Let `datasets` read its cache without waiting half a minute for the network."""
    from datasets import config

    previous = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = previous


def _select_format(data: DataConfig, tables: list[Table]) -> Format:
    if data.format != "auto":
        return FORMATS[data.format]
    first = next((table for table in tables if len(table)), None)
    kinds = {} if first is None else first.kinds
    data_format = find_format(kinds)
    if data_format is None and isinstance(first, JsonTable):
        kinds = (
            first.kinds_of_all_rows()
        )  # some columns may be missing from the first rows; list all
        data_format = find_format(kinds)
        if not kinds:
            raise ConfigError([f"{first.file} holds no row: write one JSON object per line"])
    if data_format is None and kinds:
        formats_text = "; ".join(f"{entry.name}: {entry.description}" for entry in FORMATS.values())
        prefix = f"{first.location(0).file}: " if first is not None and len(tables) > 1 else ""
        raise ConfigError(
            [f"{prefix}the columns {', '.join(kinds)} fit no format ({formats_text})"]
        )
    return data_format or FORMATS["jsonl"]  # without rows it reads nothing


_HUB_TIMEOUT = 5.0  # to wait for an answer


def find_hub_error(
    kind: Literal["dataset", "model"], name: str, revision: str | None = None
) -> str | None:
    """Return why the hub cannot be reached for a name; None if it answers, whatever the answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    fetch_info = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        fetch_info(name, revision=revision, timeout=_HUB_TIMEOUT)
    except HfHubHTTPError as error:
        code = error.response.status_code
        return f"it answers {code}" if code >= 500 else None
    except ValueError:  # an impossible name: reported when it is loaded
        return None
    except Exception as error:  # the network may raise anything
        return first_line(error)
    return None
