"""Create the token of a local Ray before Ray does, because Ray's is readable by all.

With it, anyone can run code as its owner. Ray 2.60 enables it by default on a local start, and
writes it with default file permissions.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.files import write_private

AUTH_MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"


def create_private_token() -> None:
    """Make a local Ray's token readable by its owner only, and create it if there is none.

    Do nothing if the user sets a token or its file in the environment, or turned tokens off.

    Raises:
        UserError: it cannot be created, or its permissions cannot be changed.
    """
    if (
        os.environ.get(AUTH_MODE_VARIABLE, "token") != "token"
        or {TOKEN_VARIABLE, TOKEN_PATH_VARIABLE} & os.environ.keys()
    ):
        return
    file = Path.home() / ".ray" / "auth_token"
    try:
        if not file.exists():
            write_private(file, secrets.token_hex(32))  # 256 bits, like Ray's
        elif file.stat().st_mode & 0o077:
            file.chmod(0o600)
    except OSError as error:
        raise UserError(
            f"Ray's token {file} cannot be made private ({error.strerror}): fix its permissions, "
            f"or name another with {TOKEN_PATH_VARIABLE}"
        ) from None
