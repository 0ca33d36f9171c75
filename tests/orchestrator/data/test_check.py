"""chip-ablate data check, as a user types it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from orchestrator.utils import progress

from ..program import run_program


def run_data_check(*arguments: str) -> int:
    return run_program("data", "check", *arguments)


def make_row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "image": "a.png",
        "prompt": "what is it ?",
        "chosen": "there is a red star on top .",
        "rejected": "there is a blue star on top .",
        **changes,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    bad = [make_row(chosen=""), make_row(image="../b.png")]
    text = "".join(
        json.dumps(each) + "\n" for each in (make_row(), make_row(rejected_image="a.png"), *bad)
    )
    (tmp_path / "pairs.jsonl").write_text(text)
    return tmp_path


def test_bad_rows_are_listed_and_the_code_is_1(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_data_check("pairs.jsonl") == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == "pairs.jsonl: 4 rows in 1 file, format jsonl"
    assert "by whitespace: no --model" in printed.out
    assert "1 rows give a rejected image" in printed.out
    assert lines[-3] == "2 bad rows"
    assert lines[-2] == "  pairs.jsonl line 3: chosen is empty"
    assert lines[-1].startswith("  pairs.jsonl line 4: image path '../b.png' leaves its folder")


def test_good_rows_are_measured(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check("pairs.jsonl", "--limit", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["good"], found["bad"]) == (2, 2, [])
    assert found["figures"]["image width, pixels"]["most"] == 30
    # One word of eight differs.
    assert found["figures"]["rejected changed, %"]["mean"] == pytest.approx(100 / 8)
    assert found["changed_unit"] == "words"


def test_rows_with_an_image_on_either_side_are_counted(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(data / "b.png")
    sides = make_row(image=None, chosen_image="a.png", rejected_image="b.png")
    (data / "sides.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in (make_row(), sides))
    )
    assert run_data_check("sides.jsonl") == 0
    assert "1 rows give chosen and rejected response an image each" in capsys.readouterr().out
    assert run_data_check("sides.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images_on_either_side"] == 1
    (data / "b.png").write_bytes(b"no picture")
    assert run_data_check("sides.jsonl") == 1
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("  sides.jsonl line 2: rejected image: ")
    )


def test_a_models_tokenizer_counts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check("pairs.jsonl", "--limit", "1", "--model", "shapes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed_unit"] == "tokens"
    assert found["figures"]["chosen, tokens"]["most"] == 8


def test_what_is_read_of_a_folder_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        folder = data / "many" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text(json.dumps(make_row()) + "\n")
        (folder / "a.png").write_bytes((data / "a.png").read_bytes())
    (data / "many" / ".hidden").mkdir()
    (data / "many" / ".hidden" / "rows.jsonl").write_text("x")
    assert run_data_check("many") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "many: 4 rows in 4 files, format jsonl"
    assert lines[1] == "read: many/0/rows.jsonl, many/1/rows.jsonl, many/2/rows.jsonl, …"


def test_a_recipe_names_the_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check("pairs.jsonl", "--limit", "1", "--recipe", "shapes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["changed_unit"] == "tokens"


def test_bad_rows_as_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_data_check("pairs.jsonl", "--json") == 1
    first, _ = json.loads(capsys.readouterr().out)["bad"]
    assert first == {"file": "pairs.jsonl", "line": 3, "reason": "chosen is empty"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.jsonl"], "no file none.jsonl: name a file, a folder, a glob"),
        (["pairs.jsonl", "--format", "trll"], "'trll' is not one of"),
        (["pairs.jsonl", "--split", "train"], "split 'train': only a folder or a hub name"),
        (["pairs.jsonl", "--image-root", "none"], "no folder none"),
        (["pairs.jsonl", "--model", "none"], "--model: no folder none"),
        (
            ["pairs.jsonl", "--model", "no/such"],
            "--model: no/such: the hub cannot be reached (no r",
        ),
        (["pairs.jsonl", "--recipe", "none"], "unknown recipe 'none': choices: "),
        (
            ["pairs.jsonl", "--recipe", "shapes", "--model", "shapes"],
            "--model and --recipe: give o",
        ),
        (["no/such"], "no/such: the hub cannot be reached (no route), and no copy of it is among "),
        (["folder"], "no *.parquet or *.jsonl in folder: name a .json file itself"),
        ([""], "PATH is empty"),
        (["shapes"], "shapes: the embedded world's pairs are drawn"),
        (["a.png"], "a.png is neither .parquet nor .jsonl"),
    ],
)
def test_errors_of_the_user_are_one_line_and_code_2(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    for module in ("chip_core.data.source", "orchestrator.data.check"):
        monkeypatch.setattr(f"{module}.find_hub_error", lambda *asked: "no route")
    (data / "folder").mkdir()
    (data / "folder" / "a.json").write_text("[]")
    assert run_data_check(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_told_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    def shown(after: float) -> str:
        monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", after)
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=80)
        with progress.track_progress(console, "rows checked", 10) as step:
            step(4)
            step(10)
        return out.getvalue()

    assert shown(2.0) == ""
    assert "rows checked" in shown(0.0)
    assert ("left" if not terminal else "4/10") in shown(0.0)


def test_how_many_there_are_may_be_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    out = io.StringIO()
    with progress.track_progress(Console(file=out, width=80), "files opened") as step:
        step(1, 4)
    assert out.getvalue().startswith("files opened: 1 of 4, ")
