"""What a scene is called, and what tells one version of it from the next. Pure.

An id is made of the file's path below the input's root: folders joined by '__', then the name without its extension.
Files that would share one are told apart by extension (in one folder), by the root's name, at last by a hash of the
redacted uri. TIFF files and then the alphabet choose first, so that ids depend on the set of files and never on the
order of inputs, and a file that comes later rarely renames an older one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from segworker.errors import ConfigError
from segworker.io.failures import redact
from segworker.io.header import FileStat
from segworker.types import Scene

MAX_ID = 200
_HASH = 8
_TIFF = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be a scene; nothing of it has been read."""

    uri: str
    "Absolute path, s3:// or http(s):// URI, with its secrets."
    root: str
    "The folder or prefix that was named, without a slash at the end."
    path: str
    "Below the root, with forward slashes."
    stat: FileStat | None = None
    scene_id: str | None = None
    "As a manifest states it."
    problem: str | None = None
    "Why it cannot be read, where that is known already."
    mosaic: str | None = None
    "scene_id of the mosaic that it is a sheet of."


def scene_identity(scene: Scene) -> str:
    """Return a hash of redacted uri, size, etag or else mtime, and side files: another version is another identity."""
    version = scene.etag or scene.mtime_s
    parts = [redact(scene.uri), scene.size_bytes, version, scene.source, scene.options]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_scene_id(scene_id: str, where: str) -> str:
    """Return a stated id, or raise ConfigError where it is not safe in paths."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", scene_id):
        raise ConfigError(
            f"a scene_id has 1 to {MAX_ID} letters, digits, '.', '_' or '-' and does not begin with '.', got "
            f"{scene_id[:80]!r} in {where}; rename it, or leave it out to have one made"
        )
    return scene_id


def assign_ids(candidates: Iterable[Candidate]) -> dict[str, str]:
    """Return uri -> scene_id, unique. A stated id that occurs twice is a ConfigError."""
    ids: dict[str, str] = {}
    holders: dict[str, Candidate] = {}
    ordered = sorted(candidates, key=lambda c: (c.scene_id is None, _extension(c) not in _TIFF, redact(c.uri), c.uri))
    for candidate in ordered:
        scene_id = candidate.scene_id or next(i for i in _ladder(candidate, holders) if i not in holders)
        if scene_id in holders:
            raise ConfigError(
                f"scene_ids are unique, got {scene_id!r} for {redact(holders[scene_id].uri)} and for "
                f"{redact(candidate.uri)}; rename one"
            )
        holders[scene_id] = candidate
        ids[candidate.uri] = scene_id
    return ids


def _ladder(candidate: Candidate, holders: dict[str, Candidate]) -> Iterable[str]:
    path = PurePosixPath(candidate.path)
    stem = path.with_suffix("").as_posix() if path.stem else candidate.path
    base = safe_id(stem)
    yield base
    if base in holders and _folder(holders[base]) == _folder(candidate):
        yield safe_id(candidate.path)
    yield safe_id(f"{PurePosixPath(candidate.root).name or 'root'}/{stem}")
    for salt in range(1000):
        text = candidate.uri if salt else redact(candidate.uri)
        yield _cut(base, _hash(f"{text}{salt or ''}"))


def safe_id(text: str) -> str:
    """Return a path as an id; what would be lost in it is kept as a hash, so that two paths stay two ids."""
    joined = text.strip("/").replace("/", "__")
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", joined)
    clean = re.sub(r"^\.", "_", clean) or "scene"
    return clean if clean == joined and len(clean) <= MAX_ID else _cut(clean, _hash(text))


def _cut(base: str, suffix: str) -> str:
    return f"{base[: MAX_ID - len(suffix) - 1]}-{suffix}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]


def _extension(candidate: Candidate) -> str:
    return PurePosixPath(candidate.path).suffix.lower()


def _folder(candidate: Candidate) -> tuple[str, str]:
    return candidate.root, PurePosixPath(candidate.path).parent.as_posix()
