"""A store's address as it may be shown: without what opens the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

_HIDDEN = "***"
#: Values of a query that are secrets, by what their names end in.
_QUERY = re.compile(r"([?&][^=&#]*(?:password|passwd|pwd|token|secret|key|sig|signature)=)([^&#]+)")


def shown_address(uri: str) -> str:
    """Return an address with `***` for its password, a lone name of a server's, and secret values.

    A lone name before a database's host is its user; before a server's it may be a token.
    """
    place = _parts(uri)
    user, at, host = place.netloc.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        alone = _HIDDEN if place.scheme in ("http", "https") else name
        uri = uri.replace(f"{user}@{host}", f"{f'{name}:{_HIDDEN}' if colon else alone}@{host}", 1)
    return _QUERY.sub(rf"\g<1>{_HIDDEN}", uri)


def without_secrets(text: str, uri: str) -> str:
    """Return a message about an address without the address's secrets."""
    text = text.replace(uri, shown_address(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _parts(uri: str) -> SplitResult:
    """Return the parts of an address, of one that is none as well."""
    try:
        return urlsplit(uri)
    except ValueError:  # a bracket that is not closed: it stands behind the secrets
        scheme, _, rest = uri.partition("://")
        place = re.split(r"[/?#]", rest, maxsplit=1)[0]
        return SplitResult(scheme=scheme, netloc=place, path="", query="", fragment="")


def _secrets(uri: str) -> Iterator[str]:
    place = _parts(uri)
    user, at, _ = place.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    found = [password] if colon else [name] if at and place.scheme in ("http", "https") else []
    found += [match[2] for match in _QUERY.finditer(uri)]
    for secret in filter(None, found):
        yield secret
        yield unquote(secret)  # as a driver says it
