"""Drawing sheets, keys and replies: who is asked what, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import DataPaths
from chip_core.utils.errors import UserError
from orchestrator.human_eval.assignment import SheetKey, draw_sheets, read_sheet_key
from orchestrator.human_eval.pairs import AnswerPool, load_answer_pool, load_item_images
from orchestrator.human_eval.replies import decode_judgements, find_sheet_key, read_replies
from orchestrator.human_eval.sheet import render_sheet
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

ITEMS = [f"test/{number}" for number in range(60)]


def make_answers(arm: str, seed: int) -> dict[str, str]:
    """Make answers on whose first 12 items the arms agree."""
    same = {item: "nothing" for item in ITEMS[:12]}
    return same | {item: f"{arm} says {seed} of {item}" for item in ITEMS[12:]}


@pytest.fixture
def pool(plan: Plan, write_answers: Callable[..., Ledger], workdir: Path) -> AnswerPool:
    ledger = write_answers(plan, make_answers)
    return load_answer_pool(plan, ledger, workdir, arms=("dpo", "chip"), benchmark="shapes")


def draw_key(pool: AnswerPool, **changes: Any) -> SheetKey:
    wanted = {"items": 40, "annotators": 1, "overlap": None, "seed": 0, **changes}
    return draw_sheets(pool, study="small", **wanted)


def test_same_answers_are_counted_and_not_asked(pool: AnswerPool) -> None:
    key = draw_key(pool, items=100)
    assert (key.pairs, key.same) == (120, 24)  # 60 items × 2 seeds; 12 × 2
    assert sorted(entry.item for entry in key.sheets[0]) == sorted(ITEMS[12:])
    assert Counter(entry.seed for entry in key.sheets[0]) == {0: 24, 1: 24}


def test_overlap_and_balance(pool: AnswerPool) -> None:
    key = draw_key(pool, items=40, annotators=3, overlap=10)
    assert [len(sheet) for sheet in key.sheets] == [20, 20, 20]  # 10 shared + 30/3
    times = Counter(entry.item for sheet in key.sheets for entry in sheet)
    assert Counter(times.values()) == {3: 10, 1: 30}
    for sheet in key.sheets:
        assert Counter(entry.left for entry in sheet) == {0: 10, 1: 10}
    orders = {tuple(e.item for e in sheet if times[e.item] == 3) for sheet in key.sheets}
    assert len(orders) == 3


def test_the_seed_decides_the_draws(pool: AnswerPool) -> None:
    assert draw_key(pool) == draw_key(pool)
    assert draw_key(pool).sheets != draw_key(pool, seed=1).sheets
    assert draw_key(pool).export != draw_key(pool, seed=1).export


def test_a_sheet_does_not_tell_the_arms(pool: AnswerPool) -> None:
    key = draw_key(pool, items=5)
    page = render_sheet(key, 1, pool, load_item_images(pool, ITEMS, DataPaths()))
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    for entry, asked in zip(data["entries"], key.sheets[0], strict=True):
        arms = ("dpo", "chip")
        assert entry["a"] == f"{arms[asked.left]} says {asked.seed} of {asked.item}"
        assert entry["b"] == f"{arms[1 - asked.left]} says {asked.seed} of {asked.item}"
        assert entry["images"][0].startswith("data:image/png;base64,")
    assert data.keys() == {"export", "sheet", "entries"}
    assert all(entry.keys() == {"images", "question", "a", "b"} for entry in data["entries"])
    for outside in ("http:", "https:", "src=", "href=", "@import", "url("):
        assert outside not in page


def test_an_answer_cannot_leave_its_place(pool: AnswerPool) -> None:
    pairs = tuple(
        pair.__class__(**{**vars(pair), "first": "</script><script>alert(1)</script><!--"})
        for pair in pool.pairs
    )
    hostile = AnswerPool(**{**vars(pool), "pairs": pairs})
    key = draw_key(hostile, items=1)
    page = render_sheet(key, 1, hostile, load_item_images(hostile, ITEMS, DataPaths()))
    assert page.count("</script>") == 2 and "<!--" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert "</script><script>alert(1)</script><!--" in data["entries"][0].values()


def test_a_key_reads_back_and_a_changed_one_does_not(pool: AnswerPool) -> None:
    key = draw_key(pool)
    raw = json.loads(json.dumps(key.as_json()))
    assert read_sheet_key(raw) == key
    raw["sheets"][0][0]["left"] = 1 - raw["sheets"][0][0]["left"]
    with pytest.raises(ValueError, match="changed"):
        read_sheet_key(raw)


def write_replies(key: SheetKey, sheet: int, choices: list[str | None], file: Path) -> Path:
    raw = {
        "format": "chip-ablate human replies 1",
        "export": key.export,
        "sheet": sheet,
        "annotator": "x",
        "choices": choices,
    }
    file.write_text(json.dumps(raw))
    return file


def test_choices_become_verdicts_of_the_second_arm(pool: AnswerPool, tmp_path: Path) -> None:
    key = draw_key(pool, items=4)
    choices: list[str | None] = ["a", "b", "tie", None]
    made = decode_judgements(
        key, read_replies([write_replies(key, 1, choices, tmp_path / "r.json")])
    )
    lefts = [entry.left for entry in key.sheets[0]]
    assert [choice.verdict for choice in made] == [
        "win" if lefts[0] == 1 else "lose",  # A was chosen, and is the arm on the left
        "win" if lefts[1] == 0 else "lose",
        "tie",
    ]
    assert [choice.chose_a for choice in made] == [True, False, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "not a saved sheet"),
        ({"choices": ["x"]}, "not a saved sheet"),
        ({"choices": 3}, "not a saved sheet"),
        ({"choices": ["a"]}, "the file was changed"),
        ({"sheet": 7}, "has no sheet 7"),
    ],
)
def test_what_is_no_sheet_is_refused(
    pool: AnswerPool, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    key = draw_key(pool, items=4)
    file = write_replies(key, 1, ["a"] * 4, tmp_path / "r.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError, match=said) as raised:
        decode_judgements(key, read_replies([file]))
    assert "\n" not in str(raised.value) and str(file) in str(raised.value)


def test_sheets_of_two_exports_or_twice_the_same_are_refused(
    pool: AnswerPool, tmp_path: Path
) -> None:
    key, other = draw_key(pool), draw_key(pool, seed=1)
    one = write_replies(key, 1, ["a"] * 40, tmp_path / "1.json")
    two = write_replies(other, 1, ["a"] * 40, tmp_path / "2.json")
    with pytest.raises(UserError, match="import one export at a time"):
        read_replies([one, two])
    with pytest.raises(UserError, match="both sheet 1"):
        read_replies([one, write_replies(key, 1, [None] * 40, tmp_path / "3.json")])
    (tmp_path / "key.json").write_text(json.dumps(other.as_json()))
    with pytest.raises(UserError, match="give the key that was written with the sheets"):
        find_sheet_key(tmp_path, tmp_path / "key.json", key.export, [one])
    with pytest.raises(UserError, match="which this study does not have"):
        find_sheet_key(tmp_path, None, key.export, [one])


@pytest.mark.parametrize(
    ("arms", "benchmark", "said"),
    [
        (("dpo", "chap"), "shapes", "no arm 'chap'.*chip"),
        (("dpo", "dpo"), "shapes", "against itself"),
        (("dpo", "chip"), "amber", "no benchmark 'amber'"),
    ],
)
def test_unknown_names(
    plan: Plan, workdir: Path, arms: tuple[str, str], benchmark: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_answer_pool(plan, Ledger(workdir), workdir, arms=arms, benchmark=benchmark)


def test_a_placebo_is_paired_with_no_arm(plan: Plan, workdir: Path) -> None:
    placebo = replace(plan.arms[0], name="placebo", placebo=True)
    with pytest.raises(UserError, match="a placebo has its own seeds"):
        load_answer_pool(
            replace(plan, arms=(*plan.arms, placebo)),
            Ledger(workdir),
            workdir,
            arms=("chip", "placebo"),
            benchmark="shapes",
        )


def test_nothing_to_prefer(plan: Plan, write_answers: Callable[..., Ledger], workdir: Path) -> None:
    ledger = write_answers(plan, lambda arm, seed: {"test/1": "a star"})
    pool = load_answer_pool(plan, ledger, workdir, arms=("dpo", "chip"), benchmark="shapes")
    with pytest.raises(UserError, match="the same answer to every item"):
        draw_key(pool)


def test_the_commands_export_and_import_sheets(
    study: Path,
    plan: Plan,
    write_answers: Callable[..., Ledger],
    workdir: Path,
    tmp_path: Path,
    run_captured: Callable[..., tuple[int, str, str]],
) -> None:
    write_answers(plan, make_answers)

    def run(*arguments: object) -> tuple[int, str, str]:
        return run_captured(*arguments, "--workdir", workdir)

    out = tmp_path / "sheets"
    export = ["judge-humans", "export", study, "--arms", "dpo", "chip", "--benchmark", "shapes"]
    code, printed, _ = run(*export, "--annotators", 2, "--out", out, "--json")
    assert code == 0
    found = json.loads(printed)
    assert found["items"] == 48 and len(found["sheets"]) == 2
    code, _, complaint = run(*export, "--out", out)
    assert code == 2 and "is not empty" in complaint

    key = read_sheet_key(json.loads((out / "key.json").read_text()))
    half = len(key.sheets[0]) // 2
    open_ones: list[str | None] = [None] * (len(key.sheets[0]) - half)
    file = write_replies(key, 1, [*["a"] * half, *open_ones], tmp_path / "r.json")
    code, printed, _ = run("judge-humans", "import", study, file, "--json")
    assert code == 0
    figures = json.loads(printed)
    assert figures["sheets"] == [
        {"sheet": 1, "judged": half, "questions": len(key.sheets[0])},
        {"sheet": 2, "judged": 0, "questions": len(key.sheets[1])},
    ]
    assert figures["chose_a"]["value"] == 100.0  # percent, as everywhere
    assert "no run of study small" in figures["note"]
    section = workdir / "studies" / "small" / "report" / "humans"
    (markdown,) = section.glob("*.md")
    assert (
        f"sheet 1: {half} of {len(key.sheets[0])} judged; sheet 2: nothing" in markdown.read_text()
    )
