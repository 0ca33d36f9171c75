"""How a malformed input must be refused, and how many were."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.errors import MAX_LINE_LENGTH

#: Malformed inputs that were refused as they must be, by kind; shown when the tests have run.
COUNTS: Counter[str] = Counter()


def count_refusal(kind: str, line: str) -> str:
    """Count an input that was refused by this one line, as it is shown."""
    assert line.strip(), "no reason is given"
    assert line.isprintable(), f"the reason steers a terminal: {line!r}"
    assert "Traceback" not in line
    assert len(line) <= MAX_LINE_LENGTH + 100
    COUNTS[kind] += 1
    return line


def expect_refusal(kind: str, act: Callable[[], Any], *errors: type[Exception]) -> str:
    """Count an input that an act refuses by one of these errors, with a reason of one line."""
    with pytest.raises(errors) as raised:
        act()
    return count_refusal(kind, str(raised.value))


def run_program(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of the program; an exception is none of these."""
    from orchestrator.cli import main

    out, errors, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return code, out.getvalue(), errors.getvalue()


def expect_program_refusal(kind: str, folder: Path, *arguments: str) -> list[str]:
    """Count an input that the program refuses: exit code 2, a line a problem, nothing written."""
    before = _list_files(folder)
    code, out, errors = run_program(*arguments)
    lines = errors.splitlines()
    assert (code, out) == (2, ""), (code, out, errors)
    assert lines, "nothing is said"
    assert all(line.startswith("chip-ablate: ") for line in lines), lines
    assert _list_files(folder) == before, "something is half written"
    for line in lines[1:]:
        assert line.isprintable()
    count_refusal(kind, lines[0])
    return lines


def _list_files(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*")
    )
