"""Build the section on human judgement from an import's figures.

All shares and differences are in percent and points, as they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.report.formatting import NOTHING
from orchestrator.report.layout import Block, Table, TextBlock, columns, text_row

CSV = ("metric", "value", "low", "high", "items", "unit", "export")
ITEMS_ONLY = "items only: this says nothing of training variance"
_SHARES = ("win", "tie", "lose", "judged")

Data = Mapping[str, Any]


def human_title(found: Data) -> str:
    """Return who is compared, on what."""
    first, second = found["arms"]
    return f"Human evaluation: {second} against {first} on {found['benchmark']}"


def human_blocks(found: Data) -> list[Block]:
    """Return the sentence, the table and what has to be known of it."""
    first, second = found["arms"]
    notes = TextBlock(lines=tuple(_notes(found)), bulleted=True)
    if found["win"] is None:
        return [TextBlock(lines=("Nothing was judged.",)), notes]
    names = {
        "win": f"win: {second}",
        "tie": "tie",
        "lose": f"lose: {first}",
        "judged": "could be judged",
        "chose_a": "A was chosen, of the decided",
    }
    sentence = (
        f"People preferred the answer of {second} on {found['win']['value']:.1f} % of the items, "
        f"that of {first} on {found['lose']['value']:.1f} %; on {found['tie']['value']:.1f} % it "
        "was a tie."
    )
    rows = [
        text_row(words, f"{share['value']:.1f}", _range(share["interval"]), str(share["items"]))
        for name, words in names.items()
        if (share := found[name]) is not None
    ]
    table = Table(
        name=f"human-{found['export'][:8]}",
        caption=f"{human_title(found)}.",
        columns=columns("", "% of items", "95 % interval", "items"),
        rows=tuple(rows),
    )
    return [TextBlock(lines=(sentence,)), table, notes]


def human_metrics(found: Data) -> dict[str, float]:
    """Return the figures for a tracker: `human/BENCHMARK/SECOND vs FIRST/win`, …

    Shares and preferences are in percent; agreement is Krippendorff's α.
    """
    metrics = {}
    for name, value, interval, _, _ in _figures(found):
        metrics[name] = value
        if interval is not None:
            metrics |= {f"{name}.low": interval[0], f"{name}.high": interval[1]}
    return metrics


def human_lines(found: Data) -> list[list[Any]]:
    """Return a line of a CSV file for each figure, unrounded; heads: `CSV`."""
    lines = []
    for name, value, interval, items, unit in _figures(found):
        low, high = ("", "") if interval is None else map(repr, interval)
        lines.append([name, repr(value), low, high, items, unit, found["export"]])
    return lines


def _figures(
    found: Data,
) -> Iterator[tuple[str, float, Sequence[float] | None, int, str]]:
    """Yield name, value, interval, items and unit of every figure."""
    first, second = found["arms"]
    prefix = f"human/{found['benchmark']}/{second} vs {first}"
    for name in _SHARES:
        share = found[name]
        if share is not None:
            yield f"{prefix}/{name}", share["value"], share["interval"], share["items"], "percent"
    preference = found["preference"]
    if preference is not None:
        widest = preference["over_seeds"] or preference["over_items"]
        items = found["win"]["items"]
        yield f"{prefix}/preference", preference["value"], widest, items, "points"
    agreement = found["agreement"]
    if agreement["alpha"] is not None:
        alpha = agreement["alpha"], agreement["interval"]
        yield f"{prefix}/alpha", *alpha, agreement["units"], "alpha"


def _notes(found: Data) -> Iterator[str]:
    preference = found["preference"]
    if preference is not None:
        said = f"Win less lose: {_signed(preference['value'])} points"
        if preference["over_items"] is not None:
            said += f", 95 % interval {_points(preference['over_items'])} over items"
        if preference["over_seeds"] is not None:
            said += f", {_points(preference['over_seeds'])} over training seeds and items"
            said += f" (p = {preference['p']:.3g})"
        by_seed = ", ".join(
            f"{seed}: {_signed(value)}" for seed, value in preference["by_seed"].items()
        )
        if len(preference["by_seed"]) > 1:
            said += f". By training seed: {by_seed}"
        else:
            said += f". One training seed ({by_seed}); {ITEMS_ONLY}"
        yield f"{said}."
        asked = 1 - found["same"] / found["pairs"]
        yield (
            "Over all pairs of answers, the same ones counted as ties, that is about "
            f"{_signed(asked * preference['value'])} points."
        )
    yield _agreement(found["agreement"])
    yield (
        f"Asked were items on which the answers differ. Of {found['pairs']} pairs of answers "
        f"(items × training seeds) {found['same']} are the same; the shares are of the others. "
        "An item counts once, however many judged it."
    )
    sheets = "; ".join(
        f"sheet {one['sheet']}: {one['judged']} of {one['questions']} judged"
        if one["judged"]
        else f"sheet {one['sheet']}: nothing"
        for one in found["sheets"]
    )
    yield f"Export {found['export']}. {sheets}."


def _agreement(found: Data) -> str:
    if found["alpha"] is None:
        return (
            f"Agreement: undefined ({found['units']} items have two judgements, and they need two "
            "different verdicts among them)."
        )
    interval = found["interval"]
    shown = "" if interval is None else f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    return (
        f"Agreement: Krippendorff's α (nominal) = {found['alpha']:.2f}{shown}, on "
        f"{found['units']} items that two people or more judged; “can't tell” counts as missing."
    )


def _range(interval: Sequence[float] | None) -> str:
    return NOTHING if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _points(interval: Sequence[float]) -> str:
    return f"{_signed(interval[0])} to {_signed(interval[1])}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
