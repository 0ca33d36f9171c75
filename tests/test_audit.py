"""The audit of dependencies: what was not looked up is never a pass."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "audit.py"
CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found"}
KNOWN = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.fixture
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ([CLEAN, CLEAN], 0, "nothing is known of 2 packages; 0 exceptions"),
        ([CLEAN, SKIPPED], 3, "NOT DONE for 1 of 2 packages (b)"),
        ([SKIPPED] * 5, 3, "NOT DONE for 5 of 5 packages (b, b, b, …)"),
        ([], 3, "NOT DONE for 0 of 0 packages"),
        ([CLEAN, KNOWN, SKIPPED], 1, "c 2: PYSEC-1: mended in 3"),
    ],
)
def test_what_a_report_comes_to(audit: Any, report: list[Any], code: int, said: str) -> None:
    found, (line,) = audit.verdict(report, 0)
    assert (found, said in line) == (code, True), line


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(stdout="", stderr="Traceback\nConnectionError: no such host", returncode=1),
        SimpleNamespace(stdout="[]", stderr="", returncode=0),
        SimpleNamespace(stdout="not JSON", stderr="", returncode=0),
    ],
)
def test_a_service_that_is_away_is_said_in_a_line(
    audit: Any, answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit.subprocess, "run", lambda *given, **options: answer)
    assert audit.main() == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("audit: NOT DONE: the advisory service cannot be asked (")


def test_an_exception_has_its_reason(audit: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[[exceptions]]\nid = "PYSEC-1"\nreason = "not used"\n')
    assert audit.exceptions(file) == ["PYSEC-1"]
    file.write_text('[[exceptions]]\nid = "PYSEC-1"\n')
    with pytest.raises(SystemExit, match="PYSEC-1 has no reason"):
        audit.exceptions(file)
    assert audit.exceptions(SCRIPT.parent / "audit-exceptions.toml") == []


def test_it_asks_by_the_versions_that_are_pinned(audit: Any, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options))
        return SimpleNamespace(stdout='{"dependencies": []}', stderr="", returncode=0)

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main() == 3
    ((command, options),) = asked
    assert command[0] == sys.executable
    assert "--no-deps" in command and str(SCRIPT.parent.parent / "constraints.txt") in command
    assert "shell" not in options
