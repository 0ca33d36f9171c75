"""Benchmarks whose questions and pictures are in a folder, in their published layout."""

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
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, Scored, Scorer
from chip_core.evaluation.task import Benchmark, Decoding, Picture
from chip_core.utils.errors import TrialError, UserError, first_line

#: The paper's evaluation appends this to a yes/no question.
YES_OR_NO = "\nAnswer the question using a single word: Yes or No.\n"
#: Decoding in the paper's evaluation.
CHIP = Decoding(max_new_tokens=256, num_beams=3)


class FileBenchmark(Benchmark):
    """A benchmark with a folder of its own and a scorer."""

    max_new_tokens = 512  # under protocols other than the paper's

    def __init__(self, scorer: Scorer) -> None:
        """Copy the scorer's name, version, needs, metrics and protocols."""
        self.name = scorer.name
        self.version = scorer.version
        self.metrics = scorer.metrics
        self.needs = frozenset({"data", *scorer.needs})
        self.protocols = scorer.protocols
        self._scorer = scorer

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """Return the paper's under `chip`, else greedy."""
        return CHIP if protocol == "chip" else Decoding(max_new_tokens=self.max_new_tokens)

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score the answers."""
        return self._scorer.score(
            answers, data=self._folder(data), protocol=protocol, resources=resources
        )

    def files(self, data: Path | None) -> Sequence[Path]:
        """Return the published files that exist; COCO's are counted separately."""
        folder = self._folder(data)
        names = {
            name
            for published in SOURCES[self.name].files
            for name in published.names
            if not name.endswith("/") and not name.startswith("../")
        }
        return sorted({file for name in names for file in folder.glob(name) if file.is_file()})

    def _folder(self, data: Path | None) -> Path:
        if data is None:
            raise UserError(f"{self.name}: its folder is not given: give it with --benchmark-data")
        return data


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
