"""A process ends as it should, whatever native libraries do while it goes."""

from __future__ import annotations

import subprocess
import sys

SPOILT = """
import ctypes, sys
from chip_core.utils.exit import exit_before_native_cleanup
{end}
at_exit = getattr(ctypes.CDLL(None), "__cxa_atexit")
at_exit(ctypes.c_void_p(8), None, None)  # no function is there: C's exit jumps to it
print("done")
sys.exit(3)
"""


def run_and_exit(end: str) -> tuple[int, str]:
    command = [sys.executable, "-c", SPOILT.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_library_that_crashes_at_the_end_does_not_change_the_code() -> None:
    assert run_and_exit("") == (-11, "done\n")  # by SIGSEGV
    assert run_and_exit("exit_before_native_cleanup(lambda: 3)") == (3, "done\n")
