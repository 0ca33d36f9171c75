"""Read rows of a file by number, without loading the file: parquet, JSON lines, a hub's data set.

A table is read in two ways. `scan` reads it once, in order. `read` returns any row: a parquet file
is copied once to an Arrow file named by its content hash, which is memory-mapped, because a parquet
row cannot be read without unpacking its whole group.
"""

from __future__ import annotations

import codecs
import json
import re
import uuid
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chip_core.data.files import get_cache_folder
from chip_core.data.rows import RowError, RowLocation
from chip_core.utils.errors import ConfigError, first_line
from chip_core.utils.files import file_sha256

_BATCH_ROWS = 16  # rows of an Arrow batch, and rows that determine a JSON-lines file's columns
_BUFFER_BYTES = 2**20  # bytes of a column that are read from a parquet file at a time
_MAX_JSON_BYTES = 2**31  # bytes of a file that is read whole, because a row is not a line
#: Columns with messages in some rows and texts in others; the reader of lists accepts both.
_CONVERSATIONS = frozenset({"prompt", "question", "chosen", "rejected"})
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_COLUMN_KINDS: dict[type, str] = {str: "string", bytes: "binary", dict: "struct", list: "list"}

#: Reads one row; raises RowError if it cannot be read.
RowReader = Callable[[], Mapping[str, Any]]


class Table(Protocol):
    """Rows of one file."""

    @property
    def name(self) -> str:
        """The prefix of its rows' ids."""

    @property
    def kinds(self) -> Mapping[str, str]:
        """Column -> "string", "binary", "struct", "list" or "other"."""

    @property
    def folder(self) -> Path | None:
        """The folder of relative image paths."""

    @property
    def files(self) -> Sequence[Path]:
        """The files of its rows."""

    def has_no_image_paths(self, columns: Sequence[str]) -> bool:
        """Return whether these columns certainly name no image by path; rows are not read."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def location(self, index: int) -> RowLocation:
        """Return the location of a row, for messages."""

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[RowReader]:
        """Yield a reader for each row, in order; it is valid until the next one is requested."""

    def read(self, index: int) -> Mapping[str, Any]:
        """Return one row."""


class ParquetTable:
    """A parquet file."""

    def __init__(self, file: Path, name: str) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.name, self._file, self.folder = name, file, file.parent
        self.files = [file]
        try:
            # Neither mapped nor prefetched: everything read would stay in this process's memory.
            self._parquet = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError([f"{file} cannot be read as parquet ({first_line(error)})"]) from None
        self.kinds = {
            field.name: _get_column_kind(field.type) for field in self._parquet.schema_arrow
        }
        self._copy: Any = None
        self._starts: list[int] = []

    def has_no_image_paths(self, columns: Sequence[str]) -> bool:
        """Return whether the file's statistics show that every image has bytes."""
        if [name for name in columns if name in self.kinds and name != "image_path"] != ["image"]:
            return False
        metadata = self._parquet.metadata
        for group in range(metadata.num_row_groups):
            row_group = metadata.row_group(group)
            chunks = [row_group.column(index) for index in range(row_group.num_columns)]
            statistics = [
                chunk.statistics for chunk in chunks if chunk.path_in_schema == "image.bytes"
            ]
            if not statistics or statistics[0] is None or statistics[0].null_count != 0:
                return False
        return True

    def __len__(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def location(self, index: int) -> RowLocation:
        """Return the file and the row, from 0."""
        return RowLocation(file=str(self._file), row=index)

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[RowReader]:
        """Yield a reader for each row; only a few rows are in memory at a time."""
        present = None if columns is None else [name for name in columns if name in self.kinds]
        for batch in self._iter_batches(present):
            for row in range(batch.num_rows):
                yield partial(_read_arrow_row, batch, row)

    def read(self, index: int) -> Mapping[str, Any]:
        """Return one row from the memory-mapped copy."""
        if self._copy is None:
            self._copy = self._open_copy()
            self._starts = [0]
            for batch_index in range(self._copy.num_record_batches):
                self._starts.append(self._starts[-1] + self._copy.get_batch(batch_index).num_rows)
        batch_index = bisect_right(self._starts, index) - 1
        return _read_arrow_row(self._copy.get_batch(batch_index), index - self._starts[batch_index])

    def _open_copy(self) -> Any:
        import pyarrow as pa

        copy = get_cache_folder() / "data" / f"{file_sha256(self._file)}.arrow"
        if not copy.exists():
            partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}.partial")
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                with pa.ipc.new_file(str(partial), self._parquet.schema_arrow) as out:
                    for batch in self._iter_batches(None):
                        out.write_batch(batch)
                partial.replace(copy)
            except OSError as error:
                with suppress(OSError):
                    partial.unlink()
                raise ConfigError(
                    [
                        f"{copy.parent} cannot be written ({first_line(error)}): "
                        "set CHIP_ABLATE_CACHE"
                    ]
                ) from None
        return pa.ipc.open_file(pa.memory_map(str(copy)))

    def _iter_batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        import pyarrow as pa

        batches = self._parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as error:
                raise ConfigError([f"{self._file} is damaged ({first_line(error)})"]) from None
            if batch is None:
                return
            yield batch


class JsonTable:
    """A JSON file; only the offsets of its rows are in memory.

    It has one object per line, ignoring blank lines, or one array of objects, or objects one after
    another over several lines each.
    """

    def __init__(self, file: Path, name: str, *, is_download: bool = False) -> None:
        """Find the rows of a file.

        Args:
            file: the file.
            name: the prefix of its rows' ids.
            is_download: whether it is a downloaded copy, without images next to it.

        Raises:
            ConfigError: it cannot be read, or holds no rows.
        """
        self.name, self.file, self.folder = name, file, None if is_download else file.parent
        self.files = [file]
        self._starts, self._lines = array("Q"), array("Q")
        self._lengths: array[int] | None = None  # of rows that are not lines
        try:
            if _is_json_lines(file):
                self._index_lines()
            else:
                self._index_values()
        except OSError as error:
            raise ConfigError([f"{file} cannot be read ({first_line(error)})"]) from None
        self.kinds = self._kinds_of(range(min(len(self), _BATCH_ROWS)))

    def has_no_image_paths(self, columns: Sequence[str]) -> bool:
        """Return False: JSON names images by path."""
        return False

    def __len__(self) -> int:
        return len(self._starts)

    def location(self, index: int) -> RowLocation:
        """Return the file and the line, from 1; for an array on one line the row, from 0."""
        if self._lengths is not None and len(self) > 1 and self._lines[0] == self._lines[-1]:
            return RowLocation(file=str(self.file), row=index)
        return RowLocation(file=str(self.file), row=self._lines[index], unit="line")

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[RowReader]:
        """Yield a reader for each row."""
        for index in range(len(self)):
            yield partial(self.read, index)

    def read(self, index: int) -> Mapping[str, Any]:
        """Return one row's object."""
        with self.file.open("rb") as opened:
            opened.seek(self._starts[index])
            line = opened.readline() if self._lengths is None else opened.read(self._lengths[index])
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise RowError(f"not UTF-8 at byte {error.start} of the line") from None
        except (ValueError, RecursionError) as error:
            raise RowError(f"not JSON ({_describe_json_error(error)})") from None
        if not isinstance(value, dict):
            raise RowError("not a JSON object")
        return value

    def kinds_of_all_rows(self) -> Mapping[str, str]:
        """Return the columns of all rows if the first rows do not have all of them."""
        return self._kinds_of(range(len(self)))

    def _index_lines(self) -> None:
        with self.file.open("rb") as opened:
            start = 0
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)

    def _index_values(self) -> None:
        """Find the rows of a file whose first line is not a row.

        Raises:
            ConfigError: it holds no rows at all.
        """
        try:
            if self.file.stat().st_size > _MAX_JSON_BYTES:
                raise ValueError(f"an array of more than {_MAX_JSON_BYTES:,} bytes is not read")
            text = self.file.read_bytes().decode("utf-8-sig")
            spans = list(_iter_value_spans(text))
        except (ValueError, RecursionError) as error:
            self._index_lines()
            if any(self._is_object(index) for index in range(min(len(self), _BATCH_ROWS))):
                return  # only its first line is bad
            raise ConfigError(
                [
                    f"{self.file} is neither JSON lines nor an array of rows "
                    f"({_describe_json_error(error)}): write one JSON object per line"
                ]
            ) from None
        previous, line, self._lengths = 0, 1, array("Q")
        offset = len(codecs.BOM_UTF8) if self._has_bom() else 0
        for start, end in spans:
            offset += len(text[previous:start].encode())
            line += text.count("\n", previous, start)
            self._starts.append(offset)
            self._lines.append(line)
            self._lengths.append(len(text[start:end].encode()))
            previous = start

    def _has_bom(self) -> bool:
        with self.file.open("rb") as opened:
            return opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8

    def _is_object(self, index: int) -> bool:
        try:
            self.read(index)
        except RowError:
            return False
        return True

    def _kinds_of(self, rows: range) -> dict[str, str]:
        """Return all columns of some rows, because a row may not have all of them."""
        kinds: dict[str, str] = {}
        for index in rows:
            try:
                row = self.read(index)
            except RowError:
                continue
            for name, value in row.items():
                if value is None:
                    continue
                kind = _COLUMN_KINDS.get(type(value), "other")
                messages = kind == "list" and all(isinstance(entry, dict) for entry in value)
                if name not in kinds or (messages and name in _CONVERSATIONS):
                    kinds[name] = kind
        return kinds


def _is_json_lines(file: Path) -> bool:
    """Return whether a file's first line that is not blank is one JSON value."""
    with file.open("rb") as opened:
        lines = (line for line in opened if line.strip())
        first, second = next(lines, b"{}"), next(lines, None)
    try:
        value = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    # `[{…}]` as its only line is an array; before other lines it is a bad row.
    return not isinstance(value, list) or second is not None


def _iter_value_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of the rows of a JSON array, or of objects one after another.

    Raises:
        ValueError: it is neither.
    """
    decoder = json.JSONDecoder()
    position = _skip_blanks(text, 0)
    is_array = text[position : position + 1] == "["
    position = _skip_blanks(text, position + 1) if is_array else position
    is_first = True
    while position < len(text) and not (is_array and text[position] == "]"):
        if is_array and not is_first:
            if text[position] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position = _skip_blanks(text, position + 1)
        value, end = decoder.raw_decode(text, position)
        if not is_array and not isinstance(value, dict):
            raise json.JSONDecodeError("not a JSON object", text, position)
        yield position, end
        position, is_first = _skip_blanks(text, end), False
    if is_array:
        end = _skip_blanks(text, position + 1)
        if position >= len(text) or end < len(text):
            problem = (
                "the array has no end" if position >= len(text) else "Extra data after the array"
            )
            raise json.JSONDecodeError(problem, text, min(position, len(text)))


def _skip_blanks(text: str, position: int) -> int:
    """Return the position of the next character that is not blank."""
    match = _NOT_BLANK.search(text, position)
    return len(text) if match is None else match.start()


class HubTable:
    """A data set of the hub, memory-mapped by `datasets`; images stay as they are stored."""

    folder = None

    def __init__(self, dataset: Any, name: str) -> None:
        self.name, self._dataset = name, dataset.with_format("arrow")
        self.files = [Path(entry["filename"]) for entry in dataset.cache_files]
        schema = self._dataset.data.schema
        self.kinds = {field.name: _get_column_kind(field.type) for field in schema}
        #: Whether a column holds dates or times, also nested ones.
        self.has_times = any(_has_time_values(field.type) for field in schema)

    def has_no_image_paths(self, columns: Sequence[str]) -> bool:
        """Return False, because it is not known."""
        return False

    def __len__(self) -> int:
        return len(self._dataset)

    def location(self, index: int) -> RowLocation:
        """Return the data set's name and the row, from 0."""
        return RowLocation(file=self.name, row=index)

    def scan(self, columns: Sequence[str] | None = None) -> Iterator[RowReader]:
        """Yield a reader for each row."""
        for index in range(len(self)):
            yield partial(self.read, index)

    def read(self, index: int) -> Mapping[str, Any]:
        """Return one row."""
        return _read_arrow_row(self._dataset[index], 0)


def _describe_json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return first_line(error)


def _read_arrow_row(batch: Any, row: int) -> Mapping[str, Any]:
    """Return one row of an Arrow batch or table as plain data."""
    raw: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            raw[name] = column[row].as_py()
        except UnicodeDecodeError as error:
            raise RowError(f"{name} is not UTF-8 at byte {error.start}") from None
    return raw


def _get_column_kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _get_column_kind(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "binary"
    if types.is_struct(kind):
        return "struct"
    if any(is_list(kind) for is_list in _list_predicates()):
        return "list"
    return "other"


def _list_predicates() -> tuple[Callable[[Any], bool], ...]:
    """Return the functions that recognize Arrow's list types."""
    from pyarrow import types

    return (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )


def _has_time_values(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_has_time_values(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_dictionary(kind) or any(is_list(kind) for is_list in _list_predicates()):
        return _has_time_values(kind.value_type)
    return bool(types.is_temporal(kind))
