"""Check whether anything listens at the address of a Ray cluster."""

from __future__ import annotations

import socket

from chip_core.utils.errors import UserError

_CONNECT_TIMEOUT = 10.0  # seconds for a connection: Ray itself would try for minutes


def check_address(address: str) -> None:
    """Check the address of a Ray cluster before anything is started there.

    Args:
        address: "auto", which Ray itself resolves, or "host:port".

    Raises:
        UserError: nothing listens there, or its protocol is not supported.
    """
    if "://" in address:
        raise UserError(
            f"{address}: Ray's client protocol is not supported: "
            "run on the cluster's head node with the address auto, or submit it there as a Ray job"
        )
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise no_cluster_error(address, error) from None


def no_cluster_error(address: str, error: Exception) -> UserError:
    """Return the error for a missing cluster."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"no Ray cluster at the address {address}: {first_line}")
