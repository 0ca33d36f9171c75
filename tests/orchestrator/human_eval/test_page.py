"""The sheet in a real browser: filled in with keys, saved, imported; hostile answers as text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.config.benchmark import DataPaths
from orchestrator.human_eval.assignment import SheetKey, draw_sheets
from orchestrator.human_eval.comparison import build_comparison
from orchestrator.human_eval.pairs import AnswerPool, load_answer_pool, load_item_images
from orchestrator.human_eval.replies import find_sheet_key, read_replies
from orchestrator.human_eval.sheet import render_sheet
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger
from orchestrator.tracking.client import MlflowStore

from ...browser import Browser, needs_browser, open_browser, wait_for
from ..fakes import InlineTracker
from ..program import run_program

pytestmark = [pytest.mark.e2e, needs_browser]

HOSTILE = {
    "test/1": "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>",
    "test/2": "long " * 2048 + "x" * 10_000,  # 10 kB of words, 10 kB without a place to break
    "test/3": "זהו כוכב אדום. \u202eهذا قمر أزرق\u202c",
    "test/4": "👩🏽\u200d🚀 🏳️\u200d🌈 sees a ⭐",
}


@pytest.fixture
def pool(plan: Plan, write_answers: Callable[..., Ledger], workdir: Path) -> AnswerPool:
    def answers(arm: str, seed: int) -> dict[str, str]:
        told = {f"test/{number}": f"{arm}, seed {seed}" for number in range(60)}
        return {**told, **HOSTILE} if arm == "chip" else told

    ledger = write_answers(plan, answers)
    return load_answer_pool(plan, ledger, workdir, arms=("dpo", "chip"), benchmark="shapes")


def write_page(key: SheetKey, pool: AnswerPool, folder: Path) -> Path:
    images = load_item_images(pool, {entry.item for entry in key.sheets[0]}, DataPaths())
    page = folder / "sheet-1.html"
    page.write_text(render_sheet(key, 1, pool, images), encoding="utf-8")
    return page


def list_keys_for_verdicts(key: SheetKey, verdicts: str) -> str:
    """Return the keys that give w(in), l(ose), t(ie), c(an't tell): digits and letters in turn."""
    keys = []
    for place, (entry, verdict) in enumerate(zip(key.sheets[0], verdicts, strict=True)):
        if verdict in "tc":
            choice = verdict
        else:
            wanted = 1 if verdict == "w" else 0
            choice = "a" if entry.left == wanted else "b"
        digits = {"a": "1", "b": "2", "t": "3", "c": "4"}
        keys.append(digits[choice] if place % 2 else choice)
    return "".join(keys)


def test_forty_items_filled_in_saved_and_imported(
    pool: AnswerPool, plan: Plan, study: Path, tmp_path: Path, workdir: Path
) -> None:
    key = draw_sheets(pool, study="small", items=40, annotators=1, overlap=None, seed=3)
    verdicts = "w" * 18 + "l" * 8 + "t" * 10 + "c" * 4
    keys = list_keys_for_verdicts(key, verdicts)
    page = write_page(key, pool, tmp_path)
    with open_browser(tmp_path) as window:
        window.open(page)
        window.press(keys[:15])
        assert window.run("return document.getElementById('place').textContent") == "16 of 40"
        window.open(page)  # closed and opened again: the progress is kept
        assert window.run("return document.getElementById('progress').value") == 15
        window.press(keys[15:])
        window.press("\ue012\ue012b\ue012")  # back, back, another choice, back
        assert window.run("return document.getElementById('place').textContent") == "38 of 40"
        window.press(keys[37])
        window.press(keys[38])
        assert "All done" in window.run("return document.getElementById('said').textContent")
        window.click("#save")
        (file,) = wait_for(tmp_path, "replies-*.json")
        assert not [entry for entry in window.log() if entry["level"] == "SEVERE"]
    assert file.name == f"replies-{key.export[:8]}-1.json"
    replies = read_replies([file])
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / f"{key.export}.json").write_text(json.dumps(key.as_json()))
    found = build_comparison(find_sheet_key(tmp_path / "keys", None, key.export, [file]), replies)
    figures = found.figures
    # 40 choices, 4 of them "can't tell": 36 items; 18 win, 8 lose, 10 tie.
    assert found.sheets == {1: (40, 40)} and figures.choices == 40
    assert figures.judged is not None and figures.judged.value == pytest.approx(36 / 40)
    assert figures.win is not None and figures.win.value == pytest.approx(18 / 36)
    assert figures.lose is not None and figures.lose.value == pytest.approx(8 / 36)
    assert figures.tie is not None and figures.tie.value == pytest.approx(10 / 36)
    # Wilson at .5 of 36: .5 ± z/(1 + z²/36)·√(.25/36 + z²/(4·36²)), which is .5 ± z/(2√(36 + z²))
    z = 1.959963984540054
    half = z / (2 * math.sqrt(36 + z**2))
    assert figures.win.interval == pytest.approx((0.5 - half, 0.5 + half))
    assert figures.preference is not None
    assert figures.preference.value == pytest.approx((18 - 8) / 36)
    # One judgement an item: nobody to agree with.
    assert figures.agreement.alpha is None and figures.agreement.units == 0
    _import_and_check(file, key, plan, study, workdir)


def _import_and_check(file: Path, key: SheetKey, plan: Plan, study: Path, workdir: Path) -> None:
    """Import with the command; the figures stand in the report, in its CSV and in MLflow."""
    tracker = InlineTracker(workdir)
    tracker.open(plan, [])
    tracker.close([], "FINISHED", None)
    keys = workdir / "studies" / "small" / "human-keys"
    keys.mkdir(parents=True)
    (keys / f"{key.export}.json").write_text(json.dumps(key.as_json()))
    assert run_program("judge-humans", "import", study, file, "--workdir", workdir) == 0
    report = workdir / "studies" / "small" / "report"
    text = (report / "report.md").read_text().split("## Human evaluation")[1]
    # 18/36, 10/36, 8/36 of the judged and 36/40 of all, in percent
    for line in ("win: chip | 50.0 |", "tie | 27.8 |", "lose: dpo | 22.2 |", "judged | 90.0 |"):
        assert line in text
    assert "<h2>Human evaluation</h2>" in (report / "report.html").read_text()
    store = MlflowStore(workdir)
    store.open("small")
    (run,) = [run for run in store.runs() if run.tags["chip.kind"] == "study"]
    lines = csv.DictReader(io.StringIO((report / "humans.csv").read_text()))
    written = {line["metric"]: float(line["value"]) for line in lines}
    prefix = "human/shapes/chip vs dpo"
    wanted = {"win": 50, "tie": 250 / 9, "lose": 200 / 9, "judged": 90, "preference": 250 / 9}
    assert written == pytest.approx({f"{prefix}/{name}": at for name, at in wanted.items()})
    assert {name: run.metrics[name] for name in written} == written


def test_hostile_answers_are_text_and_the_layout_stays(pool: AnswerPool, tmp_path: Path) -> None:
    hostile = tuple(pair for pair in pool.pairs if pair.item in HOSTILE)
    few = AnswerPool(**{**vars(pool), "pairs": hostile})
    key = draw_sheets(few, study="small", items=4, annotators=1, overlap=None, seed=0)
    page = write_page(key, few, tmp_path)
    with open_browser(tmp_path) as window:
        for width, height in ((1100, 900), (500, 900)):
            window.resize(width, height)
            window.open(page)
            window.press("\ue012" * 4)  # ← to the first: the page keeps where it was
            for entry in key.sheets[0]:
                _assert_shown(window, HOSTILE[entry.item], "a" if entry.left == 1 else "b")
                window.press("\ue014")  # →
        assert window.run("return document.title") == "Which answer is better?"
        assert not [entry for entry in window.log() if entry["level"] == "SEVERE"]


def _assert_shown(window: Browser, text: str, side: str) -> None:
    shown = window.run(
        """
        const place = document.getElementById(arguments[0]);
        const box = place.getBoundingClientRect();
        return {
          text: place.textContent, elements: place.children.length, height: box.height,
          left: box.left, right: box.right, wide: place.scrollWidth - place.clientWidth,
          page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
          direction: getComputedStyle(place).direction,
        };
        """,
        side,
    )
    assert shown["text"] == text
    assert shown["elements"] == 0
    assert shown["wide"] == 0 and shown["page"] == 0  # nothing runs out at the side
    assert 100 < shown["height"] < 300 and shown["left"] >= 0
    assert shown["direction"] == ("rtl" if text.startswith("זה") else "ltr")
