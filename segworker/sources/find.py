"""From inputs to scenes: expand, name, read the headers, and keep account of what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from segworker.errors import ConfigError, SceneError, SegworkerError
from segworker.io.failures import redact
from segworker.io.header import Limits, open_scene
from segworker.sources.files import expand, stat_one
from segworker.sources.identity import Candidate, assign_ids
from segworker.sources.manifest import is_manifest, read_manifest
from segworker.types import InputSpec, Scene

MAX_THREADS = 32
_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, slots=True)
class SceneFailure:
    """A scene that was named and cannot be read."""

    uri: str
    "Without secrets."
    scene_id: str
    error: SegworkerError


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """What a run will read."""

    scenes: tuple[Scene, ...]
    "Sorted by scene_id."
    failures: tuple[SceneFailure, ...] = ()
    "Sorted by scene_id."


def find_scenes(
    inputs: Sequence[str],
    *,
    manifest: str | None = None,
    limits: Limits | None = None,
    bands: tuple[int, ...] | None = None,
    spec: InputSpec | None = None,
) -> ScenePlan:
    """Find the scenes that inputs name, and read their headers.

    Args:
        inputs: files, folders (searched to any depth), globs, s3:// objects, prefixes and globs, http(s):// URLs
            (presigned ones too), and manifests by their extension (.txt, .csv, .parquet).
        manifest: a manifest, whatever it is called after its extension.
        limits: what headers may declare.
        bands: the user's choice, checked against each scene.
        spec: the model's wishes, checked likewise.

    Returns:
        The same plan for the same files, whatever their order. A file named twice is read once. What is missing or
        cannot be read is a failure; the other scenes are not harmed.

    Raises ConfigError where nothing at all is found, where a manifest is not usable, or where ids clash; StorageError
    where a bucket cannot be listed.
    """
    if not inputs and manifest is None:
        raise ConfigError("a run needs at least one scene, got no inputs; name files, folders, globs or a manifest")
    candidates = _unique([*_from_manifests(inputs, manifest), *_from_inputs(inputs)])
    if not any(candidate.problem is None for candidate in candidates):
        _raise_nothing_found([*inputs, *([manifest] if manifest else [])], candidates)
    ids = assign_ids(candidates)

    def read(candidate: Candidate) -> Scene | SceneFailure:
        scene_id = ids[candidate.uri]
        try:
            if candidate.problem:
                raise SceneError(
                    f"a scene that is named must exist, got {redact(candidate.uri)}: {candidate.problem}; correct it"
                )
            return open_scene(candidate.uri, scene_id, stat=candidate.stat, limits=limits, bands=bands, spec=spec)
        except SegworkerError as error:
            return SceneFailure(redact(candidate.uri), scene_id, error)

    results = sorted(_in_threads(read, candidates), key=lambda result: result.scene_id)
    return ScenePlan(
        tuple(result for result in results if isinstance(result, Scene)),
        tuple(result for result in results if isinstance(result, SceneFailure)),
    )


def _from_inputs(inputs: Sequence[str]) -> list[Candidate]:
    found: list[Candidate] = []
    for uri in inputs:
        if is_manifest(uri):
            continue
        some = expand(uri)
        folder, _, name = redact(uri).rstrip("/").rpartition("/")
        found += some or [Candidate(uri, folder, name, problem="nothing was found there")]
    return found


def _from_manifests(inputs: Sequence[str], manifest: str | None) -> list[Candidate]:
    names = [uri for uri in inputs if is_manifest(uri)] + ([manifest] if manifest else [])
    entries = [entry for name in names for entry in read_manifest(name)]
    candidates = _in_threads(_stat_entry, [entry.uri for entry in entries])
    return [replace(c, scene_id=entry.scene_id) for c, entry in zip(candidates, entries, strict=True)]


def _stat_entry(uri: str) -> Candidate:
    try:
        return stat_one(uri)
    except SegworkerError as error:
        folder, _, name = redact(uri).rpartition("/")
        return Candidate(uri, folder, name, problem=str(error))


def _unique(candidates: list[Candidate]) -> list[Candidate]:
    """Return each file once: as a manifest names it, else as seen from the outermost root."""
    by_uri: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.scene_id is None, len(c.root))):
        known = by_uri.setdefault(candidate.uri, candidate)
        if known.scene_id and candidate.scene_id and known.scene_id != candidate.scene_id:
            raise ConfigError(
                f"a scene has one scene_id, got {known.scene_id!r} and {candidate.scene_id!r} for "
                f"{redact(candidate.uri)}; remove one line of the manifest"
            )
    return list(by_uri.values())


def _raise_nothing_found(names: list[str], candidates: list[Candidate]) -> None:
    shown = ", ".join(redact(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")
    problems = {candidate.problem for candidate in candidates if candidate.problem}
    raise ConfigError(
        f"a run needs at least one scene, got none from {shown} ({'; '.join(sorted(problems)[:3])}); "
        "correct the path or the pattern"
    )


def _in_threads(function: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
    """Return the results in the order of the items."""
    workers = min(MAX_THREADS, 4 * (os.cpu_count() or 1), max(1, len(items)))
    with ThreadPoolExecutor(workers, thread_name_prefix="headers") as pool:
        return list(pool.map(function, items))
