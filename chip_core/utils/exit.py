"""End a process in which native libraries have started threads."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable


def exit_before_native_cleanup(code: Callable[[], int]) -> None:
    """End this process after Python's own exit functions, before those of C.

    Call it before anything large is imported: what is registered first runs last. Ray's client
    (2.60) leaves gRPC threads running after its shutdown. During the destruction of static objects,
    they sometimes end a finished process with a segmentation fault.

    Args:
        code: called at the end for the exit code.
    """

    def flush_and_exit() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the stream may have no reader any more
                stream.flush()
        os._exit(code())

    atexit.register(flush_and_exit)
