"""Describe how a study was scored: protocol, scorer, judge, items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.plan.plan import Plan
from orchestrator.plan.training_rows import read_overlaps
from orchestrator.state.ledger import Ledger


def scoring_notes(plan: Plan, ledger: Ledger) -> tuple[str, ...]:
    """Return notes on the scoring for readers of the table."""
    metadata_by_key: dict[str, list[Mapping[str, Any]]] = {}
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        for key, fingerprint in trial.evaluations.items():
            if fingerprint in record.evaluations:
                metadata_by_key.setdefault(key, []).append(
                    record.evaluations[fingerprint].evaluation.metadata
                )
    lines = [
        f"{key.removeprefix('report/')}: {'; '.join(_protocol_notes(metadata))}."
        for key, metadata in metadata_by_key.items()
        if any(metadata)
    ]
    overlaps = read_overlaps(ledger.folder.parent, plan.study.name)
    return (*lines, *(overlap.sentence for overlap in overlaps))


def _protocol_notes(metadata: list[Mapping[str, Any]]) -> Iterator[str]:
    reference = next(entry for entry in metadata if entry)
    yield f"protocol {reference['protocol']}, scorer {reference['scorer']}"
    if "half" in reference:
        yield (
            f"{reference['limit']:,} of {reference['of']:,} questions of its {reference['half']} "
            "half"
        )
    elif "of" in reference:
        yield f"a seeded subset of {reference['limit']:,} of {reference['of']:,} questions"
    judges = [entry["judge"] for entry in metadata if "judge" in entry]
    if judges:
        yield f"judge {_describe_judge(judges)}"
    for tool in ("similarity", "tagger"):
        names = sorted({entry[tool] for entry in metadata if tool in entry})
        if names:
            yield f"{tool} by {', '.join(names)}"
    missing = [entry.get("missing", 0) for entry in metadata]
    if any(missing):
        trials = sum(count > 0 for count in missing)
        missing_text = f"up to {max(missing):,} answers or replies missing"
        yield f"{missing_text}, in {trials} of {len(metadata)} trials"
    unread = [entry["unreadable"] for entry in metadata if "unreadable" in entry]
    for source, meaning in (("answers", "counted as wrong"), ("replies", "judge's; missing")):
        most_unread = max((counts[source] for counts in unread), default=0)
        if most_unread:
            trials = sum(counts[source] > 0 for counts in unread)
            yield (
                f"up to {most_unread:,} {source} that could not be read ({meaning}), "
                f"in {trials} of {len(metadata)} trials"
            )
    yield from _engine_notes(metadata)
    checked = [entry["bf16"] for entry in metadata if "bf16" in entry]
    if checked:
        differ = sum(check["differ"] for check in checked)
        total = sum(check["checked"] for check in checked)
        yield (
            "answers in bf16 depend on the batch in which they are generated: generated again "
            f"alone, {differ} of {total} were different"
        )
    yield from sorted({note for entry in metadata for note in entry.get("notes", ())})


def _engine_notes(metadata: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield notes on the engine, its parity with transformers, its speed and cut answers."""
    cut = [entry["cut"] for entry in metadata if "cut" in entry]
    if cut:
        answers, total = (sum(report[key] for report in cut) for key in ("answers", "of"))
        yield (
            f"{answers:,} of {total:,} answers were cut at {cut[0]['max_new_tokens']:,} tokens, in "
            f"{len(cut)} of {len(metadata)} trials"
        )
    engines = sorted({entry["generator"] for entry in metadata if "generator" in entry})
    if engines:
        parity = [entry["parity"] for entry in metadata if "parity" in entry]
        worst = min(parity, key=lambda report: report["equal"] / report["items"])
        yield (
            f"answered by {', '.join(engines)}; of the questions that transformers also answered, "
            f"at least {worst['equal']:,} of {worst['items']:,} had the same answer in every "
            f"trial (declared: {worst['least']:.0%})"
        )
        uncompared = sum(report.get("prompts", {}).get("compared") == 0 for report in parity)
        if uncompared:
            yield (
                f"in {uncompared} of {len(metadata)} trials prompts could not be compared with "
                "transformers': the server does not report how many tokens they have"
            )
        inconclusive = sum(report.get("adapter", {}).get("differ") == 0 for report in parity)
        if inconclusive:
            yield (
                f"in {inconclusive} of {len(metadata)} trials no such question could show whether "
                "the adapter was applied"
            )
    pace = [entry["pace"] for entry in metadata if "pace" in entry]
    if pace:
        rates = sorted(report["answers_per_second"] for report in pace)
        waited = max(report["waited"] for report in pace)
        yield (
            f"{rates[0]:.3g} to {rates[-1]:.3g} answers per second in a trial, up to {waited:.0%} "
            "of the time waiting for pictures and prompts"
        )


def _describe_judge(judges: list[Mapping[str, Any]]) -> str:
    """Return the judge's name and the models that the endpoint reported, if they differ."""
    requested = ", ".join(sorted({judge["model"] for judge in judges}))
    returned = sorted({name for judge in judges for name in judge.get("returned", ())})
    if not returned or returned == [requested]:
        return requested
    warning = " (several: figures may not be comparable)" if len(returned) > 1 else ""
    return f"{requested}, answered by {', '.join(returned)}{warning}"
