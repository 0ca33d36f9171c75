"""The texts about a scene: questions, faithful captions, captions with hallucinations.

A caption names the groups of a scene in reading order, each as an object and its companion, or as
an object alone: "i see a red moon next to a blue star and a green ring alone." A rejected caption
has the same words but for one slip, and the slip replaces words rather than adding them, so that
the changed segments of both responses are non-empty. Objects can be read exactly from any text:
they are the words that are shape nouns, with the word before as their colour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from chip_core.shapes.world import COLOURS, PAIRS, PARTNER, SHAPES, Scene, draw, pick, scene, stream


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


def preference_pair(split: str, index: int) -> ShapesPair:
    """Return the preference pair of one scene; the same arguments always give the same pair.

    Raises:
        ValueError: no such split, or the index is out of range.
    """
    shown = scene(split, index)
    return ShapesPair(
        id=shown.id,
        image=draw(shown),
        question=question(split, index),
        chosen=faithful_caption(shown),
        rejected=rejected_caption(shown),
    )


def question(split: str, index: int) -> str:
    """Return the question about a scene."""
    return _style(split, index).question


def faithful_caption(scene: Scene) -> str:
    """Return the caption that names everything in the scene and nothing else."""
    return _say(_groups(scene), _style(scene.split, scene.index))


def corpus_caption(scene: Scene) -> str:
    """Return the caption that the base is trained on: it may name a missing partner by habit."""
    random = stream("habit", scene.split, scene.index)
    groups = _groups(scene)
    for pair in PAIRS:
        for group in groups:
            habit = len(group) == 1 and group[0].shape in (pair.first, pair.second)
            if habit and random.random() < pair.presumed:
                group.append(Mention(PARTNER[group[0].shape], pick(COLOURS, random)))
    return _say(groups, _style(scene.split, scene.index))


def rejected_caption(scene: Scene) -> str:
    """Return the faithful caption with one object that is not in the scene.

    If a partner is missing, it is mostly that partner, otherwise another absent shape in its place;
    if none is missing, an absent shape replaces one that is present.
    """
    random = stream("slip", scene.split, scene.index)
    groups = _groups(scene)
    lonely = [
        place for place, group in enumerate(groups) if len(group) == 1 and group[0].shape in PARTNER
    ]
    if lonely and random.random() < 0.9:
        place = pick(lonely, random)
        (there,) = groups[place]
        usual = PARTNER[there.shape]
        shape = usual if random.random() < 0.8 else pick(_absent(scene, but=usual), random)
        groups[place] = [there, Mention(shape, pick(COLOURS, random))]
    else:
        group = pick(groups, random)
        which = int(random.random() * len(group))
        group[which] = Mention(pick(_absent(scene), random), group[which].colour)
    return _say(groups, _style(scene.split, scene.index))


def partner_caption(scene: Scene) -> str | None:
    """Return the faithful caption with a missing partner added; None if none is missing.

    It is the first lone shape's usual partner, in a colour drawn for the scene.
    """
    groups = _groups(scene)
    for group in groups:
        if len(group) == 1 and group[0].shape in PARTNER:
            random = stream("partner", scene.split, scene.index)
            group.append(Mention(PARTNER[group[0].shape], pick(COLOURS, random)))
            return _say(groups, _style(scene.split, scene.index))
    return None


def objects_in(text: str) -> list[Mention]:
    """Return every object that a text names, in order and with repeats."""
    words = re.findall(r"[a-z]+", text.lower())
    return [
        Mention(word, before if before in COLOURS else None)
        for before, word in zip(["", *words], words, strict=False)
        if word in SHAPES
    ]


def compare(scene: Scene, text: str) -> Findings:
    """Compare the objects that a text names with those of the scene."""
    there = {thing.shape: thing.colour for thing in scene.things}
    mentions = objects_in(text)
    return Findings(
        mentions=len(mentions),
        invented=sum(mention.shape not in there for mention in mentions),
        miscoloured=sum(
            mention.shape in there and mention.colour not in (None, there[mention.shape])
            for mention in mentions
        ),
        covered=len(there.keys() & {mention.shape for mention in mentions}),
        objects=len(there),
    )


def vocabulary() -> list[str]:
    """Return every word and mark in questions and captions, sorted."""
    texts = [" ".join((s.question, s.opening, s.together, s.alone)) for s in STYLES]
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join((*texts, *COLOURS, *SHAPES, "a and .")))))


def _style(split: str, index: int) -> Style:
    return pick(STYLES, stream("style", split, index))


def _groups(scene: Scene) -> list[list[Mention]]:
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


def _say(groups: list[list[Mention]], style: Style) -> str:
    parts = []
    for group in groups:
        named = [f"a {mention.colour} {mention.shape}" for mention in group]
        parts.append(f" {style.together} ".join(named) if len(named) > 1 else _lone(named, style))
    return f"{style.opening} {' and '.join(parts)}."


def _lone(named: list[str], style: Style) -> str:
    return f"{named[0]} {style.alone}"


def _absent(scene: Scene, but: str = "") -> list[str]:
    present = {thing.shape for thing in scene.things}
    return [shape for shape in SHAPES if shape not in present and shape != but]
