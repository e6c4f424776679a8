"""Label rasters as truth: one band of integers as large as the scene, 0 is background, each value is one object.

A raster belongs to the scene of its name (`_labels`, `_mask` and the like at the end are left out). Beside NAME.tif a
NAME.classes.json may say which class each label has: {"1": "house", "2": "pond"}.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segworker.errors import ConfigError
from segworker.io.annotations.coco import parse_json
from segworker.io.annotations.draft import Classes, Draft, SceneNames
from segworker.io.annotations.options import TruthOptions
from segworker.io.failures import redact
from segworker.io.gdal import opened
from segworker.io.storage import open_storage
from segworker.masks import merge_runs, runs_from_labels
from segworker.types import Runs, Scene, Window

ENDINGS = ("_labels", "_label", "_masks", "_mask", "_instances", "_truth", "-labels", "-mask")
_STRIP_PX = 2**24


def add_labels(uri: str, names: SceneNames, drafts: dict[str, Draft], classes: Classes, options: TruthOptions) -> bool:
    """Append a label raster's objects to its scene's draft; return whether it has a scene.

    Raises:
        ConfigError: not one band of integers, or of another size than the scene.
    """
    name = uri.rpartition("/")[2]
    stem = name.rpartition(".")[0]
    shorter = [stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)]
    scene = names.find(name, stem, *shorter)
    if scene is None:
        return False
    labels, runs = read_labels(uri, scene)
    named = _class_names(uri)
    draft, source = drafts.setdefault(scene.scene_id, Draft(scene)), redact(uri)
    for k, label in enumerate(labels.tolist()):
        ignored = label == options.ignore_label
        text = named.get(str(label)) if named else options.default_class or "object"
        class_id = classes.add(text or options.default_class or "object") if text or ignored else None
        detail = "" if class_id is not None else "the label is not in the .classes.json"
        draft.add(str(label), runs.take(np.array([k])), class_id, source=source, crowd=ignored, detail=detail)
    return True


def read_labels(uri: str, scene: Scene) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Runs]:
    """Return the labels of a raster, ascending and without 0, and their masks; read in strips of rows."""
    parts: list[Runs] = []
    owners: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    with opened(uri, side_files=True) as dataset:
        _check(dataset.count, dataset.dtypes[0], (dataset.width, dataset.height), scene, redact(uri))
        rows = max(1, _STRIP_PX // scene.width)
        for top in range(0, scene.height, rows):
            window = Window(0, top, scene.width, min(rows, scene.height - top))
            values, compact = np.unique(dataset.read(1, window=((top, top + window.height), (0, scene.width))),
                                        return_inverse=True)  # fmt: skip
            parts.append(runs_from_labels(compact.reshape(window.shape_yx) + 1, len(values), window=window))
            owners.append(values.astype(np.int64))
    labels, groups = np.unique(np.concatenate(owners), return_inverse=True)
    runs = merge_runs(Runs.concatenate(parts), groups, len(labels))
    kept = labels != 0
    return labels[kept], runs.take(kept)


def _check(count: int, dtype: str, size_wh: tuple[int, int], scene: Scene, source: str) -> None:
    if count != 1 or not np.issubdtype(np.dtype(dtype), np.integer):
        raise ConfigError(
            f"a label raster is one band of integers, got {count} bands of {dtype} in {source}; write one number for "
            "each object, 0 for the background"
        )
    if size_wh != (scene.width, scene.height):
        raise ConfigError(
            f"a label raster is as large as its scene, got {size_wh[0]} x {size_wh[1]} px in {source} for "
            f"{scene.scene_id} with {scene.width} x {scene.height} px; render the labels again"
        )


def _class_names(uri: str) -> Mapping[str, str]:
    """Return class names by label from the file beside a raster; empty where there is none."""
    folder, _, name = uri.rpartition("/")
    beside = f"{name.rpartition('.')[0]}.classes.json"
    storage = open_storage(folder or ".")
    if storage.head(beside) is None:
        return {}
    found = parse_json(storage.read(beside), beside)
    if not isinstance(found, dict):
        raise ConfigError(f"{beside} maps labels to class names, got {type(found).__name__}; write an object")
    return {str(key): str(value) for key, value in found.items()}
