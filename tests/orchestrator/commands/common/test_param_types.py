"""What options may hold: numbers, texts and paths that can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import cli
from orchestrator.commands.common.param_types import (
    AddressType,
    FloatType,
    IntegerType,
    PathType,
    TextType,
    parse_integers,
)

#: Checked where it is used, since what it may be depends on the tracker.
_BY_THE_TRACKER = {"tracking_uri"}


def _list_parameters(
    command: click.Command = cli, name: str = "chip-ablate"
) -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from _list_parameters(inner, f"{name} {below}")
    for parameter in command.params:
        yield f"{name} {parameter.name}", parameter


def test_every_option_and_argument_says_what_it_may_hold() -> None:
    """Click's own numbers, texts and paths take NaN, nothing at all, and `s3:` as a folder."""
    loose = (
        click.types.StringParamType, click.types.IntParamType, click.types.FloatParamType,
        click.Path, click.File,
    )  # fmt: skip
    found = dict(_list_parameters())
    assert len(found) > 100
    wrong = [
        name
        for name, parameter in found.items()
        if isinstance(parameter.type, loose) and parameter.name not in _BY_THE_TRACKER
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (FloatType(), "0", 0.0), (FloatType(), " 1.5 ", 1.5), (FloatType(), "1e3", 1000.0),
        (FloatType(), ".5", 0.5), (FloatType(is_positive=True), "1e-9", 1e-9),
        (IntegerType(1), "3", 3), (IntegerType(), "-1", -1), (IntegerType(0), "+2", 2),
        (TextType(), "a b", "a b"), (AddressType(), "auto", "auto"),
        (AddressType(), "10.0.0.1:6379", "10.0.0.1:6379"),
        (AddressType(), "[::1]:6379", "[::1]:6379"),
        (TextType(), "Bild\u202f1", "Bild\u202f1"),  # as one system names its screenshots
    ],
)  # fmt: skip
def test_each_way_of_writing_a_value_is_accepted(
    kind: click.ParamType[object], text: str, value: object
) -> None:
    assert kind.convert(text, None, None) == value


def test_a_list_of_numbers_has_no_hole() -> None:
    for text in ("0 1 2", "0,1,2", "0, 1 ,2", " 0 1  2 "):
        assert parse_integers(IntegerType(), text, "", None, None) == [0, 1, 2]
    for text in ("0,", ",0", "0,,1", "", " ", "0 , ,1"):
        with pytest.raises(click.UsageError):
            parse_integers(IntegerType(), text, "0 1 2", None, None)


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PathType("folder").convert("~/runs", None, None) == tmp_path / "runs"
    # Of another machine it is that one's home.
    assert PathType(is_local=False).convert("~/runs", None, None) == Path("~/runs")


def test_a_folder_that_nobody_may_enter_is_told(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"x{300}…: cannot be used \(File name too long\)"):
        PathType("folder").convert("x" * 400, None, None)
    with pytest.raises(click.UsageError, match="does not exist"):
        PathType("file", exists=True).convert(str(tmp_path / "none"), None, None)
