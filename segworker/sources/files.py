"""From inputs to files: folders, globs, prefixes and URLs, with what a listing tells about each file.

A folder or prefix is searched to any depth for the extensions below; what a user names file by file, or by a glob that
states an extension, is taken whatever it is called. Folders whose names begin with a dot are skipped.
"""

from __future__ import annotations

import email.utils
import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from segworker.errors import ConfigError, StorageError
from segworker.io.failures import redact, redact_text
from segworker.io.gdal import SELF_CONTAINED
from segworker.io.header import FileStat
from segworker.io.storage import Storage, open_storage, split_s3
from segworker.io.web import web_request
from segworker.sources.identity import Candidate

RASTER_EXTENSIONS = SELF_CONTAINED | {
    *(".vrt", ".img", ".bil", ".bip", ".bsq", ".ntf", ".nitf", ".asc", ".dem", ".hgt", ".mrf", ".pgm", ".ppm", ".pnm"),
    *(".jpx", ".gtiff", ".tf8", ".scn"),
}
_GLOB = re.compile(r"[*?\[]")
_HTTP_TIMEOUT_S = 30
_SIDE_SUFFIXES = (".aux.xml", ".msk", ".ovr")


@dataclass(frozen=True, slots=True)
class _Listed:
    size_bytes: int
    etag: str | None
    mtime_s: float


def expand(uri: str) -> list[Candidate]:
    """Return the files that one input (no manifest) names; empty where there are none.

    Raises StorageError where a bucket cannot be listed and ConfigError for schemes that are not read.
    """
    scheme = uri.split("://", 1)[0].lower() if "://" in uri else ""
    if scheme in ("http", "https"):
        return [stat_one(uri)]
    if scheme in ("s3", "s3a"):
        return _expand_s3(f"s3://{uri.split('://', 1)[1]}")
    if scheme not in ("", "file"):
        _refuse_scheme(uri)
    return _expand_local(_local_path(uri))


def stat_one(uri: str) -> Candidate:
    """Return one file as a candidate, with a problem where it cannot be reached."""
    if uri.startswith(("http://", "https://")):
        path = urlsplit(uri).path
        root = f"{urlsplit(uri).netloc}{path.rpartition('/')[0]}"
        name = unquote(path.rpartition("/")[2]) or urlsplit(uri).netloc
        stat, problem = _http_stat(uri)
        return Candidate(uri, root, name, stat, problem=problem)
    if uri.startswith(("s3://", "s3a://")):
        uri = f"s3://{uri.split('://', 1)[1]}"
        folder, _, name = uri.rpartition("/")
        storage = open_storage(folder)
        names = [name, *_possible_side_files(name)]
        found = {info.path: info for info in map(storage.head, names) if info is not None}
        listing = {n: _Listed(i.size_bytes, i.etag, i.mtime_s) for n, i in found.items()}
        problem = None if name in listing else "no such object"
        return Candidate(uri, folder, name, _stat(name, listing) if not problem else None, problem=problem)
    if "://" in uri and not uri.startswith("file://"):
        _refuse_scheme(uri)
    path = os.path.abspath(_local_path(uri))  # noqa: PTH100 - never resolves links
    folder, name = os.path.split(path)
    listing = _scan(folder, (name, *_possible_side_files(name)) if _alone(name) else None)
    problem = None if name in listing else "no such file"
    return Candidate(path, folder, name, _stat(name, listing) if not problem else None, problem=problem)


def _local_path(uri: str) -> str:
    if uri.startswith("/vsi"):
        _refuse_scheme(uri)
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else str(Path(uri).expanduser())


def _refuse_scheme(uri: str) -> NoReturn:
    raise ConfigError(
        f"inputs are paths, globs, s3:// or http(s):// URIs, got {redact(uri)!r}; copy the scenes to one of these"
    )


def _expand_local(text: str) -> list[Candidate]:
    path = os.path.abspath(text)  # noqa: PTH100 - never resolves links
    if os.path.isdir(path):  # noqa: PTH112
        return list(_walk(path))
    if os.path.isfile(path) or not _GLOB.search(text):  # noqa: PTH113
        candidate = stat_one(path)
        return [] if candidate.problem else [candidate]
    root = _fixed_part(path)
    matches = glob.glob(path, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    wanted = _filtered((m for m in matches if os.path.isfile(m)), path)  # noqa: PTH113
    folders: dict[str, list[str]] = defaultdict(list)
    for match in sorted(wanted):
        folders[os.path.dirname(match)].append(os.path.basename(match))  # noqa: PTH119, PTH120
    return [c for folder, names in folders.items() for c in _in_folder(folder, names, root)]


def _walk(root: str) -> Iterator[Candidate]:
    for folder, subfolders, names in os.walk(root, onerror=_raise_unlisted):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from _in_folder(folder, [name for name in sorted(names) if _is_raster(name)], root)


def _raise_unlisted(error: OSError) -> NoReturn:
    raise StorageError(f"a folder must be readable, got {error.filename} ({error.strerror}); grant the permission")


def _in_folder(folder: str, names: Iterable[str], root: str) -> Iterator[Candidate]:
    listing = _scan(folder, None)
    for name in names:
        path = f"{folder.rstrip('/')}/{name}"
        yield Candidate(path, root, os.path.relpath(path, root), _stat(name, listing))


def _expand_s3(uri: str) -> list[Candidate]:
    bucket, key = split_s3(uri)
    if _GLOB.search(key) and not _exists(uri):
        root = _fixed_part(f"/{key}").strip("/")
        pattern = _glob_regex(key)
        return _list_s3(bucket, root, lambda name: pattern.fullmatch(f"{root}/{name}".strip("/")), uri)
    if key and not uri.endswith("/"):
        candidate = stat_one(uri)
        if not candidate.problem:
            return [candidate]
    return _list_s3(bucket, key, _is_raster_path, "")


def _exists(uri: str) -> bool:
    folder, _, name = uri.rpartition("/")
    return not _GLOB.search(folder) and open_storage(folder).head(name) is not None


def _list_s3(bucket: str, root: str, wanted: Callable[[str], object], pattern: str) -> list[Candidate]:
    base = f"s3://{bucket}/{root}".rstrip("/")
    storage: Storage = open_storage(base)
    folders: dict[str, dict[str, _Listed]] = defaultdict(dict)
    for info in storage.list():
        folder, _, name = info.path.rpartition("/")
        folders[folder][name] = _Listed(info.size_bytes, info.etag, info.mtime_s)
    paths = (f"{folder}/{name}".strip("/") for folder, listing in folders.items() for name in listing)
    return [
        Candidate(f"{base}/{path}", base, path, _stat(PurePosixPath(path).name, folders[path.rpartition("/")[0]]))
        for path in sorted(_filtered((p for p in paths if wanted(p)), pattern or "*"))
    ]


def _filtered(paths: Iterable[str], pattern: str) -> Iterator[str]:
    """Yield the paths that may be scenes: by extension where the pattern states none, and no side files."""
    loose = pattern.endswith(("*", "?", "]"))
    return (p for p in paths if (_is_raster_path(p) if loose else not p.lower().endswith(_SIDE_SUFFIXES)))


def _is_raster_path(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/")[:-1])
    return not hidden and _is_raster(path.rpartition("/")[2])


def _is_raster(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in RASTER_EXTENSIONS  # noqa: PTH122


def _fixed_part(pattern: str) -> str:
    """Return the folder in front of the first wildcard."""
    fixed = pattern[: _GLOB.search(pattern).start()] if _GLOB.search(pattern) else pattern  # type: ignore[union-attr]
    return fixed.rpartition("/")[0]


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """Return a regular expression: '*' and '?' stay within a folder, '**/' is any number of folders."""
    out, rest = "", pattern
    while rest:
        klass = re.match(r"\[([!^]?)(\]?[^\]]*)\]", rest)
        if rest.startswith("**/"):
            out, rest = out + r"(?:.*/)?", rest[3:]
        elif rest.startswith("**"):
            out, rest = out + ".*", rest[2:]
        elif klass:
            inside = klass[2].replace("\\", r"\\")
            out, rest = out + f"[{'^' if klass[1] else ''}{inside}]", rest[klass.end() :]
        else:
            out, rest = out + {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])), rest[1:]
    return re.compile(out)


@lru_cache(maxsize=16_384)
def _possible_side_files(name: str) -> tuple[str, ...]:
    stem, dot, ext = name.rpartition(".")
    if not dot:
        return ()
    world = {f"{stem}.{ext[:1]}{ext[-1:]}w", f"{stem}.{ext}w", f"{stem}.wld"}
    return (*(f"{name}{suffix}" for suffix in _SIDE_SUFFIXES), f"{stem}.ovr", f"{stem}.prj", *sorted(world))


def _alone(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SELF_CONTAINED  # noqa: PTH122


def _stat(name: str, listing: dict[str, _Listed]) -> FileStat:
    """Return what a listing tells of a file and those beside it that belong to it."""
    own = listing[name]
    stem = name.rpartition(".")[0]
    if _alone(name):
        beside = [n for n in _possible_side_files(name) if n in listing]
    else:
        beside = [n for n in listing if n != name and (n.rpartition(".")[0] == stem or n.startswith(f"{name}."))]
    sides = (f"{n} {listing[n].size_bytes} {listing[n].etag or listing[n].mtime_s}" for n in sorted(beside))
    return FileStat(own.size_bytes, own.etag, own.mtime_s, tuple(sides))


def _scan(folder: str, names: Iterable[str] | None) -> dict[str, _Listed]:
    """Return size and time of a folder's files: of those named, or of all."""
    listing: dict[str, _Listed] = {}
    if names is None:
        with os.scandir(folder) as entries:
            files = [(e.name, e.stat()) for e in entries if e.is_file()]
    else:
        paths = ((name, f"{folder}/{name}") for name in names)
        files = [(name, os.stat(path)) for name, path in paths if os.path.isfile(path)]  # noqa: PTH113, PTH116
    for name, stat in files:
        listing[name] = _Listed(stat.st_size, None, stat.st_mtime)
    return listing


def _http_stat(uri: str) -> tuple[FileStat | None, str | None]:
    """Ask for the first byte: a presigned URL may not allow HEAD. Side files are not looked for on web servers."""
    try:
        request = web_request(uri, Range="bytes=0-0")
        with urlopen(request, timeout=_HTTP_TIMEOUT_S) as response:  # noqa: S310 - http or https
            headers = response.headers
    except HTTPError as error:
        return None, f"the server answers {error.code} {error.reason}"
    except (OSError, ValueError, HTTPException) as error:
        return None, f"the server cannot be reached ({redact_text(str(error))})"
    total = (headers.get("Content-Range") or "").rpartition("/")[2] or headers.get("Content-Length") or ""
    parsed = email.utils.parsedate_tz(headers.get("Last-Modified") or "")
    size = int(total) if total.isdigit() else None
    return FileStat(size, headers.get("ETag"), email.utils.mktime_tz(parsed) if parsed else None), None
