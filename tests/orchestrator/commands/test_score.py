"""chip-ablate score, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..program import run_program


def run_score(*arguments: object) -> int:
    return run_program("score", *arguments)


@pytest.fixture
def amber(tmp_path: Path) -> Path:
    """Four questions of AMBER's form, which need no language parts."""
    folder = tmp_path / "amber"
    folder.mkdir()
    kinds = ["hallucination", "attribute-state", "attribute-number", "relation"]
    rows = [
        {"id": number, "type": f"discriminative-{kind}", "truth": "no"}
        for number, kind in enumerate(kinds, start=1)
    ]
    (folder / "annotations.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    file = tmp_path / "answers.jsonl"
    said = {1: "No", 2: "no.", 3: "Yes"}
    rows = [{"id": item, "response": text} for item, text in said.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_figures_as_json(amber: Path, responses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_score("amber", "--data", amber, "--responses", responses, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    figures = printed.pop("metrics")
    assert figures["accuracy"] == 33.3  # 1 / 3.001: "no." is no "No"
    assert printed == {
        "benchmark": "amber",
        "n": 3,
        "missing": 1,
        "unreadable": {
            "answers": 1,
            "replies": 0,
            "examples": [{"item": "2", "text": "no.", "source": "answer"}],
        },
        "protocol": "official",
        "version": "amber-2",
        "judge": None,
        "similarity": None,
        "tagger": None,
    }
    corrected = ("--protocol", "corrected", "--json")
    assert run_score("amber", "--data", amber, "--responses", responses, *corrected) == 0
    figures = json.loads(capsys.readouterr().out)["metrics"]
    assert figures["accuracy"] == pytest.approx(200 / 3)
    assert figures["number/precision"] is None


def test_figures_as_a_table(
    amber: Path, responses: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_score("amber", "--data", amber, "--responses", responses, "--protocol", "corrected")
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "amber, protocol corrected (amber-2)"
    (accuracy,) = (line.split() for line in lines if line.startswith("│ accuracy"))
    assert [cell for cell in accuracy if cell != "│"] == [
        "accuracy",
        "66.67",
        "percent",
        "higher",
        "3",
    ]
    assert any("number/precision" in line and "undefined" in line for line in lines)
    assert lines[-1] == "3 answers scored, 1 missing"
    assert run_score("amber", "--data", amber, "--responses", responses) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["1 answer unreadable (counted as wrong), for instance", "  2: “no.”"]


def test_the_embedded_world_needs_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([{"item": "test/0", "response": "nothing"}]))
    assert run_score("shapes", "--responses", file, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == {"chair_i": None, "chair_s": 0.0, "hal": 0.0, "cover": 0.0}
    file.write_text(json.dumps([{"item": "nowhere/0", "response": "nothing"}]))
    assert run_score("shapes", "--responses", file) == 2
    assert capsys.readouterr().err.startswith("chip-ablate: shapes: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ambr"], "unknown benchmark 'ambr': did you mean 'amber'?"),
        (["amber", "--data", "nowhere"], "--data: there is no folder nowhere"),
        (["amber"], "--data is missing: the folder of amber's own files"),
        (["amber", "--data", "."], "annotations.json: there is no such file"),
        (["chair", "--data", ".", "--protocol", "chip"], "chair: protocol chip is unknown"),
        (["amber", "--data", ".", "--similarity", "none.json"], "none.json: there is no such file"),
        (["objhal", "--data", ".", "--judge-replies", "none"], "none: there is no such file"),
        (["amber", "--data", ".", "--protocol", "mine"], "Invalid value for '--protocol'"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], expected: str, responses: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_score(*arguments, "--responses", responses) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("chip-ablate: ")
    assert expected in line


#: Command lines as the documentation has them, in terms of the cases' folder.
COMMANDS: dict[str, list[str]] = {
    "amber": ["data/amber", "amber/responses.json", "--similarity", "amber/similarity.json"],
    "chair": ["data/chair", "chair/captions.jsonl", "--coco", "chair/coco_objects.json"],
    "objhal": [
        *("data/chair", "objhal/responses.jsonl", "--coco", "objhal/annotations"),
        *("--judge-replies", "objhal/judge_replies.jsonl"),
    ],
}


@pytest.mark.parametrize("benchmark", COMMANDS)
def test_every_case_equals_the_official_figures(
    benchmark: str,
    oracles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(oracles / "nltk_data"), *nltk.data.path])
    data, responses, *options = (
        word if word.startswith("--") else str(oracles / word) for word in COMMANDS[benchmark]
    )
    arguments = [benchmark, "--data", data, "--responses", responses, *options]
    assert run_score(*arguments, "--json") == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)["metrics"]
    expected = json.loads((oracles / benchmark / "expected.json").read_text())
    assert {name: figures[name] for name in expected} == expected


@pytest.mark.parametrize("protocol", ["official", "corrected", "chip"])
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"id": number, "response": ""} for number in range(1, 5)],
        [{"id": 2, "response": "No"}],
        [{"id": number, "response": "No"} for number in range(4, 0, -1)],
        [{"id": 9, "response": "No"}],
        [{"id": 1, "response": "No"}, {"id": 1, "response": "No"}],
        [{"id": 1, "response": "No" * 5_000_000}],
        [{"id": None, "response": None}],
    ],
)
def test_degenerate_answers_give_figures_or_one_line(
    protocol: str,
    rows: list[dict[str, Any]],
    amber: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(rows))
    code = run_score(
        *("amber", "--data", amber, "--responses", file, "--protocol", protocol, "--json"),
    )
    printed = capsys.readouterr()
    if code == 0:
        assert set(json.loads(printed.out)["metrics"])
    else:
        assert code == 2
        assert len(printed.err.splitlines()) == 1
