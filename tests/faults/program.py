"""The program, with workers that note each moment, and with no time spent on drawing figures."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from tests.faults.worker import FULL

_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x03\x00\x00\x00\x01\x00"


def main(arguments: list[str]) -> None:
    """Run `chip-ablate` with the arguments."""
    from orchestrator import cli
    from orchestrator.executors.ray.tuner import RayTuneExecutor
    from orchestrator.report.figures import base
    from orchestrator.state import ledger

    defaults: Any = RayTuneExecutor.__init__.__kwdefaults__
    defaults["entry"] = "tests.faults.worker:run_job"
    figures: Any = base
    figures.render_files = lambda figure: (_PNG, b"%PDF-1.4 blank")
    flag = Path(arguments[arguments.index("--workdir") + 1]) / f"{FULL}-ledger"
    append = ledger.append_record

    def full(path: Path, record: Any) -> None:
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, record)

    module: Any = ledger
    module.append_record = full
    cli.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
