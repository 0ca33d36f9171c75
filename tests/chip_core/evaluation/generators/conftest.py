"""Built once: the server of most tests, and two arms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .transformers_server import Server, make_adapter, run_server


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with run_server() as started:
        yield started


@pytest.fixture(scope="package")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("arms")
    return make_adapter(folder / "one", 1), make_adapter(folder / "two", 2)
