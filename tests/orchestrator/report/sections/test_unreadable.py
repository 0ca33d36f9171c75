"""The report says how many answers could not be read, arm by arm, and shows some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chip_core.evaluation.unreadable import count_unreadable, unreadable
from orchestrator.plan.plan import Trial
from orchestrator.report.writers.exports import summary_to_json
from orchestrator.report.writers.html import render_page
from orchestrator.report.writers.markdown import render_markdown

from ..conftest import FinishedStudy

Run = Callable[..., FinishedStudy]
CHIP = "chip, trained"


def make_scoring_metadata(trial: Trial) -> Mapping[str, Any]:
    """30 answers a trial; of one arm 2 + seed cannot be read, and one reply of its judge."""
    plain = {"protocol": "corrected", "scorer": "shapes-1", "n": 30, "missing": 0}
    if trial.arm != CHIP or trial.seed is None:
        return plain
    found = [
        unreadable(f"test/{place}", f"<b>hm</b> | *{place}*") for place in range(2 + trial.seed)
    ]
    return {**plain, "unreadable": count_unreadable([*found, unreadable("test/9", "", "reply")])}


def test_counts_by_arm_with_examples(make_finished_study: Run, blank_figures: None) -> None:
    made = make_finished_study(how=make_scoring_metadata)
    found = {one["arm"]: one for one in summary_to_json(made.summary)["unreadable"]}
    # seeds 0, 1, 2: 2 + 3 + 4 answers of 3 × 30, and a reply each
    assert (found[CHIP]["answers"], found[CHIP]["replies"], found[CHIP]["scored"]) == (9, 3, 90)
    assert len(found) == 5  # the other arms are there too, with none
    assert all(one["answers"] == 0 for arm, one in found.items() if arm != CHIP)
    assert found[CHIP]["examples"][0] == {
        "trial": f"{CHIP}, seed 0",
        "item": "test/0",
        "text": "<b>hm</b> | *0*",
        "source": "answer",
    }
    text, html = render_markdown(made.make_report()), render_page(made.make_report())
    assert "## What could not be read" in text
    assert f"| shapes | {CHIP} | 3 | 90 | 9 | 10.0 | 3 |" in text
    assert r"“&lt;b>hm&lt;/b> \| \*0\*”" in text
    assert "(empty)" in text
    assert "What could not be read" in html
    assert "&lt;b&gt;hm&lt;/b&gt; | *0*" in html and "<b>hm" not in html
    assert (
        "up to 4 answers that could not be read (counted as wrong), in 3 of 13 trials; up to 1 "
        "replies that could not be read (judge's; missing), in 3 of 13 trials"
    ) in text


def test_nothing_is_said_where_all_was_read(make_finished_study: Run, blank_figures: None) -> None:
    """Also of trials that were scored before anything was counted."""
    for told in (None, lambda trial: {"protocol": "official", "scorer": "s-1", "n": 3}):
        made = make_finished_study(how=told)
        assert summary_to_json(made.summary)["unreadable"] == []
        assert "could not be read" not in render_markdown(made.make_report())
