"""What large libraries keep is looked through by the garbage collector as rarely as it can be."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from chip_core.utils.machine import import_and_freeze

KEEPS = """
import gc
assert not gc.isenabled()
kept = [[number] for number in range(5000)]
"""


def test_what_is_imported_is_left_alone_and_what_comes_later_is_not(tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(KEEPS)
    code = (
        "import gc\n"
        "from chip_core.utils.machine import import_and_freeze\n"
        "import_and_freeze('large')\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 5000\n"
        "before = gc.get_freeze_count()\n"
        "cycle = []; cycle.append(cycle); del cycle\n"
        "import_and_freeze('large')\n"
        "assert gc.get_freeze_count() == before, 'a second time froze what came since'\n"
        "assert gc.collect() >= 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_and_freeze("chip_core.there_is_none")
    assert gc.isenabled()
