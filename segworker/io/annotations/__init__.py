"""Annotations of scenes from COCO JSON, vector files and label rasters, as one clean `TruthSet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from segworker.errors import ConfigError
from segworker.io.annotations.coco import add_coco, is_coco, keypoint_names, parse_json
from segworker.io.annotations.draft import Classes, Draft, SceneNames, finish
from segworker.io.annotations.labels import add_labels
from segworker.io.annotations.options import TruthOptions
from segworker.io.annotations.vector import add_vector
from segworker.io.failures import redact
from segworker.io.storage import open_storage
from segworker.sources.files import expand
from segworker.truth import Issue, SceneTruth, TruthSet
from segworker.types import Scene

__all__ = ["TruthOptions", "read_truth"]

VECTOR_ENDINGS = (".geojson", ".gpkg", ".parquet", ".geoparquet", ".fgb", ".shp", ".gml", ".kml")


def read_truth(uris: Sequence[str], scenes: Sequence[Scene], options: TruthOptions | None = None) -> TruthSet:
    """Read annotations and bring them to the pixels of their scenes.

    Args:
        uris: COCO JSON (instances or panoptic), vector files, label rasters, or folders and globs of label rasters;
            local or on s3://.
        scenes: what is annotated; annotations of other images are not looked at.
        options: how to understand what files do not say.

    Raises:
        ConfigError: a file that cannot be understood, or none of whose annotations is of any of the scenes.
        StorageError: a file that cannot be read.
    """
    options = options or TruthOptions()
    names, classes = SceneNames(scenes), Classes()
    drafts: dict[str, Draft] = {}
    issues: list[Issue] = []
    points: dict[int, tuple[str, ...]] = {}
    for uri in uris:
        issues += _add(uri, names, drafts, classes, options, points)
    if options.empty_scenes:
        for scene in scenes:
            drafts.setdefault(scene.scene_id, Draft(scene))
    if not drafts:
        raise ConfigError(
            f"annotations must be of the scenes, got none for {len(scenes)} scenes ({_few(scenes)}) in "
            f"{', '.join(map(redact, uris))}; check that names (COCO, label rasters) or places (vector files) agree"
        )
    found: list[SceneTruth] = []
    ignored = {classes.add(name) for name in options.ignore_classes} if options.ignore_classes else set()
    for scene_id in sorted(drafts):
        truth, faults = finish(drafts[scene_id])
        issues += faults
        crowd = truth.crowd | np.isin(truth.class_ids, sorted(ignored))
        found.append(replace(truth, crowd=crowd))
    categories = tuple(c for c in classes.categories() if c.name not in options.ignore_classes)
    return TruthSet(categories, tuple(found), tuple(issues), points)


def _add(
    uri: str,
    names: SceneNames,
    drafts: dict[str, Draft],
    classes: Classes,
    options: TruthOptions,
    points: dict[int, tuple[str, ...]],
) -> list[Issue]:
    """Append one file's annotations by what it holds; return those that belong to no scene."""
    ending = uri.lower().partition("?")[0].rpartition("/")[2]
    if ending.endswith(".json"):
        folder, _, name = uri.rpartition("/")
        document = parse_json(open_storage(folder or ".").read(name), uri)
        if is_coco(document):
            assert isinstance(document, dict)
            left = add_coco(document, uri, names, drafts, classes, options)
            points |= keypoint_names(document, classes)
            return left
    if ending.endswith((".json", *VECTOR_ENDINGS)):
        return add_vector(uri, names, drafts, classes, options)
    rasters = expand(uri)
    if not rasters:
        raise ConfigError(f"annotations must exist, got nothing at {redact(uri)}; check the path")
    for raster in rasters:
        add_labels(raster.uri, names, drafts, classes, options)
    return []


def _few(scenes: Sequence[Scene]) -> str:
    shown = ", ".join(scene.scene_id for scene in scenes[:3])
    return f"{shown}, ..." if len(scenes) > 3 else shown
