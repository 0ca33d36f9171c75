"""The program `chip-ablate`, run in the tests' own process."""

from __future__ import annotations

import pytest

from orchestrator.cli import main


def run_program(*arguments: object) -> int:
    """Run the program and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
