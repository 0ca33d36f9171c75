"""COCO's objects: their names in text, and the objects in an image, for CHAIR and Object HalBench.

An image has the objects that COCO's instances or any of its captions name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.evaluation.reading import read_json
from chip_core.evaluation.scorer import Answer
from chip_core.utils.errors import UserError

#: The files that the official scripts read: both splits, or nothing.
ANNOTATIONS = tuple(
    f"{kind}_{split}2014.json" for kind in ("instances", "captions") for split in ("train", "val")
)

#: Before an animal, these words give its age and do not name a person.
_AGES = ("baby", "adult")
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "animal", "cub",
)  # fmt: skip
_VEHICLES = ("jet", "train")
#: Pairs of words that are neither of the objects they contain.
NO_OBJECTS = ("home plate", "train track")
_SPECIAL = {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@dataclass(frozen=True, kw_only=True)
class ObjectNames:
    """The words that name each of COCO's 80 categories."""

    category: Mapping[str, str]  # every name, of one word or more -> its category
    joined: Mapping[str, str]  # two words that are read as one -> the word they are read as

    def join(self, words: Sequence[str], *, pairs_only: bool = False) -> list[str]:
        """Return the words with pairs joined, from the left; or the pairs alone."""
        found = []
        index = 0
        while index < len(words):
            pair = " ".join(words[index : index + 2])
            if pair in self.joined:
                found.append(self.joined[pair])
                index += 2
            else:
                if not pairs_only:
                    found.append(words[index])
                index += 1
        return found

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


def joined_words(pairs: Iterable[str]) -> dict[str, str]:
    """Return the words as which pairs are read: names of objects, and COCO's special cases."""
    return {
        **{pair: pair for pair in (*pairs, *NO_OBJECTS)},
        **{f"{age} {animal}": animal for age in _AGES for animal in _ANIMALS},
        **{f"passenger {vehicle}": vehicle for vehicle in _VEHICLES},
        **_SPECIAL,
    }


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The objects in images."""

    objects: Mapping[str, frozenset[str]]  # image id -> categories; only for the requested images
    known: frozenset[str]  # the requested images that the annotations have

    def of(self, image: str) -> frozenset[str]:
        """Return an image's categories; empty if the annotations have none."""
        return self.objects.get(image, frozenset())

    def require_known(self, answers: Sequence[Answer], who: str) -> None:
        """Raise if an answer is about an image that the annotations do not have.

        Raises:
            UserError: which one.
        """
        for number, answer in enumerate(answers, start=1):
            if answer.item not in self.known:
                raise UserError(
                    f"{who}: answer {number}: image {answer.item} is not in COCO's annotations"
                )


def read_ground_truth(
    coco: Path | None,
    images: Iterable[str],
    names: ObjectNames,
    in_caption: Callable[[str], Sequence[str]],
    *,
    official: bool,
    who: str,
) -> GroundTruth:
    """Read the objects in images.

    Args:
        coco: COCO's annotation folder, one of its files, or a JSON of image id -> objects.
        images: the ids that are needed, as text.
        names: the objects' names.
        in_caption: returns the categories that a caption names.
        official: read what the official scripts read: all four files; a JSON as it is.
        who: the scorer, for messages.

    Raises:
        UserError: the annotations are missing or have another form.
    """
    if coco is None:
        raise UserError(
            f"{who}: COCO's annotations are needed: --coco FOLDER, with "
            "annotations_trainval2014.zip of cocodataset.org unpacked in it"
        )
    wanted = frozenset(images)
    if coco.is_dir():
        if (coco / "annotations").is_dir():  # COCO's own layout
            coco = coco / "annotations"
        return _from_annotations(_files(coco, official, who), wanted, names, in_caption)
    held = read_json(coco)
    if isinstance(held, dict) and isinstance(held.get("annotations"), list):
        if official:
            raise UserError(
                f"{who}: {coco}: one file alone; the official script reads {', '.join(ANNOTATIONS)}"
                ": name their folder"
            )
        return _from_annotations([coco], wanted, names, in_caption)
    return _from_lists(coco, held, wanted, names, official)


def _files(folder: Path, official: bool, who: str) -> list[Path]:
    if not official:
        found = sorted(
            path for kind in ("instances", "captions") for path in folder.glob(f"{kind}_*.json")
        )
        if not any(path.name.startswith("instances") for path in found):
            raise UserError(f"{who}: {folder}: holds no instances_*.json of COCO")
        return found
    missing = [name for name in ANNOTATIONS if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{who}: {folder}: holds no {', '.join(missing)}: they are in "
            "annotations_trainval2014.zip of cocodataset.org"
        )
    return [folder / name for name in ANNOTATIONS]


def _from_annotations(
    files: Sequence[Path],
    wanted: frozenset[str],
    names: ObjectNames,
    in_caption: Callable[[str], Sequence[str]],
) -> GroundTruth:
    objects: dict[str, set[str]] = defaultdict(set)
    known: set[str] = set()
    kinds: dict[Any, str] = {}
    for file in files:  # one at a time: the largest is half a gigabyte
        held = read_json(file)
        try:
            kinds.update((kind["id"], kind["name"]) for kind in held.get("categories", ()))
            known.update(str(image["id"]) for image in held.get("images", ()))
            for row in held["annotations"]:
                image = str(row["image_id"])
                if image not in wanted:
                    continue
                known.add(image)
                if "caption" in row:
                    objects[image].update(in_caption(row["caption"]))
                else:
                    objects[image].add(names.category[kinds[row["category_id"]]])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not COCO's annotations ({error!r})") from None
    return GroundTruth(
        objects={image: frozenset(found) for image, found in objects.items()},
        known=frozenset(known & wanted),
    )


def _from_lists(
    file: Path, held: Any, wanted: frozenset[str], names: ObjectNames, official: bool
) -> GroundTruth:
    if not isinstance(held, dict):
        raise UserError(f"{file}: neither COCO's annotations nor an object of image id: objects")
    objects: dict[str, frozenset[str]] = {}
    for image, found in held.items():
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f"{file}: image {image}: not a list of objects' names")
        if image in wanted:
            objects[image] = frozenset(
                found if official else (names.category.get(name, name) for name in found)
            )
    return GroundTruth(objects=objects, known=frozenset(objects))
