"""`--json`: one JSON document on standard output, whatever else is printed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from orchestrator.commands.common.output import json_option, print_json

from ...program import run_program

#: A user's own term that prints in every way there is, when it is imported and when it is called.
LOUD = r"""
import os
import subprocess
import sys

print("at import")


def term(chosen, rejected, rejected_image, beta):
    print("called")
    sys.stdout.write("written\n")
    os.write(1, b"past Python\n")
    subprocess.run(["echo", "a child"], check=True)
    return -beta * (chosen.log_ratio() - rejected.log_ratio())
"""
PRINTED = ("at import", "called", "written", "past Python", "a child")


def parse_strictly(text: str) -> Any:
    """Return the value of a JSON text; Python's own NaN and Infinity are none."""

    def refused(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refused)


def test_what_a_plug_in_prints_goes_to_standard_error(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", "from orchestrator.cli import program; program()"]
        + ["plugin", "check", "loud:term", "--json"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert parse_strictly(done.stdout)["kind"] == "loss term"
    for line in PRINTED:
        assert line in done.stderr


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_study_with_a_loud_plug_in(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "loud_study.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "loud_study", raising=False)
    (tmp_path / "s.yaml").write_text(
        "study: s\nrecipe: shapes\nfactors: {objective.beta: [0.1, 0.2]}\nseeds: 1\n"
    )
    assert (
        run_program(
            command, "s.yaml", "--set", "objective.custom={'loud_study:term': 1.0}", "--json"
        )
        == 0
    )
    printed = capfd.readouterr()
    assert parse_strictly(printed.out)["study"].startswith("s+objective.custom")
    assert "at import" in printed.err


def test_a_number_that_json_has_not_is_null_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    nan, inf = float("nan"), float("inf")
    print_json({"a": 1.5, "b": nan, "c": {"d": [0, -inf]}, "e": (inf, "NaN")})
    assert parse_strictly(capsys.readouterr().out) == {
        "a": 1.5,
        "b": None,
        "c": {"d": [0, None]},
        "e": [None, "NaN"],
        "not_finite": {"b": "nan", "c.d[1]": "-inf", "e[0]": "inf"},
    }
    print_json({"a": 1.5})
    # Nothing is said where nothing is wrong.
    assert parse_strictly(capsys.readouterr().out) == {"a": 1.5}


@pytest.mark.parametrize("given", [True, False])
def test_standard_output_is_as_it_was_afterwards(
    given: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @json_option()
    def command(as_json: bool) -> None:
        print("word")
        os.write(1, b"byte\n")
        if as_json:
            print_json({"found": 1})
        raise click.UsageError("and then it fails")

    stream = sys.stdout
    with pytest.raises(click.UsageError):
        command.main(["--json"] if given else [], standalone_mode=False)
    assert sys.stdout is stream
    print("after")
    os.write(1, b"wards\n")
    printed = capfd.readouterr()
    if given:
        assert printed.out == '{"found": 1}\nafter\nwards\n'
        assert sorted(printed.err.split()) == ["byte", "word"]
    else:
        assert sorted(printed.out.split()) == ["after", "byte", "wards", "word"]
