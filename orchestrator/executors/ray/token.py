"""The token of a local Ray: made before Ray makes it, because Ray's is readable by all.

Whoever has it runs code as its owner. Ray 2.60 asks for it by itself on a local start, and writes
it with the permissions that every file gets.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.files import write_private

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def keep_token_private() -> None:
    """See to it that a local Ray's token is its owner's alone; one is made where none is.

    Nothing is done where the user gives a token in the environment, names a file of their own, or
    turned tokens off.

    Raises:
        UserError: it cannot be made, or not be closed.
    """
    if os.environ.get(MODE, "token") != "token" or {TOKEN, TOKEN_PATH} & os.environ.keys():
        return
    file = Path.home() / ".ray" / "auth_token"
    try:
        if not file.exists():
            write_private(file, secrets.token_hex(32))  # 256 bits, as Ray's own
        elif file.stat().st_mode & 0o077:
            file.chmod(0o600)
    except OSError as error:
        raise UserError(
            f"Ray's token {file} cannot be made yours alone ({error.strerror}): mend its "
            f"permissions, or name another by {TOKEN_PATH}"
        ) from None
