"""COCO instances JSON (https://cocodataset.org/#format-data), streamed: memory holds the `images` entries alone.

Annotation ids are feature ids. A segmentation is a list of polygons where that says it all, and compressed RLE where
there are holes. pycocotools counts pixels in 32 bits, so a larger scene is written as one image for each block of it;
a feature on several blocks becomes one annotation in each, all carrying its `feature_id`.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from segworker.errors import StoreError
from segworker.io.coco_masks import segmentations_of
from segworker.io.failures import explain
from segworker.io.ids import INDEX_BITS, MAX_FEATURES_PER_SCENE, SCENE_BITS
from segworker.io.storage import Storage
from segworker.types import Category, Window

MAX_IMAGE_PX = 2**32 - 1
"Pixels that pycocotools can count."
BLOCK_PX = 32_768
"Side of the blocks of larger scenes."
ANNOTATIONS_PER_FILE = 250_000
BATCH = 2_048
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One `images` entry: a scene, or a block of a very large one."""

    image_id: int
    "The scene number; block k of a large scene: (k + 1) << 21 | scene number."
    scene_no: int
    scene_id: str
    file_name: str
    "The scene's uri without secrets."
    window: Window
    "Scene pixels that the entry covers; coordinates of its annotations count from the window's corner."
    whole: bool
    "Whether the window is the scene."


@dataclass(frozen=True, slots=True, eq=False)
class CocoFeatures:
    """The N features of one scene, in scene pixels."""

    feature_ids: NDArray[np.int64]
    "(N,)."
    class_ids: NDArray[np.integer]
    "(N,) ids of categories."
    scores: NDArray[np.floating]
    "(N,) 0..1."
    areas_px: NDArray[np.floating]
    "(N,) scene pixels."
    polygons: NDArray[np.object_]
    "(N,) shapely Polygon or MultiPolygon, scene pixels."
    keypoints_NK3: NDArray[np.floating] | None = None
    "(N, K, 3) x, y in scene pixels, and a score; 0 or less: not seen."

    def __post_init__(self) -> None:
        arrays = (self.class_ids, self.scores, self.areas_px, self.polygons)
        lengths = [len(self.feature_ids), *map(len, arrays)]
        if len(set(lengths)) != 1:
            raise ValueError(f"every array has one entry for each feature, got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.feature_ids)

    def take(self, indices: NDArray[np.integer]) -> CocoFeatures:
        """Return the features at `indices`."""
        points = self.keypoints_NK3
        return CocoFeatures(
            self.feature_ids[indices],
            self.class_ids[indices],
            self.scores[indices],
            self.areas_px[indices],
            self.polygons[indices],
            None if points is None else points[indices],
        )


def coco_path(run_id: str, k: int) -> str:
    """Return where a run's k-th COCO file is in the store."""
    return f"runs/{run_id}/coco/instances-{k}.json"


def images_of_scene(
    scene_no: int, scene_id: str, file_name: str, width: int, height: int, *, max_px: int = MAX_IMAGE_PX
) -> list[CocoImage]:
    """Return the `images` entries of a scene: one, or one for each block where pycocotools could not count its pixels.

    Args:
        scene_no: the scene's number in the store.
        scene_id: the scene's id.
        file_name: the scene's uri without secrets.
        width: scene pixels.
        height: scene pixels.
        max_px: largest number of pixels of one entry.
    """
    if width * height <= max_px:
        return [CocoImage(scene_no, scene_no, scene_id, file_name, Window(0, 0, width, height), whole=True)]
    side = min(BLOCK_PX, int(max_px**0.5))
    windows = [
        Window(left, top, min(side, width - left), min(side, height - top))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return [
        CocoImage((k + 1) << SCENE_BITS | scene_no, scene_no, scene_id, file_name, window, whole=False)
        for k, window in enumerate(windows)
    ]


class CocoWriter:
    """One COCO file, written scene by scene to a temporary local file and put into the storage when it is closed.

    Use it as a context manager: after an exception nothing is put.
    """

    def __init__(
        self,
        storage: Storage,
        path: str,
        categories: Sequence[Category],
        *,
        info: Mapping[str, Any] | None = None,
        keypoint_names: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        """Open the file.

        Args:
            storage: the store's root.
            path: see `coco_path`.
            categories: all that a class_id may be.
            info: entries of COCO's `info` (description, version, date_created ...).
            keypoint_names: class_id to the names of its keypoints.
        """
        self.num_annotations = 0
        "Annotations written so far: start another file at about ANNOTATIONS_PER_FILE."
        self._storage, self._path = storage, path
        self._names = {category.id for category in categories}
        self._images: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, int] = {}
        self._seen_pieces: set[int] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="segworker-")
        self._file: IO[str] = Path(self._folder.name, "coco.json").open(  # noqa: SIM115 - closed in discard()
            "w", encoding="utf-8"
        )
        head = {"info": dict(info or {}), "licenses": [], "categories": _categories(categories, keypoint_names or {})}
        self._put(json.dumps(head)[:-1] + ', "annotations": [')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        self.discard()

    def add(self, images: Sequence[CocoImage], features: CocoFeatures) -> None:
        """Write a scene's entries, and its features into those that they lie on.

        A large scene may be added in several calls (other entries, or the same ones with other features); an entry is
        listed once.

        Args:
            images: from `images_of_scene`.
            features: any features of that scene.

        Raises:
            StoreError: for a class_id that is no category.
        """
        unknown = set(np.unique(features.class_ids).tolist()) - self._names
        if unknown:
            raise StoreError(
                f"every class_id is a category of the model, got {sorted(unknown)}; this is a bug, report it"
            )
        for image in images:
            self._images.setdefault(image.image_id, _image_entry(image))
        bounds = shapely.bounds(features.polygons).reshape(-1, 4)
        for image in images:
            here = features if image.whole else features.take(_meeting(bounds, image.window))
            for annotation in _annotations(image, here):
                self._write(self._with_id(annotation, image))

    def close(self) -> None:
        """Finish the file and put it into the storage."""
        self._put('\n], "images": ' + json.dumps(list(self._images.values())) + "}\n", last=True)
        self._storage.write(self._path, Path(self._file.name))

    def discard(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):  # a full disk was reported by the write; this one's buffer does not matter
            self._file.close()
        self._folder.cleanup()

    def _with_id(self, annotation: dict[str, Any], image: CocoImage) -> dict[str, Any]:
        """Give the annotation its id: the feature's, and for further pieces ids from the top of the scene's range."""
        feature_id = annotation["feature_id"]
        if image.whole or feature_id not in self._seen_pieces:
            if not image.whole:
                self._seen_pieces.add(feature_id)
            return {"id": feature_id, **annotation}
        count = self._pieces[image.scene_no] = self._pieces.get(image.scene_no, 0) + 1
        return {"id": (image.scene_no << INDEX_BITS) + MAX_FEATURES_PER_SCENE - count, **annotation}

    def _write(self, annotation: dict[str, Any]) -> None:
        self._put(("\n" if self.num_annotations == 0 else ",\n") + _ENCODER.encode(annotation))
        self.num_annotations += 1

    def _put(self, text: str, *, last: bool = False) -> None:
        try:
            self._file.write(text)
            if last:
                self._file.close()
        except OSError as error:
            raise explain("write", self._file.name, error) from None


def _annotations(image: CocoImage, features: CocoFeatures) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an entry, without their ids, a few thousand at a time."""
    for start in range(0, len(features), BATCH):
        batch = features.take(np.arange(start, min(len(features), start + BATCH)))
        yield from _annotations_of_batch(image, batch)


def _annotations_of_batch(image: CocoImage, features: CocoFeatures) -> Iterator[dict[str, Any]]:
    window = image.window
    polygons, areas = features.polygons, features.areas_px
    if not image.whole:
        polygons = _clip(polygons, window)
        areas = shapely.area(polygons)
    lefts, tops, rights, bottoms = shapely.bounds(polygons).reshape(-1, 4).T
    boxes = np.stack([lefts, tops, rights - lefts, bottoms - tops], axis=1)
    segmentations = segmentations_of(polygons, window.height, window.width)
    box_lists, area_list, scores = _numbers(boxes), _numbers(areas), features.scores.astype(np.float64).tolist()
    class_ids, ids = features.class_ids.tolist(), features.feature_ids.tolist()
    for i in np.flatnonzero(~shapely.is_empty(polygons)).tolist():
        yield {
            "image_id": image.image_id,
            "category_id": class_ids[i],
            "feature_id": ids[i],
            "bbox": box_lists[i],
            "area": area_list[i],
            "iscrowd": 0,
            "score": round(scores[i], 6),
            "segmentation": segmentations[i],
            **_keypoints(features, i, window),
        }


def _clip(polygons: NDArray[np.object_], window: Window) -> NDArray[np.object_]:
    """Return the polygons' parts inside a window, counted from its corner; empty where only a border touches."""
    box = shapely.box(window.col_off, window.row_off, window.col_end, window.row_end)
    pieces = shapely.intersection(polygons, box)
    parts, owner = shapely.get_parts(pieces, return_index=True)
    areal = shapely.get_dimensions(parts) == 2
    parts = shapely.transform(parts[areal], lambda xy: xy - (window.col_off, window.row_off))
    owner = owner[areal]
    result = np.full(len(polygons), shapely.Polygon(), object)
    for i in np.unique(owner):
        own = parts[owner == i]
        result[i] = own[0] if len(own) == 1 else shapely.multipolygons(own)
    return result


def _meeting(bounds: NDArray[np.float64], window: Window) -> NDArray[np.int64]:
    left, top, right, bottom = bounds.T
    inside_x = (left < window.col_end) & (right > window.col_off)
    inside_y = (top < window.row_end) & (bottom > window.row_off)
    return np.flatnonzero(inside_x & inside_y)


def _keypoints(features: CocoFeatures, i: int, window: Window) -> dict[str, Any]:
    if features.keypoints_NK3 is None:
        return {}
    x, y, score = features.keypoints_NK3[i].astype(np.float64).T
    seen = score > 0
    columns = np.where(seen, (x - window.col_off, y - window.row_off, np.full(len(x), 2.0)), 0.0)
    return {
        "keypoints": _numbers(columns.T.ravel()),
        "num_keypoints": int(seen.sum()),
        "keypoint_scores": [round(float(value), 6) for value in score],
    }


def _image_entry(image: CocoImage) -> dict[str, Any]:
    window = image.window
    entry = {
        "id": image.image_id,
        "file_name": image.file_name,
        "width": window.width,
        "height": window.height,
        "scene_id": image.scene_id,
    }
    return entry if image.whole else entry | {"offset_xy": [window.col_off, window.row_off]}


def _categories(categories: Sequence[Category], keypoint_names: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for category in categories:
        entry = {"id": category.id, "name": category.name, "supercategory": "", "isthing": int(category.isthing)}
        names = keypoint_names.get(category.id, category.keypoints)
        entries.append(entry if not names else entry | {"keypoints": list(names), "skeleton": []})
    return entries


def _numbers(values: NDArray[np.floating]) -> list[Any]:
    """Return values as (lists of) JSON numbers: whole ones short, others to a hundredth of a pixel."""
    rounded = np.round(values.astype(np.float64), 2)
    whole = np.isfinite(rounded) & (rounded == np.rint(rounded))
    if whole.all():
        return list(rounded.astype(np.int64).tolist())
    if rounded.ndim > 1:
        return [_numbers(row) for row in rounded]
    return [int(v) if w else v for v, w in zip(rounded.tolist(), whole.tolist(), strict=True)]
