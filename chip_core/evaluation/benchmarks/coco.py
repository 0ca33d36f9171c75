"""What CHAIR and Object HalBench share: COCO's pictures, and its objects in them and in text.

An image has the objects that COCO's instances or any of its captions name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.evaluation.benchmarks.base import (
    FileBenchmark,
    Pictures,
    coco_folders,
    embedded_picture,
)
from chip_core.evaluation.reading import FileRow, iter_unique_rows, read_json
from chip_core.evaluation.scorer import Answer, ProtocolName
from chip_core.evaluation.task import Item, Picture, Side
from chip_core.utils.errors import UserError

#: The files that the official scripts read: both splits, or nothing.
ANNOTATIONS = tuple(
    f"{kind}_{split}2014.json" for kind in ("instances", "captions") for split in ("train", "val")
)

#: The prompt of a row that has none.
DESCRIBE = "Please describe this image in detail."

#: Before an animal, these words give its age and do not name a person.
_AGES = ("baby", "adult")
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "animal", "cub",
)  # fmt: skip
_VEHICLES = ("jet", "train")
#: Pairs of words that are neither of the objects they contain.
NON_OBJECTS = ("home plate", "train track")
_SPECIAL_PAIRS = {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


class CocoBenchmark(FileBenchmark):
    """A benchmark of COCO's pictures to describe."""

    questions: tuple[str, ...]  # possible names of their file

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order."""
        pictures = Pictures(coco_folders(self.require_folder(data)))
        rows = self.read_rows(data, *self.questions)
        return [
            Item(
                id=item,
                prompt=row.text("question") if row.has("question") else DESCRIBE,
                pictures=(_find_picture(row, item, pictures),),
            )
            for item, row in iter_unique_rows(rows, lambda row: row.id("image_id"))
        ]


def _find_picture(row: FileRow, item: str, pictures: Pictures) -> Picture:
    image = row.text("image") if row.has("image") else f"COCO_val2014_{int(item):012d}.jpg"
    if len(image) > 255 or "." not in image:  # not a file name: the picture itself
        return embedded_picture(item, lambda: image)
    train = image.replace("_val2014_", "_train2014_")
    return pictures.file(image, *([train] if train != image and not row.has("image") else []))


@dataclass(frozen=True, kw_only=True)
class ObjectNames:
    """The words that name each of COCO's 80 categories."""

    category: Mapping[str, str]  # every name, of one word or more -> its category
    joined: Mapping[str, str]  # two words that are read as one -> the word they are read as

    def join(self, words: Sequence[str], *, pairs_only: bool = False) -> list[str]:
        """Return the words with pairs joined, from the left; or the pairs alone."""
        joined = []
        index = 0
        while index < len(words):
            pair = " ".join(words[index : index + 2])
            if pair in self.joined:
                joined.append(self.joined[pair])
                index += 2
            else:
                if not pairs_only:
                    joined.append(words[index])
                index += 1
        return joined

    def objects(self, words: Sequence[str]) -> list[str]:
        """Return the words that name an object; beside a toilet, "seat" does not count."""
        toilet = "toilet" in words
        return [word for word in words if word in self.category and not (toilet and word == "seat")]


def read_names(file: Path, *, strip: bool) -> dict[str, str]:
    """Read name -> category from a list of synonyms: a category a line, its own name first.

    Args:
        file: names separated by a comma and a space.
        strip: whether to remove further spaces; a name that begins with one is never found.

    Raises:
        UserError: the file does not exist.
    """
    if not file.exists():
        raise UserError(f"{file}: there is no such file")
    names: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() if strip else part for part in line.strip().split(", ")]
        names.update(dict.fromkeys(parts, parts[0]))
    return names


def build_joined_words(pairs: Iterable[str]) -> dict[str, str]:
    """Return the words as which pairs are read: names of objects, and COCO's special cases."""
    return {
        **{pair: pair for pair in (*pairs, *NON_OBJECTS)},
        **{f"{age} {animal}": animal for age in _AGES for animal in _ANIMALS},
        **{f"passenger {vehicle}": vehicle for vehicle in _VEHICLES},
        **_SPECIAL_PAIRS,
    }


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The objects in images."""

    objects: Mapping[str, frozenset[str]]  # image id -> categories; only for the requested images
    known: frozenset[str]  # the requested images that the annotations have

    def get_objects(self, image: str) -> frozenset[str]:
        """Return an image's categories; empty if the annotations have none."""
        return self.objects.get(image, frozenset())

    def require_known(self, answers: Sequence[Answer], scorer: str) -> None:
        """Raise if an answer is about an image that the annotations do not have.

        Raises:
            UserError: which one.
        """
        for number, answer in enumerate(answers, start=1):
            if answer.item not in self.known:
                raise UserError(
                    f"{scorer}: answer {number}: image {answer.item} is not in COCO's annotations"
                )


def read_ground_truth(
    coco: Path | None,
    images: Iterable[str],
    names: ObjectNames,
    find_categories: Callable[[str], Sequence[str]],
    *,
    official: bool,
    scorer: str,
) -> GroundTruth:
    """Read the objects in images.

    Args:
        coco: COCO's annotation folder, one of its files, or a JSON of image id -> objects.
        images: the ids that are needed, as text.
        names: the objects' names.
        find_categories: returns the categories that a caption names.
        official: read what the official scripts read: all four files; a JSON as it is.
        scorer: the scorer, for messages.

    Raises:
        UserError: the annotations are missing or have another form.
    """
    if coco is None:
        raise UserError(
            f"{scorer}: COCO's annotations are needed: --coco FOLDER, with "
            "annotations_trainval2014.zip of cocodataset.org unpacked in it"
        )
    image_ids = frozenset(images)
    if coco.is_dir():
        if (coco / "annotations").is_dir():  # COCO's own layout
            coco = coco / "annotations"
        return _read_annotations(
            _find_annotation_files(coco, official, scorer), image_ids, names, find_categories
        )
    content = read_json(coco)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        if official:
            raise UserError(
                f"{scorer}: {coco}: only one file; the official script reads "
                f"{', '.join(ANNOTATIONS)}: name their folder"
            )
        return _read_annotations([coco], image_ids, names, find_categories)
    return _read_object_lists(coco, content, image_ids, names, official)


def _find_annotation_files(folder: Path, official: bool, scorer: str) -> list[Path]:
    if not official:
        files = sorted(
            path for kind in ("instances", "captions") for path in folder.glob(f"{kind}_*.json")
        )
        if not any(path.name.startswith("instances") for path in files):
            raise UserError(f"{scorer}: {folder}: holds no instances_*.json of COCO")
        return files
    missing = [name for name in ANNOTATIONS if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{scorer}: {folder}: holds no {', '.join(missing)}: they are in "
            "annotations_trainval2014.zip of cocodataset.org"
        )
    return [folder / name for name in ANNOTATIONS]


def _read_annotations(
    files: Sequence[Path],
    image_ids: frozenset[str],
    names: ObjectNames,
    find_categories: Callable[[str], Sequence[str]],
) -> GroundTruth:
    objects: dict[str, set[str]] = defaultdict(set)
    known_ids: set[str] = set()
    categories: dict[Any, str] = {}
    for file in files:  # one at a time: the largest is half a gigabyte
        content = read_json(file)
        try:
            categories.update(
                (category["id"], category["name"]) for category in content.get("categories", ())
            )
            known_ids.update(str(image["id"]) for image in content.get("images", ()))
            for row in content["annotations"]:
                image = str(row["image_id"])
                if image not in image_ids:
                    continue
                known_ids.add(image)
                if "caption" in row:
                    objects[image].update(find_categories(row["caption"]))
                else:
                    objects[image].add(names.category[categories[row["category_id"]]])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not COCO's annotations ({error!r})") from None
    return GroundTruth(
        objects={image: frozenset(categories_found) for image, categories_found in objects.items()},
        known=frozenset(known_ids & image_ids),
    )


def _read_object_lists(
    file: Path, content: Any, image_ids: frozenset[str], names: ObjectNames, official: bool
) -> GroundTruth:
    if not isinstance(content, dict):
        raise UserError(f"{file}: neither COCO's annotations nor an object of image id: objects")
    objects: dict[str, frozenset[str]] = {}
    for image, listed in content.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{file}: image {image}: not a list of objects' names")
        if image in image_ids:
            objects[image] = frozenset(
                listed if official else (names.category.get(name, name) for name in listed)
            )
    return GroundTruth(objects=objects, known=frozenset(objects))
