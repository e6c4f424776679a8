"""What failures of the storage layer mean to a user: rule, value, remedy, and no secret."""

from __future__ import annotations

import errno
import re

from segworker.config_values import public_uri
from segworker.errors import StorageError

_CREDENTIALS = (
    "the credentials must be valid",
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, AWS_SESSION_TOKEN) and AWS_REGION",
)
_PERMISSION = ("it must be permitted", "check the credentials, grant the permission, or choose another location")
_ROOM = ("the disk must have room", "free some space or choose another location, then run the same command again")
_FOLDER = ("a file must not be in the place of a folder or the reverse", "choose another location")
_BUCKET = ("the bucket must exist", "create it, or correct the name or AWS_ENDPOINT_URL")
_REGION = ("the region must be the bucket's", "set AWS_REGION")
_ENDPOINT = ("the endpoint must answer", "check the network and AWS_ENDPOINT_URL, then run the same command again")
_MISSING = ("it must exist", "check the path")

_BY_CODE = {
    "NoSuchBucket": _BUCKET,
    "NoSuchKey": _MISSING,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "AuthorizationHeaderMalformed": _CREDENTIALS,
    "AccessDenied": _PERMISSION,
    "AllAccessDisabled": _PERMISSION,
    "PermanentRedirect": _REGION,
    "RequestTimeTooSkewed": ("the clock must be right", "set this machine's clock"),
}
_BY_STATUS = {301: _REGION, 401: _CREDENTIALS, 403: _PERMISSION, 404: _MISSING, 507: _ROOM}
_BY_ERRNO = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.ENOTDIR: _FOLDER,
    errno.EISDIR: _FOLDER,
    errno.EEXIST: _FOLDER,
}
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s<>\"']+")
_QUERY = re.compile(r"\?\S*(?:signature|credential|token|secret|X-Amz-|sig=)\S*", re.IGNORECASE)
_NO_ANSWER = re.compile(r"error sending request|connection refused|dns error|operation timed out", re.IGNORECASE)


def redact(uri: str) -> str:
    """Return a URI without user:password and without the query string and fragment in which secrets travel.

    Local paths, and s3:// URIs that hold no secret, stay as they are ('?' and '#' are legal in keys).
    """
    return public_uri(uri)


def redact_text(text: str) -> str:
    """Return a message with what may be secret taken out of the URIs in it."""
    return _QUERY.sub("", _URI.sub(_public, text))


def _public(uri: re.Match[str]) -> str:
    try:
        return public_uri(uri[0])
    except ValueError:  # no URI after all
        return f"{uri[0].partition('://')[0]}://..."


def is_missing_bucket(error: Exception) -> bool:
    """Whether a failure says that the bucket, not only the object, is not there."""
    return _reason(error) is _BUCKET


def explain(verb: str, location: str, error: Exception) -> StorageError:
    """Return the error that tells rule, value and remedy for a failure of the layer below.

    Args:
        verb: what was tried, as in 'cannot read ...'.
        location: path or URI; secrets are taken out.
        error: what the object store, the operating system or deltalake raised.
    """
    rule, remedy = _reason(error)
    return StorageError(f"cannot {verb} {redact(location)}: {rule} ({_brief(str(error))}); {remedy}")


def _reason(error: Exception) -> tuple[str, str]:
    text = str(error)
    code = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"\(code: (\w+)\)", text)  # the latter: bulk deletes
    if code and code[1] in _BY_CODE:
        return _BY_CODE[code[1]]
    status = re.search(r"status code: (\d{3})", text)
    if status and int(status[1]) in _BY_STATUS:
        return _BY_STATUS[int(status[1])]
    number = re.search(r"os error (\d+)", text)
    errno_ = int(number[1]) if number else getattr(error, "errno", None)
    if errno_ in _BY_ERRNO:
        return _BY_ERRNO[errno_]
    if _NO_ANSWER.search(text):
        return _ENDPOINT
    if isinstance(error, FileNotFoundError) or errno_ == errno.ENOENT or "canonicalize" in text:
        return _MISSING
    return "it failed", "run the same command again"


def _brief(text: str) -> str:
    """Return the short form of a failure: no headers, no query strings, no debug output."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    message = re.search(r"<Message>([^<]*)</Message>", text)
    if code:
        return f"{code[1]}: {message[1].rstrip('.')}" if message else code[1]
    first = re.split(r"\n\s*\n|Debug source|, after \d+ retries", text, maxsplit=1)[0]
    return redact_text(" ".join(first.split()))[:300].rstrip(" :.")
