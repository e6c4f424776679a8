"""Requests to web servers: user and password of a URI go into a header, as browsers do."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from segworker.io.failures import redact, redact_text

TRIES = 3
_TIMEOUT_S = 30


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


def post_json(uri: str, body: Mapping[str, object], *, pause_s: float = 2.0) -> str | None:
    """Post JSON to an http(s):// URI; return None, or why it did not arrive.

    Lost connections and answers of 429 and 5xx are tried three times in all, with growing pauses.
    """
    data, problem = json.dumps(body).encode(), ""
    for number in range(1, TRIES + 1):
        request = web_request(uri, **{"Content-Type": "application/json"})
        request.data = data
        try:
            with urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - web_request checks the scheme
                return None
        except HTTPError as error:
            problem = f"{redact(uri)} answers {error.code}"
            if error.code != 429 and error.code < 500:
                return problem
        except (OSError, HTTPException, ValueError) as error:
            problem = f"{redact(uri)}: {redact_text(str(error))}"
        if number < TRIES:
            time.sleep(pause_s * number)
    return problem
