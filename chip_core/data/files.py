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

PARQUET, LINES = (".parquet",), (".jsonl", ".ndjson")
#: Read if they are named; a folder holds other such files, for example dataset_info.json.
NAMED = (".json",)
MOST_ENTRIES = 100_000  # files and folders below a source; a data set has fewer
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GLOB = re.compile(r"[*?\[]")


def is_hub_name(source: str) -> bool:
    """Return whether a source is a data set's name on the hub: `owner/name`, not a local file."""
    return (
        bool(_HUB_NAME.fullmatch(source))
        and not source.startswith(".")
        and Path(source).suffix not in (*PARQUET, *LINES, *NAMED)
        and not os.path.exists(expand_path(source))
    )


def shards(data: DataConfig) -> list[Path]:
    """Return the files of a local source, sorted by path.

    Raises:
        ConfigError: there is none, or they are of different kinds.
    """
    source = data.source
    path = expand_path(source)
    if os.path.isdir(path):  # False for a name that no file can have
        found = _in_folder(path, data.split)
        if not found:
            of_split = f" of the split '{data.split}'" if data.split else ""
            named = ": name a .json file itself" if any(path.glob("*.json")) else ""
            raise ConfigError([f"no *.parquet or *.jsonl{of_split} in {source}{named}"])
    else:
        if data.split is not None:
            raise ConfigError([f"split '{data.split}': only a folder or a hub name has splits"])
        if os.path.isfile(path):
            found = [path]
        else:
            matches = glob.glob(str(path), recursive=True) if _GLOB.search(source) else []
            found = sorted(Path(match) for match in matches if Path(match).is_file())
        if not found:
            raise ConfigError(
                [f"no file {source}: name a file, a folder, a glob, or owner/name on the hub"]
            )
    strange = [file for file in found if file.suffix.lower() not in (*PARQUET, *LINES, *NAMED)]
    if strange:
        raise ConfigError([f"{strange[0]} is neither .parquet nor .jsonl: convert it"])
    if len({file.suffix.lower() in PARQUET for file in found}) > 1:
        raise ConfigError([f"{source} holds parquet and JSON lines: name one kind by a glob"])
    return found


def cache_folder() -> Path:
    """Return the folder for copies of data: $CHIP_ABLATE_CACHE, or the user's cache folder."""
    own = os.environ.get("CHIP_ABLATE_CACHE")
    if own:
        return expand_path(own)
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_path(above) / "chip-ablate"


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    found = []
    for file in sorted(_data_files(folder)):
        inside = file.relative_to(folder)
        # As on the hub: train.parquet, train-00000-of-00002.parquet, or a folder train/.
        of_split = split in inside.parts[:-1] or re.split(r"[-.]", inside.name)[0] == split
        if split is None or of_split:
            found.append(file)
    return found


def _data_files(folder: Path) -> Iterator[Path]:
    """Yield the data files below a folder, without hidden ones.

    Raises:
        ConfigError: there are too many entries below it.
    """
    entries = 0
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        entries += len(folders) + len(names)
        if entries > MOST_ENTRIES:
            raise ConfigError(
                [
                    f"{folder} holds more than {MOST_ENTRIES:,} files: name the folder of the data "
                    "alone, or a glob"
                ]
            )
        for name in names:
            file = Path(above, name)
            if (
                not name.startswith(".")
                and file.suffix.lower() in (*PARQUET, *LINES)
                and file.is_file()
            ):
                yield file
