"""The interface of the shipped benchmarks, and the pictures in a benchmark's folder."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.data.image_files import read_image
from chip_core.evaluation.benchmarks.published import SOURCES
from chip_core.evaluation.reading import FileRow, find_file, read_rows
from chip_core.evaluation.scorer import PROTOCOLS, Answer, ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Benchmark, Decoding, Picture
from chip_core.utils.errors import TrialError, UserError, first_line
from chip_core.utils.registry import suggest

#: The paper's evaluation appends this to a yes/no question.
YES_OR_NO = "\nAnswer the question using a single word: Yes or No.\n"
#: Decoding in the paper's evaluation.
CHIP = Decoding(max_new_tokens=256, num_beams=3)


class ShippedBenchmark(Benchmark):
    """A benchmark of this package: answers that exist already can be read from a file, too.

    There are three protocols:

    | protocol    | what its figures are                                                         |
    |-------------|------------------------------------------------------------------------------|
    | `official`  | what the benchmark's script prints for the same answers, its quirks included |
    | `corrected` | what it says it measures; docs/benchmarks.md lists each difference           |
    | `chip`      | the paper's reading of the answers, where it has one of its own              |
    """

    name: str
    #: the possible names of an item and a response in a row of answers
    item_keys: tuple[str, ...] = ("item", "id")
    response_keys: tuple[str, ...] = ("response",)

    def read_responses(self, path: Path) -> list[Answer]:
        """Read answers in the benchmark's own format, by default rows of an item and a response.

        Raises:
            UserError: the file does not exist or has another format; one line that names the
                place.
        """
        return [
            Answer(item=row.id(*self.item_keys), response=row.text(*self.response_keys))
            for row in read_rows(path)
        ]

    def require_protocol(self, protocol: ProtocolName) -> None:
        """Raise if the benchmark does not implement a protocol.

        Raises:
            UserError: the protocols that it implements.
        """
        if protocol not in self.protocols:
            choices = ", ".join(name for name in PROTOCOLS if name in self.protocols)
            raise UserError(
                f"{self.name}: protocol {protocol} is unknown here (the paper says nothing about "
                f"it): choose from {choices}"
            )


def find_shipped_benchmark(name: str) -> ShippedBenchmark:
    """Return a benchmark of this package that can score answers from a file.

    Raises:
        UserError: there is none of that name; one line that names similar ones.
    """
    shipped = {
        known: benchmark
        for known, benchmark in BENCHMARKS.items()
        if isinstance(benchmark, ShippedBenchmark)
    }
    if name not in shipped:
        raise UserError(f"unknown benchmark '{name}': {suggest(name, shipped)}")
    return shipped[name]


class FileBenchmark(ShippedBenchmark):
    """A benchmark with a folder of its own, in its published layout."""

    max_new_tokens = 512  # under protocols other than the paper's

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """Return the paper's under `chip`, else greedy."""
        return CHIP if protocol == "chip" else Decoding(max_new_tokens=self.max_new_tokens)

    def files(self, data: Path | None) -> Sequence[Path]:
        """Return the published files that exist; COCO's are counted separately."""
        folder = self.require_folder(data)
        names = {
            name
            for published in SOURCES[self.name].files
            for name in published.names
            if not name.endswith("/") and not name.startswith("../")
        }
        return sorted({file for name in names for file in folder.glob(name) if file.is_file()})

    def require_folder(self, data: Path | None) -> Path:
        """Return the benchmark's folder.

        Raises:
            UserError: it is not given.
        """
        if data is None:
            raise UserError(f"{self.name}: its folder is not given: give it with --benchmark-data")
        return data

    def read_rows(self, data: Path | None, *names: str) -> list[FileRow]:
        """Return the rows of a published file, which may have one of several names.

        Raises:
            UserError: it is not in the folder, or has another form.
        """
        return read_rows(find_file(self.require_folder(data), names, self.name))


class Pictures:
    """The pictures of a benchmark, one object each, which are read on demand."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look for files in these folders; the first folder that has a file is used."""
        self._folders = folders
        self._pictures: dict[str, Picture] = {}

    def file(self, *names: str) -> Picture:
        """Return the picture of a file, which may have one of several names.

        A missing file is reported under its first name in the first folder.
        """
        if names[0] not in self._pictures:
            path = self._find_file(names)
            self._pictures[names[0]] = Picture(
                key=names[0], read=lambda: _open_picture(path, str(path)), file=path
            )
        return self._pictures[names[0]]

    def _find_file(self, names: Sequence[str]) -> Path:
        """Return the file with one of these names.

        Raises:
            UserError: a row names a file outside the benchmark's folders.
        """
        for folder in self._folders:
            for name in names:
                path = folder / name
                if not os.path.isfile(path):
                    continue
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"picture {name!r} leaves its folder {folder}: put it there")
                return path
        return self._folders[0] / names[0]  # reported when it is read


def embedded_picture(key: str, load: Callable[[], Any]) -> Picture:
    """Return a picture that is stored within another file.

    Args:
        key: the picture's name.
        load: returns its bytes, or base64 of them.
    """

    def read() -> Image.Image:
        data = load()
        if isinstance(data, str):
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error:
                raise TrialError(f"picture {key} is not base64") from None
        return _open_picture(data, key)

    return Picture(key=key, read=read)


def coco_folders(data: Path) -> list[Path]:
    """Return possible folders of COCO's 2014 pictures, in the benchmark's folder or COCO's."""
    coco = data.parent / "coco"
    roots = [data, data / "images", coco, coco / "images"]
    return [
        *(root / split for root in roots for split in ("val2014", "train2014")),
        *roots,
    ]


def _open_picture(source: Path | bytes, name: str) -> Image.Image:
    try:
        return read_image(source)
    except Exception as error:  # a decoder may raise anything on broken bytes
        reason = first_line(error)
        raise TrialError(f"picture {name} cannot be read ({reason})") from None
