"""Assign pairs of answers to annotators, in random order and side."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from chip_core.utils.errors import UserError
from chip_core.utils.seeding import derive_seed
from orchestrator.human_eval.pairs import AnswerPair, AnswerPool

KEY_FORMAT = "chip-ablate human key 1"


@dataclass(frozen=True, kw_only=True)
class SheetEntry:
    """One question of a sheet."""

    item: str
    seed: int  # the training seed whose answers are shown
    left: int  # the arm that is shown as A: 0 the first, 1 the second


@dataclass(frozen=True, kw_only=True)
class SheetKey:
    """The exporter's key: the answers behind each question of each sheet."""

    study: str
    arms: tuple[str, str]
    benchmark: str
    seed: int  # of the draws
    trials: Mapping[str, str]  # "ARM, seed N" -> fingerprint
    pairs: int  # number of pairs of answers
    same: int  # of them, those with two equal answers
    sheets: tuple[tuple[SheetEntry, ...], ...]

    @property
    def export(self) -> str:
        """The id of this export; sheets and replies have it, too."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"format": KEY_FORMAT, "export": self.export, **asdict(self)}


def read_sheet_key(raw: Mapping[str, Any]) -> SheetKey:
    """Read a key from plain data.

    Raises:
        KeyError, TypeError, ValueError: it is not a key, or was changed.
    """
    if raw["format"] != KEY_FORMAT:
        raise ValueError("another format")
    fields = {name: value for name, value in raw.items() if name not in ("format", "export")}
    first, second = fields["arms"]
    sheets = tuple(tuple(SheetEntry(**entry) for entry in sheet) for sheet in fields["sheets"])
    key = SheetKey(**{**fields, "arms": (first, second), "sheets": sheets})
    if key.export != raw["export"]:
        raise ValueError("it was changed after the export")
    return key


def draw_sheets(
    pool: AnswerPool, *, study: str, items: int, annotators: int, overlap: int | None, seed: int
) -> SheetKey:
    """Sample items and distribute them over sheets.

    Items are drawn from those on which the answers differ, each with one training seed, the seeds
    about equally often. `overlap` of them are on every sheet; each of the others is on one. On
    every sheet the order is random, and each arm is A as often as B, or once more.

    Args:
        pool: the pairs of answers.
        study: the study's name.
        items: the number of items; fewer if fewer differ.
        annotators: the number of sheets.
        overlap: items that all judge; None: all for one annotator, else a fifth.
        seed: of every draw.

    Raises:
        UserError: the arms' answers are all the same, or the numbers do not fit.
    """
    random = Random(derive_seed("humans", seed, pool.benchmark, *pool.arms))
    chosen = _choose_pairs(pool, items, random)
    if not chosen:
        raise UserError(
            f"{pool.arms[0]} and {pool.arms[1]} give the same answer to every item of "
            f"{pool.benchmark}: there is nothing to prefer"
        )
    shared_count = _shared_count(len(chosen), annotators, overlap)
    sheet_pairs: list[list[AnswerPair]] = [list(chosen[:shared_count]) for _ in range(annotators)]
    for index, pair in enumerate(chosen[shared_count:]):
        sheet_pairs[index % annotators].append(pair)
    if not all(sheet_pairs):
        raise UserError(
            f"--items: {len(chosen)} items for {annotators} annotators leave a sheet empty: "
            "ask fewer annotators, or raise --items or --overlap"
        )
    return SheetKey(
        study=study,
        arms=pool.arms,
        benchmark=pool.benchmark,
        seed=seed,
        trials=pool.trials,
        pairs=len(pool.pairs),
        same=sum(not pair.differs for pair in pool.pairs),
        sheets=tuple(_shuffle_sheet(pairs, random) for pairs in sheet_pairs),
    )


def _choose_pairs(pool: AnswerPool, items: int, random: Random) -> list[AnswerPair]:
    """Return pairs of different items, the seeds about equally often."""
    by_item: dict[str, list[AnswerPair]] = {}
    for pair in pool.pairs:
        if pair.differs:
            by_item.setdefault(pair.item, []).append(pair)
    order = sorted(by_item)
    random.shuffle(order)
    used: Counter[int] = Counter()
    chosen = []
    for item in order[:items]:
        pair = min(by_item[item], key=lambda pair: (used[pair.seed], random.random()))
        used[pair.seed] += 1
        chosen.append(pair)
    return chosen


def _shared_count(items: int, annotators: int, overlap: int | None) -> int:
    if annotators == 1:
        return items
    if overlap is None:
        return min(items, max(1, round(items / 5)))
    if overlap > items:
        raise UserError(f"--overlap: {overlap} of {items} items: it cannot be more than all items")
    return overlap


def _shuffle_sheet(pairs: Sequence[AnswerPair], random: Random) -> tuple[SheetEntry, ...]:
    ordered = list(pairs)
    random.shuffle(ordered)
    offset = random.randrange(2)
    sides = [(index + offset) % 2 for index in range(len(ordered))]
    random.shuffle(sides)
    return tuple(
        SheetEntry(item=pair.item, seed=pair.seed, left=side)
        for pair, side in zip(ordered, sides, strict=True)
    )
