"""The commands as a user types them: one line an error, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import cli, main

from .conftest import STUDY


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", ["run", "plan", "status", "report"])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[dpo, chip]", "[dpo, chp]", "factors.objective[1]: unknown level 'chp': did you mean"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: not distinct"),
        ("  objective: [dpo", "\tobjective: [dpo", "a tab where YAML wants spaces"),
        ("recipe: shapes", "recipe: shaped", "recipe: unknown recipe 'shaped'"),
    ],
)
def test_bad_input_writes_nothing(
    write_study: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    old: str,
    new: str,
    expected: str,
) -> None:
    path = write_study(STUDY.replace(old, new))
    assert call(command, str(path)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("chip-ablate: ")
    assert expected in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan"], "chip-ablate plan: Missing argument 'STUDY'."),
        (["plan", "encodr"], "encodr: no such study file: did you mean 'encoder'?"),
        (["plan", "encoder", "--sed", "1"], "No such option"),
        (["plan", "encoder", "--set", "lr"], "'lr' is no key=value: write --set"),
        (["plan", "encoder", "--set", "optimizer.lrr=1"], "--set: optimizer.lrr: unknown key"),
        (["plan", "encoder", "--set", "optimizer.lr=fast"], "--set: optimizer.lr: input should"),
        (["plan", "encoder", "--seeds", "0", "0"], "seeds (from --seeds): not distinct"),
        (["plan", "encoder", "--seeds", "a"], "'a' is no list of whole numbers"),
        (["pln"], "No such command 'pln'"),
        (["report", "encoder"], "study encoder has no figures in chip-runs: run it first"),
        (["ui"], "no runs in chip-runs: run a study first"),
        (["run", "encoder", "--workdir", "/proc/x"], "--workdir: /proc/x: cannot be written"),
    ],
)
def test_bad_commands(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert expected in lines[-1]
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.commands:
        assert call(command, "--help") == 0
        assert f"Example: chip-ablate {command}" in capsys.readouterr().out


def test_plan_and_status_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("plan", "status"):
        assert call(command, "encoder", "--json", "--seeds", "0", "1", "2", "3") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["seeds"] == [0, 1, 2, 3]
        assert len(found["trials"]) == 17
        assert {trial["state"] for trial in found["trials"]} == {"to run"}
    assert list(tmp_path.iterdir()) == []  # looking writes nothing
