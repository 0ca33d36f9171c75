"""Benchmarks whose questions and pictures lie in a folder, as they are published."""

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
from chip_core.utils.errors import TrialError, UserError, brief

#: What the paper's evaluation adds to a question that is answered by yes or no.
YES_OR_NO = "\nAnswer the question using a single word: Yes or No.\n"
#: How the paper's evaluation decodes.
CHIP = Decoding(max_new_tokens=256, num_beams=3)


class FileBenchmark(Benchmark):
    """A benchmark with a folder of its own and a scorer."""

    max_new_tokens = 512  # of answers under another protocol than the paper's

    def __init__(self, scorer: Scorer) -> None:
        """Take over what the scorer says of itself."""
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
        """Return the published files that are there; COCO's count by themselves."""
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
            raise UserError(f"{self.name}: its folder is not given: name it by --benchmark-data")
        return data


class Pictures:
    """The pictures of a benchmark, each made once; they are read when they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look for files in these folders, the first that has one counts."""
        self._folders = folders
        self._made: dict[str, Picture] = {}

    def file(self, *names: str) -> Picture:
        """Return the picture of a file, which may have one of several names.

        A file that is nowhere is said to be missing under its first name in the first folder.
        """
        if names[0] not in self._made:
            found = self._found(names)
            self._made[names[0]] = Picture(
                key=names[0], read=lambda: _opened(found, str(found)), file=found
            )
        return self._made[names[0]]

    def _found(self, names: Sequence[str]) -> Path:
        """Return the file of a name.

        Raises:
            UserError: a file's row names what lies outside the benchmark's folders.
        """
        for folder in self._folders:
            for name in names:
                place = folder / name
                if not os.path.isfile(place):
                    continue
                if not place.resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"picture {name!r} leaves its folder {folder}: put it there")
                return place
        return self._folders[0] / names[0]  # told when it is read


def inside(key: str, load: Callable[[], Any]) -> Picture:
    """Return a picture that lies within another file.

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
                raise TrialError(f"picture {key} is no base64") from None
        return _opened(data, key)

    return Picture(key=key, read=read)


def coco_folders(data: Path) -> list[Path]:
    """Return where COCO's 2014 pictures may lie: beside the benchmark's annotations, or by COCO."""
    coco = data.parent / "coco"
    roots = [data, data / "images", coco, coco / "images"]
    return [
        *(root / split for root in roots for split in ("val2014", "train2014")),
        *roots,
    ]


def _opened(source: Path | bytes, name: str) -> Image.Image:
    try:
        return read_image(source)
    except Exception as error:  # a decoder may raise anything on broken bytes
        what = brief(error)
        raise TrialError(f"picture {name} cannot be read ({what})") from None
