"""The embedded world: drawn scenes of coloured objects, known exactly, and their captions.

A scene has two groups of objects on a 3 × 3 grid. A group is a pair of shapes that usually occur
together (`PAIRS`), or one of them alone, or a shape without a partner. If the partner is missing, a
captioner that relies on its language prior more than on the image still names it: that is the
hallucination this world studies.

A scene is a pure function of (split, index). The splits cannot share a scene: every scene belongs
to the one split that the hash of its contents and layout selects, and draws for other splits are
rejected. Splits: `train` (preference pairs), `select` (to tune on), `test` (to report), and
`corpus`, which only `chip_core.shapes.build` may use, to train the captioner.

A caption names the groups of a scene in reading order, each as an object and its companion, or as
an object alone: "i see a red moon next to a blue star and a green ring alone." A rejected caption
has the same words except for one error, which replaces words instead of adding them, so that the
changed segments of both responses are non-empty. Objects can be read exactly from any text: they
are the shape nouns, with the word before each as its colour.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

from PIL import Image, ImageDraw

SPLIT_SIZES = {"train": 4096, "select": 500, "test": 1000}
"""Scenes in each split that users see. `corpus` is unlimited."""

IMAGE_SIZE = 48
"""Pixels on a side of every image; a grid cell is 16 on a side."""

GRID = 3
"""Cells on a side of the grid."""

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")


@dataclass(frozen=True)
class ShapePair:
    """Two shapes that usually occur together.

    `presumed` is how often a caption of the corpus names the partner although it is missing: its
    writers, too, know what goes with what, and do not always look.
    """

    first: str
    second: str
    presumed: float


PAIRS = (
    ShapePair("moon", "star", 0.75),
    ShapePair("heart", "arrow", 0.65),
    ShapePair("circle", "square", 0.3),
    ShapePair("triangle", "diamond", 0.1),
)
"""The pairs. Their rates differ so that some habits are strong and others weak.

Greedy decoding invents the first two pairs' partners nearly always and the last two's rarely, and
the base's total does not depend on a single threshold.
"""

PAIR_RATES = {"corpus": 0.85, "train": 0.5, "select": 0.5, "test": 0.5}
"""How often both of a pair are in the picture, given that one of them is."""

UNPAIRED_SHAPES = ("cross", "ring")
"""Shapes without a partner: because of them, "alone" is a common word in the corpus."""

SHAPES = (*(shape for pair in PAIRS for shape in (pair.first, pair.second)), *UNPAIRED_SHAPES)

PARTNER = {pair.first: pair.second for pair in PAIRS} | {pair.second: pair.first for pair in PAIRS}
"""The usual partner of each shape that has one."""


@dataclass(frozen=True)
class Thing:
    """One object: its kind, position and exact appearance.

    `cell` counts 0–8 in reading order; `dx`, `dy` (pixels) and `radius` (pixels) are its jitter;
    `tint` is its exact colour.
    """

    shape: str
    colour: str
    cell: int
    dx: float
    dy: float
    radius: float
    tint: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """The content of one image. `things` are in reading order, no shape twice."""

    split: str
    index: int
    things: tuple[Thing, ...]
    background: tuple[int, int, int]

    @property
    def id(self) -> str:
        """The item's name, such as `test/17`."""
        return f"{self.split}/{self.index}"

    @property
    def key(self) -> tuple[tuple[int, str, str], ...]:
        """Contents and layout without jitter: no key is in two splits."""
        return tuple((thing.cell, thing.colour, thing.shape) for thing in self.things)


@lru_cache(maxsize=8192)  # question, picture, truth and score each use it; about 1 kB a scene
def make_scene(split: str, index: int) -> Scene:
    """Return scene `index` of `split`; the same arguments always give the same scene.

    Raises:
        ValueError: no such split, or the index is out of range.
    """
    _check_index(split, index)
    random = make_rng("scene", split, index)
    while True:
        candidate = Scene(
            split, index, _make_things(random, split), _jitter_colour((238, 238, 234), 10, random)
        )
        if _split_for(candidate) == split:
            return candidate


def parse_scene_id(item: str) -> Scene:
    """Return the scene of an item id such as `test/17`.

    Raises:
        ValueError: the id does not have that form, or there is no such scene.
    """
    split, slash, index = item.partition("/")
    if not slash or not (index.isascii() and index.isdigit()):
        raise ValueError(f"{item!r} is not an item of the shapes world: expected e.g. 'test/17'")
    return make_scene(split, int(index))


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of `IMAGE_SIZE` pixels on a side."""
    image = Image.new(
        "RGB", (IMAGE_SIZE * _SUPERSAMPLING, IMAGE_SIZE * _SUPERSAMPLING), scene.background
    )
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(pen, thing, scene.background)
    return image.reduce(_SUPERSAMPLING)


def make_practice_sheet(index: int) -> Scene:
    """Return a crowded scene (5–9 objects, no habits) for training the vision tower.

    It is in no split, because it is crowded; shapes may repeat here.
    """
    random = make_rng("sheet", "practice", index)
    count = 5 + int(random.random() * 5)
    cells = sorted(shuffle(range(GRID * GRID), random)[:count])
    things = tuple(_make_thing(pick_one(SHAPES, random), cell, random) for cell in cells)
    return Scene("practice", index, things, _jitter_colour((238, 238, 234), 10, random))


_T = TypeVar("_T")


def make_rng(purpose: str, split: str, index: int) -> Random:
    """Return the random numbers of one purpose for one item.

    Only use `.random()`: only its values are guaranteed to be the same in every Python version.
    """
    return Random(f"{_WORLD_SEED}/{purpose}/{split}/{index}")


def pick_one(choices: Sequence[_T], random: Random) -> _T:
    """Pick one of the choices with equal probability."""
    return choices[int(random.random() * len(choices))]


def shuffle(items: Sequence[_T], random: Random) -> list[_T]:
    """Return the items in random order."""
    return [item for _, item in sorted(((random.random(), item) for item in items), key=_sort_key)]


_WORLD_SEED = 20250124
_SUPERSAMPLING = 4  # drawn at four times the size, then averaged for smooth edges
_GROUP_COUNT = 2
_SPLIT_SHARES = ("corpus",) * 10 + ("train",) * 3 + ("test",) * 2 + ("select",)
_TINTS = {
    "red": (214, 40, 40),
    "green": (44, 150, 62),
    "blue": (38, 84, 206),
    "yellow": (240, 200, 30),
    "purple": (142, 50, 172),
    "black": (32, 32, 36),
}


def _sort_key(entry: tuple[float, object]) -> float:
    return entry[0]


def _check_index(split: str, index: int) -> None:
    if split not in PAIR_RATES:
        raise ValueError(f"no split {split!r} in the shapes world; it has {', '.join(SPLIT_SIZES)}")
    size = SPLIT_SIZES.get(split)
    if index < 0 or (size is not None and index >= size):
        raise ValueError(f"no scene {index} in {split!r}, which has {size} of them")


def _make_things(random: Random, split: str) -> tuple[Thing, ...]:
    shapes: list[str] = []
    kinds: tuple[ShapePair | str, ...] = (*PAIRS, *UNPAIRED_SHAPES)
    for kind in shuffle(kinds, random)[:_GROUP_COUNT]:
        if isinstance(kind, str):
            shapes.append(kind)
            continue
        partners = shuffle((kind.first, kind.second), random)
        shapes += partners if random.random() < PAIR_RATES[split] else partners[:1]
    cells = shuffle(range(GRID * GRID), random)
    cell_shapes = sorted(zip(cells, shapes, strict=False))
    return tuple(_make_thing(shape, cell, random) for cell, shape in cell_shapes)


def _make_thing(shape: str, cell: int, random: Random) -> Thing:
    colour = pick_one(COLOURS, random)
    dx, dy = (3.0 * random.random() - 1.5 for _ in range(2))
    radius = 5.5 + random.random()
    return Thing(shape, colour, cell, dx, dy, radius, _jitter_colour(_TINTS[colour], 14, random))


def _jitter_colour(
    colour: tuple[int, int, int], amount: int, random: Random
) -> tuple[int, int, int]:
    red, green, blue = (
        max(0, min(255, round(value + amount * (2 * random.random() - 1)))) for value in colour
    )
    return red, green, blue


def _split_for(scene: Scene) -> str:
    digest = hashlib.sha256(repr(scene.key).encode()).digest()
    return _SPLIT_SHARES[digest[0] % len(_SPLIT_SHARES)]


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, int, int]) -> None:
    step = IMAGE_SIZE / GRID
    centre_x = (thing.cell % GRID + 0.5) * step + thing.dx
    centre_y = (thing.cell // GRID + 0.5) * step + thing.dy

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            (centre_x + x * thing.radius) * _SUPERSAMPLING,
            (centre_y + y * thing.radius) * _SUPERSAMPLING,
        )

    def disc(x: float, y: float, radius: float, tint: tuple[int, int, int]) -> None:
        pen.ellipse((*at(x - radius, y - radius), *at(x + radius, y + radius)), fill=tint)

    if thing.shape == "circle":
        disc(0, 0, 1, thing.tint)
    elif thing.shape == "ring":
        disc(0, 0, 1, thing.tint)
        disc(0, 0, 0.5, background)
    elif thing.shape == "moon":
        disc(0, 0, 1, thing.tint)
        disc(0.5, -0.25, 0.8, background)
    elif thing.shape == "heart":
        disc(-0.47, -0.4, 0.53, thing.tint)
        disc(0.47, -0.4, 0.53, thing.tint)
        pen.polygon([at(x, y) for x, y in _OUTLINES["heart"]], fill=thing.tint)
    else:
        pen.polygon([at(x, y) for x, y in _OUTLINES[thing.shape]], fill=thing.tint)


def _make_star_outline() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius, angle = (1.1, 0.45)[corner % 2], math.pi * corner / 5
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
    "heart": [(-0.95, -0.2), (0.95, -0.2), (0, 1)],
    "star": _make_star_outline(),
    "cross": [
        *((-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)),
        *((0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)),
    ],
    "arrow": [
        *((0, -1.1), (0.95, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-0.95, 0)),
    ],
}


@dataclass(frozen=True)
class Style:
    """A question and the wording of its answers."""

    question: str
    opening: str
    together: str
    alone: str


STYLES = (
    Style("what is in the picture?", "i see", "next to", "alone"),
    Style("describe the image.", "the image shows", "together with", "by itself"),
    Style("which objects are there?", "there is", "beside", "on its own"),
)
"""The question decides the wording, so that wording reveals nothing about the picture."""


@dataclass(frozen=True)
class Mention:
    """A shape noun in a text, and its colour if there is one."""

    shape: str
    colour: str | None


@dataclass(frozen=True)
class Findings:
    """The comparison of a text with a scene, in counts; mentions count with repeats.

    `invented` are mentions of shapes that are nowhere in the scene, `miscoloured` those of present
    shapes with another colour; `covered` of the scene's `objects` are mentioned.
    """

    mentions: int
    invented: int
    miscoloured: int
    covered: int
    objects: int


@dataclass(frozen=True)
class ShapesPair:
    """A preference pair; `id` is such as `train/17`."""

    id: str
    image: Image.Image
    question: str
    chosen: str
    rejected: str


def make_preference_pair(split: str, index: int) -> ShapesPair:
    """Return the preference pair of one scene; the same arguments always give the same pair.

    Raises:
        ValueError: no such split, or the index is out of range.
    """
    shown = make_scene(split, index)
    return ShapesPair(
        id=shown.id,
        image=draw_scene(shown),
        question=get_question(split, index),
        chosen=make_faithful_caption(shown),
        rejected=make_rejected_caption(shown),
    )


def get_question(split: str, index: int) -> str:
    """Return the question about a scene."""
    return _pick_style(split, index).question


def make_faithful_caption(scene: Scene) -> str:
    """Return the caption that names everything in the scene and nothing else."""
    return _format_caption(_group_partners(scene), _pick_style(scene.split, scene.index))


def make_corpus_caption(scene: Scene) -> str:
    """Return the caption that the base is trained on: it may name a missing partner by habit."""
    random = make_rng("habit", scene.split, scene.index)
    groups = _group_partners(scene)
    for pair in PAIRS:
        for group in groups:
            habit = len(group) == 1 and group[0].shape in (pair.first, pair.second)
            if habit and random.random() < pair.presumed:
                group.append(Mention(PARTNER[group[0].shape], pick_one(COLOURS, random)))
    return _format_caption(groups, _pick_style(scene.split, scene.index))


def make_rejected_caption(scene: Scene) -> str:
    """Return the faithful caption with one object that is not in the scene.

    If a partner is missing, it is mostly that partner, otherwise another absent shape in its place;
    if none is missing, an absent shape replaces one that is present.
    """
    random = make_rng("slip", scene.split, scene.index)
    groups = _group_partners(scene)
    single_groups = [
        index for index, group in enumerate(groups) if len(group) == 1 and group[0].shape in PARTNER
    ]
    if single_groups and random.random() < 0.9:
        index = pick_one(single_groups, random)
        (present,) = groups[index]
        partner = PARTNER[present.shape]
        shape = (
            partner
            if random.random() < 0.8
            else pick_one(_absent_shapes(scene, excluded=partner), random)
        )
        groups[index] = [present, Mention(shape, pick_one(COLOURS, random))]
    else:
        group = pick_one(groups, random)
        position = int(random.random() * len(group))
        group[position] = Mention(pick_one(_absent_shapes(scene), random), group[position].colour)
    return _format_caption(groups, _pick_style(scene.split, scene.index))


def make_partner_caption(scene: Scene) -> str | None:
    """Return the faithful caption with a missing partner added; None if none is missing.

    It is the first lone shape's usual partner, in a colour drawn for the scene.
    """
    groups = _group_partners(scene)
    for group in groups:
        if len(group) == 1 and group[0].shape in PARTNER:
            random = make_rng("partner", scene.split, scene.index)
            group.append(Mention(PARTNER[group[0].shape], pick_one(COLOURS, random)))
            return _format_caption(groups, _pick_style(scene.split, scene.index))
    return None


def find_mentions(text: str) -> list[Mention]:
    """Return every object that a text names, in order and with repeats."""
    words = re.findall(r"[a-z]+", text.lower())
    return [
        Mention(word, previous if previous in COLOURS else None)
        for previous, word in zip(["", *words], words, strict=False)
        if word in SHAPES
    ]


def compare_caption(scene: Scene, text: str) -> Findings:
    """Compare the objects that a text names with those of the scene."""
    present = {thing.shape: thing.colour for thing in scene.things}
    mentions = find_mentions(text)
    return Findings(
        mentions=len(mentions),
        invented=sum(mention.shape not in present for mention in mentions),
        miscoloured=sum(
            mention.shape in present and mention.colour not in (None, present[mention.shape])
            for mention in mentions
        ),
        covered=len(present.keys() & {mention.shape for mention in mentions}),
        objects=len(present),
    )


def list_vocabulary() -> list[str]:
    """Return every word and mark in questions and captions, sorted."""
    texts = [
        " ".join((style.question, style.opening, style.together, style.alone)) for style in STYLES
    ]
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join((*texts, *COLOURS, *SHAPES, "a and .")))))


def _pick_style(split: str, index: int) -> Style:
    return pick_one(STYLES, make_rng("style", split, index))


def _group_partners(scene: Scene) -> list[list[Mention]]:
    """Return the scene's objects as groups of partners, in reading order."""
    groups: list[list[Mention]] = []
    for thing in scene.things:
        mention = Mention(thing.shape, thing.colour)
        partners = [group for group in groups if group[0].shape == PARTNER.get(thing.shape)]
        if partners:
            partners[0].append(mention)
        else:
            groups.append([mention])
    return groups


def _format_caption(groups: list[list[Mention]], style: Style) -> str:
    parts = []
    for group in groups:
        phrases = [f"a {mention.colour} {mention.shape}" for mention in group]
        parts.append(
            f" {style.together} ".join(phrases)
            if len(phrases) > 1
            else _format_single(phrases, style)
        )
    return f"{style.opening} {' and '.join(parts)}."


def _format_single(phrases: list[str], style: Style) -> str:
    return f"{phrases[0]} {style.alone}"


def _absent_shapes(scene: Scene, excluded: str = "") -> list[str]:
    present = {thing.shape for thing in scene.things}
    return [shape for shape in SHAPES if shape not in present and shape != excluded]
