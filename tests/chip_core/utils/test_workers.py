"""What the processes of a trial tell each other."""

from __future__ import annotations

from typing import Any

import pytest

from chip_core.utils.errors import DiskFullError, TrialError
from chip_core.utils.workers import Workers


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (DiskFullError("no room\nfor it"), DiskFullError, "worker 1: no room"),
        (ValueError("odd"), TrialError, "worker 1: ValueError: odd"),
    ],
)
def test_a_failure_of_another_worker_is_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[Exception], said: str
) -> None:
    """Whichever worker's failure is looked at, it says what to do: a full disk stays one."""
    gathered: list[Any] = []

    def gather(workers: Workers, value: Any) -> list[Any]:
        gathered.append(value)
        return [value] if len(gathered) == 1 else [value, gathered[0]]

    monkeypatch.setattr(Workers, "gathered", gather)

    def fails() -> None:
        raise failure

    with pytest.raises(type(failure)):
        Workers(rank=1, size=2).each(fails)
    with pytest.raises(kind) as caught:
        Workers(rank=0, size=2).each(lambda: None)
    assert type(caught.value) is kind
    assert str(caught.value) == said
