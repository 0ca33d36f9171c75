"""The commands as a user types them: one line an error, exit code 2, nothing written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import orchestrator.cli as program
from orchestrator.cli import cli, main

from .conftest import STUDY
from .program import run_program


@pytest.mark.parametrize("command", ["run", "plan", "status", "report"])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[dpo, chip]", "[dpo, chp]", "factors.objective[1]: unknown level 'chp': did you mean"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: not distinct"),
        ("  objective: [dpo", "\tobjective: [dpo", "a tab instead of spaces"),
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
    assert run_program(command, str(path)) == 2
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
        (["plan", "encoder", "--set", "lr"], "'lr' is not key=value: write --set"),
        (["plan", "encoder", "--set", "optimizer.lrr=1"], "--set: optimizer.lrr: unknown key"),
        (["plan", "encoder", "--set", "optimizer.lr=fast"], "--set: optimizer.lr: input should"),
        (["plan", "encoder", "--seeds", "0", "0"], "seeds (from --seeds): not distinct"),
        (["plan", "encoder", "--seeds", "a"], "'a' is not a list of whole numbers"),
        (["pln"], "No such command 'pln'"),
        (["report", "encoder"], "study encoder has no figures in chip-runs: run it first"),
        (["ui"], "no runs in chip-runs: run a study first"),
        (["run", "encoder", "--workdir", "/proc/x"], "--workdir: /proc/x: cannot be written"),
    ],
)
def test_bad_commands(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_program(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert expected in lines[-1]
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.commands:
        assert run_program(command, "--help") == 0
        assert f"Example: chip-ablate {command}" in capsys.readouterr().out


def test_plan_and_status_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("plan", "status"):
        assert run_program(command, "encoder", "--json", "--seeds", "0", "1", "2", "3") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["seeds"] == [0, 1, 2, 3]
        assert len(found["trials"]) == 17
        assert {trial["state"] for trial in found["trials"]} == {"to run"}
    assert list(tmp_path.iterdir()) == []  # looking writes nothing


@pytest.mark.parametrize("columns", ["0", "1", "-5", "wide", "²", "1" * 40])
def test_a_width_that_nothing_fits_is_not_obeyed(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    assert run_program("status", "encoder") == 0
    assert "study encoder: 13 to run" in capsys.readouterr().out


def test_a_width_that_will_do_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run_program("status", "encoder") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP])
def test_what_a_file_system_refuses_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("orchestrator.commands.studies.load_plan", refused)
    assert run_program("status", "encoder") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chip-ablate: some/file: cannot be used ({os.strerror(number)})")


def test_another_error_of_the_system_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EBADF, "ours")

    monkeypatch.setattr("orchestrator.commands.studies.load_plan", broken)
    with pytest.raises(OSError, match="ours"):
        main(["status", "encoder"])
    assert errno.EBADF not in program._PATH_ERRNOS


def test_a_first_run_that_is_refused_writes_nothing(
    write_study: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    path = write_study(STUDY.replace("report: [shapes]", "report: [shapes, mmhal]"))
    before = sorted(tmp_path.rglob("*"))
    for beside in ([], ["--max-gpu-hours", "3"]):
        run = ["run", str(path), "--executor", "inline", "--storage", str(storage), *beside]
        assert run_program(*run) == 2
        assert capsys.readouterr().out == ""
        assert sorted(tmp_path.rglob("*")) == before
    # Of no trial it is known how long it takes.
    path.write_text(STUDY)
    assert run_program(*run[:-2], "--budget", "price=5") == 2
    assert "the study's cost is unknown" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_hints_are_commands_that_a_shell_takes_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new = ["new", "--name", "n", "--question", "q", "--recipe", "shapes", "--seeds", "1"]
    of = ["--factor", "objective=dpo,chip", "--benchmark", "shapes", "--primary", "shapes/chair_i"]
    assert run_program(*new, *of, "--out", str(tmp_path / "my study.yaml")) == 0
    said = capsys.readouterr().out.strip()
    assert said.endswith(f"chip-ablate plan '{tmp_path}/my study.yaml'")
