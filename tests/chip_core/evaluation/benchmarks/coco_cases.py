"""A small COCO: synonyms with the published list's flaws, and what is in seven images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chip_core.evaluation.scorer import ScoreResult

#: As published, two of the lists have two spaces after a comma, and another one ends in a space.
SYNONYMS = (
    "person, man, people, baby, passenger, adult\n"
    "bus, minibus\n"
    "motorcycle,  motor bike, motorbike\n"
    "traffic light, street light\n"
    "dog, puppy \n"
    "chair, seat\n"
    "toilet\n"
    "wine glass\n"
    "tie, bow tie\n"
    "train\n"
)

KINDS = ["person", "bus", "motorcycle", "traffic light", "dog", "chair", "toilet", "train"]
OBJECTS: dict[int, list[str]] = {
    1: ["dog", "person"],
    2: ["bus"],
    3: ["toilet", "chair"],
    4: ["motorcycle"],
    5: [],
}
CAPTIONS: dict[int, list[str]] = {1: ["Two people and a traffic light."], 5: ["A train."]}


def write_synonyms(folder: Path, name: str) -> Path:
    (folder / name).write_text(SYNONYMS)
    return folder


def write_object_lists(folder: Path) -> Path:
    """Write what is in each image as a JSON of lists, captions not counted."""
    file = folder / "objects.json"
    file.write_text(json.dumps({str(image): found for image, found in OBJECTS.items()}))
    return file


def write_annotations(folder: Path) -> Path:
    """Write COCO's four files: images with odd ids in train, the others in val."""
    within = folder / "annotations"
    within.mkdir(exist_ok=True)
    for split, odd in (("train", 1), ("val", 0)):
        images = [image for image in OBJECTS if image % 2 == odd]
        instances: list[dict[str, Any]] = [
            {"image_id": image, "category_id": KINDS.index(name) + 1}
            for image in images
            for name in OBJECTS[image]
        ]
        captions = [
            {"image_id": image, "caption": text}
            for image in images
            for text in CAPTIONS.get(image, [])
        ]
        listed = [{"id": image} for image in images]
        kinds = [{"id": number, "name": name} for number, name in enumerate(KINDS, start=1)]
        held = {"images": listed, "annotations": instances, "categories": kinds}
        (within / f"instances_{split}2014.json").write_text(json.dumps(held))
        held = {"images": listed, "annotations": captions}
        (within / f"captions_{split}2014.json").write_text(json.dumps(held))
    return within


def list_counts(scored: ScoreResult, name: str) -> list[tuple[float, float]]:
    """List numerator and denominator of each item of a metric."""
    metric = next(metric for metric in scored.metrics if metric.name == name)
    return [(outcome.numerator, outcome.denominator) for outcome in metric.items]
