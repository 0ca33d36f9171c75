"""Build the section on human evaluation from imported judgements.

All shares are in percent and all differences in points, in the stored files too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.report.formatting import NOTHING
from orchestrator.report.layout import Block, Table, TableRow, TextBlock, columns, text_row

CSV = ("metric", "value", "low", "high", "items", "unit", "export")
ITEMS_ONLY = "items only: this says nothing of training variance"
_SHARES = ("win", "tie", "lose", "judged")

Data = Mapping[str, Any]


def human_title(found: Data) -> str:
    """Return a title that names the compared arms and the benchmark or metric."""
    if _of_labels(found):
        return f"Human labels: {found['metric']}"
    first, second = found["arms"]
    return f"Human evaluation: {second} against {first} on {found['benchmark']}"


def human_blocks(found: Data) -> list[Block]:
    """Return the sentence, the tables and notes on how to read them."""
    if _of_labels(found):
        return _label_blocks(found)
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
    judge = found.get("judge")  # an import of an earlier version has none
    beside = [] if judge is None else [_judge_table(found, judge)]
    return [TextBlock(lines=(sentence,)), table, *beside, notes]


def human_metrics(found: Data) -> dict[str, float]:
    """Return the figures for a tracker, such as `human/BENCHMARK/SECOND vs FIRST/win`.

    Shares and preferences are in percent; agreement is Krippendorff's α.
    """
    metrics = {}
    for name, value, interval, _, _ in _figures(found):
        metrics[name] = value
        if interval is not None:
            metrics |= {f"{name}.low": interval[0], f"{name}.high": interval[1]}
    return metrics


def human_lines(found: Data) -> list[list[Any]]:
    """Return one CSV line per figure, unrounded, with the columns `CSV`."""
    lines = []
    for name, value, interval, items, unit in _figures(found):
        low, high = ("", "") if interval is None else map(repr, interval)
        lines.append([name, repr(value), low, high, items, unit, found["export"]])
    return lines


def _figures(
    found: Data,
) -> Iterator[tuple[str, float, Sequence[float] | None, int, str]]:
    """Yield (name, value, interval, items, unit) of every figure."""
    if _of_labels(found):
        yield from _label_figures(found)
        return
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
    judge = found.get("judge")
    if judge is not None:
        yield from _corrected(f"{prefix}/judge", judge, "points")
        yield from _with_judge(f"{prefix}/judge", judge["agreement"])


def _corrected(prefix: str, made: Data, unit: str) -> Iterator[tuple[Any, ...]]:
    for name, items in (("corrected", "items"), ("raw", "items"), ("labels_only", "labelled")):
        yield f"{prefix}/{name}", made[name]["value"], made[name]["interval"], made[items], unit


def _with_judge(prefix: str, agreement: Data) -> Iterator[tuple[Any, ...]]:
    count = agreement["judgements"]
    yield f"{prefix}/agreement", agreement["value"], agreement["interval"], count, "percent"
    if agreement["kappa"] is not None:
        yield f"{prefix}/kappa", agreement["kappa"], None, count, "kappa"


def _label_figures(found: Data) -> Iterator[tuple[Any, ...]]:
    for arm in found["arms"]:
        prefix = f"human/{found['metric']}/{arm['arm']}"
        yield from _corrected(prefix, arm, found["unit"])
        yield from _with_judge(prefix, arm["agreement"])
        if arm["difference"] is not None:
            yield from _corrected(f"{prefix} vs {found['baseline']}", arm["difference"], "points")


def _of_labels(found: Data) -> bool:
    return bool(found.get("kind") == "labels")


def _judge_table(found: Data, judge: Data) -> Table:
    return Table(
        name=f"human-judge-{found['export'][:8]}",
        caption=f"Win less lose by the judge ({judge['metric']}) over all items on which answers "
        "differ, and as people's choices correct it; points.",
        columns=_HEADS,
        rows=(_judge_row("", judge),),
    )


_HEADS = columns(
    "",
    "corrected",
    "95 % interval",
    "judge alone",
    "95 % interval",
    "labels alone",
    "95 % interval",
    "labelled",
    "items",
)


def _judge_row(name: str, made: Data) -> TableRow:
    cells = [name]
    for part in ("corrected", "raw", "labels_only"):
        cells += [f"{made[part]['value']:.1f}", _range(made[part]["interval"])]
    return text_row(*cells, str(made["labelled"]), str(made["items"]))


def _label_blocks(found: Data) -> list[Block]:
    rows = []
    for arm in found["arms"]:
        rows.append(_judge_row(arm["arm"], arm))
        if arm["difference"] is not None:
            rows.append(_judge_row(f"less {found['baseline']}", arm["difference"]))
    table = Table(
        name=f"labels-{found['export'][:8]}",
        caption=f"{found['metric']} by the judge, and as people's labels correct it "
        f"({found['unit']}).",
        columns=_HEADS,
        rows=tuple(rows),
    )
    notes = [f"{arm['arm']}: {_judge_words(arm)}" for arm in found["arms"]]
    notes.append(_PREDICTION_POWERED)
    if found["unjudged"]:
        notes.append(f"{found['unjudged']} labels are of answers that the judge gave no value.")
    return [table, TextBlock(lines=tuple(notes), bulleted=True)]


_PREDICTION_POWERED = (
    "Corrected figures are prediction-powered (PPI++): the judge's mean over all items and the "
    "mean of its errors on the labelled ones, weighed by how well it predicts labels (λ: 0 is the "
    "labels alone, 1 the judge at its word). They hold where the labelled items were drawn at "
    f"random. Intervals: {ITEMS_ONLY}."
)


def _judge_words(made: Data) -> str:
    agreement = made["agreement"]
    kappa = "undefined" if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
    return (
        f"people and the judge say the same of {agreement['value']:.1f} % of "
        f"{agreement['judgements']} labels (95 % interval {_range(agreement['interval'])}; Cohen's "
        f"κ = {kappa}; λ = {made['power']:.2f})."
    )


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
    judge = found.get("judge")
    if judge is not None:
        yield f"By {judge['metric']}: {_judge_words(judge)}"
        yield _PREDICTION_POWERED
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
