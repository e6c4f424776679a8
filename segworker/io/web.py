"""Requests to web servers: user and password of a URI go into a header, as browsers do."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request


def web_request(uri: str, **headers: str) -> Request:
    """Return the GET request for an http(s):// URI.

    Args:
        uri: perhaps with user:password@ before the host, which `urlopen` would take for a part of its name.
        headers: more headers.
    """
    if not uri.startswith(("http://", "https://")):
        raise ValueError(f"a web address begins with http:// or https://, got {uri[:8]!r}")
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return Request(urlunsplit((parts.scheme, host, parts.path, parts.query, "")), headers=headers)  # noqa: S310 - checked
