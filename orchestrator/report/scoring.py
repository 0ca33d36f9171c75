"""Describe how a study was scored: protocol, scorer, judge, items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.plan.contamination import read_overlaps
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger


def scoring_notes(plan: Plan, ledger: Ledger) -> tuple[str, ...]:
    """Return notes on the scoring for readers of the table."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        for key, fingerprint in trial.evaluations.items():
            if fingerprint in record.evaluations:
                found.setdefault(key, []).append(
                    record.evaluations[fingerprint].evaluation.metadata
                )
    lines = [
        f"{key.removeprefix('report/')}: {'; '.join(_protocol_notes(hows))}."
        for key, hows in found.items()
        if any(hows)
    ]
    return (*lines, *_overlap(plan, ledger))


def _protocol_notes(hows: list[Mapping[str, Any]]) -> Iterator[str]:
    first = next(how for how in hows if how)
    yield f"protocol {first['protocol']}, scorer {first['scorer']}"
    if "half" in first:
        yield f"of its {first['half']} half {first['limit']:,} of {first['of']:,} questions"
    elif "of" in first:
        yield f"a seeded subset of {first['limit']:,} of {first['of']:,} questions"
    judges = [how["judge"] for how in hows if "judge" in how]
    if judges:
        yield f"judge {_judge(judges)}"
    for tool in ("similarity", "tagger"):
        names = sorted({how[tool] for how in hows if tool in how})
        if names:
            yield f"{tool} by {', '.join(names)}"
    missing = [how.get("missing", 0) for how in hows]
    if any(missing):
        trials = sum(count > 0 for count in missing)
        most = f"up to {max(missing):,} answers or replies missing"
        yield f"{most}, in {trials} of {len(hows)} trials"
    unread = [how["unreadable"] for how in hows if "unreadable" in how]
    for kind, means in (("answers", "counted as wrong"), ("replies", "judge's; missing")):
        most_unread = max((found[kind] for found in unread), default=0)
        if most_unread:
            trials = sum(found[kind] > 0 for found in unread)
            yield (
                f"up to {most_unread:,} {kind} that could not be read ({means}), "
                f"in {trials} of {len(hows)} trials"
            )
    yield from _engine_notes(hows)
    checked = [how["bf16"] for how in hows if "bf16" in how]
    if checked:
        differ, of = (
            sum(each["differ"] for each in checked),
            sum(each["checked"] for each in checked),
        )
        yield (
            f"answers in bf16 depend on what they are made together with: made again alone, "
            f"{differ} of {of} were others"
        )
    yield from sorted({note for how in hows for note in how.get("notes", ())})


def _engine_notes(hows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield notes on the engine, its parity with transformers, its speed and cut answers."""
    cut = [how["cut"] for how in hows if "cut" in how]
    if cut:
        answers, of = (sum(each[key] for each in cut) for key in ("answers", "of"))
        yield (
            f"{answers:,} of {of:,} answers were cut at {cut[0]['max_new_tokens']:,} tokens, in "
            f"{len(cut)} of {len(hows)} trials"
        )
    engines = sorted({how["generator"] for how in hows if "generator" in how})
    if engines:
        parity = [how["parity"] for how in hows if "parity" in how]
        worst = min(parity, key=lambda each: each["equal"] / each["items"])
        yield (
            f"answered by {', '.join(engines)}; of those that transformers answered too, at least "
            f"{worst['equal']:,} of {worst['items']:,} alike in every trial (declared: "
            f"{worst['least']:.0%})"
        )
        unseen = sum(each.get("prompts", {}).get("compared") == 0 for each in parity)
        if unseen:
            yield (
                f"in {unseen} of {len(hows)} trials prompts could not be compared with "
                "transformers': the server does not say how many tokens they have"
            )
        blind = sum(each.get("adapter", {}).get("differ") == 0 for each in parity)
        if blind:
            yield (
                f"in {blind} of {len(hows)} trials no such question could tell whether the adapter "
                "was applied"
            )
    pace = [how["pace"] for how in hows if "pace" in how]
    if pace:
        rates = sorted(each["answers_per_second"] for each in pace)
        waited = max(each["waited"] for each in pace)
        yield (
            f"{rates[0]:.3g} to {rates[-1]:.3g} answers a second in a trial, up to {waited:.0%} of "
            "the time waiting for pictures and prompts"
        )


def _judge(judges: list[Mapping[str, Any]]) -> str:
    """Return the judge's name and the models that the endpoint reported, if they differ."""
    asked = ", ".join(sorted({judge["model"] for judge in judges}))
    returned = sorted({name for judge in judges for name in judge.get("returned", ())})
    if not returned or returned == [asked]:
        return asked
    several = " (several: figures may not be comparable)" if len(returned) > 1 else ""
    return f"{asked}, answered by {', '.join(returned)}{several}"


def _overlap(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for found in read_overlaps(ledger.folder.parent, plan.study.name):
        yield found.sentence
