"""An import's figures as JSON, as a Markdown section and as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chip_core.files import write_atomically, write_json
from orchestrator.humans.draw import Key
from orchestrator.humans.figures import HumanFigures, Interval, Share, human_figures
from orchestrator.humans.replies import Replies, judgements

#: Where the sections lie in a study's report folder.
HUMANS = "humans"
ITEMS_ONLY = "items only: this says nothing of training variance"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What people made of two arms."""

    key: Key
    figures: HumanFigures
    sheets: dict[int, tuple[int, int]]  # sheet -> (questions judged, questions); 0 where not given

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.key.benchmark.replace('/', '-').replace(':', '-')}-{self.key.export[:8]}"


def compare(key: Key, replies: Sequence[Replies]) -> Comparison:
    """Return what the replies to an export come to.

    Raises:
        UserError: a sheet is not one of the export's.
    """
    made = judgements(key, replies)
    judged = {saved.sheet: sum(choice is not None for choice in saved.choices) for saved in replies}
    return Comparison(
        key=key,
        figures=human_figures(made),
        sheets={
            number: (judged.get(number, 0), len(entries))
            for number, entries in enumerate(key.sheets, start=1)
        },
    )


def write_comparison(comparison: Comparison, report: Path) -> list[Path]:
    """Write a comparison into a study's report folder; return the files."""
    folder = report / HUMANS
    files = [folder / f"{comparison.name}.{kind}" for kind in ("json", "md")]
    write_json(files[0], as_json(comparison))
    write_atomically(files[1], markdown(comparison))
    return files


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data; shares from 0 to 1, of the second arm."""
    key = comparison.key
    return {
        "export": key.export,
        "study": key.study,
        "arms": list(key.arms),
        "benchmark": key.benchmark,
        "trials": dict(key.trials),
        "pairs": key.pairs,
        "same": key.same,
        "sheets": [
            {"sheet": number, "judged": judged, "questions": questions}
            for number, (judged, questions) in comparison.sheets.items()
        ],
        **asdict(comparison.figures),
    }


def markdown(comparison: Comparison) -> str:
    """Return a comparison as a section of a report."""
    key, figures = comparison.key, comparison.figures
    first, second = (_plain(name) for name in key.arms)
    lines = [f"## Human evaluation: {second} against {first} on {key.benchmark}", ""]
    if figures.win is None or figures.tie is None or figures.lose is None:
        return "\n".join([*lines, "Nothing was judged.", "", *_notes(comparison), ""])
    lines += [
        f"People preferred the answer of {second} on {_percent(figures.win)} of the items, that of "
        f"{first} on {_percent(figures.lose)}; on {_percent(figures.tie)} it was a tie.",
        "",
        "| | % of items | 95 % interval | items |",
        "| --- | --- | --- | --- |",
    ]
    rows = {
        f"win: {second}": figures.win,
        "tie": figures.tie,
        f"lose: {first}": figures.lose,
        "could be judged": figures.judged,
        "A was chosen, of the decided": figures.chose_a,
    }
    for name, share in rows.items():
        if share is not None:
            low, high = (f"{100 * bound:.1f}" for bound in share.interval)
            lines.append(f"| {name} | {100 * share.value:.1f} | {low} to {high} | {share.items} |")
    return "\n".join([*lines, "", *_notes(comparison), ""])


def metrics(comparison: Comparison) -> dict[str, float]:
    """Return the figures for a tracker: `human/BENCHMARK/SECOND vs FIRST/win`, …

    Shares and preferences are in percent.
    """
    figures = comparison.figures
    found: dict[str, float] = {}
    for name in ("win", "tie", "lose", "judged"):
        share: Share | None = getattr(figures, name)
        if share is not None:
            found |= _with_interval(name, share.value, share.interval)
    if figures.preference is not None:
        widest = figures.preference.over_seeds or figures.preference.over_items
        found |= _with_interval("preference", figures.preference.value, widest)
    found = {name: 100 * value for name, value in found.items()}
    if figures.agreement.alpha is not None:
        found["alpha"] = figures.agreement.alpha
    first, second = comparison.key.arms
    prefix = f"human/{comparison.key.benchmark}/{second} vs {first}"
    return {f"{prefix}/{name}": value for name, value in found.items()}


def _notes(comparison: Comparison) -> list[str]:
    key, figures = comparison.key, comparison.figures
    notes = []
    preference = figures.preference
    if preference is not None:
        said = f"Win less lose: {100 * preference.value:+.1f} points"
        if preference.over_items is not None:
            said += f", 95 % interval {_points(preference.over_items)} over items"
        if preference.over_seeds is not None:
            said += f", {_points(preference.over_seeds)} over training seeds and items"
            said += f" (p = {preference.p:.3g})"
        by_seed = ", ".join(f"{s}: {100 * v:+.1f}" for s, v in preference.by_seed.items())
        if len(preference.by_seed) > 1:
            said += f". By training seed: {by_seed}"
        else:
            said += f". One training seed ({by_seed}); {ITEMS_ONLY}"
        notes.append(f"{said}.")
        asked = 1 - key.same / key.pairs
        notes.append(
            "Over all pairs of answers, those that are the same counted as ties, that is "
            f"{100 * asked * preference.value:+.1f} points."
        )
    found = figures.agreement
    if found.alpha is None:
        notes.append(
            f"Agreement: undefined ({found.units} items have two judgements, and they need two "
            "different verdicts among them)."
        )
    else:
        interval = found.interval
        shown = (
            "" if interval is None else f", 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
        notes.append(
            f"Agreement: Krippendorff's α (nominal) = {found.alpha:.2f}{shown}, on {found.units} "
            "items that two people or more judged; “can't tell” counts as missing."
        )
    notes.append(
        f"Asked were items on which the answers differ. Of {key.pairs} pairs of answers (items × "
        f"training seeds) {key.same} are the same; the shares are of the others. An item counts "
        "once, however many judged it."
    )
    sheets = "; ".join(
        f"sheet {number}: {judged} of {questions} judged" if judged else f"sheet {number}: nothing"
        for number, (judged, questions) in comparison.sheets.items()
    )
    notes.append(f"Export {key.export}. {sheets}.")
    return [f"- {note}" for note in notes]


def _with_interval(name: str, value: float, interval: Interval | None) -> dict[str, float]:
    bounds = {} if interval is None else dict(zip(("low", "high"), interval, strict=True))
    return {name: value, **{f"{name}.{bound}": at for bound, at in bounds.items()}}


def _points(interval: Interval) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f} %"


def _plain(name: str) -> str:
    """Return an arm's name without what Markdown would take for markup."""
    return name.replace("|", "\\|").replace("<", "&lt;")
