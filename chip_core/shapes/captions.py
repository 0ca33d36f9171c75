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

from chip_core.shapes.world import (
    COLOURS,
    PAIRS,
    PARTNER,
    SHAPES,
    Scene,
    draw_scene,
    make_rng,
    make_scene,
    pick_one,
)


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
    shown = make_scene(split, index)
    return ShapesPair(
        id=shown.id,
        image=draw_scene(shown),
        question=scene_question(split, index),
        chosen=faithful_caption(shown),
        rejected=rejected_caption(shown),
    )


def scene_question(split: str, index: int) -> str:
    """Return the question about a scene."""
    return _pick_style(split, index).question


def faithful_caption(scene: Scene) -> str:
    """Return the caption that names everything in the scene and nothing else."""
    return _format_caption(_group_partners(scene), _pick_style(scene.split, scene.index))


def corpus_caption(scene: Scene) -> str:
    """Return the caption that the base is trained on: it may name a missing partner by habit."""
    random = make_rng("habit", scene.split, scene.index)
    groups = _group_partners(scene)
    for pair in PAIRS:
        for group in groups:
            habit = len(group) == 1 and group[0].shape in (pair.first, pair.second)
            if habit and random.random() < pair.presumed:
                group.append(Mention(PARTNER[group[0].shape], pick_one(COLOURS, random)))
    return _format_caption(groups, _pick_style(scene.split, scene.index))


def rejected_caption(scene: Scene) -> str:
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


def partner_caption(scene: Scene) -> str | None:
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


def caption_vocabulary() -> list[str]:
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
