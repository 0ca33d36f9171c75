"""Find the files of a data source, and identify them by content."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from chip_core.config.trial import DataConfig
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path

PARQUET_SUFFIXES, JSON_LINES_SUFFIXES = (".parquet",), (".jsonl", ".ndjson")
#: Read if they are named; a folder holds other such files, for example dataset_info.json.
JSON_SUFFIXES = (".json",)
MAX_ENTRIES = 100_000  # files and folders below a source; a data set has fewer
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GLOB = re.compile(r"[*?\[]")


def is_hub_name(source: str) -> bool:
    """Return whether a source is a data set's name on the hub: `owner/name`, not a local file."""
    return (
        bool(_HUB_NAME.fullmatch(source))
        and not source.startswith(".")
        and Path(source).suffix not in (*PARQUET_SUFFIXES, *JSON_LINES_SUFFIXES, *JSON_SUFFIXES)
        and not os.path.exists(expand_path(source))
    )


def find_data_files(data: DataConfig) -> list[Path]:
    """Return the files of a local source, sorted by path.

    Raises:
        ConfigError: there is none, or they are of different kinds.
    """
    source = data.source
    path = expand_path(source)
    if os.path.isdir(path):  # False for a name that no file can have
        files = _find_in_folder(path, data.split)
        if not files:
            split_text = f" of the split '{data.split}'" if data.split else ""
            hint = ": name a .json file itself" if any(path.glob("*.json")) else ""
            raise ConfigError([f"no *.parquet or *.jsonl{split_text} in {source}{hint}"])
    else:
        if data.split is not None:
            raise ConfigError([f"split '{data.split}': only a folder or a hub name has splits"])
        if os.path.isfile(path):
            files = [path]
        else:
            matches = glob.glob(str(path), recursive=True) if _GLOB.search(source) else []
            files = sorted(Path(match) for match in matches if Path(match).is_file())
        if not files:
            raise ConfigError(
                [f"no file {source}: name a file, a folder, a glob, or owner/name on the hub"]
            )
    unsupported = [
        file
        for file in files
        if file.suffix.lower() not in (*PARQUET_SUFFIXES, *JSON_LINES_SUFFIXES, *JSON_SUFFIXES)
    ]
    if unsupported:
        raise ConfigError([f"{unsupported[0]} is neither .parquet nor .jsonl: convert it"])
    if len({file.suffix.lower() in PARQUET_SUFFIXES for file in files}) > 1:
        raise ConfigError([f"{source} holds parquet and JSON lines: select one kind with a glob"])
    return files


def get_cache_folder() -> Path:
    """Return the folder for copies of data: $CHIP_ABLATE_CACHE, or the user's cache folder."""
    configured = os.environ.get("CHIP_ABLATE_CACHE")
    if configured:
        return expand_path(configured)
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_path(cache_home) / "chip-ablate"


def _find_in_folder(folder: Path, split: str | None) -> list[Path]:
    files = []
    for file in sorted(_iter_data_files(folder)):
        relative_path = file.relative_to(folder)
        # As on the hub: train.parquet, train-00000-of-00002.parquet, or a folder train/.
        is_in_split = (
            split in relative_path.parts[:-1] or re.split(r"[-.]", relative_path.name)[0] == split
        )
        if split is None or is_in_split:
            files.append(file)
    return files


def _iter_data_files(folder: Path) -> Iterator[Path]:
    """Yield the data files below a folder, without hidden ones.

    Raises:
        ConfigError: there are too many entries below it.
    """
    entries = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        entries += len(folders) + len(names)
        if entries > MAX_ENTRIES:
            raise ConfigError(
                [
                    f"{folder} holds more than {MAX_ENTRIES:,} files: name the folder with only "
                    "the data, or a glob"
                ]
            )
        for name in names:
            file = Path(parent, name)
            if (
                not name.startswith(".")
                and file.suffix.lower() in (*PARQUET_SUFFIXES, *JSON_LINES_SUFFIXES)
                and file.is_file()
            ):
                yield file
