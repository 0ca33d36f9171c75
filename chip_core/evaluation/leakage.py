"""What is tuned on is not quoted: no question stands under `select` and under `report`.

By what the configuration says (`declared_overlaps`), and by the questions themselves
(`shared_questions`), since a benchmark of a user's own may say of itself what is not so.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.task import Item, Picture, Side
from chip_core.utils.errors import TrialError, UserError

_COMPARED = 64  # questions of like prompt and picture name whose pictures are looked at


def declared_overlaps(benchmarks: BenchmarksConfig) -> list[tuple[Side, BenchmarkConfig, str]]:
    """Return which entries cannot be kept apart from the other side, and why.

    A benchmark that is not known is left out: that is said elsewhere.
    """
    tuned_on = {settings.name: settings for settings in benchmarks.select}
    found: list[tuple[Side, BenchmarkConfig, str]] = []
    sides: tuple[tuple[Side, Sequence[BenchmarkConfig]], ...] = (
        ("select", benchmarks.select),
        ("report", benchmarks.report),
    )
    for side, settings in ((side, one) for side, chosen in sides for one in chosen):
        try:
            splits = find_benchmark(settings.name).splits
        except ValueError:
            continue
        other = tuned_on.get(settings.name) if side == "report" else None
        problem = None
        if splits and settings.half is not None:
            problem = "has other questions on each side by itself: leave `half` out"
        elif other is not None and not splits:
            problem = _halves_problem(other, settings)
        if problem is not None:
            found.append((side, settings, f"'{settings.name}' {problem}"))
    return found


def shared_questions(benchmarks: BenchmarksConfig, places: DataPaths) -> list[str]:
    """Return a sentence for each benchmark of `report` that asks what one of `select` asks.

    A question is the same where prompt and pictures are, by the pictures' names and content.
    What cannot be read is left out: that is said elsewhere.
    """
    found = []
    tuned_on = [(one, _items("select", one, places)) for one in benchmarks.select]
    for settings in benchmarks.report if tuned_on else ():
        asked = {_question(item): item for item in _items("report", settings, places)}
        for other, items in tuned_on:
            alike = ((item, asked[key]) for item in items if (key := _question(item)) in asked)
            for one, same in itertools.islice(alike, _COMPARED):
                if all(map(_same, one.pictures, same.pictures)):
                    found.append(
                        f"{settings.name}: its question {same.id} is asked under `select`, too, "
                        f"by {other.name}: what was tuned on is not quoted"
                    )
                    break
    return found


def _halves_problem(tuned_on: BenchmarkConfig, quoted: BenchmarkConfig) -> str | None:
    if tuned_on.half is None and quoted.half is None:
        return (
            "is under `select` too and has one set of questions: what was tuned on is not quoted: "
            "name it on one side, or halve it: `half: select` there and `half: report` here"
        )
    if tuned_on.half is None or quoted.half is None:
        whole = "select" if tuned_on.half is None else "report"
        return f"is halved on one side and asked whole under `{whole}`: write `half: {whole}` there"
    if tuned_on.half_seed != quoted.half_seed:
        return "is halved by two seeds, so that its halves overlap: give both one `half_seed`"
    return None


def _items(side: Side, settings: BenchmarkConfig, places: DataPaths) -> Sequence[Item]:
    with contextlib.suppress(UserError, ValueError, TrialError):
        return select_items(side, settings, find_benchmark(settings.name), places)[0]
    return ()


def _question(item: Item) -> tuple[str, tuple[str, ...]]:
    return item.prompt, tuple(picture.key for picture in item.pictures)


def _same(one: Picture, other: Picture) -> bool:
    if one.file is not None and other.file is not None and one.file == other.file:
        return True
    with contextlib.suppress(Exception):  # a decoder, or a user's own, may raise anything
        left, right = one.read(), other.read()
        return bool(left.size == right.size and left.tobytes() == right.tobytes())
    return False
