"""From inputs to scenes: expand, name, read the headers, and keep account of what cannot be read."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from segworker.errors import ConfigError, SceneError, SegworkerError
from segworker.geo import parse_crs
from segworker.io.failures import redact
from segworker.io.header import Limits, open_scene
from segworker.sources.files import expand, stat_one
from segworker.sources.identity import Candidate, assign_ids
from segworker.sources.manifest import Entry, fetch, is_manifest, read_manifest, resolved
from segworker.sources.mosaic import MosaicOptions, join_sheets, mosaic_id
from segworker.sources.stac import is_stac, read_items
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
    "Of a sheet: its mosaic's."
    error: SegworkerError
    is_sheet: bool = False
    "Whether it is a sheet of a mosaic, whose other sheets are read."


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """What a run will read."""

    scenes: tuple[Scene, ...]
    "Sorted by scene_id."
    failures: tuple[SceneFailure, ...] = ()
    "Sorted by scene_id."


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """The file, or the sheets, of what will be one scene, as listings tell of them."""

    scene_id: str
    files: tuple[Candidate, ...]
    "Sorted by uri."
    is_mosaic: bool

    @property
    def etag(self) -> str | None:
        """The object's etag; None for local files and for mosaics."""
        return None if self.is_mosaic or self.files[0].stat is None else self.files[0].stat.etag

    @property
    def size_bytes(self) -> int | None:
        """Bytes of all files, None where one is not known, as in the scenes table."""
        sizes = [None if file.stat is None else file.stat.size_bytes for file in self.files]
        return sum(size or 0 for size in sizes) if self.is_mosaic else sizes[0]

    @property
    def mtime_s(self) -> float | None:
        """When the newest of the files was written, seconds since the epoch."""
        times = [file.stat.mtime_s for file in self.files if file.stat is not None and file.stat.mtime_s is not None]
        return max(times, default=None)

    @property
    def problem(self) -> str | None:
        """Why it cannot be read, where that is known already."""
        return next((file.problem for file in self.files if file.problem), None)


def find_files(
    inputs: Sequence[str],
    *,
    manifest: str | None = None,
    mosaic: MosaicOptions | None = None,
    asset: str | None = None,
) -> list[SceneFiles]:
    """Find the scenes that inputs name, by listings alone: nothing is opened. Sorted by scene_id.

    Arguments, ids and errors are those of `find_scenes`.
    """
    candidates, ids = _candidates(inputs, manifest, mosaic or MosaicOptions(), asset)
    groups: dict[tuple[str, bool], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.mosaic or ids[candidate.uri], candidate.mosaic is not None].append(candidate)
    return [
        SceneFiles(scene_id, tuple(sorted(files, key=lambda file: file.uri)), is_mosaic)
        for (scene_id, is_mosaic), files in sorted(groups.items(), key=lambda group: group[0])
    ]


def find_scenes(
    inputs: Sequence[str],
    *,
    manifest: str | None = None,
    limits: Limits | None = None,
    bands: tuple[int, ...] | None = None,
    spec: InputSpec | None = None,
    mosaic: MosaicOptions | None = None,
    asset: str | None = None,
) -> ScenePlan:
    """Find the scenes that inputs name, and read their headers.

    Args:
        inputs: files, folders (searched to any depth), globs, s3:// objects, prefixes and globs, http(s):// URLs
            (presigned ones too), manifests by their extension (.txt, .csv, .parquet), and STAC items, ItemCollections
            (.json, .geojson) and GET searches (`sources.stac`).
        manifest: a manifest, whatever it is called after its extension.
        limits: what headers may declare.
        bands: the user's choice, checked against each scene.
        spec: the model's wishes, checked likewise.
        mosaic: whether all inputs are sheets of one scene, and how mosaics (those of manifests too) are made.
        asset: of STAC items, the one that is the scene.

    Returns:
        The same plan for the same files, whatever their order. A file named twice is read once. What is missing or
        cannot be read is a failure; the other scenes are not harmed.

    Raises ConfigError where nothing at all is found, where a manifest is not usable, or where ids clash; StorageError
    where a bucket cannot be listed.
    """
    mosaic = mosaic or MosaicOptions()
    candidates, ids = _candidates(inputs, manifest, mosaic, asset)
    limits = limits or Limits()

    def read(candidate: Candidate) -> Scene | SceneFailure:
        scene_id, is_sheet = candidate.mosaic or ids[candidate.uri], candidate.mosaic is not None
        try:
            if candidate.problem:
                raise SceneError(
                    f"a scene that is named must exist, got {redact(candidate.uri)}: {candidate.problem}; correct it"
                )
            return open_scene(
                candidate.uri,
                scene_id,
                stat=candidate.stat,
                limits=limits,
                bands=bands,
                spec=spec,
                is_sheet=is_sheet,
            )
        except SegworkerError as error:
            return SceneFailure(redact(candidate.uri), scene_id, error, is_sheet=is_sheet)

    results = _in_threads(read, candidates)
    sheets: dict[str | None, list[Scene | SceneFailure]] = defaultdict(list)
    for candidate, result in zip(candidates, results, strict=True):
        sheets[candidate.mosaic].append(result)
    single = sheets.pop(None, [])
    joined = [found for scene_id, parts in sheets.items() for found in _joined(scene_id, parts, mosaic, limits)]
    ordered = sorted([*single, *joined], key=lambda result: result.scene_id)
    return ScenePlan(
        tuple(result for result in ordered if isinstance(result, Scene)),
        tuple(result for result in ordered if isinstance(result, SceneFailure)),
    )


def _candidates(
    inputs: Sequence[str], manifest: str | None, mosaic: MosaicOptions, asset: str | None
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the files that inputs name, each once, and the scene_id of each that is no sheet."""
    if not inputs and manifest is None:
        raise ConfigError("a run needs at least one scene, got no inputs; name files, folders, globs or a manifest")
    if mosaic.crs is not None:
        parse_crs(mosaic.crs)
    named = [*_from_manifests(inputs, manifest, asset), *_from_inputs(inputs)]
    candidates = _unique(_as_sheets(named, mosaic) if mosaic.all_inputs else named)
    if not any(candidate.problem is None for candidate in candidates):
        _raise_nothing_found([*inputs, *([manifest] if manifest else [])], candidates)
    ids = assign_ids(c for c in candidates if c.mosaic is None)
    _check_apart(ids, candidates)
    return candidates, ids


def _from_inputs(inputs: Sequence[str]) -> list[Candidate]:
    found: list[Candidate] = []
    for uri in inputs:
        if is_manifest(uri) or is_stac(uri):
            continue
        some = expand(uri)
        folder, _, name = redact(uri).rstrip("/").rpartition("/")
        found += some or [Candidate(uri, folder, name, problem="nothing was found there")]
    return found


def _from_manifests(inputs: Sequence[str], manifest: str | None, asset: str | None) -> list[Candidate]:
    names = [uri for uri in inputs if is_manifest(uri) or is_stac(uri)] + ([manifest] if manifest else [])
    entries = [entry for name in names for entry in _entries(name, asset)]
    candidates = _in_threads(_stat_entry, [entry.uri for entry in entries])
    return [
        replace(c, scene_id=entry.scene_id, mosaic=entry.mosaic) for c, entry in zip(candidates, entries, strict=True)
    ]


def _entries(name: str, asset: str | None) -> list[Entry]:
    if not is_stac(name):
        return read_manifest(name)
    return [Entry(resolved(href, name), item) for href, item in read_items(name, fetch, asset=asset)]


def _as_sheets(candidates: list[Candidate], options: MosaicOptions) -> list[Candidate]:
    """Make every candidate that is not a sheet yet one of the mosaic of all inputs."""
    loose = [c for c in candidates if c.mosaic is None]
    stated = next((c for c in loose if c.scene_id), None)
    if stated:
        raise ConfigError(
            f"a sheet goes by the name of its mosaic, got scene_id={stated.scene_id!r} for {redact(stated.uri)}; drop "
            "--mosaic, or the scene_id column of the manifest"
        )
    name = mosaic_id([c.root for c in loose], options) if loose else ""
    return [c if c.mosaic else replace(c, mosaic=name) for c in candidates]


def _check_apart(ids: Mapping[str, str], candidates: Sequence[Candidate]) -> None:
    """Refuse a mosaic that has the scene_id of a file."""
    mosaics = {c.mosaic for c in candidates}
    clash = next(((uri, scene_id) for uri, scene_id in ids.items() if scene_id in mosaics), None)
    if clash:
        raise ConfigError(
            f"scene_ids are unique, got {clash[1]!r} for a mosaic and for {redact(clash[0])}; rename the mosaic"
        )


def _joined(
    scene_id: str | None, parts: Sequence[Scene | SceneFailure], options: MosaicOptions, limits: Limits
) -> list[Scene | SceneFailure]:
    """Return the mosaic of the sheets that can be read, or why there is none, and the failures of the others."""
    assert scene_id is not None
    sheets = [part for part in parts if isinstance(part, Scene)]
    failures = [part for part in parts if isinstance(part, SceneFailure)]
    try:
        if not sheets:
            raise SceneError(f"a mosaic has at least one sheet that can be read, got none: {failures[0].error}")
        return [join_sheets(scene_id, sheets, crs=options.crs, max_px=limits.scene_px), *failures]
    except SegworkerError as error:
        first = min(redact(s.uri) for s in sheets) if sheets else failures[0].uri
        return [SceneFailure(first, scene_id, error), *failures]


def _stat_entry(uri: str) -> Candidate:
    try:
        return stat_one(uri)
    except SegworkerError as error:
        folder, _, name = redact(uri).rpartition("/")
        return Candidate(uri, folder, name, problem=str(error))


def _unique(candidates: list[Candidate]) -> list[Candidate]:
    """Return each file once, for each mosaic: as a manifest names it, else as seen from the outermost root."""
    by_uri: dict[tuple[str, str | None], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.scene_id is None, len(c.root))):
        known = by_uri.setdefault((candidate.uri, candidate.mosaic), candidate)
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
