"""Write the footnotes under the arms' table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.report.formatting import counted, listed
from orchestrator.report.summary import Summary

_SHORT = 12  # characters of a hash


def footnotes(summary: Summary, origin: Mapping[str, Any]) -> list[str]:
    """Return the footnotes of the arms' table.

    Args:
        summary: the study's table.
        origin: the provenance of its trials.
    """
    lines = [_counts(summary), _hashes(origin)]
    if summary.missing:
        whole = sum(len(row.states) for row in summary.rows)
        lines.append(
            f"Not there, {len(summary.missing)} of {counted(whole, 'trial')}: "
            f"{listed(summary.missing)}."
        )
    return lines


def _counts(summary: Summary) -> str:
    """Say how many seeds an arm has and how many items each metric."""
    seeds = summary.plan.study.seeds
    said = [f"{counted(len(seeds), 'seed')} an arm ({', '.join(map(str, seeds))})"]
    by_items: dict[str, list[str]] = {}
    for metric in summary.decided:
        one = summary.compared.get(metric)
        if one is not None:
            text = counted(len(one.items), "item") if one.items else "items taken as fixed"
            text += f", {one.dropped:,} left out" if one.dropped else ""
            by_items.setdefault(text, []).append(metric)
    said += [f"{text} on {listed(metrics)}" for text, metrics in by_items.items()]
    return f"n: {'; '.join(said)}."


def _hashes(origin: Mapping[str, Any]) -> str:
    """Name model, data, evaluations and code by what identifies them."""
    trials = origin["trials"]
    models = sorted({_named(trial["model"]) for trial in trials})
    sets = sorted({_named(trial["data"]) for trial in trials if trial["data"]})
    scored = [f"{key} {fingerprint[:_SHORT]}" for key, fingerprint in origin["evaluations"].items()]
    parts = [
        f"model {' and '.join(models)}",
        *([f"data {' and '.join(sets)}"] if sets else []),
        *([f"evaluation {', '.join(scored)}"] if scored else []),
        f"behaviour number {origin['behaviour']}",
    ]
    return f"Made of: {'; '.join(parts)}. Every trial's fingerprint is in provenance.json."


def _named(identity: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value)[:_SHORT] if len(str(value)) > 2 * _SHORT else value}"
        for key, value in identity.items()
    )
