"""COCO JSON as truth: instances with polygons, run lengths, crowds and keypoints, and panoptic segments.

https://cocodataset.org/#format-data. LVIS's `not_exhaustive_category_ids` of an image is understood: classes of which
only some objects are annotated there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.errors import ConfigError
from segworker.io.annotations.draft import Classes, Draft, SceneNames, areal
from segworker.io.annotations.options import TruthOptions
from segworker.io.failures import redact
from segworker.io.gdal import opened
from segworker.masks import runs_from_labels, runs_from_mask
from segworker.truth import Fault, Issue
from segworker.types import Runs, Scene, Window


def is_coco(document: object) -> bool:
    """Say whether a JSON document is a COCO file."""
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def add_coco(
    document: Mapping[str, Any],
    uri: str,
    names: SceneNames,
    drafts: dict[str, Draft],
    classes: Classes,
    options: TruthOptions,
) -> list[Issue]:
    """Append a COCO file's annotations to the drafts of their scenes; return what belongs to no scene.

    Raises:
        ConfigError: no categories, or an image of another size than its scene.
    """
    source = redact(uri)
    declared = _categories(document, classes, source)
    scenes = {image["id"]: _scene_of(image, names, source) for image in document["images"] if "id" in image}
    for image in document["images"]:
        scene = scenes.get(image.get("id"))
        if scene is not None:
            draft = drafts.setdefault(scene.scene_id, Draft(scene))
            draft.partial |= {declared[c] for c in image.get("not_exhaustive_category_ids", ()) if c in declared}
    issues: list[Issue] = []
    for position, annotation in enumerate(document["annotations"]):
        object_id = str(annotation.get("id", f"#{position}"))
        if annotation.get("image_id") not in scenes:
            told = f"image_id {annotation.get('image_id')!r} is not listed"
            issues.append(Issue(Fault.UNKNOWN_SCENE, "skipped", object_id, source, detail=told))
            continue
        scene = scenes[annotation["image_id"]]
        if scene is None:
            continue  # the file holds more images than there are scenes: the caller counts these
        draft = drafts[scene.scene_id]
        if "segments_info" in annotation:
            _add_panoptic(annotation, uri, draft, declared, options)
            continue
        _add_instance(annotation, object_id, draft, declared, source)
    return issues


def keypoint_names(document: Mapping[str, Any], classes: Classes) -> dict[int, tuple[str, ...]]:
    """Return the names of the keypoints of each class that has some."""
    found = {}
    for entry in document.get("categories", ()):
        if entry.get("keypoints"):
            found[classes.add(str(entry["name"]))] = tuple(map(str, entry["keypoints"]))
    return found


def _categories(document: Mapping[str, Any], classes: Classes, source: str) -> dict[Any, int]:
    entries = document.get("categories") or []
    if not entries:
        raise ConfigError(f"a COCO file declares its categories, got none in {source}; add them")
    return {
        entry["id"]: classes.add(str(entry["name"]), int(entry["id"]), isthing=bool(entry.get("isthing", 1)))
        for entry in entries
    }


def _scene_of(image: Mapping[str, Any], names: SceneNames, source: str) -> Scene | None:
    scene = names.find(image.get("scene_id"), image.get("file_name"))
    if scene is None:
        return None
    if "offset_xy" in image:
        raise ConfigError(
            f"an image of a COCO file is a whole scene, got a block of {scene.scene_id} in {source}; give the features "
            "as GeoParquet instead"
        )
    size = image.get("width", scene.width), image.get("height", scene.height)
    if size != (scene.width, scene.height):
        raise ConfigError(
            f"an image is as large as its scene, got {size[0]} x {size[1]} px in {source} for {scene.scene_id} with "
            f"{scene.width} x {scene.height} px; annotate the scene itself, not a resized copy"
        )
    return scene


def _add_instance(
    annotation: Mapping[str, Any], object_id: str, draft: Draft, declared: Mapping[Any, int], source: str
) -> None:
    class_id = declared.get(annotation.get("category_id"))
    shape, detail = _shape(annotation, draft.scene)
    if class_id is None:
        detail = f"category_id {annotation.get('category_id')!r}"
    draft.add(
        object_id,
        shape,
        class_id,
        source=source,
        crowd=bool(annotation.get("iscrowd", 0)),
        keypoints=annotation.get("keypoints"),
        detail=detail,
    )


def _shape(annotation: Mapping[str, Any], scene: Scene) -> tuple[shapely.Geometry | Runs | None, str]:
    """Return an annotation's polygon or mask, its box where it has neither, or None and what is wrong."""
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, dict):
            return runs_of_rle(segmentation, scene), ""
        if segmentation:
            return _polygon(segmentation), ""
        box = annotation.get("bbox")
        if not box:
            return None, "neither segmentation nor bbox"
        x, y, width, height = map(float, box)
        return shapely.box(x, y, x + width, y + height), ""
    except (ValueError, TypeError, KeyError, IndexError, shapely.errors.ShapelyError) as error:
        return None, str(error)[:120]


def _polygon(rings: Sequence[Sequence[float]]) -> shapely.Geometry:
    """Return the union of a COCO polygon list: each ring is filled by itself, as pycocotools does."""
    parts = [shapely.Polygon(np.asarray(ring, np.float64).reshape(-1, 2)) for ring in rings if len(ring) >= 6]
    if not parts:
        raise ValueError("polygons have at least three points")
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        raise ValueError("coordinates that are no numbers")
    return parts[0] if len(parts) == 1 else areal(shapely.union_all([shapely.make_valid(part) for part in parts]))


def runs_of_rle(rle: Mapping[str, Any], scene: Scene) -> Runs:
    """Return the mask of a COCO run-length encoding, compressed or not; only the mask's box is held as pixels.

    Raises:
        ValueError: the size is not the scene's, or the lengths do not add up.
    """
    height, width = (int(side) for side in rle["size"])
    if (width, height) != (scene.width, scene.height):
        raise ValueError(f"run lengths of {width} x {height} px")
    counts = rle["counts"]
    lengths = np.asarray(counts, np.int64) if isinstance(counts, list) else rle_lengths(counts)
    ends = np.cumsum(lengths)
    if len(ends) == 0 or (lengths < 0).any() or ends[-1] != width * height:
        raise ValueError("run lengths do not add up to the image")
    starts, stops = ends[0:-1:2], ends[1::2]
    starts, stops = starts[: len(stops)][stops > starts[: len(stops)]], stops[stops > starts[: len(stops)]]
    return _from_columns(starts, stops, height)


def _from_columns(starts: NDArray[np.int64], stops: NDArray[np.int64], height: int) -> Runs:
    """Return the mask of runs that go down the columns, through the pixels of its box."""
    if not len(starts):
        return Runs.empty(1)
    left, right = int(starts[0] // height), int((stops[-1] - 1) // height) + 1
    flat = np.zeros((right - left) * height + 1, np.int8)
    np.add.at(flat, starts - left * height, 1)
    np.add.at(flat, stops - left * height, -1)
    mask = np.cumsum(flat[:-1], dtype=np.int8).reshape(right - left, height).T > 0
    rows = np.flatnonzero(mask.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return runs_from_mask(mask[top:bottom], window=Window(left, top, right - left, bottom - top))


def rle_lengths(text: str | bytes) -> NDArray[np.int64]:
    """Return the lengths of a compressed encoding: five bits a character, the third and later ones as differences."""
    raw = np.frombuffer(text if isinstance(text, bytes) else text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(raw) and (raw.min() < 0 or raw.max() > 63 or raw[-1] & 32):
        raise ValueError("characters that are no run lengths")
    first = np.flatnonzero(np.concatenate([[True], (raw[:-1] & 32) == 0]))[: len(raw)]
    place = np.arange(len(raw)) - np.repeat(first, np.diff(np.append(first, len(raw))))
    if len(raw) and place.max() > 11:
        raise ValueError("a run length of too many characters")
    values = np.add.reduceat((raw & 31) << (5 * place), first) if len(raw) else np.zeros(0, np.int64)
    last = np.append(first[1:], len(raw)) - 1
    values = np.where(raw[last] & 16, values - (1 << (5 * (place[last] + 1))), values)
    for odd in (1, 2):
        values[odd::2] = np.concatenate([values[odd : odd + 1], values[odd + 2 :: 2]]).cumsum()
    return np.asarray(values, np.int64)


def _add_panoptic(
    annotation: Mapping[str, Any], uri: str, draft: Draft, declared: Mapping[Any, int], options: TruthOptions
) -> None:
    """Append the segments of one image, whose picture has id = R + 256 G + 65536 B."""
    source, scene = redact(uri), draft.scene
    folder = options.panoptic_folder or uri.rpartition(".")[0]
    ids, runs = _segments(f"{folder}/{annotation['file_name']}", scene)
    places = {number: k for k, number in enumerate(ids.tolist())}
    for segment in annotation["segments_info"]:
        place = places.get(segment["id"])
        class_id = declared.get(segment.get("category_id"))
        detail = f"category_id {segment.get('category_id')!r}" if class_id is None else ""
        draft.add(
            f"{scene.scene_id}/{segment['id']}",
            runs.take(np.array([place])) if place is not None else None,
            class_id,
            source=source,
            crowd=bool(segment.get("iscrowd", 0)),
            detail=detail or ("no pixel has its id" if place is None else ""),
        )


def _segments(uri: str, scene: Scene) -> tuple[NDArray[np.int64], Runs]:
    """Return the ids in a panoptic picture and their masks."""
    with opened(uri, side_files=False) as dataset:
        if (dataset.width, dataset.height) != (scene.width, scene.height) or dataset.count < 3:
            raise ConfigError(
                f"a panoptic picture has three bands and its scene's size, got {dataset.count} bands of "
                f"{dataset.width} x {dataset.height} px in {redact(uri)}; correct it"
            )
        red, green, blue = dataset.read((1, 2, 3)).astype(np.int64)
    ids, places = np.unique(red + (green << 8) + (blue << 16), return_inverse=True)
    return ids, runs_from_labels(places.reshape(red.shape) + 1, len(ids), window=scene.window)


def parse_json(content: bytes, uri: str) -> object:
    """Return a JSON document; ConfigError where it is none."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise ConfigError(
            f"annotations end in .json where they are JSON, got {redact(uri)} ({error}); correct it"
        ) from None
