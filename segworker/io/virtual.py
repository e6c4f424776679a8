"""Virtual rasters (VRT) name other files, so a stranger's VRT could have this process read what he cannot.

A VRT on a disk may name files on that disk. A VRT on S3 may name objects of its own bucket. Nothing else: no web
addresses (a server inside a network would answer them), no archives or other handlers of GDAL, no rasters or VRTs
written inline, no services by a connection string, no raw bytes of any file as pixels. One on a web server is refused.
Sources that are VRTs are checked likewise; what a source holds is not looked at.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from segworker.errors import SceneError
from segworker.io.failures import redact
from segworker.io.storage import open_storage, split_s3

MAX_BYTES = 256 * 10**6
MAX_NESTED = 1000
_FLAGS = re.IGNORECASE | re.DOTALL  # GDAL does not mind the case either
_SOURCE = re.compile(r"<\s*(SourceFilename|SourceDataset)\b([^>]*)>(.*?)<\s*/\s*\1", _FLAGS)
_ATTRIBUTE = re.compile(r"()()\bSource(?:Filename|Dataset)\s*=\s*[\"']([^\"']*)", _FLAGS)
_RELATIVE = re.compile(r"relativeToVRT\s*=\s*[\"']?1", _FLAGS)
_HANDLER = re.compile(r"/vsi|[a-z0-9_]{2,}:|.*<", _FLAGS)
_ANYWHERE = re.compile(r"/vsi[^\s<\"']*|(?<=>)\s*(?:https?|ftp)://[^\s<\"']*", _FLAGS)
"GDAL's handlers wherever they stand in the text, and elements that hold a web address."
_METADATA = re.compile(r"<MDI\b[^>]*>[^<]*</MDI>", _FLAGS)


def check_virtual(uri: str) -> None:
    """Raise SceneError where a VRT, or one that it names, reads from where it may not.

    Args:
        uri: a local path, file:// or s3:// URI of a VRT.
    """
    waiting, seen = [uri.removeprefix("file://")], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > MAX_NESTED:
            raise SceneError(f"a VRT names at most {MAX_NESTED} others, got more in {redact(uri)}; flatten it")
        waiting += [source for source in _sources(name) if source.lower().endswith(".vrt")]


def _sources(name: str) -> list[str]:
    """Return what a VRT names, as local paths or s3:// URIs."""
    folder, whole = name.rpartition("/")[0], _read(name)
    if "vrtrawrasterband" in whole.lower():
        raise SceneError(f"a VRT names rasters, got one of raw bytes in {redact(name)}; give the bytes a header (ENVI)")
    own = f"/vsis3/{split_s3(name)[0]}/" if name.startswith("s3://") else "\0"
    for elsewhere in _ANYWHERE.findall(html.unescape(_METADATA.sub("", whole))):
        if not elsewhere.startswith(own):
            raise _refusal(name, elsewhere.strip())
    found = []
    for _, attributes, text in [*_SOURCE.findall(whole), *_ATTRIBUTE.findall(whole)]:
        source = html.unescape(text).strip()
        if name.startswith("s3://"):
            found.append(_on_s3(name, folder, source))
        elif _HANDLER.match(source):
            raise _refusal(name, source)
        else:
            found.append(f"{folder}/{source}" if _RELATIVE.search(attributes) else source)
    return found


def _on_s3(name: str, folder: str, source: str) -> str:
    bucket, _ = split_s3(name)
    if source.startswith(f"/vsis3/{bucket}/") and ".." not in source.split("/"):
        return f"s3://{source.removeprefix('/vsis3/')}"
    if source.startswith("/") or _HANDLER.match(source) or ".." in source.split("/"):
        raise _refusal(name, source)
    return f"{folder}/{source}"


def _refusal(name: str, source: str) -> SceneError:
    return SceneError(
        f"a VRT names files beside it, on its own disk or in its own bucket, got {redact(source[:80])!r} in "
        f"{redact(name)}; name the scenes themselves, or copy them to where the VRT is"
    )


def _read(name: str) -> str:
    if name.startswith(("http://", "https://")):
        raise SceneError(f"a VRT lies on a disk or on S3, got {redact(name)}; name the scenes themselves")
    if name.startswith("s3://"):
        folder, _, key = name.rpartition("/")
        storage = open_storage(folder)
        info = storage.head(key)
        size = 0 if info is None else info.size_bytes
        content = storage.read(key) if info is not None and size <= MAX_BYTES else b""
    else:
        path = Path(name)
        size = path.stat().st_size if path.is_file() else 0
        content = path.read_bytes() if path.is_file() and size <= MAX_BYTES else b""
    if size > MAX_BYTES:
        raise SceneError(f"a VRT has at most {MAX_BYTES:,} bytes, got {size:,} in {redact(name)}; split it")
    return content.decode("utf-8", errors="replace")
