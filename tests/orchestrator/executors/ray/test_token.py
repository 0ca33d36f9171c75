"""Whoever reads a local Ray's token runs code as its owner: nobody else may."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from chip_core.utils.errors import UserError
from orchestrator.executors.ray import token as ray_token


@pytest.fixture
def token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        ray_token.AUTH_MODE_VARIABLE,
        ray_token.TOKEN_VARIABLE,
        ray_token.TOKEN_PATH_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_token_is_created_once(token_file: Path) -> None:
    ray_token.create_private_token()
    assert (get_mode(token_file), get_mode(token_file.parent)) == (0o600, 0o700)
    token = token_file.read_text()
    assert len(token) == 64  # 32 bytes in hex
    ray_token.create_private_token()
    assert token_file.read_text() == token


def test_a_token_that_others_can_read_is_made_private(token_file: Path) -> None:
    token_file.parent.mkdir()
    token_file.write_text("abc")
    token_file.chmod(0o644)
    ray_token.create_private_token()
    assert (get_mode(token_file), token_file.read_text()) == (0o600, "abc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ray_token.AUTH_MODE_VARIABLE, "disabled"),
        (ray_token.TOKEN_VARIABLE, "abc"),
        (ray_token.TOKEN_PATH_VARIABLE, "/a/token"),
    ],
)
def test_what_the_user_says_is_let_be(
    token_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ray_token.create_private_token()
    assert not token_file.exists()


def test_a_place_that_cannot_be_written_is_told(token_file: Path) -> None:
    token_file.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be made private"):
        ray_token.create_private_token()
