"""How a process ends that native libraries have had their threads in."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable


def end_without_libraries(code: Callable[[], int]) -> None:
    """Let this process end when Python's own exit functions have run, and before those of C.

    Call it before anything large is imported: what is registered first runs last. Ray's client
    (2.60) leaves threads of gRPC behind its shutdown. While static objects go, they now and then
    end a process by a segmentation fault that had done all its work.

    Args:
        code: asked at the end for the exit code.
    """

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code())

    atexit.register(end)
