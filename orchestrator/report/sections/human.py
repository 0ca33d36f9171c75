"""Build the section on human evaluation from imported judgements.

All shares are in percent and all differences in points, in the stored files too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.report.formatting import NO_VALUE
from orchestrator.report.layout import Block, Table, TableRow, TextBlock, make_columns, text_row

CSV_COLUMNS = ("metric", "value", "low", "high", "items", "unit", "export")
ITEMS_ONLY = "items only: this says nothing of training variance"
_SHARES = ("win", "tie", "lose", "judged")

JsonObject = Mapping[str, Any]


def human_title(data: JsonObject) -> str:
    """Return a title that names the compared arms and the benchmark or metric."""
    if _is_label_data(data):
        return f"Human labels: {data['metric']}"
    first, second = data["arms"]
    return f"Human evaluation: {second} against {first} on {data['benchmark']}"


def human_blocks(data: JsonObject) -> list[Block]:
    """Return the sentence, the tables and notes on how to read them."""
    if _is_label_data(data):
        return _label_blocks(data)
    first, second = data["arms"]
    notes = TextBlock(lines=tuple(_comparison_notes(data)), bulleted=True)
    if data["win"] is None:
        return [TextBlock(lines=("Nothing was judged.",)), notes]
    names = {
        "win": f"win: {second}",
        "tie": "tie",
        "lose": f"lose: {first}",
        "judged": "could be judged",
        "chose_a": "A was chosen, of the decided",
    }
    sentence = (
        f"People preferred the answer of {second} on {data['win']['value']:.1f} % of the items, "
        f"that of {first} on {data['lose']['value']:.1f} %; on {data['tie']['value']:.1f} % it "
        "was a tie."
    )
    rows = [
        text_row(
            label, f"{share['value']:.1f}", _format_range(share["interval"]), str(share["items"])
        )
        for name, label in names.items()
        if (share := data[name]) is not None
    ]
    table = Table(
        name=f"human-{data['export'][:8]}",
        caption=f"{human_title(data)}.",
        columns=make_columns("", "% of items", "95 % interval", "items"),
        rows=tuple(rows),
    )
    judge = data.get("judge")  # an import of an earlier version has none
    judge_tables = [] if judge is None else [_judge_table(data, judge)]
    return [TextBlock(lines=(sentence,)), table, *judge_tables, notes]


def human_metrics(data: JsonObject) -> dict[str, float]:
    """Return the figures for a tracker, such as `human/BENCHMARK/SECOND vs FIRST/win`.

    Shares and preferences are in percent; agreement is Krippendorff's α.
    """
    metrics = {}
    for name, value, interval, _, _ in _iter_figures(data):
        metrics[name] = value
        if interval is not None:
            metrics |= {f"{name}.low": interval[0], f"{name}.high": interval[1]}
    return metrics


def human_lines(data: JsonObject) -> list[list[Any]]:
    """Return one CSV line per figure, unrounded, with the columns `CSV_COLUMNS`."""
    lines = []
    for name, value, interval, items, unit in _iter_figures(data):
        low, high = ("", "") if interval is None else map(repr, interval)
        lines.append([name, repr(value), low, high, items, unit, data["export"]])
    return lines


def _iter_figures(
    data: JsonObject,
) -> Iterator[tuple[str, float, Sequence[float] | None, int, str]]:
    """Yield (name, value, interval, items, unit) of every figure."""
    if _is_label_data(data):
        yield from _label_figures(data)
        return
    first, second = data["arms"]
    prefix = f"human/{data['benchmark']}/{second} vs {first}"
    for name in _SHARES:
        share = data[name]
        if share is not None:
            yield f"{prefix}/{name}", share["value"], share["interval"], share["items"], "percent"
    preference = data["preference"]
    if preference is not None:
        widest = preference["over_seeds"] or preference["over_items"]
        items = data["win"]["items"]
        yield f"{prefix}/preference", preference["value"], widest, items, "points"
    agreement = data["agreement"]
    if agreement["alpha"] is not None:
        alpha = agreement["alpha"], agreement["interval"]
        yield f"{prefix}/alpha", *alpha, agreement["units"], "alpha"
    judge = data.get("judge")
    if judge is not None:
        yield from _corrected_figures(f"{prefix}/judge", judge, "points")
        yield from _agreement_figures(f"{prefix}/judge", judge["agreement"])


def _corrected_figures(prefix: str, figures: JsonObject, unit: str) -> Iterator[tuple[Any, ...]]:
    for name, items in (("corrected", "items"), ("raw", "items"), ("labels_only", "labelled")):
        yield (
            f"{prefix}/{name}",
            figures[name]["value"],
            figures[name]["interval"],
            figures[items],
            unit,
        )


def _agreement_figures(prefix: str, agreement: JsonObject) -> Iterator[tuple[Any, ...]]:
    count = agreement["judgements"]
    yield f"{prefix}/agreement", agreement["value"], agreement["interval"], count, "percent"
    if agreement["kappa"] is not None:
        yield f"{prefix}/kappa", agreement["kappa"], None, count, "kappa"


def _label_figures(data: JsonObject) -> Iterator[tuple[Any, ...]]:
    for arm in data["arms"]:
        prefix = f"human/{data['metric']}/{arm['arm']}"
        yield from _corrected_figures(prefix, arm, data["unit"])
        yield from _agreement_figures(prefix, arm["agreement"])
        if arm["difference"] is not None:
            yield from _corrected_figures(
                f"{prefix} vs {data['baseline']}", arm["difference"], "points"
            )


def _is_label_data(data: JsonObject) -> bool:
    return bool(data.get("kind") == "labels")


def _judge_table(data: JsonObject, judge: JsonObject) -> Table:
    return Table(
        name=f"human-judge-{data['export'][:8]}",
        caption=f"Win minus lose by the judge ({judge['metric']}) over all items with different "
        "answers, and corrected by people's choices; points.",
        columns=_JUDGE_COLUMNS,
        rows=(_judge_row("", judge),),
    )


_JUDGE_COLUMNS = make_columns(
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


def _judge_row(name: str, figures: JsonObject) -> TableRow:
    cells = [name]
    for part in ("corrected", "raw", "labels_only"):
        cells += [f"{figures[part]['value']:.1f}", _format_range(figures[part]["interval"])]
    return text_row(*cells, str(figures["labelled"]), str(figures["items"]))


def _label_blocks(data: JsonObject) -> list[Block]:
    rows = []
    for arm in data["arms"]:
        rows.append(_judge_row(arm["arm"], arm))
        if arm["difference"] is not None:
            rows.append(_judge_row(f"less {data['baseline']}", arm["difference"]))
    table = Table(
        name=f"labels-{data['export'][:8]}",
        caption=f"{data['metric']} by the judge, and corrected by people's labels "
        f"({data['unit']}).",
        columns=_JUDGE_COLUMNS,
        rows=tuple(rows),
    )
    notes = [f"{arm['arm']}: {_describe_judge_agreement(arm)}" for arm in data["arms"]]
    notes.append(_PREDICTION_POWERED)
    if data["unjudged"]:
        notes.append(f"{data['unjudged']} labels are of answers without a value from the judge.")
    return [table, TextBlock(lines=tuple(notes), bulleted=True)]


_PREDICTION_POWERED = (
    "Corrected figures are prediction-powered (PPI++): the judge's mean over all items and the "
    "mean of its errors on the labelled ones, weighted by how well it predicts labels (λ = 0: "
    "labels only; λ = 1: the judge is fully trusted). They are valid if the labelled items were "
    f"drawn at random. Intervals: {ITEMS_ONLY}."
)


def _describe_judge_agreement(figures: JsonObject) -> str:
    agreement = figures["agreement"]
    kappa = "undefined" if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
    return (
        f"people and the judge agree on {agreement['value']:.1f} % of "
        f"{agreement['judgements']} labels (95 % interval {_format_range(agreement['interval'])}; "
        f"Cohen's κ = {kappa}; λ = {figures['power']:.2f})."
    )


def _comparison_notes(data: JsonObject) -> Iterator[str]:
    preference = data["preference"]
    if preference is not None:
        sentence = f"Win minus lose: {_format_signed(preference['value'])} points"
        if preference["over_items"] is not None:
            sentence += f", 95 % interval {_format_points(preference['over_items'])} over items"
        if preference["over_seeds"] is not None:
            sentence += (
                f", {_format_points(preference['over_seeds'])} over training seeds and items"
            )
            sentence += f" (p = {preference['p']:.3g})"
        by_seed = ", ".join(
            f"{seed}: {_format_signed(value)}" for seed, value in preference["by_seed"].items()
        )
        if len(preference["by_seed"]) > 1:
            sentence += f". By training seed: {by_seed}"
        else:
            sentence += f". One training seed ({by_seed}); {ITEMS_ONLY}"
        yield f"{sentence}."
        differing_share = 1 - data["same"] / data["pairs"]
        yield (
            "Over all pairs of answers, with equal answers counted as ties, that is about "
            f"{_format_signed(differing_share * preference['value'])} points."
        )
    yield _describe_agreement(data["agreement"])
    judge = data.get("judge")
    if judge is not None:
        yield f"By {judge['metric']}: {_describe_judge_agreement(judge)}"
        yield _PREDICTION_POWERED
    yield (
        f"People were asked about items with different answers. Of {data['pairs']} pairs of "
        f"answers (items × training seeds), {data['same']} are the same; the shares are of the "
        "others. An item counts once, however many people judged it."
    )
    sheets = "; ".join(
        f"sheet {sheet['sheet']}: {sheet['judged']} of {sheet['questions']} judged"
        if sheet["judged"]
        else f"sheet {sheet['sheet']}: nothing"
        for sheet in data["sheets"]
    )
    yield f"Export {data['export']}. {sheets}."


def _describe_agreement(agreement: JsonObject) -> str:
    if agreement["alpha"] is None:
        return (
            f"Agreement: undefined ({agreement['units']} items have two judgements; at least two "
            "different verdicts are needed)."
        )
    interval = agreement["interval"]
    interval_text = (
        "" if interval is None else f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    )
    return (
        f"Agreement: Krippendorff's α (nominal) = {agreement['alpha']:.2f}{interval_text}, on "
        f"{agreement['units']} items judged by at least two people; “can't tell” counts as "
        "missing."
    )


def _format_range(interval: Sequence[float] | None) -> str:
    return NO_VALUE if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _format_points(interval: Sequence[float]) -> str:
    return f"{_format_signed(interval[0])} to {_format_signed(interval[1])}"


def _format_signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
